//! Calls of a queue, made of Python's arguments.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use manyhands::TaskState;
use manyhands::internal::{Fate, Settlement, Verb as RustVerb};
use manyhands::wire::arguments::{BATCH_LEN_MAX, KEY_LEN_MAX, REASON_CHARS_MAX, TIME_MAX, Wait};
use manyhands::wire::native::PutTerms;
use manyhands::wire::pickle::Payload;
use manyhands::wire::tasks::Peek;
use manyhands::wire::token::LeaseToken;
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

use super::answers::Form;
use super::items::{self, Items};

/// One call, to be made once.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Verb {
    verb: Mutex<Option<RustVerb>>,
    /// What its answer becomes.
    pub(super) form: Form,
}

/// One lease of a task.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Token(pub(super) LeaseToken);

#[pymethods]
impl Verb {
    #[staticmethod]
    #[expect(clippy::too_many_arguments, reason = "those of the put that users see")]
    fn put(
        item: &Bound<'_, PyAny>,
        protocol: Option<u8>,
        block: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
        key: Option<&Bound<'_, PyAny>>,
        delay: Option<&Bound<'_, PyAny>>,
        priority: Option<&Bound<'_, PyAny>>,
        expires: Option<&Bound<'_, PyAny>>,
        id: bool,
    ) -> PyResult<Self> {
        let terms = PutTerms {
            key: key.map(read_key).transpose()?,
            delay: delay.map(|delay| seconds("delay", delay)).transpose()?,
            priority: priority.map(|priority| int("priority", priority)).transpose()?,
            expires: expires.map(|expires| seconds("expires", expires)).transpose()?,
        };
        let terms = (terms != PutTerms::default()).then(|| Box::new(terms));
        let wait = wait(block, timeout)?;
        let item = items::payload(item, protocol)?;
        let form = if id { Form::Number } else { Form::IsNew };
        Ok(Self::new(RustVerb::Put { item, terms, wait, numbered: id }, form))
    }

    /// The same call, to be made once more.
    fn copy(&self) -> Self {
        let verb = self.verb.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { verb: Mutex::new(verb), form: self.form }
    }

    #[staticmethod]
    fn get(block: &Bound<'_, PyAny>, timeout: &Bound<'_, PyAny>) -> PyResult<Self> {
        let wait = wait(block, timeout)?;
        Ok(Self::new(taking(wait, 1), Form::Item))
    }

    /// With `stored`, the items are unpickled later.
    #[staticmethod]
    fn get_many(
        max: &Bound<'_, PyAny>,
        block: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
        stored: bool,
    ) -> PyResult<Self> {
        let max = count("max", max)?;
        let form = if stored { Form::Stored } else { Form::Items };
        Ok(Self::new(taking(wait(block, timeout)?, max), form))
    }

    #[staticmethod]
    fn take_with_info(block: &Bound<'_, PyAny>, timeout: &Bound<'_, PyAny>) -> PyResult<Self> {
        let wait = wait(block, timeout)?;
        let verb = RustVerb::Get { wait, max: 1, leased: false, hold: None, informed: true };
        Ok(Self::new(verb, Form::Taken))
    }

    #[staticmethod]
    fn lease_many(
        max: &Bound<'_, PyAny>,
        block: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
        hold: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let (max, wait) = (count("max", max)?, wait(block, timeout)?);
        let hold = hold.map(|hold| seconds("hold", hold)).transpose()?;
        let verb = RustVerb::Get { wait, max, leased: true, hold, informed: false };
        Ok(Self::new(verb, Form::Leases))
    }

    /// `result` is empty, or has the one that there is.
    #[staticmethod]
    fn ack(
        token: &Token,
        result: Vec<Bound<'_, PyAny>>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let py = timeout.py();
        let wait = wait(&PyBool::new(py, true), timeout)?;
        let result = match result.as_slice() {
            [] => None,
            [result] => Some(items::payload(result, None)?),
            more => {
                let text = format!("a task has one result, not {}", more.len());
                return Err(PyTypeError::new_err(text));
            }
        };
        let wait = if result.is_some() { wait } else { Wait::No };
        Ok(Self::settling(token, Fate::Ack { result }, wait, Form::Acked))
    }

    /// Acks the leases from `start` on, as many as one call does, each with its result if there are
    /// any; and how many that are.
    #[staticmethod]
    fn ack_many(
        tokens: Vec<PyRef<'_, Token>>,
        results: Option<&Items>,
        start: usize,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<(Self, usize)> {
        let wait = wait(&PyBool::new(timeout.py(), true), timeout)?;
        let rest = tokens.get(start..).unwrap_or_default();
        let piece = results.map(|results| results.piece(start, BATCH_LEN_MAX));
        let (wait, count) = match &piece {
            Some(piece) => (wait, piece.len()),
            None => (Wait::No, rest.len().min(BATCH_LEN_MAX)),
        };
        let results = piece.into_iter().flatten().map(Some).chain(std::iter::repeat(None));
        let settlement = |(token, result): (&PyRef<'_, Token>, _)| {
            let fate = Fate::Ack { result };
            Settlement { token: token.0, fate }
        };
        let settlements = rest.iter().take(count).zip(results).map(settlement).collect();
        Ok((Self::new(RustVerb::Settle { settlements, wait }, Form::EachAcked), count))
    }

    #[staticmethod]
    fn nack(
        token: &Token,
        delay: Option<&Bound<'_, PyAny>>,
        reason: &Bound<'_, PyAny>,
        give_up: bool,
    ) -> PyResult<Self> {
        let delay = delay.map(|delay| seconds("delay", delay)).transpose()?;
        let reason = read_reason(reason)?;
        let fate = if give_up { Fate::GiveUp { reason } } else { Fate::Nack { delay, reason } };
        Ok(Self::settling(token, fate, Wait::No, Form::Settled))
    }

    #[staticmethod]
    fn extend(token: &Token, hold: &Bound<'_, PyAny>) -> PyResult<Self> {
        let fate = Fate::Extend { hold: seconds("hold", hold)? };
        Ok(Self::settling(token, fate, Wait::No, Form::Settled))
    }

    #[staticmethod]
    fn peek(
        max: &Bound<'_, PyAny>,
        state: Option<&Bound<'_, PyAny>>,
        items: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let (max, items) = (count("max", max)?, items.is_truthy()?);
        let state = state.map(read_state).transpose()?.unwrap_or_default();
        Ok(Self::new(RustVerb::Peek(Peek { max, state, items }), Form::Peeked))
    }

    #[staticmethod]
    fn redrive(max: Option<&Bound<'_, PyAny>>, task: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let max = max.map(|max| count("max", max)).transpose()?.unwrap_or(BATCH_LEN_MAX);
        let task = task.map(|task| int("task", task)).transpose()?;
        // No task has a negative number, nor the greatest one that there is.
        let task = task.map(|task| u64::try_from(task).unwrap_or(u64::MAX - 1));
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        Ok(Self::new(RustVerb::Redrive { max, task }, Form::Plain))
    }

    #[staticmethod]
    fn purge() -> Self {
        Self::new(RustVerb::Purge, Form::Plain)
    }

    /// What is known of queues, those whose names come after this one.
    #[staticmethod]
    fn list(after: String) -> Self {
        Self::new(RustVerb::List { after }, Form::Queues)
    }

    #[staticmethod]
    fn drop(name: String, force: &Bound<'_, PyAny>) -> PyResult<Self> {
        let force = force.is_truthy()?;
        Ok(Self::new(RustVerb::Drop { name, force }, Form::Plain))
    }

    /// Ends a task, whoever has it.
    #[staticmethod]
    fn revoke(task: u64) -> Self {
        Self::new(RustVerb::Revoke { task }, Form::Plain)
    }

    #[staticmethod]
    fn close() -> Self {
        Self::new(RustVerb::Close, Form::Plain)
    }

    #[staticmethod]
    fn qsize() -> Self {
        Self::new(RustVerb::Size, Form::Plain)
    }

    #[staticmethod]
    fn empty() -> Self {
        Self::new(RustVerb::IsEmpty, Form::Plain)
    }

    #[staticmethod]
    fn full() -> Self {
        Self::new(RustVerb::IsFull, Form::Plain)
    }

    #[staticmethod]
    fn task_done() -> Self {
        Self::new(RustVerb::TaskDone, Form::Plain)
    }

    #[staticmethod]
    fn join() -> Self {
        Self::new(RustVerb::Join, Form::Plain)
    }

    /// Declares a queue, with the options of the command line.
    #[staticmethod]
    fn configure(name: String, options: String) -> Self {
        Self::new(RustVerb::Configure { name, options }, Form::Plain)
    }

    #[staticmethod]
    fn shutdown(immediate: &Bound<'_, PyAny>) -> PyResult<Self> {
        let immediate = immediate.is_truthy()?;
        Ok(Self::new(RustVerb::Shutdown { immediate }, Form::Plain))
    }
}

impl Verb {
    fn new(verb: RustVerb, form: Form) -> Self {
        Self { verb: Mutex::new(Some(verb)), form }
    }

    pub(super) fn put_batch(
        items: Vec<Payload>,
        block: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let wait = wait(block, timeout)?;
        Ok(Self::new(RustVerb::PutMany { items, wait }, Form::Added))
    }

    fn settling(token: &Token, fate: Fate, wait: Wait, form: Form) -> Self {
        let settlements = vec![Settlement { token: token.0, fate }];
        Self::new(RustVerb::Settle { settlements, wait }, form)
    }

    /// The call, which is made now.
    pub(super) fn take(&self) -> PyResult<RustVerb> {
        let verb = self.verb.lock().unwrap_or_else(PoisonError::into_inner).take();
        verb.ok_or_else(|| PyRuntimeError::new_err("this call was made before"))
    }
}

fn taking(wait: Wait, max: usize) -> RustVerb {
    RustVerb::Get { wait, max, leased: false, hold: None, informed: false }
}

/// How long a call waits.
fn wait(block: &Bound<'_, PyAny>, timeout: &Bound<'_, PyAny>) -> PyResult<Wait> {
    let timeout = if timeout.is_none() { None } else { Some(read_timeout(timeout)?) };
    if !block.is_truthy()? {
        return Ok(Wait::No);
    }
    match timeout {
        None => Ok(Wait::Forever),
        Some(seconds) if seconds < 0.0 => {
            Err(PyValueError::new_err("'timeout' must be a non-negative number"))
        }
        // What no Duration holds is as good as for ever.
        Some(seconds) => Ok(match Duration::try_from_secs_f64(seconds) {
            Ok(Duration::ZERO) => Wait::No,
            Ok(time) if time < TIME_MAX => Wait::For(time),
            _ => Wait::Forever,
        }),
    }
}

fn read_timeout(timeout: &Bound<'_, PyAny>) -> PyResult<f64> {
    static REAL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let text = || {
        Ok::<_, PyErr>(format!("'timeout' must be a number of seconds, not {}", timeout.repr()?))
    };
    let is_plain = timeout.is_instance_of::<PyFloat>() || timeout.is_instance_of::<PyInt>();
    if !is_plain && !timeout.is_instance(REAL.import(timeout.py(), "numbers", "Real")?)? {
        return Err(PyTypeError::new_err(text()?));
    }
    let seconds = float(timeout)?;
    if seconds.is_nan() { Err(PyValueError::new_err(text()?)) } else { Ok(seconds) }
}

/// A number as a float; what is too large is as good as infinite.
fn float(number: &Bound<'_, PyAny>) -> PyResult<f64> {
    number.extract().or_else(|error: PyErr| {
        let py = number.py();
        if !error.is_instance_of::<PyOverflowError>(py) {
            return Err(error);
        }
        Ok(if number.lt(0)? { f64::NEG_INFINITY } else { f64::INFINITY })
    })
}

/// How many tasks may be ahead of their worker.
pub(super) fn credit(ahead: &Bound<'_, PyAny>) -> PyResult<u32> {
    Ok(u32::try_from(count("ahead", ahead)?).unwrap_or(u32::MAX))
}

/// How many, from 1 up to as many as one call takes.
fn count(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    if !value.is_instance_of::<PyInt>() {
        let text = format!("'{name}' must be an int, not {}", value.repr()?);
        return Err(PyTypeError::new_err(text));
    }
    if value.lt(1)? {
        return Err(PyValueError::new_err(format!("'{name}' must be at least 1")));
    }
    Ok(value.extract().map_or(BATCH_LEN_MAX, |count: usize| count.min(BATCH_LEN_MAX)))
}

fn int(name: &str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    let wrong = || Ok(format!("'{name}' must be an int, not {}", value.repr()?));
    if !value.is_instance_of::<PyInt>() {
        return Err(wrong().map_or_else(|error| error, PyTypeError::new_err));
    }
    value.extract()
}

fn seconds(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let is_number = value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>();
    if !is_number || value.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("'{name}' must be a number of seconds")));
    }
    let seconds = float(value)?;
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!("'{name}' must be a non-negative number")));
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(TIME_MAX).min(TIME_MAX))
}

fn read_key(key: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let key = if let Ok(text) = key.cast::<PyString>() {
        text.extract::<String>()?.into_bytes()
    } else if let Ok(bytes) = key.cast::<PyBytes>() {
        bytes.as_bytes().to_vec()
    } else {
        return Err(PyTypeError::new_err("'key' must be a str or bytes"));
    };
    let len = key.len();
    if len > KEY_LEN_MAX {
        let text = format!("'key' of {len} bytes exceeds the limit of {KEY_LEN_MAX} bytes");
        return Err(PyValueError::new_err(text));
    }
    Ok(key)
}

/// Why a task failed, as long as it is kept.
fn read_reason(reason: &Bound<'_, PyAny>) -> PyResult<String> {
    if reason.is_none() {
        return Ok(String::new());
    }
    let Ok(text) = reason.cast::<PyString>() else {
        return Err(PyTypeError::new_err("'reason' must be a str"));
    };
    Ok(text.to_string_lossy().chars().take(REASON_CHARS_MAX).collect())
}

fn read_state(state: &Bound<'_, PyAny>) -> PyResult<TaskState> {
    let state = state.extract::<String>().ok().and_then(|word| TaskState::named(&word));
    let text = "'state' must be 'ready', 'delayed' or 'leased'";
    state.ok_or_else(|| PyValueError::new_err(text))
}
