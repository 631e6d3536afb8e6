//! The compiled programs: the skeletons that build.rs generates, and their types by plain names.

/// Generated code, kept away from this project's lints.
#[allow(
    missing_docs,
    dead_code,
    non_camel_case_types,
    non_snake_case,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
mod generated {
    pub mod syn_count {
        include!(concat!(env!("OUT_DIR"), "/syn_count.skel.rs"));
    }
    pub mod port_monitor {
        include!(concat!(env!("OUT_DIR"), "/port_monitor.skel.rs"));
    }
    pub mod connect_trace {
        include!(concat!(env!("OUT_DIR"), "/connect_trace.skel.rs"));
    }
    pub mod flows {
        include!(concat!(env!("OUT_DIR"), "/flows.skel.rs"));
    }
    pub mod flow_owner {
        include!(concat!(env!("OUT_DIR"), "/flow_owner.skel.rs"));
    }
}

pub use generated::{connect_trace, flow_owner, flows, port_monitor, syn_count};

/// `struct filter_config`, the same in every program: see [`filter_slots`].
pub type FilterConfig = syn_count::types::filter_config;
/// `struct packet_event`, which the bytes of the payload follow.
pub type PacketEvent = port_monitor::types::packet_event;
/// `struct connect_event`.
pub type ConnectEvent = connect_trace::types::connect_event;
/// `struct connect_counters`.
pub type ConnectCounters = connect_trace::types::connect_counters;
/// `struct flow_record`.
pub type FlowRecord = flows::types::flow_record;
/// `struct flow_end`.
pub type FlowEnd = flows::types::flow_end;
/// `enum connect_closed_by`.
pub use generated::connect_trace::types::connect_closed_by as ConnectClosedBy;
/// `enum connect_direction`.
pub use generated::connect_trace::types::connect_direction as ConnectDirection;
/// `enum connect_kind`.
pub use generated::connect_trace::types::connect_kind as ConnectKind;
/// `enum connect_known`.
pub use generated::connect_trace::types::connect_known as ConnectKnown;
/// `enum process_filter`.
pub use generated::connect_trace::types::process_filter as ProcessFilter;
/// `enum end_known`.
pub use generated::flows::types::end_known as EndKnown;
/// `enum end_state`.
pub use generated::flows::types::end_state as EndState;
/// `enum flow_end_reason`.
pub use generated::flows::types::flow_end_reason as FlowEndReason;
/// `enum flow_known`.
pub use generated::flows::types::flow_known as FlowKnown;
/// `enum sweep_limit`.
pub use generated::flows::types::sweep_limit as SweepLimit;
/// `enum sweep_mode`.
pub use generated::flows::types::sweep_mode as SweepMode;
/// `enum count_by`.
pub use generated::syn_count::types::count_by as CountByKey;
/// `enum filter_part`.
pub use generated::syn_count::types::filter_part as FilterPart;
/// `struct count_key`.
pub type CountKey = syn_count::types::count_key;
/// `struct comm_key`.
pub type CommKey = connect_trace::types::comm_key;
/// `struct prefix_key`.
pub type PrefixKey = syn_count::types::prefix_key;

/// Bytes of a replayed frame that the programs can reach.
pub const REPLAY_BYTES: usize = 128 * 1024;

/// Classes of age in a [`Sweep`].
pub const AGE_CLASSES: usize = 128;

/// CPUs that have a counter slot of their own.
pub const COUNTER_SLOTS: usize = 1024;

// What the C side asserts too: a difference would shift every field after it.
const _: () = assert!(size_of::<PacketEvent>() == 152);
const _: () = assert!(size_of::<ConnectEvent>() == 136);
const _: () = assert!(size_of::<FlowEnd>() == 72);
const _: () = assert!(size_of::<FlowRecord>() == 304);
const _: () = assert!(size_of::<CountKey>() == 20);
const _: () = assert!(size_of::<PrefixKey>() == 24);

// SAFETY: these are repr(C), made of integers and arrays of integers without hidden padding
// (asserted above and in C), so every pattern of bytes is a value of the type.
unsafe impl plain::Plain for PacketEvent {}
// SAFETY: as above.
unsafe impl plain::Plain for ConnectEvent {}
// SAFETY: as above.
unsafe impl plain::Plain for FlowRecord {}
// SAFETY: as above.
unsafe impl plain::Plain for CountKey {}
// SAFETY: as above.
unsafe impl plain::Plain for CommKey {}
// SAFETY: as above.
unsafe impl plain::Plain for PrefixKey {}
// SAFETY: as above.
unsafe impl plain::Plain for FilterConfig {}
// SAFETY: as above; the same C struct, generated once more.
unsafe impl plain::Plain for port_monitor::types::filter_config {}
// SAFETY: as above; the same C struct, generated once more.
unsafe impl plain::Plain for connect_trace::types::filter_config {}
// SAFETY: as above; the same C struct, generated once more.
unsafe impl plain::Plain for flows::types::filter_config {}

/// The bytes of a key, as map operations take them.
pub fn key_bytes<T: plain::Plain>(key: &T) -> &[u8] {
    // SAFETY: Plain types have no padding here (asserted above), so every byte is initialised.
    unsafe { plain::as_bytes(key) }
}

/// The filter settings of a program, whichever skeleton its type was generated for.
pub fn filter_config<T: plain::Plain>(config: &mut T) -> Option<&mut FilterConfig> {
    // SAFETY: both are Plain, and from_mut_bytes checks size and alignment.
    let bytes = unsafe { plain::as_mut_bytes(config) };
    plain::from_mut_bytes(bytes).ok()
}

/// What the packet programs have counted, summed over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Frames by verdict, in the order of [`VERDICTS`].
    pub verdicts: [u64; VERDICTS.len()],
    /// Frames that passed the filter.
    pub matched: u64,
    /// Of these, those for which the event buffer had no room.
    pub lost: u64,
    /// Of these, those that `--max-rate` held back.
    pub suppressed: u64,
    /// Of these, those whose key found no room in the table.
    pub untracked: u64,
    /// Packets of flows, GSO packets by their segments.
    pub segments: u64,
}

/// Names of the verdicts in the order of `enum verdict`.
pub const VERDICTS: [&str; 7] = [
    "tcp",
    "not_ip",
    "not_tcp",
    "fragment",
    "truncated",
    "malformed",
    "too_deep",
];

impl PacketCounters {
    /// Adds what another program counted.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.verdicts.iter_mut().zip(other.verdicts) {
            *to += from;
        }
        self.matched += other.matched;
        self.lost += other.lost;
        self.suppressed += other.suppressed;
        self.untracked += other.untracked;
        self.segments += other.segments;
    }

    /// All frames seen.
    pub fn packets(&self) -> u64 {
        self.verdicts.iter().sum()
    }
}

/// Reads the counters of a packet program, which the kernel changes at any time.
macro_rules! read_counters {
    ($name:ident, $module:ident) => {
        /// Sums the slots of all CPUs.
        pub fn $name(bss: &$module::types::bss_counters, cpus: usize) -> PacketCounters {
            let mut sum = PacketCounters::default();
            for slot in bss.counters.iter().take(cpus) {
                // SAFETY: the slot is a valid, aligned reference into the mapping. The kernel
                // writes to it concurrently, in whole words, hence the volatile read.
                let slot = unsafe { std::ptr::read_volatile(slot) };
                sum.add(&PacketCounters {
                    verdicts: slot.verdicts,
                    matched: slot.matched,
                    lost: slot.lost,
                    suppressed: slot.suppressed,
                    untracked: slot.untracked,
                    segments: slot.segments,
                });
            }
            sum
        }
    };
}
read_counters!(syn_count_counters, syn_count);
read_counters!(port_monitor_counters, port_monitor);
read_counters!(flows_counters, flows);

/// Reads what connect-trace has counted.
pub fn connect_counters(bss: &connect_trace::types::bss) -> ConnectCounters {
    // SAFETY: as for the packet counters.
    unsafe { std::ptr::read_volatile(&bss.totals) }
}

/// Makes the [`FilterSlots`](crate::filter::FilterSlots) of an opened skeleton.
#[macro_export]
macro_rules! filter_slots {
    ($open:expr, $rodata:expr) => {{
        let ports = $open.maps.bss_ports_data.as_deref_mut();
        let ports = ports.context("the programs have no room for ports")?;
        $crate::filter::FilterSlots {
            config: $crate::skel::filter_config(&mut $rodata.filter)
                .context("the filter settings have another layout")?,
            sport_bits: &mut ports.sport_bits,
            dport_bits: &mut ports.dport_bits,
            tries: [
                &mut $open.maps.src_only,
                &mut $open.maps.src_not,
                &mut $open.maps.dst_only,
                &mut $open.maps.dst_not,
            ],
        }
    }};
}

/// The tries of a loaded skeleton, in the order that [`Filter::fill`](crate::filter::Filter::fill) takes.
#[macro_export]
macro_rules! filter_tries {
    ($skel:expr) => {
        [
            &$skel.maps.src_only,
            &$skel.maps.src_not,
            &$skel.maps.dst_only,
            &$skel.maps.dst_not,
        ]
    };
}

/// Tells a packet program about the frame that is replayed next.
macro_rules! set_replay {
    ($name:ident, $module:ident $(, $ts:ident)?) => {
        /// Sets the frame's length and, if it is longer than a test run takes, its bytes.
        pub fn $name(bss: &mut $module::types::bss_replay, len: u32, beyond: Option<&[u8]> $(, $ts: u64)?) {
            // SAFETY: exclusive references into the mapping. The kernel reads it only while a
            // test run is on, which is not now; volatile, for the compiler can't know of that.
            unsafe {
                std::ptr::write_volatile(&mut bss.replay_len, len);
                $(std::ptr::write_volatile(&mut bss.replay_ts_ns, $ts);)?
            }
            if let Some(bytes) = beyond {
                let len = bytes.len().min(REPLAY_BYTES);
                bss.replay_bytes[..len].copy_from_slice(&bytes[..len]);
            }
        }
    };
}
set_replay!(set_syn_count_replay, syn_count);
set_replay!(set_port_monitor_replay, port_monitor, ts_ns);
set_replay!(set_flows_replay, flows, ts_ns);

/// `struct sweep`: what user space asks of the sweep of flows, and what it tells.
pub type Sweep = flows::types::sweep;

/// Tells the sweep what to report, from the first slot on.
pub fn set_sweep(bss: &mut flows::types::bss_sweep, sweep: &Sweep) {
    // SAFETY: an exclusive reference into the mapping. The kernel uses it only while a sweep
    // runs, which is not now; volatile, for the compiler can't know of that.
    unsafe { std::ptr::write_volatile(&mut bss.sweep, *sweep) }
}

/// Reads what the sweep has left.
pub fn read_sweep(bss: &flows::types::bss_sweep) -> Sweep {
    // SAFETY: as above.
    unsafe { std::ptr::read_volatile(&bss.sweep) }
}

/// Tells the program that finds owners which look this is.
pub fn set_owner_pass(bss: &mut flow_owner::types::bss, pass: u32) {
    // SAFETY: as above: the program runs only while an iterator is read.
    unsafe { std::ptr::write_volatile(&mut bss.pass, pass) }
}
