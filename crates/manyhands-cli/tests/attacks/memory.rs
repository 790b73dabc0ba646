//! Clients that announce, send, take and never go on: the memory stays bounded and others work.

#![expect(clippy::disallowed_methods, reason = "measures the time that a user waits")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::honest::{Honest, is_long};
use crate::peer::{Peer, assert_is, blob, has, request};
use crate::raw::{
    ADDED, GET, NEVER, PUT, Raw, SETTLE, SETTLED, frame, get_of, item, lease_of, put_of,
    settlement, token_of,
};
use crate::support::{Server, announce, wait_until};

const MIB: u64 = 1 << 20;
const PEEK: u8 = 0x0c;
const NACK: u8 = 2;

/// An honest request never waits this long: a few times what a transfer may stand still.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nor this long, where no room has to be made for it.
const UNHINDERED_PATIENCE: Duration = Duration::from_secs(5);

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
        assert!(took < UNHINDERED_PATIENCE, "a request of 1 MiB took {took:?}");
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

#[test]
fn a_slow_client_is_not_cut_for_those_that_stand_still() {
    let server = Server::with_options(&["--memory-bytes-max", "67108864"]);
    let ident = Peer::create(&server, "large");
    let mut slow = Peer::session(&server);
    let put = request(Some(&ident), "put", &[blob(&[b'x'; 160_000])]);
    let length = u32::try_from(put.len()).expect("it is short").to_be_bytes();
    let (has_ended, cut_off) = (AtomicBool::new(false), AtomicUsize::new(0));
    let stalls = || {
        while !has_ended.load(Ordering::Relaxed) {
            let mut peer = Peer::session(&server);
            peer.send(&(4_u32 << 20).to_be_bytes());
            peer.send(&[b'N'; 900 << 10]);
            let is_cut_off = wait_until(|| {
                let has_ended = has_ended.load(Ordering::Relaxed);
                peer.is_cut_off().or(has_ended.then_some(()))
            });
            assert!(is_cut_off.is_some(), "others wait for its room");
            cut_off.fetch_add(1, Ordering::Relaxed);
        }
    };
    let reply = thread::scope(|scope| {
        // Together they want more than there is.
        let stalled: Vec<_> = (0..12).map(|_| scope.spawn(stalls)).collect();
        // 25 KiB a second.
        for part in [&length[..], &put].concat().chunks(2560) {
            slow.send(part);
            thread::sleep(Duration::from_millis(100));
        }
        let reply = slow.frame();
        let cut_off = cut_off.load(Ordering::Relaxed);
        has_ended.store(true, Ordering::Relaxed);
        let failed = stalled.into_iter().map(thread::ScopedJoinHandle::join).filter(Result::is_err);
        assert_eq!(failed.count(), 0);
        assert!(cut_off > 0, "those that stood still made way");
        announce(&format!("{cut_off} that stood still were cut off meanwhile"));
        reply
    });
    assert_is(&reply.expect("it is not cut off"), "#RETURN");
}

/// The most that a server may hold at a limit of so many bytes, in KiB: a quarter more, and the
/// program itself.
fn most_kib(memory_bytes_max: u64) -> u64 {
    memory_bytes_max / 1024 * 5 / 4 + PROGRAM_KIB
}

/// What the program takes with all its threads and nothing to do, in KiB, with debug information.
const PROGRAM_KIB: u64 = 16 << 10;

/// Watches what a server holds, as long as an attack shall last, and fails if it is too much.
struct Watch<'a> {
    server: &'a Server,
    most_kib: u64,
    seen_kib: u64,
}

impl<'a> Watch<'a> {
    fn of(server: &'a Server, memory_bytes_max: u64) -> Self {
        Self { server, most_kib: most_kib(memory_bytes_max), seen_kib: 0 }
    }

    fn look(&mut self) {
        let Some(now) = self.server.resident_kib() else { return };
        self.seen_kib = self.seen_kib.max(now);
    }

    /// Looks for some seconds, or for a minute.
    fn hold(&mut self) {
        let looks = if is_long() { 600 } else { 30 };
        for _ in 0..looks {
            self.look();
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn told(&self, attack: &str) {
        let Self { most_kib, seen_kib, .. } = self;
        announce(&format!("{attack}: {} MiB of {} at most", seen_kib >> 10, most_kib >> 10));
        assert!(seen_kib <= most_kib, "{attack}: {seen_kib} KiB resident, allowed are {most_kib}");
    }
}

fn option(memory_bytes_max: u64) -> String {
    memory_bytes_max.to_string()
}

#[test]
fn readers_that_never_read_do_not_hold_what_they_asked_for() {
    for is_durable in [false, true] {
        let (max, item, readers) =
            if is_long() { (256 * MIB, 30 << 20, 70) } else { (64 * MIB, 6 << 20, 40) };
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let data = dir.path().to_str().expect("temporary paths are text");
        let limit = option(max);
        let mut options = vec!["--memory-bytes-max", &limit];
        if is_durable {
            options.extend(["--data", data]);
        }
        let server = Server::with_options(&options);
        let honest = Honest::beside(&server);
        let mut watch = Watch::of(&server, max);
        let ident = Peer::create(&server, "large");
        let get = request(Some(&ident), "get", &[]);
        let mut putter = Peer::session(&server);
        let put = request(Some(&ident), "put", &[blob(&vec![b'x'; item]), b"\x89".to_vec()]);
        let mut accepted = 0;
        while accepted < readers && !has(&putter.ask(&put), "Full") {
            accepted += 1;
            watch.look();
        }
        let mut held: Vec<_> = (0..readers).map(|_| Peer::session(&server)).collect();
        held.iter_mut().for_each(|peer| peer.send_frame(&get));
        watch.hold();
        let attack = format!("{readers} that get {item} bytes and never read, disk {is_durable}");
        let waited = honest.told(&attack);
        assert!(
            waited.longest < UNHINDERED_PATIENCE,
            "an honest client waited {:?}",
            waited.longest
        );
        watch.told(&attack);
        drop(held);
        let mut worker = Peer::session(&server);
        for at in 0..accepted {
            let got = worker.ask(&get);
            assert!(got.len() > item, "item {at} of {accepted} that were accepted");
            watch.look();
        }
        announce(&format!("all {accepted} that were accepted are there"));
        watch.told("taking them");
    }
}

#[test]
fn batches_that_nobody_reads_stay_within_the_limit() {
    let max = 64 * MIB;
    let server = Server::with_options(&["--memory-bytes-max", &option(max)]);
    let mut watch = Watch::of(&server, max);
    let ident = Peer::create(&server, "small");
    let mut putter = Raw::with(&server, "small");
    let batch = put_of(&item(&[b'x'; 98]).repeat(8192));
    let batch = frame(PUT, 1, 7, 8192, &batch);
    let mut accepted = 0;
    for _ in 0..80 {
        // If all are in the queue, nothing more is said.
        if !putter.ask(&batch).body.is_empty() {
            break;
        }
        accepted += 1;
        watch.look();
    }
    let left = request(Some(&ident), "qsize", &[]);
    let all = Peer::session(&server).ask(&left);
    let mut held: Vec<_> = (0..120).map(|_| Raw::with(&server, "small")).collect();
    for raw in &mut held {
        (0..8).for_each(|id| raw.peer.send(&lease_of(10 + id, NEVER, 16_384)));
        watch.look();
    }
    watch.hold();
    let attack = format!("120 that take batches of {accepted} x 8192 and never read");
    watch.told(&attack);
    drop((putter, held));
    let mut session = Peer::session(&server);
    let is_back = wait_until(|| (session.ask(&left) == all).then_some(()));
    assert!(is_back.is_some(), "what was accepted and not read is there again");
    watch.look();
    watch.told("when they have left");
}

#[test]
fn puts_that_wait_stay_within_the_limit() {
    // If they were not counted, they would take half as much again.
    let (max, putters, item) =
        if is_long() { (64 * MIB, 4000, 16_000) } else { (64 * MIB, 1000, 32_000) };
    let server = Server::with_options(&["--memory-bytes-max", &option(max)]);
    let mut watch = Watch::of(&server, max);
    let ident = Peer::create(&server, "full");
    let mut putter = Peer::session(&server);
    let item = blob(&vec![b'x'; item]);
    let no_wait = request(Some(&ident), "put", &[item.clone(), b"\x89".to_vec()]);
    while !has(&putter.ask(&no_wait), "Full") {}
    let put = request(Some(&ident), "put", &[item]);
    let mut held: Vec<_> = (0..putters).map(|_| Peer::session(&server)).collect();
    for peer in &mut held {
        peer.send_frame(&put);
        watch.look();
    }
    watch.hold();
    let attack = format!("{putters} large puts that wait");
    watch.told(&attack);
    drop(held);
    let mut session = Peer::session(&server);
    assert_is(&session.ask(&request(Some(&ident), "get", &[])), "#RETURN");
    honest_round(&mut session, &Peer::create(&server, "other"), 2000);
}

#[test]
fn tasks_with_keys_delays_and_expiries_stay_within_the_limit() {
    let max = 64 * MIB;
    let server = Server::with_options(&["--memory-bytes-max", &option(max)]);
    let mut watch = Watch::of(&server, max);
    let mut putter = Raw::with(&server, "noted");
    let mut accepted = 0;
    let [hour, two_hours] = [3600u64, 7200].map(|seconds| (seconds * 1_000_000).to_le_bytes());
    'full: loop {
        for at in accepted..accepted + 500 {
            let (key, len) = (format!("{at:0250}"), 250u16.to_le_bytes());
            let terms = [&[1][..], &hour, &[3], &two_hours, &[4], &len, key.as_bytes()].concat();
            let len = u16::try_from(terms.len()).unwrap().to_le_bytes();
            let put = [&len[..], &[0], &terms, &item(b"x")[3..]].concat();
            putter.peer.send(&frame(PUT, 1, 100 + at, 1, &put_of(&put)));
        }
        for _ in 0..500 {
            let reply = putter.reply();
            assert_eq!(reply.op, ADDED);
            if !reply.body.is_empty() && reply.count == 0 {
                break 'full;
            }
            accepted += 1;
        }
        watch.look();
    }
    watch.look();
    watch.told(&format!("{accepted} tasks with keys, delays and expiries"));
}

#[test]
fn what_is_told_of_dead_letters_stays_within_the_limit() {
    let max = 64 * MIB;
    let queue = "tasks,attempts=8,backoff=0";
    let options = ["--memory-bytes-max", &option(max), "--queue", queue, "--queue", "tasks.dead"];
    let server = Server::with_options(&options);
    let mut watch = Watch::of(&server, max);
    let mut worker = Raw::with(&server, "tasks");
    let reason = "\u{1f525}".repeat(1000);
    let letters = 1000;
    let all = put_of(&item(b"x").repeat(letters));
    let all = frame(PUT, 1, 7, u32::try_from(letters).unwrap(), &all);
    assert_eq!(worker.ask(&all).op, ADDED);
    for _ in 0..letters * 8 {
        let token = token_of(&worker.ask(&lease_of(8, NEVER, 1)));
        let nack = [&[0; 8][..], &settlement(NACK, &token, reason.as_bytes(), b"")].concat();
        let settled = worker.ask(&frame(SETTLE, 1, 9, 1, &nack));
        assert_eq!((settled.op, &settled.body[..]), (SETTLED, &b""[..]));
    }
    watch.look();
    let held = |request: &[u8]| -> Vec<Raw> {
        let hold = |_| {
            let mut raw = Raw::with(&server, "tasks.dead");
            raw.peer.send(request);
            raw
        };
        (0..60).map(hold).collect()
    };
    let look = held(&frame(PEEK, 1, 10, 0, &[0, 0x40, 0, 0, 0, 0, 0, 0]));
    watch.hold();
    watch.told("60 that look at dead letters and never read");
    drop(look);
    let mut informed = frame(GET, 1, 10, 0, &get_of([0; 8], 16_384));
    informed[5] = 2;
    let taken = held(&informed);
    watch.hold();
    watch.told("60 that take dead letters with their histories and never read");
    drop(taken);
}
