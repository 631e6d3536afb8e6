//! How many TCP sockets there are, by state, in the network namespace of this thread.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Open files of /proc/net that have numbers of sockets. They can still be read in the sandbox.
pub struct SocketCounts {
    files: Vec<File>,
}

impl SocketCounts {
    /// Opens the files that there are: without IPv6 there is no sockstat6.
    pub fn open() -> Self {
        let names = ["sockstat", "sockstat6", "snmp"];
        let files = names.map(|name| File::open(format!("/proc/thread-self/net/{name}")));
        Self {
            files: files.into_iter().flatten().collect(),
        }
    }

    /// The number of sockets in each state that the files show.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let mut text = String::new();
        for file in &self.files {
            let mut bytes = [0; 4096];
            if let Ok(len) = file.read_at(&mut bytes, 0) {
                text.push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
        }
        sockets_by_state(&text)
    }
}

/// Reads numbers of sockets from the contents of sockstat, sockstat6 and snmp in /proc/net.
fn sockets_by_state(text: &str) -> Vec<(&'static str, u64)> {
    let mut counts = [("in_use", None), ("time_wait", None), ("established", None)];
    let [in_use, time_wait, established] = &mut counts;
    let mut names = Vec::new();
    for line in text.lines() {
        let words = line.split(' ').collect::<Vec<_>>();
        let after = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.parse::<u64>().ok()
        };
        match words.first() {
            Some(&("TCP:" | "TCP6:")) => {
                for (sum, name) in [(&mut in_use.1, "inuse"), (&mut time_wait.1, "tw")] {
                    if let Some(count) = after(name) {
                        *sum = Some(sum.unwrap_or(0) + count);
                    }
                }
            }
            // A line of names, and one of their values.
            Some(&"Tcp:") if names.is_empty() => names = words,
            Some(&"Tcp:") => {
                let at = names.iter().position(|name| *name == "CurrEstab");
                established.1 = at.and_then(|at| words.get(at)?.parse().ok());
            }
            _ => {}
        }
    }
    let known = counts.into_iter();
    known
        .filter_map(|(state, count)| Some((state, count?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_both_families_are_counted() {
        let text = "sockets: used 9\nTCP: inuse 5 orphan 1 tw 7 alloc 8 mem 1\nUDP: inuse 2 mem 0\n\
                    TCP6: inuse 3\nTcp: RtoAlgorithm CurrEstab InSegs\nTcp: 1 6 12\n";
        let expected = [("in_use", 8), ("time_wait", 7), ("established", 6)];
        assert_eq!(sockets_by_state(text), expected);
        for broken in ["", "TCP: inuse\nTcp:\nTcp: x\nTcp:", "TCP: inuse x"] {
            assert_eq!(sockets_by_state(broken), []);
        }
    }
}
