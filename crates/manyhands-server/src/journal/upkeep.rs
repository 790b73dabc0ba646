//! Keeps spares at hand, so that the writer finds a next segment whose blocks are already there.
//!
//! Invariant: a spare is in one hand only; puts are refused while none is left but the reserve.

use std::sync::Arc;

use super::JournalError;
use super::error::During;
use super::names::RESERVE;
use super::state::{Shared, Spare};

/// It does not grow by less, in bytes.
const RESERVE_STEP_MIN: u64 = if cfg!(test) { 128 } else { 4 << 10 };

/// Bytes written at once.
static CHUNK: [u8; 1 << 20] = [0; 1 << 20];

/// Prepares spares; there is one for a journal.
#[derive(Debug)]
pub struct Upkeep {
    shared: Arc<Shared>,
}

impl Upkeep {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Allocates a spare if there are too few, else writes zeros to a part of one, because a sync of
    /// blocks that were never written costs twice as much. False if nothing is to do.
    ///
    /// # Errors
    ///
    /// If no spare can be had; worth another try later. The journal goes on with those it has.
    pub fn step(&self) -> Result<bool, JournalError> {
        if self.lacks_reserve() {
            let least = self.shared.segment_bytes() / 4;
            self.grow_reserve(least).inspect_err(|error| self.remember_full_disk(error))?;
            return Ok(true);
        }
        if self.lacks_spare() {
            let spare = create_spare(&self.shared).inspect_err(|error| {
                self.remember_full_disk(error);
                // What is not enough for a spare makes the reserve larger.
                self.extend_reserve().ok();
            })?;
            let mut state = self.shared.lock();
            state.spares.push(spare);
            state.update_disk_full();
            drop(state);
            // The writer may wait for it.
            self.shared.work.notify_all();
            self.shared.room.notify_waiters();
            return Ok(true);
        }
        if self.extend_reserve()? {
            return Ok(true);
        }
        let cold = {
            let mut state = self.shared.lock();
            let is_cold = |spare: &Spare| spare.warm_bytes < self.shared.segment_bytes();
            let cold = state.spares.iter().position(is_cold);
            state.spares_in_hand += usize::from(cold.is_some());
            cold.map(|at| state.spares.swap_remove(at))
        };
        let Some(mut spare) = cold else { return Ok(false) };
        let warmed = self.warm(&mut spare);
        let mut state = self.shared.lock();
        state.spares_in_hand -= 1;
        match &warmed {
            Ok(()) => state.spares.push(spare),
            Err(_) => drop(self.shared.storage.remove(&spare.name)),
        }
        self.shared.upkeep.notify_all();
        warmed.map(|()| true)
    }

    /// Whether there are fewer spares, or less of a reserve, than wanted.
    pub fn is_short(&self) -> bool {
        self.shared.lock().wants_spares()
    }

    fn lacks_spare(&self) -> bool {
        let state = self.shared.lock();
        state.lacks_spares() && !state.spare_freed
    }

    fn lacks_reserve(&self) -> bool {
        let state = self.shared.lock();
        state.reserve_bytes == 0 && !state.reserve_in_hand && !state.spare_freed
    }

    fn remember_full_disk(&self, error: &JournalError) {
        self.shared.lock().disk_full |= error.is_full();
    }

    /// Makes the reserve as large as it should be, or as the disk allows, if that was not tried since
    /// it was found too small. False if nothing is to do.
    fn extend_reserve(&self) -> Result<bool, JournalError> {
        let wanted = {
            let mut state = self.shared.lock();
            if state.spare_freed || state.reserve_in_hand || !std::mem::take(&mut state.reserve_due)
            {
                return Ok(false);
            }
            state.reserve_wanted(&self.shared.options)
        };
        match self.grow_reserve(wanted) {
            Err(error) if !error.is_full() => Err(error),
            _ => Ok(true),
        }
    }

    /// Makes the reserve so many bytes long, or as long as the disk allows.
    fn grow_reserve(&self, wanted: u64) -> Result<(), JournalError> {
        let before = {
            let mut state = self.shared.lock();
            if state.spare_freed || state.reserve_in_hand || state.reserve_bytes >= wanted {
                return Ok(());
            }
            state.reserve_in_hand = true;
            state.reserve_bytes
        };
        let grown = self.allocate_reserve(before, wanted);
        let mut state = self.shared.lock();
        state.reserve_in_hand = false;
        state.reserve_bytes = *grown.as_ref().unwrap_or(&before);
        self.shared.upkeep.notify_all();
        grown.map(drop)
    }

    /// Returns how long it is then.
    fn allocate_reserve(&self, before: u64, wanted: u64) -> Result<u64, JournalError> {
        let storage = &self.shared.storage;
        let file = if before > 0 { storage.open(RESERVE) } else { storage.create(RESERVE) };
        let file = file.during("open", RESERVE)?;
        let mut more = wanted - before;
        while let Err(error) = file.allocate(before + more) {
            let error = not_allocated(RESERVE, wanted, error);
            if !error.is_full() || more / 2 < RESERVE_STEP_MIN {
                // What it took of a full disk is needed elsewhere.
                if before == 0 {
                    storage.remove(RESERVE).ok();
                }
                return Err(error);
            }
            more /= 2;
        }
        file.size().during("look at", RESERVE)
    }

    fn warm(&self, spare: &mut Spare) -> Result<(), JournalError> {
        let len = (CHUNK.len() as u64).min(self.shared.segment_bytes() - spare.warm_bytes);
        let zeros = usize::try_from(len).ok().and_then(|len| CHUNK.get(..len)).unwrap_or(&CHUNK);
        spare.file.write_at(zeros, spare.warm_bytes).during("write", &spare.name)?;
        // Synced piece by piece, so that the log's own syncs do not wait behind all of it.
        spare.file.sync().during("sync", &spare.name)?;
        spare.warm_bytes += len;
        Ok(())
    }
}

impl Shared {
    fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes.into()
    }

    /// A name that no file has.
    pub(super) fn spare_name(&self) -> String {
        let mut state = self.lock();
        state.spare_serial += 1;
        format!("{:010}.spare", state.spare_serial)
    }
}

/// Makes a file with room for a segment.
pub(super) fn create_spare(shared: &Shared) -> Result<Spare, JournalError> {
    let (name, bytes) = (shared.spare_name(), shared.segment_bytes());
    let file = shared.storage.create(&name).during("create", &name)?;
    if let Err(error) = file.allocate(bytes) {
        // What it took of a full disk is needed elsewhere.
        shared.storage.remove(&name).ok();
        return Err(not_allocated(&name, bytes, error));
    }
    Ok(Spare { name, file, warm_bytes: 0 })
}

/// Why a file has no room for so many bytes.
fn not_allocated(name: &str, bytes: u64, error: std::io::Error) -> JournalError {
    match JournalError::io("allocate", name, error) {
        error if error.is_full() => JournalError::DiskFull { file: name.to_owned(), bytes },
        error => error,
    }
}
