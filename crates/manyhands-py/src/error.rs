//! Errors of Rust as exceptions of Python: those of `queue` and of the system where there is one,
//! else [`ManyhandsError`].

use std::io;
use std::path::Path;
use std::time::Duration;

use manyhands::wire::auth::AuthError;
use manyhands::{Address, Error};
use pyo3::exceptions::{
    PyConnectionRefusedError, PyConnectionResetError, PyException, PyOSError, PyTimeoutError,
    PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};
use pyo3::{create_exception, import_exception};

create_exception!(manyhands, ManyhandsError, PyException, "What a server of queues refuses.");
create_exception!(
    manyhands,
    StaleLease,
    ManyhandsError,
    "Somebody else has the task of a lease, or it was settled otherwise: nothing was done."
);
create_exception!(
    manyhands,
    NoResult,
    ManyhandsError,
    "A lease of a queue that declares results was to be done without one."
);
import_exception!(multiprocessing, AuthenticationError);

/// What to look after where something else answers.
const HINT: &str = "is it a manyhands server?";
const NO_RESULT: &str = "no result: results of this queue go to a queue of results; write \
                         ack(result), or ack(None) for none";
const NOT_OURS: &str = "needs a queue of manyhands";

/// The exception that Python's own classes would raise. `shut_down` is the class of
/// `queue.ShutDown` before Python 3.13.
pub(crate) fn raise(py: Python<'_>, error: Error, shut_down: &str) -> PyErr {
    match error {
        Error::ShutDown => queue_error(py, "ShutDown", shut_down),
        error => exception(py, error),
    }
}

/// The exception for what a client met.
pub(crate) fn exception(py: Python<'_>, error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Empty => queue_error(py, "Empty", "Empty"),
        Error::Full => queue_error(py, "Full", "Full"),
        Error::ShutDown => shut_down(py),
        Error::Authentication { address, error } => unauthenticated(py, &address, &error),
        Error::Connect { address, error } => unreachable(py, &address, &error),
        Error::TimedOut { address, after } => {
            let (place, after) = (place(py, &address), seconds(after));
            PyTimeoutError::new_err(format!(
                "no answer from {place} within {after} seconds; {HINT}"
            ))
        }
        Error::Lost { .. } | Error::InDoubt { .. } => PyConnectionResetError::new_err(text),
        Error::Stale { message } => StaleLease::new_err(message),
        Error::SettledBefore => StaleLease::new_err(text),
        Error::UnknownQueue { name, address, declared } => {
            no_queue(py, &name, &place(py, &address), declared.as_deref())
        }
        Error::Unsupported { method, .. } => {
            ManyhandsError::new_err(format!("{method} {NOT_OURS}"))
        }
        Error::Closed { .. } => ManyhandsError::new_err("this client is closed"),
        Error::Remote { class, message } => match class.as_str() {
            "ValueError" if message.starts_with("no result:") => NoResult::new_err(NO_RESULT),
            "ValueError" if message.starts_with("no results:") => ManyhandsError::new_err(message),
            "ValueError" => PyValueError::new_err(message),
            "TypeError" => PyTypeError::new_err(message),
            _ => ManyhandsError::new_err(text),
        },
        _ => ManyhandsError::new_err(text),
    }
}

/// The same for what becomes of a first attempt to connect, with what to look after.
pub(crate) fn first_exception(py: Python<'_>, error: Error, key_hint: &str) -> PyErr {
    match &error {
        Error::Authentication { address, error: AuthError::Foreign(what) }
            if what.contains("short message") =>
        {
            let place = place(py, address);
            let text = format!("{place} does not answer as a server of queues; {HINT}");
            ManyhandsError::new_err(text)
        }
        Error::Authentication { address, error } => {
            let place = place(py, address);
            AuthenticationError::new_err(format!(
                "{place}: authentication failed: {error}{key_hint}"
            ))
        }
        Error::Lost { address, error } => {
            let text = format!("{}: {error}; {HINT}", place(py, address));
            PyConnectionResetError::new_err(text)
        }
        _ => exception(py, error),
    }
}

fn unauthenticated(py: Python<'_>, address: &Address, error: &AuthError) -> PyErr {
    let text = format!("{}: authentication failed: {error}", place(py, address));
    AuthenticationError::new_err(text)
}

/// The server could not be reached, or has no place for us.
fn unreachable(py: Python<'_>, address: &Address, error: &io::Error) -> PyErr {
    let place = place(py, address);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<AuthError>());
    if let Some(AuthError::TurnedAway(_)) = inner {
        return PyConnectionRefusedError::new_err(format!("{place}: {error}"));
    }
    let reason = reason(error);
    let mut text =
        format!("cannot connect to {place}: {reason}; is a manyhands server running there?");
    if let Address::Unix(path) = address
        && error.kind() == io::ErrorKind::NotFound
        && path.parent() == Some(Path::new(""))
    {
        text += " This is the path of a socket; a host is followed by its port: 'HOST:PORT'";
    }
    os_error(error, text)
}

/// What the system says, without the number that goes beside it.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An address as people write it.
fn place(py: Python<'_>, address: &Address) -> String {
    match address {
        Address::Tcp { .. } => address.to_string(),
        Address::Unix(path) => {
            let shown = path.to_string_lossy();
            let shown = shown.into_pyobject(py).map(|path| path.into_any().repr());
            match shown {
                Ok(Ok(shown)) => shown.to_string(),
                _ => address.to_string(),
            }
        }
    }
}

/// A time as Python shows a number of seconds.
fn seconds(time: Duration) -> String {
    time.as_secs_f64().to_string()
}

/// Nothing is registered under a name; `declared` are the names that there are.
fn no_queue(py: Python<'_>, name: &str, place: &str, declared: Option<&str>) -> PyErr {
    let text = py
        .import("manyhands._net")
        .and_then(|net| net.call_method1("no_queue", (name, place, declared)))
        .and_then(|text| text.extract::<String>());
    text.map_or_else(|failure| failure, ManyhandsError::new_err)
}

fn queue_error(py: Python<'_>, class: &str, otherwise: &str) -> PyErr {
    let error = py
        .import("queue")
        .and_then(|queue| queue.getattr(class).or_else(|_| queue.getattr(otherwise)))
        .and_then(|class| class.call0());
    error.map_or_else(|failure| failure, PyErr::from_value)
}

/// `queue.ShutDown`, or before Python 3.13 what older programs expect of either kind.
fn shut_down(py: Python<'_>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || {
        let queue = py.import("queue")?;
        let class = match queue.getattr("ShutDown") {
            Ok(class) => class,
            Err(_) => {
                let bases = (queue.getattr("Empty")?, queue.getattr("Full")?);
                let names = PyDict::new(py);
                py.get_type::<PyType>().call1(("ShutDown", bases, names))?
            }
        };
        Ok::<_, PyErr>(class.cast_into::<PyType>()?.unbind())
    });
    let error = class.and_then(|class| class.bind(py).call0());
    error.map_or_else(|failure| failure, PyErr::from_value)
}

/// An `OSError` with its number, as Python's own sockets raise it.
pub(crate) fn os_error(error: &io::Error, text: String) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, text)),
        None => PyOSError::new_err(text),
    }
}
