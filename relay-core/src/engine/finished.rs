//! What became of requests that are over, so that a late, repeated or foreign response gets its true verdict.
//!
//! There may be very many, and one is added with every request, so each is kept as a 64-bit keyed hash of its ID, in
//! two generations: the older one is forgotten whole once the younger is full or old, and no queue says who is next.
//! IDs that could be made to collide never come this far: the engine's shell looks up those alone that it issued.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher},
    mem,
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;

use super::DeviceKey;
use crate::{ids::RequestId, outcome::Disposition};

#[derive(Debug)]
pub(crate) struct Finished {
    younger: Generation,
    older: Generation,
    hasher: RandomState,
    keep: Duration,
    max: usize,
}

/// Requests that ended one after the other.
#[derive(Debug, Default)]
struct Generation {
    /// When the first of them did.
    since: Option<Instant>,
    entries: HashMap<u64, Entry, BuildHasherDefault<Print>>,
}

#[derive(Debug)]
struct Entry {
    device: DeviceKey,
    /// Milliseconds after its generation began.
    at: u32,
    answered: bool,
}

/// The hash of a number that is a keyed hash already.
#[derive(Debug, Default)]
struct Print(u64);

impl Hasher for Print {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(false, "prints alone are hashed with it, not {bytes:?}");
    }

    fn write_u64(&mut self, print: u64) {
        self.0 = print;
    }
}

impl Generation {
    fn age(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Empty, with the room that it has if as much is likely to be needed again.
    fn emptied(mut self, needed: usize) -> Self {
        if self.entries.capacity() / 4 > needed {
            return Self::default();
        }
        self.entries.clear();
        Self { since: None, ..self }
    }
}

impl Finished {
    /// Remembers each for `keep`, unless more than `max` others came after it.
    pub(crate) fn new(keep: Duration, max: usize) -> Self {
        Self {
            younger: Generation::default(),
            older: Generation::default(),
            hasher: RandomState::default(),
            keep,
            max: max.max(1),
        }
    }

    pub(crate) fn remember(&mut self, now: Instant, id: &RequestId, device: DeviceKey, answered: bool) {
        self.expire(now);
        if self.younger.entries.len() >= self.max {
            self.begin();
        }
        self.younger.since.get_or_insert(now);
        let at = u32::try_from(self.younger.age(now).as_millis()).unwrap_or(u32::MAX);
        self.younger.entries.insert(self.hasher.hash_one(id), Entry { device, at, answered });
    }

    /// The verdict on a response of `device`; `None` is one that this shard does not know.
    pub(crate) fn verdict(&mut self, now: Instant, device: Option<DeviceKey>, id: &RequestId) -> Disposition {
        self.expire(now);
        let print = self.hasher.hash_one(id);
        let found = [&self.younger, &self.older].into_iter().find_map(|generation| {
            let entry = generation.entries.get(&print)?;
            let ended = Duration::from_millis(entry.at.into());
            (generation.age(now) < ended.saturating_add(self.keep)).then_some(entry)
        });
        match found {
            None => Disposition::Unknown,
            Some(entry) if Some(entry.device) != device => Disposition::Forbidden,
            Some(Entry { answered: true, .. }) => Disposition::AlreadyAnswered,
            Some(Entry { answered: false, .. }) => Disposition::TooLate,
        }
    }

    /// Begins a generation if the younger one is old, and forgets what nobody can ask for any more.
    fn expire(&mut self, now: Instant) {
        if self.younger.age(now) >= self.keep {
            self.begin();
        }
        if self.older.age(now) >= self.keep.saturating_mul(2) {
            self.older = Generation::default();
        }
    }

    fn begin(&mut self) {
        let older = mem::take(&mut self.younger);
        let needed = older.entries.len();
        self.younger = mem::replace(&mut self.older, older).emptied(needed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> RequestId {
        RequestId::new(&format!("r{number}")).unwrap()
    }

    #[test]
    fn q4_each_is_remembered_for_its_time_and_no_longer() {
        let (start, keep) = (tokio::time::Instant::now().into_std(), Duration::from_secs(10));
        let mut finished = Finished::new(keep, 1_000);
        let at = |tenths: usize| start + Duration::from_millis(tenths as u64 * 100);
        for number in 0..400 {
            finished.remember(at(number), &id(number), DeviceKey(1), number % 2 == 0);
            for asked in [number, number.saturating_sub(99), number.saturating_sub(100)] {
                let verdict = finished.verdict(at(number), Some(DeviceKey(1)), &id(asked));
                let wanted = match (number - asked < 100, asked % 2 == 0) {
                    (false, _) => Disposition::Unknown,
                    (true, true) => Disposition::AlreadyAnswered,
                    (true, false) => Disposition::TooLate,
                };
                assert_eq!(verdict, wanted, "{asked} at {number}");
            }
        }
        assert_eq!(finished.verdict(at(5_000), Some(DeviceKey(1)), &id(399)), Disposition::Unknown);
        assert_eq!(
            finished.older.entries.capacity() + finished.younger.entries.len(),
            0,
            "its room is given back"
        );
    }

    #[test]
    fn q4_of_very_many_the_latest_are_remembered() {
        let mut finished = Finished::new(Duration::from_secs(600), 100);
        let now = tokio::time::Instant::now().into_std();
        for number in 0..1_000 {
            finished.remember(now, &id(number), DeviceKey(1), true);
            let latest = finished.verdict(now, Some(DeviceKey(1)), &id(number.saturating_sub(100)));
            assert_eq!(latest, Disposition::AlreadyAnswered);
            assert!(finished.younger.entries.len() + finished.older.entries.len() <= 200);
        }
        assert_eq!(finished.verdict(now, Some(DeviceKey(1)), &id(700)), Disposition::Unknown);
    }
}
