//! JSON, written straight into its line, without allocating unless a string needs escaping.
//!
//! serde_json is for tests alone: with it, half as many packets a second reach the output.

use std::net::IpAddr;

use super::line::Line;
use super::number::Integer;
use super::scalar::{flag_bits, push_addr, push_float, push_int};
use crate::domain::packet::FLAG_NAMES;
use crate::domain::tally::TallyKey;

/// The bytes of a member's key with the comma before it, made at compile time.
#[macro_export]
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// An object. Keys come from [`key!`](crate::key).
pub struct Object<'a, 'l> {
    out: &'a mut Line<'l>,
    is_empty: bool,
}

/// An array.
pub struct Array<'a, 'l> {
    out: &'a mut Line<'l>,
    is_empty: bool,
}

impl<'a, 'l> Object<'a, 'l> {
    /// Begins a line with `ts` and `event`, which every line has.
    #[inline(always)]
    pub fn new(out: &'a mut Line<'l>, push_ts: impl FnOnce(&mut Line<'l>), event: &str) -> Self {
        out.extend_from_slice(b"{\"ts\":\"");
        push_ts(out);
        out.extend_from_slice(b"\",\"event\":\"");
        out.extend_from_slice(event.as_bytes());
        out.push(b'"');
        Self {
            out,
            is_empty: false,
        }
    }

    /// Ends the line.
    #[inline(always)]
    pub fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }

    /// An object within another value.
    #[inline(always)]
    fn nested(out: &'a mut Line<'l>, push: impl FnOnce(&mut Object<'_, 'l>)) {
        out.push(b'{');
        let mut object = Object {
            out,
            is_empty: true,
        };
        push(&mut object);
        object.out.push(b'}');
    }

    #[inline(always)]
    fn key(&mut self, key: &str) -> &mut Line<'l> {
        let key = key.as_bytes();
        let comma = usize::from(std::mem::replace(&mut self.is_empty, false));
        self.out.extend_from_slice(&key[comma..]);
        self.out
    }

    /// An object of which `push` writes the members.
    #[inline(always)]
    pub fn object(&mut self, key: &str, push: impl FnOnce(&mut Object<'_, 'l>)) -> &mut Self {
        Object::nested(self.key(key), push);
        self
    }

    /// An array of which `push` writes the elements.
    #[inline(always)]
    pub fn array(&mut self, key: &str, push: impl FnOnce(&mut Array<'_, 'l>)) -> &mut Self {
        let out = self.key(key);
        out.push(b'[');
        let mut array = Array {
            out,
            is_empty: true,
        };
        push(&mut array);
        array.out.push(b']');
        self
    }

    /// The names of TCP flags.
    #[inline(always)]
    pub fn tcp_flags(&mut self, key: &str, flags: u8) -> &mut Self {
        self.array(key, |names| {
            flag_bits(flags).for_each(|bit| names.name(FLAG_NAMES[bit]));
        })
    }

    /// An integer.
    #[inline(always)]
    pub fn int(&mut self, key: &str, value: impl Integer) -> &mut Self {
        push_int(self.key(key), value);
        self
    }

    /// An integer under a name that is not known at compile time.
    pub fn int_of(&mut self, name: &str, value: impl Integer) -> &mut Self {
        self.key(",\"").extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        push_int(self.out, value);
        self
    }

    /// An integer, or `null` if it is unknown.
    #[inline(always)]
    pub fn opt_int(&mut self, key: &str, value: Option<impl Integer>) -> &mut Self {
        match value {
            Some(value) => self.int(key, value),
            None => self.null(key),
        }
    }

    /// A number with three decimals at most; JSON has no infinity, so that is `null`.
    pub fn float(&mut self, key: &str, value: f64) -> &mut Self {
        push_float(self.key(key), value);
        self
    }

    /// `true` or `false`.
    #[inline(always)]
    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key)
            .extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// `null`: unknown.
    #[inline(always)]
    pub fn null(&mut self, key: &str) -> &mut Self {
        self.key(key).extend_from_slice(b"null");
        self
    }

    /// A string of any bytes.
    #[inline(always)]
    pub fn string(&mut self, key: &str, value: &[u8]) -> &mut Self {
        self.key(key).push_json(value);
        self
    }

    /// A string of any bytes, or `null` if it is unknown.
    #[inline(always)]
    pub fn opt_string(&mut self, key: &str, value: Option<impl AsRef<[u8]>>) -> &mut Self {
        match value {
            Some(value) => self.string(key, value.as_ref()),
            None => self.null(key),
        }
    }

    /// A string that needs no escaping because this program chose it.
    #[inline(always)]
    pub fn name(&mut self, key: &str, value: &str) -> &mut Self {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
        self
    }

    /// Such a string, or `null`.
    pub fn opt_name(&mut self, key: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.name(key, value),
            None => self.null(key),
        }
    }

    /// A string that `push` writes, without characters that need escaping.
    #[inline(always)]
    pub fn with(&mut self, key: &str, push: impl FnOnce(&mut Line<'l>)) -> &mut Self {
        let out = self.key(key);
        out.push(b'"');
        push(out);
        out.push(b'"');
        self
    }

    /// An address.
    #[inline(always)]
    pub fn addr(&mut self, key: &str, addr: IpAddr) -> &mut Self {
        self.with(key, |out| push_addr(out, addr))
    }

    /// An address, or `null` if it is unknown.
    pub fn opt_addr(&mut self, key: &str, addr: Option<IpAddr>) -> &mut Self {
        match addr {
            Some(addr) => self.addr(key, addr),
            None => self.null(key),
        }
    }

    /// A key of counts: an address as a string, a port as a number.
    pub fn tally_key(&mut self, key: &str, value: TallyKey) -> &mut Self {
        match value {
            TallyKey::Address(addr) => self.addr(key, addr),
            TallyKey::Port(port) => self.int(key, port),
        }
    }
}

impl<'l> Array<'_, 'l> {
    #[inline(always)]
    fn element(&mut self) -> &mut Line<'l> {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.out.push(b',');
        }
        self.out
    }

    /// An integer.
    #[inline(always)]
    pub fn int(&mut self, value: impl Integer) {
        push_int(self.element(), value);
    }

    /// A string that needs no escaping because this program chose it.
    #[inline(always)]
    pub fn name(&mut self, value: &str) {
        let out = self.element();
        out.push(b'"');
        // For three letters, a call of memcpy costs more.
        value.bytes().for_each(|byte| out.push(byte));
        out.push(b'"');
    }

    /// A string of any bytes.
    pub fn string(&mut self, value: &[u8]) {
        self.element().push_json(value);
    }

    /// An object of which `push` writes the members.
    pub fn object(&mut self, push: impl FnOnce(&mut Object<'_, 'l>)) {
        Object::nested(self.element(), push);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    #[test]
    fn values_nest_and_have_commas_between_them() {
        let text = rendered(|out| {
            let mut line = Object::new(out, |out| out.push(b'0'), "test");
            line.object(key!("none"), |_| {});
            line.array(key!("nothing"), |_| {});
            line.object(key!("one"), |one| {
                one.int(key!("a"), 1_u32).null(key!("b"));
                one.array(key!("c"), |list| {
                    list.int(1_u32);
                    list.name("x");
                    list.object(|object| {
                        object.bool(key!("d"), true);
                    });
                });
            });
            line.tally_key(key!("port"), TallyKey::Port(80));
            line.tally_key(key!("addr"), TallyKey::Address("::1".parse().unwrap()));
            line.end();
        });
        let expected = r#"{"ts":"0","event":"test","none":{},"nothing":[],"one":{"a":1,"b":null,"c":[1,"x",{"d":true}]},"port":80,"addr":"::1"}"#;
        assert_eq!(text.trim_end(), expected);
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
}
