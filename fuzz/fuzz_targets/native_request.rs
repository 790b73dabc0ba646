//! Any bytes as frames of a native client: every request is read or refused, what is read is written
//! as it came, and what is cut out of it is whole.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use manyhands::wire::frame::{Decoder, Frame, Outbound};
use manyhands::wire::native::{Bounds, Fate, Header, Put, Request};
use manyhands::wire::pickle::{Limits, Payload};

const BOUNDS: u32 = 64;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let bounds = Bounds { batch_max: BOUNDS, pickle: limits };
    let whole = |payload: &Payload| {
        Payload::from_standalone(payload.standalone(), &limits).expect("what was taken is whole");
    };
    let mut stream = BytesMut::from(bytes);
    let mut decoder = Decoder::<Header>::new(1 << 12);
    while let Ok(Some((header, frame))) = decoder.next_with_header(&mut stream) {
        let Frame::Body(body) = frame else { continue };
        let Ok(request) = Request::decode(&header, body.clone(), &bounds) else { continue };
        let mut out = Outbound::default();
        request.push(header.route, &mut out).expect("it is short");
        let again = out.into_parts().collect::<Vec<_>>().concat();
        assert_eq!(again.len(), header.bytes().len() + body.len());
        match request {
            Request::Put(Put { items, .. }) => {
                assert!(items.capacity() <= body.len());
                for item in items.map_while(Result::ok) {
                    whole(&item.payload);
                }
            }
            Request::Settle { settlements, .. } => {
                for settlement in settlements.map_while(Result::ok) {
                    if let Fate::Ack { result: Some(result) } = settlement.fate {
                        whole(&result);
                    }
                }
            }
            _ => {}
        }
    }
});
