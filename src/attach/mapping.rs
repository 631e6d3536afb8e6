//! Memory that the kernel shares with us.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::libc::{c_void, off_t};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Memory that is unmapped when this is dropped.
pub struct Mapping {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Mapping {
    /// Maps `len` bytes from `offset` on, shared.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn new(fd: BorrowedFd<'_>, offset: usize, len: usize, access: ProtFlags) -> Result<Self> {
        Self::with(fd, offset, len, access, MapFlags::MAP_SHARED)
    }

    fn with(
        fd: BorrowedFd<'_>,
        offset: usize,
        len: usize,
        access: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self> {
        let len = NonZeroUsize::new(len).context("the mapping is empty")?;
        let offset = off_t::try_from(offset)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { mmap(None, len, access, flags, fd, offset) }?;
        Ok(Self { start, len })
    }

    /// Where it begins.
    pub fn start(&self) -> NonNull<c_void> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and no reference into it outlives its owner. It
        // can only fail for an address or length that mmap did not return.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

/// Where the kernel tells of its types.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What it tells of them, which never changes.
pub struct KernelBtf(Mapping);

impl KernelBtf {
    /// Maps [`KERNEL_BTF`], which takes a fraction of the time that it takes to read it.
    ///
    /// # Errors
    /// It is not there, or can't be mapped, as on older kernels.
    pub fn map() -> Result<Self> {
        let file = File::open(KERNEL_BTF)?;
        let len = usize::try_from(file.metadata()?.len())?;
        // That is how the kernel wants it (btf_sysfs_vmlinux_mmap()).
        let flags = MapFlags::MAP_PRIVATE;
        Mapping::with(file.as_fd(), 0, len, ProtFlags::PROT_READ, flags).map(Self)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as self, readable, and the kernel's own constant memory.
        unsafe { std::slice::from_raw_parts(self.0.start.cast().as_ptr(), self.0.len.get()) }
    }
}
