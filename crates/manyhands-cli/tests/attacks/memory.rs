//! Clients that announce, send, take and never go on: the memory stays bounded and others work.

#![expect(clippy::disallowed_methods, reason = "measures the time that a user waits")]

use std::time::{Duration, Instant};

use crate::honest::{Honest, is_long};
use crate::peer::{Peer, assert_is, blob, request};
use crate::support::{Server, announce};

const MIB: u64 = 1 << 20;
/// An honest request never waits this long: a few times what a transfer may stand still.
const PATIENCE: Duration = Duration::from_secs(20);

/// Puts and gets an item of so many bytes and says how long that took.
fn honest_round(session: &mut Peer, ident: &str, len: usize) -> Duration {
    let begin = Instant::now();
    let put = request(Some(ident), "put", &[blob(&vec![b'x'; len])]);
    assert_is(&session.ask(&put), "#RETURN");
    let got = session.ask(&request(Some(ident), "get", &[]));
    assert!(got.len() > len, "the item comes back whole");
    begin.elapsed()
}

/// Announces 60 MiB, sends `sent` bytes of them and then nothing.
fn announce_and_stall(server: &Server, peers: usize, sent: usize) -> Vec<Peer> {
    let stall = |_| {
        let mut peer = Peer::session(server);
        let mut bytes = (60_u32 << 20).to_be_bytes().to_vec();
        bytes.resize(4 + sent, b'N');
        peer.send(&bytes);
        peer
    };
    (0..peers).map(stall).collect()
}

#[test]
fn what_is_announced_takes_no_memory_from_requests_that_come() {
    for (options, peers) in [(&[][..], 60), (&["--memory-bytes-max", "1073741824"], 5)] {
        let server = Server::with_options(options);
        let honest = Honest::beside(&server);
        let ident = Peer::create(&server, "large");
        let mut session = Peer::session(&server);
        let stalled = announce_and_stall(&server, peers, 2);
        let took = honest_round(&mut session, &ident, 1 << 20);
        assert!(took < PATIENCE / 4, "a request of 1 MiB took {took:?}");
        honest.told(&format!("{peers} peers that announce 60 MiB and send 2 bytes"));
        drop(stalled);
    }
}

#[test]
fn a_request_that_stands_still_makes_way_for_those_that_come() {
    let server = Server::with_options(&["--memory-bytes-max", "67108864"]);
    let honest = Honest::beside(&server);
    let ident = Peer::create(&server, "large");
    let mut session = Peer::session(&server);
    let mut cut_off = 0;
    let mut longest = Duration::ZERO;
    for _ in 0..if is_long() { 20 } else { 2 } {
        // Each fits, all together do not.
        let mut stalled: Vec<_> = (0..10)
            .map(|_| {
                let mut peer = Peer::session(&server);
                let mut bytes = (4_u32 << 20).to_be_bytes().to_vec();
                bytes.resize(1 << 20, b'N');
                peer.send(&bytes);
                peer
            })
            .collect();
        for _ in 0..3 {
            longest = longest.max(honest_round(&mut session, &ident, 1 << 20));
        }
        cut_off += stalled.iter_mut().filter_map(Peer::is_cut_off).count();
    }
    assert!(longest < PATIENCE, "a request of 1 MiB took {longest:?}");
    assert!(cut_off > 0, "those that stood still lost their places");
    honest.told("requests that stand still");
    announce(&format!("{cut_off} were cut off; 1 MiB took {longest:.1?} at most"));
}
