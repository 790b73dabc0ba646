//! Opens a journal: reads what is there, cuts what was never durable, and begins a new epoch.
//!
//! Invariant: it can be interrupted anywhere and begun again. Nothing is handed out before the new
//! epoch is durable, so what is made from it never repeats.

use std::io;
use std::sync::Arc;

use super::error::During;
use super::frame::{FileHeader, FileKind};
use super::head::Head;
use super::names::{RESERVE, checkpoint_name, segment_name};
use super::scan::{Scan, Tail, Visit, scan};
use super::state::{Shared, Spare, State};
use super::storage::{Storage, StorageFile};
use super::{
    Durability, Entry, Journal, JournalError, Lsn, Options, Record, Upkeep, Writer, upkeep, writer,
};

/// A journal and those that work for it.
#[derive(Debug)]
pub struct Opened {
    /// To append with.
    pub journal: Journal,
    /// Makes frames durable.
    pub writer: Writer,
    /// Keeps spares at hand.
    pub upkeep: Upkeep,
    /// What was there.
    pub recovered: Recovered,
}

/// What opening a journal found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// The last frame that was there.
    pub lsn: Lsn,
    /// The checkpoint that was read.
    pub checkpoint: Option<Lsn>,
    /// Frames read after it.
    pub frames: u64,
    /// Records read, with those of the checkpoint.
    pub records: u64,
    /// Where a frame that was never durable was cut off: segment, and byte in it.
    pub torn: Option<(u32, u64)>,
    /// Number of this start, from 1.
    pub epoch: u64,
}

/// Opens the journal in `storage` and tells `visit` every record that is not forgotten, in order.
/// An empty one is made, with `identity`, which should be random.
///
/// # Errors
///
/// [`JournalError`] with the file and the place in it. `visit` may have been called before.
pub fn open(
    storage: Arc<dyn Storage>,
    options: Options,
    identity: u64,
    visit: &mut dyn FnMut(Entry<'_>),
) -> Result<Opened, JournalError> {
    open_after(storage, options, Tail::first(identity, 1), visit)
}

/// The same; an empty journal is made as one that goes on after `first`.
pub(super) fn open_after(
    storage: Arc<dyn Storage>,
    options: Options,
    first: Tail,
    visit: &mut dyn FnMut(Entry<'_>),
) -> Result<Opened, JournalError> {
    // What we see now must not be gone after the next crash.
    storage.sync_directory().during("sync", "the directory")?;
    let scan = scan(&*storage, visit as Visit<'_>)?;
    let tail = scan.tail.unwrap_or(first);
    let Tail { journal, segment, lsn, .. } = tail;
    let epoch = if planted!(EpochAgain) { tail.epoch } else { tail.epoch + 1 };
    let recovered = Recovered {
        lsn,
        checkpoint: scan.checkpoint,
        frames: scan.frames,
        records: scan.records,
        torn: tail.torn.then_some((segment, tail.offset as u64)),
        epoch,
    };
    let offset = u32::try_from(tail.offset).map_err(|_| {
        JournalError::damaged(&segment_name(segment), tail.offset, "the segment is too long")
    })?;
    let mut state = State::new(lsn, segment, offset, scan.files.segments.clone());
    state.reserve_bytes = clean(&*storage, &scan)?;
    state.checkpoint_lsn = scan.checkpoint.unwrap_or_default();
    state.spares = adopt(&*storage, &scan, &options)?;
    state.spare_serial = scan.files.spares.iter().copied().max().unwrap_or_default();
    let shared = Arc::new(Shared::new(storage, options, journal, recovered.epoch, state));
    let file = last_segment(&shared, scan.tail)?;
    let head = Head::open(&*shared.storage, journal, segment)?;
    let mut writer = Writer::new(shared.clone(), (file, head), segment, tail.chain, lsn);
    let upkeep = Upkeep::new(shared);
    allocate(&upkeep)?;
    // How much a checkpoint takes is known better once one was written; so much, at most.
    upkeep.shared().lock().checkpoint_len_max = scan.checkpoint_bytes + scan.bytes;
    let journal = Journal::of(&writer);
    let epoch = Record::Epoch { epoch: recovered.epoch };
    journal.append(&[epoch], Durability::Disk, &mut Vec::new());
    while writer.step()? {}
    Ok(Opened { journal, writer, upkeep, recovered })
}

/// Takes away what was being written when the process ended, and checkpoints that are outdated; but
/// keeps the space of one for the next checkpoint. Returns how large that is, in bytes.
fn clean(storage: &dyn Storage, scan: &Scan) -> Result<u64, JournalError> {
    let outdated = scan.files.checkpoints.iter().filter(|lsn| Some(**lsn) != scan.checkpoint);
    let outdated = outdated.map(|lsn| checkpoint_name(*lsn));
    let mut has_reserve = scan.files.has_reserve;
    for name in scan.files.unfinished.iter().cloned().chain(outdated) {
        if std::mem::replace(&mut has_reserve, true) {
            storage.remove(&name).during("remove", &name)?;
        } else {
            storage.rename(&name, RESERVE).during("rename", &name)?;
        }
    }
    if !has_reserve {
        return Ok(0);
    }
    storage.open(RESERVE).and_then(|file| file.size()).during("look at", RESERVE)
}

/// The spares of the last run, whatever it got done of them.
fn adopt(
    storage: &dyn Storage,
    scan: &Scan,
    options: &Options,
) -> Result<Vec<Spare>, JournalError> {
    let mut spares = Vec::new();
    for number in &scan.files.spares {
        let name = format!("{number:010}.spare");
        let file = storage.open(&name).during("open", &name)?;
        // Another size was configured, or the disk is too full to complete it.
        if file.size().during("look at", &name)? > options.segment_bytes.into()
            || file.allocate(options.segment_bytes.into()).is_err()
        {
            storage.remove(&name).during("remove", &name)?;
            continue;
        }
        spares.push(Spare { name, file, warm_bytes: options.segment_bytes.into() });
    }
    Ok(spares)
}

/// The segment to go on in; the first one is made.
fn last_segment(
    shared: &Arc<Shared>,
    tail: Option<Tail>,
) -> Result<Arc<dyn StorageFile>, JournalError> {
    if let Some(tail) = tail {
        let name = segment_name(tail.segment);
        let file = shared.storage.open(&name).during("open", &name)?;
        if !planted!(TailNotRewritten) {
            rewrite(&*file, &tail).during("write", &name)?;
        }
        return Ok(file);
    }
    let spare = match shared.take_spare(1) {
        Some(spare) => spare,
        None => upkeep::create_spare(shared)?,
    };
    let journal = shared.journal;
    let size = shared.options.segment_bytes.into();
    let kind = FileKind::Segment;
    let header = FileHeader { kind, journal, segment: 1, lsn: Lsn(0), chain: 0, epoch: 0, size };
    writer::begin(shared, &spare.name, &*spare.file, &header)?;
    shared.lock().segments.insert(1);
    Ok(spare.file)
}

/// Makes the last frames durable, as the next one will say.
///
/// Where a sync failed before, the system may take what it has in memory for written when it is not;
/// so a sync is not enough.
fn rewrite(file: &dyn StorageFile, tail: &Tail) -> io::Result<()> {
    let mut frames = vec![0; tail.offset - tail.unsynced];
    file.read_at(&mut frames, tail.unsynced as u64)?;
    file.write_at(&frames, tail.unsynced as u64)?;
    file.sync()
}

/// Has the reserve at hand before the first put, unless the disk is full.
fn allocate(upkeep: &Upkeep) -> Result<(), JournalError> {
    while upkeep.is_short() {
        match upkeep.step() {
            Err(error) if error.is_full() => break,
            done => done?,
        };
    }
    Ok(())
}
