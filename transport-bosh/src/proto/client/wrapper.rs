//! The `<body/>` wrapper (XEP-0124 §6), as a client writes and reads it.

use std::time::Duration;

use bytes::Bytes;
use relay_core::xml::{Document, Element, ElementRef, Limits, XmlError};

use super::{ClientSettings, End};
use crate::{
    proto::rid::{Rid, decimal},
    wire::{TerminalCondition, ns},
};

/// What the peer granted when it created the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Granted {
    /// The longest that it holds a request.
    pub wait: Duration,
    /// Requests that may be unanswered at once.
    pub requests: usize,
    /// Requests that it holds at once.
    pub hold: u64,
    /// How long a session with nothing pending lives; unlimited if `None`.
    pub inactivity: Option<Duration>,
    /// The least interval between polls; unlimited if `None`.
    pub polling: Option<Duration>,
    /// The longest pause; no pauses if `None`.
    pub max_pause: Option<Duration>,
    /// Whether it says which requests it has got.
    pub acks: bool,
}

/// Requests unanswered at once if the peer does not say (XEP-0124 §11 would allow any number).
const DEFAULT_REQUESTS: u64 = 2;
/// More at once gains nothing.
const MAX_REQUESTS: u64 = 8;

/// An answer at BOSH level.
#[derive(Debug)]
pub(super) struct Wrapper {
    document: Document,
}

/// Why an answer is none at BOSH level: a proxy speaks, or a peer that does not know better.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Garbled {
    #[error(transparent)]
    Xml(#[from] XmlError),
    #[error("the answer is not a <body/> of BOSH")]
    Root,
}

impl Wrapper {
    pub(super) fn parse(document: &[u8], max: usize) -> Result<Self, Garbled> {
        let document = Document::parse(document, &Limits::default().with_bytes(max))?;
        if document.root().is(ns::BOSH, "body") { Ok(Self { document }) } else { Err(Garbled::Root) }
    }

    const fn body(&self) -> ElementRef<'_> {
        self.document.root()
    }

    pub(super) fn is_error(&self) -> bool {
        self.body().attr("type") == Some("error")
    }

    /// Why the peer ends the session, if it does.
    pub(super) fn end(&self) -> Option<End> {
        // An old library writes `terminal`.
        if !matches!(self.body().attr("type"), Some("terminate" | "terminal")) {
            return None;
        }
        let Some(condition) = self.body().attr("condition") else { return Some(End::Goodbye) };
        let condition = TerminalCondition::parse(condition);
        Some(match condition {
            TerminalCondition::RemoteStreamError => match self.stream_error() {
                Some(name) => End::StreamError(name),
                None => End::Condition(condition),
            },
            condition => End::Condition(condition),
        })
    }

    /// The name of the stream error inside; old peers leave out the element around it.
    fn stream_error(&self) -> Option<Box<str>> {
        let holder = self.body().child(ns::STREAMS, "error").unwrap_or_else(|| self.body());
        holder
            .children()
            .find(|child| child.namespace() == ns::STREAM_ERRORS && child.name() != "text")
            .map(|child| child.name().into())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.body().attr(name).and_then(decimal)
    }

    fn seconds(&self, name: &str) -> Option<Duration> {
        // The schema has these in 16 bits.
        self.number(name).map(|seconds| Duration::from_secs(seconds.min(u64::from(u16::MAX))))
    }

    pub(super) fn sid(&self) -> Option<&str> {
        self.body().attr("sid").filter(|sid| !sid.is_empty())
    }

    pub(super) fn granted(&self, settings: &ClientSettings) -> Granted {
        Granted {
            // A longer wait than asked for would outlast what proxies on the way allow.
            wait: self.seconds("wait").unwrap_or(settings.wait).min(settings.wait),
            requests: usize::try_from(
                self.number("requests").unwrap_or(DEFAULT_REQUESTS).clamp(1, MAX_REQUESTS),
            )
            .unwrap_or(2),
            hold: self.number("hold").unwrap_or(1),
            inactivity: self.seconds("inactivity"),
            polling: self.seconds("polling"),
            max_pause: self.seconds("maxpause"),
            acks: self.body().attr("ack").is_some(),
        }
    }

    /// The RID that the peer believes it answered in vain, and how long ago (XEP-0124 §9.2).
    pub(super) fn report(&self) -> Option<(Rid, Duration)> {
        let rid = Rid::parse(self.body().attr("report")?)?;
        Some((rid, Duration::from_millis(self.number("time")?)))
    }

    /// The payloads, in order.
    pub(super) fn payloads(mut self) -> Vec<Element> {
        let places: Vec<_> = self.body().children().map(ElementRef::place).collect();
        let take = |place| {
            let payload = self.document.element(place);
            // Old peers let stanzas inherit the wrapper's namespace (XEP-0206 §2).
            if payload.namespace() == ns::BOSH && matches!(payload.name(), "message" | "presence" | "iq") {
                self.document.rename_namespace(place, ns::BOSH, ns::CLIENT);
            }
            self.document.element(place).to_element(&ns::NAMES)
        };
        places.into_iter().map(take).collect()
    }
}

/// A payload as it goes into the wrapper.
pub(super) fn payload(element: &Element) -> String {
    let mut text = String::with_capacity(256);
    element.write_to(&mut text, ns::BOSH);
    text
}

/// The request that creates the session (XEP-0124 §7.1, XEP-0206 §3).
pub(super) fn creation(settings: &ClientSettings, rid: Rid) -> Bytes {
    let mut body = Element::new(ns::BOSH, "body")
        .with_attr("rid", rid.to_string())
        .with_attr("to", &*settings.to)
        .with_lang(&*settings.language)
        .with_attr("ver", "1.11")
        .with_attr("wait", settings.wait.as_secs().to_string())
        .with_attr("hold", settings.hold.to_string());
    if settings.acks {
        body.set_attr("ack", "1");
    }
    body = body.with_prefix("xmpp", ns::XBOSH).with_attr_ns(ns::XBOSH, "version", "1.0");
    body.to_document().into()
}

/// The request that restarts the stream after log-in (XEP-0206 §5). A server in use matches `xmpp:restart` as text.
pub(super) fn restart(settings: &ClientSettings, sid: &str, rid: Rid, ack: Option<Rid>) -> Bytes {
    let body = opening(sid, rid, ack)
        .with_attr("to", &*settings.to)
        .with_lang(&*settings.language)
        .with_prefix("xmpp", ns::XBOSH)
        .with_attr_ns(ns::XBOSH, "restart", "true");
    body.to_document().into()
}

/// A request that carries `payloads`.
pub(super) fn request<'p>(
    sid: &str,
    rid: Rid,
    ack: Option<Rid>,
    terminate: bool,
    payloads: impl Iterator<Item = &'p str>,
) -> Bytes {
    let mut body = opening(sid, rid, ack);
    if terminate {
        body.set_attr("type", "terminate");
    }
    let mut text = body.to_document();
    let empty = text.len();
    // The start tag is written as `<body …/>`: opened up if something goes inside.
    text.truncate(empty - "/>".len());
    text.push('>');
    let opened = text.len();
    for payload in payloads {
        text.push_str(payload);
    }
    if text.len() == opened {
        text.truncate(empty - "/>".len());
        text.push_str("/>");
    } else {
        text.push_str("</body>");
    }
    text.into()
}

fn opening(sid: &str, rid: Rid, ack: Option<Rid>) -> Element {
    let mut body = Element::new(ns::BOSH, "body").with_attr("rid", rid.to_string()).with_attr("sid", sid);
    if let Some(ack) = ack {
        body.set_attr("ack", ack.to_string());
    }
    body
}

/// More than any start tag needs, whatever the SID.
pub(super) const OVERHEAD: usize = 1_024;
