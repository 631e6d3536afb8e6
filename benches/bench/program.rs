//! What a program costs per packet, by BPF_PROG_TEST_RUN, over one that does nothing.

use std::mem::MaybeUninit;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Object, ObjectBuilder, ProgramInput, ProgramMut};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tcpinspect::skel::port_monitor::PortMonitorSkelBuilder;
use tcpinspect::skel::syn_count::SynCountSkelBuilder;

use crate::Effort;
use crate::report::{Stat, bound, table};

/// Runs of a program in one measurement.
const REPEAT: u32 = 1_000_000;

pub fn run(effort: Effort) -> Result<bool> {
    let plain = plain_programs()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = SynCountSkelBuilder::default().open(&mut storage)?;
    open.maps.counts.set_autocreate(false)?;
    for map in [
        &mut open.maps.src_only,
        &mut open.maps.src_not,
        &mut open.maps.dst_only,
        &mut open.maps.dst_not,
    ] {
        map.set_autocreate(false)?;
    }
    let ours = open.load()?;
    let find = |name: &str| {
        plain
            .progs_mut()
            .find(|program| program.name() == name)
            .with_context(|| format!("there is no program {name}"))
    };
    let (empty, plain_xdp) = (find("empty_xdp")?, find("plain_xdp")?);
    let shipped = &ours.progs.syn_count_xdp_frags;

    let mut rows = Vec::new();
    let mut syn_ratio = 0.0;
    for (name, frame) in frames() {
        let [plain_cost, our_cost] = paired(effort, &empty, [&plain_xdp, shipped], &frame)?;
        if name == "SYN" {
            syn_ratio = our_cost.median / plain_cost.median.max(1.0);
        }
        rows.push(vec![
            name.to_owned(),
            plain_cost.to_string(),
            our_cost.to_string(),
        ]);
    }
    table(
        "XDP program, ns per packet over an empty program, one core",
        &["frame", "plain", "syn-count"],
        &rows,
    );
    let two = two_cores(effort, [&empty, &plain_xdp, shipped])?;
    let over = |at: usize| (two[at].median - two[0].median).max(0.5);
    table(
        "The same SYN on two cores at once, ns per packet",
        &[
            "empty",
            "plain",
            "syn-count",
            "ours over plain's difference",
        ],
        &[vec![
            two[0].to_string(),
            two[1].to_string(),
            two[2].to_string(),
            format!("{:.2}", over(2) / over(1)),
        ]],
    );
    tc(effort, &find("empty_tc")?, &find("plain_tc")?)?;
    let mut kept = bound(
        "SYN on one core, ours over plain's difference",
        syn_ratio,
        3.0,
        true,
    );
    kept &= bound(
        "SYN on two cores, ours over plain's difference",
        over(2) / over(1),
        1.0,
        true,
    );
    Ok(kept)
}

fn tc(effort: Effort, empty: &ProgramMut<'_>, plain: &ProgramMut<'_>) -> Result<()> {
    let mut storage = MaybeUninit::uninit();
    let mut open = PortMonitorSkelBuilder::default().open(&mut storage)?;
    let rodata = open
        .maps
        .rodata_data
        .as_deref_mut()
        .context("no settings")?;
    // A port that no frame has: what a packet costs that does not match.
    rodata.filter.parts.0 = 1 << 6 | 1 << 7;
    rodata.filter.flags_mask = 0x12;
    rodata.filter.flags_value = 0x02;
    for map in [
        &mut open.maps.src_only,
        &mut open.maps.src_not,
        &mut open.maps.dst_only,
        &mut open.maps.dst_not,
    ] {
        map.set_autocreate(false)?;
    }
    let ours = open.load()?;
    let shipped = &ours.progs.port_monitor_ingress;
    let mut rows = Vec::new();
    for (name, frame) in frames() {
        let [plain_cost, our_cost] = paired(effort, empty, [plain, shipped], &frame)?;
        rows.push(vec![
            name.to_owned(),
            plain_cost.to_string(),
            our_cost.to_string(),
        ]);
    }
    table(
        "TC program, ns per packet over an empty program; plain emits an event for the IPv4 SYN, port-monitor looks for another port",
        &["frame", "plain", "port-monitor"],
        &rows,
    );
    Ok(())
}

/// Costs over the empty program, measured in turn so that what disturbs one disturbs all.
fn paired(
    effort: Effort,
    empty: &ProgramMut<'_>,
    programs: [&ProgramMut<'_>; 2],
    frame: &[u8],
) -> Result<[Stat; 2]> {
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..effort.rounds {
        let base = cost(empty, frame)?;
        for (program, costs) in programs.iter().zip(&mut costs) {
            costs.push(cost(program, frame)? - base);
        }
    }
    Ok(costs.map(Stat::of))
}

fn cost(program: &ProgramMut<'_>, frame: &[u8]) -> Result<f64> {
    let output = program.test_run(ProgramInput {
        data_in: Some(frame),
        repeat: REPEAT,
        ..ProgramInput::default()
    })?;
    Ok(output.duration.as_nanos() as f64)
}

/// The SYN on two cores at once; ns per packet on each.
fn two_cores(effort: Effort, programs: [&ProgramMut<'_>; 3]) -> Result<[Stat; 3]> {
    use std::os::fd::{AsFd, AsRawFd};
    let (_, frame) = frames().swap_remove(3);
    let mut costs = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..effort.rounds {
        for (program, costs) in programs.iter().zip(&mut costs) {
            let fd = program.as_fd().as_raw_fd();
            let threads = [0, 1].map(|cpu| {
                let frame = frame.clone();
                std::thread::spawn(move || -> Result<f64> {
                    let mut cpus = CpuSet::new();
                    cpus.set(cpu)?;
                    sched_setaffinity(Pid::from_raw(0), &cpus)?;
                    test_run(fd, &frame)
                })
            });
            let mut sum = 0.0;
            for thread in threads {
                sum += thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a core failed"))??;
            }
            costs.push(sum / 2.0);
        }
    }
    Ok(costs.map(Stat::of))
}

/// A test run by descriptor: libbpf-rs's program can't be sent to another thread.
fn test_run(fd: i32, frame: &[u8]) -> Result<f64> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: u32::try_from(frame.len())?,
        repeat: i32::try_from(REPEAT)?,
        ..Default::default()
    };
    // SAFETY: the descriptor is open while the caller waits, and the frame outlives the call.
    let ret = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &raw mut opts) };
    if ret != 0 {
        bail!(
            "failed to run the program: {}",
            std::io::Error::from_raw_os_error(-ret)
        );
    }
    Ok(f64::from(opts.duration))
}

/// Compiles the plain programs.
fn plain_programs() -> Result<Object> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/bpf/plain.bpf.c");
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plain.bpf.o");
    let status = Command::new("clang")
        .args([
            "-g", "-O2", "-target", "bpf", "-mcpu=v3", "-c", source, "-o",
        ])
        .arg(&object)
        .status()
        .context("failed to run clang")?;
    if !status.success() {
        bail!("failed to compile {source}");
    }
    Ok(ObjectBuilder::default().open_file(&object)?.load()?)
}

/// The frames that are measured, 64 bytes and more each.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let ipv4 = |protocol: u8, flags: u8| {
        let mut frame = crate::world::syn();
        frame[23] = protocol;
        frame[47] = flags;
        frame
    };
    let tagged = {
        let mut frame = crate::world::syn();
        frame.splice(12..12, [0x81, 0, 0, 7]);
        frame
    };
    let ipv6 = |extensions: &[u8], first: u8| {
        let mut frame = crate::world::syn()[..12].to_vec();
        let len = u8::try_from(20 + extensions.len()).unwrap_or(u8::MAX);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, len, first, 64]);
        frame.extend([0x20; 32]);
        frame.extend(extensions);
        frame.extend(&crate::world::syn()[34..54]);
        frame
    };
    let extensions = [
        60, 0, 0, 0, 0, 0, 0, 0, 43, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut arp = crate::world::syn();
    arp[13] = 6;
    vec![
        ("non-IP", arp),
        ("UDP", ipv4(17, 2)),
        ("ACK", ipv4(6, 0x10)),
        ("SYN", ipv4(6, 2)),
        ("SYN, VLAN", tagged),
        ("SYN, IPv6", ipv6(&[], 6)),
        ("SYN, IPv6 with 3 extension headers", ipv6(&extensions, 0)),
    ]
}
