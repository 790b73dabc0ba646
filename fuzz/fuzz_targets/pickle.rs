//! Any bytes as a pickle of its own: taken or refused, and whatever is taken is whole.

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use manyhands::wire::pickle::{Limits, Payload};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let Ok(payload) = Payload::from_standalone(Bytes::copy_from_slice(bytes), &limits) else {
        return;
    };
    let mut reply = BytesMut::new();
    payload.write_reply(&mut reply);
    for pickle in [payload.standalone(), reply.freeze()] {
        Payload::from_standalone(pickle, &limits).expect("what was taken can be taken again");
    }
    // Plain data or not, reading it ends.
    std::hint::black_box(payload.value(&limits).is_ok());
});
