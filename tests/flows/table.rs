//! flows: the table under load.

use super::*;

/// SYNs of this many connections, 64,000 for each client.
fn syn_flood(socket: &RawSocket, range: std::ops::Range<u32>) {
    let mut frame = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 9);
    for i in range {
        // Source address and port, as they lie in an Ethernet frame with IPv4.
        frame[26..30].copy_from_slice(&(0x0a4e_0000 + i / 64_000).to_be_bytes());
        frame[34..36].copy_from_slice(&(1024 + (i % 64_000) as u16).to_be_bytes());
        socket.send(&frame);
    }
}

/// Bytes of kernel memory that the maps of a process take, according to /proc/PID/fdinfo.
fn map_bytes(tool: &Tool) -> u64 {
    let mut maps = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{}/fdinfo", tool.pid())).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let number = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        if let (Some(id), Some(bytes)) = (number("map_id:"), number("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum()
}

#[test]
fn two_hundred_thousand_flows_at_once_are_all_reported_at_the_end() {
    let pair = need!(Pair::new());
    // To a file, which is never too slow for the end of the run.
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = command(["flows", "vs", "--json", "--max-flows", "262144"]);
    command.stdout(file.reopen().unwrap());
    let tool = Tool::spawn_in(&pair.server, &mut command).attached();
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    let bytes = map_bytes(&tool);
    let count = if is_guest() { 20_000 } else { 200_000 };
    syn_flood(&socket, 0..count);
    // The memory for all flows is allocated at the start, and is no more than the help says: 560 bytes a
    // flow, beside the event buffer and some maps that have a fixed size.
    assert_eq!(map_bytes(&tool), bytes);
    assert!(bytes < 262_144 * 560 + (16 << 20), "{bytes}");
    tool.signal(Signal::SIGINT);
    // An emulated machine takes its time to write 100 MB.
    let mut reader = file.reopen().unwrap();
    crate::common::wait_within("all flows", Duration::from_secs(180), || {
        reader.seek(SeekFrom::End(-1000)).ok()?;
        let mut end = String::new();
        reader.read_to_string(&mut end).unwrap();
        end.contains(r#""event":"summary""#).then_some(())
    });
    let mut output = tool.finish();
    let text = fs::read_to_string(file.path()).unwrap();
    output.stdout = text.lines().map(str::to_owned).collect();
    let summary = check_packets(&output);
    let lines = output.stdout.iter().map(|line| parse(line));
    let flood = lines
        .filter(|line| line["dport"] == 9 && line["conn_state"] == "S0" && line["orig_pkts"] == 1);
    assert_eq!(flood.count(), count as usize, "{summary}");
    assert_eq!(summary["untracked"], 0, "{summary}");
    assert_eq!(summary["evicted"], 0, "{summary}");
}

#[test]
fn a_full_table_makes_room_and_no_packet_is_forgotten() {
    let pair = need!(Pair::new());
    let args = ["flows", "vs", "--json", "--max-flows", "1000"];
    let tool = Tool::start_in(&pair.server, &args);
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    syn_flood(&socket, 0..20_000);
    // Once there is room again, a new flow is seen.
    crate::common::wait_for("room in the table", || {
        pair.refused_connects((SERVER4, 81).into(), 1);
        tool.lines()
            .iter()
            .any(|line| line.contains(r#""dport":81"#))
            .then_some(())
    });
    let output = tool.stop();
    check_packets(&output);
    let summary = output.summary();
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert!(
        number("evicted") > 0 && number("untracked") > 0 && number("segments") > 20_000,
        "{summary}"
    );
    let evicted = output
        .events("flow")
        .iter()
        .filter(|line| line["end"] == "evicted")
        .count();
    assert_eq!(number("evicted"), evicted as u64);
}

#[test]
fn a_flood_of_syns_evicts_no_established_connection() {
    let pair = need!(Pair::new());
    let args = ["flows", "vs", "--json", "--max-flows", "1000"];
    let tool = Tool::start_in(&pair.server, &args);
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let mut streams = (0..50)
        .map(|_| {
            let stream = pair.client.enter(|| TcpStream::connect(addr).unwrap());
            (stream, listener.accept().unwrap().0)
        })
        .collect::<Vec<_>>();
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    // The connections are idle for much longer than the SYNs of the flood.
    for round in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        syn_flood(&socket, round * 5000..(round + 1) * 5000);
    }
    let ports = streams
        .iter_mut()
        .map(|(stream, accepted)| {
            stream.write_all(b"still there").unwrap();
            accepted.read_exact(&mut [0; 11]).unwrap();
            stream.local_addr().unwrap().port()
        })
        .collect::<Vec<_>>();
    let output = tool.stop();
    check_packets(&output);
    assert!(output.summary()["evicted"].as_u64().unwrap() > 0);
    let flows = output.events("flow");
    for port in ports {
        let of_port = flows
            .iter()
            .filter(|line| line["sport"] == port && line["dport"] == addr.port())
            .collect::<Vec<_>>();
        assert_eq!(of_port.len(), 1, "{of_port:#?}");
        assert_fields(
            of_port[0],
            &[
                ("conn_state", json!("S1")),
                ("partial", json!(false)),
                ("orig_bytes", json!(11)),
                ("end", json!("open")),
            ],
        );
    }
}

/// SYNs from this many ends at once, and then segments of one connection.
fn burst_and_segments(count: u32, segments: u32, micros_between: u64) -> Vec<u8> {
    let mut syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 9);
    let burst = (0..count).map(move |i| {
        syn[26..30].copy_from_slice(&(0x0a4e_0000 + i).to_be_bytes());
        (1, syn.clone())
    });
    let rest = (0..segments).map(|i| {
        let said = say(true, PSH | ACK, 101 + i, 501, 1);
        (micros_between, frame_of(9, &said))
    });
    write_frames(burst.chain(rest))
}

#[test]
fn a_small_table_makes_room_in_time_for_all_packets_of_a_file() {
    for max_flows in ["64", "1024"] {
        let file = burst_and_segments(6000, 10, 1);
        let output = replay_bytes(&file, &["--max-flows", max_flows]);
        let summary = check_packets(&output);
        assert_eq!(summary["untracked"], 0, "{summary}");
        assert_eq!(summary["matched"], 6001, "{summary}");
    }
}

#[test]
fn after_a_burst_of_connections_a_long_file_is_read_as_fast_as_a_short_one() {
    let count = if is_guest() { 10_000 } else { 50_000 };
    let time = |micros_between| {
        let file = burst_and_segments(count, 20_000, micros_between);
        let started = std::time::Instant::now();
        // No lines of flows, which take most of the time.
        let output = replay_bytes(&file, &["--by", "dport", "--interval", "2h"]);
        let summary = output.summary();
        assert_eq!(summary["segments"], count + 20_000, "{summary}");
        started.elapsed()
    };
    let short = time(10);
    let long = time(100_000);
    assert!(long < short * 5, "{long:?} against {short:?}");
}
