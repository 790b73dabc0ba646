//! Connections that have not authenticated themselves yet.
//!
//! Anybody who reaches the port can open one, so there are few places, and the newest comer takes
//! that of the oldest: who knows the key needs it for a moment only.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// The places.
#[derive(Debug, Clone)]
pub(crate) struct Lobby {
    guests: Arc<Mutex<VecDeque<(u64, CancellationToken)>>>,
    places: usize,
}

/// A place in the lobby, until it is dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    lobby: Lobby,
    number: u64,
    evicted: CancellationToken,
}

impl Lobby {
    pub(crate) fn new(places: usize) -> Self {
        Self { guests: Arc::default(), places }
    }

    /// Takes a place, if need be that of the guest who has been here longest.
    pub(crate) fn enter(&self) -> Guest {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        while guests.len() >= self.places {
            let Some((_, evicted)) = guests.pop_front() else { break };
            evicted.cancel();
        }
        let number = guests.back().map_or(0, |(last, _)| last + 1);
        let evicted = CancellationToken::new();
        guests.push_back((number, evicted.clone()));
        Guest { lobby: self.clone(), number, evicted }
    }
}

impl Guest {
    /// Completes when somebody else has taken the place.
    pub(crate) async fn is_evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = self.lobby.guests.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers rise from front to back. An evicted guest's may have been given away again.
        if !self.evicted.is_cancelled()
            && let Ok(at) = guests.binary_search_by_key(&self.number, |(number, _)| *number)
        {
            guests.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_takes_the_place_of_the_oldest() {
        let lobby = Lobby::new(2);
        let (first, second) = (lobby.enter(), lobby.enter());
        let third = lobby.enter();
        let evicted = [&first, &second, &third].map(|guest| guest.evicted.is_cancelled());
        assert_eq!(evicted, [true, false, false]);
        drop((first, second));
        let fourth = lobby.enter();
        let evicted = [&third, &fourth].map(|guest| guest.evicted.is_cancelled());
        assert_eq!(evicted, [false, false], "who left has made room");
    }
}
