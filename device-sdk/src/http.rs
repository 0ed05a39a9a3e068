//! What a device says to its relay by plain HTTP, beside the session.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use relay_core::{
    auth::Secret,
    book::BookDocument,
    ids::{AccountId, BookId, DeviceId, RequestId, SessionId},
    outcome::Disposition,
    request::Response,
};

use crate::registration::Registration;

mod book;
pub(crate) mod client;
mod data;

pub use self::{
    book::{BookReport, BookVerdict},
    data::{JobPart, JobStream},
};

/// The device's calls of its relay outside the session. The SDK makes them by HTTP; a test may make them to a relay in
/// its own process.
///
/// # Implementing
/// Bound every call in time. Dropping a call's future abandons it.
#[async_trait]
pub trait RelayHttp: fmt::Debug + Send + Sync + 'static {
    /// Trades a PIN for the device's own credential. The PIN is spent.
    ///
    /// # Errors
    /// `Unauthenticated` whatever was wrong with the PIN.
    async fn enroll(&self, device: &DeviceId, pin: &Secret) -> Result<Secret, HttpError>;

    /// Tells the relay what the device is.
    ///
    /// # Errors
    /// `Rejected` if the relay understood and does not take it, for example because something is too long.
    async fn register(
        &self,
        device: &DeviceId,
        token: &Secret,
        registration: &Registration,
    ) -> Result<(), HttpError>;

    /// The survival notification: whether the relay knows `session`.
    ///
    /// # Errors
    /// `UnknownDevice` if the relay knows no such device.
    async fn alive(&self, device: &DeviceId, token: &Secret, session: &SessionId) -> Result<bool, HttpError>;

    /// Delivers an answer.
    ///
    /// # Errors
    /// Any: the answer is delivered again later. What the relay finally says of it is an `Ok`.
    async fn respond(
        &self,
        token: &Secret,
        id: &RequestId,
        response: &Response,
    ) -> Result<Verdict, HttpError>;

    /// The data of job `id` from the offset `from` on, or a part of it, for a transport without channels. `None`: the
    /// relay has no such job, or no longer. Nothing in the part: there is no more if the total is `from`, else there is
    /// nothing yet, which the relay is to say only after a while.
    ///
    /// The stream's items are bounded in time, too.
    ///
    /// # Errors
    /// Any: it is asked for again later.
    async fn job_data(&self, token: &Secret, id: &RequestId, from: u64)
    -> Result<Option<JobPart>, HttpError>;

    /// Reports a change of an address book. Reported twice, it is taken once.
    ///
    /// # Errors
    /// Any: it is reported again later. What the relay finally says of it is an `Ok`.
    async fn report_book(&self, token: &Secret, report: &BookReport) -> Result<BookVerdict, HttpError>;

    /// The address book `book` as it stands, with its name and version; `None` if the relay has none that this device
    /// shares.
    ///
    /// # Errors
    /// Any: it is asked for again later.
    async fn book(
        &self,
        token: &Secret,
        account: Option<&AccountId>,
        book: &BookId,
    ) -> Result<Option<BookDocument>, HttpError>;
}

/// What the relay finally said of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Taken; the service got it.
    Accepted,
    /// An earlier answer was taken.
    AlreadyAnswered,
    /// Nobody waits any more.
    TooLate,
    /// The relay does not know the request, or no longer.
    Unknown,
    /// The request went to another device.
    Forbidden,
    /// It is larger than the relay takes.
    TooLarge,
}

impl From<Disposition> for Verdict {
    fn from(disposition: Disposition) -> Self {
        match disposition {
            Disposition::Accepted => Self::Accepted,
            Disposition::AlreadyAnswered => Self::AlreadyAnswered,
            Disposition::TooLate => Self::TooLate,
            Disposition::Forbidden => Self::Forbidden,
            _ => Self::Unknown,
        }
    }
}

/// What the device does about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HttpErrorKind {
    /// Tries again: the relay was not reached, or the answer was lost.
    Unreachable,
    /// Tries again later: the relay asks for it.
    Overloaded,
    /// Tries again: what answered does not speak as a relay does. A portal or a proxy in between, mostly.
    Unexpected,
    /// Stops and says so: the credential was not accepted.
    Unauthenticated,
    /// Stops and says so: the relay knows no such device.
    UnknownDevice,
    /// Goes on without, and says so: the relay does not take what was sent.
    Rejected,
}

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub struct HttpError {
    /// What the device does about it.
    pub kind: HttpErrorKind,
    /// What happened.
    pub words: Box<str>,
    /// When the relay asked to be tried again, if it did.
    pub retry_after: Option<Duration>,
    /// What caused it.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl HttpError {
    /// An error of `kind`, in words.
    pub fn new(kind: HttpErrorKind, words: impl Into<String>) -> Self {
        Self { kind, words: words.into().into(), retry_after: None, source: None }
    }
}
