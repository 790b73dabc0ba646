//! Work on a thread of its own that goes from one call of the disk to the next when it is told to, and
//! never otherwise: what others do in between is decided by a seed.

use std::cell::RefCell;
use std::io;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use crate::journal::{Durable, JournalError};
use crate::planted;

/// Work that takes one step at a time. Dropped, it dies where it is: no call of the disk that it
/// makes from then on does anything.
pub(crate) struct Beside<T> {
    /// Tells it to go on; dropped to let it die.
    goes_on: Option<SyncSender<()>>,
    /// It stands still again: before its next step, or with what it came to.
    rests: Receiver<Option<T>>,
    thread: Option<JoinHandle<()>>,
}

/// The work's end of it.
struct Gate {
    goes_on: Receiver<()>,
    rests: Box<dyn Fn() -> bool>,
}

std::thread_local! {
    static GATE: RefCell<Option<Gate>> = const { RefCell::new(None) };
}

impl<T: Send + 'static> Beside<T> {
    /// Stands before its first step. What is planted here is planted there.
    pub(crate) fn new(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (goes_on, may_go_on) = sync_channel(1);
        let (rests, at_rest) = sync_channel(1);
        let bug = planted::planted();
        let thread = std::thread::spawn(move || {
            planted::plant(bug);
            let paused = rests.clone();
            let gate =
                Gate { goes_on: may_go_on, rests: Box::new(move || paused.send(None).is_ok()) };
            if gate.goes_on.recv().is_err() {
                return;
            }
            GATE.set(Some(gate));
            let done = work();
            // Nobody may want to know any more.
            rests.send(Some(done)).ok();
        });
        Self { goes_on: Some(goes_on), rests: at_rest, thread: Some(thread) }
    }

    /// Takes a step; what the work came to if that was the last one.
    pub(crate) fn step(&mut self) -> Option<T> {
        let goes_on = self.goes_on.as_ref().expect("it lives until it is dropped");
        let rest = goes_on.send(()).ok().and_then(|()| self.rests.recv().ok());
        rest.unwrap_or_else(|| match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => resume_unwind(panic),
            _ => panic!("it was told to go on after its end"),
        })
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        self.goes_on = None;
        // Whatever it says on its way out, nobody listens.
        while self.rests.recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Stands still until it is told to go on, if this is work that goes by steps.
///
/// # Errors
///
/// It is to die.
pub(super) fn pause() -> io::Result<()> {
    GATE.with_borrow(|gate| {
        let goes_on = |gate: &Gate| (gate.rests)() && gate.goes_on.recv().is_ok();
        if gate.as_ref().is_none_or(goes_on) {
            return Ok(());
        }
        Err(io::Error::other("the process is dead"))
    })
}

/// Waits as work that goes by steps does; gives the promise back to everybody else.
pub(in crate::journal) fn wait(mut durable: Durable) -> Result<Result<(), JournalError>, Durable> {
    if GATE.with_borrow(Option::is_none) {
        return Err(durable);
    }
    loop {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(outcome) = Pin::new(&mut durable).poll(&mut context) {
            return Ok(outcome);
        }
        if let Err(error) = pause() {
            return Ok(Err(JournalError::Poisoned(error.to_string().into())));
        }
    }
}
