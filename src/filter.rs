//! Filters as the command line states them, and as the programs take them.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use libbpf_rs::{MapCore, MapFlags, MapMut, OpenMapMut};

use crate::skel::{self, FilterConfig, FilterPart, PrefixKey};

/// A list item of `--port` or `--sport`: one port, or a range with both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |part: &str| {
            part.parse::<u16>()
                .map_err(|_| format!("'{part}' is not a port from 0 to 65535"))
        };
        let range = match text.split_once('-') {
            Some((first, last)) => Self {
                first: port(first)?,
                last: port(last)?,
            },
            None => Self {
                first: port(text)?,
                last: port(text)?,
            },
        };
        if range.first > range.last {
            return Err(format!("the range '{text}' ends before it starts"));
        }
        Ok(range)
    }
}

/// A list item of `--src` or `--dst`: a prefix, or with `!` one that is excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRule {
    prefix: IpNet,
    exclude: bool,
}

impl FromStr for AddressRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (exclude, prefix) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let prefix = match prefix.parse::<std::net::IpAddr>() {
            Ok(host) => IpNet::from(host),
            Err(_) => prefix.parse::<IpNet>().map_err(|_| {
                format!(
                    "'{prefix}' is not an address or a prefix such as 10.0.0.0/8 or 2001:db8::/32"
                )
            })?,
        };
        Ok(Self { prefix, exclude })
    }
}

/// `--flags`: which bits of the TCP flags byte matter, and what they must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlagsRule {
    /// The bits that matter.
    pub mask: u8,
    /// What they must be.
    pub value: u8,
}

/// Names of the TCP flags by bit, lowest first (RFC 9293, RFC 3168).
pub const FLAG_NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

impl FlagsRule {
    /// SYN without ACK: a connection attempt.
    pub const SYN: Self = Self {
        mask: 0x12,
        value: 0x02,
    };
}

impl FromStr for FlagsRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::default());
        }
        let mut rule = Self::default();
        for item in text.split(',') {
            let (name, set) = match item.strip_prefix('!') {
                Some(name) => (name, false),
                None => (item, true),
            };
            let position = FLAG_NAMES
                .iter()
                .position(|known| known.eq_ignore_ascii_case(name));
            let Some(position) = position else {
                return Err(format!(
                    "'{name}' is not a TCP flag; known are {} and 'any'",
                    FLAG_NAMES.join(", ")
                ));
            };
            let bit = 1 << position;
            if rule.mask & bit != 0 && (rule.value & bit != 0) != set {
                return Err(format!("'{name}' and '!{name}' can't both be"));
            }
            rule.mask |= bit;
            if set {
                rule.value |= bit;
            }
        }
        Ok(rule)
    }
}

/// `--payload`: bytes at an offset from the start of the TCP payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadRule {
    offset: u32,
    bytes: Vec<u8>,
}

/// The longest pattern that the programs compare, in bytes.
const PAYLOAD_PATTERN_MAX: usize = 16;

impl FromStr for PayloadRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (offset, pattern) = text
            .split_once(':')
            .ok_or_else(|| format!("'{text}' is not OFFSET:HEX or OFFSET:\"text\""))?;
        // No TCP payload is longer than an IP packet, so u16 holds every offset that can match.
        let offset = offset
            .parse::<u16>()
            .map_err(|_| format!("'{offset}' is not an offset from 0 to 65535"))?;
        let bytes = match pattern
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
        {
            Some(quoted) => quoted.as_bytes().to_vec(),
            None => from_hex(pattern).ok_or_else(|| {
                format!("'{pattern}' is neither pairs of hex digits nor text in double quotes")
            })?,
        };
        if bytes.is_empty() {
            return Err("the pattern is empty".into());
        }
        if bytes.len() > PAYLOAD_PATTERN_MAX {
            return Err(format!(
                "the pattern has {} bytes, at most {PAYLOAD_PATTERN_MAX} can be compared",
                bytes.len()
            ));
        }
        Ok(Self {
            offset: offset.into(),
            bytes,
        })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text
        .chars()
        .map(|c| c.to_digit(16))
        .collect::<Option<Vec<_>>>()?;
    if digits.len() % 2 != 0 {
        return None;
    }
    Some(
        digits
            .chunks_exact(2)
            .map(|pair| (pair[0] * 16 + pair[1]) as u8)
            .collect(),
    )
}

/// Everything that packets or connections are chosen by.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `--src`.
    pub sources: Vec<AddressRule>,
    /// `--dst`.
    pub destinations: Vec<AddressRule>,
    /// `--sport`; empty for all.
    pub source_ports: Vec<PortRange>,
    /// `--port`; empty for all.
    pub ports: Vec<PortRange>,
    /// `-4` or `-6`.
    pub ip_version: Option<u8>,
    /// `--flags`.
    pub flags: FlagsRule,
    /// `--payload`.
    pub payload: Option<PayloadRule>,
}

/// The parts of an opened skeleton that a filter is written to.
pub struct FilterSlots<'a, 'obj> {
    /// Settings in `.rodata`.
    pub config: &'a mut FilterConfig,
    /// One bit a source port.
    pub sport_bits: &'a mut [u64; 1024],
    /// One bit a destination port.
    pub dport_bits: &'a mut [u64; 1024],
    /// The four tries, in the order of [`Filter::prefixes`].
    pub tries: [&'a mut OpenMapMut<'obj>; 4],
}

impl Filter {
    /// The prefixes of each trie: sources wanted, sources excluded, then destinations likewise.
    fn prefixes(&self) -> [Vec<IpNet>; 4] {
        let select = |rules: &[AddressRule], exclude| {
            rules
                .iter()
                .filter(|rule| rule.exclude == exclude)
                .map(|rule| rule.prefix)
                .collect::<Vec<_>>()
        };
        [
            select(&self.sources, false),
            select(&self.sources, true),
            select(&self.destinations, false),
            select(&self.destinations, true),
        ]
    }

    /// Writes the settings before load: what is not asked for is neither created nor executed.
    ///
    /// # Errors
    /// A map can't be resized.
    pub fn configure(&self, slots: FilterSlots<'_, '_>) -> Result<()> {
        let config = slots.config;
        let mut parts = 0;
        let trie_parts = [
            FilterPart::FILTER_SRC_ONLY,
            FilterPart::FILTER_SRC_NOT,
            FilterPart::FILTER_DST_ONLY,
            FilterPart::FILTER_DST_NOT,
        ];
        for ((trie, prefixes), part) in slots.tries.into_iter().zip(self.prefixes()).zip(trie_parts)
        {
            if prefixes.is_empty() {
                trie.set_autocreate(false)?;
            } else {
                trie.set_max_entries(u32::try_from(prefixes.len())?)
                    .context("failed to size the table of prefixes")?;
                parts |= part.0;
            }
        }
        if !self.source_ports.is_empty() {
            set_ports(slots.sport_bits, &self.source_ports);
            parts |= FilterPart::FILTER_SPORT.0;
        }
        if !self.ports.is_empty() {
            set_ports(slots.dport_bits, &self.ports);
            parts |= FilterPart::FILTER_DPORT.0;
        }
        if let Some(version) = self.ip_version {
            config.ip_version = version;
            parts |= FilterPart::FILTER_FAMILY.0;
        }
        if self.flags.mask != 0 {
            config.flags_mask = self.flags.mask;
            config.flags_value = self.flags.value;
            parts |= FilterPart::FILTER_FLAGS.0;
        }
        if let Some(payload) = &self.payload {
            config.payload_offset = payload.offset;
            for (to, from) in config.payload_bytes.iter_mut().zip(&payload.bytes) {
                *to = *from;
            }
            config.payload_len = u8::try_from(payload.bytes.len())?;
            parts |= FilterPart::FILTER_PAYLOAD.0;
        }
        config.parts = FilterPart(parts);
        Ok(())
    }

    /// Fills the tries, after load and before anything is attached.
    ///
    /// # Errors
    /// The kernel refuses an entry, for lack of memory.
    pub fn fill(&self, tries: [&MapMut<'_>; 4]) -> Result<()> {
        for (trie, prefixes) in tries.into_iter().zip(self.prefixes()) {
            for prefix in prefixes {
                let key = prefix_key(prefix);
                trie.update(skel::key_bytes(&key), &[1], MapFlags::ANY)
                    .with_context(|| format!("failed to add {prefix} to the filter"))?;
            }
        }
        Ok(())
    }

    /// Whether a packet that must be a SYN can pass the flags.
    ///
    /// # Errors
    /// The flags exclude every SYN.
    pub fn check_syn(&self) -> Result<()> {
        let fixed = self.flags.mask & FlagsRule::SYN.mask;
        if self.flags.value & fixed != FlagsRule::SYN.value & fixed {
            bail!("the flags exclude every SYN, and SYNs are what is counted");
        }
        Ok(())
    }
}

fn set_ports(bits: &mut [u64; 1024], ranges: &[PortRange]) {
    for range in ranges {
        for port in range.first..=range.last {
            bits[usize::from(port >> 6)] |= 1 << (port & 63);
        }
    }
}

fn prefix_key(prefix: IpNet) -> PrefixKey {
    // The family comes first and counts as 8 bits: see struct prefix_key.
    let mut key = PrefixKey {
        bits: 8 + u32::from(prefix.prefix_len()),
        ..PrefixKey::default()
    };
    match prefix {
        IpNet::V4(v4) => {
            key.family = 4;
            key.addr[..4].copy_from_slice(&v4.network().octets());
        }
        IpNet::V6(v6) => {
            key.family = 6;
            key.addr = v6.network().octets();
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_single_or_ranges() {
        assert_eq!(
            "80".parse(),
            Ok(PortRange {
                first: 80,
                last: 80
            })
        );
        assert_eq!(
            "0-65535".parse(),
            Ok(PortRange {
                first: 0,
                last: 65535
            })
        );
        for bad in ["", "70000", "-1", "9-8", "80-", "http", " 80", "1-2-3"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_port_of_a_range_has_its_bit_and_no_other() {
        let mut bits = [0; 1024];
        set_ports(
            &mut bits,
            &[
                PortRange {
                    first: 63,
                    last: 65,
                },
                PortRange {
                    first: 65535,
                    last: 65535,
                },
            ],
        );
        let set = (0..=u16::MAX)
            .filter(|port| bits[usize::from(port >> 6)] & (1 << (port & 63)) != 0)
            .collect::<Vec<_>>();
        assert_eq!(set, [63, 64, 65, 65535]);
    }

    #[test]
    fn a_bare_address_is_a_host_and_an_exclamation_mark_excludes() {
        let host = "192.0.2.1".parse::<AddressRule>().unwrap();
        assert_eq!(host.prefix.prefix_len(), 32);
        let not = "!2001:db8::1".parse::<AddressRule>().unwrap();
        assert!(not.exclude);
        assert_eq!(not.prefix.prefix_len(), 128);
        for bad in [
            "10.0.0.0/33",
            "::/129",
            "",
            "!",
            "300.1.1.1",
            "example.org",
            "10.0.0.0/",
        ] {
            assert!(bad.parse::<AddressRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_of_the_two_families_never_overlap() {
        let v4 = prefix_key("10.1.2.3/8".parse().unwrap());
        assert_eq!(
            (v4.bits, v4.family, &v4.addr[..5]),
            (16, 4, &[10, 0, 0, 0, 0][..])
        );
        let v6 = prefix_key("::/0".parse().unwrap());
        assert_eq!((v6.bits, v6.family), (8, 6));
    }

    #[test]
    fn flags_are_set_or_clear_and_never_both() {
        assert_eq!("syn,!ack".parse(), Ok(FlagsRule::SYN));
        assert_eq!("any".parse(), Ok(FlagsRule::default()));
        assert_eq!("RST".parse(), Ok(FlagsRule { mask: 4, value: 4 }));
        assert_eq!(
            "fin,ack,ack".parse(),
            Ok(FlagsRule {
                mask: 0x11,
                value: 0x11
            })
        );
        for bad in ["syn,!syn", "!ack,ack", "", "nonsense", "syn,", "!any"] {
            assert!(bad.parse::<FlagsRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_payload_pattern_is_hex_or_quoted_text() {
        let hex = "4:1603Ab".parse::<PayloadRule>().unwrap();
        assert_eq!((hex.offset, &hex.bytes[..]), (4, &[0x16, 0x03, 0xab][..]));
        let text = "0:\"GET /\"".parse::<PayloadRule>().unwrap();
        assert_eq!(text.bytes, b"GET /");
        for bad in [
            "1603",
            "x:16",
            "0:",
            "0:1",
            "0:\"\"",
            "70000:16",
            "0:0102030405060708090a0b0c0d0e0f1011",
        ] {
            assert!(bad.parse::<PayloadRule>().is_err(), "{bad}");
        }
    }
}
