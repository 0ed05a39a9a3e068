//! The engine's machine: one shard of the devices, with their sessions, presence and requests in flight.
//!
//! No clock, lock, task or I/O: every input brings the time, and what is to be done outside comes back as
//! [`Effect`]s. `W` stands for whoever waits for an answer, `H` for the way to a session's transport.
//!
//! A request's way: `Waiting` (no room in the outbox yet) → `Queued` → `Sent` (it left the outbox) → `Received` (the
//! device said so) → finished. A session that is lost or replaced takes a request back to the outbox, never to an
//! earlier outcome: [`Pending::sent`] is sticky.
//!
//! A device's way: offline → online when a session has a connection on which a push can go → offline when it says
//! goodbye, is silent for its presence timer, or has had no connection for the resume window.

mod calls;
mod device;
mod finished;
mod outbox;
mod sessions;
#[cfg(test)]
mod tests;
mod timers;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

pub(crate) use self::{
    calls::NotTaken,
    device::{DeviceKey, SessionKey},
    sessions::Opening,
};
use self::{device::Device, finished::Finished, outbox::Room, timers::TimerKey, timers::Timers};
use foldhash::quality::RandomState;

use crate::{
    config::RelayConfig,
    ids::{DeviceId, RequestId, SessionId},
    outcome::RequestError,
    presence::{Presence, State},
    request::{Request, Response},
    transport::CloseReason,
};

/// Whatever a device asks for: beyond it, nobody would call it presence.
const LONGEST_PRESENCE_TIMER: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is to be done outside the machine, in order.
#[derive(Debug)]
pub(crate) enum Effect<W, H> {
    /// A call is over.
    Finish { waiter: W, result: Result<Response, RequestError> },
    /// The session's outbox has something, and nobody is taking from it yet.
    Pump { handle: H },
    /// The session is no longer wanted.
    Close { handle: H, reason: CloseReason },
    /// A device's state changed.
    Presence { device: DeviceId, state: State, epoch: u64 },
}

/// A request in flight.
#[derive(Debug)]
struct Pending<W> {
    device: DeviceKey,
    request: Arc<Request>,
    waiter: W,
    deadline: Instant,
    timer: TimerKey,
    /// Whether it ever left an outbox. Never reset.
    sent: bool,
    /// Whether the device said that it has it.
    received: bool,
}

impl<W> Pending<W> {
    fn cost(&self) -> usize {
        256 + self.request.payload_len()
    }
}

#[derive(Debug)]
enum Timer {
    Deadline(RequestId),
    ResumeWindow(SessionKey),
    Silence(DeviceKey),
}

#[derive(Debug)]
pub(crate) struct Shard<W, H> {
    config: Arc<RelayConfig>,
    names: HashMap<DeviceId, DeviceKey, RandomState>,
    devices: Vec<Device<H>>,
    pending: HashMap<RequestId, Pending<W>, RandomState>,
    finished: Finished,
    timers: Timers<Timer>,
    effects: Vec<Effect<W, H>>,
    sessions: usize,
}

impl<W, H: Clone> Shard<W, H> {
    /// A shard of a relay that has `shards` of them.
    pub(crate) fn new(config: Arc<RelayConfig>, shards: usize) -> Self {
        let finished = Finished::new(config.finished_for, config.finished_max / shards.max(1));
        Self {
            config,
            names: HashMap::default(),
            devices: Vec::new(),
            pending: HashMap::default(),
            finished,
            timers: Timers::default(),
            effects: Vec::new(),
            sessions: 0,
        }
    }

    fn room(&self) -> Room {
        Room { envelopes: self.config.outbox_envelopes, bytes: self.config.outbox_bytes }
    }

    pub(crate) fn drain_effects(&mut self) -> Vec<Effect<W, H>> {
        std::mem::take(&mut self.effects)
    }

    /// When [`Shard::wake`] is to be called next.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions
    }

    /// Lets what is due happen.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some(timer) = self.timers.due(now) {
            match timer {
                Timer::Deadline(id) => self.expire_call(now, &id),
                Timer::ResumeWindow(key) => self.resume_window_over(now, key),
                Timer::Silence(device) => self.silence_over(now, device),
            }
        }
    }

    /// Makes `device` known, if it is not yet.
    pub(crate) fn know(&mut self, device: &DeviceId) -> DeviceKey {
        if let Some(&key) = self.names.get(device) {
            return key;
        }
        // A shard of four thousand million devices is out of memory long before it is out of keys.
        let key = DeviceKey(self.devices.len() as u32);
        self.devices.push(Device::new(device.clone()));
        self.names.insert(device.clone(), key);
        key
    }

    /// What `device` registered: its presence timer is twice its keep-alive, if that is longer than the relay's.
    pub(crate) fn registered(&mut self, device: &DeviceId, keepalive: Option<Duration>) {
        let timer = keepalive.map(|keepalive| {
            keepalive.saturating_mul(2).min(LONGEST_PRESENCE_TIMER).max(self.config.presence_timer)
        });
        let key = self.know(device);
        self.device(key).presence_timer = timer;
    }

    pub(crate) fn find(&self, device: &DeviceId) -> Option<DeviceKey> {
        self.names.get(device).copied()
    }

    fn device(&mut self, key: DeviceKey) -> &mut Device<H> {
        &mut self.devices[key.0 as usize]
    }

    pub(crate) fn presence(&self, now: Instant, device: &DeviceId) -> Option<Presence> {
        let known = &self.devices[self.names.get(device)?.0 as usize];
        Some(Presence {
            state: known.state,
            epoch: known.epoch,
            last_heard: known.last_heard.map(|at| now.saturating_duration_since(at)),
            detects_loss_within: known.presence_timer.unwrap_or(self.config.presence_timer),
            transport: known.session.as_ref().map(|session| session.transport),
        })
    }

    /// Any word from the device outside its session.
    pub(crate) fn heard(&mut self, now: Instant, device: &DeviceId) -> Option<DeviceKey> {
        let key = self.find(device)?;
        self.heard_from(now, key);
        Some(key)
    }

    fn heard_from(&mut self, now: Instant, device: DeviceKey) {
        self.device(device).last_heard = Some(now);
        self.settle(now, device);
    }

    /// Whether `session` is, by any of its IDs, a session that the device can still use.
    pub(crate) fn alive(&mut self, now: Instant, device: &DeviceId, session: &SessionId) -> bool {
        let Some(key) = self.heard(now, device) else { return false };
        let current = self.device(key).session.as_ref();
        current.is_some_and(|current| current.handle.is_some() && current.ids.contains(session))
    }
}
