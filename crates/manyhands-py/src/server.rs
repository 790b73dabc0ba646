//! The server as Python sees it, and its conversations about objects that live in Python.
//!
//! Invariants: no Rust thread ever takes the interpreter's lock; a call that may wait lets go of it.
//! A forked child has none of the server's threads, so it forgets the server instead of stopping it.

use std::mem;
use std::process;
use std::sync::Mutex;

use bytes::Bytes;
use manyhands::wire::pickle::{Argument, Atom, Call, Limits};
use manyhands_server as rust;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::error::os_error;
use crate::plain;
use crate::queue::Queue;

/// A running server for the queues that Python adopts and for all that stays in Python.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Server {
    running: Mutex<Option<rust::Server>>,
    guests: rust::Guests,
    address: String,
    pid: u32,
}

#[pymethods]
impl Server {
    /// Listens on `address`: `HOST:PORT` with a numeric host, or `unix:PATH`.
    #[new]
    fn start(py: Python<'_>, address: &str, authkey: PyBackedBytes) -> PyResult<Self> {
        let mut limits = rust::Limits::default();
        // CPython has no bound; these keep a client from taking the machine's memory.
        limits.frame_bytes_max = limits.memory_bytes_max / 8;
        limits.control_bytes_max = limits.frame_bytes_max;
        limits.queues_max = usize::MAX;
        let builder = rust::Server::builder()
            .address(address)
            .authkey(&*authkey)
            .allow_weak_key(true)
            .limits(limits);
        let (server, guests) = py.detach(|| builder.start_with_guests()).map_err(start_error)?;
        let address = server.addresses().first().map(ToString::to_string).unwrap_or_default();
        Ok(Self { running: Mutex::new(Some(server)), guests, address, pid: process::id() })
    }

    /// Where it listens, in the form of the constructor's argument.
    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    /// Descriptors that a forked child should close.
    #[getter]
    fn listening(&self) -> PyResult<Vec<i32>> {
        #[cfg(unix)]
        return self.with(|server| server.listening().to_vec());
        #[cfg(not(unix))]
        Ok(Vec::new())
    }

    /// Waits for the next client that calls objects in Python; `None` when the server has stopped.
    fn accept(&self, py: Python<'_>) -> Option<Conversation> {
        py.detach(|| self.guests.next()).map(Conversation)
    }

    /// Makes a queue: `order` is `fifo`, `lifo` or `priority`.
    fn pin_new(&self, order: &str, maxsize: usize, unfinished: u64) -> PyResult<Queue> {
        let order = match order {
            "fifo" => rust::Order::Fifo,
            "lifo" => rust::Order::Lifo,
            "priority" => rust::Order::Priority,
            other => return Err(PyValueError::new_err(format!("no order {other:?}"))),
        };
        let mut options = rust::QueueOptions::bounded(maxsize);
        options.order = order;
        let queue = self.with(|server| server.pin_new(options))?;
        let queue = queue.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        queue.add_unfinished(unfinished);
        Ok(Queue(queue))
    }

    /// The queue that clients know as `ident`.
    fn pin(&self, ident: &str) -> PyResult<Option<Queue>> {
        Ok(self.with(|server| server.pin(ident))?.map(Queue))
    }

    /// Queues that clients refer to.
    fn number_of_queues(&self) -> PyResult<usize> {
        self.with(rust::Server::number_of_queues)
    }

    /// A text about every reference to a queue.
    fn debug_info(&self) -> PyResult<String> {
        self.with(rust::Server::debug_info)
    }

    /// Stops the server; replies under way go out. Does nothing in a forked child.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.end());
    }
}

impl Server {
    fn with<R>(&self, call: impl FnOnce(&rust::Server) -> R) -> PyResult<R> {
        let running = self.running.lock().ok();
        let server = running.as_ref().and_then(|running| running.as_ref());
        server.map(call).ok_or_else(|| PyRuntimeError::new_err("the server has stopped"))
    }

    fn end(&self) {
        if self.pid != process::id() {
            // Its threads are the parent's, and one of them may hold this lock for ever.
            mem::forget(self.running.try_lock().ok().and_then(|mut running| running.take()));
            return;
        }
        // Who comes second waits here until the server has stopped.
        if let Ok(mut running) = self.running.lock()
            && let Some(server) = running.take()
        {
            // What made it fail was logged when it did.
            server.stop().ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// One client that calls objects in Python.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Conversation(rust::Conversation);

#[pymethods]
impl Conversation {
    /// The name of the client's session; `None` for a control request.
    #[getter]
    fn session(&self) -> Option<&str> {
        self.0.session()
    }

    /// Waits for the next request; `None` when the client has left.
    fn recv(&self, py: Python<'_>) -> Option<Request> {
        py.detach(|| self.0.recv()).map(Request)
    }

    /// Sends a reply, a pickle; false if the client has left.
    fn send(&self, py: Python<'_>, reply: PyBackedBytes) -> bool {
        py.detach(|| self.0.send(Bytes::from_owner(reply)))
    }
}

/// What a client asks. Looking at it unpickles nothing.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Request(rust::Request);

/// A control call: its method, the name or ident that it is about, and its arguments if they are
/// plain data.
type Control<'py> = (String, Option<String>, Option<(Bound<'py, PyTuple>, Bound<'py, PyDict>)>);

#[pymethods]
impl Request {
    /// The object that is called, as the client names it; `None` for another kind of request.
    #[getter]
    fn ident(&self) -> Option<&str> {
        match &self.0 {
            rust::Request::Call { ident, .. } => Some(ident),
            _ => None,
        }
    }

    /// The idents of the objects whose proxies go into a queue; `None` for a call.
    #[getter]
    fn carried(&self) -> Option<Vec<&str>> {
        match &self.0 {
            rust::Request::Carried(idents) => Some(idents.iter().map(String::as_str).collect()),
            _ => None,
        }
    }

    /// What the pickle's PROTO says; `None` without it.
    #[getter]
    fn protocol(&self) -> Option<u8> {
        match **self.bytes() {
            [0x80, protocol, ..] => Some(protocol),
            _ => None,
        }
    }

    /// The pickle.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.bytes())
    }

    /// Reads a call of the manager itself.
    fn control<'py>(&self, py: Python<'py>) -> PyResult<Control<'py>> {
        let limits = Limits::default();
        let call = Call::parse(self.bytes().clone(), &limits)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let subject = call.args().first().and_then(|first| match call.atom(first) {
            Some(Atom::Text(text)) => Some(text),
            _ => call.token_id(first),
        });
        Ok((call.method().to_owned(), subject, arguments(py, &call, &limits)?))
    }
}

impl Request {
    fn bytes(&self) -> &Bytes {
        static NOTHING: Bytes = Bytes::new();
        match &self.0 {
            rust::Request::Control(body) | rust::Request::Call { body, .. } => body,
            _ => &NOTHING,
        }
    }
}

/// The arguments of a call if they are plain data.
fn arguments<'py>(
    py: Python<'py>,
    call: &Call,
    limits: &Limits,
) -> PyResult<Option<(Bound<'py, PyTuple>, Bound<'py, PyDict>)>> {
    let read = |argument: &Argument| {
        let value = call.payload(argument, limits).and_then(|payload| payload.value(limits));
        value.map_or(Ok(None), |value| plain::to_python(py, &value))
    };
    let mut args = Vec::new();
    for argument in call.args() {
        let Some(value) = read(argument)? else { return Ok(None) };
        args.push(value);
    }
    let kwds = PyDict::new(py);
    for (name, argument) in call.kwargs() {
        let Some(value) = read(&argument)? else { return Ok(None) };
        kwds.set_item(name, value)?;
    }
    Ok(Some((PyTuple::new(py, args)?, kwds)))
}

pub(crate) fn start_error(error: rust::StartError) -> PyErr {
    match &error {
        rust::StartError::Listen { error: source, .. } | rust::StartError::Io(source) => {
            // What the system says, without the number that goes beside it.
            let text = source.to_string();
            os_error(source, text.split(" (os error").next().unwrap_or_default().to_owned())
        }
        _ => PyRuntimeError::new_err(error.to_string()),
    }
}
