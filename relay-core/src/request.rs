//! What a service asks of a device, and what comes back.

use std::{fmt, time::Duration};

use bytes::Bytes;

use crate::{
    app::Offer,
    ids::{DeviceId, InvalidId, Method, ObjectId},
};

/// What an object costs beside its name.
const OBJECT: usize = 24;
/// The longest content type, in bytes.
pub const MAX_CONTENT_TYPE: usize = 256;

/// Opaque bytes with the media type that their sender gave them.
#[derive(Clone, PartialEq, Eq)]
pub struct Body {
    content_type: Box<str>,
    /// The bytes.
    pub bytes: Bytes,
}

impl Body {
    /// `bytes` of media type `content_type`. A content type that could not stand in an HTTP header (empty, longer
    /// than [`MAX_CONTENT_TYPE`], or with anything but visible ASCII and blanks) becomes
    /// `application/octet-stream`.
    pub fn new(content_type: &str, bytes: impl Into<Bytes>) -> Self {
        let sane = !content_type.is_empty()
            && content_type.len() <= MAX_CONTENT_TYPE
            && content_type.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        let content_type = if sane { content_type } else { "application/octet-stream" };
        Self { content_type: content_type.into(), bytes: bytes.into() }
    }

    /// UTF-8 text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new("text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// A JSON value.
    pub fn json(value: &serde_json::Value) -> Self {
        Self::new("application/json", value.to_string().into_bytes())
    }

    /// The media type.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }
}

impl fmt::Debug for Body {
    // Bodies are not ours to show: size and type only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({}, {} bytes)", self.content_type, self.bytes.len())
    }
}

/// What a service asks of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// Who is asked.
    pub device: DeviceId,
    /// What is asked.
    pub method: Method,
    /// Of which objects; none, one, or several (then body and answer are a JSON object by object name).
    pub objects: Vec<ObjectId>,
    /// The value to set, or whatever a vendor's method takes.
    pub body: Option<Body>,
    /// W3C trace context of the call, travelling with the request.
    pub traceparent: Option<Box<str>>,
    /// Work for one of the device's apps: then the request is a job, and has neither objects nor body.
    pub offer: Option<Box<Offer>>,
}

impl Request {
    /// The most objects that one request may name. A device parses many requests in one message: what one of them may
    /// weigh is bounded by what that takes.
    pub const MAX_OBJECTS: usize = 256;

    /// A request without objects and body.
    pub fn new(device: DeviceId, method: Method) -> Self {
        Self { device, method, objects: Vec::new(), body: None, traceparent: None, offer: None }
    }

    /// Work for one of the device's apps.
    pub fn job(device: DeviceId, offer: Offer) -> Self {
        Self { offer: Some(Box::new(offer)), ..Self::new(device, Method::open()) }
    }

    /// A GET of one object.
    pub fn get(device: DeviceId, object: ObjectId) -> Self {
        Self::new(device, Method::get()).with_object(object)
    }

    /// A SET of one object.
    pub fn set(device: DeviceId, object: ObjectId, value: Body) -> Self {
        Self::new(device, Method::set()).with_object(object).with_body(value)
    }

    /// Adds an object.
    #[must_use]
    pub fn with_object(mut self, object: ObjectId) -> Self {
        self.objects.push(object);
        self
    }

    /// Gives it a body.
    #[must_use]
    pub fn with_body(mut self, body: Body) -> Self {
        self.body = Some(body);
        self
    }

    /// Bytes of payload: what counts against bounds in bytes.
    pub fn payload_len(&self) -> usize {
        self.body.as_ref().map_or(0, |body| body.bytes.len())
            + self.offer.as_ref().and_then(|offer| offer.header.as_ref()).map_or(0, |header| header.len())
            + self.objects.iter().map(|object| OBJECT + object.as_str().len()).sum::<usize>()
    }
}

/// How a device says that a request went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Status {
    /// Done as asked.
    #[default]
    Ok,
    /// It lacks the object (`unknown-object`).
    UnknownObject,
    /// Its own error state, such as a paper jam (`device-error`).
    DeviceError,
    /// A code of the vendor's.
    Other(StatusCode),
}

impl Status {
    /// The code as it travels.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Ok => "ok",
            Self::UnknownObject => "unknown-object",
            Self::DeviceError => "device-error",
            Self::Other(code) => &code.0,
        }
    }

    /// Reads a code.
    ///
    /// # Errors
    /// [`InvalidId`] if it is not `[A-Za-z0-9._-]{1,64}`.
    pub fn parse(code: &str) -> Result<Self, InvalidId> {
        Ok(match code {
            "ok" => Self::Ok,
            "unknown-object" => Self::UnknownObject,
            "device-error" => Self::DeviceError,
            other => Self::Other(StatusCode(Method::new(other)?.as_str().into())),
        })
    }
}

/// A status code that is not one of ours: `[A-Za-z0-9._-]{1,64}`. Made by [`Status::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusCode(Box<str>);

/// What the device answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Response {
    /// How it went.
    pub status: Status,
    /// The value asked for, or the device's words.
    pub body: Option<Body>,
}

impl Response {
    /// Done, nothing to say.
    pub fn ok() -> Self {
        Self::default()
    }

    /// Done, with `body`.
    pub fn with_body(body: Body) -> Self {
        Self { status: Status::Ok, body: Some(body) }
    }

    /// Not done; `words` say why.
    pub fn error(status: Status, words: impl Into<String>) -> Self {
        let words = words.into();
        Self { status, body: (!words.is_empty()).then(|| Body::text(words)) }
    }

    /// A response of `status` with `body`.
    pub fn new(status: Status, body: Option<Body>) -> Self {
        Self { status, body }
    }
}

/// One call for one device, as the relay's edge hands it in.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// How long the caller waits, from now. At most [`Call::MAX_WAIT`].
    pub wait: Duration,
}

impl Call {
    /// The wait of a caller that names none.
    pub const DEFAULT_WAIT: Duration = Duration::from_secs(30);
    /// The longest wait; a longer one is cut to it.
    pub const MAX_WAIT: Duration = Duration::from_secs(600);

    /// A call that waits [`Call::DEFAULT_WAIT`].
    pub fn new(request: Request) -> Self {
        Self { request, wait: Self::DEFAULT_WAIT }
    }

    /// Waits `wait` instead.
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait.min(Self::MAX_WAIT);
        self
    }
}
