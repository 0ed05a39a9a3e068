//! Which of two transports is tried first, and when the better one is tried again. No I/O, no clock of its own.
//!
//! ```text
//! Better ── tried in vain while the other worked, or silent twice ─▶ Other
//! Other ── its time has come, or the session broke ─▶ the better one is tried ── it speaks ─▶ Better
//! ```
//!
//! A relay that nobody reaches says nothing about transports: only if the other one got through where the better one did
//! not is the network to blame.

use std::time::{Duration, Instant};

use crate::backoff::Jitter;

/// When the better transport is tried again after it was first tried in vain; doubles with each time.
const AGAIN_FIRST: Duration = Duration::from_secs(300);
const AGAIN_LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What just failed is not tried again for this long, whatever happens.
const NOT_AGAIN_WITHIN: Duration = Duration::from_secs(30);
/// Sessions that opened and brought nothing at all before they were lost, until they count as none.
const SILENT: u32 = 2;

/// One of two transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one to be preferred.
    Better,
    /// The one that gets through where the better one does not.
    Other,
}

impl Which {
    const fn or_else(self) -> Self {
        match self {
            Self::Better => Self::Other,
            Self::Other => Self::Better,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Chooser {
    first: Which,
    /// When the better one is tried again; only while it is not the first.
    again_at: Option<Instant>,
    /// How often in a row the better one was tried in vain.
    vain: u32,
    vain_at: Option<Instant>,
    /// How many sessions over the better one in a row brought nothing.
    silent: u32,
    jitter: Jitter,
}

impl Chooser {
    /// Begins with what worked in the device's last run.
    pub(crate) fn new(remembered: Option<Which>, jitter: Jitter, now: Instant) -> Self {
        let mut chooser =
            Self { first: Which::Better, again_at: None, vain: 0, vain_at: None, silent: 0, jitter };
        if remembered == Some(Which::Other) {
            chooser.vain(now);
            // That it was tried was long ago.
            chooser.vain_at = None;
        }
        chooser
    }

    /// What to begin with if nothing is known but what is known here.
    pub(crate) const fn first(&self) -> Which {
        self.first
    }

    /// In which order to try.
    pub(crate) fn order(&self, now: Instant) -> [Which; 2] {
        let first = if self.again_at.is_some_and(|at| at <= now) { Which::Better } else { self.first };
        [first, first.or_else()]
    }

    /// When the better one is to be tried while the session goes over the other.
    pub(crate) const fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// The network may be another one.
    pub(crate) fn try_now(&mut self, now: Instant) {
        self.again_at = self.again_at.map(|at| at.min(now));
    }

    /// A session opened, after the one before in the order was `tried` in vain.
    pub(crate) fn opened(&mut self, which: Which, tried: bool, now: Instant) {
        match which {
            Which::Other if tried => self.vain(now),
            Which::Other => {}
            Which::Better => (self.first, self.again_at) = (Which::Better, None),
        }
    }

    /// The better one was tried in vain, while the other works.
    pub(crate) fn vain(&mut self, now: Instant) {
        let window = AGAIN_FIRST.saturating_mul(2u32.saturating_pow(self.vain.min(16))).min(AGAIN_LONGEST);
        self.vain = self.vain.saturating_add(1);
        self.first = Which::Other;
        self.vain_at = Some(now);
        // A fleet behind one firewall is not to try at one time.
        self.again_at = Some(now + window / 2 + self.jitter.within(window / 2));
    }

    /// Something came on a session.
    pub(crate) fn spoke(&mut self, which: Which) {
        if which == Which::Better {
            (self.first, self.again_at, self.vain, self.silent) = (Which::Better, None, 0, 0);
        }
    }

    /// A session was lost. `spoke`: something had come on it.
    pub(crate) fn lost(&mut self, which: Which, spoke: bool, now: Instant) {
        match which {
            Which::Better if !spoke => {
                self.silent += 1;
                if self.silent >= SILENT {
                    self.silent = 0;
                    self.vain(now);
                }
            }
            // The device may have come to another network.
            Which::Other if spoke && self.first == Which::Other => {
                let soonest = self.vain_at.map_or(now, |at| now.max(at + NOT_AGAIN_WITHIN));
                self.again_at = self.again_at.map(|at| at.min(soonest));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn chooser(remembered: Option<Which>) -> (Chooser, Instant) {
        let now = crate::now();
        (Chooser::new(remembered, Jitter::new(1), now), now)
    }

    #[test]
    fn s8_the_better_one_comes_first_until_the_other_works_in_its_place() {
        let (mut chooser, now) = chooser(None);
        assert_eq!(chooser.order(now), [Which::Better, Which::Other]);
        chooser.opened(Which::Other, true, now);
        assert_eq!(chooser.order(now), [Which::Other, Which::Better]);
        let again = chooser.again_at().unwrap();
        assert!((150..=300).contains(&(again - now).as_secs()));
        assert_eq!(chooser.order(again), [Which::Better, Which::Other]);
    }

    #[test]
    fn s8_what_worked_is_begun_with_after_a_restart() {
        let (chooser, now) = chooser(Some(Which::Other));
        assert_eq!(chooser.order(now), [Which::Other, Which::Better]);
        assert!(chooser.again_at().is_some());
    }

    #[test]
    fn s8_tries_in_vain_grow_further_apart_up_to_a_day() {
        let (mut chooser, mut now) = chooser(None);
        let mut before = Duration::ZERO;
        for round in 0..12 {
            chooser.opened(Which::Other, true, now);
            let pause = chooser.again_at().unwrap() - now;
            assert!(pause <= AGAIN_LONGEST && (round > 8 || pause >= before), "{round}: {pause:?}");
            (before, now) = (pause, now + pause);
        }
        assert!(before >= AGAIN_LONGEST / 2);
        chooser.spoke(Which::Better);
        chooser.opened(Which::Other, true, now);
        assert!(chooser.again_at().unwrap() - now <= AGAIN_FIRST, "one that spoke begins anew");
    }

    #[test]
    fn s8_a_broken_session_is_reason_to_try_again_but_not_at_once() {
        let (mut chooser, now) = chooser(None);
        chooser.opened(Which::Other, true, now);
        chooser.lost(Which::Other, true, now + SECOND);
        assert_eq!(chooser.order(now + SECOND), [Which::Other, Which::Better]);
        assert_eq!(chooser.order(now + NOT_AGAIN_WITHIN), [Which::Better, Which::Other]);
    }

    #[test]
    fn f10_sessions_that_open_and_stay_silent_count_as_none() {
        let (mut chooser, now) = chooser(None);
        for round in 0..SILENT {
            assert_eq!(chooser.first(), Which::Better, "{round}");
            chooser.opened(Which::Better, false, now);
            chooser.lost(Which::Better, false, now);
        }
        assert_eq!(chooser.first(), Which::Other);
    }

    #[test]
    fn s8_a_relay_that_nobody_reaches_says_nothing_about_transports() {
        let (mut chooser, now) = chooser(None);
        // Tried both in vain: nothing is told, as nothing opened. And a session that spoke is lost.
        chooser.opened(Which::Better, false, now);
        chooser.spoke(Which::Better);
        chooser.lost(Which::Better, true, now);
        assert_eq!(chooser.order(now), [Which::Better, Which::Other]);
    }

    proptest! {
        #[test]
        fn s8_the_better_one_is_always_tried_again_within_a_day(
            steps in prop::collection::vec((0u8..5, 0u64..100_000), 1..60)
        ) {
            let (mut chooser, mut now) = chooser(None);
            for (what, seconds) in steps {
                now += SECOND * u32::try_from(seconds).unwrap();
                match what {
                    0 => chooser.opened(Which::Other, true, now),
                    1 => chooser.opened(Which::Better, false, now),
                    2 => chooser.lost(Which::Better, seconds % 2 == 0, now),
                    3 => chooser.lost(Which::Other, true, now),
                    _ => chooser.spoke(Which::Better),
                }
                let later = now + AGAIN_LONGEST;
                prop_assert_eq!(chooser.order(later)[0], Which::Better);
                prop_assert_eq!(chooser.first() == Which::Other, chooser.again_at().is_some());
            }
        }
    }
}
