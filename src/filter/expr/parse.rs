//! Parses the language of pcap-filter(7) as libpcap 1.10 does: `and` and `or` have the same
//! precedence and associate left to right, and an id without qualifiers takes those of the
//! primitive before it.

use std::cell::OnceCell;
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::ops::Range;

use super::Wrong;
use super::lex::{Lexeme, Token, lex};
use super::syntax::{Base, Comparison, Condition, Operation, Prefix, Relation, Side, Value};
use crate::domain::packet;
use crate::host::lookup;

/// How deeply parentheses, `not` and arithmetic can be nested.
const DEPTH_MAX: usize = 100;

/// The most conditions in an expression. One that can be compiled has far fewer.
const CONDITIONS_MAX: usize = 2000;

const IPPROTO_TCP: u32 = 6;
/// Headers that may stand between an IPv6 header and TCP: hop-by-hop, routing, fragment,
/// authentication and destination options.
const IPV6_EXTENSIONS: [(&str, u32); 5] = [
    ("hopopt", 0),
    ("ipv6-route", 43),
    ("ipv6-frag", 44),
    (AUTHENTICATION, 51),
    ("ipv6-opts", 60),
];
/// The name of the authentication header, which is also a word of the language.
const AUTHENTICATION: &str = "ah";

const IPV4: u32 = packet::ETHERTYPE_IPV4 as u32;
const IPV6: u32 = packet::ETHERTYPE_IPV6 as u32;
const ETHERTYPES_OF_TAGS: [u32; 3] = [0x8100, 0x88a8, 0x9100];

/// Protocols whose packets contain no TCP, or none that our parser reads.
const OTHER_PROTOCOLS: [&str; 34] = [
    "arp", "rarp", "sctp", "icmp", "udp", "igmp", "igrp", "pim", "vrrp", "carp", "atalk", "aarp",
    "decnet", "lat", "sca", "moprc", "mopdl", "icmp6", "ah", "esp", "iso", "esis", "es-is", "isis",
    "is-is", "clnp", "stp", "ipx", "netbeui", "l1", "l2", "iih", "lsp", "snp",
];

/// Words of pcap-filter(7) that are not supported, and why.
const UNSUPPORTED: [(&str, &str); 16] = [
    ("gateway", "it needs names to be looked up"),
    ("mpls", "MPLS labels are not parsed"),
    ("pppoed", "tunnel packets are not decapsulated"),
    ("pppoes", "tunnel packets are not decapsulated"),
    ("geneve", "tunnel packets are not decapsulated"),
    ("wlan", "802.11 frames are not seen"),
    ("type", "802.11 frames are not seen"),
    ("subtype", "802.11 frames are not seen"),
    ("radio", "802.11 frames are not seen"),
    ("llc", "TCP has no LLC header"),
    ("byte", "write ether[N] and compare that"),
    ("ifname", "name interfaces with -i"),
    ("ifindex", "name interfaces with -i"),
    ("on", "name interfaces with -i"),
    ("rulenum", "there are no pflog packets"),
    ("action", "there are no pflog packets"),
];

/// Words that qualify an id.
const QUALIFIERS: [&str; 8] = [
    "src",
    "dst",
    "host",
    "net",
    "port",
    "portrange",
    "proto",
    "protochain",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Link,
    Ip,
    Ip6,
    Tcp,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Default,
    Host,
    Net,
    Port,
    PortRange,
    Proto,
    ProtoChain,
}

/// The qualifiers of an id, which say what it means.
#[derive(Clone, Copy, Debug)]
struct Qualifiers {
    protocol: Option<Protocol>,
    side: Option<Side>,
    kind: Kind,
}

type Outcome<T> = Result<T, Wrong>;

/// Parses an expression. Also returns what is wrong with its first primitive that never matches, for
/// the case that nothing else can match either.
pub(super) fn parse(text: &str) -> Outcome<(Condition, Option<Wrong>)> {
    let mut parser = Parser {
        lexemes: lex(text)?,
        next: 0,
        end: text.trim_end().len(),
        never: OnceCell::new(),
        depth: 0,
        conditions: 0,
        tags: 0,
    };
    if parser.lexemes.is_empty() {
        return Ok((Condition::Always(true), None));
    }
    let (condition, _) = parser.expression(None)?;
    if parser.peek().is_some() {
        return Err(parser.unexpected(match parser.is_symbol(0, ")") {
            true => "there is no '(' for this",
            false => "'and' or 'or' is missing before this",
        }));
    }
    Ok((condition, parser.never.into_inner()))
}

struct Parser {
    lexemes: Vec<Lexeme>,
    /// The index of the next lexeme.
    next: usize,
    /// The length of the text.
    end: usize,
    /// The error of the first primitive that no packet can match.
    never: OnceCell<Wrong>,
    depth: usize,
    conditions: usize,
    /// `vlan` primitives so far: each one is about the next inner tag.
    tags: u8,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.ahead(0)
    }

    fn ahead(&self, by: usize) -> Option<&Token> {
        Some(&self.lexemes.get(self.next + by)?.token)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.peek()?.clone();
        self.next += 1;
        Some(token)
    }

    fn is_word(&self, by: usize, words: &[&str]) -> bool {
        matches!(self.ahead(by), Some(Token::Word(word)) if words.contains(&word.as_str()))
    }

    fn is_symbol(&self, by: usize, symbol: &str) -> bool {
        matches!(self.ahead(by), Some(Token::Symbol(other)) if *other == symbol)
    }

    fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(0, &[word]);
        self.next += usize::from(found);
        found
    }

    fn skip_symbol(&mut self, symbol: &str) -> bool {
        let found = self.is_symbol(0, symbol);
        self.next += usize::from(found);
        found
    }

    /// The position of the next token, or one byte after the text if there is none.
    fn here(&self) -> Range<usize> {
        match self.lexemes.get(self.next) {
            Some(lexeme) => lexeme.at.clone(),
            None => self.end..self.end + 1,
        }
    }

    /// The range from the token with this index to the last one that was taken.
    fn since(&self, first: usize) -> Range<usize> {
        let at = |number: usize| self.lexemes.get(number).map(|lexeme| lexeme.at.clone());
        match (at(first), at(self.next.saturating_sub(1).max(first))) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => self.here(),
        }
    }

    fn unexpected(&self, why: &str) -> Wrong {
        Wrong::new(self.here(), why)
    }

    fn expect(&mut self, symbol: &str) -> Outcome<()> {
        if self.skip_symbol(symbol) {
            return Ok(());
        }
        Err(self.unexpected(&format!("'{symbol}' is missing here")))
    }

    /// A condition that no packet can match. It is an error only if the whole filter can't match,
    /// as it can in `udp or port 80` and in `not udp`.
    fn never(&self, at: Range<usize>, why: impl Into<String>) -> Outcome<Condition> {
        self.never.get_or_init(|| Wrong::new(at, why));
        Ok(Condition::Always(false))
    }

    fn deeper(&mut self) -> Outcome<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.unexpected("this is nested too deeply"));
        }
        Ok(())
    }

    fn one_more(&mut self) -> Outcome<()> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            return Err(self.unexpected("the filter has too many conditions"));
        }
        Ok(())
    }

    /// Conditions joined by `and` and `or`. Also returns the qualifiers that an id after it takes.
    fn expression(
        &mut self,
        inherited: Option<Qualifiers>,
    ) -> Outcome<(Condition, Option<Qualifiers>)> {
        let (mut left, mut qualifiers) = self.operand(inherited, false)?;
        loop {
            let is_and = self.is_word(0, &["and"]);
            if !is_and && !self.is_word(0, &["or"]) {
                return Ok((left, qualifiers));
            }
            self.next += 1;
            let (right, of_right) = self.operand(qualifiers, true)?;
            left = join(left, is_and, right);
            qualifiers = of_right;
        }
    }

    /// A condition, or an id that takes its qualifiers from the primitive before it.
    fn operand(
        &mut self,
        inherited: Option<Qualifiers>,
        may_be_id: bool,
    ) -> Outcome<(Condition, Option<Qualifiers>)> {
        self.one_more()?;
        if self.skip_symbol("!") {
            self.deeper()?;
            let (inner, qualifiers) = self.operand(inherited, may_be_id)?;
            self.depth -= 1;
            return Ok((inner.negated(), qualifiers));
        }
        if self.is_symbol(0, "(") {
            if self.is_arithmetic_after_parentheses() {
                return Ok((self.relation()?, None));
            }
            if may_be_id && self.has_only_ids_in_parentheses() {
                return Ok((self.id(inherited)?, inherited));
            }
            self.next += 1;
            self.deeper()?;
            let (inner, _) = self.expression(inherited)?;
            self.depth -= 1;
            self.expect(")")?;
            return Ok((inner, inherited));
        }
        match self.peek() {
            None => Err(self.unexpected("the filter ends where a condition is missing")),
            Some(Token::Number(_)) if self.is_operator(1) => Ok((self.relation()?, None)),
            Some(Token::Symbol("-")) => Ok((self.relation()?, None)),
            Some(Token::Symbol(_)) => Err(self.unexpected("a condition is missing here")),
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.primitive(&word, inherited, may_be_id)
            }
            Some(_) if may_be_id => Ok((self.id(inherited)?, inherited)),
            Some(_) => {
                Err(self.unexpected("this needs a qualifier before it, such as host, net or port"))
            }
        }
    }

    /// Whether the token there is an arithmetic operator or a comparison.
    fn is_operator(&self, by: usize) -> bool {
        matches!(
            self.ahead(by),
            Some(Token::Symbol(
                "+" | "-"
                    | "*"
                    | "/"
                    | "%"
                    | "&"
                    | "|"
                    | "^"
                    | "<<"
                    | ">>"
                    | "="
                    | "!="
                    | "<"
                    | ">"
                    | "<="
                    | ">="
            ))
        )
    }

    /// The number of tokens from this opening parenthesis to its closing one, both included.
    fn parentheses(&self) -> Option<usize> {
        let mut open = 0usize;
        for by in 0.. {
            match self.ahead(by)? {
                Token::Symbol("(") => open += 1,
                Token::Symbol(")") => open -= 1,
                _ => {}
            }
            if open == 0 {
                return Some(by + 1);
            }
        }
        None
    }

    fn is_arithmetic_after_parentheses(&self) -> bool {
        self.parentheses().is_some_and(|len| self.is_operator(len))
    }

    fn has_only_ids_in_parentheses(&self) -> bool {
        let Some(len) = self.parentheses() else {
            return false;
        };
        (0..len).all(|by| match self.ahead(by) {
            Some(Token::Symbol(symbol)) => ["(", ")", "!", "/"].contains(symbol),
            Some(Token::Word(word)) => !is_keyword(word) || is_joint(word),
            _ => true,
        })
    }

    /// A primitive that begins with a word: a keyword, or an id.
    fn primitive(
        &mut self,
        word: &str,
        inherited: Option<Qualifiers>,
        may_be_id: bool,
    ) -> Outcome<(Condition, Option<Qualifiers>)> {
        let first = self.next;
        if let Some((_, why)) = UNSUPPORTED.iter().find(|(known, _)| *known == word) {
            return Err(self.unexpected(&format!("'{word}' is not supported: {why}")));
        }
        let plain = |condition| Ok((condition, None));
        match word {
            "len" | "length" => return plain(self.relation()?),
            "less" | "greater" => {
                self.next += 1;
                let comparison = match word {
                    "less" => Comparison::LessOrEqual,
                    _ => Comparison::GreaterOrEqual,
                };
                return plain(Condition::Relation(Relation {
                    left: Value::Length,
                    comparison,
                    right: Value::Number(self.number()?),
                }));
            }
            "vlan" => return plain(self.vlan()?),
            "inbound" | "outbound" => {
                self.next += 1;
                let outbound = Condition::Outbound;
                return plain(if word == "inbound" {
                    outbound.negated()
                } else {
                    outbound
                });
            }
            "broadcast" | "multicast" => return plain(self.cast(None, first)?),
            "and" | "or" | "mask" => {
                return Err(self.unexpected("a condition is missing before this"));
            }
            _ => {}
        }
        let protocol = protocol(word);
        if protocol.is_none() && !QUALIFIERS.contains(&word) {
            if may_be_id {
                return Ok((self.id(inherited)?, inherited));
            }
            return Err(self.unexpected(&format!(
                "'{word}' is not a word of the filter language; if it is a name, it needs a \
                 qualifier such as host or port before it"
            )));
        }
        if let Some(protocol) = protocol {
            if self.is_symbol(1, "[") {
                return plain(self.relation()?);
            }
            self.next += 1;
            if self.is_word(0, &["broadcast", "multicast"]) {
                return plain(self.cast(Some(protocol), first)?);
            }
            let is_head = self.is_word(0, &QUALIFIERS) || self.is_word(0, &["gateway"]);
            if !is_head {
                return plain(self.protocol(protocol, word, first)?);
            }
        }
        let qualifiers = self.head(protocol)?;
        let condition = self.id(Some(qualifiers))?;
        if protocol == Some(Protocol::Other) {
            let why = format!("'{word}' never matches: only TCP is looked at");
            return Ok((self.never(self.since(first), why)?, Some(qualifiers)));
        }
        Ok((condition, Some(qualifiers)))
    }

    /// A protocol by itself.
    fn protocol(&self, protocol: Protocol, word: &str, first: usize) -> Outcome<Condition> {
        match protocol {
            Protocol::Ip => Ok(Condition::IpVersion(4)),
            Protocol::Ip6 => Ok(Condition::IpVersion(6)),
            Protocol::Tcp => Ok(Condition::Always(true)),
            Protocol::Link => Err(Wrong::new(
                self.since(first),
                format!("'{word}' needs something after it, such as host and an address"),
            )),
            Protocol::Other if word == AUTHENTICATION => {
                let qualifiers = Qualifiers {
                    protocol: None,
                    side: None,
                    kind: Kind::Proto,
                };
                self.named_proto(qualifiers, word, first)
            }
            Protocol::Other => self.never(
                self.since(first),
                format!("'{word}' never matches: only TCP is looked at"),
            ),
        }
    }

    /// The qualifiers between protocol and id: a direction, a type, or both.
    fn head(&mut self, protocol: Option<Protocol>) -> Outcome<Qualifiers> {
        let side = self.side();
        let kind = match self.peek() {
            Some(Token::Word(word)) => match word.as_str() {
                "host" => Some(Kind::Host),
                "net" => Some(Kind::Net),
                "port" => Some(Kind::Port),
                "portrange" => Some(Kind::PortRange),
                "proto" if side.is_none() => Some(Kind::Proto),
                "protochain" if side.is_none() => Some(Kind::ProtoChain),
                "gateway" => {
                    let why = "'gateway' is not supported: it needs names to be looked up";
                    return Err(self.unexpected(why));
                }
                _ => None,
            },
            _ => None,
        };
        self.next += usize::from(kind.is_some());
        Ok(Qualifiers {
            protocol,
            side,
            kind: kind.unwrap_or(Kind::Default),
        })
    }

    fn side(&mut self) -> Option<Side> {
        let (side, other) = if self.skip_word("src") {
            (Side::Source, "dst")
        } else if self.skip_word("dst") {
            (Side::Destination, "src")
        } else {
            return None;
        };
        // `or` joins two directions only if they are adjacent: `src or dst port 80`, but not
        // `src 10.0.0.1 or dst port 80`.
        let both = self.is_word(0, &["and"]);
        if (both || self.is_word(0, &["or"])) && self.is_word(1, &[other]) {
            self.next += 2;
            return Some(if both { Side::Both } else { Side::Either });
        }
        Some(side)
    }

    /// An id, a negated one, or several in parentheses.
    fn id(&mut self, qualifiers: Option<Qualifiers>) -> Outcome<Condition> {
        if self.skip_symbol("!") {
            self.deeper()?;
            let inner = self.id(qualifiers)?;
            self.depth -= 1;
            return Ok(inner.negated());
        }
        if self.skip_symbol("(") {
            return self.ids(qualifiers);
        }
        let Some(qualifiers) = qualifiers else {
            return Err(self.unexpected(
                "this needs a qualifier before it, such as host, net or port: there is none \
                 to repeat",
            ));
        };
        self.single_id(qualifiers)
    }

    /// Several ids, after the opening parenthesis.
    fn ids(&mut self, qualifiers: Option<Qualifiers>) -> Outcome<Condition> {
        self.deeper()?;
        let mut left = self.id(qualifiers)?;
        loop {
            let is_and = self.is_word(0, &["and"]);
            if !is_and && !self.is_word(0, &["or"]) {
                break;
            }
            self.next += 1;
            self.one_more()?;
            let right = self.id(qualifiers)?;
            left = join(left, is_and, right);
        }
        self.depth -= 1;
        self.expect(")")?;
        Ok(left)
    }

    fn single_id(&mut self, q: Qualifiers) -> Outcome<Condition> {
        let first = self.next;
        match self.peek().cloned() {
            Some(Token::Number(number)) => {
                self.next += 1;
                self.numbered(q, number, first)
            }
            Some(Token::Dotted { address, bits }) => {
                self.next += 1;
                self.dotted(q, address, bits, first)
            }
            Some(Token::V6(address)) => {
                self.next += 1;
                self.v6(q, address, first)
            }
            Some(Token::Mac(mac)) => {
                self.next += 1;
                self.mac(q, mac, first)
            }
            Some(Token::Word(word)) if is_keyword(&word) => Err(self.keyword_as_id(q, &word)),
            Some(Token::Word(word) | Token::Escaped(word)) => {
                self.next += 1;
                self.named(q, &word, first)
            }
            Some(Token::Symbol(_)) | None => Err(self.missing_id(q)),
        }
    }

    fn keyword_as_id(&self, q: Qualifiers, word: &str) -> Wrong {
        if !matches!(q.kind, Kind::Proto | Kind::ProtoChain) || protocol(word).is_none() {
            return self.missing_id(q);
        }
        self.unexpected(&format!("'{word}' is a keyword"))
            .hint(format!("write \\{word}, in quotes for the shell"))
    }

    fn missing_id(&self, q: Qualifiers) -> Wrong {
        let kind = match q.kind {
            Kind::Port => "a port",
            Kind::PortRange => "a range of ports such as 8000-8100",
            Kind::Proto | Kind::ProtoChain => "a protocol",
            _ => "an address",
        };
        self.unexpected(&format!("{kind} is missing here"))
    }

    fn mac(&self, q: Qualifiers, mac: [u8; 6], first: usize) -> Outcome<Condition> {
        if q.protocol != Some(Protocol::Link) || !matches!(q.kind, Kind::Default | Kind::Host) {
            let why =
                "an Ethernet address needs 'ether host', 'ether src' or 'ether dst' before it";
            return Err(Wrong::new(self.since(first), why));
        }
        Ok(Condition::Mac(q.side.unwrap_or(Side::Either), mac))
    }

    /// A plain number after qualifiers.
    fn numbered(&self, q: Qualifiers, number: u32, first: usize) -> Outcome<Condition> {
        let is_address = matches!(q.kind, Kind::Default | Kind::Host | Kind::Net);
        if is_address && self.is_symbol(0, "/") {
            let why = "a network needs a dot in it before '/'";
            let wrong = Wrong::new(self.since(first), why);
            return Err(match number {
                0..=255 => wrong.hint(format!("write {number}.0.0.0/ for {number}/")),
                _ => wrong,
            });
        }
        match q.kind {
            Kind::Default | Kind::Host => self.v4(q, number, u32::MAX, first),
            Kind::Net => {
                let (mut address, mut mask) = (number, u32::MAX);
                while address != 0 && address >> 24 == 0 {
                    address <<= 8;
                    mask <<= 8;
                }
                self.v4(q, address, mask, first)
            }
            Kind::Port | Kind::PortRange => {
                let port = u16::try_from(number).map_err(|_| {
                    Wrong::new(
                        self.since(first),
                        format!("{number} is not a port from 0 to 65535"),
                    )
                })?;
                self.ports(q, port, port, first)
            }
            Kind::Proto | Kind::ProtoChain => self.proto(q, number, first),
        }
    }

    /// Two to four numbers with dots, and perhaps a mask.
    fn dotted(
        &mut self,
        q: Qualifiers,
        address: u32,
        bits: u32,
        first: usize,
    ) -> Outcome<Condition> {
        if !matches!(q.kind, Kind::Default | Kind::Host | Kind::Net) {
            let why = match q.kind {
                Kind::Port => "this is an address, but a port is expected",
                Kind::PortRange => "this is an address, but a range of ports is expected",
                _ => "this is an address, but a protocol is expected",
            };
            return Err(Wrong::new(self.since(first), why));
        }
        let address = address << (32 - bits);
        let written = u32::MAX << (32 - bits);
        let mask = if self.skip_symbol("/") {
            match self.number()? {
                0 => 0,
                len @ 1..=32 => u32::MAX << (32 - len),
                _ => {
                    let why = "a mask of IPv4 has 32 bits at most";
                    return Err(Wrong::new(self.since(first), why));
                }
            }
        } else if self.skip_word("mask") {
            let at = self.here();
            match self.take() {
                Some(Token::Dotted { address, bits }) => address << (32 - bits),
                _ => return Err(Wrong::new(at, "a mask such as 255.255.0.0 is missing here")),
            }
        } else {
            return self.v4(q, address, written, first);
        };
        if q.kind != Kind::Net {
            return Err(self.mask_without_net(first));
        }
        if address & !mask != 0 {
            return Err(self.bits_after_mask(first));
        }
        self.v4(q, address, mask, first)
    }

    fn mask_without_net(&self, first: usize) -> Wrong {
        Wrong::new(
            self.since(first),
            "an address with a mask needs 'net' before it",
        )
    }

    fn bits_after_mask(&self, first: usize) -> Wrong {
        Wrong::new(
            self.since(first),
            "the address has bits set that the mask leaves out",
        )
    }

    fn v4(&self, q: Qualifiers, address: u32, mask: u32, first: usize) -> Outcome<Condition> {
        match q.protocol {
            None | Some(Protocol::Ip) => Ok(Condition::Address(
                q.side.unwrap_or(Side::Either),
                Prefix::V4 { address, mask },
            )),
            Some(Protocol::Other) => Ok(Condition::Always(false)),
            Some(protocol) => Err(self.wrong_protocol(protocol, "an IPv4 address", first)),
        }
    }

    fn wrong_protocol(&self, protocol: Protocol, what: &str, first: usize) -> Wrong {
        let word = match protocol {
            Protocol::Link => "ether",
            Protocol::Ip => "ip",
            Protocol::Ip6 => "ip6",
            Protocol::Tcp | Protocol::Other => "tcp",
        };
        Wrong::new(self.since(first), format!("'{word}' can't qualify {what}"))
    }

    fn v6(&mut self, q: Qualifiers, address: Ipv6Addr, first: usize) -> Outcome<Condition> {
        if !matches!(q.kind, Kind::Default | Kind::Host | Kind::Net) {
            return Err(Wrong::new(
                self.since(first),
                "an IPv6 address needs host or net before it",
            ));
        }
        let mut len = 128;
        if self.skip_symbol("/") {
            len = self.number()?;
            if len > 128 {
                let why = "a mask of IPv6 has 128 bits at most";
                return Err(Wrong::new(self.since(first), why));
            }
            if q.kind != Kind::Net && len != 128 {
                return Err(self.mask_without_net(first));
            }
        }
        let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
        let address = address.to_bits();
        if address & !mask != 0 {
            return Err(self.bits_after_mask(first));
        }
        match q.protocol {
            None | Some(Protocol::Ip6) => Ok(Condition::Address(
                q.side.unwrap_or(Side::Either),
                Prefix::V6 { address, mask },
            )),
            Some(Protocol::Other) => Ok(Condition::Always(false)),
            Some(protocol) => Err(self.wrong_protocol(protocol, "an IPv6 address", first)),
        }
    }

    /// A name after qualifiers.
    fn named(&self, q: Qualifiers, name: &str, first: usize) -> Outcome<Condition> {
        let at = self.since(first);
        match q.kind {
            Kind::Default | Kind::Host | Kind::Net => Err(Wrong::new(
                at,
                format!(
                    "'{name}' is a name, and names are not looked up: nothing here uses the network"
                ),
            )
            .hint(format!("for its addresses: getent hosts {name}"))),
            Kind::Port => {
                let port = service(name, at)?;
                self.ports(q, port, port, first)
            }
            Kind::PortRange => {
                let port = |text: &str| match text.parse::<u32>() {
                    Ok(number) => u16::try_from(number).map_err(|_| {
                        Wrong::new(
                            at.clone(),
                            format!("{number} is not a port from 0 to 65535"),
                        )
                    }),
                    Err(_) => service(text, at.clone()),
                };
                let (from, to) = match name.split_once('-') {
                    Some((from, to)) => (port(from)?, port(to)?),
                    None => (port(name)?, port(name)?),
                };
                self.ports(q, from.min(to), from.max(to), first)
            }
            Kind::Proto | Kind::ProtoChain => self.named_proto(q, name, first),
        }
    }

    fn named_proto(&self, q: Qualifiers, name: &str, first: usize) -> Outcome<Condition> {
        if q.protocol == Some(Protocol::Link) {
            let ethertype = match name {
                "ip" => IPV4,
                "ip6" => IPV6,
                name if name == "loopback" || OTHER_PROTOCOLS.contains(&name) => 0,
                _ => {
                    let why = format!("'{name}' is not a protocol that has an EtherType");
                    return Err(Wrong::new(self.since(first), why));
                }
            };
            return self.proto(q, ethertype, first);
        }
        if name == "tcp" {
            return self.proto(q, IPPROTO_TCP, first);
        }
        if let Some((_, number)) = IPV6_EXTENSIONS.iter().find(|(known, _)| *known == name) {
            return self.proto(q, *number, first);
        }
        if !OTHER_PROTOCOLS.contains(&name) {
            let number = protocol_number(name, self.since(first))?;
            return self.proto(q, number.into(), first);
        }
        self.never(
            self.since(first),
            format!("'proto {name}' never matches: only TCP is looked at"),
        )
    }

    fn ports(&self, q: Qualifiers, from: u16, to: u16, first: usize) -> Outcome<Condition> {
        match q.protocol {
            None | Some(Protocol::Tcp | Protocol::Other) => Ok(Condition::Ports {
                side: q.side.unwrap_or(Side::Either),
                first: from,
                last: to,
            }),
            Some(protocol) => Err(self.wrong_protocol(protocol, "a port", first)),
        }
    }

    /// `proto` and a number.
    fn proto(&self, q: Qualifiers, number: u32, first: usize) -> Outcome<Condition> {
        let never = || {
            self.never(
                self.since(first),
                "this protocol never matches: only TCP is looked at",
            )
        };
        let extension = || {
            Condition::Relation(Relation {
                left: Value::Bytes {
                    base: Base::Ip6,
                    offset: Box::new(Value::Number(6)),
                    size: 1,
                },
                comparison: Comparison::Equal,
                right: Value::Number(number),
            })
        };
        match (q.protocol, number) {
            (None, IPPROTO_TCP) => Ok(Condition::Always(true)),
            (Some(Protocol::Ip), IPPROTO_TCP) => Ok(Condition::IpVersion(4)),
            (Some(Protocol::Ip6), IPPROTO_TCP) => Ok(Condition::IpVersion(6)),
            (None | Some(Protocol::Ip6), number) if is_extension(number) => match q.kind {
                // The header may come after others, and comparisons can't follow them.
                Kind::ProtoChain => Err(Wrong::new(
                    self.since(first),
                    "'protochain' is supported for TCP only",
                )
                .hint("ip6 proto N finds the header if it is the first")),
                _ => Ok(extension()),
            },
            (Some(Protocol::Link), IPV4) => Ok(Condition::IpVersion(4)),
            (Some(Protocol::Link), IPV6) => Ok(Condition::IpVersion(6)),
            (Some(Protocol::Link), number) if ETHERTYPES_OF_TAGS.contains(&number) => {
                Ok(Condition::Relation(Relation {
                    left: Value::Bytes {
                        base: Base::Link,
                        offset: Box::new(Value::Number(12 + 4 * u32::from(self.tags))),
                        size: 2,
                    },
                    comparison: Comparison::Equal,
                    right: Value::Number(number),
                }))
            }
            (Some(Protocol::Tcp), _) => Err(Wrong::new(
                self.since(first),
                "'proto' can't follow 'tcp': TCP has no protocol field",
            )),
            _ => never(),
        }
    }

    fn number(&mut self) -> Outcome<u32> {
        let at = self.here();
        if self.skip_symbol("(") {
            self.deeper()?;
            let number = self.number()?;
            self.depth -= 1;
            self.expect(")")?;
            return Ok(number);
        }
        match self.take() {
            Some(Token::Number(number)) => Ok(number),
            _ => Err(Wrong::new(at, "a number is missing here")),
        }
    }

    fn vlan(&mut self) -> Outcome<Condition> {
        let first = self.next;
        self.next += 1;
        // `vlan 5` and `vlan (5)` have an id, `vlan and …` has none.
        let has_id = matches!(self.peek(), Some(Token::Number(_)))
            || (self.is_symbol(0, "(") && !self.is_arithmetic_after_parentheses());
        let id = if has_id { Some(self.number()?) } else { None };
        let depth = self.tags;
        self.tags = self.tags.saturating_add(1);
        let id = match id.map(u16::try_from) {
            None => None,
            Some(Ok(id @ 0..=4095)) => Some(id),
            Some(_) => {
                let why = "the id of a VLAN is 4095 at most";
                return Err(Wrong::new(self.since(first), why));
            }
        };
        if depth > 1 {
            return self.never(
                self.since(first),
                "this is about a third VLAN tag, and frames with more than two are not parsed",
            );
        }
        Ok(Condition::Vlan { depth, id })
    }

    /// `broadcast` or `multicast`, with or without a protocol before it.
    fn cast(&mut self, protocol: Option<Protocol>, first: usize) -> Outcome<Condition> {
        let is_broadcast = self.is_word(0, &["broadcast"]);
        self.next += 1;
        let byte = |base, offset| Value::Bytes {
            base,
            offset: Box::new(Value::Number(offset)),
            size: 1,
        };
        let relation = |left, comparison, right| {
            Condition::Relation(Relation {
                left,
                comparison,
                right: Value::Number(right),
            })
        };
        match (protocol, is_broadcast) {
            (None | Some(Protocol::Link), true) => Ok(Condition::Mac(Side::Destination, [0xff; 6])),
            (None | Some(Protocol::Link), false) => Ok(relation(
                Value::Computed(
                    Operation::And,
                    Box::new(byte(Base::Link, 0)),
                    Box::new(Value::Number(1)),
                ),
                Comparison::NotEqual,
                0,
            )),
            (Some(Protocol::Ip), false) => Ok(relation(
                byte(Base::Ip, 16),
                Comparison::GreaterOrEqual,
                224,
            )),
            (Some(Protocol::Ip6), false) => {
                Ok(relation(byte(Base::Ip6, 24), Comparison::Equal, 255))
            }
            (Some(Protocol::Ip), true) => Err(Wrong::new(
                self.since(first),
                "'ip broadcast' is not supported: it needs the network's mask",
            )),
            _ => Err(Wrong::new(
                self.since(first),
                "only ether, ip and ip6 have broadcast or multicast addresses",
            )),
        }
    }

    fn relation(&mut self) -> Outcome<Condition> {
        let first = self.next;
        let left = self.value(0)?;
        let comparison = match self.peek() {
            Some(Token::Symbol("=")) => Comparison::Equal,
            Some(Token::Symbol("!=")) => Comparison::NotEqual,
            Some(Token::Symbol(">")) => Comparison::Greater,
            Some(Token::Symbol(">=")) => Comparison::GreaterOrEqual,
            Some(Token::Symbol("<")) => Comparison::Less,
            Some(Token::Symbol("<=")) => Comparison::LessOrEqual,
            _ => return Err(self.unexpected("a comparison such as '= 0' is missing here")),
        };
        self.next += 1;
        let right = self.value(0)?;
        let mut bases = Vec::new();
        push_bases(&left, &mut bases);
        push_bases(&right, &mut bases);
        if bases.contains(&Base::Absent) {
            return self.never(
                self.since(first),
                "this never matches: only TCP is looked at",
            );
        }
        if bases.contains(&Base::Ip) && bases.contains(&Base::Ip6) {
            return self.never(
                self.since(first),
                "this never matches: no packet is both IPv4 and IPv6",
            );
        }
        Ok(Condition::Relation(Relation {
            left,
            comparison,
            right,
        }))
    }

    /// Arithmetic whose operators have at least this precedence.
    fn value(&mut self, lowest: u8) -> Outcome<Value> {
        self.deeper()?;
        let first = self.next;
        let mut left = self.atom()?;
        while let Some((operation, of_left, of_right)) = self.operation() {
            if of_left < lowest {
                break;
            }
            self.next += 1;
            let right = self.value(of_right)?;
            left = self.compute(operation, left, right, first)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    /// The next operator, and its precedence to the left and to the right. libpcap gives `%` and
    /// `^` no precedence: their right operand is everything that follows.
    fn operation(&self) -> Option<(Operation, u8, u8)> {
        let Some(Token::Symbol(symbol)) = self.peek() else {
            return None;
        };
        Some(match *symbol {
            "|" => (Operation::Or, 1, 2),
            "&" => (Operation::And, 3, 4),
            "<<" => (Operation::ShiftLeft, 5, 6),
            ">>" => (Operation::ShiftRight, 5, 6),
            "+" => (Operation::Add, 7, 8),
            "-" => (Operation::Subtract, 7, 8),
            "*" => (Operation::Multiply, 9, 10),
            "/" => (Operation::Divide, 9, 10),
            "%" => (Operation::Modulo, u8::MAX, 0),
            "^" => (Operation::Xor, u8::MAX, 0),
            _ => return None,
        })
    }

    fn compute(
        &self,
        operation: Operation,
        left: Value,
        right: Value,
        first: usize,
    ) -> Outcome<Value> {
        let wrong = |why| Wrong::new(self.since(first), why);
        match (&left, &right) {
            (Value::Number(x), Value::Number(y)) => {
                return operation.apply(*x, *y).map(Value::Number).map_err(wrong);
            }
            (_, Value::Number(y)) => operation.check(*y).map_err(wrong)?,
            _ => {}
        }
        Ok(Value::Computed(operation, Box::new(left), Box::new(right)))
    }

    fn atom(&mut self) -> Outcome<Value> {
        let first = self.next;
        match self.peek().cloned() {
            Some(Token::Number(number)) => {
                self.next += 1;
                Ok(Value::Number(number))
            }
            Some(Token::Symbol("-")) => {
                self.next += 1;
                let value = self.value(11)?;
                self.compute(Operation::Subtract, Value::Number(0), value, first)
            }
            Some(Token::Symbol("(")) => {
                self.next += 1;
                let value = self.value(0)?;
                self.expect(")")?;
                Ok(value)
            }
            Some(Token::Word(word)) if ["len", "length"].contains(&word.as_str()) => {
                self.next += 1;
                Ok(Value::Length)
            }
            Some(Token::Word(word)) if self.is_symbol(1, "[") => {
                let Some(protocol) = protocol(&word) else {
                    let why = format!("'{word}' is not a protocol whose bytes can be read");
                    return Err(self.unexpected(&why));
                };
                self.next += 2;
                self.bytes(protocol)
            }
            Some(Token::Word(word)) if word.starts_with("icmp") => {
                let why = format!("'{word}' is not supported: only TCP is looked at");
                Err(self.unexpected(&why))
            }
            _ => Err(self.unexpected("a number, len or bytes such as tcp[13] are missing here")),
        }
    }

    /// The rest of an accessor after `tcp[`.
    fn bytes(&mut self, protocol: Protocol) -> Outcome<Value> {
        let offset = Box::new(self.value(0)?);
        let mut size = 1;
        if self.skip_symbol(":") {
            let at = self.here();
            size = match self.take() {
                Some(Token::Number(size @ (1 | 2 | 4))) => size as u8,
                _ => return Err(Wrong::new(at, "only 1, 2 or 4 bytes can be read")),
            };
        }
        self.expect("]")?;
        let base = match protocol {
            Protocol::Link => Base::Link,
            Protocol::Ip => Base::Ip,
            Protocol::Ip6 => Base::Ip6,
            Protocol::Tcp => Base::Tcp,
            Protocol::Other => Base::Absent,
        };
        Ok(Value::Bytes { base, offset, size })
    }
}

fn push_bases(value: &Value, bases: &mut Vec<Base>) {
    match value {
        Value::Number(_) | Value::Length => {}
        Value::Bytes { base, offset, .. } => {
            bases.push(*base);
            push_bases(offset, bases);
        }
        Value::Computed(_, left, right) => {
            push_bases(left, bases);
            push_bases(right, bases);
        }
    }
}

fn is_joint(word: &str) -> bool {
    ["and", "or", "mask"].contains(&word)
}

fn is_keyword(word: &str) -> bool {
    is_joint(word)
        || QUALIFIERS.contains(&word)
        || protocol(word).is_some()
        || UNSUPPORTED.iter().any(|(known, _)| *known == word)
        || [
            "len",
            "length",
            "less",
            "greater",
            "vlan",
            "inbound",
            "outbound",
            "broadcast",
            "multicast",
        ]
        .contains(&word)
}

fn protocol(word: &str) -> Option<Protocol> {
    Some(match word {
        "ether" | "link" | "ppp" | "slip" | "fddi" | "tr" => Protocol::Link,
        "ip" => Protocol::Ip,
        "ip6" => Protocol::Ip6,
        "tcp" => Protocol::Tcp,
        word if OTHER_PROTOCOLS.contains(&word) => Protocol::Other,
        _ => return None,
    })
}

fn is_extension(number: u32) -> bool {
    IPV6_EXTENSIONS.iter().any(|(_, known)| *known == number)
}

fn protocol_number(name: &str, at: Range<usize>) -> Outcome<u8> {
    const RESERVED: u8 = 255;
    let file = lookup::PROTOCOLS;
    match lookup::protocol_number(name) {
        Ok(Some(number)) => Ok(number),
        // A container may have no such file. Those that are followed by TCP are known without it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(RESERVED),
        Ok(None) => Err(Wrong::new(at, format!("no protocol '{name}' in {file}"))),
        Err(error) => Err(Wrong::new(
            at,
            format!("'{name}' can't be looked up in {file}: {error}"),
        )),
    }
}

fn service(name: &str, at: Range<usize>) -> Outcome<u16> {
    match lookup::service_port(name) {
        Ok(Some(port)) => Ok(port),
        Ok(None) => {
            let why = format!("no TCP service '{name}' in {}", lookup::SERVICES);
            let wrong = Wrong::new(at, why);
            let range = name.split_once('-');
            let ports = range.map(|(first, last)| (first.parse::<u16>(), last.parse::<u16>()));
            Err(match matches!(ports, Some((Ok(_), Ok(_)))) {
                true => wrong.hint(format!("for a range: portrange {name}")),
                false => wrong,
            })
        }
        Err(error) => Err(Wrong::new(
            at,
            format!(
                "'{name}' is not a number, and {} can't be read: {error}",
                lookup::SERVICES
            ),
        )),
    }
}

fn join(left: Condition, is_and: bool, right: Condition) -> Condition {
    match (left, is_and) {
        (Condition::All(mut parts), true) => {
            parts.push(right);
            Condition::All(parts)
        }
        (Condition::Any(mut parts), false) => {
            parts.push(right);
            Condition::Any(parts)
        }
        (left, true) => Condition::All(vec![left, right]),
        (left, false) => Condition::Any(vec![left, right]),
    }
}
