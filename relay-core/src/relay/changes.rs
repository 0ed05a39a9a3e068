//! Changes of presence, for whoever watches them (P4).
//!
//! They stand in one bounded log, which every watcher reads at its own pace. A watcher costs a position and no queue,
//! and one that comes back goes on where it was, as far as the log reaches.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{ids::DeviceId, presence::State, random};

/// A device's state is another now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresenceChange {
    /// Which device.
    pub device: DeviceId,
    /// What its state is.
    pub state: State,
    /// Its epoch: a change of an older one than is known says nothing.
    pub epoch: u64,
}

/// Why a watch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchEnd {
    /// The watcher did not keep up. It may go on from its [position](PresenceWatch::position), while the log reaches
    /// back there.
    #[error("the watcher fell too far behind")]
    Behind,
    /// The relay stops.
    #[error("the relay stops")]
    Stopping,
}

/// Changes of presence, as they come: [`Relay::watch_presence`](super::Relay::watch_presence).
#[derive(Debug)]
pub struct PresenceWatch {
    log: Arc<Log>,
    head: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    position: u64,
    /// Where the log ended when the watch began: what is older does not count as being behind.
    since: u64,
}

impl PresenceWatch {
    /// The next change.
    ///
    /// # Errors
    /// [`WatchEnd`]: there will be none on this watch.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, no change was taken.
    pub async fn next(&mut self) -> Result<PresenceChange, WatchEnd> {
        loop {
            if *self.stopping.borrow() {
                return Err(WatchEnd::Stopping);
            }
            if let Some(change) = self.log.after(self.position, self.since)? {
                self.position += 1;
                return Ok(change);
            }
            tokio::select! {
                // A relay that is dropped does not come to its stopping.
                moved = self.head.wait_for(|head| *head > self.position) => {
                    moved.map_err(|_| WatchEnd::Stopping)?;
                }
                _ = self.stopping.wait_for(|stopping| *stopping) => return Err(WatchEnd::Stopping),
            }
        }
    }

    /// The last change that was read, by its number; before the first, the last that there was.
    ///
    /// Numbers begin anywhere, so that those of another relay, or of this one before it was started again, are known as
    /// such.
    pub const fn position(&self) -> u64 {
        self.position
    }
}

/// The log, and who waits for it to grow.
pub(super) struct Changes {
    log: Arc<Log>,
    head: watch::Sender<u64>,
}

#[derive(Debug)]
struct Log {
    written: Mutex<Written>,
    /// How many changes are kept.
    kept: usize,
    /// How many a watcher may leave unread.
    behind: u64,
}

#[derive(Debug)]
struct Written {
    changes: VecDeque<PresenceChange>,
    /// The number of the last change.
    head: u64,
}

impl Changes {
    pub(super) fn new(kept: usize, behind: usize) -> Self {
        let mut start = [0; 8];
        random::fill(&mut start);
        // Far from either end, so that sums do not overflow.
        let head = u64::from_le_bytes(start) >> 2 | 1 << 32;
        let written = Mutex::new(Written { changes: VecDeque::new(), head });
        let log = Log { written, kept: kept.max(1), behind: behind.max(1) as u64 };
        Self { log: Arc::new(log), head: watch::Sender::new(head) }
    }

    /// Writes a change down. To be called while nobody else can change that device's state, so that its changes stand
    /// in the order in which they came to pass. Whoever waits is woken by [`Changes::announce`].
    pub(super) fn write(&self, change: PresenceChange) -> u64 {
        let mut written = self.log.written();
        if written.changes.len() >= self.log.kept {
            written.changes.pop_front();
        }
        written.changes.push_back(change);
        written.head += 1;
        written.head
    }

    /// Tells watchers that the log has grown up to `head`.
    pub(super) fn announce(&self, head: u64) {
        self.head.send_if_modified(|known| {
            let grown = head > *known;
            *known = head.max(*known);
            grown
        });
    }

    /// A watch from now on.
    pub(super) fn watch(&self, stopping: watch::Receiver<bool>) -> PresenceWatch {
        let head = self.log.written().head;
        self.from(head, head, stopping)
    }

    /// A watch from `position` on; `None` if the log does not reach back there.
    pub(super) fn watch_after(
        &self,
        position: u64,
        stopping: watch::Receiver<bool>,
    ) -> Option<PresenceWatch> {
        let (first, head) = {
            let written = self.log.written();
            (written.head - written.changes.len() as u64, written.head)
        };
        (first..=head).contains(&position).then(|| self.from(position, head, stopping))
    }

    fn from(&self, position: u64, since: u64, stopping: watch::Receiver<bool>) -> PresenceWatch {
        PresenceWatch { log: self.log.clone(), head: self.head.subscribe(), stopping, position, since }
    }
}

impl Log {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn after(&self, position: u64, since: u64) -> Result<Option<PresenceChange>, WatchEnd> {
        let written = self.written();
        if written.head - position.max(since) > self.behind {
            return Err(WatchEnd::Behind);
        }
        let unread = (written.head - position) as usize;
        match written.changes.len().checked_sub(unread) {
            Some(at) => Ok(written.changes.get(at).cloned()),
            None => Err(WatchEnd::Behind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(n: u64) -> PresenceChange {
        let state = if n.is_multiple_of(2) { State::Offline } else { State::Online };
        PresenceChange { device: DeviceId::new("d").unwrap(), state, epoch: n }
    }

    fn grow(changes: &Changes, numbers: std::ops::Range<u64>) {
        for n in numbers {
            let head = changes.write(change(n));
            changes.announce(head);
        }
    }

    fn watch(changes: &Changes, position: Option<u64>) -> Option<PresenceWatch> {
        let stopping = watch::Sender::new(false);
        let watch = match position {
            Some(position) => changes.watch_after(position, stopping.subscribe()),
            None => Some(changes.watch(stopping.subscribe())),
        };
        // It lives as long as the relay does.
        std::mem::forget(stopping);
        watch
    }

    #[tokio::test]
    async fn p4_watchers_read_all_that_changes_from_when_they_begin() {
        let changes = Changes::new(10, 10);
        grow(&changes, 0..3);
        let mut late = watch(&changes, None).unwrap();
        grow(&changes, 3..5);
        assert_eq!(late.next().await, Ok(change(3)));
        assert_eq!(late.next().await, Ok(change(4)));
        let (next, ()) = tokio::join!(late.next(), async { grow(&changes, 5..6) });
        assert_eq!(next, Ok(change(5)));
        drop(changes);
        assert_eq!(late.next().await, Err(WatchEnd::Stopping));
    }

    #[tokio::test]
    async fn p4_a_watch_goes_on_where_another_was_as_far_as_the_log_reaches() {
        let changes = Changes::new(4, 4);
        let first = watch(&changes, None).unwrap().position();
        grow(&changes, 0..4);
        let mut again = watch(&changes, Some(first)).unwrap();
        for n in 0..4 {
            assert_eq!(again.next().await, Ok(change(n)));
        }
        assert_eq!(again.position(), first + 4);
        grow(&changes, 4..5);
        assert!(watch(&changes, Some(first)).is_none(), "that is forgotten");
        assert!(watch(&changes, Some(first + 6)).is_none(), "that is not yet");
        assert!(watch(&Changes::new(4, 4), Some(first + 4)).is_none(), "that is another relay's");
    }

    #[tokio::test]
    async fn b15_a_watcher_that_falls_behind_is_told_and_may_come_back() {
        let changes = Changes::new(10, 3);
        let mut watcher = watch(&changes, None).unwrap();
        grow(&changes, 0..3);
        assert_eq!(watcher.next().await, Ok(change(0)));
        grow(&changes, 3..5);
        assert_eq!(watcher.next().await, Err(WatchEnd::Behind));
        let mut again = watch(&changes, Some(watcher.position())).unwrap();
        // What it missed while it was away is not held against it.
        grow(&changes, 5..8);
        for n in 1..8 {
            assert_eq!(again.next().await, Ok(change(n)));
        }
        grow(&changes, 8..30);
        assert_eq!(again.next().await, Err(WatchEnd::Behind));
    }
}
