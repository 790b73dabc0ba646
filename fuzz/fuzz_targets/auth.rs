//! Any messages to either side of the handshake: who does not know the key is never let in.

#![no_main]

use libfuzzer_sys::fuzz_target;
use manyhands::wire::auth::{AuthKey, Handshake, NONCE_LEN, Step};

fuzz_target!(|messages: (bool, bool, Vec<&[u8]>)| {
    let (is_server, accept_md5, messages) = messages;
    let key = AuthKey::new(b"a key that no input holds, nor its MAC");
    let nonce = [7; NONCE_LEN];
    let mut handshake = if is_server {
        Handshake::server(key, accept_md5, nonce).0
    } else {
        Handshake::client(key, accept_md5, nonce)
    };
    for message in messages {
        match handshake.receive(message) {
            Ok(Step::Send(_)) => {}
            Ok(Step::Done(_)) => panic!("let in without the key"),
            Err(_) => return,
        }
    }
});
