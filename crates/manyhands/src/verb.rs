//! What a queue or its server is asked, without a word of how it is encoded.
//!
//! [`native`](crate::native) encodes verbs for the native protocol, and [`classic`](crate::classic) for
//! CPython's; an [`Answer`](crate::answer::Answer) is what comes back by either.

use std::sync::Arc;
use std::time::Duration;

use crate::wire::arguments::{BATCH_LEN_MAX, Wait};
use crate::wire::native::{Fate, PutTerms, Settlement};
use crate::wire::pickle::Payload;
use crate::wire::tasks::{Info, Peek};

/// A batch that is put goes out in pieces of about this many bytes: 4 MiB.
const PIECE_BYTES_MAX: usize = 4 << 20;
/// Time-outs from here on, in seconds, are as good as none: a hundred years. Python's locks refuse
/// to wait much longer.
const FOREVER_SECS: u64 = 100 * 365 * 24 * 60 * 60;

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

    /// All but the time-out, if there is anything.
    fn terms(&self) -> Option<Box<PutTerms>> {
        let Self { key, delay, priority, expires, timeout: _ } = self.clone();
        let terms = PutTerms { key, delay, priority, expires };
        (terms != PutTerms::default()).then(|| Box::new(terms))
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

/// What a queue, or its server, is asked.
#[derive(Debug, Clone)]
#[doc(hidden)]
pub enum Verb {
    /// Nothing but a connection.
    Connect,
    /// Opens a queue.
    Open {
        name: Arc<str>,
    },
    Close,
    Put {
        item: Payload,
        terms: Option<Box<PutTerms>>,
        wait: Wait,
        /// Whether the number of the task is wanted.
        numbered: bool,
    },
    PutMany {
        items: Vec<Payload>,
        wait: Wait,
    },
    Get {
        wait: Wait,
        max: usize,
        /// Whether to be settled by tokens.
        leased: bool,
        /// How long the leases last; `None` is as long as the queue says.
        hold: Option<Duration>,
        /// Whether what is known of each is wanted.
        informed: bool,
    },
    Settle {
        settlements: Vec<Settlement>,
        /// For room for results.
        wait: Wait,
    },
    /// Has tasks pushed: up to so many that were not handed to the program.
    Credit {
        ahead: u32,
    },
    TaskDone,
    Join,
    Size,
    IsEmpty,
    IsFull,
    Peek(Peek),
    Redrive {
        max: u64,
        task: Option<u64>,
    },
    Purge,
    Shutdown {
        immediate: bool,
    },
    /// What is known of queues, those whose names come after this one.
    List {
        after: String,
    },
    /// Forgets a queue.
    Drop {
        name: String,
        force: bool,
    },
    /// Ends a task, whoever has it.
    Revoke {
        task: u64,
    },
    /// Declares a queue, with the options of the command line.
    Configure {
        name: String,
        options: String,
    },
}

impl Verb {
    pub(crate) fn put(item: Payload, timeout: Option<Duration>) -> Self {
        Self::Put { item, terms: None, wait: wait(timeout), numbered: false }
    }

    pub(crate) fn put_with(item: Payload, options: &PutOptions, numbered: bool) -> Self {
        Self::Put { item, terms: options.terms(), wait: wait(options.timeout), numbered }
    }

    pub(crate) fn put_many(items: Vec<Payload>, timeout: Option<Duration>) -> Self {
        Self::PutMany { items, wait: wait(timeout) }
    }

    pub(crate) fn get(max: usize, timeout: Option<Duration>) -> Self {
        let (max, wait) = (max.min(BATCH_LEN_MAX), wait(timeout));
        Self::Get { wait, max, leased: false, hold: None, informed: false }
    }

    pub(crate) fn take(timeout: Option<Duration>) -> Self {
        Self::Get { wait: wait(timeout), max: 1, leased: false, hold: None, informed: true }
    }

    pub(crate) fn lease(max: usize, timeout: Option<Duration>) -> Self {
        let (max, wait) = (max.min(BATCH_LEN_MAX), wait(timeout));
        Self::Get { wait, max, leased: true, hold: None, informed: false }
    }

    /// Up to `max` leases with what is known of each, waiting for the first for ever.
    pub(crate) fn take_leases(max: usize) -> Self {
        Self::Get { wait: Wait::Forever, max, leased: true, hold: None, informed: true }
    }

    /// Settlements, of which results are worth any wait.
    pub(crate) fn settle(settlements: Vec<Settlement>) -> Self {
        let is_result = |it: &Settlement| matches!(it.fate, Fate::Ack { result: Some(_) });
        let wait = if settlements.iter().any(is_result) { Wait::Forever } else { Wait::No };
        Self::Settle { settlements, wait }
    }

    /// Whether it may be sent again after the connection was lost. What took an item or a lease may:
    /// the server takes it back from a session that ended.
    pub(crate) fn repeat(&self) -> Repeat {
        match self {
            Self::Put { terms: Some(terms), .. } if terms.key.is_some() => Repeat::Safe,
            Self::Put { .. }
            | Self::PutMany { .. }
            | Self::TaskDone
            | Self::Redrive { .. }
            | Self::Purge => Repeat::Doubtful,
            _ => Repeat::Safe,
        }
    }

    /// What it is called in the error for a server that has CPython's methods alone, unless those
    /// are enough for it.
    pub(crate) fn beyond_cpython(&self) -> Option<&'static str> {
        match self {
            Self::Put { numbered: true, .. } => Some("put with id=True"),
            Self::Put { terms: Some(_), .. } => Some("put with options"),
            Self::Get { leased: true, .. } | Self::Credit { .. } => Some("lease"),
            Self::Settle { .. } => Some("ack"),
            Self::Peek(_) => Some("peek"),
            Self::Redrive { .. } => Some("redrive"),
            Self::Purge => Some("purge"),
            Self::Revoke { .. } => Some("revoke"),
            _ => None,
        }
    }

    /// How long the server may take of its own accord; `None` is for ever.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self {
            Self::Put { wait, .. }
            | Self::PutMany { wait, .. }
            | Self::Get { wait, .. }
            | Self::Settle { wait, .. } => limit(*wait),
            Self::Join | Self::Credit { .. } => None,
            _ => Some(Duration::ZERO),
        }
    }
}

/// A time-out as the protocols have it; none is for ever.
fn wait(timeout: Option<Duration>) -> Wait {
    match timeout {
        Some(Duration::ZERO) => Wait::No,
        Some(timeout) if timeout.as_secs() < FOREVER_SECS => Wait::For(timeout),
        _ => Wait::Forever,
    }
}

fn limit(wait: Wait) -> Option<Duration> {
    match wait {
        Wait::No | Wait::Negative => Some(Duration::ZERO),
        Wait::For(time) => Some(time),
        Wait::Forever => None,
    }
}

/// How many items of a batch, from the first on, go out in one request.
pub(crate) fn piece_len(items: &[Payload], len_max: usize, bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |item: &&Payload| {
        bytes += item.bytes.len();
        bytes <= bytes_max.min(PIECE_BYTES_MAX)
    };
    let len = items.iter().take(len_max.min(BATCH_LEN_MAX)).take_while(fits).count().max(1);
    len.min(items.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pickle::{Dialect, to_payload};
    use crate::wire::token::LeaseToken;

    #[test]
    fn what_would_be_done_twice_is_not_repeated() {
        let item = || to_payload(&1, Dialect::Python3).unwrap();
        let keyed = &PutOptions::keyed("a");
        let unkeyed = &PutOptions { priority: Some(1), ..PutOptions::default() };
        let doubtful = [
            Verb::put(item(), None),
            Verb::put_with(item(), unkeyed, false),
            Verb::put_with(item(), unkeyed, true),
            Verb::TaskDone,
        ];
        assert!(doubtful.iter().all(|verb| verb.repeat() == Repeat::Doubtful));
        let token = LeaseToken { task: 0, attempt: 1, lease: 0, seal: 0 };
        let settlement = Settlement { token, fate: Fate::Ack { result: Some(item()) } };
        let safe = [
            Verb::put_with(item(), keyed, false),
            Verb::put_with(item(), keyed, true),
            Verb::get(1, Some(Duration::ZERO)),
            Verb::settle(vec![settlement]),
        ];
        assert!(safe.iter().all(|verb| verb.repeat() == Repeat::Safe));
    }

    #[test]
    fn a_batch_goes_out_in_pieces() {
        let payload = |len| Payload::pickle(3, vec![0; len].into());
        let first = |items: Vec<Payload>| piece_len(&items, usize::MAX, usize::MAX);
        assert_eq!(first(vec![payload(3 << 20), payload(1 << 20), payload(1)]), 2);
        assert_eq!(first(vec![payload(5 << 20), payload(1)]), 1);
        assert_eq!(first(vec![payload(1); BATCH_LEN_MAX + 1]), BATCH_LEN_MAX);
        assert_eq!(first(vec![]), 0);
        assert_eq!(piece_len(&vec![payload(1); 9], 4, usize::MAX), 4);
        assert_eq!(piece_len(&vec![payload(1); 9], 4, 2), 2);
    }

    #[test]
    fn a_time_out_of_centuries_is_none() {
        assert_eq!(wait(Some(Duration::MAX)), Wait::Forever);
        assert_eq!(Verb::get(1, Some(Duration::MAX)).patience(), None);
        assert_eq!(Verb::get(1, Some(Duration::ZERO)).patience(), Some(Duration::ZERO));
    }
}
