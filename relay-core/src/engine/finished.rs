//! What became of requests that are over, so that a late, repeated or foreign response gets its true verdict.
//!
//! There may be very many, so each is kept as a 128-bit keyed hash of its ID. IDs that could be made to collide never
//! come this far: the engine's shell looks up those alone that it issued.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasher,
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;

use super::DeviceKey;
use crate::{ids::RequestId, outcome::Disposition};

#[derive(Debug)]
pub(crate) struct Finished {
    by_print: HashMap<u128, Entry, RandomState>,
    order: VecDeque<(Instant, u128)>,
    hashers: [RandomState; 2],
    keep: Duration,
    max: usize,
}

#[derive(Debug)]
struct Entry {
    device: DeviceKey,
    answered: bool,
}

impl Finished {
    pub(crate) fn new(keep: Duration, max: usize) -> Self {
        Self {
            by_print: HashMap::default(),
            order: VecDeque::new(),
            hashers: [RandomState::default(), RandomState::default()],
            keep,
            max,
        }
    }

    fn print(&self, id: &RequestId) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(id)));
        high << 64 | low
    }

    pub(crate) fn remember(&mut self, now: Instant, id: &RequestId, device: DeviceKey, answered: bool) {
        self.expire(now);
        while self.order.len() >= self.max.max(1) {
            self.forget_oldest();
        }
        let print = self.print(id);
        self.order.push_back((now, print));
        self.by_print.insert(print, Entry { device, answered });
    }

    /// The verdict on a response of `device`; `None` is one that this shard does not know.
    pub(crate) fn verdict(&mut self, now: Instant, device: Option<DeviceKey>, id: &RequestId) -> Disposition {
        self.expire(now);
        match self.by_print.get(&self.print(id)) {
            None => Disposition::Unknown,
            Some(entry) if Some(entry.device) != device => Disposition::Forbidden,
            Some(Entry { answered: true, .. }) => Disposition::AlreadyAnswered,
            Some(Entry { answered: false, .. }) => Disposition::TooLate,
        }
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| *at + self.keep <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, print)) = self.order.pop_front() {
            self.by_print.remove(&print);
        }
        // Given back in steps, so that a burst's memory does not stay for good.
        if self.order.capacity() > 64 && self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to(self.order.capacity() / 2);
            self.by_print.shrink_to(self.by_print.capacity() / 2);
        }
    }
}
