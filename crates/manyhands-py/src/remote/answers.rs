//! What comes back for a call, as Python's objects.

use std::time::Duration;

use manyhands::Error;
use manyhands::internal::{Answer, Task};
use manyhands::{Info, Peeked, QueueInfo};
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use super::items::{Stored, load};
use super::verbs::Token;
use crate::error::exception;

/// What an answer becomes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// What it is: a number, a truth, or `None`.
    Plain,
    /// Whether the item is new.
    IsNew,
    /// The number of its task, or `None`.
    Number,
    /// How many items were added, and the exception that says why no more.
    Added,
    /// The only item.
    Item,
    /// A list of items.
    Items,
    /// A list of items that are not unpickled yet.
    Stored,
    /// A list of token, number of the task, attempt, item, and why that could not be read.
    Leases,
    /// The item and what is known of it.
    Taken,
    /// A list of what is known of tasks.
    Peeked,
    /// `None`, or the exception that says why not.
    Settled,
    /// The same of an ack, which may come twice.
    Acked,
    /// A list of the same of acks.
    EachAcked,
    /// A list of what is known of queues, and whether there are more.
    Queues,
}

impl Form {
    pub(super) fn to_python<'py>(
        self,
        py: Python<'py>,
        answer: Answer,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.read(py, answer)?.map_err(|error| exception(py, error))
    }

    fn read<'py>(
        self,
        py: Python<'py>,
        answer: Answer,
    ) -> PyResult<Result<Bound<'py, PyAny>, Error>> {
        let object = match (self, answer) {
            (Self::Plain, Answer::Done) => py.None().into_bound(py),
            (Self::Plain, Answer::Count(count)) => count.into_pyobject(py)?.into_any(),
            (Self::Plain, Answer::Flag(flag)) => truth(py, flag),
            (Self::IsNew, answer) => match answer.newly() {
                Ok(is_new) => truth(py, is_new),
                Err(error) => return Ok(Err(error)),
            },
            (Self::Number, answer) => match answer.number() {
                Ok(number) => number.into_pyobject(py)?.into_any(),
                Err(error) => return Ok(Err(error)),
            },
            (Self::Added, Answer::Added(added)) => {
                let refusal = added.refusal.map(|error| exception(py, error).into_value(py));
                (added.count, refusal).into_pyobject(py)?.into_any()
            }
            (Self::Item, Answer::Tasks(tasks)) => match tasks.first() {
                Some(task) => load(py, &task.payload)?,
                None => return Ok(Err(Error::Empty)),
            },
            (Self::Items, Answer::Tasks(tasks)) => {
                list(py, tasks, |task| load(py, &task.payload))?.into_any()
            }
            (Self::Stored, Answer::Tasks(tasks)) => {
                list(py, tasks, |task| Bound::new(py, Stored(task.payload)))?.into_any()
            }
            (Self::Leases, Answer::Tasks(tasks)) => {
                list(py, tasks, |task| lease(py, task, false))?.into_any()
            }
            (Self::Taken, Answer::Tasks(tasks)) => match tasks.into_iter().next() {
                Some(Task { payload, info, .. }) => {
                    let info = info.map(|info| known(py, *info)).transpose()?;
                    (load(py, &payload)?, info).into_pyobject(py)?.into_any()
                }
                None => return Ok(Err(Error::Empty)),
            },
            (Self::Peeked, Answer::Peeked(tasks)) => {
                list(py, tasks, |task| peeked(py, task))?.into_any()
            }
            (Self::Settled | Self::Acked, Answer::Settled(settled)) => {
                match settled.into_iter().next().unwrap_or(Ok(())) {
                    Ok(()) => py.None().into_bound(py),
                    Err(Error::SettledBefore) if matches!(self, Self::Acked) => {
                        py.None().into_bound(py)
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
            (Self::EachAcked, Answer::Settled(settled)) => {
                list(py, settled, |acked| match acked {
                    Ok(()) | Err(Error::SettledBefore) => Ok(None),
                    Err(error) => Ok(Some(exception(py, error).into_value(py))),
                })?
                .into_any()
            }
            (Self::Queues, Answer::Queues(queues, more)) => {
                (list(py, queues, |queue| queue_info(py, queue))?, more)
                    .into_pyobject(py)?
                    .into_any()
            }
            (form, answer) => {
                let text = format!("no answer to what was asked: {form:?}, {answer:?}");
                return Err(PyRuntimeError::new_err(text));
            }
        };
        Ok(Ok(object))
    }
}

fn truth(py: Python<'_>, truth: bool) -> Bound<'_, PyAny> {
    pyo3::types::PyBool::new(py, truth).to_owned().into_any()
}

fn list<'py, T, O: IntoPyObject<'py>>(
    py: Python<'py>,
    all: Vec<T>,
    each: impl Fn(T) -> PyResult<O>,
) -> PyResult<Bound<'py, PyList>> {
    let objects: Vec<O> = all.into_iter().map(each).collect::<PyResult<_>>()?;
    PyList::new(py, objects)
}

/// One of a list of leases.
pub(super) fn lease<'py>(
    py: Python<'py>,
    task: Task,
    is_stored: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let token = task.token.ok_or_else(|| PyRuntimeError::new_err("a task without its token"))?;
    let item = if is_stored {
        Bound::new(py, Stored(task.payload)).map(Bound::into_any)
    } else {
        load(py, &task.payload)
    };
    let (item, failure) = match item {
        Ok(item) => (Some(item), None),
        Err(failure) if failure.is_instance_of::<PyException>(py) => {
            (None, Some(failure.into_value(py)))
        }
        Err(interrupt) => return Err(interrupt),
    };
    let lease = (Token(token), token.task, token.attempt, item, failure);
    Ok(lease.into_pyobject(py)?.into_any())
}

/// The fields of the class `Info`.
fn known<'py>(py: Python<'py>, info: Info) -> PyResult<Bound<'py, PyAny>> {
    let Info { queue, task, attempt, worker, waited, ran, history } = info;
    let times = (waited.as_secs_f64(), ran.as_secs_f64());
    Ok((queue, task, attempt, worker, times.0, times.1, history).into_pyobject(py)?.into_any())
}

/// The fields of the class `QueueInfo`.
fn queue_info<'py>(py: Python<'py>, queue: QueueInfo) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("name", queue.name)?;
    fields.set_item("order", queue.order)?;
    fields.set_item("declared", queue.declared)?;
    fields.set_item("is_joined", queue.is_joined)?;
    fields.set_item("oldest", queue.oldest)?;
    let counts = [
        ("maxsize", queue.maxsize),
        ("qsize", queue.qsize),
        ("unfinished", queue.unfinished),
        ("leased", queue.leased),
        ("delayed", queue.delayed),
        ("dead", queue.dead),
        ("waiting_get", queue.waiting_get),
        ("waiting_put", queue.waiting_put),
        ("waiting_join", queue.waiting_join),
        ("references", queue.references),
        ("put", queue.put),
        ("taken", queue.taken),
        ("done", queue.done),
        ("bytes", queue.bytes),
    ];
    for (name, count) in counts {
        fields.set_item(name, count)?;
    }
    Ok(fields)
}

/// The fields of the class `Task`, as far as they are known.
fn peeked<'py>(py: Python<'py>, task: Peeked) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("task", task.task)?;
    fields.set_item("state", task.state.name())?;
    fields.set_item("attempt", task.attempt)?;
    if let Some(item) = &task.item {
        fields.set_item("item", load(py, item)?)?;
    }
    let times = [("age", task.age), ("due_in", task.due_in), ("since", task.since)];
    for (name, time) in times {
        fields.set_item(name, time.map(|time: Duration| time.as_secs_f64()))?;
    }
    if let Some(key) = &task.key {
        match std::str::from_utf8(key) {
            Ok(key) => fields.set_item("key", key)?,
            Err(_) => fields.set_item("key", PyBytes::new(py, key))?,
        }
    }
    fields.set_item("worker", task.worker)?;
    fields.set_item("peer", task.peer)?;
    let failures = task.failures.into_iter();
    let failures = failures.map(|failure| (failure.attempt, failure.worker, failure.reason));
    fields.set_item("failures", pyo3::types::PyTuple::new(py, failures.collect::<Vec<_>>())?)?;
    if let Some((queue, origin)) = task.origin {
        fields.set_item("queue", queue)?;
        fields.set_item("origin", origin)?;
    }
    Ok(fields)
}
