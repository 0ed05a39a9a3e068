//! Errors as the caller sees them: `application/problem+json` (RFC 9457).

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use relay_core::{
    ids::{InvalidId, RequestId},
    outcome::{CallError, Outcome, RequestError},
    store::{StoreError, json::InvalidJson},
};
use serde_json::Value;

use super::body::{Reply, ReplyBody};

/// What went wrong, one code for each thing that a caller may do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Code {
    BadRequest,
    Unauthenticated,
    Forbidden,
    NotFound,
    UnknownDevice,
    UnknownRequest,
    UnknownObject,
    UnknownKey,
    UnknownApp,
    UnknownBook,
    UnknownDocument,
    MethodNotAllowed,
    TooSlow,
    AmbiguousAccount,
    DeviceError,
    AlreadyAnswered,
    Conflict,
    TooLate,
    PreconditionFailed,
    PreconditionRequired,
    UpgradeRequired,
    TooLarge,
    UriTooLong,
    UnsupportedMediaType,
    RangeNotSatisfiable,
    TooManyRequests,
    Internal,
    NoDataYet,
    DeviceFailed,
    DeviceOffline,
    Draining,
    StoreUnavailable,
    Overloaded,
    DeviceTimeout,
    NotSent,
}

impl Code {
    const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::BadRequest => (S::BAD_REQUEST, "bad-request", "The request cannot be understood"),
            Self::Unauthenticated => (S::UNAUTHORIZED, "unauthenticated", "No credential that holds"),
            Self::Forbidden => (S::FORBIDDEN, "forbidden", "Not allowed"),
            Self::NotFound => (S::NOT_FOUND, "not-found", "No such resource"),
            Self::UnknownDevice => (S::NOT_FOUND, "unknown-device", "No such device"),
            Self::UnknownRequest => (S::NOT_FOUND, "unknown-request", "No such request"),
            Self::UnknownObject => (S::NOT_FOUND, "unknown-object", "The device has no such object"),
            Self::UnknownKey => (S::NOT_FOUND, "unknown-key", "No such key"),
            Self::UnknownApp => (S::NOT_FOUND, "unknown-app", "The device has no such app"),
            Self::UnknownDocument => (S::NOT_FOUND, "unknown-document", "No such document"),
            Self::UnknownBook => (S::NOT_FOUND, "unknown-book", "No such address book"),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "method-not-allowed", "Not done to this resource")
            }
            Self::TooSlow => (S::REQUEST_TIMEOUT, "too-slow", "The request came too slowly"),
            Self::AmbiguousAccount => (S::CONFLICT, "ambiguous-account", "The account has several devices"),
            Self::DeviceError => (S::CONFLICT, "device-error", "The device is in an error state"),
            Self::AlreadyAnswered => (S::CONFLICT, "already-answered", "Answered before"),
            Self::Conflict => (S::CONFLICT, "conflict", "In conflict with what is there"),
            Self::TooLate => (S::GONE, "too-late", "Nobody waits for this response any more"),
            Self::PreconditionFailed => {
                (S::PRECONDITION_FAILED, "precondition-failed", "Not what is there now")
            }
            Self::PreconditionRequired => {
                (S::PRECONDITION_REQUIRED, "precondition-required", "It must be said what is changed")
            }
            Self::UpgradeRequired => {
                (S::UPGRADE_REQUIRED, "upgrade-required", "This is served over another protocol")
            }
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "too-large", "The body is too large"),
            Self::UriTooLong => (S::URI_TOO_LONG, "uri-too-long", "The request target is too long"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Not a media type that is taken here")
            }
            Self::RangeNotSatisfiable => {
                (S::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", "There are no such bytes")
            }
            Self::NoDataYet => (S::SERVICE_UNAVAILABLE, "no-data-yet", "There is no more data yet"),
            Self::TooManyRequests => (S::TOO_MANY_REQUESTS, "too-many-requests", "Too many requests"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "The relay failed"),
            Self::DeviceFailed => (S::BAD_GATEWAY, "device-failed", "The device could not do it"),
            Self::DeviceOffline => (S::SERVICE_UNAVAILABLE, "device-offline", "The device is offline"),
            Self::Draining => (S::SERVICE_UNAVAILABLE, "draining", "The relay is stopping"),
            Self::StoreUnavailable => {
                (S::SERVICE_UNAVAILABLE, "store-unavailable", "The relay's store is unavailable")
            }
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", "The relay has no room"),
            Self::DeviceTimeout => {
                (S::GATEWAY_TIMEOUT, "device-timeout", "The device did not answer in time")
            }
            Self::NotSent => (S::GATEWAY_TIMEOUT, "not-sent", "Time ran out before the request was sent"),
        }
    }

    pub(super) const fn status(self) -> StatusCode {
        self.parts().0
    }

    pub(super) const fn as_str(self) -> &'static str {
        self.parts().1
    }

    /// How far a call came that ended so, if the call itself does not know better.
    const fn outcome(self) -> Outcome {
        match self {
            Self::UnknownDevice => Outcome::Unknown,
            Self::DeviceOffline => Outcome::Offline,
            Self::UnknownObject | Self::DeviceError | Self::DeviceFailed => Outcome::Answered,
            Self::DeviceTimeout => Outcome::Sent,
            Self::NotSent => Outcome::Queued,
            _ => Outcome::Refused,
        }
    }
}

/// An error on its way to the caller.
#[derive(Debug)]
pub(super) struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    outcome: Option<Outcome>,
    extra: Option<Box<Extra>>,
}

/// What few problems have.
#[derive(Debug, Default)]
struct Extra {
    request: Option<RequestId>,
    retry_after: Option<Duration>,
    of_device: bool,
    device: Option<(Box<str>, Box<str>)>,
    allow: Option<&'static str>,
    errors: Option<Value>,
    offset: Option<u64>,
    any_origin: bool,
    close: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.extra {
            // A device's words are payload, which is not logged.
            Some(extra) if extra.of_device => f.write_str(self.code.as_str()),
            _ => write!(f, "{}: {:?}", self.code.as_str(), self.detail),
        }
    }
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), outcome: None, extra: None }
    }

    pub(super) fn bad(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    /// The same bytes for a device that is not there and for one that the caller may not see (X2).
    pub(super) fn unknown_device() -> Self {
        Self::new(Code::UnknownDevice, "no such device")
    }

    pub(super) fn not_allowed(allow: &'static str) -> Self {
        let mut problem = Self::new(Code::MethodNotAllowed, format!("allowed here: {allow}"));
        problem.extra().allow = Some(allow);
        problem
    }

    /// The device answered, not with what was asked for.
    pub(super) fn of_device(code: Code, status: &str, words: String) -> Self {
        let silent = || Cow::Borrowed("the device says so, without words");
        let detail = if words.is_empty() { silent() } else { Cow::Owned(words.clone()) };
        let mut problem = Self::new(code, detail);
        problem.extra().of_device = true;
        if code == Code::DeviceFailed {
            problem.extra().device = Some((status.into(), words.into_boxed_str()));
        }
        problem
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// How far the call came.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.unwrap_or_else(|| self.code.outcome())
    }

    /// Says what was wrong where, one by one.
    #[must_use]
    pub(super) fn with_errors(mut self, errors: Value) -> Self {
        self.extra().errors = Some(errors);
        self
    }

    /// A page of any origin may read it.
    #[must_use]
    pub(super) fn for_any_origin(mut self) -> Self {
        self.extra().any_origin = true;
        self
    }

    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// The request that it is about, if the relay gave it an ID.
    pub(super) fn request(&self) -> Option<&RequestId> {
        self.extra.as_ref()?.request.as_ref()
    }

    /// What went wrong, in words.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// How far the call came, where its code alone does not tell.
    #[must_use]
    pub(super) fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// Says where an upload is to go on.
    #[must_use]
    pub(super) fn with_offset(mut self, offset: u64) -> Self {
        self.extra().offset = Some(offset);
        self
    }

    #[must_use]
    pub(super) fn retry_after(mut self, after: Duration) -> Self {
        self.extra().retry_after = Some(after);
        self
    }

    /// The connection cannot go on after this: there are bytes on it that nobody reads.
    #[must_use]
    pub(super) fn closing(mut self) -> Self {
        self.extra().close = true;
        self
    }

    #[must_use]
    pub(super) fn of_request(mut self, id: Option<RequestId>) -> Self {
        if id.is_some() {
            self.extra().request = id;
        }
        self
    }

    /// The answer to a request call: says how far the request came (L1).
    #[must_use]
    pub(super) fn of_call(mut self) -> Self {
        self.outcome = Some(self.outcome());
        self
    }

    fn json(&self) -> Vec<u8> {
        let (status, code, title) = self.code.parts();
        let mut json = serde_json::json!({
            "type": format!("urn:relay:error:{code}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.detail,
        });
        if let Some((device_status, words)) = self.extra.as_ref().and_then(|extra| extra.device.as_ref()) {
            json["device_status"] = Value::from(&**device_status);
            json["device_detail"] = Value::from(&**words);
        }
        if let Some(offset) = self.extra.as_ref().and_then(|extra| extra.offset) {
            json["offset"] = Value::from(offset);
        }
        if let Some(errors) = self.extra.as_ref().and_then(|extra| extra.errors.as_ref()) {
            json["errors"] = errors.clone();
        }
        json.to_string().into_bytes()
    }

    pub(super) fn reply(self) -> Reply {
        let json = self.json();
        let mut reply = Reply::new(ReplyBody::from(Bytes::from(json)));
        *reply.status_mut() = self.code.status();
        let headers = reply.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(outcome) = self.outcome {
            headers.insert(super::RELAY_OUTCOME, HeaderValue::from_static(outcome.as_str()));
        }
        if let Some(extra) = self.extra {
            if let Some(id) = extra.request.and_then(|id| HeaderValue::from_str(id.as_str()).ok()) {
                headers.insert(super::RELAY_REQUEST_ID, id);
            }
            if let Some(after) = extra.retry_after {
                // Whole seconds, never zero: "at once" is not what a full relay wants.
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds_up(after)));
            }
            if let Some(offset) = extra.offset {
                headers.insert(super::requests::UPLOAD_OFFSET, HeaderValue::from(offset));
            }
            if let Some(allow) = extra.allow {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            if extra.any_origin {
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            if extra.close {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        reply
    }

    /// The whole answer as bytes, for a connection whose HTTP machine is gone.
    pub(super) fn raw(&self) -> Vec<u8> {
        let json = self.json();
        let status = self.code.status();
        let mut raw = format!(
            "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or(""),
            json.len()
        );
        if let Some(after) = self.extra.as_ref().and_then(|extra| extra.retry_after) {
            raw.push_str(&format!("retry-after: {}\r\n", seconds_up(after)));
        }
        raw.push_str("\r\n");
        let mut raw = raw.into_bytes();
        raw.extend_from_slice(&json);
        raw
    }
}

/// What a caller wrote, as it may stand in an error: escaped and cut (T43).
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(128).collect::<String>())
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0 || duration.is_zero())
}

impl From<InvalidId> for Problem {
    fn from(error: InvalidId) -> Self {
        Self::bad(error.to_string())
    }
}

impl From<CallError> for Problem {
    fn from(CallError { id, error }: CallError) -> Self {
        let outcome = error.outcome();
        let mut problem = match error {
            RequestError::UnknownDevice => Self::unknown_device(),
            RequestError::DeviceOffline => {
                Self::new(Code::DeviceOffline, "the device has no session; it was not asked")
            }
            RequestError::TooManyRequests { bound, retry_after } => {
                Self::new(Code::TooManyRequests, bound).retry_after(retry_after)
            }
            error @ RequestError::TooLarge { .. } => Self::new(Code::TooLarge, error.to_string()),
            RequestError::Draining => {
                Self::new(Code::Draining, "the relay is stopping and takes no new calls")
                    .retry_after(Duration::from_secs(1))
            }
            RequestError::StoreUnavailable => Self::store(),
            RequestError::Refused(words) => Self::new(Code::Forbidden, words.into_string()),
            error @ RequestError::NotTranslated => Self::new(Code::DeviceTimeout, error.to_string()),
            RequestError::NotSent => Self::new(
                Code::NotSent,
                "time ran out before the request was on the session: the device has not acted",
            ),
            RequestError::DeviceTimeout { received } => Self::new(
                Code::DeviceTimeout,
                if received {
                    "the device said that it has the request, but did not answer in time: it may have acted"
                } else {
                    "the request was put on the session, but no answer came in time: the device may have acted"
                },
            ),
            error => Self::new(Code::Internal, error.to_string()),
        };
        problem.outcome = Some(outcome);
        problem.of_request(id)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        Self::store()
    }
}

impl From<InvalidJson> for Problem {
    fn from(error: InvalidJson) -> Self {
        Self::bad(error.to_string())
    }
}

impl Problem {
    pub(super) fn store() -> Self {
        Self::new(Code::StoreUnavailable, "the relay's store cannot be read or written now")
            .retry_after(Duration::from_secs(5))
    }
}
