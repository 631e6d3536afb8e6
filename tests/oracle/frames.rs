//! Frames of any link type. Random frames are made from them in `random`.

mod random;

pub use random::{Random, frame_for, frame_for_link};

use super::Link;
pub use crate::common::frames::*;

/// A frame of any link type around an IP packet, whose first byte has the version. Link types
/// that have no room for tags leave them out.
pub fn on_link(link: Link, tags: &[Tag], packet: &[u8]) -> Vec<u8> {
    let ethertype = ethertype_of(packet);
    let family = match ethertype {
        IPV6 => 30_u32,
        _ => 2,
    };
    let header = match link {
        Link::Ethernet => return ethernet(tags, ethertype, packet),
        Link::Raw | Link::Ipv4Only | Link::Ipv6Only => Vec::new(),
        Link::Null => family.to_le_bytes().to_vec(),
        Link::Loop => family.to_be_bytes().to_vec(),
        Link::CookedV1 => {
            // To us, from an Ethernet device (ARPHRD_ETHER) with addresses of 6 bytes.
            let mut header = vec![0, 0, 0, 1, 0, 6];
            header.extend(SRC_MAC);
            header.extend([0, 0]);
            header.extend(tagged(tags, ethertype));
            header
        }
        Link::CookedV2 => {
            // The protocol, two reserved bytes, interface 1; then as above.
            let tags = tagged(tags, ethertype);
            let mut header = tags[..2].to_vec();
            header.extend([0, 0, 0, 0, 0, 1, 0, 1, 0, 6]);
            header.extend(SRC_MAC);
            header.extend([0, 0]);
            header.extend(&tags[2..]);
            header
        }
    };
    [header.as_slice(), packet].concat()
}
