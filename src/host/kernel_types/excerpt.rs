//! BTF with the few kernel types that a program reads (CO-RE), without all others.
//!
//! For each type that a program reads, libbpf compares the names of all types of the kernel: 10 to
//! 15 ms for an object (Linux 6.18, libbpf 1.7). It can read the types from a file with BTF instead.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use libbpf_rs::ObjectBuilder;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    KIND_ARRAY, KIND_ENUM, KIND_ENUM64, KIND_FORWARD, KIND_PTR, KIND_RESTRICT, KIND_STRUCT,
    KIND_TYPE_TAG, KIND_TYPEDEF, KIND_UNION, KernelTypes, MAGIC, TYPE_LEN, more_bytes, word,
};

const HEADER_LEN: u32 = 24;

/// A file in memory with the types of the kernel that a program reads. It is needed until the
/// program is loaded.
pub struct Excerpt(Option<File>);

impl Excerpt {
    /// Makes a file with the types of these names, which libbpf then uses for the object. If that is
    /// not possible, libbpf uses all types of the kernel.
    ///
    /// # Errors
    /// The object can't be opened with it.
    pub fn of(names: &[&str], object: &mut ObjectBuilder) -> Result<Self> {
        let file = KernelTypes::load()
            .and_then(|types| types.excerpt(names))
            .and_then(|bytes| in_memory(&bytes));
        let Ok(file) = file else {
            return Ok(Self(None));
        };
        object.btf_custom_path(path(&file))?;
        Ok(Self(Some(file)))
    }

    /// Frees the memory.
    pub fn close(self) {
        drop(self.0);
    }
}

fn in_memory(bytes: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create("kernel types", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    // libbpf opens it by name.
    File::open(path(&file))?;
    Ok(file)
}

fn path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl KernelTypes {
    /// BTF with the structs, unions and enums of these names, and with what they contain, but not
    /// what they point to. All keep their type ids, which programs pass to the kernel.
    ///
    /// # Errors
    /// A type is of an unknown kind.
    fn excerpt(&self, names: &[&str]) -> Result<Vec<u8>> {
        let names = names.iter().map(|name| name.as_bytes());
        let (starts, mut wanted) = self.named(&names.collect())?;
        let all = &self.bytes.all()[self.types.clone()];
        let mut is_kept = vec![false; starts.len()];
        while let Some(id) = wanted.pop() {
            // Id 0 is void.
            let kept = is_kept.get_mut(id).filter(|kept| id > 0 && !**kept);
            let Some(kept) = kept else { continue };
            *kept = true;
            contents(&all[starts[id]..], &mut wanted)?;
        }
        let len = is_kept
            .iter()
            .rposition(|kept| *kept)
            .map_or(1, |last| last + 1);
        let (mut types, mut strings) = (Vec::new(), vec![0]);
        for id in 1..len {
            match is_kept[id] {
                true => self.copy(&all[starts[id]..], &mut types, &mut strings)?,
                // Fills the place of a type that is left out. libbpf compares it with nothing,
                // because it has no name.
                false => push(&mut types, [0, u32::from(KIND_FORWARD) << 24, 0]),
            }
        }
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let (types_len, strings_len) = (u32::try_from(types.len())?, u32::try_from(strings.len())?);
        push(
            &mut bytes,
            [HEADER_LEN, 0, types_len, types_len, strings_len],
        );
        bytes.extend(types);
        bytes.extend(strings);
        Ok(bytes)
    }

    /// Where each type begins, and the ids of the structs, unions and enums of these names.
    fn named(&self, names: &HashSet<&[u8]>) -> Result<(Vec<usize>, Vec<usize>)> {
        let (mut starts, mut found) = (vec![0], Vec::new());
        self.walk(|known| {
            let is_composite = matches!(
                known.kind,
                KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64
            );
            if is_composite && names.contains(self.bytes_of(known.name)) {
                found.push(starts.len());
            }
            starts.push(known.at);
            false
        })?;
        Ok((starts, found))
    }

    fn bytes_of(&self, name: usize) -> &[u8] {
        let strings = &self.bytes.all()[self.strings.clone()];
        let name = strings.get(name..).unwrap_or_default();
        let end = name.iter().position(|byte| *byte == 0);
        &name[..end.unwrap_or(name.len())]
    }

    /// Copies a type, and the names in it.
    fn copy(&self, from: &[u8], types: &mut Vec<u8>, strings: &mut Vec<u8>) -> Result<()> {
        let (kind, len, whole) = head(from)?;
        let start = types.len();
        types.extend(from.get(..whole).context(CUT)?);
        let members = match kind {
            KIND_STRUCT | KIND_UNION | KIND_ENUM64 => 12,
            KIND_ENUM => 8,
            _ => 0,
        };
        let names = (0..len).map(|at| TYPE_LEN + at * members);
        let names = names.take(if members > 0 { len } else { 0 });
        for at in std::iter::once(0).chain(names) {
            let name = self.bytes_of(word(from, at).context(CUT)?);
            let to = match name {
                [] => 0,
                name => {
                    let to = u32::try_from(strings.len())?;
                    strings.extend(name);
                    strings.push(0);
                    to
                }
            };
            types[start + at..][..4].copy_from_slice(&to.to_ne_bytes());
        }
        if kind == KIND_PTR {
            // What it points to is left out, so it becomes a pointer to void.
            types[start + 8..][..4].fill(0);
        }
        Ok(())
    }
}

const CUT: &str = "the data is cut short";

/// The kind of a type, the number of its members, and its bytes.
fn head(bytes: &[u8]) -> Result<(u8, usize, usize)> {
    let info = word(bytes, 4).context(CUT)?;
    let (kind, len) = ((info >> 24 & 0x1f) as u8, info & 0xffff);
    let more = more_bytes(kind, len).context("this version of BTF is not supported")?;
    Ok((kind, len, TYPE_LEN + more))
}

/// Adds the types that a type contains.
fn contents(bytes: &[u8], to: &mut Vec<usize>) -> Result<()> {
    let (kind, len, _) = head(bytes)?;
    let mut add = |at| -> Result<()> {
        to.push(word(bytes, at).context(CUT)?);
        Ok(())
    };
    match kind {
        KIND_STRUCT | KIND_UNION => (0..len).try_for_each(|at| add(TYPE_LEN + at * 12 + 4)),
        // Of elements, and of the index.
        KIND_ARRAY => add(TYPE_LEN).and_then(|()| add(TYPE_LEN + 4)),
        // Typedefs, qualifiers and tags.
        KIND_TYPEDEF..=KIND_RESTRICT | KIND_TYPE_TAG => add(8),
        _ => Ok(()),
    }
}

fn push<const N: usize>(to: &mut Vec<u8>, words: [u32; N]) {
    to.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

#[cfg(test)]
mod tests {
    use super::super::Bytes;
    use super::super::tests::running_kernel;
    use super::*;

    #[test]
    fn an_excerpt_has_the_requested_types_with_their_ids() {
        use libbpf_rs::btf::Btf;
        use libbpf_rs::btf::types::Struct;

        let test = "an_excerpt_has_the_requested_types_with_their_ids";
        let Some(all) = running_kernel(test) else {
            return;
        };
        let bytes = KernelTypes::load()
            .unwrap()
            .excerpt(&["sock", "tcp_sock"])
            .unwrap();
        let few = Btf::from_path(path(&in_memory(&bytes).unwrap())).unwrap();
        for name in ["sock", "sock_common", "tcp_sock", "inet_connection_sock"] {
            let (of_all, of_few) = (
                all.type_by_name::<Struct<'_>>(name).unwrap(),
                few.type_by_name::<Struct<'_>>(name).unwrap(),
            );
            assert_eq!(of_all.type_id(), of_few.type_id(), "{name}");
            let members = |it: &Struct<'_>| {
                let members = it.iter().map(|member| {
                    (
                        member.name.map(|name| name.to_owned()),
                        member.ty,
                        format!("{:?}", member.attr),
                    )
                });
                members.collect::<Vec<_>>()
            };
            assert_eq!(members(&of_all), members(&of_few), "{name}");
        }
        assert!(few.type_by_name::<Struct<'_>>("net_device").is_none());
        let again = KernelTypes::new(Bytes::Read(bytes)).unwrap();
        assert!(again.excerpt(&["sock"]).is_ok());
    }
}
