//! Reads the payloads of tasks that are handed out, where those are on disk.
//!
//! What the system has in memory is read at once, in microseconds. As soon as one would have to wait
//! for the disk, a thread of its own reads it and all that come after it in the batch: a slow disk
//! keeps only those waiting who want something from it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hashbrown::HashMap;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::Stored;
use crate::config::SMALL_BYTES;
use crate::engine::{Caller, Engine, Promise, Reference, State};
use crate::journal::{Bodies, Durability, Durable, JournalError, Location};
use crate::memory::Room;
use crate::queue::{Grant, Queue, TaskId};

/// More than this of one batch is not read at once, in bytes: even memory takes a while to be read.
const AT_ONCE_MAX: usize = 256 << 10;

/// What came of looking for one payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Read,
    /// It would have to be waited for.
    NotYet,
    /// Its task has been settled meanwhile by somebody else, who got it when its time here was up.
    Gone,
}

/// The same tasks, with the memory that they take: they are read on another thread, once there is room.
pub(crate) struct Reading(Pin<Box<dyn Future<Output = Read> + Send>>);

type Read = Result<(Vec<Grant>, Room), JournalError>;

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").finish_non_exhaustive()
    }
}

impl Future for Reading {
    type Output = Read;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Read> {
        self.0.as_mut().poll(cx)
    }
}

impl Engine {
    /// Reads the payloads that are not there yet, or begins to. Nothing if all are there, but for those
    /// of tasks that are gone, which stay away. They take `room`; those of the embedding program, which
    /// has memory of its own, do not.
    pub(in crate::engine) fn fetch(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        grants: &mut [Grant],
        room: &mut Room,
    ) -> Result<Option<Reading>, JournalError> {
        let (unwritten, bytes) = self.unwritten(reference, grants);
        let bytes = if caller.is_in_process() { 0 } else { bytes };
        let has_room = bytes <= SMALL_BYTES || room.try_grow_to(bytes);
        if unwritten.is_none() && has_room && self.fetch_at_once(reference, grants)? {
            return Ok(None);
        }
        let written = move || unwritten.map_or(Ok(()), Durable::wait);
        let Ok(runtime) = Handle::try_current() else {
            // A thread of the embedding program, which waits for nobody else.
            return written().and_then(|()| self.fetch_all(reference, grants)).map(|()| None);
        };
        let (engine, mut grants) = (self.clone(), grants.to_vec());
        let mut room = std::mem::replace(room, self.memory.room());
        let read = move |room| {
            runtime.spawn_blocking(move || {
                written()?;
                engine.fetch_all(reference, &mut grants)?;
                Ok((grants, room))
            })
        };
        if has_room {
            return Ok(Some(Reading(Box::pin(read_by(read(room))))));
        }
        Ok(Some(Reading(Box::pin(async move {
            room.grow_to(bytes).await;
            read_by(read(room)).await
        }))))
    }

    /// What has to be waited for before payloads can be read: a task may be handed out before the
    /// frame with its put is written.
    /// Beside it, how long they are together, in bytes.
    pub(crate) fn unwritten(
        &self,
        reference: Reference,
        grants: &[Grant],
    ) -> (Option<Durable>, u64) {
        let mut away = grants.iter().filter(|it| Queue::is_evicted(&it.payload)).peekable();
        if away.peek().is_none() {
            return (None, 0);
        }
        let mut state = self.lock_kept();
        let (mut promise, mut bytes) = (Promise::NOTHING, 0);
        for Grant { token, .. } in away {
            let stored = state.stored(reference.queue, token.task);
            bytes += stored.map_or(0, |stored| u64::from(stored.len()));
            promise = promise.and(state.promise_of(reference.queue, token.task));
        }
        drop(state);
        if planted!(ReadBeforeWritten) {
            return (None, bytes);
        }
        let journal = self.journal.as_ref().filter(|_| !promise.is_nothing());
        let written = journal.map(|journal| journal.durable(promise.written(), Durability::Os));
        (written.filter(|written| !written.is_over()), bytes)
    }

    /// Reads what is in memory, up to the first payload that is not; false if there is one.
    fn fetch_at_once(
        &self,
        reference: Reference,
        grants: &mut [Grant],
    ) -> Result<bool, JournalError> {
        let mut left = AT_ONCE_MAX;
        for grant in grants.iter_mut().filter(|grant| Queue::is_evicted(&grant.payload)) {
            let read = |bodies: &Bodies, at: Location| match left.checked_sub(at.len as usize) {
                None => Ok(None),
                Some(rest) => {
                    left = rest;
                    bodies.read_at_once(at)
                }
            };
            if self.fetch_one(reference, grant, read)? == Look::NotYet {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the rest, wherever it is.
    fn fetch_all(&self, reference: Reference, grants: &mut [Grant]) -> Result<(), JournalError> {
        for grant in grants.iter_mut().filter(|grant| Queue::is_evicted(&grant.payload)) {
            self.fetch_one(reference, grant, |bodies, at| bodies.read(at).map(Some))?;
        }
        Ok(())
    }

    /// Reads the payload of a task that was handed out. Another place may be told of it meanwhile.
    fn fetch_one(
        &self,
        reference: Reference,
        grant: &mut Grant,
        mut read: impl FnMut(&Bodies, Location) -> Result<Option<Bytes>, JournalError>,
    ) -> Result<Look, JournalError> {
        let find = || {
            let state = self.lock_kept();
            let stored = state.stored(reference.queue, grant.token.task)?;
            Some((state.log.as_ref()?.journal.bodies(), stored))
        };
        loop {
            let Some((bodies, stored)) = find() else { return Ok(Look::Gone) };
            match read(&bodies, stored.location) {
                Ok(None) => return Ok(Look::NotYet),
                Ok(Some(bytes)) => {
                    grant.payload.bytes = bytes;
                    return Ok(Look::Read);
                }
                Err(JournalError::Gone)
                    if self.lock_kept().stored(reference.queue, grant.token.task)
                        != Some(stored) => {}
                Err(error) => {
                    return Err(self.lock_kept().fail_body(stored.location, &error));
                }
            }
        }
    }
}

impl Engine {
    /// Reads bodies without the lock, on this thread. One that is gone meanwhile is left out, and so
    /// are those behind one that cannot be read.
    pub(in crate::engine) fn read_bodies(
        &self,
        bodies: Vec<(TaskId, Stored)>,
    ) -> HashMap<TaskId, Bytes> {
        let Some(journal) = self.journal().filter(|_| !bodies.is_empty()) else {
            return HashMap::new();
        };
        let reader = journal.bodies();
        let read =
            bodies.into_iter().map_while(|(task, stored)| match reader.read(stored.location) {
                Ok(bytes) => Some(Some((task, bytes))),
                Err(JournalError::Gone) => Some(None),
                Err(error) => {
                    self.lock_kept().fail_body(stored.location, &error);
                    None
                }
            });
        read.flatten().collect()
    }
}

/// What came of reading on another thread.
async fn read_by(thread: JoinHandle<Read>) -> Read {
    let read = thread.await;
    read.unwrap_or_else(|error| Err(JournalError::Poisoned(error.to_string().into())))
}

impl State {
    /// A body that was durable is not there: nothing else can be trusted. Says whose it is.
    pub(super) fn fail_body(&mut self, at: Location, error: &JournalError) -> JournalError {
        let error = error.clone().of_task(|| self.owner(at));
        if let Some(log) = &self.log {
            log.journal.fail(&error);
        }
        error
    }

    /// The queue, by name, and the task whose body lies there. Takes its time, at the end of everything.
    fn owner(&self, at: Location) -> Option<(String, u64)> {
        self.queues.values().find_map(|hosted| {
            let (name, queue_log) = (hosted.name.as_deref()?, hosted.queue_log.as_ref()?);
            let mut tasks = queue_log.ledger.iter();
            let (task, _) = tasks.find(|(_, stored)| stored.location == at)?;
            Some((name.to_owned(), task.0))
        })
    }
}

/// Tasks on their way to who took them. Dropped before they are there, they go back.
pub(in crate::engine) struct OnTheWay<'a> {
    engine: &'a Engine,
    caller: Caller,
    reference: Reference,
    grants: Vec<Grant>,
}

impl<'a> OnTheWay<'a> {
    pub(in crate::engine) fn new(
        engine: &'a Engine,
        caller: Caller,
        reference: Reference,
        grants: Vec<Grant>,
    ) -> Self {
        Self { engine, caller, reference, grants }
    }

    /// They have arrived, with their payloads.
    pub(in crate::engine) fn arrive(self, read: Vec<Grant>) -> Vec<Grant> {
        let mut grants = self.over();
        for (grant, Grant { payload, .. }) in grants.iter_mut().zip(read) {
            grant.payload = payload;
        }
        grants
    }

    /// The same, as they are.
    pub(in crate::engine) fn over(mut self) -> Vec<Grant> {
        std::mem::take(&mut self.grants)
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        if self.grants.is_empty() {
            return;
        }
        let mut state = self.engine.lock_kept();
        for grant in &self.grants {
            state.return_unread(self.caller, self.reference.queue, grant.token);
        }
        self.engine.commit(&mut state);
    }
}
