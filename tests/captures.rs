//! The captures in Debian's source packages of tcpdump and tcpflow, replayed through the shipped
//! programs, against the oracle.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "in a test a broken assumption has to stop it, and numbers are worth seeing"
)]

mod common;
mod oracle;
mod oracle_corpus;
mod oracle_files;
mod oracle_rules;
mod tcpdump;

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use common::need;
use oracle::parity::{Ending, LONGEST_FRAME, check_records, check_refused, for_each};
use oracle::{Link, capture, corpus};

/// How the reading of a capture ends.
#[derive(Clone, Copy)]
enum End {
    Whole,
    /// At some place in it.
    Partial,
    /// Before its first frame.
    Refused,
}

#[test]
fn every_capture_of_tcpdump_and_tcpflow_is_judged_as_by_the_oracle() {
    let files = need!(corpus::captures());
    assert!(files.len() > 500, "only {} captures", files.len());
    let ends = [const { AtomicU32::new(0) }; 3];
    for_each(&files, |path| {
        let name = path.display().to_string();
        let bytes = fs::read(path).unwrap();
        let capture = capture::read(&bytes);
        // Up to here the tool reads, and no further.
        let is_supported = |link_type| Link::from_type(link_type).is_some();
        let unusable = capture.records.iter().position(|record| {
            !is_supported(record.link_type) || record.bytes.len() > LONGEST_FRAME
        });
        let is_pcapng = bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]);
        let end = match (unusable, &capture.end) {
            (Some(at), _) if !is_supported(capture.records[at].link_type) => {
                let complaint = format!("link type {} ", capture.records[at].link_type);
                if is_pcapng {
                    let ending = Ending::Error(1, &complaint);
                    check_records(&name, path, &capture.records[..at], 0, ending);
                    End::Partial
                } else {
                    check_refused(path, &complaint);
                    End::Refused
                }
            }
            (Some(at), _) => {
                let ending = Ending::Error(1, "over the limit of 262144");
                check_records(&name, path, &capture.records[..at], 0, ending);
                End::Partial
            }
            (None, Err(_)) => {
                let ending = Ending::Error(1, " at byte ");
                check_records(&name, path, &capture.records, 0, ending);
                End::Partial
            }
            (None, Ok(())) => {
                check_records(&name, path, &capture.records, 0, Ending::EndOfFile);
                End::Whole
            }
        };
        ends[end as usize].fetch_add(1, Ordering::Relaxed);
    });
    let [whole, partial, refused] = ends.map(AtomicU32::into_inner);
    eprintln!("{whole} captures read to their end, {partial} up to a place, {refused} refused");
    assert!(whole > 400 && partial > 2 && refused > 200);
}
