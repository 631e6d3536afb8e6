//! Minimal BPF programs in the role of other tools' programs, and checks of what this kernel allows.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

use libbpf_rs::OpenObject;
use libbpf_sys::bpf_insn;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::unistd::Pid;

use super::net::Namespace;

/// The hook that a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP in the driver, for frames in one piece.
    XdpNative,
    /// XDP in the stack, multi-buffer if the kernel supports that.
    XdpGeneric,
    /// TC ingress, before all programs there.
    TcxFirst,
    /// TC ingress, after all programs there.
    TcxLast,
    /// TC egress, before all programs there.
    TcxFirstOut,
    /// TC egress, after all programs there.
    TcxLastOut,
}

/// XDP_PASS.
pub const XDP_PASS: i32 = 2;
/// TCX_NEXT: go on with the next program.
pub const TCX_NEXT: i32 = -1;
/// TCX_DROP.
pub const TCX_DROP: i32 = 2;

/// A foreign program that is attached until this is dropped.
pub struct Foreign {
    program: OwnedFd,
    link: OwnedFd,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Detached, because a process that another test has just started may hold the descriptor a
        // moment longer. On a kernel that can't detach a link, it is only closed.
        // SAFETY: the descriptor is open.
        let _ = unsafe { libbpf_sys::bpf_link_detach(self.link.as_raw_fd()) };
    }
}

impl Foreign {
    /// Attaches a program that returns `verdict` for every packet to an interface of the
    /// namespace that the calling thread is in.
    ///
    /// # Errors
    /// The kernel does not have this hook.
    pub fn attach(hook: Hook, interface: &str, verdict: i32) -> Result<Self, String> {
        let (kind, attach_type, flags) = match hook {
            Hook::XdpNative => (
                libbpf_sys::BPF_PROG_TYPE_XDP,
                libbpf_sys::BPF_XDP,
                libbpf_sys::XDP_FLAGS_DRV_MODE,
            ),
            Hook::XdpGeneric => (
                libbpf_sys::BPF_PROG_TYPE_XDP,
                libbpf_sys::BPF_XDP,
                libbpf_sys::XDP_FLAGS_SKB_MODE,
            ),
            Hook::TcxFirst => (
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                libbpf_sys::BPF_TCX_INGRESS,
                libbpf_sys::BPF_F_BEFORE,
            ),
            Hook::TcxLast => (
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                libbpf_sys::BPF_TCX_INGRESS,
                libbpf_sys::BPF_F_AFTER,
            ),
            Hook::TcxFirstOut => (
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                libbpf_sys::BPF_TCX_EGRESS,
                libbpf_sys::BPF_F_BEFORE,
            ),
            Hook::TcxLastOut => (
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                libbpf_sys::BPF_TCX_EGRESS,
                libbpf_sys::BPF_F_AFTER,
            ),
        };
        let in_pieces = hook == Hook::XdpGeneric && has_xdp_frags().is_ok();
        let opts = libbpf_sys::bpf_prog_load_opts {
            sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
            prog_flags: if in_pieces {
                libbpf_sys::BPF_F_XDP_HAS_FRAGS
            } else {
                0
            },
            ..Default::default()
        };
        let program = load(kind, c"foreign", &returns(verdict), &opts)
            .map_err(|error| format!("can't load a program for {hook:?}: {error}"))?;
        let opts = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags,
            ..Default::default()
        };
        let ifindex = if_nametoindex(interface).unwrap().cast_signed();
        // SAFETY: `opts` is valid for the call and its size is set; the descriptor is open.
        let link = unsafe {
            libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, attach_type, &raw const opts)
        };
        let link = owned(link).map_err(|error| format!("can't attach to {hook:?}: {error}"))?;
        Ok(Self { program, link })
    }

    /// Attaches to a cgroup a program that lets every packet in.
    ///
    /// # Errors
    /// The kernel does not have this hook.
    pub fn attach_to_cgroup(cgroup: BorrowedFd<'_>) -> Result<Self, String> {
        const LET_PASS: i32 = 1;
        let opts = libbpf_sys::bpf_prog_load_opts {
            sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: libbpf_sys::BPF_CGROUP_INET_INGRESS,
            ..Default::default()
        };
        let kind = libbpf_sys::BPF_PROG_TYPE_CGROUP_SKB;
        let program = load(kind, c"foreign", &returns(LET_PASS), &opts)
            .map_err(|error| format!("can't load a program for a cgroup: {error}"))?;
        // SAFETY: both descriptors are open, and no options are passed.
        let link = unsafe {
            libbpf_sys::bpf_link_create(
                program.as_raw_fd(),
                cgroup.as_raw_fd(),
                libbpf_sys::BPF_CGROUP_INET_INGRESS,
                ptr::null(),
            )
        };
        let link = owned(link).map_err(|error| format!("can't attach to a cgroup: {error}"))?;
        Ok(Self { program, link })
    }

    /// The id of the program.
    pub fn id(&self) -> u32 {
        let path = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        ids_in(Path::new(&path))
            .into_iter()
            .find_map(|object| match object {
                Object::Program(id) => Some(id),
                _ => None,
            })
            .unwrap()
    }
}

/// The program of two instructions that returns `verdict`.
fn returns(verdict: i32) -> [bpf_insn; 2] {
    [instruction(0xb7, 0, 0, verdict), instruction(0x95, 0, 0, 0)]
}

/// An instruction without an offset, as bpf_insn.h of the kernel has them.
pub fn instruction(code: u8, destination: u8, source: u8, immediate: i32) -> bpf_insn {
    let mut instruction = bpf_insn {
        code,
        imm: immediate,
        ..bpf_insn::default()
    };
    instruction.set_dst_reg(destination);
    instruction.set_src_reg(source);
    instruction
}

/// Loads a program.
///
/// # Errors
/// The kernel refuses the program.
pub fn load(
    kind: libbpf_sys::bpf_prog_type,
    name: &CStr,
    code: &[bpf_insn],
    opts: &libbpf_sys::bpf_prog_load_opts,
) -> io::Result<OwnedFd> {
    // SAFETY: all pointers are valid for the call, and the length is that of the code.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            c"GPL".as_ptr(),
            code.as_ptr(),
            code.len() as libbpf_sys::size_t,
            ptr::from_ref(opts).cast_mut(),
        )
    };
    owned(fd)
}

/// Leaves tables out of a skeleton that is to be loaded: those of unused filters, and others by
/// name.
pub fn leave_out(object: &mut OpenObject, others: &[&str]) {
    const FILTERS: [&str; 6] = [
        "src_only",
        "src_not",
        "dst_only",
        "dst_not",
        "host_only",
        "host_not",
    ];
    for mut map in object.maps_mut() {
        let is_one = |name: &&str| map.name() == *name;
        if FILTERS.iter().chain(others).any(is_one) {
            map.set_autocreate(false).unwrap();
        }
    }
}

/// Takes the descriptor that the kernel has just made, or its error.
///
/// # Errors
/// The number is negative.
pub fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A BPF object in the kernel, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A program.
    Program(u32),
    /// A map.
    Map(u32),
    /// A link.
    Link(u32),
}

impl Object {
    fn open(self) -> io::Result<OwnedFd> {
        // SAFETY: no pointers are passed.
        owned(unsafe {
            match self {
                Self::Program(id) => libbpf_sys::bpf_prog_get_fd_by_id(id),
                Self::Map(id) => libbpf_sys::bpf_map_get_fd_by_id(id),
                Self::Link(id) => libbpf_sys::bpf_link_get_fd_by_id(id),
            }
        })
    }

    /// Whether it is still there.
    pub fn exists(self) -> bool {
        match self.open() {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{self:?}");
                false
            }
        }
    }
}

/// A descriptor of another process's link, which keeps it as long as it is open.
pub fn hold_link(id: u32) -> OwnedFd {
    Object::Link(id).open().unwrap()
}

/// Detaches the program of a link, as `bpftool link detach` does.
///
/// # Errors
/// Links of this kind can't be detached.
pub fn detach_link(id: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    let ret = unsafe { libbpf_sys::bpf_link_detach(hold_link(id).as_raw_fd()) };
    match ret {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Replaces the program of an XDP link by one that lets everything pass.
pub fn replace_xdp(link: u32) {
    let opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        // As libbpf loads ours: the kernel accepts only a program of the same kind.
        expected_attach_type: libbpf_sys::BPF_XDP,
        ..Default::default()
    };
    let program = load(
        libbpf_sys::BPF_PROG_TYPE_XDP,
        c"foreign",
        &returns(XDP_PASS),
        &opts,
    )
    .unwrap();
    let (link, program) = (hold_link(link), program.as_raw_fd());
    // SAFETY: both descriptors are open, and no options are passed.
    let ret = unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program, ptr::null()) };
    assert_eq!(ret, 0, "{}", io::Error::from_raw_os_error(-ret));
}

/// The ids of the links that a process holds.
pub fn links_of(pid: Pid) -> Vec<u32> {
    let id = |object| match object {
        Object::Link(id) => Some(id),
        _ => None,
    };
    objects_of(pid).into_iter().filter_map(id).collect()
}

/// The last record in the ring buffer of another process, as the kernel wrote it.
pub fn last_in_ring(pid: Pid, record: usize) -> Vec<u8> {
    // Before each record, its length and a page offset.
    const HEADER: usize = 8;
    let ring = objects_of(pid).into_iter().find_map(|object| {
        if !matches!(object, Object::Map(_)) {
            return None;
        }
        let fd = object.open().unwrap();
        let mut info = libbpf_sys::bpf_map_info::default();
        let mut len = size_of_val(&info) as u32;
        let raw = fd.as_raw_fd();
        // SAFETY: `info` is valid for `len` bytes.
        let ret = unsafe { libbpf_sys::bpf_map_get_info_by_fd(raw, &raw mut info, &raw mut len) };
        assert_eq!(ret, 0);
        let is_ring = info.type_ == libbpf_sys::BPF_MAP_TYPE_RINGBUF;
        is_ring.then_some((fd, info.max_entries as usize))
    });
    let (fd, size) = ring.unwrap();
    // SAFETY: it takes a number and returns one.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    // The producer's position, and after that page the data, twice: a record never wraps around.
    let len = page + 2 * size;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            libc::off_t::try_from(page).unwrap(),
        )
    };
    assert_ne!(memory, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    // SAFETY: all of it is mapped, and nobody writes to it while the test sends nothing.
    let bytes = unsafe { std::slice::from_raw_parts(memory.cast::<u8>(), len) }.to_vec();
    // SAFETY: mapped above with this length, and not used any more.
    unsafe { libc::munmap(memory, len) };
    let produced = u64::from_ne_bytes(bytes[..8].try_into().unwrap()) as usize;
    let at = page + (produced - record - HEADER) % size;
    let header = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(header as usize, record);
    bytes[at + HEADER..][..record].to_vec()
}

/// The programs, maps and links that a process holds.
pub fn objects_of(pid: Pid) -> BTreeSet<Object> {
    let mut objects = BTreeSet::new();
    // A process that ends meanwhile has none left to list.
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return objects;
    };
    for entry in entries.flatten() {
        objects.extend(ids_in(&entry.path()));
    }
    objects
}

fn ids_in(fdinfo: &Path) -> Vec<Object> {
    let text = fs::read_to_string(fdinfo).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            let id = || value.trim().parse().ok();
            match key {
                "prog_id" => Some(Object::Program(id()?)),
                "map_id" => Some(Object::Map(id()?)),
                "link_id" => Some(Object::Link(id()?)),
                _ => None,
            }
        })
        .collect()
}

/// TC links, from Linux 6.6 on.
pub fn has_tcx() -> Result<(), String> {
    let namespace = Namespace::new()?;
    namespace
        .enter(|| Foreign::attach(Hook::TcxLast, "lo", TCX_NEXT))
        .map(drop)
        .map_err(|why| format!("this kernel has no tcx links: {why}"))
}

/// Kprobes, which a kernel can be built without.
pub fn has_kprobes() -> Result<(), String> {
    let path = "/sys/bus/event_source/devices/kprobe";
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("this kernel has no kprobes ({path}: {error})")),
    }
}

/// Programs at the entry of a kernel function, for which the architecture must have trampolines.
pub fn has_fentry() -> Result<(), String> {
    let attach_type = libbpf_sys::BPF_TRACE_FENTRY;
    // SAFETY: the name is a string that is valid for the call.
    let id =
        unsafe { libbpf_sys::libbpf_find_vmlinux_btf_id(c"tcp_v4_connect".as_ptr(), attach_type) };
    let id = u32::try_from(id).map_err(|_| "the kernel's BTF has no tcp_v4_connect".to_owned())?;
    let opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: attach_type,
        attach_btf_id: id,
        ..Default::default()
    };
    let program = load(
        libbpf_sys::BPF_PROG_TYPE_TRACING,
        c"probe",
        &returns(0),
        &opts,
    )
    .map_err(|error| format!("this kernel takes no fentry program: {error}"))?;
    // SAFETY: no name is passed, because the program knows its function.
    let link = unsafe { libbpf_sys::bpf_raw_tracepoint_open(ptr::null(), program.as_raw_fd()) };
    owned(link)
        .map(drop)
        .map_err(|error| format!("this kernel attaches no fentry program: {error}"))
}

/// Multi-buffer XDP programs (xdp.frags), from Linux 5.18 on.
pub fn has_xdp_frags() -> Result<(), String> {
    let opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        prog_flags: libbpf_sys::BPF_F_XDP_HAS_FRAGS,
        ..Default::default()
    };
    load(
        libbpf_sys::BPF_PROG_TYPE_XDP,
        c"probe",
        &returns(XDP_PASS),
        &opts,
    )
    .map(drop)
    .map_err(|error| format!("this kernel has no XDP for frames in pieces: {error}"))
}

/// The programs on TC links of an interface of the namespace that the calling thread is in, both
/// directions. bpftool knows of them only since 7.3.
pub fn tcx_programs(interface: &str) -> Vec<u32> {
    let ifindex = if_nametoindex(interface).unwrap().cast_signed();
    let directions = [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS];
    query(ifindex, &directions)
}

/// The programs at the ingress of a cgroup.
pub fn cgroup_programs(cgroup: BorrowedFd<'_>) -> Vec<u32> {
    query(cgroup.as_raw_fd(), &[libbpf_sys::BPF_CGROUP_INET_INGRESS])
}

fn query(target: i32, attach_types: &[libbpf_sys::bpf_attach_type]) -> Vec<u32> {
    let mut found = Vec::new();
    for attach_type in attach_types {
        let mut ids = [0_u32; 64];
        let mut opts = libbpf_sys::bpf_prog_query_opts {
            sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
            prog_ids: ids.as_mut_ptr(),
            ..Default::default()
        };
        opts.__bindgen_anon_1.count = ids.len() as u32;
        // SAFETY: `opts` is valid for the call, its size is set, and it names as many ids as
        // there is room for.
        let ret = unsafe { libbpf_sys::bpf_prog_query_opts(target, *attach_type, &raw mut opts) };
        // A kernel without this hook has none.
        if ret == 0 {
            // SAFETY: both members of the union are the same number.
            let count = unsafe { opts.__bindgen_anon_1.count };
            found.extend(&ids[..count as usize]);
        }
    }
    found
}
