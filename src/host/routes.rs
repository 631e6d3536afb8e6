//! Looks up routes of this network namespace (rtnetlink(7)).

use std::net::IpAddr;

use anyhow::Result;
use nix::errno::Errno;
use nix::libc::{
    AF_INET, AF_INET6, RTA_DST, RTA_IIF, RTA_OIF, RTA_SRC, RTM_GETROUTE, RTN_LOCAL, RTN_UNICAST,
};
use nix::sys::socket::{SockFlag, SockProtocol};

use super::interfaces;
use super::netlink::{RTMSG_LEN, Socket, attributes, push_attribute, read_u32};

/// Where `struct rtmsg` has the type of the route.
const RTM_TYPE_AT: usize = 7;

/// Asks for routes.
pub struct Routes(Socket);

impl Routes {
    /// Opens the socket for the requests.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Self(Socket::open(protocol, 0, SockFlag::empty())?))
    }

    /// Whether there is a route to an address.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn lead_to(&mut self, addr: IpAddr) -> Result<bool, Errno> {
        Ok(self.kind(addr, None)?.is_some())
    }

    /// The index of the output interface for an address, if there is a route.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn interface(&mut self, addr: IpAddr) -> Result<Option<u32>, Errno> {
        let route = self.route(addr, None)?.unwrap_or_default();
        let mut known = attributes(route.get(RTMSG_LEN..).unwrap_or_default());
        let found = known.find(|(kind, _)| *kind == RTA_OIF);
        Ok(found.and_then(|(_, index)| read_u32(index, 0)))
    }

    /// Whether the address is one of this machine.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn is_local(&mut self, addr: IpAddr) -> Result<bool, Errno> {
        Ok(self.kind(addr, None)? == Some(RTN_LOCAL))
    }

    /// Whether a packet that arrives on an interface is forwarded, unless a firewall changes or drops
    /// it.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn forward(&mut self, ifindex: u32, from: IpAddr, to: IpAddr) -> Result<bool, Errno> {
        Ok(self.kind(to, Some((ifindex, from)))? == Some(RTN_UNICAST))
    }

    /// Whether an interface is up that is not in the list; the loopback interface does not count.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn has_others(&mut self, listed: &[u32]) -> Result<bool> {
        interfaces::has_others(&mut self.0, listed)
    }

    /// The type of the route, if there is one.
    fn kind(&mut self, addr: IpAddr, incoming: Option<(u32, IpAddr)>) -> Result<Option<u8>, Errno> {
        let route = self.route(addr, incoming)?;
        Ok(route.and_then(|route| route.get(RTM_TYPE_AT).copied()))
    }

    /// The route to an address; with `incoming`, that of a packet that arrives on this interface
    /// from this address. `None`: there is none.
    fn route(
        &mut self,
        addr: IpAddr,
        incoming: Option<(u32, IpAddr)>,
    ) -> Result<Option<Vec<u8>>, Errno> {
        let mut request = vec![0; RTMSG_LEN];
        let (family, bits) = match addr {
            IpAddr::V4(_) => (AF_INET, 32),
            IpAddr::V6(_) => (AF_INET6, 128),
        };
        request[0] = family.to_le_bytes()[0];
        request[1] = bits;
        push_address(&mut request, RTA_DST, addr)?;
        if let Some((ifindex, from)) = incoming {
            request[2] = bits;
            push_address(&mut request, RTA_SRC, from)?;
            push_attribute(&mut request, RTA_IIF, &ifindex.to_ne_bytes())?;
        }
        match self.0.get(RTM_GETROUTE, &request) {
            Ok(route) => Ok(Some(route)),
            Err(
                Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::EINVAL
                | Errno::EACCES
                | Errno::EXDEV,
            ) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

fn push_address(request: &mut Vec<u8>, kind: u16, addr: IpAddr) -> Result<(), Errno> {
    match addr {
        IpAddr::V4(v4) => push_attribute(request, kind, &v4.octets()),
        IpAddr::V6(v6) => push_attribute(request, kind, &v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_route_leads_to_this_machine_itself() {
        let mut routes = Routes::open().unwrap();
        assert_eq!(routes.lead_to(Ipv4Addr::LOCALHOST.into()), Ok(true));
        assert_eq!(routes.is_local(Ipv4Addr::LOCALHOST.into()), Ok(true));
        assert_eq!(routes.is_local(Ipv4Addr::BROADCAST.into()), Ok(false));
    }
}
