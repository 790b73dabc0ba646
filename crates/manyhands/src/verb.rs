//! What a queue can be asked, without a word of how it is encoded.
//!
//! [`calls`](crate::calls) encodes verbs for CPython's protocol, and [`reply`](crate::reply) reads
//! what comes back.

use std::time::Duration;

use crate::wire::arguments::BATCH_LEN_MAX;
use crate::wire::pickle::Payload;
use crate::wire::tasks::{Info, Peek};

/// A batch that is put goes out in pieces of about this many bytes: 4 MiB.
const PIECE_BYTES_MAX: usize = 4 << 20;

/// What a put says beside its item.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// A further put with this key within the window of the queue (`dedup`) is the same task: it adds
    /// nothing. At most 256 bytes.
    pub key: Option<Vec<u8>>,
    /// Not to be handed out sooner than this.
    pub delay: Option<Duration>,
    /// Place in a priority queue, instead of the item's own; the lowest comes first.
    pub priority: Option<i64>,
    /// Dropped if nobody took it within this time.
    pub expires: Option<Duration>,
    /// How long to wait for a free slot; `None` is for ever.
    pub timeout: Option<Duration>,
}

impl PutOptions {
    /// With a key, which is text or bytes.
    #[must_use]
    pub fn keyed(key: impl AsRef<[u8]>) -> Self {
        Self { key: Some(key.as_ref().to_vec()), ..Self::default() }
    }
}

/// An item that was taken, with what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken<T> {
    /// The item.
    pub item: T,
    /// Where it comes from, if it is the result of a task or a dead letter.
    pub info: Option<Info>,
}

/// Whether a call may be made twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It comes to the same, or what it took the first time goes back.
    Safe,
    /// It would be done twice.
    Doubtful,
}

/// What a queue is asked. Time-outs of `None` are for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verb<'a> {
    Put {
        item: &'a Payload,
        timeout: Option<Duration>,
    },
    TryPut {
        item: &'a Payload,
    },
    PutWith {
        item: &'a Payload,
        options: &'a PutOptions,
    },
    /// The same; the reply says which number the task got.
    PutTask {
        item: &'a Payload,
        options: &'a PutOptions,
    },
    PutMany {
        items: &'a [Payload],
        timeout: Option<Duration>,
    },
    Get {
        timeout: Option<Duration>,
    },
    TryGet,
    GetMany {
        max: usize,
        timeout: Option<Duration>,
    },
    /// An item with what is known of it.
    Take {
        timeout: Option<Duration>,
    },
    LeaseMany {
        max: usize,
        timeout: Option<Duration>,
    },
    Ack {
        token: &'a str,
        result: Option<&'a Payload>,
    },
    Nack {
        token: &'a str,
        delay: Option<Duration>,
        reason: &'a str,
    },
    /// `nack` of a task that no further attempt can do.
    GiveUp {
        token: &'a str,
        reason: &'a str,
    },
    Extend {
        token: &'a str,
        hold: Duration,
    },
    TaskDone,
    Join,
    Size,
    IsEmpty,
    IsFull,
    Peek(Peek),
    Redrive {
        max: usize,
    },
    RedriveTask {
        task: u64,
    },
    Purge,
    Shutdown {
        immediate: bool,
    },
}

impl<'a> Verb<'a> {
    /// A put with options, as plain as they allow: CPython's servers know no other.
    pub(crate) fn put_with(item: &'a Payload, options: &'a PutOptions) -> Self {
        let timeout = options.timeout;
        if *options == (PutOptions { timeout, ..PutOptions::default() }) {
            Self::Put { item, timeout }
        } else {
            Self::PutWith { item, options }
        }
    }

    /// Whether it may be sent again after the connection was lost. What took an item or a lease may:
    /// the server takes it back from a session that ended.
    pub(crate) fn repeat(&self) -> Repeat {
        match self {
            Self::PutWith { options, .. } | Self::PutTask { options, .. }
                if options.key.is_some() =>
            {
                Repeat::Safe
            }
            Self::Put { .. }
            | Self::TryPut { .. }
            | Self::PutWith { .. }
            | Self::PutTask { .. }
            | Self::PutMany { .. }
            | Self::TaskDone
            | Self::Redrive { .. }
            | Self::RedriveTask { .. }
            | Self::Purge => Repeat::Doubtful,
            _ => Repeat::Safe,
        }
    }

    /// What it is called in the error for a server that has CPython's methods alone, unless those
    /// are enough for it.
    pub(crate) fn beyond_cpython(&self) -> Option<&'static str> {
        match self {
            Self::PutWith { .. } => Some("put with options"),
            Self::PutTask { .. } => Some("put with id=True"),
            Self::LeaseMany { .. } => Some("lease"),
            Self::Peek(_) => Some("peek"),
            Self::Redrive { .. } | Self::RedriveTask { .. } => Some("redrive"),
            Self::Purge => Some("purge"),
            _ => None,
        }
    }
}

/// The first part of a batch that goes out in one request.
pub(crate) fn piece(items: &[Payload]) -> &[Payload] {
    let mut bytes = 0;
    let fits = |item: &&Payload| {
        bytes += item.bytes.len();
        bytes <= PIECE_BYTES_MAX
    };
    let len = items.iter().take(BATCH_LEN_MAX).take_while(fits).count().max(1);
    items.get(..len).unwrap_or(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pickle::{Dialect, to_payload};

    #[test]
    fn what_would_be_done_twice_is_not_repeated() {
        let item = &to_payload(&1, Dialect::Python3).unwrap();
        let keyed = &PutOptions::keyed("a");
        let unkeyed = &PutOptions { priority: Some(1), ..PutOptions::default() };
        let doubtful = [
            Verb::Put { item, timeout: None },
            Verb::put_with(item, unkeyed),
            Verb::PutTask { item, options: unkeyed },
            Verb::TaskDone,
        ];
        assert!(doubtful.iter().all(|verb| verb.repeat() == Repeat::Doubtful));
        let safe = [
            Verb::put_with(item, keyed),
            Verb::PutTask { item, options: keyed },
            Verb::TryGet,
            Verb::Ack { token: "t", result: Some(item) },
        ];
        assert!(safe.iter().all(|verb| verb.repeat() == Repeat::Safe));
    }

    #[test]
    fn a_batch_goes_out_in_pieces() {
        let payload = |len| Payload::pickle(3, vec![0; len].into());
        let large = [payload(3 << 20), payload(1 << 20), payload(1)];
        assert_eq!(piece(&large).len(), 2);
        assert_eq!(piece(&[payload(5 << 20), payload(1)]).len(), 1);
        assert_eq!(piece(&vec![payload(1); BATCH_LEN_MAX + 1]).len(), BATCH_LEN_MAX);
        assert_eq!(piece(&[]).len(), 0);
    }
}
