//! `exporter`: serves what the other commands count to Prometheus.

mod collect;
mod http;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use caps::Capability;
use nix::time::{ClockId, clock_gettime};

use collect::{Collectors, Storage};
use http::{Answer, Request, Server};

use crate::cli::{ExporterArgs, interface_hints};
use crate::failure::{Exit, Failure};
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::output::exporter::metrics::{self, Itself};
use crate::output::exporter::{Exposition, ExpositionFormat};
use crate::output::summary::{NoEvents, Summary};
use crate::run::session::{Session, Wake};
use crate::sys::page_size;

pub(super) const NAME: &str = "exporter";

/// Requests within this time get the same answer, so that many of them cost little.
const FRESH: Duration = Duration::from_millis(200);

/// Runs the command.
///
/// # Errors
/// The address can't be listened on, an option is wrong, or a program can't be loaded or attached.
pub fn run(args: &ExporterArgs) -> Result<Exit, Failure> {
    let mut session = Session::new(&args.run())?;
    // In the namespace of the caller, whatever --netns says.
    let mut server = Server::listen(args.listen)?;
    let address = server.address()?;
    if !address.ip().to_canonical().is_loopback() {
        session.notices.notice(&format!(
            "whoever reaches {address} can read the metrics: there is no TLS and no password"
        ));
    }
    args.netns.enter()?;
    let interfaces = match collect::needs_interfaces(args) {
        true => session.interfaces(args.interfaces(), interface_hints::plain_interface_hint)?,
        false => Vec::new(),
    };
    let mut storage = Storage::new(&interfaces);
    let mut collectors = Collectors::load(args, &interfaces, &mut storage, &mut session)?;
    let mut page = Pages::new(&mut collectors)?;
    let can_read = || page.collectors.can_read();
    let needed = privileges::needed_for(Capability::CAP_BPF, can_read)?;
    let mut keep = Vec::from_iter(needed);
    if page.collectors.needs_privileges() {
        keep.push(Capability::CAP_NET_ADMIN);
    }
    privileges::drop_all_but(&keep)?;
    session.start(Files::Accepted(server.descriptor()));
    session.attached(&format!(
        "{} ({NAME}, http://{address}/metrics)",
        page.collectors
    ));

    loop {
        let due = [server.due(), page.collectors.due()];
        let wake = session.wait_for(&server.events(), due.into_iter().flatten().min())?;
        if wake == Wake::Stop {
            break;
        }
        page.collectors.sweep()?;
        server.serve(&mut |request| page.answer(request));
    }
    let checked = session.check_hooks();
    let scrapes = page.scrapes;
    let lost = collectors.end(session.notices);
    checked?;
    let summary = Summary {
        no_events: Some(NoEvents::Scrapes { missing: lost }),
        ..session.summary(NAME, scrapes, 0, 0)
    };
    session.finish(&summary)
}

/// The pages that are served.
struct Pages<'a, 'obj> {
    collectors: &'a mut Collectors<'obj>,
    scrapes: u64,
    started: f64,
    /// /proc/self/statm. It is opened early, because the sandbox allows no open(2).
    memory: Option<File>,
    page_size: u64,
    /// The last answer in each format.
    answers: Vec<(ExpositionFormat, Instant, Answer)>,
}

impl<'a, 'obj> Pages<'a, 'obj> {
    fn new(collectors: &'a mut Collectors<'obj>) -> Result<Self> {
        Ok(Self {
            collectors,
            scrapes: 0,
            started: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
            memory: File::open("/proc/self/statm").ok(),
            page_size: page_size()? as u64,
            answers: Vec::new(),
        })
    }

    fn answer(&mut self, request: &Request<'_>) -> Answer {
        match request.path {
            "/metrics" => self.metrics(ExpositionFormat::negotiate(request.accept)),
            "/" => Answer {
                status: "200 OK",
                content_type: "text/html; charset=utf-8",
                body: Rc::from(FRONT_PAGE),
            },
            _ => Answer::not_found(),
        }
    }

    fn metrics(&mut self, format: ExpositionFormat) -> Answer {
        self.scrapes += 1;
        self.answers.retain(|(_, at, _)| at.elapsed() < FRESH);
        let mut fresh = self.answers.iter();
        if let Some((.., answer)) = fresh.find(|(known, ..)| *known == format) {
            return answer.clone();
        }
        let mut out = Exposition::new(format);
        self.collectors.write(&mut out);
        let itself = Itself {
            collectors: self.collectors.states(),
            lost: self.collectors.lost(),
            scrapes: self.scrapes,
            cpu: clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
                .map_or(0.0, |time| Duration::from(time).as_secs_f64()),
            memory: self.resident_bytes(),
            started: self.started,
        };
        metrics::itself(&mut out, &itself);
        let answer = Answer {
            status: "200 OK",
            content_type: format.content_type(),
            body: out.finish().into(),
        };
        self.answers.push((format, Instant::now(), answer.clone()));
        answer
    }

    fn resident_bytes(&self) -> Option<u64> {
        let mut text = [0; 128];
        let len = self.memory.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = str::from_utf8(text.get(..len)?).ok()?;
        let pages = text.split(' ').nth(1)?.parse::<u64>().ok()?;
        Some(pages * self.page_size)
    }
}

const FRONT_PAGE: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>tcpinspect exporter</title></head>
<body>
<h1>tcpinspect exporter</h1>
<p><a href=\"/metrics\">Metrics</a></p>
</body>
</html>
";
