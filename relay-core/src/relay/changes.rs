//! What changes, for whoever watches: devices that come and go (P4), and what else an owner writes down.
//!
//! Changes stand in one bounded log, which every watcher reads at its own pace. A watcher costs a position and no queue,
//! and one that comes back goes on where it was, as far as the log reaches.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
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
    /// When that was, by the relay's clock.
    pub time: SystemTime,
}

/// Changes of presence, as they come: [`Relay::watch_presence`](super::Relay::watch_presence).
pub type PresenceWatch = Watch<PresenceChange>;

/// Why a watch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchEnd {
    /// The watcher did not keep up. It may go on from its [position](Watch::position), while the log reaches back there.
    #[error("the watcher fell too far behind")]
    Behind,
    /// The relay stops.
    #[error("the relay stops")]
    Stopping,
}

/// Somebody who reads [`Changes`] as they come.
#[derive(Debug)]
pub struct Watch<T> {
    log: Arc<Log<T>>,
    head: watch::Receiver<Head>,
    position: u64,
    /// Where the log ended when the watch began: what is older does not count as being behind.
    since: u64,
}

impl<T: Clone> Watch<T> {
    /// The next change.
    ///
    /// # Errors
    /// [`WatchEnd`]: there will be none on this watch.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, no change was taken.
    pub async fn next(&mut self) -> Result<T, WatchEnd> {
        loop {
            if self.head.borrow().ended {
                return Err(WatchEnd::Stopping);
            }
            if let Some(change) = self.log.after(self.position, self.since)? {
                self.position += 1;
                return Ok(change);
            }
            // Who is dropped does not come to its end.
            let moved = self.head.wait_for(|head| head.ended || head.number > self.position).await;
            moved.map_err(|_| WatchEnd::Stopping)?;
        }
    }

    /// The last change that was read, by its number; before the first, the last that there was.
    ///
    /// Numbers begin anywhere, so that those of another log, or of this one before it was started again, are known as
    /// such.
    pub const fn position(&self) -> u64 {
        self.position
    }
}

/// A log of changes, and who waits for it to grow.
#[derive(Debug)]
pub struct Changes<T> {
    log: Arc<Log<T>>,
    head: watch::Sender<Head>,
}

/// How far the log is.
#[derive(Debug, Clone, Copy)]
struct Head {
    number: u64,
    ended: bool,
}

#[derive(Debug)]
struct Log<T> {
    written: Mutex<Written<T>>,
    /// How many changes are kept.
    kept: usize,
    /// How many a watcher may leave unread.
    behind: u64,
}

#[derive(Debug)]
struct Written<T> {
    changes: VecDeque<T>,
    /// The number of the last change.
    head: u64,
}

impl<T: Clone> Changes<T> {
    /// An empty log that keeps the last `kept` changes, and of which a watcher may leave `behind` unread.
    pub fn new(kept: usize, behind: usize) -> Self {
        let mut start = [0; 8];
        random::fill(&mut start);
        // Far from either end, so that sums do not overflow.
        let number = u64::from_le_bytes(start) >> 2 | 1 << 32;
        let written = Mutex::new(Written { changes: VecDeque::new(), head: number });
        let log = Log { written, kept: kept.max(1), behind: behind.max(1) as u64 };
        Self { log: Arc::new(log), head: watch::Sender::new(Head { number, ended: false }) }
    }

    /// Writes a change down. To be called while nobody else can change the same thing, so that its changes stand in the
    /// order in which they came to pass. Whoever waits is woken by [`Changes::announce`], with what this gives.
    pub fn write(&self, change: T) -> u64 {
        let mut written = self.log.written();
        if written.changes.len() >= self.log.kept {
            written.changes.pop_front();
        }
        written.changes.push_back(change);
        written.head += 1;
        written.head
    }

    /// Tells watchers that the log has grown up to `number`.
    pub fn announce(&self, number: u64) {
        self.head.send_if_modified(|head| {
            let grown = number > head.number;
            head.number = number.max(head.number);
            grown
        });
    }

    /// Ends every watch, those to come as well.
    pub fn end(&self) {
        self.head.send_modify(|head| head.ended = true);
    }

    /// A watch from now on.
    pub fn watch(&self) -> Watch<T> {
        let head = self.log.written().head;
        self.from(head, head)
    }

    /// A watch from `position` on; `None` if the log does not reach back there.
    pub fn watch_after(&self, position: u64) -> Option<Watch<T>> {
        let (first, head) = {
            let written = self.log.written();
            (written.head - written.changes.len() as u64, written.head)
        };
        (first..=head).contains(&position).then(|| self.from(position, head))
    }

    fn from(&self, position: u64, since: u64) -> Watch<T> {
        Watch { log: self.log.clone(), head: self.head.subscribe(), position, since }
    }
}

impl<T: Clone> Log<T> {
    fn written(&self) -> MutexGuard<'_, Written<T>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn after(&self, position: u64, since: u64) -> Result<Option<T>, WatchEnd> {
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

    fn grow(changes: &Changes<u64>, numbers: std::ops::Range<u64>) {
        for n in numbers {
            let head = changes.write(n);
            changes.announce(head);
        }
    }

    #[tokio::test]
    async fn p4_watchers_read_all_that_changes_from_when_they_begin() {
        let changes = Changes::new(10, 10);
        grow(&changes, 0..3);
        let mut late = changes.watch();
        grow(&changes, 3..5);
        assert_eq!(late.next().await, Ok(3));
        assert_eq!(late.next().await, Ok(4));
        let (next, ()) = tokio::join!(late.next(), async { grow(&changes, 5..6) });
        assert_eq!(next, Ok(5));
        drop(changes);
        assert_eq!(late.next().await, Err(WatchEnd::Stopping));
    }

    #[tokio::test]
    async fn l2_an_end_ends_every_watch_at_once() {
        let changes = Changes::new(10, 10);
        let mut before = changes.watch();
        grow(&changes, 0..3);
        changes.end();
        assert_eq!(before.next().await, Err(WatchEnd::Stopping));
        assert_eq!(changes.watch().next().await, Err(WatchEnd::Stopping));
    }

    #[tokio::test]
    async fn p4_a_watch_goes_on_where_another_was_as_far_as_the_log_reaches() {
        let changes = Changes::new(4, 4);
        let first = changes.watch().position();
        grow(&changes, 0..4);
        let mut again = changes.watch_after(first).unwrap();
        for n in 0..4 {
            assert_eq!(again.next().await, Ok(n));
        }
        assert_eq!(again.position(), first + 4);
        grow(&changes, 4..5);
        assert!(changes.watch_after(first).is_none(), "that is forgotten");
        assert!(changes.watch_after(first + 6).is_none(), "that is not yet");
        assert!(Changes::<u64>::new(4, 4).watch_after(first + 4).is_none(), "that is another relay's");
    }

    #[tokio::test]
    async fn b15_a_watcher_that_falls_behind_is_told_and_may_come_back() {
        let changes = Changes::new(10, 3);
        let mut watcher = changes.watch();
        grow(&changes, 0..3);
        assert_eq!(watcher.next().await, Ok(0));
        grow(&changes, 3..5);
        assert_eq!(watcher.next().await, Err(WatchEnd::Behind));
        let mut again = changes.watch_after(watcher.position()).unwrap();
        // What it missed while it was away is not held against it.
        grow(&changes, 5..8);
        for n in 1..8 {
            assert_eq!(again.next().await, Ok(n));
        }
        grow(&changes, 8..30);
        assert_eq!(again.next().await, Err(WatchEnd::Behind));
    }
}
