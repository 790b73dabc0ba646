//! Worlds in which every step is written down: what seeds have met and a simulator may get wrong.

use manyhands::wire::arguments::Wait;

use super::machine::Machine;
use super::model::{Manner, Patience};
use super::ours::single;
use super::setting::{Action, Setting};
use super::world::{NAMES, RESULTS, TASKS, World};
use crate::engine::Taking;
use crate::journal::tests::random::Random;
use crate::queue::{QueueOptions, SettledBy};

/// A world on disk in which nobody dies by chance, with clients that do as they are told: how many of
/// our own, and how many stock ones after them.
fn world([ours, stock]: [usize; 2], tasks: QueueOptions, results: QueueOptions) -> World {
    let mut drawn = (0..).map(|seed| Setting::draw(&mut Random::new(seed)));
    let is_fit = |setting: &Setting| setting.has_disk && !setting.happens(Action::Kill);
    let mut setting = drawn.find(is_fit).unwrap();
    (setting.tasks, setting.results) = (tasks, results);
    // Each step is a frame of its own.
    setting.frame_bytes_max = 1;
    let mut world = World::within(setting, Random::new(0));
    (0..ours + stock).for_each(|at| world.connect_as(at < ours));
    world.compare().unwrap();
    world
}

fn put(world: &mut World, at: usize, items: [u32; 3]) {
    world.put_many(at, TASKS, items.into(), Patience::No);
    world.compare().unwrap();
}

fn take(world: &mut World, at: usize, manner: Manner, taking: Taking) {
    let patience = (Wait::Forever, Patience::Forever);
    world.begin_take(at, TASKS, manner, taking, patience).unwrap();
    world.compare().unwrap();
}

#[test]
fn a_lease_is_told_once_its_own_frame_is_written() {
    let mut world = world([3, 0], QueueOptions::default(), QueueOptions::default());
    for (at, max) in [(0, 2), (1, 1)] {
        let taking = Taking { settled_by: SettledBy::Token, max, ..single() };
        take(&mut world, at, Manner::Leased(None), taking);
    }
    // Both are served in one frame, which is written to read the bodies, after the first client has
    // leased another one, in a frame of its own.
    put(&mut world, 2, [1, 2, 3]);
    let waiting = |world: &World| [0, 1].map(|at| world.clients[at].waits());
    assert_eq!(waiting(&world), [true, false]);
    world.work(Machine::write).unwrap();
    assert_eq!(waiting(&world), [false, false]);
}

#[test]
fn a_purge_is_told_before_what_is_cleared_away_after_it_is_durable() {
    let ordered = QueueOptions { ordered: true, ..QueueOptions::default() };
    let mut world = world([1, 3], QueueOptions::default().results(NAMES[RESULTS]), ordered);
    put(&mut world, 0, [1, 2, 3]);
    world.sync().unwrap();
    for at in 1..4 {
        world.get_for(at, TASKS, Wait::No, Patience::No).unwrap();
        world.compare().unwrap();
    }
    // These results wait for that of the first task, which comes back.
    for at in [2, 3] {
        world.put(at, RESULTS).unwrap();
        world.compare().unwrap();
    }
    world.kill(1, true);
    world.sync().unwrap();
    // Their turn comes when the first task is cleared away.
    world.purge(0, TASKS);
    world.compare().unwrap();
    world.work(Machine::write).unwrap();
    assert!(!world.clients[0].waits());
    assert!(world.machine.durable() < world.machine.appended(), "their turn is written later");
}

#[test]
fn a_power_cut_may_take_a_lease_and_its_end() {
    let mut refused = 0;
    for seed in 0..20 {
        let mut world = world([1, 0], QueueOptions::default(), QueueOptions::default());
        put(&mut world, 0, [1, 2, 3]);
        world.sync().unwrap();
        take(
            &mut world,
            0,
            Manner::Leased(None),
            Taking { settled_by: SettledBy::Token, ..single() },
        );
        world.work(Machine::write).unwrap();
        // It is known to have been told, and the task is back.
        world.kill(0, true);
        world.compare().unwrap();
        world.random = Random::new(seed);
        world.crash().unwrap();
        world.connect();
        while !world.seen.contains_key("an ack was kept")
            && !world.seen.contains_key("a token was stale")
        {
            world.let_ours_act(0, Action::Ack).unwrap();
        }
        world.sync().unwrap();
        refused += world.seen.get("a token was stale").copied().unwrap_or_default();
    }
    assert!((1..20).contains(&refused), "{refused} of 20");
}
