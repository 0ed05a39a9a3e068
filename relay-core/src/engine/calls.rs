//! Requests: from a service's call to its one end.

use std::{sync::Arc, time::Duration, time::Instant};

use super::{DeviceKey, Effect, Pending, SessionKey, Shard, Timer, outbox::Entry};
use crate::{
    envelope::Envelope,
    ids::{DeviceId, RequestId},
    outcome::{Disposition, RequestError},
    presence::State,
    request::{Request, Response},
};

const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A response that came on a session and was not taken; it is given back.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// The session has no room for its acknowledgement.
    Full(Response),
    /// No call of that device waits for it in this shard.
    NotHere(Response),
}

impl<W, H: Clone> Shard<W, H> {
    /// Takes a call in. On an error nothing is remembered and the device has not been asked.
    pub(crate) fn request(
        &mut self,
        now: Instant,
        id: RequestId,
        request: Arc<Request>,
        wait: Duration,
        waiter: W,
    ) -> Result<(), RequestError> {
        let room = self.room();
        let device = *self.names.get(&request.device).ok_or(RequestError::UnknownDevice)?;
        let known = &mut self.devices[device.0 as usize];
        // The answer comes from here, in one round trip: nobody waits on a device that is not there (Q2).
        let session = match known.session.as_mut() {
            Some(session) if known.state == State::Online => session,
            _ => return Err(RequestError::DeviceOffline),
        };
        if request.objects.len() > Request::MAX_OBJECTS {
            let words = format!("the request names more than {} objects", Request::MAX_OBJECTS);
            return Err(RequestError::Refused(words.into()));
        }
        let size = request.body.as_ref().map_or(0, |body| body.bytes.len());
        if size > session.max_body {
            return Err(RequestError::TooLarge { size, max: session.max_body });
        }
        if known.in_flight.len() >= self.config.device_in_flight {
            return Err(RequestError::TooManyRequests {
                bound: "in flight to this device",
                retry_after: TRY_AGAIN,
            });
        }
        let deadline = now + wait;
        let timer = self.timers.arm(deadline, Timer::Deadline(id.clone()));
        let pending = Pending { device, request, waiter, deadline, timer, sent: false, received: false };
        known.in_flight.push(id.clone());
        session.outbox.push_request(room, id.clone(), pending.cost());
        pump(&mut self.effects, session);
        self.pending.insert(id, pending);
        Ok(())
    }

    /// A response from the device of this shard: the end of the call that waits for it. Given back if none does here.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        from: DeviceKey,
        id: &RequestId,
        response: Response,
    ) -> Result<(), Response> {
        self.heard_from(now, from);
        match self.pending.remove_entry(id) {
            Some((id, pending)) if pending.device == from => {
                self.over(now, id, pending, Ok(response));
                Ok(())
            }
            Some((id, others)) => {
                self.pending.insert(id, others);
                Err(response)
            }
            None => Err(response),
        }
    }

    /// [`Shard::answer`] to a response that came on the session `key`, which gets its acknowledgement if it wants one.
    pub(crate) fn answer_on(
        &mut self,
        now: Instant,
        key: SessionKey,
        id: &RequestId,
        response: Response,
        acknowledge: bool,
    ) -> Result<(), NotTaken> {
        // Whatever is answered needs room for its answer first: nothing is taken in whose answer would be lost.
        if acknowledge && !self.has_control_room(key) {
            return Err(NotTaken::Full(response));
        }
        self.answer(now, key.device, id, response).map_err(NotTaken::NotHere)?;
        if acknowledge {
            self.push_control(key, Envelope::Ack { id: id.clone(), disposition: Disposition::Accepted });
        }
        Ok(())
    }

    /// A response to a request that was issued here, however it came: its verdict, and the call's end if it is the one
    /// waited for.
    pub(crate) fn respond(
        &mut self,
        now: Instant,
        from: &DeviceId,
        id: &RequestId,
        response: Response,
    ) -> Disposition {
        let from = self.find(from);
        match from.map(|from| self.answer(now, from, id, response)) {
            Some(Ok(())) => Disposition::Accepted,
            _ if self.pending.contains_key(id) => Disposition::Forbidden,
            _ => self.finished.verdict(now, from, id),
        }
    }

    pub(crate) fn received(&mut self, from: &DeviceId, id: &RequestId) {
        let from = self.names.get(from).copied();
        if let Some(pending) = self.pending.get_mut(id)
            && Some(pending.device) == from
            && pending.sent
        {
            pending.received = true;
            // It has it: sending it again could only make a device that forgot do it twice.
            let known = &mut self.devices[pending.device.0 as usize];
            known.resend.retain(|other| other != id);
            if let Some(session) = known.session.as_mut() {
                session.unconfirmed.retain(|(_, other)| other != id);
            }
        }
    }

    /// The device is at work on it: the call may take until then.
    pub(crate) fn extend(&mut self, from: &DeviceId, id: &RequestId, until: Instant) {
        let from = self.names.get(from).copied();
        let Some(pending) = self.pending.get_mut(id).filter(|pending| Some(pending.device) == from) else {
            return;
        };
        (pending.sent, pending.received) = (true, true);
        if until > pending.deadline {
            pending.deadline = until;
            self.timers.disarm(pending.timer);
            pending.timer = self.timers.arm(until, Timer::Deadline(id.clone()));
        }
    }

    /// Nobody waits any more. A device that may have the request is told.
    pub(crate) fn cancel(&mut self, now: Instant, id: &RequestId) {
        self.give_up(now, id, |pending| give_up_error(pending.sent, pending.received));
    }

    pub(super) fn expire_call(&mut self, now: Instant, id: &RequestId) {
        let overflowing = self.pending.get(id).is_some_and(|pending| {
            let session = self.devices[pending.device.0 as usize].session.as_ref();
            session.is_some_and(|session| session.outbox.in_overflow(id))
        });
        self.give_up(now, id, |pending| {
            if overflowing && !pending.sent {
                RequestError::TooManyRequests {
                    bound: "waiting for room towards this device",
                    retry_after: TRY_AGAIN,
                }
            } else {
                give_up_error(pending.sent, pending.received)
            }
        });
    }

    /// Ends every call: the relay stops.
    pub(crate) fn end_calls(&mut self, now: Instant) {
        let ids: Vec<_> = self.pending.keys().cloned().collect();
        for id in ids {
            self.give_up(now, &id, |pending| match pending.sent {
                true => RequestError::DeviceTimeout { received: pending.received },
                false => RequestError::Draining,
            });
        }
    }

    fn give_up(&mut self, now: Instant, id: &RequestId, why: impl FnOnce(&Pending<W>) -> RequestError) {
        let Some(pending) = self.pending.get(id) else { return };
        let error = why(pending);
        let (sent, device) = (pending.sent, pending.device);
        self.finish(now, id, Err(error));
        if sent
            && let Some(session) = self.devices[device.0 as usize].session.as_mut()
            && session.outbox.push_control(Envelope::Cancel { id: id.clone() })
        {
            pump(&mut self.effects, session);
        }
    }

    pub(super) fn finish(&mut self, now: Instant, id: &RequestId, result: Result<Response, RequestError>) {
        if let Some((id, pending)) = self.pending.remove_entry(id) {
            self.over(now, id, pending, result);
        }
    }

    /// Ends the call of `pending`, which is out of the table already.
    fn over(
        &mut self,
        now: Instant,
        id: RequestId,
        pending: Pending<W>,
        result: Result<Response, RequestError>,
    ) {
        let room = self.room();
        self.timers.disarm(pending.timer);
        let device = &mut self.devices[pending.device.0 as usize];
        device.in_flight.retain(|other| *other != id);
        device.resend.retain(|other| *other != id);
        if device.in_flight.is_empty() {
            device.in_flight.shrink_to_fit();
        }
        if let Some(session) = device.session.as_mut() {
            session.outbox.remove(room, &id);
            session.unconfirmed.retain(|(_, other)| *other != id);
            if session.unconfirmed.is_empty() {
                session.unconfirmed.shrink_to_fit();
            }
        }
        self.finished.remember(now, &id, pending.device, result.is_ok());
        self.effects.push(Effect::Finish { waiter: pending.waiter, result });
    }

    /// Takes the next envelope out of a session's outbox: from here on a request counts as sent.
    pub(crate) fn take(&mut self, key: SessionKey) -> Option<Envelope> {
        let room = self.room();
        let session = self.devices[key.device.0 as usize].session(key)?;
        loop {
            let entry = session.outbox.take(room)?;
            session.taken += 1;
            match entry {
                Entry::Control(envelope) => return Some(*envelope),
                Entry::Request(id) => {
                    let Some(pending) = self.pending.get_mut(&id) else {
                        session.taken -= 1;
                        continue;
                    };
                    pending.sent = true;
                    session.unconfirmed.push((session.taken, id.clone()));
                    let (request, deadline) = (Arc::clone(&pending.request), pending.deadline);
                    return Some(Envelope::Request { id, request, deadline });
                }
            }
        }
    }

    pub(crate) fn next_cost(&mut self, key: SessionKey) -> Option<usize> {
        self.device(key.device).session(key)?.outbox.next_cost()
    }
}

const fn give_up_error(sent: bool, received: bool) -> RequestError {
    if sent { RequestError::DeviceTimeout { received } } else { RequestError::NotSent }
}

/// Asks for the outbox to be emptied, unless somebody is at it.
pub(super) fn pump<W, H: Clone>(effects: &mut Vec<Effect<W, H>>, session: &mut super::device::Session<H>) {
    if !session.pumping
        && !session.outbox.is_empty()
        && let Some(handle) = &session.handle
    {
        session.pumping = true;
        effects.push(Effect::Pump { handle: handle.clone() });
    }
}
