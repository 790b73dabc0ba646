//! Home of the Python wheel `manyhands`: what its Python half needs of the Rust crates.
//!
//! The Python half, `python/manyhands/`, has the managers and everything about objects that live in
//! Python.

#![allow(missing_docs, reason = "the Python half and its stubs document this private module")]
#![allow(missing_debug_implementations, reason = "Python classes have a repr instead")]

mod embedded;
mod error;
mod key;
mod plain;
mod queue;
mod remote;
mod server;

use std::ffi::OsString;
use std::process::ExitCode;

use pyo3::prelude::*;

/// Runs the command line `arguments` (the program's name first) and returns its exit code.
#[pyfunction]
fn run(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<u8> {
    end_on_interrupt(py)?;
    let python = py.import("sys")?.getattr("executable")?.extract::<OsString>()?;
    let launcher = vec![python, "-m".into(), "manyhands".into()];
    let code = py.detach(|| manyhands_cli::run_by(launcher, arguments));
    Ok((0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(1))
}

/// Lets Ctrl-C end the command as it ends the binary: Python would only note it, for when the
/// command line returns, and then show a traceback.
fn end_on_interrupt(py: Python<'_>) -> PyResult<()> {
    let signal = py.import("signal")?;
    let (interrupt, default) = (signal.getattr("SIGINT")?, signal.getattr("SIG_DFL")?);
    match signal.call_method1("signal", (interrupt, default)) {
        // Only the main thread may do that, and only it is interrupted.
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyValueError>(py) => Ok(()),
        set => set.map(drop),
    }
}

#[pymodule(gil_used = true)]
mod _manyhands {
    #[pymodule_export]
    use super::embedded::Embedded;
    #[pymodule_export]
    use super::error::{ManyhandsError, NoResult, StaleLease};
    #[pymodule_export]
    use super::key::AuthKey;
    #[pymodule_export]
    use super::queue::Queue;
    #[pymodule_export]
    use super::remote::core::Core;
    #[pymodule_export]
    use super::remote::items::{Items, Stored};
    #[pymodule_export]
    use super::remote::verbs::{Token, Verb};
    #[pymodule_export]
    use super::remote::{Ahead, Client, Leases, Remote, RemoteQueue, forked};
    #[pymodule_export]
    use super::run;
    #[pymodule_export]
    use super::server::{Conversation, Request, Server};
}
