//! Sessions that are sent anything, which the fuzzer does for longer.

use manyhands::wire::native::{Header, Op, Route};

use crate::frontend::native::fuzzed::session;
use crate::journal::tests::random::Random;

/// Sessions of a run.
const SESSIONS: u64 = 300;

/// Requests of which most have a header that can be read, and fewer a body.
fn requests(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![];
    for _ in 0..1 + random.below(12) {
        let body: Vec<u8> = (0..[0, 8, 24, 40, random.below(200)][random.below(5)])
            .map(|_| [0, 1, 255, random.next().to_le_bytes()[0]][random.below(4)])
            .collect();
        let len = if random.percent(95) { body.len() } else { random.below(1 << 17) };
        let header = Header {
            len: u32::try_from(len).unwrap(),
            op: [1 + random.next().to_le_bytes()[0] % 0x12, Op::Get as u8][random.below(2)],
            flags: [0, 1, 2, 3, random.next().to_le_bytes()[0]][random.below(5)],
            route: Route {
                queue: [1, 1, 1, 0, 2][random.below(5)],
                id: 1 + (random.next() % 9) as u32,
            },
            count: [0, 1, 1, 2, 5, u32::MAX][random.below(6)],
        };
        bytes.extend(header.bytes());
        bytes.extend(body);
    }
    if random.percent(30) {
        bytes.truncate(random.below(bytes.len() + 1));
    }
    bytes
}

#[test]
fn a_session_that_is_sent_anything_leaves_nothing_and_disturbs_nobody() {
    for seed in 0..SESSIONS {
        let bytes = requests(&mut Random::new(seed));
        let sent = std::panic::catch_unwind(|| session(&bytes));
        assert!(sent.is_ok(), "seed {seed}: {}", bytes.escape_ascii());
    }
}
