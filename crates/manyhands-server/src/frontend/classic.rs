//! CPython's `multiprocessing.managers` protocol, as stock clients speak it.

pub(crate) mod connection;
pub(crate) mod control;
pub(crate) mod foreign;
mod methods;
mod replies;
mod session;
pub(crate) mod shared;
