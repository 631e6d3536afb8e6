//! Values as text that fits a narrow column.

use ratatui::text::Line;

use crate::output::escape::push_text;

/// A number in at most six characters, such as `1.5k`.
pub fn short(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            return if unit.is_empty() || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

/// A time in at most seven characters, such as `1.5ms`.
pub fn time(ns: u64) -> String {
    let seconds = ns as f64 / 1e9;
    if seconds < 0.001 {
        format!("{:.0}us", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1}ms", seconds * 1e3)
    } else if seconds < 100.0 {
        format!("{seconds:.1}s")
    } else if seconds < 6000.0 {
        format!("{:.0}m", seconds / 60.0)
    } else {
        format!("{:.1}h", seconds / 3600.0)
    }
}

/// A time as [`time`] shows it, or a dash.
pub fn time_or_none(ns: Option<u64>) -> String {
    ns.map_or("-".to_owned(), time)
}

/// Bytes that a process or a client has chosen, with control characters escaped.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    push_text(&mut text, bytes);
    String::from_utf8_lossy(&text).into_owned()
}

/// Leaves out the middle of a string that is too long: the port of an address is at its end.
pub fn shortened(text: &str, width: usize) -> String {
    if !text.is_ascii() || text.len() <= width || width < 3 {
        return text.to_owned();
    }
    let head = (width - 1) / 2;
    let tail = text.len() - (width - 1 - head);
    format!("{}…{}", &text[..head], &text[tail..])
}

/// Breaks a string into lines, between words.
pub fn wrapped(text: &str, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            word.clone_into(line);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.into_iter().map(Line::raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_stay_short() {
        for (value, text) in [
            (0.0, "0"),
            (99.9, "100"),
            (999.0, "999"),
            (1000.0, "1.0k"),
            (999_499.0, "999k"),
            (999_900.0, "1.0M"),
            (1.8e19, "18446P"),
        ] {
            assert!(short(value).len() <= 6, "{}", short(value));
            if value < 1e19 {
                assert_eq!(short(value), text);
            }
        }
        for (ns, text) in [
            (0, "0us"),
            (999_000, "999us"),
            (1_500_000, "1.5ms"),
            (2_000_000_000, "2.0s"),
            (600_000_000_000, "10m"),
            (36_000_000_000_000, "10.0h"),
        ] {
            assert_eq!(time(ns), text);
        }
    }
}
