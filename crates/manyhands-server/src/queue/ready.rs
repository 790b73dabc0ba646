//! The tasks that are ready to be taken, in the order of the queue.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{Buf, Bytes};
use manyhands::wire::pickle::Payload;

use super::arena::{self, Arena, End, Limits, Peek};
use super::key::{Key, OrderError};
use super::{Order, Task, TaskId, Terms, Time};

/// What a task in an arena costs besides its payload, in bytes: header, end, its share of a chunk.
const LINE_OVERHEAD_BYTES: usize = 9;
/// What a task in the tree costs besides payload and key, in bytes: a [`Place`], a pointer, both
/// at the two thirds that tree nodes are full on average, and two allocations.
const SORTED_OVERHEAD_BYTES: usize = 100;
/// What a task costs whose payload is evicted to disk, in bytes: a line here, and one in the ledger
/// that says where it lies.
pub(super) const EVICTED_BYTES: u64 = 40;

/// A payload ready to be put: all that takes time in proportion to it is done, so that nobody has
/// to wait for that while the queue is locked.
#[derive(Debug)]
pub struct Prepared {
    pub(super) payload: Payload,
    key: Option<Box<Key>>,
    /// Whether it still lies in the message that brought it, which may hold far more.
    is_shared: bool,
}

/// A payload that wants to be queued, with its place where the order needs one.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) payload: Payload,
    /// What the put said beside the item.
    pub(super) terms: Option<Box<Terms>>,
    /// Bytes that the payload will take in the queue, its share of the bookkeeping included.
    pub(super) cost: u64,
    place: Option<Place>,
    is_shared: bool,
}

/// A task that is not to be handed out yet.
#[derive(Debug)]
pub(super) struct Delayed {
    pub(super) candidate: Candidate,
    pub(super) until: Time,
}

/// Ready tasks. A task that comes back goes to its original place, which its id tells.
#[derive(Debug)]
pub(super) enum Ready {
    Line(Line),
    Sorted(Sorted),
}

/// Behind which task a look goes on.
#[derive(Debug)]
pub(super) enum After {
    Nothing,
    Task(TaskId),
    Place(Place),
}

/// Tasks in their order, and where that ends.
pub(super) type Looked = (Vec<(TaskId, Option<Payload>)>, After);

/// First in, first out, or last in, first out.
///
/// Tasks that came back, and those that may have to leave out of turn, are kept apart, because the
/// arena takes new ones only and gives from its ends only.
#[derive(Debug)]
pub(super) struct Line {
    next: End,
    arena: Arena,
    apart: BTreeMap<TaskId, Payload>,
}

/// Lowest key first, and the first put among equals.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    tasks: BTreeMap<Place, Stored>,
    /// The keys of those that may have to leave out of turn.
    apart: BTreeMap<TaskId, Key>,
}

/// A payload in the tree.
#[derive(Debug)]
enum Stored {
    /// A small one with its header, in one piece.
    Packed(Box<[u8]>),
    /// A large one, which is not copied while others wait.
    Whole(Box<Payload>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    key: Key,
    id: TaskId,
}

impl Prepared {
    /// Copies the payload out of the message that brought it, which is then free to go however long
    /// the task stays, and finds what a queue of this order compares. A small payload is copied
    /// only where it does not move on at once to where small ones share their memory.
    #[inline]
    pub fn new(payload: Payload, terms: Option<&Terms>, order: Order) -> Self {
        let is_shared = payload.bytes.len() <= arena::PACKED_BYTES_MAX;
        let payload = if is_shared { payload } else { copied(payload) };
        Self { is_shared, ..Self::owned(payload, terms, order == Order::Priority) }
    }

    /// Length of the payload, in bytes.
    pub fn payload_len(&self) -> usize {
        self.payload.bytes.len()
    }

    /// Finds what a queue that has an order compares, if that is not known.
    pub fn find_place(&mut self, terms: Option<&Terms>) {
        self.key.get_or_insert_with(|| Box::new(Key::placing(&self.payload, terms)));
    }

    /// The payload in memory of its own.
    pub(super) fn into_payload(self) -> Payload {
        self.detached().payload
    }

    /// The same in memory of its own: for whoever does not put it at once.
    pub fn detached(self) -> Self {
        match self.is_shared {
            true => Self { payload: copied(self.payload), is_shared: false, ..self },
            false => self,
        }
    }

    /// The same for a payload that is in memory of its own already.
    #[inline]
    fn owned(payload: Payload, terms: Option<&Terms>, is_sorted: bool) -> Self {
        let key = is_sorted.then(|| Box::new(Key::placing(&payload, terms)));
        Self { payload, key, is_shared: false }
    }
}

impl From<Payload> for Prepared {
    /// For a queue without an order, or whose order is not known yet.
    fn from(payload: Payload) -> Self {
        Self::new(payload, None, Order::Fifo)
    }
}

impl After {
    pub(super) fn bounds(&self) -> (Bound<TaskId>, Bound<TaskId>) {
        match self {
            Self::Task(task) => (Bound::Excluded(*task), Bound::Unbounded),
            Self::Nothing | Self::Place(_) => (Bound::Unbounded, Bound::Unbounded),
        }
    }
}

/// Tasks that are told in the order of their numbers.
pub(super) fn numbered(tasks: Vec<(TaskId, Option<Payload>)>) -> Looked {
    let after = tasks.last().map_or(After::Nothing, |(task, _)| After::Task(*task));
    (tasks, after)
}

impl Key {
    /// The place of an item, or the one that its put asked for.
    fn placing(payload: &Payload, terms: Option<&Terms>) -> Self {
        #[cfg(test)]
        crate::labour::add(payload.bytes.len());
        let priority = terms.and_then(|terms| terms.priority);
        priority.map_or_else(|| Self::of(payload), Self::of_int)
    }
}

/// A payload in memory of its own.
pub(super) fn copied(payload: Payload) -> Payload {
    #[cfg(test)]
    crate::labour::add(payload.bytes.len());
    Payload { bytes: Bytes::copy_from_slice(&payload.bytes), ..payload }
}

/// The same for a payload that may share its memory, as only small ones do.
pub(super) fn apart(payload: Payload) -> Payload {
    if payload.bytes.len() <= arena::PACKED_BYTES_MAX { copied(payload) } else { payload }
}

impl Candidate {
    /// Evicts the payload's bytes, which the journal has too. No object is empty, so a payload
    /// without bytes is an evicted one.
    pub(super) fn evict(&mut self) {
        self.payload.bytes = Bytes::new();
        self.cost = EVICTED_BYTES;
        self.is_shared = false;
    }

    /// The same in memory of its own: for whoever keeps it.
    pub(super) fn detached(self) -> Self {
        match self.is_shared {
            true => Self { payload: copied(self.payload), is_shared: false, ..self },
            false => self,
        }
    }
}

impl Ready {
    pub(super) fn new(order: Order) -> Self {
        let line =
            |next| Self::Line(Line { next, arena: Arena::default(), apart: BTreeMap::new() });
        match order {
            Order::Fifo => line(End::Front),
            Order::Lifo => line(End::Back),
            Order::Priority => Self::Sorted(Sorted::default()),
        }
    }

    /// Number of tasks.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Line(line) => line.arena.len() + line.apart.len(),
            Self::Sorted(sorted) => sorted.tasks.len(),
        }
    }

    /// The task that was put first, if there is one; `None` where the order does not tell.
    pub(super) fn oldest(&self) -> Option<Option<TaskId>> {
        let Self::Line(line) = self else { return self.is_empty().then_some(None) };
        let apart = line.apart.first_key_value().map(|(id, _)| *id);
        Some(apart.into_iter().chain(line.arena.peek(End::Front).map(|first| first.id)).min())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds the place in the order of a payload that is in memory of its own.
    pub(super) fn candidate(&self, payload: Payload, terms: Option<Box<Terms>>) -> Candidate {
        let is_sorted = matches!(self, Self::Sorted(_));
        self.admit(Prepared::owned(payload, terms.as_deref(), is_sorted), terms)
    }

    /// Gives a payload its place, whatever order it was prepared for.
    pub(super) fn admit(&self, prepared: Prepared, terms: Option<Box<Terms>>) -> Candidate {
        let Prepared { payload, key, is_shared } = prepared;
        let place = match self {
            Self::Line(_) => None,
            Self::Sorted(_) => {
                let key = key.map(|key| *key);
                let key = key.unwrap_or_else(|| Key::placing(&payload, terms.as_deref()));
                // Behind all equal keys, until the task has its id.
                Some(Place { key, id: TaskId(u64::MAX) })
            }
        };
        let cost = cost(payload.bytes.len(), place.as_ref().map(|place| &place.key));
        Candidate { payload, terms, cost, place, is_shared }
    }

    /// Whether a candidate has a place among the tasks that are here now.
    ///
    /// # Errors
    ///
    /// If its order to one of them is undefined.
    pub(super) fn check(&self, candidate: &Candidate) -> Result<(), OrderError> {
        match (self, &candidate.place) {
            (Self::Sorted(sorted), Some(place)) => sorted.check(place),
            _ => Ok(()),
        }
    }

    /// Adds a task with an id above all others.
    pub(super) fn push(&mut self, id: TaskId, candidate: Candidate) {
        match self {
            Self::Line(line) => line.arena.push(Task { id, payload: candidate.payload }),
            Self::Sorted(sorted) => sorted.insert(id, candidate),
        }
    }

    /// What a small payload costs that stands behind all others; nothing if it is not small, or its
    /// place has to be found.
    pub(super) fn packed_cost(&self, payload: &Payload) -> Option<u64> {
        let len = payload.bytes.len();
        (matches!(self, Self::Line(_)) && len <= arena::PACKED_BYTES_MAX).then(|| cost(len, None))
    }

    /// Adds it.
    pub(super) fn pack(&mut self, id: TaskId, payload: &Payload) {
        if let Self::Line(line) = self {
            line.arena.pack(id, payload);
        }
    }

    /// The same for a payload of which nothing more is known; says what it costs.
    pub(super) fn push_plain(&mut self, id: TaskId, payload: Payload) -> u64 {
        // A line compares nothing, and a long one is restored task by task.
        if let Self::Line(line) = self {
            let cost = cost(payload.bytes.len(), None);
            line.arena.push(Task { id, payload });
            return cost;
        }
        let candidate = self.candidate(payload, None);
        let cost = candidate.cost;
        self.push(id, candidate);
        cost
    }

    /// Puts a task where its id belongs, and so that it can be removed again.
    pub(super) fn set_apart(&mut self, id: TaskId, candidate: Candidate) {
        match self {
            Self::Line(line) => {
                line.apart.insert(id, candidate.payload);
            }
            Self::Sorted(sorted) => {
                if let Some(place) = &candidate.place {
                    sorted.apart.insert(id, place.key.clone());
                }
                sorted.insert(id, candidate);
            }
        }
    }

    /// Takes a task that was [set apart](Self::set_apart) out of turn, and says what it cost.
    pub(super) fn remove(&mut self, id: TaskId) -> Option<(Task, u64)> {
        match self {
            Self::Line(line) => {
                let payload = line.apart.remove(&id)?;
                let cost = cost(payload.bytes.len(), None);
                Some((Task { id, payload }, cost))
            }
            Self::Sorted(sorted) => {
                let place = Place { key: sorted.apart.remove(&id)?, id };
                let stored = sorted.tasks.remove(&place)?;
                unpack(place, stored)
            }
        }
    }

    /// Pickle protocol of the task that is next.
    pub(super) fn next_protocol(&self) -> Option<u8> {
        match self {
            Self::Line(line) => line.peek().map(|next| next.protocol),
            Self::Sorted(sorted) => {
                let (_, stored) = sorted.tasks.first_key_value()?;
                stored.protocol()
            }
        }
    }

    /// Looks at up to `max` tasks, in the order in which they would be taken.
    pub(super) fn look(&self, after: After, max: usize, with_items: bool) -> Looked {
        match self {
            Self::Line(line) => line.look(&after, max, with_items),
            Self::Sorted(sorted) => sorted.look(after, max, with_items),
        }
    }

    /// Drops some task, and says what it cost.
    pub(super) fn discard(&mut self) -> Option<(TaskId, u64)> {
        let (task, payload_bytes) = match self {
            Self::Line(line) => match line.apart.pop_first() {
                Some((task, payload)) => (task, payload.bytes.len()),
                None => line.arena.discard()?,
            },
            Self::Sorted(sorted) => return sorted.pop().map(|(task, cost)| (task.id, cost)),
        };
        Some((task, cost(payload_bytes, None)))
    }

    /// Takes the task that is next, and says what it cost.
    pub(super) fn pop(&mut self) -> Option<(Task, u64)> {
        self.pop_for(u8::MAX)?.ok()
    }

    /// The same for a reader of pickle protocols up to this one.
    ///
    /// # Errors
    ///
    /// The protocol of the task if it is above that; it stays.
    pub(super) fn pop_for(&mut self, reader: u8) -> Option<Result<(Task, u64), u8>> {
        Some(match self {
            Self::Line(line) => line.pop_for(reader)?.map(|task| {
                let cost = cost(task.payload.bytes.len(), None);
                (task, cost)
            }),
            Self::Sorted(sorted) => {
                let (_, stored) = sorted.tasks.first_key_value()?;
                match stored.protocol()? {
                    protocol if protocol > reader => Err(protocol),
                    _ => Ok(sorted.pop()?),
                }
            }
        })
    }

    /// Takes tasks that lie together and are next, if there are some, and says what they cost. Their
    /// payloads share their memory.
    pub(super) fn pop_run(
        &mut self,
        reader: u8,
        (len, bytes): (usize, usize),
        tasks: &mut Vec<Task>,
    ) -> u64 {
        match self {
            Self::Line(Line { next: End::Front, arena, apart }) => {
                let before = apart.first_key_value().map_or(TaskId(u64::MAX), |(first, _)| *first);
                let taken = tasks.len();
                arena.pop_run(Limits { reader, before, len, bytes }, tasks);
                let taken = tasks.iter().skip(taken);
                taken.map(|task| cost(task.payload.bytes.len(), None)).sum()
            }
            _ => 0,
        }
    }
}

impl Line {
    fn peek(&self) -> Option<Peek> {
        self.first_apart().or_else(|| self.arena.peek(self.next))
    }

    fn pop_for(&mut self, reader: u8) -> Option<Result<Task, u8>> {
        let Some(Peek { id, protocol }) = self.first_apart() else {
            return self.arena.pop_for(reader, self.next);
        };
        if protocol > reader {
            return Some(Err(protocol));
        }
        let payload = self.apart.remove(&id)?;
        Some(Ok(Task { id, payload }))
    }

    fn look(&self, after: &After, max: usize, with_items: bool) -> Looked {
        let last = if let After::Task(task) = after { Some(*task) } else { None };
        let packed = self.arena.tasks(self.next, last, with_items).take(max);
        let payload =
            |(task, payload): (&TaskId, &Payload)| (*task, with_items.then(|| payload.clone()));
        let apart: Vec<_> = match (self.next, last) {
            (End::Front, _) => self.apart.range(after.bounds()).map(payload).take(max).collect(),
            (End::Back, None) => self.apart.iter().rev().map(payload).take(max).collect(),
            (End::Back, Some(last)) => {
                self.apart.range(..last).rev().map(payload).take(max).collect()
            }
        };
        let mut tasks: Vec<_> = packed.chain(apart).collect();
        match self.next {
            End::Front => tasks.sort_unstable_by_key(|(task, _)| *task),
            End::Back => tasks.sort_unstable_by_key(|(task, _)| Reverse(*task)),
        }
        tasks.truncate(max);
        numbered(tasks)
    }

    /// The task set apart that is next, if it is before all that are in the arena.
    fn first_apart(&self) -> Option<Peek> {
        let (&id, payload) = match self.next {
            End::Front => self.apart.first_key_value(),
            End::Back => self.apart.last_key_value(),
        }?;
        let is_next = self.arena.peek(self.next).is_none_or(|top| match self.next {
            End::Front if planted!(ReturnedToTheEnd) => false,
            End::Front => id < top.id,
            End::Back => id > top.id,
        });
        is_next.then_some(Peek { id, protocol: payload.protocol() })
    }
}

impl Sorted {
    /// Two neighbours answer for all, if those here compare with one another.
    ///
    /// Keys are ordered as words are: element by element, the first difference decides, and a
    /// prefix comes first. Two keys do not compare when at the first difference stand two elements
    /// of different classes, or two opaque ones. Say the new key `x` does not compare with some
    /// `z > x`, and let `y` be its upper neighbour, so `x < y <= z` (`y = x` is clear: it would not
    /// compare with `z` either). What lies between two words shares their common prefix, so `y` has
    /// it and goes on with an element between those of `x` and `z`. Elements are ordered by class
    /// first, opaque ones last. If the two classes differ, `y`'s class differs from that of `x` or
    /// from that of `z`; if both are opaque, so is `y`'s element, and it differs from one of them.
    /// So `y` does not compare with `x`, which the check sees, or not with `z`, which cannot be, as
    /// both are here. Below `x` it is the same.
    ///
    /// A task that comes back is not checked, since it must not be refused; tasks put meanwhile may
    /// not compare with it. Its place is then as arbitrary as it would be between equals, and the
    /// check still answers for the neighbours.
    fn check(&self, place: &Place) -> Result<(), OrderError> {
        let below = self.tasks.range(..place).next_back();
        let above = self.tasks.range(place..).next();
        below.into_iter().chain(above).try_for_each(|(at, _)| place.key.check_against(&at.key))
    }

    fn insert(&mut self, id: TaskId, Candidate { payload, place, .. }: Candidate) {
        let key = place.map_or_else(|| Key::of(&payload), |place| place.key);
        self.tasks.insert(Place { key, id }, Stored::of(payload));
    }

    fn look(&self, after: After, max: usize, with_items: bool) -> Looked {
        let from = match &after {
            After::Place(place) => Bound::Excluded(place),
            After::Nothing | After::Task(_) => Bound::Unbounded,
        };
        let (mut tasks, mut last) = (Vec::new(), None);
        for (place, stored) in self.tasks.range((from, Bound::Unbounded)).take(max) {
            tasks.push((place.id, with_items.then(|| stored.payload()).flatten()));
            last = Some(place);
        }
        let after = last.map_or(After::Nothing, |place| After::Place(place.clone()));
        (tasks, after)
    }

    fn pop(&mut self) -> Option<(Task, u64)> {
        let (place, stored) = self.tasks.pop_first()?;
        self.apart.remove(&place.id);
        unpack(place, stored)
    }
}

impl Stored {
    fn of(payload: Payload) -> Self {
        if payload.bytes.len() > arena::PACKED_BYTES_MAX {
            return Self::Whole(Box::new(payload));
        }
        let mut packed = Vec::with_capacity(payload.bytes.len() + 6);
        arena::push_payload(&payload, &mut packed);
        Self::Packed(packed.into())
    }

    fn protocol(&self) -> Option<u8> {
        match self {
            Self::Packed(packed) => {
                arena::split_payload(packed).map(|(codec, ..)| codec.protocol())
            }
            Self::Whole(payload) => Some(payload.protocol()),
        }
    }

    /// What it holds.
    fn payload(&self) -> Option<Payload> {
        match self {
            Self::Packed(packed) => arena::split_payload(packed).map(arena::copied),
            Self::Whole(payload) => Some(Payload::clone(payload)),
        }
    }

    /// The same, in the memory that it has.
    fn into_payload(self) -> Option<Payload> {
        let packed = match self {
            Self::Packed(packed) => packed,
            Self::Whole(payload) => return Some(*payload),
        };
        let (codec, prelude_len, payload) = arena::split_payload(&packed)?;
        let header = packed.len() - payload.len();
        let mut bytes = Bytes::from(packed);
        bytes.advance(header);
        Some(Payload { codec, prelude_len, bytes })
    }
}

fn unpack(Place { key, id }: Place, stored: Stored) -> Option<(Task, u64)> {
    let payload = stored.into_payload()?;
    let cost = cost(payload.bytes.len(), Some(&key));
    Some((Task { id, payload }, cost))
}

fn cost(payload_bytes: usize, key: Option<&Key>) -> u64 {
    if payload_bytes == 0 {
        return EVICTED_BYTES;
    }
    let overhead = match key {
        None => LINE_OVERHEAD_BYTES,
        Some(key) => SORTED_OVERHEAD_BYTES + key.heap_bytes(),
    };
    (payload_bytes + overhead) as u64
}
