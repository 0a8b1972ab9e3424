//! The records of a file of a record log, as its servers list them, chunk by chunk.

use dfs_core::namespace::NamespaceError;

use super::FileState;
use crate::chunk_io::Patience;
use crate::error::{ClientError, Result};

/// One record: bytes `offset..offset+len` of the file, in chunk `index`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileRecord {
    pub index: u64,
    pub offset: u64,
    pub len: u64,
}

impl FileState {
    /// Calls `each` for every record, in the file's order, up to the size that the file has when this begins.
    ///
    /// # Errors
    /// `Refused`: the file is in no record log. `RecordsUnknown` after the records before that chunk; see [`ClientError`]. Replicas that fail are
    /// passed over until `server_wait` is over, counted for each answer.
    pub fn records(&self, each: &mut dyn FnMut(FileRecord)) -> Result<()> {
        let attr = self.attr()?;
        if !attr.layout.record_log {
            let reason = "not a file of a record log".to_owned();
            return Err(NamespaceError::Invalid(reason).into());
        }
        let chunk_size = attr.layout.chunk_size.max(1);
        for index in 0..attr.size.div_ceil(chunk_size) {
            let (start, mut from) = (index * chunk_size, 0);
            loop {
                let patience = Patience::new(self.io.link.config().server_wait);
                let listed = self.io.chunk_records(self.ino, index, from, &patience)?;
                let Some(listed) = listed else { break };
                if !listed.all_known {
                    return Err(ClientError::RecordsUnknown { index });
                }
                let places = listed.records.iter();
                places.filter(|place| start + place.offset + place.len <= attr.size).for_each(
                    |place| {
                        each(FileRecord { index, offset: start + place.offset, len: place.len })
                    },
                );
                from = listed.records.end();
                if !listed.more {
                    break;
                }
            }
        }
        Ok(())
    }
}
