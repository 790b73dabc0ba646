//! Many worlds of sessions, with and without what is planted in them.

use manyhands::internal;

use super::super::{every_world, parallel};
use super::run;
use crate::planted::{self, Bug};

#[test]
fn every_world_of_sessions_holds() {
    every_world(100, run);
}

#[test]
fn the_same_seed_of_sessions_gives_the_same_trace() {
    for seed in 0..10 {
        assert_eq!(run(seed).trace, run(seed).trace, "seed {seed}");
    }
}

/// What is planted, on either side.
#[derive(Debug, Clone, Copy)]
enum Planted {
    Server(Bug),
    Client(internal::Bug),
}

/// Worlds that a planted bug may get through, at most.
const SEEDS_PER_BUG: u64 = 1000;

#[test]
fn every_bug_that_is_planted_in_sessions_is_found() {
    let server = Bug::SESSIONS.iter().copied().map(Planted::Server);
    let client = internal::Bug::ALL.iter().copied().map(Planted::Client);
    let bugs: Vec<_> = server.chain(client).collect();
    let found = parallel(&bugs, |bug| {
        match *bug {
            Planted::Server(bug) => planted::plant(Some(bug)),
            Planted::Client(bug) => internal::plant(Some(bug)),
        }
        let first = (0..SEEDS_PER_BUG).find_map(|seed| Some((seed, run(seed).wrong?)));
        planted::plant(None);
        internal::plant(None);
        first.map(|(seed, wrong)| (seed, wrong.lines().next().unwrap_or_default().to_owned()))
    });
    eprintln!("found, with the first seed: {found:#?}");
    let not_found: Vec<_> = found.iter().filter(|(_, seed)| seed.is_none()).collect();
    assert!(not_found.is_empty(), "not found: {not_found:?}");
}
