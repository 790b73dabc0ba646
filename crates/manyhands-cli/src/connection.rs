//! How a command reaches a running server, and what it says where it does not.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use manyhands::wire::auth::AuthError;
use manyhands::{ConnectOptions, Error, blocking};

use crate::key::{self, Key, KeyArguments};

/// Options that name a running server.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Server: HOST:PORT, [IPV6]:PORT or unix:PATH; CPython's own managers will do as well
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    connect: String,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// Refuse servers that know only HMAC-MD5: those of Python 3.11 and earlier
    #[arg(long)]
    no_md5: bool,
}

impl Connection {
    /// The server at this address.
    #[cfg(unix)]
    pub(crate) fn to(address: &str, key: &KeyArguments) -> Self {
        Self { connect: address.to_owned(), key: key.clone(), no_md5: false }
    }

    pub(crate) fn open(&self) -> Result<blocking::Client> {
        let key = self.key.read(false)?;
        let client = blocking::Client::connect_with(&self.connect, key.key.clone(), self.options());
        client.map_err(|error| explained(&error, &key))
    }

    pub(crate) async fn open_async(&self) -> Result<manyhands::Client> {
        let key = self.key.read(false)?;
        let client =
            manyhands::Client::connect_with(&self.connect, key.key.clone(), self.options()).await;
        client.map_err(|error| explained(&error, &key))
    }

    /// Whoever types a command wants to know at once that nobody is there.
    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            accept_md5: !self.no_md5,
            connect_for: Some(Duration::ZERO),
            ..ConnectOptions::default()
        }
    }
}

/// Why a server was not reached, and what to do about it.
fn explained(error: &Error, key: &Key) -> anyhow::Error {
    match error {
        Error::Connect { error: cause, .. } if is_nobody(cause) => anyhow!(
            "{error}: nothing listens there; `manyhands serve` starts a server, --connect names \
             another address"
        ),
        Error::TimedOut { .. }
        | Error::Lost { .. }
        | Error::Protocol { .. }
        | Error::Authentication { error: AuthError::Foreign(_), .. } => {
            anyhow!("{error}; is it a manyhands server?")
        }
        Error::Authentication { .. } => match &key.path {
            Some(path) => anyhow!("{error}; the key is in {}{}", path.display(), doubt(path)),
            None => anyhow!("{error}; the key came through standard input"),
        },
        error => anyhow!("{error}"),
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// What may be wrong with the key in a file.
fn doubt(path: &Path) -> String {
    let oddity = key::oddity(path);
    oddity.map_or_else(|| ": the server has another one".to_owned(), |it| format!(", which {it}"))
}
