//! flows: which flows a filter chooses.

use super::*;
use crate::common::tool::binary;

#[test]
fn filters_are_about_the_initiator_and_choose_whole_connections() {
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let wanted = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let args = [
        "flows",
        "vs",
        "--json",
        "-p",
        &wanted,
        "--src",
        &CLIENT4.to_string(),
    ];
    let tool = Tool::start_in(&pair.server, &args);
    let addr = SocketAddr::from((SERVER4, wanted.parse().unwrap()));
    pair.refused_connects((SERVER4, 81).into(), 3);
    let port = transfer(&pair.client, &pair.server, addr, [1000, 2000]);
    let line = flow_of(&tool, port);
    assert_fields(
        &line,
        &[("orig_bytes", json!(1000)), ("resp_bytes", json!(2000))],
    );
    let output = tool.stop();
    check_packets(&output);
    assert_eq!(output.events("flow").len(), 1, "{output:#?}");
}

/// Connects the client to the server, and calls `meanwhile`, in which a test starts the tool. Then the
/// server sends data over the connection. Returns both ends.
fn pushed(pair: &Pair, meanwhile: impl FnOnce()) -> (SocketAddr, SocketAddr) {
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let mut stream = pair.client.enter(|| TcpStream::connect(addr).unwrap());
    let mut accepted = listener.accept().unwrap().0;
    meanwhile();
    for _ in 0..3 {
        accepted.write_all(b"news").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    let own = stream.local_addr().unwrap();
    drop((stream, accepted));
    (own, addr)
}

#[test]
fn the_end_that_listens_is_the_responder_of_an_older_connection_whatever_the_filter() {
    let pair = need!(Pair::new());
    // Both ports are ephemeral, so they do not show which end is the server.
    for (options, is_shown) in [
        (&[][..], true),
        (&["--src", "10.77.0.1"], true),
        (&["--dst", "10.77.0.2"], true),
        (&["--host", "10.77.0.2"], true),
        (&["--src", "10.77.0.2"], false),
        (&["--dst", "10.77.0.1"], false),
    ] {
        let mut args = vec!["flows", "vs", "--json"];
        args.extend(options);
        let mut tool = None;
        let (own, addr) = pushed(&pair, || tool = Some(Tool::start_in(&pair.server, &args)));
        let tool = tool.unwrap();
        if is_shown {
            let line = flow_of(&tool, own.port());
            assert_fields(
                &line,
                &[
                    ("saddr", json!(own.ip().to_string())),
                    ("dport", json!(addr.port())),
                    ("resp_bytes", json!(12)),
                    ("partial", json!(true)),
                ],
            );
        }
        let output = tool.stop();
        check_packets(&output);
        let flows = output.events("flow");
        assert_eq!(flows.len(), usize::from(is_shown), "{options:?} {flows:#?}");
    }
}

#[test]
fn later_packets_of_a_connection_that_the_filter_rejects_make_no_flow() {
    let pair = need!(Pair::new());
    for options in [
        &["--src", "10.77.0.2"][..],
        &["--flags", "rst"],
        &["--flags", "fin"],
        &["--payload", "0:\"oooo\""],
    ] {
        let mut args = vec!["flows", "vs", "--json"];
        args.extend(options);
        let tool = Tool::start_in(&pair.server, &args);
        transfer(&pair.client, &pair.server, (SERVER4, 0).into(), [1000, 20]);
        pair.refused_connects((SERVER4, 81).into(), 1);
        let output = tool.stop();
        check_packets(&output);
        assert_eq!(output.events("flow"), Vec::<Value>::new(), "{options:?}");
    }
}

#[test]
fn filters_on_processes_choose_by_the_process_that_connected_and_nothing_else_counts() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    let (pid, own) = (std::process::id().to_string(), own_name());
    for (options, is_shown) in [
        (["--pid", &pid], true),
        (["--pid", "1"], false),
        (["--comm", &own], true),
        (["--comm", "nosuch"], false),
        (["--uid", "root"], true),
        (["--uid", "4321"], false),
        (["--container", "nosuch"], false),
    ] {
        let args = ["flows", "vc", "--json", options[0], options[1]];
        let tool = Tool::start_in(&pair.client, &args);
        transfer(&pair.client, &pair.server, (SERVER4, 0).into(), [1000, 20]);
        let output = tool.stop();
        check_packets(&output);
        let count = usize::from(is_shown);
        assert_eq!(output.events("flow").len(), count, "{options:?}");
        assert_eq!(output.summary()["matched"], count, "{options:?}");
    }
}

#[test]
fn a_notice_says_that_containers_cannot_be_found_where_no_cgroups_are_mounted() {
    need!(has_socket_programs());
    let run = |first: &str| {
        let options = "flows lo --container nosuch -d 0.1";
        let script = format!("{first} && exec {} {options}", binary().display());
        let output = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stderr
    };
    let notice = "no cgroup2 is mounted here";
    let mounted = run("grep -q ' cgroup2 ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup");
    assert!(!mounted.contains(notice), "{mounted}");
    // What ip-netns(8) does: a /sys of its own.
    let hidden = run("umount -a -l -t cgroup2");
    assert!(hidden.contains(notice), "{hidden}");
}

#[test]
fn what_a_filter_on_processes_leaves_out_adds_up_over_many_sweeps() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    let args = ["flows", "vc", "--json", "--comm", "nosuch"];
    let tool = Tool::start_in(&pair.client, &args);
    for _ in 0..3 {
        pair.refused_connects((SERVER4, 81).into(), 5);
        // The table is swept each second.
        std::thread::sleep(Duration::from_millis(1500));
    }
    let output = tool.stop();
    let summary = check_packets(&output);
    assert_eq!(summary["matched"], 0, "{summary}");
    assert_eq!(summary["segments"], 0, "{summary}");
}

#[test]
fn totals_are_by_process_user_and_network_too() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    let process = format!("{}/{}", own_name(), std::process::id());
    for (options, key) in [
        (&["process"][..], json!(process)),
        (&["uid"], json!(0)),
        (&["net"], json!("10.77.0.0/24")),
        (&["net", "--prefix", "9"], json!("10.0.0.0/9")),
        (&["container"], Value::Null),
    ] {
        let mut args = vec!["flows", "vc", "--json", "-I", "60", "--by"];
        args.extend(options);
        let tool = Tool::start_in(&pair.client, &args);
        transfer(&pair.client, &pair.server, (SERVER4, 0).into(), [1000, 20]);
        let lines = tool.stop().events("flow_count");
        let top = lines[0]["top"].as_array().unwrap();
        assert_eq!(top.len(), 1, "{options:?} {top:?}");
        assert_eq!(
            (&lines[0]["by"], &top[0]["key"]),
            (&json!(options[0]), &key)
        );
        assert!(top[0]["bytes"].as_u64().unwrap() >= 1020, "{top:?}");
    }
}
