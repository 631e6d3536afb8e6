//! The numbers in capture files: magic numbers, types of blocks, codes of options, link types.

/// `LINKTYPE_NULL`: an address family in the byte order of the machine that captured.
pub(super) const LINKTYPE_NULL: u16 = 0;
/// `LINKTYPE_ETHERNET`.
pub const LINKTYPE_ETHERNET: u16 = 1;
/// `LINKTYPE_RAW`: frames begin with the IP header.
pub const LINKTYPE_RAW: u16 = 101;
/// `LINKTYPE_LOOP`: an address family in network byte order.
pub(super) const LINKTYPE_LOOP: u16 = 108;
/// `LINKTYPE_LINUX_SLL`: cooked.
pub(super) const LINKTYPE_LINUX_SLL: u16 = 113;
pub(super) const LINKTYPE_IPV4: u16 = 228;
pub(super) const LINKTYPE_IPV6: u16 = 229;
/// `LINKTYPE_LINUX_SLL2`: cooked, version 2.
pub(super) const LINKTYPE_LINUX_SLL2: u16 = 276;

/// The magic number of pcap files with times in microseconds.
pub(super) const PCAP_MICROSECONDS: u32 = 0xa1b2_c3d4;
/// The magic number of pcap files with times in nanoseconds.
pub(super) const PCAP_NANOSECONDS: u32 = 0xa1b2_3c4d;
/// libpcap's `KUZNETZOV_TCPDUMP_MAGIC`, of Linux in the 1990s: eight more bytes in each record's
/// header.
pub(super) const PCAP_KUZNETZOV: u32 = 0xa1b2_cd34;

/// The type of pcapng's Section Header Block, the same in both byte orders.
pub(super) const SECTION: u32 = 0x0a0d_0d0a;
pub(super) const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

pub(super) const INTERFACE: u32 = 1;
/// The Packet Block that the Enhanced one has replaced.
pub(super) const OLD_PACKET: u32 = 2;
pub(super) const SIMPLE_PACKET: u32 = 3;
pub(super) const STATISTICS: u32 = 5;
pub(super) const ENHANCED_PACKET: u32 = 6;
/// A process, as Apple's tcpdump writes it. Wireshark 4.6 shows it in `frame.darwin.process_info`.
pub(super) const PROCESS: u32 = 0x8000_0001;

pub(super) const OPTION_END: u16 = 0;
pub(super) const OPTION_COMMENT: u16 = 1;
pub(super) const SECTION_OS: u16 = 3;
pub(super) const SECTION_APPLICATION: u16 = 4;
pub(super) const INTERFACE_NAME: u16 = 2;
pub(super) const INTERFACE_TIME_RESOLUTION: u16 = 9;
pub(super) const INTERFACE_FILTER: u16 = 11;
pub(super) const INTERFACE_TIME_OFFSET: u16 = 14;
pub(super) const PACKET_FLAGS: u16 = 2;
/// Apple's: the number of a process in the file.
pub(super) const PACKET_PROCESS: u16 = 0x8001;
pub(super) const PROCESS_NAME: u16 = 2;
pub(super) const STATISTICS_START: u16 = 2;
pub(super) const STATISTICS_END: u16 = 3;
pub(super) const STATISTICS_RECEIVED: u16 = 4;
pub(super) const STATISTICS_DROPPED: u16 = 5;
pub(super) const STATISTICS_ACCEPTED: u16 = 6;
pub(super) const STATISTICS_DROPPED_BY_OS: u16 = 7;
pub(super) const STATISTICS_DELIVERED: u16 = 8;
