//! What the ledger is told, and what it says is to be done.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use relay_core::{
    envelope::Envelope,
    ids::RequestId,
    outcome::Disposition,
    request::{Request, Response},
    transport::TransportInfo,
};

use crate::{event::Event, http::Verdict};

/// Which way answers go to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RespondBy {
    /// By a plain HTTP call of their own. The default over BOSH.
    Http,
    /// In the session, as far as they fit and there is one. The default over everything else.
    Session,
}

impl RespondBy {
    /// The default for a session.
    pub(crate) fn over(transport: &TransportInfo) -> Self {
        if transport.name == "bosh" { Self::Http } else { Self::Session }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct LedgerConfig {
    /// Handlers at work at once.
    pub(crate) concurrency: usize,
    /// Requests that are queued or at work.
    pub(crate) in_flight: usize,
    pub(crate) respond_by: RespondBy,
    /// How long a request may take before the relay is told that it arrived.
    pub(crate) received_after: Duration,
    /// How long the relay may take to acknowledge an answer in the session.
    pub(crate) ack_within: Duration,
    /// How many settled requests are remembered, and for how long.
    pub(crate) remembered: usize,
    pub(crate) remembered_for: Duration,
    /// How many bytes of settled answers are kept to be sent again.
    pub(crate) remembered_bytes: usize,
    /// How many HTTP calls deliver answers at once.
    pub(crate) deliveries: usize,
}

impl LedgerConfig {
    pub(crate) const fn new(respond_by: RespondBy) -> Self {
        Self {
            concurrency: 16,
            in_flight: 64,
            respond_by,
            received_after: Duration::from_secs(1),
            ack_within: Duration::from_secs(30),
            remembered: 10_000,
            remembered_for: Duration::from_secs(24 * 3600),
            remembered_bytes: 4 * 1024 * 1024,
            deliveries: 8,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Input {
    Request {
        id: RequestId,
        request: Arc<Request>,
        deadline: Instant,
    },
    Cancel {
        id: RequestId,
    },
    /// The relay closes the app of this job, if it is at work.
    Close {
        id: RequestId,
    },
    /// The job came to nothing, and nobody wants to hear of it.
    Unwanted {
        id: RequestId,
    },
    /// The handler is done.
    Finished {
        id: RequestId,
        response: Response,
    },
    /// A delivery by HTTP ended: in a verdict, or in nothing, to be tried again.
    Delivered {
        id: RequestId,
        result: Result<Verdict, Option<Duration>>,
    },
    /// The relay's verdict came in the session.
    Ack {
        id: RequestId,
        disposition: Disposition,
    },
    SessionUp {
        max_body: usize,
        /// Which way answers go while it is up.
        respond_by: RespondBy,
    },
    SessionDown,
    /// The device shuts down: turn away what comes from now on.
    TakeNoMore,
    Woken,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Output {
    Run {
        id: RequestId,
        request: Arc<Request>,
        deadline: Instant,
    },
    /// Work for an app.
    Offer {
        id: RequestId,
        request: Arc<Request>,
    },
    /// The relay has this job still, which is at work.
    OfferedAgain {
        id: RequestId,
        request: Arc<Request>,
    },
    /// Nobody wants the answer any more: tell the handler.
    Cancel(RequestId),
    /// Deliver by HTTP.
    Deliver(RequestId, Response),
    /// Deliver in the session.
    Push(Envelope),
    /// What waits for the session about this request is no longer to go.
    Withdraw(RequestId),
    Event(Event),
}
