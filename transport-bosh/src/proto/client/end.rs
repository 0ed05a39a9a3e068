//! How a session ended, and what that means to whom.

use std::time::Duration;

use relay_core::{
    error::{ErrorKind, TransportError},
    transport::EndReason,
};

use crate::{NAME, exchange::ExchangeErrorKind, wire::TerminalCondition};

/// Why a session is over, as the client end sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// This end closed it.
    #[error("closed")]
    Closed,
    /// The peer closed it in order.
    #[error("the peer closed the session")]
    Goodbye,
    /// The connection manager ended it.
    #[error("the connection manager ended the session: {}", .0.as_str())]
    Condition(TerminalCondition),
    /// The XMPP server ended it with a stream error (RFC 6120 §4.9), by the error's name.
    #[error("the server ended the stream: {0}")]
    StreamError(Box<str>),
    /// An HTTP status that ends a session, or answered its creation.
    #[error("the answer was HTTP status {status}")]
    Status {
        /// The status.
        status: u16,
        /// When the peer asked to be tried again.
        retry_after: Option<Duration>,
    },
    /// There was no answer to the creation of the session.
    #[error("the connection manager could not be reached")]
    Unreachable(ExchangeErrorKind),
    /// There was no answer for so long that the peer has given the session up as well.
    #[error("no answer for too long")]
    Silent,
    /// The peer broke a rule.
    #[error("{0}")]
    Misbehaved(&'static str),
}

impl End {
    /// What an owner is told who has the session.
    pub fn reason(&self) -> EndReason {
        use TerminalCondition as C;
        match self {
            Self::Closed => EndReason::Closed,
            Self::Goodbye => EndReason::Goodbye,
            Self::Condition(condition) => match condition {
                C::ItemNotFound => EndReason::Expired,
                C::PolicyViolation => EndReason::Overloaded { retry_after: None },
                C::SystemShutdown => EndReason::Drain { retry_after: None },
                C::BadRequest => EndReason::Misbehaved,
                _ => EndReason::Lost,
            },
            Self::StreamError(name) => match &**name {
                "conflict" => EndReason::Replaced,
                "not-authorized" => EndReason::Revoked,
                "policy-violation" | "resource-constraint" => EndReason::Overloaded { retry_after: None },
                "system-shutdown" => EndReason::Drain { retry_after: None },
                _ => EndReason::Lost,
            },
            Self::Status { status: 404, .. } => EndReason::Expired,
            Self::Status { status: 429 | 503, retry_after } => {
                EndReason::Overloaded { retry_after: *retry_after }
            }
            Self::Status { status: 400, .. } | Self::Misbehaved(_) => EndReason::Misbehaved,
            Self::Status { .. } | Self::Unreachable(_) | Self::Silent => EndReason::Lost,
        }
    }

    /// What the caller of a session does next.
    pub fn kind(&self) -> ErrorKind {
        use TerminalCondition as C;
        match self {
            Self::Closed | Self::Goodbye => ErrorKind::Closed,
            Self::Condition(condition) => match condition {
                C::ItemNotFound => ErrorKind::Expired,
                C::PolicyViolation => ErrorKind::Overloaded,
                C::SystemShutdown => ErrorKind::Closed,
                C::HostGone | C::HostUnknown | C::ImproperAddressing => ErrorKind::Unsupported,
                C::BadRequest => ErrorKind::Internal,
                _ => ErrorKind::Interrupted,
            },
            Self::StreamError(name) => match &**name {
                "conflict" => ErrorKind::Replaced,
                "not-authorized" => ErrorKind::Unauthenticated,
                "policy-violation" | "resource-constraint" => ErrorKind::Overloaded,
                "host-unknown" | "host-gone" => ErrorKind::Unsupported,
                "system-shutdown" => ErrorKind::Closed,
                _ => ErrorKind::Interrupted,
            },
            Self::Status { status: 404, .. } => ErrorKind::Expired,
            Self::Status { status: 429 | 503, .. } => ErrorKind::Overloaded,
            Self::Status { status: 413, .. } => ErrorKind::TooLarge,
            Self::Unreachable(ExchangeErrorKind::TimedOut) => ErrorKind::TimedOut,
            Self::Unreachable(ExchangeErrorKind::TooLarge) | Self::Misbehaved(_) => ErrorKind::PeerMisbehaved,
            Self::Status { .. } | Self::Unreachable(_) => ErrorKind::Unreachable,
            Self::Silent => ErrorKind::Interrupted,
        }
    }

    /// The error of a session that never came to be. What ended before it began was not interrupted by anything.
    pub fn refusal(&self) -> TransportError {
        let kind = match self.kind() {
            ErrorKind::Interrupted | ErrorKind::Closed => ErrorKind::Unreachable,
            kind => kind,
        };
        self.with_kind(kind)
    }

    /// The error of a session that was.
    pub fn error(&self) -> TransportError {
        self.with_kind(self.kind())
    }

    fn with_kind(&self, kind: ErrorKind) -> TransportError {
        let error = TransportError::new(NAME, kind, self.to_string());
        match self {
            Self::Status { retry_after: Some(retry_after), .. } => error.with_retry_after(*retry_after),
            _ => error,
        }
    }
}
