//! What the connection manager offers, and its bounds.

use std::time::Duration;

/// Settings of the server end. The defaults are what the relay runs with.
#[derive(Clone)]
#[non_exhaustive]
pub struct BoshServerConfig {
    /// The XMPP domain served (`localhost`). Devices are `<device id>@<domain>`.
    pub domain: String,
    /// The longest wait granted to a held request (60 s). Longer: fewer empty rounds, but proxies with shorter time-outs
    /// cut the request off first.
    pub max_wait: Duration,
    /// Requests held at once at most (1). More than one costs the peer sockets and gains nothing.
    pub hold: u8,
    /// How long a session lives on with no request pending (60 s).
    pub inactivity: Duration,
    /// The same for sessions that poll, which have nothing pending most of the time (120 s).
    pub polling_inactivity: Duration,
    /// The least interval between polls that is always allowed (2 s).
    pub polling: Duration,
    /// The longest pause that a client may ask for (120 s).
    pub max_pause: Duration,
    /// How long a new session may take to authenticate and bind (15 s).
    pub authentication: Duration,
    /// Sessions that have not bound yet, in all (10,000). Above it, sources share what there is; see
    /// [`Reply::retry_after`](crate::server::Reply::retry_after).
    pub pending: usize,
    /// Failed attempts to authenticate before a session ends (3).
    pub attempts: u8,
    /// SIDs that were never ours, by source address and minute, before that address gets 429 for more of them (20).
    pub forged_per_minute: u32,
    /// The largest `<body/>` taken and sent, in bytes (256 KiB).
    pub max_body: usize,
    /// Sessions that the listener's owner has not taken yet (1,024).
    pub knocks: usize,
    /// Sends an XEP-0199 ping to a device that was silent for so long (never). Answering the held request, it finds a
    /// dead peer sooner than the wait does.
    pub ping_after: Option<Duration>,
    /// Marks SIDs as ours. Kept over restarts, a whole site that comes back with old SIDs is not taken for guessing;
    /// if `None`, each start makes a new one.
    pub sid_key: Option<[u8; 32]>,
}

impl std::fmt::Debug for BoshServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BoshServerConfig").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl BoshServerConfig {
    /// The defaults, serving `domain`.
    pub fn new(domain: impl Into<String>) -> Self {
        Self { domain: domain.into(), ..Self::default() }
    }

    /// Sets the key that marks SIDs as ours.
    #[must_use]
    pub const fn with_sid_key(mut self, key: [u8; 32]) -> Self {
        self.sid_key = Some(key);
        self
    }
}

impl Default for BoshServerConfig {
    fn default() -> Self {
        Self {
            domain: "localhost".into(),
            max_wait: Duration::from_secs(60),
            hold: 1,
            inactivity: Duration::from_secs(60),
            polling_inactivity: Duration::from_secs(120),
            polling: Duration::from_secs(2),
            max_pause: Duration::from_secs(120),
            authentication: Duration::from_secs(15),
            pending: 10_000,
            attempts: 3,
            forged_per_minute: 20,
            max_body: 256 * 1024,
            knocks: 1_024,
            ping_after: None,
            sid_key: None,
        }
    }
}
