//! Objects that are no queues and live in the program that embeds the server: Python's, in the wheel.
//!
//! What a client asks of one goes to the program as it came, in a [`Conversation`]: [`Request`]s out,
//! bodies of replies back. Invariants: the event loop never waits for the program; a conversation
//! has one request under way; calls of queues, and what is no request at all, never get here.

pub(super) mod forward;
#[cfg(unix)]
mod handoff;

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc as replies;

#[cfg(unix)]
use self::handoff::HandedSocket;

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
    requests: Mutex<mpsc::Receiver<Posted>>,
    replies: replies::UnboundedSender<Bytes>,
    /// The session's socket, while this program has it.
    #[cfg(unix)]
    socket: Mutex<Option<HandedSocket<Request>>>,
}

/// What the embedding program is asked. The bodies are whole, scanned pickles.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// A call of the manager itself.
    Control(Bytes),
    /// A call of an object that is no queue of the server.
    Call {
        /// The object, as the client names it. There may be none of that name.
        ident: String,
        /// The pickle.
        body: Bytes,
    },
    /// A client puts an item that carries proxies of these objects. They must not go while the
    /// item is on its way. Any reply will do.
    Carried(BTreeSet<String>),
}

/// A request on its way to the program, perhaps with the socket that it came on.
#[derive(Debug)]
struct Posted {
    request: Request,
    #[cfg(unix)]
    socket: Option<HandedSocket<Request>>,
}

impl Conversation {
    /// The name that the client gave its session; `None` for a control request.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Waits for the next request; `None` when the client has left.
    #[must_use]
    pub fn recv(&self) -> Option<Request> {
        #[cfg(unix)]
        if let Some(request) = self.recv_on_socket() {
            return Some(request);
        }
        let posted = self.requests.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()?;
        #[cfg(unix)]
        self.set_socket(posted.socket);
        Some(posted.request)
    }

    #[cfg(unix)]
    fn recv_on_socket(&self) -> Option<Request> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let (request, socket) = socket.next()?;
        self.set_socket(Some(socket));
        Some(request)
    }

    #[cfg(unix)]
    fn set_socket(&self, socket: Option<HandedSocket<Request>>) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// Sends a reply, a pickle; false if the client has left.
    #[must_use]
    pub fn send(&self, reply: Bytes) -> bool {
        #[cfg(unix)]
        if let Some(socket) = &*self.socket.lock().unwrap_or_else(PoisonError::into_inner) {
            return socket.send(&reply).is_ok();
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
    requests: mpsc::Sender<Posted>,
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
            socket: Mutex::new(None),
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
    pub(crate) fn ask(&self, request: Request) {
        self.post(Posted {
            request,
            #[cfg(unix)]
            socket: None,
        });
    }

    /// Passes a request on, and the socket that it came on with it.
    #[cfg(unix)]
    pub(crate) fn ask_with_socket(&self, request: Request, socket: HandedSocket<Request>) {
        self.post(Posted { request, socket: Some(socket) });
    }

    fn post(&self, posted: Posted) {
        // If nobody listens, there is no reply either.
        drop(self.requests.send(posted));
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
        guest.ask(Request::Control(Bytes::from_static(b"request")));
        let conversation = guests.next().unwrap();
        assert_eq!(conversation.session(), Some("MainProcess"));
        assert_eq!(conversation.recv(), Some(Request::Control("request".into())));
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
