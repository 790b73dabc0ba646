//! Dead letters: the tasks that were given up, how they get into their queue, and how they are
//! redriven to the queue that they came from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use manyhands::wire::pickle::{Dialect, Payload, Value, to_payload};

use crate::engine::persist::Stored;
use crate::engine::{BATCH_AT_ONCE, Engine, Held, Promise, QueueId, Reference, State};
use crate::error::CallError;
use crate::queue::{
    Cause, DeadLetter, Failed, Grant, Origin, Queue, QueueOptions, Taker, TaskId, Terms,
};

/// Dead letters that are moved under one lock.
pub(crate) const REDRIVEN_AT_ONCE_MAX: usize = if cfg!(test) { 4 } else { BATCH_AT_ONCE };

/// Dead letters on their way back to where they came from.
#[derive(Debug)]
pub(crate) struct Redriving {
    /// How many are to be moved at most.
    pub(crate) max: usize,
    /// How many were.
    pub(crate) moved: u64,
    /// What must be durable before anybody is told.
    pub(crate) promise: Promise,
    /// The only one that is to be moved, if it is one.
    only: Option<TaskId>,
    /// What was copied of them, in bytes.
    copied_bytes: usize,
    /// The next ones, whose bodies have to be read.
    unread: Vec<(TaskId, Stored)>,
}

impl Redriving {
    pub(crate) fn of(max: usize) -> Self {
        let promise = Promise::NOTHING;
        Self { max, moved: 0, promise, only: None, copied_bytes: 0, unread: Vec::new() }
    }

    /// Of this one alone.
    pub(crate) fn one(task: TaskId) -> Self {
        Self { only: Some(task), ..Self::of(1) }
    }
}

/// What one step has moved.
#[derive(Debug, Default)]
struct Redriven {
    /// The only one that it may move.
    only: Option<TaskId>,
    moved: u64,
    /// What was copied, also by the steps before it, in bytes.
    bytes: usize,
    unread: Vec<(TaskId, Stored)>,
    /// Whether there may be more, for another step.
    is_cut: bool,
}

impl Engine {
    /// A step of the same; false if it was the last. The next one may read from the disk.
    pub(crate) fn redrive_some(
        &self,
        reference: Reference,
        redriving: &mut Redriving,
    ) -> Result<bool, CallError> {
        let bodies = self.read_bodies(std::mem::take(&mut redriving.unread));
        let mut state = self.lock(reference.queue);
        if !state.queues.contains_key(&reference.queue) {
            return Err(CallError::NoQueue);
        }
        let max = redriving.max.saturating_sub(usize::try_from(redriving.moved).unwrap_or(0));
        let Redriving { only, copied_bytes: bytes, .. } = *redriving;
        let mut step = Redriven { only, bytes, ..Redriven::default() };
        state.redrive(reference.queue, max, bodies, &mut step, |state| {
            if planted!(RedriveApart) {
                self.commit(state);
                // A frame of its own.
                state.log.as_ref().map(|log| log.journal.mark());
            }
        });
        redriving.promise = redriving.promise.and(self.commit(&mut state));
        redriving.moved += step.moved;
        (redriving.copied_bytes, redriving.unread) = (step.bytes, step.unread);
        Ok(step.is_cut || !redriving.unread.is_empty())
    }
}

impl State {
    /// Moves a task that was given up to the dead-letter queue, which is made if need be.
    pub(super) fn bury(&mut self, from: QueueId, letter: DeadLetter) {
        if planted!(DeadLetterLost) {
            return;
        }
        let DeadLetter { payload, task, key, attempts, history } = letter;
        let Some(hosted) = self.queues.get(&from) else { return };
        let Some(name) = hosted.name.clone() else {
            let last = last_reason(&history);
            tracing::warn!(last, "a task of a queue without a name was given up and is gone");
            return;
        };
        let dead = hosted.queue.options().dead_letters_of(&name);
        let last = last_reason(&history);
        tracing::warn!(queue = &*name, task = task.0, attempts, last, to = &*dead, "task given up");
        let to = self.directory.names.get(dead.as_str()).copied();
        let to =
            to.unwrap_or_else(|| self.host(Some(dead.into()), QueueOptions::default().attempts(0)));
        // A queue whose letters are needed in memory keeps its payloads there: nothing is read here.
        debug_assert!(
            self.holds_bodies(to) || !self.is_on_disk(from) || !Queue::is_evicted(&payload)
        );
        let told = self.options(from).and_then(QueueOptions::failures_go_to);
        let told = told.and_then(|told| self.directory.names.get(told).copied());
        let notice = told.and_then(|told| {
            Some((told, notice(&name, task, key.as_deref(), attempts, &history)?))
        });
        let origin = Origin {
            queue: name,
            task,
            attempt: attempts,
            worker: "".into(),
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            history,
        };
        // The notice stands for the task's result: it takes its turn, and is no dead letter itself.
        let of_notice = Origin { history: Vec::new(), ..origin.clone() };
        self.force(to, payload, key, origin);
        if let Some((told, notice)) = notice {
            self.force(told, notice, None, of_notice);
        }
    }

    fn redrive(
        &mut self,
        from: QueueId,
        max: usize,
        mut bodies: HashMap<TaskId, Bytes>,
        done: &mut Redriven,
        between: impl Fn(&mut Self),
    ) {
        let taker = Taker::leasing(u8::MAX);
        let (mut kept, mut unread_bytes) = (Vec::new(), 0);
        let most = max.min(REDRIVEN_AT_ONCE_MAX) as u64;
        while done.moved < most
            && kept.len() < max
            && done.bytes + unread_bytes < self.batch_bytes_max
        {
            let grant = match done.only {
                Some(letter) => self.take_letter(from, letter, taker),
                None => self.take_now(from, taker),
            };
            let Some(grant) = grant else { break };
            let length = self.length(from, &grant);
            let Grant { token, mut payload } = grant;
            let Some(home) = self.home(from, token.task) else {
                kept.push(token);
                continue;
            };
            if Queue::is_evicted(&payload) && !self.holds_bodies(home) {
                match (bodies.remove(&token.task), self.stored(from, token.task)) {
                    (Some(read), _) => payload.bytes = read,
                    // Letters keep their order, so those behind it wait, too.
                    (None, Some(stored)) if done.unread.len() as u64 + done.moved < most => {
                        done.unread.push((token.task, stored));
                        kept.push(token);
                        unread_bytes += length;
                        continue;
                    }
                    (None, _) => {}
                }
            }
            if !done.unread.is_empty() {
                kept.push(token);
                break;
            }
            let stays = self.is_on_disk(from) && self.is_on_disk(home);
            if let Some(log) = self.log.as_mut().filter(|_| stays) {
                log.redrive(Some((from, token.task)));
            }
            let key = self.queues.get(&from).and_then(|hosted| hosted.queue.key(token.task));
            let terms = key.map(|key| Box::new(Terms { key: Some(key), ..Terms::default() }));
            let enters = self.on(home, |queue, step| queue.force_within_room(payload, terms, step));
            let has_entered = enters == Some(true);
            if let Some(log) = &mut self.log {
                log.redrive(None);
            }
            if !has_entered {
                // The reserve of a full disk is there for what is settled.
                if planted!(RedriveDropsLetter) {
                    self.on(from, |queue, step| queue.ack_without_result(token, step));
                }
                kept.push(token);
                break;
            }
            between(self);
            self.on(from, |queue, step| {
                queue.ack_without_result(token, step);
                // Whoever counts dead letters need not count it any more.
                queue.count_down(step).ok();
            });
            done.moved += 1;
            done.bytes += if stays { 0 } else { length };
        }
        done.is_cut = done.moved == most && most < max as u64;
        for token in kept {
            self.give_back(Held { queue: from, token }, Cause::Unread, None);
        }
    }

    /// Takes one dead letter, if it is one that can be redriven.
    fn take_letter(&mut self, from: QueueId, letter: TaskId, taker: Taker) -> Option<Grant> {
        self.home(from, letter)?;
        self.on(from, |queue, step| queue.get_task(letter, taker, step))?
    }

    /// The queue that a dead letter came from, if it is one and its queue takes tasks.
    fn home(&self, at: QueueId, letter: TaskId) -> Option<QueueId> {
        let origin = self.queues.get(&at)?.queue.origin(letter)?;
        let home =
            *self.directory.names.get(&origin.queue).filter(|_| !origin.history.is_empty())?;
        let is_open = !self.queues.get(&home)?.queue.is_shut_down();
        (home != at && is_open).then_some(home)
    }

    /// No result of this task will come: those of later ones need not wait for it.
    pub(super) fn skip_result(&mut self, from: QueueId, task: TaskId) {
        if planted!(GivenUpIsWaitedFor) {
            return;
        }
        let Some(name) = self.queues.get(&from).and_then(|hosted| hosted.name.clone()) else {
            return;
        };
        let results = self.options(from).and_then(|options| options.results.as_deref());
        if let Some(&to) = results.and_then(|results| self.directory.names.get(results)) {
            self.on(to, |queue, step| queue.skip(&name, task, step));
        }
    }

    fn force(&mut self, to: QueueId, payload: Payload, key: Option<Arc<[u8]>>, origin: Origin) {
        let terms = Terms { key, origin: Some(Box::new(origin)), ..Terms::default() };
        self.on(to, |queue, step| queue.force(payload, Some(Box::new(terms)), step));
    }
}

/// Why a task failed the last time.
fn last_reason(history: &[Failed]) -> String {
    history.last().map(|attempt| shortened(&attempt.cause)).unwrap_or_default()
}

/// Why a task failed, cut short.
fn shortened(cause: &Cause) -> String {
    const SHOWN_CHARS_MAX: usize = 200;
    let reason = cause.to_string();
    let shown: String = reason.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < reason.len() { shown + "..." } else { shown }
}

/// What a master is told of a task that was given up, as every Python reads it.
fn notice(
    queue: &str,
    task: TaskId,
    key: Option<&[u8]>,
    attempts: u32,
    history: &[Failed],
) -> Option<Payload> {
    let key = key.map_or(Value::None, |key| match std::str::from_utf8(key) {
        Ok(text) => Value::Str(text.to_owned()),
        Err(_) => Value::Bytes(key.to_vec()),
    });
    let reasons = history.iter().map(|attempt| Value::Str(shortened(&attempt.cause))).collect();
    let named = |name: &str, value| (Value::Str(name.to_owned()), value);
    let notice = Value::Dict(vec![
        named("given_up", Value::Bool(true)),
        named("queue", Value::Str(queue.to_owned())),
        named("task", Value::Int(i64::try_from(task.0).unwrap_or(i64::MAX))),
        named("key", key),
        named("attempts", Value::Int(attempts.into())),
        named("reasons", Value::List(reasons)),
    ]);
    to_payload(&notice, Dialect::Python3).ok()
}
