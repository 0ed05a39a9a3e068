//! How long to wait before trying again: pure arithmetic on a seed.

use std::time::Duration;

/// Longest wait that a relay can ask for.
pub(crate) const MAX_RETRY_AFTER: Duration = relay_core::retry_after::LONGEST;

/// How a device returns to a relay that it lost.
///
/// Every wait is a random part of a window (full jitter) from the very first retry on: ten thousand devices that lose
/// their relay in the same instant must not come back in the same instant. Windows are 1 ms to 1 h.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReconnectConfig {
    /// The window of the first retry; it doubles with each failure. Default 2 s. Much shorter, and a fleet returns as
    /// one wave; much longer, and a single device is away for no reason.
    pub first: Duration,
    /// The widest window. Default 24 s: all devices of a fleet are back within half a minute of their relay.
    pub longest: Duration,
    /// How long a session has to live before the window starts anew at [`first`](Self::first). Default 3 min.
    pub stable_after: Duration,
    /// How long to stay away after another machine took over with this device's ID. Doubles each time, up to 1 h.
    /// Default 1 min.
    pub replaced: Duration,
    /// How long to wait before showing a refused credential again. Default 15 min.
    pub refused: Duration,
}

impl Default for ReconnectConfig {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(2),
            longest: Duration::from_secs(24),
            stable_after: Duration::from_secs(180),
            replaced: Duration::from_secs(60),
            refused: Duration::from_secs(900),
        }
    }
}

/// splitmix64: spreads retries. Nothing secret rests on it.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Uniform in `0..=window`.
    pub(crate) fn within(&mut self, window: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        // The high half of a 128-bit product maps 64 random bits onto the window without a division's bias.
        let part = (u128::from(z) * (u128::from(nanos) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(part).unwrap_or(nanos))
    }
}

/// Doubling windows with full jitter.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure; `retry_after` is what the relay asked for.
    pub(crate) fn next(&mut self, jitter: &mut Jitter, retry_after: Option<Duration>) -> Duration {
        let window = self.first.saturating_mul(2u32.saturating_pow(self.failures.min(30))).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        match retry_after {
            None => jitter.within(window),
            // All who were told the same time must still not come at the same time.
            Some(asked) => {
                let asked = asked.min(MAX_RETRY_AFTER);
                asked + jitter.within(window.max(asked.min(self.longest)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_secs(2), Duration::from_secs(24))
    }

    #[test]
    fn s10_jitter_is_full_from_the_first_retry_on() {
        let mut buckets = [0u32; 4];
        for seed in 0..4000 {
            let wait = backoff().next(&mut Jitter::new(seed), None);
            assert!(wait <= Duration::from_secs(2));
            buckets[usize::try_from(wait.as_millis() / 501).unwrap()] += 1;
        }
        assert!(buckets.iter().all(|n| (850..1150).contains(n)), "not uniform: {buckets:?}");
    }

    #[test]
    fn s10_windows_double_up_to_the_longest_and_start_anew() {
        let (mut backoff, mut jitter) = (backoff(), Jitter::new(7));
        for window in [2, 4, 8, 16, 24, 24, 24] {
            assert!(backoff.next(&mut jitter, None) <= Duration::from_secs(window));
        }
        for _ in 0..100 {
            assert!(backoff.next(&mut jitter, None) <= Duration::from_secs(24));
        }
        backoff.reset();
        assert!(backoff.next(&mut jitter, None) <= Duration::from_secs(2));
    }

    #[test]
    fn t52_retry_after_is_honoured_but_never_beyond_an_hour() {
        let mut jitter = Jitter::new(1);
        let wait = backoff().next(&mut jitter, Some(Duration::from_secs(5)));
        assert!((5..=10).contains(&wait.as_secs()), "{wait:?}");
        let wait = backoff().next(&mut jitter, Some(Duration::MAX));
        assert!(wait >= MAX_RETRY_AFTER && wait <= MAX_RETRY_AFTER + Duration::from_secs(24), "{wait:?}");
    }
}
