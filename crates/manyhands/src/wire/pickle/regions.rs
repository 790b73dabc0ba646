//! The stack of a [`Scanner`](super::scan::Scanner), and which opcodes made each value on it.

use smallvec::SmallVec;

use super::PickleError;

/// Items of a tuple that is a request.
pub(super) const PARTS_MAX: usize = 4;

/// Positional, and keyword, arguments of one call.
pub(super) const ARGUMENTS_MAX: usize = 64;

/// Stack positions whose regions are known: those of a request, whose keyword arguments come last.
pub(super) const TRACKED_MAX: usize = PARTS_MAX + 2 * ARGUMENTS_MAX;

/// The opcodes that made one value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    /// Offset of the first.
    pub(super) start: usize,
    /// Offset behind the last, memo stores at the end left out: nothing in the region reads them.
    pub(super) end: usize,
    /// Memo entries stored before it.
    pub(super) stored: usize,
    /// Values and marks on the stack below it.
    pub(super) below: usize,
    /// Whether it has a GET, a FRAME or an opcode of protocol 5.
    pub(super) remarkable: bool,
    /// Whether it copies, by DUP, a value from outside.
    pub(super) leans: bool,
    pub(super) kind: Kind,
}

/// What a tracked value is, as far as a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An immutable value spelled by the one opcode at this offset.
    Constant(usize),
    /// A memo entry, fetched by the opcode at this offset.
    Fetched(usize),
    /// A tuple whose items were noted, where a request has its arguments or itself.
    Tuple,
    /// A dict whose items were noted, where a request has its keyword arguments.
    Dict,
    /// Anything else.
    Other,
}

/// The items of a tuple or dict.
#[derive(Debug, Clone, Default)]
pub(super) struct Regions {
    items: SmallVec<[Region; 4]>,
    overflow: bool,
}

impl Regions {
    /// The regions.
    ///
    /// # Errors
    ///
    /// [`PickleError::TooLarge`] if there were more than a call may have.
    pub(super) fn items(&self) -> Result<&[Region], PickleError> {
        match self.overflow {
            true => Err(PickleError::TooLarge { what: "arguments", limit: ARGUMENTS_MAX }),
            false => Ok(&self.items),
        }
    }

    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.overflow = false;
    }

    /// Adds the values from height `from` up to the top.
    pub(super) fn extend(&mut self, stack: &Stack, from: usize, items_max: usize) {
        self.overflow |= self.items.len() + (stack.height - from) > items_max;
        if !self.overflow {
            self.items.extend(stack.regions(from));
        }
    }
}

/// How far the pass had come at some point.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    pub(super) offset: usize,
    pub(super) stored: usize,
}

/// A tracked value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Behind everything that belongs to it.
    pub(super) end: Progress,
    /// Offset behind the same without the memo stores at the end.
    pub(super) value_end: usize,
    /// Behind the last opcode before there that makes a region [`remarkable`](Region::remarkable).
    pub(super) remarkable: usize,
    /// Behind the last DUP that copied it.
    pub(super) copied: usize,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Values below it.
    pub(super) height: usize,
    pub(super) end: Progress,
}

/// The stack: all of its height, and the slots near its bottom.
#[derive(Debug, Default)]
pub(super) struct Stack {
    pub(super) height: usize,
    pub(super) slots: SmallVec<[Slot; 16]>,
    pub(super) marks: SmallVec<[Mark; 4]>,
    /// Where the opcodes begin.
    pub(super) bottom: Progress,
}

impl Stack {
    /// How far values may be popped: down to the topmost mark.
    pub(super) fn floor(&self) -> usize {
        self.marks.last().map_or(0, |mark| mark.height)
    }

    pub(super) fn push(&mut self, slot: Slot) {
        if self.slots.len() == self.height && self.height < TRACKED_MAX {
            self.slots.push(slot);
        }
        self.height += 1;
    }

    pub(super) fn truncate(&mut self, height: usize) {
        self.height = height;
        self.slots.truncate(height);
    }

    /// The height without the top `count` values.
    pub(super) fn without(&self, count: usize) -> Option<usize> {
        self.height.checked_sub(count).filter(|&height| height >= self.floor())
    }

    /// The slot of the top value, if that is tracked.
    pub(super) fn top(&mut self) -> Option<&mut Slot> {
        if self.slots.len() == self.height { self.slots.last_mut() } else { None }
    }

    /// The regions of the values from height `from` up to the top, as far as they are tracked.
    pub(super) fn regions(&self, from: usize) -> impl Iterator<Item = Region> {
        (from..self.height).map_while(|height| self.region(height))
    }

    /// The region of the value at `height`, under the topmost mark or right above it.
    pub(super) fn region(&self, height: usize) -> Option<Region> {
        let slot = self.slots.get(height)?;
        let below = height.checked_sub(1).and_then(|below| self.slots.get(below));
        let mark = self.marks.last().filter(|mark| mark.height == height);
        let start = mark.map(|mark| mark.end).or(below.map(|slot| slot.end)).unwrap_or(self.bottom);
        Some(Region {
            start: start.offset,
            end: slot.value_end,
            stored: start.stored,
            below: height + self.marks.len(),
            remarkable: slot.remarkable > start.offset,
            leans: below.is_some_and(|slot| slot.copied > start.offset),
            kind: slot.kind,
        })
    }
}
