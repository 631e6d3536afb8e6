//! Functions and variables of the kernel, by its type information.
//!
//! libbpf reads it as well, and when programs are loaded will do so in any case; but it checks and
//! indexes all of it, which for a look at three names takes longer than to load a program. The format
//! is the kernel's (Documentation/bpf/btf.rst, linux/btf.h).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Where the kernel has it.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;

/// Bytes of `struct btf_type`, which every type begins with: the offset of its name, what it is,
/// and a size or another type.
const TYPE_LEN: usize = 12;

const KIND_FUNC: u8 = 12;
const KIND_FUNC_PROTO: u8 = 13;
const KIND_VAR: u8 = 14;

/// The kernel's type information.
pub struct KernelTypes {
    bytes: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: std::ops::Range<usize>,
}

/// What all types have.
#[derive(Clone, Copy)]
struct Type {
    /// Types are numbered from 1 on.
    id: u32,
    name: usize,
    kind: u8,
    /// Members, arguments and the like.
    len: usize,
    /// Of a function its prototype.
    refers_to: u32,
}

impl KernelTypes {
    /// Reads what the running kernel tells.
    ///
    /// # Errors
    /// It tells nothing (CONFIG_DEBUG_INFO_BTF), or in another format.
    pub fn load() -> Result<Self> {
        let read = fs::read(Path::new(VMLINUX)).map_err(anyhow::Error::from);
        read.and_then(Self::new)
            .with_context(|| format!("failed to read {VMLINUX}"))
    }

    fn new(bytes: Vec<u8>) -> Result<Self> {
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        ensure!(magic == Some(MAGIC), "it is no BTF");
        let number = |at| word(&bytes, at).context("it is cut short");
        let header = number(4)?;
        let section = |at| -> Result<std::ops::Range<usize>> {
            let (from, len) = (number(at)?, number(at + 4)?);
            let start = header.checked_add(from).context("it is too long")?;
            let end = start.checked_add(len).context("it is too long")?;
            ensure!(end <= bytes.len(), "it is cut short");
            Ok(start..end)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let found = Self {
            bytes,
            types,
            strings,
        };
        // One of a kind that is not known hides all that follow.
        match found.walk(|_| false) {
            Walk::End => Ok(found),
            Walk::Found(_) | Walk::Broken => bail!("its format is not known"),
        }
    }

    /// The number of the function with that name.
    pub fn function(&self, name: &str) -> Option<u32> {
        Some(self.find(KIND_FUNC, name)?.id)
    }

    /// The number of the variable with that name.
    pub fn variable(&self, name: &str) -> Option<u32> {
        Some(self.find(KIND_VAR, name)?.id)
    }

    /// How many arguments the function with that name has.
    pub fn arguments(&self, name: &str) -> Option<usize> {
        let prototype = self.find(KIND_FUNC, name)?.refers_to;
        match self.walk(|known| known.id == prototype) {
            Walk::Found(known) if known.kind == KIND_FUNC_PROTO => Some(known.len),
            _ => None,
        }
    }

    fn find(&self, kind: u8, name: &str) -> Option<Type> {
        match self.walk(|known| known.kind == kind && self.is_called(known, name)) {
            Walk::Found(known) => Some(known),
            Walk::End | Walk::Broken => None,
        }
    }

    fn is_called(&self, known: Type, name: &str) -> bool {
        let strings = &self.bytes[self.strings.clone()];
        strings
            .get(known.name..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Looks at all types until one is the wanted one.
    fn walk(&self, mut is_wanted: impl FnMut(Type) -> bool) -> Walk {
        let mut types = &self.bytes[self.types.clone()];
        let mut id = 0;
        while !types.is_empty() {
            id += 1;
            let (Some(name), Some(info), Some(refers_to)) =
                (word(types, 0), word(types, 4), word(types, 8))
            else {
                return Walk::Broken;
            };
            let kind = (info >> 24 & 0x1f) as u8;
            let len = info & 0xffff;
            let Some(more) = more_bytes(kind, len) else {
                return Walk::Broken;
            };
            let known = Type {
                id,
                name,
                kind,
                len,
                refers_to: refers_to as u32,
            };
            if is_wanted(known) {
                return Walk::Found(known);
            }
            match types.get(TYPE_LEN + more..) {
                Some(rest) => types = rest,
                None => return Walk::Broken,
            }
        }
        Walk::End
    }
}

/// How a walk along the types has ended.
enum Walk {
    Found(Type),
    End,
    /// At a type that can't be or is not known.
    Broken,
}

/// The number of 32 bits at an offset.
fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*bytes)).ok()
}

/// What a type has beyond the common part.
fn more_bytes(kind: u8, len: usize) -> Option<usize> {
    Some(match kind {
        // integer, variable, declaration tag
        1 | KIND_VAR | 17 => 4,
        // array
        3 => 12,
        // struct, union, section, enum of 64 bits
        4 | 5 | 15 | 19 => len * 12,
        // enum, prototype
        6 | KIND_FUNC_PROTO => len * 8,
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=KIND_FUNC | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
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
        let types = KernelTypes::new(btf(&TYPES)).unwrap();
        assert_eq!(types.function("fg"), Some(3));
        assert_eq!(types.function("f"), Some(4));
        assert_eq!(types.variable("v"), Some(5));
        assert_eq!(types.arguments("fg"), Some(2));
        // It refers to what is no prototype.
        assert_eq!(types.arguments("f"), None);
        for absent in ["", "g", "fgh", "v"] {
            assert_eq!(types.function(absent), None, "{absent}");
        }
    }

    #[test]
    fn what_is_cut_or_unknown_is_an_error() {
        let whole = btf(&TYPES);
        for len in 0..whole.len() {
            assert!(KernelTypes::new(whole[..len].to_vec()).is_err(), "{len}");
        }
        assert!(KernelTypes::new(btf(&[0, 20 << 24, 0])).is_err());
        assert!(KernelTypes::new(btf(&[0, 4 << 24 | 1, 0])).is_err());
        assert!(KernelTypes::new(b"what is no BTF at all, of any kind".to_vec()).is_err());
    }

    #[test]
    fn the_running_kernel_is_read_as_libbpf_reads_it() {
        use std::io::Write;

        use libbpf_rs::btf::Btf;
        use libbpf_rs::btf::types::{Func, Var};

        const NAME: &str = "the_running_kernel_is_read_as_libbpf_reads_it";

        let Ok(theirs) = Btf::from_vmlinux() else {
            let why = "this kernel has no BTF";
            let _ = writeln!(std::io::stderr(), "SKIP {NAME}: {why}");
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
            assert_eq!(ours.function(name), id.map(u32::from), "{name}");
        }
        let id = theirs
            .type_by_name::<Var<'_>>("bpf_prog_active")
            .map(|known| known.type_id());
        assert_eq!(ours.variable("bpf_prog_active"), id.map(u32::from));
    }
}
