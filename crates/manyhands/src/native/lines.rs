//! Calls that wait to be sent, because there is no connection or too many are in flight.
//!
//! Those that may wait on the server stand in lines, one for each queue and what they wait for, and
//! none of them can fill what may be in flight: a thousand puts that wait for room must not keep out
//! the `get` that makes it, nor calls of other queues.

use std::collections::{BTreeMap, VecDeque};

use super::calls::Id;

/// Calls in flight that every line may have, whatever others have.
const LINE_MIN: u32 = 4;

/// A line: the handle of a queue, and what its calls wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Line {
    pub(super) queue: u16,
    pub(super) waits: Waits,
}

/// What calls wait for on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waits {
    /// Room in the queue; or that the calls before it are made.
    Room,
    /// Items.
    Items,
    /// Room for results.
    Results,
    /// The end of the credit before it.
    Credit,
    /// Nothing.
    Nothing,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Ids, with the positions of their calls among all; some of them wait no longer.
    waiting: BTreeMap<Line, VecDeque<(u64, Id)>>,
    in_flight: BTreeMap<Line, u32>,
    total: u32,
}

impl Lines {
    /// A call stands in line.
    pub(super) fn push(&mut self, line: Line, number: u64, id: Id) {
        self.waiting.entry(line).or_default().push_back((number, id));
    }

    /// A call stands in line once more, in front.
    pub(super) fn push_first(&mut self, line: Line, number: u64, id: Id) {
        self.waiting.entry(line).or_default().push_front((number, id));
    }

    /// The first call that may be sent if so many may be in flight. It stays the next one until it
    /// waits no longer. One that is `last` passes no older call of its queue; one that is `early` waits.
    pub(super) fn next(
        &mut self,
        pending_max: u32,
        waits: impl Fn(u64, Id) -> bool,
        is_last: impl Fn(Id) -> bool,
        is_early: impl Fn(Id) -> bool,
    ) -> Option<Id> {
        self.waiting.retain(|_, calls| {
            while calls.front().is_some_and(|(number, id)| !waits(*number, *id)) {
                calls.pop_front();
            }
            !calls.is_empty()
        });
        let first = |(line, calls): (&Line, &VecDeque<(u64, Id)>)| {
            let (number, id) = *calls.front()?;
            let in_flight = self.in_flight.get(line).copied().unwrap_or_default();
            let may_go = is_open(line.waits, in_flight, self.total, pending_max)
                && (!is_last(id) || self.is_oldest(line.queue, number))
                && !is_early(id);
            may_go.then_some((number, id))
        };
        self.waiting.iter().filter_map(first).min().map(|(_, id)| id)
    }

    /// Whether no older call of this queue waits.
    fn is_oldest(&self, queue: u16, number: u64) -> bool {
        let first = Line { queue, waits: Waits::Room };
        let mut lines = self.waiting.range(first..).take_while(|(line, _)| line.queue == queue);
        lines.all(|(_, calls)| calls.front().is_none_or(|(other, _)| *other >= number))
    }

    /// Notes that a request was sent.
    pub(super) fn sent(&mut self, line: Line) {
        *self.in_flight.entry(line).or_default() += 1;
        self.total += 1;
    }

    /// Notes that a request has its reply.
    pub(super) fn landed(&mut self, line: Line) {
        if let Some(in_flight) = self.in_flight.get_mut(&line).filter(|count| **count > 0) {
            *in_flight -= 1;
            self.total -= 1;
        }
    }

    /// Whether no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.total == 0
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Whether a line with so many calls in flight may send another one. A line may have a quarter of all,
/// and the last quarter of all is for lines that have few.
fn is_open(waits: Waits, in_flight: u32, total: u32, pending_max: u32) -> bool {
    let is_modest = matches!(waits, Waits::Nothing | Waits::Credit)
        || in_flight < LINE_MIN.min(pending_max / 4).max(1);
    let has_share = in_flight < pending_max / 4 && total < pending_max - pending_max / 4;
    total < pending_max && (is_modest || has_share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Line = Line { queue: 1, waits: Waits::Room };
    const ITEMS: Line = Line { queue: 1, waits: Waits::Items };

    /// How many calls of a line are sent.
    fn send(lines: &mut Lines, line: Line, wanted: u64) -> u64 {
        (0..wanted).for_each(|number| lines.push(line, number, 7));
        let mut sent = 0;
        while lines.next(64, |number, _| number >= sent, |_| false, |_| false).is_some() {
            lines.sent(line);
            sent += 1;
        }
        lines.waiting.clear();
        sent
    }

    #[test]
    fn no_line_keeps_others_out() {
        let mut lines = Lines::default();
        assert_eq!(send(&mut lines, ROOM, 100), 16, "a quarter");
        assert_eq!(send(&mut lines, ITEMS, 100), 16);
        assert_eq!(send(&mut lines, Line { queue: 2, ..ROOM }, 100), 16);
        assert_eq!(send(&mut lines, Line { queue: 3, ..ROOM }, 100), 4, "of the last quarter");
        assert_eq!(send(&mut lines, Line { queue: 0, waits: Waits::Nothing }, 100), 12);
        assert_eq!(send(&mut lines, Line { queue: 4, ..ROOM }, 100), 0);
        lines.landed(ROOM);
        assert_eq!(send(&mut lines, ROOM, 100), 0, "it has more than its part");
        assert_eq!(send(&mut lines, Line { queue: 4, ..ROOM }, 100), 1);
    }

    #[test]
    fn the_first_that_was_made_goes_first() {
        let mut lines = Lines::default();
        lines.push(ITEMS, 2, 12);
        lines.push(ROOM, 3, 13);
        lines.push(ITEMS, 4, 14);
        lines.push_first(ROOM, 1, 11);
        for expected in 1..=4 {
            let next = lines.next(64, |number, _| number >= expected, |_| false, |_| false);
            assert_eq!(next.map(u64::from), Some(expected + 10));
        }
        assert_eq!(lines.next(64, |_, _| false, |_| false, |_| false), None);
        assert!(lines.waiting.is_empty());
    }

    #[test]
    fn the_last_call_of_a_queue_passes_none() {
        let mut lines = Lines::default();
        (0..16).for_each(|_| lines.sent(ITEMS));
        lines.push(ITEMS, 1, 11);
        lines.push(ROOM, 2, 12);
        lines.push(Line { queue: 2, ..ROOM }, 3, 13);
        let mut next =
            |is_last: bool| lines.next(64, |_, _| true, |id| is_last && id == 12, |_| false);
        assert_eq!(next(true), Some(13), "the get before it waits until others have come");
        assert_eq!(next(false), Some(12));
        lines.landed(ITEMS);
        assert_eq!(lines.next(64, |_, _| true, |id| id == 12, |_| false), Some(11));
    }
}
