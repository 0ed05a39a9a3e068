//! What became of requests that are over, so that a late, repeated or foreign response gets its true verdict.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    ids::{DeviceId, RequestId},
    outcome::Disposition,
};

#[derive(Debug)]
pub(crate) struct Finished {
    by_id: HashMap<RequestId, Entry>,
    order: VecDeque<(Instant, RequestId)>,
    keep: Duration,
    max: usize,
}

#[derive(Debug)]
struct Entry {
    device: DeviceId,
    answered: bool,
}

impl Finished {
    pub(crate) fn new(keep: Duration, max: usize) -> Self {
        Self { by_id: HashMap::new(), order: VecDeque::new(), keep, max }
    }

    pub(crate) fn remember(&mut self, now: Instant, id: RequestId, device: DeviceId, answered: bool) {
        self.expire(now);
        while self.order.len() >= self.max.max(1) {
            self.forget_oldest();
        }
        self.order.push_back((now, id.clone()));
        self.by_id.insert(id, Entry { device, answered });
    }

    pub(crate) fn verdict(&mut self, now: Instant, device: &DeviceId, id: &RequestId) -> Disposition {
        self.expire(now);
        match self.by_id.get(id) {
            None => Disposition::Unknown,
            Some(entry) if entry.device != *device => Disposition::Forbidden,
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
        if let Some((_, id)) = self.order.pop_front() {
            self.by_id.remove(&id);
        }
        // Given back in steps, so that a burst's memory does not stay for good.
        if self.order.capacity() > 64 && self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to(self.order.capacity() / 2);
            self.by_id.shrink_to(self.by_id.capacity() / 2);
        }
    }
}
