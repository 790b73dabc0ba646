//! What a session's request asks of a queue: [`Method`] out of a scanned [`Call`].
//!
//! The methods are CPython's, and some more that only our own clients have: they announce themselves in
//! the session's name, and to anybody else these do not exist. `docs/protocol.md` describes them.
//! Source of the parameters and error texts: CPython `Lib/queue.py`.

use std::fmt;
use std::slice;
use std::time::Duration;

use super::arguments::{
    self, BATCH_LEN_MAX, Wait, bind, count, int, payload, seconds, truth, wait,
};
use super::pickle::{Call, Limits, Payload, PickleError};
use super::reply::{EXPOSED, Exception};
use super::tasks::Peek;
use super::text::repr;
use super::token::LeaseToken;

/// One call of a method of a queue.
///
/// What few calls say is in a box, so that `put` and `get` move no more than they need.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// `put`, `put_nowait`
    Put {
        /// The item.
        item: Payload,
        /// For a free slot.
        wait: Wait,
        /// More than CPython's arguments, which only our own clients give.
        terms: Option<Box<PutTerms>>,
    },
    /// `get`, `get_nowait`
    Get {
        /// For an item.
        wait: Wait,
    },
    /// `qsize`
    Qsize,
    /// `empty`
    Empty,
    /// `full`
    Full,
    /// `task_done`
    TaskDone,
    /// `join`
    Join,
    /// `shutdown`
    Shutdown {
        /// Also drop what is in the queue.
        immediate: bool,
    },
    /// `close`, `join_thread`, `cancel_join_thread`: of the feeder thread of a
    /// `multiprocessing.Queue`, which we do not have.
    Noop,
    /// `__str__`, `__repr__`
    Repr,
    /// `#GETVALUE`: a copy of the queue itself, which nobody can pickle.
    GetValue,
    /// `put_many`, of our own clients only, like all that follow.
    PutMany {
        /// The items.
        items: Vec<Payload>,
        /// For free slots.
        wait: Wait,
    },
    /// `get_many`, `take`, `take_many`, `lease`, `lease_many`
    Take {
        /// In which form.
        manner: Manner,
        /// How many at most; `None` is one, and no list.
        max: Option<usize>,
        /// For the first.
        wait: Wait,
    },
    /// `ack`
    Ack(Box<Ack>),
    /// `nack`
    Nack(Box<Nack>),
    /// `extend`
    Extend {
        /// Which lease.
        token: LeaseToken,
        /// From now on.
        hold: Duration,
    },
    /// `redrive`
    Redrive {
        /// How many at most.
        max: usize,
        /// Only this one.
        task: Option<u64>,
    },
    /// `purge`
    Purge,
    /// `peek`
    Peek(Peek),
}

/// What a `put` says beside its item.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutTerms {
    /// A further put with this key within the window of the queue is the same task.
    pub key: Option<Vec<u8>>,
    /// Not to be handed out sooner than this.
    pub delay: Option<Duration>,
    /// Place in a priority queue, instead of the item's own.
    pub priority: Option<i64>,
    /// Dropped if it was not taken within this time.
    pub expires: Option<Duration>,
    /// Whether to answer with the task's number.
    pub id: bool,
}

/// How items are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As `get` does.
    Plain,
    /// The same, with what is known of each.
    Informed,
    /// By a token, until it is settled.
    Leased {
        /// For no longer than this.
        hold: Option<Duration>,
    },
}

/// A task that is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack {
    /// Which lease.
    pub token: LeaseToken,
    /// For the queue of results.
    pub result: Option<Payload>,
    /// For a free slot there.
    pub wait: Wait,
}

/// An attempt at a task that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Which lease.
    pub token: LeaseToken,
    /// Not to be handed out sooner.
    pub delay: Option<Duration>,
    /// Why it failed.
    pub reason: String,
    /// No further attempt can do it.
    pub give_up: bool,
}

/// Why a session's request has no [`Method`].
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// The method does not exist; the text of a traceback.
    Unknown(String),
    /// The arguments are wrong, as the method itself would say.
    Arguments(Exception),
    /// An argument cannot be cut out.
    Pickle(PickleError),
}

impl From<Exception> for Refusal {
    fn from(exception: Exception) -> Self {
        Self::Arguments(exception)
    }
}

impl From<PickleError> for Refusal {
    fn from(error: PickleError) -> Self {
        Self::Pickle(error)
    }
}

impl Method {
    /// Reads the method call in `call`. Only a session that [announced](super::announcement) itself as
    /// one of ours may ask for more than CPython's queues have.
    ///
    /// # Errors
    ///
    /// [`Refusal`], in the order and words of CPython where programs could depend on them.
    pub fn decode(call: &Call, limits: &Limits, is_ours: bool) -> Result<Self, Refusal> {
        match call.method_bytes() {
            b"put" => decode_put(call, limits, is_ours),
            b"put_nowait" => {
                let [item] = bind(call, "put_nowait", ["item"], 1)?;
                Ok(Self::Put { item: payload(call, item, limits)?, wait: Wait::No, terms: None })
            }
            b"get" => {
                let [block, timeout] = bind(call, "get", ["block", "timeout"], 0)?;
                Ok(Self::Get { wait: wait(call, block, timeout)? })
            }
            b"get_nowait" => plain(call, Self::Get { wait: Wait::No }),
            b"qsize" => plain(call, Self::Qsize),
            b"empty" => plain(call, Self::Empty),
            b"full" => plain(call, Self::Full),
            b"task_done" => plain(call, Self::TaskDone),
            b"join" => plain(call, Self::Join),
            b"shutdown" => {
                let [immediate] = bind(call, "shutdown", ["immediate"], 0)?;
                Ok(Self::Shutdown { immediate: truth(call, immediate, "immediate", false)? })
            }
            b"close" | b"join_thread" | b"cancel_join_thread" => plain(call, Self::Noop),
            b"__str__" | b"__repr__" => plain(call, Self::Repr),
            b"#GETVALUE" => plain(call, Self::GetValue),
            // CPython's end here.
            _ if !is_ours => Err(unknown(call)),
            b"put_many" => decode_put_many(call, limits),
            b"get_many" => decode_take(call, Manner::Plain, true),
            b"take" => decode_take(call, Manner::Informed, false),
            b"take_many" => decode_take(call, Manner::Informed, true),
            b"lease" => decode_take(call, Manner::Leased { hold: None }, false),
            b"lease_many" => decode_take(call, Manner::Leased { hold: None }, true),
            b"ack" => decode_ack(call, limits),
            b"nack" => decode_nack(call),
            b"extend" => decode_extend(call),
            b"redrive" => decode_redrive(call),
            b"purge" => plain(call, Self::Purge),
            b"peek" => decode_peek(call),
            _ => Err(unknown(call)),
        }
    }

    /// The items that it brings.
    #[must_use]
    pub fn items(&self) -> &[Payload] {
        match self {
            Self::Put { item, .. } => slice::from_ref(item),
            Self::PutMany { items, .. } => items,
            Self::Ack(ack) => ack.result.as_slice(),
            _ => &[],
        }
    }
}

fn unknown(call: &Call) -> Refusal {
    let method = repr(call.method());
    Refusal::Unknown(format!(
        "a queue has no method {method}; it has {}\nKeyError: {method}",
        EXPOSED.join(", ")
    ))
}

/// A call without arguments.
fn plain(call: &Call, method: Method) -> Result<Method, Refusal> {
    let [] = bind(call, call.method(), [], 0)?;
    Ok(method)
}

fn decode_put(call: &Call, limits: &Limits, is_ours: bool) -> Result<Method, Refusal> {
    if is_ours && has_terms(call) {
        return decode_put_with_terms(call, limits);
    }
    let [item, block, timeout] = bind(call, "put", ["item", "block", "timeout"], 1)?;
    let wait = wait(call, block, timeout)?;
    Ok(Method::Put { item: payload(call, item, limits)?, wait, terms: None })
}

/// The parameters of `put` on a session of ours: CPython's three, and the terms.
const PUT_PARAMETERS: [&str; 8] =
    ["item", "block", "timeout", "key", "delay", "priority", "expires", "id"];

fn has_terms(call: &Call) -> bool {
    let [_, _, _, terms @ ..] = &PUT_PARAMETERS;
    call.args().len() > 3 || call.kwargs().any(|(name, _)| terms.contains(&name))
}

fn decode_put_with_terms(call: &Call, limits: &Limits) -> Result<Method, Refusal> {
    let [item, block, timeout, key, delay, priority, expires, id] =
        bind(call, "put", PUT_PARAMETERS, 1)?;
    let mut terms = PutTerms {
        key: arguments::key(call, key)?,
        delay: seconds(call, delay, "delay")?,
        priority: int(call, priority, "priority")?,
        expires: seconds(call, expires, "expires")?,
        id: false,
    };
    let wait = wait(call, block, timeout)?;
    terms.id = truth(call, id, "id", false)?;
    Ok(Method::Put { item: payload(call, item, limits)?, wait, terms: Some(Box::new(terms)) })
}

fn decode_put_many(call: &Call, limits: &Limits) -> Result<Method, Refusal> {
    let [items, block, timeout] = bind(call, "put_many", ["items", "block", "timeout"], 1)?;
    let wait = wait(call, block, timeout)?;
    let list = payload(call, items, limits)?;
    let bad = |error: &dyn fmt::Display| Exception::ValueError(format!("'items': {error}"));
    let items = list.batch(BATCH_LEN_MAX).map_err(|error| bad(&error))?;
    // One item may occur many times, and is copied each time.
    let bytes_max = list.bytes.len().saturating_add(limits.expansion_max);
    if items.iter().map(|item| item.len()).sum::<usize>() > bytes_max {
        return Err(bad(&"they repeat one another too often").into());
    }
    // As long at once as it will be.
    let mut payloads = Vec::with_capacity(items.len());
    for (position, pickle) in items.into_iter().enumerate() {
        let payload = Payload::from_standalone(pickle, limits)
            .map_err(|error| bad(&format_args!("number {position} is no pickle: {error}")))?;
        payloads.push(payload);
    }
    Ok(Method::PutMany { items: payloads, wait })
}

fn decode_take(call: &Call, manner: Manner, is_many: bool) -> Result<Method, Refusal> {
    let method = call.method();
    let is_leased = manner != Manner::Plain && manner != Manner::Informed;
    let [max, block, timeout, hold] = match (is_many, is_leased) {
        (true, true) => bind(call, method, ["max", "block", "timeout", "hold"], 1)?,
        (true, false) => {
            let [max, block, timeout] = bind(call, method, ["max", "block", "timeout"], 1)?;
            [max, block, timeout, None]
        }
        (false, true) => {
            let [block, timeout, hold] = bind(call, method, ["block", "timeout", "hold"], 0)?;
            [None, block, timeout, hold]
        }
        (false, false) => {
            let [block, timeout] = bind(call, method, ["block", "timeout"], 0)?;
            [None, block, timeout, None]
        }
    };
    let max = if is_many { Some(count(call, max, "max")?.unwrap_or(BATCH_LEN_MAX)) } else { None };
    let manner = match manner {
        Manner::Leased { .. } => Manner::Leased { hold: seconds(call, hold, "hold")? },
        other => other,
    };
    Ok(Method::Take { manner, max, wait: wait(call, block, timeout)? })
}

fn decode_ack(call: &Call, limits: &Limits) -> Result<Method, Refusal> {
    let names = ["token", "result", "block", "timeout"];
    let [token, result, block, timeout] = bind(call, "ack", names, 1)?;
    let wait = wait(call, block, timeout)?;
    let result = result.map(|result| payload(call, Some(result), limits)).transpose()?;
    Ok(Method::Ack(Box::new(Ack { token: arguments::token(call, token)?, result, wait })))
}

fn decode_nack(call: &Call) -> Result<Method, Refusal> {
    let names = ["token", "delay", "reason", "give_up"];
    let [token, delay, reason, give_up] = bind(call, "nack", names, 1)?;
    let reason = arguments::reason(call, reason)?;
    let delay = seconds(call, delay, "delay")?;
    let give_up = truth(call, give_up, "give_up", false)?;
    let token = arguments::token(call, token)?;
    Ok(Method::Nack(Box::new(Nack { token, delay, reason, give_up })))
}

fn decode_extend(call: &Call) -> Result<Method, Refusal> {
    let [token, hold] = bind(call, "extend", ["token", "hold"], 2)?;
    let wrong = || Exception::TypeError("'hold' must be a number of seconds".into());
    let hold = seconds(call, hold, "hold")?.ok_or_else(wrong)?;
    Ok(Method::Extend { token: arguments::token(call, token)?, hold })
}

fn decode_redrive(call: &Call) -> Result<Method, Refusal> {
    let [max, task] = bind(call, "redrive", ["max", "task"], 0)?;
    let max = count(call, max, "max")?.unwrap_or(BATCH_LEN_MAX);
    let wrong = |_| Exception::ValueError("'task' must be a non-negative number".into());
    let task = int(call, task, "task")?.map(u64::try_from).transpose().map_err(wrong)?;
    Ok(Method::Redrive { max, task })
}

fn decode_peek(call: &Call) -> Result<Method, Refusal> {
    let [max, state, items] = bind(call, "peek", ["max", "state", "items"], 0)?;
    let plain = Peek::default();
    Ok(Method::Peek(Peek {
        max: count(call, max, "max")?.unwrap_or(plain.max),
        state: arguments::state(call, state)?.unwrap_or(plain.state),
        items: truth(call, items, "items", plain.items)?,
    }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn decode_from(is_ours: bool, method: &str, args: &[u8]) -> Result<Method, Refusal> {
        let len = u8::try_from(method.len()).unwrap();
        let request =
            [b"\x80\x03(U\x01qU", &[len][..], method.as_bytes(), b"(", args, b"t}t."].concat();
        let limits = Limits::default();
        Method::decode(&Call::parse(Bytes::from(request), &limits).unwrap(), &limits, is_ours)
    }

    fn decode(method: &str, args: &[u8]) -> Result<Method, Refusal> {
        decode_from(true, method, args)
    }

    fn refused(method: &str, args: &[u8]) -> String {
        match decode(method, args) {
            Err(Refusal::Arguments(Exception::TypeError(text) | Exception::ValueError(text))) => {
                text
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_only_our_clients_have_does_not_exist_for_others() {
        for method in ["put_many", "get_many", "lease", "ack", "peek", "purge", "redrive"] {
            let refusal = decode_from(false, method, b"");
            assert!(matches!(refusal, Err(Refusal::Unknown(_))), "{method}: {refusal:?}");
            let refusal = decode_from(true, method, b"");
            assert!(!matches!(refusal, Err(Refusal::Unknown(_))), "{method}: {refusal:?}");
        }
        let more = decode_from(false, "put", b"K\x01\x88NU\x01k");
        assert!(matches!(more, Err(Refusal::Arguments(Exception::TypeError(_)))), "{more:?}");
        assert_eq!(decode_from(false, "qsize", b""), decode_from(true, "qsize", b""));
        assert!(matches!(decode_from(true, "steal", b""), Err(Refusal::Unknown(_))));
    }

    /// What every call moves about, in bytes.
    #[test]
    fn a_method_is_small() {
        assert!(size_of::<Method>() <= 72, "{}", size_of::<Method>());
    }

    #[test]
    fn a_put_has_terms_only_with_more_arguments_than_cpythons() {
        for plain in [&b"K\x01"[..], b"K\x01\x88N"] {
            let Ok(Method::Put { terms, .. }) = decode("put", plain) else { panic!("no put") };
            assert_eq!(terms, None);
        }
        let Ok(Method::Put { wait, terms, .. }) = decode("put", b"K\x01\x88NU\x01kK\x02K\x03N")
        else {
            panic!("no put")
        };
        assert_eq!(wait, Wait::Forever);
        let expected = PutTerms {
            key: Some(b"k".to_vec()),
            delay: Some(Duration::from_secs(2)),
            priority: Some(3),
            expires: None,
            id: false,
        };
        assert_eq!(terms, Some(Box::new(expected)));
    }

    #[test]
    fn absurd_arguments_are_refused_by_name() {
        assert_eq!(refused("get_many", b"K\x00"), "'max' must be at least 1");
        assert_eq!(refused("get_many", b"U\x01x"), "'max' must be an int");
        assert_eq!(
            refused("redrive", b"NJ\xff\xff\xff\xff"),
            "'task' must be a non-negative number"
        );
        assert_eq!(refused("ack", b"K\x01"), "'token' must be a str, as it came");
        assert_eq!(refused("ack", b"U\x01x"), "'token' is none that we gave out");
        assert_eq!(refused("extend", b"U\x071.1.1.1J\xff\xff\xff\xff"), {
            "'hold' must be a non-negative number"
        });
        assert!(refused("put_many", b"K\x01").starts_with("'items': not a list of bytes"));
        assert!(refused("put_many", b"](C\x01xe").starts_with("'items': number 0 is no pickle"));
        assert!(refused("lease", b"NNNN").contains("takes from 1 to 4 positional arguments"));
        let long = [&b"K\x01\x88NX\x01\x01\0\0"[..], &[b'k'; 257]].concat();
        assert_eq!(refused("put", &long), "'key' of 257 bytes exceeds the limit of 256 bytes");
    }

    #[test]
    fn a_count_above_the_limit_is_the_limit() {
        let Ok(Method::Take { max, .. }) = decode("get_many", b"J\xff\xff\xff\x7f") else {
            panic!("no take")
        };
        assert_eq!(max, Some(BATCH_LEN_MAX));
    }

    #[test]
    fn an_item_that_is_repeated_too_often_is_refused() {
        let item = [&b"\x80\x03X\0\0\x01\0"[..], &[b'x'; 1 << 16], b"."].concat();
        let len = u32::try_from(item.len()).unwrap().to_le_bytes();
        let gets = b"h\x01".repeat(1000);
        let args = [b"](B", &len[..], &item, b"q\x01", &gets, b"e"].concat();
        assert_eq!(refused("put_many", &args), "'items': they repeat one another too often");
    }
}
