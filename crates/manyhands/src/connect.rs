//! Where a server is and how to talk to it.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::Error;
use crate::wire::pickle::Limits;

/// Where a server listens.
///
/// Written `host:port`, `[v6]:port` or `unix:/path`; a server may also be told `:port`, which is
/// every IPv4 interface, and port 0, which is a free one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port.
    Tcp {
        /// Name or number of the host.
        host: String,
        /// Port number.
        port: u16,
    },
    /// A Unix domain socket: Python clients give its path as the manager's address.
    Unix(PathBuf),
}

impl Address {
    /// Whether it is known without a look-up that only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
            Self::Unix(_) => true,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => address.ip().to_string(),
        };
        Self::Tcp { host, port: address.port() }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Address { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(invalid()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match bracketed {
            Some(host) if host.contains(':') && !host.contains(['[', ']']) => host,
            None if host.is_empty() => "0.0.0.0",
            None if !host.contains([':', '[', ']']) => host,
            _ => return Err(invalid()),
        };
        Ok(Self::Tcp { host: host.to_owned(), port })
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

/// How a client connects and how long it waits.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// How long connecting, authenticating and opening a session may take together. The blocking
    /// client cannot interrupt the look-up of a host's name, which may take as long as the system
    /// lets it; a number needs none.
    pub connect_timeout: Duration,
    /// How much longer than it asked for itself a call may take before it fails. If nothing at all has
    /// come meanwhile, the connection counts as broken. Calls without an end of their own (`get` and `put` without a time-out, `join`) wait
    /// for as long as the connection lives.
    pub call_margin: Duration,
    /// What the server calls this client where it says who has a task.
    pub session_name: String,
    /// Whether servers that know only HMAC-MD5 are accepted: those of Python 3.11 and earlier.
    pub accept_md5: bool,
    /// Largest reply, in bytes.
    pub reply_bytes_max: u64,
    /// Bounds on the data in a reply.
    pub limits: Limits,
    /// Sessions that are kept open between calls to a server of CPython's. More are opened when more
    /// callers wait at one time.
    pub idle_sessions_max: usize,
    /// How long calls go on trying to reach a manyhands server that was lost: a restart takes a
    /// moment. The pauses between the attempts grow to two seconds, and are random in part. Zero
    /// gives up at once.
    pub reconnect_for: Duration,
    /// How long the first connection is tried while nobody listens, because a worker may be there
    /// before its server; as long as `reconnect_for` if nothing is said.
    pub connect_for: Option<Duration>,
    /// Whether a first connection on which nothing comes in time is not tried again, unlike one that
    /// nobody listens for.
    pub first_silence_is_final: bool,
    /// Asked every 50 ms while a blocking call waits for its reply: `false` ends it with
    /// [`Error::Interrupted`]. For programs that must look after signals.
    pub goes_on: Option<fn() -> bool>,
    /// Told why a blocking call tries to reach the server again, and for how much longer: once, when it
    /// has been away for `report_after`.
    pub report: Option<fn(&Error, Duration)>,
    /// How long nobody needs to be told that the server is away.
    pub report_after: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            call_margin: Duration::from_secs(10),
            session_name: format!("rust/{} pid={}", env!("CARGO_PKG_VERSION"), std::process::id()),
            accept_md5: true,
            reply_bytes_max: 1 << 30,
            limits: Limits::default(),
            idle_sessions_max: 16,
            reconnect_for: Duration::from_secs(5),
            connect_for: None,
            first_silence_is_final: false,
            goes_on: None,
            report: None,
            report_after: Duration::from_secs(2),
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

/// `MSG_PEEK`, everywhere.
const PEEK: i32 = 2;

/// Whether nothing has come on a connection at rest, neither a stray reply nor its end. The socket
/// must not block, by itself or by `no_wait`.
pub(crate) fn is_quiet(socket: SockRef<'_>, no_wait: i32) -> bool {
    let peeked = socket.recv_with_flags(&mut [MaybeUninit::uninit()], PEEK | no_wait);
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
        assert_eq!(":5000".parse::<Address>().unwrap().to_string(), "0.0.0.0:5000");
    }

    #[test]
    fn an_address_is_local_if_that_is_certain() {
        let is_local = |text: &str| text.parse::<Address>().unwrap().is_local();
        for text in ["127.0.0.2:1", "[::1]:1", "unix:/run/queues"] {
            assert!(is_local(text), "{text}");
        }
        for text in [":1", "192.0.2.1:1", "[2001:db8::1]:1", "localhost:1"] {
            assert!(!is_local(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let texts = ["", "5000", "localhost", "::1:5000", "host:70000", "[::1:5000", "host:"];
        for text in texts.into_iter().chain(["[host]:1", "[]:1", "[[::1]]:1", "unix:"]) {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{text}' is no address")), "{error}");
        }
    }
}
