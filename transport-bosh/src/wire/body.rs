//! The `<body/>` wrapper (XEP-0124 §6), as a connection manager reads and writes it.

use std::fmt::Write as _;

use bytes::Bytes;
use memchr::memchr_iter;
use relay_core::xml::{Element, Limits, XmlError};

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
    pub payloads: Vec<Element>,
}

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
        let mut element = Element::parse_with(message, limits, &ns::NAMES)?;
        if !element.is(ns::BOSH, "body") {
            return Err(BodyError::Root);
        }
        if element.has_text() {
            return Err(BodyError::Text);
        }
        let rid = element.attr("rid").and_then(Rid::parse).ok_or(BodyError::Attribute("rid"))?;
        let number = |name: &'static str| {
            element.attr(name).map(|text| decimal(text).ok_or(BodyError::Attribute(name))).transpose()
        };
        let text = |name: &str| element.attr(name).map(Into::into);
        let mut body = Self {
            sid: None,
            rid,
            to: text("to"),
            ver: match element.attr("ver") {
                Some(version) => Some(Version::parse(version).ok_or(BodyError::Attribute("ver"))?),
                None => None,
            },
            wait: number("wait")?.map(clamp),
            hold: number("hold")?.map(clamp),
            ack: number("ack")?,
            content: text("content"),
            key: text("key"),
            newkey: text("newkey"),
            pause: number("pause")?.map(clamp),
            // gloox of old says `terminal`.
            terminate: matches!(element.attr("type"), Some("terminate" | "terminal")),
            restart: matches!(element.attr_ns(ns::XBOSH, "restart"), Some("true" | "1")),
            payloads: Vec::new(),
        };
        // Of every request but the first: moved, not copied.
        body.sid = element.remove_attr("sid").map(String::into_boxed_str);
        body.payloads = element.take_children().collect();
        for payload in &mut body.payloads {
            // XEP-0206 §2: old peers leave the namespace out, so that stanzas, and what is in them, inherit the wrapper's.
            payload.rename_namespace(ns::BOSH, ns::CLIENT);
        }
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
    let element = Element::parse_with(&alone, limits, &ns::NAMES)
        .ok()
        .filter(|element| element.is(ns::BOSH, "body"))?;
    Some((element.attr("sid")?.into(), Rid::parse(element.attr("rid")?)?))
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
    if tag.ack.is_none() && tag.report.is_none() && tag.kind == AnswerKind::Normal && pieces.is_empty() {
        return Bytes::from_static(EMPTY.as_bytes());
    }
    let mut out = String::with_capacity(192 + pieces.iter().map(|piece| piece.xml.len()).sum::<usize>());
    out.push_str("<body xmlns='http://jabber.org/protocol/httpbind'");
    // Writing to a String cannot fail.
    if let Some(ack) = tag.ack {
        let _ = write!(out, " ack='{ack}'");
    }
    if let Some((report, time)) = tag.report {
        let _ = write!(out, " report='{report}' time='{time}'");
    }
    if pieces.iter().any(|piece| piece.stream) {
        out.push_str(" xmlns:stream='http://etherx.jabber.org/streams'");
    }
    match tag.kind {
        AnswerKind::Normal => {}
        AnswerKind::Error => out.push_str(" type='error'"),
        AnswerKind::Terminate(condition) => {
            out.push_str(" type='terminate'");
            if let Some(condition) = condition {
                let _ = write!(out, " condition='{}'", condition.as_str());
            }
        }
    }
    finish(out, pieces)
}

/// Writes the answer to a creation request, whose attributes are `opening`.
pub(crate) fn creation(opening: &str, pieces: &[Piece]) -> Bytes {
    let out = format!(
        "<body {opening} xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh' \
         xmlns:stream='http://etherx.jabber.org/streams'"
    );
    finish(out, pieces)
}

/// Writes an answer outside any session: it ends with `condition`.
pub(crate) fn terminate(condition: TerminalCondition) -> Bytes {
    answer(&AnswerTag { kind: AnswerKind::Terminate(Some(condition)), ..AnswerTag::default() }, &[])
}

fn finish(mut out: String, pieces: &[Piece]) -> Bytes {
    if pieces.is_empty() {
        out.push_str("/>");
    } else {
        out.push('>');
        for piece in pieces {
            out.push_str(&piece.xml);
        }
        out.push_str("</body>");
    }
    Bytes::from(out.into_boxed_str().into_boxed_bytes())
}

#[cfg(test)]
mod tests;
