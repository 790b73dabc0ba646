//! What the first request on a connection asks of the manager: [`Control`] out of a scanned [`Call`].
//!
//! Source of the calls and their parameters: CPython `Lib/multiprocessing/managers.py`, class `Server`.

use super::pickle::{Argument, Atom, Call};
use super::text::repr;

/// The first request on a connection: one call of the manager itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Control {
    /// Sent by `connect()` to see whether somebody is there.
    Dummy,
    /// Makes a reference to the object registered as `typeid`.
    Create {
        /// Registered name.
        typeid: String,
        /// Further arguments, for the registered callable.
        parameters: Vec<Parameter>,
    },
    /// One more reference to this ident.
    Incref(String),
    /// One reference fewer to this ident.
    Decref(String),
    /// The method names of the object with this ident.
    GetMethods(String),
    /// How many idents are referenced.
    NumberOfObjects,
    /// A text about every referenced ident.
    DebugInfo,
    /// Turns the connection into a session.
    AcceptConnection {
        /// Name of the client's process and thread.
        name: String,
    },
    /// Stops the server.
    Shutdown,
}

/// One argument for a registered callable.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Keyword; `None` if positional.
    pub keyword: Option<String>,
    /// The value; `None` if it is not a simple one.
    pub value: Option<Atom>,
}

impl Control {
    /// Reads the manager's call in `call`.
    ///
    /// # Errors
    ///
    /// The text of a traceback for the client, if there is no such call or its arguments are wrong.
    pub fn decode(call: &Call) -> Result<Self, String> {
        let method = call.method();
        let wrong =
            || format!("TypeError: wrong arguments for the manager's call {}", repr(method));
        let text = || match call.args() {
            [only] if call.kwargs().next().is_none() => text(call, only).ok_or_else(wrong),
            _ => Err(wrong()),
        };
        let nothing = |control| match call.args() {
            [] if call.kwargs().next().is_none() => Ok(control),
            _ => Err(wrong()),
        };
        match method {
            "dummy" => nothing(Self::Dummy),
            "create" => Self::decode_create(call).ok_or_else(wrong),
            "incref" => text().map(Self::Incref),
            "decref" => text().map(Self::Decref),
            "get_methods" => match call.args() {
                [token] => call.token_id(token).map(Self::GetMethods).ok_or_else(wrong),
                _ => Err(wrong()),
            },
            "number_of_objects" => nothing(Self::NumberOfObjects),
            "debug_info" => nothing(Self::DebugInfo),
            "accept_connection" => text().map(|name| Self::AcceptConnection { name }),
            "shutdown" => nothing(Self::Shutdown),
            _ => Err(format!("AssertionError: {} unrecognized", repr(method))),
        }
    }

    fn decode_create(call: &Call) -> Option<Self> {
        let (first, rest) = call.args().split_first()?;
        let typeid = text(call, first)?;
        let positional =
            rest.iter().map(|argument| Parameter { keyword: None, value: call.atom(argument) });
        let keywords = call.kwargs().map(|(keyword, argument)| Parameter {
            keyword: Some(keyword.to_owned()),
            value: call.atom(&argument),
        });
        Some(Self::Create { typeid, parameters: positional.chain(keywords).collect() })
    }
}

fn text(call: &Call, argument: &Argument) -> Option<String> {
    match call.atom(argument)? {
        Atom::Text(text) => Some(text),
        _ => None,
    }
}
