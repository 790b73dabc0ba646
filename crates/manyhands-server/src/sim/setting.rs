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
    pub(super) dead: QueueOptions,
    /// Whether the server keeps its queues on a disk.
    pub(super) has_disk: bool,
    /// From this size on records go to the next frame, in bytes.
    pub(super) frame_bytes_max: usize,
    /// Records of a checkpoint are written in pieces of this size, in bytes.
    pub(super) checkpoint_chunk_bytes: usize,
    pub(super) segment_bytes: u32,
    pub(super) steps: usize,
    /// How many clients are of our own, in percent.
    pub(super) ours_percent: usize,
    /// Whether everything turns around tasks that are leased by token.
    pub(super) is_busy: bool,
    /// Whether it goes on for long without a crash.
    pub(super) is_calm: bool,
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
    /// What clients of our own do.
    PutMany,
    Lease,
    TakeMany,
    Ack,
    Nack,
    Extend,
    SettleMany,
    Credit,
    EndCredit,
    Redrive,
    Purge,
    GiveUp,
    Exit,
    Kill,
    KillUnread,
    Reconnect,
    Pass,
    /// The disk is given something to do.
    Write,
    Sync,
    /// A checkpoint begins to be written, or goes on.
    Checkpoint,
    /// From now on there is no room for puts, or there is again.
    Fill,
    /// The server is killed, or the power fails.
    Crash,
}

/// Each action, how likely it is, and whether it needs a disk.
const ACTIONS: [(Action, usize, bool); 30] = [
    (Action::Connect, 8, false),
    (Action::PutTask, 16, false),
    (Action::PutResult, 16, false),
    (Action::GetTask, 20, false),
    (Action::GetResult, 6, false),
    (Action::GetDead, 2, false),
    (Action::TaskDone, 4, false),
    (Action::Join, 3, false),
    (Action::PutMany, 8, false),
    (Action::Lease, 18, false),
    (Action::TakeMany, 4, false),
    (Action::Ack, 22, false),
    (Action::Nack, 5, false),
    (Action::Extend, 4, false),
    (Action::SettleMany, 12, false),
    (Action::Credit, 10, false),
    (Action::EndCredit, 3, false),
    (Action::Redrive, 4, false),
    (Action::Purge, 2, false),
    (Action::GiveUp, 3, false),
    (Action::Exit, 3, false),
    (Action::Kill, 3, false),
    (Action::KillUnread, 2, false),
    (Action::Reconnect, 2, false),
    (Action::Pass, 14, false),
    (Action::Write, 40, true),
    (Action::Sync, 8, true),
    (Action::Checkpoint, 16, true),
    (Action::Fill, 2, true),
    (Action::Crash, 2, true),
];

/// The same where everything turns around tasks that are leased by token.
const BUSY: [(Action, usize, bool); 23] = [
    (Action::Connect, 3, false),
    (Action::PutTask, 4, false),
    (Action::PutMany, 8, false),
    (Action::Lease, 20, false),
    (Action::TakeMany, 1, false),
    (Action::Ack, 24, false),
    (Action::Nack, 8, false),
    (Action::Extend, 6, false),
    (Action::SettleMany, 16, false),
    (Action::Credit, 10, false),
    (Action::EndCredit, 3, false),
    (Action::Redrive, 6, false),
    (Action::Purge, 3, false),
    (Action::GetResult, 2, false),
    (Action::Exit, 1, false),
    (Action::Kill, 2, false),
    (Action::KillUnread, 2, false),
    (Action::Pass, 10, false),
    (Action::Write, 30, true),
    (Action::Sync, 12, true),
    (Action::Checkpoint, 16, true),
    (Action::Fill, 2, true),
    (Action::Crash, 4, true),
];

/// Actions of our own clients alone.
const OURS: [Action; 11] = [
    Action::PutMany,
    Action::Lease,
    Action::TakeMany,
    Action::Ack,
    Action::Nack,
    Action::Extend,
    Action::SettleMany,
    Action::Credit,
    Action::EndCredit,
    Action::Redrive,
    Action::Purge,
];

impl Setting {
    pub(super) fn draw(random: &mut Random) -> Self {
        let has_disk = random.percent(50);
        let seconds = Duration::from_secs;
        // What is on a disk is as exact as a millisecond, which a random pause is not.
        let plain = QueueOptions::default().backoff(Duration::ZERO);
        let mut dead = plain.clone().attempts(0);
        let (mut tasks, mut results) = (plain.clone(), plain);
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
        dead.expires = tasks.expires;
        tasks.dedup = seconds(10);
        if !has_disk {
            tasks.backoff = [seconds(0), seconds(0), seconds(2)][random.below(3)];
            if random.percent(10) {
                tasks.delivery = Delivery::Cpython;
            }
        }
        let ours_percent = [0, 60, 60, 100][random.below(4)];
        let is_busy = ours_percent == 100 || random.percent(20);
        let ours_percent = if is_busy { 100 } else { ours_percent };
        if is_busy {
            tasks.results = random.percent(80).then(|| NAMES[RESULTS].into());
            results.ordered = tasks.results.is_some() && random.percent(40);
            results.maxsize = [0, 1, 1, 2][random.below(4)];
        }
        let actions = if is_busy { &BUSY[..] } else { &ACTIONS[..] };
        let odds = actions.iter().filter(|(.., needs_disk)| has_disk || !needs_disk);
        let odds = odds.filter(|(action, ..)| ours_percent > 0 || !OURS.contains(action));
        // Each seed has its own weather: some things never happen in it, some often.
        let weather = [usize::from(is_busy), 1, 1, 1, 4];
        let odds = odds.map(|(action, odds, _)| (*action, odds * weather[random.below(5)]));
        let mut odds: Vec<_> = odds.collect();
        let frame_bytes_max = [64, 4096][random.below(2)];
        let checkpoint_chunk_bytes = [32, 256, 4096][random.below(3)];
        let segment_bytes = [8 << 10, 8 << 10, 16 << 10][random.below(3)];
        let mut steps = 20 + random.below(100);
        let is_long = has_disk && random.percent(20);
        let is_calm = is_long && random.percent(40);
        if is_long {
            // Long enough for segments to be let go.
            steps += 300;
        }
        if is_calm {
            // And for what holds them to be copied forward.
            for (action, odds) in &mut odds {
                match action {
                    Action::Crash => *odds = 1,
                    Action::Checkpoint => *odds *= 2,
                    _ => {}
                }
            }
        }
        Self {
            tasks,
            results,
            dead,
            has_disk,
            frame_bytes_max,
            checkpoint_chunk_bytes,
            segment_bytes,
            steps,
            ours_percent,
            is_busy,
            is_calm,
            odds,
        }
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
        let options = [self.tasks.clone(), self.results.clone(), self.dead.clone()];
        NAMES.into_iter().map(str::to_owned).zip(options).collect()
    }
}
