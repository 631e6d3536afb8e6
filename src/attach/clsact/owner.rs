//! The names of our filters, which identify the process that made them, and
//! whether that process still runs.
//!
//! A clsact filter outlives the process that made it, and nothing but its name
//! is kept with it. The name is shown by `tc filter show`.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process;

use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::Pid;

const TOOL: &str = "tcpinspect";
const MADE_QDISC: &str = "+qdisc";

/// Identifies a process. A later process with the same pid has another identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) pid: u32,
    /// When it was started, in clock ticks since boot: with the pid it is unique.
    started: u64,
    /// Inode of the pid namespace of `pid`, 0 if not known.
    pid_namespace: u64,
    /// Inode of the time namespace that `started` counts in, 0 before Linux 5.6.
    time_namespace: u64,
}

/// Whether an owner still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Alive,
    Gone,
    /// This can't be determined from here, so its filter must be left alone.
    Unknown,
}

impl Owner {
    pub(super) fn this_process() -> Self {
        Self {
            pid: process::id(),
            started: Stat::read("self").map_or(0, |stat| stat.started),
            pid_namespace: inode("/proc/self/ns/pid"),
            time_namespace: inode("/proc/self/ns/time"),
        }
    }

    /// Whether this owner still runs, as far as `here`, the process that
    /// asks, can see it.
    pub(super) fn liveness(&self, here: &Self) -> Liveness {
        // An inode number is not reused while its namespace exists. If it has been
        // reused since, every process of the older namespace is gone, and the
        // answer is still right.
        if self.pid_namespace == 0 || self.pid_namespace != here.pid_namespace {
            return Liveness::Unknown;
        }
        // Pid 0 would mean this process's own group.
        let Some(pid) = i32::try_from(self.pid).ok().filter(|&pid| pid > 0) else {
            return Liveness::Unknown;
        };
        // Signal 0 asks whether the process exists. /proc can't answer that: mounted
        // with hidepid, it hides the processes of other users.
        if signal::kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
            return Liveness::Gone;
        }
        // There is a process with this pid. Its start time shows whether it is the owner,
        // but only in the owner's time namespace, and if /proc is that of our pid
        // namespace.
        if self.time_namespace != here.time_namespace || !proc_is_of(here) {
            return Liveness::Unknown;
        }
        match Stat::read(&self.pid.to_string()) {
            Some(stat) if stat.ended || stat.started != self.started => Liveness::Gone,
            Some(_) => Liveness::Alive,
            None => Liveness::Unknown,
        }
    }
}

/// The name of one of our filters:
/// `tcpinspect/PID/STARTED/PIDNS-TIMENS+qdisc:PROGRAM`, at most 255 bytes
/// (`CLS_BPF_NAME_LEN`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilterName {
    pub(super) owner: Owner,
    /// Whether the qdisc was made by an instance of this program: the one with
    /// this name or one that was there before it.
    pub(super) made_qdisc: bool,
    pub(super) program: String,
}

impl FilterName {
    /// Reads a name, or returns `None` if it is not exactly one of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (head, program) = text.split_once(':')?;
        let (head, made_qdisc) = match head.strip_suffix(MADE_QDISC) {
            Some(head) => (head, true),
            None => (head, false),
        };
        let mut fields = head.strip_prefix(TOOL)?.strip_prefix('/')?.split('/');
        let (pid, started) = (fields.next()?, fields.next()?);
        let (pid_namespace, time_namespace) = fields.next()?.split_once('-')?;
        let name = Self {
            owner: Owner {
                pid: pid.parse().ok()?,
                started: started.parse().ok()?,
                pid_namespace: pid_namespace.parse().ok()?,
                time_namespace: time_namespace.parse().ok()?,
            },
            made_qdisc,
            program: program.to_owned(),
        };
        // This refuses extra fields, and numbers in another spelling.
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for FilterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner {
            pid,
            started,
            pid_namespace,
            time_namespace,
        } = self.owner;
        let made_qdisc = if self.made_qdisc { MADE_QDISC } else { "" };
        write!(
            f,
            "{TOOL}/{pid}/{started}/{pid_namespace}-{time_namespace}{made_qdisc}:{}",
            self.program
        )
    }
}

/// The fields of `/proc/PID/stat` that are used (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// It has ended, and may still be a zombie.
    ended: bool,
    started: u64,
}

impl Stat {
    fn read(process: &str) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{process}/stat")).ok()?)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        // The second field is the process's name, which may contain anything,
        // even parentheses and bytes that are not text. The others are plain.
        let name_end = line.iter().rposition(|&byte| byte == b')')?;
        let rest = str::from_utf8(line.get(name_end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        // The state is field 3, the start time is field 22.
        let started = fields.nth(22 - 4)?.parse().ok()?;
        Some(Self {
            ended: matches!(state, "Z" | "X" | "x"),
            started,
        })
    }
}

/// Whether `/proc` belongs to the pid namespace of `here`.
fn proc_is_of(here: &Owner) -> bool {
    fs::read_link("/proc/self").is_ok_and(|link| link == Path::new(&here.pid.to_string()))
}

fn inode(path: &str) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn name(made_qdisc: bool) -> FilterName {
        FilterName {
            owner: Owner {
                pid: 812,
                started: 53_211,
                pid_namespace: 4_026_531_836,
                time_namespace: 4_026_531_834,
            },
            made_qdisc,
            program: "port_monitor_ingress".to_owned(),
        }
    }

    /// The next instance may be of another version, so the format stays that of 0.1.
    #[test]
    fn names_are_read_as_they_were_written() {
        for made_qdisc in [false, true] {
            let name = name(made_qdisc);
            assert_eq!(FilterName::parse(&name.to_string()), Some(name));
        }
        assert_eq!(
            name(true).to_string(),
            "tcpinspect/812/53211/4026531836-4026531834+qdisc:port_monitor_ingress"
        );
    }

    #[test]
    fn names_that_are_not_exactly_ours_are_refused() {
        for text in [
            "",
            "tcpinspect",
            "tcpinspect/1/2/3-4",
            "tcpinspect/1/2/3:p",
            "tcpinspect/1/2/3-4/5:p",
            "tcpinspect/1/2/3-4+qdisc+qdisc:p",
            "tcpinspect/+1/2/3-4:p",
            "tcpinspect/01/2/3-4:p",
            "tcpinspect/-1/2/3-4:p",
            "tcpinspect/4294967296/2/3-4:p",
            "tcpinspect2/1/2/3-4:p",
            " tcpinspect/1/2/3-4:p",
            "port_monitor.o:[classifier]",
        ] {
            assert_eq!(FilterName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_longest_name_fits_the_kernel() {
        let name = FilterName {
            owner: Owner {
                pid: u32::MAX,
                started: u64::MAX,
                pid_namespace: u64::MAX,
                time_namespace: u64::MAX,
            },
            made_qdisc: true,
            program: "p".repeat(64),
        };
        assert!(name.to_string().len() < 256);
    }

    #[test]
    fn a_process_is_gone_when_it_ended_or_its_number_is_used_again() {
        let here = Owner::this_process();
        assert_eq!(here.liveness(&here), Liveness::Alive);
        let reused = Owner {
            started: here.started + 1,
            ..here
        };
        assert_eq!(reused.liveness(&here), Liveness::Gone);

        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let owner = Owner {
            pid: child.id(),
            started: Stat::read(&child.id().to_string()).unwrap().started,
            ..here
        };
        assert_eq!(owner.liveness(&here), Liveness::Alive);
        child.kill().unwrap();
        // It is a zombie from some moment on, until it is waited for.
        while Stat::read(&child.id().to_string()).is_some_and(|stat| !stat.ended) {
            std::thread::yield_now();
        }
        assert_eq!(owner.liveness(&here), Liveness::Gone);
        child.wait().unwrap();
        assert_eq!(owner.liveness(&here), Liveness::Gone);
    }

    #[test]
    fn the_owner_in_another_namespace_may_or_may_not_be_alive() {
        let here = Owner::this_process();
        for unknown in [
            Owner {
                pid_namespace: here.pid_namespace + 1,
                ..here
            },
            Owner {
                time_namespace: here.time_namespace + 1,
                ..here
            },
            Owner { pid: 0, ..here },
            Owner {
                pid: u32::MAX,
                ..here
            },
        ] {
            assert_eq!(unknown.liveness(&here), Liveness::Unknown, "{unknown:?}");
        }
        // Without /proc a process does not know its own namespaces.
        let blind = Owner {
            pid_namespace: 0,
            ..here
        };
        assert_eq!(blind.liveness(&blind), Liveness::Unknown);
    }

    #[test]
    fn a_process_may_have_any_name() {
        let rest: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let mut line = b"7 (a) Z 1 \xff\n(b) S ".to_vec();
        line.extend(rest.join(" ").bytes());
        let stat = Stat {
            ended: false,
            started: 22,
        };
        assert_eq!(Stat::parse(&line), Some(stat));
        assert_eq!(Stat::parse(b"7 (a) S 1 2"), None);
    }
}
