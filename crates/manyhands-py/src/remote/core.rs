//! The client without its socket, which an event loop of Python's has.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use manyhands::Error;
use manyhands::internal as rust;
use manyhands::internal::Next;
use manyhands::wire::pickle::Dialect;
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::Remote;
use super::answers::{Form, lease};
use super::verbs::{Verb, credit};
use crate::error::{exception, first_exception};

/// The calls of a client, and what is to be read and written for them.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Core {
    core: Mutex<rust::Core>,
    remote: Py<Remote>,
}

/// What is to be done next, and within how many seconds.
type What = (&'static str, Option<f64>);

#[pymethods]
impl Core {
    #[new]
    fn new(remote: Py<Remote>) -> Self {
        Self { core: Mutex::new(rust::Core::new(&remote.get().server())), remote }
    }

    /// Asks for nothing but a connection; returns the id of the call, as all do that make one.
    fn connect(&self) -> u32 {
        self.lock().connect()
    }

    /// Opens a queue; returns its handle, too.
    fn open(&self, py: Python<'_>, name: &str) -> PyResult<(u16, u32)> {
        self.lock().open(name).map_err(|error| exception(py, error))
    }

    /// Makes a call of a queue. What a caller took by a plain `get` is settled by what it does next.
    fn ask(&self, caller: u64, queue: u16, verb: &Verb) -> PyResult<u32> {
        let verb = verb.take()?;
        Ok(self.lock().ask(caller, queue, verb))
    }

    /// Has tasks of a queue pushed, up to `ahead` before they are asked for; returns the id of the credit,
    /// which counts as decided whenever tasks have come.
    fn subscribe(&self, queue: u16, ahead: &Bound<'_, PyAny>) -> PyResult<u32> {
        let ahead = credit(ahead)?;
        Ok(self.lock().subscribe(queue, ahead))
    }

    /// Starts the next task that was pushed: its lease; `None` if none has come. `StopIteration` if there
    /// are no more. With `stored`, its item is unpickled later.
    #[pyo3(signature = (id, stored=false))]
    fn next_task<'py>(
        &self,
        py: Python<'py>,
        id: u32,
        stored: bool,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (task, answer) = {
            let mut core = self.lock();
            match core.next_task(id) {
                None => (None, core.answer(id)),
                task => (task, None),
            }
        };
        match (task, answer) {
            (Some(task), _) => lease(py, task, stored).map(Some),
            (None, None) => Ok(None),
            (_, Some(Ok(_) | Err(Error::ShutDown))) => Err(PyStopIteration::new_err(())),
            (_, Some(Err(error))) => Err(exception(py, error)),
        }
    }

    /// Ends a credit: what was not started returns.
    fn unsubscribe(&self, id: u32) {
        self.lock().unsubscribe(id);
    }

    /// Ends a call whose caller has left.
    fn cancel(&self, id: u32) {
        self.lock().cancel(id);
    }

    /// The ids of the calls that were decided since.
    fn decided(&self) -> Vec<u32> {
        let mut core = self.lock();
        std::iter::from_fn(|| core.next_decided()).collect()
    }

    /// What a call came to, once; raises if it failed. It was made by `verb`, or is about the connection.
    #[pyo3(signature = (id, verb=None))]
    fn answer<'py>(
        &self,
        py: Python<'py>,
        id: u32,
        verb: Option<&Verb>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let answer = self.lock().answer(id);
        match (answer, verb) {
            (None, _) => Ok(py.None().into_bound(py)),
            (Some(Ok(answer)), verb) => {
                verb.map_or(Form::Plain, |verb| verb.form).to_python(py, answer)
            }
            (Some(Err(error)), Some(_)) => Err(exception(py, error)),
            (Some(Err(error)), None) => Err(first_exception(py, error, self.remote.get().key_hint)),
        }
    }

    /// Whether the queue that a call was to open is open; raises if something else went wrong than that
    /// there is none.
    fn is_opened(&self, py: Python<'_>, id: u32) -> PyResult<bool> {
        let answer = self.lock().answer(id);
        match answer {
            Some(Err(Error::UnknownQueue { .. })) => Ok(false),
            Some(Err(error)) => Err(exception(py, error)),
            Some(Ok(_)) | None => Ok(true),
        }
    }

    /// Whether a server that came back does not know the queue that was open.
    fn is_missing(&self, queue: u16) -> bool {
        self.lock().is_missing(queue)
    }

    /// `None` if the server speaks the native protocol, else whether it is of Python 2.
    #[getter]
    fn is_python2(&self) -> Option<bool> {
        self.lock().classic().map(|dialect| dialect == Dialect::Python2)
    }

    /// Whether nothing but the end of the connection may come.
    #[getter]
    fn is_at_rest(&self) -> bool {
        self.lock().is_at_rest()
    }

    #[getter]
    fn is_connected(&self) -> bool {
        self.lock().is_connected()
    }

    /// From now on a server that is away is not waited for.
    fn leave(&self) {
        self.lock().leave();
    }

    /// Closes all queues; returns the ids of the calls that say when they are.
    fn close(&self) -> Vec<u32> {
        self.lock().close()
    }

    /// Ends all calls.
    fn end(&self) {
        self.lock().end();
    }

    /// Tells the user that the server is away, if it is time to.
    fn report(&self) {
        let reported = self.lock().report();
        if let Some((error, left)) = reported {
            super::report(&error, left);
        }
    }

    /// What to do next: `connect`, `talk`, `rest` or `end`.
    fn next(&self) -> What {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        match self.lock().next() {
            Next::Connect => ("connect", None),
            Next::Talk(limit) => ("talk", seconds(limit)),
            Next::Rest(limit) => ("rest", seconds(limit)),
            Next::End => ("end", None),
        }
    }

    /// Notes that connecting begins.
    fn connecting(&self) {
        self.lock().connecting();
    }

    /// Notes that there is a connection.
    fn connected(&self) {
        self.lock().connected();
    }

    /// Notes that there is none.
    fn unreachable(&self, error: &Bound<'_, PyAny>) {
        let error = system_error(error);
        self.lock().unreachable(error);
    }

    /// Reads what has come.
    fn received(&self, bytes: &[u8]) {
        self.lock().received(bytes);
    }

    /// Notes that the connection ended, or broke by an error.
    #[pyo3(signature = (error=None))]
    fn lost(&self, error: Option<&Bound<'_, PyAny>>) {
        match error {
            Some(error) => {
                let error = system_error(error);
                self.lock().broken(error);
            }
            None => self.lock().ended(),
        }
    }

    /// Looks what is overdue.
    fn tick(&self) {
        self.lock().tick();
    }

    /// What is to be written now; all of it will be.
    fn outbound<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lock().outbound())
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, rust::Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of the system that an exception is.
fn system_error(error: &Bound<'_, PyAny>) -> io::Error {
    let number = error.getattr("errno").and_then(|number| number.extract::<i32>()).ok();
    match number.filter(|number| *number > 0) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error.to_string()),
    }
}
