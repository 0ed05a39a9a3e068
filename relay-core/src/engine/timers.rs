//! Deadlines in order. One that is no longer wanted is taken out, so that memory follows what is in flight.

use std::{collections::BTreeMap, time::Instant};

/// Names one deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey(Instant, u64);

#[derive(Debug)]
pub(crate) struct Timers<T> {
    by_time: BTreeMap<TimerKey, T>,
    next: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { by_time: BTreeMap::new(), next: 0 }
    }
}

impl<T> Timers<T> {
    pub(crate) fn arm(&mut self, at: Instant, timer: T) -> TimerKey {
        let key = TimerKey(at, self.next);
        self.next += 1;
        self.by_time.insert(key, timer);
        key
    }

    pub(crate) fn disarm(&mut self, key: TimerKey) {
        self.by_time.remove(&key);
    }

    pub(crate) fn due(&mut self, now: Instant) -> Option<T> {
        let first = self.by_time.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first_key_value().map(|(key, _)| key.0)
    }
}
