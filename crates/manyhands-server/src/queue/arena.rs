//! Payloads packed densely in chunks, in the order of their tasks.
//!
//! A handle and an allocation per payload would cost more than many payloads themselves, so small
//! ones share a chunk of up to 256 KiB: a few bytes of header each, and a `u32` for where each
//! ends. A chunk is never moved to grow; it is freed when its last task leaves, and an empty arena
//! holds no memory at all. A big payload keeps the allocation it comes with, which is of its own
//! size ([`Prepared`](super::Prepared)).
//!
//! Invariant: ids rise from front to back, and no chunk is empty.

use std::collections::VecDeque;

use bytes::Bytes;
use manyhands::wire::pickle::{Codec, Payload};

use super::{Task, TaskId};

/// Size of the first chunk, in bytes; later ones are as large as all that is queued already. Most
/// allocators keep so little at hand for a queue that is empty every other moment.
const CHUNK_BYTES_MIN: usize = 1 << 10;
/// Size of the largest chunk, in bytes.
const CHUNK_BYTES_MAX: usize = 256 << 10;
/// Payloads above this many bytes stand alone. Below, what a chunk leaves unused at its end stays
/// under 2 % of it; above, an allocation per payload costs no more than that.
pub(super) const PACKED_BYTES_MAX: usize = 4 << 10;
/// Most that a header takes: two varints of 64 and 32 bits, and the codec.
const HEADER_BYTES_MAX: usize = 10 + 1 + 5;

/// The end of the arena at which tasks leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Oldest task.
    Front,
    /// Newest task.
    Back,
}

/// What tasks may be taken together. One without bytes is the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The newest pickle protocol that is understood.
    pub(super) reader: u8,
    /// Only tasks before this one.
    pub(super) before: TaskId,
    /// How many at most.
    pub(super) len: usize,
    /// No further ones once these have so many bytes.
    pub(super) bytes: usize,
}

/// What can be known of a task without taking it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peek {
    pub(super) id: TaskId,
    pub(super) protocol: u8,
}

/// Tasks in the order of their ids, taken from either end.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: VecDeque<Chunk>,
    len: usize,
    packed_bytes: usize,
}

#[derive(Debug)]
enum Chunk {
    Packed(Packed),
    Single(Task),
}

/// Entries `[id − id before it: varint][codec][prelude length: varint][payload]`, back to back.
///
/// Those before `taken` have left; their bytes go with the chunk.
#[derive(Debug)]
struct Packed {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    taken: usize,
    first: TaskId,
    last: TaskId,
}

struct Entry<'a> {
    step: u64,
    codec: Codec,
    prelude_len: u32,
    payload: &'a [u8],
}

impl Arena {
    /// Number of tasks.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a task at the back; its id must be above all others.
    pub(super) fn push(&mut self, task: Task) {
        if task.payload.bytes.len() <= PACKED_BYTES_MAX {
            return self.pack(task.id, &task.payload);
        }
        self.check_id(task.id);
        self.len += 1;
        self.seal();
        self.chunks.push_back(Chunk::Single(task));
    }

    /// The same for one with a small payload, which is copied.
    pub(super) fn pack(&mut self, id: TaskId, payload: &Payload) {
        self.check_id(id);
        self.len += 1;
        self.packed_bytes += payload.bytes.len();
        let need = payload.bytes.len() + HEADER_BYTES_MAX;
        match self.chunks.back_mut() {
            Some(Chunk::Packed(packed)) if packed.has_room(need) => packed.push(id, payload),
            _ => {
                self.seal();
                let capacity = self.packed_bytes.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).max(need);
                self.chunks.push_back(Chunk::Packed(Packed::new(capacity, id, payload)));
            }
        }
    }

    fn check_id(&self, id: TaskId) {
        debug_assert!(self.peek(End::Back).is_none_or(|last| last.id < id), "ids must rise");
    }

    /// The task that [`Self::pop`] would take.
    pub(super) fn peek(&self, end: End) -> Option<Peek> {
        let chunk = match end {
            End::Front => self.chunks.front(),
            End::Back => self.chunks.back(),
        };
        match chunk? {
            Chunk::Packed(packed) => packed.peek(end),
            Chunk::Single(task) => Some(Peek { id: task.id, protocol: task.payload.protocol() }),
        }
    }

    /// Takes the task at one end.
    pub(super) fn pop(&mut self, end: End) -> Option<Task> {
        self.pop_for(u8::MAX, end)?.ok()
    }

    /// Takes the task at one end for a reader of pickle protocols up to this one.
    ///
    /// # Errors
    ///
    /// The protocol of the task if it is above that; it stays.
    pub(super) fn pop_for(&mut self, reader: u8, end: End) -> Option<Result<Task, u8>> {
        let chunk = match end {
            End::Front => self.chunks.front_mut(),
            End::Back => self.chunks.back_mut(),
        };
        let task = match chunk? {
            Chunk::Packed(packed) => {
                let task = match packed.pop_for(reader, end)? {
                    Ok(task) => task,
                    unreadable => return Some(unreadable),
                };
                self.packed_bytes -= task.payload.bytes.len();
                if packed.is_empty() {
                    self.drop_chunk(end);
                }
                task
            }
            Chunk::Single(task) if task.payload.protocol() > reader => {
                return Some(Err(task.payload.protocol()));
            }
            Chunk::Single(_) => match self.drop_chunk(end)? {
                Chunk::Single(task) => task,
                Chunk::Packed(_) => return None,
            },
        };
        self.count_removed(1);
        Some(Ok(task))
    }

    /// Takes tasks that are packed together at the front, if there are some there, within `limits`.
    /// Their payloads share a copy of their memory.
    pub(super) fn pop_run(&mut self, limits: Limits, tasks: &mut Vec<Task>) {
        let Some(Chunk::Packed(packed)) = self.chunks.front_mut() else { return };
        let before = tasks.len();
        packed.pop_run(limits, tasks);
        let taken = tasks.get(before..).unwrap_or_default();
        self.packed_bytes -= taken.iter().map(|task| task.payload.bytes.len()).sum::<usize>();
        if packed.is_empty() {
            self.drop_chunk(End::Front);
        }
        self.count_removed(taken.len());
    }

    /// So many tasks have left.
    fn count_removed(&mut self, count: usize) {
        self.len -= count;
        if self.len == 0 {
            *self = Self::default();
        }
    }

    /// Drops the oldest task; says how long its payload was.
    pub(super) fn discard(&mut self) -> Option<(TaskId, usize)> {
        let Some(Chunk::Packed(packed)) = self.chunks.front_mut() else {
            return self.pop(End::Front).map(|task| (task.id, task.payload.bytes.len()));
        };
        let (id, len) = (packed.first, packed.entry(packed.taken)?.payload.len());
        packed.leave_front();
        if packed.is_empty() {
            self.drop_chunk(End::Front);
        }
        self.packed_bytes -= len;
        self.count_removed(1);
        Some((id, len))
    }

    /// The tasks in the order in which [`Self::pop`] would take them, from behind `after` on, with
    /// copies of their payloads if those are asked for.
    pub(super) fn tasks(
        &self,
        end: End,
        after: Option<TaskId>,
        with_items: bool,
    ) -> Box<dyn Iterator<Item = (TaskId, Option<Payload>)> + '_> {
        let is_before = move |id: TaskId| match end {
            End::Front => after.is_some_and(|after| id <= after),
            End::Back => after.is_some_and(|after| after <= id),
        };
        let tasks: Box<dyn Iterator<Item = _>> = match end {
            End::Front => {
                let first = self.chunks.partition_point(|chunk| is_before(chunk.last()));
                Box::new(self.chunks.range(first..).flat_map(move |chunk| chunk.tasks(end)))
            }
            End::Back => {
                let last = self.chunks.partition_point(|chunk| !is_before(chunk.first()));
                Box::new(self.chunks.range(..last).rev().flat_map(move |chunk| chunk.tasks(end)))
            }
        };
        let payload = move |view: View<'_>| with_items.then(|| view.copied());
        Box::new(
            tasks
                .skip_while(move |(id, _)| is_before(*id))
                .map(move |(id, view)| (id, payload(view))),
        )
    }

    fn drop_chunk(&mut self, end: End) -> Option<Chunk> {
        match end {
            End::Front => self.chunks.pop_front(),
            End::Back => self.chunks.pop_back(),
        }
    }

    /// Gives back what the last chunk will not use any more.
    fn seal(&mut self) {
        if let Some(Chunk::Packed(packed)) = self.chunks.back_mut() {
            packed.bytes.shrink_to_fit();
            packed.ends.shrink_to_fit();
        }
    }
}

impl Chunk {
    fn first(&self) -> TaskId {
        match self {
            Self::Packed(packed) => packed.first,
            Self::Single(task) => task.id,
        }
    }

    fn last(&self) -> TaskId {
        match self {
            Self::Packed(packed) => packed.last,
            Self::Single(task) => task.id,
        }
    }

    fn tasks(&self, end: End) -> Box<dyn Iterator<Item = (TaskId, View<'_>)> + '_> {
        match self {
            Self::Packed(packed) => {
                Box::new(packed.entries(end).map(|(id, entry)| (id, View::Packed(entry))))
            }
            Self::Single(task) => Box::new(std::iter::once((task.id, View::Single(&task.payload)))),
        }
    }
}

/// A payload where it lies.
enum View<'a> {
    Packed(Entry<'a>),
    Single(&'a Payload),
}

impl View<'_> {
    fn copied(&self) -> Payload {
        match self {
            Self::Packed(entry) => entry.copied(),
            Self::Single(payload) => (*payload).clone(),
        }
    }
}

impl Entry<'_> {
    fn copied(&self) -> Payload {
        copied((self.codec, self.prelude_len, self.payload))
    }
}

/// A payload of its own, of what [`split_payload`] read.
pub(super) fn copied((codec, prelude_len, payload): (Codec, u32, &[u8])) -> Payload {
    Payload { codec, prelude_len, bytes: Bytes::copy_from_slice(payload) }
}

impl Packed {
    /// The tasks from one end to the other.
    fn entries(&self, end: End) -> Box<dyn Iterator<Item = (TaskId, Entry<'_>)> + '_> {
        let left = self.taken..self.ends.len();
        match end {
            End::Front => {
                let mut id = self.first;
                Box::new(left.map_while(move |index| {
                    let entry = self.entry(index)?;
                    // The step of the first one leads to it from a task that has left.
                    id = if index == self.taken { id } else { TaskId(id.0 + entry.step) };
                    Some((id, entry))
                }))
            }
            End::Back => {
                let mut next = self.last;
                Box::new(left.rev().map_while(move |index| {
                    let entry = self.entry(index)?;
                    let id = next;
                    next = TaskId(id.0.saturating_sub(entry.step));
                    Some((id, entry))
                }))
            }
        }
    }

    fn new(capacity: usize, id: TaskId, payload: &Payload) -> Self {
        let mut packed = Self {
            bytes: Vec::with_capacity(capacity),
            ends: Vec::with_capacity(capacity / (payload.bytes.len() + HEADER_BYTES_MAX)),
            taken: 0,
            first: id,
            last: id,
        };
        packed.push(id, payload);
        packed
    }

    fn is_empty(&self) -> bool {
        self.ends.len() == self.taken
    }

    fn has_room(&self, need: usize) -> bool {
        self.bytes.capacity() - self.bytes.len() >= need
    }

    fn push(&mut self, id: TaskId, payload: &Payload) {
        push_varint(id.0 - self.last.0, &mut self.bytes);
        push_payload(payload, &mut self.bytes);
        let end = u32::try_from(self.bytes.len()).expect("a chunk is far below 4 GiB");
        self.ends.push(end);
        self.last = id;
    }

    fn peek(&self, end: End) -> Option<Peek> {
        let (id, index) = match end {
            End::Front => (self.first, self.taken),
            End::Back => (self.last, self.ends.len().checked_sub(1)?),
        };
        Some(Peek { id, protocol: self.entry(index)?.codec.protocol() })
    }

    fn pop_for(&mut self, reader: u8, end: End) -> Option<Result<Task, u8>> {
        let (id, index) = match end {
            End::Front => (self.first, self.taken),
            End::Back => (self.last, self.ends.len().checked_sub(1)?),
        };
        let entry = self.entry(index)?;
        let (step, protocol) = (entry.step, entry.codec.protocol());
        if protocol > reader {
            return Some(Err(protocol));
        }
        let payload = entry.copied();
        match end {
            End::Front => self.leave_front(),
            End::Back => {
                self.bytes.truncate(self.start(index));
                self.ends.pop();
                self.last = TaskId(id.0 - step);
            }
        }
        Some(Ok(Task { id, payload }))
    }

    fn pop_run(&mut self, limits: Limits, tasks: &mut Vec<Task>) {
        let Limits { reader, before, len, bytes } = limits;
        let (from, start) = (self.taken, self.start(self.taken));
        let ends = self.ends.get(from..).unwrap_or_default();
        // As if the headers were of the payloads: whoever wants more asks again.
        let fitting = ends.iter().take(len).take_while(|end| **end as usize - start < bytes);
        let until = self.ends.len().min(from + len).min(from + fitting.count() + 1);
        let memory = self.bytes.get(start..self.start(until)).unwrap_or_default();
        let memory = Bytes::copy_from_slice(memory);
        for index in from..until {
            let Some(Entry { codec, prelude_len, payload, .. }) = self.entry(index) else { return };
            if codec.protocol() > reader || self.first >= before {
                return;
            }
            let end = self.start(index + 1) - start;
            let bytes = memory.slice(end - payload.len()..end);
            let is_evicted = bytes.is_empty();
            tasks.push(Task { id: self.first, payload: Payload { codec, prelude_len, bytes } });
            self.leave_front();
            if is_evicted {
                return;
            }
        }
    }

    fn leave_front(&mut self) {
        let next = self.bytes.get(self.start(self.taken + 1)..).and_then(split_varint);
        self.taken += 1;
        self.first = TaskId(self.first.0 + next.map_or(0, |(step, _)| step));
    }

    fn start(&self, index: usize) -> usize {
        let before = index.checked_sub(1).and_then(|index| self.ends.get(index));
        before.map_or(0, |&end| end as usize)
    }

    fn entry(&self, index: usize) -> Option<Entry<'_>> {
        let end = *self.ends.get(index)? as usize;
        let (step, rest) = split_varint(self.bytes.get(self.start(index)..end)?)?;
        let (codec, prelude_len, payload) = split_payload(rest)?;
        Some(Entry { step, codec, prelude_len, payload })
    }
}

/// Appends `[codec][prelude length: varint][payload]`.
#[inline]
pub(super) fn push_payload(payload: &Payload, to: &mut Vec<u8>) {
    to.push(payload.codec.tag());
    push_varint(u64::from(payload.prelude_len), to);
    to.extend_from_slice(&payload.bytes);
}

/// Reads what [`push_payload`] wrote: codec, prelude length, payload.
pub(super) fn split_payload(bytes: &[u8]) -> Option<(Codec, u32, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (prelude_len, payload) = split_varint(rest)?;
    Some((Codec::of_tag(tag)?, u32::try_from(prelude_len).ok()?, payload))
}

/// Appends a number, seven bits to a byte, lowest first; the high bit says that more follow.
#[inline]
fn push_varint(mut number: u64, to: &mut Vec<u8>) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return to.push(low);
        }
        to.push(low | 0x80);
    }
}

#[inline]
fn split_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match bytes.split_first()? {
        // Most are that small.
        (&byte, rest) if byte < 0x80 => Some((byte.into(), rest)),
        _ => split_long_varint(bytes),
    }
}

fn split_long_varint(mut bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((number, bytes));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task(id: u64, len: usize) -> Task {
        let tag = u8::try_from(id % 8).unwrap();
        let codec = Codec::of_tag(tag).unwrap_or(if tag == 6 { Codec::Json } else { Codec::Bytes });
        let bytes = Bytes::from(vec![tag; len]);
        let prelude_len = u32::try_from(len / 2).unwrap();
        Task { id: TaskId(id), payload: Payload { codec, prelude_len, bytes } }
    }

    #[test]
    fn a_drained_arena_holds_no_memory() {
        let mut arena = Arena::default();
        for id in 0..10_000 {
            arena.push(task(id, 100));
        }
        assert!(arena.chunks.len() > 1);
        while arena.pop(End::Front).is_some() {}
        assert_eq!((arena.len, arena.chunks.capacity(), arena.packed_bytes), (0, 0, 0));
    }

    #[test]
    fn a_hundred_bytes_cost_less_than_eight_more_and_a_chunk_in_all() {
        let mut arena = Arena::default();
        for id in 0..100_000 {
            arena.push(task(id, 100));
        }
        let bytes: usize = arena.chunks.iter().map(|chunk| chunk.heap_bytes()).sum();
        let bound = 108 * 100_000 + CHUNK_BYTES_MAX;
        assert!(bytes < bound, "{bytes} bytes for 100000 payloads of 100 bytes");
    }

    #[test]
    fn small_payloads_between_big_ones_do_not_hold_empty_chunks() {
        let mut arena = Arena::default();
        for id in 0..10_000 {
            arena.push(task(id, if id % 2 == 0 { 10 } else { PACKED_BYTES_MAX + 1 }));
        }
        let bytes: usize = arena.chunks.iter().map(|chunk| chunk.heap_bytes()).sum();
        assert!(bytes < 5_000 * (PACKED_BYTES_MAX + 200), "{bytes} bytes");
    }

    impl Chunk {
        fn heap_bytes(&self) -> usize {
            let outside = match self {
                Self::Packed(packed) => packed.bytes.capacity() + 4 * packed.ends.capacity(),
                Self::Single(task) => task.payload.bytes.len(),
            };
            outside + size_of::<Self>()
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { gap: u64, len: usize },
        Pop(End),
        PopRun { len: usize, bytes: usize, ahead: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let len = prop_oneof![4 => 0usize..300, 1 => 4_000usize..6_000];
        let gap = prop_oneof![4 => Just(1u64), 1 => 1u64..1_000_000];
        let step = prop_oneof![
            4 => (gap, len).prop_map(|(gap, len)| Step::Push { gap, len }),
            1 => Just(Step::Pop(End::Front)),
            1 => Just(Step::Pop(End::Back)),
            1 => (1usize..20, 1usize..2_000, 0u64..30)
                .prop_map(|(len, bytes, ahead)| Step::PopRun { len, bytes, ahead }),
        ];
        prop::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_at_either_end(steps in steps()) {
            let mut arena = Arena::default();
            let mut model = VecDeque::new();
            let mut id = 0;
            for step in steps {
                match step {
                    Step::Push { gap, len } => {
                        id += gap;
                        arena.push(task(id, len));
                        model.push_back(task(id, len));
                    }
                    Step::Pop(End::Front) => {
                        prop_assert_eq!(arena.pop(End::Front), model.pop_front());
                    }
                    Step::Pop(End::Back) => {
                        prop_assert_eq!(arena.pop(End::Back), model.pop_back());
                    }
                    Step::PopRun { len, bytes, ahead } => {
                        let before = TaskId(model.front().map_or(0, |task| task.id.0) + ahead);
                        let mut tasks = Vec::new();
                        arena.pop_run(Limits { reader: 3, before, len, bytes }, &mut tasks);
                        prop_assert!(tasks.len() <= len);
                        let len = |task: &Task| task.payload.bytes.len();
                        let without_last = tasks.len().saturating_sub(1);
                        prop_assert!(tasks.iter().take(without_last).map(len).sum::<usize>() < bytes);
                        for task in tasks {
                            prop_assert!(task.id < before && task.payload.protocol() <= 3);
                            prop_assert_eq!(Some(task), model.pop_front());
                        }
                    }
                }
                prop_assert_eq!(arena.len(), model.len());
                let ends = [(End::Front, model.front()), (End::Back, model.back())];
                for (end, task) in ends {
                    let expected =
                        task.map(|task| Peek { id: task.id, protocol: task.payload.protocol() });
                    prop_assert_eq!(arena.peek(end), expected);
                }
            }
        }

        #[test]
        fn a_number_is_read_as_it_was_written(number in any::<u64>(), small in 0u64..1000) {
            for number in [number, small] {
                let mut bytes = Vec::new();
                push_varint(number, &mut bytes);
                bytes.push(7);
                prop_assert_eq!(split_varint(&bytes), Some((number, [7].as_slice())));
            }
        }
    }
}
