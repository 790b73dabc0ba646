//! The key that client and server share.

use std::io;
use std::path::PathBuf;

use manyhands::wire::auth;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

/// The key that client and server share.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct AuthKey {
    pub(crate) key: auth::AuthKey,
    /// What may be wrong with it.
    pub(crate) hint: &'static str,
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
}
