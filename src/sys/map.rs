//! Reads whole maps, many entries per system call.

use std::io;
use std::os::fd::AsRawFd;

use libbpf_rs::MapCore;

/// Entries read per system call. Those of one hash bucket have to fit.
const BATCH: u32 = 4096;

/// Bytes for the kernel's position in a map: a hash map needs 4, other maps as many as a key has.
const POSITION: usize = 8;

/// Passes all keys and values of a map to `take`. With `delete` the map is empty after that.
///
/// libbpf-rs has this too, but treats any error as the end of the map.
///
/// # Errors
/// The kernel refuses it.
pub fn read_all(
    map: &(impl MapCore + ?Sized),
    delete: bool,
    mut take: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
    let mut keys = vec![0_u8; key_size * BATCH as usize];
    let mut values = vec![0_u8; value_size * BATCH as usize];
    let mut position = vec![0_u8; key_size.max(POSITION)];
    let mut is_first = true;
    let options = libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as libbpf_sys::size_t,
        ..libbpf_sys::bpf_map_batch_opts::default()
    };
    let read = match delete {
        true => libbpf_sys::bpf_map_lookup_and_delete_batch,
        false => libbpf_sys::bpf_map_lookup_batch,
    };
    loop {
        let mut count = BATCH;
        let next = position.as_mut_ptr();
        let from = match is_first {
            true => std::ptr::null_mut(),
            false => next,
        };
        // SAFETY: the buffers have room for `count` keys and values, and for a position. The
        // kernel reads the old position before it writes the new one.
        let result = unsafe {
            read(
                map.as_fd().as_raw_fd(),
                from.cast(),
                next.cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                &options,
            )
        };
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        let is_end = match &error {
            None => false,
            Some(error) if error.kind() == io::ErrorKind::NotFound => true,
            Some(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Some(_) => return error.map_or(Ok(()), Err),
        };
        let keys = keys.chunks_exact(key_size);
        let entries = keys.zip(values.chunks_exact(value_size));
        entries
            .take(count as usize)
            .for_each(|(key, value)| take(key, value));
        if is_end {
            return Ok(());
        }
        is_first = false;
    }
}
