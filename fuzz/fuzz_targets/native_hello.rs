//! Any bytes as the first message of a session, or the answer to it: read or refused, and what is
//! read is written as it came.

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use manyhands::wire::native::{Answer, Hello};

fuzz_target!(|bytes: &[u8]| {
    let message = Bytes::copy_from_slice(bytes);
    if let Ok(hello) = Hello::decode(&message) {
        let mut again = BytesMut::new();
        hello.write(&mut again);
        assert_eq!(again, message);
    }
    if let Ok(answer) = Answer::decode(&message) {
        let mut again = BytesMut::new();
        answer.write(&mut again);
        assert_eq!(again, message);
    }
});
