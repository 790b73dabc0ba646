//! Home of the Python wheel `manyhands`: what its Python half needs of the Rust crates.
//!
//! The Python half, `python/manyhands/`, has the managers and everything about objects that live in
//! Python.

#![allow(missing_docs, reason = "the Python half and its stubs document this private module")]
#![allow(missing_debug_implementations, reason = "Python classes have a repr instead")]

mod error;
mod handshake;
mod plain;
mod queue;
mod server;

use std::ffi::OsString;
use std::process::ExitCode;

use pyo3::prelude::*;

/// Runs the command line `arguments` (the program's name first) and returns its exit code.
#[pyfunction]
fn run(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    let code = py.detach(|| manyhands_cli::run(arguments));
    (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(1)
}

#[pymodule(gil_used = true)]
mod _manyhands {
    #[pymodule_export]
    use super::error::ManyhandsError;
    #[pymodule_export]
    use super::handshake::{AuthKey, Handshake};
    #[pymodule_export]
    use super::queue::Queue;
    #[pymodule_export]
    use super::run;
    #[pymodule_export]
    use super::server::{Conversation, Request, Server};
}
