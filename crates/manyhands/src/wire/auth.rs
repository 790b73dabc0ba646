//! The mutual HMAC challenge that opens every connection, as one small state machine.
//!
//! The server challenges first; both sides prove that they know the key, and the key itself never
//! travels. [`Handshake::server`] and [`Handshake::client`] are fed one frame body at a time.
//! Source: CPython `Lib/multiprocessing/connection.py`, `deliver_challenge`, `answer_challenge` and
//! `_create_response`; Python up to 3.11 knows only HMAC-MD5, later versions name the digest.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac, SimpleHmac};

use super::frame;
use crate::text::printable;

const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const FAILURE: &[u8] = b"#FAILURE#";
/// What a server begins with that has no place for a client. CPython's clients show it whole.
const TURNED_AWAY: &str = "#FAILURE#: ";
/// What our own challenges begin with. Old peers hash it along without understanding it.
const CHALLENGE_DIGEST: &[u8] = b"{sha256}";
/// Length of a challenge that asks for HMAC-MD5, without its prefix, in bytes.
const LEGACY_CHALLENGE_LEN: usize = 20;

/// What the mark in a client's challenge is computed over, in front of the random bytes. No peer can
/// have such a text answered: a challenge begins with the name of a digest, or has 20 bytes.
const CLIENT_MARK: &[u8] = b"challenge of a manyhands client:";
/// Length of that mark, in bytes.
const MARK_LEN: usize = 16;
/// Length of what stays random in a client's challenge, in bytes.
const CLIENT_RANDOM_LEN: usize = NONCE_LEN - MARK_LEN;

/// Length of the random part of a challenge, in bytes.
pub const NONCE_LEN: usize = 40;
/// Random bytes for one challenge. They must never repeat.
pub type Nonce = [u8; NONCE_LEN];

/// The secret that both ends share, kept only as HMAC states ready for use.
///
/// `Debug` shows nothing of it. An empty key is legal, as in CPython.
#[derive(Clone)]
pub struct AuthKey(Arc<States>);

struct States {
    strength: usize,
    md5: Hmac<md5::Md5>,
    sha256: Hmac<sha2::Sha256>,
    sha384: Hmac<sha2::Sha384>,
    sha3_256: SimpleHmac<sha3::Sha3_256>,
    sha3_384: SimpleHmac<sha3::Sha3_384>,
}

impl AuthKey {
    /// Prepares `key`.
    #[must_use]
    pub fn new(key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref();
        Self(Arc::new(States {
            strength: if key.iter().all(|byte| *byte == 0) { 0 } else { key.len() },
            md5: keyed(key),
            sha256: keyed(key),
            sha384: keyed(key),
            sha3_256: keyed(key),
            sha3_384: keyed(key),
        }))
    }

    /// How much there is to guess: the length of the key in bytes, or 0 if it is all NUL bytes, as
    /// the key of a script is that wrote a number (`authkey=510210`).
    #[must_use]
    pub fn strength(&self) -> usize {
        self.0.strength
    }

    /// What only somebody with the key can put behind `random`. A client ends its challenges with it,
    /// so that every other client with the same key recognizes them.
    fn client_mark(&self, random: &[u8]) -> Vec<u8> {
        let mut mark = self.mac(Digest::Sha256, &[CLIENT_MARK, random].concat());
        mark.truncate(MARK_LEN);
        mark
    }

    /// Whether `challenge` was made by a client with this key.
    fn is_of_client(&self, challenge: &[u8]) -> bool {
        let nonce = challenge.strip_prefix(CHALLENGE_DIGEST).unwrap_or_default();
        nonce.len() == NONCE_LEN
            && nonce.split_at_checked(CLIENT_RANDOM_LEN).is_some_and(|(random, mark)| {
                subtle::ConstantTimeEq::ct_eq(self.client_mark(random).as_slice(), mark).into()
            })
    }

    fn mac(&self, digest: Digest, message: &[u8]) -> Vec<u8> {
        match digest {
            Digest::Md5 => sign(&self.0.md5, message),
            Digest::Sha256 => sign(&self.0.sha256, message),
            Digest::Sha384 => sign(&self.0.sha384, message),
            Digest::Sha3_256 => sign(&self.0.sha3_256, message),
            Digest::Sha3_384 => sign(&self.0.sha3_384, message),
        }
    }
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for AuthKey {
    fn from(key: &T) -> Self {
        Self::new(key)
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(…)")
    }
}

fn keyed<M: KeyInit>(key: &[u8]) -> M {
    M::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"))
}

fn sign<M: Mac + Clone>(keyed: &M, message: &[u8]) -> Vec<u8> {
    keyed.clone().chain_update(message).finalize().into_bytes().to_vec()
}

/// The digests that CPython allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digest {
    Md5,
    Sha256,
    Sha384,
    Sha3_256,
    Sha3_384,
}

impl Digest {
    const ALL: [(Self, &'static [u8], usize); 5] = [
        (Self::Md5, b"{md5}", 16),
        (Self::Sha256, b"{sha256}", 32),
        (Self::Sha384, b"{sha384}", 48),
        (Self::Sha3_256, b"{sha3_256}", 32),
        (Self::Sha3_384, b"{sha3_384}", 48),
    ];

    /// Splits `{name}` off `message`; the length is that of this digest's MACs.
    fn named(message: &[u8]) -> Option<(Self, &'static [u8], usize, &[u8])> {
        Self::ALL.into_iter().find_map(|(digest, name, mac_len)| {
            message.strip_prefix(name).map(|rest| (digest, name, mac_len, rest))
        })
    }
}

/// What a server says instead of its challenge to a client for which it has no place, as a frame body.
#[must_use]
pub fn turned_away(reason: &str) -> Vec<u8> {
    let mut body = [TURNED_AWAY, reason].concat().into_bytes();
    body.truncate(usize::try_from(frame::AUTH_FRAME_BYTES_MAX).unwrap_or(usize::MAX));
    body
}

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The peer's proof does not fit our key.
    #[error("the peer has another authkey")]
    WrongKey,
    /// The peer says that our proof does not fit its key.
    #[error("the peer refused our authkey")]
    Refused,
    /// The peer knows only HMAC-MD5 (Python 3.11 and earlier), which is switched off here.
    #[error("the peer offers only HMAC-MD5 (Python 3.11 or earlier), which is not accepted")]
    Md5Refused,
    /// The peer asks us to answer a challenge that a client made: it does not know the key and looks
    /// for somebody who answers in its place.
    #[error(
        "the peer sent the challenge of another client instead of one of its own; it does not know \
         the authkey"
    )]
    Reflected,
    /// The server has no place for another connection, and says so.
    #[error("{0}")]
    TurnedAway(String),
    /// The peer speaks something else.
    #[error("the peer does not speak the authentication protocol of multiprocessing: {0}")]
    Foreign(&'static str),
}

impl AuthError {
    /// The last frame that the peer should get before the connection is closed, if any.
    #[must_use]
    pub fn farewell(&self) -> Option<&'static [u8]> {
        matches!(self, Self::WrongKey | Self::Md5Refused).then_some(FAILURE)
    }
}

/// What to do after a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this frame body and wait for the next message.
    Send(Vec<u8>),
    /// Both sides are satisfied. A client sends this frame body in front of its request; a server
    /// has nothing left to say.
    Done(Option<&'static [u8]>),
}

/// What comes next from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its answer to our challenge.
    Answer,
    /// Its own challenge.
    Challenge,
    /// Its verdict on our answer.
    Verdict,
}

/// One side of the handshake.
#[derive(Debug)]
pub struct Handshake {
    key: AuthKey,
    accept_md5: bool,
    is_server: bool,
    stage: Stage,
    challenge: [u8; CHALLENGE_DIGEST.len() + NONCE_LEN],
}

impl Handshake {
    /// The side that accepted the connection, and its first frame body, to be sent at once.
    #[must_use]
    pub fn server(key: AuthKey, accept_md5: bool, nonce: Nonce) -> (Self, Vec<u8>) {
        let this = Self::new(key, accept_md5, nonce, true);
        let greeting = this.own_challenge();
        (this, greeting)
    }

    /// The side that connected; the peer speaks first.
    ///
    /// The last 16 bytes of `nonce` are replaced by a mark, which tells every other client with the
    /// same key that this challenge is none of a server. A server that does not know the key could
    /// otherwise pass it to another connection and return the answer as its own.
    #[must_use]
    pub fn client(key: AuthKey, accept_md5: bool, mut nonce: Nonce) -> Self {
        let (random, mark) = nonce.split_at_mut(CLIENT_RANDOM_LEN);
        mark.copy_from_slice(&key.client_mark(random));
        Self::new(key, accept_md5, nonce, false)
    }

    fn new(key: AuthKey, accept_md5: bool, nonce: Nonce, is_server: bool) -> Self {
        let mut challenge = [0; CHALLENGE_DIGEST.len() + NONCE_LEN];
        let (name, random) = challenge.split_at_mut(CHALLENGE_DIGEST.len());
        name.copy_from_slice(CHALLENGE_DIGEST);
        random.copy_from_slice(&nonce);
        let stage = if is_server { Stage::Answer } else { Stage::Challenge };
        Self { key, accept_md5, is_server, stage, challenge }
    }

    /// Whether the peer of a client has sent anything that makes sense.
    pub(crate) fn has_begun(&self) -> bool {
        self.is_server || self.stage != Stage::Challenge
    }

    fn own_challenge(&self) -> Vec<u8> {
        [CHALLENGE, &self.challenge].concat()
    }

    /// Takes the next frame body from the peer.
    ///
    /// # Errors
    ///
    /// [`AuthError`]; send its [`farewell`](AuthError::farewell), if it has one, and close.
    pub fn receive(&mut self, message: &[u8]) -> Result<Step, AuthError> {
        match self.stage {
            Stage::Answer => {
                self.verify(message)?;
                self.stage = Stage::Challenge;
                // A client ends here: its verdict goes out together with its first request.
                Ok(if self.is_server {
                    Step::Send(WELCOME.into())
                } else {
                    Step::Done(Some(WELCOME))
                })
            }
            Stage::Challenge => {
                self.expect_place(message)?;
                self.stage = Stage::Verdict;
                self.answer(message).map(Step::Send)
            }
            Stage::Verdict if message == WELCOME => {
                self.stage = Stage::Answer;
                Ok(if self.is_server { Step::Done(None) } else { Step::Send(self.own_challenge()) })
            }
            Stage::Verdict if message == FAILURE => Err(AuthError::Refused),
            Stage::Verdict => Err(AuthError::Foreign("expected #WELCOME# or #FAILURE#")),
        }
    }

    /// Looks whether the server has no place for us.
    fn expect_place(&self, message: &[u8]) -> Result<(), AuthError> {
        let reason = message.strip_prefix(TURNED_AWAY.as_bytes()).filter(|_| !self.is_server);
        // Whoever it is has proved nothing yet.
        let told = |reason| printable(&String::from_utf8_lossy(reason), |_| false).into_owned();
        reason.map_or(Ok(()), |reason| Err(AuthError::TurnedAway(told(reason))))
    }

    /// Checks the peer's answer to our challenge, in a time that does not depend on its bytes.
    fn verify(&self, answer: &[u8]) -> Result<(), AuthError> {
        let (digest, mac) = match Digest::named(answer) {
            Some((digest, _, mac_len, mac)) if mac.len() == mac_len => (digest, mac),
            None if answer.len() == 16 => (Digest::Md5, answer),
            _ => return Err(AuthError::Foreign("expected the digest of a challenge")),
        };
        if digest == Digest::Md5 && !self.accept_md5 {
            return Err(AuthError::Md5Refused);
        }
        let expected = self.key.mac(digest, &self.challenge);
        let equal: bool = subtle::ConstantTimeEq::ct_eq(expected.as_slice(), mac).into();
        if equal { Ok(()) } else { Err(AuthError::WrongKey) }
    }

    /// Our answer to the peer's challenge, in the form that the challenge asks for.
    fn answer(&self, message: &[u8]) -> Result<Vec<u8>, AuthError> {
        let challenge = message
            .strip_prefix(CHALLENGE)
            .ok_or(AuthError::Foreign("expected a message that begins with #CHALLENGE#"))?;
        if challenge.len() == LEGACY_CHALLENGE_LEN {
            if !self.accept_md5 {
                return Err(AuthError::Md5Refused);
            }
            return Ok(self.key.mac(Digest::Md5, challenge));
        }
        if !self.is_server && self.key.is_of_client(challenge) {
            return Err(AuthError::Reflected);
        }
        match Digest::named(challenge) {
            Some((digest, ..)) if digest == Digest::Md5 && !self.accept_md5 => {
                Err(AuthError::Md5Refused)
            }
            Some((digest, name, ..)) if challenge.len() > LEGACY_CHALLENGE_LEN => {
                Ok([name, &self.key.mac(digest, challenge)].concat())
            }
            _ => Err(AuthError::Foreign(
                "expected a challenge of 20 bytes or one that names its digest",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"wire-test-key";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn nonce() -> Nonce {
        std::array::from_fn(|i| u8::try_from(i).unwrap())
    }

    fn handshake(key: impl AsRef<[u8]>) -> Handshake {
        Handshake::client(AuthKey::new(key), true, nonce())
    }

    fn new_challenge() -> Vec<u8> {
        [CHALLENGE, b"{sha256}", &nonce()].concat()
    }

    fn old_challenge() -> Vec<u8> {
        [CHALLENGE, &nonce()[..20]].concat()
    }

    // The expected digests were computed with CPython's hmac module.
    #[test]
    fn a_challenge_is_answered_in_its_own_form() {
        let answer = handshake(KEY).answer(&old_challenge()).unwrap();
        assert_eq!(hex(&answer), "619909e993a8f8a1005c48f142f046cf");
        let answer = handshake(KEY).answer(&new_challenge()).unwrap();
        let mac = answer.strip_prefix(b"{sha256}".as_slice()).unwrap();
        assert_eq!(hex(mac), "3f6a2c04b1dc6a6b439262ccf9a8c371d9394f4bd854e1eac869073875188478");
    }

    #[test]
    fn a_key_of_half_a_million_nul_bytes_works() {
        let answer = handshake(vec![0; 510_210]).answer(&old_challenge()).unwrap();
        assert_eq!(hex(&answer), "f455a24ec4d1b65decf0a0e6038652db");
    }

    #[test]
    fn an_old_client_proves_itself_with_raw_md5() {
        let (server, _) = Handshake::server(AuthKey::new(KEY), true, nonce());
        let old = AuthKey::new(KEY).mac(Digest::Md5, &server.challenge);
        assert_eq!(hex(&old), "6df3ebee6cbd31c27fd2393e34446957");
        assert_eq!(server.verify(&old), Ok(()));
        let (strict, _) = Handshake::server(AuthKey::new(KEY), false, nonce());
        assert_eq!(strict.verify(&old), Err(AuthError::Md5Refused));
    }

    #[test]
    fn every_digest_that_cpython_allows_is_accepted() {
        let (server, _) = Handshake::server(AuthKey::new(KEY), true, nonce());
        for (digest, name, mac_len) in Digest::ALL {
            let mac = server.key.mac(digest, &server.challenge);
            assert_eq!(mac.len(), mac_len);
            assert_eq!(server.verify(&[name, &mac].concat()), Ok(()), "{digest:?}");
            let cut = [name, &mac[1..]].concat();
            assert!(matches!(server.verify(&cut), Err(AuthError::Foreign(_))), "{digest:?}");
        }
    }

    /// Runs both sides against each other and returns how each ended.
    fn converse(
        server_key: &[u8],
        client_key: &[u8],
    ) -> (Result<(), AuthError>, Result<(), AuthError>) {
        let (mut server, greeting) = Handshake::server(AuthKey::new(server_key), true, nonce());
        let mut client = Handshake::client(AuthKey::new(client_key), true, [7; NONCE_LEN]);
        let mut to_client = Some(greeting);
        let (mut server_end, mut client_end) = (None, None);
        while let Some(message) = to_client.take() {
            let to_server = match client.receive(&message) {
                Ok(Step::Send(message)) => message,
                Ok(Step::Done(last)) => {
                    client_end = Some(Ok(()));
                    last.unwrap().to_vec()
                }
                Err(error) => {
                    client_end = Some(Err(error));
                    break;
                }
            };
            match server.receive(&to_server) {
                Ok(Step::Send(message)) => to_client = Some(message),
                Ok(Step::Done(_)) => server_end = Some(Ok(())),
                Err(error) => {
                    to_client = error.farewell().map(<[u8]>::to_vec);
                    server_end = Some(Err(error));
                }
            }
        }
        (server_end.unwrap(), client_end.unwrap())
    }

    #[test]
    fn both_sides_are_satisfied_by_the_same_key() {
        assert_eq!(converse(KEY, KEY), (Ok(()), Ok(())));
        assert_eq!(converse(b"", b""), (Ok(()), Ok(())));
    }

    /// A client that has just sent its challenge, and the message with it.
    fn client_with_a_challenge_under_way(nonce: Nonce) -> (Handshake, Vec<u8>) {
        let mut client = Handshake::client(AuthKey::new(KEY), true, nonce);
        client.receive(&new_challenge()).unwrap();
        let Ok(Step::Send(challenge)) = client.receive(WELCOME) else { panic!("it challenges") };
        (client, challenge)
    }

    #[test]
    fn no_client_answers_the_challenge_of_a_client_with_the_same_key() {
        let (mut asked, challenge) = client_with_a_challenge_under_way([1; NONCE_LEN]);
        // Another connection, maybe of another process, to which the server passes it.
        let mut oracle = Handshake::client(AuthKey::new(KEY), true, [2; NONCE_LEN]);
        assert_eq!(oracle.receive(&challenge), Err(AuthError::Reflected));
        assert!(asked.receive(&challenge).is_err(), "nor does it take it for an answer");
        let (_, again) = client_with_a_challenge_under_way([1; NONCE_LEN]);
        let (_, other) = client_with_a_challenge_under_way([3; NONCE_LEN]);
        assert_eq!(challenge, again);
        assert_ne!(challenge, other);
    }

    #[test]
    fn a_challenge_that_is_not_marked_is_answered() {
        let (_, challenge) = client_with_a_challenge_under_way([1; NONCE_LEN]);
        let mut foreign = Handshake::client(AuthKey::new("another key"), true, nonce());
        assert!(foreign.receive(&challenge).is_ok(), "whoever has another key cannot tell");
        let mut changed = challenge;
        *changed.last_mut().unwrap() ^= 1;
        let mut client = Handshake::client(AuthKey::new(KEY), true, nonce());
        assert!(client.receive(&changed).is_ok());
    }

    #[test]
    fn a_server_that_knows_only_md5_can_be_refused() {
        let mut client = Handshake::client(AuthKey::new(KEY), false, nonce());
        assert_eq!(client.receive(&old_challenge()), Err(AuthError::Md5Refused));
        let named = [CHALLENGE, b"{md5}", &nonce()].concat();
        let mut client = Handshake::client(AuthKey::new(KEY), false, nonce());
        assert_eq!(client.receive(&named), Err(AuthError::Md5Refused));
    }

    #[test]
    fn another_key_is_refused_and_the_client_is_told() {
        assert_eq!(
            converse(KEY, b"another-key"),
            (Err(AuthError::WrongKey), Err(AuthError::Refused))
        );
    }

    #[test]
    fn a_server_that_has_no_place_says_so_in_printable_text() {
        let said = turned_away("all 4 connections\x1b[1m are in use");
        let error = handshake(KEY).receive(&said).unwrap_err();
        assert_eq!(error.to_string(), "all 4 connections\\u001b[1m are in use");
        assert_eq!(error.farewell(), None);
        let (mut server, _) = Handshake::server(AuthKey::new(KEY), true, nonce());
        assert!(matches!(server.receive(&said), Err(AuthError::Foreign(_))));
        assert_eq!(turned_away(&"x".repeat(1000)).len(), 256, "CPython's clients take no more");
    }

    #[test]
    fn what_is_no_handshake_is_called_foreign() {
        for message in
            [&b""[..], b"GET / HTTP/1.1", b"#CHALLENGE#", b"#CHALLENGE#{crc32}0123456789012345"]
        {
            let error = handshake(KEY).answer(message).unwrap_err();
            assert!(matches!(error, AuthError::Foreign(_)), "{message:?}");
        }
    }

    #[test]
    fn a_key_of_nul_bytes_has_no_strength() {
        assert_eq!(AuthKey::new(KEY).strength(), 13);
        assert_eq!(AuthKey::new([0; 100]).strength(), 0);
    }

    #[test]
    fn debug_shows_nothing_of_the_key() {
        assert!(!format!("{:?}", handshake(KEY)).contains("wire"));
    }
}
