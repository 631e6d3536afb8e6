//! `listeners`: listening sockets with their processes, accept queues and drops.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cli::{ListenersArgs, OutputFormat};
use crate::domain::listener::{Listener, ListenerHistory, ListeningSocket};
use crate::failure::{Exit, Failure};
use crate::filter;
use crate::host::containers::Containers;
use crate::host::interfaces::InterfaceNames;
use crate::host::netns;
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::host::sock_diag::SockDiag;
use crate::notice::Notices;
use crate::output::listeners::{self as output, ListenerWriter};
use crate::run::holders::{self, Holders, Which};
use crate::run::screen;
use crate::run::session::{Session, Wake, next_due};
use crate::stop::ExitReason;
use crate::view::listeners::{ListenerEntry, ListenersView};
use crate::view::terminal::{self, Screen};

pub(super) const NAME: &str = "listeners";
const SOCKETS_ALONE: &str = "socket diagnostics";
const WITH_PROCESSES: &str = "socket diagnostics, iter/task_file";

/// How soon a change of the terminal's size is noticed.
const SIZE_EVERY: Duration = Duration::from_millis(250);

/// Runs the command.
///
/// # Errors
/// An option is wrong, or the kernel does not list its sockets.
pub fn run(args: &ListenersArgs) -> Result<Exit, Failure> {
    let mut session = Session::new(&args.run)?;
    args.netns.enter()?;
    let writer = ListenerWriter::new(&args.run.output.columns, netns::own()?, args.alert)?;
    let mut diag = SockDiag::open()?;
    // If the kernel has no socket diagnostics, fail before anything else.
    diag.listening()?;
    let mut storage = MaybeUninit::uninit();
    let holders = Holders::new(&mut storage, Which::Listening, session.notices)
        .inspect_err(|error| without_holders(session.notices, error))
        .ok();
    let mut listeners = Listeners {
        args,
        diag,
        holders,
        history: ListenerHistory::default(),
        containers: Containers::new(),
        interfaces: InterfaceNames::open()?,
        taken_at: Instant::now(),
    };
    privileges::drop_all_but(holders::needs(listeners.holders.as_mut())?.as_slice())?;
    let hooks = match listeners.holders {
        Some(_) => WITH_PROCESSES,
        None => SOCKETS_ALONE,
    };
    let attached = format!("{hooks} ({NAME})");
    // The container of a process is found in files.
    let files = Files::Readable;
    let lines = if shows_view(args) {
        session.stop.start();
        session.attached(&attached);
        show_view(&mut session, &mut listeners, files)?;
        0
    } else {
        session.text_header(|out, clock| writer.header(out, clock));
        session.start(files);
        session.attached(&attached);
        write_lines(&mut session, &mut listeners, &writer)?
    };
    let summary = session.summary(NAME, lines, 0, 0);
    session.finish(&summary)
}

/// Returns what a run would use here, and what it could not show.
///
/// # Errors
/// A run would fail in the same way.
pub fn rehearse(notices: Notices) -> Result<(String, Option<String>)> {
    SockDiag::open()?.listening()?;
    let mut storage = MaybeUninit::uninit();
    Ok(
        match Holders::new(&mut storage, Which::Listening, notices) {
            Ok(_) => (WITH_PROCESSES.to_owned(), None),
            Err(error) => {
                let why = format!("processes can't be shown: {error:#}");
                (SOCKETS_ALONE.to_owned(), Some(why))
            }
        },
    )
}

/// Whether to show the view: there is a terminal, and no option asks for lines.
fn shows_view(args: &ListenersArgs) -> bool {
    let is_asked =
        !args.no_tui && !args.once && args.alert.is_none() && args.run.stop.count.is_none();
    let is_usual =
        args.run.output.columns.is_empty() && args.run.output.format() == OutputFormat::Text;
    is_asked && is_usual && terminal::is_there()
}

/// Lists the sockets and writes their lines until the run is over. Returns the number of lines.
fn write_lines(
    session: &mut Session,
    listeners: &mut Listeners<'_>,
    writer: &ListenerWriter,
) -> Result<u64> {
    let mut lines = 0;
    let mut due = Instant::now();
    loop {
        lines += listeners.write(session, writer)?;
        session.flush();
        if listeners.args.once {
            session.end(ExitReason::Done);
        }
        due = next_due(due, listeners.args.interval);
        if session.wait(None, Some(due))? == Wake::Stop {
            return Ok(lines);
        }
    }
}

/// Shows the view until the run is over. The terminal is restored on return in any case.
fn show_view(session: &mut Session, listeners: &mut Listeners<'_>, files: Files) -> Result<()> {
    let mut view = ListenersView::new();
    let Some(mut screen) = Screen::open(&session.sink)? else {
        session.end(ExitReason::ClosedPipe);
        return Ok(());
    };
    session.confine(files);
    let stdin = std::io::stdin();
    let mut due = Instant::now();
    loop {
        if Instant::now() >= due {
            view.update(listeners.entries()?);
            screen.touch();
            due = Instant::now() + listeners.args.interval;
        }
        screen.show(&mut view, &mut session.sink);
        let until = due.min(Instant::now() + SIZE_EVERY);
        match session.wait(Some(stdin.as_fd()), Some(until))? {
            Wake::Stop => return Ok(()),
            Wake::Events => screen::take_keys(session, &mut screen, &mut view)?,
            Wake::Timer => {}
        }
    }
}

fn without_holders(notices: Notices, error: &anyhow::Error) {
    notices.notice(&format!(
        "processes can't be shown: that needs CAP_BPF and CAP_PERFMON, and Linux 5.10 with BTF ({error:#})"
    ));
}

/// Lists the sockets, with their processes and interfaces.
struct Listeners<'a> {
    args: &'a ListenersArgs,
    diag: SockDiag,
    holders: Option<Holders<'a>>,
    history: ListenerHistory,
    containers: Containers,
    interfaces: InterfaceNames,
    taken_at: Instant,
}

impl Listeners<'_> {
    /// The listeners that are asked for, the worst first.
    fn snapshot(&mut self) -> Result<Vec<Listener>> {
        let elapsed = self.taken_at.elapsed();
        self.taken_at = Instant::now();
        let mut sockets = self.diag.listening()?;
        sockets.retain(|socket| self.is_asked_for(socket));
        let bound = sockets.iter().map(|socket| socket.local.ifindex);
        self.interfaces.update(bound)?;
        let half_open = self.diag.half_open()?;
        let unknown = HashMap::new();
        let holders = match &mut self.holders {
            Some(holders) => holders.of(&sockets)?,
            None => &unknown,
        };
        Ok(self.history.update(&sockets, &half_open, holders, elapsed))
    }

    fn entries(&mut self) -> Result<Vec<ListenerEntry>> {
        let listeners = self.snapshot()?.into_iter();
        let entries = listeners.map(|listener| {
            let record = self.record(&listener);
            let (iface, container) = (record.iface.map(str::to_owned), record.container);
            ListenerEntry {
                listener,
                iface,
                container,
            }
        });
        Ok(entries.collect())
    }

    /// Writes a line for each listener, and for each alert. Returns how many were written.
    fn write(&mut self, session: &mut Session, writer: &ListenerWriter) -> Result<u64> {
        let found = self.snapshot()?;
        let at = session.clock.now();
        let mut lines = 0;
        for listener in &found {
            let record = self.record(listener);
            lines += u64::from(session.write(at, &(writer, &record)));
        }
        if let Some(percent) = self.args.alert {
            for alert in self.history.alerts(&found, percent) {
                if let Some(listener) = found.get(alert.listener) {
                    let record = &self.record(listener);
                    let raised = alert.raised;
                    let alert = output::ListenerAlert { raised, record };
                    lines += u64::from(session.write(at, &(writer, &alert)));
                }
            }
        }
        Ok(lines)
    }

    fn record<'l>(&'l mut self, listener: &'l Listener) -> output::ListenerRecord<'l> {
        let holder = listener.holder();
        let container =
            holder.and_then(|holder| self.containers.find(holder.cgroup_id, holder.pid));
        output::ListenerRecord {
            listener,
            iface: self.interfaces.get(listener.local.ifindex),
            container: container.map(str::to_owned),
        }
    }

    fn is_asked_for(&self, socket: &ListeningSocket) -> bool {
        let args = self.args;
        let is_family = match socket.local.addr.is_ipv4() {
            true => !args.ipv6,
            false => !args.ipv4,
        };
        is_family && filter::includes_port(&args.port, socket.local.port)
    }
}
