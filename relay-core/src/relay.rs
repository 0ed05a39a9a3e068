//! The relay: the engine's machines in a thin tokio shell.

mod changes;
mod clock;
mod handle;
mod jobs;

use std::{
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use foldhash::quality::RandomState;
use tokio::sync::{Semaphore, oneshot, watch};

pub use self::{
    changes::{Changes, PresenceChange, PresenceWatch, Watch, WatchEnd},
    jobs::{Job, JobCall, JobData},
};
use self::{clock::Clock, handle::Handle, jobs::Jobs};
pub use crate::{
    config::RelayConfig,
    presence::{Presence, State},
};
use crate::{
    engine::{Effect, Shard},
    ids::{DeviceId, RequestId, SessionId},
    outcome::{CallError, Disposition, RequestError},
    request::{Call, Request, Response},
    request_ids::{MacRequestIds, Place, RequestIds},
    transport::{CloseReason, Incoming, Listener},
};

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
pub trait Translate: fmt::Debug + Send + Sync + 'static {
    /// The request as the device is to get it.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with words for the caller.
    async fn request(&self, request: Request) -> Result<Request, RequestError>;

    /// The response as the service is to get it; `request` is what the service asked.
    async fn response(&self, request: &Request, response: Response) -> Response;
}

type Waiter = oneshot::Sender<Result<Response, RequestError>>;
type EngineShard = Shard<Waiter, Arc<Handle>>;

/// How many peers may be in their handshake at once; whoever knocks beyond is let go.
const HANDSHAKES: usize = 10_000;
/// How long sessions get to take their leave.
const FAREWELL: Duration = Duration::from_secs(5);

/// A relay. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Relay {
    inner: Arc<Inner>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("shards", &self.inner.shards.len()).finish_non_exhaustive()
    }
}

struct Inner {
    config: Arc<RelayConfig>,
    shards: Box<[Mutex<EngineShard>]>,
    hasher: RandomState,
    ids: Arc<dyn RequestIds>,
    translate: Option<Arc<dyn Translate>>,
    in_flight: AtomicUsize,
    sessions: AtomicUsize,
    opened: AtomicU64,
    refused: AtomicU64,
    next_session: AtomicU64,
    handshakes: Arc<Semaphore>,
    stopping: watch::Sender<bool>,
    farewells: AtomicUsize,
    changes: Changes<PresenceChange>,
    jobs: Jobs,
    clock: Clock,
}

/// What a [`Relay`] is made of. All parts have defaults.
#[derive(Debug, Default)]
pub struct RelayBuilder {
    config: RelayConfig,
    ids: Option<Arc<dyn RequestIds>>,
    translate: Option<Arc<dyn Translate>>,
}

impl RelayBuilder {
    /// Bounds and times other than the defaults.
    #[must_use]
    pub fn config(mut self, config: RelayConfig) -> Self {
        self.config = config;
        self
    }

    /// Request IDs other than [`MacRequestIds::random`].
    #[must_use]
    pub fn request_ids(mut self, ids: Arc<dyn RequestIds>) -> Self {
        self.ids = Some(ids);
        self
    }

    /// Runs requests and responses through `translate` (Q6).
    #[must_use]
    pub fn translate(mut self, translate: Arc<dyn Translate>) -> Self {
        self.translate = Some(translate);
        self
    }

    /// Makes the relay. It needs a tokio runtime from its first [`Relay::serve`] on.
    pub fn build(self) -> Relay {
        let config = Arc::new(self.config);
        // A few shards a core: enough that two threads seldom want the same one.
        let cores = std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
        let shards = (cores * 4).next_power_of_two();
        let shard = || Mutex::new(Shard::new(Arc::clone(&config), shards));
        let inner = Inner {
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            hasher: RandomState::default(),
            ids: self.ids.unwrap_or_else(|| Arc::new(MacRequestIds::random())),
            translate: self.translate,
            in_flight: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            next_session: AtomicU64::new(1),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            stopping: watch::Sender::new(false),
            farewells: AtomicUsize::new(0),
            changes: Changes::new(config.presence_log, config.watcher_behind),
            jobs: Jobs::default(),
            clock: Clock::new(),
            config,
        };
        Relay { inner: Arc::new(inner) }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self::builder().build()
    }
}

impl Relay {
    /// A relay to be.
    pub fn builder() -> RelayBuilder {
        RelayBuilder::default()
    }

    /// Makes `device` known: offline from now on, not unknown.
    pub fn know(&self, device: &DeviceId) {
        self.inner.with_device(device, |shard, _| {
            shard.know(device);
        });
    }

    /// Takes in what `device` registered, which makes it known too: its presence timer is twice `keepalive`, if that is
    /// longer than the relay's, and the relay's if it has none.
    pub fn registered(&self, device: &DeviceId, keepalive: Option<Duration>) {
        self.inner.with_device(device, |shard, _| shard.registered(device, keepalive));
    }

    /// The credential of `device` no longer holds: ends its session and its channels. Its requests in flight wait for the
    /// next one.
    pub fn revoke(&self, device: &DeviceId) {
        self.inner.with_device(device, |shard, now| shard.revoke(now, device));
        self.inner.jobs.hang_up(device);
    }

    /// Whether `device` is known.
    pub fn knows(&self, device: &DeviceId) -> bool {
        self.inner.with_device(device, |shard, _| shard.find(device).is_some())
    }

    /// Any word from `device` outside its session: restarts its presence timer.
    pub fn heard(&self, device: &DeviceId) {
        self.inner.with_device(device, |shard, now| {
            shard.heard(now, device);
        });
    }

    /// Survival notification: whether `session` is the session of `device`, by its ID or one that it had.
    pub fn alive(&self, device: &DeviceId, session: &SessionId) -> bool {
        self.inner.with_device(device, |shard, now| shard.alive(now, device, session))
    }

    /// What is known of `device`; `None` if it is not known at all.
    pub fn presence(&self, device: &DeviceId) -> Option<Presence> {
        self.inner.with_device(device, |shard, now| shard.presence(now, device))
    }

    /// Watches devices come and go, from now on.
    pub fn watch_presence(&self) -> PresenceWatch {
        self.inner.changes.watch()
    }

    /// Goes on with a watch from its [position](Watch::position). `None`: that is not remembered, so who wants
    /// to know how things are has to look anew.
    pub fn watch_presence_after(&self, position: u64) -> Option<PresenceWatch> {
        self.inner.changes.watch_after(position)
    }

    /// Sessions there are now.
    pub fn sessions(&self) -> usize {
        self.inner.sessions.load(Ordering::Relaxed)
    }

    /// Sessions that were ever taken in.
    pub fn sessions_opened(&self) -> u64 {
        self.inner.opened.load(Ordering::Relaxed)
    }

    /// Sessions that were authenticated and turned away all the same: over a rate or a bound, or the relay stops.
    pub fn sessions_refused(&self) -> u64 {
        self.inner.refused.load(Ordering::Relaxed)
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Ordering::Relaxed)
    }

    /// Whether [`Relay::shutdown`] was called.
    pub fn is_draining(&self) -> bool {
        *self.inner.stopping.borrow()
    }

    /// Asks a device and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`], which says how far the request came.
    ///
    /// # Cancel safety
    /// Dropped, the request is cancelled: the device is told, and a late response is [`Disposition::TooLate`].
    pub async fn request(&self, call: Call) -> Result<Answer, CallError> {
        let Call { request, wait } = call;
        if self.is_draining() {
            return Err(RequestError::Draining.into());
        }
        let _place = self.inner.place_in_flight()?;
        let wait = wait.min(Call::MAX_WAIT);
        match &self.inner.translate {
            None => self.run(request, wait).await,
            // In a box, since few relays have a hook and every waiting call would carry the room for it.
            Some(translate) => Box::pin(self.run_translated(&**translate, request, wait)).await,
        }
    }

    /// The hook's time is the call's too: one that stalls holds up its own call, and that not for ever.
    async fn run_translated(
        &self,
        translate: &dyn Translate,
        asked: Request,
        wait: Duration,
    ) -> Result<Answer, CallError> {
        let deadline = tokio::time::Instant::now() + wait;
        let translated = tokio::time::timeout_at(deadline, translate.request(asked.clone())).await;
        let request = translated.map_err(|_| RequestError::NotSent)??;
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let Answer { id, response } = self.run(request, left).await?;
        match tokio::time::timeout_at(deadline, translate.response(&asked, response)).await {
            Ok(response) => Ok(Answer { id, response }),
            Err(_) => Err(CallError { id: Some(id), error: RequestError::NotTranslated }),
        }
    }

    async fn run(&self, request: Request, wait: Duration) -> Result<Answer, CallError> {
        let (waiter, answer) = oneshot::channel();
        let slot = self.inner.slot(&request.device);
        let id = self.inner.ids.issue(Place { node: 0, slot });
        let request = Arc::new(request);
        self.inner.with_slot(slot, |shard, now| shard.request(now, id.clone(), request, wait, waiter))?;
        let mut hang_up = HangUp { inner: &self.inner, slot, id: Some(id) };
        let result = answer.await;
        let Some(id) = hang_up.id.take() else { return Err(RequestError::Draining.into()) };
        match result {
            Ok(Ok(response)) => Ok(Answer { id, response }),
            Ok(Err(error)) => Err(CallError { id: Some(id), error }),
            // The engine ends every call before it forgets it; without an engine nobody knows how far it got.
            Err(_) => Err(CallError { id: Some(id), error: RequestError::DeviceTimeout { received: false } }),
        }
    }

    /// A response from `device`, however it came.
    pub fn respond(&self, device: &DeviceId, id: &RequestId, response: Response) -> Disposition {
        // Where the device is, its calls are. One that is found by an ID that nobody can guess needs no other proof.
        let answered = self.inner.with_device(device, |shard, now| match shard.find(device) {
            Some(key) => shard.answer(now, key, id, response),
            None => Err(response),
        });
        match answered {
            Ok(()) => Disposition::Accepted,
            Err(response) => self.verdict(device, id, response),
        }
    }

    /// The verdict on a response for which no call of its device waited just now.
    fn verdict(&self, device: &DeviceId, id: &RequestId, response: Response) -> Disposition {
        let Some(Place { slot, .. }) = self.inner.ids.place_of(id) else {
            return Disposition::Unknown;
        };
        let disposition = self.inner.with_slot(slot, |shard, now| shard.respond(now, device, id, response));
        if disposition == Disposition::Forbidden {
            tracing::warn!(%device, request = %id, "response from a device that the request did not go to");
        }
        disposition
    }

    /// `device` says that it has the request `id`, and that the answer will take longer.
    pub fn received(&self, device: &DeviceId, id: &RequestId) {
        if let Some(Place { slot, .. }) = self.inner.ids.place_of(id) {
            self.inner.with_slot(slot, |shard, _| shard.received(device, id));
        }
    }

    /// Takes in whoever knocks at `listener`, until it closes or the relay shuts down. Resolves then.
    ///
    /// # Cancel safety
    /// Dropped, nobody new is taken in; sessions that are there stay.
    pub async fn serve(&self, mut listener: Box<dyn Listener>) {
        self.inner.clock.run(Arc::downgrade(&self.inner));
        let mut stopping = self.inner.stopping.subscribe();
        let transport = listener.info().name;
        loop {
            let incoming = tokio::select! {
                incoming = listener.accept() => incoming,
                _ = stopping.wait_for(|stopping| *stopping) => None,
            };
            match incoming {
                None => return,
                Some(Incoming::Channel(knock)) => {
                    let Ok(permit) = Arc::clone(&self.inner.handshakes).try_acquire_owned() else { continue };
                    let relay = self.clone();
                    tokio::spawn(async move {
                        let admitted = relay.admit_channel(knock).await;
                        drop(permit);
                        if let Some(channel) = admitted {
                            channel.await;
                        }
                    });
                }
                Some(Incoming::Session(knock)) => {
                    let Ok(permit) = Arc::clone(&self.inner.handshakes).try_acquire_owned() else {
                        tracing::warn!(transport, peer = ?knock.peer.address, "too many handshakes; peer let go");
                        continue;
                    };
                    let relay = self.clone();
                    tokio::spawn(async move {
                        match knock.handshake.await {
                            Ok(session) => Handle::admit(&relay, session).await,
                            Err(error) => {
                                tracing::debug!(transport, peer = ?knock.peer.address, %error, "handshake failed");
                            }
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    /// Takes no new calls and sessions, gives those in flight until `grace` is over, tells devices to come back after
    /// `retry_after`, to the URL `to` if it is given, and ends every session. Takes at most `grace` and five seconds.
    pub async fn shutdown(&self, grace: Duration, retry_after: Duration, to: Option<&str>) {
        self.inner.stopping.send_replace(true);
        self.inner.changes.end();
        let _ = tokio::time::timeout(grace, until(|| self.in_flight() == 0)).await;
        for slot in 0..self.inner.shards.len() {
            self.inner.with_slot(slot as u32, |shard, now| shard.end_calls(now));
        }
        let reason = CloseReason::Drain { retry_after, to: to.map(Into::into) };
        for slot in 0..self.inner.shards.len() {
            self.inner.with_slot(slot as u32, |shard, _| shard.close_sessions(reason.clone()));
        }
        let gone = || self.inner.farewells.load(Ordering::Acquire) == 0;
        let _ = tokio::time::timeout(FAREWELL, until(gone)).await;
    }
}

async fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Cancels the request of a caller that is dropped while it waits.
struct HangUp<'a> {
    inner: &'a Arc<Inner>,
    slot: u32,
    id: Option<RequestId>,
}

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.inner.with_slot(self.slot, |shard, now| shard.cancel(now, &id));
        }
    }
}

/// One of the relay's places in flight.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The time, as the machines are told it. Follows tokio's clock, so that paused time governs tests.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Inner {
    fn slot(&self, device: &DeviceId) -> u32 {
        self.hasher.hash_one(device) as u32
    }

    fn place_in_flight(&self) -> Result<InFlight<'_>, RequestError> {
        self.take_place_in_flight()?;
        Ok(InFlight(&self.in_flight))
    }

    /// Takes a place that its holder gives back.
    fn take_place_in_flight(&self) -> Result<(), RequestError> {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) >= self.config.relay_in_flight {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            let retry_after = Duration::from_secs(1);
            return Err(RequestError::TooManyRequests { bound: "in flight on this relay", retry_after });
        }
        Ok(())
    }

    fn with_device<R>(
        self: &Arc<Self>,
        device: &DeviceId,
        f: impl FnOnce(&mut EngineShard, Instant) -> R,
    ) -> R {
        self.with_slot(self.slot(device), f)
    }

    /// Runs `f` on the shard of `slot`, then, outside its lock, what it wants done.
    fn with_slot<R>(self: &Arc<Self>, slot: u32, f: impl FnOnce(&mut EngineShard, Instant) -> R) -> R {
        let (result, wake_at) = self.on_shard(slot, f);
        if let Some(at) = wake_at {
            self.clock.wake_by(at);
        }
        result
    }

    fn on_shard<R>(
        self: &Arc<Self>,
        slot: u32,
        f: impl FnOnce(&mut EngineShard, Instant) -> R,
    ) -> (R, Option<Instant>) {
        let now = now();
        let (result, effects, wake_at, head) = {
            let mut shard = self.lock(slot);
            let before = shard.sessions();
            let result = f(&mut shard, now);
            let after = shard.sessions();
            if after != before {
                // Wrapping, so that one addition serves both ways.
                self.sessions.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
            }
            let effects = shard.drain_effects();
            // Under the shard's lock, so that the changes of one device are written in their order.
            let head = effects.iter().filter_map(|effect| self.write_down(effect)).last();
            (result, effects, shard.wake_at(), head)
        };
        if let Some(head) = head {
            self.changes.announce(head);
        }
        for effect in effects {
            self.run_effect(effect);
        }
        (result, wake_at)
    }

    fn lock(&self, slot: u32) -> MutexGuard<'_, EngineShard> {
        let shard = &self.shards[slot as usize & (self.shards.len() - 1)];
        shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_down(&self, effect: &Effect<Waiter, Arc<Handle>>) -> Option<u64> {
        let Effect::Presence { device, state, epoch } = effect else { return None };
        let (device, time) = (device.clone(), SystemTime::now());
        let change = PresenceChange { device, state: *state, epoch: *epoch, time };
        Some(self.changes.write(change))
    }

    fn run_effect(self: &Arc<Self>, effect: Effect<Waiter, Arc<Handle>>) {
        match effect {
            // Whoever waited may have hung up at this very moment: then the answer is nobody's.
            Effect::Finish { waiter, result } => drop(waiter.send(result)),
            Effect::Pump { handle } => handle.pump(),
            Effect::Close { handle, reason } => handle.close(reason),
            Effect::Presence { device, state, epoch } => {
                tracing::info!(%device, state = state.as_str(), epoch, "presence");
            }
        }
    }
}
