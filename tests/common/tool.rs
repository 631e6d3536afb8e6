//! The tool as a process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use serde_json::Value;

use super::net::Namespace;
use super::{PATIENCE, wait_for};

/// The binary under test: in a guest it is where the environment says.
pub fn binary() -> PathBuf {
    std::env::var_os("TCPINSPECT_BIN")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_tcpinspect").into())
        .into()
}

/// A command line of the tool. Both outputs are piped unless that is changed.
pub fn command<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    command_of(&binary(), args)
}

/// A command line of the tool, run from another copy of its file.
pub fn command_of<I: AsRef<OsStr>>(binary: &Path, args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(binary);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A copy of the binary that every user may run, wherever the original is.
pub struct PublicBinary(tempfile::TempDir);

impl PublicBinary {
    /// Copies the binary.
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), open.clone()).unwrap();
        let copy = dir.path().join("tcpinspect");
        fs::copy(binary(), &copy).unwrap();
        fs::set_permissions(&copy, open).unwrap();
        Self(dir)
    }

    /// Where the copy is.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("tcpinspect")
    }
}

/// All commands that ask for privileges, but exporter. Those that watch packets do so at `vs` of a
/// [`Pair`](super::Pair).
pub const COMMANDS: [&str; 9] = [
    "syn-count vs -I 0.05 --mode native",
    "syn-count vs -I 0.05 --mode generic",
    "syn-count vs -I 0.05 --mode tc --by saddr",
    "port-monitor vs",
    "flows vs",
    "connect-trace --dst 10.77.0.0/16",
    "accept-trace vs",
    "loss-trace vs -p 80 --only drop",
    "listeners -I 0.05",
];

/// All capabilities that the tool ever needs.
pub const ENOUGH: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// Makes the command run as nobody, with these capabilities and no others.
pub fn as_nobody(command: &mut Command, keep: &[Capability]) {
    let keep: CapsHashSet = keep.iter().copied().collect();
    let become_nobody = move || {
        let other = |error: caps::errors::CapsError| std::io::Error::other(error.to_string());
        nix::sys::prctl::set_keepcaps(true)?;
        nix::unistd::setgroups(&[])?;
        let (group, user) = (Gid::from_raw(65534), Uid::from_raw(65534));
        nix::unistd::setresgid(group, group, group)?;
        nix::unistd::setresuid(user, user, user)?;
        caps::set(None, CapSet::Permitted, &keep).map_err(other)?;
        caps::set(None, CapSet::Effective, &keep).map_err(other)?;
        // Ambient capabilities are what an exec lets an ordinary user keep.
        caps::set(None, CapSet::Inheritable, &keep).map_err(other)?;
        caps::set(None, CapSet::Ambient, &keep).map_err(other)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, and the little memory that is
    // allocated is glibc's, whose allocator is usable in the child of a threaded process.
    unsafe { command.pre_exec(become_nobody) };
}

/// Lines as they come, each with the moment of its arrival.
#[derive(Default)]
struct Lines {
    lines: Mutex<Vec<(Instant, String)>>,
    news: Condvar,
}

impl Lines {
    fn collect(stream: impl Read + Send + 'static) -> (Arc<Self>, JoinHandle<()>) {
        let lines = Arc::new(Self::default());
        let to = Arc::clone(&lines);
        let thread = thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let at = Instant::now();
                let text = String::from_utf8_lossy(&line);
                let text = text.strip_suffix('\n').unwrap_or(&text).to_owned();
                to.lines.lock().unwrap().push((at, text));
                to.news.notify_all();
                line.clear();
            }
        });
        (lines, thread)
    }

    fn all(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// The first line that `wanted` accepts, and when it came; none after the time limit.
    fn find(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Option<(Instant, String)> {
        let give_up = Instant::now() + limit;
        let mut lines = self.lines.lock().unwrap();
        let mut seen = 0;
        loop {
            if let Some(found) = lines[seen..].iter().find(|(_, line)| wanted(line)) {
                return Some(found.clone());
            }
            seen = lines.len();
            let left = give_up.checked_duration_since(Instant::now())?;
            lines = self.news.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// A running tool. It is killed when this is dropped.
pub struct Tool {
    child: Child,
    started: Instant,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
}

/// The output and exit status of a tool that has ended.
#[derive(Debug)]
pub struct Output {
    /// Lines of stdout, if that was piped to this process.
    pub stdout: Vec<String>,
    /// Lines of stderr.
    pub stderr: Vec<String>,
    /// The exit status.
    pub status: ExitStatus,
}

impl Tool {
    /// Starts the tool and waits for its `attached:` line.
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(&mut command(args)).attached()
    }

    /// The same, in a network namespace.
    pub fn start_in(namespace: &Namespace, args: &[&str]) -> Self {
        Self::spawn_in(namespace, &mut command(args)).attached()
    }

    /// Starts a command and does not wait.
    pub fn spawn(command: &mut Command) -> Self {
        let started = Instant::now();
        let mut child = wait_for("the binary can be started", || match command.spawn() {
            // While a copy was written, another thread started a process, which has the file
            // open until it executes.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
            started => Some(started.unwrap()),
        });
        let mut readers = Vec::new();
        let mut collect = |stream: Option<Box<dyn Read + Send>>| match stream {
            Some(stream) => {
                let (lines, thread) = Lines::collect(stream);
                readers.push(thread);
                lines
            }
            None => Arc::default(),
        };
        Self {
            stdout: collect(child.stdout.take().map(|it| Box::new(it) as _)),
            stderr: collect(child.stderr.take().map(|it| Box::new(it) as _)),
            child,
            started,
            readers,
        }
    }

    /// The same, in a network namespace.
    pub fn spawn_in(namespace: &Namespace, command: &mut Command) -> Self {
        namespace.enter(|| Self::spawn(command))
    }

    /// Waits for the `attached:` line.
    pub fn attached(mut self) -> Self {
        let is_it = |line: &str| line.starts_with("attached:");
        let give_up = Instant::now() + PATIENCE;
        while self
            .stderr
            .find(Duration::from_millis(100), is_it)
            .is_none()
        {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() {
                // On a busy machine its lines may be read after its end.
                for reader in self.readers.drain(..) {
                    reader.join().unwrap();
                }
                if self.stderr.find(Duration::ZERO, is_it).is_some() {
                    break;
                }
            }
            assert!(
                ended.is_none() && Instant::now() < give_up,
                "not attached, {ended:?}: {:#?}",
                self.stderr.all()
            );
        }
        self
    }

    /// The `attached:` line, and how long after the start it came.
    pub fn attached_line(&self) -> (Duration, String) {
        let is_it = |line: &str| line.starts_with("attached:");
        let (at, line) = self.stderr.find(Duration::ZERO, is_it).unwrap();
        (at - self.started, line)
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The lines of stdout so far.
    pub fn lines(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// The lines of stderr so far.
    pub fn errors(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Waits for a line of stdout, from the first one on. Returns when it came.
    pub fn line(&self, what: &str, wanted: impl FnMut(&str) -> bool) -> (Instant, String) {
        self.stdout.find(PATIENCE, wanted).unwrap_or_else(|| {
            panic!(
                "no line {what}: {:#?} {:#?}",
                self.stdout.all(),
                self.stderr.all()
            )
        })
    }

    /// Waits for a line of JSON of which this is true.
    pub fn json(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let (_, line) = self.line(what, |line| wanted(&parse(line)));
        parse(&line)
    }

    /// Waits for a line of stderr.
    pub fn error(&self, what: &str, wanted: impl FnMut(&str) -> bool) -> (Instant, String) {
        self.stderr
            .find(PATIENCE, wanted)
            .unwrap_or_else(|| panic!("no line {what}: {:#?}", self.stderr.all()))
    }

    /// Waits until syn-count (`--json`) has said that at least this many SYNs came.
    pub fn syn_total(&self, expected: u64) {
        self.json(&format!("with syn_total {expected}"), |line| {
            line["syn_total"].as_u64() >= Some(expected)
        });
    }

    /// Waits until this many data lines (`--json`) are there.
    pub fn events(&self, count: usize) {
        let mut seen = 0;
        self.line(&format!("number {count}"), |_| {
            seen += 1;
            seen == count
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Stops it until SIGCONT, and waits until all its threads have stopped. Right after its start it may
    /// still hold files that this process had open.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let threads = format!("/proc/{}/task", self.pid());
        wait_for("all threads have stopped", || {
            let mut threads = fs::read_dir(&threads).unwrap();
            let is_stopped = |path: PathBuf| {
                let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('T'))
            };
            threads
                .all(|thread| is_stopped(thread.unwrap().path()))
                .then_some(())
        });
    }

    /// Interrupts it as Ctrl-C does and waits for its end.
    pub fn stop(self) -> Output {
        self.signal(Signal::SIGINT);
        self.finish()
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self) -> Output {
        let status = wait_for("the end of the tool", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Output {
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
            status,
        }
    }
}

/// A tool in a namespace that writes to the smallest of pipes.
pub fn into_small_pipe(namespace: &Namespace, mut command: Command) -> (Tool, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    command.stdout(writer);
    let tool = Tool::spawn_in(namespace, &mut command);
    // The command has a copy of the writing end, and with that the pipe would never close.
    drop(command);
    (tool.attached(), reader)
}

/// A file on a tmpfs of two pages. The tmpfs exists as long as the file is open.
///
/// # Errors
/// This process may not mount.
pub fn small_disk() -> Result<File, String> {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
        let dir = tempfile::tempdir().unwrap();
        let size = Some("size=8k");
        mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            size,
        )?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.path().join("file"));
        // Detached, because it is in use. It is gone when the file is closed.
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH)?;
        Ok(file.unwrap())
    });
    made.join()
        .unwrap()
        .map_err(|errno: nix::Error| format!("can't mount a tmpfs: {errno}"))
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// The exit status; the tool must not have died of a signal.
    pub fn code(&self) -> i32 {
        let code = self.status.code();
        code.unwrap_or_else(|| panic!("{:?}: {:#?}", self.status, self.stderr))
    }

    /// Every line of stdout as JSON.
    pub fn json(&self) -> Vec<Value> {
        self.stdout.iter().map(|line| parse(line)).collect()
    }

    /// The lines whose `event` is this one.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let mut lines = self.json();
        lines.retain(|line| line["event"] == name);
        lines
    }

    /// The summary. It must be the only one and the last line of JSON, and its sums must be right.
    pub fn summary(&self) -> Value {
        let mut summaries = self.events("summary");
        assert_eq!(summaries.len(), 1, "{self:#?}");
        let summary = summaries.remove(0);
        assert_eq!(parse(self.stdout.last().unwrap()), summary);
        check_account(&summary);
        summary
    }

    /// The one error, without its prefix, and its hint if it has one. Nothing else may be on
    /// stderr, except, between them, the filter and the mark below its wrong part.
    pub fn complaint(&self) -> (String, Option<String>) {
        let wrong = || -> ! { panic!("not an error and perhaps a hint: {self:#?}") };
        let (first, rest) = self.stderr.split_first().unwrap_or_else(|| wrong());
        let error = first.strip_prefix("tcpinspect: ");
        let hint = match rest {
            [] => None,
            [hint] | [_, _, hint] => Some(hint.strip_prefix("hint: ").unwrap_or_else(|| wrong())),
            _ => wrong(),
        };
        (
            error.unwrap_or_else(|| wrong()).to_owned(),
            hint.map(str::to_owned),
        )
    }
}

/// Checks the sums that every summary promises.
pub fn check_account(summary: &Value) {
    let number = |name: &str| {
        summary[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name}: {summary}"))
    };
    assert_eq!(
        number("matched"),
        number("emitted") + number("lost") + number("suppressed"),
        "{summary}"
    );
    if let Some(verdicts) = summary["verdicts"].as_object() {
        let sum: u64 = verdicts.values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(number("packets"), sum, "{summary}");
    }
}

/// The figures `matched`, `emitted`, `lost` and `suppressed` of the summary on stderr.
pub fn account(output: &Output) -> [u64; 4] {
    let summary = |line: &&String| line.starts_with("summary: ");
    let line = output.stderr.iter().find(summary);
    let line = line.unwrap_or_else(|| panic!("no summary: {output:#?}"));
    let words: Vec<_> = line.split([' ', ';']).collect();
    let account = ["matched", "emitted", "lost", "suppressed"].map(|name| {
        let at = words.iter().position(|word| *word == name);
        words[at.unwrap_or_else(|| panic!("no {name}: {line}")) + 1]
            .parse()
            .unwrap()
    });
    let [matched, emitted, lost, suppressed] = account;
    assert_eq!(matched, emitted + lost + suppressed, "{line}");
    account
}

/// The same of a summary in JSON.
pub fn json_account(line: &str) -> [u64; 4] {
    let summary = parse(line);
    check_account(&summary);
    ["matched", "emitted", "lost", "suppressed"].map(|name| summary[name].as_u64().unwrap())
}

/// The figures of a run whose lines went to a pipe that was full at its end. The summary in JSON is
/// short, and may have found room all the same: then it is removed from the lines.
pub fn take_account<L: AsRef<str>>(lines: &mut Vec<L>, output: &Output) -> [u64; 4] {
    match lines.pop_if(|line| line.as_ref().contains("\"summary\"")) {
        Some(summary) => json_account(summary.as_ref()),
        None => account(output),
    }
}

/// A line as JSON.
pub fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}
