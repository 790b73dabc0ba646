//! The client: a server elsewhere, and its queues.
//!
//! [`verbs`] makes calls of Python's arguments, [`items`] payloads of Python's objects, and [`answers`]
//! objects of what comes back. Here threads wait for that, without the interpreter's lock; [`core`] is
//! for an event loop.
//!
//! Invariant: a forked child neither uses nor drops what its parent has made.

pub(crate) mod answers;
pub(crate) mod core;
pub(crate) mod items;
pub(crate) mod verbs;

use std::cell::{Cell, RefCell};
use std::mem;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use manyhands::internal as rust;
use manyhands::wire::pickle::Dialect;
use manyhands::{Address, ConnectOptions, Error};
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;

use self::answers::{Form, lease};
use self::verbs::{Verb, credit};
use crate::error::{exception, first_exception};
use crate::key::AuthKey;

/// How often a process that had this module was forked until it was this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Whether signals are handled on this thread, and after how many forks that was found out.
    static HANDLES_SIGNALS: Cell<Option<(u32, bool)>> = const { Cell::new(None) };
    /// What a handler of signals raised while this thread waited.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Notes that this process is a forked child: what there is belongs to its parent.
#[pyfunction]
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// What a forked child must not drop: that would say something on its parent's connection, or wait for
/// a lock that a thread of the parent holds.
struct Owned<T> {
    value: Option<T>,
    forks: u32,
}

impl<T> Owned<T> {
    fn new(value: T) -> Self {
        Self { value: Some(value), forks: forks() }
    }

    fn get(&self) -> PyResult<&T> {
        let ours = self.value.as_ref().filter(|_| self.forks == forks());
        ours.ok_or_else(|| PyRuntimeError::new_err("this belongs to the parent of this process"))
    }

    fn take(&mut self) -> Option<T> {
        if self.forks == forks() { self.value.take() } else { None }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.forks != forks() {
            mem::forget(self.value.take());
        }
    }
}

/// Where a server is, and how to talk to it.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Remote {
    address: Address,
    key: manyhands::AuthKey,
    key_hint: &'static str,
    session_name: Option<String>,
    options: ConnectOptions,
}

#[derive(FromPyObject)]
enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

#[pymethods]
impl Remote {
    /// `silence` is how long the server may take over what needs no waiting, in seconds, and after
    /// `report_after` seconds users are told that it is away. Without a name, a session has that of its
    /// process.
    #[new]
    #[pyo3(signature = (address, authkey, reconnect, no_md5, silence, report_after, session_name=None))]
    fn new(
        address: Place,
        authkey: &AuthKey,
        reconnect: f64,
        no_md5: bool,
        silence: f64,
        report_after: f64,
        session_name: Option<String>,
    ) -> Self {
        let seconds = |seconds: f64| {
            let time = Duration::try_from_secs_f64(seconds.max(0.0));
            time.unwrap_or(Duration::from_secs(u32::MAX.into()))
        };
        let options = ConnectOptions {
            connect_timeout: seconds(silence),
            call_margin: seconds(silence),
            accept_md5: !no_md5,
            first_silence_is_final: true,
            reconnect_for: seconds(reconnect),
            goes_on: Some(goes_on),
            report: Some(report),
            report_after: seconds(report_after),
            ..ConnectOptions::default()
        };
        let address = match address {
            Place::Tcp(host, port) => Address::Tcp { host, port },
            Place::Unix(path) => Address::Unix(path),
        };
        let (key, key_hint) = (authkey.key.clone(), authkey.hint);
        Self { address, key, key_hint, session_name, options }
    }

    /// The same server, which is not waited for if it is away.
    fn hurried(&self) -> Self {
        let options = ConnectOptions { reconnect_for: Duration::ZERO, ..self.options.clone() };
        let (address, key) = (self.address.clone(), self.key.clone());
        Self {
            address,
            key,
            key_hint: self.key_hint,
            session_name: self.session_name.clone(),
            options,
        }
    }
}

impl Remote {
    fn server(&self) -> rust::Server {
        let own = || format!("python pid={}", process::id());
        let session_name = self.session_name.clone().unwrap_or_else(own);
        let options = ConnectOptions { session_name, ..self.options.clone() };
        rust::Server::new(self.address.clone(), self.key.clone(), options)
    }
}

/// A client whose calls wait on their threads.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Client {
    client: Owned<rust::Client>,
    remote: Py<Remote>,
}

#[pymethods]
impl Client {
    /// Connects.
    #[new]
    fn connect(py: Python<'_>, remote: Py<Remote>) -> PyResult<Self> {
        let (server, key_hint) = (remote.get().server(), remote.get().key_hint);
        let client = wait(py, || rust::Client::connect(&server))?;
        let client = client.map_err(|error| first_exception(py, error, key_hint))?;
        Ok(Self { client: Owned::new(client), remote })
    }

    /// A client that speaks CPython's protocol, to whichever server.
    #[staticmethod]
    fn classic(remote: Py<Remote>, is_python2: bool) -> Self {
        let dialect = if is_python2 { Dialect::Python2 } else { Dialect::Python3 };
        let client = rust::Client::classic(&remote.get().server(), dialect);
        Self { client: Owned::new(client), remote }
    }

    /// Opens a queue.
    fn queue(&self, py: Python<'_>, name: &str) -> PyResult<RemoteQueue> {
        let client = self.client.get()?;
        let queue = ask(py, || client.queue(name))?;
        Ok(RemoteQueue(Owned::new(queue)))
    }

    /// The queue that is called by a reference of CPython's protocol.
    fn queue_of(&self, name: &str, ident: String) -> PyResult<RemoteQueue> {
        Ok(RemoteQueue(Owned::new(self.client.get()?.queue_of(name, ident))))
    }

    /// A new reference to what is called `name`, by CPython's protocol: its ident.
    fn refer(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        let client = self.client.get()?;
        ask(py, || client.refer(name))
    }

    /// Makes a call of the server, and returns what it comes to.
    fn ask<'py>(&self, py: Python<'py>, verb: &Verb) -> PyResult<Bound<'py, PyAny>> {
        let (client, form) = (self.client.get()?, verb.form);
        let verb = verb.take()?;
        let answer = ask(py, || client.ask(verb))?;
        form.to_python(py, answer)
    }

    /// What the server tells of its objects.
    fn debug_info(&self, py: Python<'_>) -> PyResult<String> {
        let client = self.client.get()?;
        ask(py, || client.debug_info())
    }

    /// How many objects clients hold references to.
    fn number_of_objects(&self, py: Python<'_>) -> PyResult<u64> {
        let client = self.client.get()?;
        ask(py, || client.number_of_objects())
    }

    /// From now on a server that is away is not waited for.
    fn leave(&self) -> PyResult<()> {
        self.client.get()?.leave();
        Ok(())
    }

    /// Ends all calls, and the connection. Raises if the server cannot be reached now.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let client = self.client.get()?;
        let server = self.remote.get().hurried().server();
        ask(py, || {
            let was_connected = client.is_connected();
            match client.close() {
                Ok(()) if was_connected => Ok(()),
                // It is fine if the server was only started anew.
                _ => rust::Client::connect(&server)?.close(),
            }
        })
    }

    /// Closes the sockets, in a forked child.
    fn forget(&self) {
        self.client.value.iter().for_each(rust::Client::forget);
    }
}

/// A queue whose calls wait on their threads.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct RemoteQueue(Owned<rust::Queue>);

#[pymethods]
impl RemoteQueue {
    /// Whether it is a queue of manyhands, and not an object of a Python program.
    #[getter]
    fn is_native(&self) -> PyResult<bool> {
        Ok(self.0.get()?.is_native())
    }

    /// The newest pickle protocol that is read there, if that is not any.
    #[getter]
    fn protocol(&self) -> PyResult<Option<u8>> {
        Ok((self.0.get()?.dialect() == Dialect::Python2).then_some(2))
    }

    /// Makes a call, and returns what it comes to.
    fn ask<'py>(&self, py: Python<'py>, verb: &Verb) -> PyResult<Bound<'py, PyAny>> {
        let (queue, form) = (self.0.get()?, verb.form);
        let verb = verb.take()?;
        let answer = ask(py, || queue.ask(verb))?;
        form.to_python(py, answer)
    }

    /// Gives the reference to it back; it is not used any more.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let queue = self.0.get()?;
        ask(py, || queue.close())
    }

    /// Has tasks pushed, up to `ahead` before they are asked for.
    fn leases(&self, py: Python<'_>, ahead: &Bound<'_, PyAny>) -> PyResult<Leases> {
        let (queue, ahead) = (self.0.get()?, credit(ahead)?);
        let leases = ask(py, || queue.leases(ahead))?;
        Ok(Leases(Owned::new(leases)))
    }

    /// Makes a call whose answer is awaited later.
    fn ask_ahead(&self, py: Python<'_>, verb: &Verb) -> PyResult<Ahead> {
        let (queue, form) = (self.0.get()?, verb.form);
        let verb = verb.take()?;
        let ahead = ask(py, || queue.ask_ahead(verb))?;
        Ok(Ahead { ahead: Mutex::new(Owned::new(ahead)), form })
    }
}

/// Leases of tasks that the server pushes.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Leases(Owned<rust::Leases>);

#[pymethods]
impl Leases {
    /// Waits for the next task; `None` if there are no more.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let leases = self.0.get()?;
        ask(py, || leases.next())?.map(|task| lease(py, task, false)).transpose()
    }

    /// Raises in a forked child.
    fn check(&self) -> PyResult<()> {
        self.0.get().map(drop)
    }

    /// Returns what was not started, and ends `next`.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let leases = self.0.get()?;
        py.detach(|| leases.close());
        Ok(())
    }
}

/// An answer that is awaited later.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Ahead {
    ahead: Mutex<Owned<rust::Ahead>>,
    form: Form,
}

#[pymethods]
impl Ahead {
    /// Waits for it, once.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ahead = ahead.ok_or_else(|| PyRuntimeError::new_err("it was awaited before"))?;
        let answer = ask(py, || ahead.wait())?;
        self.form.to_python(py, answer)
    }
}

/// Waits for something of the server's without the interpreter's lock.
fn ask<T: Send>(py: Python<'_>, call: impl FnOnce() -> Result<T, Error> + Send) -> PyResult<T> {
    wait(py, call)?.map_err(|error| exception(py, error))
}

/// The same with the server's own error, if it is no exception that a handler of signals raised.
fn wait<T: Send>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<Result<T, Error>> {
    find_out_who_handles_signals(py)?;
    match py.detach(call) {
        Err(Error::Interrupted) => {
            Err(RAISED.take().unwrap_or_else(|| PyKeyboardInterrupt::new_err(())))
        }
        result => Ok(result),
    }
}

fn find_out_who_handles_signals(py: Python<'_>) -> PyResult<()> {
    if HANDLES_SIGNALS.get().is_some_and(|(after, _)| after == forks()) {
        return Ok(());
    }
    let threading = py.import("threading")?;
    let this = threading.call_method0("get_ident")?;
    let is_main = threading.call_method0("main_thread")?.getattr("ident")?.eq(this)?;
    HANDLES_SIGNALS.set(Some((forks(), is_main)));
    Ok(())
}

/// Looks after signals. Other threads than the one that handles them do not take the interpreter's lock.
fn goes_on() -> bool {
    if !HANDLES_SIGNALS.get().is_some_and(|(_, handles)| handles) {
        return true;
    }
    let raised = Python::attach(|py| py.check_signals().err());
    let goes_on = raised.is_none();
    RAISED.set(raised);
    goes_on
}

/// Tells the user that the server is tried again.
fn report(error: &Error, left: Duration) {
    Python::attach(|py| {
        let error = exception(py, rust::same(error));
        let net = py.import("manyhands._net");
        let told = net.and_then(|net| net.call_method1("tell", (left.as_secs_f64(), error)));
        // Nobody wants to know.
        drop(told);
    });
}
