//! Any bytes as a stream of frames, in any pieces: both ways of splitting find the same bodies.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use manyhands::wire::frame::{self, Decoder, Frame};

const LIMIT: u64 = 64;

fuzz_target!(|bytes: &[u8]| {
    let mut whole = BytesMut::from(bytes);
    let mut expected = Vec::new();
    while let Ok(Some(body)) = frame::split(&mut whole, LIMIT) {
        assert!(body.len() as u64 <= LIMIT);
        expected.push(body);
    }

    let piece_len = bytes.first().map_or(1, |byte| usize::from(byte % 7) + 1);
    let mut decoder = Decoder::new(LIMIT);
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    'stream: for piece in bytes.chunks(piece_len) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(Frame::Body(body))) => found.push(body),
                Ok(Some(Frame::TooLong { len, limit })) => assert!(len > limit),
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    assert!(found.starts_with(&expected), "{found:?} does not begin with {expected:?}");
});
