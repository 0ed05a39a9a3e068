//! Sessions and presence: who can be reached, and what happens to requests when that changes.

use std::time::Instant;

use super::{
    DeviceKey, Effect, Pending, SessionKey, Shard, Timer,
    calls::pump,
    device::{Device, Session},
    outbox::{Outbox, Room},
};
use crate::{
    envelope::Envelope,
    ids::{DeviceId, RequestId, SessionId},
    outcome::RequestError,
    presence::State,
    transport::{CloseReason, EndReason, TransportInfo},
};

/// A session that knocks, authenticated.
#[derive(Debug)]
pub(crate) struct Opening<H> {
    /// The ID that its transport proposes.
    pub(crate) id: SessionId,
    /// The session that the device wants to go on with.
    pub(crate) resume: Option<SessionId>,
    pub(crate) info: TransportInfo,
    pub(crate) key: SessionKey,
    pub(crate) handle: H,
}

/// What a session that knocked became.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) id: SessionId,
    pub(crate) resumed: bool,
    pub(crate) epoch: u64,
}

impl<W, H: Clone> Shard<W, H> {
    /// Takes a session in. It takes over from an earlier one of the same device (P6).
    pub(crate) fn open(&mut self, now: Instant, opening: Opening<H>) -> Result<Opened, CloseReason> {
        let Opening { id, resume, info, key, handle } = opening;
        let (rate, burst) = (self.config.sessions_per_minute, self.config.session_burst);
        let (room, window) = (self.room(), self.config.resume_window);
        let known = &mut self.devices[key.device.0 as usize];
        known
            .openings
            .take(now, rate, burst)
            .map_err(|retry_after| CloseReason::Overloaded { retry_after })?;

        let (mut requests, mut control, mut ids) =
            (std::mem::take(&mut known.resend), Vec::new(), Vec::new());
        let mut carried = None;
        if let Some(mut old) = known.session.take() {
            ids = std::mem::take(&mut old.ids);
            let (again, rest, verdicts) = dissolve(&mut old);
            requests.extend(again);
            requests.extend(rest);
            control = verdicts;
            if let Some(timer) = old.resume_window {
                self.timers.disarm(timer);
            }
            if let Some(handle) = old.handle {
                self.effects.push(Effect::Close { handle, reason: CloseReason::Replaced });
            }
            // Being online carries over, for as long as a broken connection would leave it so.
            if old.attached || old.detached.is_some() {
                carried = Some(now);
            }
        } else {
            self.sessions += 1;
        }
        if ids.is_empty() {
            ids = std::mem::take(&mut known.former);
        }

        known.epoch += 1;
        known.last_heard = Some(now);
        known.former = ids;
        let mut session = Session {
            key,
            ids: vec![id],
            transport: info.name,
            max_body: info.max_body,
            handle: Some(handle),
            attached: false,
            detached: carried,
            resume_window: carried.map(|since| self.timers.arm(since + window, Timer::ResumeWindow(key))),
            outbox: Outbox::default(),
            pumping: false,
            taken: 0,
            unconfirmed: smallvec::SmallVec::new(),
        };
        let resumed = resume.is_some_and(|wanted| go_on_with(&mut session, &mut known.former, &wanted));
        // A device that lost its memory has lost its jobs, too; one that has not passes over what it hears twice.
        let jobs = known.in_flight.iter().filter(|id| {
            let job =
                self.pending.get(id).is_some_and(|pending| pending.sent && pending.request.offer.is_some());
            job && !requests.contains(id)
        });
        let jobs: Vec<_> = jobs.cloned().collect();
        requests.extend(jobs);
        let cost = |id: &RequestId| self.pending.get(id).map(Pending::cost);
        refill(&mut session, room, control, requests, cost);
        let opened = Opened { id: session.ids[0].clone(), resumed, epoch: known.epoch };
        known.session = Some(Box::new(session));
        Ok(opened)
    }

    fn current(&mut self, key: SessionKey) -> Option<&mut Device<H>> {
        let known = self.device(key.device);
        known.session(key).is_some().then_some(known)
    }

    /// The peer asks, within this session, to go on with an earlier one.
    pub(crate) fn resume(&mut self, key: SessionKey, wanted: &SessionId) -> bool {
        let Some(known) = self.current(key) else { return false };
        let Device { session: Some(session), former, .. } = known else { return false };
        session.ids.first() == Some(wanted) || go_on_with(session, former, wanted)
    }

    pub(crate) fn attached(&mut self, now: Instant, key: SessionKey) {
        let Some(known) = self.current(key) else { return };
        known.last_heard = Some(now);
        if let Some(session) = known.session.as_mut() {
            session.attached = true;
            session.detached = None;
        }
        self.settle(now, key.device);
        if let Some(session) = self.devices[key.device.0 as usize].session.as_mut() {
            pump(&mut self.effects, session);
        }
    }

    pub(crate) fn detached(&mut self, now: Instant, key: SessionKey) {
        let at = now + self.config.resume_window;
        let session = self.devices[key.device.0 as usize].session(key);
        let Some(session) = session.filter(|session| session.attached) else { return };
        session.attached = false;
        session.detached = Some(now);
        if session.resume_window.is_none() {
            session.resume_window = Some(self.timers.arm(at, Timer::ResumeWindow(key)));
        }
    }

    /// A sign of life on the session.
    pub(crate) fn heard_on(&mut self, now: Instant, key: SessionKey) {
        if self.current(key).is_some() {
            self.heard_from(now, key.device);
        }
    }

    pub(crate) fn confirmed(&mut self, key: SessionKey, number: u64) {
        if let Some(session) = self.current(key).and_then(|known| known.session.as_mut()) {
            let confirmed = session.unconfirmed.iter().take_while(|(sent, _)| *sent <= number).count();
            drop(session.unconfirmed.drain(..confirmed));
        }
    }

    /// Whether [`Shard::push_control`] would find room now.
    pub(crate) fn has_control_room(&mut self, key: SessionKey) -> bool {
        self.device(key.device).session(key).is_none_or(|session| session.outbox.has_control_room())
    }

    /// Queues something that is no request; whether there was room, or nobody to have it.
    pub(crate) fn push_control(&mut self, key: SessionKey, envelope: Envelope) -> bool {
        let Some(session) = self.devices[key.device.0 as usize].session(key) else { return true };
        let room = session.outbox.push_control(envelope);
        pump(&mut self.effects, session);
        room
    }

    /// Ends the session of a device whose credential no longer holds.
    pub(crate) fn revoke(&mut self, now: Instant, device: &DeviceId) {
        let Some(&key) = self.names.get(device) else { return };
        if let Some(handle) = self.device(key).session.as_mut().and_then(|session| session.handle.take()) {
            self.effects.push(Effect::Close { handle, reason: CloseReason::Revoked });
        }
        self.drop_session(now, key);
    }

    /// Whether the outbox is empty, so that whoever was taking from it may go.
    pub(crate) fn pumped(&mut self, key: SessionKey) -> bool {
        let Some(session) = self.current(key).and_then(|known| known.session.as_mut()) else {
            return true;
        };
        session.pumping = !session.outbox.is_empty();
        !session.pumping
    }

    pub(crate) fn ended(&mut self, now: Instant, key: SessionKey, reason: EndReason) {
        let at = now + self.config.resume_window;
        let room = self.room();
        let known = &mut self.devices[key.device.0 as usize];
        let online = known.state == State::Online;
        let Some(session) = known.session(key) else { return };
        session.handle = None;
        session.pumping = false;
        let lingers = reason == EndReason::Lost && online;
        if !lingers {
            self.drop_session(now, key.device);
            return;
        }
        // It merely broke: the device stays online for the resume window, and pushes wait.
        session.attached = false;
        session.detached.get_or_insert(now);
        let (again, rest, control) = dissolve(session);
        let cost = |id: &RequestId| self.pending.get(id).map(Pending::cost);
        refill(session, room, control, again.into_iter().chain(rest), cost);
        if session.resume_window.is_none() {
            session.resume_window = Some(self.timers.arm(at, Timer::ResumeWindow(key)));
        }
    }

    /// Ends every session: the relay stops.
    pub(crate) fn close_sessions(&mut self, reason: CloseReason) {
        let sessions = self.devices.iter().filter_map(|known| known.session.as_ref());
        let handles = sessions.filter_map(|session| session.handle.clone());
        self.effects.extend(handles.map(|handle| Effect::Close { handle, reason: reason.clone() }));
    }

    fn drop_session(&mut self, now: Instant, device: DeviceKey) {
        let known = &mut self.devices[device.0 as usize];
        let Some(mut session) = known.session.take() else { return };
        self.sessions -= 1;
        if let Some(timer) = session.resume_window.take() {
            self.timers.disarm(timer);
        }
        known.former = std::mem::take(&mut session.ids);
        let (again, rest, _) = dissolve(&mut session);
        known.resend.extend(again);
        let mut never_sent = Vec::new();
        for id in rest {
            match self.pending.get(&id) {
                Some(pending) if pending.sent => known.resend.push(id),
                Some(_) => never_sent.push(id),
                None => {}
            }
        }
        self.fail_unsent(now, never_sent);
        self.settle(now, device);
    }

    fn fail_unsent(&mut self, now: Instant, ids: Vec<RequestId>) {
        for id in ids {
            self.finish(now, &id, Err(RequestError::DeviceOffline));
        }
    }

    pub(super) fn resume_window_over(&mut self, now: Instant, key: SessionKey) {
        let window = self.config.resume_window;
        let Some(session) = self.devices[key.device.0 as usize].session(key) else { return };
        session.resume_window = None;
        let Some(since) = session.detached else { return };
        if since + window > now {
            session.resume_window = Some(self.timers.arm(since + window, Timer::ResumeWindow(key)));
            return;
        }
        if session.handle.is_none() {
            self.drop_session(now, key.device);
        } else {
            self.settle(now, key.device);
        }
    }

    pub(super) fn silence_over(&mut self, now: Instant, device: DeviceKey) {
        self.device(device).silence = None;
        self.settle(now, device);
    }

    /// Brings the device's state in line with what is known of it now.
    pub(super) fn settle(&mut self, now: Instant, device: DeviceKey) {
        let window = self.config.resume_window;
        let known = &mut self.devices[device.0 as usize];
        let timer = known.presence_timer.unwrap_or(self.config.presence_timer);
        let silent_at = known.last_heard.map(|at| at + timer);
        let spoken = silent_at.is_some_and(|at| at > now);
        let reachable = known.session.as_ref().is_some_and(|session| {
            // The resume window keeps a device online that was; it brings none online.
            session.attached
                || (session.detached.is_some_and(|since| since + window > now)
                    && known.state == State::Online)
        });
        let state = if reachable && spoken { State::Online } else { State::Offline };
        if let (State::Online, None, Some(at)) = (state, known.silence, silent_at) {
            // One timer a device, looked at again when it fires rather than moved with every word.
            known.silence = Some(self.timers.arm(at, Timer::Silence(device)));
        }
        if state == known.state {
            return;
        }
        known.state = state;
        let (name, epoch) = (known.name.clone(), known.epoch);
        let mut never_sent = Vec::new();
        if state == State::Offline {
            for id in &known.in_flight {
                if self.pending.get(id).is_some_and(|pending| !pending.sent) {
                    never_sent.push(id.clone());
                }
            }
            if let Some(timer) = known.silence.take() {
                self.timers.disarm(timer);
            }
        }
        self.fail_unsent(now, never_sent);
        self.effects.push(Effect::Presence { device: name, state, epoch });
    }
}

/// Makes `session` bear the ID `wanted` if that is among the `former` session's.
fn go_on_with<H>(session: &mut Session<H>, former: &mut Vec<SessionId>, wanted: &SessionId) -> bool {
    const MAX_IDS: usize = 8;
    if !former.contains(wanted) {
        return false;
    }
    let mut ids = std::mem::take(former);
    ids.append(&mut session.ids);
    // The one in force is the session's first; the newest must stay valid too. In between, old ones may go.
    while ids.len() > MAX_IDS {
        ids.remove(1);
    }
    session.ids = ids;
    true
}

/// Takes out of a session what is still to be done: requests to send again, requests never sent from it, verdicts.
fn dissolve<H>(session: &mut Session<H>) -> (Vec<RequestId>, Vec<RequestId>, Vec<Envelope>) {
    let again = std::mem::take(&mut session.unconfirmed).into_iter().map(|(_, id)| id).collect();
    let (rest, control) = session.outbox.drain();
    (again, rest, control)
}

/// Puts what was taken out of a session into one: verdicts, then requests in order, but for those that are over.
fn refill<H>(
    session: &mut Session<H>,
    room: Room,
    control: Vec<Envelope>,
    requests: impl IntoIterator<Item = RequestId>,
    cost: impl Fn(&RequestId) -> Option<usize>,
) {
    for envelope in control {
        session.outbox.push_control(envelope);
    }
    for id in requests {
        if let Some(cost) = cost(&id) {
            session.outbox.push_request(room, id, cost);
        }
    }
}
