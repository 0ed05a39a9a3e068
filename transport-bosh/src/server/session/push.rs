//! The session as its owner holds it.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal},
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, SessionId},
    transport::{CloseReason, EndReason, Incoming, Knock, PeerInfo, Push, Queue, Started},
};

use super::{
    super::INFO,
    Session, now,
    state::{Event, State},
};
use crate::{
    proto::stream::{Proof, StreamError},
    wire::{TerminalCondition, body::Piece},
};

/// What an envelope takes on the wire, at most, for its cost in memory: base64, and a stanza around it.
const fn weight(cost: usize) -> usize {
    cost.div_ceil(3) * 4 + 1_024
}

impl Session {
    /// Offers the session of `device` to whoever listens.
    pub(super) fn knock(self: &Arc<Self>, device: DeviceId, proof: Proof) {
        let Some(manager) = self.manager.upgrade() else { return };
        let door = Door { session: Arc::clone(self), decided: false };
        let sid = self.sid.text();
        let (authenticator, within) = (Arc::clone(&manager.authenticator), manager.config.authentication);
        let handshake = Box::pin(async move {
            let invalid =
                |_| TransportError::new(INFO.name, ErrorKind::Internal, "a SID that is no session ID");
            let id = SessionId::new(&sid).map_err(invalid)?;
            let holds = tokio::time::timeout(within, holds(&*authenticator, &device, &proof)).await;
            let session = door.open(holds.unwrap_or(Err(AuthError::Unavailable)))?;
            Ok(relay_core::transport::Session::new(device, id, INFO, Box::new(session)))
        });
        let knock = Knock { peer: PeerInfo::at(self.source), handshake };
        if manager.knocks.try_send(Incoming::Session(knock)).is_err() {
            // The knock, and the door in it, is dropped: that answers the client.
            tracing::warn!("too many sessions wait to be taken");
        }
    }

    fn poll_push(
        self: &Arc<Self>,
        context: &Context<'_>,
        queue: &mut dyn Queue,
    ) -> Poll<Result<(), TransportError>> {
        let mut state = self.lock();
        if let Some(end) = state.end.filter(|_| state.machine.is_over()) {
            return Poll::Ready(Err(over(end)));
        }
        let now = now();
        let mut taken = false;
        loop {
            let Some(cost) = queue.next_cost() else {
                taken = true;
                break;
            };
            let fits = |room| weight(cost) <= room || state.machine.is_drained();
            if !state.machine.room().is_some_and(fits) {
                break;
            }
            let Some(envelope) = queue.take() else { break };
            // One that cannot be written counts all the same: numbers are the owner's.
            let piece = state.stream.encode(&envelope, now).unwrap_or_else(|| Piece::new(""));
            state.machine.push(piece);
            taken = true;
        }
        if !taken {
            state.pusher = Some(context.waker().clone());
            return Poll::Pending;
        }
        self.drain(state, now);
        Poll::Ready(Ok(()))
    }

    fn close(self: &Arc<Self>, reason: CloseReason) {
        let mut state = self.lock();
        if state.machine.is_over() {
            return;
        }
        let (condition, piece) = match reason {
            CloseReason::Shutdown => (TerminalCondition::SystemShutdown, None),
            CloseReason::Drain { retry_after, to } => {
                (TerminalCondition::SystemShutdown, state.come_back(retry_after, to.as_deref()))
            }
            CloseReason::Replaced => {
                (TerminalCondition::RemoteStreamError, Some(StreamError::Conflict.to_piece()))
            }
            CloseReason::Revoked => {
                (TerminalCondition::RemoteStreamError, Some(StreamError::NotAuthorized.to_piece()))
            }
            CloseReason::Overloaded { retry_after } => {
                (TerminalCondition::PolicyViolation, state.come_back(retry_after, None))
            }
            _ => (TerminalCondition::PolicyViolation, None),
        };
        state.close(condition, piece.as_slice());
        self.drain(state, now());
    }
}

impl State {
    /// When to come back, and where: for devices of ours as `<drain/>`, for HTTP as Retry-After.
    fn come_back(&mut self, retry_after: Duration, to: Option<&str>) -> Option<Piece> {
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        self.retry_after = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        self.stream.encode(&Envelope::Drain { retry_after, to: to.map(Into::into) }, now())
    }
}

/// T17: whether what `device` logged in with is still its credential, now that it is to get its session.
async fn holds(
    authenticator: &dyn Authenticator,
    device: &DeviceId,
    proof: &Proof,
) -> Result<bool, AuthError> {
    match proof {
        Proof::Verifier(hash, verifier) => Ok(authenticator.verifier(device, *hash).await? == *verifier),
        Proof::Token(token) => {
            let credentials = Credentials::Device { device: device.clone(), token: token.clone() };
            match authenticator.authenticate(&credentials).await {
                Ok(principal) => Ok(principal == Principal::Device(device.clone())),
                Err(AuthError::Rejected) => Ok(false),
                Err(error) => Err(error),
            }
        }
    }
}

fn over(end: EndReason) -> TransportError {
    let (kind, words) = match end {
        EndReason::Lost => (ErrorKind::Expired, "the device was silent for too long"),
        EndReason::Misbehaved => (ErrorKind::Closed, "the session ended for a rule that was broken"),
        _ => (ErrorKind::Closed, "the session is over"),
    };
    TransportError::new(INFO.name, kind, words)
}

/// The right to decide about a session. Dropped undecided, it refuses.
#[derive(Debug)]
pub(super) struct Door {
    session: Arc<Session>,
    decided: bool,
}

impl Door {
    /// `holds`: whether the credential is still the device's.
    fn open(mut self, holds: Result<bool, AuthError>) -> Result<BoshPush, TransportError> {
        let error = |kind, words| Err(TransportError::new(INFO.name, kind, words));
        let Ok(holds) = holds else {
            return error(ErrorKind::Unreachable, "the credential cannot be checked again");
        };
        self.decided = true;
        let session = Arc::clone(&self.session);
        let mut state = session.lock();
        if let Some(end) = state.end.filter(|_| state.machine.is_over()) {
            return Err(over(end));
        }
        if !holds {
            state.fail(StreamError::NotAuthorized);
            session.drain(state, now());
            return error(ErrorKind::Unauthenticated, "another credential has taken this one's place");
        }
        drop(state);
        Ok(BoshPush { session, started: false })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if !self.decided {
            self.session.bound(false);
        }
    }
}

/// The half of a session that takes envelopes to the device.
#[derive(Debug)]
pub(super) struct BoshPush {
    session: Arc<Session>,
    started: bool,
}

#[async_trait]
impl Push for BoshPush {
    fn start(&mut self, started: Started) {
        self.started = true;
        let manager = self.session.manager.upgrade();
        let mut state = self.session.lock();
        state.inbound = Some(started.inbound);
        match state.end.filter(|_| state.machine.is_over()) {
            // It ended between the door and here.
            Some(end) => state.events.push_back(Event::Ended(end)),
            None => {
                state.deadline = None;
                state.machine.enforce_polling();
                if let Some(manager) = &manager {
                    state.machine.set_max_early(2 * manager.config.max_body);
                }
                state.stream.bound(true);
                // Settled first: the request that asked to bind is answered and not there for pushes.
                if !state.draining {
                    let now = now();
                    state.absorb(now);
                    state.machine.settle(now);
                    state.absorb(now);
                }
                let attached = state.machine.is_attached();
                state.tell_attached(attached);
            }
        }
        self.session.drain(state, now());
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        poll_fn(|context| self.session.poll_push(context, queue)).await
    }

    fn refresh(&mut self) {}

    async fn close(&mut self, reason: CloseReason) {
        self.session.close(reason);
    }
}

impl Drop for BoshPush {
    fn drop(&mut self) {
        self.session.close(CloseReason::Shutdown);
    }
}
