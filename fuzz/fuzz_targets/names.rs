//! Reads names in arbitrary bytes, whole and in chunks in another order. It must not crash, the order
//! must not matter, and what is read must not grow with what is sent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpinspect::domain::names::{read, read_chunks};
use tcpinspect::skel::NAME_BYTES;

fuzz_target!(|data: &[u8]| {
    // The first byte says where to cut, the rest is what an initiator sends.
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let bytes = &bytes[..bytes.len().min(NAME_BYTES)];
    let whole = read(bytes, true).unwrap_or_default();
    if let Some(early) = read(bytes, false) {
        assert_eq!(early, whole);
    }
    let size = usize::from(*cut) + 1;
    let starts = (0..bytes.len()).step_by(size);
    let chunks = starts.map(|at| (at, &bytes[at..bytes.len().min(at + size)]));
    assert_eq!(read_chunks(chunks.clone()), whole);
    assert_eq!(read_chunks(chunks.rev()), whole);
    let server = whole.server.unwrap_or_default();
    assert!(server.len() <= 300);
});
