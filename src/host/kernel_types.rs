//! Looks up functions and variables of the kernel in its type information (BTF).
//!
//! `libbpf_rs::btf::Btf::from_vmlinux` was tried: it checks and indexes all types, and two lookups
//! by name took 9 to 21 ms where this module takes 1 ms (Linux 6.18). The format is described in the
//! kernel's Documentation/bpf/btf.rst and in linux/btf.h.

mod excerpt;

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

pub use excerpt::Excerpt;

use crate::sys::mapping::{KERNEL_BTF, KernelBtf};

const MAGIC: u16 = 0xeb9f;

/// Bytes of `struct btf_type`, which every type begins with: the offset of its name, what it is,
/// and a size or another type.
const TYPE_LEN: usize = 12;

const KIND_INT: u8 = 1;
const KIND_PTR: u8 = 2;
const KIND_ARRAY: u8 = 3;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_FORWARD: u8 = 7;
const KIND_TYPEDEF: u8 = 8;
const KIND_RESTRICT: u8 = 11;
const KIND_FUNC: u8 = 12;
const KIND_FUNC_PROTO: u8 = 13;
const KIND_VAR: u8 = 14;
const KIND_SECTION: u8 = 15;
const KIND_FLOAT: u8 = 16;
const KIND_DECL_TAG: u8 = 17;
const KIND_TYPE_TAG: u8 = 18;
const KIND_ENUM64: u8 = 19;

/// The kernel's type information.
pub struct KernelTypes {
    bytes: Bytes,
    types: Range<usize>,
    strings: Range<usize>,
}

/// Where it is in the memory of this process.
enum Bytes {
    Mapped(KernelBtf),
    Read(Vec<u8>),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping) => mapping.bytes(),
            Self::Read(bytes) => bytes,
        }
    }
}

/// The part that all types have.
#[derive(Clone, Copy)]
struct Type {
    /// Types are numbered from 1 on.
    id: u32,
    name: usize,
    kind: u8,
    /// Members, arguments and the like.
    len: usize,
    /// The type that it refers to: the prototype of a function, the target of a pointer or typedef.
    refers_to: u32,
    /// Where it begins.
    at: usize,
}

impl KernelTypes {
    /// Reads the type information of the running kernel.
    ///
    /// # Errors
    /// The kernel has none (CONFIG_DEBUG_INFO_BTF), or its format is not known.
    pub fn load() -> Result<Self> {
        let bytes = KernelBtf::map()
            .map(Bytes::Mapped)
            .or_else(|_| fs::read(KERNEL_BTF).map(Bytes::Read));
        bytes
            .map_err(anyhow::Error::from)
            .and_then(Self::new)
            .with_context(|| format!("failed to read {KERNEL_BTF}"))
    }

    fn new(bytes: Bytes) -> Result<Self> {
        let all = bytes.all();
        let magic = all.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        ensure!(magic == Some(MAGIC), "the data is not BTF");
        let number = |at| word(all, at).context("the data is cut short");
        let header = number(4)?;
        let section = |at| -> Result<Range<usize>> {
            let (from, len) = (number(at)?, number(at + 4)?);
            let start = header
                .checked_add(from)
                .context("a length in it is too large")?;
            let end = start
                .checked_add(len)
                .context("a length in it is too large")?;
            ensure!(end <= all.len(), "the data is cut short");
            Ok(start..end)
        };
        let (types, strings) = (section(8)?, section(16)?);
        Ok(Self {
            bytes,
            types,
            strings,
        })
    }

    /// The BTF id of the function with that name.
    ///
    /// # Errors
    /// A type before it is of an unknown kind.
    pub fn function(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.find(KIND_FUNC, name)?.map(|known| known.id))
    }

    /// The BTF ids of the functions with these names, found in one walk.
    ///
    /// # Errors
    /// As [`KernelTypes::function`].
    pub fn functions<const N: usize>(&self, names: [&str; N]) -> Result<[Option<u32>; N]> {
        let mut found = [None; N];
        self.walk(|known| {
            if known.kind == KIND_FUNC
                && let Some(at) = names.iter().position(|name| self.is_called(known, name))
            {
                found[at] = Some(known.id);
            }
            found.iter().all(Option::is_some)
        })?;
        Ok(found)
    }

    /// The BTF id of the variable with that name.
    ///
    /// # Errors
    /// As [`KernelTypes::function`].
    pub fn variable(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.find(KIND_VAR, name)?.map(|known| known.id))
    }

    /// How many arguments the function with that name has.
    ///
    /// # Errors
    /// As [`KernelTypes::function`].
    pub fn arguments(&self, name: &str) -> Result<Option<usize>> {
        let Some(function) = self.find(KIND_FUNC, name)? else {
            return Ok(None);
        };
        let prototype = self.walk(|known| known.id == function.refers_to)?;
        let prototype = prototype.filter(|known| known.kind == KIND_FUNC_PROTO);
        Ok(prototype.map(|known| known.len))
    }

    /// How many arguments a tracepoint passes on to programs.
    ///
    /// # Errors
    /// As [`KernelTypes::function`].
    pub fn tracepoint_arguments(&self, name: &str) -> Result<Option<usize>> {
        // `typedef void (*btf_trace_NAME)(void *, …)` (trace/bpf_probe.h); the first
        // argument is the tracepoint's own.
        let Some(known) = self.find(KIND_TYPEDEF, &format!("btf_trace_{name}"))? else {
            return Ok(None);
        };
        let pointer = self.walk(|it| it.id == known.refers_to && it.kind == KIND_PTR)?;
        let Some(pointer) = pointer else {
            return Ok(None);
        };
        let prototype = self.walk(|it| it.id == pointer.refers_to && it.kind == KIND_FUNC_PROTO)?;
        Ok(prototype.map(|prototype| prototype.len.saturating_sub(1)))
    }

    /// Names and values of an enum; none if there is no such enum.
    ///
    /// # Errors
    /// As [`KernelTypes::function`].
    pub fn enumerators(&self, name: &str) -> Result<Vec<(String, u32)>> {
        let Some(known) = self.find(KIND_ENUM, name)? else {
            return Ok(Vec::new());
        };
        let types = &self.bytes.all()[self.types.clone()];
        let members = types.get(known.at + TYPE_LEN..).unwrap_or_default();
        let member = |bytes: &[u8]| {
            let name = self.string(word(bytes, 0)?)?;
            Some((name, u32::try_from(word(bytes, 4)?).ok()?))
        };
        let members = members.chunks_exact(8).take(known.len);
        Ok(members.filter_map(member).collect())
    }

    fn string(&self, at: usize) -> Option<String> {
        let strings = self.bytes.all()[self.strings.clone()].get(at..)?;
        let end = strings.iter().position(|byte| *byte == 0)?;
        String::from_utf8(strings[..end].to_vec()).ok()
    }

    fn find(&self, kind: u8, name: &str) -> Result<Option<Type>> {
        self.walk(|known| known.kind == kind && self.is_called(known, name))
    }

    fn is_called(&self, known: Type, name: &str) -> bool {
        let strings = &self.bytes.all()[self.strings.clone()];
        strings
            .get(known.name..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Searches all types until the wanted one is found.
    fn walk(&self, mut is_wanted: impl FnMut(Type) -> bool) -> Result<Option<Type>> {
        const UNKNOWN: &str = "this version of BTF is not supported";
        let all = &self.bytes.all()[self.types.clone()];
        let mut types = all;
        let mut id = 0;
        while !types.is_empty() {
            id += 1;
            let number = |at| word(types, at).context(UNKNOWN);
            let info = number(4)?;
            let known = Type {
                id,
                name: number(0)?,
                kind: (info >> 24 & 0x1f) as u8,
                len: info & 0xffff,
                refers_to: number(8)? as u32,
                at: all.len() - types.len(),
            };
            let more = more_bytes(known.kind, known.len).context(UNKNOWN)?;
            if is_wanted(known) {
                return Ok(Some(known));
            }
            types = types.get(TYPE_LEN + more..).context(UNKNOWN)?;
        }
        Ok(None)
    }
}

/// The number of 32 bits at an offset.
fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*bytes)).ok()
}

/// The part that depends on the kind of a type.
fn more_bytes(kind: u8, len: usize) -> Option<usize> {
    Some(match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_SECTION | KIND_ENUM64 => len * 12,
        KIND_ENUM | KIND_FUNC_PROTO => len * 8,
        // Between them are volatile and const.
        KIND_FORWARD | KIND_TYPEDEF..=KIND_RESTRICT => 0,
        KIND_PTR | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use libbpf_rs::btf::Btf;

    use super::*;

    const STRINGS: &[u8] = b"\0f\0fg\0v\0";

    fn btf(types: &[u32]) -> Vec<u8> {
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let lens = [types.len() as u32, STRINGS.len() as u32];
        for word in [24, 0, lens[0], lens[0], lens[1]] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(types);
        bytes.extend(STRINGS);
        bytes
    }

    /// An integer, a prototype of two arguments, functions `fg` and `f`, and a variable `v`.
    const TYPES: [u32; 21] = [
        0,
        1 << 24,
        4,
        32,
        0,
        13 << 24 | 2,
        1,
        0,
        1,
        0,
        1,
        3,
        12 << 24,
        2,
        1,
        12 << 24,
        1,
        6,
        14 << 24,
        1,
        1,
    ];

    #[test]
    fn functions_and_variables_are_found_by_their_whole_name() {
        let types = KernelTypes::new(Bytes::Read(btf(&TYPES))).unwrap();
        assert_eq!(types.function("fg").unwrap(), Some(3));
        assert_eq!(types.function("f").unwrap(), Some(4));
        assert_eq!(types.variable("v").unwrap(), Some(5));
        assert_eq!(types.arguments("fg").unwrap(), Some(2));
        // It refers to something that is not a prototype.
        assert_eq!(types.arguments("f").unwrap(), None);
        for absent in ["", "g", "fgh", "v"] {
            assert_eq!(types.function(absent).unwrap(), None, "{absent}");
        }
    }

    #[test]
    fn truncated_types_and_unknown_kinds_are_errors() {
        let new = |bytes: &[u8]| KernelTypes::new(Bytes::Read(bytes.to_vec()));
        let whole = btf(&TYPES);
        for len in 0..whole.len() {
            assert!(new(&whole[..len]).is_err(), "{len}");
        }
        assert!(new(b"this is text instead of any BTF...").is_err());
        for types in [[0, 20 << 24, 0], [0, 4 << 24 | 1, 0]] {
            assert!(new(&btf(&types)).unwrap().function("f").is_err());
        }
        assert!(new(&btf(&TYPES[..20])).unwrap().variable("x").is_err());
    }

    /// The types of the running kernel as libbpf reads them. If it has none, the test is skipped.
    pub(super) fn running_kernel(test: &str) -> Option<Btf<'static>> {
        let types = Btf::from_vmlinux().ok();
        if types.is_none() {
            let _ = writeln!(std::io::stderr(), "SKIP {test}: this kernel has no BTF");
        }
        types
    }

    #[test]
    fn the_running_kernel_is_read_as_libbpf_reads_it() {
        use libbpf_rs::btf::types::{Func, Var};

        let test = "the_running_kernel_is_read_as_libbpf_reads_it";
        let Some(theirs) = running_kernel(test) else {
            return;
        };
        let ours = KernelTypes::load().unwrap();
        for name in [
            "tcp_v4_connect",
            "tcp_v6_connect",
            "inet_csk_accept",
            "no_such_function",
        ] {
            let id = theirs
                .type_by_name::<Func<'_>>(name)
                .map(|known| known.type_id());
            assert_eq!(ours.function(name).unwrap(), id.map(u32::from), "{name}");
        }
        let id = theirs
            .type_by_name::<Var<'_>>("bpf_prog_active")
            .map(|known| known.type_id());
        assert_eq!(ours.variable("bpf_prog_active").unwrap(), id.map(u32::from));
    }
}
