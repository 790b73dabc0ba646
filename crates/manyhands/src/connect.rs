//! Where a server is and how to talk to it.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::Error;
use crate::wire::auth::AuthKey;
use crate::wire::message::Reader;
use crate::wire::pickle::Limits;

/// Where a server listens.
///
/// Written `host:port`, `[v6]:port` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port.
    Tcp {
        /// Name or number of the host.
        host: String,
        /// Port number.
        port: u16,
    },
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let invalid = || Error::Address { text: text.to_owned() };
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        match bare {
            None if host.is_empty() || host.contains([':', '[', ']']) => Err(invalid()),
            _ => Ok(Self::Tcp { host: bare.unwrap_or(host).to_owned(), port }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl AuthKey {
    /// Reads the key in a file: its bytes, without one newline at the end.
    ///
    /// # Errors
    ///
    /// That the file cannot be read, or holds no key.
    pub fn from_file(path: impl AsRef<Path>) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        match bytes.strip_suffix(b"\n").unwrap_or(&bytes) {
            [] => Err(io::Error::new(io::ErrorKind::InvalidData, "the authkey is empty")),
            key => Ok(Self::new(key)),
        }
    }
}

/// How a client connects and how long it waits.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// How long connecting, authenticating and opening a session may take together.
    pub connect_timeout: Duration,
    /// How much longer than it asked for itself a call may take, before the connection counts as
    /// broken. Calls without an end of their own (`get` and `put` without a time-out, `join`) wait
    /// for as long as the connection lives.
    pub call_margin: Duration,
    /// What the server calls the client's sessions. By a name that begins with
    /// [`Reader::SESSION_PREFIX`] our server knows a client that reads pickles of every protocol.
    pub session_name: String,
    /// Whether servers that know only HMAC-MD5 are accepted: those of Python 3.11 and earlier.
    pub accept_md5: bool,
    /// Largest reply, in bytes.
    pub reply_bytes_max: u64,
    /// Bounds on the data in a reply.
    pub limits: Limits,
    /// Sessions kept open between calls. More are opened when more callers wait at one time.
    pub idle_sessions_max: usize,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            call_margin: Duration::from_secs(10),
            session_name: format!(
                "{}{} pid={}",
                Reader::SESSION_PREFIX,
                env!("CARGO_PKG_VERSION"),
                std::process::id()
            ),
            accept_md5: true,
            reply_bytes_max: 1 << 30,
            limits: Limits::default(),
            idle_sessions_max: 16,
        }
    }
}

/// How long a connection is silent before the system asks whether the peer still lives.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// Sets a fresh TCP connection up: small requests leave at once, and a peer that vanished without
/// a word is noticed while a `get` waits for ever.
pub(crate) fn tune(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    socket.set_tcp_keepalive(&keepalive)
}

/// Whether nothing has come on an idle session, neither a stray reply nor its end. The socket must
/// not block.
pub(crate) fn is_quiet(socket: SockRef<'_>) -> bool {
    let peeked = socket.peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["10.0.0.7:5000", "localhost:1", "[::1]:5000", "unix:/run/queues"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "localhost", ":5000", "::1:5000", "host:70000", "[::1:5000", "host:"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{text}' is no address")), "{error}");
        }
    }

    #[test]
    fn one_newline_at_the_end_of_a_key_file_is_not_part_of_the_key() {
        let path = std::env::temp_dir().join(format!("manyhands-key-{}", std::process::id()));
        let strength = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            AuthKey::from_file(&path).map(|key| key.strength())
        };
        assert_eq!(strength(b"abc\n").unwrap(), 3);
        assert_eq!(strength(b"a\0c").unwrap(), 3);
        assert_eq!(strength(b"\n").unwrap_err().to_string(), "the authkey is empty");
        std::fs::remove_file(&path).unwrap();
        assert!(AuthKey::from_file(&path).is_err());
    }
}
