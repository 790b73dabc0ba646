//! What clients are told of queues.

use manyhands::wire::reply::QueueInfo;

use crate::engine::QueueStats;

/// What is told of one.
pub(super) fn info(stats: QueueStats) -> QueueInfo {
    QueueInfo {
        name: stats.name.to_string(),
        order: stats.order.to_string(),
        maxsize: stats.maxsize as u64,
        qsize: stats.ready as u64,
        unfinished: stats.unfinished,
        leased: stats.leased as u64,
        delayed: stats.delayed as u64,
        dead: stats.tally.dead,
        declared: stats.stays,
        is_joined: stats.is_joined,
        oldest: stats.oldest.map(|age| age.as_secs_f64()),
        waiting_get: stats.waiting_getters as u64,
        waiting_put: stats.waiting_putters as u64,
        waiting_join: stats.waiting_joiners as u64,
        references: stats.references as u64,
        put: stats.tally.put,
        taken: stats.tally.taken,
        done: stats.tally.done,
        bytes: stats.bytes,
    }
}
