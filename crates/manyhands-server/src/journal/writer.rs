//! Makes frames durable, in order: one write and at most one sync each.
//!
//! Invariant: before a segment is begun the one before it is synced to its end, so only the last
//! segment can have a torn tail.

use std::sync::Arc;

use super::error::During;
use super::frame::{self, FileHeader, FileKind, Seal};
use super::head::Head;
use super::names::segment_name;
use super::state::{Batch, Shared};
use super::storage::StorageFile;
use super::upkeep;
use super::{Durability, Journal, JournalError, Lsn, Record};

/// Writes frames; there is one for a journal.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    file: Arc<dyn StorageFile>,
    /// None where the disk had no room for it at the start.
    head: Option<Head>,
    segment: u32,
    /// Checksum of the last frame.
    chain: u32,
    written: Lsn,
    synced: Lsn,
    /// Calls that wait for the sync of what is written.
    waiting: u32,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        (file, head): (Arc<dyn StorageFile>, Option<Head>),
        segment: u32,
        chain: u32,
        lsn: Lsn,
    ) -> Self {
        Self { shared, file, head, segment, chain, written: lsn, synced: lsn, waiting: 0 }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Writes the next frame, and syncs it if somebody waits for that. False if there was none.
    ///
    /// # Errors
    ///
    /// Whatever failed; the journal is poisoned then, and fails everybody who waits. Only where a full
    /// disk has no room for the next segment nothing happened, and the same frame can be tried again.
    pub fn step(&mut self) -> Result<bool, JournalError> {
        let has_written = self.write_frame()?;
        if self.waiting > 0 {
            self.sync()?;
        }
        Ok(has_written)
    }

    /// Writes the next frame. False if there was none.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub(super) fn write_frame(&mut self) -> Result<bool, JournalError> {
        let batch = {
            let mut state = self.shared.lock();
            let failed = if planted!(FailureForgotten) { None } else { state.failed.as_ref() };
            if let Some(failed) = failed {
                return Err(failed.clone());
            }
            state.take_batch()
        };
        let Some(mut batch) = batch else { return Ok(false) };
        if batch.segment != self.segment {
            match self.begin_segment(batch.segment) {
                Err(error @ JournalError::DiskFull { .. }) => {
                    self.shared.lock().give_back(batch);
                    return Err(error);
                }
                begun => begun.map_err(|error| self.shared.poison(&error))?,
            }
        }
        self.write(&mut batch).map_err(|error| self.shared.poison(&error))?;
        self.waiting += batch.waiting;
        self.shared.lock().give_buffer(batch.bytes);
        Ok(true)
    }

    /// The last frame that is synced.
    pub(super) fn synced(&self) -> Lsn {
        self.synced
    }

    /// Calls that wait for the sync of what is written.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Syncs what is written.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if let Some(failed) = self.shared.lock().failed.clone() {
            return Err(failed);
        }
        if self.is_dirty() {
            self.sync_file().map_err(|error| self.shared.poison(&error))?;
            self.shared.reach(Durability::Disk, self.synced);
        }
        Ok(())
    }

    /// Whether something is written and not synced.
    pub fn is_dirty(&self) -> bool {
        self.synced < self.written
    }

    /// Writes the next frame as a bug would have it: what is only written counts as synced.
    pub(super) fn write_as_synced(&mut self) -> Result<bool, JournalError> {
        let has_written = self.write_frame()?;
        self.shared.reach(Durability::Disk, self.written);
        Ok(has_written)
    }

    /// Makes all that was appended durable and ends the log cleanly.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn close(&mut self) -> Result<(), JournalError> {
        self.shared.append(Record::Closed.bytes_max(), Durability::Disk, |frame| {
            frame.push(&Record::Closed);
        });
        while self.step()? {}
        self.sync()
    }

    fn write(&mut self, batch: &mut Batch) -> Result<(), JournalError> {
        let synced = if planted!(SealsClaimTooMuch) { batch.lsn } else { self.synced };
        let (previous, epoch, lsn) = (self.chain, self.shared.epoch, batch.lsn);
        let seal = Seal { previous, epoch, lsn, synced };
        let seed = frame::seed(self.shared.journal, self.segment);
        self.chain = frame::seal(&mut batch.bytes, seed, seal);
        let written = self.file.write_at(&batch.bytes, batch.offset.into());
        written.during("write", &segment_name(self.segment))?;
        self.written = batch.lsn;
        self.shared.reach(Durability::Os, self.written);
        if planted!(AckBeforeSync) {
            self.shared.reach(Durability::Disk, self.written);
        }
        Ok(())
    }

    fn sync_file(&mut self) -> Result<(), JournalError> {
        let synced = self.file.sync().during("sync", &segment_name(self.segment));
        if !planted!(SyncErrorIgnored) {
            synced?;
        }
        (self.synced, self.waiting) = (self.written, 0);
        Ok(())
    }

    fn begin_segment(&mut self, segment: u32) -> Result<(), JournalError> {
        if !planted!(SegmentEndNotSynced) {
            self.sync()?;
        }
        let spare = match self.shared.take_spare(segment) {
            Some(spare) => spare,
            None => {
                let spare = upkeep::create_spare(&self.shared)?;
                self.shared.lock().current = segment;
                spare
            }
        };
        let header = FileHeader {
            kind: FileKind::Segment,
            journal: self.shared.journal,
            segment,
            lsn: self.written,
            chain: self.chain,
            epoch: self.shared.epoch,
            size: self.shared.options.segment_bytes.into(),
        };
        begin(&self.shared, &spare.name, &*spare.file, &header)?;
        self.shared.lock().segments.insert(segment);
        (self.file, self.segment) = (spare.file, segment);
        match self.head.as_ref().map(|head| head.name(segment)) {
            // A file system that writes in new places may have none left.
            Some(Err(error)) if !error.is_full() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Makes a segment of the file called `name`. It has its name only once its header is durable.
pub(super) fn begin(
    shared: &Shared,
    name: &str,
    file: &dyn StorageFile,
    header: &FileHeader,
) -> Result<(), JournalError> {
    let segment = segment_name(header.segment);
    file.write_at(&header.encode(), 0).during("write", name)?;
    if !planted!(HeaderNotSynced) {
        file.sync().during("sync", name)?;
    }
    shared.storage.rename(name, &segment).during("rename", name)?;
    if planted!(NameNotSynced) {
        return Ok(());
    }
    shared.storage.sync_directory().during("sync the directory of", &segment)
}

impl Drop for Writer {
    /// Nobody waits for a writer that is gone.
    fn drop(&mut self) {
        let error = JournalError::Poisoned("its writer is gone".into());
        if self.shared.lock().failed.is_none() {
            self.shared.poison(&error);
        }
    }
}

impl Journal {
    pub(super) fn of(writer: &Writer) -> Self {
        Self { shared: writer.shared.clone(), checkpoints: Arc::default(), desk: Arc::default() }
    }
}
