//! Errors at the seam: one kind for each thing that the caller does next.

use std::error::Error as StdError;

/// What the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Back off and retry: nothing was sent.
    Unreachable,
    /// Retry only what is idempotent: it may have arrived.
    Interrupted,
    /// The deadline passed; the outcome is not known.
    TimedOut,
    /// Open a new session: this one was closed in order.
    Closed,
    /// Open a new session: the peer no longer knows this one.
    Expired,
    /// A newer session of the same device took over.
    Replaced,
    /// Mend the credentials; do not retry as they are.
    Unauthenticated,
    /// Slow down, then retry.
    Overloaded,
    /// The caller's mistake: larger than what goes this way.
    TooLarge,
    /// The caller's mistake: this transport does not do that.
    Unsupported,
    /// Close, and log the rule that was broken.
    PeerMisbehaved,
    /// A bug, or a resource ran out.
    Internal,
}

impl ErrorKind {
    /// Whether trying again, later and unchanged, can help.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::Interrupted
                | Self::TimedOut
                | Self::Closed
                | Self::Expired
                | Self::Overloaded
                | Self::PeerMisbehaved
                | Self::Internal
        )
    }
}

/// What went wrong in a transport.
#[derive(Debug, thiserror::Error)]
#[error("{transport}: {words}")]
pub struct TransportError {
    /// The transport's name, as in [`crate::transport::TransportInfo::name`].
    pub transport: &'static str,
    /// What the caller does next.
    pub kind: ErrorKind,
    /// What happened, one level.
    pub words: Box<str>,
    /// When the peer asked to be tried again, if it did.
    pub retry_after: Option<std::time::Duration>,
    /// What caused it.
    #[source]
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl TransportError {
    /// An error of `kind`, in words.
    pub fn new(transport: &'static str, kind: ErrorKind, words: impl Into<String>) -> Self {
        Self { transport, kind, words: words.into().into_boxed_str(), retry_after: None, source: None }
    }

    /// Caused by `source`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The peer asked to be tried again after `retry_after`.
    #[must_use]
    pub const fn with_retry_after(mut self, retry_after: std::time::Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }
}
