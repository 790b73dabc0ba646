//! Any bytes as frames of a server: every reply is read or refused, and reading what was taken ends.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use manyhands::wire::frame::{Decoder, Frame};
use manyhands::wire::native::reply::read_list;
use manyhands::wire::native::{Header, Reply};
use manyhands::wire::pickle::Limits;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let mut stream = BytesMut::from(bytes);
    let mut decoder = Decoder::<Header>::new(1 << 12);
    while let Ok(Some((header, frame))) = decoder.next_with_header(&mut stream) {
        let Frame::Body(body) = frame else { continue };
        match Reply::decode(&header, body.clone()) {
            Ok(Reply::Tasks { tasks, .. }) => {
                assert!(tasks.capacity() <= body.len());
                for task in tasks.map_while(Result::ok) {
                    std::hint::black_box(task.payload.value(&limits).is_ok());
                }
            }
            Ok(Reply::Peeked(tasks)) => drop(tasks.map_while(Result::ok).count()),
            Ok(Reply::Settled(codes)) => {
                assert!(codes.take(body.len() + 1).count() <= body.len() + 1)
            }
            Ok(Reply::Added(added)) => {
                if let Some(numbers) = added.numbers {
                    assert_eq!(numbers.count(), added.count as usize);
                }
            }
            Ok(Reply::Text { json, .. }) => drop(read_list(&json)),
            _ => {}
        }
    }
});
