//! What the files of a journal are called.

use super::Lsn;

/// The file that the next checkpoint is written into, so that it has its space on a full disk.
pub(super) const RESERVE: &str = "reserve";

pub(super) fn segment_name(segment: u32) -> String {
    format!("{segment:010}.seg")
}

pub(super) fn checkpoint_name(lsn: Lsn) -> String {
    format!("{:020}.ckpt", lsn.0)
}
