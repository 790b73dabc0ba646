//! A session's request is scanned: which queue it calls, what it asks for, and who reads the reply.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use manyhands::wire::frame::{Frame, FrameError};
use manyhands::wire::method::{Method, Refusal};
use manyhands::wire::pickle::{Call, PickleError};
use manyhands::wire::reply::{Exception, Reader, Reply};

use super::foreign::{Request, forward};
use super::pending::{Pending, Rest};
use super::replies::{refuse, traceback, unknown_ident};
use super::session::Session;
use super::shared::Shared;
use crate::engine::{Promise, Reference};
use crate::socket::Socket;

/// Requests above this many bytes are scanned on a thread of their own, so that nobody waits.
pub(super) const SCANNED_AT_ONCE_MAX: usize = 256 << 10;

impl<S: Socket> Session<'_, S> {
    /// Applies a request. A large one is read without keeping others waiting.
    pub(super) fn handle(&mut self, frame: Frame) -> Rest {
        let body = match frame {
            Frame::Body(body) => body,
            Frame::TooLong { len, limit } => {
                let error = FrameError::TooLong { len, limit };
                let text = format!("{error} (--frame-bytes-max of the server)");
                let reply = Reply::Error(Exception::ValueError(text));
                return self.tell(Reader::new(2), &reply, Promise::NOTHING);
            }
        };
        self.request_len = body.len();
        let limits = self.shared.pickle_limits;
        if body.len() > SCANNED_AT_ONCE_MAX {
            return Some(Box::new(Pending::Scan(body)));
        }
        if let Some(Known { at, again: Some(again) }) = self.templates.recall(&body) {
            let (at, (method, reader)) = (*at, (**again).clone());
            return self.apply(at, method, reader);
        }
        if let Some((call, &Known { at, .. })) = self.templates.recognize(&body, &limits) {
            let asked = Method::decode(&call, &limits);
            let carried = forward::carried(self.shared, &body, &asked);
            return self.answer_call(&call, (body, asked, carried), Some(at));
        }
        let scanned = scan(body.clone(), self.shared);
        self.answer(body, scanned)
    }

    /// Answers a request that was scanned.
    pub(super) fn answer(&mut self, body: Bytes, scanned: Result<Scanned, PickleError>) -> Rest {
        let (call, asked, carried) = match scanned {
            Ok(scanned) => scanned,
            Err(error) => return self.refuse_pickle(body, &error),
        };
        let at = self.shared.classic.parse(call.ident().unwrap_or_default());
        if let Some(at) = at.filter(|_| body.len() <= SCANNED_AT_ONCE_MAX) {
            let reader = Reader::new(call.protocol());
            // Without items, such as `get()`, it asks for the same whenever it comes.
            let method = asked.as_ref().ok().filter(|asked| asked.item().is_none());
            let again = method.map(|method| Box::new((method.clone(), reader)));
            self.templates.learn(&call, Known { at, again });
        }
        self.answer_call(&call, (body, asked, carried), at)
    }

    /// Answers a call of the queue `at`; `None` is somebody else's.
    fn answer_call(
        &mut self,
        call: &Call,
        (body, asked, carried): (Bytes, Result<Method, Refusal>, Option<BTreeSet<String>>),
        at: Option<Reference>,
    ) -> Rest {
        let reader = Reader::new(call.protocol());
        let Some(at) = at else {
            if let Some(ident) = call.ident().filter(|_| self.shared.reception.is_some()) {
                let request = Request::Call { ident: ident.to_owned(), body };
                return Some(Box::new(Pending::Guest(request)));
            }
            let reply = unknown_ident(call.ident().unwrap_or_default());
            return self.tell(reader, &reply, Promise::NOTHING);
        };
        match (asked, carried) {
            (Ok(asked), Some(carried)) => {
                Some(Box::new(Pending::Carries(carried, at, asked, reader)))
            }
            (Ok(asked), None) => self.apply(at, asked, reader),
            (Err(refusal), _) => self.tell(reader, &refuse(refusal), Promise::NOTHING),
        }
    }

    /// Answers what is no request that we can read, if nobody else can.
    fn refuse_pickle(&mut self, body: Bytes, error: &PickleError) -> Rest {
        if let Some(request) = forward::foreign_call(self.shared, body) {
            return Some(Box::new(Pending::Guest(request)));
        }
        let reply = traceback(&error.to_string());
        self.tell(Reader::new(2), &reply, Promise::NOTHING)
    }
}

/// What is known of requests that are [learned](Session::templates).
#[derive(Debug)]
pub(super) struct Known {
    /// Which queue they call.
    at: Reference,
    /// What one asks for, and who reads the reply, if it is the same request again.
    again: Option<Box<(Method, Reader)>>,
}

/// A request, what it asks for, and the objects whose proxies it puts into a queue.
pub(super) type Scanned = (Call, Result<Method, Refusal>, Option<BTreeSet<String>>);

fn scan(body: Bytes, shared: &Shared) -> Result<Scanned, PickleError> {
    let call = Call::parse(body.clone(), &shared.pickle_limits)?;
    let asked = Method::decode(&call, &shared.pickle_limits);
    let carried = forward::carried(shared, &body, &asked);
    Ok((call, asked, carried))
}

/// The same on a thread of its own.
pub(super) async fn scan_apart(body: Bytes, shared: Arc<Shared>) -> Result<Scanned, PickleError> {
    let scanned = tokio::task::spawn_blocking(move || scan(body, &shared)).await;
    scanned.unwrap_or(Err(PickleError::NotARequest { what: "it could not be scanned" }))
}
