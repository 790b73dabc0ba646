//! From a request to a verb of the engine: the one table of them.

use std::vec::IntoIter;

use manyhands::wire::arguments::Wait;
use manyhands::wire::frame::{Frame, FrameError};
use manyhands::wire::native::{Code, DecodeError, Header, Request, Route, reply};

use super::connection::{BATCH_MAX, PENDING_MAX};
use super::pending::{Cancel, Ended, Left, PENDING_BYTES, Pending, Rest, Waits};
use super::replies::{Refusal, cancelled, failure, malformed, no_memory, refusal};
use super::session::Session;
use crate::engine::{
    BATCH_AT_ONCE, Called, Calls, Completion, PLACED_AT_ONCE_MAX, Place, Promise, Ticket,
};
use crate::error::ConnectionError;
use crate::memory::Parked;
use crate::socket::Socket;

impl<S: Socket> Session<'_, S> {
    /// Applies a request.
    pub(super) fn handle(&mut self, calls: &mut Calls<'_>, header: Header, frame: Frame) -> Rest {
        let route = header.route;
        if header.len as usize > PLACED_AT_ONCE_MAX {
            // Nobody waits for the lock while a large request is read.
            calls.end();
        }
        let body = match frame {
            Frame::Body(body) => body,
            Frame::TooLong { len, limit } => {
                let error = FrameError::TooLong { len, limit };
                let text = format!("{error} (--frame-bytes-max of the server)");
                return self.refuse(route, Code::TooLong, &text);
            }
        };
        match Request::decode(&header, body, &self.bounds) {
            Ok(request) if self.ids.is_empty() => self.apply(calls, route, request, &header),
            Ok(request) => self.apply_beside_others(calls, route, request, &header),
            Err(error) => self.refuse_malformed(route, &error),
        }
    }

    /// Applies a request while others wait.
    fn apply_beside_others(
        &mut self,
        calls: &mut Calls<'_>,
        route: Route,
        request: Request,
        header: &Header,
    ) -> Rest {
        // These two name requests in flight, or credit that is open.
        let may_be = matches!(request, Request::Cancel) || self.has_credit(route, &request);
        if !may_be && self.ids.contains_key(&route.id) {
            let text = format!("a request in flight has the id {}", route.id);
            return self.refuse(route, Code::IdInUse, &text);
        }
        if !may_be && self.ids.len() >= PENDING_MAX as usize && may_wait(&request) {
            let text = format!("{PENDING_MAX} requests are in flight, which is the limit");
            return self.refuse(route, Code::TooManyPending, &text);
        }
        self.apply(calls, route, request, header)
    }

    /// Applies a request, and answers it as far as that can be done at once.
    ///
    /// Every request of a session passes here. Were callers permitted different things, it would be
    /// asked here, of the caller and the request, before the match.
    fn apply(
        &mut self,
        calls: &mut Calls<'_>,
        route: Route,
        request: Request,
        header: &Header,
    ) -> Rest {
        let size = (header.count, header.len as usize);
        if !matches!(request, Request::Put(_) | Request::Get(_) | Request::Settle { .. }) {
            // It takes the lock itself.
            calls.end();
        }
        match request {
            Request::Put(put) => self.put(calls, route, put, size),
            Request::Get(get) => self.get(calls, route, &get),
            Request::Settle { wait, settlements } => {
                self.settle(calls, route, (wait, settlements), size)
            }
            Request::Credit { ends: true, .. } => self.end_credit(route),
            Request::Credit { hold, credit, .. } => self.credit(route, hold, credit),
            Request::Cancel => self.cancel(route.id),
            Request::Open { name } => self.open(route, &name),
            Request::Close => self.close(route),
            Request::TaskDone { count } => self.task_done(route, count),
            Request::Join => self.join(route),
            Request::Size => self.size(route),
            Request::List { after } => self.list(route, after),
            Request::Peek(peek) => self.peek(route, peek),
            Request::Redrive { max, task } => self.redrive(route, max, task),
            Request::Purge => self.purge(route),
            Request::Shutdown { immediate } => self.shut_down(route, immediate),
            Request::Drop { name, forced } => self.drop_queue(route, &name, forced),
            Request::Configure { name, options } => self.configure(route, &name, &options),
            Request::Revoke { task } => self.revoke(route, task),
            Request::Ping => self.tell_done(route, Promise::NOTHING),
        }
    }

    /// Does what is left to do for a request at once, some of it at a time.
    pub(super) async fn do_rest(&mut self, left: Left) -> Result<Rest, ConnectionError> {
        match left {
            Left::Put(route, batch) => self.put_large(route, batch).await,
            Left::PutOn(rest) => Ok(self.put_on(*rest)),
            Left::Settle(route, batch) => self.settle_large(route, batch).await,
            Left::Take(order, hand) => Ok(self.take_more(order, hand)),
            Left::Tell(order, hand) => Ok(self.tell_large(order, hand).await),
            Left::Cancel(places) => Ok(self.cancel_some(places)),
            Left::Return(route, at, from) => Ok(self.return_unstarted(route, at, from)),
            Left::NotDurable => Err(ConnectionError::NotDurable),
        }
    }

    /// Goes on with a request that has waited.
    pub(super) fn resume(&mut self, route: Route, ended: Ended) -> Result<Rest, ConnectionError> {
        Ok(match ended {
            Ended::Put(told, rest) => self.resume_put(told, *rest),
            Ended::Turn(whose, rest) => self.resume_turn(whose, *rest),
            Ended::Task(told, order) => self.resume_take(told, *order),
            Ended::Hand(coming, order) => return self.resume_hand(coming, *order),
            Ended::Join(Some(Completion { outcome, promise, .. })) => match refusal(&outcome) {
                Some(refused) => self.refuse_with(promise, route, &refused),
                None => self.tell_done(route, promise),
            },
            Ended::Join(None) => self.refuse_with(Promise::NOTHING, route, &cancelled()),
            Ended::Settle(settling) => self.tell_codes(route, *settling),
            Ended::Work(report) => return self.resume_work(route, report),
        })
    }

    /// A request waits, and has this memory.
    pub(super) fn wait(
        &mut self,
        route: Route,
        waits: Waits,
        parked: Option<Parked>,
        cancel: Cancel,
    ) -> Rest {
        self.ids.insert(route.id, cancel);
        self.pending.push(Pending::new(route, waits, parked));
        None
    }

    /// Ends the wait of a request, unless it is over: then that is told which came of it.
    fn cancel(&mut self, id: u32) -> Rest {
        match std::mem::replace(self.ids.get_mut(&id)?, Cancel::Not) {
            Cancel::Not => None,
            Cancel::Turn(told) => {
                // If it waits no more, it has its turn.
                told.send(()).ok();
                None
            }
            Cancel::Call(place) => {
                self.shared.engine.cancel(place);
                None
            }
            Cancel::Calls(places) => self.cancel_some(places.into_iter()),
        }
    }

    fn cancel_some(&mut self, mut places: IntoIter<Place>) -> Rest {
        for place in places.by_ref().take(BATCH_AT_ONCE) {
            self.shared.engine.cancel(place);
        }
        self.add_work(BATCH_AT_ONCE);
        (places.len() > 0).then(|| Box::new(Left::Cancel(places)))
    }

    fn task_done(&mut self, route: Route, count: u32) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        if count > BATCH_MAX {
            let text = format!("{count} tasks are more than {BATCH_MAX}, the most of a batch");
            return self.refuse(route, Code::TooLong, &text);
        }
        let ticket = self.shared.engine.tasks_done(open.reference, count);
        self.add_work(count as usize);
        self.tell_ticket(route, ticket)
    }

    fn join(&mut self, route: Route) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let ticket = self.shared.engine.join(self.caller(), open.reference);
        self.tell_ticket(route, ticket)
    }

    fn shut_down(&mut self, route: Route, immediate: bool) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let ticket = self.shared.engine.shut_down(open.reference, immediate);
        self.tell_ticket(route, ticket)
    }

    /// Answers a request of which nothing is told but that it is over, once it is.
    fn tell_ticket(&mut self, route: Route, ticket: Ticket) -> Rest {
        let Ticket { called, promise } = ticket;
        match called {
            Ok(Called::Now(outcome)) => match refusal(&outcome) {
                Some(refused) => self.refuse_with(promise, route, &refused),
                None => self.tell_done(route, promise),
            },
            Ok(Called::Later(waiter)) => match self.shared.engine.memory().park(PENDING_BYTES) {
                None => self.refuse_with(promise, route, &no_memory()),
                parked => {
                    let cancel = Cancel::Call(waiter.place());
                    self.wait(route, Waits::Join(waiter), parked, cancel)
                }
            },
            Err(error) => self.refuse_with(promise, route, &failure(&error)),
        }
    }

    fn tell_done(&mut self, route: Route, promise: Promise) -> Rest {
        reply::push_done(route, self.behind(promise));
        None
    }

    pub(super) fn no_handle(&mut self, route: Route) -> Rest {
        let text = format!("no queue is open under handle {}", route.queue);
        self.refuse(route, Code::NoSuchHandle, &text)
    }

    pub(super) fn refuse_malformed(&mut self, route: Route, error: &DecodeError) -> Rest {
        self.refuse_with(Promise::NOTHING, route, &malformed(error))
    }

    pub(super) fn refuse(&mut self, route: Route, code: Code, text: &str) -> Rest {
        reply::push_error(code, text, route, self.behind(Promise::NOTHING));
        None
    }

    /// Refuses a request that has changed something.
    pub(super) fn refuse_with(
        &mut self,
        promise: Promise,
        route: Route,
        (code, text): &Refusal,
    ) -> Rest {
        reply::push_error(*code, text, route, self.behind(promise));
        None
    }
}

/// Whether a request may have to wait for others.
fn may_wait(request: &Request) -> bool {
    match request {
        Request::Put(put) => put.wait != Wait::No,
        Request::Settle { wait, .. } => *wait != Wait::No,
        Request::Get(_)
        | Request::Join
        | Request::List { .. }
        | Request::Peek(_)
        | Request::Credit { .. }
        | Request::Redrive { .. } => true,
        _ => false,
    }
}
