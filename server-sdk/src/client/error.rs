//! What can go wrong with a call, and what the caller knows then.

use std::{error::Error as StdError, fmt, time::Duration};

use relay_core::{
    ids::{InvalidId, RequestId},
    outcome::Outcome,
};

/// What the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Mend the call or the settings: nothing was sent, or the relay did not understand it.
    Invalid,
    /// Try again later: the relay cannot be reached, and nothing was sent.
    Unreachable,
    /// The connection broke, or time ran out, before the relay's answer was whole. Whether the device acted is not
    /// known.
    Interrupted,
    /// Something answered that is not the relay: a proxy, a portal, another server. Whether the device acted is not
    /// known.
    NotTheRelay,
    /// Mend the key: it is not accepted.
    Unauthenticated,
    /// The key does not allow this.
    Forbidden,
    /// There is no such device, or none that the key may see.
    UnknownDevice,
    /// The relay has none of what was named: a request that it no longer remembers, a key, a path.
    Unknown,
    /// Name one device: the account has several.
    AmbiguousAccount,
    /// Try again when it is back: the device has no session. It was not asked.
    DeviceOffline,
    /// The device is asleep.
    DeviceAsleep,
    /// The device has no such object.
    UnknownObject,
    /// The device's own error state stands in the way, such as a paper jam.
    DeviceError,
    /// The device answered that it could not do it, with a code of its own.
    DeviceFailed,
    /// The device was asked and did not answer in time. It may have acted.
    DeviceTimeout,
    /// Time ran out before the device was asked. It has not acted.
    NotSent,
    /// In conflict with what is there.
    Conflict,
    /// Read it again, and make the change anew: others have changed it since.
    Stale,
    /// Slow down, and try again after [`Error::retry_after`].
    TooManyRequests,
    /// Try again later: the relay is stopping, full, or cannot reach its store.
    Unavailable,
    /// The request or the answer is larger than what is taken.
    TooLarge,
    /// The relay refused for another reason; see [`Error::code`].
    Refused,
}

impl ErrorKind {
    /// Whether it lies in the way to the relay, or in how busy that is, and not in what was asked.
    pub(super) const fn may_pass(self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::Interrupted
                | Self::NotTheRelay
                | Self::Unavailable
                | Self::TooManyRequests
        )
    }
}

/// A call that did not succeed: why, and how far it came.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    words: String,
    about_device: bool,
    outcome: Option<Outcome>,
    code: Option<String>,
    status: Option<u16>,
    retry_after: Option<Duration>,
    request_id: Option<RequestId>,
    device_status: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(super) fn new(kind: ErrorKind, words: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            words: words.into(),
            about_device: true,
            outcome: None,
            code: None,
            status: None,
            retry_after: None,
            request_id: None,
            device_status: None,
            source: None,
        }))
    }

    pub(super) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(super) fn with_status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    pub(super) fn with_outcome(mut self, outcome: Option<Outcome>) -> Self {
        self.0.outcome = outcome;
        self
    }

    pub(super) fn with_request_id(mut self, id: Option<RequestId>) -> Self {
        self.0.request_id = id;
        self
    }

    pub(super) fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.0.retry_after = after;
        self
    }

    pub(super) fn with_code(mut self, code: &str) -> Self {
        self.0.code = Some(code.to_owned());
        self
    }

    pub(super) fn with_device_status(mut self, status: Option<String>) -> Self {
        self.0.device_status = status;
        self
    }

    /// The call asked no device for anything: repeating it can do nothing twice there.
    pub(super) fn of_inquiry(mut self) -> Self {
        self.0.about_device = false;
        self
    }

    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// How far the request came, as the relay says in `Relay-Outcome`. `None`: not known, since it was not the relay
    /// that ended the call. A proxy's own 504 is such a case, and so is a broken connection.
    pub fn outcome(&self) -> Option<Outcome> {
        self.0.outcome
    }

    /// Whether it is certain that the device has not acted, so that asking again cannot do a thing twice. What it is
    /// not certain of, it denies: a GET that failed otherwise may be repeated all the same.
    pub fn is_safe_to_retry(&self) -> bool {
        match self.0.outcome {
            Some(outcome) => outcome.device_has_not_acted(),
            None => {
                !self.0.about_device || matches!(self.0.kind, ErrorKind::Invalid | ErrorKind::Unreachable)
            }
        }
    }

    /// The relay's code for it, such as `device-offline`: what follows `urn:relay:error:` in the problem's type.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// When to try again, if the relay said so; an hour at most.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The request's ID, if the relay had accepted it.
    pub fn request_id(&self) -> Option<&RequestId> {
        self.0.request_id.as_ref()
    }

    /// The device's own code, if it answered with one.
    pub fn device_status(&self) -> Option<&str> {
        self.0.device_status.as_deref()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, words, outcome, code, status, retry_after, request_id, source, .. } = &*self.0;
        let mut shown = f.debug_struct("Error");
        shown.field("kind", kind).field("words", words).field("outcome", outcome);
        for (name, value) in [
            ("code", code.as_ref().map(|code| code as &dyn fmt::Debug)),
            ("status", status.as_ref().map(|status| status as _)),
            ("retry_after", retry_after.as_ref().map(|after| after as _)),
            ("request_id", request_id.as_ref().map(|id| id as _)),
            ("source", source.as_ref().map(|source| source as _)),
        ] {
            if let Some(value) = value {
                shown.field(name, value);
            }
        }
        shown.finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.words)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

impl From<InvalidId> for Error {
    fn from(error: InvalidId) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string())
    }
}

/// What a code of the relay's asks of the caller.
pub(super) fn kind_of(code: &str, status: u16) -> ErrorKind {
    match code {
        "bad-request"
        | "headers-too-large"
        | "uri-too-long"
        | "unsupported-media-type"
        | "precondition-required"
        | "method-not-allowed" => ErrorKind::Invalid,
        "unauthenticated" => ErrorKind::Unauthenticated,
        "forbidden" => ErrorKind::Forbidden,
        "unknown-device" => ErrorKind::UnknownDevice,
        "unknown-object" => ErrorKind::UnknownObject,
        "ambiguous-account" => ErrorKind::AmbiguousAccount,
        "device-offline" => ErrorKind::DeviceOffline,
        "device-asleep" => ErrorKind::DeviceAsleep,
        "device-error" => ErrorKind::DeviceError,
        "device-failed" => ErrorKind::DeviceFailed,
        "device-timeout" => ErrorKind::DeviceTimeout,
        "not-sent" => ErrorKind::NotSent,
        "conflict" | "already-answered" => ErrorKind::Conflict,
        "precondition-failed" => ErrorKind::Stale,
        "too-many-requests" => ErrorKind::TooManyRequests,
        "too-large" => ErrorKind::TooLarge,
        // Codes that a later relay may have are judged by their status.
        _ => match status {
            404 => ErrorKind::Unknown,
            409 => ErrorKind::Conflict,
            412 => ErrorKind::Stale,
            413 => ErrorKind::TooLarge,
            429 => ErrorKind::TooManyRequests,
            503 => ErrorKind::Unavailable,
            _ => ErrorKind::Refused,
        },
    }
}
