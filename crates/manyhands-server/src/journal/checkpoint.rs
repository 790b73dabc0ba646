//! Says in one file what all records so far come to, and lets go of the segments before.
//!
//! Invariant: a segment goes only when a checkpoint that does not need it is durable under its name.
//! Were it to go earlier, a crash could bring back a put without its ack.
//!
//! A failed checkpoint harms nothing: the log has it all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use bytes::{Buf, BufMut};

use super::error::During;
use super::files::Files;
use super::frame::{self, FILE_HEADER_LEN, FileHeader, FileKind};
use super::names::{RESERVE, checkpoint_name, segment_name};
use super::row::Rows;
use super::state::{Spare, State};
use super::storage::StorageFile;
use super::{Durability, Journal, JournalError, Location, Lsn, Record};

/// Length of a chunk's header, in bytes.
pub(super) const CHUNK_HEADER_LEN: usize = 8;
/// What a record counts as at least, in bytes, where the work of a checkpoint is weighed against that
/// of the log: to look at a task takes its time, however little is written of it.
const RECORD_BYTES: u64 = 16;
/// In the place of the length of a chunk, after the last one.
const END: u32 = u32::MAX;

/// A point in the log: every frame is before or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The last frame before it.
    pub lsn: Lsn,
    /// That frame's segment.
    segment: u32,
    /// Bytes appended since the mark before.
    bytes: u64,
    /// Bytes of bodies that died since.
    dead_bytes: u64,
    checkpoint_len_max: u64,
}

/// What a checkpoint did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpointed {
    /// Size of the checkpoint, in bytes.
    pub bytes: u64,
    /// What it tells: queues, tasks, keys.
    pub records: u64,
    /// Segments that it let go.
    pub freed: usize,
    /// Live tasks in segments that are mostly dead: append a [`Record::Moved`] for each that is
    /// still live, and the next checkpoint lets those segments go.
    pub stragglers: Vec<Straggler>,
}

/// A live task that holds a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Straggler {
    /// The queue.
    pub queue: u64,
    /// The task.
    pub task: u64,
    /// Its body.
    pub location: Location,
}

/// Takes the next record of a checkpoint.
pub type Write<'w> = &'w mut dyn FnMut(&Record<'_>) -> Result<(), JournalError>;

/// Segments that were mostly dead at the last checkpoint; they do not come to life again.
pub(super) type Sparse = BTreeSet<u32>;

impl Journal {
    /// Whether enough was appended since the last mark that a checkpoint pays: by it, checkpoints stay
    /// a part of all work, however long the backlog is. On a full disk, whether it may make room. The
    /// first one comes early, so that there is space for two before the disk is full.
    pub fn checkpoint_is_due(&self) -> bool {
        let state = self.shared.lock();
        let options = &self.shared.options;
        state.unmarked_bytes >= options.checkpoint_bytes_min.max(4 * state.checkpoint_bytes)
            || state.may_free(options)
            || state.checkpoint_lsn == Lsn(0)
                && state.unmarked_bytes >= u64::from(options.segment_bytes) / 2
    }

    /// Whether the disk is full and anything happened since the last mark, so that a checkpoint from
    /// time to time may make room for somebody who waits for it.
    pub fn checkpoint_may_help(&self) -> bool {
        let state = self.shared.lock();
        let is_scarce = state.is_scarce(&self.shared.options);
        is_scarce && state.unmarked_bytes + state.dead_bytes > 0
    }

    /// Ends the frame that gathers. To be called under the lock that orders appends, which must be
    /// held until the snapshot for [`Self::checkpoint`] is taken.
    pub fn mark(&self) -> Mark {
        let shared = &self.shared;
        let mut state = shared.lock();
        let rotates = state.should_rotate(&shared.options);
        // Two checkpoints never have one name: the file of the older one is used again.
        if rotates || state.last() == state.checkpoint_lsn {
            if rotates {
                // All before it can be let go then.
                state.rotate();
            }
            drop(state);
            let epoch = Record::Epoch { epoch: shared.epoch };
            shared.append(epoch.bytes_max(), Durability::Os, |frame| {
                frame.push(&epoch);
            });
            state = shared.lock();
        }
        let (bytes, dead_bytes) = (state.unmarked_bytes, state.dead_bytes);
        let (lsn, segment) = state.mark();
        let checkpoint_len_max = state.checkpoint_len_max;
        Mark { lsn, segment, bytes, dead_bytes, checkpoint_len_max }
    }

    /// Writes what the records up to `mark` come to: a [`Record::Queue`] for each queue, a
    /// [`Record::Live`] for each live task, [`Record::Seen`] and [`Record::Settled`]. Then frees what is not needed any
    /// more. Blocks until the log is durable as far as it was told; for a thread of its own.
    ///
    /// # Errors
    ///
    /// [`JournalError`]; the journal goes on without this checkpoint.
    pub fn checkpoint<'r>(
        &self,
        mark: Mark,
        records: impl IntoIterator<Item = Record<'r>>,
    ) -> Result<Checkpointed, JournalError> {
        self.checkpoint_with(mark, |write| {
            records.into_iter().try_for_each(|record| write(&record))
        })
    }

    /// The same for records that `tell` makes one by one. They may be younger than `mark`: the log
    /// after it is replayed over them, so each must be one that bears that.
    ///
    /// # Errors
    ///
    /// As [`Self::checkpoint`].
    pub fn checkpoint_with(
        &self,
        mark: Mark,
        tell: impl FnOnce(Write<'_>) -> Result<(), JournalError>,
    ) -> Result<Checkpointed, JournalError> {
        let mut sparse = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let unfinished = format!("{:020}.tmp", mark.lsn.0);
        let written = self.write_checkpoint(mark, tell, &unfinished, &sparse);
        let written = written.inspect_err(|_| {
            // It may not even be there.
            self.retire(&unfinished).ok();
            let mut state = self.shared.lock();
            state.unmarked_bytes += mark.bytes;
            state.dead_bytes += mark.dead_bytes;
        });
        let trimmed = written.and_then(|(mut done, live)| {
            let mut state = self.shared.lock();
            state.checkpoint_len_max += done.bytes;
            state.checkpoint_len_max -= mark.checkpoint_len_max;
            state.checkpoint_lsn = mark.lsn;
            drop(state);
            done.freed = self.trim(mark, &live)?;
            Ok((done, live))
        });
        self.end_checkpoint();
        let (mut done, live) = trimmed?;
        let mut state = self.shared.lock();
        if state.is_scarce(&self.shared.options) {
            let left = sparse.iter().filter_map(|it| Some((*it, *live.get(it)?)));
            let whole = self.that_fit(&state, left.collect());
            done.stragglers.retain(|it| whole.contains(&it.location.segment));
            // Should others take the room meanwhile, then as many segments as can be are copied whole.
            done.stragglers.sort_by_key(|it| {
                let segment = it.location.segment;
                (live.get(&segment).copied(), segment)
            });
        }
        *sparse = self.sparse(&state, mark, live);
        state.checkpoint_bytes = done.bytes.max(RECORD_BYTES * done.records);
        let may_empty = !sparse.is_empty() || !done.stragglers.is_empty();
        state.after_checkpoint(done.freed, may_empty, &self.shared.options);
        Ok(done)
    }

    /// The segments that it pays to empty. On a full disk these are as many as there is room for what
    /// is live in them, the emptiest first.
    fn sparse(&self, state: &State, mark: Mark, live: BTreeMap<u32, u64>) -> Sparse {
        let options = &self.shared.options;
        let segment_bytes = u64::from(options.segment_bytes);
        let before = live.into_iter().filter(|(segment, _)| *segment < mark.segment);
        if !state.is_scarce(options) {
            let threshold = segment_bytes * u64::from(options.sparse_percent) / 100;
            return before.filter(|(_, live)| *live < threshold).map(|(it, _)| it).collect();
        }
        // It must free something; much, unless even results have no room.
        let least_dead = if state.is_exhausted(options) { 32 } else { 8 };
        let most = segment_bytes - segment_bytes / least_dead;
        let emptiest = before.filter(|(_, live)| *live < most);
        self.that_fit(state, emptiest.collect())
    }

    /// The emptiest of some segments, as many as there is room for all that is live in them: to copy
    /// a part of one frees nothing.
    fn that_fit(&self, state: &State, mut segments: Vec<(u32, u64)>) -> Sparse {
        segments.sort_unstable_by_key(|(_, live)| *live);
        let mut room = state.copy_room(&self.shared.options);
        let fits = |(_, live): &(u32, u64)| {
            // What is around a body takes some room, too.
            let needed = live + live / 16;
            let fits = needed <= room;
            room = room.saturating_sub(needed);
            fits
        };
        segments.into_iter().take_while(fits).map(|(segment, _)| segment).collect()
    }

    /// Frees the space of a spare for the next checkpoint, which alone can free more on a full disk.
    /// False if none can be spared. To be ended by [`Self::make_spares_again`].
    pub fn free_spare(&self) -> bool {
        let shared = &self.shared;
        let Some(name) = shared.lock().take_spare(&shared.options) else { return false };
        let is_freed = shared.storage.remove(&name).is_ok();
        shared.lock().spare_freed = is_freed;
        is_freed
    }

    /// Has no room for puts, as if a spare were freed, until [`Self::make_spares_again`].
    #[cfg(test)]
    pub fn refuse_puts(&self) {
        self.shared.lock().spare_freed = true;
    }

    /// From now on spares are made again.
    pub fn make_spares_again(&self) {
        let mut state = self.shared.lock();
        (state.spare_freed, state.reserve_due) = (false, true);
        self.shared.upkeep.notify_all();
    }

    /// Returns with what is done the live bytes of each segment.
    fn write_checkpoint(
        &self,
        mark: Mark,
        tell: impl FnOnce(Write<'_>) -> Result<(), JournalError>,
        unfinished: &str,
        sparse: &Sparse,
    ) -> Result<(Checkpointed, BTreeMap<u32, u64>), JournalError> {
        let shared = &self.shared;
        let header = FileHeader {
            kind: FileKind::Checkpoint,
            journal: shared.journal,
            segment: mark.segment,
            lsn: mark.lsn,
            chain: 0,
            epoch: shared.epoch,
            size: 0,
        };
        let file = self.begin_checkpoint(unfinished)?;
        let mut chunks =
            Chunks::new(&*file, unfinished, header, shared.options.checkpoint_chunk_bytes)?;
        let mut live = BTreeMap::<u32, u64>::new();
        let mut stragglers = Vec::new();
        let mut records = 0;
        // Copying may cost as much as was appended, so that it never outruns the work itself.
        let is_scarce = shared.lock().is_scarce(&shared.options);
        let mut budget = if is_scarce { u64::MAX } else { mark.bytes };
        tell(&mut |record| {
            if let Record::Live { queue, task, location, .. } = *record {
                let taken = u64::from(location.len) + RECORD_BYTES;
                *live.entry(location.segment).or_default() += taken;
                if sparse.contains(&location.segment) && u64::from(location.len) <= budget {
                    budget -= u64::from(location.len);
                    stragglers.push(Straggler { queue, task, location });
                }
            }
            records += 1;
            chunks.push(record)
        })?;
        let bytes = chunks.finish()?;
        // A checkpoint must not know more than the log, and it may have been told of what came after
        // `mark`.
        let told = shared.lock().last();
        if !planted!(CheckpointAhead) {
            self.durable(told, Durability::Disk).wait()?;
        }
        let name = checkpoint_name(mark.lsn);
        shared.storage.rename(unfinished, &name).during("rename", unfinished)?;
        shared.storage.sync_directory().during("sync the directory of", &name)?;
        Ok((Checkpointed { bytes, records, freed: 0, stragglers }, live))
    }

    /// Makes a file for a checkpoint of the reserve, so that its space is there on a full disk, or a
    /// new one if there is none.
    fn begin_checkpoint(&self, name: &str) -> Result<Arc<dyn StorageFile>, JournalError> {
        let shared = &self.shared;
        let mut state = shared.lock();
        while state.reserve_in_hand {
            state = shared.upkeep.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let reserve_bytes = std::mem::take(&mut state.reserve_bytes);
        state.reserve_in_hand = true;
        drop(state);
        if reserve_bytes == 0 {
            return shared.storage.create(name).during("create", name);
        }
        shared.storage.rename(RESERVE, name).during("rename", RESERVE)?;
        shared.storage.open(name).during("open", name)
    }

    /// Keeps the space of a file that is not needed any more for the next checkpoint, or lets it go if
    /// there is such a file already, or it is far too large.
    fn retire(&self, name: &str) -> Result<(), JournalError> {
        let storage = &self.shared.storage;
        let size = storage.open(name).and_then(|file| file.size()).during("look at", name)?;
        let is_needed = {
            let state = self.shared.lock();
            let is_too_large = size / 2 > state.reserve_wanted(&self.shared.options);
            state.reserve_bytes == 0 && (state.disk_full || !is_too_large)
        };
        if !is_needed {
            return storage.remove(name).during("remove", name);
        }
        storage.rename(name, RESERVE).during("rename", name)?;
        self.shared.lock().reserve_bytes = size;
        Ok(())
    }

    /// Upkeep may see to the reserve again.
    fn end_checkpoint(&self) {
        let mut state = self.shared.lock();
        state.reserve_in_hand = false;
        state.reserve_due |= state.reserve_bytes < state.reserve_wanted(&self.shared.options);
        drop(state);
        self.shared.upkeep.notify_all();
    }

    /// Lets go of older checkpoints, and of segments before `mark` that hold nothing live.
    fn trim(&self, mark: Mark, live: &BTreeMap<u32, u64>) -> Result<usize, JournalError> {
        let shared = &self.shared;
        for lsn in Files::list(&*shared.storage)?.checkpoints.range(..mark.lsn) {
            self.retire(&checkpoint_name(*lsn))?;
        }
        let segments = shared.lock().segments.clone();
        let is_live = |segment| {
            if planted!(FreedTooEarly) {
                return false;
            }
            live.contains_key(segment)
        };
        let dead = segments.range(..mark.segment).filter(|segment| !is_live(segment));
        let dead: Vec<u32> = dead.copied().collect();
        shared.forget(&dead);
        let mut spares = Vec::new();
        for segment in &dead {
            spares.extend(self.recycle(*segment, spares.len())?);
        }
        // Only now can the old names not come back over new contents.
        shared.storage.sync_directory().during("sync", "the directory")?;
        let mut state = shared.lock();
        state.spares.append(&mut spares);
        state.update_disk_full();
        drop(state);
        shared.work.notify_all();
        shared.room.notify_waiters();
        Ok(dead.len())
    }

    /// Makes a spare of a dead segment, or takes it away if there are enough with the `more` that
    /// are on their way.
    fn recycle(&self, segment: u32, more: usize) -> Result<Option<Spare>, JournalError> {
        let shared = &self.shared;
        let name = segment_name(segment);
        let file = shared.storage.open(&name).during("open", &name)?;
        let len = file.size().during("look at", &name)?;
        let is_enough = shared.lock().spares_free() + more >= shared.options.spares_max;
        if is_enough || len != u64::from(shared.options.segment_bytes) {
            shared.storage.remove(&name).during("remove", &name)?;
            return Ok(None);
        }
        let spare = shared.spare_name();
        shared.storage.rename(&name, &spare).during("rename", &name)?;
        Ok(Some(Spare { name: spare, file, warm_bytes: len }))
    }
}

/// Writes records in pieces, each behind its length and a checksum that covers all before it too.
struct Chunks<'f> {
    file: &'f dyn StorageFile,
    name: &'f str,
    header: FileHeader,
    at: u64,
    chain: u32,
    /// Room for a chunk's header, then records.
    chunk: Vec<u8>,
    chunk_bytes: usize,
    rows: Rows,
}

impl<'f> Chunks<'f> {
    fn new(
        file: &'f dyn StorageFile,
        name: &'f str,
        header: FileHeader,
        chunk_bytes: usize,
    ) -> Result<Self, JournalError> {
        let chain = frame::seed(header.journal, 0);
        let chunk = vec![0; CHUNK_HEADER_LEN];
        let rows = Rows::default();
        Ok(Self { file, name, header, at: FILE_HEADER_LEN as u64, chain, chunk, chunk_bytes, rows })
    }

    fn push(&mut self, record: &Record<'_>) -> Result<(), JournalError> {
        debug_assert!(record.body().is_none(), "bodies stay in their segments");
        self.rows.push(record, &mut self.chunk);
        if self.chunk.len() + self.rows.bytes() < self.chunk_bytes { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        self.rows.end(&mut self.chunk);
        let (mut header, records) = self.chunk.split_at_mut(CHUNK_HEADER_LEN);
        self.chain = crc32c::crc32c_append(self.chain, records);
        header.put_u32_le(u32::try_from(records.len()).unwrap_or(END));
        header.put_u32_le(self.chain);
        self.write()?;
        // Synced piece by piece, so that the log's own syncs do not wait behind all of it.
        self.file.sync().during("sync", self.name)
    }

    fn finish(mut self) -> Result<u64, JournalError> {
        if self.chunk.len() + self.rows.bytes() > CHUNK_HEADER_LEN {
            self.flush()?;
        }
        let mut end = self.chunk.as_mut_slice();
        end.put_u32_le(END);
        end.put_u32_le(self.chain);
        self.write()?;
        // What it was written into may be longer.
        self.header.size = self.at;
        self.file.write_at(&self.header.encode(), 0).during("write", self.name)?;
        if !planted!(CheckpointNotSynced) {
            self.file.sync().during("sync", self.name)?;
        }
        Ok(self.at)
    }

    fn write(&mut self) -> Result<(), JournalError> {
        self.file.write_at(&self.chunk, self.at).during("write", self.name)?;
        self.at += self.chunk.len() as u64;
        self.chunk.truncate(CHUNK_HEADER_LEN);
        Ok(())
    }
}

/// A chunk of a checkpoint: where its records begin, and those.
pub(super) type Chunk<'a> = (usize, &'a [u8]);

/// The chunks of a checkpoint, if it is intact.
pub(super) fn chunks(bytes: &[u8], journal: u64) -> Option<Vec<Chunk<'_>>> {
    let mut chunks = Vec::new();
    read_chunks(bytes, journal, &mut chunks).map(|()| chunks)
}

/// Adds the chunks of a checkpoint up to the first that is not intact; nothing if there is one.
pub(super) fn read_chunks<'a>(
    bytes: &'a [u8],
    journal: u64,
    chunks: &mut Vec<Chunk<'a>>,
) -> Option<()> {
    let mut rest = bytes.get(FILE_HEADER_LEN..)?;
    let mut chain = frame::seed(journal, 0);
    loop {
        let (mut header, behind) = rest.split_at_checked(CHUNK_HEADER_LEN)?;
        let (len, crc) = (header.get_u32_le(), header.get_u32_le());
        if len == END {
            return (crc == chain && behind.is_empty()).then_some(());
        }
        let (records, behind) = behind.split_at_checked(len as usize)?;
        chain = crc32c::crc32c_append(chain, records);
        if crc != chain {
            return None;
        }
        chunks.push((bytes.len() - behind.len() - records.len(), records));
        rest = behind;
    }
}
