//! The programs of benches/bpf: those that the shipped ones are compared with, and the sender.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, Object, ObjectBuilder, PerfBufferBuilder, ProgramMut};
use tcpinspect::attach::load::set_handler;
use tcpinspect::attach::xdp::{self, XdpMode};
use tcpinspect::attach::{Attached, tc};
use tcpinspect::domain::Direction;
use tcpinspect::host::interfaces::resolve;
use tcpinspect::skel::connect_trace::ConnectTraceSkelBuilder;
use tcpinspect::stop::Stop;

use crate::common::bpf::leave_out;

/// BPF_F_TEST_XDP_LIVE_FRAMES (linux/bpf.h): frames that the program redirects are really sent.
pub const LIVE_FRAMES: u32 = 1 << 1;

/// Compiles and loads the programs.
pub fn load() -> Result<Object> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/bpf/plain.bpf.c");
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plain.bpf.o");
    // Child processes use the object that the first process has compiled.
    if std::env::var_os(ATTACHED).is_none() {
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
    }
    Ok(ObjectBuilder::default().open_file(&object)?.load()?)
}

/// The program with that name.
pub fn find<'obj>(object: &'obj Object, name: &str) -> Result<ProgramMut<'obj>> {
    object
        .progs_mut()
        .find(|program| program.name() == name)
        .with_context(|| format!("there is no program {name}"))
}

/// Runs a program on a frame, by descriptor, because libbpf-rs's program can't be sent to another
/// thread.
pub fn test_run(fd: i32, frame: &[u8], repeat: u32, flags: u32) -> Result<()> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: u32::try_from(frame.len())?,
        repeat: i32::try_from(repeat)?,
        flags,
        ..Default::default()
    };
    // SAFETY: the frame outlives the call, and a descriptor that is closed is an error.
    let ret = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &raw mut opts) };
    if ret != 0 {
        bail!(
            "failed to run the program: {}",
            std::io::Error::from_raw_os_error(-ret)
        );
    }
    Ok(())
}

/// Loads and attaches the programs of connect-trace's tracepoint backend, and does nothing else that the
/// command does.
fn attach_bare() -> Result<Vec<Link>> {
    let storage = Box::leak(Box::new(MaybeUninit::uninit()));
    let mut open = ConnectTraceSkelBuilder::default().open(storage)?;
    let rodata = open.maps.rodata_data.as_deref_mut();
    // Attempts, and whether they are established or fail: bits by enum connect_kind.
    rodata.context("the skeleton has no .rodata")?.wanted_kinds = 0b111;
    let tables = [
        "pids", "uids", "comms", "calls", "stored", "rejected", "perf",
    ];
    leave_out(open.open_object_mut(), &tables);
    let wanted = [
        "handle_state_change",
        "on_state_change",
        "on_skipped_state_change",
    ];
    for mut program in open.open_object_mut().progs_mut() {
        let is_wanted = wanted.iter().any(|name| program.name() == *name);
        program.set_autoload(is_wanted);
    }
    let skel = Box::leak(Box::new(open.load()?));
    let progs = &skel.progs;
    set_handler(&skel.maps.handler, &progs.handle_state_change)?;
    Ok(vec![
        progs.on_state_change.attach()?,
        progs.on_skipped_state_change.attach()?,
    ])
}

/// Empty programs at the hooks of accept-trace: the cost that remains if its programs do nothing.
const ACCEPT_TRACE: [&str; 3] = ["empty_kfree_skb", "empty_set_state", "empty_sys_exit"];

/// The same for loss-trace.
const LOSS_TRACE: [&str; 2] = ["empty_kfree_skb", "empty_consume_skb"];

/// Attaches programs to tracepoints, and to an interface one for each direction.
fn attach_all(
    object: &Object,
    iface: &str,
    [ingress, egress]: [&str; 2],
    tracepoints: &[&str],
) -> Result<(Attached, Vec<Link>)> {
    let interfaces = resolve(&[iface.to_owned()])?;
    let interface = interfaces.first().context("the interface is missing")?;
    let links = tracepoints
        .iter()
        .map(|name| Ok(find(object, name)?.attach_trace()?));
    let links = links.collect::<Result<_>>()?;
    let mut attached = Attached::default();
    for (name, direction) in [(egress, Direction::Egress), (ingress, Direction::Ingress)] {
        let done = attached.tc(&find(object, name)?, interface, direction);
        done.map_err(|failure| failure.error)?;
    }
    Ok((attached, links))
}

/// The environment variable that says what a child of this process has to attach.
pub const ATTACHED: &str = "TCPINSPECT_BENCH_ATTACH";

/// The child's part: attaches the programs that `what` names to tracepoints or interfaces as our commands
/// do, reads their events if there are any, and says how many there were.
pub fn attach(what: &str) -> Result<()> {
    let stop = Stop::new(None)?;
    let wait = || {
        eprintln!("attached: {what}");
        while stop.reason().is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    if what == "bare" {
        let _links = attach_bare()?;
        wait();
        return Ok(());
    }
    let object = load()?;
    let empty = ["empty_tc"; 2];
    let at_hooks = match what.split_once('-') {
        Some(("accept", iface)) => Some((iface, empty, ACCEPT_TRACE.as_slice())),
        Some(("table", iface)) => Some((iface, ["add_tc", "remove_tc"], ACCEPT_TRACE.as_slice())),
        Some(("loss", iface)) => Some((iface, empty, LOSS_TRACE.as_slice())),
        _ => None,
    };
    if let Some((iface, programs, tracepoints)) = at_hooks {
        let _hooks = attach_all(&object, iface, programs, tracepoints)?;
        wait();
        return Ok(());
    }
    let interfaces = match what {
        "states" => Vec::new(),
        _ => resolve(&["r0".to_owned()])?,
    };
    let interface = || interfaces.first().context("r0 is missing");
    let in_xdp = |mode| -> Result<_> {
        let program = find(&object, "empty_xdp")?;
        let attached = xdp::attach(program.as_fd(), interface()?, &[mode]);
        Ok(attached.map_err(|failure| failure.error)?.0)
    };
    let in_tc = |name| -> Result<_> {
        let program = find(&object, name)?;
        let prepared = &mut tc::PreparedLinks::default();
        let attached = tc::attach(&program, interface()?, Direction::Ingress, prepared);
        Ok(attached.map_err(|failure| failure.error)?.0)
    };
    let seen = AtomicU64::new(0);
    let events = object
        .maps()
        .find(|map| map.name() == "events")
        .context("there is no map of events")?;
    let buffer = PerfBufferBuilder::new(&events)
        // 4 MiB on two CPUs, as ours.
        .pages(512)
        .sample_cb(|_, _: &[u8]| {
            seen.fetch_add(1, Ordering::Relaxed);
        })
        .lost_cb(|_, _: u64| ())
        .build()?;
    let (_xdp, _tc, _link);
    match what {
        "states" => _link = find(&object, "plain_set_state")?.attach_trace()?,
        "native" => _xdp = in_xdp(XdpMode::Native)?,
        "generic" => _xdp = in_xdp(XdpMode::Generic)?,
        "tc" => _tc = in_tc("empty_tc")?,
        "events" => _tc = in_tc("plain_tc")?,
        _ => bail!("{what:?} can't be attached"),
    }
    eprintln!("attached: {what}");
    while stop.reason().is_none() {
        match buffer.poll(Duration::from_millis(100)) {
            Ok(()) => {}
            Err(error) if error.kind() == libbpf_rs::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    eprintln!("{} packets captured", seen.load(Ordering::Relaxed));
    Ok(())
}

/// The descriptor of the program that sends SYNs.
pub fn sender(object: &Object) -> Result<i32> {
    Ok(find(object, "send_xdp")?.as_fd().as_raw_fd())
}

/// The descriptor of the program that sends SYNs, each with another sequence number.
pub fn numbering_sender(object: &Object) -> Result<i32> {
    Ok(find(object, "number_xdp")?.as_fd().as_raw_fd())
}
