//! Sessions that have not bound yet: bounded, and shared fairly between those they come from.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{sids::Key, source::source};

/// Of one source's sessions past half their time, one of the oldest so many goes.
const CANDIDATES: usize = 64;

/// Who is at the door.
#[derive(Debug)]
pub(super) struct Pending {
    max: usize,
    half_time: Duration,
    number: u64,
    /// Whose each session is, the oldest first.
    all: BTreeMap<u64, IpAddr>,
    sources: HashMap<IpAddr, BTreeMap<u64, Waiting>>,
    /// Sources by how many sessions they have here, to find the greediest.
    ranking: BTreeSet<(usize, IpAddr)>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    key: Key,
}

/// A session's place at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    source: IpAddr,
    number: u64,
}

/// Somebody was let in to wait.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) place: Place,
    /// Whose place it took.
    pub(super) evicted: Option<Key>,
}

impl Pending {
    pub(super) fn new(max: usize, authentication: Duration) -> Self {
        Self {
            max,
            half_time: authentication / 2,
            number: 0,
            all: BTreeMap::new(),
            sources: HashMap::new(),
            ranking: BTreeSet::new(),
        }
    }

    /// Lets `key` of `peer` wait. When there is no room, another has to go; `None` if there is none that may: nobody is
    /// let in then.
    pub(super) fn admit(&mut self, peer: IpAddr, key: Key, random: u64, now: Instant) -> Option<Admitted> {
        let source = source(peer);
        let mut evicted = None;
        if self.all.len() >= self.max {
            let place = self.victim(source, random, now)?;
            evicted = self.remove(place);
        }
        self.number += 1;
        let place = Place { source, number: self.number };
        let waiting = self.sources.entry(source).or_default();
        self.ranking.remove(&(waiting.len(), source));
        waiting.insert(place.number, Waiting { since: now, key });
        self.ranking.insert((waiting.len(), source));
        self.all.insert(place.number, source);
        Some(Admitted { place, evicted })
    }

    /// The session at `place` is through, or gone.
    pub(super) fn leave(&mut self, place: Place) {
        self.remove(place);
    }

    /// Who makes room: one of the greediest source's sessions that is past half its time, chosen by `random`; failing
    /// that its oldest one, if it holds more than its fair share and the newcomer's source does not hold its own; and if
    /// nobody holds too much, the oldest of all, if that one is past half its time.
    fn victim(&self, source: IpAddr, random: u64, now: Instant) -> Option<Place> {
        let (most, greediest) = *self.ranking.last()?;
        let own = self.sources.get(&source).map_or(0, BTreeMap::len);
        let sources = self.sources.len() + usize::from(own == 0);
        let fair = (self.max / sources).max(1);
        // A source pays for itself unless another has more.
        let payer = if own >= most { source } else { greediest };
        if let Some(place) = self.past_half_time(payer, random, now) {
            return Some(place);
        }
        if most > fair {
            // Else one that opens anew before half its time is over keeps all the others out for ever.
            let number = *self.sources.get(&payer)?.first_key_value()?.0;
            return (own < fair).then_some(Place { source: payer, number });
        }
        let (_, oldest) = self.all.first_key_value()?;
        self.past_half_time(*oldest, 0, now)
    }

    fn past_half_time(&self, source: IpAddr, random: u64, now: Instant) -> Option<Place> {
        let past = |waiting: &Waiting| now.saturating_duration_since(waiting.since) >= self.half_time;
        let waiting = self.sources.get(&source)?;
        let candidates: Vec<u64> = waiting
            .iter()
            .take(CANDIDATES)
            .take_while(|(_, waiting)| past(waiting))
            .map(|(number, _)| *number)
            .collect();
        let at = usize::try_from(random % u64::try_from(candidates.len()).ok().filter(|n| *n > 0)?).ok()?;
        Some(Place { source, number: candidates[at] })
    }

    fn remove(&mut self, place: Place) -> Option<Key> {
        let waiting = self.sources.get_mut(&place.source)?;
        let before = waiting.len();
        let removed = waiting.remove(&place.number)?;
        self.ranking.remove(&(before, place.source));
        if waiting.is_empty() {
            self.sources.remove(&place.source);
        } else {
            self.ranking.insert((before - 1, place.source));
        }
        self.all.remove(&place.number);
        Some(removed.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(15);

    fn key(number: u8) -> Key {
        [number; 16]
    }

    fn source(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn b8_above_the_bound_one_past_half_its_time_goes_and_it_is_the_greediest_sources() {
        let start = tokio::time::Instant::now().into_std();
        let mut pending = Pending::new(4, TIME);
        for number in 0..3 {
            pending.admit(source(1), key(number), 0, start).unwrap();
        }
        pending.admit(source(2), key(9), 0, start).unwrap();
        assert!(
            pending.admit(source(1), key(10), 0, start + TIME / 4).is_none(),
            "none of its own is past half its time"
        );
        let later = start + TIME / 2;
        let admitted = pending.admit(source(3), key(10), 7, later).unwrap();
        assert_eq!(admitted.evicted, Some(key(1)), "the second of three, by 7 mod 3");
        // The greediest source itself has to make room for its own.
        let admitted = pending.admit(source(1), key(4), 0, later).unwrap();
        assert_eq!(admitted.evicted, Some(key(0)));
        assert_eq!(pending.all.len(), 4);
    }

    #[test]
    fn b8_a_source_that_opens_anew_all_the_time_keeps_nobody_out() {
        let start = tokio::time::Instant::now().into_std();
        let mut pending = Pending::new(10, TIME);
        for number in 0..10 {
            pending.admit(source(1), key(number), 0, start).unwrap();
        }
        let admitted = pending.admit(source(2), key(20), 0, start).expect("a newcomer gets its share");
        assert_eq!(admitted.evicted, Some(key(0)), "the oldest of the greedy one");
        for number in 0..4 {
            assert!(pending.admit(source(1), key(30), 0, start).is_none(), "the greedy one gets no more");
            let admitted = pending.admit(source(2), key(21 + number), 0, start).unwrap();
            assert_eq!(admitted.evicted, Some(key(1 + number)));
        }
        assert!(pending.admit(source(2), key(30), 0, start).is_none(), "its share and no more");
        assert!(pending.admit(source(3), key(40), 0, start).is_some());
    }

    #[test]
    fn b8_where_nobody_holds_too_much_the_oldest_past_half_its_time_goes() {
        let start = tokio::time::Instant::now().into_std();
        let mut pending = Pending::new(4, TIME);
        for number in 0..4 {
            // The one that ranks last is the youngest.
            let at = start + TIME / 10 * u32::from(number);
            pending.admit(source(number), key(number), 0, at).unwrap();
        }
        assert!(
            pending.admit(source(9), key(9), 0, start + TIME / 4).is_none(),
            "nobody is past half its time"
        );
        let admitted = pending.admit(source(9), key(9), 0, start + TIME / 2).unwrap();
        assert_eq!(admitted.evicted, Some(key(0)));
    }

    #[test]
    fn b8_a_host_is_one_source_whatever_its_addresses() {
        let start = tokio::time::Instant::now().into_std();
        let addresses = ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:3", "192.0.2.1", "::ffff:192.0.2.1"];
        let mut pending = Pending::new(100, TIME);
        for (number, address) in (0..).zip(addresses) {
            pending.admit(address.parse().unwrap(), key(number), 0, start).unwrap();
        }
        assert_eq!(pending.sources.len(), 2);
        pending.admit("2001:db8:0:1::1".parse().unwrap(), key(9), 0, start).unwrap();
        assert_eq!(pending.sources.len(), 3, "another /64");
    }

    #[test]
    fn t36_places_are_given_back() {
        let start = tokio::time::Instant::now().into_std();
        let mut pending = Pending::new(100, TIME);
        let places: Vec<_> =
            (0..100).map(|n| pending.admit(source(n % 7), key(n), 0, start).unwrap().place).collect();
        for place in &places {
            pending.leave(*place);
            pending.leave(*place);
        }
        assert_eq!((pending.all.len(), pending.sources.len(), pending.ranking.len()), (0, 0, 0));
    }
}
