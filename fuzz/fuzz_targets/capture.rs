//! Reads arbitrary bytes as a capture file, once whole and once in small
//! pieces: it must not crash, both must give the same frames and end in the
//! same way, and every frame must be as the documentation of `Frame` says.

#![no_main]

use std::io::{Cursor, Read, Result};
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tcpinspect::capture::{Capture, LinkKind, MAX_FRAME};

/// Delivers at most `step` bytes at a time.
struct Trickle {
    bytes: Cursor<Vec<u8>>,
    step: usize,
}

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let len = buf.len().min(self.step);
        self.bytes.read(&mut buf[..len])
    }
}

type Frames = Vec<(Option<i64>, LinkKind, i32, Vec<u8>)>;

fn drain(reader: Box<dyn Read>) -> (Frames, Option<String>) {
    let mut frames = Frames::new();
    let mut capture = match Capture::from_reader(Path::new("fuzz"), reader) {
        Ok(capture) => capture,
        Err(err) => return (frames, Some(err.to_string())),
    };
    let error = loop {
        match capture.next_frame() {
            Ok(None) => break None,
            Err(err) => break Some(err.to_string()),
            Ok(Some(frame)) => {
                assert!(frame.bytes.len() <= MAX_FRAME as usize + 14);
                assert!(
                    frame.link == LinkKind::Ethernet
                        || frame.bytes.is_empty()
                        || frame.bytes.len() >= 14 && frame.bytes[..12] == [0; 12]
                );
                assert_eq!(frame.number, frames.len() as u64 + 1);
                frames.push((
                    frame.ts_ns,
                    frame.link,
                    frame.offset_shift,
                    frame.bytes.to_vec(),
                ));
            }
        }
    };
    assert!(
        matches!(capture.next_frame(), Ok(None)),
        "nothing can follow"
    );
    (frames, error)
}

fuzz_target!(|data: &[u8]| {
    let whole = drain(Box::new(Cursor::new(data.to_vec())));
    // With a broken gzip stream, the bytes are lost that were decompressed in the
    // same read as the fault. So there the pieces matter.
    if data.starts_with(&[0x1f, 0x8b]) {
        return;
    }
    let pieces = drain(Box::new(Trickle {
        bytes: Cursor::new(data.to_vec()),
        step: data.len() % 23 + 1,
    }));
    assert_eq!(whole, pieces);
});
