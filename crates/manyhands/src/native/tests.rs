//! The core without a socket: the server's side is played by the test.

use std::collections::VecDeque;
use std::io;

use super::*;
use crate::answer::Answer as Told;
use crate::server::tests::server;
use crate::wire::auth::{self, AuthKey, Handshake, NONCE_LEN};
use crate::wire::frame::{self, Decoder, Frame};
use crate::wire::native::{
    Answer, Bounds, Code, Header, Hello, Properties, QueueDurability, QueueOrder, Route, Welcome,
    reply,
};
use crate::wire::pickle::{Limits, Payload};
use crate::wire::token::LeaseToken;

const ME: u64 = 7;
const KEY: &[u8] = b"key";
const LIMITS: SessionLimits = SessionLimits {
    frame_max: 1 << 20,
    batch_max: 100,
    pending_max: 16,
    queues_max: 5,
    credit_max: 10,
};
const TASKS: Properties = Properties {
    order: QueueOrder::Fifo,
    durability: QueueDurability::Memory,
    needs_results: false,
    is_ordered: false,
    maxsize: 0,
    hold: None,
    delivery_cpython: false,
    results: None,
};

/// A client and the other end of its connection.
struct Play {
    server: Arc<Server>,
    core: Core,
    now: Instant,
    /// What the client wrote and the server has not read.
    sent: BytesMut,
    decoder: Decoder<Header>,
}

fn item() -> Payload {
    Payload::bytes(b"item").unwrap()
}

fn token(task: u64) -> LeaseToken {
    LeaseToken { task, attempt: 1, lease: task, seal: 7 }
}

fn put() -> Verb {
    Verb::put(item(), None)
}

fn get() -> Verb {
    Verb::get(1, None)
}

fn ack(task: u64) -> Verb {
    let settlement = Settlement { token: token(task), fate: Fate::Ack { result: None } };
    Verb::settle(vec![settlement])
}

impl Play {
    fn new() -> Self {
        let server = Arc::new(server(KEY));
        Self {
            core: Core::new(Arc::clone(&server)),
            server,
            now: tokio::time::Instant::now().into_std(),
            sent: BytesMut::new(),
            decoder: Decoder::new(1 << 20),
        }
    }

    /// A client that is connected, and has a queue open under handle 1.
    fn connected() -> Self {
        let mut play = Self::new();
        play.core.ask(ME, 0, Verb::Connect, play.now);
        play.connect();
        assert_eq!(play.open("tasks", &TASKS), 1);
        play
    }

    fn open(&mut self, name: &str, properties: &Properties) -> u16 {
        let (handle, id) = self.core.open(name, self.now).unwrap();
        assert!(matches!(self.next_request(), (_, Request::Open { .. })));
        self.reply(id, |route, out| reply::push_opened(properties, route, out));
        assert!(matches!(self.told(id), Ok(Told::Done)));
        while self.core.next_decided().is_some() {}
        handle
    }

    /// Has the program take tasks with these numbers from a queue by a plain `get`.
    fn take(&mut self, queue: u16, tasks: &[u64]) {
        let id = self.core.ask(ME, queue, get(), self.now);
        self.requests();
        let tokens: Vec<_> = tasks.iter().map(|task| Some(token(*task))).collect();
        self.tasks(id, false, &tokens);
        self.told(id).unwrap();
    }

    /// The next write: settlements by their queues, and other requests by their kinds.
    fn settles(&mut self) -> Vec<(u16, Vec<(u64, Fate)>)> {
        let requests = self.requests();
        let told = requests.iter().map(|(route, request)| match request {
            Request::Settle { .. } => (route.queue, fates(request)),
            _ => (route.queue, Vec::new()),
        });
        told.collect()
    }

    /// Waits as long as the client does, and lets it connect.
    fn connect(&mut self) {
        self.greet(|| {
            let server = "manyhands".to_owned();
            let welcome =
                Welcome { version: 1, is_durable: false, creates: true, limits: LIMITS, server };
            let mut message = BytesMut::new();
            Answer::Welcome(welcome).write(&mut message);
            message
        });
    }

    fn greet(&mut self, answer: impl FnOnce() -> BytesMut) {
        if let Want::Rest(Some(until)) = self.core.want(self.now) {
            self.now = until;
        }
        assert_eq!(self.core.want(self.now), Want::Connect);
        self.core.connecting(self.now);
        self.core.connected(self.now);
        self.sent.clear();
        self.decoder = Decoder::new(1 << 20);
        let key = AuthKey::new(KEY);
        let (mut handshake, greeting) = Handshake::server(key, true, [7; NONCE_LEN]);
        self.say(&greeting);
        loop {
            let message = self.next_message();
            match handshake.receive(&message).unwrap() {
                auth::Step::Send(answer) => self.say(&answer),
                auth::Step::Done(_) => break,
            }
        }
        let hello = Hello::decode(&self.next_message()).unwrap();
        assert_eq!(hello.versions, 1..=1);
        self.say(&answer());
    }

    /// A message with the length that CPython gives it.
    fn say(&mut self, message: &[u8]) {
        frame::push(message, self.core.inbound());
        self.core.received(self.now);
    }

    fn next_message(&mut self) -> Bytes {
        self.write();
        frame::split(&mut self.sent, 1000).unwrap().expect("the client says something")
    }

    /// Has the client write all that it has.
    fn write(&mut self) {
        loop {
            let parts: Vec<_> = self.core.unwritten(self.now).map(<[u8]>::to_vec).collect();
            let bytes = parts.concat();
            if bytes.is_empty() {
                return;
            }
            self.sent.extend_from_slice(&bytes);
            self.core.wrote(bytes.len(), self.now);
        }
    }

    fn requests(&mut self) -> VecDeque<(Route, Request)> {
        self.write();
        let bounds = Bounds { batch_max: LIMITS.batch_max, pickle: Limits::default() };
        let mut requests = VecDeque::new();
        while let Some((header, frame)) = self.decoder.next_with_header(&mut self.sent).unwrap() {
            let Frame::Body(body) = frame else { panic!("too long") };
            requests.push_back((header.route, Request::decode(&header, body, &bounds).unwrap()));
        }
        requests
    }

    fn next_request(&mut self) -> (Route, Request) {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.pop_front().unwrap()
    }

    /// What the client is asked for, by its kind.
    fn kinds(&mut self) -> Vec<String> {
        let kind = |(route, request): (Route, Request)| {
            let text = format!("{request:?}");
            let word = text.split(|char: char| !char.is_alphanumeric()).next().unwrap_or_default();
            format!("{}:{word}", route.queue)
        };
        self.requests().into_iter().map(kind).collect()
    }

    fn reply(&mut self, id: Id, push: impl FnOnce(Route, &mut Outbound)) {
        let mut out = Outbound::default();
        push(Route { queue: 0, id }, &mut out);
        out.into_parts().for_each(|part| self.core.inbound().extend_from_slice(&part));
        self.core.received(self.now);
    }

    fn added(&mut self, id: Id) {
        self.reply(id, |route, out| reply::push_added(1, None, [], route, out));
    }

    fn tasks(&mut self, id: Id, pushed: bool, tokens: &[Option<LeaseToken>]) {
        self.reply(id, |route, out| {
            let mut tasks = reply::begin_tasks(pushed, route, out);
            tokens.iter().for_each(|token| tasks.task(&item(), token.as_ref(), None));
            tasks.finish().unwrap();
        });
    }

    fn error(&mut self, id: Id, code: Code) {
        self.reply(id, |route, out| reply::push_error(code, "why", route, out));
    }

    /// What the caller is told.
    fn told(&mut self, id: Id) -> Result<Told, Error> {
        let decided = self.core.take(id).expect("it is decided");
        let holder = decided.holder();
        let told = answer(&self.server, decided)?;
        holder.into_iter().for_each(|(caller, queue)| self.core.hold(caller, queue, &told));
        Ok(told)
    }

    fn is_open(&mut self, id: Id) -> bool {
        self.core.calls.get(id).is_some_and(|call| !matches!(call.stage, Stage::Decided(_)))
    }

    fn lose(&mut self) {
        self.core.ended(self.now);
    }

    fn ask(&mut self, verb: Verb) -> Id {
        self.core.ask(ME, 1, verb, self.now)
    }
}

fn fates(request: &Request) -> Vec<(u64, Fate)> {
    let Request::Settle { settlements, .. } = request else { panic!("{request:?}") };
    let settlements = settlements.clone().map(Result::unwrap);
    settlements.map(|it| (it.token.task, it.fate)).collect()
}

#[test]
fn replies_find_their_calls_in_any_order() {
    let mut play = Play::connected();
    let [first, second, third] = [put(), get(), Verb::Size].map(|verb| play.ask(verb));
    assert_eq!(play.kinds(), ["1:Put", "1:Get", "1:Size"], "none waits for another's reply");
    play.reply(third, |route, out| reply::push_size(5, 9, route, out));
    play.tasks(second, false, &[None]);
    play.added(first);
    let decided: Vec<_> = std::iter::from_fn(|| play.core.next_decided()).collect();
    assert_eq!(decided, [third, second, first]);
    assert_eq!(play.told(first).unwrap().added().unwrap().count, 1);
    assert_eq!(play.told(second).unwrap().payload().unwrap(), item());
    assert_eq!(play.told(third).unwrap().count().unwrap(), 5);
    assert!(play.core.is_idle());
}

#[test]
fn a_reply_in_pieces_is_read_when_all_of_it_has_come() {
    let mut play = Play::connected();
    let id = play.ask(get());
    play.requests();
    let mut out = Outbound::default();
    let mut tasks = reply::begin_tasks(false, Route { queue: 0, id }, &mut out);
    tasks.task(&item(), None, None);
    tasks.finish().unwrap();
    for byte in out.into_parts().flat_map(|part| part.to_vec()) {
        assert!(play.is_open(id));
        play.core.inbound().extend_from_slice(&[byte]);
        play.core.received(play.now);
    }
    assert_eq!(play.told(id).unwrap().payload().unwrap(), item());
}

#[test]
fn no_more_requests_are_in_flight_than_the_server_allows() {
    let mut play = Play::connected();
    let puts: Vec<_> = (0..8).map(|_| play.ask(put())).collect();
    let sent = |play: &mut Play| play.requests().iter().map(|(route, _)| route.id).collect();
    let first: Vec<_> = sent(&mut play);
    assert_eq!(first, puts[..4], "as many as may wait for room");
    // Those that make room, and those that wait for what is put, are not kept out by puts that wait.
    let [get, ack] = [get(), ack(1)].map(|verb| play.ask(verb));
    let second: Vec<_> = sent(&mut play);
    assert_eq!(second, [get, ack]);
    play.added(puts[2]);
    play.added(puts[0]);
    let third: Vec<_> = sent(&mut play);
    assert_eq!(third, puts[4..6]);
}

#[test]
fn credit_that_is_given_again_waits_for_the_end_of_the_one_before() {
    let mut play = Play::connected();
    let before = play.core.subscribe(1, 2, play.now);
    play.requests();
    play.core.unsubscribe(before, play.now);
    let again = play.core.subscribe(1, 2, play.now);
    play.ask(put());
    let requests = play.requests();
    assert!(matches!(requests[0].1, Request::Credit { ends: true, .. }));
    assert!(matches!(requests[1].1, Request::Put { .. }), "no other call waits");
    assert_eq!(requests.len(), 2, "the server has one credit of a queue and a session at a time");
    play.reply(before, reply::push_done);
    let (route, request) = play.next_request();
    assert!(matches!(request, Request::Credit { ends: false, .. }));
    assert_eq!(route.id, again);
}

#[test]
fn what_no_frame_may_hold_is_refused_here() {
    let mut play = Play::connected();
    let large = Payload::bytes(&vec![0; 1 << 20]).unwrap();
    let id = play.ask(Verb::put(large, None));
    let refused = play.told(id).unwrap_err().to_string();
    assert!(refused.contains("exceeds the limit of 1048576 bytes"), "{refused}");
    assert!(play.requests().is_empty());
    let handles: Vec<_> = ["a", "b", "c", "d"].map(|name| play.core.open(name, play.now)).into();
    let handles: Vec<_> = handles.into_iter().map(|it| it.map(|(handle, _)| handle)).collect();
    assert_eq!(handles, [Some(2), Some(3), Some(4), None], "handles are below queues_max");
}

#[test]
fn a_call_that_was_not_sent_goes_out_on_the_next_connection() {
    let mut play = Play::connected();
    let id = play.ask(put());
    play.lose();
    assert!(play.is_open(id));
    play.connect();
    let requests = play.requests();
    assert!(matches!(requests[0].1, Request::Open { .. }), "its queue is opened again before");
    assert!(matches!(requests[1].1, Request::Put { .. }) && requests.len() == 2);
    let opened = requests[0].0.id;
    play.reply(opened, |route, out| reply::push_opened(&TASKS, route, out));
    assert!(play.requests().is_empty(), "and stays open");
    play.added(id);
    assert!(!play.told(id).unwrap().added().unwrap().is_repeated);
}

#[test]
fn a_put_that_was_sent_is_in_doubt_and_a_get_is_made_again() {
    let mut play = Play::connected();
    let ids = [put(), get(), ack(3), Verb::put_with(item(), &crate::PutOptions::keyed("k"), false)]
        .map(|verb| play.ask(verb));
    play.write();
    play.lose();
    assert!(matches!(play.told(ids[0]), Err(Error::InDoubt { .. })));
    play.connect();
    assert_eq!(play.kinds(), ["1:Open", "1:Get", "1:Settle", "1:Put"], "in their order");
    play.reply(ids[2], |route, out| reply::push_settled([Some(Code::SettledBefore)], route, out));
    let settled = play.told(ids[2]).unwrap().settled().unwrap();
    assert!(matches!(settled[..], [Ok(())]), "the first of the two has done it");
    play.reply(ids[3], |route, out| reply::push_added(1, None, [None], route, out));
    assert!(play.told(ids[3]).unwrap().newly().unwrap(), "the first of the two added it");
}

#[test]
fn an_ack_that_is_stale_when_it_is_made_again_is_in_doubt() {
    for (is_repeated, lost) in [(false, false), (true, true)] {
        let mut play = Play::connected();
        let id = play.ask(ack(3));
        play.write();
        if lost {
            play.lose();
            play.connect();
        }
        play.requests();
        play.reply(id, |route, out| reply::push_settled([Some(Code::Stale)], route, out));
        let settled = play.told(id).unwrap().settled().unwrap().pop().unwrap();
        match settled.unwrap_err() {
            Error::InDoubt { .. } => assert!(is_repeated),
            Error::Stale { .. } => assert!(!is_repeated),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_give_up_that_is_stale_when_it_is_made_again_is_in_doubt_and_a_nack_has_come_to_the_same() {
    let give_up = Fate::GiveUp { reason: String::new() };
    let nack = Fate::Nack { delay: None, reason: String::new() };
    let mut play = Play::connected();
    let ids = [give_up, nack].map(|fate| {
        let settlements = vec![Settlement { token: token(3), fate }];
        play.ask(Verb::settle(settlements))
    });
    play.write();
    play.lose();
    play.connect();
    play.requests();
    let mut settled = |id| {
        play.reply(id, |route, out| reply::push_settled([Some(Code::Stale)], route, out));
        play.told(id).unwrap().settled().unwrap().pop().unwrap()
    };
    assert!(matches!(settled(ids[0]), Err(Error::InDoubt { .. })));
    assert!(settled(ids[1]).is_ok());
}

#[test]
fn a_connection_may_be_lost_behind_any_byte() {
    let mut whole = Play::connected();
    for verb in [put(), get(), put()] {
        whole.ask(verb);
    }
    let len = whole.core.unwritten(whole.now).map(<[u8]>::len).sum::<usize>();
    for written in 0..=len {
        let mut play = Play::connected();
        let ids = [put(), get(), put()].map(|verb| play.ask(verb));
        assert_eq!(play.core.unwritten(play.now).map(<[u8]>::len).sum::<usize>(), len);
        play.core.wrote(written, play.now);
        play.lose();
        let in_doubt = ids.map(|id| play.core.take(id).is_some());
        assert_eq!(in_doubt[0], written > 0, "{written} of {len}");
        assert!(!in_doubt[1], "a get comes to the same");
        play.connect();
        let again: Vec<_> = play.requests().iter().skip(1).map(|(route, _)| route.id).collect();
        let expected: Vec<_> =
            ids.into_iter().zip(in_doubt).filter(|(_, it)| !it).map(|(id, _)| id).collect();
        assert_eq!(again, expected, "{written} of {len}");
    }
}

#[test]
fn a_server_that_stays_away_is_given_up_when_the_time_is_over() {
    let mut play = Play::connected();
    let id = play.ask(get());
    play.write();
    play.lose();
    let start = play.now;
    while play.is_open(id) {
        match play.core.want(play.now) {
            Want::Rest(Some(until)) => play.now = until,
            Want::Connect => {
                play.core.connecting(play.now);
                let (address, error) =
                    (Arc::clone(&play.server.address), io::ErrorKind::ConnectionRefused.into());
                play.core.unreachable(&Error::Connect { address, error }, play.now);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(play.told(id), Err(Error::Connect { .. })));
    assert_eq!(play.now - start, play.server.options.reconnect_for);
    assert_eq!(play.core.want(play.now), Want::Rest(None), "nobody wants anything");
    let again = play.ask(get());
    assert!(matches!(play.core.want(play.now), Want::Rest(Some(_)) | Want::Connect));
    play.connect();
    assert!(play.is_open(again));
}

#[test]
fn a_silent_server_is_noticed() {
    let mut play = Play::new();
    let id = play.core.ask(ME, 0, Verb::Connect, play.now);
    play.core.connecting(play.now);
    play.core.connected(play.now);
    play.now = play.core.deadline().unwrap();
    play.core.tick(play.now);
    // A first connection is tried again for as long as any.
    assert!(play.is_open(id));
    play.now += play.server.options.reconnect_for;
    play.core.connecting(play.now);
    play.core.connected(play.now);
    play.now = play.core.deadline().unwrap();
    play.core.tick(play.now);
    assert!(matches!(play.told(id), Err(Error::TimedOut { .. })));
}

#[test]
fn a_reply_that_is_overdue_ends_its_call_and_the_connection_if_nothing_else_comes() {
    let mut play = Play::connected();
    let (size, get) = (play.ask(Verb::Size), play.ask(get()));
    play.requests();
    play.now += Duration::from_secs(1);
    play.added(get);
    play.now = play.core.deadline().unwrap();
    play.core.tick(play.now);
    assert!(matches!(play.told(size), Err(Error::TimedOut { .. })));
    assert_eq!(play.kinds(), ["1:Cancel"], "its number is in use until it is answered");
    assert_ne!(play.ask(Verb::Size), size);
    play.reply(size, |route, out| reply::push_size(1, 2, route, out));
    assert_eq!(play.ask(Verb::Size), size);
    play.requests();
    play.now = play.core.deadline().unwrap();
    play.core.tick(play.now);
    assert!(matches!(play.core.want(play.now), Want::Rest(_)), "nothing else has come");
}

#[test]
fn what_comes_for_a_caller_who_has_left_goes_back() {
    let mut play = Play::connected();
    let [leased, taken] = [Verb::lease(1, None), get()].map(|verb| play.ask(verb));
    play.requests();
    play.core.cancel(leased, play.now);
    play.core.cancel(taken, play.now);
    assert_eq!(play.kinds(), ["1:Cancel", "1:Cancel"]);
    play.tasks(leased, false, &[Some(token(3))]);
    let (_, settle) = play.next_request();
    assert_eq!(fates(&settle), [(3, Fate::Return)]);
    play.tasks(taken, false, &[None]);
    assert_eq!(play.kinds(), ["1:Put", "1:TaskDone"]);
    assert_eq!(play.core.next_decided(), None, "nobody is told");
}

#[test]
fn what_has_come_for_a_caller_who_leaves_goes_back_too() {
    let mut play = Play::connected();
    let id = play.ask(Verb::lease(1, None));
    play.requests();
    play.tasks(id, false, &[Some(token(3))]);
    play.core.cancel(id, play.now);
    assert_eq!(play.kinds(), ["1:Settle"]);
}

#[test]
fn a_call_that_is_cancelled_before_it_was_sent_is_never_sent() {
    let mut play = Play::connected();
    play.lose();
    let id = play.ask(get());
    play.core.cancel(id, play.now);
    assert_eq!(play.core.want(play.now), Want::Rest(None));
    let ids: Vec<_> = (0..2).map(|_| play.ask(put())).collect();
    play.core.cancel(ids[0], play.now);
    play.connect();
    let sent: Vec<_> = play.requests().iter().skip(1).map(|(route, _)| route.id).collect();
    assert_eq!(sent, ids[1..]);
}

#[test]
fn a_put_that_nobody_waits_for_goes_out_all_the_same() {
    let mut play = Play::connected();
    let id = play.ask(put());
    play.core.detach(id);
    play.lose();
    play.ask(get());
    play.connect();
    assert_eq!(play.kinds(), ["1:Open", "1:Put", "1:Get"]);
    play.added(id);
    assert!(play.core.calls.get(id).is_none(), "and then it is forgotten");
}

#[test]
fn a_connection_is_at_rest_until_a_request_is_written() {
    let mut play = Play::connected();
    assert!(play.core.is_idle());
    let id = play.ask(put());
    assert!(play.core.is_idle(), "so that it can be looked whether it has ended");
    play.write();
    assert!(!play.core.is_idle());
    play.ask(put());
    assert!(!play.core.is_idle());
    play.added(id);
    let id = play.ask(get());
    play.requests();
    play.core.cancel(id, play.now);
    assert!(!play.core.is_idle());
}

#[test]
fn calls_that_are_ahead_are_known_until_they_are_answered() {
    let mut play = Play::connected();
    let id = play.core.ask_ahead(ME, 1, put(), play.now);
    play.ask(put());
    assert!(!play.core.is_flushed());
    play.core.detach(id);
    assert!(!play.core.is_flushed());
    play.requests();
    play.added(id);
    assert!(play.core.is_flushed(), "others wait for theirs");
}

#[test]
fn what_comes_after_puts_stays_behind_them() {
    let mut play = Play::connected();
    let puts: Vec<_> = (0..5).map(|_| play.ask(put())).collect();
    let shutdown = play.ask(Verb::Shutdown { immediate: false });
    assert_eq!(play.requests().len(), 4);
    play.added(puts[0]);
    assert_eq!(play.kinds(), ["1:Put"]);
    play.added(puts[1]);
    assert_eq!(play.next_request().0.id, shutdown);
}

#[test]
fn a_queue_that_is_gone_when_the_server_comes_back_is_named() {
    let mut play = Play::connected();
    play.lose();
    let id = play.ask(get());
    play.connect();
    let requests = play.requests();
    let text = "there is no queue named 'tasks'; declared are: 'task'";
    play.reply(requests[0].0.id, |route, out| {
        reply::push_error(Code::UnknownQueue, text, route, out);
    });
    play.error(id, Code::NoSuchHandle);
    match play.told(id).unwrap_err() {
        Error::UnknownQueue { name, declared, .. } => {
            assert_eq!((name.as_str(), declared.as_deref()), ("tasks", Some("'task'")));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_queue_that_is_opened_for_a_caller_who_has_left_is_closed() {
    let mut play = Play::connected();
    let (handle, id) = play.core.open("other", play.now).unwrap();
    play.requests();
    play.core.cancel(id, play.now);
    play.reply(id, |route, out| reply::push_opened(&TASKS, route, out));
    assert_eq!(play.kinds(), [format!("{handle}:Close")]);
}

#[test]
fn what_a_server_cancels_that_stops_is_made_again() {
    let mut play = Play::connected();
    let [get, put] = [get(), put()].map(|verb| play.ask(verb));
    play.requests();
    play.error(get, Code::Cancelled);
    play.reply(put, |route, out| reply::push_added(0, Some((Code::Cancelled, "")), [], route, out));
    assert!(play.requests().is_empty(), "not on this connection");
    play.lose();
    play.connect();
    assert_eq!(play.kinds(), ["1:Open", "1:Get", "1:Put"]);
    play.added(put);
    assert!(!play.told(put).unwrap().added().unwrap().is_repeated);
}

#[test]
fn a_queue_that_cannot_be_opened_frees_its_handle() {
    let mut play = Play::connected();
    let (handle, id) = play.core.open("other", play.now).unwrap();
    play.requests();
    play.error(id, Code::UnknownQueue);
    assert!(matches!(play.told(id), Err(Error::UnknownQueue { .. })));
    assert_eq!(play.core.open("third", play.now).map(|it| it.0), Some(handle));
}

#[test]
fn a_client_that_closes_lets_calls_end_and_begins_none() {
    let mut play = Play::connected();
    let (id, reply_to) = (play.ask(get()), play.core.close(play.now));
    assert_eq!(play.kinds(), ["1:Get", "1:Close"]);
    play.error(id, Code::Cancelled);
    assert!(matches!(play.told(id), Err(Error::Closed { .. })));
    play.reply(reply_to[0], reply::push_done);
    assert!(matches!(play.told(reply_to[0]), Ok(Told::Done)));
    let late = play.ask(get());
    assert!(matches!(play.told(late), Err(Error::Closed { .. })));
    play.core.end(play.now);
    assert_eq!(play.core.want(play.now), Want::End);
}

#[test]
fn a_server_of_cpythons_is_told_by_its_traceback() {
    let mut play = Play::new();
    let id = play.core.ask(ME, 0, Verb::Connect, play.now);
    play.greet(|| BytesMut::from(&b"\x80\x02U\x0a#TRACEBACKq\x00U\x02no\x86q\x01."[..]));
    assert!(matches!(play.told(id), Ok(Told::Done)));
    assert_eq!(play.core.classic(), Some(Dialect::Python2));
}

#[test]
fn a_wrong_key_ends_all_calls_at_once() {
    let mut play = Play::new();
    let id = play.core.ask(ME, 0, Verb::Connect, play.now);
    play.core.connecting(play.now);
    play.core.connected(play.now);
    play.say(&Handshake::server(AuthKey::new(b"other"), true, [7; NONCE_LEN]).1);
    play.next_message();
    play.say(b"#FAILURE#");
    assert!(matches!(play.told(id), Err(Error::Authentication { .. })));
}

#[test]
fn a_reply_to_no_request_ends_the_connection() {
    let mut play = Play::connected();
    let id = play.ask(get());
    play.requests();
    play.reply(id + 100, reply::push_done);
    assert!(matches!(play.told(id), Err(Error::Protocol { .. })));
    assert!(!play.core.has_link());
}

#[test]
fn a_reply_that_cannot_be_read_ends_the_connection() {
    let mut play = Play::connected();
    let [get, put] = [get(), put()].map(|verb| play.ask(verb));
    play.requests();
    let header =
        Header { len: 1, op: 0x84, count: 1, route: Route { queue: 1, id: get }, flags: 0xff };
    play.core.inbound().extend_from_slice(&header.bytes());
    play.core.inbound().extend_from_slice(b"x");
    play.core.received(play.now);
    assert!(matches!(play.told(get), Err(Error::Protocol { .. })));
    assert!(play.told(put).is_err());
    assert!(!play.core.has_link(), "what it may have taken goes back");
}

#[test]
fn pushed_tasks_are_started_when_the_program_has_them() {
    let mut play = Play::connected();
    let id = play.core.subscribe(1, 4, play.now);
    assert!(matches!(play.next_request().1, Request::Credit { credit: 4, .. }));
    play.tasks(id, true, &[1, 2, 3].map(|task| Some(token(task))));
    assert_eq!(play.core.next_decided(), Some(id), "whoever waits is woken");
    assert_eq!(play.core.next_task(id).unwrap().token, Some(token(1)));
    let (_, start) = play.next_request();
    assert_eq!(fates(&start), [(1, Fate::Start)]);
    // A task that is settled at once needs no start of its own.
    assert_eq!(play.core.next_task(id).unwrap().token, Some(token(2)));
    play.ask(ack(2));
    let requests = play.requests();
    assert!(matches!(requests[0].1, Request::Credit { credit: 2, .. }), "{requests:?}");
    assert_eq!(fates(&requests[1].1), [(2, Fate::Ack { result: None })]);
    assert_eq!(requests.len(), 2);
}

#[test]
fn pushed_tasks_go_back_when_others_want_them_or_the_program_does_not() {
    let mut play = Play::connected();
    let id = play.core.subscribe(1, 4, play.now);
    play.requests();
    play.tasks(id, true, &[1, 2, 3].map(|task| Some(token(task))));
    play.reply(id, |route, out| reply::push_recall(1, route, out));
    let requests = play.requests();
    assert_eq!(fates(&requests[0].1), [(3, Fate::Return)], "the last one");
    play.core.next_task(id).unwrap();
    play.core.unsubscribe(id, play.now);
    let requests = play.requests();
    let settled: Vec<_> = requests.iter().filter(|(route, _)| route.id != id).collect();
    assert_eq!(fates(&settled[0].1), [(2, Fate::Return)]);
    assert_eq!(fates(&settled[1].1), [(1, Fate::Start)]);
    let end = requests.iter().rfind(|(route, _)| route.id == id).unwrap();
    assert!(matches!(end.1, Request::Credit { ends: true, .. }));
    // What was on its way.
    play.tasks(id, true, &[Some(token(4))]);
    assert_eq!(fates(&play.next_request().1), [(4, Fate::Return)]);
    play.reply(id, reply::push_done);
    assert!(play.core.calls.get(id).is_none());
}

#[test]
fn credit_is_given_again_on_the_next_connection() {
    let mut play = Play::connected();
    let id = play.core.subscribe(1, 99, play.now);
    assert!(matches!(play.next_request().1, Request::Credit { credit: 10, .. }), "as allowed");
    play.tasks(id, true, &[Some(token(1)), Some(token(2))]);
    play.core.next_task(id).unwrap();
    play.lose();
    assert!(play.core.next_task(id).is_none(), "it went back with its session");
    play.connect();
    let requests = play.requests();
    assert!(matches!(requests[1].1, Request::Credit { credit: 10, .. }), "{requests:?}");
    assert_eq!(requests[1].0.id, id);
}

#[test]
fn a_queue_has_one_credit_at_a_time() {
    let mut play = Play::connected();
    let again = play.open("tasks", &TASKS);
    let id = play.core.subscribe(1, 4, play.now);
    play.requests();
    let second = play.core.subscribe(again, 4, play.now);
    assert!(matches!(play.told(second), Err(Error::Remote { .. })));
    play.core.unsubscribe(id, play.now);
    assert_eq!(play.kinds(), ["1:Credit"]);
    // It still ends, by either handle.
    let next = play.core.subscribe(again, 3, play.now);
    assert!(play.requests().is_empty());
    play.reply(id, reply::push_done);
    assert!(matches!(play.next_request().1, Request::Credit { credit: 3, .. }));
    // Its end is lost with the connection.
    play.core.unsubscribe(next, play.now);
    play.requests();
    let last = play.core.subscribe(1, 2, play.now);
    play.lose();
    play.connect();
    let requests = play.requests();
    let credit = requests.iter().filter(|it| matches!(it.1, Request::Credit { .. }));
    assert_eq!(credit.map(|(route, _)| route.id).collect::<Vec<_>>(), [last]);
}

#[test]
fn credit_that_a_server_cancels_that_stops_is_given_again() {
    let mut play = Play::connected();
    let id = play.core.subscribe(1, 4, play.now);
    play.requests();
    play.error(id, Code::Cancelled);
    assert!(play.core.take(id).is_none(), "it goes on");
    play.lose();
    play.connect();
    let requests = play.requests();
    assert!(matches!(requests[1].1, Request::Credit { credit: 4, .. }), "{requests:?}");
    // A client that is closed has its queues closed, and so its credit.
    play.core.close(play.now);
    play.requests();
    play.error(id, Code::Cancelled);
    assert!(matches!(play.told(id), Err(Error::Closed { .. })));
}

#[test]
fn what_was_pushed_is_handed_out_before_the_end() {
    let mut play = Play::connected();
    let id = play.core.subscribe(1, 4, play.now);
    play.requests();
    play.tasks(id, true, &[Some(token(1))]);
    play.error(id, Code::ShutDown);
    assert!(play.core.next_task(id).is_some());
    assert!(play.core.next_task(id).is_none());
    assert!(matches!(play.told(id), Err(Error::ShutDown)));
    let next = play.ask(get());
    assert_eq!(next, id, "its number is free");
    play.core.unsubscribe(id, play.now);
    assert!(play.is_open(next));
}

#[test]
fn the_reply_to_credit_that_was_asked_for_too_late_is_nobodys() {
    let mut play = Play::connected();
    let id = play.core.subscribe(1, 1, play.now);
    play.requests();
    play.tasks(id, true, &[Some(token(1))]);
    assert!(play.core.next_task(id).is_some());
    let more = play.requests();
    let is_more = |request: &Request| matches!(request, Request::Credit { credit: 1, .. });
    assert!(more.iter().any(|(route, request)| route.id == id && is_more(request)), "{more:?}");
    // The server had ended it by then, and answers both.
    play.error(id, Code::ShutDown);
    play.error(id, Code::ShutDown);
    assert!(matches!(play.told(id), Err(Error::ShutDown)));
    let next = play.ask(get());
    assert_ne!(next, id);
    play.error(id, Code::ShutDown);
    assert!(play.is_open(next));
    // So it is if the program ends it at the same time.
    let other = play.core.subscribe(1, 1, play.now);
    play.requests();
    play.core.unsubscribe(other, play.now);
    play.error(other, Code::ShutDown);
    play.reply(other, reply::push_done);
    assert!(play.is_open(next));
    // Nothing of the old connection comes on a new one.
    play.core.unsubscribe(id, play.now);
    play.lose();
    let again = [play.ask(get()), play.ask(get())];
    assert!(again.contains(&id) && again.contains(&other), "{again:?}");
}

// ---- what a plain `get` took

const DONE: Fate = Fate::Done { result: None };

fn results() -> Properties {
    Properties { needs_results: true, results: Some("results".to_owned()), ..TASKS }
}

fn answer_of(task: u64) -> (u64, Fate) {
    (task, Fate::Done { result: Some(item()) })
}

#[test]
fn what_a_get_took_is_leased_and_done_with_the_next_one() {
    let mut play = Play::connected();
    let id = play.ask(get());
    let session = Some(Duration::ZERO);
    let (_, request) = play.next_request();
    assert!(matches!(request, Request::Get(get) if get.leased && get.hold == session));
    play.tasks(id, false, &[Some(token(1)), Some(token(2))]);
    play.told(id).unwrap();
    assert!(play.requests().is_empty(), "the program works on them");
    play.ask(get());
    assert_eq!(play.settles(), [(1, vec![(1, DONE), (2, DONE)]), (1, vec![])]);
    play.ask(get());
    assert_eq!(play.settles(), [(1, vec![])], "once");
}

#[test]
fn a_queue_that_delivers_as_cpython_does_is_taken_from_for_good() {
    let mut play = Play::connected();
    let queue = play.open("old", &Properties { delivery_cpython: true, ..TASKS });
    play.core.ask(ME, queue, get(), play.now);
    assert!(matches!(play.next_request().1, Request::Get(get) if !get.leased));
}

#[test]
fn a_put_elsewhere_settles_what_is_in_hand_once_it_is_accepted() {
    let mut play = Play::connected();
    let other = play.open("other", &TASKS);
    play.take(1, &[1]);
    let refused = play.core.ask(ME, other, put(), play.now);
    assert_eq!(play.settles(), [(other, vec![])], "not before");
    play.reply(refused, |route, out| reply::push_added(0, Some((Code::Full, "")), [], route, out));
    assert!(matches!(play.told(refused).unwrap().added(), Err(Error::Full)));
    assert!(play.requests().is_empty());
    let accepted = play.core.ask(ME, other, put(), play.now);
    play.requests();
    play.added(accepted);
    assert_eq!(play.settles(), [(1, vec![(1, DONE)])]);
    play.take(1, &[2]);
    play.ask(put());
    play.lose();
    play.connect();
    assert_eq!(play.kinds(), ["1:Open", "2:Open", "1:Put"], "a put to the same queue says nothing");
}

#[test]
fn a_put_to_the_queue_of_results_is_the_result_of_the_oldest_task() {
    let mut play = Play::connected();
    let tasks = play.open("strict", &results());
    let to = play.open("results", &TASKS);
    play.take(tasks, &[1, 2, 3]);
    play.core.ask(ME, tasks, get(), play.now);
    assert_eq!(play.settles(), [(tasks, vec![])], "they still need their results");
    let id = play.core.ask(ME, to, put(), play.now);
    assert_eq!(play.settles(), [(tasks, vec![answer_of(1)])]);
    play.reply(id, |route, out| reply::push_settled([None], route, out));
    assert_eq!(play.told(id).unwrap().added().unwrap().count, 1);
    // It stays in hand while there is no room for its result.
    let full = play.core.ask(ME, to, put(), play.now);
    assert_eq!(play.settles(), [(tasks, vec![answer_of(2)])]);
    play.reply(full, |route, out| reply::push_settled([Some(Code::Full)], route, out));
    assert!(matches!(play.told(full).unwrap().added(), Err(Error::Full)));
    // And no longer if somebody else has it.
    let stale = play.core.ask(ME, to, put(), play.now);
    assert_eq!(play.settles(), [(tasks, vec![answer_of(2)])]);
    play.reply(stale, |route, out| reply::push_settled([Some(Code::Stale)], route, out));
    match play.told(stale).unwrap().added() {
        Err(Error::Remote { class, .. }) => assert_eq!(class, "ValueError"),
        other => panic!("{other:?}"),
    }
    play.core.ask(ME, to, put(), play.now);
    assert_eq!(play.settles(), [(tasks, vec![answer_of(3)])]);
    play.core.ask(ME, to, put(), play.now);
    assert_eq!(play.settles(), [(to, vec![])], "it is the result of nothing");
}

#[test]
fn a_result_that_was_sent_is_sent_again() {
    let mut play = Play::connected();
    let tasks = play.open("strict", &results());
    let to = play.open("results", &TASKS);
    play.take(tasks, &[1]);
    let id = play.core.ask(ME, to, put(), play.now);
    play.requests();
    play.lose();
    play.connect();
    assert_eq!(play.settles().pop(), Some((tasks, vec![answer_of(1)])));
    play.reply(id, |route, out| reply::push_settled([Some(Code::SettledBefore)], route, out));
    assert_eq!(play.told(id).unwrap().added().unwrap().count, 1);
}

#[test]
fn a_batch_of_results_settles_what_is_in_hand_and_adds_the_rest() {
    let mut play = Play::connected();
    let tasks = play.open("strict", &results());
    let to = play.open("results", &TASKS);
    play.take(tasks, &[1, 2]);
    let id = play.core.ask(ME, to, Verb::put_many(vec![item(); 3], None), play.now);
    assert_eq!(play.settles(), [(tasks, vec![answer_of(1), answer_of(2)])]);
    play.reply(id, |route, out| reply::push_settled([None; 2], route, out));
    assert_eq!(play.kinds(), [format!("{to}:Put")]);
    play.added(id);
    assert_eq!(play.told(id).unwrap().added().unwrap().count, 3);
}

#[test]
fn a_batch_goes_out_in_pieces_one_after_the_other() {
    let mut play = Play::connected();
    let id = play.ask(Verb::put_many(vec![item(); 250], None));
    let put = |play: &mut Play| match play.next_request() {
        (route, Request::Put(put)) if route.id == id => put.items.count(),
        other => panic!("{other:?}"),
    };
    for _ in 0..2 {
        assert_eq!(put(&mut play), 100);
        play.reply(id, |route, out| reply::push_added(100, None, [], route, out));
    }
    assert_eq!(put(&mut play), 50);
    play.reply(id, |route, out| reply::push_added(20, Some((Code::Full, "")), [], route, out));
    assert_eq!(play.told(id).unwrap().added().unwrap().count, 220);
    let refused = play.ask(Verb::put_many(vec![item(); 250], None));
    play.requests();
    play.reply(refused, |route, out| reply::push_added(0, Some((Code::Full, "")), [], route, out));
    assert!(matches!(play.told(refused).unwrap().added(), Err(Error::Full)));
}

#[test]
fn task_done_settles_the_oldest_task_in_hand() {
    let mut play = Play::connected();
    play.take(1, &[1, 2]);
    let id = play.ask(Verb::TaskDone);
    assert_eq!(play.settles(), [(1, vec![(1, DONE)]), (1, vec![])]);
    play.reply(id, reply::push_done);
    assert!(matches!(play.told(id), Ok(Told::Done)));
}

#[test]
fn a_client_that_takes_leave_is_done_with_what_needs_no_result() {
    let mut play = Play::connected();
    let tasks = play.open("strict", &results());
    play.take(1, &[1]);
    play.take(tasks, &[2]);
    play.core.close(play.now);
    let requests = play.settles();
    assert_eq!(requests[0], (1, vec![(1, DONE)]));
    assert!(requests[1..].iter().all(|(_, fates)| fates.is_empty()), "{requests:?}");
}

#[test]
fn a_queue_that_is_closed_gives_tasks_back_that_need_results() {
    let mut play = Play::connected();
    let tasks = play.open("strict", &results());
    play.take(tasks, &[2]);
    play.take(1, &[1]);
    play.core.close_later(tasks);
    play.core.close_later(1);
    assert!(play.requests().is_empty());
    play.core.close_dropped(play.now);
    let requests = play.settles();
    assert!(matches!(requests[0].1[..], [(2, Fate::Nack { delay: Some(_), .. })]), "{requests:?}");
    assert_eq!(requests[2], (1, vec![(1, DONE)]));
}

#[test]
fn a_task_that_was_put_without_a_chance_to_be_its_result_is_done_after_it() {
    let mut play = Play::connected();
    let tasks = play.open("strict", &results());
    let to = play.open("results", &TASKS);
    play.take(tasks, &[1]);
    let keyed = Verb::put_with(item(), &crate::PutOptions::keyed("k"), false);
    let id = play.core.ask(ME, to, keyed, play.now);
    assert_eq!(play.kinds(), [format!("{to}:Put")], "a settlement has no terms");
    play.added(id);
    assert_eq!(play.settles(), [(tasks, vec![(1, DONE)])]);
}

#[test]
fn that_the_server_is_away_is_reported_once_while_somebody_waits() {
    let mut play = Play::connected();
    play.core.ended(play.now);
    let after = play.server.options.report_after;
    assert!(play.core.report(play.now + after).is_none(), "nobody waits");
    play.ask(get());
    assert!(play.core.report(play.now).is_none(), "not yet");
    let (error, left) = play.core.report(play.now + after).unwrap();
    assert!(matches!(error, Error::Lost { .. }));
    assert_eq!(left, play.server.options.reconnect_for);
    assert!(play.core.report(play.now + after).is_none(), "once");
    play.connect();
    play.core.ended(play.now);
    assert!(play.core.report(play.now + after).is_some(), "and once more the next time");
}

#[test]
fn a_client_that_leaves_does_not_wait_for_a_server_that_is_away() {
    let mut play = Play::connected();
    let id = play.ask(get());
    play.requests();
    play.core.leave();
    play.core.ended(play.now);
    assert!(play.told(id).is_err());
}

#[test]
fn what_is_silent_at_first_is_not_waited_for_if_that_is_final() {
    let mut server = server(KEY);
    server.options.first_silence_is_final = true;
    let mut play = Play { core: Core::new(Arc::new(server)), ..Play::new() };
    let id = play.core.ask(ME, 0, Verb::Connect, play.now);
    play.core.connecting(play.now);
    play.core.connected(play.now);
    play.now = play.core.deadline().unwrap();
    play.core.tick(play.now);
    assert!(matches!(play.told(id), Err(Error::TimedOut { .. })));
}
