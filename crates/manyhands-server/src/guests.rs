//! Objects that are no queues and live in the program that embeds the server: Python's, in the wheel.
//!
//! Whatever a client asks of one goes to the program as it came, in a [`Conversation`]: bodies of
//! requests out, bodies of replies back. Invariants: the event loop never waits for the program; a
//! conversation has one request under way.

use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc as replies;

#[cfg(unix)]
use crate::loan::Loan;

/// Where the embedding program finds the conversations that clients begin.
#[derive(Debug)]
pub struct Guests(Mutex<mpsc::Receiver<Conversation>>);

impl Guests {
    /// Waits for the next conversation; `None` when the server has stopped.
    #[must_use]
    pub fn next(&self) -> Option<Conversation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

/// One client that calls guests: a control request alone, or all such calls of a session.
///
/// Dropping it ends the connection.
#[derive(Debug)]
pub struct Conversation {
    session: Option<String>,
    requests: Mutex<mpsc::Receiver<Request>>,
    replies: replies::UnboundedSender<Bytes>,
    /// The session's socket, while it is lent.
    #[cfg(unix)]
    loan: Mutex<Option<Loan>>,
}

/// A request, perhaps with the socket that it came on.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) body: Bytes,
    #[cfg(unix)]
    pub(crate) loan: Option<Loan>,
}

impl From<Bytes> for Request {
    fn from(body: Bytes) -> Self {
        Self {
            body,
            #[cfg(unix)]
            loan: None,
        }
    }
}

impl Conversation {
    /// The name that the client gave its session; `None` for a control request.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Waits for the next request, a pickle; `None` when the client has left.
    #[must_use]
    pub fn recv(&self) -> Option<Bytes> {
        #[cfg(unix)]
        if let Some(body) = self.recv_on_loan() {
            return Some(body);
        }
        let request = self.requests.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()?;
        #[cfg(unix)]
        self.keep(request.loan);
        Some(request.body)
    }

    #[cfg(unix)]
    fn recv_on_loan(&self) -> Option<Bytes> {
        let loan = self.loan.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let (body, loan) = loan.next()?;
        self.keep(Some(loan));
        Some(body)
    }

    #[cfg(unix)]
    fn keep(&self, loan: Option<Loan>) {
        *self.loan.lock().unwrap_or_else(PoisonError::into_inner) = loan;
    }

    /// Sends a reply, a pickle; false if the client has left.
    #[must_use]
    pub fn send(&self, reply: Bytes) -> bool {
        #[cfg(unix)]
        if let Some(loan) = &*self.loan.lock().unwrap_or_else(PoisonError::into_inner) {
            return loan.send(&reply).is_ok();
        }
        self.replies.send(reply).is_ok()
    }
}

/// The server's end of [`Guests`].
#[derive(Debug)]
pub(crate) struct Reception(Mutex<Option<mpsc::Sender<Conversation>>>);

/// The server's end of a [`Conversation`].
#[derive(Debug)]
pub(crate) struct Guest {
    requests: mpsc::Sender<Request>,
    replies: replies::UnboundedReceiver<Bytes>,
}

/// Both ends.
pub(crate) fn reception() -> (Reception, Guests) {
    let (sender, receiver) = mpsc::channel();
    (Reception(Mutex::new(Some(sender))), Guests(Mutex::new(receiver)))
}

impl Reception {
    /// Begins a conversation; nobody answers in it if the program has gone.
    pub(crate) fn open(&self, session: Option<&str>) -> Guest {
        let (requests, inbox) = mpsc::channel();
        let (outbox, replies) = replies::unbounded_channel();
        let conversation = Conversation {
            session: session.map(ToOwned::to_owned),
            requests: Mutex::new(inbox),
            replies: outbox,
            #[cfg(unix)]
            loan: Mutex::new(None),
        };
        if let Some(reception) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // What cannot be sent is dropped, which ends the conversation.
            drop(reception.send(conversation));
        }
        Guest { requests, replies }
    }

    /// Begins no more conversations.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Guest {
    /// Passes a request on.
    pub(crate) fn ask(&self, request: impl Into<Request>) {
        // If nobody listens, there is no reply either.
        drop(self.requests.send(request.into()));
    }

    /// The next reply; `None` if the program has ended the conversation.
    pub(crate) async fn reply(&mut self) -> Option<Bytes> {
        self.replies.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reaches_the_program_and_its_reply_comes_back() {
        let (reception, guests) = reception();
        let mut guest = reception.open(Some("MainProcess"));
        guest.ask(Bytes::from_static(b"request"));
        let conversation = guests.next().unwrap();
        assert_eq!(conversation.session(), Some("MainProcess"));
        assert_eq!(conversation.recv().unwrap(), "request");
        assert!(conversation.send(Bytes::from_static(b"reply")));
        assert_eq!(pollster::block_on(guest.reply()).unwrap(), "reply");
        drop(guest);
        assert_eq!(conversation.recv(), None);
        assert!(!conversation.send(Bytes::new()));
    }

    #[test]
    fn a_closed_reception_ends_every_new_conversation() {
        let (reception, guests) = reception();
        reception.close();
        assert!(guests.next().is_none());
        assert_eq!(pollster::block_on(reception.open(None).reply()), None);
    }
}
