//! Which files a directory holds.

use std::collections::BTreeSet;

use super::error::During;
use super::names::RESERVE;
use super::storage::Storage;
use super::{JournalError, Lsn};

/// The files of a journal, by kind.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) segments: BTreeSet<u32>,
    pub(super) checkpoints: BTreeSet<Lsn>,
    pub(super) spares: Vec<u64>,
    pub(super) has_reserve: bool,
    /// What was being written when the process ended.
    pub(super) unfinished: Vec<String>,
}

impl Files {
    pub(super) fn list(storage: &dyn Storage) -> Result<Self, JournalError> {
        let mut files = Self::default();
        for name in storage.list().during("list", "the directory")? {
            files.has_reserve |= name == RESERVE;
            match name.split_once('.').map(|(stem, kind)| (stem.parse::<u64>(), kind)) {
                Some((Ok(number), "seg")) => {
                    files.segments.extend(u32::try_from(number).ok());
                }
                Some((Ok(number), "ckpt")) => {
                    files.checkpoints.insert(Lsn(number));
                }
                Some((Ok(number), "spare")) => files.spares.push(number),
                Some((_, "tmp")) => files.unfinished.push(name),
                _ => {}
            }
        }
        Ok(files)
    }
}
