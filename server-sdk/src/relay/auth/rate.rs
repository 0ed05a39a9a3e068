//! How often a source address may fail (B11).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The most addresses that are remembered. Beyond it, addresses not yet known wait until others are forgotten.
const MAX_SOURCES: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);

/// A bucket of tries for each source address, refilled over a minute.
#[derive(Debug)]
pub(super) struct Rate {
    per_minute: u32,
    sources: Mutex<Sources>,
}

#[derive(Debug)]
struct Sources {
    buckets: HashMap<IpAddr, Bucket>,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Tries left, in parts.
    left: f64,
    at: Instant,
}

impl Rate {
    pub(super) fn new(per_minute: u32) -> Self {
        let sources = Sources { buckets: HashMap::new(), swept: Instant::now() };
        Self { per_minute: per_minute.max(1), sources: Mutex::new(sources) }
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> f64 {
        let whole = f64::from(self.per_minute);
        let minutes = now.saturating_duration_since(bucket.at).as_secs_f64() / MINUTE.as_secs_f64();
        (bucket.left + minutes * whole).min(whole)
    }

    /// Takes a try of `source` before it is known how it ends, so that tries made at once count all.
    ///
    /// # Errors
    /// When to come back.
    pub(super) fn take(&self, source: IpAddr) -> Result<(), Duration> {
        let (source, now) = (network(source), Instant::now());
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.buckets.len() >= MAX_SOURCES && !sources.buckets.contains_key(&source) {
            // At most one sweep a second, or a flood of addresses would make each of its tries dear.
            if now.saturating_duration_since(sources.swept) >= Duration::from_secs(1) {
                sources.swept = now;
                let whole = f64::from(self.per_minute);
                sources.buckets.retain(|_, bucket| self.refilled(*bucket, now) < whole);
            }
            if sources.buckets.len() >= MAX_SOURCES {
                return Err(MINUTE);
            }
        }
        let full = Bucket { left: f64::from(self.per_minute), at: now };
        let bucket = sources.buckets.entry(source).or_insert(full);
        let left = self.refilled(*bucket, now);
        if left < 1.0 {
            let wait = (1.0 - left) / f64::from(self.per_minute) * MINUTE.as_secs_f64();
            return Err(Duration::from_secs_f64(wait.ceil()));
        }
        *bucket = Bucket { left: left - 1.0, at: now };
        Ok(())
    }

    /// Gives a try back that did not fail: a site of 1,000 devices behind one address enrols unhindered (B10).
    pub(super) fn give_back(&self, source: IpAddr) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = sources.buckets.get_mut(&network(source)) {
            bucket.left = (bucket.left + 1.0).min(f64::from(self.per_minute));
        }
    }
}

/// What one customer of a network has: an IPv4 address, or 64 bits of an IPv6 one.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(source) => source.into(),
        IpAddr::V6(source) => std::net::Ipv6Addr::from_bits(source.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn b11_a_source_fails_ten_times_a_minute_and_no_more() {
        let rate = Rate::new(10);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for _ in 0..10 {
            rate.take(one).unwrap();
        }
        assert_eq!(rate.take(one), Err(Duration::from_secs(6)));
        assert_eq!(rate.take("::ffff:192.0.2.1".parse().unwrap()), Err(Duration::from_secs(6)));
        rate.take(other).unwrap();
        tokio::time::advance(Duration::from_secs(7)).await;
        rate.take(one).unwrap();
        assert!(rate.take(one).is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        for _ in 0..10 {
            rate.take(one).unwrap();
        }
        assert!(rate.take(one).is_err(), "an hour of rest is worth a minute's tries");
        rate.give_back(one);
        rate.take(one).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn b11_what_is_remembered_of_sources_is_bounded() {
        let rate = Rate::new(10);
        let source = |n: usize| IpAddr::from(std::net::Ipv4Addr::from_bits(u32::try_from(n).unwrap()));
        for n in 0..MAX_SOURCES {
            rate.take(source(n)).unwrap();
        }
        assert_eq!(rate.take(source(MAX_SOURCES)), Err(MINUTE));
        rate.take(source(7)).unwrap();
        tokio::time::advance(MINUTE).await;
        rate.take(source(MAX_SOURCES)).unwrap();
        assert_eq!(rate.sources.lock().unwrap().buckets.len(), 1);
        let two_of_one_network: [IpAddr; 2] =
            ["2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        assert_eq!(network(two_of_one_network[0]), network(two_of_one_network[1]));
    }
}
