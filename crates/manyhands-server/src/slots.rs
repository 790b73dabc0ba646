//! Who may be connected: a place for each connection, and fewer for those that have not proved yet
//! that they know the key.
//!
//! Anybody who reaches the port can open a connection, so a newcomer takes the slot of another
//! stranger when there is none left: the one that has been here longest of the address that has
//! most. A flood from one address pushes out its own connections only. Clients that share that
//! address have as long as it takes to fill all slots anew; their first message proves that they
//! know the key, and nobody can take their place any more. Were it the newest that has to go, a
//! flood that goes on would take the place of each of them at once.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use tokio_util::sync::CancellationToken;

/// Where a connection comes from, as far as strangers cannot choose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// The host, or a network of IPv6 (/64), whose owner has all of its addresses.
    Host(IpAddr),
    /// A process of this machine, on a Unix socket.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there are no Unix sockets"))]
    Local,
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self::Host(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & (u128::MAX << 64);
                Ipv6Addr::from_bits(network).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(IpAddr::V6(network)) => write!(f, "{network}/64"),
            Self::Host(address) => write!(f, "{address}"),
            Self::Local => f.write_str("a local process"),
        }
    }
}

/// The places. A connection has a [`Slot`] before its login, and is a [`Member`] after it.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    places: Arc<Mutex<Places>>,
    newcomers_max: usize,
    connections_max: usize,
}

#[derive(Debug, Default)]
struct Places {
    /// Oldest first; numbers rise.
    newcomers: HashMap<Origin, VecDeque<(u64, CancellationToken)>>,
    newcomers_len: usize,
    members_len: usize,
    next: u64,
}

/// A place of somebody unknown, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    origin: Origin,
    number: u64,
    evicted: CancellationToken,
}

/// A place of somebody who knows the key, until it is dropped.
#[derive(Debug)]
pub(crate) struct Member(Arc<Mutex<Places>>);

impl Slots {
    pub(crate) fn new(newcomers_max: usize, connections_max: usize) -> Self {
        Self { places: Arc::default(), newcomers_max, connections_max }
    }

    /// Takes a place, if need be that of another stranger; `None` if members have all places.
    pub(crate) fn enter(&self, origin: Origin) -> Option<Slot> {
        let mut places = self.lock();
        let is_full = places.newcomers_len >= self.newcomers_max
            || places.newcomers_len + places.members_len >= self.connections_max;
        if is_full {
            places.evict()?;
        }
        let (number, evicted) = (places.next, CancellationToken::new());
        places.next += 1;
        places.newcomers_len += 1;
        places.newcomers.entry(origin).or_default().push_back((number, evicted.clone()));
        drop(places);
        Some(Slot { slots: self.clone(), origin, number, evicted })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        lock(&self.places)
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// Frees the place of the oldest stranger of the address that has most, if there is any stranger.
    fn evict(&mut self) -> Option<()> {
        let oldest = |newcomers: &VecDeque<(u64, _)>| newcomers.front().map(|(number, _)| *number);
        let busiest = self.newcomers.iter().max_by_key(|(_, of)| (of.len(), Reverse(oldest(of))));
        let (&origin, of) = busiest?;
        let number = oldest(of)?;
        self.take(origin, number)?.cancel();
        Some(())
    }

    /// Takes a stranger out, if it is still there.
    fn take(&mut self, origin: Origin, number: u64) -> Option<CancellationToken> {
        let newcomers = self.newcomers.get_mut(&origin)?;
        let at = newcomers.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        let (_, evicted) = newcomers.remove(at)?;
        if newcomers.is_empty() {
            self.newcomers.remove(&origin);
        }
        self.newcomers_len -= 1;
        Some(evicted)
    }
}

impl Slot {
    /// Completes when somebody else has taken the place.
    pub(crate) async fn is_evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// The place of a stranger that has proved to know the key; nobody else can take it. One that was
    /// evicted at this moment may stay.
    pub(crate) fn admit(self) -> Member {
        self.slots.lock().members_len += 1;
        Member(self.slots.places.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // It is no longer there if it was evicted.
        drop(self.slots.lock().take(self.origin, self.number));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        lock(&self.0).members_len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(host: u8) -> Origin {
        IpAddr::from([127, 0, 0, host]).into()
    }

    fn is_out(stranger: &Slot) -> bool {
        stranger.evicted.is_cancelled()
    }

    #[test]
    fn the_oldest_of_the_busiest_address_makes_way() {
        let slots = Slots::new(3, 10);
        let honest = slots.enter(from(2)).unwrap();
        let flood: Vec<_> = (0..5).map(|_| slots.enter(from(1)).unwrap()).collect();
        let out: Vec<_> = flood.iter().map(is_out).collect();
        assert_eq!(out, [true, true, true, false, false]);
        assert!(!is_out(&honest));
        drop(flood);
        let others = [1, 1].map(|host| slots.enter(from(host)).unwrap());
        assert!(!others.iter().any(is_out), "who left has made room");
    }

    #[test]
    fn of_many_addresses_with_one_each_the_oldest_makes_way() {
        let slots = Slots::new(2, 10);
        let newcomers = [1, 2, 3].map(|host| slots.enter(from(host)).unwrap());
        assert_eq!(newcomers.each_ref().map(is_out), [true, false, false]);
    }

    #[test]
    fn who_knows_the_key_keeps_the_place_and_others_are_turned_away() {
        let slots = Slots::new(2, 2);
        let member = slots.enter(from(1)).unwrap().admit();
        let stranger = slots.enter(from(2)).unwrap();
        let newcomer = slots.enter(from(3)).unwrap();
        assert!(is_out(&stranger), "the place of a stranger can be had");
        let second = newcomer.admit();
        assert!(slots.enter(from(3)).is_none(), "members have all places");
        drop(member);
        assert!(slots.enter(from(3)).is_some());
        drop((stranger, second));
        let places = slots.lock();
        assert_eq!((places.newcomers_len, places.members_len, places.newcomers.len()), (0, 0, 0));
    }

    #[test]
    fn a_network_of_ipv6_is_one_origin_and_a_mapped_address_is_that_of_ipv4() {
        let of = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
        assert_eq!(of("2001:db8::1").to_string(), "2001:db8::/64");
    }
}
