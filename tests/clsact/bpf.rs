//! Programs of a few instructions that count packets, and a way to attach them
//! without the code under test.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use libbpf_sys::{
    BPF_MAP_TYPE_ARRAY, BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_XDP, BPF_TC_EGRESS, BPF_TC_INGRESS,
    bpf_map_create, bpf_map_lookup_elem, bpf_prog_load_opts, bpf_prog_type, bpf_tc_attach,
    bpf_tc_hook, bpf_tc_opts,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use tcpinspect::attach::clsact::Clsact;
use tcpinspect::domain::Direction;

use super::net::index;
use crate::common::bpf::{instruction, load, owned};

/// Go on with the next filter.
pub const UNSPEC: i32 = -1;
/// Let the packet pass; no other filter sees it.
pub const OK: i32 = 0;
/// Drop it.
pub const SHOT: i32 = 2;

/// A loaded program that counts packets and gives each the same verdict.
pub struct Counter {
    program: OwnedFd,
    map: OwnedFd,
}

impl Counter {
    pub fn new(verdict: i32) -> Self {
        Self::of_type(BPF_PROG_TYPE_SCHED_CLS, verdict)
    }

    /// An XDP program, which can't be attached to TC.
    pub fn xdp() -> Self {
        Self::of_type(BPF_PROG_TYPE_XDP, 2)
    }

    fn of_type(kind: bpf_prog_type, verdict: i32) -> Self {
        // SAFETY: the name is a C string, and no options are given.
        let map = unsafe {
            bpf_map_create(
                BPF_MAP_TYPE_ARRAY,
                c"counter".as_ptr(),
                4,
                8,
                1,
                ptr::null(),
            )
        };
        let map = owned(map).unwrap();
        // r1 = &counter; r2 = 1; lock *(u64 *)r1 += r2; r0 = verdict; exit.
        // Source register 2 stands for BPF_PSEUDO_MAP_VALUE.
        let code = [
            instruction(0x18, 1, 2, map.as_raw_fd()),
            instruction(0, 0, 0, 0),
            instruction(0xb7, 2, 0, 1),
            instruction(0xdb, 1, 2, 0),
            instruction(0xb7, 0, 0, verdict),
            instruction(0x95, 0, 0, 0),
        ];
        let opts = bpf_prog_load_opts {
            sz: size_of::<bpf_prog_load_opts>() as u64,
            ..Default::default()
        };
        let program = load(kind, c"counter", &code, &opts).unwrap();
        Self { program, map }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    pub fn count(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        // SAFETY: key and value have the sizes of the map's.
        let result = unsafe {
            bpf_map_lookup_elem(
                self.map.as_raw_fd(),
                (&raw const key).cast(),
                (&raw mut value).cast(),
            )
        };
        assert_eq!(result, 0);
        value
    }

    /// Waits until the count is right, then a little longer to see that it does not grow.
    pub fn expect(&self, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.count() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(self.count(), count);
    }

    /// Attaches it as our filter.
    pub fn attach(&self, interface: &str, direction: Direction) -> Clsact {
        Clsact::attach(self.fd(), "monitor", index(interface), direction).unwrap()
    }

    /// Attaches it as another program's filter. The qdisc must be there.
    pub fn attach_foreign(&self, ifindex: u32, direction: Direction, priority: u32, handle: u32) {
        let hook = bpf_tc_hook {
            sz: size_of::<bpf_tc_hook>() as u64,
            ifindex: ifindex as c_int,
            attach_point: match direction {
                Direction::Ingress => BPF_TC_INGRESS,
                Direction::Egress => BPF_TC_EGRESS,
            },
            ..bpf_tc_hook::default()
        };
        let mut options = bpf_tc_opts {
            sz: size_of::<bpf_tc_opts>() as u64,
            prog_fd: self.program.as_raw_fd(),
            priority,
            handle,
            ..bpf_tc_opts::default()
        };
        // SAFETY: both structs are filled in as far as their sizes say.
        let result = unsafe { bpf_tc_attach(&raw const hook, &raw mut options) };
        assert_eq!(result, 0);
    }

    /// Attaches it under a name, as another version of the tool would: by an rtnetlink(7)
    /// message that is made here, without any code of the tool.
    pub fn attach_named(&self, ifindex: u32, direction: Direction, name: &str) {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let parent: u32 = match direction {
            Direction::Ingress => 0xffff_fff2,
            Direction::Egress => 0xffff_fff3,
        };
        // struct tcmsg: any handle, priority 37, ETH_P_ALL.
        let info = 37 << 16 | u32::from(3_u16.to_be());
        let header = [0, ifindex, 0, parent, info].map(u32::to_ne_bytes).concat();
        // TCA_BPF_FD, TCA_BPF_NAME, and TCA_BPF_FLAGS with direct action.
        let options = [
            attribute(6, &self.program.as_raw_fd().to_ne_bytes()),
            attribute(7, &[name.as_bytes(), &[0]].concat()),
            attribute(8, &1_u32.to_ne_bytes()),
        ];
        // TCA_KIND and TCA_OPTIONS.
        let kind = attribute(1, b"bpf\0");
        let payload = [header, kind, attribute(2, &options.concat())].concat();
        // RTM_NEWTFILTER; NLM_F_REQUEST, ACK, EXCL, CREATE.
        let mut message = (payload.len() as u32 + 16).to_ne_bytes().to_vec();
        message.extend(44_u16.to_ne_bytes());
        message.extend(0x605_u16.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(payload);

        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).unwrap();
        send(socket.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
        let mut answer = [0; 512];
        recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        // struct nlmsgerr after the header.
        let error = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
        assert_eq!(error, 0, "{name}");
    }
}
