//! CPython's `multiprocessing.managers` protocol, as stock clients speak it.

pub(crate) mod connection;
pub(crate) mod foreign;
