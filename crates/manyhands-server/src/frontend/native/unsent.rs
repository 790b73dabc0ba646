//! Tasks whose replies are not sent yet: what does not reach the socket goes back.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::{BATCH_AT_ONCE, Caller, Engine, Promise, Reference};
use crate::queue::{Token, TokenRun};

/// Room for so many replies is kept when all of them have left.
const READY_KEPT: usize = 16;
/// Tasks that are settled in one step.
const AT_ONCE: u64 = BATCH_AT_ONCE as u64;

/// Tasks whose replies are not sent yet, and leave together.
#[derive(Debug)]
struct Unsent {
    at: Reference,
    tokens: TokenRun,
    /// What their replies wait for.
    promise: Promise,
    /// Whether they are leased; if not, they are taken for good.
    is_leased: bool,
}

impl Unsent {
    /// Adds a task that follows those that are here; false if it does not.
    fn continues_with(
        &mut self,
        at: Reference,
        token: Token,
        promise: Promise,
        is_leased: bool,
    ) -> bool {
        let is_alike = (self.at, self.promise, self.is_leased) == (at, promise, is_leased);
        is_alike && self.tokens.push(token)
    }
}

/// All of them of a session. Dropped, they go back.
#[derive(Debug)]
pub(super) struct UnsentTasks {
    engine: Arc<Engine>,
    caller: Caller,
    /// Those whose replies may leave.
    ready: Vec<Unsent>,
    /// Those whose replies are held, in the order in which they leave.
    held: VecDeque<Unsent>,
}

impl UnsentTasks {
    pub(super) fn new(engine: &Arc<Engine>, caller: Caller) -> Self {
        Self { engine: engine.clone(), caller, ready: Vec::new(), held: VecDeque::new() }
    }

    /// Tasks are in a reply that waits for this.
    pub(super) fn add(
        &mut self,
        at: Reference,
        tokens: impl Iterator<Item = Token>,
        promise: Promise,
        is_leased: bool,
    ) {
        let is_ready = promise.is_nothing();
        for token in tokens {
            let last = if is_ready { self.ready.last_mut() } else { self.held.back_mut() };
            if last.is_some_and(|last| last.continues_with(at, token, promise, is_leased)) {
                continue;
            }
            let unsent = Unsent { at, tokens: token.into(), promise, is_leased };
            if is_ready {
                self.ready.push(unsent);
            } else {
                self.held.push_back(unsent);
            }
        }
    }

    /// All replies have been sent that `durable` covers: what was taken for good is settled by that.
    pub(super) fn settle_sent(&mut self, durable: Promise) {
        let Self { engine, ready, held, .. } = self;
        let is_sent = |unsent: &&Unsent| durable.covers(unsent.promise);
        let count = held.iter().take_while(is_sent).count();
        ready.extend(held.drain(..count));
        let mut sent = ready.drain(..).filter(|sent| !sent.is_leased).peekable();
        while let Some(Unsent { at, tokens, .. }) = sent.next() {
            // Some in one step: others have their turn at the queue in between.
            let mut count = tokens.len;
            let others = std::iter::from_fn(|| {
                let next =
                    sent.next_if(|next| next.at == at && count + next.tokens.len <= AT_ONCE)?;
                count += next.tokens.len;
                Some(next.tokens)
            });
            if !planted!(SentNotSettled) {
                engine.settle_received(at, std::iter::once(tokens).chain(others));
            }
        }
        drop(sent);
        ready.shrink_to(READY_KEPT);
        if held.is_empty() {
            held.shrink_to(READY_KEPT);
        }
    }

    /// Gives some back; false if there are none.
    pub(super) fn give_back(&mut self) -> bool {
        self.ready.extend(self.held.drain(..));
        let Some(&Unsent { at, .. }) = self.ready.last() else { return false };
        let mut tokens = Vec::new();
        while tokens.len() < BATCH_AT_ONCE
            && let Some(unsent) = self.ready.pop_if(|unsent| unsent.at == at)
        {
            tokens.extend(unsent.tokens.iter());
        }
        if !planted!(UnsentStaysOut) {
            self.engine.return_all_unread(self.caller, at, &tokens);
        }
        true
    }
}

impl Drop for UnsentTasks {
    fn drop(&mut self) {
        while self.give_back() {}
    }
}
