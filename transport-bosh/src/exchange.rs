//! One POST and its answer: all that the client end asks of HTTP.
//!
//! With the feature `reqwest`, `http::ReqwestExchange` does it over the network. An exchange of another kind (a
//! simulated network, a device's own HTTP stack) is a few lines; what it has to keep to is said at [`Exchange`].

use std::{error::Error as StdError, fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

/// Makes POSTs to one connection manager.
///
/// # Implementing
/// - POST the body unchanged with the Content-Type [`CONTENT_TYPE`]; no transfer coding, no compression.
/// - Never repeat a POST on your own, and follow no redirect that is not a 307 or 308 to the same host over the same
///   or a stronger scheme: the session repeats what has to be repeated, under the same RID.
/// - At least [`SIMULTANEOUS`] POSTs must be able to wait for their answers at once.
/// - Take no more of an answer than a bound, and fail with [`ExchangeErrorKind::TooLarge`] beyond it.
/// - Dropped, a post is over: its connection is closed or the answer thrown away.
#[async_trait]
pub trait Exchange: fmt::Debug + Send + Sync + 'static {
    /// Posts, and waits for the whole answer.
    ///
    /// # Errors
    /// [`ExchangeError`] if there was none. An answer of any status is none.
    async fn post(&self, post: Post) -> Result<Reply, ExchangeError>;

    /// Whether every post goes over TLS, or never leaves the process. Without it no password is shown to the peer.
    fn is_confidential(&self) -> bool;
}

/// The Content-Type of every POST (XEP-0124 §5).
pub const CONTENT_TYPE: &str = "text/xml; charset=utf-8";
/// How many POSTs can wait for their answers at once: one held, one with news, one that says goodbye.
pub const SIMULTANEOUS: usize = 3;

/// What to post.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Post {
    /// The message.
    pub body: Bytes,
    /// How long to wait for the whole answer, from now.
    pub timeout: Duration,
    /// Connections made earlier may be dead without a sign: use a new one.
    pub fresh: bool,
}

impl Post {
    /// `body`, over any connection.
    pub const fn new(body: Bytes, timeout: Duration) -> Self {
        Self { body, timeout, fresh: false }
    }

    /// Over a new connection if `fresh`.
    #[must_use]
    pub const fn with_fresh(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }
}

impl fmt::Debug for Post {
    // The body holds the SID, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Post({} bytes, fresh: {})", self.body.len(), self.fresh)
    }
}

/// What came back.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The message.
    pub body: Bytes,
    /// How long `Retry-After` says to wait, if it was there and could be read.
    pub retry_after: Option<Duration>,
}

impl Reply {
    /// An answer of `status` with `body`.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), retry_after: None }
    }

    /// The peer asked to be tried again after `retry_after`.
    #[must_use]
    pub const fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({}, {} bytes)", self.status, self.body.len())
    }
}

/// How a POST came to no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExchangeErrorKind {
    /// No connection: nothing was sent.
    Unreachable,
    /// The peer's certificate was not accepted: nothing was sent.
    Untrusted,
    /// The connection was lost: it may have arrived.
    Interrupted,
    /// No answer in time: it may have arrived.
    TimedOut,
    /// The answer is larger than the bound.
    TooLarge,
}

/// A POST that came to no answer.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub struct ExchangeError {
    /// How.
    pub kind: ExchangeErrorKind,
    words: Box<str>,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl ExchangeError {
    /// An error of `kind`, in words that hold no secret.
    pub fn new(kind: ExchangeErrorKind, words: impl Into<String>) -> Self {
        Self { kind, words: words.into().into_boxed_str(), source: None }
    }

    /// Caused by `source`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The whole chain of causes on one line.
    pub fn chain(&self) -> String {
        let mut words = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            words.push_str(": ");
            words.push_str(&error.to_string());
            cause = error.source();
        }
        words
    }
}
