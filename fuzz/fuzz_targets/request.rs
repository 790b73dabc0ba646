//! Any bytes as a request: read or refused, and whatever is cut out of it is whole.

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use manyhands::wire::method::Method;
use manyhands::wire::pickle::{Call, Limits, Payload};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let Ok(call) = Call::parse(Bytes::copy_from_slice(bytes), &limits) else { return };
    std::hint::black_box((call.ident(), call.method(), call.protocol()));
    std::hint::black_box(Method::decode(&call, &limits).is_ok());
    let keywords = call.kwargs().map(|(_, argument)| argument);
    for argument in call.args().iter().copied().chain(keywords) {
        std::hint::black_box((call.atom(&argument), call.token_id(&argument)));
        let Ok(payload) = call.payload(&argument, &limits) else { continue };
        assert!(payload.bytes.len() <= bytes.len() + limits.expansion_max);
        let mut reply = BytesMut::new();
        payload.write_reply(&mut reply);
        for pickle in [payload.standalone(), reply.freeze()] {
            Payload::from_standalone(pickle, &limits).expect("what was cut out is whole");
        }
    }
});
