//! What appenders, the writer and upkeep share: the frames that gather, and how far they came.
//!
//! Invariants: where a frame will lie is decided when it begins to gather, so that the location of a
//! body is known before it is written; the lock is never held during I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;

use super::frame::{self, FILE_HEADER_LEN, FRAME_HEADER_LEN, aligned};
use super::storage::{Storage, StorageFile};
use super::{Durability, JournalError, Location, Lsn, Options, Record};

/// Buffers above this size are not kept, in bytes.
const BUFFER_BYTES_MAX: usize = 1 << 20;
/// Whoever needs a frame may write it himself if it is smaller than this, in bytes.
pub(super) const LITTLE_BYTES: usize = 64 << 10;
/// Segments kept open for reading.
const OPEN_FILES_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) options: Options,
    /// Identity of the journal, part of every checksum's seed.
    pub(super) journal: u64,
    pub(super) epoch: u64,
    state: Mutex<State>,
    /// Told when the writer has work.
    pub(super) work: Condvar,
    /// Told when upkeep has work, or is done with a spare.
    pub(super) upkeep: Condvar,
    /// Told when there is a spare more.
    pub(super) room: Notify,
    /// Calls the relay, if there is one.
    pub(super) call: Notify,
    /// The segments read last, newest last.
    files: Mutex<VecDeque<(u32, Arc<dyn StorageFile>)>>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Frames that will not grow any more.
    full: VecDeque<Batch>,
    /// The frame that gathers.
    pub(super) open: Batch,
    /// What checksums in its segment start from.
    seed: Option<(u32, u32)>,
    buffers: Vec<Vec<u8>>,
    /// Segment that the writer is in.
    pub(super) current: u32,
    written: Watermark,
    synced: Watermark,
    /// All segments there are.
    pub(super) segments: BTreeSet<u32>,
    pub(super) spares: Vec<Spare>,
    /// Size of the file that the next checkpoint is written into; 0 if there is none.
    pub(super) reserve_bytes: u64,
    /// Whether upkeep, or a checkpoint, is busy with that file.
    pub(super) reserve_in_hand: bool,
    /// Whether that file may be too small for the next checkpoint, and the disk may have room.
    pub(super) reserve_due: bool,
    /// Spares that upkeep is busy with.
    pub(super) spares_in_hand: usize,
    pub(super) spare_serial: u64,
    /// Whether a spare was freed, so that a checkpoint has its space for now.
    pub(super) spare_freed: bool,
    /// Whether the disk had no room for the spare that was wanted last.
    pub(super) disk_full: bool,
    /// Bytes appended since the last mark.
    pub(super) unmarked_bytes: u64,
    /// Bytes of bodies whose tasks were let go since the last mark.
    pub(super) dead_bytes: u64,
    /// Whether another checkpoint may free more.
    pub(super) goes_on: bool,
    /// Checkpoints in a row that freed nothing.
    pub(super) fruitless: u8,
    /// Whether the next frame begins a segment, wherever the one before ends.
    pub(super) rotates: bool,
    /// What the last checkpoint counts as where its work is weighed against that of the log.
    pub(super) checkpoint_bytes: u64,
    /// The last frame that the last checkpoint covers; 0 if there is none.
    pub(super) checkpoint_lsn: Lsn,
    /// Size of a checkpoint that is written now, at most, in bytes: that of the last one, and all that
    /// was appended since but bodies.
    pub(super) checkpoint_len_max: u64,
    pub(super) failed: Option<JournalError>,
    pub(super) closing: bool,
    /// Whether the writer sleeps.
    pub(super) idle: bool,
    /// Whether it wakes by itself to sync what is only written.
    pub(super) has_timer: bool,
    /// How many further calls the writer gives a moment to come, if it does.
    pub(super) expected: Option<u32>,
    /// Whether it writes meanwhile what waits for no more than that.
    pub(super) is_at_hand: bool,
    /// Whether somebody passes on what the writer and those who wait for it have for each other.
    pub(super) has_relay: bool,
}

/// Records that will be one frame.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) lsn: Lsn,
    pub(super) segment: u32,
    pub(super) offset: u32,
    /// Room for the frame's header, then records.
    pub(super) bytes: Vec<u8>,
    /// Calls that wait for the sync.
    pub(super) waiting: u32,
    /// Whether some may wait for no more than the writing.
    pub(super) is_pressing: bool,
}

/// A file that a segment can be made of.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn StorageFile>,
    /// So much of it has been written before, which makes its syncs cheap.
    pub(super) warm_bytes: u64,
}

/// How far frames came, and who waits for more.
#[derive(Debug, Default)]
struct Watermark {
    reached: Lsn,
    waiting: Waiting,
}

impl Shared {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        options: Options,
        journal: u64,
        epoch: u64,
        state: State,
    ) -> Self {
        Self {
            storage,
            options,
            journal,
            epoch,
            state: Mutex::new(state),
            work: Condvar::new(),
            upkeep: Condvar::new(),
            room: Notify::new(),
            call: Notify::new(),
            files: Mutex::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics under this lock with the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(
        &self,
        bytes_max: usize,
        durability: Durability,
        write: impl FnOnce(&mut OpenFrame<'_>),
    ) -> Lsn {
        let mut state = self.lock();
        let state = &mut *state;
        let segment = state.open.segment;
        let (written, synced) = (state.written.reached, state.synced.reached);
        state.place(bytes_max, &self.options);
        let batch = &mut state.open;
        if batch.segment != segment {
            self.upkeep.notify_all();
        }
        let (lsn, before) = (batch.lsn, batch.bytes.len());
        match durability {
            Durability::Disk => batch.waiting += 1,
            Durability::Os => batch.is_pressing = true,
        }
        let seed = match state.seed {
            Some((segment, seed)) if segment == batch.segment => seed,
            _ => frame::seed(self.journal, batch.segment),
        };
        state.seed = Some((batch.segment, seed));
        let mut frame = OpenFrame { batch, seed, written, synced, body_bytes: 0, dead_bytes: 0 };
        write(&mut frame);
        let body_bytes = frame.body_bytes;
        state.dead_bytes += frame.dead_bytes;
        let bytes = (state.open.bytes.len() - before) as u64;
        state.unmarked_bytes += bytes;
        state.checkpoint_len_max += bytes - body_bytes;
        if state.is_complete() {
            state.expected = None;
            self.work.notify_one();
        } else if state.is_wanted() && state.has_relay {
            self.call.notify_one();
        } else if state.is_wanted() {
            state.idle = false;
            self.work.notify_one();
        }
        lsn
    }

    /// Wakes everybody who waits for frames up to `lsn`, in order.
    pub(super) fn reach(&self, durability: Durability, lsn: Lsn) {
        let reached = {
            let mut state = self.lock();
            let has_relay = state.has_relay;
            let watermark = state.watermark(durability);
            watermark.reached = lsn;
            if has_relay {
                if watermark.waiting.first_key_value().is_some_and(|(first, _)| *first <= lsn) {
                    self.call.notify_one();
                }
                return;
            }
            state.take_reached(durability)
        };
        wake(reached);
    }

    /// Nothing is durable from now on, and everybody learns it.
    pub(super) fn poison(&self, error: &JournalError) -> JournalError {
        let (failed, written, synced) = {
            let mut state = self.lock();
            let stopped = || JournalError::Stopped(Arc::new(error.clone()));
            let failed = state.failed.get_or_insert_with(stopped).clone();
            let written = std::mem::take(&mut state.written.waiting);
            (failed, written, std::mem::take(&mut state.synced.waiting))
        };
        [written, synced].into_iter().for_each(wake);
        self.work.notify_all();
        self.upkeep.notify_all();
        failed
    }

    /// A spare for the writer to make segment `segment` of, if there is one.
    pub(super) fn take_spare(&self, segment: u32) -> Option<Spare> {
        let mut state = self.lock();
        while state.spares.is_empty() && state.spares_in_hand > 0 {
            state = self.upkeep.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let warmest =
            (0..state.spares.len()).max_by_key(|&at| Some(state.spares.get(at)?.warm_bytes));
        let spare = warmest.map(|at| state.spares.swap_remove(at))?;
        state.current = segment;
        self.upkeep.notify_all();
        Some(spare)
    }

    /// A segment to read from.
    pub(super) fn file(&self, segment: u32) -> std::io::Result<Arc<dyn StorageFile>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = files.iter().find(|(open, _)| *open == segment) {
            return Ok(file.clone());
        }
        let file = self.storage.open(&super::names::segment_name(segment))?;
        if files.len() == OPEN_FILES_MAX {
            files.pop_front();
        }
        files.push_back((segment, file.clone()));
        Ok(file)
    }

    /// Forgets segments that are about to go. Numbers are never used again.
    pub(super) fn forget(&self, gone: &[u32]) {
        self.lock().segments.retain(|segment| !gone.contains(segment));
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|(segment, _)| !gone.contains(segment));
    }
}

/// Who waits for which frame.
type Waiting = BTreeMap<Lsn, Vec<Waker>>;

/// Wakes those who waited, to find out how that ended.
pub(super) fn wake(waiting: Waiting) {
    waiting.into_values().flatten().for_each(Waker::wake);
}

/// The frame that gathers, for the records of one call.
#[derive(Debug)]
pub struct OpenFrame<'b> {
    batch: &'b mut Batch,
    seed: u32,
    written: Lsn,
    synced: Lsn,
    body_bytes: u64,
    dead_bytes: u64,
}

impl OpenFrame<'_> {
    /// Its number.
    pub fn lsn(&self) -> Lsn {
        self.batch.lsn
    }

    /// The last frame that is durable.
    pub fn reached(&self, durability: Durability) -> Lsn {
        match durability {
            Durability::Os => self.written,
            Durability::Disk => self.synced,
        }
    }

    /// Counts so many bytes of bodies that nobody needs any more.
    pub fn unpin(&mut self, bytes: u64) {
        self.dead_bytes += bytes;
    }

    /// Adds a record, and says where the body lies that it brings.
    pub fn push(&mut self, record: &Record<'_>) -> Option<Location> {
        let (at, len) = record.encode(self.seed, &mut self.batch.bytes)?;
        self.body_bytes += len as u64;
        Some(self.batch.location(at, len))
    }
}

impl State {
    /// Frames go on after `lsn`, at `offset` of `segment`.
    pub(super) fn new(lsn: Lsn, segment: u32, offset: u32, segments: BTreeSet<u32>) -> Self {
        let watermark = || Watermark { reached: lsn, ..Watermark::default() };
        Self {
            full: VecDeque::new(),
            open: Batch::new(lsn.next(), segment, offset, Vec::new()),
            seed: None,
            buffers: Vec::new(),
            current: segment,
            written: watermark(),
            synced: watermark(),
            segments,
            spares: Vec::new(),
            reserve_bytes: 0,
            reserve_in_hand: false,
            reserve_due: true,
            spares_in_hand: 0,
            spare_serial: 0,
            spare_freed: false,
            disk_full: false,
            unmarked_bytes: 0,
            dead_bytes: 0,
            goes_on: false,
            fruitless: 0,
            rotates: false,
            checkpoint_bytes: 0,
            checkpoint_lsn: Lsn(0),
            checkpoint_len_max: 0,
            failed: None,
            closing: false,
            idle: false,
            has_timer: false,
            expected: None,
            is_at_hand: false,
            has_relay: false,
        }
    }

    pub(super) fn reached(&mut self, durability: Durability) -> Lsn {
        self.watermark(durability).reached
    }

    /// Wakes somebody once a frame is durable, or never will be.
    pub(super) fn enlist(&mut self, lsn: Lsn, durability: Durability, waker: Waker) {
        self.watermark(durability).waiting.entry(lsn).or_default().push(waker);
    }

    fn watermark(&mut self, durability: Durability) -> &mut Watermark {
        match durability {
            Durability::Os => &mut self.written,
            Durability::Disk => &mut self.synced,
        }
    }

    /// Takes out who waits for a frame that is there already.
    pub(super) fn take_reached(&mut self, durability: Durability) -> Waiting {
        let watermark = self.watermark(durability);
        let later = watermark.waiting.split_off(&watermark.reached.next());
        std::mem::replace(&mut watermark.waiting, later)
    }

    /// Makes the open frame one that `bytes` more can go to.
    fn place(&mut self, bytes: usize, options: &Options) {
        let segment_bytes = options.segment_bytes as usize;
        let is_too_long =
            |batch: &Batch| batch.offset as usize + batch.len_with(bytes) > segment_bytes;
        if !self.open.is_empty()
            && (is_too_long(&self.open) || self.open.len_with(bytes) > options.frame_bytes_max)
        {
            self.close_open();
        }
        let rotates = std::mem::take(&mut self.rotates);
        if rotates && !self.open.is_empty() {
            self.close_open();
        }
        if (rotates || is_too_long(&self.open)) && self.open.offset as usize > FILE_HEADER_LEN {
            self.open.segment += 1;
            self.open.offset = offset(FILE_HEADER_LEN);
        }
    }

    fn close_open(&mut self) {
        let Batch { lsn, segment, .. } = self.open;
        let buffer = self.buffers.pop().unwrap_or_default();
        let next = Batch::new(lsn.next(), segment, offset(self.open.end()), buffer);
        self.full.push_back(std::mem::replace(&mut self.open, next));
    }

    pub(super) fn has_batch(&self) -> bool {
        !self.full.is_empty() || !self.open.is_empty()
    }

    /// Whether something is written and not synced.
    pub(super) fn is_dirty(&self) -> bool {
        self.synced.reached < self.written.reached
    }

    /// Whether all that is to be written is one small frame of the segment that is written to, for which
    /// one call waits at most.
    pub(super) fn is_little(&self) -> bool {
        let Self { full, open, current, .. } = self;
        let is_small = open.waiting <= 1 && open.bytes.len() < LITTLE_BYTES;
        full.is_empty() && !open.is_empty() && open.segment == *current && is_small
    }

    /// Calls that wait for the sync of what is not written yet.
    pub(super) fn gathered(&self) -> u32 {
        self.full.iter().chain([&self.open]).map(|batch| batch.waiting).sum()
    }

    /// Whether something is to be written at once, whoever else may come.
    pub(super) fn is_pressing(&self) -> bool {
        !self.full.is_empty() || self.open.is_pressing
    }

    /// Whether all are there that the writer waits for.
    fn is_complete(&self) -> bool {
        self.expected.is_some_and(|expected| self.gathered() >= expected)
    }

    /// Whether the writer rests, and should not.
    pub(super) fn is_wanted(&self) -> bool {
        self.has_batch() && (self.idle || self.is_at_hand && self.is_pressing())
    }

    /// The next frame to write.
    pub(super) fn take_batch(&mut self) -> Option<Batch> {
        if self.full.is_empty() && !self.open.is_empty() {
            self.close_open();
        }
        self.full.pop_front()
    }

    /// Gives a frame back that could not be begun.
    pub(super) fn give_back(&mut self, batch: Batch) {
        self.full.push_front(batch);
    }

    pub(super) fn give_buffer(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= BUFFER_BYTES_MAX && self.buffers.len() < 2 {
            self.buffers.push(buffer);
        }
    }

    /// The frame with the newest record.
    pub(super) fn last(&self) -> Lsn {
        let Batch { lsn, .. } = self.open;
        if self.open.is_empty() { Lsn(lsn.0 - 1) } else { lsn }
    }

    /// The last frame so far, which will not grow any more, and its segment.
    pub(super) fn mark(&mut self) -> (Lsn, u32) {
        if !self.open.is_empty() {
            self.close_open();
        }
        self.unmarked_bytes = 0;
        self.dead_bytes = 0;
        (Lsn(self.open.lsn.0 - 1), self.open.segment)
    }
}

impl Batch {
    fn new(lsn: Lsn, segment: u32, offset: u32, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.resize(FRAME_HEADER_LEN, 0);
        Self { lsn, segment, offset, bytes, waiting: 0, is_pressing: false }
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER_LEN
    }

    /// Its length if it gets `bytes` more.
    fn len_with(&self, bytes: usize) -> usize {
        aligned(self.bytes.len() + bytes)
    }

    /// Where in its segment the next frame begins.
    pub(super) fn end(&self) -> usize {
        let len = if self.is_empty() { 0 } else { self.len_with(0) };
        self.offset as usize + len
    }

    fn location(&self, at: usize, len: usize) -> Location {
        Location {
            segment: self.segment,
            offset: offset(self.offset as usize + at),
            len: offset(len),
        }
    }
}

/// A position in a segment.
fn offset(offset: usize) -> u32 {
    u32::try_from(offset).expect("`has_room` keeps frames inside of segments, far below 4 GiB")
}
