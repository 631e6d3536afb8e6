//! A server for two pages, in one thread that never waits: the sandbox allows no other thread, so
//! neither tiny_http (a thread per client) nor hyper (a runtime) can be used. httparse reads the
//! requests.

use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, listen, recv,
    send, setsockopt, socket, sockopt,
};

use crate::failure::Failure;

/// The most clients at a time. Others wait in the accept queue.
const CLIENTS_MAX: usize = 64;

/// The length of the accept queue.
const BACKLOG: i32 = 256;

/// The most bytes of a request, and the most header fields.
const REQUEST_MAX: usize = 8192;
const FIELDS_MAX: usize = 64;

/// Bytes that are read at a time.
const CHUNK: usize = 2048;

/// Requests and answers of one client before it is the turn of the others.
const STEPS_AT_ONCE: usize = 16;

/// How long a request may take to arrive, and an answer to be read.
const REQUEST_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long a connection may be idle between two requests.
const IDLE_TIME: Duration = Duration::from_secs(150);

/// While there are [`CLIENTS_MAX`] clients, one that has sent no request or read no answer for this
/// long is disconnected when another one comes.
const PATIENCE: Duration = Duration::from_millis(500);

/// The pause after a failed accept(2), for lack of descriptors or memory.
const REST: Duration = Duration::from_millis(200);

/// The parts of a request that the answer depends on.
pub struct Request<'a> {
    /// The path, without a query.
    pub path: &'a str,
    /// The `Accept` header.
    pub accept: &'a str,
}

/// The answer to a request.
#[derive(Clone)]
pub struct Answer {
    /// Such as `200 OK`.
    pub status: &'static str,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body, which several clients may share.
    pub body: Rc<str>,
}

impl Answer {
    fn error(status: &'static str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{status}\n").into(),
        }
    }

    /// There is no such page.
    pub fn not_found() -> Self {
        Self::error("404 Not Found")
    }
}

/// The server.
pub struct Server {
    listener: TcpListener,
    clients: Vec<Client>,
    /// Until then no client is accepted.
    rests_until: Instant,
}

impl Server {
    /// Listens at this address.
    ///
    /// # Errors
    /// The address is in use, or not one of this host.
    pub fn listen(address: SocketAddr) -> Result<Self, Failure> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let failed = |errno: Errno| {
            let failure = Failure::from(
                anyhow::Error::from(errno).context(format!("failed to listen on {address}")),
            );
            match errno {
                Errno::EADDRINUSE => failure.hint(
                    "another process listens there, perhaps another exporter: `ss -ltnp` names it; --listen ADDR:PORT chooses another port",
                ),
                Errno::EADDRNOTAVAIL => {
                    failure.hint("this machine does not have that address: `ip addr` lists those it has")
                }
                Errno::EACCES => failure.hint("ports below 1024 need CAP_NET_BIND_SERVICE"),
                _ => failure,
            }
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(family, SockType::Stream, flags, None).map_err(failed)?;
        // A restart need not wait until old connections have timed out.
        setsockopt(&made, sockopt::ReuseAddr, &true).map_err(failed)?;
        bind(made.as_raw_fd(), &SockaddrStorage::from(address)).map_err(failed)?;
        let backlog = Backlog::new(BACKLOG).map_err(failed)?;
        listen(&made, backlog).map_err(failed)?;
        Ok(Self {
            listener: made.into(),
            clients: Vec::new(),
            rests_until: Instant::now(),
        })
    }

    /// The address, with the port that the kernel has chosen if that was 0.
    ///
    /// # Errors
    /// getsockname(2) fails.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        self.listener
            .local_addr()
            .context("failed to ask for the address of the server")
    }

    /// The descriptor of the listening socket.
    pub fn descriptor(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// The descriptors and events for poll(2).
    pub fn events(&self) -> Vec<PollFd<'_>> {
        let mut events = Vec::with_capacity(self.clients.len() + 1);
        if self.has_room(Instant::now()) {
            events.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        for client in &self.clients {
            events.push(PollFd::new(client.stream.as_fd(), client.interest()));
        }
        events
    }

    /// The time when there is something to do even without an event.
    pub fn due(&self) -> Option<Instant> {
        if self.clients.iter().any(|client| client.has_more) {
            return Some(Instant::now());
        }
        let deadlines = self.clients.iter().map(Client::deadline);
        let oldest = self.clients.iter().map(|client| client.since).min();
        let eviction = oldest.filter(|_| self.is_full()).map(|at| at + PATIENCE);
        let room = [eviction, Some(self.rests_until)].into_iter().flatten();
        deadlines
            .chain(room.filter(|at| *at > Instant::now()))
            .min()
    }

    /// Does what can be done without waiting.
    pub fn serve(&mut self, respond: &mut impl FnMut(&Request<'_>) -> Answer) {
        let now = Instant::now();
        // When it is full, each client gets one last answer, so that no client can keep others out
        // by sending request after request.
        let is_full = self.is_full();
        self.clients
            .retain_mut(|client| client.deadline() > now && client.go_on(is_full, respond));
        while self.has_room(now) {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::ConnectionAborted
                    ) {
                        self.rests_until = now + REST;
                    }
                    return;
                }
            };
            if self.is_full()
                && let Some(at) = self.may_evict(now)
            {
                self.clients.swap_remove(at);
            }
            let mut client = Client::new(stream);
            if client.go_on(is_full, respond) {
                self.clients.push(client);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.clients.len() >= CLIENTS_MAX
    }

    /// Whether another client can be accepted, perhaps after one is disconnected.
    fn has_room(&self, now: Instant) -> bool {
        self.rests_until <= now && (!self.is_full() || self.may_evict(now).is_some())
    }

    /// The client that has kept the server waiting for the longest time.
    fn may_evict(&self, now: Instant) -> Option<usize> {
        let clients = self.clients.iter().enumerate();
        clients
            .filter(|(_, client)| client.since + PATIENCE <= now)
            .min_by_key(|(_, client)| client.since)
            .map(|(at, _)| at)
    }
}

/// The state of a client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It sends its request.
    Asking,
    /// It reads its answer, and may ask again after that.
    Reading,
    /// It reads its last answer.
    ReadingLast,
    /// It has its last answer. What it still sends is thrown away, because a connection that is closed
    /// with unread data is reset, which can cost the client its answer.
    Leaving,
}

struct Client {
    stream: TcpStream,
    doing: Doing,
    /// When it began to do that.
    since: Instant,
    /// It has been answered before.
    is_known: bool,
    /// There may be more to do without an event.
    has_more: bool,
    request: Vec<u8>,
    head: String,
    body: Rc<str>,
    sent: usize,
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            doing: Doing::Asking,
            since: Instant::now(),
            is_known: false,
            has_more: false,
            request: Vec::new(),
            head: String::new(),
            body: Rc::from(""),
            sent: 0,
        }
    }

    fn interest(&self) -> PollFlags {
        match self.doing {
            Doing::Asking | Doing::Leaving => PollFlags::POLLIN,
            Doing::Reading | Doing::ReadingLast => PollFlags::POLLOUT,
        }
    }

    fn deadline(&self) -> Instant {
        self.since
            + match self.doing {
                Doing::Asking if self.is_known && self.request.is_empty() => IDLE_TIME,
                Doing::Asking | Doing::Leaving => REQUEST_TIME,
                Doing::Reading | Doing::ReadingLast => ANSWER_TIME,
            }
    }

    fn begin(&mut self, doing: Doing) {
        self.doing = doing;
        self.since = Instant::now();
    }

    /// Reads, answers and writes as far as the socket allows. False: the client is gone.
    fn go_on(&mut self, is_last: bool, respond: &mut impl FnMut(&Request<'_>) -> Answer) -> bool {
        self.has_more = false;
        for _ in 0..STEPS_AT_ONCE {
            let done = match self.doing {
                Doing::Asking => self.ask(is_last, respond),
                Doing::Reading | Doing::ReadingLast => self.read_answer(),
                Doing::Leaving => self.leave(),
            };
            match done {
                Ok(()) => {}
                Err(error) => return error == Errno::EAGAIN || error == Errno::EINTR,
            }
        }
        self.has_more = true;
        true
    }

    /// Takes a request, if it is there as a whole, and makes its answer.
    fn ask(
        &mut self,
        is_last: bool,
        respond: &mut impl FnMut(&Request<'_>) -> Answer,
    ) -> Result<(), Errno> {
        loop {
            if let Some(mut found) = parse(&self.request) {
                found.is_last |= is_last;
                self.answer(found, respond);
                return Ok(());
            }
            let mut chunk = [0; CHUNK];
            let len = recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT)?;
            if len == 0 {
                return Err(Errno::ECONNRESET);
            }
            if self.is_known && self.request.is_empty() {
                self.since = Instant::now();
            }
            self.request.extend_from_slice(&chunk[..len]);
        }
    }

    fn answer(&mut self, found: Parsed, respond: &mut impl FnMut(&Request<'_>) -> Answer) {
        let Parsed {
            len,
            ask,
            is_last,
            is_head,
        } = found;
        let answer = match &ask {
            Ok((path, accept)) => respond(&Request { path, accept }),
            Err(status) => Answer::error(status),
        };
        let connection = if is_last { "close" } else { "keep-alive" };
        let allow = match answer.status.starts_with("405") {
            true => "Allow: GET, HEAD\r\n",
            false => "",
        };
        self.head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {connection}\r\n{allow}\r\n",
            answer.status,
            answer.content_type,
            answer.body.len()
        );
        self.body = match is_head {
            true => Rc::from(""),
            false => answer.body,
        };
        self.sent = 0;
        self.request.drain(..len);
        self.is_known = true;
        self.begin(match is_last {
            true => Doing::ReadingLast,
            false => Doing::Reading,
        });
    }

    fn read_answer(&mut self) -> Result<(), Errno> {
        loop {
            let head = self.head.as_bytes();
            let body = self.body.as_bytes();
            let rest = match self.sent < head.len() {
                true => &head[self.sent..],
                false => &body[self.sent - head.len()..],
            };
            if rest.is_empty() {
                break;
            }
            // No signal if the client has gone.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            self.sent += send(self.stream.as_raw_fd(), rest, flags)?;
        }
        // The memory is given back, however long the client stays.
        self.head = String::new();
        self.body = Rc::from("");
        self.request.shrink_to_fit();
        self.begin(match self.doing {
            Doing::ReadingLast => {
                // Some clients read until the connection ends. If shutdown(2) fails, the client is
                // gone.
                self.stream
                    .shutdown(Shutdown::Write)
                    .map_err(|_| Errno::ECONNRESET)?;
                Doing::Leaving
            }
            _ => Doing::Asking,
        });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Errno> {
        let mut chunk = [0; CHUNK];
        match recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT)? {
            0 => Err(Errno::ECONNRESET),
            _ => Ok(()),
        }
    }
}

/// A complete request, or an invalid one.
struct Parsed {
    /// Its length in bytes.
    len: usize,
    /// Path and `Accept` header, or the status of the error.
    ask: Result<(String, String), &'static str>,
    /// The connection is to be closed after it.
    is_last: bool,
    is_head: bool,
}

/// Parses the first request. `None`: it is not complete yet.
fn parse(bytes: &[u8]) -> Option<Parsed> {
    let bad = |status| {
        Some(Parsed {
            len: bytes.len(),
            ask: Err(status),
            is_last: true,
            is_head: false,
        })
    };
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= REQUEST_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_MAX => return None,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return bad("431 Request Header Fields Too Large");
        }
        Err(_) => return bad("400 Bad Request"),
    };
    let (method, target) = (
        request.method.unwrap_or_default(),
        request.path.unwrap_or_default(),
    );
    let field = |name: &str| {
        let mut fields = request.headers.iter();
        let found = fields.find(|field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| String::from_utf8_lossy(field.value))
    };
    // GET and HEAD have no body in practice, so bodies are not parsed.
    let has_body = field("transfer-encoding").is_some()
        || field("content-length").is_some_and(|length| length.trim() != "0");
    if !matches!(method, "GET" | "HEAD") {
        return bad("405 Method Not Allowed");
    }
    if has_body {
        return bad("400 Bad Request");
    }
    let connection = field("connection").unwrap_or_default().to_ascii_lowercase();
    let mut options = connection.split(',').map(str::trim);
    // HTTP/1.0 keeps a connection only on request, which is not supported.
    let is_last = request.version != Some(1) || options.any(|option| option == "close");
    let path = target.split('?').next().unwrap_or_default();
    Some(Parsed {
        len,
        ask: Ok((
            path.to_owned(),
            field("accept").unwrap_or_default().into_owned(),
        )),
        is_last,
        is_head: method == "HEAD",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(bytes: &[u8]) -> Option<Result<String, &'static str>> {
        parse(bytes).map(|found| found.ask.map(|(path, _)| path))
    }

    #[test]
    fn a_request_is_taken_when_it_is_whole() {
        let whole = b"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\nGET /";
        let end = whole.len() - 5;
        for len in 0..end {
            assert!(parse(&whole[..len]).is_none(), "{len}");
        }
        let found = parse(whole).unwrap();
        assert_eq!(
            (found.len, found.is_last, found.is_head),
            (end, false, false)
        );
        assert_eq!(
            found.ask,
            Ok(("/metrics".to_owned(), "text/plain".to_owned()))
        );
    }

    #[test]
    fn anything_but_a_request_for_a_page_is_refused() {
        for (request, expected) in [
            ("POST / HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            (
                "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
                "400 Bad Request",
            ),
            (
                "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "400 Bad Request",
            ),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "400 Bad Request"),
            ("\x16\x03\x01\x02\x00\x01\x00\x01", "400 Bad Request"),
        ] {
            assert_eq!(status(request.as_bytes()), Some(Err(expected)), "{request}");
        }
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(FIELDS_MAX + 1)
        );
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(REQUEST_MAX));
        for request in [many, long] {
            let expected = Some(Err("431 Request Header Fields Too Large"));
            assert_eq!(status(request.as_bytes()), expected);
        }
    }

    #[test]
    fn a_connection_is_kept_where_http_says_so() {
        for (request, is_last) in [
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", true),
            ("HEAD / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", true),
        ] {
            let found = parse(request.as_bytes()).unwrap();
            assert_eq!(found.is_last, is_last, "{request}");
        }
    }
}
