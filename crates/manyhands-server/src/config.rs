//! What can be configured: every bound with its unit, default and reason.

use std::time::Duration;

/// Bounds on everything that a client could make grow.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Largest request, in bytes: 64 MiB. A larger one is passed over and answered with a
    /// `ValueError`; the session goes on.
    pub frame_bytes_max: u64,
    /// Largest control request, in bytes: 64 KiB, as they hold names only.
    pub control_bytes_max: u64,
    /// Connections at one time: 20,000. Above, newcomers are turned away: their connections close.
    pub connections_max: usize,
    /// Queues: 10,000, because every name that a client asks for may become one.
    pub queues_max: usize,
    /// References to queues that clients hold: 1,000,000. Above, `create` fails.
    pub references_max: usize,
    /// How long a name stays that was not declared, whose queue is empty and to which nobody refers,
    /// and a reference that no session uses: an hour. Zero is for ever.
    pub unused_timeout: Duration,
    /// Bytes of items in all queues: half of the machine's memory, 4 GiB where that is not known.
    /// Above, a `put` waits or raises `Full`, as on a bounded queue.
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
