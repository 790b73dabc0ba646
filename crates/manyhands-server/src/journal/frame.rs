//! Segments and frames as bytes: what is written around records, and how it is known again.
//!
//! Every checksum starts from a seed made of the journal's identity and the segment's number, so what
//! a recycled file still holds, and what a client may put into a body, is never taken for a frame.
//! Each frame names the checksum of the one before it. `docs/journal-format.md` draws all of it.

use bytes::{Buf, BufMut};
use memchr::memmem;

use super::Lsn;

/// Version of the format. A directory of a newer major version is refused.
pub(super) const MAJOR: u16 = 1;
/// Grows when a kind of record or an option is added.
pub(super) const MINOR: u16 = 4;
/// Length of the header of a segment or a checkpoint, in bytes.
pub(super) const FILE_HEADER_LEN: usize = 64;
/// Length of the header of a frame, in bytes.
pub(super) const FRAME_HEADER_LEN: usize = 48;
/// Length of the checksum before a body, in bytes.
pub(super) const CRC_LEN: u32 = 4;
/// Frames begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

const SEGMENT_MAGIC: &[u8; 8] = b"MANYHSEG";
const CHECKPOINT_MAGIC: &[u8; 8] = b"MANYHCKP";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"MHFR");

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) kind: FileKind,
    /// Identity of the journal that the file belongs to.
    pub(super) journal: u64,
    /// The segment's number; in a checkpoint, that of the segment with its last frame.
    pub(super) segment: u32,
    /// The last frame before a segment, or in a checkpoint.
    pub(super) lsn: Lsn,
    /// That frame's checksum; a checkpoint does not know it, and has zero.
    pub(super) chain: u32,
    /// Epoch at the time.
    pub(super) epoch: u64,
    /// The file was never shorter than this, in bytes; of a checkpoint nothing behind it counts.
    pub(super) size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Segment,
    Checkpoint,
}

/// Why a file is not what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    Newer(u16),
}

/// A frame that was found intact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) chain: u32,
    pub(super) previous: u32,
    pub(super) epoch: u64,
    pub(super) lsn: Lsn,
    /// All frames up to this one were durable when this one was written.
    pub(super) synced: Lsn,
    pub(super) records: &'a [u8],
    /// What the checksum of its records differs by from the one that was written; 0 if it is whole.
    pub(super) difference: u32,
    /// Where the next frame begins.
    pub(super) end: usize,
}

/// What the writer knows of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    pub(super) previous: u32,
    pub(super) epoch: u64,
    pub(super) lsn: Lsn,
    pub(super) synced: Lsn,
}

/// What checksums in this segment start from.
pub(super) fn seed(journal: u64, segment: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&journal.to_le_bytes()), &segment.to_le_bytes())
}

/// `len` as it is on disk.
pub(super) fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT)
}

impl Frame<'_> {
    /// Whether its records are what was written.
    pub(super) fn is_whole(&self) -> bool {
        if planted!(TornFrameRead) {
            return true;
        }
        self.difference == 0
    }
}

impl FileHeader {
    pub(super) fn encode(&self) -> [u8; FILE_HEADER_LEN] {
        let mut header = [0; FILE_HEADER_LEN];
        let mut out = header.as_mut_slice();
        out.put_slice(match self.kind {
            FileKind::Segment => SEGMENT_MAGIC,
            FileKind::Checkpoint => CHECKPOINT_MAGIC,
        });
        out.put_u16_le(MAJOR);
        out.put_u16_le(MINOR);
        out.put_u32_le(self.segment);
        out.put_u64_le(self.journal);
        out.put_u64_le(self.lsn.0);
        out.put_u64_le(self.epoch);
        out.put_u32_le(self.chain);
        out.put_u64_le(self.size);
        let (covered, mut crc) = header.split_at_mut(FILE_HEADER_LEN - 4);
        crc.put_u32_le(crc32c::crc32c(covered));
        header
    }

    pub(super) fn decode(kind: FileKind, header: &[u8]) -> Result<Self, HeaderError> {
        let header = header.get(..FILE_HEADER_LEN).ok_or(HeaderError::Damaged)?;
        let (covered, mut crc) = header.split_at(FILE_HEADER_LEN - 4);
        let mut fields = covered;
        let magic = match kind {
            FileKind::Segment => SEGMENT_MAGIC,
            FileKind::Checkpoint => CHECKPOINT_MAGIC,
        };
        let is_ours = fields.copy_to_bytes(8) == magic.as_slice();
        if crc.get_u32_le() != crc32c::crc32c(covered) || !is_ours {
            return Err(HeaderError::Damaged);
        }
        let (major, _minor) = (fields.get_u16_le(), fields.get_u16_le());
        if major != MAJOR {
            return Err(HeaderError::Newer(major));
        }
        Ok(Self {
            kind,
            segment: fields.get_u32_le(),
            journal: fields.get_u64_le(),
            lsn: Lsn(fields.get_u64_le()),
            epoch: fields.get_u64_le(),
            chain: fields.get_u32_le(),
            size: fields.get_u64_le(),
        })
    }
}

/// Completes a frame in place: `bytes` is room for a header, then records. Returns its checksum.
pub(super) fn seal(bytes: &mut Vec<u8>, seed: u32, seal: Seal) -> u32 {
    let records_len = bytes.len() - FRAME_HEADER_LEN;
    bytes.resize(aligned(bytes.len()), 0);
    let (header, records) = bytes.split_at_mut(FRAME_HEADER_LEN);
    let mut out = header;
    out.put_u32_le(FRAME_MAGIC);
    out.put_u32_le(0);
    out.put_u32_le(crc32c::crc32c_append(seed, records));
    out.put_u32_le(seal.previous);
    out.put_u64_le(records_len as u64);
    out.put_u64_le(seal.epoch);
    out.put_u64_le(seal.lsn.0);
    out.put_u64_le(seal.synced.0);
    let chain = crc32c::crc32c_append(seed, bytes.get(8..FRAME_HEADER_LEN).unwrap_or_default());
    if let Some(mut field) = bytes.get_mut(4..8) {
        field.put_u32_le(chain);
    }
    chain
}

/// The frame at `offset` of a segment, if one with an intact header is there.
pub(super) fn parse(segment: &[u8], offset: usize, seed: u32) -> Option<Frame<'_>> {
    let (mut fields, rest) = header(segment, offset, seed)?;
    let chain = fields.get_u32_le();
    let records_crc = fields.get_u32_le();
    let previous = fields.get_u32_le();
    let len = usize::try_from(fields.get_u64_le()).ok()?;
    let records = rest.get(..len.checked_next_multiple_of(ALIGNMENT)?)?;
    Some(Frame {
        chain,
        previous,
        epoch: fields.get_u64_le(),
        lsn: Lsn(fields.get_u64_le()),
        synced: Lsn(fields.get_u64_le()),
        records: records.get(..len)?,
        difference: records_crc ^ crc32c::crc32c_append(seed, records),
        end: offset + FRAME_HEADER_LEN + records.len(),
    })
}

/// Length on disk of a frame, if `bytes` begins with the intact header of one.
pub(super) fn len(bytes: &[u8], seed: u32) -> Option<usize> {
    let (fields, _) = header(bytes, 0, seed)?;
    let len = usize::try_from(fields.get(12..)?.try_get_u64_le().ok()?).ok()?;
    len.checked_next_multiple_of(ALIGNMENT)?.checked_add(FRAME_HEADER_LEN)
}

/// Where in `bytes`, which begin where a frame could, something looks like one.
pub(super) fn find(bytes: &[u8]) -> Option<usize> {
    let magic = FRAME_MAGIC.to_le_bytes();
    memmem::find_iter(bytes, &magic).find(|offset| offset.is_multiple_of(ALIGNMENT))
}

/// The intact header at `offset`, after its magic number, and what follows it.
///
/// It has a checksum of its own, so that a search costs no more where a client put what looks like a
/// thousand frames.
fn header(segment: &[u8], offset: usize, seed: u32) -> Option<(&[u8], &[u8])> {
    let (header, rest) = segment.get(offset..)?.split_at_checked(FRAME_HEADER_LEN)?;
    let mut fields = header;
    if fields.get_u32_le() != FRAME_MAGIC {
        return None;
    }
    let (mut crc, covered) = fields.split_at_checked(4)?;
    (crc.get_u32_le() == crc32c::crc32c_append(seed, covered)).then_some((fields, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_where_a_frame_could_begin_looks_like_one() {
        assert_eq!(find(b""), None);
        assert_eq!(find(b"MHFR"), Some(0));
        assert_eq!(find(b"\0MHFR\0\0\0"), None);
        assert_eq!(find(b"..MHFR..MHFMHFR.MHFR...."), Some(16));
        assert_eq!(find(&[[0; 64].as_slice(), b"MHFR"].concat()), Some(64));
    }
}
