//! How much more a program costs per packet than an empty one, by BPF_PROG_TEST_RUN.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Barrier};

use anyhow::{Context, Result};
use libbpf_rs::ProgramMut;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use tcpinspect::attach::xdp::{self, XdpMode};
use tcpinspect::host::interfaces::resolve;
use tcpinspect::skel::flows::{FlowsSkelBuilder, OpenFlowsSkel};
use tcpinspect::skel::port_monitor::PortMonitorSkelBuilder;
use tcpinspect::skel::syn_count::SynCountSkelBuilder;
use tcpinspect::skel::{CountByKey, FilterPart};

use crate::Effort;
use crate::chart::Bar;
use crate::common::bpf::leave_out;
use crate::plain::{self, find, test_run};
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{World, pin};

/// Runs of a program in one measurement.
pub const REPEAT: u32 = 500_000;

/// The positions of the IPv4 SYN in [`frames`], and of the one with a tag.
const SYN: usize = 3;
const TAGGED: usize = 4;

/// The tables of syn-count that only `--by` has.
const TABLES: [&str; 2] = ["count_sets", "source_sketches"];

pub fn run(effort: Effort) -> Result<bool> {
    let plain = plain::load()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = SynCountSkelBuilder::default().open(&mut storage)?;
    leave_out(open.open_object_mut(), &TABLES);
    let ours = open.load()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = SynCountSkelBuilder::default().open(&mut storage)?;
    leave_out(open.open_object_mut(), &[]);
    let rodata = open.maps.rodata_data.as_deref_mut();
    rodata.context("the skeleton has no .rodata")?.count_by = CountByKey::COUNT_BY_SADDR;
    let by_source = open.load()?;

    let shipped = &ours.progs.syn_count_all_xdp_frags;
    let empty = find(&plain, "empty_xdp")?;
    let programs = [
        ("plain", &find(&plain, "plain_xdp")?),
        ("syn-count", shipped),
        (
            "syn-count --by saddr, one source",
            &by_source.progs.syn_count_xdp_frags,
        ),
    ];
    let one = one_core(
        effort,
        "XDP, one core: ns per packet over an empty program",
        &empty,
        &programs,
    )?;
    let mut kept = true;
    for (name, at) in [("SYN", SYN), ("SYN with a tag", TAGGED)] {
        kept &= bound(
            &format!("{name} on one core, syn-count over an empty program, ns / ns"),
            one[at].ratio(1),
            1.0,
            true,
        );
    }
    kept &= two_cores(effort, [&empty, programs[0].1, shipped], &one[SYN])?;
    kept &= tc(
        effort,
        &find(&plain, "empty_tc")?,
        &find(&plain, "plain_tc")?,
    )?;
    Ok(kept)
}

fn tc(effort: Effort, empty: &ProgramMut<'_>, plain: &ProgramMut<'_>) -> Result<bool> {
    let mut storage = MaybeUninit::uninit();
    let mut open = PortMonitorSkelBuilder::default().open(&mut storage)?;
    leave_out(open.open_object_mut(), &[]);
    let rodata = open.maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the skeleton has no .rodata")?;
    // A filter for SYNs to a port that no frame has: the cost of a packet that does not match.
    rodata.filter.parts.0 = FilterPart::FILTER_DPORT.0 | FilterPart::FILTER_FLAGS.0;
    rodata.filter.flags_mask = 0x12;
    rodata.filter.flags_value = 0x02;
    let monitor = open.load()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = FlowsSkelBuilder::default().open(&mut storage)?;
    leave_out(open.open_object_mut(), &[]);
    set_flows(&mut open)?;
    let flows = open.load()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = SynCountSkelBuilder::default().open(&mut storage)?;
    leave_out(open.open_object_mut(), &TABLES);
    let count = open.load()?;
    let costs = one_core(
        effort,
        "TC, one core: ns per packet over an empty program",
        empty,
        &[
            ("plain, without a reader", plain),
            ("syn-count --mode tc", &count.progs.syn_count_all_tc),
            (
                "port-monitor, another port",
                &monitor.progs.port_monitor_ingress,
            ),
            ("flows, one flow", &flows.progs.flows_packet),
        ],
    )?;
    Ok(bound(
        "SYN at TC, port-monitor of another port over an empty program, ns / ns",
        costs[SYN].ratio(2),
        1.5,
        true,
    ))
}

/// Sets the default settings of flows.
pub fn set_flows(open: &mut OpenFlowsSkel<'_>) -> Result<()> {
    let rodata = open.maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the skeleton has no .rodata")?;
    rodata.max_flows = 65_536;
    rodata.idle_ns = 300_000_000_000;
    rodata.half_open_ns = rodata.idle_ns;
    rodata.linger_ns = 1_000_000_000;
    Ok(())
}

/// What a frame costs on one core.
struct Costs {
    /// How much more each program costs than the empty one.
    over: Vec<Stat>,
    /// The least cost of the empty program and of the harness.
    least_empty: f64,
    /// The least cost of each program, harness included.
    least: Vec<f64>,
}

impl Costs {
    /// How much more a program costs, as a multiple of the empty program. It is computed from the
    /// least costs, so that other load on this machine affects it little.
    fn ratio(&self, program: usize) -> f64 {
        self.least[program] / self.least_empty - 1.0
    }
}

/// Measures how much more programs cost than the empty one. They run in turn, so that a disturbance
/// affects all of them.
fn one_core(
    effort: Effort,
    title: &str,
    empty: &ProgramMut<'_>,
    programs: &[(&str, &ProgramMut<'_>)],
) -> Result<Vec<Costs>> {
    let all: Vec<_> = std::iter::once(empty)
        .chain(programs.iter().map(|(_, program)| *program))
        .collect();
    let mut rows = Vec::new();
    let mut all_costs = Vec::new();
    for (name, frame) in frames() {
        let rounds = (0..effort.rounds)
            .map(|_| round(&all, &frame))
            .collect::<Result<Vec<_>>>()?;
        let of = |program: usize| rounds.iter().map(move |round| round[program]);
        let over = (1..all.len()).map(|program| {
            let differences = of(program).zip(of(0)).map(|(cost, empty)| cost - empty);
            Stat::of(differences.collect())
        });
        let costs = Costs {
            over: over.collect(),
            least_empty: least(of(0)),
            least: (1..all.len()).map(|program| least(of(program))).collect(),
        };
        let mut row = vec![name.to_owned()];
        row.extend(costs.over.iter().map(Stat::to_string));
        rows.push(row);
        all_costs.push(costs);
    }
    let mut head = vec!["frame"];
    head.extend(programs.iter().map(|(name, _)| *name));
    table(title, &head, &rows);
    Ok(all_costs)
}

/// The cost of each program: the least of several short runs, because what disturbs a run, such as
/// a pause of a virtual CPU, only adds to its time.
fn round(programs: &[&ProgramMut<'_>], frame: &[u8]) -> Result<Vec<f64>> {
    const PARTS: u32 = 10;
    let mut least = vec![f64::INFINITY; programs.len()];
    for _ in 0..PARTS {
        for (program, least) in programs.iter().zip(&mut least) {
            let cost = run_for(program.as_fd().as_raw_fd(), frame, REPEAT / PARTS)?;
            *least = least.min(cost);
        }
    }
    Ok(least)
}

fn least(costs: impl Iterator<Item = f64>) -> f64 {
    costs.fold(f64::INFINITY, f64::min)
}

/// CPU time of this thread for a run, in ns. The figure that the kernel returns has no fractions, and
/// leaves out the wait before XDP runs.
pub fn run_for(fd: i32, frame: &[u8], repeat: u32) -> Result<f64> {
    let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    test_run(fd, frame, repeat, 0)?;
    let after = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok((after - before).num_nanoseconds() as f64 / f64::from(repeat))
}

/// The SYN on two cores at once. Each program is attached while it is measured, or its runs would
/// wait for each other to begin.
fn two_cores(effort: Effort, programs: [&ProgramMut<'_>; 3], one: &Costs) -> Result<bool> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Ok(true);
    }
    let world = World::new()?;
    world.enter();
    let interfaces = resolve(&["r0".to_owned()])?;
    let interface = interfaces.first().context("r0 is missing")?;
    let (_, frame) = frames().swap_remove(SYN);
    let mut costs = [const { Vec::new() }; 3];
    for _ in 0..effort.rounds {
        for (program, costs) in programs.iter().zip(&mut costs) {
            let _link = xdp::attach(program.as_fd(), interface, &[XdpMode::Native])
                .map_err(|failure| failure.error)?;
            let fd = program.as_fd().as_raw_fd();
            let start = Arc::new(Barrier::new(2));
            let threads = [0, 1].map(|cpu| {
                let (frame, start) = (frame.clone(), Arc::clone(&start));
                std::thread::spawn(move || -> Result<f64> {
                    pin(cpu)?;
                    start.wait();
                    run_for(fd, &frame, 4 * REPEAT)
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
    let [empty, plain, ours] = costs;
    let ratio = least(ours.iter().copied()) / least(empty.iter().copied()) - 1.0;
    let over = |costs: &[f64]| {
        let differences = costs.iter().zip(&empty).map(|(cost, empty)| cost - empty);
        Stat::of(differences.collect())
    };
    let (plain, ours) = (over(&plain), over(&ours));
    let rows = [
        ("plain: one shared atomic counter", one.over[0], plain),
        ("syn-count: a slot for each CPU", one.over[1], ours),
    ];
    table(
        "XDP, the IPv4 SYN on two cores at once: ns per packet over an empty program",
        &["program", "one core", "two cores"],
        &rows.map(|(name, one, two)| vec![name.to_owned(), one.to_string(), two.to_string()]),
    );
    target(
        "syn-count's difference over plain's, one core",
        one.over[1].median / one.over[0].median,
        1.3,
        true,
    );
    target(
        "syn-count's difference over plain's, two cores",
        ours.median / plain.median,
        0.4,
        true,
    );
    let chart = rows
        .into_iter()
        .zip([false, true])
        .flat_map(|(row, is_ours)| {
            let (name, one, two) = row;
            [("1 core", one), ("2 cores", two)].map(|(cores, stat)| Bar {
                label: format!("{name}, {cores}"),
                stat,
                is_ours,
            })
        });
    bars(
        "program",
        "XDP, IPv4 SYN: ns per packet over an empty program",
        &chart.collect::<Vec<_>>(),
    );
    Ok(bound(
        "SYN on two cores, syn-count over an empty program, ns / ns",
        ratio,
        1.0,
        true,
    ))
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
