//! connect-trace's lines.

use std::borrow::Cow;

use nix::errno::Errno;

use super::clock::{Clock, UnixNanos};
use super::json::{Object, push_addr, push_int, push_port};
use super::line::Line;
use super::number::Integer;
use super::packet::push_opt_addr;
use crate::key;
use crate::record::Connection;

/// Writes steps of connections as text or JSON.
pub struct ConnectWriter {
    /// The backend that sees them.
    pub backend: &'static str,
    /// Ends are shown, with the columns that they alone have.
    pub with_close: bool,
}

impl ConnectWriter {
    /// The header line of the text format.
    pub fn text_header(&self, out: &mut Line<'_>) {
        out.extend_from_slice(
            b"TIME            EVENT       PID     COMM             IP SADDR                                   SPORT DADDR                                   DPORT LAT(us)    ERROR",
        );
        if self.with_close {
            out.extend_from_slice(b"        DUR(us)      TX(B)      RX(B)      CLOSED-BY");
        }
        out.push(b'\n');
    }

    /// One line of text.
    pub fn text(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        connection: &Connection,
    ) {
        let raw = &connection.raw;
        let has_process = connection.has_process();
        clock.push_local_micros(out, at);
        out.push(b' ');
        out.pad_right(12, |out| {
            out.extend_from_slice(connection.name().as_bytes())
        });
        out.pad_right(8, |out| push_opt(out, has_process.then_some(raw.pid)));
        out.pad_right(17, |out| match connection.comm() {
            [] => out.push(b'-'),
            comm => out.push_text(comm),
        });
        push_int(out, raw.ip_version);
        out.extend_from_slice(b"  ");
        out.pad_right(40, |out| push_opt_addr(out, connection.saddr()));
        push_port(out, connection.sport());
        out.push(b' ');
        out.pad_right(40, |out| push_opt_addr(out, connection.daddr()));
        push_port(out, Some(raw.dport));
        out.push(b' ');
        out.pad_right(11, |out| push_opt(out, micros(connection.latency_ns())));
        let error = connection.error().map(errno_name);
        let error = error.as_deref().unwrap_or("-").as_bytes();
        if self.with_close {
            out.pad_right(13, |out| out.extend_from_slice(error));
            let closed = connection.is_closed();
            out.pad_right(13, |out| push_opt(out, micros(connection.duration_ns())));
            out.pad_right(11, |out| push_opt(out, closed.then_some(raw.tx_bytes)));
            out.pad_right(11, |out| push_opt(out, closed.then_some(raw.rx_bytes)));
            out.extend_from_slice(connection.closed_by().unwrap_or("-").as_bytes());
        } else {
            out.extend_from_slice(error);
        }
        out.push(b'\n');
    }

    /// One line of JSON; `container` is where the process is.
    pub fn json(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        connection: &Connection,
        container: Option<&str>,
    ) {
        let raw = &connection.raw;
        let has_process = connection.has_process();
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), connection.name());
        line.opt_int(key!("pid"), has_process.then_some(raw.pid));
        line.opt_int(key!("tid"), has_process.then_some(raw.tid));
        line.opt_int(key!("uid"), has_process.then_some(raw.uid));
        if has_process {
            line.string(key!("comm"), connection.comm());
        } else {
            line.null(key!("comm"));
        }
        line.int(key!("ip_version"), raw.ip_version);
        match connection.saddr() {
            Some(addr) => line.with(key!("saddr"), |out| push_addr(out, addr)),
            None => line.null(key!("saddr")),
        };
        line.opt_int(key!("sport"), connection.sport());
        match connection.daddr() {
            Some(addr) => line.with(key!("daddr"), |out| push_addr(out, addr)),
            None => line.null(key!("daddr")),
        };
        line.int(key!("dport"), raw.dport);
        line.opt_name(key!("direction"), connection.direction());
        line.opt_int(key!("ret"), connection.ret());
        line.opt_name(key!("error"), connection.error().map(errno_name).as_deref());
        line.opt_int(key!("latency_us"), micros(connection.latency_ns()));
        if connection.is_closed() {
            line.opt_int(key!("duration_us"), micros(connection.duration_ns()));
            line.int(key!("tx_bytes"), raw.tx_bytes);
            line.int(key!("rx_bytes"), raw.rx_bytes);
            line.opt_name(key!("closed_by"), connection.closed_by());
        }
        line.opt_int(key!("netns"), Some(raw.netns).filter(|inode| *inode != 0));
        line.opt_int(key!("cgroup_id"), has_process.then_some(raw.cgroup_id));
        match container {
            Some(container) => line.string(key!("container"), container.as_bytes()),
            None => line.null(key!("container")),
        };
        line.name(key!("backend"), self.backend);
        line.end();
    }
}

fn micros(nanos: Option<u64>) -> Option<u64> {
    nanos.map(|nanos| nanos / 1000)
}

fn push_opt(out: &mut Line<'_>, value: Option<impl Integer>) {
    match value {
        Some(value) => push_int(out, value),
        None => out.push(b'-'),
    }
}

/// The name of an errno, or its number where it has no name (errno-base.h, errno.h).
fn errno_name(errno: i32) -> Cow<'static, str> {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("E{errno}").into(),
        known => format!("{known:?}").into(),
    }
}
