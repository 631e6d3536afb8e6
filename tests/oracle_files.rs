//! Tests the oracle's own reader and writer of capture files, and how apt's sources are turned into
//! sources of source packages.

use crate::oracle::capture::{Record, read};
use crate::oracle::corpus::{source_lines, source_stanzas};
use crate::oracle::pcap_write::{Frame, Order, Pcap, PcapNg, Unit, pcap};

const ORDERS: [Order; 2] = [Order::Little, Order::Big];
const TIME: u64 = 1_700_000_000_123_456_789;

#[test]
fn a_pcap_written_by_hand_is_read() {
    #[rustfmt::skip]
    let file = [
        0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0,
        0x71, 0, 0, 0x24,
        1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 60, 0, 0, 0, 7, 8, 9,
    ];
    let record = Record {
        link_type: 113,
        ts_ns: 1_000_002_000,
        bytes: &[7, 8, 9],
        original_len: 60,
    };
    assert_eq!(read(&file).records, [record]);
    assert_eq!(read(&file).end, Ok(()));
}

#[test]
fn pcap_is_read_as_written_in_both_orders_and_units() {
    for order in ORDERS {
        for (unit, ts_ns) in [
            (Unit::Nanoseconds, i128::from(TIME)),
            (Unit::Microseconds, i128::from(TIME / 1000 * 1000)),
        ] {
            let mut file = Pcap::new(Vec::new(), order, unit, 1).unwrap();
            file.frame(Frame::whole(TIME, &[1, 2, 3])).unwrap();
            let cut = Frame {
                ts_ns: TIME,
                bytes: &[],
                original_len: 9000,
            };
            file.frame(cut).unwrap();
            let file = file.finish();
            let capture = read(&file);
            assert_eq!(capture.end, Ok(()));
            let [first, second] = capture.records.as_slice() else {
                panic!("{capture:?}");
            };
            assert_eq!((first.link_type, first.ts_ns), (1, ts_ns));
            assert_eq!((first.bytes, first.original_len), (&[1, 2, 3][..], 3));
            assert_eq!((second.bytes.len(), second.original_len), (0, 9000));
        }
    }
}

#[test]
fn pcapng_is_read_as_written_over_sections_interfaces_and_kinds_of_block() {
    let mut file = PcapNg::new(Vec::new(), Order::Big).unwrap();
    for order in ORDERS {
        file.section(order).unwrap();
        file.interface(113, 4, None).unwrap();
        file.interface(1, 0, Some(9)).unwrap();
        // Counting in 1/1024 s.
        file.interface(101, 0, Some(0x80 | 10)).unwrap();
        file.block(0xbad, &[1, 2, 3]).unwrap();
        file.enhanced(0, TIME / 1000, &[1], 1).unwrap();
        file.enhanced(1, TIME, &[1, 2, 3, 4], 77).unwrap();
        file.old(2, 1536, &[5, 6], 2).unwrap();
        file.simple(&[1, 2, 3, 4], 5).unwrap();
    }
    let file = file.finish();
    let capture = read(&file);
    assert_eq!(capture.end, Ok(()));
    let ts_ns = i128::from(TIME);
    let of = |link_type, ts_ns, bytes, original_len| Record {
        link_type,
        ts_ns,
        bytes,
        original_len,
    };
    let section: [Record; 4] = [
        of(113, ts_ns / 1000 * 1000, &[1], 1),
        of(1, ts_ns, &[1, 2, 3, 4], 77),
        of(101, 1_500_000_000, &[5, 6], 2),
        of(113, 0, &[1, 2, 3, 4], 5),
    ];
    assert_eq!(capture.records, [section.clone(), section].concat());
}

#[test]
fn an_offset_of_timestamps_is_added_even_if_negative() {
    for (order, offset) in [
        (Order::Little, (-10_i64).to_le_bytes()),
        (Order::Big, (-10_i64).to_be_bytes()),
    ] {
        let mut file = PcapNg::new(Vec::new(), order).unwrap();
        let option = match order {
            Order::Little => [14, 0, 8, 0],
            Order::Big => [0, 14, 0, 8],
        };
        // Link type and snapshot length 0, then the option, and no end of options.
        file.block(1, &[&[0; 8][..], &option, &offset].concat())
            .unwrap();
        file.enhanced(0, 1_000_000, &[], 0).unwrap();
        let file = file.finish();
        assert_eq!(read(&file).records[0].ts_ns, -9_000_000_000);
    }
}

/// Reading ends at the malformed record, keeps those before it and says where it is.
#[test]
fn every_cut_of_a_file_keeps_the_records_before_it() {
    let old = pcap(1, &[vec![1; 10], vec![2; 10]]);
    let mut new = PcapNg::new(Vec::new(), Order::Little).unwrap();
    new.interface(1, 0, None).unwrap();
    new.enhanced(0, 1, &[1; 10], 10).unwrap();
    new.enhanced(0, 2, &[2; 10], 10).unwrap();
    let new = new.finish();
    // Where each file's header and records end.
    for (file, ends) in [(old, [24, 50, 76]), (new, [48, 92, 136])] {
        assert_eq!(file.len(), ends[2]);
        for length in 0..file.len() {
            let capture = read(&file[..length]);
            let whole = ends.iter().filter(|end| **end <= length).count();
            assert_eq!(capture.records.len(), whole.saturating_sub(1), "{length}");
            // A section header alone is a whole file of its own.
            let is_whole = ends.contains(&length) || (ends[0] == 48 && length == 28);
            assert_eq!(capture.end.is_ok(), is_whole, "{length}");
        }
    }
}

#[test]
fn an_error_in_a_file_is_reported_with_its_offset() {
    let error = |file: &[u8]| read(file).end.unwrap_err();
    assert!(error(b"").starts_with("offset 0: "));
    assert!(error(b"no capture file").contains("magic"));

    let begin = || {
        let mut file = PcapNg::new(Vec::new(), Order::Little).unwrap();
        file.interface(1, 4, None).unwrap();
        file
    };
    let mut file = begin();
    file.enhanced(1, 0, &[], 0).unwrap();
    let text = error(&file.finish());
    assert_eq!(text, "offset 48: interface 1 is not described");

    // Interfaces don't outlive their section.
    let mut file = begin();
    file.section(Order::Big).unwrap();
    file.enhanced(0, 0, &[], 0).unwrap();
    assert!(error(&file.finish()).starts_with("offset 76: interface 0"));

    // A captured length beyond the block, a simple packet shorter than it has to be.
    let mut file = begin();
    file.block(6, &[[0; 12].as_slice(), &[1, 0, 0, 0, 0, 0, 0, 0]].concat())
        .unwrap();
    assert!(error(&file.finish()).starts_with("offset 48: 1 bytes wanted"));
    let mut file = begin();
    file.simple(&[], 4).unwrap();
    assert!(error(&file.finish()).starts_with("offset 48: 4 bytes wanted"));

    // Lengths that no block can have, and two that differ.
    for (at, value) in [(52, 8), (52, 18), (60, 12)] {
        let mut file = begin();
        file.block(77, &[0; 4]).unwrap();
        let mut file = file.finish();
        file[at] = value;
        assert!(error(&file).starts_with("offset 48: "), "{at} {value}");
    }
    let mut file = begin().finish();
    file[12] = 2;
    assert!(error(&file).contains("version 2.0"));
    file[8] = 0;
    assert!(error(&file).contains("byte-order"));
}

#[test]
fn one_line_sources_become_sources_of_source_packages() {
    let text = "# deb http://a b c\n\
        deb [trusted=yes] http://a  stable main\n\
        deb-src [trusted=yes] http://a stable main\n\
        \n  deb file:/srv stable main # why\n";
    let expected = "deb-src [trusted=yes] http://a stable main\n\
        deb-src file:/srv stable main # why\n";
    assert_eq!(source_lines(text), expected);
}

#[test]
fn deb822_sources_become_sources_of_source_packages() {
    let text = "\n\
        # A comment.\n\
        types: deb\n deb-src\n\
        URIs: http://a\n\
        # Another.\n\
        Suites: stable\n  updates\n\
        Signed-By:\n KEY\n .\n KEY\n\
        \n\n\
        Types: deb\n\
        URIs: http://b\n\
        \n\
        Types: deb-src\n\
        URIs: http://b\n";
    let expected = "Types: deb-src\n\
        URIs: http://a\n\
        Suites: stable\n  updates\n\
        Signed-By:\n KEY\n .\n KEY\n\
        \n\
        Types: deb-src\n\
        URIs: http://b\n";
    assert_eq!(source_stanzas(text), expected);
}
