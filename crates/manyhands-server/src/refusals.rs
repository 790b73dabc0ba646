//! What the log says of connections that are refused: enough to see what happens, however many come.
//!
//! Strangers decide how often they are refused. In each window of time, a few failed logins of each
//! address are lines of their own; the rest is counted, and told when the window is over.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::Notify;

use crate::slots::Origin;

/// How long a window is.
const WINDOW: Duration = Duration::from_secs(10);
/// Lines for the failed logins of one address in a window.
const LINES_MAX: u64 = 3;
/// Addresses that are told apart in a window.
const ORIGINS_MAX: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Refusals {
    state: Mutex<State>,
    /// A window has begun.
    begun: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Failed logins in this window.
    failed: HashMap<Origin, u64>,
    /// Failed logins of addresses that are not among those.
    others: u64,
    /// Newcomers that found no place in this window.
    turned_away: u64,
    /// The same since the log said so.
    turned_away_in_all: u64,
}

impl Refusals {
    /// Logs a login that failed.
    pub(crate) fn login_failed(&self, origin: Origin, peer: &str, error: impl Display) {
        if self.count(origin) <= LINES_MAX {
            tracing::warn!(peer, "handshake failed: {error}");
        }
    }

    /// Counts a failed login; how many of this address there are now.
    fn count(&self, origin: Origin) -> u64 {
        self.begun.notify_one();
        let mut state = self.lock();
        let is_known = state.failed.contains_key(&origin);
        if !is_known && state.failed.len() >= ORIGINS_MAX {
            state.others += 1;
            return u64::MAX;
        }
        let count = state.failed.entry(origin).or_default();
        *count += 1;
        *count
    }

    /// Counts a newcomer that found no place, where there are so many.
    pub(crate) fn turned_away(&self, connections_max: usize) {
        self.begun.notify_one();
        let mut state = self.lock();
        let is_news = state.turned_away_in_all == 0;
        state.turned_away += 1;
        state.turned_away_in_all += 1;
        drop(state);
        if is_news {
            tracing::warn!(
                connections_max,
                "all connections are in use by clients; newcomers are turned away"
            );
        }
    }

    /// Tells at the end of each window what has been left out in it.
    pub(crate) async fn keep_telling(&self) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(WINDOW).await;
            self.tell();
        }
    }

    /// Ends a window.
    pub(crate) fn tell(&self) {
        let (failed, others) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.failed), std::mem::take(&mut state.others))
        };
        for (origin, count) in failed.into_iter().filter(|(_, count)| *count > LINES_MAX) {
            tracing::warn!(peer = %origin, more = count - LINES_MAX, "more handshakes failed");
        }
        if others > 0 {
            tracing::warn!(peer = "others", more = others, "more handshakes failed");
        }
        self.tell_of_turned_away();
    }

    /// Says once that newcomers find a place again, when none was turned away for a window.
    fn tell_of_turned_away(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.turned_away) > 0 {
            self.begun.notify_one();
            return;
        }
        let count = std::mem::take(&mut state.turned_away_in_all);
        drop(state);
        if count > 0 {
            tracing::info!(turned_away = count, "newcomers find a place again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn origin(number: u32) -> Origin {
        IpAddr::from(number.to_be_bytes()).into()
    }

    #[test]
    fn an_address_is_counted_apart_while_there_are_few() {
        let refusals = Refusals::default();
        let counts: Vec<_> = (0..5).map(|_| refusals.count(origin(1))).collect();
        assert_eq!(counts, [1, 2, 3, 4, 5]);
        for number in 0..1_000_000 {
            refusals.count(origin(number));
        }
        assert_eq!(refusals.lock().failed.len(), ORIGINS_MAX);
        assert_eq!(refusals.lock().others, 1_000_000 - ORIGINS_MAX as u64);
        refusals.tell();
        assert_eq!(refusals.count(origin(1_000_000)), 1, "another window has begun");
    }

    #[test]
    fn a_full_house_is_news_again_when_it_was_not_full_for_a_window() {
        let refusals = Refusals::default();
        let is_told = || refusals.lock().turned_away_in_all > 0;
        refusals.turned_away(7);
        refusals.tell();
        assert!(is_told(), "somebody was turned away in this window");
        refusals.tell();
        assert!(!is_told());
    }
}
