//! Names that nobody uses do not stay for ever: a client that only asks for names could otherwise take
//! all the places for queues until the server is restarted.
//!
//! A name goes when its queue was not declared, is empty, and nobody has referred to it or called it
//! for the [time-out](crate::config::Limits::unused_timeout). It has one alarm, which looks again if it
//! was used meanwhile; so it costs nothing while it is used.
//!
//! No timer is set for these alarms: one that is set costs the event loop something whenever it has
//! nothing to do. They are looked at when a client connects, as only newcomers want places and see
//! names; those that are left then, and all that are due when the timer turns for something else,
//! follow in turns of the timer.

use std::time::Duration;

use manyhands::wire::text::repr;

use crate::engine::{Alarm, Engine, Hosted, Promise, QueueId, State};
use crate::queue::Time;

/// Why a queue was not dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotDropped {
    #[error("there is no queue named {}", repr(.0))]
    NoQueue(String),
    #[error(
        "the queue {} is declared, or named by a declared one: it would be there again \
         after a restart; take it out of the server's options first",
        repr(.0)
    )]
    Declared(String),
    #[error(
        "the queue {} is in use: {references} references of clients, {waiting} calls \
         that wait, {leased} tasks in hand",
        repr(.name)
    )]
    InUse { name: String, references: usize, waiting: usize, leased: usize },
}

impl Engine {
    /// Sees to it that a newcomer finds nothing that has not been used for too long, or has it found
    /// soon if there is much.
    pub(crate) fn look_at_unused(&self) {
        let is_due = self.lock_each().any(|state| state.has_unused());
        if is_due {
            self.expire();
            self.timer.notify_one();
        }
    }

    /// Forgets a queue and its tasks; says how many those were. Unless `force` says so, it must not be
    /// in use. It is gone for good when that is durable.
    pub(crate) fn drop_queue(&self, name: &str, force: bool) -> Result<(u64, Promise), NotDropped> {
        let mut state = self.lock_home(name);
        let found = state.directory.names.get(name).copied();
        let found = found.and_then(|queue| Some((queue, state.queues.get(&queue)?)));
        let Some((queue, hosted)) = found else {
            return Err(NotDropped::NoQueue(name.to_owned()));
        };
        if hosted.stays || hosted.pins > 0 {
            return Err(NotDropped::Declared(name.to_owned()));
        }
        let (waiting, leased) = (hosted.queue.waiting(), hosted.queue.leased());
        if !force && (hosted.references > 0 || waiting > 0 || leased > 0) {
            let references = hosted.references;
            return Err(NotDropped::InUse { name: name.to_owned(), references, waiting, leased });
        }
        let tasks = hosted.queue.len() + hosted.queue.delayed() + leased;
        state.remove(queue);
        Ok((tasks as u64, self.commit(&mut state)))
    }
}

impl State {
    /// Sees to it that a name is looked at when it may be unused.
    pub(in crate::engine) fn watch_name(&mut self, queue: QueueId) {
        let timeout = self.directory.unused_timeout;
        let alarm = timeout.map(|timeout| self.alarm_after(timeout, Alarm::Name(queue)));
        if let Some(hosted) = self.queues.get_mut(&queue) {
            hosted.alarm = alarm;
        }
    }

    /// Whether an alarm of a name has come.
    pub(in crate::engine) fn has_unused(&self) -> bool {
        self.directory.alarms.first().is_some_and(|(time, _)| *time <= self.step.now)
    }

    fn alarm_after(&mut self, time: Duration, alarm: Alarm) -> Time {
        let at = self.step.now + time;
        self.directory.alarms.insert((at, alarm));
        at
    }

    /// A name's alarm has come.
    pub(in crate::engine) fn look_at_name(&mut self, queue: QueueId) {
        let (now, timeout) = (self.step.now, self.directory.unused_timeout);
        let Some((hosted, timeout)) = self.queues.get_mut(&queue).zip(timeout) else { return };
        hosted.alarm = None;
        if hosted.stays {
            return;
        }
        let unused = hosted.is_unused().then(|| now.since(hosted.last_used));
        if unused.is_some_and(|unused| timeout <= unused) {
            tracing::info!(queue = hosted.name.as_deref(), "not used for long, and gone");
            return self.remove(queue);
        }
        let more = timeout - unused.unwrap_or_default();
        let alarm = self.alarm_after(more, Alarm::Name(queue));
        if let Some(hosted) = self.queues.get_mut(&queue) {
            hosted.alarm = Some(alarm);
        }
    }
}

impl Hosted {
    /// Whether nobody could tell if the queue were made anew.
    fn is_unused(&self) -> bool {
        let is_needed = self.references > 0 || self.pins > 0 || self.is_configured;
        !is_needed && self.queue.is_idle()
    }
}
