//! Who is connected, and who of them has not yet shown a credential (B8).
//!
//! Strangers share a fixed number of places. When they are all taken, a newcomer gets the place of a stranger who is
//! past half of its time or whose source holds more than its fair share; if a few looks find none such, the newcomer
//! is turned away.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use transport_ws::Accepted;

use super::link::{Link, Order};

/// How many strangers are looked at when a place is wanted: enough to find one past its half time in any crowd worth
/// the name, few enough to cost nothing.
const LOOKS: usize = 32;

#[derive(Debug)]
struct Stranger {
    link: Arc<Link>,
    since: Instant,
}

#[derive(Debug, Default)]
struct Lists {
    all: Vec<Arc<Link>>,
    strangers: Vec<Stranger>,
    per_source: HashMap<IpAddr, usize>,
    seed: u64,
}

/// The connections of a server.
#[derive(Debug)]
pub(super) struct Door {
    lists: Mutex<Lists>,
    empty: Notify,
    strangers: usize,
    half_time: Duration,
}

/// A connection's entry in the lists; dropping it strikes it off.
#[derive(Debug)]
pub(super) struct Place {
    door: Arc<Door>,
    pub(super) link: Arc<Link>,
    /// What becomes of the connection once the answer that is being written is.
    upgrade: Mutex<Option<Box<Accepted>>>,
    /// One of the connections that the process has descriptors for (B10).
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl Door {
    /// A door with places for `strangers`, each of whom has `time` to show who it is.
    pub(super) fn new(strangers: usize, time: Duration) -> Self {
        let mut seed = [0u8; 8];
        relay_core::random::fill(&mut seed);
        let lists = Lists { seed: u64::from_le_bytes(seed) | 1, ..Lists::default() };
        Self {
            lists: Mutex::new(lists),
            empty: Notify::new(),
            strangers: strangers.max(1),
            half_time: time / 2,
        }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        // Nothing panics while it is held; if ever, the lists are still whole.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a connection from `peer`, if need be by sending a stranger away. `None`: there is no place.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<Place> {
        let source = source(peer);
        let mut lists = self.lists();
        if lists.strangers.len() >= self.strangers {
            let victim = lists.victim(source, now, self.half_time, self.strangers)?;
            let link = lists.strike_stranger(victim);
            link.give(Order::Shed);
        }
        let link = Arc::new(Link::new(peer));
        link.place.store(lists.all.len(), Relaxed);
        lists.all.push(link.clone());
        link.door_place.store(lists.strangers.len(), Relaxed);
        lists.strangers.push(Stranger { link: link.clone(), since: now });
        *lists.per_source.entry(source).or_default() += 1;
        Some(Place { door: self.clone(), link, upgrade: Mutex::new(None), permit: None })
    }

    /// Tells every connection to finish, or to go at once.
    pub(super) fn order_all(&self, order: Order) {
        // Woken outside the lock: a waker may run anything.
        let all = self.lists().all.clone();
        for link in all {
            link.give(order);
        }
    }

    /// Waits until nobody is connected.
    pub(super) async fn emptied(&self) {
        loop {
            let notified = self.empty.notified();
            if self.lists().all.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// How many are connected, and how many of them are strangers.
    pub(super) fn counts(&self) -> (usize, usize) {
        let lists = self.lists();
        (lists.all.len(), lists.strangers.len())
    }
}

impl Place {
    /// Once the answer that is being written is, the connection leaves HTTP.
    pub(super) fn upgrade(&self, accepted: Accepted) {
        *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(accepted));
    }

    /// What the connection leaves HTTP for, if it does.
    pub(super) fn take_upgrade(&self) -> Option<Box<Accepted>> {
        self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Somebody who may was seen on this connection: it is no stranger any more.
    pub(super) fn trust(&self) {
        if self.link.trust() {
            let mut lists = self.door.lists();
            let place = self.link.door_place.load(Relaxed);
            if place != usize::MAX {
                lists.strike_stranger(place);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lists = self.door.lists();
        let place = self.link.door_place.load(Relaxed);
        if place != usize::MAX {
            lists.strike_stranger(place);
        }
        let place = self.link.place.load(Relaxed);
        lists.all.swap_remove(place);
        if let Some(moved) = lists.all.get(place) {
            moved.place.store(place, Relaxed);
        }
        if lists.all.is_empty() {
            // Give back what a crowd needed.
            lists.all.shrink_to(64);
            lists.strangers.shrink_to(64);
            lists.per_source.shrink_to(64);
            self.door.empty.notify_waiters();
        }
    }
}

impl Lists {
    fn strike_stranger(&mut self, place: usize) -> Arc<Link> {
        let Stranger { link, .. } = self.strangers.swap_remove(place);
        link.door_place.store(usize::MAX, Relaxed);
        if let Some(moved) = self.strangers.get(place) {
            moved.link.door_place.store(place, Relaxed);
        }
        if let Entry::Occupied(mut count) = self.per_source.entry(source(link.peer)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        link
    }

    fn victim(
        &mut self,
        newcomer: IpAddr,
        now: Instant,
        half_time: Duration,
        places: usize,
    ) -> Option<usize> {
        let held = |lists: &Self, ip: IpAddr| lists.per_source.get(&ip).copied().unwrap_or(0);
        let newcomers = held(self, newcomer);
        let sources = self.per_source.len() + usize::from(newcomers == 0);
        let fair = places / sources.max(1);
        let mut best: Option<(usize, usize)> = None;
        for _ in 0..LOOKS {
            let place = self.random(self.strangers.len());
            let stranger = self.strangers.get(place)?;
            let held = held(self, source(stranger.link.peer));
            let late = now.saturating_duration_since(stranger.since) >= half_time;
            let greedy = held > fair && newcomers < fair;
            if (late || greedy) && best.is_none_or(|(_, most)| held > most) {
                best = Some((place, held));
            }
        }
        best.map(|(place, _)| place)
    }

    fn random(&mut self, below: usize) -> usize {
        // xorshift64: only has to be hard to line up with, not secret.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % below.max(1) as u64) as usize
    }
}

/// What counts as one source: an IPv4 address, or the /64 that an IPv6 address is in, since one host has all of it.
pub(super) fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn b8_a_stranger_past_half_its_time_makes_room() {
        let door = Arc::new(Door::new(2, Duration::from_secs(10)));
        let start = now();
        let first = door.enter(ip(1), start).unwrap();
        let second = door.enter(ip(2), start + Duration::from_secs(4)).unwrap();
        assert!(door.enter(ip(3), start + Duration::from_secs(4)).is_none(), "nobody is past half its time");
        let third = door.enter(ip(3), start + Duration::from_secs(6)).unwrap();
        assert_eq!(first.link.order(), Order::Shed);
        assert_eq!(second.link.order(), Order::None);
        assert_eq!(door.counts(), (3, 2));
        drop((first, second, third));
        assert_eq!(door.counts(), (0, 0));
    }

    #[test]
    fn b8_a_source_over_its_fair_share_makes_room_at_once() {
        let door = Arc::new(Door::new(10, Duration::from_secs(10)));
        let start = now();
        let crowd: Vec<_> = (0..10).map(|_| door.enter(ip(1), start).unwrap()).collect();
        let other = door.enter(ip(2), start).expect("a second source gets its share");
        assert_eq!(crowd.iter().filter(|place| place.link.order() == Order::Shed).count(), 1);
        assert!(door.enter(ip(1), start).is_none(), "the crowd itself gets none");
        drop(other);
    }

    #[test]
    fn b8_who_is_trusted_takes_no_strangers_place() {
        let door = Arc::new(Door::new(1, Duration::from_secs(10)));
        let first = door.enter(ip(1), now()).unwrap();
        first.trust();
        let second = door.enter(ip(1), now());
        assert!(second.is_some());
        assert_eq!(first.link.order(), Order::None);
    }

    #[test]
    fn one_v6_host_is_one_source() {
        let a = source("2001:db8::1".parse().unwrap());
        assert_eq!(a, source("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(a, source("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(source("::ffff:10.0.0.1".parse().unwrap()), ip(1));
    }
}
