//! Other instances: processes that attach and wait until their input ends or they are killed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, io};

use tcpinspect::attach::clsact::Clsact;
use tcpinspect::domain::Direction;

use super::bpf::{Counter, UNSPEC};
use super::net::V0;

const ASKED: &str = "TCPINSPECT_TEST_INSTANCE";

/// The directions that this process is to attach to, if it is an instance.
pub fn asked() -> Option<String> {
    env::var(ASKED).ok()
}

/// The process attaches to `v0`, and detaches when its input ends.
pub fn main(directions: &str) {
    let counter = Counter::new(UNSPEC);
    let attached: Vec<Clsact> = directions
        .split(',')
        .map(|direction| {
            let direction = match direction {
                "egress" => Direction::Egress,
                _ => Direction::Ingress,
            };
            counter.attach(V0, direction)
        })
        .collect();
    let notes: Vec<&str> = attached
        .iter()
        .flat_map(|clsact| clsact.notes())
        .map(String::as_str)
        .collect();
    // print!() would be captured.
    writeln!(io::stdout(), "\n@attached {}", notes.join("; ")).unwrap();
    io::stdin().lines().for_each(drop);
    for clsact in attached {
        clsact.detach().unwrap();
    }
}

pub struct Instance {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub notes: String,
}

impl Instance {
    /// Starts one and waits until it is attached.
    pub fn start(directions: &str) -> Self {
        Self::start_by(&[], directions)
    }

    /// The same, started by another program.
    pub fn start_by(prefix: &[&str], directions: &str) -> Self {
        let this = env::current_exe().unwrap();
        let mut words: Vec<&str> = prefix.to_vec();
        words.push(this.to_str().unwrap());
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .args([
                "--exact",
                super::INSTANCE,
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ASKED, directions)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let notes = loop {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "not attached");
            if let Some(notes) = line.strip_prefix("@attached ") {
                break notes.trim().to_owned();
            }
        };
        Self {
            child,
            stdout,
            notes,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) {
        // The end of its input must not reach it before the signal does, which may
        // have to pass through the program that started it.
        let stdin = self.child.stdin.take();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        io::copy(&mut self.stdout, &mut io::sink()).unwrap();
        drop(stdin);
    }

    /// Lets it detach and end.
    pub fn leave(mut self) {
        drop(self.child.stdin.take());
        let _ = io::copy(&mut self.stdout, &mut io::sink());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // A test that failed must leave no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
