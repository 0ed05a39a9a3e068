//! What is counted, for whoever watches a relay.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::wire::close;

const CODES: [u16; 5] = [close::PROTOCOL, close::UNSUPPORTED, close::INVALID, close::POLICY, close::TOO_BIG];

/// What happened on the control sessions of a manager.
#[derive(Debug, Default)]
pub struct Counters {
    ignored: AtomicU64,
    faults: [AtomicU64; CODES.len()],
}

impl Counters {
    pub(crate) fn ignored(&self, number: u64) {
        self.ignored.fetch_add(number, Relaxed);
    }

    pub(crate) fn fault(&self, code: u16) {
        if let Some(at) = CODES.iter().position(|known| *known == code) {
            self.faults[at].fetch_add(1, Relaxed);
        }
    }

    /// Elements that were passed over: not known, not for the relay to hear, or not to be read.
    pub fn ignored_elements(&self) -> u64 {
        self.ignored.load(Relaxed)
    }

    /// Sessions that ended over a rule that the device broke, by the code with which they were closed.
    pub fn faults(&self) -> impl Iterator<Item = (u16, u64)> {
        CODES.into_iter().zip(self.faults.iter().map(|counter| counter.load(Relaxed)))
    }
}
