//! Filters on processes: the sets that programs look process ids, users and names up in.

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapMut, OpenMapMut};

use crate::skel::{self, CommKey, ProcessFilter};

/// Which processes are wanted. An empty list wants all.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessRules<'a> {
    /// Process ids.
    pub pids: &'a [u32],
    /// Ids of users.
    pub uids: &'a [u32],
    /// Names, of 15 bytes at most.
    pub comms: &'a [Vec<u8>],
}

impl ProcessRules<'_> {
    /// Whether there are any rules.
    pub fn is_empty(&self) -> bool {
        self.pids.is_empty() && self.uids.is_empty() && self.comms.is_empty()
    }

    /// Sets the sizes of the maps of ids, users and names; those of empty lists are not created.
    /// Returns which ones are used.
    ///
    /// # Errors
    /// A size can't be set.
    pub fn size(&self, maps: [&mut OpenMapMut<'_>; 3]) -> Result<u32> {
        let parts = [
            (self.pids.len(), ProcessFilter::FILTER_PID),
            (self.uids.len(), ProcessFilter::FILTER_UID),
            (self.comms.len(), ProcessFilter::FILTER_COMM),
        ];
        let mut used = 0;
        for (map, (len, part)) in maps.into_iter().zip(parts) {
            if len == 0 {
                map.set_autocreate(false)?;
            } else {
                map.set_max_entries(u32::try_from(len)?)?;
                used |= part.0;
            }
        }
        Ok(used)
    }

    /// Fills the maps of the loaded programs.
    ///
    /// # Errors
    /// The kernel has no memory for them.
    pub fn fill(&self, [pids, uids, comms]: [&MapMut<'_>; 3]) -> Result<()> {
        let add = |map: &MapMut<'_>, key: &[u8]| {
            map.update(key, &[1], MapFlags::ANY)
                .context("failed to fill the filter on processes")
        };
        for pid in self.pids {
            add(pids, &pid.to_ne_bytes())?;
        }
        for uid in self.uids {
            add(uids, &uid.to_ne_bytes())?;
        }
        for comm in self.comms {
            let mut key = CommKey::default();
            key.comm[..comm.len()].copy_from_slice(comm);
            add(comms, skel::key_bytes(&key))?;
        }
        Ok(())
    }
}
