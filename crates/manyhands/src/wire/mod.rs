//! CPython's `multiprocessing.managers` protocol, sans-IO: bytes in, bytes out.

pub mod pickle;
