//! Stanzas (RFC 6120 §8): how envelopes travel in them, and what else a device and the relay say to each other.

use std::time::Instant;

use bytes::Bytes;
use relay_core::{
    envelope::Envelope,
    ids::{DeviceId, RequestId},
    request::{Body, Response, Status},
    xml::{Element, ElementRef, push_attribute, push_plain_attribute, vocabulary},
};

use super::{body::Piece, ns};

/// Who is who on one session.
#[derive(Debug, Clone, Copy)]
pub struct Addresses<'a> {
    /// The relay's domain.
    pub domain: &'a str,
    /// The device's full JID.
    pub jid: &'a str,
}

impl Addresses<'_> {
    /// The start tag of a stanza to the device, but for its end. Written as text: a tree would cost an allocation for
    /// each of these attributes, at every push.
    fn start(&self, name: &str, id: Option<&str>, kind: Option<&str>) -> String {
        let mut out = String::with_capacity(STANZA);
        out.push('<');
        out.push_str(name);
        if let Some(id) = id {
            push_attribute(&mut out, "id", id);
        }
        if let Some(kind) = kind {
            push_plain_attribute(&mut out, "type", kind);
        }
        push_attribute(&mut out, "from", self.domain);
        push_attribute(&mut out, "to", self.jid);
        push_plain_attribute(&mut out, "xmlns", ns::CLIENT);
        out
    }

    /// A stanza to the device, with `payload` in it.
    fn stanza(&self, name: &str, id: Option<&str>, kind: Option<&str>, payload: Option<&Element>) -> Piece {
        let mut out = self.start(name, id, kind);
        match payload {
            None => out.push_str("/>"),
            Some(payload) => {
                out.push('>');
                payload.write_to(&mut out, ns::CLIENT);
                end(&mut out, name);
            }
        }
        Piece::new(out)
    }

    /// `envelope` as a stanza to the device.
    ///
    /// # Errors
    /// As [`vocabulary::write`].
    pub fn envelope(
        &self,
        envelope: &Envelope,
        device: &DeviceId,
        now: Instant,
    ) -> Result<Piece, vocabulary::VocabularyError> {
        let (name, mut out) = match envelope {
            // A job is answered when it is done, which no iq waits for.
            Envelope::Request { id, request, .. } if request.offer.is_none() => {
                let kind = if request.method.is_get() { "get" } else { "set" };
                ("iq", self.start("iq", Some(id.as_str()), Some(kind)))
            }
            _ => ("message", self.start("message", None, None)),
        };
        out.push('>');
        let elements = vocabulary::write(envelope, device, now, &mut out)?;
        end(&mut out, name);
        Ok(Piece { xml: out, stream: false, elements: elements + 1 })
    }

    /// The empty result of the iq `id`.
    pub(crate) fn result(&self, id: Option<&str>) -> Piece {
        self.stanza("iq", id, Some("result"), None)
    }

    /// An XEP-0199 ping.
    pub(crate) fn ping(&self, id: &str) -> Piece {
        self.stanza("iq", Some(id), Some("get"), Some(&Element::new(ns::PING, "ping")))
    }

    /// The error that answers a stanza `name` with `id`.
    pub(crate) fn error(&self, name: &'static str, id: Option<&str>, error: StanzaError) -> Piece {
        self.stanza(name, id, Some("error"), Some(&error.to_element()))
    }
}

/// What most stanzas have room in, in bytes.
const STANZA: usize = 512;

fn end(out: &mut String, name: &str) {
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

/// A stanza error that the relay answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StanzaError {
    BadRequest,
    ItemNotFound,
    NotAllowed,
    ResourceConstraint,
    ServiceUnavailable,
}

impl StanzaError {
    pub(crate) fn to_element(self) -> Element {
        let (kind, condition) = match self {
            Self::BadRequest => ("modify", "bad-request"),
            Self::ItemNotFound => ("cancel", "item-not-found"),
            Self::NotAllowed => ("cancel", "not-allowed"),
            Self::ResourceConstraint => ("wait", "resource-constraint"),
            Self::ServiceUnavailable => ("cancel", "service-unavailable"),
        };
        let condition = Element::new(ns::STANZAS, condition);
        Element::new(ns::CLIENT, "error").with_attr("type", kind).with_child(condition)
    }
}

/// Reads an iq of type `result` or `error` as the answer to the request whose ID it bears; `None` if it is none that
/// could be one.
pub(crate) fn answer(iq: ElementRef<'_>, device: &DeviceId, now: Instant) -> Option<Envelope> {
    let id = RequestId::new(iq.attr("id")?).ok()?;
    if iq.attr("type") == Some("error") {
        return Some(Envelope::Response { id, response: failure(iq), acknowledge: false });
    }
    let Some(payload) = iq.children().next() else {
        return Some(Envelope::Response { id, response: Response::ok(), acknowledge: false });
    };
    if !payload.is(ns::RELAY, "response") {
        // As the device wrote it, if that says all.
        let document = match payload.source() {
            Some(source) => Bytes::copy_from_slice(source.as_bytes()),
            None => payload.to_element(&ns::NAMES).to_document().into(),
        };
        let body = Body::new("application/xml", document);
        return Some(Envelope::Response { id, response: Response::with_body(body), acknowledge: false });
    }
    let mut payload = payload.to_element(&ns::NAMES);
    if payload.attr("id").is_none() {
        payload.set_attr("id", id.as_str());
    }
    match vocabulary::decode(&payload, device, now) {
        // A response that names another request than the stanza does is an answer to neither.
        Ok(vocabulary::Decoded::Envelope(envelope @ Envelope::Response { .. })) => match &envelope {
            Envelope::Response { id: inner, .. } if *inner == id => Some(envelope),
            _ => None,
        },
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(%device, %error, "an answer that cannot be read");
            None
        }
    }
}

/// What an iq of type `error` says.
fn failure(iq: ElementRef<'_>) -> Response {
    let error = iq.child(ns::CLIENT, "error");
    let mut conditions =
        error.into_iter().flat_map(ElementRef::children).filter(|e| e.namespace() == ns::STANZAS);
    let text = error.and_then(|error| error.child(ns::STANZAS, "text")).map(|text| text.text().into_owned());
    let condition = conditions.find(|condition| condition.name() != "text").map_or("", ElementRef::name);
    let status = match Status::parse(condition) {
        _ if condition == "item-not-found" => Status::UnknownObject,
        Ok(status @ Status::Other(_)) => status,
        _ => Status::parse("undefined-condition").unwrap_or(Status::DeviceError),
    };
    Response::new(status, text.map(Body::text))
}

/// Reads the elements of the relay's vocabulary in a message from the device.
pub(crate) fn message(message: ElementRef<'_>, device: &DeviceId, now: Instant) -> Vec<Envelope> {
    let ours = message.children().filter(|child| child.namespace() == ns::RELAY);
    let decode = |child: ElementRef<'_>| match vocabulary::decode(&child.to_element(&ns::NAMES), device, now)
    {
        Ok(vocabulary::Decoded::Envelope(
            envelope @ (Envelope::Response { .. }
            | Envelope::Received { .. }
            | Envelope::Progress { .. }
            | Envelope::Close { .. }
            | Envelope::Ping
            | Envelope::Pong),
        )) => Some(envelope),
        Ok(_) => {
            tracing::debug!(%device, element = child.name(), "an element that means nothing from a device");
            None
        }
        Err(error) => {
            tracing::warn!(%device, %error, "an element that cannot be read");
            None
        }
    };
    ours.filter_map(decode).collect()
}

#[cfg(test)]
mod tests {
    use relay_core::xml::Limits;

    use super::*;

    #[test]
    fn what_stands_in_attributes_reads_back_as_itself() {
        let addresses = Addresses { domain: "example.net", jid: "dev1@example.net/a&<>'\"b" };
        for id in ["&amp;", "a'b\"c", "<x>", "\t\n\r", "ä ü"] {
            let piece = addresses.error("iq", Some(id), StanzaError::BadRequest);
            let stanza = Element::parse(piece.xml.as_bytes(), &Limits::default()).unwrap();
            assert_eq!((stanza.attr("id"), stanza.attr("to")), (Some(id), Some(addresses.jid)));
            assert!(stanza.is(ns::CLIENT, "iq") && stanza.child(ns::CLIENT, "error").is_some());
        }
    }
}
