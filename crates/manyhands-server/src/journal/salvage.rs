//! Reads all that is whole of a directory that is damaged, and names what is not.
//!
//! What a start would read is read in the same way. Where a start would refuse to go on, this goes on
//! with the next frame that is whole: records are made to be replayed over newer state, so of one
//! that is lost only its own effect is missing. Invariant: the directory is not changed.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::error::During;
use super::files::Files;
use super::frame::{self, FILE_HEADER_LEN, FileHeader, FileKind, Frame};
use super::names::{checkpoint_name, segment_name};
use super::recover::open_after;
use super::row::Records;
use super::scan::{Base, Scan, Tail, Visit, checkpoint_bytes, file_header, read_checkpoint, scan};
use super::storage::{Directory, Storage, StorageFile};
use super::window::Window;
use super::{JournalError, Location, Lsn, Opened, Options, Record, bodies, checkpoint, head};

/// A directory that may be damaged.
#[derive(Debug)]
pub(crate) struct Wreck {
    storage: Arc<dyn Storage>,
    /// Identity of the journal.
    journal: u64,
    /// Starts of the server so far, as far as that is known.
    epoch: u64,
    segment_bytes: u32,
    /// Whether a start would refuse it, apart from bodies.
    pub(crate) has_gaps: bool,
    /// What is damaged, apart from bodies.
    pub(crate) damages: Vec<JournalError>,
    /// What the damaged part of a checkpoint seems to say of queues.
    pub(crate) names: Vec<NameOfQueue>,
}

/// A segment that bodies are read of.
pub(crate) type OpenSegment = (u32, Arc<dyn StorageFile>);

/// What a queue is called, and was made with, if that can be believed.
#[derive(Debug)]
pub(crate) struct NameOfQueue {
    pub(crate) queue: u64,
    pub(crate) name: String,
    pub(crate) settings: String,
}

/// The newest checkpoint of those that are damaged.
struct Ruin {
    lsn: Lsn,
    bytes: Vec<u8>,
}

impl Wreck {
    /// Looks at a directory that no server uses.
    ///
    /// # Errors
    ///
    /// [`JournalError`]: somebody uses the directory, it has no file that is one of a journal's, it is
    /// of a newer version, or the system failed us.
    pub(crate) fn open(directory: &Path) -> Result<Self, JournalError> {
        Self::of(Arc::new(Directory::open_stopped(directory)?))
    }

    pub(super) fn of(storage: Arc<dyn Storage>) -> Result<Self, JournalError> {
        let (damages, names) = (Vec::new(), Vec::new());
        let (journal, epoch, segment_bytes, has_gaps) = (0, 0, 0, false);
        let mut wreck = Self { storage, journal, epoch, segment_bytes, has_gaps, damages, names };
        wreck.survey(&Files::list(&*wreck.storage)?)?;
        match scan(&*wreck.storage, &mut |_| {}) {
            Err(error) if !error.is_damage() => return Err(error),
            scanned => wreck.has_gaps = scanned.is_err(),
        }
        Ok(wreck)
    }

    /// Tells `visit` every record that is whole, in order.
    ///
    /// # Errors
    ///
    /// [`JournalError`]: a newer version wrote it, or the system failed us.
    pub(crate) fn visit(&mut self, visit: Visit<'_>) -> Result<(), JournalError> {
        let scan = if self.has_gaps {
            self.scan(Files::list(&*self.storage)?, visit)?
        } else {
            scan(&*self.storage, visit)?
        };
        let last = scan.tail.map(|tail| tail.epoch);
        self.epoch = self.epoch.max(last.unwrap_or_default());
        Ok(())
    }

    /// The body at `location`, if it is whole. Its segment stays `open` for the next.
    pub(crate) fn body(
        &self,
        location: Location,
        open: &mut Option<OpenSegment>,
    ) -> Result<Bytes, JournalError> {
        let segment = match open.take().filter(|(segment, _)| *segment == location.segment) {
            Some(segment) => segment,
            None => {
                let name = segment_name(location.segment);
                (location.segment, self.storage.open(&name).during("open", &name)?)
            }
        };
        let (_, file) = open.insert(segment);
        bodies::read(&**file, self.journal, location)
    }

    /// A new journal in `directory` that goes on where this one ended: what was made from its identity
    /// and the number of its last start stays good, and never repeats.
    pub(crate) fn successor(&self, directory: &Path) -> Result<Opened, JournalError> {
        let storage = Arc::new(Directory::open(directory)?);
        let mut options = Options::default();
        if self.segment_bytes > 0 {
            options.segment_bytes = self.segment_bytes;
        }
        let first = Tail { epoch: self.epoch, ..Tail::first(self.journal, 1) };
        open_after(storage, options, first, &mut |_| {})
    }

    /// Learns from the headers that are intact whose files these are.
    fn survey(&mut self, files: &Files) -> Result<(), JournalError> {
        let mut journal = None;
        let mut first_error = None;
        let checkpoints = files.checkpoints.iter().map(|lsn| checkpoint_name(*lsn));
        let checkpoints = checkpoints.map(|name| (name, FileKind::Checkpoint));
        let segments = files.segments.iter().map(|segment| segment_name(*segment));
        for (name, kind) in checkpoints.chain(segments.map(|name| (name, FileKind::Segment))) {
            match self.header(&name, kind) {
                Ok(header) => {
                    journal = Some(header.journal);
                    self.epoch = self.epoch.max(header.epoch);
                    if kind == FileKind::Segment {
                        let size = u32::try_from(header.size).unwrap_or_default();
                        self.segment_bytes = self.segment_bytes.max(size);
                    }
                }
                Err(error) if error.is_damage() => drop(first_error.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        let nothing = || JournalError::Missing(segment_name(1));
        self.journal = journal.ok_or_else(|| first_error.unwrap_or_else(nothing))?;
        Ok(())
    }

    fn header(&self, name: &str, kind: FileKind) -> Result<FileHeader, JournalError> {
        let file = self.storage.open(name).during("open", name)?;
        let len = file.size().during("look at", name)?.min(FILE_HEADER_LEN as u64);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        file.read_at(&mut bytes, 0).during("read", name)?;
        file_header(name, kind, &bytes)
    }

    /// The header of a segment, if it is intact and the segment is one of this journal.
    fn segment_header(&self, segment: u32) -> Result<Option<FileHeader>, JournalError> {
        match self.header(&segment_name(segment), FileKind::Segment) {
            Ok(header) => {
                let is_ours = header.segment == segment && header.journal == self.journal;
                Ok(Some(header).filter(|_| is_ours))
            }
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn scan(&mut self, files: Files, visit: Visit<'_>) -> Result<Scan, JournalError> {
        let newest = head::read(&*self.storage)?;
        let lost = newest.filter(|newest| files.segments.last().is_none_or(|last| last < newest));
        self.damages.extend(lost.map(|segment| JournalError::Missing(segment_name(segment))));
        let mut scan = Scan { files, is_lenient: true, ..Scan::default() };
        let (base, ruin) = self.checkpoint(&mut scan, visit)?;
        let base = match ruin.filter(|_| scan.checkpoint.is_none()) {
            None => base,
            Some(ruin) => self.patch(&mut scan, &ruin, visit)?,
        };
        self.segments(&mut scan, &base, visit)?;
        Ok(scan)
    }

    /// Visits the newest checkpoint that is intact.
    fn checkpoint(
        &mut self,
        scan: &mut Scan,
        visit: Visit<'_>,
    ) -> Result<(Base, Option<Ruin>), JournalError> {
        let mut ruin = None;
        for lsn in scan.files.checkpoints.clone().into_iter().rev() {
            let name = checkpoint_name(lsn);
            let bytes = checkpoint_bytes(&*self.storage, &name)?;
            match read_checkpoint(&name, lsn, &bytes) {
                Ok((header, chunks)) => {
                    for (offset, records) in chunks {
                        scan.records += scan.visit_chunk(&name, lsn, offset, records, visit)?;
                    }
                    scan.checkpoint = Some(lsn);
                    let FileHeader { journal, segment, .. } = header;
                    return Ok((Base { journal: Some(journal), segment, lsn }, ruin));
                }
                Err(error) if error.is_damage() => self.damages.push(error),
                Err(error) => return Err(error),
            }
            ruin.get_or_insert(Ruin { lsn, bytes });
        }
        Ok((Base { journal: None, segment: 1, lsn: Lsn(0) }, ruin))
    }

    /// Visits what the segments still have of the time before a checkpoint that is damaged, then what
    /// is whole of it.
    fn patch(
        &mut self,
        scan: &mut Scan,
        ruin: &Ruin,
        visit: Visit<'_>,
    ) -> Result<Base, JournalError> {
        let base = Base { journal: Some(self.journal), segment: 1, lsn: Lsn(0) };
        let known = self.damages.len();
        self.segments(scan, &base, &mut |entry| {
            if entry.lsn <= ruin.lsn {
                visit(entry);
            }
        })?;
        // Most segments of that time are gone for a good reason.
        self.damages.truncate(known);
        let mut chunks = Vec::new();
        checkpoint::read_chunks(&ruin.bytes, self.journal, &mut chunks);
        let name = checkpoint_name(ruin.lsn);
        for (offset, records) in &chunks {
            scan.visit_chunk(&name, ruin.lsn, *offset, records, visit)?;
        }
        let damaged = chunks.last().map_or(FILE_HEADER_LEN, |(offset, it)| offset + it.len());
        self.names = names(ruin.bytes.get(damaged..).unwrap_or_default());
        Ok(Base { lsn: ruin.lsn, ..base })
    }

    /// Visits the frames after `base` that are whole.
    fn segments(
        &mut self,
        scan: &mut Scan,
        base: &Base,
        visit: Visit<'_>,
    ) -> Result<(), JournalError> {
        let segments: Vec<u32> = scan.files.segments.range(base.segment..).copied().collect();
        let mut before = Tail::first(self.journal, base.segment);
        for (at, &segment) in segments.iter().enumerate() {
            let next = segments.get(at + 1).map(|next| self.segment_header(*next)).transpose()?;
            before = self.segment(scan, base, (before, segment), next, visit)?;
        }
        scan.tail = Some(before);
        Ok(())
    }

    /// Visits the frames of one segment; `next` is the header of the one after it, as far as there is
    /// one, and as far as that is intact.
    fn segment(
        &mut self,
        scan: &mut Scan,
        base: &Base,
        (before, segment): (Tail, u32),
        next: Option<Option<FileHeader>>,
        visit: Visit<'_>,
    ) -> Result<Tail, JournalError> {
        let name = segment_name(segment);
        let header = self.segment_header(segment)?;
        let file = self.storage.open(&name).during("open", &name)?;
        let mut window = Window::new(file).during("look at", &name)?;
        let Tail { lsn, chain, epoch, .. } = before;
        let mut tail = Tail { lsn, chain, epoch, ..Tail::first(self.journal, segment) };
        match header {
            None => self.damages.push(JournalError::damaged(&name, 0, "its header is not intact")),
            Some(header) if tail.lsn < header.lsn => {
                self.report_lost(base, &before, header.lsn);
                tail = Tail { lsn: header.lsn, chain: header.chain, epoch: header.epoch, ..tail };
            }
            Some(header) if header.size > window.len() as u64 => {
                self.damages.push(JournalError::damaged(&name, window.len(), "it is cut short"));
            }
            Some(_) => {}
        }
        loop {
            scan.walk(&name, &mut window, &mut tail, base.lsn, visit)?;
            let Some(found) = next_frame(&mut window, &tail, next).during("read", &name)? else {
                return Ok(tail);
            };
            self.report_lost(base, &tail, found.lsn);
            tail = found;
        }
    }

    /// Frames after `tail` up to this one are not there, which matters if no checkpoint has them.
    fn report_lost(&mut self, base: &Base, tail: &Tail, last: Lsn) {
        let first = tail.lsn.max(base.lsn).next();
        if first <= last {
            let what = if first == last {
                format!("frame {first} is lost")
            } else {
                format!("frames {first} to {last} are lost")
            };
            self.damages.push(JournalError::damaged(
                &segment_name(tail.segment),
                tail.offset,
                what,
            ));
        }
    }
}

/// The queues that are named in a chunk whose checksum is wrong, as far as it can be read at all.
fn names(chunk: &[u8]) -> Vec<NameOfQueue> {
    let records = chunk.get(checkpoint::CHUNK_HEADER_LEN..).unwrap_or_default();
    let named = Records::new(records).map_while(Result::ok).filter_map(|record| match record {
        Record::Queue { queue, name, settings, .. } => {
            Some(NameOfQueue { queue, name: name.to_owned(), settings: settings.to_owned() })
        }
        _ => None,
    });
    named.collect()
}

/// Where frames go on in a segment behind `tail`, where they seem to end, if a frame is damaged there.
/// If not, what follows was cut off at some start.
fn next_frame(
    window: &mut Window,
    tail: &Tail,
    next: Option<Option<FileHeader>>,
) -> std::io::Result<Option<Tail>> {
    let seed = frame::seed(tail.journal, tail.segment);
    let last = match next {
        Some(Some(next)) => next.lsn,
        Some(None) => Lsn(u64::MAX),
        None => {
            let knew = |frame: Frame<'_>| frame.synced > tail.lsn;
            let is_damaged = window.find_frame(tail.offset, seed, knew)?.is_some();
            if is_damaged { Lsn(u64::MAX) } else { tail.lsn }
        }
    };
    if last <= tail.lsn {
        return Ok(None);
    }
    let goes_on =
        |frame: Frame<'_>| tail.lsn < frame.lsn && frame.lsn <= last && tail.epoch <= frame.epoch;
    let Some(offset) = window.find_frame(tail.offset, seed, goes_on)? else { return Ok(None) };
    let frame = window.frame(offset, seed)?;
    Ok(frame.map(|frame| Tail {
        offset,
        lsn: Lsn(frame.lsn.0 - 1),
        chain: frame.previous,
        epoch: frame.epoch,
        ..*tail
    }))
}
