//! Simulated worlds: the engine with clients that come, call, wait, die and leave, all from a seed.
//!
//! A [model](model) says at every step what must have happened; at the end the
//! [history](history) of what the clients saw is judged by itself, as that of real processes is.
//! `docs/testing.md` says how to run many seeds and how to look at one.

mod clients;
mod crowd;
mod history;
mod judged;
mod lives;
mod machine;
mod model;
mod ours;
mod pushes;
mod record;
mod scripted;
mod sessions;
mod setting;
mod world;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use self::world::{Verdict, World};
use crate::planted::{self, Bug};

/// What became of a world.
struct Ended {
    /// What is wrong with it.
    wrong: Option<String>,
    trace: Vec<String>,
    seen: BTreeMap<&'static str, u64>,
    counts: history::Counts,
}

fn run(seed: u64) -> Ended {
    let mut world = World::new(seed);
    let mut wrong = catch(|| world.live()).err();
    let trace = world.history.lines().to_vec();
    let mut counts = history::Counts::default();
    if wrong.is_none() && world.is_attributable {
        match history::judge(trace.iter().map(String::as_str)) {
            Ok(counted) => counts = counted,
            Err(why) => wrong = Some(why),
        }
    }
    Ended { wrong, trace, seen: world.seen, counts }
}

/// What is wrong with a world, if only that something in it panics.
fn catch(live: impl FnOnce() -> Verdict) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(live)) {
        Ok(lived) => lived.map_err(|wrong| wrong.0),
        Err(panic) => Err(text_of(&*panic)),
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// A number from the environment, or `default`.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("it is a number"))
}

/// Runs worlds, so many unless the environment says otherwise, and tells what they have seen.
fn every_world(worlds: u64, run: impl Fn(u64) -> Ended) {
    let first = setting("MANYHANDS_SIM_FIRST", 0);
    let (mut seen, mut counts) = (BTreeMap::<_, u64>::new(), history::Counts::default());
    for seed in first..first + setting("MANYHANDS_SIM_SEEDS", worlds) {
        let ended = run(seed);
        if let Some(wrong) = ended.wrong {
            panic!("seed {seed}: {wrong}\n{}", ended.trace.join("\n"));
        }
        for (what, times) in ended.seen {
            *seen.entry(what).or_default() += times;
        }
        counts.add(&ended.counts);
    }
    eprintln!("{seen:?}\n{counts}");
}

#[test]
fn every_world_goes_as_the_model_says_and_its_history_holds() {
    every_world(200, run);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..30 {
        assert_eq!(run(seed).trace, run(seed).trace, "seed {seed}");
    }
}

/// What comes of each bug, on several threads. What is planted is planted in one thread.
fn parallel<B: Copy + Send + Sync, R: Send>(
    bugs: &[B],
    search: impl Fn(&B) -> R + Sync,
) -> Vec<(B, R)> {
    let next = AtomicUsize::new(0);
    let search_some = || {
        let mut found = vec![];
        while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((*bug, search(bug)));
        }
        found
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let searches: Vec<_> = (0..threads).map(|_| scope.spawn(search_some)).collect();
        searches.into_iter().flat_map(|search| search.join().unwrap()).collect()
    })
}

/// Worlds that a planted bug may get through, at most.
const SEEDS_PER_BUG: u64 = 2000;

/// Of the journal's own, those that calls beside a checkpoint show.
const BESIDE: &[Bug] = &[Bug::CheckpointAhead];

#[test]
fn every_planted_bug_is_found() {
    let bugs: Vec<_> = Bug::ENGINE.iter().chain(Bug::DISK).chain(BESIDE).copied().collect();
    let found = parallel(&bugs, |bug| {
        planted::plant(Some(*bug));
        let first = (0..SEEDS_PER_BUG).find(|seed| run(*seed).wrong.is_some());
        planted::plant(None);
        first
    });
    eprintln!("found, with the first seed: {found:?}");
    let not_found: Vec<_> = found.iter().filter(|(_, seed)| seed.is_none()).collect();
    assert!(not_found.is_empty(), "not found: {not_found:?}");
}

#[test]
fn every_planted_bug_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/testing.md");
    let text = std::fs::read_to_string(path).unwrap();
    for bug in Bug::ENGINE.iter().chain(Bug::DISK).chain(Bug::NATIVE).chain(Bug::JOURNAL) {
        assert!(text.contains(&format!("| `{bug:?}` |")), "{bug:?}");
    }
    for bug in Bug::SESSIONS {
        assert!(text.contains(&format!("| `{bug:?}` |")), "{bug:?}");
    }
    for bug in manyhands::internal::Bug::ALL {
        assert!(text.contains(&format!("| `{bug:?}` |")), "{bug:?}");
    }
}
