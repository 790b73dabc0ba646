//! What the answers of CPython's protocol say to each [`Verb`]; [`calls`](super::calls) encodes the
//! requests.

use serde::de::DeserializeOwned;

use crate::Error;
use crate::answer::{Added, Answer, Task, unknown_queue};
use crate::server::Server;
use crate::verb::Verb;
use crate::wire::pickle::{Limits, Object, Payload, Value, from_payload};
use crate::wire::request::{self, Kind};

/// What the answer to a verb says.
pub(super) fn answer(
    server: &Server,
    verb: &Verb,
    reply: &request::Answer,
) -> Result<Answer, Error> {
    Ok(match verb {
        Verb::Put { .. } => {
            result(reply, &server.options.limits)?;
            Answer::Added(Added { count: 1, ..Added::default() })
        }
        Verb::Get { .. } => {
            let payload = result(reply, &server.options.limits)?.clone();
            Answer::Tasks(vec![Task { payload, token: None, info: None }])
        }
        Verb::Size => Answer::Count(read(server, reply)?),
        Verb::IsEmpty | Verb::IsFull => Answer::Flag(read(server, reply)?),
        _ => {
            result(reply, &server.options.limits)?;
            Answer::Done
        }
    })
}

/// A value of plain data.
pub(super) fn read<T: DeserializeOwned>(
    server: &Server,
    reply: &request::Answer,
) -> Result<T, Error> {
    let limits = &server.options.limits;
    from_payload(result(reply, limits)?, limits).map_err(|error| server.unexpected(&error))
}

/// The value as it is, unless the call failed.
pub(super) fn result<'a>(
    reply: &'a request::Answer,
    limits: &Limits,
) -> Result<&'a Payload, Error> {
    match reply.kind {
        Kind::Return => Ok(&reply.value),
        Kind::Error => Err(raised(&reply.value, limits)),
        Kind::Traceback => Err(traceback(&reply.text(limits))),
        Kind::Unserializable => {
            Err(remote("Unserializable", &traceback(&reply.text(limits)).to_string()))
        }
        Kind::Proxy => Err(remote("Proxy", "a proxy, which only Python can use")),
    }
}

/// The ident that `create` gives to a reference to the queue `name`.
pub(super) fn created(
    server: &Server,
    name: &str,
    reply: &request::Answer,
) -> Result<String, Error> {
    let (ident, _exposed): (String, Value) = read(server, reply).map_err(|error| match error {
        Error::Remote { class, message } if class == "KeyError" => {
            unknown_queue(server, name, &message)
        }
        error => error,
    })?;
    Ok(ident)
}

/// The exception that the server raised.
fn raised(payload: &Payload, limits: &Limits) -> Error {
    let object = match payload.value(limits) {
        Ok(Value::Object(object)) => *object,
        Ok(other) => return remote("Exception", &other.to_string()),
        Err(error) => return remote("Exception", &error.to_string()),
    };
    match (object.module.as_str(), object.name.as_str()) {
        ("queue" | "_queue" | "Queue", "Empty") => Error::Empty,
        ("queue" | "_queue" | "Queue", "Full") => Error::Full,
        ("queue" | "_queue" | "Queue", "ShutDown") => Error::ShutDown,
        (_, class) => remote(class, &message(&object)),
    }
}

fn remote(class: &str, message: &str) -> Error {
    Error::Remote { class: class.to_owned(), message: message.to_owned() }
}

/// What Python's `str` shows of an exception, for most of them.
fn message(exception: &Object) -> String {
    match exception.args.as_deref() {
        Some([Value::Str(text)]) => text.clone(),
        Some([only]) => only.to_string(),
        Some(args) if !args.is_empty() => Value::Tuple(args.to_vec()).to_string(),
        _ => String::new(),
    }
}

/// The error at the end of a traceback. What leads to it is the server's business.
fn traceback(text: &str) -> Error {
    let text = text.trim_end();
    let last = text.rsplit('\n').next().unwrap_or(text);
    let (class, rest) = last.split_once(": ").unwrap_or((last, ""));
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_');
    if class.is_empty() || !class.chars().all(is_name) {
        return remote("RemoteError", text);
    }
    let class = class.rsplit('.').next().unwrap_or(class);
    let is_pythons = text.starts_with("Traceback");
    remote(class, if is_pythons || text == last { rest } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, class: &str, message: &str) {
        let Error::Remote { class: found_class, message: found } = traceback(text) else {
            panic!("not a remote error")
        };
        assert_eq!((found_class.as_str(), found.as_str()), (class, message));
    }

    #[test]
    fn a_traceback_is_reduced_to_its_error() {
        let python = "Traceback (most recent call last):\n  File \"x.py\", line 1, in f\n\
                      KeyError: 'get_queue'\n";
        check(python, "KeyError", "'get_queue'");
        check("pickle.PicklingError: no\n", "PicklingError", "no");
        check("Traceback (most recent call last):\nKeyError", "KeyError", "");
        check("no such queue; there is 'a'\nKeyError: 'b'", "KeyError", {
            "no such queue; there is 'a'\nKeyError: 'b'"
        });
        check("something else happened", "RemoteError", "something else happened");
    }
}
