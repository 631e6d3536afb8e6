//! Functions of libbpf for an object that is not loaded yet, which libbpf-rs does not offer.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;

use libbpf_rs::{AsRawLibbpf, OpenMapMut, OpenObject, OpenProgramMut};
use libbpf_sys::{bpf_func_info, bpf_insn, bpf_line_info, bpf_prog_load_opts};

/// Creates the maps of an object before its programs are loaded. So another object can share the maps,
/// and another thread can load programs that use them. After that no setting can be changed.
///
/// # Errors
/// The kernel refuses a map. Then the object can't be loaded any more.
pub fn create_maps(object: &mut OpenObject) -> libbpf_rs::Result<()> {
    let object = object.as_libbpf_object();
    // SAFETY: the object is open, and borrowed by nobody else.
    match unsafe { libbpf_sys::bpf_object__prepare(object.as_ptr()) } {
        0 => Ok(()),
        error => Err(libbpf_rs::Error::from_raw_os_error(-error)),
    }
}

/// Duplicates the file descriptor of a map that was created.
///
/// # Errors
/// The map is not created, or no file descriptor is left.
pub fn map_fd(map: &OpenMapMut<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the map belongs to an open object.
    let fd = unsafe { libbpf_sys::bpf_map__fd(map.as_libbpf_object().as_ptr()) };
    if fd < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: libbpf keeps the descriptor open as long as the object exists.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// A program that was copied from an object, so that another thread can load it.
pub struct SeparateProgram {
    name: CString,
    kind: libbpf_sys::bpf_prog_type,
    attach_type: libbpf_sys::bpf_attach_type,
    instructions: Vec<bpf_insn>,
    functions: Vec<bpf_func_info>,
    lines: Vec<bpf_line_info>,
    /// The file descriptor of the object's BTF; 0 if the kernel does not support BTF.
    btf: u32,
}

/// The size of the buffer for the verifier's log.
const LOG_SIZE: usize = 16 << 20;

impl SeparateProgram {
    /// Copies a program from an object whose maps were created. It won't be loaded with the others.
    /// `btf` is from [`btf_fd`]. The object has to exist until this program is loaded.
    pub fn take(program: &mut OpenProgramMut<'_>, btf: u32) -> Self {
        let raw = program.as_libbpf_object().as_ptr();
        // SAFETY: the program belongs to an open object. What these functions point to does not
        // change before the object is loaded, and is copied here.
        let separate = unsafe {
            Self {
                name: CStr::from_ptr(libbpf_sys::bpf_program__name(raw)).to_owned(),
                kind: libbpf_sys::bpf_program__type(raw),
                attach_type: libbpf_sys::bpf_program__expected_attach_type(raw),
                instructions: copy(
                    libbpf_sys::bpf_program__insns(raw),
                    libbpf_sys::bpf_program__insn_cnt(raw),
                ),
                functions: copy(
                    libbpf_sys::bpf_program__func_info(raw),
                    libbpf_sys::bpf_program__func_info_cnt(raw).into(),
                ),
                lines: copy(
                    libbpf_sys::bpf_program__line_info(raw),
                    libbpf_sys::bpf_program__line_info_cnt(raw).into(),
                ),
                btf,
            }
        };
        program.set_autoload(false);
        separate
    }

    /// Loads the program. If the kernel refuses it, the verifier's log goes where libbpf's messages
    /// go.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn load(&self) -> libbpf_rs::Result<LoadedProgram> {
        // Takes no memory before the kernel writes to it: zeroed pages are allocated on first use.
        let mut log = vec![0_u8; LOG_SIZE];
        let mut opts = bpf_prog_load_opts {
            sz: size_of::<bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: self.attach_type,
            log_buf: log.as_mut_ptr().cast(),
            log_size: u32::try_from(log.len()).unwrap_or(0),
            ..Default::default()
        };
        if self.btf != 0 {
            opts.prog_btf_fd = self.btf;
            opts.func_info = self.functions.as_ptr().cast();
            opts.func_info_cnt = count(&self.functions);
            opts.func_info_rec_size = size_of::<bpf_func_info>() as u32;
            opts.line_info = self.lines.as_ptr().cast();
            opts.line_info_cnt = count(&self.lines);
            opts.line_info_rec_size = size_of::<bpf_line_info>() as u32;
        }
        // SAFETY: all memory that is pointed to outlives the call, and its sizes are passed along.
        let fd = unsafe {
            libbpf_sys::bpf_prog_load(
                self.kind,
                self.name.as_ptr(),
                c"Dual BSD/GPL".as_ptr(),
                self.instructions.as_ptr(),
                self.instructions.len() as libbpf_sys::size_t,
                &raw mut opts,
            )
        };
        if fd < 0 {
            if let (Some((level, print)), Ok(log)) =
                (libbpf_rs::get_print(), CStr::from_bytes_until_nul(&log))
            {
                let (name, log) = (self.name.to_string_lossy(), log.to_string_lossy());
                print(level, format!("the kernel refuses {name}:\n{log}"));
            }
            return Err(libbpf_rs::Error::from_raw_os_error(-fd));
        }
        Ok(LoadedProgram {
            // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            name: self.name.to_string_lossy().into_owned(),
        })
    }
}

/// A program that was loaded separately from its object. It is unloaded when this is dropped.
pub struct LoadedProgram {
    fd: OwnedFd,
    name: String,
}

impl LoadedProgram {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for LoadedProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

/// # Safety
/// There are `count` items at `from`, unless that is null.
unsafe fn copy<T: Copy>(from: *const T, count: u64) -> Vec<T> {
    match (NonNull::new(from.cast_mut()), usize::try_from(count)) {
        // SAFETY: as above.
        (Some(from), Ok(count)) => unsafe { slice::from_raw_parts(from.as_ptr(), count) }.to_vec(),
        _ => Vec::new(),
    }
}

/// The file descriptor of the BTF of an object whose maps were created; 0 if the kernel does not
/// support BTF.
pub fn btf_fd(object: &OpenObject) -> u32 {
    // SAFETY: the object is open.
    let fd = unsafe { libbpf_sys::bpf_object__btf_fd(object.as_libbpf_object().as_ptr()) };
    u32::try_from(fd).unwrap_or(0)
}
