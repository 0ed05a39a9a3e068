//! One queue of deadlines for all sessions, and one task that waits for the first of them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use tokio::sync::Notify;

use super::{Inner, sids::Key};

#[derive(Debug, Default)]
pub(super) struct Timer {
    queue: Mutex<BTreeSet<(Instant, Key)>>,
    earlier: Arc<Notify>,
}

impl Timer {
    /// Wakes the session `key` at `at` instead of at `before`.
    pub(super) fn set(&self, key: Key, before: Option<Instant>, at: Option<Instant>) {
        let mut queue = self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(before) = before {
            queue.remove(&(before, key));
        }
        let Some(at) = at else { return };
        let first = queue.first().is_none_or(|(first, _)| at < *first);
        queue.insert((at, key));
        drop(queue);
        if first {
            self.earlier.notify_one();
        }
    }

    fn first(&self) -> Option<Instant> {
        let queue = self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        queue.first().map(|(at, _)| *at)
    }

    fn next_due(&self, now: Instant) -> Option<(Instant, Key)> {
        let mut queue = self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        queue.first().is_some_and(|(at, _)| *at <= now).then(|| queue.pop_first()).flatten()
    }

    pub(super) fn stop(&self) {
        self.earlier.notify_one();
    }

    /// Wakes sessions for as long as there is a manager.
    pub(super) async fn run(manager: Weak<Inner>, earlier: Arc<Notify>) {
        loop {
            let first = match manager.upgrade() {
                Some(manager) => manager.timer.first(),
                None => return,
            };
            match first {
                // Too late or woken for an earlier one: both mean to look again.
                Some(at) => drop(tokio::time::timeout_at(at.into(), earlier.notified()).await),
                None => earlier.notified().await,
            }
            let Some(manager) = manager.upgrade() else { return };
            let now = tokio::time::Instant::now().into_std();
            while let Some((at, key)) = manager.timer.next_due(now) {
                if let Some(session) = manager.find(&key) {
                    session.wake(at);
                }
            }
        }
    }

    pub(super) fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.earlier)
    }
}
