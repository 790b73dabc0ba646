//! Looks at queues and tasks, and what is done about dead letters.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use manyhands::wire::native::{Code, Route, reply};
use manyhands::wire::tasks::{Peek, Peeked};
use tokio::task::{spawn_blocking, yield_now};

use super::pending::{Cancel, PENDING_BYTES, Rest, Waits};
use super::replies::{failure, no_memory};
use super::session::Session;
use crate::config::SMALL_BYTES;
use crate::engine::{Caller, Engine, Looked, Promise, Redriving, Reference, Snapshot, Ticket};
use crate::error::{CallError, ConnectionError};
use crate::frontend::lists::info;
use crate::memory::Room;
use crate::queue::TaskId;
use crate::socket::Socket;

/// What is told of a task that was looked at beside its texts and its item, in bytes.
const TOLD_BYTES: u64 = 200;
/// What is told of a queue, in bytes, roughly.
const QUEUE_TOLD_BYTES: u64 = 640;

/// What came of work that others have done.
pub(super) enum Report {
    Peeked(Result<Vec<Peeked>, CallError>, Room),
    Redriven(Ticket<u64>),
    /// There is memory for a list of queues.
    List(String, Room),
    /// No reply can be made any more.
    NotDurable,
}

impl<S: Socket> Session<'_, S> {
    pub(super) fn size(&mut self, route: Route) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let look = self
            .shared
            .engine
            .look(open.reference, |queue| (queue.len() as u64, queue.options().maxsize as u64));
        match look {
            Ok((qsize, maxsize)) => {
                reply::push_size(qsize, maxsize, route, self.behind(Promise::NOTHING));
                None
            }
            Err(error) => self.refuse_with(Promise::NOTHING, route, &failure(&error)),
        }
    }

    /// Says what is known of queues whose names come after this one, of some of them.
    pub(super) fn list(&mut self, route: Route, after: String) -> Rest {
        let len = self.shared.engine.number_of_listed().min(crate::engine::PAGE_LEN);
        let bytes = len as u64 * QUEUE_TOLD_BYTES;
        if self.has_room_for(bytes) {
            return self.tell_list(route, &after);
        }
        let memory = self.shared.engine.memory().clone();
        let work = Box::pin(async move {
            let mut room = memory.room();
            room.grow_to(bytes).await;
            Report::List(after, room)
        });
        self.wait_for_work(route, work)
    }

    fn tell_list(&mut self, route: Route, after: &str) -> Rest {
        let engine = &self.shared.engine;
        let mut snapshot = Snapshot::after(after);
        let page = engine.next_queues(&mut snapshot);
        let is_more = page.len() >= crate::engine::PAGE_LEN;
        let queues: Vec<_> = page.into_iter().map(info).collect();
        self.add_work(queues.len());
        let pushed = reply::push_list(&queues, is_more, route, self.behind(Promise::NOTHING));
        match pushed {
            Ok(()) => None,
            Err(error) => self.refuse(route, Code::TooLong, &error.to_string()),
        }
    }

    /// Looks at tasks, at some of them at a time, and reads their items where those are on disk.
    pub(super) fn peek(&mut self, route: Route, peek: Peek) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let (engine, caller) = (self.shared.engine.clone(), self.caller());
        let work = Box::pin(peek_at(engine, caller, open.reference, peek));
        self.wait_for_work(route, work)
    }

    /// Moves dead letters back; the rest, if there are many or some have to be read, apart.
    pub(super) fn redrive(&mut self, route: Route, max: u64, task: Option<u64>) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let (engine, at) = (self.shared.engine.clone(), open.reference);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let one = task.map(|task| Redriving::one(TaskId(task)));
        let mut redriving = one.unwrap_or_else(|| Redriving::of(max));
        match engine.redrive_some(at, &mut redriving) {
            Err(error) => self.refuse_with(redriving.promise, route, &failure(&error)),
            Ok(false) => self.tell_count(route, redriving.moved, redriving.promise),
            Ok(true) => {
                let shared = self.shared.clone();
                let work = Box::pin(async move {
                    let _turn = shared.redrives.acquire().await;
                    let moved = spawn_blocking(move || engine.redrive(at, redriving)).await;
                    moved.map_or(Report::NotDurable, Report::Redriven)
                });
                self.wait_for_work(route, work)
            }
        }
    }

    pub(super) fn purge(&mut self, route: Route) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let Ticket { called, promise } = self.shared.engine.purge(open.reference);
        match called {
            Ok(count) => self.tell_count(route, count, promise),
            Err(error) => self.refuse_with(promise, route, &failure(&error)),
        }
    }

    pub(super) fn revoke(&mut self, route: Route, task: u64) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let Ticket { called, promise } = self.shared.engine.revoke(open.reference, TaskId(task));
        match called {
            Ok(was_there) => self.tell_count(route, was_there.into(), promise),
            Err(error) => self.refuse_with(promise, route, &failure(&error)),
        }
    }

    pub(super) fn tell_count(&mut self, route: Route, count: u64, promise: Promise) -> Rest {
        reply::push_count(count, route, self.behind(promise));
        None
    }

    fn wait_for_work(
        &mut self,
        route: Route,
        work: Pin<Box<dyn Future<Output = Report> + Send>>,
    ) -> Rest {
        let Some(parked) = self.shared.engine.memory().park(PENDING_BYTES) else {
            return self.refuse_with(Promise::NOTHING, route, &no_memory());
        };
        self.wait(route, Waits::Work(work), Some(parked), Cancel::Not)
    }

    /// Work that others have done is over.
    pub(super) fn resume_work(
        &mut self,
        route: Route,
        report: Report,
    ) -> Result<Rest, ConnectionError> {
        Ok(match report {
            Report::Peeked(peeked, room) => {
                self.room.absorb(room);
                match peeked {
                    Ok(tasks) => self.tell_peeked(route, &tasks),
                    Err(error) => self.refuse_with(Promise::NOTHING, route, &failure(&error)),
                }
            }
            Report::Redriven(Ticket { called, promise }) => match called {
                Ok(moved) => self.tell_count(route, moved, promise),
                Err(error) => self.refuse_with(promise, route, &failure(&error)),
            },
            Report::List(after, room) => {
                self.room.absorb(room);
                self.tell_list(route, &after)
            }
            Report::NotDurable => return Err(ConnectionError::NotDurable),
        })
    }

    fn tell_peeked(&mut self, route: Route, tasks: &[Peeked]) -> Rest {
        self.add_work(tasks.len());
        let mut writer = reply::begin_peeked(route, self.behind(Promise::NOTHING));
        tasks.iter().for_each(|task| writer.peeked(task));
        match writer.finish() {
            Ok(()) => None,
            Err(error) => self.refuse(route, Code::TooLong, &error.to_string()),
        }
    }
}

async fn peek_at(engine: Arc<Engine>, caller: Caller, at: Reference, peek: Peek) -> Report {
    let mut room = engine.memory().room();
    // What is told of tasks is copied, and belongs to nobody else.
    let bytes = (peek.max as u64).saturating_mul(TOLD_BYTES);
    if peek.items || bytes > SMALL_BYTES {
        room.grow_to(engine.look_bytes_max()).await;
    }
    let mut looked = Looked::of(peek);
    loop {
        match engine.look_on(at, &mut looked) {
            Ok(true) => yield_now().await,
            Ok(false) => break,
            Err(error) => return Report::Peeked(Err(error), room),
        }
    }
    match engine.read_looked(caller, at, &mut looked, &mut room) {
        Ok(None) => {}
        Ok(Some(reading)) => match reading.await {
            Ok((read, with)) => {
                room = with;
                looked.arrive(read);
            }
            Err(_) => return Report::NotDurable,
        },
        Err(_) => return Report::NotDurable,
    }
    Report::Peeked(Ok(looked.finish()), room)
}
