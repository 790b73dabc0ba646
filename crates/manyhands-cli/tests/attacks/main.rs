//! Attacks on `manyhands serve` by clients that know the key and by strangers, with an honest client
//! beside them: the server goes on, nothing accepted is lost, and others wait only so long.
//!
//! Each attack prints the honest client's 99th percentile in ratio to the quiet before it; see them
//! with `--nocapture`. `MANYHANDS_ATTACKS=long` lets the attacks that can go on longer do so.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::indexing_slicing, reason = "a helper that panics fails its test, as it should")]
#![expect(dead_code, reason = "shares what the other behaviour tests need")]

mod ends;
mod files;
mod hands;
mod honest;
mod login;
mod logs;
mod masses;
mod memory;
mod names;
#[path = "../it/peer.rs"]
mod peer;
#[path = "../native/raw.rs"]
mod raw;
#[path = "../it/support.rs"]
mod support;
mod tokens;
