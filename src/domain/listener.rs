//! Listeners: listening sockets that are bound to the same address, port and interface, and take the same
//! families, are one listener, which is compared with the previous snapshot.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use super::per_second;

/// The address, port and interface that a socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Local {
    /// The port. It is the first field, so that listeners are sorted by it.
    pub port: u16,
    /// The address; unspecified for all of its family.
    pub addr: IpAddr,
    /// The interface, by index; 0 for all.
    pub ifindex: u32,
}

/// A listening socket, as the kernel reports it at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListeningSocket {
    /// What it is bound to.
    pub local: Local,
    /// It takes IPv6 connections only.
    pub v6_only: bool,
    /// It also takes connections to addresses that are not this machine's (`IP_TRANSPARENT`).
    pub is_transparent: bool,
    /// Identifies the socket as long as the machine runs.
    pub cookie: u64,
    /// The inode that its descriptors have; 0 for a socket without any.
    pub inode: u32,
    /// Connections that are established and wait for accept(2).
    pub queue_len: u32,
    /// The limit on these. The kernel accepts one more.
    pub queue_max: u32,
    /// The user who made it.
    pub uid: u32,
    /// Attempts that the kernel dropped here, modulo 2^32.
    pub drops: u32,
}

impl ListeningSocket {
    /// It takes connections of both families.
    fn is_dual(&self) -> bool {
        let addr = self.local.addr;
        addr.is_ipv6() && addr.is_unspecified() && !self.v6_only
    }
}

/// Identifies a listener: what its sockets are bound to, and whether they take both families.
pub type ListenerKey = (Local, bool);

/// A process that holds a listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name, without the NUL that ends it.
    pub comm: Vec<u8>,
    /// Its cgroup.
    pub cgroup_id: u64,
}

/// A socket of a listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its state in the last snapshot.
    pub socket: ListeningSocket,
    /// The processes that hold it, the lowest pid first: usually that of the server, whose workers
    /// inherit the socket.
    pub holders: Vec<Holder>,
    /// Attempts dropped since the last update.
    pub drops_delta: u64,
}

/// All sockets that are bound to the same address, port and interface, and take the same families: one, or a
/// group with SO_REUSEPORT.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// What they are bound to.
    pub local: Local,
    /// The sockets, in the order in which they were made.
    pub members: Vec<Member>,
    /// Connections whose handshake is not complete.
    pub half_open: u32,
    /// Seconds since the previous snapshot; `None` for the first one.
    pub seconds: Option<f64>,
}

impl Listener {
    fn sum(&self, of: impl Fn(&Member) -> u64) -> u64 {
        self.members.iter().map(of).sum()
    }

    /// Connections that wait for accept(2).
    pub fn queue_len(&self) -> u64 {
        self.sum(|member| member.socket.queue_len.into())
    }

    /// How many may wait.
    pub fn queue_max(&self) -> u64 {
        self.sum(|member| member.socket.queue_max.into())
    }

    /// Attempts dropped since the sockets were made.
    pub fn drops_total(&self) -> u64 {
        self.sum(|member| member.socket.drops.into())
    }

    /// Attempts dropped since the last update.
    pub fn drops_delta(&self) -> u64 {
        self.sum(|member| member.drops_delta)
    }

    /// Dropped attempts a second; `None` in the first snapshot.
    pub fn drop_rate(&self) -> Option<f64> {
        self.seconds
            .map(|seconds| per_second(self.drops_delta(), seconds))
    }

    /// How full the fullest accept queue is, in percent. Each socket of a group has its own, and
    /// the kernel does not look for one that has room.
    pub fn fill(&self) -> f64 {
        let fill = |member: &Member| {
            let socket = &member.socket;
            100.0 * f64::from(socket.queue_len) / f64::from(socket.queue_max.max(1))
        };
        self.members.iter().map(fill).fold(0.0, f64::max)
    }

    /// The process that holds a socket; of several, the one with the lowest number.
    pub fn holder(&self) -> Option<&Holder> {
        let holders = self.members.iter().flat_map(|member| &member.holders);
        holders.min_by_key(|holder| holder.pid)
    }

    /// How many processes hold one of the sockets.
    pub fn processes(&self) -> usize {
        let holders = self.members.iter().flat_map(|member| &member.holders);
        holders
            .map(|holder| holder.pid)
            .collect::<HashSet<_>>()
            .len()
    }

    /// The user who made the first socket.
    pub fn uid(&self) -> Option<u32> {
        self.members.first().map(|member| member.socket.uid)
    }

    /// It takes connections of both families.
    pub fn is_dual(&self) -> bool {
        self.members.iter().any(|member| member.socket.is_dual())
    }

    /// What it is identified by.
    pub fn key(&self) -> ListenerKey {
        (self.local, self.is_dual())
    }
}

/// An alert: the accept queue of a listener is full, or the listener drops attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueAlert {
    /// Raised, or cleared.
    pub raised: bool,
    /// Which listener, as a position among the listeners of the update.
    pub listener: usize,
}

/// What is kept from one snapshot to the next.
#[derive(Debug, Default)]
pub struct ListenerHistory {
    /// Drops of each socket, by cookie.
    drops: Option<HashMap<u64, u32>>,
    alerted: HashSet<ListenerKey>,
}

impl ListenerHistory {
    /// Groups the sockets of a snapshot into listeners, the worst first. `half_open` are the local ends of
    /// connections whose handshake is not complete; `elapsed` is the time since the last update.
    pub fn update(
        &mut self,
        sockets: &[ListeningSocket],
        half_open: &[Local],
        holders: &HashMap<u64, Vec<Holder>>,
        elapsed: Duration,
    ) -> Vec<Listener> {
        let seconds = self.drops.as_ref().map(|_| elapsed.as_secs_f64());
        let mut listeners = BTreeMap::new();
        for socket in sockets {
            let drops_delta = match &self.drops {
                None => 0,
                // The drops of a new socket all happened since the previous snapshot.
                Some(known) => {
                    let before = known.get(&socket.cookie).copied().unwrap_or(0);
                    socket.drops.wrapping_sub(before).into()
                }
            };
            let key = (socket.local, socket.is_dual());
            let listener = listeners.entry(key).or_insert_with(|| Listener {
                local: socket.local,
                members: Vec::new(),
                half_open: 0,
                seconds,
            });
            listener.members.push(Member {
                socket: *socket,
                holders: holders
                    .get(&socket.inode.into())
                    .cloned()
                    .unwrap_or_default(),
                drops_delta,
            });
        }
        for local in half_open {
            if let Some(at) = destination(&listeners, *local)
                && let Some(listener) = listeners.get_mut(&at)
            {
                listener.half_open += 1;
            }
        }
        let drops = sockets.iter().map(|socket| (socket.cookie, socket.drops));
        self.drops = Some(drops.collect());
        let mut listeners = listeners.into_values().collect::<Vec<_>>();
        for listener in &mut listeners {
            // The kernel lists a group of IPv6 sockets in the order in which they were made, and
            // one of IPv4 sockets in the reverse order (__inet_hash()).
            if listener.local.addr.is_ipv4() {
                listener.members.reverse();
            }
        }
        // The sort is stable: equal ones stay in the order of their ports.
        listeners.sort_by_key(|listener| Reverse((listener.drops_delta(), listener.fill() as u64)));
        listeners
    }

    /// Alerts that are raised or cleared now. A queue that is `percent` full raises one, and so does
    /// any drop.
    pub fn alerts(&mut self, listeners: &[Listener], percent: f64) -> Vec<QueueAlert> {
        let mut alerts = Vec::new();
        let before = std::mem::take(&mut self.alerted);
        for (at, listener) in listeners.iter().enumerate() {
            let was_raised = before.contains(&listener.key());
            let is_raised = listener.fill() >= percent || listener.drops_delta() > 0;
            if is_raised {
                self.alerted.insert(listener.key());
            }
            if was_raised != is_raised {
                alerts.push(QueueAlert {
                    raised: is_raised,
                    listener: at,
                });
            }
        }
        alerts
    }
}

/// The listener that a connection to this address goes to: the most specific one, as in the
/// kernel's own lookup.
fn destination(listeners: &BTreeMap<ListenerKey, Listener>, local: Local) -> Option<ListenerKey> {
    let any = |addr: IpAddr| match addr {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let dual = IpAddr::from([0; 16]);
    for addr in [local.addr, any(local.addr), dual] {
        let is_own_family = addr.is_ipv6() == local.addr.is_ipv6();
        for ifindex in [local.ifindex, 0] {
            let bound = Local {
                addr,
                ifindex,
                ..local
            };
            let mut candidates = [(bound, false), (bound, true)].into_iter();
            let takes = |key: &ListenerKey| is_own_family || key.1;
            let found = candidates.find(|key| takes(key) && listeners.contains_key(key));
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(addr: &str, port: u16) -> Local {
        Local {
            port,
            addr: addr.parse().unwrap(),
            ifindex: 0,
        }
    }

    fn socket(
        addr: &str,
        port: u16,
        cookie: u64,
        queue: (u32, u32),
        drops: u32,
    ) -> ListeningSocket {
        ListeningSocket {
            local: local(addr, port),
            v6_only: false,
            is_transparent: false,
            cookie,
            inode: u32::try_from(cookie).unwrap(),
            queue_len: queue.0,
            queue_max: queue.1,
            uid: 0,
            drops,
        }
    }

    fn update(
        history: &mut ListenerHistory,
        sockets: &[ListeningSocket],
        half_open: &[Local],
    ) -> Vec<Listener> {
        history.update(sockets, half_open, &HashMap::new(), Duration::from_secs(2))
    }

    #[test]
    fn sockets_of_a_group_are_one_listener_with_an_accept_queue_each() {
        let sockets = [
            socket("0.0.0.0", 80, 2, (5, 4), 7),
            socket("0.0.0.0", 80, 1, (0, 4), 1),
            socket("0.0.0.0", 81, 3, (0, 4), 0),
        ];
        let listeners = update(&mut ListenerHistory::default(), &sockets, &[]);
        assert_eq!(listeners.len(), 2);
        let group = &listeners[0];
        let figures = (group.queue_len(), group.queue_max(), group.drops_total());
        assert_eq!(figures, (5, 8, 8));
        assert_eq!((group.fill(), group.drops_delta()), (125.0, 0));
        assert_eq!(group.drop_rate(), None);
        assert_eq!(group.members[0].socket.cookie, 1);
    }

    #[test]
    fn sockets_that_take_ipv6_only_are_another_listener_than_those_that_take_both() {
        let mut v6_only = socket("::", 80, 1, (0, 4), 0);
        v6_only.v6_only = true;
        let sockets = [v6_only, socket("::", 80, 2, (5, 4), 0)];
        let half_open = ["2001:db8::1", "192.0.2.1"].map(|addr| local(addr, 80));
        let mut history = ListenerHistory::default();
        let listeners = update(&mut history, &sockets, &half_open);
        let found = listeners.iter().map(|it| (it.is_dual(), it.half_open));
        assert_eq!(found.collect::<Vec<_>>(), [(true, 1), (false, 1)]);
        let alerts = history.alerts(&listeners, 80.0);
        let raised = alerts.iter().map(|alert| (alert.listener, alert.raised));
        assert_eq!(raised.collect::<Vec<_>>(), [(0, true)]);
    }

    #[test]
    fn the_holder_of_a_group_is_the_process_with_the_lowest_number() {
        let sockets = [1, 2, 3].map(|cookie| socket("::", 80, cookie, (0, 4), 0));
        let holder = |pid| Holder {
            pid,
            comm: Vec::new(),
            cgroup_id: 0,
        };
        let holders = [(1, 9), (2, 7), (3, 8)].map(|(inode, pid)| (inode, vec![holder(pid)]));
        let mut history = ListenerHistory::default();
        let listeners = history.update(&sockets, &[], &holders.into(), Duration::from_secs(2));
        let pids = listeners.iter().map(|it| it.holder().unwrap().pid);
        assert_eq!(pids.collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn drops_count_since_the_previous_snapshot_even_if_the_counter_wraps_or_the_socket_is_new() {
        let mut history = ListenerHistory::default();
        let before = [
            socket("::", 80, 1, (0, 4), u32::MAX),
            socket("::", 81, 2, (0, 4), 9),
        ];
        update(&mut history, &before, &[]);
        let after = [
            socket("::", 80, 1, (0, 4), 4),
            socket("::", 81, 3, (0, 4), 2),
            socket("::", 82, 4, (0, 4), 0),
        ];
        let listeners = update(&mut history, &after, &[]);
        let deltas = listeners.iter().map(|l| (l.local.port, l.drops_delta()));
        assert_eq!(deltas.collect::<Vec<_>>(), [(80, 5), (81, 2), (82, 0)]);
        assert_eq!(listeners[0].drop_rate(), Some(2.5));
    }

    #[test]
    fn a_half_open_connection_counts_for_the_most_specific_listener() {
        let mut v6_only = socket("::", 83, 6, (0, 4), 0);
        v6_only.v6_only = true;
        let sockets = [
            socket("0.0.0.0", 80, 1, (0, 4), 0),
            socket("10.0.0.1", 80, 2, (0, 4), 0),
            socket("::", 81, 3, (0, 4), 0),
            v6_only,
        ];
        let half_open = [
            local("10.0.0.1", 80),
            local("10.0.0.2", 80),
            local("10.0.0.2", 81),
            local("fe80::1", 81),
            local("10.0.0.2", 83),
            local("10.0.0.2", 84),
        ];
        let mut listeners = update(&mut ListenerHistory::default(), &sockets, &half_open);
        listeners.sort_by_key(|listener| listener.local);
        let found = listeners.iter().map(|l| l.half_open).collect::<Vec<_>>();
        assert_eq!(found, [1, 1, 2, 0]);
    }

    #[test]
    fn a_full_queue_or_a_drop_raises_an_alert_that_is_cleared_when_both_are_over() {
        let mut history = ListenerHistory::default();
        let mut step = |queue_len, drops| {
            let sockets = [socket("::", 80, 1, (queue_len, 10), drops)];
            let listeners = update(&mut history, &sockets, &[]);
            let alerts = history.alerts(&listeners, 80.0);
            alerts.iter().map(|alert| alert.raised).collect::<Vec<_>>()
        };
        assert!(step(7, 3).is_empty());
        assert_eq!(step(8, 3), [true]);
        assert!(step(9, 3).is_empty());
        assert!(step(0, 4).is_empty());
        assert_eq!(step(0, 4), [false]);
        assert_eq!(step(0, 5), [true]);
    }
}
