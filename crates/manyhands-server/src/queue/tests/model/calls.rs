//! What is called, and on which queues: any of it may come out of a seed.

use proptest::prelude::*;

use super::super::*;

#[derive(Debug, Clone)]
pub(super) enum Call {
    Put {
        object: Vec<u8>,
        codec: Codec,
        wait: Wait,
        terms: Terms,
    },
    Get {
        taker: Taker,
        wait: Wait,
    },
    TaskDone,
    Join,
    /// One of the waiters gives up.
    Cancel(prop::sample::Index),
    /// Time goes on by so many seconds.
    Expire(u64),
    /// A task that was once handed out is settled, by right or not, and perhaps by its token.
    Ack {
        index: prop::sample::Index,
        by_token: bool,
    },
    /// A task that was once handed out is given back, by right or not.
    GiveBack {
        index: prop::sample::Index,
        failed: bool,
        delay: Option<u64>,
    },
    /// A lease is to run so many seconds more.
    Extend(prop::sample::Index, u64),
    /// Other queues take so much of the budget now.
    Others(u64),
    Shutdown {
        immediate: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    No,
    Seconds(u64),
    Forever,
}

fn terms() -> impl Strategy<Value = Terms> {
    let seconds = || prop::option::weighted(0.3, (0u64..4).prop_map(Duration::from_secs));
    let key = prop::option::weighted(0.2, (0u8..3).prop_map(|key| Arc::from([key].as_slice())));
    let priority = prop::option::weighted(0.2, 0i64..4);
    let all = (key, seconds(), seconds(), priority).prop_map(|(key, delay, expires, priority)| {
        Terms { key, delay, expires, priority, ..Terms::default() }
    });
    prop_oneof![3 => Just(Terms::default()), 1 => all]
}

pub(super) fn calls() -> impl Strategy<Value = Vec<Call>> {
    let wait =
        || prop_oneof![Just(Wait::No), (0u64..4).prop_map(Wait::Seconds), Just(Wait::Forever)];
    let object = prop_oneof![
        // 0 to 3, (0,) to (1,), two dicts, None, text, and a payload too large for a chunk
        6 => (0u8..4).prop_map(|n| vec![b'K', n]),
        2 => (0u8..2).prop_map(|n| vec![b'K', n, 0x85]),
        1 => (0u8..2).prop_map(|n| vec![b'}', b'K', n, b'N', b's']),
        1 => Just(vec![b'N']),
        1 => Just(text("text").bytes.to_vec()),
        1 => Just(text(&"long".repeat(1200)).bytes.to_vec()),
    ];
    let codec = prop_oneof![
        6 => (2u8..5).prop_map(Codec::Pickle),
        1 => Just(Codec::Json),
        1 => Just(Codec::Bytes),
    ];
    let settled_by = prop_oneof![
        1 => Just(SettledBy::Delivery),
        4 => Just(SettledBy::Session),
        1 => Just(SettledBy::Token),
        1 => (0u64..4).prop_map(|seconds| SettledBy::TokenWithin(Duration::from_secs(seconds))),
    ];
    let index = any::<prop::sample::Index>;
    let call = prop_oneof![
        30 => (object, codec, wait(), terms())
            .prop_map(|(object, codec, wait, terms)| Call::Put { object, codec, wait, terms }),
        25 => (2u8..6, settled_by, wait()).prop_map(|(reader, settled_by, wait)| {
            Call::Get { taker: Taker { settled_by, ..Taker::leasing(reader) }, wait }
        }),
        6 => Just(Call::TaskDone),
        2 => Just(Call::Join),
        6 => index().prop_map(Call::Cancel),
        6 => (0u64..3).prop_map(Call::Expire),
        10 => (index(), any::<bool>())
            .prop_map(|(index, by_token)| Call::Ack { index, by_token }),
        12 => (index(), any::<bool>(), prop::option::of(0u64..4))
            .prop_map(|(index, failed, delay)| Call::GiveBack { index, failed, delay }),
        3 => (index(), 0u64..5).prop_map(|(index, seconds)| Call::Extend(index, seconds)),
        4 => (0u64..200).prop_map(Call::Others),
        1 => any::<bool>().prop_map(|immediate| Call::Shutdown { immediate }),
    ];
    prop::collection::vec(call, 1..150)
}

pub(super) fn options() -> impl Strategy<Value = QueueOptions> {
    let order = prop_oneof![Just(Order::Fifo), Just(Order::Lifo), Just(Order::Priority)];
    let seconds = || prop::option::weighted(0.3, (1u64..6).prop_map(Duration::from_secs));
    (order, 0usize..4, 0u32..4, seconds(), seconds()).prop_map(
        |(order, maxsize, attempts, max_run, expires)| QueueOptions {
            order,
            maxsize,
            attempts,
            max_run,
            expires,
            dedup: Duration::from_secs(2),
            backoff: Duration::ZERO,
            ..QueueOptions::default()
        },
    )
}
