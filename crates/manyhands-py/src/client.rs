//! The blocking Rust client for Python: calls of queues on a server, without the interpreter's lock
//! while they wait.

use std::cell::{Cell, RefCell};
use std::mem;
use std::process;
use std::time::Duration;

use bytes::Bytes;
use manyhands::wire::pickle::{Limits, Payload};
use manyhands::{ConnectOptions, Error, blocking};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::error::{ManyhandsError, raise};

thread_local! {
    /// Whether this thread's call should look after signals, as only the main thread can.
    static INTERRUPTIBLE: Cell<bool> = const { Cell::new(false) };
    /// What a signal's handler raised while the call waited.
    static INTERRUPTION: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Lets Python handle signals; false if a handler raised.
fn goes_on() -> bool {
    if !INTERRUPTIBLE.get() {
        return true;
    }
    match Python::attach(|py| py.check_signals()) {
        Ok(()) => true,
        Err(interruption) => {
            INTERRUPTION.set(Some(interruption));
            false
        }
    }
}

/// Makes a call without the interpreter's lock.
fn waiting<T: Send>(
    py: Python<'_>,
    interruptible: bool,
    call: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<T> {
    INTERRUPTIBLE.set(interruptible);
    let result = py.detach(call);
    INTERRUPTIBLE.set(false);
    match INTERRUPTION.take() {
        Some(interruption) => Err(interruption),
        None => result.map_err(|error| raise(py, error, "Empty")),
    }
}

/// Something that belongs to the process that made it: a forked child shares its sockets, so it must
/// neither use them nor take leave in its parent's name.
struct OfProcess<T> {
    value: Option<T>,
    pid: u32,
}

impl<T> OfProcess<T> {
    fn new(value: T) -> Self {
        Self { value: Some(value), pid: process::id() }
    }

    fn get(&self) -> PyResult<&T> {
        self.value.as_ref().filter(|_| self.pid == process::id()).ok_or_else(|| {
            ManyhandsError::new_err("this was connected by another process; connect again in this")
        })
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.pid != process::id() {
            mem::forget(self.value.take());
        }
    }
}

/// A server of queues.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Client(OfProcess<blocking::Client>);

#[pymethods]
impl Client {
    /// Connects to `host:port` or `unix:/path`.
    #[new]
    fn connect(
        py: Python<'_>,
        address: &str,
        authkey: PyBackedBytes,
        interruptible: bool,
    ) -> PyResult<Self> {
        let options = ConnectOptions { goes_on: Some(goes_on), ..ConnectOptions::default() };
        let connect = || blocking::Client::connect_with(address, &*authkey, options);
        waiting(py, interruptible, connect).map(|client| Self(OfProcess::new(client)))
    }

    /// The queue registered as `name`.
    fn queue(&self, py: Python<'_>, name: &str, interruptible: bool) -> PyResult<RemoteQueue> {
        let client = self.0.get()?;
        let queue = waiting(py, interruptible, || client.queue(name))?;
        Ok(RemoteQueue(OfProcess::new(queue)))
    }

    /// Takes leave of the server.
    fn close(&self, py: Python<'_>, interruptible: bool) -> PyResult<()> {
        let client = self.0.get()?;
        waiting(py, interruptible, || client.close())
    }
}

/// A queue on a server, of pickles.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct RemoteQueue(OfProcess<blocking::Queue<()>>);

#[pymethods]
impl RemoteQueue {
    /// Adds a pickle; `timeout` in seconds.
    fn put(
        &self,
        py: Python<'_>,
        pickle: PyBackedBytes,
        timeout: Option<f64>,
        interruptible: bool,
    ) -> PyResult<()> {
        let payload = Payload::from_standalone(Bytes::from_owner(pickle), &Limits::default());
        let payload = payload.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let timeout = duration(timeout)?;
        let queue = self.0.get()?;
        waiting(py, interruptible, || queue.put_payload(&payload, timeout))
    }

    /// Takes a pickle; `timeout` in seconds.
    fn get<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
        interruptible: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let timeout = duration(timeout)?;
        let queue = self.0.get()?;
        let payload = waiting(py, interruptible, || queue.get_payload(timeout))?;
        Ok(PyBytes::new(py, &payload.standalone()))
    }

    /// Items that are ready.
    fn qsize(&self, py: Python<'_>, interruptible: bool) -> PyResult<u64> {
        let queue = self.0.get()?;
        waiting(py, interruptible, || queue.qsize())
    }

    /// Whether as many items are ready as fit.
    fn full(&self, py: Python<'_>, interruptible: bool) -> PyResult<bool> {
        let queue = self.0.get()?;
        waiting(py, interruptible, || queue.is_full())
    }

    /// Counts one item as done.
    fn task_done(&self, py: Python<'_>, interruptible: bool) -> PyResult<()> {
        let queue = self.0.get()?;
        waiting(py, interruptible, || queue.task_done())
    }

    /// Waits until every item is done.
    fn join(&self, py: Python<'_>, interruptible: bool) -> PyResult<()> {
        let queue = self.0.get()?;
        waiting(py, interruptible, || queue.join())
    }

    /// Ends the queue.
    fn shutdown(&self, py: Python<'_>, immediate: bool, interruptible: bool) -> PyResult<()> {
        let queue = self.0.get()?;
        waiting(py, interruptible, || queue.shutdown(immediate))
    }
}

/// What no duration holds is as good as for ever.
fn duration(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    match seconds {
        Some(seconds) if seconds < 0.0 => {
            Err(PyValueError::new_err("'timeout' must be a non-negative number"))
        }
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds).ok()),
        None => Ok(None),
    }
}
