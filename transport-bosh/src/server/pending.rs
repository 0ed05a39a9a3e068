//! Sessions that have not bound yet: bounded, and shared fairly between those they come from.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::sids::Key;

/// Of one source's sessions past half their time, one of the oldest so many goes.
const CANDIDATES: usize = 64;

/// Who is at the door.
#[derive(Debug)]
pub(super) struct Pending {
    max: usize,
    half_time: Duration,
    number: u64,
    total: usize,
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
            total: 0,
            sources: HashMap::new(),
            ranking: BTreeSet::new(),
        }
    }

    /// Lets `key` of `source` wait. When there is no room, one of the greediest source's sessions that is past half its
    /// time goes, chosen by `random`; `None` if there is none: nobody is let in then.
    pub(super) fn admit(&mut self, source: IpAddr, key: Key, random: u64, now: Instant) -> Option<Admitted> {
        let mut evicted = None;
        if self.total >= self.max {
            let (most, greediest) = *self.ranking.last()?;
            let own = self.sources.get(&source).map_or(0, BTreeMap::len);
            // A source pays for itself unless another has more.
            let payer = if own >= most { source } else { greediest };
            let place = self.past_half_time(payer, random, now)?;
            evicted = self.remove(place);
        }
        self.number += 1;
        let place = Place { source, number: self.number };
        let waiting = self.sources.entry(source).or_default();
        self.ranking.remove(&(waiting.len(), source));
        waiting.insert(place.number, Waiting { since: now, key });
        self.ranking.insert((waiting.len(), source));
        self.total += 1;
        Some(Admitted { place, evicted })
    }

    /// The session at `place` is through, or gone.
    pub(super) fn leave(&mut self, place: Place) {
        self.remove(place);
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
        self.total -= 1;
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
            pending.admit(source(3), key(10), 0, start + TIME / 4).is_none(),
            "nobody is past half its time"
        );
        let later = start + TIME / 2;
        let admitted = pending.admit(source(3), key(10), 7, later).unwrap();
        assert_eq!(admitted.evicted, Some(key(1)), "the second of three, by 7 mod 3");
        // The greediest source itself has to make room for its own.
        let admitted = pending.admit(source(1), key(4), 0, later).unwrap();
        assert_eq!(admitted.evicted, Some(key(0)));
        assert_eq!(pending.total, 4);
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
        assert_eq!((pending.total, pending.sources.len(), pending.ranking.len()), (0, 0, 0));
    }
}
