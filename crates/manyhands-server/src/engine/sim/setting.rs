//! What a seed decides before anything happens.

use std::time::Duration;

use super::world::{DEAD, NAMES, RESULTS};
use crate::journal::tests::random::Random;
use crate::queue::{Delivery, QueueOptions};

/// The rules of a world, and its weather.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) tasks: QueueOptions,
    pub(super) results: QueueOptions,
    /// Whether the server keeps its queues on a disk.
    pub(super) has_disk: bool,
    /// From this size on records go to the next frame, in bytes.
    pub(super) frame_bytes_max: usize,
    pub(super) steps: usize,
    /// Odds of each action, against each other.
    odds: Vec<(Action, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Connect,
    PutTask,
    PutResult,
    GetTask,
    GetResult,
    GetDead,
    TaskDone,
    Join,
    GiveUp,
    Exit,
    Kill,
    KillUnread,
    Reconnect,
    Pass,
    /// The disk is given something to do.
    Write,
    Sync,
    Checkpoint,
    /// The server is killed, or the power fails.
    Crash,
}

/// Each action, how likely it is, and whether it needs a disk.
const ACTIONS: [(Action, usize, bool); 18] = [
    (Action::Connect, 8, false),
    (Action::PutTask, 16, false),
    (Action::PutResult, 16, false),
    (Action::GetTask, 20, false),
    (Action::GetResult, 6, false),
    (Action::GetDead, 2, false),
    (Action::TaskDone, 4, false),
    (Action::Join, 3, false),
    (Action::GiveUp, 3, false),
    (Action::Exit, 3, false),
    (Action::Kill, 3, false),
    (Action::KillUnread, 2, false),
    (Action::Reconnect, 2, false),
    (Action::Pass, 14, false),
    (Action::Write, 40, true),
    (Action::Sync, 8, true),
    (Action::Checkpoint, 4, true),
    (Action::Crash, 2, true),
];

impl Setting {
    pub(super) fn draw(random: &mut Random) -> Self {
        let has_disk = random.percent(50);
        let seconds = Duration::from_secs;
        let mut tasks = QueueOptions::default();
        let mut results = QueueOptions::default();
        if random.percent(60) {
            tasks.results = Some(NAMES[RESULTS].into());
            results.ordered = random.percent(30);
        }
        tasks.dead = Some(NAMES[DEAD].into());
        tasks.attempts = [1, 2, 3, 10, 0][random.below(5)];
        tasks.maxsize = [0, 0, 1, 3][random.below(4)];
        results.maxsize = [0, 0, 0, 2][random.below(4)];
        results.attempts = 0;
        tasks.max_run = [None, Some(seconds(4))][random.below(2)];
        tasks.expires = [None, None, None, Some(seconds(20))][random.below(4)];
        tasks.dedup = seconds(10);
        if !has_disk {
            // What is on a disk is as exact as a millisecond, which a random pause is not.
            tasks.backoff = [seconds(0), seconds(0), seconds(2)][random.below(3)];
            if random.percent(10) {
                tasks.delivery = Delivery::Cpython;
            }
        }
        // Each seed has its own weather: some things never happen in it, some often.
        let weather = [0, 1, 1, 1, 4];
        let odds = ACTIONS.iter().filter(|(.., needs_disk)| has_disk || !needs_disk);
        let odds = odds.map(|(action, odds, _)| (*action, odds * weather[random.below(5)]));
        let odds = odds.collect();
        let frame_bytes_max = [64, 4096][random.below(2)];
        let steps = 20 + random.below(100);
        Self { tasks, results, has_disk, frame_bytes_max, steps, odds }
    }

    pub(super) fn action(&self, random: &mut Random) -> Action {
        let whole: usize = self.odds.iter().map(|(_, odds)| odds).sum();
        let mut at = random.below(whole.max(1));
        for (action, odds) in &self.odds {
            if at < *odds {
                return *action;
            }
            at -= odds;
        }
        Action::Pass
    }

    pub(super) fn happens(&self, action: Action) -> bool {
        self.odds.iter().any(|(other, odds)| *other == action && *odds > 0)
    }

    /// The queues by name.
    pub(super) fn declared(&self) -> Vec<(String, QueueOptions)> {
        let dead = QueueOptions::default().attempts(0);
        let options = [self.tasks.clone(), self.results.clone(), dead];
        NAMES.into_iter().map(str::to_owned).zip(options).collect()
    }
}
