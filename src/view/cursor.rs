//! The selected line of a table, and the part of the table that is on the screen.

use super::keys::Key;

/// Lines are numbered from 0.
#[derive(Debug, Default)]
pub struct Cursor {
    /// The selected line.
    pub selected: usize,
    /// The first line on the screen.
    pub offset: usize,
    /// How many lines fit the screen.
    pub height: usize,
}

impl Cursor {
    /// Selects a line, or the last of `lines` if there are fewer.
    pub fn select(&mut self, line: usize, lines: usize) {
        self.selected = line.min(lines.saturating_sub(1));
    }

    /// Selects the line that a key moves to. False if the key is for something else.
    pub fn key(&mut self, key: Key, lines: usize) -> bool {
        let line = match key {
            Key::Up | Key::Char('k') => self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected + 1,
            Key::PageUp => self.selected.saturating_sub(self.height),
            Key::PageDown => self.selected + self.height,
            Key::Home => 0,
            Key::End => usize::MAX,
            _ => return false,
        };
        self.select(line, lines);
        true
    }

    /// Scrolls to the selected line, on a screen with a header and this many rows in all. No line of
    /// the screen stays empty while there are lines above.
    pub fn scroll(&mut self, rows: u16, lines: usize) {
        self.height = usize::from(rows.saturating_sub(1)).max(1);
        let last = lines.saturating_sub(self.height);
        let first = (self.selected + 1).saturating_sub(self.height);
        self.offset = self.offset.min(last).clamp(first, self.selected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_line_is_on_the_screen_and_no_row_is_empty_while_lines_are_above() {
        let mut cursor = Cursor::default();
        for (rows, lines, keys) in [
            (5, 10, &[Key::End][..]),
            (9, 10, &[]),
            (3, 10, &[Key::Up, Key::PageUp]),
            (0, 10, &[Key::Home, Key::Char('j')]),
            (5, 2, &[Key::PageDown]),
            (5, 0, &[Key::Down]),
        ] {
            for key in keys {
                assert!(cursor.key(*key, lines));
            }
            cursor.select(cursor.selected, lines);
            cursor.scroll(rows, lines);
            let screen = cursor.offset..cursor.offset + cursor.height;
            assert!(screen.contains(&cursor.selected), "{cursor:?}");
            assert!(cursor.selected < lines.max(1), "{cursor:?}");
            assert!(screen.end <= lines || cursor.offset == 0, "{cursor:?}");
        }
        assert!(!cursor.key(Key::Enter, 10));
    }
}
