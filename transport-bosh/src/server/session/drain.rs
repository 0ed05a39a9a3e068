//! Doing what the machines want, with no lock held, one after the other.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use relay_core::{
    auth::Credentials,
    transport::{Full, Inbound},
};

use super::{
    super::Inner,
    Session,
    state::{Event, State, Stuck},
};
use crate::{proto::room, wire::TerminalCondition};

/// An owner that took nothing is asked again after this time, then after twice as long, up to the second.
const OFFER_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// After this time without its taking anything, the session ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// What may wait for such an owner. The client's window bounds it too, but for answers to what is pushed meanwhile.
const MAX_WAITING: usize = 4_096;

impl Session {
    /// Does what is to be done, unless somebody is at it, and lets go of `state`.
    pub(super) fn drain<'s>(self: &'s Arc<Self>, state: MutexGuard<'s, State>, now: Instant) {
        // It may be the last one, and whoever drops that ends every session, for which it locks them. So the lock, which
        // is declared after it, goes first on every way out.
        let manager = self.manager.upgrade();
        let mut state = state;
        if state.draining {
            return;
        }
        state.draining = true;
        state.lend();
        loop {
            state.absorb(now);
            if let Some(stuck) = &state.stuck
                && now < stuck.again
            {
                // Answers go out nevertheless; what is to be done waits for the owner.
                state.machine.settle(now);
                state.absorb(now);
                if state.stuck.is_some() {
                    break;
                }
                // The session ended just now, and its owner is to hear of it soon.
                continue;
            }
            if state.events.is_empty() {
                state.machine.settle(now);
                state.absorb(now);
                if state.events.is_empty() {
                    break;
                }
            }
            let events = std::mem::take(&mut state.events);
            let inbound = state.inbound.clone();
            drop(state);
            let rest = self.perform(events, inbound.as_deref(), manager.as_ref());
            state = self.lock();
            self.offered(&mut state, rest, now);
        }
        state.draining = false;
        state.shrink();
        if state.machine.room().is_some()
            && let Some(pusher) = state.pusher.take()
        {
            pusher.wake();
        }
        if let Some(manager) = &manager {
            self.leave_the_door(&mut state, manager, now);
            self.set_timer(&mut state, manager, now);
        }
        // An owner that heard of the end is let go of: it may hold the push half, and that holds the session.
        let heard = state.machine.is_over() && state.events.is_empty();
        let owner = state.inbound.take_if(|_| heard);
        drop(state);
        drop(owner);
    }

    /// Does `events` in order; what is left if the owner took no more.
    fn perform(
        self: &Arc<Self>,
        mut events: VecDeque<Event>,
        inbound: Option<&dyn Inbound>,
        manager: Option<&Arc<Inner>>,
    ) -> VecDeque<Event> {
        while let Some(event) = events.pop_front() {
            match (event, inbound) {
                (Event::Envelope(envelope), Some(inbound)) => {
                    if let Err(Full(envelope)) = inbound.envelope(envelope) {
                        events.push_front(Event::Envelope(envelope));
                        return events;
                    }
                }
                (Event::Alive, Some(inbound)) => inbound.alive(),
                (Event::Attached, Some(inbound)) => inbound.attached(),
                (Event::Detached, Some(inbound)) => inbound.detached(),
                (Event::Confirmed(number), Some(inbound)) => inbound.confirmed(number),
                (Event::Ended(reason), Some(inbound)) => inbound.ended(reason),
                (Event::Resume { id, session }, Some(inbound)) => {
                    let resumed = inbound.resume(&session);
                    self.lock().stream.resumed(id.as_deref(), resumed);
                }
                (Event::Knock(device, proof), _) => self.knock(device, *proof),
                (Event::Verifier { serial, device, hash }, _) => {
                    let Some(manager) = manager else { continue };
                    let session = Arc::clone(self);
                    let authenticator = Arc::clone(&manager.authenticator);
                    manager.runtime.spawn(async move {
                        let verifier = authenticator.verifier(&device, hash).await;
                        session.verified(serial, verifier);
                    });
                }
                (Event::Authenticate { serial, device, token }, _) => {
                    let Some(manager) = manager else { continue };
                    let session = Arc::clone(self);
                    let authenticator = Arc::clone(&manager.authenticator);
                    manager.runtime.spawn(async move {
                        let credentials = Credentials::Device { device, token };
                        let principal = authenticator.authenticate(&credentials).await;
                        session.authenticated(serial, principal);
                    });
                }
                // Without an owner there is nobody to tell.
                (_, None) => {}
            }
        }
        events
    }

    /// Puts back what the owner did not take.
    fn offered(&self, state: &mut State, mut rest: VecDeque<Event>, now: Instant) {
        if rest.is_empty() {
            room::lend(&mut state.events, &mut rest);
            state.stuck = None;
            state.machine.set_backpressure(false);
            return;
        }
        rest.append(&mut state.events);
        state.events = rest;
        let begin = || Box::new(Stuck { since: now, again: now, pause: OFFER_AGAIN.0 / 2 });
        let stuck = state.stuck.get_or_insert_with(begin);
        let pause = (stuck.pause * 2).min(OFFER_AGAIN.1);
        (stuck.again, stuck.pause) = (now + pause, pause);
        let over = now >= stuck.since + PATIENCE;
        state.machine.set_backpressure(true);
        if over || state.events.len() > MAX_WAITING {
            tracing::warn!(waiting = state.events.len(), "the owner of a session takes nothing; it ends");
            state.events.retain(|event| matches!(event, Event::Ended(_)));
            state.stuck = None;
            state.close(TerminalCondition::InternalServerError, &[]);
        }
    }

    /// Gives the place at the door back once the session is bound or over, and forgets it once nobody can ask for it.
    fn leave_the_door(&self, state: &mut State, manager: &Inner, now: Instant) {
        let over = state.machine.is_over();
        if (over || state.inbound.is_some())
            && let Some(place) = state.place.take()
        {
            manager.pending().leave(*place);
        }
        if over && state.events.is_empty() && state.tombstone.is_none_or(|until| now >= until) {
            state.tombstone = None;
            manager.forget(&self.sid.key);
        }
    }

    fn set_timer(&self, state: &mut State, manager: &Inner, now: Instant) {
        let reachable = state.machine.is_attached() && state.inbound.is_some();
        let after = manager.config.ping_after.filter(|_| reachable);
        let ping = after.map(|after| state.heard + after).filter(|at| *at > now);
        let again = state.stuck.as_ref().map(|stuck| stuck.again);
        // While the owner is still to hear of the end, that is what to wake for.
        let forget = state.tombstone.filter(|_| again.is_none());
        let wanted = [state.machine.wake_at(), state.deadline, forget, again, ping];
        let wanted = wanted.into_iter().flatten().min();
        // A timer that goes off early is set anew then: moving it at each request would cost more.
        let keep = match (state.timer, wanted) {
            (Some(set), Some(wanted)) => set <= wanted,
            (None, None) => true,
            _ => false,
        };
        if !keep {
            manager.timer.set(self.sid.key, state.timer, wanted);
            state.timer = wanted;
        }
    }
}
