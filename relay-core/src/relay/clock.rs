//! Wakes the engine's shards when something is due.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Inner, now};

/// One task for the whole relay.
pub(super) struct Clock {
    origin: Instant,
    /// When that task will look again, in milliseconds since `origin`.
    next: AtomicU64,
    sooner: Arc<Notify>,
    running: AtomicBool,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            origin: now(),
            next: AtomicU64::new(u64::MAX),
            sooner: Arc::new(Notify::new()),
            running: AtomicBool::new(false),
        }
    }

    /// Starts the task that wakes `relay`, if it does not run yet. It ends with the relay.
    pub(super) fn run(&self, relay: Weak<Inner>) {
        if !self.running.swap(true, Ordering::AcqRel) {
            tokio::spawn(tick(relay, Arc::clone(&self.sooner), self.origin));
        }
    }

    /// Something is due at `at`.
    pub(super) fn wake_by(&self, at: Instant) {
        let at = at.saturating_duration_since(self.origin).as_millis() as u64;
        if at < self.next.fetch_min(at, Ordering::AcqRel) {
            self.sooner.notify_one();
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.sooner.notify_one();
    }
}

async fn tick(relay: Weak<Inner>, sooner: Arc<Notify>, origin: Instant) {
    loop {
        let next = {
            let Some(inner) = relay.upgrade() else { return };
            // Whoever arms a timer from here on notifies, so that none slips in behind the scan.
            inner.clock.next.store(u64::MAX, Ordering::Release);
            let wake = |slot| inner.on_shard(slot as u32, |shard, now| shard.wake(now)).1;
            let earliest = (0..inner.shards.len()).filter_map(wake).min();
            let at = earliest.map_or(u64::MAX, |at| at.saturating_duration_since(origin).as_millis() as u64);
            at.min(inner.clock.next.fetch_min(at, Ordering::AcqRel))
        };
        // Rounded up by a millisecond, so that what is due has come when the clock looks.
        let until = origin + Duration::from_millis(next.min(u64::from(u32::MAX)) + 1);
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = sooner.notified() => {}
        }
    }
}
