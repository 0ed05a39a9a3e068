//! Handlers: what a vendor writes for each object and method, and how its arguments and answer are typed.

use std::{fmt, future::Future, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use relay_core::{
    ids::{Method, ObjectId, RequestId},
    request::{Body, Request, Status},
    transport::BoxFuture,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

/// A status of the SDK's own. Falls back to `device-error`, which every code here would have to be invalid for.
pub(crate) fn status(code: &str) -> Status {
    Status::parse(code).unwrap_or(Status::DeviceError)
}

/// What surrounds a request. A handler takes it as an argument if it wants it.
#[derive(Debug, Clone)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: RequestId,
    deadline: std::time::Instant,
    cancelled: CancellationToken,
    traceparent: Option<Box<str>>,
}

impl Context {
    pub(crate) fn new(
        id: RequestId,
        deadline: std::time::Instant,
        cancelled: CancellationToken,
        traceparent: Option<Box<str>>,
    ) -> Self {
        Self(Arc::new(Inner { id, deadline, cancelled, traceparent }))
    }

    /// The request's ID, the same at service, relay and device.
    pub fn request_id(&self) -> &RequestId {
        &self.0.id
    }

    /// When nobody waits for the answer any more.
    pub fn deadline(&self) -> std::time::Instant {
        self.0.deadline
    }

    /// How long somebody still waits for the answer.
    pub fn remaining(&self) -> Duration {
        self.0.deadline.saturating_duration_since(crate::now())
    }

    /// Resolves when nobody wants the answer any more: the service cancelled or hung up, the deadline passed, or the
    /// device is shut down. The handler is not stopped: only it knows where it can be.
    ///
    /// # Cancel safety
    /// Dropped and asked again, it resolves all the same.
    pub async fn cancelled(&self) {
        self.0.cancelled.cancelled().await;
    }

    /// Whether [`cancelled`](Self::cancelled) would resolve at once.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.is_cancelled()
    }

    /// The service's W3C trace context, to be the parent of the handler's own span.
    pub fn traceparent(&self) -> Option<&str> {
        self.0.traceparent.as_deref()
    }
}

/// Why a handler could not do what was asked. The service gets the code and the words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError {
    status: Status,
    words: Box<str>,
}

impl HandlerError {
    /// The device lacks the object: the service's call ends in 404 `unknown-object`.
    pub fn unknown_object() -> Self {
        Self { status: Status::UnknownObject, words: "the device has no such object".into() }
    }

    /// The device's own error state, such as a paper jam: 409 `device-error` with these words.
    pub fn device_error(words: impl fmt::Display) -> Self {
        Self { status: Status::DeviceError, words: words.to_string().into() }
    }

    /// The value is none that can be set: 502 `device-failed`, its code `bad-value`.
    pub fn bad_value(words: impl fmt::Display) -> Self {
        Self::other("bad-value", words)
    }

    /// A code of the vendor's, `[A-Za-z0-9._-]{1,64}`: 502 `device-failed` with this code. A text that is no code
    /// becomes `device-error`.
    pub fn other(code: &str, words: impl fmt::Display) -> Self {
        Self { status: status(code), words: words.to_string().into() }
    }

    /// The code.
    pub const fn status(&self) -> &Status {
        &self.status
    }

    /// The words.
    pub fn words(&self) -> &str {
        &self.words
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for HandlerError {}

impl From<std::io::Error> for HandlerError {
    fn from(error: std::io::Error) -> Self {
        Self::other("failed", error)
    }
}

/// A handler's argument, made from the request.
pub trait FromRequest: Sized {
    /// Makes it.
    ///
    /// # Errors
    /// What the service is told if the request does not have it.
    fn from_request(request: &Request, context: &Context) -> Result<Self, HandlerError>;
}

/// The value to set, parsed from the body's text: `Set<String>`, `Set<i64>`, `Set<bool>`, or any [`FromStr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<T>(pub T);

impl<T: FromStr<Err: fmt::Display>> FromRequest for Set<T> {
    fn from_request(request: &Request, _: &Context) -> Result<Self, HandlerError> {
        let bytes = request.body.as_ref().map_or(&[][..], |body| &body.bytes);
        let text = std::str::from_utf8(bytes)
            .map_err(|error| HandlerError::bad_value(format!("no UTF-8 text: {error}")))?;
        text.parse().map(Self).map_err(HandlerError::bad_value)
    }
}

/// A JSON value: as an argument parsed from the body, as an answer written into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Json<T> {
    fn from_request(request: &Request, _: &Context) -> Result<Self, HandlerError> {
        let bytes = request.body.as_ref().map_or(&[][..], |body| &body.bytes);
        serde_json::from_slice(bytes).map(Self).map_err(HandlerError::bad_value)
    }
}

/// The object that is asked for: for handlers that serve many.
impl FromRequest for ObjectId {
    fn from_request(request: &Request, _: &Context) -> Result<Self, HandlerError> {
        request.objects.first().cloned().ok_or_else(HandlerError::unknown_object)
    }
}

impl FromRequest for Method {
    fn from_request(request: &Request, _: &Context) -> Result<Self, HandlerError> {
        Ok(request.method.clone())
    }
}

impl FromRequest for Request {
    fn from_request(request: &Request, _: &Context) -> Result<Self, HandlerError> {
        Ok(request.clone())
    }
}

impl FromRequest for Context {
    fn from_request(_: &Request, context: &Context) -> Result<Self, HandlerError> {
        Ok(context.clone())
    }
}

impl FromRequest for Bytes {
    fn from_request(request: &Request, _: &Context) -> Result<Self, HandlerError> {
        Ok(request.body.as_ref().map(|body| body.bytes.clone()).unwrap_or_default())
    }
}

impl<T: FromRequest> FromRequest for Option<T> {
    /// `None` if there is no body.
    fn from_request(request: &Request, context: &Context) -> Result<Self, HandlerError> {
        request.body.as_ref().map(|_| T::from_request(request, context)).transpose()
    }
}

/// A handler's answer, made into a body. Numbers and truth values travel as text.
pub trait IntoBody {
    /// Makes it; `None` is an empty answer.
    ///
    /// # Errors
    /// What the service is told if it cannot be made.
    fn into_body(self) -> Result<Option<Body>, HandlerError>;
}

macro_rules! as_text {
    ($($kind:ty),*) => { $(
        impl IntoBody for $kind {
            fn into_body(self) -> Result<Option<Body>, HandlerError> {
                Ok(Some(Body::text(self.to_string())))
            }
        }
    )* };
}
as_text!(&str, bool, i8, i16, i32, i64, isize, u8, u16, u32, u64, usize, f32, f64);

impl IntoBody for String {
    fn into_body(self) -> Result<Option<Body>, HandlerError> {
        Ok(Some(Body::text(self)))
    }
}

impl IntoBody for () {
    fn into_body(self) -> Result<Option<Body>, HandlerError> {
        Ok(None)
    }
}

impl IntoBody for Body {
    fn into_body(self) -> Result<Option<Body>, HandlerError> {
        Ok(Some(self))
    }
}

impl IntoBody for Bytes {
    fn into_body(self) -> Result<Option<Body>, HandlerError> {
        Ok(Some(Body::new("application/octet-stream", self)))
    }
}

impl IntoBody for Vec<u8> {
    fn into_body(self) -> Result<Option<Body>, HandlerError> {
        Bytes::from(self).into_body()
    }
}

impl<T: Serialize> IntoBody for Json<T> {
    fn into_body(self) -> Result<Option<Body>, HandlerError> {
        let bytes = serde_json::to_vec(&self.0).map_err(|error| HandlerError::other("failed", error))?;
        Ok(Some(Body::new("application/json", bytes)))
    }
}

impl<T: IntoBody> IntoBody for Option<T> {
    fn into_body(self) -> Result<Option<Body>, HandlerError> {
        self.map_or(Ok(None), IntoBody::into_body)
    }
}

/// An async function of up to five arguments that are [`FromRequest`], with a result that is [`IntoBody`] or a
/// [`HandlerError`]. Implemented for all of them; `Arguments` only tells them apart.
pub trait Handler<Arguments>: Send + Sync + 'static {
    /// Runs it.
    fn call(&self, request: &Request, context: &Context) -> BoxFuture<Result<Option<Body>, HandlerError>>;
}

macro_rules! handler {
    ($($argument:ident),*) => {
        #[allow(non_snake_case, unused_variables, reason = "one shape for every number of arguments")]
        impl<Function, Answer, Running, $($argument,)*> Handler<($($argument,)*)> for Function
        where
            Function: Fn($($argument),*) -> Running + Send + Sync + 'static,
            Running: Future<Output = Result<Answer, HandlerError>> + Send + 'static,
            Answer: IntoBody,
            $($argument: FromRequest,)*
        {
            fn call(&self, request: &Request, context: &Context) -> BoxFuture<Result<Option<Body>, HandlerError>> {
                $(
                    let $argument = match $argument::from_request(request, context) {
                        Ok(argument) => argument,
                        Err(error) => return Box::pin(std::future::ready(Err(error))),
                    };
                )*
                let running = self($($argument),*);
                Box::pin(async move { running.await?.into_body() })
            }
        }
    };
}
handler!();
handler!(A);
handler!(A, B);
handler!(A, B, C);
handler!(A, B, C, D);
handler!(A, B, C, D, E);
