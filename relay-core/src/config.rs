//! The engine's bounds and times.

use std::time::Duration;

/// The relay's bounds and times.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayConfig {
    /// Requests in flight to one device (64).
    pub device_in_flight: usize,
    /// Requests in flight in all (50,000).
    pub relay_in_flight: usize,
    /// Envelopes in one session's outbox (64).
    pub outbox_envelopes: usize,
    /// Bytes in one session's outbox (1 MiB).
    pub outbox_bytes: usize,
    /// How long a broken connection leaves a device online (10 s).
    pub resume_window: Duration,
    /// How long a silent device stays online, unless it registered otherwise (120 s).
    pub presence_timer: Duration,
    /// How long a finished request is remembered (10 min).
    pub finished_for: Duration,
    /// How many finished requests are remembered (100,000).
    pub finished_max: usize,
    /// Sessions that one device may open in a minute (6).
    pub sessions_per_minute: u32,
    /// Sessions that one device may open at once, before that rate counts (10).
    pub session_burst: u32,
    /// Sessions in all (100,000).
    pub sessions: usize,
    /// How long a device that opened a job's app may say nothing of it (60 s).
    pub job_silence: Duration,
    /// How many of the last changes of presence are remembered for watchers that come back (10,000).
    pub presence_log: usize,
    /// How many changes a watcher may leave unread (1,000).
    pub watcher_behind: usize,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            device_in_flight: 64,
            relay_in_flight: 50_000,
            outbox_envelopes: 64,
            outbox_bytes: 1024 * 1024,
            resume_window: Duration::from_secs(10),
            presence_timer: Duration::from_secs(120),
            finished_for: Duration::from_secs(600),
            finished_max: 100_000,
            sessions_per_minute: 6,
            session_burst: 10,
            sessions: 100_000,
            job_silence: Duration::from_secs(60),
            presence_log: 10_000,
            watcher_behind: 1_000,
        }
    }
}
