//! The device's ends of a session: what comes in waits in the mailbox, what goes out in the outbox.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use relay_core::{
    envelope::Envelope,
    ids::SessionId,
    transport::{EndReason, Full, Inbound, Queue},
};
use tokio::sync::Notify;

/// Envelopes that wait for the device's task; a full mailbox stops the transport, and so the relay.
const MAILBOX: usize = 128;

/// Where a transport puts what the relay says.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Mail {
    envelopes: VecDeque<Envelope>,
    ended: Option<EndReason>,
}

impl Mailbox {
    /// Resolves when there may be something. Cancel safe.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// All there is, in order, and the session's end if it came.
    pub(crate) fn take(&self) -> (VecDeque<Envelope>, Option<EndReason>) {
        let mut mail = self.lock();
        (std::mem::take(&mut mail.envelopes), mail.ended)
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbound for Mailbox {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        {
            let mut mail = self.lock();
            if mail.envelopes.len() >= MAILBOX {
                return Err(Full(envelope));
            }
            mail.envelopes.push_back(envelope);
        }
        self.arrived.notify_one();
        Ok(())
    }

    fn alive(&self) {}

    fn confirmed(&self, _: u64) {}

    fn attached(&self) {}

    fn detached(&self) {}

    fn resume(&self, _: &SessionId) -> bool {
        false
    }

    fn ended(&self, reason: EndReason) {
        self.lock().ended = Some(reason);
        self.arrived.notify_one();
    }
}

/// What waits to go to the relay. Bounded by the ledger, which puts in one answer per open request, and one pong.
#[derive(Debug, Default)]
pub(crate) struct Outbox(VecDeque<Envelope>);

impl Outbox {
    pub(crate) fn put(&mut self, envelope: Envelope) {
        let doubled =
            matches!(envelope, Envelope::Pong | Envelope::Received { .. }) && self.0.contains(&envelope);
        if !doubled {
            self.0.push_back(envelope);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Queue for Outbox {
    fn next_cost(&mut self) -> Option<usize> {
        self.0.front().map(Envelope::cost)
    }

    fn take(&mut self) -> Option<Envelope> {
        self.0.pop_front()
    }
}
