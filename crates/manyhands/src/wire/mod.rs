//! CPython's `multiprocessing.managers` protocol, sans-IO: bytes in, bytes out.

pub mod announcement;
pub mod arguments;
pub mod auth;
pub mod control;
pub mod frame;
pub mod method;
pub mod pickle;
pub mod reply;
pub mod request;
pub mod tasks;
pub mod text;
pub mod token;
