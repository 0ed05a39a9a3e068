//! How far a request got, and what a response is met with.

use std::{fmt, str::FromStr, time::Duration};

use crate::ids::RequestId;

/// The ladder of `Relay-Outcome`: how far a request truly came.
///
/// Up to [`Queued`](Outcome::Queued) the device has not acted. From [`Sent`](Outcome::Sent) on it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// No such device.
    Unknown,
    /// The device has no session.
    Offline,
    /// Turned away: limits, scopes, the device's error state, the relay's own state.
    Refused,
    /// Accepted, not yet on the session.
    Queued,
    /// Put on the session, nothing heard.
    Sent,
    /// The device said it has it.
    Received,
    /// The device answered.
    Answered,
}

impl Outcome {
    /// The word in `Relay-Outcome`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Offline => "offline",
            Self::Refused => "refused",
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Received => "received",
            Self::Answered => "answered",
        }
    }

    /// Whether the device has certainly not acted, so that asking again cannot do a thing twice.
    pub const fn device_has_not_acted(self) -> bool {
        matches!(self, Self::Unknown | Self::Offline | Self::Refused | Self::Queued)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Outcome {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        [
            Self::Unknown,
            Self::Offline,
            Self::Refused,
            Self::Queued,
            Self::Sent,
            Self::Received,
            Self::Answered,
        ]
        .into_iter()
        .find(|outcome| outcome.as_str() == word)
        .ok_or(())
    }
}

/// The engine's verdict on a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Disposition {
    /// Taken; the call got it.
    Accepted,
    /// An earlier response was taken.
    AlreadyAnswered,
    /// Nobody waits any more.
    TooLate,
    /// No such request, or none that is remembered.
    Unknown,
    /// The request went to another device.
    Forbidden,
}

impl Disposition {
    /// The word in `<ack outcome=''/>`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::AlreadyAnswered => "already-answered",
            Self::TooLate => "too-late",
            Self::Unknown => "unknown",
            Self::Forbidden => "forbidden",
        }
    }
}

impl FromStr for Disposition {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::Accepted, Self::AlreadyAnswered, Self::TooLate, Self::Unknown, Self::Forbidden]
            .into_iter()
            .find(|disposition| disposition.as_str() == word)
            .ok_or(())
    }
}

/// Why a call ended without the device's answer. One kind for each thing that a caller can do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody enrolled such a device.
    #[error("no such device")]
    UnknownDevice,
    /// The device has no session, or lost it while the request was still unsent.
    #[error("the device is offline")]
    DeviceOffline,
    /// A bound is reached; try again after the time given.
    #[error("too many requests: {bound}")]
    TooManyRequests {
        /// Which bound, in words.
        bound: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request or its body is larger than what goes this way.
    #[error("the request has {size} bytes, {max} are allowed")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// The relay is stopping.
    #[error("the relay is draining")]
    Draining,
    /// The relay could not read or write what it must.
    #[error("the relay's store is unavailable")]
    StoreUnavailable,
    /// The hook that translates requests turned this one down, in its words.
    #[error("refused: {0}")]
    Refused(Box<str>),
    /// The hook did not translate the device's answer in the call's time.
    #[error("the device answered, but its answer could not be translated in time")]
    NotTranslated,
    /// The call's time ran out before the request was on the session: the device has not acted.
    #[error("time ran out before the request was sent")]
    NotSent,
    /// The call's time ran out after it was pushed: the device may have acted.
    #[error("the device did not answer in time")]
    DeviceTimeout {
        /// Whether the device had said that it has the request.
        received: bool,
    },
}

impl RequestError {
    /// How far the request got.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::UnknownDevice => Outcome::Unknown,
            Self::DeviceOffline => Outcome::Offline,
            Self::TooManyRequests { .. }
            | Self::TooLarge { .. }
            | Self::Draining
            | Self::StoreUnavailable
            | Self::Refused(_) => Outcome::Refused,
            Self::NotTranslated => Outcome::Answered,
            Self::NotSent => Outcome::Queued,
            Self::DeviceTimeout { received: false } => Outcome::Sent,
            Self::DeviceTimeout { received: true } => Outcome::Received,
        }
    }

    /// Whether the device has certainly not acted, so that asking again cannot do a thing twice.
    pub const fn is_safe_to_retry(&self) -> bool {
        self.outcome().device_has_not_acted()
    }
}

/// A call's end without an answer: why, and under which ID it ran if it was accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct CallError {
    /// The request's ID, if the relay accepted it.
    pub id: Option<RequestId>,
    /// Why it ended.
    #[source]
    pub error: RequestError,
}

impl From<RequestError> for CallError {
    fn from(error: RequestError) -> Self {
        Self { id: None, error }
    }
}
