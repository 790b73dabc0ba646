//! Both protocols, sans-IO: bytes in, bytes out. [`native`] is for programs written for manyhands; the
//! other modules are CPython's `multiprocessing.managers`. They share [`auth`], [`frame`] and [`pickle`].

pub mod arguments;
pub mod auth;
pub mod control;
pub mod frame;
pub mod method;
pub mod native;
pub mod pickle;
pub mod reply;
pub mod request;
pub mod tasks;
pub mod text;
pub mod token;
