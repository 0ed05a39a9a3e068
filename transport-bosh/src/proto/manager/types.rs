//! What the machine is told, and what it tells.

use std::time::Duration;

use bytes::Bytes;

use crate::{proto::rid::Rid, wire::TerminalCondition};

/// The owner's name for one HTTP exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExchangeId(pub u64);

/// One request of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<P> {
    /// Its ID.
    pub rid: Rid,
    /// What it carries.
    pub payloads: Vec<P>,
    /// What that counts against the bound on early requests, in bytes.
    pub cost: usize,
    /// The RID up to which the client has all answers.
    pub ack: Option<u64>,
    /// A pause asked for.
    pub pause: Option<Duration>,
    /// Whether the client ends the session.
    pub terminate: bool,
    /// Whether the client restarts its stream.
    pub restart: bool,
    /// Its key.
    pub key: Option<Box<str>>,
    /// The start of a new chain of keys.
    pub newkey: Option<Box<str>>,
}

impl<P> Request<P> {
    /// A request that carries `payloads`.
    pub const fn new(rid: Rid, payloads: Vec<P>) -> Self {
        Self {
            rid,
            payloads,
            cost: 0,
            ack: None,
            pause: None,
            terminate: false,
            restart: false,
            key: None,
            newkey: None,
        }
    }

    pub(super) const fn is_poll(&self) -> bool {
        self.payloads.is_empty() && self.pause.is_none() && !self.terminate && !self.restart
    }

    /// XEP-0124 §11 allows one of these beyond `requests`.
    pub(super) const fn may_exceed(&self) -> bool {
        self.terminate || self.pause.is_some()
    }
}

/// What the owner is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<P> {
    /// Answer an HTTP exchange; it is finished.
    Respond {
        /// Which.
        exchange: ExchangeId,
        /// The HTTP status.
        status: u16,
        /// The whole message.
        body: Bytes,
    },
    /// Handle a payload.
    Deliver(P),
    /// The client restarted its stream.
    Restart,
    /// The client showed a sign of life.
    Alive,
    /// There is a live held request now.
    Attached,
    /// There is none any more.
    Detached,
    /// The client has the pushes up to this number.
    Confirmed(u64),
    /// The session is over.
    Ended(End),
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client ended it.
    Goodbye,
    /// The client was silent for too long.
    Silent,
    /// The client broke a rule.
    Failed(TerminalCondition),
    /// The owner closed it.
    Closed,
}
