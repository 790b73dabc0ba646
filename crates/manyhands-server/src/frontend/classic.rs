//! CPython's `multiprocessing.managers` protocol, as stock clients speak it.

pub(crate) mod connection;
pub(crate) mod control;
pub(crate) mod foreign;
mod hands;
pub(crate) mod lists;
mod methods;
mod pending;
pub(crate) mod presence;
mod references;
mod replies;
mod requests;
mod session;
pub(crate) mod shared;
pub(crate) mod verbs;
pub(crate) mod waiter;
