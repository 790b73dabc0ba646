//! What can be configured: every bound with its unit, default and reason.

use std::time::Duration;

/// Bounds on everything that a client could make grow.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Largest request, in bytes: 64 MiB, and no more than an eighth of `memory_bytes_max`. A larger
    /// one is passed over and answered with a `ValueError`; the session goes on.
    pub frame_bytes_max: u64,
    /// Largest control request, in bytes: 64 KiB, as they hold names only.
    pub control_bytes_max: u64,
    /// Connections at one time: 20,000, and no more than half of `memory_bytes_max` allows at 8 KiB
    /// each. Above, newcomers are turned away: their connections close.
    pub connections_max: usize,
    /// Queues: 10,000, because every name that a client asks for may become one, and no more than
    /// an eighth of `memory_bytes_max` allows at 2 KiB each.
    pub queues_max: usize,
    /// References to queues that clients hold: 1,000,000, and no more than an eighth of
    /// `memory_bytes_max` allows at 256 bytes each. Above, `create` fails.
    pub references_max: usize,
    /// How long a name stays that was not declared, whose queue is empty and to which nobody refers,
    /// and a reference that no session uses: an hour. Zero is for ever.
    pub unused_timeout: Duration,
    /// Bytes of all that is held for clients: half of the machine's memory, 4 GiB where that is not
    /// known. Tasks with their keys, delays and leases take up to 13/16 of it, less what sessions,
    /// references, queues and calls that wait take; above, a `put` waits or raises `Full`, as on a
    /// bounded queue. An eighth is for requests and replies on their way.
    pub memory_bytes_max: u64,
    /// Size of a file of the journal, in bytes: 64 MiB, and at least a little more than the largest
    /// request. Four of them are written between two checkpoints; two are kept ahead.
    pub segment_bytes: u64,
    /// From the connection to the end of the first request: 10 s.
    pub handshake_timeout: Duration,
    /// From the first byte of a request to its last, and for taking a reply: 60 s, and one more for
    /// every MiB. Between requests a session may be silent for ever.
    pub frame_timeout: Duration,
    /// How long a session that holds nothing may be silent, before it is closed: for ever if `None`,
    /// as by default. One with a task in hand, a lease, or a call that waits is never closed. An
    /// unmodified client whose session was closed fails with `EOFError` at its next call.
    pub idle_timeout: Option<Duration>,
}

/// What each session may hold without being asked, and what one costs that is idle, in bytes: the
/// state of its connection, and requests and replies of up to [`SMALL_BYTES`].
const SESSION_BYTES: u64 = 8 << 10;
/// Requests and replies up to this many bytes need no room of their own: asking for it would cost
/// more than a small call does.
pub(crate) const SMALL_BYTES: u64 = 4 << 10;
/// What a reference of a client takes, in bytes, and the list of sessions that use it.
pub(crate) const REFERENCE_BYTES: u64 = 256;
/// What an empty queue takes, in bytes, with its name and options.
const QUEUE_BYTES: u64 = 2 << 10;
/// Bytes for sessions, references, queues and calls that wait that are not taken from the tasks, and
/// the least that moves at a time: however small the bound, a few clients can work.
pub(crate) const MEMORY_FREE_BYTES: u64 = 1 << 20;
/// How long a request or a reply may stand still while others wait for its memory: 2 s, in which a
/// packet that was lost has been sent again, even on a bad line.
pub(crate) const STALL: Duration = Duration::from_secs(2);
/// What moves less than this in [`STALL`] stands still, in bytes: nobody keeps others waiting by
/// trickling.
pub(crate) const STALL_BYTES: u64 = 64 << 10;
/// A batch that is handed out, or moved, ends once it has this many bytes, and at a 64th of the
/// memory, so that several fit at a time: 8 MiB.
const BATCH_BYTES_MAX: u64 = 8 << 20;

impl Limits {
    /// The same limits, each no larger than the memory allows.
    pub(crate) fn within_memory(mut self) -> Self {
        let fits = |share: u64, each: u64| {
            let share = (self.memory_bytes_max / share).max(MEMORY_FREE_BYTES);
            usize::try_from(share / each).unwrap_or(usize::MAX)
        };
        self.connections_max = self.connections_max.min(fits(2, SESSION_BYTES));
        self.references_max = self.references_max.min(fits(8, REFERENCE_BYTES));
        self.queues_max = self.queues_max.min(fits(8, QUEUE_BYTES));
        self.frame_bytes_max = self.frame_bytes_max.min(self.moving_bytes_max());
        self
    }

    /// Bytes of requests and replies on their way at one time, beside one that is larger.
    pub(crate) fn moving_bytes_max(&self) -> u64 {
        (self.memory_bytes_max / 8).max(MEMORY_FREE_BYTES)
    }

    /// Bytes of items after which a batch ends.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        let bytes = (self.memory_bytes_max / 64).clamp(64 << 10, BATCH_BYTES_MAX);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

/// What so many of them take, in bytes.
pub(crate) fn standing_bytes(sessions: usize, queues: usize) -> u64 {
    sessions as u64 * SESSION_BYTES + queues as u64 * QUEUE_BYTES
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 64 << 20,
            control_bytes_max: 64 << 10,
            connections_max: 20_000,
            queues_max: 10_000,
            references_max: 1_000_000,
            unused_timeout: Duration::from_secs(3600),
            memory_bytes_max: machine_memory_bytes().map_or(4 << 30, |bytes| bytes / 2),
            segment_bytes: 64 << 20,
            handshake_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(60),
            idle_timeout: None,
        }
    }
}

/// Linux: `MemTotal` of `/proc/meminfo`.
fn machine_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What a server allows, beside its [`Limits`].
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Answers of Python 3.11 and earlier are HMAC-MD5.
    pub(crate) accept_md5: bool,
    /// Whether a client's `shutdown` stops the server.
    pub(crate) accept_shutdown: bool,
    /// Whether a name becomes a queue when it is first used.
    pub(crate) create_on_use: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_the_machine_is_known_on_linux() {
        let known = machine_memory_bytes();
        assert_eq!(known.is_some(), cfg!(target_os = "linux"));
        assert!(known.is_none_or(|bytes| bytes > 64 << 20));
    }
}
