//! Columns of the text format: which there are, which of them are shown, and where they begin.
//!
//! The file of a command has the table of its columns, and the [`Row`] that writes their values.
//! The header and every line follow from these.

use std::fmt::Display;

use anstyle::{AnsiColor, Style};

use super::clock::{Clock, Precision, UnixNanos};
use super::line::Line;
use crate::failure::Failure;

/// A column that a line can have.
#[derive(Clone, Copy, Debug)]
pub struct Column<C> {
    /// Which value [`Row::cell`] writes.
    pub id: C,
    /// The name in the header. `--columns` takes it in lower case, too.
    pub name: &'static str,
    /// Characters of an ordinary value; those of an IPv4 address, where it is one.
    pub width: usize,
    align: Align,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
    /// As wide as [`Clock::width`] says.
    Time(Precision),
}

impl<C> Column<C> {
    /// The column of times.
    pub const fn time(id: C, precision: Precision) -> Self {
        Self {
            id,
            name: "TIME",
            width: 0,
            align: Align::Time(precision),
        }
    }

    /// A left-aligned column.
    pub const fn left(id: C, name: &'static str, width: usize) -> Self {
        Self {
            id,
            name,
            width,
            align: Align::Left,
        }
    }

    /// A right-aligned column.
    pub const fn right(id: C, name: &'static str, width: usize) -> Self {
        Self {
            id,
            name,
            width,
            align: Align::Right,
        }
    }

    /// The width that it takes, without the space after it.
    fn space(&self) -> usize {
        self.width.max(self.name.len())
    }
}

/// Whether a value is good or bad news, which a terminal shows as a color.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    /// It went well.
    Good,
    /// It begins, or needs attention.
    Notable,
    /// It comes to its end.
    Ending,
    /// It failed.
    Bad,
}

impl Tone {
    fn style(self) -> Style {
        let color = match self {
            Self::Plain => return Style::new(),
            Self::Good => AnsiColor::Green,
            Self::Notable => AnsiColor::Yellow,
            Self::Ending => AnsiColor::Blue,
            Self::Bad => AnsiColor::Red,
        };
        color.on_default()
    }
}

/// The ids of the columns of a table. Its default columns do not depend on other options.
pub(crate) trait ColumnSet: Copy + PartialEq + 'static {
    /// Its columns.
    const COLUMNS: &'static [Column<Self>];

    /// Whether the column is shown without `--columns`.
    fn is_usual(self) -> bool {
        true
    }
}

/// A record that is shown as a line of columns.
pub(crate) trait Row {
    /// The ids of its columns.
    type Column: Copy + 'static;

    /// Columns at the start of the table that most lines begin with. They are written one after the
    /// other, without a branch on the id of each.
    const FIRST: &'static [Column<Self::Column>] = &[];

    /// Writes the value of a column: a word, or `-` if there is none.
    fn cell(&self, column: Self::Column, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos);

    /// The tone of the value of a column.
    fn tone(&self, _: Self::Column) -> Tone {
        Tone::Plain
    }
}

/// The columns that are shown, in their order.
#[derive(Clone, Debug)]
pub(crate) struct Layout<C> {
    shown: Vec<PlacedColumn<C>>,
    /// How many of the first columns are also the first ones of the table, in its order.
    as_in_table: usize,
    /// The precision of times; `None` without a column of times.
    times: Option<Precision>,
}

#[derive(Clone, Copy, Debug)]
struct PlacedColumn<C> {
    column: Column<C>,
    /// Where the column begins in its line.
    start: usize,
}

impl<C: ColumnSet> Layout<C> {
    /// The columns that `--columns` asks for, else the usual ones.
    ///
    /// # Errors
    /// There is no such column.
    pub fn of(asked: &[String]) -> Result<Self, Failure> {
        Self::new(C::COLUMNS, asked, C::is_usual)
    }
}

impl<C: Copy + PartialEq> Layout<C> {
    /// The columns of a table that `--columns` asks for, else those that are usual.
    ///
    /// # Errors
    /// `--columns` has a name that is not in the table.
    pub fn new(
        table: &[Column<C>],
        asked: &[String],
        is_usual: impl Fn(C) -> bool,
    ) -> Result<Self, Failure> {
        let columns = if asked.is_empty() {
            let usual = table.iter().filter(|column| is_usual(column.id));
            usual.copied().collect()
        } else {
            let asked = asked.iter().map(|name| find(table, name));
            asked.collect::<Result<Vec<_>, _>>()?
        };
        let times = columns.iter().find_map(|column| match column.align {
            Align::Time(precision) => Some(precision),
            _ => None,
        });
        let pairs = columns.iter().zip(table);
        let as_in_table = pairs.take_while(|(shown, known)| shown.id == known.id);
        let as_in_table = as_in_table.count();
        let shown = columns.into_iter();
        let mut layout = Self {
            as_in_table,
            times,
            shown: shown
                .map(|column| PlacedColumn { column, start: 0 })
                .collect(),
        };
        layout.place();
        Ok(layout)
    }

    /// Makes a column wide enough for values of this many characters.
    pub fn widen(&mut self, id: C, width: usize) {
        for (i, shown) in self.shown.iter_mut().enumerate() {
            if shown.column.id == id && shown.column.width < width {
                shown.column.width = width;
                if shown.column.align == Align::Right {
                    self.as_in_table = self.as_in_table.min(i);
                }
            }
        }
        self.place();
    }

    fn place(&mut self) {
        let mut start = 0;
        for shown in &mut self.shown {
            shown.start = start;
            start += shown.column.space() + 1;
        }
    }

    /// Writes the header line.
    pub fn header(&self, out: &mut Line<'_>, clock: &Clock) {
        let mut start = out.position();
        let plain = |_: &Column<C>| Tone::Plain;
        let width = self.time_width(clock);
        self.rest(0, &mut start, out, width, plain, |column, out| {
            out.extend_from_slice(column.name.as_bytes());
        });
        out.push(b'\n');
    }

    /// Writes the line of a record.
    #[inline(always)]
    pub fn row<R: Row<Column = C>>(
        &self,
        row: &R,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
    ) {
        let mut start = out.position();
        let mut written = 0;
        let width = self.time_width(clock);
        // A macro and not a loop, so that the compiler knows each column.
        macro_rules! each {
            ($($i:literal)*) => {
                const { assert!(R::FIRST.len() <= [$($i),*].len()) };
                $(if let (Some(column), Some(shown)) = (R::FIRST.get($i), self.shown.get($i)) {
                    pad($i, start + shown.start, out);
                    start += aligned(column, width, out, |out| row.cell(column.id, out, clock, at));
                })*
            };
        }
        if self.as_in_table >= R::FIRST.len() && !out.has_colors() {
            each!(0 1 2 3 4 5 6 7 8 9 10 11);
            written = R::FIRST.len();
        }
        let tone = |column: &Column<C>| row.tone(column.id);
        self.rest(written, &mut start, out, width, tone, |column, out| {
            row.cell(column.id, out, clock, at);
        });
        out.push(b'\n');
    }

    #[inline(always)]
    fn time_width(&self, clock: &Clock) -> usize {
        self.times.map_or(0, |precision| clock.width(precision))
    }

    /// Writes the columns that follow the first `written` ones. A value that is too long moves
    /// those after it to the right, until their padding makes up for it.
    #[inline(always)]
    fn rest(
        &self,
        written: usize,
        start: &mut usize,
        out: &mut Line<'_>,
        time_width: usize,
        tone: impl Fn(&Column<C>) -> Tone,
        mut push: impl FnMut(&Column<C>, &mut Line<'_>),
    ) {
        let shown = self.shown.iter().enumerate().skip(written);
        for (i, PlacedColumn { column, start: at }) in shown {
            pad(i, *start + at, out);
            let tone = match out.has_colors() {
                true => tone(column),
                false => Tone::Plain,
            };
            if tone != Tone::Plain {
                *start += push_code(out, tone.style().render());
            }
            *start += aligned(column, time_width, out, |out| push(column, out));
            if tone != Tone::Plain {
                *start += push_code(out, tone.style().render_reset());
            }
        }
    }
}

/// Pads the line to the start of a column.
#[inline(always)]
fn pad(i: usize, position: usize, out: &mut Line<'_>) {
    if i > 0 {
        out.pad_to(position);
    }
}

/// Writes a value in its column. Returns by how many characters a time is wider than its column.
#[inline(always)]
fn aligned<C>(
    column: &Column<C>,
    time_width: usize,
    out: &mut Line<'_>,
    push: impl FnOnce(&mut Line<'_>),
) -> usize {
    let value = out.position();
    push(out);
    match column.align {
        Align::Left => 0,
        Align::Right => {
            out.align_right(value, column.space());
            0
        }
        Align::Time(_) => time_width - column.space(),
    }
}

/// Writes an escape code, which takes no space on the screen. Returns its length.
#[cold]
fn push_code(out: &mut Line<'_>, code: impl Display) -> usize {
    let code = code.to_string();
    out.extend_from_slice(code.as_bytes());
    code.len()
}

/// The length of the longest of some names.
pub fn widest<'a>(names: impl IntoIterator<Item = &'a str>) -> usize {
    names.into_iter().map(str::len).max().unwrap_or(0)
}

fn find<C: Copy>(table: &[Column<C>], name: &str) -> Result<Column<C>, Failure> {
    let name = name.trim();
    let found = table
        .iter()
        .find(|column| column.name.eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| {
        let known = table.iter().map(|column| column.name.to_ascii_lowercase());
        let known = known.collect::<Vec<_>>().join(", ");
        Failure::usage(format!(
            "invalid value '{name}' for '--columns': there is no such column"
        ))
        .hint(format!("the columns are {known}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::{rendered, rendered_with};

    const TABLE: [Column<u8>; 4] = [
        Column::left(0, "FIRST", 3),
        Column::left(1, "B", 8),
        Column::right(2, "NUMBER", 8),
        Column::left(3, "LAST", 4),
    ];

    struct Values([&'static str; 4]);

    impl Row for Values {
        type Column = u8;

        fn cell(&self, column: u8, out: &mut Line<'_>, _: &mut Clock, _: UnixNanos) {
            out.extend_from_slice(self.0[usize::from(column)].as_bytes());
        }
    }

    /// Values of which the compiler knows the first columns.
    struct Known(Values);

    impl Row for Known {
        type Column = u8;

        const FIRST: &'static [Column<u8>] = TABLE.split_at(3).0;

        fn cell(&self, column: u8, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
            self.0.cell(column, out, clock, at);
        }
    }

    fn lines(layout: &Layout<u8>, rows: &[[&'static str; 4]]) -> Vec<String> {
        let mut clock = Clock::at_epoch();
        let text = rendered(|out| {
            layout.header(out, &clock);
            for row in rows {
                layout.row(&Values(*row), out, &mut clock, 0);
            }
        });
        text.lines().map(str::to_owned).collect()
    }

    fn layout(asked: &[&str]) -> Result<Layout<u8>, Failure> {
        let asked = asked.iter().map(|name| (*name).to_owned());
        Layout::new(&TABLE, &asked.collect::<Vec<_>>(), |_| true)
    }

    #[test]
    fn a_column_is_as_wide_as_its_name_and_its_values() {
        let mut layout = layout(&[]).unwrap();
        let rows = [["a", "b", "1", "c"], ["12345", "12345678", "12345678", "-"]];
        assert_eq!(
            lines(&layout, &rows),
            [
                "FIRST B          NUMBER LAST",
                "a     b               1 c",
                "12345 12345678 12345678 -",
            ]
        );
        layout.widen(1, 10);
        assert_eq!(
            lines(&layout, &rows[..1]),
            [
                "FIRST B            NUMBER LAST",
                "a     b                 1 c",
            ]
        );
    }

    #[test]
    fn a_value_that_is_too_long_moves_only_what_has_no_room() {
        let layout = layout(&[]).unwrap();
        let rows = [
            ["1234567", "b", "1", "c"],
            ["a", "1234567890", "12345678", "c"],
            ["a", "b", "1234567890", "c"],
        ];
        assert_eq!(
            lines(&layout, &rows)[1..],
            [
                "1234567 b             1 c",
                "a     1234567890 12345678 c",
                "a     b        1234567890 c",
            ]
        );
    }

    #[test]
    fn columns_that_the_compiler_knows_are_written_as_others_are() {
        let rows = [
            ["a", "b", "1", "c"],
            ["1234567", "1234567890", "1234567890", "-"],
        ];
        for asked in [&["first", "b", "number"][..], &[], &["number", "first"]] {
            for width in [0, 9, 20] {
                let mut layout = layout(asked).unwrap();
                layout.widen(1, width);
                layout.widen(2, width);
                let known = rows.iter().map(|row| {
                    rendered(|out| layout.row(&Known(Values(*row)), out, &mut Clock::at_epoch(), 0))
                });
                let known: Vec<_> = known.map(|line| line.trim_end().to_owned()).collect();
                assert_eq!(known, lines(&layout, &rows)[1..], "{asked:?} {width}");
            }
        }
    }

    /// The length of a line with values as wide as their columns.
    fn width<C: Copy + PartialEq>(layout: &Layout<C>) -> usize {
        let last = layout.shown.last().unwrap();
        let time = layout.times.map_or(0, |precision| match precision {
            Precision::Seconds => "12:00:00".len() - "TIME".len(),
            Precision::Micros => "12:00:00.000000".len() - "TIME".len(),
        });
        time + last.start + last.column.space()
    }

    #[test]
    fn lines_of_ipv4_fit_whatever_the_interface_is_called() {
        use crate::output::{connect_trace, flows, port_monitor, syn_count};
        const LONGEST: usize = "a-name-of-15---".len();
        let mut packets = port_monitor::PacketWriter::new(&[], false).unwrap();
        packets
            .layout
            .widen(port_monitor::PacketColumn::Iface, LONGEST);
        assert!(width(&packets.layout) <= 110);
        let mut counts = syn_count::SynWriter::new(&[], true).unwrap();
        counts.layout.widen(syn_count::SynColumn::Iface, LONGEST);
        assert!(width(&counts.layout) <= 110);
        for (with_close, most) in [(false, 110), (true, 150)] {
            let connects = connect_trace::ConnectWriter::new(&[], with_close).unwrap();
            assert!(width(&connects.layout) <= most);
        }
        for (by_key, names) in [(false, false), (false, true), (true, false)] {
            let mut flows = flows::FlowWriter::new(&[], by_key, names).unwrap();
            flows.widen_iface("eth0".len());
            assert!(width(&flows.flows) <= 110);
            flows.widen_iface(LONGEST);
            assert!(width(&flows.traffic) <= 110);
        }
    }

    #[test]
    fn colors_move_no_column() {
        struct Colored(Values);

        impl Row for Colored {
            type Column = u8;

            fn cell(&self, column: u8, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
                self.0.cell(column, out, clock, at);
            }

            fn tone(&self, column: u8) -> Tone {
                [Tone::Good, Tone::Plain, Tone::Bad, Tone::Ending][usize::from(column)]
            }
        }

        let layout = layout(&[]).unwrap();
        let row = ["a", "b", "1", "c"];
        let mut clock = Clock::at_epoch();
        let text = rendered_with(true, |out| {
            layout.row(&Colored(Values(row)), out, &mut clock, 0);
        });
        assert_eq!(
            text,
            "\x1b[32ma\x1b[0m     b        \x1b[31m       1\x1b[0m \x1b[34mc\x1b[0m\n"
        );
        assert_eq!(
            without_codes(&text),
            lines(&layout, &[row])[1].clone() + "\n"
        );
    }

    fn without_codes(text: &str) -> String {
        let mut pieces = text.split("\x1b[");
        let first = pieces.next().unwrap().to_owned();
        pieces.fold(first, |text, piece| text + piece.split_once('m').unwrap().1)
    }

    #[test]
    fn columns_come_in_the_order_asked_for() {
        let layout = layout(&["last", " number", "First"]).unwrap();
        let rows = [["a", "b", "1", "c"]];
        assert_eq!(
            lines(&layout, &rows),
            ["LAST   NUMBER FIRST", "c           1 a"]
        );
    }

    #[test]
    fn an_unknown_column_is_refused_with_those_that_there_are() {
        let failure = layout(&["first", "size"]).unwrap_err();
        assert_eq!(failure.exit, crate::failure::Exit::Usage);
        assert_eq!(
            failure.error.to_string(),
            "invalid value 'size' for '--columns': there is no such column"
        );
        assert_eq!(
            failure.hint.unwrap(),
            "the columns are first, b, number, last"
        );
    }
}
