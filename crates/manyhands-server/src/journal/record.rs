//! One change of the queues, and its bytes.
//!
//! Numbers are varints, texts and lists have their length in front, and a body comes last, behind its
//! own checksum, so that it can be read and verified where it lies. Invariant: what this version does
//! not know is refused, never skipped.

use std::borrow::Cow;

use manyhands::wire::pickle::Codec;

use super::Location;
use super::fields::{Body, Decoder, Encoder, RecordError, TaskOptions};

/// Most that the fields of a record take beside its texts, lists and body, in bytes.
const FIELDS_BYTES_MAX: usize = 96;

/// A change of the queues. Instants are milliseconds of Unix time; ids of tasks are per queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// The server started; every frame after this one is of this epoch.
    Epoch {
        /// Grows by one with every start, so that nothing made from it ever repeats.
        epoch: u64,
    },
    /// The server stopped cleanly: nothing was under way.
    Closed,
    /// A queue was made, or its settings changed.
    Queue {
        /// Its number for good.
        queue: u64,
        /// Its name.
        name: &'a str,
        /// What it was made with, as `key=value,…`.
        settings: &'a str,
        /// Id of the next task that is put.
        next_task: u64,
        /// Tasks put and not yet done.
        unfinished: u64,
    },
    /// A queue and all that is in it is gone.
    Removed {
        /// The queue.
        queue: u64,
    },
    /// A task was accepted.
    Put {
        /// The queue.
        queue: u64,
        /// The new task.
        task: u64,
        /// What its put asked for.
        options: TaskOptions<'a>,
        /// What it carries.
        body: Body<'a>,
    },
    /// A task is settled.
    Ack {
        /// The queue.
        queue: u64,
        /// The task, which leaves.
        task: u64,
        /// The attempt that did it.
        attempt: u32,
        /// What came out. No version writes it so any more: a result is a put in the same frame,
        /// which is there whole or not at all. Directories that have it still open.
        result: Option<ResultTask<'a>>,
    },
    /// A task goes back to its place.
    Returned {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
        /// The next attempt at it.
        attempt: u32,
        /// Not handed out before.
        not_before: Option<u64>,
        /// Why.
        cause: &'a str,
    },
    /// A task was given up; it stays to be seen in another queue, with the body where it was.
    Dead {
        /// The queue that it leaves.
        queue: u64,
        /// The task.
        task: u64,
        /// The queue that it enters.
        to_queue: u64,
        /// Its id there.
        to_task: u64,
        /// Why.
        cause: &'a str,
    },
    /// A task goes on as a new one of another queue, with the body where it was.
    Redriven {
        /// The queue that it leaves; another record says whether that counts it as done.
        queue: u64,
        /// The task.
        task: u64,
        /// The queue that it enters.
        to_queue: u64,
        /// Its id there.
        to_task: u64,
    },
    /// Tasks were thrown away by request.
    Purged {
        /// The queue.
        queue: u64,
        /// Those with ids below this one,
        before: u64,
        /// except these, which were in somebody's hand.
        kept: Cow<'a, [u64]>,
    },
    /// The body of a live task was copied forward, so that its old segment can go.
    Moved {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
        /// The same body.
        body: Body<'a>,
    },
    /// A key that no other put may have before an instant.
    Seen {
        /// The queue.
        queue: u64,
        /// The key.
        key: &'a [u8],
        /// When it is forgotten.
        until: u64,
    },
    /// A task was handed out to who settles it by its token.
    Leased {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
        /// The attempt at it.
        attempt: u32,
        /// Number of the lease, which no other lease of the queue has.
        lease: u64,
        /// How long it runs, in milliseconds; counted anew after a restart.
        hold: u64,
    },
    /// Tasks were counted as done.
    Done {
        /// The queue.
        queue: u64,
        /// How many.
        tasks: u64,
    },
    /// The turn of a result has come.
    Turned {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
        /// Its id from now on.
        turned: u64,
    },
    /// A task was not taken in its time. It is gone, and counts as done.
    Expired {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
    },
    /// A task that came from another queue is dropped if nobody took it by then.
    Lasts {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
        /// The instant.
        until: u64,
    },
    /// A task was settled by its token, which is remembered for who asks again; in checkpoints, some
    /// time ago. Another record says what became of the task.
    Settled {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
        /// The attempt that did it.
        attempt: u32,
        /// Number of the lease.
        lease: u64,
    },
    /// In checkpoints: a live task, whose body lies in a segment. The description of the format
    /// and `manyhands journal` call it "held".
    Live {
        /// The queue.
        queue: u64,
        /// The task.
        task: u64,
        /// Its options by now.
        options: TaskOptions<'a>,
        /// What the payload is.
        codec: Codec,
        /// Length of the payload's prelude, in bytes.
        prelude_len: u32,
        /// Where the body lies.
        location: Location,
    },
}

/// A result as a task of the queue that collects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultTask<'a> {
    /// The queue that collects.
    pub queue: u64,
    /// Its id there.
    pub task: u64,
    /// What is kept with it.
    pub options: TaskOptions<'a>,
    /// The result.
    pub body: Body<'a>,
}

pub(super) mod kind {
    pub(super) const EPOCH: u8 = 1;
    pub(super) const CLOSED: u8 = 2;
    pub(super) const QUEUE: u8 = 3;
    pub(super) const REMOVED: u8 = 4;
    pub(super) const PUT: u8 = 5;
    pub(super) const ACK: u8 = 6;
    pub(super) const ACK_WITH_RESULT: u8 = 7;
    pub(super) const RETURNED: u8 = 8;
    pub(super) const DEAD: u8 = 9;
    pub(super) const PURGED: u8 = 10;
    pub(super) const MOVED: u8 = 11;
    pub(super) const SEEN: u8 = 12;
    pub(super) const LIVE: u8 = 13;
    pub(super) const LEASED: u8 = 14;
    pub(super) const DONE: u8 = 15;
    pub(super) const TURNED: u8 = 16;
    pub(super) const EXPIRED: u8 = 17;
    pub(super) const SETTLED: u8 = 18;
    pub(super) const REDRIVEN: u8 = 20;
    pub(super) const LASTS: u8 = 21;
    /// Many [`Record::Live`] in one, which only `row.rs` writes and reads.
    pub(in crate::journal) const ROW: u8 = 19;
}

impl<'a> Record<'a> {
    /// Most that the record takes in the journal, in bytes.
    pub fn bytes_max(&self) -> usize {
        FIELDS_BYTES_MAX
            + match self {
                Self::Queue { name, settings, .. } => name.len() + settings.len(),
                Self::Put { options, body, .. } => options.len() + body.bytes.len(),
                Self::Moved { body, .. } => body.bytes.len(),
                Self::Ack { result: Some(result), .. } => {
                    FIELDS_BYTES_MAX + result.options.len() + result.body.bytes.len()
                }
                Self::Returned { cause, .. } | Self::Dead { cause, .. } => cause.len(),
                Self::Purged { kept, .. } => 10 * kept.len(),
                Self::Seen { key, .. } => key.len(),
                Self::Live { options, .. } => options.len(),
                _ => 0,
            }
    }

    /// Appends the record. `seed` is that of the segment that it goes to. Returns where its body's
    /// checksum is in `to`, and the length of the body.
    pub(super) fn encode(&self, seed: u32, to: &mut Vec<u8>) -> Option<(usize, usize)> {
        let mut out = Encoder(to);
        match self {
            Self::Epoch { epoch } => out.kind(kind::EPOCH).number(*epoch),
            Self::Closed => out.kind(kind::CLOSED),
            Self::Queue { queue, name, settings, next_task, unfinished } => out
                .kind(kind::QUEUE)
                .number(*queue)
                .bytes(name.as_bytes())
                .bytes(settings.as_bytes())
                .number(*next_task)
                .number(*unfinished),
            Self::Removed { queue } => out.kind(kind::REMOVED).number(*queue),
            Self::Put { queue, task, options, body } => {
                out.kind(kind::PUT).number(*queue).number(*task).options(options);
                return Some(out.body(body, seed));
            }
            Self::Ack { queue, task, attempt, result: None } => {
                out.kind(kind::ACK).number(*queue).number(*task).number((*attempt).into())
            }
            Self::Ack { queue, task, attempt, result: Some(result) } => {
                out.kind(kind::ACK_WITH_RESULT).number(*queue).number(*task);
                out.number((*attempt).into()).number(result.queue).number(result.task);
                out.options(&result.options);
                return Some(out.body(&result.body, seed));
            }
            Self::Returned { queue, task, attempt, not_before, cause } => out
                .kind(kind::RETURNED)
                .number(*queue)
                .number(*task)
                .number((*attempt).into())
                .number(not_before.map_or(0, |instant| instant.saturating_add(1)))
                .bytes(cause.as_bytes()),
            Self::Dead { queue, task, to_queue, to_task, cause } => out
                .kind(kind::DEAD)
                .number(*queue)
                .number(*task)
                .number(*to_queue)
                .number(*to_task)
                .bytes(cause.as_bytes()),
            Self::Redriven { queue, task, to_queue, to_task } => out
                .kind(kind::REDRIVEN)
                .number(*queue)
                .number(*task)
                .number(*to_queue)
                .number(*to_task),
            Self::Purged { queue, before, kept } => {
                out.kind(kind::PURGED).number(*queue).number(*before).number(kept.len() as u64);
                kept.iter().fold(&mut out, |out, task| out.number(*task))
            }
            Self::Moved { queue, task, body } => {
                out.kind(kind::MOVED).number(*queue).number(*task);
                return Some(out.body(body, seed));
            }
            Self::Seen { queue, key, until } => {
                out.kind(kind::SEEN).number(*queue).bytes(key).number(*until)
            }
            Self::Leased { queue, task, attempt, lease, hold } => out
                .kind(kind::LEASED)
                .number(*queue)
                .number(*task)
                .number((*attempt).into())
                .number(*lease)
                .number(*hold),
            Self::Done { queue, tasks } => out.kind(kind::DONE).number(*queue).number(*tasks),
            Self::Turned { queue, task, turned } => {
                out.kind(kind::TURNED).number(*queue).number(*task).number(*turned)
            }
            Self::Expired { queue, task } => out.kind(kind::EXPIRED).number(*queue).number(*task),
            Self::Lasts { queue, task, until } => {
                out.kind(kind::LASTS).number(*queue).number(*task).number(*until)
            }
            Self::Settled { queue, task, attempt, lease } => out
                .kind(kind::SETTLED)
                .number(*queue)
                .number(*task)
                .number((*attempt).into())
                .number(*lease),
            Self::Live { queue, task, options, codec, prelude_len, location } => out
                .kind(kind::LIVE)
                .number(*queue)
                .number(*task)
                .options(options)
                .codec(*codec)
                .number((*prelude_len).into())
                .number(location.segment.into())
                .number(location.offset.into())
                .number(location.len.into()),
        };
        None
    }

    /// Splits the first record off `input`. The second of the pair is what is left of `input` where
    /// the body's checksum begins.
    pub(super) fn decode(input: &mut &'a [u8]) -> Result<(Self, Option<usize>), RecordError> {
        let mut body_at = None;
        let mut fields = Decoder(input);
        let record = match fields.byte()? {
            kind::EPOCH => Self::Epoch { epoch: fields.number()? },
            kind::CLOSED => Self::Closed,
            kind::QUEUE => Self::Queue {
                queue: fields.number()?,
                name: fields.text()?,
                settings: fields.text()?,
                next_task: fields.number()?,
                unfinished: fields.number()?,
            },
            kind::REMOVED => Self::Removed { queue: fields.number()? },
            kind::PUT => Self::Put {
                queue: fields.number()?,
                task: fields.number()?,
                options: fields.options()?,
                body: fields.body(&mut body_at)?,
            },
            kind::ACK => Self::Ack {
                queue: fields.number()?,
                task: fields.number()?,
                attempt: fields.small()?,
                result: None,
            },
            kind::ACK_WITH_RESULT => Self::Ack {
                queue: fields.number()?,
                task: fields.number()?,
                attempt: fields.small()?,
                result: Some(ResultTask {
                    queue: fields.number()?,
                    task: fields.number()?,
                    options: fields.options()?,
                    body: fields.body(&mut body_at)?,
                }),
            },
            kind::RETURNED => Self::Returned {
                queue: fields.number()?,
                task: fields.number()?,
                attempt: fields.small()?,
                not_before: fields.number()?.checked_sub(1),
                cause: fields.text()?,
            },
            kind::DEAD => Self::Dead {
                queue: fields.number()?,
                task: fields.number()?,
                to_queue: fields.number()?,
                to_task: fields.number()?,
                cause: fields.text()?,
            },
            kind::REDRIVEN => Self::Redriven {
                queue: fields.number()?,
                task: fields.number()?,
                to_queue: fields.number()?,
                to_task: fields.number()?,
            },
            kind::PURGED => Self::Purged {
                queue: fields.number()?,
                before: fields.number()?,
                kept: fields.numbers()?.into(),
            },
            kind::MOVED => Self::Moved {
                queue: fields.number()?,
                task: fields.number()?,
                body: fields.body(&mut body_at)?,
            },
            kind::SEEN => Self::Seen {
                queue: fields.number()?,
                key: fields.bytes()?,
                until: fields.number()?,
            },
            kind::LEASED => Self::Leased {
                queue: fields.number()?,
                task: fields.number()?,
                attempt: fields.small()?,
                lease: fields.number()?,
                hold: fields.number()?,
            },
            kind::DONE => Self::Done { queue: fields.number()?, tasks: fields.number()? },
            kind::TURNED => Self::Turned {
                queue: fields.number()?,
                task: fields.number()?,
                turned: fields.number()?,
            },
            kind::EXPIRED => Self::Expired { queue: fields.number()?, task: fields.number()? },
            kind::LASTS => Self::Lasts {
                queue: fields.number()?,
                task: fields.number()?,
                until: fields.number()?,
            },
            kind::SETTLED => Self::Settled {
                queue: fields.number()?,
                task: fields.number()?,
                attempt: fields.small()?,
                lease: fields.number()?,
            },
            kind::LIVE => Self::Live {
                queue: fields.number()?,
                task: fields.number()?,
                options: fields.options()?,
                codec: fields.codec()?,
                prelude_len: fields.small()?,
                location: Location {
                    segment: fields.small()?,
                    offset: fields.small()?,
                    len: fields.small()?,
                },
            },
            unknown => return Err(RecordError::Unknown(unknown)),
        };
        *input = fields.0;
        Ok((record, body_at))
    }

    /// The body that the record brings.
    pub fn body(&self) -> Option<&Body<'a>> {
        match self {
            Self::Put { body, .. } | Self::Moved { body, .. } => Some(body),
            Self::Ack { result, .. } => result.as_ref().map(|result| &result.body),
            _ => None,
        }
    }
}

impl TaskOptions<'_> {
    fn len(&self) -> usize {
        self.note.len() + self.priority.map_or(0, <[u8]>::len) + self.key.map_or(0, <[u8]>::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(record: Record<'_>) {
        let mut bytes = Vec::new();
        let body = record.encode(7, &mut bytes);
        assert!(bytes.len() <= record.bytes_max(), "{} bytes of {record:?}", bytes.len());
        let mut rest = bytes.as_slice();
        let (decoded, left) = Record::decode(&mut rest).unwrap();
        assert_eq!((&decoded, rest.len()), (&record, 0));
        assert_eq!(left.map(|left| bytes.len() - left), body.map(|(at, _)| at));
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            assert_eq!(Record::decode(&mut rest), Err(RecordError::Malformed), "cut at {cut}");
        }
    }

    const MAX: u64 = u64::MAX;
    const OPTIONS: TaskOptions<'_> = TaskOptions {
        priority: Some(b"\x80\x01"),
        not_before: Some(MAX),
        expires: Some(MAX),
        key: Some(b"key"),
        attempt: u32::MAX,
        note: b"note",
    };

    #[test]
    fn every_record_is_read_as_it_was_written_and_no_part_of_it_is_one() {
        let body = Body { codec: Codec::Pickle(5), prelude_len: u32::MAX, bytes: &[1; 300] };
        let none = TaskOptions::default();
        check(Record::Epoch { epoch: MAX });
        check(Record::Closed);
        check(Record::Queue {
            queue: MAX,
            name: "tâches",
            settings: "order=lifo",
            next_task: MAX,
            unfinished: MAX,
        });
        check(Record::Removed { queue: 0 });
        check(Record::Put { queue: MAX, task: MAX, options: OPTIONS, body });
        check(Record::Put { queue: 1, task: 2, options: none, body: Body { bytes: b"", ..body } });
        let result = ResultTask { queue: MAX, task: MAX, options: OPTIONS, body };
        check(Record::Ack { queue: MAX, task: MAX, attempt: u32::MAX, result: Some(result) });
        check(Record::Ack { queue: 1, task: 2, attempt: 0, result: None });
        let not_before = Some(MAX - 1);
        let cause = "worker died";
        check(Record::Returned { queue: MAX, task: MAX, attempt: u32::MAX, not_before, cause });
        check(Record::Returned { queue: 1, task: 2, attempt: 1, not_before: None, cause: "" });
        check(Record::Redriven { queue: MAX, task: MAX, to_queue: MAX, to_task: MAX });
        check(Record::Dead { queue: MAX, task: MAX, to_queue: MAX, to_task: MAX, cause });
        check(Record::Purged { queue: MAX, before: MAX, kept: vec![MAX; 9].into() });
        check(Record::Moved { queue: MAX, task: MAX, body });
        check(Record::Seen { queue: MAX, key: b"key", until: MAX });
        let (task, turned) = (MAX, MAX);
        check(Record::Leased { queue: MAX, task, attempt: u32::MAX, lease: MAX, hold: MAX });
        check(Record::Done { queue: MAX, tasks: MAX });
        check(Record::Turned { queue: MAX, task, turned });
        check(Record::Expired { queue: MAX, task });
        check(Record::Lasts { queue: MAX, task, until: MAX });
        check(Record::Settled { queue: MAX, task, attempt: u32::MAX, lease: MAX });
        let location = Location { segment: u32::MAX, offset: u32::MAX, len: u32::MAX };
        check(Record::Live {
            queue: MAX,
            task: MAX,
            options: OPTIONS,
            codec: Codec::Json,
            prelude_len: u32::MAX,
            location,
        });
    }

    #[test]
    fn a_plain_put_adds_fourteen_bytes_to_its_payload() {
        let body = Body { codec: Codec::Pickle(4), prelude_len: 4, bytes: &[0; 200] };
        let put = Record::Put { queue: 1, task: 100_000, options: TaskOptions::default(), body };
        let mut bytes = Vec::new();
        put.encode(0, &mut bytes);
        assert_eq!(bytes.len(), 14 + 200);
    }

    #[test]
    fn unknown_kinds_options_and_codecs_are_named() {
        assert_eq!(Record::decode(&mut [99].as_slice()), Err(RecordError::Unknown(99)));
        let option = [kind::PUT, 1, 2, 64];
        assert_eq!(Record::decode(&mut option.as_slice()), Err(RecordError::Unknown(64)));
        let codec = [kind::PUT, 1, 2, 0, 66];
        assert_eq!(Record::decode(&mut codec.as_slice()), Err(RecordError::Unknown(66)));
    }
}
