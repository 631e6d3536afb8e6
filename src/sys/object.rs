//! What libbpf can do with an object that is not loaded yet, and libbpf-rs can't.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use libbpf_rs::{AsRawLibbpf, OpenMapMut, OpenObject};

/// Creates the maps of an object, so that another object can share them while the programs of this
/// one are loaded. From now on no setting can be changed.
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

/// A file descriptor of its own for a map that is created.
///
/// # Errors
/// The map is not created, or no file descriptor is left.
pub fn map_fd(map: &OpenMapMut<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the map belongs to an open object.
    let fd = unsafe { libbpf_sys::bpf_map__fd(map.as_libbpf_object().as_ptr()) };
    if fd < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: libbpf keeps it open as long as the object is there.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}
