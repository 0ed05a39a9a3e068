//! Polling too often (XEP-0124 §11, §12).

use std::time::{Duration, Instant};

/// Polls faster than the interval that are let pass at once.
const BURST: u8 = 10;
/// One of them comes back after this time.
const REFILL: Duration = Duration::from_secs(1);

/// Counts polls that come sooner than they should, and lets a burst of them pass: clients mean no harm by a few.
#[derive(Debug)]
pub(super) struct Polls {
    tokens: u8,
    refilled: Option<Instant>,
    last: Option<Instant>,
}

impl Default for Polls {
    fn default() -> Self {
        Self { tokens: BURST, refilled: None, last: None }
    }
}

impl Polls {
    /// Whether a new request at `now` may be taken. `poll`: it is empty. `idle`: there was no reason for a poll, since
    /// another request is held or the last answer brought nothing.
    pub(super) fn allow(&mut self, poll: bool, idle: bool, interval: Duration, now: Instant) -> bool {
        if !poll {
            self.last = None;
            return true;
        }
        let too_soon =
            self.last.replace(now).is_some_and(|last| now.saturating_duration_since(last) < interval);
        if !(too_soon && idle) {
            return true;
        }
        let refilled = *self.refilled.get_or_insert(now);
        let grown = now.saturating_duration_since(refilled).as_secs() / REFILL.as_secs();
        if grown > 0 {
            self.tokens = self.tokens.saturating_add(u8::try_from(grown).unwrap_or(u8::MAX)).min(BURST);
            self.refilled = Some(now);
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}
