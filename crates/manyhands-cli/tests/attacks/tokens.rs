//! Tokens of leases cannot be guessed, and a result is kept once.

use std::time::Duration;

use crate::honest::Honest;
use crate::peer::{Peer, assert_is, has, request, text};
use crate::raw::token_of;
use crate::raw::{ADDED, PUT, Raw, SETTLE, SETTLED, frame, item, lease_of, put_of, settlement};
use crate::support::Server;

const ACK_WITH_RESULT: u8 = 1;
const NACK: u8 = 2;
/// What is said of a token that is not that of the lease.
const STALE: [u8; 2] = [5, 0];

/// Settles one lease; the code that it is answered, which is nothing if that took effect.
fn settle(raw: &mut Raw, settlement: &[u8]) -> Vec<u8> {
    let settled = raw.ask(&frame(SETTLE, 1, 9, 1, &[&[0; 8][..], settlement].concat()));
    assert_eq!(settled.op, SETTLED, "{settled:?}");
    settled.body
}

#[test]
fn nobody_settles_a_lease_whose_token_it_was_not_given() {
    let server = Server::start(&["tasks,results=results", "honest"]);
    let honest = Honest::beside(&server);
    let (mut worker, mut thief) = (Raw::with(&server, "tasks"), Raw::with(&server, "tasks"));
    let items = [item(b"first"), item(b"second")].concat();
    assert_eq!(thief.ask(&frame(PUT, 1, 7, 2, &put_of(&items))).op, ADDED);
    let own = token_of(&thief.ask(&lease_of(8, [0; 8], 1)));
    let leased = token_of(&worker.ask(&lease_of(8, [0; 8], 1)));

    // Its own, with the numbers of the other task and lease, and any seal.
    let mut guess = own;
    guess[..16].copy_from_slice(&leased[..16]);
    assert_ne!(guess, leased);
    let mut guesses = vec![guess, [0; 28]];
    guesses.extend((0..64).map(|bit| {
        let mut guess = guess;
        guess[16 + bit / 8] ^= 1 << (bit % 8);
        guess
    }));
    let mut early = guess;
    early[8..16].copy_from_slice(&own[8..16]);
    guesses.push(early);
    for guess in guesses {
        let forged = settlement(ACK_WITH_RESULT, &guess, b"", &item(b"a forged result")[3..]);
        assert_eq!(settle(&mut thief, &forged), STALE);
        assert_eq!(settle(&mut thief, &settlement(NACK, &guess, b"no", b"")), STALE);
    }
    honest.told("forged tokens");

    let acked = settlement(ACK_WITH_RESULT, &leased, b"", &item(b"mine")[3..]);
    assert_eq!(settle(&mut worker, &acked), b"", "it takes effect");
    let (results, mut reader) = (Peer::create(&server, "results"), Peer::session(&server));
    assert!(has(&reader.ask(&request(Some(&results), "get", &[])), "mine"));
    let last = reader.ask(&request(Some(&results), "get_nowait", &[]));
    assert!(has(&last, "Empty"), "{}", last.escape_ascii());
    let size = reader.ask(&request(Some(&results), "put", &[text("goes on")]));
    assert_is(&size, "#RETURN");
    let process = server.process.lock().unwrap();
    let warned = || process.errors.recv_timeout(Duration::from_secs(30));
    while !warned().expect("the log says so").contains("refused lease tokens") {}
}
