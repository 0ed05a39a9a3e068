//! The `<body/>` wrapper (XEP-0124 §6), as a connection manager reads and writes it.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use memchr::memchr_iter;
use relay_core::xml::{Document, ElementRef, Limits, XmlError};

use super::{TerminalCondition, ns};
use crate::proto::rid::{Rid, decimal};

/// What a client's `<body/>` says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestBody {
    /// The session; none on creation.
    pub sid: Option<Box<str>>,
    /// The request's ID.
    pub rid: Rid,
    /// The domain wanted.
    pub to: Option<Box<str>>,
    /// The highest version of XEP-0124 that the client speaks.
    pub ver: Option<Version>,
    /// The longest wait wanted, in seconds.
    pub wait: Option<u16>,
    /// The most requests to be held.
    pub hold: Option<u8>,
    /// The highest RID answered without a gap below it; on creation, 1 says that the client will tell.
    pub ack: Option<u64>,
    /// The Content-Type wanted on answers.
    pub content: Option<Box<str>>,
    /// The key of this request.
    pub key: Option<Box<str>>,
    /// The start of a new chain of keys.
    pub newkey: Option<Box<str>>,
    /// The pause asked for, in seconds.
    pub pause: Option<u16>,
    /// The client ends the session.
    pub terminate: bool,
    /// The client restarts its stream.
    pub restart: bool,
    /// What it carries, in order.
    pub payloads: Vec<Payload>,
}

/// An element that a body carries.
#[derive(Debug, Clone)]
pub struct Payload {
    body: Arc<Document>,
    place: usize,
}

impl Payload {
    /// The element.
    pub fn element(&self) -> ElementRef<'_> {
        self.body.element(self.place)
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.element() == other.element()
    }
}

impl Eq for Payload {}

/// A version of XEP-0124: two integers, so that 1.11 is later than 1.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

impl Version {
    /// The one that this implements.
    pub const OURS: Self = Self(1, 11);

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(clamp(decimal(major)?), clamp(decimal(minor)?)))
    }
}

/// Why a message is no `<body/>` of a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// Not XML as XMPP restricts it.
    #[error("the message is not XML that a session can carry")]
    Xml(#[from] XmlError),
    /// Another element.
    #[error("the root element is not <body/> of http://jabber.org/protocol/httpbind")]
    Root,
    /// Text between the payloads.
    #[error("there is text directly in <body/>")]
    Text,
    /// An attribute that must be there is not, or is no number.
    #[error("the attribute {0} is missing or not a number that it can be")]
    Attribute(&'static str),
}

fn clamp<T: TryFrom<u64> + MaxValue>(number: u64) -> T {
    T::try_from(number).unwrap_or(T::MAX_VALUE)
}

trait MaxValue {
    const MAX_VALUE: Self;
}
impl MaxValue for u8 {
    const MAX_VALUE: Self = Self::MAX;
}
impl MaxValue for u16 {
    const MAX_VALUE: Self = Self::MAX;
}

impl RequestBody {
    /// Reads a client's message.
    ///
    /// # Errors
    /// [`BodyError`]: the first rule that it breaks.
    pub fn parse(message: &[u8], limits: &Limits) -> Result<Self, BodyError> {
        let mut document = Document::parse(message, limits)?;
        let root = document.root();
        if !root.is(ns::BOSH, "body") {
            return Err(BodyError::Root);
        }
        if root.has_text() {
            return Err(BodyError::Text);
        }
        let rid = root.attr("rid").and_then(Rid::parse).ok_or(BodyError::Attribute("rid"))?;
        let mut body = Self {
            sid: None,
            rid,
            to: None,
            ver: None,
            wait: None,
            hold: None,
            ack: None,
            content: None,
            key: None,
            newkey: None,
            pause: None,
            terminate: false,
            restart: matches!(root.attr_ns(ns::XBOSH, "restart"), Some("true" | "1")),
            payloads: Vec::new(),
        };
        for (name, value) in root.attributes() {
            let number = |name: &'static str| decimal(value).ok_or(BodyError::Attribute(name));
            match name {
                "sid" => body.sid = Some(value.into()),
                "to" => body.to = Some(value.into()),
                "ver" => body.ver = Some(Version::parse(value).ok_or(BodyError::Attribute("ver"))?),
                "wait" => body.wait = Some(clamp(number("wait")?)),
                "hold" => body.hold = Some(clamp(number("hold")?)),
                "ack" => body.ack = Some(number("ack")?),
                "content" => body.content = Some(value.into()),
                "key" => body.key = Some(value.into()),
                "newkey" => body.newkey = Some(value.into()),
                "pause" => body.pause = Some(clamp(number("pause")?)),
                // gloox of old says `terminal`.
                "type" => body.terminate = matches!(value, "terminate" | "terminal"),
                _ => {}
            }
        }
        let (places, bare): (Vec<_>, Vec<_>) =
            root.children().map(|payload| (payload.place(), payload.namespace() == ns::BOSH)).unzip();
        for (place, _) in places.iter().zip(bare).filter(|(_, bare)| *bare) {
            // Old peers leave the namespace out, so that stanzas, and what is in them, inherit the wrapper's.
            document.rename_namespace(*place, ns::BOSH, ns::CLIENT);
        }
        let document = Arc::new(document);
        let payload = |place| Payload { body: Arc::clone(&document), place };
        body.payloads = places.into_iter().map(payload).collect();
        Ok(body)
    }

    /// Whether it carries nothing and asks for nothing: a poll.
    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty() && !self.terminate && !self.restart && self.pause.is_none()
    }
}

/// `sid` and `rid` of a message whose start tag can be read although the rest cannot.
pub(crate) fn addressee(message: &[u8], limits: &Limits) -> Option<(Box<str>, Rid)> {
    let start = message.iter().position(|&byte| byte == b'<')?;
    // An XML declaration may stand in front.
    let start = match message.get(start + 1) {
        Some(b'?') => start + 1 + message[start + 1..].iter().position(|&byte| byte == b'<')?,
        _ => start,
    };
    let end = start + message[start..].iter().position(|&byte| byte == b'>')?;
    let tag = &message[start..end];
    let tag = tag.strip_suffix(b"/").unwrap_or(tag);
    let mut alone = Vec::with_capacity(tag.len() + 2);
    alone.extend_from_slice(tag);
    alone.extend_from_slice(b"/>");
    let document = Document::parse(&alone, limits).ok()?;
    let body = Some(document.root()).filter(|root| root.is(ns::BOSH, "body"))?;
    Some((body.attr("sid")?.into(), Rid::parse(body.attr("rid")?)?))
}

/// What stands in the start tag of an answer beside the namespace.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AnswerTag {
    pub(crate) ack: Option<Rid>,
    /// The RID whose answer seems lost, and how many milliseconds ago it was given.
    pub(crate) report: Option<(Rid, u128)>,
    pub(crate) kind: AnswerKind,
}

/// The `type` of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AnswerKind {
    #[default]
    Normal,
    /// Recoverable: the client is to send it again.
    Error,
    Terminate(Option<TerminalCondition>),
}

/// A complete element that goes into an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The element as text, with its own namespace declarations.
    pub xml: String,
    /// Whether it uses the prefix `stream`, which `<body/>` then declares (XEP-0206 §2).
    pub stream: bool,
    /// How many elements it is.
    pub(crate) elements: usize,
}

impl Piece {
    /// An element that declares what it uses.
    pub fn new(xml: impl Into<String>) -> Self {
        Self::of(xml.into(), false)
    }

    /// An element with the prefix `stream`.
    pub fn with_stream_prefix(xml: impl Into<String>) -> Self {
        Self::of(xml.into(), true)
    }

    fn of(xml: String, stream: bool) -> Self {
        let elements = count_elements(&xml);
        Self { xml, stream, elements }
    }
}

/// Elements of one body at which no further payload goes in: together they must not be more than a peer reads in one
/// document, which is a thousand here. One payload always goes.
pub(crate) const MAX_ELEMENTS: usize = 500;

/// How many elements `xml` is, as this end writes it: with every `<` in text and attributes escaped, and nothing but
/// tags.
pub(crate) fn count_elements(xml: &str) -> usize {
    memchr_iter(b'<', xml.as_bytes()).filter(|at| xml.as_bytes().get(at + 1) != Some(&b'/')).count()
}

const EMPTY: &str = "<body xmlns='http://jabber.org/protocol/httpbind'/>";

/// Bytes of an answer around its payloads, at most.
pub(crate) const OVERHEAD: usize = 512;

/// Writes an answer.
pub(crate) fn answer(tag: &AnswerTag, pieces: &[Piece]) -> Bytes {
    // Most have none.
    let mut attributes = String::new();
    // Writing to a String cannot fail.
    if let Some(ack) = tag.ack {
        let _ = write!(attributes, " ack='{ack}'");
    }
    if let Some((report, time)) = tag.report {
        let _ = write!(attributes, " report='{report}' time='{time}'");
    }
    if pieces.iter().any(|piece| piece.stream) {
        attributes.push_str(" xmlns:stream='http://etherx.jabber.org/streams'");
    }
    match tag.kind {
        AnswerKind::Normal => {}
        AnswerKind::Error => attributes.push_str(" type='error'"),
        AnswerKind::Terminate(condition) => {
            attributes.push_str(" type='terminate'");
            if let Some(condition) = condition {
                let _ = write!(attributes, " condition='{}'", condition.as_str());
            }
        }
    }
    if attributes.is_empty() && pieces.is_empty() {
        return Bytes::from_static(EMPTY.as_bytes());
    }
    whole(&["<body xmlns='http://jabber.org/protocol/httpbind'", &attributes], pieces)
}

/// Writes the answer to a creation request, whose attributes are `opening`.
pub(crate) fn creation(opening: &str, pieces: &[Piece]) -> Bytes {
    let declarations = " xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh' \
                        xmlns:stream='http://etherx.jabber.org/streams'";
    whole(&["<body ", opening, declarations], pieces)
}

/// Writes an answer outside any session: it ends with `condition`.
pub(crate) fn terminate(condition: TerminalCondition) -> Bytes {
    answer(&AnswerTag { kind: AnswerKind::Terminate(Some(condition)), ..AnswerTag::default() }, &[])
}

/// The body whose start tag is made of `tag`, but for its end. In as much memory as it takes: it is kept until the client
/// has it.
fn whole(tag: &[&str], pieces: &[Piece]) -> Bytes {
    const END: &str = "</body>";
    let inner: usize = pieces.iter().map(|piece| piece.xml.len()).sum();
    let end = if pieces.is_empty() { "/>".len() } else { ">".len() + inner + END.len() };
    let mut out = Vec::with_capacity(tag.iter().map(|part| part.len()).sum::<usize>() + end);
    for part in tag {
        out.extend_from_slice(part.as_bytes());
    }
    if pieces.is_empty() {
        out.extend_from_slice(b"/>");
    } else {
        out.push(b'>');
        for piece in pieces {
            out.extend_from_slice(piece.xml.as_bytes());
        }
        out.extend_from_slice(END.as_bytes());
    }
    out.into()
}

#[cfg(test)]
mod tests;
