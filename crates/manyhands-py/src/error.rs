//! Errors of Rust as exceptions of Python: those of `queue` and of the system where there is one,
//! else [`ManyhandsError`].

use std::io;

use manyhands::Error;
use pyo3::exceptions::{
    PyConnectionResetError, PyException, PyOSError, PyTimeoutError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::{create_exception, import_exception};

create_exception!(manyhands, ManyhandsError, PyException, "What a server of queues refuses.");
import_exception!(multiprocessing, AuthenticationError);

/// The exception that Python's own classes would raise. `shut_down` is the class of
/// `queue.ShutDown` before Python 3.13.
pub(crate) fn raise(py: Python<'_>, error: Error, shut_down: &str) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Empty => queue_error(py, "Empty", "Empty"),
        Error::Full => queue_error(py, "Full", "Full"),
        Error::ShutDown => queue_error(py, "ShutDown", shut_down),
        Error::Authentication { .. } => AuthenticationError::new_err(text),
        Error::Connect { error, .. } => os_error(&error, text),
        Error::TimedOut { .. } => PyTimeoutError::new_err(text),
        Error::Lost { .. } | Error::InDoubt { .. } => PyConnectionResetError::new_err(text),
        Error::Remote { class, message } => match class.as_str() {
            "ValueError" => PyValueError::new_err(message),
            "TypeError" => PyTypeError::new_err(message),
            _ => ManyhandsError::new_err(text),
        },
        _ => ManyhandsError::new_err(text),
    }
}

fn queue_error(py: Python<'_>, class: &str, otherwise: &str) -> PyErr {
    let error = py
        .import("queue")
        .and_then(|queue| queue.getattr(class).or_else(|_| queue.getattr(otherwise)))
        .and_then(|class| class.call0());
    error.map_or_else(|failure| failure, PyErr::from_value)
}

/// An `OSError` with its number, as Python's own sockets raise it.
pub(crate) fn os_error(error: &io::Error, text: String) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, text)),
        None => PyOSError::new_err(text),
    }
}
