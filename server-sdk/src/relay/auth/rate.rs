//! How often a source address may fail (B11).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

/// The most addresses that are remembered. Beyond it, addresses not yet known wait until others are forgotten.
const MAX_SOURCES: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);
/// Who may wait for tries of their own address to end, and how long.
const WAITING: usize = 1024;
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A bucket of failures for each source address, refilled over a minute.
#[derive(Debug)]
pub(super) struct Rate {
    per_minute: u32,
    sources: Mutex<Sources>,
    ended: Notify,
    waiting: Semaphore,
}

#[derive(Debug)]
struct Sources {
    buckets: HashMap<IpAddr, Bucket>,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Failures that are left, in parts.
    left: f64,
    at: Instant,
    /// Tries of which the end is not known: any of them may fail.
    running: u32,
}

/// Why a source may not try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotNow {
    /// It failed too often; how long until it may again.
    Failed(Duration),
    /// Too many tries run; how long until it may be worth asking.
    Busy(Duration),
}

/// A try under way. Dropped without [`Try::succeeded`], it has failed.
#[derive(Debug)]
pub(super) struct Try<'a> {
    rate: &'a Rate,
    source: IpAddr,
    failed: bool,
}

impl Try<'_> {
    /// It did not fail: a site of 1,000 devices behind one address enrols unhindered (B10).
    pub(super) fn succeeded(mut self) {
        self.failed = false;
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut sources = self.rate.lock();
        if let Some(bucket) = sources.buckets.get_mut(&self.source) {
            let cost = if self.failed { 1.0 } else { 0.0 };
            bucket.left = self.rate.refilled(*bucket, now) - cost;
            bucket.at = now;
            bucket.running = bucket.running.saturating_sub(1);
        }
        drop(sources);
        self.rate.ended.notify_waiters();
    }
}

impl Rate {
    pub(super) fn new(per_minute: u32) -> Self {
        let sources = Sources { buckets: HashMap::new(), swept: Instant::now() };
        Self {
            per_minute: per_minute.max(1),
            sources: Mutex::new(sources),
            ended: Notify::new(),
            waiting: Semaphore::new(WAITING),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> f64 {
        let whole = f64::from(self.per_minute);
        let minutes = now.saturating_duration_since(bucket.at).as_secs_f64() / MINUTE.as_secs_f64();
        (bucket.left + minutes * whole).min(whole)
    }

    /// Begins a try of `source`. While so many run that, if all failed, there were none left, it waits for them.
    pub(super) async fn begin(&self, source: IpAddr) -> Result<Try<'_>, NotNow> {
        let source = network(source);
        let give_up = Instant::now() + LONGEST_WAIT;
        let mut place = None;
        loop {
            // Before looking: what ends from now on is heard.
            let ended = self.ended.notified();
            match self.try_begin(source) {
                Ok(one) => return Ok(one),
                Err(NotNow::Busy(wait)) if place.is_none() => {
                    place = Some(self.waiting.try_acquire().map_err(|_| NotNow::Busy(wait))?);
                }
                Err(NotNow::Busy(_)) => {}
                Err(failed) => return Err(failed),
            }
            if tokio::time::timeout_at(give_up, ended).await.is_err() {
                return Err(NotNow::Busy(LONGEST_WAIT));
            }
        }
    }

    fn try_begin(&self, source: IpAddr) -> Result<Try<'_>, NotNow> {
        let now = Instant::now();
        let mut sources = self.lock();
        if sources.buckets.len() >= MAX_SOURCES && !sources.buckets.contains_key(&source) {
            // At most one sweep a second, or a flood of addresses would make each of its tries dear.
            if now.saturating_duration_since(sources.swept) >= Duration::from_secs(1) {
                sources.swept = now;
                let whole = f64::from(self.per_minute);
                sources.buckets.retain(|_, bucket| bucket.running > 0 || self.refilled(*bucket, now) < whole);
            }
            if sources.buckets.len() >= MAX_SOURCES {
                return Err(NotNow::Failed(MINUTE));
            }
        }
        let full = Bucket { left: f64::from(self.per_minute), at: now, running: 0 };
        let bucket = sources.buckets.entry(source).or_insert(full);
        *bucket = Bucket { left: self.refilled(*bucket, now), at: now, ..*bucket };
        if bucket.left < 1.0 {
            let wait = (1.0 - bucket.left) / f64::from(self.per_minute) * MINUTE.as_secs_f64();
            return Err(NotNow::Failed(Duration::from_secs_f64(wait.ceil())));
        }
        if bucket.left - f64::from(bucket.running) < 1.0 {
            return Err(NotNow::Busy(LONGEST_WAIT));
        }
        bucket.running += 1;
        Ok(Try { rate: self, source, failed: true })
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

    async fn fail(rate: &Rate, source: IpAddr) -> Result<(), NotNow> {
        rate.begin(source).await.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn b11_a_source_fails_ten_times_a_minute_and_no_more() {
        let rate = Rate::new(10);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for _ in 0..10 {
            fail(&rate, one).await.unwrap();
        }
        let six = Err(NotNow::Failed(Duration::from_secs(6)));
        assert_eq!(fail(&rate, one).await, six);
        assert_eq!(fail(&rate, "::ffff:192.0.2.1".parse().unwrap()).await, six);
        fail(&rate, other).await.unwrap();
        tokio::time::advance(Duration::from_secs(7)).await;
        fail(&rate, one).await.unwrap();
        assert!(fail(&rate, one).await.is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        for _ in 0..10 {
            fail(&rate, one).await.unwrap();
        }
        assert!(fail(&rate, one).await.is_err(), "an hour of rest is worth a minute's tries");
    }

    #[tokio::test(start_paused = true)]
    async fn b10_any_number_succeeds_from_one_address_and_tries_at_once_cannot_fail_more_than_ten_times() {
        let rate = Rate::new(10);
        let source = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..100 {
            rate.begin(source).await.unwrap().succeeded();
        }
        let mut running = Vec::new();
        for _ in 0..10 {
            running.push(rate.begin(source).await.unwrap());
        }
        // The eleventh waits until one has ended, for as long as one may.
        assert_eq!(fail(&rate, source).await, Err(NotNow::Busy(LONGEST_WAIT)));
        let eleventh = async { rate.begin(source).await.map(Try::succeeded) };
        let end = async { running.pop().unwrap().succeeded() };
        let (eleventh, ()) = tokio::join!(eleventh, end);
        eleventh.unwrap();
        drop(running);
        fail(&rate, source).await.unwrap();
        assert!(matches!(fail(&rate, source).await, Err(NotNow::Failed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn b11_what_is_remembered_of_sources_is_bounded() {
        let rate = Rate::new(10);
        let source = |n: usize| IpAddr::from(std::net::Ipv4Addr::from_bits(u32::try_from(n).unwrap()));
        for n in 0..MAX_SOURCES {
            fail(&rate, source(n)).await.unwrap();
        }
        assert_eq!(fail(&rate, source(MAX_SOURCES)).await, Err(NotNow::Failed(MINUTE)));
        fail(&rate, source(7)).await.unwrap();
        tokio::time::advance(MINUTE).await;
        fail(&rate, source(MAX_SOURCES)).await.unwrap();
        assert_eq!(rate.sources.lock().unwrap().buckets.len(), 1);
        let two_of_one_network: [IpAddr; 2] =
            ["2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        assert_eq!(network(two_of_one_network[0]), network(two_of_one_network[1]));
    }
}
