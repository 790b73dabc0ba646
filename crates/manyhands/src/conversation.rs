//! One connection as its client sees it, sans-IO: from the server's challenge to the last reply.
//!
//! [`client`](crate::client) and [`blocking`](crate::blocking) differ only in how they follow the
//! [`Step`]s.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::Error;
use crate::connect::Address;
use crate::server::Server;
use crate::wire::auth::{self, Handshake};
use crate::wire::frame::{self, Decoder, Frame};

/// Least and most that is received at one time, in bytes.
const ROOM: (usize, usize) = (4 << 10, 64 << 10);

/// What its owner has to do next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send all of this.
    Send(Bytes),
    /// Receive something into [`Conversation::inbound`].
    Receive,
    /// Nothing: this is the reply.
    Reply(Bytes),
}

/// A connection's state.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) address: Arc<Address>,
    /// Until the two sides know each other.
    handshake: Option<Handshake>,
    decoder: Decoder,
    inbound: BytesMut,
    /// What is to be sent; during the handshake, the request waits in `request`.
    outbound: BytesMut,
    request: BytesMut,
    /// What ended the conversation, once the farewell is sent.
    failure: Option<Error>,
}

impl Conversation {
    /// A new connection, on which nothing was sent or received.
    pub(crate) fn new(server: &Server) -> Result<Self, Error> {
        let (address, options) = (Arc::clone(&server.address), &server.options);
        let mut nonce = [0; auth::NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|error| Error::Connect {
            address: Arc::clone(&address),
            error: io::Error::other(error),
        })?;
        Ok(Self {
            address,
            handshake: Some(Handshake::client(server.key.clone(), options.accept_md5, nonce)),
            decoder: Decoder::new(options.reply_bytes_max),
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
            request: BytesMut::new(),
            failure: None,
        })
    }

    /// Makes `request` the next thing to be sent. There must be no other without its reply.
    pub(crate) fn ask(&mut self, request: &[u8]) {
        let waits = self.handshake.is_some();
        frame::push(request, if waits { &mut self.request } else { &mut self.outbound });
    }

    /// How much to receive next, at most.
    pub(crate) fn room(&self) -> usize {
        usize::try_from(self.decoder.missing(&self.inbound)).unwrap_or(ROOM.1).clamp(ROOM.0, ROOM.1)
    }

    /// Where to put what is received.
    pub(crate) fn inbound(&mut self) -> &mut BytesMut {
        &mut self.inbound
    }

    /// What is to be done now.
    pub(crate) fn step(&mut self) -> Result<Step, Error> {
        loop {
            if !self.outbound.is_empty() {
                return Ok(Step::Send(self.outbound.split().freeze()));
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            let Some(handshake) = &mut self.handshake else { return self.next_reply() };
            match frame::split(&mut self.inbound, frame::AUTH_FRAME_BYTES_MAX) {
                Ok(None) => return Ok(Step::Receive),
                Ok(Some(message)) => match handshake.receive(&message) {
                    Ok(auth::Step::Send(answer)) => frame::push(&answer, &mut self.outbound),
                    Ok(auth::Step::Done(verdict)) => self.begin(verdict),
                    Err(error) => self.refuse(error),
                },
                Err(_) => self.refuse(auth::AuthError::Foreign("expected a short message")),
            }
        }
    }

    /// The verdict and the request go out together: apart, the second would wait for the delayed
    /// acknowledgement of the first.
    fn begin(&mut self, verdict: Option<&[u8]>) {
        if let Some(verdict) = verdict {
            frame::push(verdict, &mut self.outbound);
        }
        self.outbound.unsplit(self.request.split());
        self.handshake = None;
    }

    fn refuse(&mut self, error: auth::AuthError) {
        if let auth::AuthError::TurnedAway(_) = error {
            let (address, error) = (Arc::clone(&self.address), io::Error::other(error));
            self.failure = Some(Error::Connect { address, error });
            return;
        }
        if let Some(farewell) = error.farewell() {
            frame::push(farewell, &mut self.outbound);
        }
        self.failure = Some(Error::Authentication { address: Arc::clone(&self.address), error });
    }

    fn next_reply(&mut self) -> Result<Step, Error> {
        match self.decoder.next(&mut self.inbound) {
            Ok(None) => Ok(Step::Receive),
            Ok(Some(Frame::Body(body))) => Ok(Step::Reply(body)),
            Ok(Some(Frame::TooLong { len, limit })) => {
                let error = frame::FrameError::TooLong { len, limit };
                Err(self.unexpected(error.to_string()))
            }
            Err(error) => Err(self.unexpected(error.to_string())),
        }
    }

    /// The error for an answer that the protocol does not have.
    pub(crate) fn unexpected(&self, what: String) -> Error {
        Error::Protocol { address: Arc::clone(&self.address), what }
    }

    /// The error for a connection that ended or broke.
    pub(crate) fn lost(&self, error: io::Error) -> Error {
        Error::Lost { address: Arc::clone(&self.address), error }
    }

    /// The error for a connection that the server closed.
    pub(crate) fn closed(&self) -> Error {
        let how = match &self.handshake {
            Some(handshake) if !handshake.has_begun() => {
                "closed by the server before login; it may have no place for another connection"
            }
            _ => "closed by the server",
        };
        self.lost(io::Error::new(io::ErrorKind::UnexpectedEof, how))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::auth::AuthKey;

    const NONCE: auth::Nonce = [7; auth::NONCE_LEN];

    fn conversation(key: &[u8]) -> Conversation {
        Conversation::new(&crate::server::tests::server(key)).unwrap()
    }

    /// A server's side of the handshake and what it received behind it.
    fn serve(conversation: &mut Conversation, key: &[u8]) -> Result<Vec<Bytes>, Error> {
        let (mut server, greeting) = Handshake::server(AuthKey::new(key), true, NONCE);
        frame::push(&greeting, conversation.inbound());
        let mut received = Vec::new();
        loop {
            match conversation.step()? {
                Step::Receive => return Ok(received),
                Step::Reply(reply) => panic!("unasked {reply:?}"),
                Step::Send(bytes) => {
                    let mut bytes = BytesMut::from(&bytes[..]);
                    received.clear();
                    while let Some(message) = frame::split(&mut bytes, 1000).unwrap() {
                        received.push(message);
                    }
                    let answer = match server.receive(&received[0]) {
                        Ok(auth::Step::Send(answer)) => Some(answer),
                        Ok(auth::Step::Done(_)) => None,
                        Err(error) => error.farewell().map(<[u8]>::to_vec),
                    };
                    if let Some(answer) = answer {
                        frame::push(&answer, conversation.inbound());
                    }
                }
            }
        }
    }

    #[test]
    fn the_verdict_and_the_first_request_go_out_in_one_write() {
        let mut conversation = conversation(b"key");
        conversation.ask(b"request");
        let last = serve(&mut conversation, b"key").unwrap();
        assert_eq!(last, ["#WELCOME#", "request"]);
        frame::push(b"reply", conversation.inbound());
        assert!(matches!(conversation.step(), Ok(Step::Reply(reply)) if reply == "reply"));
    }

    #[test]
    fn a_reply_over_the_limit_is_an_error_before_it_is_kept() {
        let mut conversation = conversation(b"key");
        conversation.ask(b"request");
        serve(&mut conversation, b"key").unwrap();
        conversation.decoder = Decoder::new(4);
        frame::push(b"reply", conversation.inbound());
        let error = conversation.step().unwrap_err().to_string();
        let numbers = "frame of 5 bytes exceeds the limit of 4 bytes";
        assert_eq!(error, format!("localhost:1: unexpected answer: {numbers}"));
        conversation.inbound().extend_from_slice(b"\xff\xff\xff\xfe");
        let error = conversation.step().unwrap_err().to_string();
        assert!(error.ends_with("frame with the negative length -2"), "{error}");
    }

    #[test]
    fn a_server_that_closes_before_its_challenge_may_have_no_place() {
        let mut turned_away = conversation(b"key");
        let text = turned_away.closed().to_string();
        assert!(text.ends_with("it may have no place for another connection"), "{text}");
        turned_away.ask(b"request");
        serve(&mut turned_away, b"key").unwrap();
        assert!(turned_away.closed().to_string().ends_with("closed by the server"));
    }

    #[test]
    fn a_server_that_has_no_place_may_have_one_later() {
        let mut turned_away = conversation(b"key");
        frame::push(&auth::turned_away("all 4 are in use"), turned_away.inbound());
        let error = turned_away.step().unwrap_err();
        assert_eq!(error.to_string(), "cannot connect to localhost:1: all 4 are in use");
        assert!(error.is_retryable());
    }

    #[test]
    fn another_key_is_told_apart_from_another_protocol() {
        let mut wrong = conversation(b"key");
        let error = serve(&mut wrong, b"other").unwrap_err().to_string();
        let expected = "localhost:1: authentication failed: the peer refused our authkey";
        assert_eq!(error, expected);
        let mut foreign = conversation(b"key");
        foreign.inbound().extend_from_slice(b"HTTP/1.1 400 Bad Request\r\n");
        let error = foreign.step().unwrap_err().to_string();
        assert!(error.contains("does not speak the authentication protocol"), "{error}");
    }
}
