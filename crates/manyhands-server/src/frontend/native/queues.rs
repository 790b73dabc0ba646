//! Queues that are opened, closed, declared and dropped.

use manyhands::wire::native::{Code, Properties, QueueDurability, QueueOrder, Route, reply};

use super::handles::{NotOpen, Open};
use super::pending::Rest;
use super::replies::{cancelled, failure, no_memory, no_queue, not_configured, not_dropped};
use super::session::Session;
use crate::engine::{Opened, Promise, Reference};
use crate::queue::{Delivery, Durability, Order, QueueOptions, TaskId};
use crate::socket::Socket;

impl<S: Socket> Session<'_, S> {
    pub(super) fn open(&mut self, route: Route, name: &str) -> Rest {
        let handle = route.queue;
        match self.handles.reserve(handle) {
            Ok(()) => {}
            Err(NotOpen::InUse) => {
                let text = format!("another queue is open under handle {handle}");
                return self.refuse(route, Code::HandleInUse, &text);
            }
            Err(NotOpen::TooHigh(max)) => {
                let text = format!("handle {handle} is not below {max}");
                return self.refuse(route, Code::HandleInUse, &text);
            }
            Err(NotOpen::NoMemory) => {
                return self.refuse_with(Promise::NOTHING, route, &no_memory());
            }
        }
        let engine = &self.shared.engine;
        // A client of the program that embeds the server gets its queues by reference.
        let known = self.shared.idents.parse(name).filter(|known| engine.has(*known));
        let reference = match known {
            Some(known) => Ok(engine.refer(known, None)),
            None => engine.refer_to(name),
        };
        let reference = match reference {
            Ok(reference) => reference,
            Err(error) => return self.refuse_with(Promise::NOTHING, route, &no_queue(&error)),
        };
        let opened = match engine.opened(reference) {
            Ok(opened) => opened,
            Err(error) => {
                engine.release(&[reference]);
                return self.refuse_with(Promise::NOTHING, route, &failure(&error));
            }
        };
        let order = opened.options.order;
        self.handles.insert(
            handle,
            Open { reference, signer: opened.signer, order, behind: None, credit: None },
        );
        let properties = properties(&opened);
        reply::push_opened(&properties, route, self.behind(Promise::NOTHING));
        None
    }

    /// Forgets a handle. Requests that wait on it are told that they do not any more.
    pub(super) fn close(&mut self, route: Route) -> Rest {
        self.forget_credit(route.queue, Promise::NOTHING, Some(&cancelled()));
        let Some(open) = self.handles.remove(route.queue) else { return self.no_handle(route) };
        let at = open.reference;
        // Who has the queue open still can settle what was pushed.
        let had_credit = self.inbox.is_some() && !planted!(PushToClosedLost);
        if had_credit && !self.handles.has_other(at) {
            return self.return_unstarted(route, at, TaskId::default());
        }
        self.tell_closed(route, at)
    }

    /// A handle is forgotten, and nothing is left to be done for it.
    pub(super) fn tell_closed(&mut self, route: Route, at: Reference) -> Rest {
        self.shared.engine.release(&[at]);
        let promise = self.after_held(Promise::NOTHING);
        reply::push_done(route, self.behind(promise));
        None
    }

    /// Declares a queue.
    pub(super) fn configure(&mut self, route: Route, name: &str, options: &str) -> Rest {
        let options = match QueueOptions::from_settings(options) {
            Ok(options) => options,
            Err(error) => return self.refuse(route, Code::BadOptions, &error.to_string()),
        };
        match self.shared.engine.configure(name, options) {
            Ok(promise) => {
                tracing::info!(queue = name, "declared by a client");
                reply::push_done(route, self.behind(promise));
                None
            }
            Err(error) => self.refuse_with(Promise::NOTHING, route, &not_configured(&error)),
        }
    }

    /// Forgets a queue with its tasks.
    pub(super) fn drop_queue(&mut self, route: Route, name: &str, is_forced: bool) -> Rest {
        match self.shared.engine.drop_queue(name, is_forced) {
            Ok((tasks, promise)) => {
                tracing::info!(queue = name, tasks, "dropped by a client");
                self.tell_count(route, tasks, promise)
            }
            Err(error) => self.refuse_with(Promise::NOTHING, route, &not_dropped(&error)),
        }
    }
}

fn properties(opened: &Opened) -> Properties {
    let Opened { options, durability, .. } = opened;
    Properties {
        order: match options.order {
            Order::Fifo => QueueOrder::Fifo,
            Order::Lifo => QueueOrder::Lifo,
            Order::Priority => QueueOrder::Priority,
        },
        durability: match durability {
            Durability::Memory => QueueDurability::Memory,
            Durability::Os => QueueDurability::Os,
            Durability::Disk => QueueDurability::Disk,
        },
        needs_results: options.results.is_some(),
        is_ordered: options.ordered,
        maxsize: options.maxsize as u64,
        hold: options.max_run,
        delivery_cpython: options.delivery == Delivery::Cpython,
        results: options.results.clone(),
    }
}
