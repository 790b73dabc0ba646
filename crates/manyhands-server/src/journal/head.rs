//! Which segment is the newest, in a file of its own: a directory that lost its last segment looks
//! whole otherwise.
//!
//! Invariant: the segment that it names is durable, name and header. It may name an older one: it is
//! written once per segment, after that. One that is not intact says nothing.

use std::sync::Arc;

use bytes::{Buf, BufMut};

use super::JournalError;
use super::error::During;
use super::names::segment_name;
use super::storage::{Storage, StorageFile, read_start};

/// Its name.
pub(super) const NAME: &str = "head";

const MAGIC: &[u8; 8] = b"MANYHEAD";
/// Length of the file, in bytes: less than what a disk writes at once.
const LEN: usize = 24;

/// The file that names the newest segment.
#[derive(Debug)]
pub(super) struct Head {
    file: Arc<dyn StorageFile>,
    journal: u64,
}

impl Head {
    /// Makes the file if need be, and names `segment` in it; `None` if the disk has no room for it.
    pub(super) fn open(
        storage: &dyn Storage,
        journal: u64,
        segment: u32,
    ) -> Result<Option<Self>, JournalError> {
        let known = read(storage)?;
        let file = match known {
            Some(_) => storage.open(NAME).during("open", NAME)?,
            None => storage.create(NAME).during("create", NAME)?,
        };
        let head = Self { file, journal };
        if known == Some(segment) {
            return Ok(Some(head));
        }
        match head.name(segment) {
            Err(error) if error.is_full() => Ok(None),
            named => {
                named?;
                storage.sync_directory().during("sync the directory of", NAME)?;
                Ok(Some(head))
            }
        }
    }

    /// Names a segment that is durable.
    pub(super) fn name(&self, segment: u32) -> Result<(), JournalError> {
        let mut bytes = [0; LEN];
        let mut out = bytes.as_mut_slice();
        out.put_slice(MAGIC);
        out.put_u64_le(self.journal);
        out.put_u32_le(segment);
        let (covered, mut crc) = bytes.split_at_mut(LEN - 4);
        crc.put_u32_le(crc32c::crc32c(covered));
        self.file.write_at(&bytes, 0).during("write", NAME)?;
        self.file.sync().during("sync", NAME)
    }
}

/// The segment that the head names, if there is an intact one.
pub(super) fn read(storage: &dyn Storage) -> Result<Option<u32>, JournalError> {
    let file = match storage.open(NAME) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.during("open", NAME)?,
    };
    let bytes = file.size().and_then(|len| read_start(&*file, len)).during("read", NAME)?;
    Ok(decode(&bytes))
}

fn decode(bytes: &[u8]) -> Option<u32> {
    let (covered, mut crc) = bytes.split_at_checked(LEN - 4)?;
    let is_intact = crc.try_get_u32_le().ok()? == crc32c::crc32c(covered) && crc.is_empty();
    let mut segment = covered.strip_prefix(MAGIC).filter(|_| is_intact)?.get(8..)?;
    segment.try_get_u32_le().ok()
}

/// Checks that the segment is there which the head names, or a later one. `last` is the last that is.
pub(super) fn check(storage: &dyn Storage, last: Option<u32>) -> Result<(), JournalError> {
    match read(storage)? {
        Some(newest) if last.is_none_or(|last| last < newest) => {
            Err(JournalError::Missing(segment_name(newest)))
        }
        _ => Ok(()),
    }
}
