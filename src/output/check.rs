//! The output of check: columns of the text format and keys of JSON.

use super::Render;
use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, ColumnSet, Layout, Row, Tone};
use super::json::Object;
use super::line::Line;
use crate::domain::finding::Finding;
use crate::key;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum FindingColumn {
    Time,
    Kind,
    Name,
    Ok,
    Detail,
}

impl ColumnSet for FindingColumn {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::time(Self::Time, Precision::Seconds),
        Column::left(Self::Kind, "KIND", 9),
        Column::left(Self::Name, "NAME", 25),
        Column::left(Self::Ok, "OK", 3),
        Column::left(Self::Detail, "DETAIL", 60),
    ];
}

/// The columns of findings.
pub(crate) type FindingLayout = Layout<FindingColumn>;

impl Row for Finding {
    type Column = FindingColumn;

    fn cell(&self, column: FindingColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        match column {
            FindingColumn::Time => clock.push_time(out, at, Precision::Seconds),
            FindingColumn::Kind => out.extend_from_slice(self.kind.name().as_bytes()),
            FindingColumn::Name => out.extend_from_slice(self.name.as_bytes()),
            FindingColumn::Ok => out.extend_from_slice(match self.ok {
                Some(true) => b"yes",
                Some(false) => b"no",
                None => b"?",
            }),
            FindingColumn::Detail => match (&self.uses, &self.detail) {
                (Some(uses), Some(detail)) => push_words(out, &format!("{uses} ({detail})")),
                (Some(text), None) | (None, Some(text)) => push_words(out, text),
                (None, None) => out.push(b'-'),
            },
        }
    }

    fn tone(&self, column: FindingColumn) -> Tone {
        match (column, self.ok) {
            (FindingColumn::Ok, Some(true)) => Tone::Good,
            (FindingColumn::Ok, Some(false)) => Tone::Bad,
            (FindingColumn::Ok, None) => Tone::Notable,
            _ => Tone::Plain,
        }
    }
}

impl Render for (&FindingLayout, &Finding) {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        self.0.row(self.1, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "check");
        line.name(key!("kind"), self.1.kind.name());
        line.name(key!("name"), self.1.name);
        match self.1.ok {
            Some(ok) => line.bool(key!("ok"), ok),
            None => line.null(key!("ok")),
        };
        line.opt_string(key!("uses"), self.1.uses.as_ref());
        line.opt_string(key!("detail"), self.1.detail.as_ref());
        line.end();
    }
}

/// Appends text with its spaces. Only this column has spaces, and it is the last by default.
fn push_words(out: &mut Line<'_>, text: &str) {
    for (i, word) in text.split(' ').enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        out.push_text(word.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::CheckKind;
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

    fn layout() -> FindingLayout {
        FindingLayout::of(&[]).unwrap()
    }

    fn render(push: impl FnOnce(&mut Line<'_>, &mut Clock)) -> String {
        let mut clock = Clock::at_epoch();
        rendered(|out| push(out, &mut clock))
    }

    #[test]
    fn text_has_the_columns_of_its_header() {
        let header = render(|out, clock| layout().header(out, clock));
        let line = render(|out, clock| (&layout(), &finding()).text(out, clock, 0));
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
            render(|out, clock| (&layout(), &untried).json(out, clock, 0)),
            "{\"ts\":\"1970-01-01T00:00:00.000000000Z\",\"event\":\"check\",\"kind\":\"command\",\"name\":\"connect-trace\",\"ok\":null,\"uses\":null,\"detail\":null}\n"
        );
        let line = render(|out, clock| (&layout(), &finding()).json(out, clock, 0));
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }
}
