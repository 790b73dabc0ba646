//! Tasks of a checkpoint that follow one another, in a few bytes each.
//!
//! A backlog is mostly tasks of which nothing is known but where their bodies lie, and those lie as
//! they were put: one behind the other in one segment. A row says of each how long its body is, and
//! what lies between it and the one before. Whoever reads it is told of [`Record::Live`] as ever.

use manyhands::wire::pickle::Codec;

use super::fields::{Decoder, Encoder, RecordError};
use super::frame::CRC_LEN;
use super::record;
use super::{Location, Record, TaskOptions};

/// What the tasks of a row have in common, and where it has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    queue: u64,
    /// The next task.
    task: u64,
    codec: Codec,
    prelude_len: u32,
    segment: u32,
    /// Where the body before ends.
    end: u32,
}

/// Writes records, those of a row as one.
#[derive(Debug, Default)]
pub(super) struct Rows {
    begin: Row,
    row: Row,
    len: u64,
    /// What is said of each task of the row.
    tasks: Vec<u8>,
}

impl Rows {
    /// Bytes of the row that grows, without its head.
    pub(super) fn bytes(&self) -> usize {
        self.tasks.len()
    }

    /// Appends `record` to `to`, or to the row that grows.
    pub(super) fn push(&mut self, record: &Record<'_>, to: &mut Vec<u8>) {
        let Some((begin, location)) = Row::of(record) else {
            self.end(to);
            record.encode(0, to);
            return;
        };
        let follows = self.row == (Row { end: self.row.end, ..begin });
        if self.len == 0 || !follows || location.offset < self.row.end {
            self.end(to);
            (self.begin, self.row) = (begin, begin);
        }
        let gap = location.offset - self.row.end;
        Encoder(&mut self.tasks).number(gap.into()).number(location.len.into());
        self.len += 1;
        self.row.pass(location);
    }

    /// Appends the row that grew, if there is one.
    pub(super) fn end(&mut self, to: &mut Vec<u8>) {
        let Row { queue, task, codec, prelude_len, segment, .. } = self.begin;
        if self.len > 0 {
            Encoder(to)
                .kind(record::kind::ROW)
                .number(queue)
                .number(task)
                .codec(codec)
                .number(prelude_len.into())
                .number(segment.into())
                .number(self.len);
            to.append(&mut self.tasks);
            self.len = 0;
        }
    }
}

impl Default for Row {
    fn default() -> Self {
        let (queue, task, codec) = (0, 0, Codec::Pickle(0));
        Self { queue, task, codec, prelude_len: 0, segment: 0, end: 0 }
    }
}

impl Row {
    /// A row that may begin with `record`, which is in none if more is known of its task.
    fn of(record: &Record<'_>) -> Option<(Self, Location)> {
        match *record {
            Record::Live { queue, task, options, codec, prelude_len, location }
                if options == TaskOptions::default() =>
            {
                let segment = location.segment;
                Some((Self { queue, task, codec, prelude_len, segment, end: 0 }, location))
            }
            _ => None,
        }
    }

    /// Goes on behind a task. What no journal has, reader and writer still count alike.
    fn pass(&mut self, Location { offset, len, .. }: Location) {
        self.task = self.task.wrapping_add(1);
        self.end = offset.saturating_add(CRC_LEN).saturating_add(len);
    }

    fn next<'a>(&mut self, fields: &mut Decoder<'a>) -> Result<Record<'a>, RecordError> {
        let gap: u32 = fields.small()?;
        let offset = self.end.checked_add(gap).ok_or(RecordError::Malformed)?;
        let location = Location { segment: self.segment, offset, len: fields.small()? };
        let Self { queue, task, codec, prelude_len, .. } = *self;
        self.pass(location);
        let options = TaskOptions::default();
        Ok(Record::Live { queue, task, options, codec, prelude_len, location })
    }
}

/// The records of a chunk, each of a row by itself.
pub(super) struct Records<'a> {
    fields: Decoder<'a>,
    row: Row,
    /// Tasks of the row that follow.
    left: u64,
}

impl<'a> Records<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { fields: Decoder(bytes), row: Row::default(), left: 0 }
    }

    fn begin_row(&mut self) -> Result<(), RecordError> {
        let fields = &mut self.fields;
        fields.byte()?;
        self.row = Row {
            queue: fields.number()?,
            task: fields.number()?,
            codec: fields.codec()?,
            prelude_len: fields.small()?,
            segment: fields.small()?,
            end: 0,
        };
        self.left = fields.number()?;
        Ok(())
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.left == 0 {
            match self.fields.0.first()? {
                &record::kind::ROW => {
                    if let Err(error) = self.begin_row() {
                        return Some(Err(error));
                    }
                }
                _ => return Some(Record::decode(&mut self.fields.0).map(|(record, _)| record)),
            }
        }
        self.left -= 1;
        Some(self.row.next(&mut self.fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(records: &[Record<'_>]) -> Vec<u8> {
        let (mut rows, mut bytes) = (Rows::default(), Vec::new());
        for record in records {
            rows.push(record, &mut bytes);
        }
        rows.end(&mut bytes);
        bytes
    }

    fn live(task: u64, location: Location) -> Record<'static> {
        let options = TaskOptions::default();
        Record::Live { queue: 1, task, options, codec: Codec::Pickle(4), prelude_len: 4, location }
    }

    /// Tasks as a producer puts them one by one.
    fn backlog(tasks: u32) -> Vec<Record<'static>> {
        let location = |n| Location { segment: 1, offset: 128 + n * 170, len: 100 };
        (0..tasks).map(|n| live(n.into(), location(n))).collect()
    }

    #[test]
    fn a_task_of_a_backlog_takes_two_bytes() {
        let bytes = written(&backlog(1000));
        assert!(bytes.len() < 2 * 1000 + 20, "{} bytes", bytes.len());
        assert!(Records::new(&bytes).map(Result::unwrap).eq(backlog(1000)));
    }

    #[test]
    fn a_row_that_is_cut_anywhere_or_goes_too_far_is_malformed() {
        let bytes = written(&backlog(50));
        for cut in 1..bytes.len() {
            let last = Records::new(&bytes[..cut]).find_map(Result::err);
            assert_eq!(last, Some(RecordError::Malformed), "cut at {cut}");
        }
        let far = Location { segment: 1, offset: u32::MAX, len: 1 };
        let mut bytes = written(&[live(0, far)]);
        // One task more, which would lie one byte behind what can be said.
        bytes[6] = 2;
        bytes.extend([1, 1]);
        let read: Vec<_> = Records::new(&bytes).take(2).collect();
        assert_eq!(read, [Ok(live(0, far)), Err(RecordError::Malformed)]);
    }

    fn number<T: Clone + std::fmt::Debug>(near: [T; 2], far: T) -> impl Strategy<Value = T> {
        let [one, other] = near;
        prop_oneof![8 => Just(one), 1 => Just(other), 1 => Just(far)]
    }

    /// Records that mostly follow one another, and now and then do not.
    fn records() -> impl Strategy<Value = Vec<Record<'static>>> {
        let task = number([1u64, 3], u64::MAX - 2);
        let offset = number([20u32, 0], u32::MAX - 2);
        let len = number([100u32, 5], u32::MAX);
        let other = (
            number([1u64, 2], u64::MAX),
            number([Codec::Pickle(4), Codec::Json], Codec::Bytes),
            number([4u32, 0], u32::MAX),
        );
        let segment = number([1u32, 2], u32::MAX);
        let step = (task, offset, len, other, segment, number([0u32, 1], 2));
        prop::collection::vec(step, 0..60).prop_map(|steps| {
            let (mut at, mut end) = (0u64, 0u32);
            let mut record = |(task, gap, len, other, segment, attempt)| {
                (at, end) = (at.wrapping_add(task), end.wrapping_add(gap));
                let location = Location { segment, offset: end, len };
                end = end.wrapping_add(4).wrapping_add(len);
                let (queue, codec, prelude_len) = other;
                let options = TaskOptions { attempt, ..TaskOptions::default() };
                match attempt {
                    2 => Record::Seen { queue, key: b"key", until: at },
                    _ => Record::Live { queue, task: at, options, codec, prelude_len, location },
                }
            };
            steps.into_iter().map(&mut record).collect()
        })
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written_in_rows_or_not(records in records()) {
            let bytes = written(&records);
            let read: Result<Vec<_>, _> = Records::new(&bytes).collect();
            prop_assert_eq!(read, Ok(records));
        }
    }
}
