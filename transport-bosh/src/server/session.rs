//! One session in the shell: the machines behind one lock, and the way out for what they want done.
//!
//! Whoever brings news (a request, a push, a timer) puts it into the machines under the lock and then **drains**: takes
//! what is to be done out, lets go of the lock, does it, and comes back, until nothing is left and the requests are
//! settled. One drains at a time; news that come meanwhile are drained by whoever is at it. So the owner is called in
//! order, under no lock, and may push on this very session from within the call.

mod drain;
mod push;
mod state;

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll},
    time::Instant,
};

use relay_core::auth::{AuthError, Principal, ScramVerifier};

use self::state::State;
use super::{Inner, http::Reply, pending::Place, sids::Sid};
use crate::{
    proto::{
        manager::{self, ExchangeId, Request},
        rid::Rid,
        stream::{StreamError, XmppStream},
    },
    wire::{TerminalCondition, body::Payload},
};

/// Bytes of early requests that a session may keep waiting before it has bound.
pub(super) const MAX_EARLY_UNBOUND: usize = 8 * 1024;

/// A session.
pub(super) struct Session {
    pub(super) sid: Sid,
    manager: Weak<Inner>,
    source: IpAddr,
    /// Whether it was created over TLS: all its requests must come so.
    pub(super) secure: bool,
    /// The Content-Type that the client asked for.
    content: Option<Box<str>>,
    state: Mutex<State>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What a session is made of.
pub(super) struct Beginning {
    pub(super) sid: Sid,
    pub(super) manager: Weak<Inner>,
    pub(super) source: IpAddr,
    pub(super) secure: bool,
    pub(super) content: Option<Box<str>>,
    pub(super) place: Place,
    pub(super) machine: manager::Manager<Payload>,
    pub(super) stream: XmppStream,
    /// When it must be bound.
    pub(super) deadline: Instant,
}

impl Session {
    /// A session whose creation request is `exchange`; answered once [`Session::kick`] is called.
    pub(super) fn new(beginning: Beginning, exchange: ExchangeId) -> Arc<Self> {
        let Beginning { sid, manager, source, secure, content, place, machine, stream, deadline } = beginning;
        let state = Mutex::new(State::new(machine, stream, place, deadline, exchange));
        Arc::new(Self { sid, manager, source, secure, content, state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Drains what there is to drain.
    pub(super) fn kick(self: &Arc<Self>) {
        let guard = self.lock();
        self.drain(guard, now());
    }

    /// Takes a request in; its exchange.
    pub(super) fn request(self: &Arc<Self>, request: Request<Payload>) -> ExchangeId {
        let now = now();
        let mut state = self.lock();
        state.lend();
        let exchange = state.open_exchange();
        state.heard = now;
        state.machine.request(request, exchange, now);
        self.drain(state, now);
        exchange
    }

    /// Request `rid` cannot be understood; its exchange.
    pub(super) fn misbehaved(self: &Arc<Self>, rid: Rid) -> ExchangeId {
        let mut state = self.lock();
        let exchange = state.open_exchange();
        state.machine.misbehaved(TerminalCondition::BadRequest, rid, exchange);
        self.drain(state, now());
        exchange
    }

    pub(super) fn is_bound(&self) -> bool {
        self.lock().is_bound()
    }

    pub(super) fn poll_reply(&self, exchange: ExchangeId, context: &mut Context<'_>) -> Poll<Reply> {
        let mut state = self.lock();
        let retry_after = state.retry_after;
        let (status, body) = std::task::ready!(state.poll_reply(exchange, context));
        drop(state);
        let mut reply = Reply::new(status, body);
        reply.retry_after = retry_after;
        if let Some(content) = &self.content {
            reply.content_type = content.to_string().into();
        }
        Poll::Ready(reply)
    }

    pub(super) fn exchange_gone(self: &Arc<Self>, exchange: ExchangeId) {
        let mut state = self.lock();
        if state.close_exchange(exchange) {
            let now = now();
            state.machine.gone(exchange, now);
            self.drain(state, now);
        }
    }

    /// The timer went off that was set for `at`.
    pub(super) fn wake(self: &Arc<Self>, at: Instant) {
        let now = now();
        // Before the lock, and so let go of after it: see `drain`.
        let manager = self.manager.upgrade();
        let mut state = self.lock();
        // Set anew meanwhile: that one will go off.
        if state.timer != Some(at) {
            return;
        }
        state.timer = None;
        state.machine.timeout(now);
        if state.deadline.is_some_and(|deadline| now >= deadline) {
            state.deadline = None;
            state.fail(StreamError::ConnectionTimeout);
        }
        if let Some(after) = manager.as_ref().and_then(|manager| manager.config.ping_after)
            && now >= state.heard + after
            && state.machine.is_attached()
        {
            state.stream.ping();
        }
        self.drain(state, now);
    }

    /// Ends a session that nobody is to miss: another needs its place, or the manager goes.
    pub(super) fn end(self: &Arc<Self>, condition: TerminalCondition) {
        let mut state = self.lock();
        state.machine.end(condition, &[]);
        self.drain(state, now());
    }

    pub(super) fn verified(self: &Arc<Self>, serial: u64, verifier: Result<ScramVerifier, AuthError>) {
        let nonce = relay_core::random::base32::<15>();
        let mut state = self.lock();
        state.stream.verified(serial, verifier, &nonce);
        self.drain(state, now());
    }

    pub(super) fn authenticated(self: &Arc<Self>, serial: u64, principal: Result<Principal, AuthError>) {
        let mut state = self.lock();
        state.stream.authenticated(serial, principal);
        self.drain(state, now());
    }

    /// The owner took the session or did not.
    fn bound(self: &Arc<Self>, agreed: bool) {
        let mut state = self.lock();
        state.stream.bound(agreed);
        self.drain(state, now());
    }
}

/// The time, as tokio has it, so that a paused clock governs tests.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_session_fits_the_kilobyte_that_allocators_hand_out() {
        // With the two counts of its `Arc`.
        assert!(size_of::<super::Session>() + 16 <= 1024, "{} bytes", size_of::<super::Session>());
    }
}
