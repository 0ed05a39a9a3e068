//! How often something may happen.

use std::time::{Duration, Instant};

/// A bucket of `burst` that fills with `per_second`.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: u32,
    burst: u32,
    left: u32,
    /// When `left` was right.
    at: Instant,
}

impl Bucket {
    pub(super) const fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second, burst, left: burst, at: now }
    }

    /// Takes one; whether there was one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.left == self.burst {
            self.at = now;
        } else if self.per_second > 0 {
            let elapsed = now.saturating_duration_since(self.at);
            let new = elapsed.as_nanos().saturating_mul(self.per_second.into()) / 1_000_000_000;
            let new = u32::try_from(new).unwrap_or(u32::MAX);
            if self.left.saturating_add(new) >= self.burst {
                (self.left, self.at) = (self.burst, now);
            } else {
                self.left += new;
                // What has not made a whole one yet goes on counting.
                self.at += Duration::from_nanos(1_000_000_000 * u64::from(new) / u64::from(self.per_second));
            }
        }
        let some = self.left > 0;
        self.left -= u32::from(some);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = tokio::time::Instant::now().into_std();
        let mut bucket = Bucket::new(10, 5, start);
        assert_eq!((0..9).filter(|_| bucket.take(start)).count(), 5);
        let mut given = 0;
        for step in 1..=1000_u32 {
            given += u32::from(bucket.take(start + Duration::from_millis(7) * step));
        }
        assert_eq!(given, 70, "ten a second, over seven seconds");
        assert_eq!((0..9).filter(|_| bucket.take(start + Duration::from_secs(3600))).count(), 5);
    }
}
