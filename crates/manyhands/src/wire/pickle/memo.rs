//! The memo of a pickle, as far as cutting needs it: which entries there are, and which opcode
//! spelled one. No value is ever kept.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::{Limits, PickleError};

/// How a pickle numbers its memo. A pickler keeps to one way, and so must a request: Python 2
/// keeps text and binary numbers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoStyle {
    /// PUT and GET.
    Text,
    /// BINPUT, LONG_BINPUT and their GETs.
    Binary,
    /// MEMOIZE, which counts by itself, with the GETs of either.
    Counted,
}

impl MemoStyle {
    fn of_store(op: &Op<'_>) -> Self {
        match op.opcode {
            Opcode::Memoize => Self::Counted,
            Opcode::Put => Self::Text,
            _ => Self::Binary,
        }
    }

    fn may_fetch(self, op: &Op<'_>) -> bool {
        self == Self::Counted || (self == Self::Text) == (op.opcode == Opcode::Get)
    }
}

/// The entries that a pickle has stored so far.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// How its entries are numbered; `None` before the first one.
    pub(super) style: Option<MemoStyle>,
    /// Stores so far.
    pub(super) stored: usize,
    /// Picklers number without gaps, so that this is mostly all.
    consecutive: Range<usize>,
    scattered: BTreeSet<usize>,
}

impl Memo {
    /// Entries outside of the consecutive ones; only a hand-made pickle has any.
    pub(super) const SCATTERED_MAX: usize = 1 << 16;

    /// The memo of opcodes in front of which so many others store something.
    pub(super) fn behind(stored: usize) -> Self {
        Self { stored, ..Self::default() }
    }

    /// Takes note of a store.
    #[inline]
    pub(super) fn store(&mut self, op: &Op<'_>, limits: &Limits) -> Result<(), PickleError> {
        let style = MemoStyle::of_store(op);
        if *self.style.get_or_insert(style) != style {
            return Err(op.malformed("two ways of numbering the memo"));
        }
        let index = op.memo_index(self.stored)?;
        let limit = limits.memo_max;
        if self.stored >= limit || index > limit {
            return Err(PickleError::TooLarge { what: "memo entries", limit });
        }
        self.stored += 1;
        if index == self.consecutive.end {
            self.consecutive.end += 1;
            return Ok(());
        }
        self.insert(index)
    }

    /// Takes in an entry that does not follow the one before.
    fn insert(&mut self, index: usize) -> Result<(), PickleError> {
        if self.consecutive.is_empty() {
            self.consecutive = index..index + 1;
        } else if !self.consecutive.contains(&index) {
            let limit = Self::SCATTERED_MAX;
            if self.scattered.len() >= limit {
                return Err(PickleError::TooLarge { what: "scattered memo entries", limit });
            }
            self.scattered.insert(index);
        }
        Ok(())
    }

    /// The entry that a fetch reads, whether or not it is there.
    pub(super) fn fetch(&self, op: &Op<'_>) -> Result<usize, PickleError> {
        if self.style.is_some_and(|style| !style.may_fetch(op)) {
            return Err(op.malformed("two ways of numbering the memo"));
        }
        op.memo_index(self.stored)
    }

    /// Whether the entry has been stored.
    pub(super) fn contains(&self, index: usize) -> bool {
        self.consecutive.contains(&index) || self.scattered.contains(&index)
    }
}

/// A question to [`definitions`]: which opcode spelled entry `index` as it was at offset `at`?
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub(super) at: usize,
    pub(super) index: usize,
}

impl Query {
    /// What the opcode at offset `at`, a GET, asks.
    pub(super) fn read(pickle: &[u8], at: usize) -> Result<Self, PickleError> {
        let op = Opcodes::between(pickle, at, pickle.len()).next();
        let op = op.ok_or(PickleError::Truncated { offset: pickle.len() })??;
        Ok(Self { at, index: op.memo_index(0)? })
    }
}

/// Where the single opcode stands whose value the memo holds, for each of `queries`, in one pass.
/// They must be sorted by `at`. `None`: the value is not one that a single opcode spells.
pub(super) fn definitions(
    pickle: &[u8],
    queries: &[Query],
) -> Result<Vec<Option<Range<usize>>>, PickleError> {
    if queries.is_empty() {
        return Ok(Vec::new());
    }
    let mut held: HashMap<usize, Option<Range<usize>>> =
        queries.iter().map(|query| (query.index, None)).collect();
    let mut answers = Vec::with_capacity(queries.len());
    let mut open = queries.iter().peekable();
    let mut constant = None;
    let mut stored = 0;
    for op in Opcodes::new(pickle) {
        let op = op?;
        while let Some(query) = open.next_if(|query| query.at <= op.start) {
            answers.push(held.get(&query.index).cloned().flatten());
        }
        if open.peek().is_none() {
            break;
        }
        match op.effect {
            Effect::Constant => constant = Some(op.start..op.end),
            Effect::Store => {
                if let Some(entry) = held.get_mut(&op.memo_index(stored)?) {
                    entry.clone_from(&constant);
                }
                stored += 1;
            }
            Effect::Nothing => {}
            _ => constant = None,
        }
    }
    answers.resize(queries.len(), None);
    Ok(answers)
}
