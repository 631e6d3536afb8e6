//! Finds the names of kernel functions by address, in /proc/kallsyms.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

const KALLSYMS: &str = "/proc/kallsyms";
const KPTR_RESTRICT: &str = "/proc/sys/kernel/kptr_restrict";

/// Whether the kernel has a function with that name. Names are shown to everyone.
pub fn is_listed(function: &str) -> bool {
    let text = fs::read_to_string(KALLSYMS).unwrap_or_default();
    text.lines()
        .any(|line| line.split_ascii_whitespace().nth(2) == Some(function))
}

/// The functions of the kernel. The file is opened early, because the privileges at open(2) decide
/// whether it shows addresses. It is long, so it is read only at the first lookup.
pub struct KernelSymbols {
    file: Option<File>,
    /// The start of each function, and of its name in `names`; sorted by address.
    starts: Vec<(u64, usize)>,
    names: String,
    /// The function that the last address was in, and where its name is: in a flood it is always the
    /// same.
    last: (Range<u64>, Range<usize>),
}

impl KernelSymbols {
    /// Opens the list of symbols.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open() -> Result<Self> {
        let file = File::open(KALLSYMS).with_context(|| format!("failed to open {KALLSYMS}"))?;
        Ok(Self::from_file(Some(file)))
    }

    /// Why addresses have no names; `None` if they have.
    ///
    /// # Errors
    /// The list can't be read.
    pub fn hidden(&self) -> Result<Option<&'static str>> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let mut start = [0; 4096];
        let len = file
            .read_at(&mut start, 0)
            .with_context(|| format!("failed to read {KALLSYMS}"))?;
        let mut digits = start[..len]
            .split(|byte| *byte == b'\n')
            .filter_map(|line| line.split(|byte| *byte == b' ').next())
            .flatten();
        if digits.any(|digit| *digit != b'0') {
            return Ok(None);
        }
        let restricted = fs::read_to_string(KPTR_RESTRICT).unwrap_or_default();
        Ok(Some(match restricted.trim() {
            "2" => "kernel.kptr_restrict is 2, which hides addresses from everyone",
            _ => "/proc/kallsyms shows addresses only with CAP_SYSLOG",
        }))
    }

    fn from_file(file: Option<File>) -> Self {
        Self {
            file,
            starts: Vec::new(),
            names: String::new(),
            last: (0..0, 0..0),
        }
    }

    /// A list without symbols.
    pub fn none() -> Self {
        Self::from_file(None)
    }

    /// The name of the function that contains an address. Programs send 0 if they know no address.
    pub fn name(&mut self, address: u64) -> Option<&str> {
        if address == 0 {
            return None;
        }
        if !self.last.0.contains(&address) {
            self.read();
            let at = self.starts.partition_point(|(start, _)| *start <= address);
            let (start, name) = *self.starts.get(at.checked_sub(1)?)?;
            let end = self.starts.get(at).map_or(u64::MAX, |(next, _)| *next);
            let len = self.names.get(name..)?.find('\n')?;
            self.last = (start..end, name..name + len);
        }
        self.names.get(self.last.1.clone())
    }

    /// The start of a function, and that of the next one.
    pub fn range(&mut self, function: &str) -> Option<(u64, u64)> {
        self.read();
        let is_it = |(_, name): &(u64, usize)| {
            let rest = self
                .names
                .get(*name..)
                .and_then(|rest| rest.strip_prefix(function));
            rest.is_some_and(|rest| rest.starts_with('\n'))
        };
        let at = self.starts.iter().position(is_it)?;
        Some((self.starts[at].0, self.starts.get(at + 1)?.0))
    }

    /// For each function whose name passes, its start and that of the next one.
    pub fn ranges(&mut self, mut is_wanted: impl FnMut(&str) -> bool) -> Vec<(u64, u64)> {
        self.read();
        let functions = self.starts.windows(2);
        let wanted = functions.filter(|pair| {
            let name = self.names.get(pair[0].1..).unwrap_or_default();
            is_wanted(name.split('\n').next().unwrap_or_default())
        });
        wanted.map(|pair| (pair[0].0, pair[1].0)).collect()
    }

    /// Reads the list now, and forgets the functions whose name does not pass.
    pub fn keep(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.read();
        self.last = (0..0, 0..0);
        let all = std::mem::take(&mut self.starts);
        let names = std::mem::take(&mut self.names);
        let mut follows = false;
        for (start, at) in all {
            let name = names[at..].split('\n').next().unwrap_or_default();
            let is_wanted = is_wanted(name);
            // The next one says where a function ends.
            if is_wanted || follows {
                self.add(start, name);
            }
            follows = is_wanted;
        }
    }

    fn read(&mut self) {
        let Some(mut file) = self.file.take() else {
            return;
        };
        let mut text = String::new();
        // If this fails, no address has a name.
        if file.read_to_string(&mut text).is_ok() {
            self.parse(&text);
        }
    }

    /// Parses lines of `ADDRESS TYPE NAME`, with the module after a tab if there is one.
    fn parse(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            // Without privileges all addresses are 0.
            let Ok(address @ 1..) = u64::from_str_radix(address, 16) else {
                continue;
            };
            self.add(address, name);
        }
        self.starts.sort_unstable();
    }

    fn add(&mut self, start: u64, name: &str) {
        self.starts.push((start, self.names.len()));
        self.names.push_str(name);
        self.names.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_that_begins_before_it() {
        let mut symbols = KernelSymbols::none();
        symbols.parse("30 t last\t[mod]\n10 T first\n18 d data\n20 W second\n");
        for (address, name) in [
            (0xf, None),
            (0x10, Some("first")),
            (0x1f, Some("first")),
            (0x20, Some("second")),
            (0x31, Some("last")),
        ] {
            assert_eq!(symbols.name(address), name);
        }
        assert_eq!(symbols.range("first"), Some((0x10, 0x20)));
        assert_eq!(symbols.range("firs"), None);
        let ranges = symbols.ranges(|name| name != "second");
        assert_eq!(ranges, [(0x10, 0x20)]);
        symbols.keep(|name| name == "first");
        assert_eq!(symbols.name(0x1f), Some("first"));
        assert_eq!(symbols.name(0x31), Some("second"));
    }

    #[test]
    fn hidden_addresses_have_no_names() {
        let mut symbols = KernelSymbols::none();
        symbols.parse("0000000000000000 T first\n0000000000000000 T second\n");
        assert_eq!(symbols.name(0), None);
        assert_eq!(symbols.name(1), None);
    }
}
