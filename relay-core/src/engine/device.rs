//! What a shard keeps of one device and its session. Small: there is one per known device.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::{outbox::Outbox, timers::TimerKey};
use crate::{
    ids::{DeviceId, RequestId, SessionId},
    presence::State,
};

/// Where a device is in its shard. Devices stay where they are for as long as the relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DeviceKey(pub(super) u32);

/// Distinguishes the sessions of one relay's life; a word from an older one changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    pub(crate) device: DeviceKey,
    pub(crate) number: u64,
}

#[derive(Debug)]
pub(crate) struct Device<H> {
    pub(crate) name: DeviceId,
    /// How long it may be silent; `None` is the relay's default.
    pub(crate) presence_timer: Option<Duration>,
    pub(crate) last_heard: Option<Instant>,
    pub(crate) epoch: u64,
    pub(crate) state: State,
    pub(crate) session: Option<Box<Session<H>>>,
    /// The IDs of the last session that ended, which a new one may ask to go on with.
    pub(crate) former: Vec<SessionId>,
    /// Requests in flight, in the order of their calls.
    pub(crate) in_flight: SmallVec<[RequestId; 1]>,
    /// Requests that were sent and are to be sent again on the next session.
    pub(crate) resend: Vec<RequestId>,
    pub(crate) openings: Bucket,
    pub(crate) silence: Option<TimerKey>,
}

impl<H> Device<H> {
    pub(crate) fn new(name: DeviceId) -> Self {
        Self {
            name,
            presence_timer: None,
            last_heard: None,
            epoch: 0,
            state: State::Offline,
            session: None,
            former: Vec::new(),
            in_flight: SmallVec::new(),
            resend: Vec::new(),
            openings: Bucket::default(),
            silence: None,
        }
    }

    /// Its session, if that is still the one called `key`.
    pub(crate) fn session(&mut self, key: SessionKey) -> Option<&mut Session<H>> {
        self.session.as_deref_mut().filter(|session| session.key == key)
    }
}

#[derive(Debug)]
pub(crate) struct Session<H> {
    pub(crate) key: SessionKey,
    /// The ID in force first, then every other that it has had.
    pub(crate) ids: Vec<SessionId>,
    pub(crate) transport: &'static str,
    pub(crate) max_body: usize,
    /// Where to push; `None` once the transport gave up and only the resume window keeps the device online.
    pub(crate) handle: Option<H>,
    pub(crate) attached: bool,
    /// Since when it has no connection, if it had one and may get another.
    pub(crate) detached: Option<Instant>,
    /// Looks at it when a resume window may be over; not moved when a connection comes back.
    pub(crate) resume_window: Option<TimerKey>,
    pub(crate) outbox: Outbox,
    /// Whether somebody is already taking from the outbox.
    pub(crate) pumping: bool,
    pub(crate) taken: u64,
    /// Requests taken and not confirmed, by their numbers.
    pub(crate) unconfirmed: SmallVec<[(u64, RequestId); 1]>,
}

/// A token bucket. Full until first used.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    missing: f32,
    since: Option<Instant>,
}

impl Bucket {
    /// Takes one token of `burst`, refilled at `per_minute`, or says when there will be one.
    pub(crate) fn take(&mut self, now: Instant, per_minute: u32, burst: u32) -> Result<(), Duration> {
        let rate = per_minute.max(1) as f32 / 60.0;
        let elapsed = self.since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f32());
        let missing = (self.missing - elapsed * rate).max(0.0);
        if missing + 1.0 > burst.max(1) as f32 {
            return Err(Duration::from_secs_f32((missing + 1.0 - burst.max(1) as f32) / rate));
        }
        self.missing = missing + 1.0;
        self.since = Some(now);
        Ok(())
    }
}
