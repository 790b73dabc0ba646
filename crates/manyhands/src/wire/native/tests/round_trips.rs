//! Whatever is written is read as the same.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;

use super::*;
use crate::wire::frame::SHARED_LEN_MIN;
use crate::wire::pickle::Payload;
use crate::wire::tasks::{Failure, Info, Peek, TaskState};
use crate::wire::token::LeaseToken;

fn time() -> impl Strategy<Value = Duration> {
    (0u64..1 << 50).prop_map(Duration::from_micros)
}

fn wait() -> impl Strategy<Value = Wait> {
    let time = (1u64..1 << 50).prop_map(Duration::from_micros);
    prop_oneof![Just(Wait::No), Just(Wait::Forever), time.prop_map(Wait::For)]
}

fn route() -> impl Strategy<Value = Route> {
    (any::<u16>(), any::<u32>()).prop_map(|(queue, id)| Route { queue, id })
}

/// Some are so long that they are shared.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        9 => vec(any::<u8>(), 0..20),
        1 => vec(any::<u8>(), SHARED_LEN_MIN - 10..SHARED_LEN_MIN + 10),
    ]
}

fn payload() -> impl Strategy<Value = Payload> {
    const PICKLES: &[&[u8]] = &[
        b"\x80\x02K\x07.",
        b"\x80\x04\x95\x04\0\0\0\0\0\0\0]\x94K\x01a.",
        b"N.",
        b"\x80\x05\x96\x01\0\0\0\0\0\0\0x.",
    ];
    let taken = |pickle: Bytes| Payload::from_standalone(pickle, &Limits::default()).unwrap();
    let long = move |content: Vec<u8>| {
        let len = u32::try_from(content.len()).unwrap().to_le_bytes();
        taken([&b"\x80\x03]B"[..], &len, &content, b"a."].concat().into())
    };
    prop_oneof![
        prop::sample::select(PICKLES).prop_map(Bytes::from_static).prop_map(taken),
        content().prop_map(long),
        ".{0,20}".prop_map(|text| Payload::json(&text).unwrap()),
        content().prop_map(|content| Payload::bytes(&content).unwrap()),
    ]
}

fn terms() -> impl Strategy<Value = PutTerms> {
    let key = option::of(vec(any::<u8>(), 0..=256));
    let fields = (key, option::of(time()), option::of(any::<i64>()), option::of(time()));
    fields.prop_map(|(key, delay, priority, expires)| PutTerms { key, delay, priority, expires })
}

fn token() -> impl Strategy<Value = LeaseToken> {
    any::<(u64, u32, u64, u64)>().prop_map(|(task, attempt, lease, seal)| LeaseToken {
        task,
        attempt,
        lease,
        seal,
    })
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        option::of(payload()).prop_map(|result| Fate::Ack { result }),
        (option::of(time()), ".{0,20}").prop_map(|(delay, reason)| Fate::Nack { delay, reason }),
        ".{0,20}".prop_map(|reason| Fate::GiveUp { reason }),
        time().prop_map(|hold| Fate::Extend { hold }),
        Just(Fate::Start),
        Just(Fate::Return),
        option::of(payload()).prop_map(|result| Fate::Done { result }),
    ]
}

fn info() -> impl Strategy<Value = Info> {
    let texts = (".{0,9}", ".{0,9}", vec(".{0,9}", 0..4));
    let numbers = (any::<u64>(), any::<u32>(), time(), time());
    (texts, numbers).prop_map(|((queue, worker, history), (task, attempt, waited, ran))| Info {
        queue,
        task,
        attempt,
        worker,
        waited,
        ran,
        history,
    })
}

fn state() -> impl Strategy<Value = TaskState> {
    prop::sample::select(&[TaskState::Ready, TaskState::Delayed, TaskState::Leased][..])
}

fn failure() -> impl Strategy<Value = Failure> {
    (any::<u32>(), ".{0,9}", ".{0,9}").prop_map(|(attempt, worker, reason)| Failure {
        attempt,
        worker,
        reason,
    })
}

fn peeked() -> impl Strategy<Value = Peeked> {
    // Seconds in binary fractions are the same afterwards.
    let time =
        || option::of((0u32..1 << 20).prop_map(|quarters| Duration::from_millis(250) * quarters));
    let times = (time(), time(), time());
    let texts = (option::of(".{0,9}"), option::of(".{0,9}"), option::of((".{0,9}", any::<u64>())));
    let lists = (option::of(vec(any::<u8>(), 0..9)), vec(failure(), 0..3));
    let rest = (any::<u64>(), state(), option::of(payload()), any::<u32>());
    (times, texts, lists, rest).prop_map(|(times, texts, lists, (task, state, item, attempt))| {
        let ((age, due_in, since), (worker, peer, origin), (key, failures)) = (times, texts, lists);
        Peeked {
            task,
            state,
            item,
            attempt,
            age,
            due_in,
            key,
            worker,
            peer,
            since,
            failures,
            origin,
        }
    })
}

/// Those that are no batches.
fn request() -> impl Strategy<Value = Request> {
    let text = || ".{0,20}";
    let get = (wait(), any::<bool>(), option::of(time()), any::<bool>(), any::<u32>());
    prop_oneof![
        text().prop_map(|name| Request::Open { name }),
        Just(Request::Close),
        (get, option::of(1u32..)).prop_map(|((wait, leased, hold, informed, max), bytes_max)| {
            Request::Get(Get { wait, leased, hold, informed, max, bytes_max })
        }),
        (option::of(time()), any::<u32>(), any::<bool>())
            .prop_map(|(hold, credit, ends)| Request::Credit { hold, credit, ends }),
        Just(Request::Cancel),
        any::<u32>().prop_map(|count| Request::TaskDone { count }),
        Just(Request::Join),
        Just(Request::Size),
        text().prop_map(|after| Request::List { after }),
        (0..1usize << 32, state(), any::<bool>())
            .prop_map(|(max, state, items)| Request::Peek(Peek { max, state, items })),
        (any::<u64>(), option::of(0..u64::MAX))
            .prop_map(|(max, task)| Request::Redrive { max, task }),
        Just(Request::Purge),
        any::<bool>().prop_map(|immediate| Request::Shutdown { immediate }),
        (text(), any::<bool>()).prop_map(|(name, forced)| Request::Drop { name, forced }),
        (text(), text()).prop_map(|(name, options)| Request::Configure { name, options }),
        Just(Request::Ping),
        any::<u64>().prop_map(|task| Request::Revoke { task }),
    ]
}

/// A payload as its bytes: a client does not look for the oldest protocol that it needs.
fn seen(payload: &Payload) -> (&'static str, Bytes) {
    (payload.codec.name(), payload.content())
}

proptest! {
    #[test]
    fn requests(request in request(), route in route()) {
        let (header, body) = frame(|out| request.push(route, out).unwrap());
        prop_assert_eq!(header.route, route);
        prop_assert_eq!(read_request(&header, body).unwrap(), format!("{request:?}"));
    }

    #[test]
    fn puts(
        items in vec((payload(), option::of(terms())), 0..5),
        wait in wait(),
        numbered: bool,
    ) {
        let (header, body) = frame(|out| {
            let mut frame = Request::begin_put(wait, numbered, Route::default(), out);
            items.iter().for_each(|(payload, terms)| frame.item(payload, terms.as_ref()));
            frame.finish().unwrap();
        });
        let request = Request::decode(&header, body.clone(), &bounds()).unwrap();
        let (again, same) = frame(|out| request.push(header.route, out).unwrap());
        prop_assert_eq!((again, same), (header, body));
        let Request::Put(put) = request else { panic!("{request:?}") };
        prop_assert_eq!((put.wait, put.numbered), (wait, numbered));
        let found = all(put.items).unwrap();
        prop_assert_eq!(found.len(), items.len());
        for (found, (payload, terms)) in found.into_iter().zip(items) {
            // Terms that say nothing are none.
            let terms = terms.filter(|terms| *terms != PutTerms::default());
            prop_assert_eq!(found.terms.map(|terms| *terms), terms);
            prop_assert_eq!(found.payload, payload);
        }
    }

    #[test]
    fn settlements(fates in vec((token(), fate()), 0..5), wait in wait()) {
        let settlements = fates.into_iter().map(|(token, fate)| Settlement { token, fate });
        let settlements: Vec<_> = settlements.collect();
        let (header, body) = frame(|out| {
            let mut frame = Request::begin_settle(wait, Route::default(), out);
            settlements.iter().for_each(|settlement| frame.settlement(settlement));
            frame.finish().unwrap();
        });
        let request = Request::decode(&header, body.clone(), &bounds()).unwrap();
        let (again, same) = frame(|out| request.push(header.route, out).unwrap());
        prop_assert_eq!((again, same), (header, body));
        let Request::Settle { wait: found_wait, settlements: found } = request else { panic!() };
        prop_assert_eq!(found_wait, wait);
        prop_assert_eq!(all(found).unwrap(), settlements);
    }

    #[test]
    fn tasks(
        tasks in vec((payload(), option::of(token()), option::of(info())), 0..5),
        is_pushed: bool,
    ) {
        let (header, body) = frame(|out| {
            let mut frame = reply::begin_tasks(is_pushed, Route::default(), out);
            for (payload, token, info) in &tasks {
                frame.task(payload, token.as_ref(), info.as_ref());
            }
            frame.finish().unwrap();
        });
        let reply = Reply::decode(&header, body).unwrap();
        let Reply::Tasks { tasks: found, pushed } = reply else { panic!("{reply:?}") };
        prop_assert_eq!(pushed, is_pushed);
        let found = all(found).unwrap();
        prop_assert_eq!(found.len(), tasks.len());
        for (found, (payload, token, info)) in found.into_iter().zip(tasks) {
            prop_assert_eq!((found.token, found.info.map(|info| *info)), (token, info));
            prop_assert_eq!(seen(&found.payload), seen(&payload));
        }
    }

    #[test]
    fn tasks_that_were_looked_at(tasks in vec(peeked(), 0..4)) {
        let (header, body) = frame(|out| {
            let mut frame = reply::begin_peeked(Route::default(), out);
            tasks.iter().for_each(|task| frame.peeked(task));
            frame.finish().unwrap();
        });
        let reply = Reply::decode(&header, body).unwrap();
        let Reply::Peeked(found) = reply else { panic!("{reply:?}") };
        let found = all(found).unwrap();
        prop_assert_eq!(found.len(), tasks.len());
        for (found, task) in found.into_iter().zip(tasks) {
            let items = [&found, &task].map(|task| task.item.as_ref().map(seen));
            prop_assert_eq!(&items[0], &items[1]);
            prop_assert_eq!(Peeked { item: None, ..found }, Peeked { item: None, ..task });
        }
    }

    #[test]
    fn what_became_of_batches(
        codes in vec(option::of(prop::sample::select(Code::ALL)), 0..9),
        numbers in vec(option::of(0..u64::MAX), 0..9),
        refusal in option::of((prop::sample::select(Code::ALL), ".{0,20}")),
    ) {
        let (header, body) = frame(|out| reply::push_settled(codes.clone(), Route::default(), out));
        prop_assert_eq!(body.is_empty(), codes.iter().all(Option::is_none));
        prop_assert_eq!(read_reply(&header, body).unwrap(), format!("{codes:?}"));
        let count = u32::try_from(numbers.len()).unwrap();
        let refused = refusal.as_ref().map(|(code, text)| (*code, text.as_str()));
        let (header, body) = frame(|out| {
            reply::push_added(count, refused, numbers.clone(), Route::default(), out);
        });
        let numbers = Some(numbers).filter(|numbers| !numbers.is_empty());
        let expected = format!("{count} {refusal:?} {numbers:?}");
        prop_assert_eq!(read_reply(&header, body).unwrap(), expected);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        op: u8, flags in 0u8..4, count in 0u32..9,
        body in vec(prop_oneof![4 => 0u8..3, 1 => any::<u8>()], 0..200),
    ) {
        let len = u32::try_from(body.len()).unwrap();
        let header = Header { len, op: op % 0x14, flags, route: Route::default(), count };
        let body = Bytes::from(body);
        std::hint::black_box(read_request(&header, body.clone()).is_ok());
        let header = Header { op: 0x80 | (op % 9), ..header };
        std::hint::black_box(read_reply(&header, body).is_ok());
    }
}

#[test]
fn a_batch_may_be_as_long_as_is_allowed_and_no_longer() {
    let put = |count| Header { op: 3, count, ..Header::default() };
    let read = |count| Request::decode(&put(count), vec![0; 8].into(), &bounds()).map(drop);
    assert_eq!(read(1000), Ok(()));
    let error = read(1001).unwrap_err();
    assert_eq!(error.code(), Code::TooLong);
    assert_eq!(error.to_string(), "1001 items are more than 1000, the most of a batch");
}

#[test]
fn no_memory_is_taken_for_items_that_are_announced_alone() {
    let header = Header { op: 3, count: 1000, ..Header::default() };
    let request = Request::decode(&header, vec![0; 20].into(), &bounds()).unwrap();
    let Request::Put(put) = request else { panic!("{request:?}") };
    assert_eq!(put.items.capacity(), 1);
}

#[test]
fn a_payload_shares_the_memory_of_its_frame() {
    let payloads = [
        Payload::json("[1]").unwrap(),
        Payload::bytes(b"abc").unwrap(),
        Payload::from_standalone(b"\x80\x02K\x07."[..].into(), &Limits::default()).unwrap(),
    ];
    let (header, body) = frame(|out| {
        let mut frame = Request::begin_put(Wait::No, false, Route::default(), out);
        payloads.iter().for_each(|payload| frame.item(payload, None));
        frame.finish().unwrap();
    });
    let place = body.as_ptr_range();
    let Request::Put(put) = Request::decode(&header, body.clone(), &bounds()).unwrap() else {
        panic!()
    };
    for (item, payload) in put.items.zip(payloads) {
        let item = item.unwrap();
        assert_eq!(item.payload, payload);
        assert!(place.contains(&item.payload.bytes.as_ptr()));
    }
}
