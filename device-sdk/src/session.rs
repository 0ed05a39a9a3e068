//! The device's ends of a session: what comes in waits in the mailbox, what goes out in the outbox.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use relay_core::{
    envelope::Envelope,
    ids::RequestId,
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

    fn ended(&self, reason: EndReason) {
        self.lock().ended = Some(reason);
        self.arrived.notify_one();
    }
}

/// What waits to go to the relay. Holds one ping, one pong, and one `received`, one `progress` and one answer for each
/// request that is open in the ledger, however long the session takes nothing.
#[derive(Debug, Default)]
pub(crate) struct Outbox(VecDeque<Envelope>);

impl Outbox {
    /// Puts `envelope` in the place of what waits and says the same, else at the end.
    pub(crate) fn put(&mut self, envelope: Envelope) {
        match self.0.iter_mut().find(|waiting| says_the_same(waiting, &envelope)) {
            Some(waiting) => *waiting = envelope,
            None => self.0.push_back(envelope),
        }
    }

    /// Takes out what waits about a request that is settled.
    pub(crate) fn withdraw(&mut self, request: &RequestId) {
        self.0.retain(|waiting| about(waiting) != Some(request));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn says_the_same(a: &Envelope, b: &Envelope) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b) && about(a) == about(b)
}

/// Which request an envelope to the relay is about.
const fn about(envelope: &Envelope) -> Option<&RequestId> {
    match envelope {
        Envelope::Response { id, .. } | Envelope::Received { id } | Envelope::Progress { id, .. } => Some(id),
        _ => None,
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

#[cfg(test)]
mod tests {
    use relay_core::request::Response;

    use super::*;

    fn id(n: usize) -> RequestId {
        RequestId::new(&format!("r{n}")).unwrap()
    }

    fn response(n: usize, code: &str) -> Envelope {
        let response = Response::error(crate::handler::status(code), "words");
        Envelope::Response { id: id(n), response, acknowledge: true }
    }

    fn all(mut outbox: Outbox) -> Vec<Envelope> {
        std::iter::from_fn(|| outbox.take()).collect()
    }

    #[test]
    fn s6_what_is_said_again_takes_the_place_of_what_still_waits() {
        let mut outbox = Outbox::default();
        for code in ["busy", "too-large"] {
            outbox.put(Envelope::Ping);
            for n in 0..3 {
                outbox.put(Envelope::Received { id: id(n) });
                outbox.put(response(n, code));
            }
            outbox.put(Envelope::Pong);
        }
        let mut expected = vec![Envelope::Ping];
        expected.extend((0..3).flat_map(|n| [Envelope::Received { id: id(n) }, response(n, "too-large")]));
        expected.push(Envelope::Pong);
        assert_eq!(all(outbox), expected);
    }

    #[test]
    fn b6_what_is_settled_waits_no_longer() {
        let mut outbox = Outbox::default();
        for n in 0..2 {
            outbox.put(Envelope::Received { id: id(n) });
            outbox.put(response(n, "busy"));
        }
        outbox.withdraw(&id(0));
        assert_eq!(all(outbox), [Envelope::Received { id: id(1) }, response(1, "busy")]);
    }
}
