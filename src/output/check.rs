//! check's lines.

use super::clock::{Clock, UnixNanos};
use super::json::Object;
use super::line::Line;
use crate::key;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A capability of this process.
    Privilege,
    /// A setting of the system that stands in the way.
    Limit,
    /// Something that the kernel has, or an interface's driver.
    Feature,
    /// A command of this tool.
    Command,
}

impl CheckKind {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Privilege => "privilege",
            Self::Limit => "limit",
            Self::Feature => "feature",
            Self::Command => "command",
        }
    }
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is about.
    pub kind: CheckKind,
    /// Which privilege, setting, feature or command.
    pub name: &'static str,
    /// It is there; `None` if it could not be tried.
    pub ok: Option<bool>,
    /// What a command would use.
    pub uses: Option<String>,
    /// Why, or how it was found out.
    pub detail: Option<String>,
}

/// The header line of the text format.
pub fn text_header(out: &mut Line<'_>) {
    out.extend_from_slice(b"TIME     KIND      NAME                      OK  DETAIL\n");
}

/// A finding as one line of text.
pub fn text(out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos, finding: &Finding) {
    clock.push_local(out, at);
    out.push(b' ');
    out.pad_right(10, |out| {
        out.extend_from_slice(finding.kind.name().as_bytes());
    });
    out.pad_right(26, |out| {
        out.extend_from_slice(finding.name.as_bytes());
    });
    out.pad_right(4, |out| {
        out.extend_from_slice(match finding.ok {
            Some(true) => b"yes",
            Some(false) => b"no",
            None => b"?",
        });
    });
    match (&finding.uses, &finding.detail) {
        (Some(uses), Some(detail)) => push_words(out, &format!("{uses} ({detail})")),
        (Some(text), None) | (None, Some(text)) => push_words(out, text),
        (None, None) => out.push(b'-'),
    }
    out.push(b'\n');
}

/// The last column may have spaces.
fn push_words(out: &mut Line<'_>, text: &str) {
    for (i, word) in text.split(' ').enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        out.push_text(word.as_bytes());
    }
}

/// A finding as one line of JSON.
pub fn json(out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos, finding: &Finding) {
    let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "check");
    line.name(key!("kind"), finding.kind.name());
    line.name(key!("name"), finding.name);
    match finding.ok {
        Some(ok) => line.bool(key!("ok"), ok),
        None => line.null(key!("ok")),
    };
    match &finding.uses {
        Some(uses) => line.string(key!("uses"), uses.as_bytes()),
        None => line.null(key!("uses")),
    };
    match &finding.detail {
        Some(detail) => line.string(key!("detail"), detail.as_bytes()),
        None => line.null(key!("detail")),
    };
    line.end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    fn finding() -> Finding {
        Finding {
            kind: CheckKind::Command,
            name: "connect-trace",
            ok: Some(true),
            uses: Some("tracepoint".into()),
            detail: Some("kprobe: \x1b[31mno\nsuch \"thing\"".into()),
        }
    }

    fn render(push: impl FnOnce(&mut Line<'_>, &mut Clock)) -> String {
        let mut clock = Clock::with_zone(jiff::tz::TimeZone::UTC);
        rendered(|out| push(out, &mut clock))
    }

    #[test]
    fn text_has_the_columns_of_its_header() {
        let header = render(|out, _| text_header(out));
        let line = render(|out, clock| text(out, clock, 0, &finding()));
        for (column, value) in [
            ("TIME", "00:00:00 "),
            ("KIND", "command "),
            ("NAME", "connect-trace "),
            ("OK", "yes "),
            ("DETAIL", "tracepoint (kprobe"),
        ] {
            let at = header.find(column).unwrap();
            assert!(line[at..].starts_with(value), "{column}: {line}");
        }
        assert!(
            !line.contains('\x1b') && line.matches('\n').count() == 1,
            "{line}"
        );
    }

    #[test]
    fn what_could_not_be_tried_is_null_in_json() {
        let untried = Finding {
            ok: None,
            uses: None,
            detail: None,
            ..finding()
        };
        assert_eq!(
            render(|out, clock| json(out, clock, 0, &untried)),
            "{\"ts\":\"1970-01-01T00:00:00.000000000Z\",\"event\":\"check\",\"kind\":\"command\",\"name\":\"connect-trace\",\"ok\":null,\"uses\":null,\"detail\":null}\n"
        );
        let line = render(|out, clock| json(out, clock, 0, &finding()));
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }
}
