//! Tokens of leases cannot be guessed, and a result is kept once.

use std::time::Duration;

use crate::honest::Honest;
use crate::peer::{Peer, assert_is, has, request, text};
use crate::support::Server;

/// A session as those of our own clients are.
fn ours(server: &Server) -> Peer {
    let mut peer = Peer::login(server);
    let reply = peer.ask(&request(None, "accept_connection", &[text("manyhands/1 test")]));
    assert_is(&reply, "#RETURN");
    peer
}

/// The token in a reply to `lease`, as its four numbers.
fn token(reply: &[u8]) -> [u64; 4] {
    let text = String::from_utf8_lossy(reply);
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '.');
    let token = words.max_by_key(|word| word.matches('.').count()).expect("there is a token");
    let number = |part| u64::from_str_radix(part, 16).expect("its parts are numbers");
    let parts: Vec<_> = token.split('.').map(number).collect();
    parts.try_into().expect("a token has four parts")
}

fn written([task, attempt, lease, seal]: [u64; 4]) -> Vec<u8> {
    text(&format!("{task:x}.{attempt:x}.{lease:x}.{seal:x}"))
}

#[test]
fn nobody_settles_a_lease_whose_token_it_was_not_given() {
    let server = Server::start(&["tasks,results=results", "honest"]);
    let honest = Honest::beside(&server);
    let (tasks, results) = (Peer::create(&server, "tasks"), Peer::create(&server, "results"));
    let (mut worker, mut thief) = (ours(&server), ours(&server));
    for item in ["first", "second"] {
        assert_is(&thief.ask(&request(Some(&tasks), "put", &[text(item)])), "#RETURN");
    }
    let own = token(&thief.ask(&request(Some(&tasks), "lease", &[])));
    let leased = worker.ask(&request(Some(&tasks), "lease", &[]));
    let [task, attempt, lease, seal] = own;

    let mut guesses = vec![
        [task + 1, attempt, lease + 1, seal],
        [task + 1, attempt, lease + 1, seal.wrapping_add(1)],
        [task + 1, attempt, lease + 1, 0x8f3a_12c4],
        [task + 1, attempt, lease, seal],
    ];
    guesses.extend((0..64).map(|bit| [task + 1, attempt, lease + 1, seal ^ (1 << bit)]));
    for guess in guesses {
        for method in ["ack", "nack"] {
            let mut args = vec![written(guess)];
            args.extend((method == "ack").then(|| text("a forged result")));
            let refused = thief.ask(&request(Some(&tasks), method, &args));
            assert!(has(&refused, "stale: "), "{}", refused.escape_ascii());
        }
    }
    honest.told("forged tokens");

    let acked = worker.ask(&request(Some(&tasks), "ack", &[written(token(&leased)), text("mine")]));
    assert_is(&acked, "#RETURN");
    assert!(has(&worker.ask(&request(Some(&results), "get", &[])), "mine"));
    let last = worker.ask(&request(Some(&results), "get_nowait", &[]));
    assert!(has(&last, "Empty"), "{}", last.escape_ascii());
    let process = server.process.lock().unwrap();
    let warned = || process.errors.recv_timeout(Duration::from_secs(30));
    while !warned().expect("the log says so").contains("refused lease tokens") {}
}
