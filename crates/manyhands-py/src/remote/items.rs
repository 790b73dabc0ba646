//! Python's objects as payloads: `bytes` as they are, all others pickled by `pickle.dumps`.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use manyhands::wire::pickle::{Codec, Payload};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString};

use super::verbs::Verb;

/// What an item takes beside its payload, in bytes.
const ITEM_LEN: usize = 32;
/// A batch goes out in pieces of about so many bytes.
const PIECE_LEN: usize = 4 << 20;
/// Most items of a piece.
const PIECE_ITEMS: usize = 16_384;
/// How much memory neighbours share.
const ARENA_LEN: usize = 64 << 10;
/// Items up to this length share memory with their neighbours, in bytes.
const SMALL_LEN: usize = 1 << 10;

/// Items, pickled.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Items(Mutex<Pickled>);

#[derive(Default)]
struct Pickled {
    payloads: VecDeque<Payload>,
    len: usize,
    /// Where the next small ones go.
    arena: BytesMut,
}

/// An item as it came, to be unpickled later.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Stored(pub(super) Payload);

#[pymethods]
impl Stored {
    /// An item that was pickled elsewhere.
    #[new]
    fn new(pickle: &Bound<'_, PyBytes>) -> PyResult<Self> {
        Pickled::default().of_pickle(pickle).map(Self)
    }

    /// `P` for a pickle, `X` for JSON, `B` for bytes.
    #[getter]
    fn codec(&self) -> char {
        match self.0.codec {
            Codec::Pickle(_) => 'P',
            Codec::Json => 'X',
            Codec::Bytes => 'B',
        }
    }

    /// The pickle, the JSON text or the bytes.
    fn content<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        match self.0.codec {
            Codec::Pickle(_) => pickle(py, &self.0),
            _ => Ok(PyBytes::new(py, &self.0.content())),
        }
    }

    /// The item.
    fn load<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        load(py, &self.0)
    }
}

#[pymethods]
impl Items {
    /// Pickles what is in an iterable. `protocol` is the newest pickle protocol that may be used.
    #[new]
    #[pyo3(signature = (items, protocol=None))]
    fn new(items: &Bound<'_, PyAny>, protocol: Option<u8>) -> PyResult<Self> {
        let arena = BytesMut::with_capacity(ARENA_LEN);
        let mut pickled = Pickled { arena, ..Pickled::default() };
        for item in items.try_iter()? {
            pickled.add(&item?, protocol)?;
        }
        Ok(Self(Mutex::new(pickled)))
    }

    /// Adds an item; returns how long all of them are, in bytes.
    #[pyo3(signature = (item, protocol=None))]
    fn add(&self, item: &Bound<'_, PyAny>, protocol: Option<u8>) -> PyResult<usize> {
        // Pickling may come back here, and so is done without the lock.
        let payload = Pickled::default().payload(item, protocol)?;
        let mut pickled = self.lock();
        pickled.push(payload);
        Ok(pickled.len)
    }

    fn __len__(&self) -> usize {
        self.lock().payloads.len()
    }

    /// The bytes that they take.
    #[getter]
    fn size(&self) -> usize {
        self.lock().len
    }

    /// The call that puts those from `start` on, as many as one call takes; and how many that are.
    fn put_from(
        &self,
        start: usize,
        block: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<(Verb, usize)> {
        let piece = self.piece(start, PIECE_ITEMS);
        let count = piece.len();
        Ok((Verb::put_batch(piece, block, timeout)?, count))
    }

    /// The call that puts the first ones, as many as one call takes, but not more than `most`. They are
    /// not here any more then.
    fn put_first(
        &self,
        block: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
        most: usize,
    ) -> PyResult<Verb> {
        let mut pickled = self.lock();
        let count = pickled.piece_len(0, most);
        let piece = match count == pickled.payloads.len() {
            true => std::mem::take(&mut pickled.payloads).into(),
            false => pickled.payloads.drain(..count).collect(),
        };
        drop(pickled);
        Verb::put_batch(piece, block, timeout)
    }

    /// The items from `start` on, unpickled.
    #[pyo3(signature = (start=0))]
    fn load<'py>(&self, py: Python<'py>, start: usize) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let rest: Vec<_> = self.lock().payloads.iter().skip(start).cloned().collect();
        rest.iter().map(|payload| load(py, payload)).collect()
    }
}

impl Items {
    /// Those from `start` on, as many as one call takes, but not more than `most`.
    pub(super) fn piece(&self, start: usize, most: usize) -> Vec<Payload> {
        let pickled = self.lock();
        let count = pickled.piece_len(start, most);
        pickled.payloads.iter().skip(start).take(count).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Pickled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pickled {
    /// How many of those from `start` on one call takes.
    fn piece_len(&self, start: usize, most: usize) -> usize {
        let rest = self.payloads.iter().skip(start);
        let mut len = 0;
        let fits = |payload: &&Payload| {
            len += payload.bytes.len();
            len <= PIECE_LEN
        };
        let left = self.payloads.len().saturating_sub(start);
        rest.take(most.min(PIECE_ITEMS)).take_while(fits).count().max(1).min(left)
    }

    fn add(&mut self, item: &Bound<'_, PyAny>, protocol: Option<u8>) -> PyResult<()> {
        let payload = self.payload(item, protocol)?;
        self.push(payload);
        Ok(())
    }

    fn push(&mut self, payload: Payload) {
        self.len += payload.bytes.len() + ITEM_LEN;
        self.payloads.push_back(payload);
    }

    fn payload(&mut self, item: &Bound<'_, PyAny>, protocol: Option<u8>) -> PyResult<Payload> {
        if let Ok(stored) = item.cast_exact::<Stored>() {
            return Ok(stored.get().0.clone());
        }
        match item.cast_exact::<PyBytes>() {
            Ok(bytes) if protocol.is_none() => self.of_bytes(bytes.as_bytes()),
            _ => self.of_pickle(&dumps(item, protocol)?),
        }
    }

    fn of_bytes(&mut self, bytes: &[u8]) -> PyResult<Payload> {
        let payload = match bytes.len() {
            ..=SMALL_LEN => Payload::bytes_in(&mut self.arena, bytes),
            _ => Payload::bytes(bytes),
        };
        payload.map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn of_pickle(&mut self, pickle: &Bound<'_, PyBytes>) -> PyResult<Payload> {
        let pickle = pickle.as_bytes();
        let bytes = if pickle.len() > SMALL_LEN {
            Bytes::copy_from_slice(pickle)
        } else {
            self.arena.extend_from_slice(pickle);
            self.arena.split().freeze()
        };
        Payload::from_server(bytes).map_err(|error| PyValueError::new_err(error.to_string()))
    }
}

/// One item as a payload.
pub(super) fn payload(item: &Bound<'_, PyAny>, protocol: Option<u8>) -> PyResult<Payload> {
    Pickled::default().payload(item, protocol)
}

/// The object that a payload is.
pub(super) fn load<'py>(py: Python<'py>, payload: &Payload) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    match (payload.codec, payload.plain_content()) {
        (Codec::Bytes, Some(bytes)) => Ok(PyBytes::new(py, bytes).into_any()),
        (Codec::Json, Some(text)) => {
            let text = std::str::from_utf8(text);
            let text = text.map_err(|error| PyValueError::new_err(error.to_string()))?;
            Ok(PyString::new(py, text).into_any())
        }
        _ => {
            let loads = LOADS.import(py, "pickle", "loads")?;
            loads.call1((pickle(py, payload)?,))
        }
    }
}

fn pickle<'py>(py: Python<'py>, payload: &Payload) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, payload.standalone_len(), |room| {
        payload.copy_standalone(room);
        Ok(())
    })
}

fn dumps<'py>(item: &Bound<'py, PyAny>, protocol: Option<u8>) -> PyResult<Bound<'py, PyBytes>> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let dumps = DUMPS.import(item.py(), "pickle", "dumps")?;
    let pickle = match protocol {
        None => dumps.call1((item,))?,
        Some(protocol) => dumps.call1((item, protocol))?,
    };
    Ok(pickle.cast_into::<PyBytes>()?)
}
