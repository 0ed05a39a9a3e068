//! A session that is looked at from outside: when something came on it, when something went, how it ended.

use std::{fmt, sync::Arc, time::Instant};

use async_trait::async_trait;
use relay_core::{
    envelope::Envelope,
    error::TransportError,
    ids::SessionId,
    transport::{CloseReason, EndReason, Full, Inbound, Push, Queue, Session, Started},
};

/// Who looks. Called from the transport's task and the owner's: returns at once.
pub(crate) trait Observer: fmt::Debug + Send + Sync + 'static {
    /// The relay said something, and it was taken.
    fn came(&self, _: Instant) {}
    /// The transport took something for the relay.
    fn went(&self, _: Instant) {}
    /// The owner had it go on over a fresh connection.
    fn refreshed(&self) {}
    /// It is over.
    fn ended(&self, _: EndReason, _: Instant) {}
}

/// `session`, with `observer` looking at it from its start on.
pub(crate) fn observed(session: Session, observer: Arc<dyn Observer>) -> Session {
    let Session { device, id, resume, resumed, info, push, .. } = session;
    let push = Box::new(Observed { inner: push, observer });
    Session::new(device, id, info, push).resuming(resume).with_resumed(resumed)
}

#[derive(Debug)]
struct Observed {
    inner: Box<dyn Push>,
    observer: Arc<dyn Observer>,
}

#[async_trait]
impl Push for Observed {
    fn start(&mut self, started: Started) {
        let Started { session, resumed, inbound, .. } = started;
        let inbound = Arc::new(Ear { inner: inbound, observer: self.observer.clone() });
        self.inner.start(Started::new(session, resumed, inbound));
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        let something = queue.next_cost().is_some();
        self.inner.push(queue).await?;
        if something {
            self.observer.went(crate::now());
        }
        Ok(())
    }

    fn refresh(&mut self) {
        self.inner.refresh();
        self.observer.refreshed();
    }

    async fn close(&mut self, reason: CloseReason) {
        self.inner.close(reason).await;
    }
}

#[derive(Debug)]
struct Ear {
    inner: Arc<dyn Inbound>,
    observer: Arc<dyn Observer>,
}

impl Inbound for Ear {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        self.inner.envelope(envelope)?;
        self.observer.came(crate::now());
        Ok(())
    }

    fn alive(&self) {
        self.inner.alive();
    }

    fn confirmed(&self, number: u64) {
        self.inner.confirmed(number);
    }

    fn attached(&self) {
        self.inner.attached();
    }

    fn detached(&self) {
        self.inner.detached();
    }

    fn resume(&self, session: &SessionId) -> bool {
        self.inner.resume(session)
    }

    fn ended(&self, reason: EndReason) {
        self.observer.ended(reason, crate::now());
        self.inner.ended(reason);
    }
}
