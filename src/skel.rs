//! The compiled programs: the skeletons that build.rs generates, one for each `src/bpf/*.bpf.c`, and
//! their types by plain names.

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
    include!(concat!(env!("OUT_DIR"), "/skeletons.rs"));
}

use std::io::Read;

use anyhow::{Context, Result};
use flate2::read::DeflateDecoder;
use libbpf_rs::skel::{OpenSkel, Skel};
use libbpf_rs::{MapMut, OpenMapMut};

use crate::domain::counters::PacketCounters;
pub use generated::*;

/// Decompresses the object of a skeleton, which build.rs has compressed. If that fails, the result
/// is incomplete, and libbpf rejects it.
fn inflate(deflated: &[u8], size: usize) -> Vec<u8> {
    let mut object = Vec::with_capacity(size);
    let _ = DeflateDecoder::new(deflated).read_to_end(&mut object);
    object
}

/// `struct filter_config`, the same in every program.
pub type FilterConfig = syn_count::types::filter_config;
/// The ports of a filter, one bit each.
pub type PortBits = syn_count::types::bss_ports;
/// `struct packet_counters`: the counters of one slot.
pub type CounterSlot = syn_count::types::packet_counters;
/// A frame of a file, as packet programs find it in a replay.
pub type ReplayedFrames = syn_count::types::bss_replay;
/// `struct packet_event`, which the bytes of the payload follow.
pub type PacketEvent = port_monitor::types::packet_event;
/// `struct frame_event`, which the bytes of the frame follow.
pub type FrameEvent = port_monitor::types::frame_event;
/// `struct loss_event`.
pub type LossEvent = loss_trace::types::loss_event;
/// `struct loss_packet`.
pub type LossPacket = loss_trace::types::loss_packet;
/// `struct loss_counters`, summed over all CPUs.
pub type LossCounters = loss_trace::types::loss_counters;
/// `enum loss_by`.
pub use generated::loss_trace::types::loss_by as LossBy;
/// `enum loss_detail`.
pub use generated::loss_trace::types::loss_detail as LossDetail;
/// `enum loss_key`.
pub use generated::loss_trace::types::loss_key as LossKeyBits;
/// `enum loss_kind`.
pub use generated::loss_trace::types::loss_kind as LossKind;
/// `enum loss_known`.
pub use generated::loss_trace::types::loss_known as LossKnown;
/// `struct connect_event`.
pub type ConnectEvent = connect_trace::types::connect_event;
/// `enum connect_histogram`.
pub use generated::connect_trace::types::connect_histogram as ConnectHistogramBy;
/// `struct connect_counters`.
pub type ConnectCounters = connect_trace::types::connect_counters;
/// `struct accept_event`.
pub type AcceptEvent = accept_trace::types::accept_event;
/// `struct attempt`.
pub type RawAttempt = accept_trace::types::attempt;
/// `struct attempt_key`.
pub type AttemptKey = accept_trace::types::attempt_key;
/// `struct accept_counters`, summed over all CPUs.
pub type AcceptCounters = accept_trace::types::accept_counters;
/// `struct found_fate`.
pub type FoundFate = accept_trace::types::found_fate;
/// `struct accept_count_key`.
pub type AcceptCountKey = accept_trace::types::accept_count_key;
/// `struct histogram`.
pub type RawHistogram = accept_trace::types::histogram;
/// `struct histogram_key`.
pub type RawHistogramKey = accept_trace::types::histogram_key;
/// `enum accept_by`.
pub use generated::accept_trace::types::accept_by as AcceptByKey;
/// `struct export_key`: events that are counted together.
pub type ExportKey = accept_trace::types::export_key;
/// `struct export_histogram`.
pub type ExportHistogram = accept_trace::types::export_histogram;
/// `enum accept_fate`.
pub use generated::accept_trace::types::accept_fate as AcceptFate;
/// `enum accept_flag`.
pub use generated::accept_trace::types::accept_flag as AcceptFlag;
/// `enum accept_output`.
pub use generated::accept_trace::types::accept_output as AcceptOutput;
/// `enum accept_phase`.
pub use generated::accept_trace::types::accept_phase as AcceptPhase;
/// `enum accept_reason`.
pub use generated::accept_trace::types::accept_reason as AcceptReason;
/// `enum export_kind`.
pub use generated::accept_trace::types::export_kind as ExportKind;
/// `enum export_time_of`.
pub use generated::accept_trace::types::export_time_of as ExportTimeOf;
/// `enum connect_export`.
pub use generated::connect_trace::types::connect_export as ConnectExport;
/// `struct flow_record`.
pub type FlowRecord = flows::types::flow_record;
/// `struct name_chunk`, which the bytes that it describes follow.
pub type NameChunk = flows::types::name_chunk;
/// `struct flow_end`.
pub type FlowEnd = flows::types::flow_end;
/// `struct socket_holder`.
pub type SocketHolder = socket_owner::types::socket_holder;
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
/// `struct flow_numbers`.
pub type FlowNumbers = flows::types::flow_numbers;
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
/// `struct count_set`.
pub type CountSet = syn_count::types::count_set;
/// `struct source_sketch`.
pub type SourceSketch = syn_count::types::source_sketch;
/// `struct comm_key`.
pub type CommKey = connect_trace::types::comm_key;
/// `struct prefix_key`.
pub type PrefixKey = syn_count::types::prefix_key;

/// The length of an array in a C struct.
const fn len<S, T, const LEN: usize>(_array: fn(&S) -> &[T; LEN]) -> usize {
    LEN
}

/// How many of the first bytes that an initiator sends are copied, with --names.
pub const NAME_BYTES: usize = len(|it: &flows::types::name_event| &it.bytes);

/// Bytes of replayed frames that the programs can read in one test run. Padding follows them.
pub const REPLAY_BYTES: usize = 128 * 1024;
const _: () = assert!(len(|it: &ReplayedFrames| &it.replay_bytes) == REPLAY_BYTES + 64);

/// Frames in one test run.
pub const REPLAY_FRAMES: usize = len(|it: &ReplayedFrames| &it.replay_frames);

/// Ranks of flows in a [`Sweep`]: one for each age class of each `enum flow_worth`.
pub const FLOW_RANKS: usize = len(|it: &Sweep| &it.ranks);

/// Buckets of a [`RawHistogram`].
pub const HISTOGRAM_BUCKETS: usize = len(|it: &RawHistogram| &it.buckets);

/// Buckets of an [`ExportHistogram`].
pub const EXPORT_BUCKETS: usize = len(|it: &ExportHistogram| &it.buckets);

/// The longest pattern of a payload that the programs compare, in bytes.
pub const PAYLOAD_PATTERN_MAX: usize = len(|it: &FilterConfig| &it.payload_bytes);

/// The most bytes of a payload that an event of port-monitor has.
pub const PAYLOAD_CAPTURE_MAX: u32 = port_monitor::types::packet_limit::PAYLOAD_CAPTURE_MAX.0;

/// The most slots of counters.
pub const COUNTER_SLOTS: usize = len(|it: &syn_count::types::bss_counters| &it.counters);

/// Types whose values are read and written as bytes, and their sizes. The C side asserts those of
/// events and records too: a difference would shift every field after it.
macro_rules! plain_types {
    ($($name:ident: $size:expr;)*) => {$(
        // SAFETY: repr(C), made of integers and arrays of integers without hidden padding (the size,
        // asserted here, is that of the fields), so every pattern of bytes is a value of the type.
        unsafe impl plain::Plain for $name {}
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

plain_types! {
    PacketEvent: 152;
    FrameEvent: 48;
    ConnectEvent: 168;
    AcceptEvent: 200;
    RawAttempt: 128;
    AttemptKey: 24;
    AcceptCountKey: 32;
    RawHistogram: 8 * 33;
    RawHistogramKey: 16;
    FlowRecord: 440;
    NameChunk: 64;
    SocketHolder: 48;
    LossEvent: 168;
    ExportKey: 16;
    ExportHistogram: 8 + 8 * EXPORT_BUCKETS;
    CountKey: 20;
    CommKey: 16;
    PrefixKey: 24;
}

// The sizes of types that are not handled as bytes.
const _: () = assert!(size_of::<FlowEnd>() == 80);
const _: () = assert!(size_of::<CountSet>() == 320);
const _: () = assert!(size_of::<SourceSketch>() == 4096);
const _: () = assert!(size_of::<expr::ExprNode>() == 40);
const _: () = assert!(size_of::<expr::expression>() == 8 + 40 * expr::EXPR_NODES);

/// Asserts that a skeleton's types have the layout of those of the first one: both are made from the
/// same C.
macro_rules! same_types {
    ($module:ident: $($name:ident { $($field:ident),* })*) => {$(
        // SAFETY: repr(C), made of integers and arrays of integers, so every pattern of bytes is a
        // value. Hidden padding, if there is any, is neither read nor written.
        unsafe impl plain::Plain for $module::types::$name {}
        const _: () = assert!(
            size_of::<$module::types::$name>() == size_of::<syn_count::types::$name>()
            $(&& std::mem::offset_of!($module::types::$name, $field)
                == std::mem::offset_of!(syn_count::types::$name, $field))*
        );
    )*};
}

/// Asserts that the counters of each slot or CPU are on cache lines of their own.
macro_rules! own_lines {
    ($($module:ident: $section:ident.$slots:ident of $slot:ident;)*) => {$(
        const _: () = assert!(
            std::mem::offset_of!($module::types::$section, $slots) % CACHE_LINE == 0
                && size_of::<$module::types::$slot>() % CACHE_LINE == 0
        );
    )*};
}

const CACHE_LINE: usize = 64;

own_lines! {
    syn_count: bss_counters.counters of packet_counters;
    port_monitor: bss_counters.counters of packet_counters;
    flows: bss_counters.counters of packet_counters;
    accept_trace: bss_accept.accept_counters of accept_counters;
    accept_trace: bss_cpus.accept_cpus of accept_cpu;
    loss_trace: bss_loss.loss_counters of loss_counters;
    accept_trace: bss_calls.frees of call_notes;
    accept_trace: bss_calls.state_changes of call_notes;
    connect_trace: bss_calls.state_changes of call_notes;
    flow_sockets: bss_calls.state_changes of call_notes;
}

// The fields that each packet of a flow needs are on four cache lines, with the eight bytes before
// the record.
const _: () = assert!(8 + std::mem::offset_of!(FlowRecord, start_ns) == 4 * CACHE_LINE);

/// The most bytes of a dropped packet that loss-trace copies.
pub const LOSS_BYTES: u32 = len(|it: &LossPacket| &it.bytes) as u32;
const _: () = assert!(size_of::<LossPacket>() == 176 + LOSS_BYTES as usize);

impl CountSet {
    /// Keys in a set.
    pub const WAYS: usize = len(|it: &Self| &it.keys);
}

/// Sets a variable of running programs.
fn store<T: Copy>(variable: &mut T, value: T) {
    // SAFETY: an exclusive reference into the mapping. The kernel reads it as a whole word, or only
    // while a program runs that this process starts, which is not now. Volatile, because the
    // compiler can't know that the kernel reads it at all.
    unsafe { std::ptr::write_volatile(variable, value) }
}

/// Reads a variable of running programs.
fn load<T: Copy>(variable: &T) -> T {
    // SAFETY: a valid, aligned reference into the mapping. The kernel may write to it meanwhile, in
    // whole words, hence the volatile read.
    unsafe { std::ptr::read_volatile(variable) }
}

/// Stops programs from counting and sending events.
pub fn stop(stopped: &mut u32) {
    store(stopped, 1)
}

/// Makes programs write to this one of the two tables of keys.
pub fn open_table(open_table: &mut u32, table: u32) {
    store(open_table, table)
}

/// The bytes of a key, as map operations take them.
pub fn key_bytes<T: plain::Plain>(key: &T) -> &[u8] {
    // SAFETY: Plain types have no padding here (asserted above), so every byte is initialized.
    unsafe { plain::as_bytes(key) }
}

/// A value of a C struct as another skeleton's type of the same struct; `None` if their sizes
/// differ. Both come from one header, and what a section holds is asserted below.
fn same<T: plain::Plain, U: plain::Plain>(value: &mut T) -> Option<&mut U> {
    // SAFETY: both are Plain, and from_mut_bytes checks size and alignment.
    let bytes = unsafe { plain::as_mut_bytes(value) };
    plain::from_mut_bytes(bytes).ok()
}

/// Filter expressions, as the programs take them.
pub mod expr {
    use super::len;
    pub use super::syn_count::types::{
        bss_expr as PortSets, expr_base as LoadBase, expr_kind as ExprKind, expr_node as ExprNode,
        expr_operation as Arithmetic, expr_result as ExprResult, expr_vlan as ExprVlan,
        expr_wants as ExprWants, expr_word as ExprWord, expression,
    };

    /// The most nodes of an expression.
    pub const EXPR_NODES: usize = len(|it: &expression| &it.nodes);
    /// The most sets of ports.
    pub const EXPR_PORT_SETS: usize = len(|it: &PortSets| &it.expr_port_sets);
    /// Words of a set of ports, with one bit for each.
    pub const EXPR_PORT_WORDS: usize = len(|it: &PortSets| &it.expr_port_sets[0]);
    /// The most sets of addresses.
    pub const EXPR_ADDRESS_SETS: usize = len(|it: &PortSets| &it.expr_address_sets);
    /// Slots of a set of addresses, a power of two.
    pub const EXPR_SLOTS: usize = len(|it: &PortSets| &it.expr_address_sets[0]);

    /// Where an expression is written to.
    pub struct ExprSettings<'a> {
        /// Its nodes, in `.rodata`.
        pub expression: &'a mut expression,
        /// Its sets of ports.
        pub sets: &'a mut PortSets,
    }
}

/// Reads what connect-trace has counted.
pub fn connect_counters(bss: &connect_trace::types::bss) -> ConnectCounters {
    load(&bss.totals)
}

/// Programs that filter by address and port, opened but not yet loaded.
pub trait OpenFilteredSkel<'obj>: OpenSkel<'obj> {
    /// The filter's settings; `None` if libbpf has not found them.
    fn filter_settings(&mut self) -> Option<FilterSettings<'_>>;

    /// Where the expression of a filter is written to; `None` for programs that take none.
    fn expr_settings(&mut self) -> Option<expr::ExprSettings<'_>> {
        None
    }
}

/// Where a filter is written to, besides its maps.
pub struct FilterSettings<'a> {
    /// Settings in `.rodata`.
    pub config: &'a mut FilterConfig,
    /// One bit for each port.
    pub ports: &'a mut PortBits,
}

/// Programs of a packet command, opened but not yet loaded.
pub trait OpenPacketSkel<'obj>: OpenFilteredSkel<'obj, Output: PacketSkel<'obj>> {
    /// The settings that all packet programs have; `None` if libbpf has not found them.
    fn link_settings(&mut self) -> Option<LinkSettings<'_, 'obj>>;

    /// The settings and maps of programs that send events; `None` for those that only count.
    fn event_settings(&mut self) -> Option<EventSettings<'_, 'obj>>;
}

/// Settings on where frames come from.
pub struct LinkSettings<'a, 'obj> {
    /// Frames begin with the IP header.
    pub is_raw_ip: &'a mut bool,
    /// Frames come from a file.
    pub replay: &'a mut bool,
    /// A test run takes many frames.
    pub replay_batch: &'a mut bool,
    /// Runs of programs can be preempted by other runs on the same CPU.
    pub preemptible: &'a mut bool,
    /// The slots that are not taken.
    pub idle_slots: &'a mut OpenMapMut<'obj>,
    /// Scratch space.
    pub expr_words: &'a mut OpenMapMut<'obj>,
}

/// Settings on how events are sent.
pub struct EventSettings<'a, 'obj> {
    /// The position of the interface among those that are watched.
    pub interface: &'a mut u32,
    /// Events go to `perf`.
    pub use_perf_buffer: &'a mut bool,
    /// The ring buffer.
    pub ring: &'a mut OpenMapMut<'obj>,
    /// The perf event array.
    pub perf: &'a mut OpenMapMut<'obj>,
}

/// Programs of a packet command that are loaded.
pub trait PacketSkel<'obj>: Skel<'obj> {
    /// The counters of each slot; `None` if libbpf has not found them.
    fn counter_slots(&self) -> Option<&[CounterSlot]>;

    /// The map of the slots that are not taken. It is created only where runs take slots.
    fn idle_slots(&self) -> &MapMut<'obj>;

    /// The variable that stops the programs from counting.
    fn stopped(&mut self) -> Option<&mut u32>;

    /// Where the programs find the frames of a test run.
    fn replayed_frames(&mut self) -> Option<&mut ReplayedFrames>;

    /// The ring buffer and the perf event array, one of which exists; `None` for programs that only
    /// count.
    fn event_maps(&self) -> Option<(&MapMut<'obj>, &MapMut<'obj>)>;

    /// Sums the counters of all slots, which are there once programs are loaded.
    fn counters(&self, slots: usize) -> PacketCounters {
        let mut sum = PacketCounters::default();
        for slot in self.counter_slots().unwrap_or_default().iter().take(slots) {
            sum.add(&load(slot).into());
        }
        sum
    }
}

/// Puts a frame among those of the next test run: as frame `number`, with its bytes at `at`. Bytes
/// beyond [`REPLAY_BYTES`] are left out, and the programs can't read them.
///
/// # Errors
/// The frame is too long, or its number too high.
pub fn put_frame(
    frames: &mut ReplayedFrames,
    (number, at): (usize, usize),
    bytes: &[u8],
    wire_len: u32,
    ts_ns: u64,
) -> Result<()> {
    const NO_ROOM: &str = "a frame does not fit the test run";
    let end = REPLAY_BYTES.min(at + bytes.len());
    let to = frames.replay_bytes.get_mut(at..end).context(NO_ROOM)?;
    to.copy_from_slice(&bytes[..end - at]);
    let entry = frames.replay_frames.get_mut(number).context(NO_ROOM)?;
    entry.ts_ns = ts_ns;
    entry.at = u32::try_from(at)?;
    entry.len = u32::try_from(bytes.len()).context("the frame is too long")?;
    entry.wire_len = wire_len;
    Ok(())
}

/// Makes the programs begin with the first frame of the next test run.
pub fn rewind(frames: &mut ReplayedFrames) {
    store(&mut frames.replay_next, 0)
}

/// How many frames of the test run the programs have taken.
pub fn frames_taken(frames: &ReplayedFrames) -> usize {
    load(&frames.replay_next) as usize
}

/// The counters of a skeleton as [`CounterSlot`]s.
fn slots<T: plain::Plain>(slots: &[T]) -> Option<&[CounterSlot]> {
    // SAFETY: both are Plain, and slice_from_bytes checks size and alignment.
    let bytes = unsafe { plain::as_bytes(slots) };
    plain::slice_from_bytes(bytes).ok()
}

/// Implements [`OpenFilteredSkel`] for a skeleton, and checks that its types are those of the others.
macro_rules! filtered_skel {
    (@types $module:ident) => {
        same_types! {
            $module:
                filter_config {}
                bss_ports { sport_bits, dport_bits, any_port_bits, any_port_not_bits }
        }
    };
    (@types $module:ident expressions) => {
        filtered_skel!(@types $module);
        same_types! { $module: expression {} bss_expr { expr_port_sets, expr_address_sets } }
    };
    (@expressions) => {
        fn expr_settings(&mut self) -> Option<expr::ExprSettings<'_>> {
            Some(expr::ExprSettings {
                expression: same(&mut self.maps.rodata_data.as_deref_mut()?.expression)?,
                sets: same(self.maps.bss_expr_data.as_deref_mut()?)?,
            })
        }
    };
    ($module:ident: $open:ident $(, $expressions:ident)?) => {
        filtered_skel!(@types $module $($expressions)?);

        impl<'obj> OpenFilteredSkel<'obj> for $module::$open<'obj> {
            fn filter_settings(&mut self) -> Option<FilterSettings<'_>> {
                Some(FilterSettings {
                    config: same(&mut self.maps.rodata_data.as_deref_mut()?.filter)?,
                    ports: same(self.maps.bss_ports_data.as_deref_mut()?)?,
                })
            }

            $(filtered_skel!(@$expressions);)?
        }
    };
}

/// Implements [`OpenPacketSkel`] and [`PacketSkel`] for the skeleton of a packet command, whose
/// programs send events or only count.
macro_rules! packet_skel {
    ($module:ident: $open:ident, $loaded:ident, $kind:ident) => {
        same_types! {
            $module:
                packet_counters {}
                bss_replay { replay_frames, replay_next, replay_bytes }
                replay_frame {}
        }

        filtered_skel!($module: $open, expressions);

        impl<'obj> OpenPacketSkel<'obj> for $module::$open<'obj> {
            fn link_settings(&mut self) -> Option<LinkSettings<'_, 'obj>> {
                let rodata = self.maps.rodata_data.as_deref_mut()?;
                Some(LinkSettings {
                    is_raw_ip: &mut rodata.link_is_raw_ip,
                    replay: &mut rodata.replay,
                    replay_batch: &mut rodata.replay_batch,
                    preemptible: &mut rodata.preemptible,
                    idle_slots: &mut self.maps.idle_slots,
                    expr_words: &mut self.maps.expr_words,
                })
            }

            fn event_settings(&mut self) -> Option<EventSettings<'_, 'obj>> {
                packet_skel!(@$kind settings self)
            }
        }

        impl<'obj> PacketSkel<'obj> for $module::$loaded<'obj> {
            fn counter_slots(&self) -> Option<&[CounterSlot]> {
                slots(&self.maps.bss_counters_data.as_deref()?.counters)
            }

            fn idle_slots(&self) -> &MapMut<'obj> {
                &self.maps.idle_slots
            }

            fn stopped(&mut self) -> Option<&mut u32> {
                Some(&mut self.maps.bss_counters_data.as_deref_mut()?.stopped)
            }

            fn replayed_frames(&mut self) -> Option<&mut ReplayedFrames> {
                same(self.maps.bss_replay_data.as_deref_mut()?)
            }

            fn event_maps(&self) -> Option<(&MapMut<'obj>, &MapMut<'obj>)> {
                packet_skel!(@$kind maps self)
            }
        }
    };
    (@counts $part:ident $skel:ident) => {
        None
    };
    (@sends_events settings $skel:ident) => {{
        let rodata = $skel.maps.rodata_data.as_deref_mut()?;
        Some(EventSettings {
            interface: &mut rodata.interface,
            use_perf_buffer: &mut rodata.use_perf_buffer,
            ring: &mut $skel.maps.ring,
            perf: &mut $skel.maps.perf,
        })
    }};
    (@sends_events maps $skel:ident) => {
        Some((&$skel.maps.ring, &$skel.maps.perf))
    };
}

packet_skel!(syn_count: OpenSynCountSkel, SynCountSkel, counts);
packet_skel!(port_monitor: OpenPortMonitorSkel, PortMonitorSkel, sends_events);
packet_skel!(flows: OpenFlowsSkel, FlowsSkel, sends_events);

/// Values of the running kernel for the programs at the kfree_skb tracepoint. A drop reason that the
/// kernel does not have is 0.
pub struct DropSettings<'a> {
    /// `SKB_CONSUMED`.
    pub consumed: &'a mut u32,
    /// `SKB_DROP_REASON_NOT_SPECIFIED`.
    pub not_specified: &'a mut u32,
    /// `SKB_DROP_REASON_QUEUE_PURGE`.
    pub queue_purge: &'a mut u32,
    /// `SKB_DROP_REASON_PACKET_SOCK_ERROR`.
    pub packet_sock_error: &'a mut u32,
    /// `SKB_DROP_REASON_NO_SOCKET`.
    pub no_socket: &'a mut u32,
    /// `SKB_DROP_REASON_TCP_LISTEN_OVERFLOW`.
    pub listen_overflow: &'a mut u32,
    /// `SKB_DROP_REASON_TCP_OLD_SEQUENCE`.
    pub old_sequence: &'a mut u32,
    /// Where packet_rcv() begins.
    pub packet_rcv_start: &'a mut u64,
    /// Where it ends.
    pub packet_rcv_end: &'a mut u64,
}

/// Implements the conversion of `.rodata` to [`DropSettings`].
macro_rules! drop_settings {
    ($($module:ident),*) => {$(
        impl<'a> From<&'a mut $module::types::rodata> for DropSettings<'a> {
            fn from(rodata: &'a mut $module::types::rodata) -> Self {
                Self {
                    consumed: &mut rodata.reason_consumed,
                    not_specified: &mut rodata.reason_not_specified,
                    queue_purge: &mut rodata.reason_queue_purge,
                    packet_sock_error: &mut rodata.reason_packet_sock_error,
                    no_socket: &mut rodata.reason_no_socket,
                    listen_overflow: &mut rodata.reason_listen_overflow,
                    old_sequence: &mut rodata.reason_old_sequence,
                    packet_rcv_start: &mut rodata.packet_rcv_start,
                    packet_rcv_end: &mut rodata.packet_rcv_end,
                }
            }
        }
    )*};
}

drop_settings!(accept_trace, loss_trace);

/// Tells accept-trace's program the fate of an attempt, which it then reports.
pub fn set_found_fate(bss: &mut accept_trace::types::bss_close, fate: &FoundFate) {
    store(&mut bss.found_fate, *fate)
}

/// Gives accept-trace's program an attempt that had arrived before the run.
pub fn set_accept_seed(bss: &mut accept_trace::types::bss_close, attempt: &RawAttempt) {
    store(&mut bss.accept_seed, *attempt)
}

/// Makes accept-trace's programs count in this one of the two tables.
pub fn open_counts(bss: &mut accept_trace::types::bss_open, table: u32) {
    store(&mut bss.open_counts, table)
}

/// How many fates have found no room in the tables of counts.
pub fn counts_untracked(bss: &accept_trace::types::bss_open) -> u64 {
    load(&bss.counts_untracked)
}

/// How many values have found no room in the table of histograms.
pub fn histogram_untracked(count: &u64) -> u64 {
    load(count)
}

/// Sums what accept-trace's programs have counted.
pub fn accept_counters(bss: &accept_trace::types::bss_accept) -> AcceptCounters {
    let mut sum = AcceptCounters::default();
    for slot in &bss.accept_counters {
        let slot = load(slot);
        sum.untracked += slot.untracked;
        for (to, from) in sum.fates.iter_mut().zip(slot.fates) {
            // A fate that was taken back may have been counted on another CPU.
            *to = to.wrapping_add(from);
        }
        sum.matched += slot.matched;
        sum.lost += slot.lost;
        sum.suppressed += slot.suppressed;
        sum.forgotten += slot.forgotten;
    }
    sum
}

/// Adds what loss-trace's programs have counted.
pub fn add_loss_counters(bss: &loss_trace::types::bss_loss, sum: &mut LossCounters) {
    for slot in &bss.loss_counters {
        let slot = load(slot);
        for (to, from) in sum.kinds.iter_mut().zip(slot.kinds) {
            *to += from;
        }
        sum.lost += slot.lost;
        sum.suppressed += slot.suppressed;
        sum.untracked += slot.untracked;
        sum.in_use += slot.in_use;
    }
}

same_types! { loss_trace: count_key {} count_set {} }
filtered_skel!(loss_trace: OpenLossTraceSkel);
filtered_skel!(flow_sockets: OpenFlowSocketsSkel);
filtered_skel!(accept_trace: OpenAcceptTraceSkel, expressions);
filtered_skel!(connect_trace: OpenConnectTraceSkel);

/// `struct sweep`: what user space asks of the sweep of flows, and its answer.
pub type Sweep = flows::types::sweep;

/// Sets what the sweep is to report, from the first slot on.
pub fn set_sweep(bss: &mut flows::types::bss_sweep, sweep: &Sweep) {
    store(&mut bss.sweep, *sweep)
}

/// Reads what the sweep has left.
pub fn read_sweep(bss: &flows::types::bss_sweep) -> Sweep {
    load(&bss.sweep)
}

/// Sets whether the program that reads sockets adds flows for them.
pub fn set_seeding(bss: &mut flow_sockets::types::bss, seeding: bool) {
    store(&mut bss.seeding, seeding.into())
}

/// Counts of the connections that are older than the programs.
#[derive(Clone, Copy, Debug)]
pub struct Seeded {
    /// Those that were added.
    pub added: u64,
    /// Those for which there was no room.
    pub left_out: u64,
    /// Those that were added, and those that a packet had added before.
    pub found: u64,
}

/// Reads what became of connections that are older than the programs.
pub fn seeded(bss: &flow_sockets::types::bss) -> Seeded {
    Seeded {
        added: load(&bss.seeded),
        left_out: load(&bss.left_out),
        found: load(&bss.older_found),
    }
}
