//! The names that the initiator of a connection asks for: server name and ALPN of a TLS ClientHello,
//! host and method of an HTTP request.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tls_parser::{
    SNIType, TlsExtension, TlsMessage, TlsMessageHandshake, TlsRecordType,
    parse_tls_client_hello_extension, parse_tls_message_handshake, parse_tls_record_header,
};

use super::flow::Flow;
use crate::skel::{NAME_BYTES, NameChunk};

/// The longest name that is kept. A domain name has at most 253 characters, and a Host header may add
/// a port.
const LONGEST: usize = 300;

/// The most headers of a request that are parsed.
const HEADERS: usize = 128;

/// The names in the first bytes that an initiator sends. One that is not there, or is cut off, is
/// `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    /// The server name of a ClientHello (RFC 6066, 3), or the Host of an HTTP request.
    pub server: Option<Vec<u8>>,
    /// The protocols that a ClientHello offers (RFC 7301), in its order.
    pub alpn: Option<Vec<Vec<u8>>>,
    /// The method of an HTTP request.
    pub http_method: Option<Vec<u8>>,
}

impl Name {
    fn size(&self) -> usize {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let alpn = self.alpn.iter().flatten();
        len(&self.server) + len(&self.http_method) + alpn.map(|one| one.len() + 24).sum::<usize>()
    }
}

/// Reads the names in the first bytes that an initiator sends. `None` if more bytes are needed; if
/// these are `all` that there will be, there is always a result.
pub fn read(bytes: &[u8], all: bool) -> Option<Name> {
    let read = match bytes.first() {
        // The content type of a handshake (RFC 8446, 5.1), which begins no method.
        Some(22) => read_tls(bytes),
        Some(_) => read_http(bytes, all),
        None => None,
    };
    match all {
        true => Some(read.unwrap_or_default()),
        false => read,
    }
}

/// A ClientHello may be in several records. `None` if it is not whole.
fn read_tls(bytes: &[u8]) -> Option<Name> {
    let mut handshake = Vec::new();
    let mut rest = bytes;
    loop {
        let (data, header) = match parse_tls_record_header(rest) {
            Ok(parsed) => parsed,
            Err(error) if error.is_incomplete() => return None,
            Err(_) => return Some(Name::default()),
        };
        if header.record_type != TlsRecordType::Handshake || header.version.0 >> 8 != 3 {
            return Some(Name::default());
        }
        let (fragment, after) = data.split_at(data.len().min(header.len.into()));
        handshake.extend_from_slice(fragment);
        match parse_tls_message_handshake(&handshake) {
            Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) => {
                return Some(read_extensions(hello.ext.unwrap_or_default()));
            }
            Err(error) if error.is_incomplete() && is_short(&handshake) => {}
            _ => return Some(Name::default()),
        }
        if fragment.len() < usize::from(header.len) {
            return None;
        }
        rest = after;
    }
}

/// Whether this is the beginning of a ClientHello, but not all of it (RFC 8446, 4).
fn is_short(handshake: &[u8]) -> bool {
    match handshake {
        [1, a, b, c, body @ ..] => body.len() < u32::from_be_bytes([0, *a, *b, *c]) as usize,
        [1, ..] | [] => true,
        _ => false,
    }
}

fn read_extensions(mut extensions: &[u8]) -> Name {
    let mut name = Name::default();
    // One by one, so that an extension that the parser does not understand hides no other.
    while let [_, _, high, low, rest @ ..] = extensions {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if len > rest.len() {
            break;
        }
        let (extension, after) = extensions.split_at(4 + len);
        match parse_tls_client_hello_extension(extension) {
            Ok((_, TlsExtension::SNI(names))) => {
                let host = names.iter().find(|(kind, _)| *kind == SNIType::HostName);
                name.server = host.and_then(|(_, host)| kept(host));
            }
            Ok((_, TlsExtension::ALPN(protocols))) => {
                let offered = protocols.iter().map(|protocol| protocol.to_vec());
                name.alpn = Some(offered.collect());
            }
            _ => {}
        }
        extensions = after;
    }
    name
}

fn read_http(bytes: &[u8], all: bool) -> Option<Name> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match parse(&mut request, bytes) {
        Ok(httparse::Status::Complete(_)) => Some(named_by(&request)),
        Ok(httparse::Status::Partial) if !all => None,
        // The parser returns headers of whole requests only, so the request is ended after its last
        // whole line.
        Ok(httparse::Status::Partial) if request.version.is_some() => {
            let lines = bytes.iter().rposition(|byte| *byte == b'\n')? + 1;
            let ended = [&bytes[..lines], b"\r\n"].concat();
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut request = httparse::Request::new(&mut headers);
            let is_whole = parse(&mut request, &ended).is_ok_and(|status| status.is_complete());
            is_whole.then(|| named_by(&request))
        }
        // What follows the first line is not a header, or there are too many.
        Err(_) if request.version.is_some() => Some(Name {
            http_method: method_of(&request),
            ..Name::default()
        }),
        _ => Some(Name::default()),
    }
}

/// Skips invalid header lines, so that they do not hide the valid ones.
fn parse<'b>(request: &mut httparse::Request<'_, 'b>, bytes: &'b [u8]) -> httparse::Result<usize> {
    httparse::ParserConfig::default()
        .ignore_invalid_headers_in_requests(true)
        .parse_request(request, bytes)
}

fn method_of(request: &httparse::Request<'_, '_>) -> Option<Vec<u8>> {
    request.method.and_then(|method| kept(method.as_bytes()))
}

fn named_by(request: &httparse::Request<'_, '_>) -> Name {
    let host = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("host"));
    Name {
        server: host.and_then(|header| kept(header.value)),
        alpn: None,
        http_method: method_of(request),
    }
}

fn kept(name: &[u8]) -> Option<Vec<u8>> {
    (1..=LONGEST).contains(&name.len()).then(|| name.to_vec())
}

/// The first bytes that an initiator sends, as they arrive, in any order. Of bytes that are sent
/// twice, the first copy counts.
#[derive(Debug, Default)]
struct Assembly {
    /// All bytes up to the first gap.
    bytes: Vec<u8>,
    /// Pieces after a gap, each with its offset.
    ahead: Vec<(usize, Vec<u8>)>,
}

impl Assembly {
    fn take(&mut self, at: usize, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(NAME_BYTES.saturating_sub(at))];
        if at > self.bytes.len() {
            // Bounded, because a peer may send the same bytes again and again.
            let ahead: usize = self.ahead.iter().map(|(_, bytes)| bytes.len()).sum();
            if ahead + bytes.len() <= NAME_BYTES {
                self.ahead.push((at, bytes.to_vec()));
            }
            return;
        }
        self.append(at, bytes);
        while let Some(next) = self
            .ahead
            .iter()
            .position(|(at, _)| *at <= self.bytes.len())
        {
            let (at, bytes) = self.ahead.swap_remove(next);
            self.append(at, &bytes);
        }
    }

    fn append(&mut self, at: usize, bytes: &[u8]) {
        let known = self.bytes.len() - at;
        self.bytes
            .extend_from_slice(bytes.get(known..).unwrap_or_default());
    }

    fn size(&self) -> usize {
        let ahead = self.ahead.iter().map(|(_, bytes)| bytes.len());
        self.bytes.len() + ahead.sum::<usize>()
    }
}

/// Which flow a name belongs to: its ends, interface and VLANs, and when it began, because a later flow
/// may have the same ends.
type Id = ([[u8; 16]; 2], [u16; 2], u16, [u16; 2], u64);

#[derive(Debug)]
enum Known {
    Reading(Assembly),
    Read(Rc<Name>),
}

impl Known {
    fn size(&self) -> usize {
        ENTRY
            + match self {
                Self::Reading(assembly) => assembly.size(),
                Self::Read(name) => name.size(),
            }
    }
}

/// The memory for names, and for bytes in which none was found yet. If they need more, the oldest are
/// dropped.
const MEMORY: usize = 32 << 20;

/// The memory that is counted for an entry, in addition to its bytes.
const ENTRY: usize = 256;

/// The names of the flows that are in the table.
#[derive(Debug, Default)]
pub struct Names {
    flows: HashMap<Id, Known>,
    /// The ids in the order of their arrival. Some are of entries that were removed since.
    order: VecDeque<Id>,
    size: usize,
}

impl Names {
    /// Takes from an event the bytes that an initiator sent. False if the event is malformed.
    pub fn take(&mut self, event: &[u8]) -> bool {
        let Some((head, bytes)) = event.split_at_checked(size_of::<NameChunk>()) else {
            return false;
        };
        let mut chunk = NameChunk::default();
        // What follows may be padded.
        let bytes = plain::copy_from_bytes(&mut chunk, head)
            .ok()
            .and_then(|()| bytes.get(..chunk.len.into()));
        let Some(bytes) = bytes else {
            return false;
        };
        let key = &chunk.key;
        let id = (key.addr, key.port, key.interface, key.vlan, chunk.start_ns);
        self.add(id, chunk.at.into(), bytes);
        true
    }

    fn add(&mut self, id: Id, at: usize, bytes: &[u8]) {
        let before = self.flows.get(&id).map_or(0, Known::size);
        let order = &mut self.order;
        let known = self.flows.entry(id).or_insert_with(|| {
            order.push_back(id);
            Known::Reading(Assembly::default())
        });
        let Known::Reading(assembly) = known else {
            return;
        };
        assembly.take(at, bytes);
        let is_all = assembly.bytes.len() >= NAME_BYTES;
        if let Some(name) = read(&assembly.bytes, is_all) {
            *known = Known::Read(Rc::new(name));
        }
        self.size = (self.size + known.size()).saturating_sub(before);
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        while self.size > MEMORY
            && let Some(oldest) = self.order.pop_front()
        {
            self.drop_entry(&oldest);
        }
        if self.order.len() > 2 * self.flows.len() + 1024 {
            self.order.retain(|id| self.flows.contains_key(id));
        }
    }

    fn drop_entry(&mut self, id: &Id) -> Option<Known> {
        let known = self.flows.remove(id)?;
        self.size = self.size.saturating_sub(known.size());
        Some(known)
    }

    /// The name of a flow that goes on, as far as it is known.
    pub fn of(&self, flow: &Flow) -> Option<Rc<Name>> {
        match self.flows.get(&id_of(flow))? {
            Known::Read(name) => Some(Rc::clone(name)),
            Known::Reading(_) => None,
        }
    }

    /// The name of a flow that is over, which is then forgotten.
    pub fn take_of(&mut self, flow: &Flow) -> Option<Rc<Name>> {
        match self.drop_entry(&id_of(flow))? {
            Known::Read(name) => Some(name),
            Known::Reading(assembly) => read(&assembly.bytes, true).map(Rc::new),
        }
    }
}

/// A flow, and what its initiator has asked for.
#[derive(Clone)]
pub struct NamedFlow {
    /// The flow.
    pub flow: Flow,
    /// `None` if it is not known, or not yet.
    pub name: Option<Rc<Name>>,
}

fn id_of(flow: &Flow) -> Id {
    let key = &flow.raw.key;
    let start = flow.raw.start_ns;
    (key.addr, key.port, key.interface, key.vlan, start)
}

/// Puts chunks of a connection together in the given order, and reads their names: for the fuzzer.
pub fn read_chunks<'a>(chunks: impl IntoIterator<Item = (usize, &'a [u8])>) -> Name {
    let mut assembly = Assembly::default();
    for (at, bytes) in chunks {
        assembly.take(at, bytes);
    }
    read(&assembly.bytes, true).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello with these extensions, in records of at most this many bytes.
    fn hello(extensions: &[u8], record: usize) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        let mut records = Vec::new();
        for fragment in message.chunks(record) {
            records.extend([22, 3, 1]);
            records.extend((fragment.len() as u16).to_be_bytes());
            records.extend(fragment);
        }
        records
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        let len = name.len() as u16;
        let mut data = (len + 3).to_be_bytes().to_vec();
        data.push(0);
        data.extend(len.to_be_bytes());
        data.extend(name);
        extension(0, &data)
    }

    fn example() -> Vec<u8> {
        let alpn = extension(16, b"\0\x0c\x02h2\x08http/1.1");
        // A key share that no parser understands hides nothing.
        let broken = extension(51, b"\xff\xff\xff");
        [broken, server_name(b"a.example"), alpn].concat()
    }

    fn named(server: &str, method: &str) -> Name {
        let some = |text: &str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
        Name {
            server: some(server),
            alpn: None,
            http_method: some(method),
        }
    }

    #[test]
    fn a_client_hello_names_its_server_and_protocols_in_any_number_of_records() {
        let expected = Name {
            server: Some(b"a.example".to_vec()),
            alpn: Some(vec![b"h2".to_vec(), b"http/1.1".to_vec()]),
            http_method: None,
        };
        for record in [1, 2, 3, 5, 40, 16_000] {
            let bytes = hello(&example(), record);
            assert_eq!(read(&bytes, false), Some(expected.clone()), "{record}");
            for cut in 1..bytes.len() {
                assert_eq!(read(&bytes[..cut], false), None, "{record} {cut}");
                assert_eq!(read(&bytes[..cut], true), Some(Name::default()));
            }
        }
    }

    #[test]
    fn other_bytes_than_a_client_hello_or_a_request_are_recognized_at_once() {
        for bytes in [
            &b"\x16\x03\x01\x00\x05\x02\0\0\x01\x01"[..],
            b"\x16\x02\x01\x00\x05\x01\0\0\x01\x01",
            b"\x17\x03\x03\0\x01x",
            b"*1\r\n$4\r\nPING\r\n",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\0\0\0\0",
            b"NICK somebody\r\n",
        ] {
            assert_eq!(read(bytes, false), Some(Name::default()), "{bytes:?}");
        }
    }

    #[test]
    fn a_request_names_its_host_and_method_even_if_its_end_is_cut() {
        let whole = b"GET / HTTP/1.1\r\nAccept: */*\r\nhOst:  a.example:8080 \r\nX: y\r\n\r\n";
        let name = named("a.example:8080", "GET");
        assert_eq!(read(whole, false), Some(name.clone()));
        let cut = &whole[..whole.len() - 6];
        assert_eq!(read(cut, false), None);
        assert_eq!(read(cut, true), Some(name));
        let host_cut = &whole[..40];
        assert_eq!(read(host_cut, true), Some(named("", "GET")));
        assert_eq!(read(&whole[..9], true), Some(Name::default()));
        let bad = b"GET / HTTP/1.1\r\nno header\r\nHost: a.example\r\n\r\n";
        assert_eq!(read(bad, false), Some(named("a.example", "GET")));
        let many = [&whole[..16], &b"a:b\r\n".repeat(HEADERS + 1), b"\r\n"].concat();
        assert_eq!(read(&many, false), Some(named("", "GET")));
        let no_host = b"CONNECT b.example:443 HTTP/1.0\r\n\r\n";
        assert_eq!(read(no_host, false), Some(named("", "CONNECT")));
    }

    #[test]
    fn chunks_may_come_in_any_order_and_the_first_copy_of_a_byte_counts() {
        let bytes = hello(&example(), 100);
        let whole = read(&bytes, true).unwrap();
        let (first, second, third) = (&bytes[..20], &bytes[20..60], &bytes[60..]);
        let lie = vec![0xee; 50];
        for chunks in [
            vec![(0, first), (20, second), (60, third)],
            vec![(60, third), (20, second), (0, first)],
            vec![(20, second), (60, third), (20, second), (0, first)],
            vec![(0, &bytes[..50]), (0, &lie), (20, second), (60, third)],
        ] {
            assert_eq!(read_chunks(chunks), whole);
        }
        assert_eq!(read_chunks([(0, first), (60, third)]), Name::default());
    }

    #[test]
    fn names_take_bounded_memory_and_the_oldest_go_first() {
        let mut names = Names::default();
        let id = |number: u64| ([[0; 16]; 2], [1, 2], 0, [0; 2], number);
        for number in 0..100_000 {
            names.add(id(number), 0, &[b'a'; 3000]);
            names.add(id(number), 3500, &[b'a'; 596]);
            assert!(names.size <= MEMORY);
        }
        assert!(!names.flows.contains_key(&id(0)));
        assert!(names.flows.contains_key(&id(99_999)));
        assert!(names.order.len() <= 2 * names.flows.len() + 1024);
        let sizes = names.flows.values().map(Known::size);
        assert_eq!(names.size, sizes.sum::<usize>());
        let ids = names.flows.keys().copied().collect::<Vec<_>>();
        ids.iter().for_each(|id| drop(names.drop_entry(id)));
        assert_eq!(names.size, 0);
    }
}
