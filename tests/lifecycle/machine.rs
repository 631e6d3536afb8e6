//! Changes of the machine while the tool runs: its clock is set, a CPU goes online.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::Pid;

use crate::common::{Pair, SERVER4, Tool, command, is_guest, need};

/// Commands that show when something happened, with the number of lines for a refused connection.
const COMMANDS: [(&[&str], u64); 3] = [
    (&["port-monitor", "vs"], 1),
    (&["flows", "vs"], 1),
    (&["connect-trace", "--dst", "10.77.0.2"], 2),
];

/// Only in a guest may a test change the clock and the CPUs.
fn may_change_machine() -> Result<(), String> {
    if is_guest() {
        Ok(())
    } else {
        Err("a test may change the clock and the CPUs only in a guest".into())
    }
}

/// A step of the clock, which is reversed when this is dropped.
struct Step(Duration);

impl Step {
    fn forward(by: Duration) -> Self {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME).unwrap());
        clock_settime(ClockId::CLOCK_REALTIME, (now + by).into()).unwrap();
        Self(by)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME).unwrap());
        clock_settime(ClockId::CLOCK_REALTIME, (now - self.0).into()).unwrap();
    }
}

#[test]
fn after_the_clock_was_set_times_are_those_of_the_new_clock() {
    need!(may_change_machine());
    let pair = need!(Pair::new());
    for (args, _) in COMMANDS {
        let tool = Tool::spawn_in(&pair.server, command(args).arg("--json")).attached();
        pair.refused_connects((SERVER4, 80).into(), 1);
        tool.json("before the step", |line| line["dport"] == 80);
        let step = Step::forward(Duration::from_secs(7200));
        pair.refused_connects((SERVER4, 81).into(), 1);
        let line = tool.json("after the step", |line| line["dport"] == 81);
        let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap().tv_sec();
        let seen = line["ts"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let seen = seen.as_second();
        drop(step);
        assert!((now - 60..=now).contains(&seen), "{args:?}: {line}, {now}");
        assert_eq!(tool.stop().code(), 0);
    }
}

/// The second CPU, offline. It is online again when this is dropped.
struct SecondCpu;

impl SecondCpu {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";

    fn take_away() -> Result<Self, String> {
        fs::write(Self::ONLINE, "0").map_err(|error| format!("{}: {error}", Self::ONLINE))?;
        Ok(Self)
    }

    fn bring_back(&self) {
        fs::write(Self::ONLINE, "1").unwrap();
    }
}

impl Drop for SecondCpu {
    fn drop(&mut self) {
        self.bring_back();
    }
}

#[test]
fn events_of_a_cpu_that_comes_online_later_are_shown_or_counted() {
    need!(may_change_machine());
    let pair = need!(Pair::new());
    for (args, lines_each) in COMMANDS {
        for buffer in ["ring", "perf"] {
            let cpu = need!(SecondCpu::take_away());
            let mut command = command(args);
            command.args(["--json", "--buffer", buffer]);
            let tool = Tool::spawn_in(&pair.server, &mut command).attached();
            cpu.bring_back();
            pair.client.enter(|| {
                let mut second = CpuSet::new();
                second.set(1).unwrap();
                sched_setaffinity(Pid::from_raw(0), &second).unwrap();
                for _ in 0..20 {
                    std::net::TcpStream::connect((SERVER4, 80)).expect_err("nobody listens");
                }
            });
            let output = tool.stop();
            assert_eq!(output.code(), 0, "{output:#?}");
            let summary = output.summary();
            assert_eq!(summary["matched"], 20 * lines_each, "{args:?}, {buffer}");
            // The perf buffer has a part for each CPU that was there when it was made.
            if buffer == "ring" {
                assert_eq!(summary["lost"], 0, "{args:?}, {buffer}: {summary}");
            }
        }
    }
}
