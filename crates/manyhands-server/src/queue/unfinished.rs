//! Tasks that are not done for `join`: how they are counted.

use super::{Change, Outcome, Queue, Step, TooManyTaskDone, WaiterId};

impl Queue {
    /// Counts one task as done; the last one ends every `join`.
    ///
    /// # Errors
    ///
    /// [`TooManyTaskDone`] if no task is unfinished.
    pub fn task_done(&mut self, step: &mut Step) -> Result<(), TooManyTaskDone> {
        self.tasks_done(1, step)
    }

    /// The same for several tasks, all of which are unfinished, or none counts as done.
    ///
    /// # Errors
    ///
    /// [`TooManyTaskDone`] if fewer are unfinished.
    pub fn tasks_done(&mut self, tasks: u64, step: &mut Step) -> Result<(), TooManyTaskDone> {
        self.is_joined = true;
        self.count_down_by(tasks, step)
    }

    /// Counts one task as done where no client counts.
    ///
    /// # Errors
    ///
    /// [`TooManyTaskDone`] if no task is unfinished.
    pub(crate) fn count_down(&mut self, step: &mut Step) -> Result<(), TooManyTaskDone> {
        self.count_down_by(1, step)
    }

    fn count_down_by(&mut self, tasks: u64, step: &mut Step) -> Result<(), TooManyTaskDone> {
        if self.unfinished < tasks {
            return Err(TooManyTaskDone);
        }
        if tasks > 0 {
            step.record(|| Change::Done(tasks));
            self.finish(tasks, step);
        }
        Ok(())
    }

    /// Counts `tasks` as unfinished that were put and taken before this queue took over.
    pub fn add_unfinished(&mut self, tasks: u64) {
        self.unfinished += tasks;
    }

    /// Waits until every task that was put is done. `None`: the call waits.
    pub fn join(&mut self, waiter: WaiterId) -> Option<Outcome> {
        self.is_joined = true;
        if self.unfinished == 0 {
            return Some(Outcome::Joined);
        }
        self.joiners.park(waiter, None, ());
        None
    }
}
