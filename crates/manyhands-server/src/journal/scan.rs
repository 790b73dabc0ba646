//! Reads a directory from its newest checkpoint to its last frame, and changes nothing.
//!
//! Invariant: either every record that was durable is visited, in order, or the file and place are
//! named where that ends. Only what nobody was told about is cut off.

use std::collections::VecDeque;

use bytes::Buf;

use super::error::During;
use super::fields::RecordError;
use super::files::Files;
use super::frame::{
    self, FILE_HEADER_LEN, FRAME_HEADER_LEN, FileHeader, FileKind, Frame, HeaderError,
};
use super::names::{checkpoint_name, segment_name};
use super::row::Records;
use super::storage::{Storage, read_start};
use super::window::Window;
use super::{JournalError, Location, Lsn, Record};

/// A record as it is found in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its frame, or the last frame that its checkpoint covers.
    pub lsn: Lsn,
    /// Its segment; none if it is from a checkpoint.
    pub segment: Option<u32>,
    /// Where in the file its frame begins, or its chunk of a checkpoint, in bytes.
    pub offset: u64,
    /// The record.
    pub record: Record<'a>,
    /// Where its body is.
    pub location: Option<Location>,
}

/// What is told of every record.
pub(super) type Visit<'v> = &'v mut dyn FnMut(Entry<'_>);

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Where frames go on; none in an empty directory.
    pub(super) tail: Option<Tail>,
    pub(super) files: Files,
    /// The checkpoint that was read.
    pub(super) checkpoint: Option<Lsn>,
    /// Its length.
    pub(super) checkpoint_bytes: u64,
    pub(super) frames: u64,
    pub(super) records: u64,
    /// Length of the records after it, without bodies.
    pub(super) bytes: u64,
    /// Takes what is whole of a directory that is damaged.
    pub(super) is_lenient: bool,
}

/// Where frames go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    pub(super) journal: u64,
    pub(super) segment: u32,
    pub(super) offset: usize,
    pub(super) lsn: Lsn,
    pub(super) chain: u32,
    pub(super) epoch: u64,
    /// From here on frames may be in the system's memory only.
    pub(super) unsynced: usize,
    /// Whether a frame that was never durable is cut off there.
    pub(super) torn: bool,
}

/// Visits the newest intact checkpoint and every frame after it.
pub(super) fn scan(storage: &dyn Storage, visit: Visit<'_>) -> Result<Scan, JournalError> {
    let mut scan = Scan { files: Files::list(storage)?, ..Scan::default() };
    super::head::check(storage, scan.files.segments.last().copied())?;
    let (base, damage) = scan.checkpoint(storage, visit)?;
    // What an older checkpoint or none would need may be gone because of the one that is damaged.
    scan.segments(storage, base, visit).map_err(|error| damage.unwrap_or(error))?;
    Ok(scan)
}

/// Where the walk over segments begins.
pub(super) struct Base {
    pub(super) journal: Option<u64>,
    pub(super) segment: u32,
    pub(super) lsn: Lsn,
}

impl Scan {
    /// Returns with the base what is wrong with a newer checkpoint.
    fn checkpoint(
        &mut self,
        storage: &dyn Storage,
        visit: Visit<'_>,
    ) -> Result<(Base, Option<JournalError>), JournalError> {
        let mut damage = None;
        for &lsn in self.files.checkpoints.iter().rev() {
            let name = checkpoint_name(lsn);
            let bytes = checkpoint_bytes(storage, &name)?;
            let (header, chunks) = match read_checkpoint(&name, lsn, &bytes) {
                Err(error @ JournalError::Damaged { .. }) => {
                    damage.get_or_insert(error);
                    continue;
                }
                read => read?,
            };
            for (offset, records) in chunks {
                self.records += self.visit_chunk(&name, lsn, offset, records, visit)?;
            }
            self.checkpoint = Some(lsn);
            self.checkpoint_bytes = bytes.len() as u64;
            let FileHeader { journal, segment, .. } = header;
            return Ok((Base { journal: Some(journal), segment, lsn }, damage));
        }
        Ok((Base { journal: None, segment: 1, lsn: Lsn(0) }, damage))
    }

    pub(super) fn visit_chunk(
        &self,
        name: &str,
        lsn: Lsn,
        offset: usize,
        records: &[u8],
        visit: Visit<'_>,
    ) -> Result<u64, JournalError> {
        let mut count = 0;
        // Most bodies lie in one segment with the one before.
        let mut there = None;
        for record in Records::new(records) {
            let record = record.map_err(|error| no_record(name, offset, error))?;
            if let Record::Live { location: Location { segment, .. }, .. } = record
                && there != Some(segment)
            {
                if !self.is_lenient && !self.files.segments.contains(&segment) {
                    return Err(JournalError::Missing(segment_name(segment)));
                }
                there = Some(segment);
            }
            visit(Entry { lsn, segment: None, offset: offset as u64, record, location: None });
            count += 1;
        }
        Ok(count)
    }

    fn segments(
        &mut self,
        storage: &dyn Storage,
        base: Base,
        visit: Visit<'_>,
    ) -> Result<(), JournalError> {
        let Some(&last) = self.files.segments.last() else {
            let is_empty = self.files.checkpoints.is_empty();
            return if is_empty {
                Ok(())
            } else {
                Err(JournalError::Missing(segment_name(base.segment)))
            };
        };
        for segment in base.segment..=last.max(base.segment) {
            let name = segment_name(segment);
            if !self.files.segments.contains(&segment) {
                return Err(JournalError::Missing(name));
            }
            let file = storage.open(&name).during("open", &name)?;
            let mut window = Window::new(file).during("look at", &name)?;
            let header = window.at(0, FILE_HEADER_LEN).during("read", &name)?;
            let header = file_header(&name, FileKind::Segment, header)?;
            if (window.len() as u64) < header.size {
                return Err(JournalError::damaged(&name, window.len(), "it is cut short"));
            }
            let mut tail = begin(&name, segment, &header, &base, self.tail.as_ref())?;
            self.walk(&name, &mut window, &mut tail, base.lsn, visit)?;
            if segment == last {
                let seed = frame::seed(tail.journal, segment);
                // A later frame that was written when this place was durable says that it was not torn.
                let knew = |frame: Frame<'_>| frame.synced > tail.lsn;
                if window.find_frame(tail.offset, seed, knew).during("read", &name)?.is_some() {
                    let what = format!("frame {} is not intact", tail.lsn.next());
                    return Err(JournalError::damaged(&name, tail.offset, what));
                }
                let header = window.at(tail.offset, FRAME_HEADER_LEN).during("read", &name)?;
                tail.torn = frame::len(header, seed).is_some();
            }
            self.tail = Some(tail);
        }
        match self.tail {
            Some(tail) if tail.lsn < base.lsn => {
                let what = format!("frames up to {} are missing", base.lsn);
                Err(JournalError::damaged(&segment_name(tail.segment), tail.offset, what))
            }
            _ => Ok(()),
        }
    }

    /// Visits the frames of a segment that come after `base`, as far as they are intact.
    pub(super) fn walk(
        &mut self,
        name: &str,
        window: &mut Window,
        tail: &mut Tail,
        base: Lsn,
        visit: Visit<'_>,
    ) -> Result<(), JournalError> {
        let seed = frame::seed(tail.journal, tail.segment);
        let mut unsynced = VecDeque::new();
        while let Some(frame) = window.any_frame(tail.offset, seed).during("read", name)?
            && tail.is_next(&frame)
            && (frame.is_whole() || self.is_lenient && differs_in_bodies_only(&frame, seed))
        {
            if frame.lsn > base {
                self.frames += 1;
                let (records, body_bytes) = visit_frame(name, tail, &frame, visit)?;
                self.records += records;
                self.bytes += frame.records.len() as u64 - body_bytes;
            }
            unsynced.push_back((frame.lsn, tail.offset));
            while unsynced.front().is_some_and(|(lsn, _)| *lsn <= frame.synced) {
                unsynced.pop_front();
            }
            (tail.offset, tail.lsn) = (frame.end, frame.lsn);
            (tail.chain, tail.epoch) = (frame.chain, frame.epoch);
        }
        tail.unsynced = unsynced.front().map_or(tail.offset, |(_, offset)| *offset);
        Ok(())
    }
}

impl Tail {
    /// The begin of a segment that no frame is before.
    pub(super) fn first(journal: u64, segment: u32) -> Self {
        let offset = FILE_HEADER_LEN;
        let lsn = Lsn::default();
        Self { journal, segment, offset, lsn, chain: 0, epoch: 0, unsynced: offset, torn: false }
    }

    fn is_next(&self, frame: &Frame<'_>) -> bool {
        frame.previous == self.chain && frame.lsn == self.lsn.next() && frame.epoch >= self.epoch
    }
}

/// The begin of a segment, if it follows the one before.
fn begin(
    name: &str,
    segment: u32,
    header: &FileHeader,
    base: &Base,
    before: Option<&Tail>,
) -> Result<Tail, JournalError> {
    let FileHeader { journal, lsn, chain, epoch, .. } = *header;
    let expected = before.map(|tail| tail.journal).or(base.journal);
    if header.segment != segment || expected.is_some_and(|expected| expected != journal) {
        return Err(JournalError::damaged(name, 0, "it belongs elsewhere"));
    }
    match before {
        Some(tail) if (tail.lsn, tail.chain) != (lsn, chain) => {
            let what = format!("frame {} is not intact", tail.lsn.next());
            return Err(JournalError::damaged(&segment_name(tail.segment), tail.offset, what));
        }
        None if lsn > base.lsn => {
            let what = format!("frames {} to {lsn} are missing before it", base.lsn.next());
            return Err(JournalError::damaged(name, 0, what));
        }
        _ => {}
    }
    Ok(Tail { lsn, chain, epoch, ..Tail::first(journal, segment) })
}

type Chunks<'a> = Vec<super::checkpoint::Chunk<'a>>;

/// The bytes of a checkpoint, without what its file held before; all of them if its header does not
/// say how many they are.
pub(super) fn checkpoint_bytes(storage: &dyn Storage, name: &str) -> Result<Vec<u8>, JournalError> {
    let file = storage.open(name).during("open", name)?;
    let size = file.size().during("look at", name)?;
    let mut header = vec![0; usize::try_from(size.min(FILE_HEADER_LEN as u64)).unwrap_or_default()];
    file.read_at(&mut header, 0).during("read", name)?;
    let header = FileHeader::decode(FileKind::Checkpoint, &header);
    let told = header.ok().map(|header| header.size).filter(|told| (1..size).contains(told));
    read_start(&*file, told.unwrap_or(size)).during("read", name)
}

pub(super) fn read_checkpoint<'a>(
    name: &str,
    lsn: Lsn,
    bytes: &'a [u8],
) -> Result<(FileHeader, Chunks<'a>), JournalError> {
    let header = file_header(name, FileKind::Checkpoint, bytes)?;
    let chunks = super::checkpoint::chunks(bytes, header.journal);
    let chunks = chunks.filter(|_| header.lsn == lsn);
    let chunks = chunks.ok_or_else(|| JournalError::damaged(name, 0, "it is not intact"))?;
    Ok((header, chunks))
}

pub(super) fn file_header(
    name: &str,
    kind: FileKind,
    bytes: &[u8],
) -> Result<FileHeader, JournalError> {
    FileHeader::decode(kind, bytes).map_err(|error| match error {
        HeaderError::Damaged => JournalError::damaged(name, 0, "its header is not intact"),
        HeaderError::Newer(found) => {
            JournalError::Newer { file: name.to_owned(), found, known: frame::MAJOR }
        }
    })
}

/// Whether whatever is damaged of a frame lies in the bodies that it brings, so that its records say
/// what they said.
///
/// Checksums are linear: what a damaged body makes its own differ by, moved over the bytes behind
/// it, is what it makes that of the frame differ by. If that explains all of it, nothing else is
/// damaged.
fn differs_in_bodies_only(frame: &Frame<'_>, seed: u32) -> bool {
    let all = frame.records;
    let (mut records, mut unexplained) = (all, frame.difference);
    while !records.is_empty() {
        let Ok((record, body_left)) = Record::decode(&mut records) else { return false };
        let (Some(left), Some(body)) = (body_left, record.body()) else { continue };
        let crc = all.get(all.len() - left..).and_then(|mut at| at.try_get_u32_le().ok());
        let difference = crc.unwrap_or_default() ^ crc32c::crc32c_append(seed, body.bytes);
        let behind = frame::aligned(all.len()) - all.len() + records.len();
        unexplained ^= crc32c::crc32c_combine(difference, 0, behind);
    }
    unexplained == 0
}

/// Returns how many records there are, and the length of their bodies.
fn visit_frame(
    name: &str,
    tail: &Tail,
    frame: &Frame<'_>,
    visit: Visit<'_>,
) -> Result<(u64, u64), JournalError> {
    let mut records = frame.records;
    let (mut count, mut body_bytes) = (0, 0);
    let records_end = tail.offset + FRAME_HEADER_LEN + frame.records.len();
    while !records.is_empty() {
        let (record, body_left) =
            Record::decode(&mut records).map_err(|error| no_record(name, tail.offset, error))?;
        let location = body_left.zip(record.body()).and_then(|(left, body)| {
            Some(Location {
                segment: tail.segment,
                offset: u32::try_from(records_end - left).ok()?,
                len: u32::try_from(body.bytes.len()).ok()?,
            })
        });
        body_bytes += location.map_or(0, |location| u64::from(location.len));
        let segment = Some(tail.segment);
        visit(Entry { lsn: frame.lsn, segment, offset: tail.offset as u64, record, location });
        count += 1;
    }
    Ok((count, body_bytes))
}

fn no_record(file: &str, offset: usize, error: RecordError) -> JournalError {
    match error {
        RecordError::Unknown(kind) => {
            JournalError::UnknownRecord { file: file.to_owned(), offset: offset as u64, kind }
        }
        RecordError::Malformed => JournalError::damaged(file, offset, "a record makes no sense"),
    }
}
