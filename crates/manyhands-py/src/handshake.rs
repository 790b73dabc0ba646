//! The client's side of the authentication, sans-IO: messages in, messages out.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use manyhands::wire::auth::{self, AuthError, NONCE_LEN, Step};
use pyo3::exceptions::{PyConnectionRefusedError, PyOSError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::error::AuthenticationError;

/// The key that client and server share.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct AuthKey {
    key: auth::AuthKey,
    /// What may be wrong with it.
    hint: &'static str,
}

#[pymethods]
impl AuthKey {
    #[new]
    fn new(key: PyBackedBytes) -> Self {
        let hint = match key.last() {
            Some(b'\n') => {
                "; the key ends in a newline: is that part of it? authkey_file= drops one"
            }
            _ => "",
        };
        Self { key: auth::AuthKey::new(&*key), hint }
    }

    /// Reads the key in a file that nobody else may read, by default the one that the command
    /// `manyhands` keeps.
    #[staticmethod]
    #[pyo3(signature = (path=None))]
    fn read(path: Option<PathBuf>) -> PyResult<Self> {
        let key = match path {
            Some(path) => auth::AuthKey::from_file(path),
            None => manyhands_cli::kept_authkey().map_err(|error| {
                let text =
                    format!("no authkey: give one, or name its file by authkey_file=; {error}");
                io::Error::new(error.kind(), text)
            }),
        };
        Ok(Self { key: key?, hint: "" })
    }

    #[getter]
    fn hint(&self) -> &str {
        self.hint
    }
}

/// One handshake, from the server's challenge on.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Handshake(Mutex<auth::Handshake>);

#[pymethods]
impl Handshake {
    #[new]
    #[pyo3(signature = (authkey, no_md5=false))]
    fn begin(authkey: &AuthKey, no_md5: bool) -> PyResult<Self> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|error| PyOSError::new_err(error.to_string()))?;
        let handshake = auth::Handshake::client(authkey.key.clone(), !no_md5, nonce);
        Ok(Self(Mutex::new(handshake)))
    }

    /// Takes the server's next message. Returns what to answer, if anything, and whether the two
    /// sides know each other now.
    fn receive<'py>(
        &self,
        py: Python<'py>,
        message: PyBackedBytes,
    ) -> PyResult<(Option<Bound<'py, PyBytes>>, bool)> {
        let mut handshake = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match handshake.receive(&message) {
            Ok(Step::Send(answer)) => Ok((Some(PyBytes::new(py, &answer)), false)),
            Ok(Step::Done(verdict)) => Ok((verdict.map(|verdict| PyBytes::new(py, verdict)), true)),
            // There may be a place later.
            Err(error @ AuthError::TurnedAway(_)) => {
                Err(PyConnectionRefusedError::new_err(error.to_string()))
            }
            Err(error) => {
                Err(AuthenticationError::new_err(format!("authentication failed: {error}")))
            }
        }
    }
}
