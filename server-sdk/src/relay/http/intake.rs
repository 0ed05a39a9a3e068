//! A document that comes in as an HTTP body: of any size, held to a pace, and never more of it in memory than is on its
//! way to the disk.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use tokio::time::{Instant, timeout};

use super::{
    body::refuse_encoded,
    problem::{Code, Problem},
};
use crate::relay::{
    config::HttpLimits,
    spool::{SpoolError, Writer},
};

type Polled = Option<Result<Frame<Bytes>, hyper::Error>>;

/// A body on its way in.
pub(super) struct Intake {
    body: Incoming,
    /// What was there when somebody looked.
    ahead: Option<Polled>,
    idle: Duration,
    rate: f64,
    /// How long its sender was waited for, and what came: the time that our disk takes is not its sender's.
    waited: Duration,
    bytes: u64,
    /// What follows comes in another request.
    in_part: bool,
}

/// Why a body ends before it is whole.
#[derive(Debug)]
pub(super) enum Broken {
    /// Its sender is gone, or does not keep to its framing.
    Gone(hyper::Error),
    /// It came too slowly (B9).
    TooSlow {
        /// So far.
        bytes: u64,
    },
}

impl From<Broken> for Problem {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Gone(error) => {
                Self::bad(format!("the body broke off or is not framed as announced: {error}")).closing()
            }
            Broken::TooSlow { bytes } => {
                let words = format!("the body came too slowly: {bytes} bytes so far");
                Self::new(Code::TooSlow, words).closing()
            }
        }
    }
}

impl From<SpoolError> for Problem {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::TooLarge { .. } => Self::new(Code::TooLarge, error.to_string()).closing(),
            SpoolError::Full(_) => {
                tracing::warn!(%error, "a document was refused");
                Self::new(Code::StoreUnavailable, error.to_string())
                    .retry_after(Duration::from_secs(30))
                    .closing()
            }
            SpoolError::Io(source) => {
                tracing::error!(error = %source, "a document cannot be kept");
                Self::store().closing()
            }
        }
    }
}

/// Why a body did not become a document.
pub(super) enum Stopped {
    /// It broke off.
    Broken(Broken),
    /// There is no room for it.
    Spool(SpoolError),
}

impl From<Stopped> for Problem {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Broken(broken) => broken.into(),
            Stopped::Spool(error) => error.into(),
        }
    }
}

impl Intake {
    /// Of `body`, of which nothing is asked for yet: a sender that waits for `100 Continue` goes on waiting.
    pub(super) fn new(body: Incoming, limits: &HttpLimits) -> Self {
        Self {
            body,
            ahead: None,
            idle: limits.body_idle_timeout,
            rate: f64::from(limits.body_min_rate.max(1)),
            waited: Duration::ZERO,
            bytes: 0,
            in_part: false,
        }
    }

    /// The same, as a part of a document.
    pub(super) fn in_part(self, in_part: bool) -> Self {
        Self { in_part, ..self }
    }

    /// Whether more of the document follows in another request.
    pub(super) const fn is_part(&self) -> bool {
        self.in_part
    }

    /// How much was announced.
    pub(super) fn announced(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Asks for the body, so that `100 Continue` goes out before any other answer does.
    pub(super) async fn ask(&mut self) {
        if !self.is_there().await {
            // The connection sends it at its next turn, unless it has another answer by then.
            tokio::task::yield_now().await;
        }
    }

    /// Whether more of it is there at once.
    pub(super) async fn is_there(&mut self) -> bool {
        if self.ahead.is_none() {
            self.ahead = poll_fn(|cx| Poll::Ready(self.poll(cx))).await;
        }
        self.ahead.is_some()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Polled> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending => None,
        }
    }

    /// The next piece; `None` at the end of a body that is whole.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            let frame = match self.ahead.take() {
                Some(frame) => frame,
                None => self.wait().await?,
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Broken::Gone(error)),
                // Trailers are nothing that we know.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        self.bytes += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    async fn wait(&mut self) -> Result<Polled, Broken> {
        let by_rate = Duration::try_from_secs_f64(self.bytes as f64 / self.rate).unwrap_or(Duration::MAX);
        let left = self.idle.max(by_rate).saturating_sub(self.waited).min(self.idle);
        let start = Instant::now();
        let body = &mut self.body;
        let frame = timeout(left, poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))).await;
        self.waited += start.elapsed();
        frame.map_err(|_| Broken::TooSlow { bytes: self.bytes })
    }

    /// All of it into `writer`, which is not finished then.
    pub(super) async fn all(mut self, writer: &mut Writer) -> Result<(), Stopped> {
        while let Some(bytes) = self.next().await.map_err(Stopped::Broken)? {
            writer.write(bytes).await.map_err(Stopped::Spool)?;
        }
        Ok(())
    }
}

/// Refuses a document that is encoded, and says what its media type is.
pub(super) fn media_type(headers: &http::HeaderMap) -> Result<Option<String>, Problem> {
    refuse_encoded(headers)?;
    let Some(value) = super::text_of(headers, &http::header::CONTENT_TYPE)? else { return Ok(None) };
    if value.len() > relay_core::request::MAX_CONTENT_TYPE {
        return Err(Problem::bad("the Content-Type is too long"));
    }
    Ok(Some(value.to_owned()))
}
