//! The relay: the engine's machines in a thin tokio shell.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    ids::{DeviceId, RequestId, SessionId},
    outcome::{CallError, Disposition, RequestError},
    request::{Call, Request, Response},
    transport::Listener,
};

/// Whether a device can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// A push can go to it.
    Online,
    /// It cannot be reached.
    Offline,
    /// It sleeps and can be woken.
    Asleep,
}

impl State {
    /// The word in inquiries and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Asleep => "asleep",
        }
    }
}

/// What is known of a device's being reachable, with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Presence {
    /// Whether it can be reached.
    pub state: State,
    /// Grows with each new session of the device; 0 if it never had one.
    pub epoch: u64,
    /// How long ago it was last heard; `None` if never since the relay started.
    pub last_heard: Option<Duration>,
    /// Within how long its loss would be noticed.
    pub detects_loss_within: Duration,
    /// Which transport carries its session.
    pub transport: Option<&'static str>,
}

/// The device's answer, and the ID under which the call ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The request's ID.
    pub id: RequestId,
    /// What the device said.
    pub response: Response,
}

/// A hook that puts a service's request into the form that a device model understands, and the answer back (Q6).
#[async_trait]
pub trait Translate: std::fmt::Debug + Send + Sync + 'static {
    /// The request as the device is to get it.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with words for the caller.
    async fn request(&self, request: Request) -> Result<Request, RequestError>;

    /// The response as the service is to get it; `request` is what the service asked.
    async fn response(&self, request: &Request, response: Response) -> Response;
}

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
        }
    }
}

/// A relay. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Relay {}

impl Relay {
    /// A relay of `config`, with no hook.
    pub fn new(config: RelayConfig) -> Self {
        let _ = config;
        Self {}
    }

    /// The same relay, which runs requests and responses through `translate`.
    #[must_use]
    pub fn with_translate(self, translate: Arc<dyn Translate>) -> Self {
        let _ = translate;
        self
    }

    /// Makes `device` known: offline from now on, not unknown. `keepalive` is what it registered; its presence timer is
    /// twice that, if that is longer than the relay's.
    pub fn know(&self, device: &DeviceId, keepalive: Option<Duration>) {
        let _ = (device, keepalive);
    }

    /// Whether `device` is known.
    pub fn knows(&self, device: &DeviceId) -> bool {
        let _ = device;
        false
    }

    /// Any word from `device` outside its session: restarts its presence timer.
    pub fn heard(&self, device: &DeviceId) {
        let _ = device;
    }

    /// Survival notification: whether `session` is the session of `device`, by its ID or one that it had.
    pub fn alive(&self, device: &DeviceId, session: &SessionId) -> bool {
        let _ = (device, session);
        false
    }

    /// What is known of `device`; `None` if it is not known at all.
    pub fn presence(&self, device: &DeviceId) -> Option<Presence> {
        let _ = device;
        None
    }

    /// Asks a device and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`], which says how far the request came.
    ///
    /// # Cancel safety
    /// Dropped, the request is cancelled: the device is told, and a late response is [`Disposition::TooLate`].
    #[expect(clippy::unused_async, reason = "being laid")]
    pub async fn request(&self, call: Call) -> Result<Answer, CallError> {
        let _ = call;
        Err(RequestError::UnknownDevice.into())
    }

    /// A response from `device`, however it came.
    pub fn respond(&self, device: &DeviceId, id: &RequestId, response: Response) -> Disposition {
        let _ = (device, id, response);
        Disposition::Unknown
    }

    /// Takes in whoever knocks at `listener`, until it closes or the relay shuts down. Resolves then.
    #[expect(clippy::unused_async, reason = "being laid")]
    pub async fn serve(&self, listener: Box<dyn Listener>) {
        let _ = listener;
    }

    /// Takes no new calls and sessions, gives those in flight until `grace` is over, tells devices to come back after
    /// `retry_after`, and ends every session.
    #[expect(clippy::unused_async, reason = "being laid")]
    pub async fn shutdown(&self, grace: Duration, retry_after: Duration) {
        let _ = (grace, retry_after);
    }
}
