//! The form of an [`Envelope`] on the wire: elements of `urn:relay:1`, the same on every transport.
//!
//! | element | way | is |
//! |---|---|---|
//! | `<request id method device? wait traceparent?><object/>…<body/>?</request>` | to device | a request |
//! | `<response id status?><body/>?</response>` | from device | its answer |
//! | `<received id/>` | from device | it has it, the answer will take longer |
//! | `<ack id outcome/>` | to device | the verdict on a response |
//! | `<cancel id/>` | to device | nobody wants it any more |
//! | `<drain retry-after to?/>` | to device | go, and come back then, there |
//! | `<ping/>` `<pong/>` | both | keep-alive as data |
//! | `<resume session/>` | from device | before anything else, over BOSH: go on with that session |
//!
//! **Times** travel as seconds left, in whole seconds rounded up, so that no clocks are compared and a peer needs no
//! fractions. A device may thus believe for up to a second too long that somebody waits; the relay's verdict on the
//! response tells. Fractions are understood, and more than an hour counts as an hour.
//!
//! **Bodies** are text if their content type is textual and they are UTF-8 of XML characters without CR, else base64;
//! text that would be longer escaped than in base64 goes as base64 too. Receivers take either for any type.
//!
//! Elements of our namespace that are not in the table are [`Decoded::Unknown`], to be ignored and counted; so are
//! unknown attributes and children of known ones, without the counting.

mod body;
pub mod channel;
mod form;
mod job;
mod time;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use self::form::{Form, Text, Tree};
use super::{Element, ns};
use crate::{
    envelope::Envelope,
    ids::{DeviceId, InvalidId, Method, ObjectId, RequestId, SessionId},
    request::{Call, Request, Response, Status},
};

/// The longest trace context, in bytes; longer ones are not taken.
const MAX_TRACE_CONTEXT: usize = 128;
/// The longest URL, in bytes; longer ones are not taken.
pub const MAX_URL: usize = 2048;

/// What an element of our namespace says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decoded {
    /// An envelope.
    Envelope(Envelope),
    /// An element that this version does not know, by its name.
    Unknown(Box<str>),
}

/// Why an element cannot be read or an envelope not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// The element is not of `urn:relay:1`.
    #[error("the element is not in the namespace urn:relay:1")]
    Namespace,
    /// An attribute that must be there is not.
    #[error("<{element}> lacks the attribute {attribute}")]
    Missing {
        /// The element.
        element: &'static str,
        /// The attribute.
        attribute: &'static str,
    },
    /// A name that is none.
    #[error("<{element}> has a {part} that is not valid")]
    InvalidId {
        /// The element.
        element: &'static str,
        /// The attribute or child that holds the name.
        part: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidId,
    },
    /// A value that is none of those allowed.
    #[error("<{element}> has a value of {attribute} that is not allowed")]
    InvalidValue {
        /// The element.
        element: &'static str,
        /// The attribute.
        attribute: &'static str,
    },
    /// `encoding` is something other than `base64`.
    #[error("the encoding of <body> is not base64")]
    UnknownEncoding,
    /// `encoding` is `base64`, the text is not.
    #[error("<body> is not base64")]
    InvalidBase64,
    /// There are elements in `<body>`.
    #[error("there are elements in <body>; text or base64 is allowed")]
    BodyMarkup,
    /// The body is too large to ride on a session.
    #[error("the body has {size} bytes, {max} ride on a session")]
    BodyTooLarge {
        /// Its size in bytes.
        size: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// The body is to be fetched by HTTP, which this version does not do.
    #[error("<body> refers to a body elsewhere")]
    BodyElsewhere,
}

/// `envelope`, for the session of `device`, as an element.
///
/// # Errors
/// [`VocabularyError::BodyTooLarge`] if a body is larger than
/// [`MAX_INLINE_BODY`](crate::envelope::MAX_INLINE_BODY).
pub fn encode(envelope: &Envelope, device: &DeviceId, now: Instant) -> Result<Element, VocabularyError> {
    let mut tree = Tree::default();
    describe(envelope, device, now, &mut tree)?;
    Ok(tree.root())
}

/// Appends `envelope`, for the session of `device`, to `out` as text, which spares the element. How many elements were
/// written.
///
/// # Errors
/// As [`encode`]; `out` then ends anywhere.
pub fn write(
    envelope: &Envelope,
    device: &DeviceId,
    now: Instant,
    out: &mut String,
) -> Result<usize, VocabularyError> {
    let mut text = Text::new(out);
    describe(envelope, device, now, &mut text)?;
    Ok(text.elements())
}

/// Appends `envelope` as [`write()`] does, for a transport on which the device opens channels: an offer then says only
/// that one is to be opened.
///
/// # Errors
/// As [`encode`]; `out` then ends anywhere.
pub fn write_with_channels(
    envelope: &Envelope,
    device: &DeviceId,
    now: Instant,
    out: &mut String,
) -> Result<usize, VocabularyError> {
    let Envelope::Request { id, request, deadline } = envelope else {
        return write(envelope, device, now, out);
    };
    let Some(offer) = &request.offer else { return write(envelope, device, now, out) };
    let mut text = Text::new(out);
    job::describe_open((id, request, offer), device, deadline.saturating_duration_since(now), &mut text);
    Ok(text.elements())
}

/// Says of `envelope` what stands in its element.
fn describe(
    envelope: &Envelope,
    device: &DeviceId,
    now: Instant,
    form: &mut impl Form,
) -> Result<(), VocabularyError> {
    match envelope {
        Envelope::Request { id, request, deadline } if let Some(offer) = &request.offer => {
            let wait = deadline.saturating_duration_since(now);
            job::describe_offer((id, request, offer), device, wait, form)?;
        }
        Envelope::Request { id, request, deadline } => {
            form.start("request");
            form.plain("id", id.as_str());
            form.plain("method", request.method.as_str());
            if request.device != *device {
                form.plain("device", request.device.as_str());
            }
            form.plain("wait", &time::write(deadline.saturating_duration_since(now)));
            if let Some(context) = &request.traceparent {
                form.attribute("traceparent", context);
            }
            for object in &request.objects {
                form.start("object");
                form.text(object.as_str());
                form.end("object");
            }
            if let Some(body) = &request.body {
                body::describe(body, form)?;
            }
            form.end("request");
        }
        Envelope::Response { id, response, acknowledge: _ } => {
            form.start("response");
            form.plain("id", id.as_str());
            form.attribute("status", response.status.as_str());
            if let Some(body) = &response.body {
                body::describe(body, form)?;
            }
            form.end("response");
        }
        Envelope::Received { id } => form.empty("received", &[("id", id.as_str())]),
        Envelope::Ack { id, disposition } => {
            form.empty("ack", &[("id", id.as_str()), ("outcome", disposition.as_str())]);
        }
        Envelope::Cancel { id } => form.empty("cancel", &[("id", id.as_str())]),
        Envelope::Close { id, app } => job::describe_close(id, app, form),
        Envelope::Progress { id, progress } => job::describe_progress(Some(id), progress, form),
        Envelope::Drain { retry_after, to } => {
            form.start("drain");
            form.plain("retry-after", &time::write(*retry_after));
            if let Some(to) = to {
                form.attribute("to", to);
            }
            form.end("drain");
        }
        Envelope::Ping => form.empty("ping", &[]),
        Envelope::Pong => form.empty("pong", &[]),
    }
    Ok(())
}

/// Reads an element that came on the session of `device`.
///
/// # Errors
/// [`VocabularyError`]: what is wrong with it, and where. The session can go on.
pub fn decode(element: &Element, device: &DeviceId, now: Instant) -> Result<Decoded, VocabularyError> {
    if *element.namespace() != ns::RELAY {
        return Err(VocabularyError::Namespace);
    }
    Ok(Decoded::Envelope(match element.name() {
        "request" => decode_request(element, device, now)?,
        "response" => Envelope::Response {
            id: request_id(element, "response")?,
            response: decode_response(element)?,
            acknowledge: true,
        },
        "received" => Envelope::Received { id: request_id(element, "received")? },
        "ack" => Envelope::Ack {
            id: request_id(element, "ack")?,
            disposition: required(element, "ack", "outcome")?
                .parse()
                .map_err(|()| VocabularyError::InvalidValue { element: "ack", attribute: "outcome" })?,
        },
        "cancel" => Envelope::Cancel { id: request_id(element, "cancel")? },
        "job" => job::decode_offer(element, device, now)?,
        "WebSocketControl" => job::decode_control(element, device, now)?,
        "progress" => Envelope::Progress {
            id: request_id(element, "progress")?,
            progress: job::decode_progress(element)?,
        },
        "done" => Envelope::Response {
            id: request_id(element, "done")?,
            response: job::done(job::decode_version(element)),
            acknowledge: false,
        },
        "error" => {
            let (status, words) = job::decode_error(element)?;
            let response = Response::error(status, words);
            Envelope::Response { id: request_id(element, "error")?, response, acknowledge: false }
        }
        "drain" => decode_drain(element)?,
        "ping" => Envelope::Ping,
        "pong" => Envelope::Pong,
        other => return Ok(Decoded::Unknown(other.into())),
    }))
}

/// Writes `<resume session='…'/>`.
pub fn encode_resume(session: &SessionId) -> Element {
    Element::new(ns::RELAY, "resume").with_attr("session", session.as_str())
}

/// Reads `<resume session='…'/>`; `None` if `element` is something else.
///
/// # Errors
/// [`VocabularyError`] if it names no session.
pub fn decode_resume(element: &Element) -> Option<Result<SessionId, VocabularyError>> {
    element.is(ns::RELAY, "resume").then(|| {
        let session = required(element, "resume", "session")?;
        SessionId::new(session).map_err(|source| VocabularyError::InvalidId {
            element: "resume",
            part: "session",
            source,
        })
    })
}

fn required<'e>(
    element: &'e Element,
    name: &'static str,
    attribute: &'static str,
) -> Result<&'e str, VocabularyError> {
    element.attr(attribute).ok_or(VocabularyError::Missing { element: name, attribute })
}

fn request_id(element: &Element, name: &'static str) -> Result<RequestId, VocabularyError> {
    RequestId::new(required(element, name, "id")?).map_err(|source| VocabularyError::InvalidId {
        element: name,
        part: "id",
        source,
    })
}

fn decode_request(element: &Element, device: &DeviceId, now: Instant) -> Result<Envelope, VocabularyError> {
    let invalid = |part| move |source| VocabularyError::InvalidId { element: "request", part, source };
    let id = request_id(element, "request")?;
    let method = match required(element, "request", "method")? {
        "GET" => Method::get(),
        "SET" => Method::set(),
        other => Method::new(other).map_err(invalid("method"))?,
    };
    let device = match element.attr("device") {
        Some(other) => DeviceId::new(other).map_err(invalid("device"))?,
        None => device.clone(),
    };
    let wait = wait_of(element, "request")?;
    let mut request = Request::new(device, method);
    request.traceparent = traceparent(element);
    for child in element.children() {
        if child.is(ns::RELAY, "object") {
            request.objects.push(ObjectId::new(&child.text()).map_err(invalid("object"))?);
        } else if child.is(ns::RELAY, "body") && request.body.is_none() {
            request.body = Some(body::decode(child)?);
        }
    }
    Ok(Envelope::Request { id, request: Arc::new(request), deadline: now + wait })
}

/// The seconds left, or what a caller that says nothing gets.
fn wait_of(element: &Element, name: &'static str) -> Result<Duration, VocabularyError> {
    let Some(wait) = element.attr("wait") else { return Ok(Call::DEFAULT_WAIT) };
    time::read(wait).ok_or(VocabularyError::InvalidValue { element: name, attribute: "wait" })
}

fn traceparent(element: &Element) -> Option<Box<str>> {
    element
        .attr("traceparent")
        .filter(|context| context.len() <= MAX_TRACE_CONTEXT && context.bytes().all(|b| b.is_ascii_graphic()))
        .map(Into::into)
}

fn decode_response(element: &Element) -> Result<Response, VocabularyError> {
    let status = Status::parse(element.attr("status").unwrap_or("ok"))
        .map_err(|source| VocabularyError::InvalidId { element: "response", part: "status", source })?;
    let body = element.child(ns::RELAY, "body").map(body::decode).transpose()?;
    Ok(Response::new(status, body))
}

fn decode_drain(element: &Element) -> Result<Envelope, VocabularyError> {
    let retry_after = match element.attr("retry-after") {
        Some(seconds) => time::read(seconds)
            .ok_or(VocabularyError::InvalidValue { element: "drain", attribute: "retry-after" })?,
        None => Duration::ZERO,
    };
    let to = match element.attr("to") {
        Some(url) if url.len() > MAX_URL || !url.bytes().all(|b| b.is_ascii_graphic()) => {
            return Err(VocabularyError::InvalidValue { element: "drain", attribute: "to" });
        }
        to => to.map(Into::into),
    };
    Ok(Envelope::Drain { retry_after, to })
}
