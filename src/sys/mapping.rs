//! Memory that the kernel shares with this process.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::libc::{c_void, off_t};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A memory mapping, unmapped when this is dropped.
pub struct Mapping {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Mapping {
    /// Maps `len` bytes from `offset` on with MAP_SHARED.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
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

    /// The first byte.
    pub fn start(&self) -> NonNull<c_void> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mmap returned this address for this length, and no reference into the mapping
        // outlives its owner. It can fail only for an address or length that mmap did not return.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

/// The file with the BTF of the kernel.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The BTF of the kernel, mapped.
pub struct KernelBtf(Mapping);

impl KernelBtf {
    /// Maps [`KERNEL_BTF`], which is much faster than reading it.
    ///
    /// # Errors
    /// There is no such file, or it can't be mapped, as on older kernels.
    pub fn map() -> Result<Self> {
        let file = File::open(KERNEL_BTF)?;
        let len = usize::try_from(file.metadata()?.len())?;
        // The kernel accepts no shared mapping (btf_sysfs_vmlinux_mmap()).
        let flags = MapFlags::MAP_PRIVATE;
        Mapping::with(file.as_fd(), 0, len, ProtFlags::PROT_READ, flags).map(Self)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as self lives, readable, and never changed by the kernel.
        unsafe { std::slice::from_raw_parts(self.0.start.cast().as_ptr(), self.0.len.get()) }
    }
}
