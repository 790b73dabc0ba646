//! Where a server listens.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on, or one that a server listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// TCP, IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A Unix-domain socket: Python clients give its path as the manager's address.
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Address {
    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            #[cfg(unix)]
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            #[cfg(unix)]
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `127.0.0.1:5000`, `[::1]:5000`, `localhost:5000`, `:5000` for every IPv4 interface, or
/// `unix:/path/to/socket`. Port 0 takes a free one.
impl FromStr for Address {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        #[cfg(unix)]
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(invalid(text)),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| invalid(text))?;
        let port: u16 = port.parse().map_err(|_| invalid(text))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = if host.is_empty() { "0.0.0.0" } else { host };
        (host, port).to_socket_addrs()?.next().map(Self::Tcp).ok_or_else(|| invalid(text))
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{text:?} is no address; expected HOST:PORT, [IPV6]:PORT or unix:PATH"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str, is_local: bool) {
        let address: Address = text.parse().unwrap();
        assert_eq!((address.to_string().as_str(), address.is_local()), (expected, is_local));
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        check("127.0.0.1:5000", "127.0.0.1:5000", true);
        check("[::1]:0", "[::1]:0", true);
        check(":5000", "0.0.0.0:5000", false);
        check("192.0.2.1:1", "192.0.2.1:1", false);
        #[cfg(unix)]
        check("unix:/tmp/socket", "unix:/tmp/socket", true);
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["", "5000", "localhost", "127.0.0.1:port", "127.0.0.1:70000", "unix:"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains("is no address"), "{text}: {error}");
        }
    }
}
