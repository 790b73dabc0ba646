//! The client's side of the authentication, sans-IO: messages in, messages out.

use std::sync::{Mutex, PoisonError};

use manyhands::wire::auth::{self, AuthKey, NONCE_LEN, Step};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::error::AuthenticationError;

/// One handshake, from the server's challenge on.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Handshake(Mutex<auth::Handshake>);

#[pymethods]
impl Handshake {
    #[new]
    #[pyo3(signature = (authkey, no_md5=false))]
    fn begin(authkey: PyBackedBytes, no_md5: bool) -> PyResult<Self> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|error| PyOSError::new_err(error.to_string()))?;
        let handshake = auth::Handshake::client(AuthKey::new(&*authkey), !no_md5, nonce);
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
            Err(error) => {
                Err(AuthenticationError::new_err(format!("authentication failed: {error}")))
            }
        }
    }
}
