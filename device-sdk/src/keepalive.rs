//! How long the network in between leaves an idle connection alone: found by trying, not guessed (S4). No I/O, no clock.
//!
//! ```text
//! climb, half as long again each time ── cut ─▶ halve what is left between survived and cut ── close enough ─▶ settled
//! settled ── cut earlier than believed ─▶ begin anew       settled for a day ─▶ climb again
//! ```
//!
//! A cut costs a connection, a survival nothing, so it comes from below. A connection that is closed before its time says
//! itself how long it was left alone; one that merely went silent says only that it was too long.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A climb is by half.
const CLIMB: f64 = 1.5;
/// How close survived and cut have to be.
const CLOSE: f64 = 1.12;
/// How far under what survived it settles: clocks and networks are not exact.
const UNDER: f64 = 0.97;
/// A settled interval is doubted after this long: what cut it may be gone.
const DOUBTED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What was learned of one network, in milliseconds: an idle time that connections survive, and one that they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lesson {
    survived: u64,
    cut: u64,
}

/// Finds the interval.
#[derive(Debug, Clone)]
pub(crate) struct Learner {
    shortest: Duration,
    longest: Duration,
    /// The longest idle time that a connection is believed to survive.
    survived: Duration,
    /// The shortest after which one was cut.
    cut: Option<Duration>,
    interval: Duration,
    settled_at: Option<Instant>,
}

impl Learner {
    /// Between `shortest` and `longest`, beginning with `first`. `shortest` is taken for what every network survives.
    pub(crate) fn new(shortest: Duration, longest: Duration, first: Duration) -> Self {
        let longest = longest.max(shortest);
        let interval = first.clamp(shortest, longest);
        Self { shortest, longest, survived: shortest, cut: None, interval, settled_at: None }
    }

    /// How long a connection may be idle before something is to be sent.
    pub(crate) const fn interval(&self) -> Duration {
        self.interval
    }

    /// What was learned, once it is settled.
    pub(crate) fn lesson(&self) -> Option<Lesson> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).ok();
        self.settled_at?;
        Some(Lesson { survived: millis(self.survived)?, cut: millis(self.cut?)? })
    }

    /// Begins with what was learned before. What cannot have been is not believed.
    pub(crate) fn recall(&mut self, lesson: Lesson, now: Instant) {
        let [survived, cut] = [lesson.survived, lesson.cut].map(Duration::from_millis);
        if self.shortest <= survived && survived < cut && survived <= self.longest {
            (self.survived, self.cut) = (survived, Some(cut));
            self.go_on(now);
        }
    }

    /// Whether there is nothing to be learned for now.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled_at.is_some() || self.survived >= self.longest
    }

    /// After so long, something still came through.
    pub(crate) fn survived(&mut self, idle: Duration, now: Instant) {
        let idle = whole_millis(idle.min(self.longest));
        if self.settled_at.is_some_and(|at| now.saturating_duration_since(at) >= DOUBTED_AFTER) {
            (self.cut, self.settled_at) = (None, None);
        }
        if idle > self.survived {
            self.survived = idle;
            // What was cut once is not any more.
            self.cut = self.cut.filter(|cut| *cut > idle);
        }
        // Less than was tried says nothing about it.
        if idle >= self.interval.mul_f64(UNDER) {
            self.go_on(now);
        }
    }

    /// After so long, the connection was gone. `seen`: it was closed then; else it was found dead.
    pub(crate) fn was_cut(&mut self, idle: Duration, seen: bool, now: Instant) {
        if idle < self.shortest {
            // Not for being idle.
            return;
        }
        let idle = whole_millis(idle);
        self.settled_at = None;
        self.cut = Some(idle);
        if idle <= self.survived {
            // Earlier than believed: another network.
            self.survived = self.shortest;
        }
        self.go_on(now);
        if seen && self.settled_at.is_none() {
            // It said itself how long; just under that is the next to be tried.
            self.interval = idle.div_f64(CLOSE).max(self.survived).min(self.longest);
        }
    }

    fn go_on(&mut self, now: Instant) {
        let Self { shortest, longest, survived, cut, .. } = *self;
        self.interval = match cut {
            None => survived.mul_f64(CLIMB).min(longest),
            Some(cut) if cut.as_secs_f64() <= survived.as_secs_f64() * CLOSE => {
                self.settled_at.get_or_insert(now);
                survived.mul_f64(UNDER).max(shortest)
            }
            Some(cut) => {
                let middle = (survived.as_secs_f64() * cut.as_secs_f64()).sqrt();
                survived.mul_f64(CLIMB).min(Duration::from_secs_f64(middle)).min(longest)
            }
        };
    }
}

/// What is remembered is what is known.
fn whole_millis(time: Duration) -> Duration {
    time - Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000_000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Networks that cut what is idle, one after the other.
    struct Network {
        learner: Learner,
        now: Instant,
        silent: bool,
    }

    impl Network {
        fn new(silent: bool) -> Self {
            Self { learner: Learner::new(seconds(10), seconds(900), seconds(50)), now: crate::now(), silent }
        }

        /// One interval of a connection that is left alone for `limit`; whether it was cut.
        fn step(&mut self, limit: Duration) -> bool {
            let interval = self.learner.interval();
            self.now += interval;
            let cut = interval >= limit;
            match (cut, self.silent) {
                (false, _) => self.learner.survived(interval, self.now),
                (true, true) => self.learner.was_cut(interval, false, self.now),
                (true, false) => self.learner.was_cut(limit, true, self.now),
            }
            cut
        }

        /// How many cuts it took.
        fn learn(&mut self, limit: Duration) -> u32 {
            let mut cuts = 0;
            for _ in 0..200 {
                cuts += u32::from(self.step(limit));
                if self.learner.is_settled() {
                    break;
                }
            }
            // What was learned holds.
            for _ in 0..50 {
                cuts += u32::from(self.step(limit));
            }
            cuts
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn f9_s4_any_limit_is_learned_in_five_cuts_and_again_when_it_changes(
            limits in prop::collection::vec(11_000u64..1_200_000, 1..6),
            silent in any::<bool>(),
        ) {
            let mut network = Network::new(silent);
            for limit in limits.into_iter().map(Duration::from_millis) {
                let before = network.learner.interval();
                let cuts = network.learn(limit);
                let learned = network.learner.interval();
                prop_assert!(cuts <= 5, "{cuts} cuts for {limit:?}");
                prop_assert!(learned < limit, "{learned:?} is not under {limit:?}");
                let within_bounds = limit.min(seconds(900));
                if cuts > 0 {
                    prop_assert!(learned.as_secs_f64() >= within_bounds.as_secs_f64() * 0.85, "{learned:?} for {limit:?}");
                } else {
                    prop_assert!(learned >= before.mul_f64(0.96));
                }
                // A day later it is looked for again, so that a network that became better is found out, too.
                network.now += DOUBTED_AFTER;
                let again = network.learn(limit);
                let learned = network.learner.interval();
                prop_assert!(again <= 5, "{again} cuts the second time, for {limit:?}");
                prop_assert!(learned < limit && learned.as_secs_f64() >= within_bounds.as_secs_f64() * 0.85, "{learned:?} for {limit:?}");
            }
        }

        #[test]
        fn s4_whatever_happens_the_interval_stays_within_its_bounds(
            steps in prop::collection::vec((0u64..2_000_000, any::<bool>(), any::<bool>()), 1..100)
        ) {
            let mut learner = Learner::new(seconds(10), seconds(900), seconds(50));
            let mut now = crate::now();
            for (idle, seen, cut) in steps {
                let idle = Duration::from_millis(idle);
                now += idle;
                if cut { learner.was_cut(idle, seen, now) } else { learner.survived(idle, now) }
                prop_assert!((seconds(10)..=seconds(900)).contains(&learner.interval()));
            }
        }
    }

    #[test]
    fn s4_a_network_that_cuts_nothing_is_left_at_the_longest() {
        let mut network = Network::new(true);
        assert_eq!(network.learn(seconds(100_000)), 0);
        assert_eq!(network.learner.interval(), seconds(900));
    }

    #[test]
    fn s4_what_a_network_allows_is_learned_both_ways() {
        for silent in [false, true] {
            let mut network = Network::new(silent);
            for limit in [seconds(30), seconds(300), seconds(20), seconds(700)] {
                let cuts = network.learn(limit);
                assert!(cuts <= 5, "{cuts} cuts for {limit:?}");
                // More is looked for after a day.
                network.now += DOUBTED_AFTER;
                let cuts = network.learn(limit);
                assert!(cuts <= 5, "{cuts} cuts for {limit:?}");
                let learned = network.learner.interval();
                assert!(learned < limit && learned > limit.mul_f64(0.85), "{learned:?} for {limit:?}");
            }
        }
    }

    #[test]
    fn s4_what_was_learned_before_is_begun_with_and_costs_no_cut() {
        let mut before = Network::new(true);
        before.learn(seconds(120));
        let lesson = before.learner.lesson().unwrap();
        let mut after = Network::new(true);
        assert_eq!(after.learner.lesson(), None, "nothing was learned yet");
        after.learner.recall(lesson, after.now);
        assert_eq!(after.learner.interval(), before.learner.interval());
        assert_eq!(after.learn(seconds(120)), 0);
        // And what changed meanwhile is found out.
        let mut other = Network::new(true);
        other.learner.recall(lesson, other.now);
        assert!((1..=5).contains(&other.learn(seconds(25))));
    }

    #[test]
    fn s4_what_cannot_have_been_learned_is_not_believed() {
        for (survived, cut) in [(0, 0), (0, 50_000), (9_000, 12_000), (60_000, 60_000), (u64::MAX, u64::MAX)]
        {
            let mut learner = Learner::new(seconds(10), seconds(900), seconds(50));
            learner.recall(Lesson { survived, cut }, crate::now());
            assert_eq!(learner.interval(), seconds(50), "{survived} {cut}");
        }
    }

    #[test]
    fn s4_a_connection_that_was_busy_was_not_cut_for_being_idle() {
        let mut learner = Learner::new(seconds(10), seconds(900), seconds(50));
        learner.was_cut(seconds(3), true, crate::now());
        assert_eq!(learner.interval(), seconds(50));
    }
}
