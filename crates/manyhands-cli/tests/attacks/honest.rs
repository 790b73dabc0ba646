//! A client that behaves: it puts and gets while others attack, and measures how long it waits.

#![expect(clippy::disallowed_methods, reason = "measures the time that a user waits")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs, mem};

use crate::peer::{Peer, assert_is, has, request, text};
use crate::support::{Server, announce, wait_until};

/// How long the server is watched while nobody attacks it.
const QUIET: Duration = Duration::from_secs(1);
/// Between two rounds, so that the honest client is no load of its own.
const PAUSE: Duration = Duration::from_millis(1);

/// Whether attacks that can go on longer shall.
pub(crate) fn is_long() -> bool {
    env::var_os("MANYHANDS_ATTACKS").is_some_and(|value| value == "long")
}

/// Puts an item on a queue of its own and gets it back, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Honest {
    rounds: Arc<Mutex<Vec<Round>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    quiet: Duration,
}

/// How long a round took, and how long the server was at work meanwhile. On a machine that is busy
/// with other things the first is the longer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Round {
    took: Duration,
    worked: Duration,
}

/// How long the thread that serves has had a processor, as the system counts it.
struct Work(Option<File>);

impl Work {
    fn of(server: &Server) -> Self {
        let threads = fs::read_dir(format!("/proc/{}/task", server.id())).into_iter().flatten();
        let serves = |thread: &PathBuf| {
            // The system cuts names short.
            fs::read_to_string(thread.join("comm")).is_ok_and(|name| name == "manyhands-serve\n")
        };
        let found = threads.flatten().map(|thread| thread.path()).find(serves);
        Self(found.and_then(|thread| File::open(thread.join("schedstat")).ok()))
    }

    /// Zero where the system does not tell.
    fn so_far(&self) -> Duration {
        let read = |file: &File| {
            let mut bytes = [0; 64];
            let length = file.read_at(&mut bytes, 0).ok()?;
            let text = str::from_utf8(bytes.get(..length)?).ok()?;
            text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
        };
        self.0.as_ref().and_then(read).unwrap_or_default()
    }
}

/// How long the rounds of an honest client took during an attack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waited {
    /// 99 of 100 rounds took at most this long before the attack.
    pub(crate) quiet: Duration,
    /// The same during the attack.
    pub(crate) p99: Duration,
    pub(crate) longest: Duration,
    /// The longest that the server was at work during one round.
    pub(crate) work: Duration,
    pub(crate) rounds: usize,
}

impl Honest {
    /// Begins on the queue `honest`, which the server must have or make, and measures the quiet.
    pub(crate) fn beside(server: &Server) -> Self {
        let (rounds, ends) = (Arc::<Mutex<Vec<Round>>>::default(), Arc::<AtomicBool>::default());
        let ident = Peer::create(server, "honest");
        let mut session = Peer::session(server);
        let work = Work::of(server);
        let named = thread::Builder::new().name("honest".into());
        let thread = named.spawn({
            let (rounds, ends) = (rounds.clone(), ends.clone());
            move || {
                while !ends.load(Ordering::Relaxed) {
                    let (begin, before) = (Instant::now(), work.so_far());
                    let put = session.ask(&request(Some(&ident), "put", &[text("honest work")]));
                    assert_is(&put, "#RETURN");
                    let got = session.ask(&request(Some(&ident), "get", &[]));
                    assert!(has(&got, "honest work"), "{}", got.escape_ascii());
                    let (took, after) = (begin.elapsed(), work.so_far());
                    lock(&rounds).push(Round { took, worked: after.saturating_sub(before) });
                    thread::sleep(PAUSE);
                }
            }
        });
        let thread = thread.expect("a thread can be started");
        let mut honest = Self { rounds, ends, thread: Some(thread), quiet: Duration::ZERO };
        thread::sleep(QUIET);
        honest.quiet = honest.measured().p99;
        honest
    }

    /// Waits until it has gone on for so many rounds.
    pub(crate) fn goes_on(&self, rounds: usize) {
        let made = || lock(&self.rounds).len();
        let end = made() + rounds;
        assert!(wait_until(|| (end <= made()).then_some(())).is_some(), "it is not served");
    }

    /// What came of its rounds since this was asked last. One that still waits is not among them.
    pub(crate) fn measured(&self) -> Waited {
        assert!(
            self.thread.as_ref().is_some_and(|thread| !thread.is_finished()),
            "the honest client was cut off or got a wrong answer"
        );
        let mut rounds = mem::take(&mut *lock(&self.rounds));
        rounds.sort_unstable();
        let took = |at: usize| rounds.get(at).map(|round| round.took);
        let longest = took(rounds.len().saturating_sub(1)).unwrap_or_default();
        let p99 = took(rounds.len() * 99 / 100).unwrap_or(longest);
        let work = rounds.iter().map(|round| round.worked).max().unwrap_or_default();
        Waited { quiet: self.quiet, p99, longest, work, rounds: rounds.len() }
    }

    /// The same, told on standard error.
    pub(crate) fn told(&self, attack: &str) -> Waited {
        let waited = self.measured();
        let Waited { quiet, p99, longest, work, rounds } = waited;
        let ratio = p99.as_secs_f64() / quiet.as_secs_f64();
        announce(&format!(
            "{attack}: honest p99 {p99:.1?}, {ratio:.1} x quiet ({quiet:.1?}); longest \
             {longest:.1?} of {rounds} rounds; the server at work for {work:.1?} of one at most"
        ));
        waited
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(!matches!(ended, Some(Err(_))), "the honest client was harmed");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
