//! What the replies of the native protocol say to each [`Verb`].

use std::io;
use std::sync::Arc;

use super::calls::Decided;
use crate::Error;
use crate::answer::{Added, Answer, Task, unknown_queue};
use crate::server::Server;
use crate::verb::Verb;
use crate::wire::native::reply::read_list;
use crate::wire::native::{self, Code, DecodeError, Fate, Reply, Settlement};

/// What became of a call, for whoever made it.
pub(crate) fn answer(server: &Server, decided: Decided) -> Result<Answer, Error> {
    let Decided { verb, outcome, is_repeated } = decided;
    let unreadable = |error: DecodeError| server.unexpected(&error);
    Ok(match (verb, outcome?) {
        (Verb::Open { name }, Reply::Error { code: Code::UnknownQueue, text }) => {
            return Err(unknown_queue(server, &name, &text));
        }
        (Verb::Drop { name, .. }, Reply::Error { code: Code::UnknownQueue, text }) => {
            return Err(unknown_queue(server, &name, &text));
        }
        (_, Reply::Error { code, text }) => return Err(refused(code, text)),
        (Verb::Put { .. } | Verb::PutMany { .. }, Reply::Added(added)) => {
            let native::Added { count, refusal, numbers } = added;
            Answer::Added(Added {
                count: usize::try_from(count).unwrap_or(usize::MAX),
                refusal: refusal.map(|(code, text)| refused(code, text)),
                numbers: numbers.into_iter().flatten().collect(),
                is_repeated,
            })
        }
        (Verb::Get { .. }, Reply::Tasks { tasks, .. }) => {
            let mut taken = Vec::with_capacity(tasks.capacity());
            for task in tasks {
                taken.push(task.map_err(unreadable)?.into());
            }
            Answer::Tasks(taken)
        }
        (Verb::Settle { settlements, .. }, Reply::Settled(codes)) => {
            let codes = codes.chain(std::iter::repeat(None));
            let settled = settlements.iter().zip(codes);
            let settled = settled.map(|(it, code)| settled_as(server, it, code, is_repeated));
            Answer::Settled(settled.collect())
        }
        (Verb::Size, Reply::Size { qsize, .. }) => Answer::Count(qsize),
        (Verb::IsEmpty, Reply::Size { qsize, .. }) => Answer::Flag(qsize == 0),
        (Verb::IsFull, Reply::Size { qsize, maxsize }) => {
            Answer::Flag(maxsize > 0 && qsize >= maxsize)
        }
        (Verb::Peek(_), Reply::Peeked(tasks)) => {
            Answer::Peeked(tasks.collect::<Result<_, _>>().map_err(unreadable)?)
        }
        (Verb::Redrive { .. } | Verb::Purge | Verb::Drop { .. }, Reply::Count(count)) => {
            Answer::Count(count)
        }
        (Verb::List { .. }, Reply::Text { json, more }) => {
            Answer::Queues(read_list(&json).map_err(unreadable)?, more)
        }
        (Verb::Open { .. }, Reply::Opened(_)) | (Verb::Connect, _) => Answer::Done,
        (
            Verb::Close | Verb::TaskDone | Verb::Join | Verb::Shutdown { .. } | Verb::Credit { .. },
            Reply::Done,
        ) => Answer::Done,
        (_, reply) => return Err(server.unexpected(&format_args!("{reply:?}"))),
    })
}

impl From<native::Task> for Task {
    fn from(task: native::Task) -> Self {
        let native::Task { payload, token, info } = task;
        Self { payload, token, info }
    }
}

/// The error that a code stands for.
pub(super) fn refused(code: Code, text: String) -> Error {
    match code {
        Code::Empty => Error::Empty,
        Code::Full => Error::Full,
        Code::ShutDown => Error::ShutDown,
        Code::Stale | Code::Waits => Error::Stale { message: text },
        Code::SettledBefore => Error::SettledBefore,
        Code::NoResult
        | Code::NoResults
        | Code::Unasked
        | Code::NoOrder
        | Code::TooMany
        | Code::Differs
        | Code::BadOptions
        | Code::Refused => Error::Remote { class: "ValueError".to_owned(), message: text },
        code => Error::Remote { class: code.name().to_owned(), message: text },
    }
}

/// What became of one settlement. Where the call was made twice, `settled_before` says that the first
/// time did it, and `stale` does not say whether it did.
fn settled_as(
    server: &Server,
    settlement: &Settlement,
    code: Option<Code>,
    is_repeated: bool,
) -> Result<(), Error> {
    let Some(code) = code else { return Ok(()) };
    match (&settlement.fate, refused(code, told(code).to_owned())) {
        (Fate::Ack { .. }, Error::SettledBefore) if is_repeated => Ok(()),
        (Fate::Ack { .. }, Error::Stale { message }) if is_repeated => {
            let error = io::Error::other(format!("asked again, the server says: {message}"));
            Err(Error::InDoubt { address: Arc::clone(&server.address), error })
        }
        // The first of two attempts has done it, or the task was back before.
        (
            Fate::Nack { .. } | Fate::GiveUp { .. } | Fate::Return,
            Error::SettledBefore | Error::Stale { .. },
        ) if is_repeated => Ok(()),
        (_, error) => Err(error),
    }
}

/// What a code says of a settlement.
fn told(code: Code) -> &'static str {
    match code {
        Code::Stale => "somebody else has had this task since, or it was given up",
        Code::Waits => "an earlier result of this task waits for room",
        Code::NoResult => {
            "no result: results of this queue go to a queue of results; write ack_with(&result), \
             or ack_with(&()) for none"
        }
        Code::NoResults => "no results: the queue declares no queue of results (results=NAME)",
        Code::ShutDown => "the queue of results is shut down",
        code => code.name(),
    }
}
