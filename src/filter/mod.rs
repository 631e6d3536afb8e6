//! Filters as the command line states them, and as the programs take them.

pub mod expr;
pub(crate) mod process;

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags};

use self::expr::Expression;
use crate::domain::packet::{ACK, FLAG_NAMES, SYN};
use crate::failure::{Failure, Refusal};
use crate::host::lookup;
use crate::skel::{
    self, FilterPart, FilterSettings, OpenFilteredSkel, PAYLOAD_PATTERN_MAX, PrefixKey,
};

/// A list item of `--port` or `--sport`: a port or a range, and with `!` one that is excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRule {
    first: u16,
    last: u16,
    exclude: bool,
}

impl FromStr for PortRule {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (exclude, text) = split_exclusion(text);
        let (first, last) = match text.split_once('-') {
            // The names of services have hyphens too: http-alt.
            Some((first, last)) if first.parse::<u32>().is_ok() => (port(first)?, port(last)?),
            _ => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(format!("the range '{text}' ends before it starts").into());
        }
        Ok(Self {
            first,
            last,
            exclude,
        })
    }
}

/// Whether a list of rules includes a port: a rule names it, or there are only exclusions; and no
/// exclusion matches it.
pub fn includes_port(rules: &[PortRule], port: u16) -> bool {
    let matches = |rule: &&PortRule| (rule.first..=rule.last).contains(&port);
    let mut including = rules.iter().filter(|rule| !rule.exclude).peekable();
    let is_included = including.peek().is_none() || including.any(|rule| matches(&rule));
    is_included && !rules.iter().any(|rule| rule.exclude && matches(&rule))
}

/// A port, by number or by the name of its service.
fn port(text: &str) -> Result<u16, Refusal> {
    if let Ok(port) = text.parse() {
        return Ok(port);
    }
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(format!("'{text}' is not a port from 0 to 65535").into());
    }
    match lookup::service_port(text) {
        Ok(Some(port)) => Ok(port),
        Ok(None) => Err(format!("no TCP service '{text}' in {}", lookup::SERVICES).into()),
        Err(error) => Err(format!(
            "'{text}' is not a number, and {} can't be read: {error}",
            lookup::SERVICES
        )
        .into()),
    }
}

/// Whether a list item begins with `!`, and the rest of it. A space after the comma is fine.
fn split_exclusion(item: &str) -> (bool, &str) {
    let item = item.trim();
    match item.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, item),
    }
}

/// A list item of `--src` or `--dst`: a prefix, and with `!` one that is excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRule {
    prefix: IpNet,
    exclude: bool,
}

impl FromStr for AddressRule {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (exclude, text) = split_exclusion(text);
        let prefix = match text.parse::<IpAddr>() {
            Ok(host) => IpNet::from(host),
            Err(_) => text.parse::<IpNet>().map_err(|_| not_a_prefix(text))?,
        };
        Ok(Self { prefix, exclude })
    }
}

fn not_a_prefix(text: &str) -> Refusal {
    let is_name = text.contains(|c: char| c.is_ascii_alphabetic())
        && !text.contains(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c));
    if is_name {
        return Refusal::with_hint(
            format!(
                "'{text}' is a name, and names are not looked up: nothing here uses the network"
            ),
            format!("its address: getent hosts {text}; all of them: getent ahosts {text}"),
        );
    }
    format!("'{text}' is not an address or a prefix such as 10.0.0.0/8 or 2001:db8::/32").into()
}

/// `--flags`: which bits of the TCP flags byte matter, and what they must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlagsRule {
    /// The bits that matter.
    pub mask: u8,
    /// The value that they must have.
    pub value: u8,
}

impl FlagsRule {
    /// SYN without ACK: a connection attempt.
    pub const SYN: Self = Self {
        mask: SYN | ACK,
        value: SYN,
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
            let (clear, name) = split_exclusion(item);
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
            if rule.mask & bit != 0 && (rule.value & bit != 0) == clear {
                return Err(format!("'{name}' and '!{name}' contradict each other"));
            }
            rule.mask |= bit;
            if !clear {
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
    /// `--host`: either side.
    pub hosts: Vec<AddressRule>,
    /// `--sport`; empty for all.
    pub source_ports: Vec<PortRule>,
    /// `--port`; empty for all.
    pub destination_ports: Vec<PortRule>,
    /// `--any-port`: either side; empty for all.
    pub any_ports: Vec<PortRule>,
    /// `-4` or `-6`.
    pub ip_version: Option<u8>,
    /// `--flags`.
    pub flags: FlagsRule,
    /// `--payload`.
    pub payload: Option<PayloadRule>,
    /// `--filter`, for packets.
    pub expression: Option<Expression>,
}

/// The tries of prefixes by name, in the order of [`Filter::prefixes`].
const TRIES: [(&str, FilterPart); 6] = [
    ("src_only", FilterPart::FILTER_SRC_ONLY),
    ("src_not", FilterPart::FILTER_SRC_NOT),
    ("dst_only", FilterPart::FILTER_DST_ONLY),
    ("dst_not", FilterPart::FILTER_DST_NOT),
    ("host_only", FilterPart::FILTER_HOST_ONLY),
    ("host_not", FilterPart::FILTER_HOST_NOT),
];

impl Filter {
    /// The prefixes of each trie: sources that are wanted, sources that are excluded, then both for
    /// destinations, and both for either side.
    fn prefixes(&self) -> [Vec<IpNet>; 6] {
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
            select(&self.hosts, false),
            select(&self.hosts, true),
        ]
    }

    /// The rules of each set of ports. `--any-port` takes two sets: neither port of a packet may be
    /// excluded, and one of them must be wanted.
    fn ports(&self) -> [(FilterPart, Vec<PortRule>); 4] {
        let (excluded, wanted) = self.any_ports.iter().partition(|rule| rule.exclude);
        let named = |excluded: Vec<PortRule>| {
            let named = |rule| PortRule {
                exclude: false,
                ..rule
            };
            excluded.into_iter().map(named).collect()
        };
        [
            (FilterPart::FILTER_SPORT, self.source_ports.clone()),
            (FilterPart::FILTER_DPORT, self.destination_ports.clone()),
            (FilterPart::FILTER_ANY_PORT_ONLY, wanted),
            (FilterPart::FILTER_ANY_PORT_NOT, named(excluded)),
        ]
    }

    /// Writes the settings before load: what is not asked for is neither created nor executed.
    /// Returns whether anything is asked for.
    ///
    /// # Errors
    /// A map can't be resized.
    pub fn configure<'obj>(&self, open: &mut impl OpenFilteredSkel<'obj>) -> Result<bool> {
        let mut parts = 0;
        for ((name, part), prefixes) in TRIES.into_iter().zip(self.prefixes()) {
            let mut maps = open.open_object_mut().maps_mut();
            let mut trie = maps
                .find(|map| map.name() == name)
                .context("the programs have no table of prefixes")?;
            if prefixes.is_empty() {
                trie.set_autocreate(false)?;
            } else {
                trie.set_max_entries(u32::try_from(prefixes.len())?)
                    .context("failed to size the table of prefixes")?;
                parts |= part.0;
            }
        }
        for mut map in open.open_object_mut().maps_mut() {
            if map.name() == "expr_words" {
                map.set_autocreate(self.expression.is_some())?;
            }
        }
        if let Some(expression) = &self.expression {
            let settings = open
                .expr_settings()
                .context("the programs have no variable for an expression")?;
            expression.configure(settings)?;
        }
        let FilterSettings { config, ports } = open
            .filter_settings()
            .context("the programs have no filter settings")?;
        let bits = [
            &mut ports.sport_bits,
            &mut ports.dport_bits,
            &mut ports.any_port_bits,
            &mut ports.any_port_not_bits,
        ];
        for (bits, (part, rules)) in bits.into_iter().zip(self.ports()) {
            if !rules.is_empty() {
                set_ports(bits, &rules);
                parts |= part.0;
            }
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
        if self.expression.is_some() {
            parts |= FilterPart::FILTER_EXPRESSION.0;
        }
        config.parts = FilterPart(parts);
        Ok(parts != 0)
    }

    /// Fills the tries, after load and before anything is attached.
    ///
    /// # Errors
    /// The kernel refuses an entry, for lack of memory.
    pub fn fill<'obj>(&self, skel: &impl Skel<'obj>) -> Result<()> {
        for ((name, _), prefixes) in TRIES.into_iter().zip(self.prefixes()) {
            // A map that was not created is not among them.
            let Some(trie) = skel.object().maps().find(|map| map.name() == name) else {
                continue;
            };
            for prefix in prefixes {
                let key = prefix_key(prefix);
                trie.update(skel::key_bytes(&key), &[1], MapFlags::ANY)
                    .with_context(|| format!("failed to add {prefix} to the filter"))?;
            }
        }
        Ok(())
    }

    /// Refuses addresses that contradict `-4` or `-6`.
    ///
    /// # Errors
    /// One side wants addresses of the other family alone.
    pub fn check_families(&self) -> Result<(), Failure> {
        let Some(version) = self.ip_version else {
            return Ok(());
        };
        for (option, rules) in [
            ("--src", &self.sources),
            ("--dst", &self.destinations),
            ("--host", &self.hosts),
        ] {
            let mut wanted = rules.iter().filter(|rule| !rule.exclude).peekable();
            let Some(first) = wanted.peek() else {
                continue;
            };
            let prefix = first.prefix;
            if wanted.all(|rule| matches!(rule.prefix, IpNet::V4(_)) != (version == 4)) {
                return Err(Failure::usage(format!(
                    "{option} {prefix} and -{version} contradict each other: nothing matches both"
                ))
                .hint("leave one of them out"));
            }
        }
        Ok(())
    }

    /// Checks that a SYN can pass the flags.
    ///
    /// # Errors
    /// The flags exclude all SYNs.
    pub fn check_syn(&self) -> Result<()> {
        let fixed = self.flags.mask & FlagsRule::SYN.mask;
        if self.flags.value & fixed != FlagsRule::SYN.value & fixed {
            bail!("the flags exclude all SYNs, and this command counts nothing else");
        }
        Ok(())
    }
}

/// Sets the bits of the ports that pass: those that are named, or all of them if none is, without
/// those that are excluded.
fn set_ports(bits: &mut [u64; 1024], rules: &[PortRule]) {
    if rules.iter().all(|rule| rule.exclude) {
        bits.fill(u64::MAX);
    }
    // Exclusions last, whatever the order on the command line.
    for exclude in [false, true] {
        for rule in rules.iter().filter(|rule| rule.exclude == exclude) {
            for port in rule.first..=rule.last {
                let word = &mut bits[usize::from(port >> 6)];
                let bit = 1 << (port & 63);
                *word = if exclude { *word & !bit } else { *word | bit };
            }
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

    fn rule(first: u16, last: u16, exclude: bool) -> PortRule {
        PortRule {
            first,
            last,
            exclude,
        }
    }

    #[test]
    fn ports_are_single_or_ranges_or_excluded() {
        for (text, rule) in [
            ("80", rule(80, 80, false)),
            (" 80 ", rule(80, 80, false)),
            ("0-65535", rule(0, 65535, false)),
            ("!22", rule(22, 22, true)),
            ("!6000-6063", rule(6000, 6063, true)),
        ] {
            assert_eq!(text.parse(), Ok(rule), "{text}");
        }
        for bad in [
            "", "!", "70000", "-1", "9-8", "80-", "1-2-3", "!!22", "0x50",
        ] {
            assert!(bad.parse::<PortRule>().is_err(), "{bad}");
        }
    }

    fn ports_that_pass(rules: &[PortRule]) -> Vec<u16> {
        let mut bits = [0; 1024];
        set_ports(&mut bits, rules);
        (0..=u16::MAX)
            .filter(|port| bits[usize::from(port >> 6)] & (1 << (port & 63)) != 0)
            .collect()
    }

    #[test]
    fn every_port_of_a_range_has_its_bit_and_no_other() {
        let rules = [rule(63, 65, false), rule(65535, 65535, false)];
        assert_eq!(ports_that_pass(&rules), [63, 64, 65, 65535]);
    }

    #[test]
    fn an_excluded_port_never_passes_and_all_others_do_if_none_is_named() {
        let all_but = ports_that_pass(&[rule(0, 65532, true), rule(65534, 65534, true)]);
        assert_eq!(all_but, [65533, 65535]);
        let rules = [rule(22, 22, true), rule(20, 23, false)];
        assert_eq!(ports_that_pass(&rules), [20, 21, 23]);
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
