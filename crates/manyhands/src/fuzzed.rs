//! A whole client that is sent any replies: for the fuzzer, and for a test that sends a few.

use bytes::{Bytes, BytesMut};

use crate::internal::{Core, Fate, Next, Server, Settlement, Verb};
use crate::wire::arguments::Wait;
use crate::wire::auth::{self, AuthKey, Handshake, NONCE_LEN};
use crate::wire::frame::{self, Outbound};
use crate::wire::native::{
    Answer, Properties, QueueDurability, QueueOrder, Route, SessionLimits, Welcome, reply,
};
use crate::wire::pickle::Payload;
use crate::wire::token::LeaseToken;
use crate::{Address, ConnectOptions};

const KEY: &[u8] = b"a key of 16 bytes or more";
const LIMITS: SessionLimits = SessionLimits {
    frame_max: 1 << 16,
    batch_max: 100,
    pending_max: 16,
    queues_max: 5,
    credit_max: 10,
};
/// Most bytes that a client may have to write: many times what its calls take.
const OUTBOUND_MAX: usize = 1 << 20;
const ME: u64 = 1;

/// A client, and what it is asked for.
struct Play {
    core: Core,
    sent: BytesMut,
    asked: Vec<u32>,
    credits: Vec<u32>,
}

impl Play {
    fn say(&mut self, message: &[u8]) {
        let mut bytes = BytesMut::new();
        frame::push(message, &mut bytes);
        self.core.received(&bytes);
    }

    fn next_message(&mut self) -> Bytes {
        let bytes = self.core.outbound();
        self.sent.extend_from_slice(&bytes);
        frame::split(&mut self.sent, 1 << 10).expect("it is short").expect("it says something")
    }

    /// Lets the client connect, if it wants to. Tells whether it did.
    fn connect(&mut self) -> bool {
        if self.core.next() != Next::Connect {
            return false;
        }
        self.core.connecting();
        self.core.connected();
        self.sent.clear();
        let (mut handshake, greeting) = Handshake::server(AuthKey::new(KEY), true, [7; NONCE_LEN]);
        self.say(&greeting);
        loop {
            let message = self.next_message();
            match handshake.receive(&message).expect("it knows the key") {
                auth::Step::Send(answer) => self.say(&answer),
                auth::Step::Done(_) => break,
            }
        }
        self.next_message();
        let server = "a server".to_owned();
        let welcome =
            Welcome { version: 1, is_durable: false, creates: true, limits: LIMITS, server };
        let mut message = BytesMut::new();
        Answer::Welcome(welcome).write(&mut message);
        self.say(&message);
        true
    }

    fn open(&mut self, name: &str, results: Option<&str>) -> u16 {
        let (handle, id) = self.core.open(name).expect("few are open");
        while self.connect() {}
        let properties = Properties {
            order: QueueOrder::Fifo,
            durability: QueueDurability::Memory,
            needs_results: results.is_some(),
            is_ordered: false,
            maxsize: 0,
            hold: None,
            delivery_cpython: false,
            results: results.map(ToOwned::to_owned),
        };
        let mut out = Outbound::default();
        reply::push_opened(&properties, Route { queue: 0, id }, &mut out);
        out.into_parts().for_each(|part| self.core.received(&part));
        assert!(self.core.answer(id).expect("it is told").is_ok());
        handle
    }

    fn ask_all(&mut self, tasks: u16, results: u16) {
        let item = || Payload::bytes(b"item").expect("it is short");
        let token = LeaseToken { task: 1, attempt: 1, lease: 1, seal: 7 };
        let get = |max, leased| Verb::Get {
            wait: Wait::Forever,
            max,
            leased,
            hold: None,
            informed: leased,
        };
        let settlements = vec![Settlement { token, fate: Fate::Ack { result: None } }; 2];
        let put = |wait| Verb::Put { item: item(), terms: None, wait, numbered: wait == Wait::No };
        let asked = [
            (tasks, get(1, false)),
            (tasks, get(5, true)),
            (tasks, put(Wait::Forever)),
            (results, put(Wait::No)),
            (tasks, Verb::PutMany { items: vec![item(); 150], wait: Wait::Forever }),
            (tasks, Verb::Settle { settlements, wait: Wait::No }),
            (tasks, Verb::Size),
            (tasks, Verb::Join),
            (0, Verb::List { after: String::new() }),
        ];
        for (queue, verb) in asked {
            let id = self.core.ask(ME, queue, verb);
            self.asked.push(id);
        }
        self.credits.push(self.core.subscribe(tasks, 3));
    }

    /// Reads what the client is told, and begins with what was pushed.
    fn hear(&mut self) {
        while let Some(id) = self.core.next_decided() {
            if self.credits.contains(&id) {
                while self.core.next_task(id).is_some() {}
            }
            if self.core.answer(id).is_some() {
                self.asked.retain(|asked| *asked != id);
                self.credits.retain(|credit| *credit != id);
            }
        }
        assert!(self.core.outbound().len() < OUTBOUND_MAX, "it says more and more");
    }
}

/// Sends bytes to a client that has calls of all kinds in flight, as the replies to them. In the end
/// each call is told what became of it, once.
///
/// # Panics
///
/// If that is not so.
pub fn client(bytes: &[u8]) {
    let address: Address = "nowhere:1".parse().expect("it is an address");
    let server = Server::new(address, AuthKey::new(KEY), ConnectOptions::default());
    let core = Core::new(&server);
    let mut play = Play { core, sent: BytesMut::new(), asked: vec![], credits: vec![] };
    let results = play.open("results", None);
    let tasks = play.open("tasks", Some("results"));
    play.ask_all(tasks, results);
    let piece_len = bytes.first().map_or(1, |byte| usize::from(*byte) + 1);
    for piece in bytes.chunks(piece_len) {
        if !play.core.is_connected() {
            // It waits before it connects again.
            break;
        }
        play.hear();
        play.core.received(piece);
    }
    play.hear();
    if play.core.is_connected() {
        play.core.ended();
    }
    play.core.end();
    play.hear();
    assert!(play.asked.is_empty(), "{:?} were told nothing", play.asked);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::native::{Header, Op};

    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let known = [0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, Op::Recall as u8, 0xff];
        let op = prop_oneof![prop::sample::select(known.to_vec()), any::<u8>()];
        let flags = prop::sample::select(&[0, 0, 1, 1 << 7, 255][..]);
        let count = prop::sample::select(&[0, 0, 1, 1, 2, 100, u32::MAX][..]);
        let body = prop::collection::vec(prop::sample::select(&[0, 0, 1, 2, 255][..]), 0..80);
        let reply = (op, flags, count, 0..16u32, body);
        reply.prop_map(|(op, flags, count, id, body)| {
            let len = u32::try_from(body.len()).unwrap();
            let header = Header { len, op, flags, route: Route { queue: 1, id }, count };
            [&header.bytes()[..], &body].concat()
        })
    }

    proptest! {
        #[test]
        fn a_client_that_is_told_anything_tells_each_caller_something_once(
            replies in prop::collection::vec(reply(), 0..12),
            cut in 0..20usize,
        ) {
            let mut bytes = replies.concat();
            bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(10)));
            client(&bytes);
        }

        #[test]
        fn a_client_that_is_told_any_bytes_tells_each_caller_something_once(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            client(&bytes);
        }
    }
}
