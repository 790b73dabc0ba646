//! Any bytes as the requests of a whole session, beside another one: it leaves nothing behind, and the
//! other one is not disturbed.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| manyhands_server::fuzz_native_session(bytes));
