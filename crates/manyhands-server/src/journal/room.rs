//! Who may use what space is left, what a checkpoint needs of it, and when one may free more.
//!
//! Invariants: a task that is out can be settled; whoever brings one waits first. A checkpoint that
//! frees space has space to be written into.

use super::frame::{FILE_HEADER_LEN, FRAME_HEADER_LEN, aligned};
use super::state::State;
use super::{Class, Options};

/// Spares that puts leave alone: one for what settles tasks, and one for what a checkpoint copies, so
/// that what was settled is let go.
const RESERVE: usize = 2;
/// Spares to have: the reserve and the next segment.
const SPARES: usize = RESERVE + 1;
/// How many checkpoints in a row may free nothing on a full disk before they wait for more to die:
/// one to see what is live, one to leave the segment that is written to, two to copy what is left.
const FRUITLESS_MAX: u8 = 6;

impl State {
    /// Spares that no frame has been promised.
    pub(super) fn spares_free(&self) -> usize {
        let promised = (self.open.segment - self.current) as usize;
        (self.spares.len() + self.spares_in_hand).saturating_sub(promised)
    }

    pub(super) fn wants_spares(&self) -> bool {
        let is_due = self.reserve_bytes == 0 || self.reserve_due;
        (self.lacks_spares() || is_due && !self.reserve_in_hand) && !self.spare_freed
    }

    pub(super) fn lacks_spares(&self) -> bool {
        self.spares_free() < SPARES
    }

    /// How large the reserve should be.
    pub(super) fn reserve_wanted(&self, options: &Options) -> u64 {
        u64::from(options.segment_bytes).max(self.checkpoint_len_max / 4 * 5)
    }

    /// Whether the next checkpoint may need a spare because the reserve is too small for it, and can
    /// have one.
    fn needs_spare(&self, options: &Options) -> bool {
        let outgrown = self.checkpoint_len_max > self.reserve_bytes && !self.reserve_in_hand;
        self.disk_full && !self.spare_freed && outgrown && self.can_free_spare(options)
    }

    /// Whether a spare can be had for a checkpoint: as much as a quarter of a segment is left without.
    fn can_free_spare(&self, options: &Options) -> bool {
        let segment_bytes = options.segment_bytes as usize;
        self.spares_free() > 0 && self.left(options) >= segment_bytes + segment_bytes / 4
    }

    pub(super) fn has_room(&self, class: Class, bytes: usize, options: &Options) -> bool {
        let need = FRAME_HEADER_LEN + bytes;
        let segment_bytes = options.segment_bytes as usize;
        if self.failed.is_some() || aligned(need) > segment_bytes - FILE_HEADER_LEN {
            return false;
        }
        // Who brings tasks waits until the spare that was freed for a checkpoint is there again.
        if class == Class::Admit && self.spare_freed {
            return false;
        }
        let fits = self.open.end() + aligned(need) <= segment_bytes;
        let behind = self.spares_free() * segment_bytes;
        let here = if fits { segment_bytes - self.open.end() } else { 0 };
        (fits || behind > 0) && here + behind >= aligned(need) + self.kept(class, options)
    }

    /// What records of this class leave to others, in bytes.
    fn kept(&self, class: Class, options: &Options) -> usize {
        let reserve = RESERVE * options.segment_bytes as usize;
        match class {
            Class::Admit if planted!(ReserveGivenAway) => 0,
            Class::Admit => reserve,
            Class::Copy if !self.disk_full => reserve,
            // Whoever settles meanwhile must leave a spare that can be freed, too.
            Class::Copy | Class::Lease if self.needs_spare(options) => reserve / 4 * 3,
            Class::Result => reserve / 8 * 7,
            // A copy that is not followed by another checkpoint must not stop all attempts.
            Class::Copy => reserve / 16 * 5,
            Class::Lease => reserve / 4,
            Class::Settle => 0,
        }
    }

    /// All that can still be appended, in as many segments as there are, in bytes.
    fn left(&self, options: &Options) -> usize {
        let segment_bytes = options.segment_bytes as usize;
        segment_bytes.saturating_sub(self.open.end()) + self.spares_free() * segment_bytes
    }

    pub(super) fn lease_room(&self, options: &Options) -> Option<u64> {
        let room = || self.left(options).saturating_sub(self.kept(Class::Lease, options)) as u64;
        self.disk_full.then(room)
    }

    /// Bytes of live bodies that can be copied on a full disk.
    pub(super) fn copy_room(&self, options: &Options) -> u64 {
        self.left(options).saturating_sub(self.kept(Class::Copy, options)) as u64
    }

    /// Whether the disk is full and there is hardly any room for puts.
    pub(super) fn is_scarce(&self, options: &Options) -> bool {
        let segment_bytes = options.segment_bytes as usize;
        let enough = self.kept(Class::Admit, options) + segment_bytes / 4;
        self.disk_full && self.left(options) < enough
    }

    /// Whether the disk is so full that there is hardly any room for results.
    pub(super) fn is_exhausted(&self, options: &Options) -> bool {
        let enough = self.kept(Class::Result, options) + options.segment_bytes as usize / 16;
        self.disk_full && self.left(options) < enough
    }

    /// Whether a checkpoint may make room on a full disk.
    pub(super) fn may_free(&self, options: &Options) -> bool {
        let died = self.dead_bytes + self.unmarked_bytes;
        let is_worth_it = died >= u64::from(options.segment_bytes) / 16;
        let outgrows =
            self.needs_spare(options) && self.unmarked_bytes > self.checkpoint_len_max / 16;
        self.disk_full && (self.goes_on || is_worth_it || outgrows)
    }

    /// Decides what follows a checkpoint that freed so many segments, and may have found some that it
    /// can empty. Another one follows at once as long as that helps.
    pub(super) fn after_checkpoint(&mut self, freed: usize, is_sparse: bool, options: &Options) {
        self.fruitless = if freed > 0 { 0 } else { self.fruitless + 1 };
        let may_help = freed > 0 || is_sparse || self.could_rotate(options);
        self.goes_on = self.is_scarce(options) && may_help && self.fruitless < FRUITLESS_MAX;
        if !self.goes_on {
            self.fruitless = 0;
        }
    }

    /// Whether it helps to begin a segment, so that the one before can be let go.
    pub(super) fn should_rotate(&self, options: &Options) -> bool {
        self.fruitless > 0 && self.is_scarce(options) && self.could_rotate(options)
    }

    fn could_rotate(&self, options: &Options) -> bool {
        self.open.end() >= options.segment_bytes as usize / 4 && self.spares_free() > 0
    }

    /// The next frame begins a segment.
    pub(super) fn rotate(&mut self) {
        self.rotates = true;
    }

    /// What wanted a spare got one, or there are enough.
    pub(super) fn update_disk_full(&mut self) {
        self.disk_full &= self.lacks_spares();
    }

    /// The largest frame of this class that has a place: here, or in the next segment.
    pub(super) fn room(&self, class: Class, options: &Options) -> usize {
        let segment_bytes = options.segment_bytes as usize;
        let kept = self.kept(class, options);
        let behind = self.spares_free() * segment_bytes;
        let here = segment_bytes.saturating_sub(self.open.end());
        let whole = segment_bytes - FILE_HEADER_LEN;
        [
            records_len(whole.min(behind.saturating_sub(kept))),
            records_len(here.min((here + behind).saturating_sub(kept))),
        ]
        .into_iter()
        .find(|&bytes| bytes > 0 && self.has_room(class, bytes, options))
        .unwrap_or_default()
    }

    /// The same of puts and of results.
    pub(super) fn rooms(&self, options: &Options) -> [usize; 2] {
        let most = records_len(options.segment_bytes as usize - FILE_HEADER_LEN);
        // Every step asks, and mostly there are all the spares that there should be.
        if !self.lacks_spares() && !self.spare_freed && self.failed.is_none() {
            return [most; 2];
        }
        let puts = self.room(Class::Admit, options);
        // Results have whatever room puts have, and mostly these have a whole segment.
        [puts, if puts == most { puts } else { self.room(Class::Result, options) }]
    }

    /// Takes a spare away, by name, so that a checkpoint has its space, if one can be had.
    pub(super) fn take_spare(&mut self, options: &Options) -> Option<String> {
        if !self.can_free_spare(options) {
            return None;
        }
        let spare = self.spares.pop()?;
        self.spare_freed = true;
        Some(spare.name)
    }
}

/// How long the records of a frame can be that has so many bytes.
fn records_len(frame: usize) -> usize {
    (frame & !7).saturating_sub(FRAME_HEADER_LEN)
}
