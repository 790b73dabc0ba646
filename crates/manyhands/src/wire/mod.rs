//! CPython's `multiprocessing.managers` protocol, sans-IO: bytes in, bytes out.

pub mod auth;
pub mod extra;
pub mod frame;
pub mod message;
pub mod pickle;
pub mod request;
