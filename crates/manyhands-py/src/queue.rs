//! A queue that Python has adopted into the server, called beside the manager in the same process.

use std::time::Duration;

use bytes::Bytes;
use manyhands::Error;
use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::{Limits, Payload};
use manyhands_server::PinnedQueue;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::error::raise;

/// A queue of pickles. Calls that wait can be interrupted if `interruptible`, which only the main
/// thread needs; other threads never take the interpreter's lock while they wait.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Queue(pub(crate) PinnedQueue);

#[pymethods]
impl Queue {
    /// A new reference for a client: its ident. The client asked for it by `name`, if it has one.
    #[pyo3(signature = (name=None))]
    fn refer(&self, name: Option<&str>) -> String {
        name.map_or_else(|| self.0.refer(), |name| self.0.refer_as(name))
    }

    /// Adds a pickle.
    fn put(
        &self,
        py: Python<'_>,
        pickle: PyBackedBytes,
        block: bool,
        timeout: Option<f64>,
        interruptible: bool,
    ) -> PyResult<()> {
        let payload = Payload::from_standalone(Bytes::from_owner(pickle), &Limits::default());
        let payload = payload.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let wait = wait(block, timeout);
        waiting(py, interruptible, "Full", |goes_on| self.0.put(payload, wait, goes_on))
    }

    /// Takes a pickle.
    fn get<'py>(
        &self,
        py: Python<'py>,
        block: bool,
        timeout: Option<f64>,
        interruptible: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let wait = wait(block, timeout);
        let payload = waiting(py, interruptible, "Empty", |goes_on| self.0.get(wait, goes_on))?;
        Ok(PyBytes::new(py, &payload.standalone()))
    }

    /// Waits until every item is done.
    fn join(&self, py: Python<'_>, interruptible: bool) -> PyResult<()> {
        waiting(py, interruptible, "Empty", |goes_on| self.0.join(goes_on))
    }

    /// Counts one item as done.
    fn task_done(&self, py: Python<'_>) -> PyResult<()> {
        self.0.task_done().map_err(|error| raise(py, error, "Empty"))
    }

    /// Ends the queue.
    fn shutdown(&self, py: Python<'_>, immediate: bool) -> PyResult<()> {
        self.0.shutdown(immediate).map_err(|error| raise(py, error, "Empty"))
    }

    /// Items that are ready.
    fn qsize(&self) -> usize {
        self.0.qsize()
    }

    /// Whether as many items are ready as fit.
    fn full(&self) -> bool {
        self.0.is_full()
    }

    /// Items that are not done.
    #[getter]
    fn unfinished(&self) -> u64 {
        self.0.unfinished()
    }

    /// Whether it was shut down.
    #[getter]
    fn is_shutdown(&self) -> bool {
        self.0.is_shut_down()
    }
}

fn wait(block: bool, timeout: Option<f64>) -> Wait {
    match timeout {
        _ if !block => Wait::No,
        None => Wait::Forever,
        Some(seconds) if seconds < 0.0 => Wait::Negative,
        // What no Duration holds is as good as for ever.
        Some(seconds) => Duration::try_from_secs_f64(seconds).map_or(Wait::Forever, Wait::For),
    }
}

/// Makes a call that may wait, without the interpreter's lock. `shut_down` is the class of
/// `queue.ShutDown` before Python 3.13.
fn waiting<T: Send>(
    py: Python<'_>,
    interruptible: bool,
    shut_down: &str,
    call: impl FnOnce(&mut (dyn FnMut() -> bool + Send)) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let mut interruption = None;
    let result = py.detach(|| {
        call(&mut || {
            if interruptible {
                interruption = Python::attach(|py| py.check_signals()).err();
            }
            interruption.is_none()
        })
    });
    match interruption {
        Some(interruption) => Err(interruption),
        None => result.map_err(|error| raise(py, error, shut_down)),
    }
}
