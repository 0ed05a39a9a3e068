//! One session as the shell holds it: the transport's push half, and the way in for what the peer says.
//!
//! The push half is in one place at a time: here while idle, with whoever is emptying the outbox otherwise. Most
//! pushes find room at once and are done on the spot; only one that must wait for room becomes a task.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, Weak, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;

use super::{EngineShard, Inner, Relay};
use crate::{
    engine::{NotTaken, Opening, SessionKey},
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, SessionId},
    transport::{CloseReason, EndReason, Full, Inbound, Push, Queue, Session, Started},
};

pub(super) struct Handle {
    relay: Weak<Inner>,
    device: DeviceId,
    slot: u32,
    key: SessionKey,
    push: Mutex<Pusher>,
    closing: Notify,
}

enum Pusher {
    Idle(Box<dyn Push>),
    Busy,
    /// To be closed by whoever is busy with it.
    Closing(CloseReason, Farewell),
    Gone,
}

/// A session that is taking its leave, which a relay that stops waits for.
struct Farewell(Weak<Inner>);

impl Farewell {
    fn begin(relay: &Weak<Inner>) -> Self {
        if let Some(inner) = relay.upgrade() {
            inner.farewells.fetch_add(1, Ordering::AcqRel);
        }
        Self(relay.clone())
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.farewells.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("device", &self.device).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Handle {
    /// Takes an authenticated session into the relay, or tells it why not.
    pub(super) async fn admit(relay: &Relay, session: Session) {
        let Session { device, id, resume, info, mut push, .. } = session;
        let inner = &relay.inner;
        if relay.is_draining() {
            inner.refused.fetch_add(1, Ordering::Relaxed);
            return push.close(CloseReason::Shutdown).await;
        }
        if relay.sessions() >= inner.config.sessions {
            inner.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%device, sessions = inner.config.sessions, "no room for another session");
            return push
                .close(CloseReason::Overloaded { retry_after: std::time::Duration::from_secs(30) })
                .await;
        }
        let slot = inner.slot(&device);
        let number = inner.next_session.fetch_add(1, Ordering::Relaxed);
        let key = SessionKey { device: inner.with_slot(slot, |shard, _| shard.know(&device)), number };
        let handle = Arc::new(Self {
            relay: Arc::downgrade(inner),
            device,
            slot,
            key,
            push: Mutex::new(Pusher::Busy),
            closing: Notify::new(),
        });
        let opening = Opening { id, resume, info, key, handle: Arc::clone(&handle) };
        match inner.with_slot(slot, |shard, now| shard.open(now, opening)) {
            Ok(opened) => {
                inner.opened.fetch_add(1, Ordering::Relaxed);
                tracing::info!(device = %handle.device, transport = info.name, epoch = opened.epoch,
                    resumed = opened.resumed, "session");
                push.start(Started::new(opened.id, opened.resumed, Arc::clone(&handle) as Arc<dyn Inbound>));
                if handle.put_back(push) {
                    handle.pump();
                }
            }
            Err(reason) => {
                inner.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(device = %handle.device, ?reason, "session refused");
                push.close(reason).await;
            }
        }
    }

    fn pusher(&self) -> std::sync::MutexGuard<'_, Pusher> {
        self.push.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take(&self) -> Option<Box<dyn Push>> {
        let mut pusher = self.pusher();
        match std::mem::replace(&mut *pusher, Pusher::Busy) {
            Pusher::Idle(push) => Some(push),
            other => {
                *pusher = other;
                None
            }
        }
    }

    /// Empties the outbox as far as there is room at once; the rest becomes a task.
    pub(super) fn pump(self: &Arc<Self>) {
        while let Some(mut push) = self.take() {
            let mut queue = Outgoing { handle: self };
            // This may run on the relay's clock: a transport that panics ends its own session and nothing else.
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| {
                pin!(push.push(&mut queue)).poll(&mut Context::from_waker(Waker::noop()))
            }));
            let polled = polled.unwrap_or_else(|_| {
                Poll::Ready(Err(TransportError::new("transport", ErrorKind::Internal, "push panicked")))
            });
            match polled {
                Poll::Ready(Ok(())) => {
                    if !self.put_back(push) {
                        return;
                    }
                }
                Poll::Ready(Err(error)) => return self.broke(&error),
                Poll::Pending => {
                    tokio::spawn(Arc::clone(self).pump_when_there_is_room(push));
                    return;
                }
            }
        }
    }

    async fn pump_when_there_is_room(self: Arc<Self>, push: Box<dyn Push>) {
        let mut next = Some(push);
        while let Some(mut push) = next.take() {
            let mut queue = Outgoing { handle: &self };
            let pushed = tokio::select! {
                biased;
                () = self.closing.notified() => Ok(()),
                pushed = push.push(&mut queue) => pushed,
            };
            match pushed {
                Ok(()) if self.put_back(push) => next = self.take(),
                Ok(()) => {}
                Err(error) => return self.broke(&error),
            }
        }
    }

    /// Lets go of the push half. Whether there is more to push: something may have come while it was out.
    fn put_back(self: &Arc<Self>, push: Box<dyn Push>) -> bool {
        {
            let mut pusher = self.pusher();
            match std::mem::replace(&mut *pusher, Pusher::Gone) {
                Pusher::Closing(reason, farewell) => {
                    self.take_leave(push, reason, farewell);
                    return false;
                }
                Pusher::Gone => return false,
                Pusher::Busy | Pusher::Idle(_) => *pusher = Pusher::Idle(push),
            }
        }
        let Some(inner) = self.relay.upgrade() else { return false };
        // Nothing follows from it: no effect to run, no clock to set.
        !inner.lock(self.slot).pumped(self.key)
    }

    fn broke(&self, error: &TransportError) {
        tracing::debug!(device = %self.device, %error, "push failed");
        *self.pusher() = Pusher::Gone;
        self.ended(EndReason::Lost);
    }

    pub(super) fn close(self: &Arc<Self>, reason: CloseReason) {
        let farewell = Farewell::begin(&self.relay);
        let mut pusher = self.pusher();
        match std::mem::replace(&mut *pusher, Pusher::Gone) {
            Pusher::Idle(push) => self.take_leave(push, reason, farewell),
            Pusher::Busy | Pusher::Closing(..) => {
                *pusher = Pusher::Closing(reason, farewell);
                self.closing.notify_one();
            }
            Pusher::Gone => {}
        }
    }

    fn take_leave(self: &Arc<Self>, mut push: Box<dyn Push>, reason: CloseReason, farewell: Farewell) {
        let handle = Arc::clone(self);
        tokio::spawn(async move {
            push.close(reason).await;
            drop(push);
            handle.ended(EndReason::Closed);
            drop(farewell);
        });
    }
}

/// The session's outbox, as its transport sees it.
struct Outgoing<'a> {
    handle: &'a Handle,
}

impl Queue for Outgoing<'_> {
    fn next_cost(&mut self) -> Option<usize> {
        let inner = self.handle.relay.upgrade()?;
        inner.lock(self.handle.slot).next_cost(self.handle.key)
    }

    fn take(&mut self) -> Option<Envelope> {
        let inner = self.handle.relay.upgrade()?;
        inner.lock(self.handle.slot).take(self.handle.key)
    }
}

impl Inbound for Handle {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        let Some(inner) = self.relay.upgrade() else { return Ok(()) };
        let relay = Relay { inner };
        let answer = match envelope {
            Envelope::Response { id, response, acknowledge } => {
                let answer =
                    |shard: &mut EngineShard, now| shard.answer_on(now, self.key, &id, response, acknowledge);
                match relay.inner.with_slot(self.slot, answer) {
                    Ok(()) => None,
                    Err(NotTaken::Full(response)) => {
                        return Err(Full(Envelope::Response { id, response, acknowledge }));
                    }
                    Err(NotTaken::NotHere(response)) => {
                        let disposition = relay.verdict(&self.device, &id, response);
                        acknowledge.then_some(Envelope::Ack { id, disposition })
                    }
                }
            }
            Envelope::Ping
                if !relay.inner.with_slot(self.slot, |shard, _| shard.has_control_room(self.key)) =>
            {
                return Err(Full(Envelope::Ping));
            }
            Envelope::Received { id } => {
                relay.received(&self.device, &id);
                None
            }
            Envelope::Progress { id, progress } => {
                relay.job_progress(&self.device, &id, &progress);
                None
            }
            Envelope::Close { id, .. } => {
                relay.job_closed(&self.device, &id);
                None
            }
            Envelope::Ping => Some(Envelope::Pong),
            Envelope::Pong => None,
            other => {
                tracing::debug!(device = %self.device, envelope = ?other, "not for a relay; ignored");
                None
            }
        };
        if let Some(answer) = answer {
            relay.inner.with_slot(self.slot, |shard, _| shard.push_control(self.key, answer));
        }
        Ok(())
    }

    fn alive(&self) {
        if let Some(inner) = self.relay.upgrade() {
            inner.with_slot(self.slot, |shard, now| shard.heard_on(now, self.key));
        }
    }

    fn confirmed(&self, number: u64) {
        if let Some(inner) = self.relay.upgrade() {
            // Nothing follows from it: no effect to run, no clock to set.
            inner.lock(self.slot).confirmed(self.key, number);
        }
    }

    fn attached(&self) {
        if let Some(inner) = self.relay.upgrade() {
            inner.with_slot(self.slot, |shard, now| shard.attached(now, self.key));
        }
    }

    fn detached(&self) {
        if let Some(inner) = self.relay.upgrade() {
            inner.with_slot(self.slot, |shard, now| shard.detached(now, self.key));
        }
    }

    fn resume(&self, session: &SessionId) -> bool {
        let Some(inner) = self.relay.upgrade() else { return false };
        inner.with_slot(self.slot, |shard, _| shard.resume(self.key, session))
    }

    fn ended(&self, reason: EndReason) {
        if let Some(inner) = self.relay.upgrade() {
            inner.with_slot(self.slot, |shard, now| shard.ended(now, self.key, reason));
        }
        // The transport has let go of the session: its push half is of no use any more.
        let pusher = std::mem::replace(&mut *self.pusher(), Pusher::Gone);
        drop(pusher);
    }
}
