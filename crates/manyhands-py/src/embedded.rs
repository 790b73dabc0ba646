//! A server in this process, for programs that have none elsewhere.
//!
//! Its queues are made on use, and gone with it. A forked child has none of its threads, so it forgets
//! the server instead of stopping it.

use std::mem;
use std::process;
use std::sync::Mutex;

use manyhands_server as rust;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::server::start_error;

/// A running server.
#[pyclass(frozen, module = "manyhands._manyhands")]
pub(crate) struct Embedded {
    running: Mutex<Option<rust::Server>>,
    address: String,
    pid: u32,
}

#[pymethods]
impl Embedded {
    /// Listens on `address`: `HOST:PORT` with a numeric host, or `unix:PATH`.
    #[new]
    fn start(py: Python<'_>, address: &str, authkey: PyBackedBytes) -> PyResult<Self> {
        let builder = rust::Server::builder().address(address).authkey(&*authkey);
        let server = py.detach(|| builder.start()).map_err(start_error)?;
        let address = server.addresses().first().map(ToString::to_string).unwrap_or_default();
        Ok(Self { running: Mutex::new(Some(server)), address, pid: process::id() })
    }

    /// Where it listens, in the form of the constructor's argument.
    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    /// Stops the server; replies under way go out. Does nothing in a forked child.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.end());
    }
}

impl Embedded {
    fn end(&self) {
        let Ok(mut running) = self.running.lock() else { return };
        let Some(server) = running.take() else { return };
        if self.pid == process::id() {
            // What made it fail was logged when it did.
            server.stop().ok();
        } else {
            mem::forget(server);
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.end();
    }
}
