//! Any bytes as the replies to a whole client with calls in flight: each caller is told something, once.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| manyhands::fuzzed::client(bytes));
