//! The XMPP stream inside a session (RFC 6120, XEP-0206), from its first features to the stanzas of a bound device.
//!
//! ```text
//!             auth            verifier              response            restart            bind         owner agrees
//! Mechanisms ─────▶ Waiting ─────────▶ Challenged ──────────▶ Succeeded ───────▶ Unbound ───────▶ Binding ─────▶ Bound
//!     ▲    PLAIN: Waiting ── checked ───────────────────────▶
//!     └──────── failure (a few times; then the stream ends)
//! ```
//!
//! The machine asks for what it cannot know ([`StreamOutput::Verifier`], [`StreamOutput::Authenticate`],
//! [`StreamOutput::Bind`]) and goes on once it is told.

mod sasl;
mod scram;

use std::{collections::VecDeque, sync::Arc, time::Instant};

use relay_core::{
    auth::{ScramHash, ScramVerifier, Secret},
    envelope::Envelope,
    ids::{DeviceId, SessionId},
    xml::{Element, ElementRef, vocabulary},
};

use self::sasl::Step;
use super::room;
use crate::wire::{
    body::Piece,
    ns,
    stanza::{self, Addresses, StanzaError},
};

/// The longest resource that a client may choose, in bytes.
const MAX_RESOURCE: usize = 128;
/// The longest `id` of a stanza, in bytes. It is sent back, up to six times as long where it must be escaped, and an
/// answer must stay within the bounds of what peers take.
const MAX_STANZA_ID: usize = 1_024;
/// The resource of a client that chooses none. A device has one session, so that it needs to tell nothing apart.
const DEFAULT_RESOURCE: &str = "device";

/// What the owner is to do.
#[derive(Debug)]
pub enum StreamOutput {
    /// Send to the client.
    Send(Piece),
    /// Look up what to check a proof of `device` against, and call [`XmppStream::verified`].
    Verifier {
        /// Which question this is: the answer names it.
        serial: u64,
        /// Who says it is there.
        device: DeviceId,
        /// The hash of its mechanism.
        hash: ScramHash,
    },
    /// Check a token, and call [`XmppStream::authenticated`].
    Authenticate {
        /// Which question this is: the answer names it.
        serial: u64,
        /// Who says it is there.
        device: DeviceId,
        /// What it shows.
        token: Secret,
    },
    /// Find somebody who takes the session of `device`, and call [`XmppStream::bound`].
    Bind {
        /// Whose session.
        device: DeviceId,
        /// What it logged in with.
        proof: Box<Proof>,
    },
    /// An envelope from the device.
    Deliver(Envelope),
    /// The device wants to go on with an earlier session; call [`XmppStream::resumed`].
    Resume {
        /// The iq that asks.
        id: Option<Box<str>>,
        /// Which session.
        session: SessionId,
    },
    /// The client broke a rule: end the session with this stream error.
    Fail(StreamError),
}

/// What a device logged in with. Between that and its session a new credential may have taken the old one's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// SCRAM: what its proof was checked against.
    Verifier(ScramHash, ScramVerifier),
    /// PLAIN: the token itself.
    Token(Secret),
}

/// A stream error (RFC 6120 §4.9) that ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError {
    /// A newer session took over.
    Conflict,
    /// Logging in took too long.
    ConnectionTimeout,
    /// A stanza claims to come from somebody else.
    InvalidFrom,
    /// Stanzas before log-in, or the credential no longer holds.
    NotAuthorized,
    /// Too many failures to log in, or something out of bounds.
    PolicyViolation,
    /// Not a stanza.
    UnsupportedStanzaType,
}

impl StreamError {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::ConnectionTimeout => "connection-timeout",
            Self::InvalidFrom => "invalid-from",
            Self::NotAuthorized => "not-authorized",
            Self::PolicyViolation => "policy-violation",
            Self::UnsupportedStanzaType => "unsupported-stanza-type",
        }
    }

    /// It as an element.
    pub fn to_piece(self) -> Piece {
        Piece::with_stream_prefix(format!(
            "<stream:error><{} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
            self.as_str()
        ))
    }
}

#[derive(Debug)]
enum State {
    /// Nobody is logged in.
    Mechanisms(Step),
    /// Logged in; the client is to restart its stream.
    Succeeded(DeviceId, Box<Proof>),
    /// Restarted; no address yet.
    Unbound(DeviceId, Box<Proof>),
    /// The owner decides.
    Binding { device: DeviceId, proof: Box<Proof>, id: Option<Box<str>>, jid: Arc<str> },
    /// A device that may speak.
    Bound { device: DeviceId, jid: Arc<str> },
    /// Ended.
    Over,
}

/// The machine.
#[derive(Debug)]
pub struct XmppStream {
    domain: Arc<str>,
    secure: bool,
    /// Failures to log in that are left.
    attempts: u8,
    state: State,
    /// The number of the last question about a credential. An answer to an earlier one is nobody's.
    asked: u64,
    /// The number of our last ping, while its answer is out.
    ping: Option<u64>,
    pings: u64,
    outputs: VecDeque<StreamOutput>,
}

impl XmppStream {
    /// A stream of `domain`. `secure`: the session came over TLS. `attempts`: how often a client may fail to log in.
    pub fn new(domain: Arc<str>, secure: bool, attempts: u8) -> Self {
        Self {
            domain,
            secure,
            attempts,
            state: State::Mechanisms(Step::Start),
            asked: 0,
            ping: None,
            pings: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The features of the stream as it stands: to be sent when it starts and after each restart.
    pub fn features(&self) -> Piece {
        Piece::with_stream_prefix(match &self.state {
            State::Mechanisms(_) => sasl::features(self.secure),
            _ => "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>"
                .to_owned(),
        })
    }

    /// The device, once it is bound.
    pub const fn device(&self) -> Option<&DeviceId> {
        match &self.state {
            State::Bound { device, .. } => Some(device),
            _ => None,
        }
    }

    /// The client restarted its stream.
    pub fn restart(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Over) {
            // Whoever restarts while a credential is looked up speaks out of turn.
            state @ State::Mechanisms(Step::LookingUp { .. } | Step::Checking { .. }) => {
                self.state = state;
                return self.fail(StreamError::PolicyViolation);
            }
            // What was begun is forgotten, what was reached is not.
            State::Mechanisms(_) => State::Mechanisms(Step::Start),
            State::Succeeded(device, proof) | State::Unbound(device, proof) => State::Unbound(device, proof),
            State::Over => return,
            // XEP-0206 has no restart of a bound stream, and it would cost the device its address.
            state @ (State::Binding { .. } | State::Bound { .. }) => {
                self.state = state;
                return self.fail(StreamError::PolicyViolation);
            }
        };
        let features = self.features();
        self.send(features);
    }

    /// An element from the client.
    pub fn element(&mut self, element: ElementRef<'_>, now: Instant) {
        if element.attr("id").is_some_and(|id| id.len() > MAX_STANZA_ID) {
            return self.fail(StreamError::PolicyViolation);
        }
        match &self.state {
            State::Over => {}
            State::Mechanisms(_) if element.namespace() == ns::SASL => self.sasl(element),
            // RFC 6120 §7.1, XEP-0206 §5: nothing but log-in, restart and bind, in this order.
            State::Mechanisms(_) | State::Succeeded(..) | State::Binding { .. } => {
                self.fail(StreamError::NotAuthorized);
            }
            State::Unbound(device, proof) => {
                let (device, proof) = (device.clone(), proof.clone());
                self.bind(device, proof, element);
            }
            State::Bound { device, jid } => {
                let (device, jid) = (device.clone(), jid.clone());
                self.stanza(element, &device, &jid, now);
            }
        }
    }

    /// The owner's decision about the session that [`StreamOutput::Bind`] asked for.
    pub fn bound(&mut self, agreed: bool) {
        self.state = match std::mem::replace(&mut self.state, State::Over) {
            State::Binding { device, proof, id, jid } => {
                let id_attr = id.map(|id| id.into_string());
                let mut iq = Element::new(ns::CLIENT, "iq");
                if let Some(id) = id_attr {
                    iq.set_attr("id", id);
                }
                let (iq, state) = if agreed {
                    let bind = Element::new(ns::BIND, "bind")
                        .with_child(Element::new(ns::BIND, "jid").with_text(jid.as_ref()));
                    (iq.with_attr("type", "result").with_child(bind), State::Bound { device, jid })
                } else {
                    let error = StanzaError::ResourceConstraint.to_element();
                    (iq.with_attr("type", "error").with_child(error), State::Unbound(device, proof))
                };
                self.send(Piece::new(iq.to_document()));
                state
            }
            other => other,
        };
    }

    /// Whether the session that [`StreamOutput::Resume`] asked for goes on.
    pub fn resumed(&mut self, id: Option<&str>, resumed: bool) {
        let State::Bound { jid, .. } = &self.state else { return };
        let addresses = Addresses { domain: &self.domain, jid };
        let piece =
            if resumed { addresses.result(id) } else { addresses.error("iq", id, StanzaError::ItemNotFound) };
        self.send(piece);
    }

    /// `envelope` as what goes to the device; `None` if it cannot travel, or there is no address to send it to.
    pub fn encode(&self, envelope: &Envelope, now: Instant) -> Option<Piece> {
        let (State::Bound { device, jid } | State::Binding { device, jid, .. }) = &self.state else {
            return None;
        };
        let addresses = Addresses { domain: &self.domain, jid };
        addresses
            .envelope(envelope, device, now)
            .inspect_err(|error| tracing::error!(%device, %error, "an envelope that cannot be written"))
            .ok()
    }

    /// Asks the device whether it is there (XEP-0199), unless it was asked and has not answered.
    pub fn ping(&mut self) {
        let State::Bound { jid, .. } = &self.state else { return };
        if self.ping.is_some() {
            return;
        }
        self.pings += 1;
        self.ping = Some(self.pings);
        let piece = Addresses { domain: &self.domain, jid }.ping(&ping_id(self.pings));
        self.send(piece);
    }

    /// The next thing to do; `None` once all is done.
    pub fn poll_output(&mut self) -> Option<StreamOutput> {
        self.outputs.pop_front()
    }

    /// Takes the room of `spare` for what is to be done, unless it has some.
    pub fn lend(&mut self, spare: &mut VecDeque<StreamOutput>) {
        room::lend(&mut self.outputs, spare);
    }

    /// Gives back the room that it took, for `spare` to keep: an idle session keeps none.
    pub fn shrink(&mut self, spare: &mut VecDeque<StreamOutput>) {
        room::give_back(&mut self.outputs, spare);
    }

    fn bind(&mut self, device: DeviceId, proof: Box<Proof>, iq: ElementRef<'_>) {
        let bind = iq.child(ns::BIND, "bind");
        let Some(bind) = bind.filter(|_| iq.is(ns::CLIENT, "iq") && iq.attr("type") == Some("set")) else {
            return self.fail(StreamError::NotAuthorized);
        };
        let wanted = bind.child(ns::BIND, "resource").map(|resource| resource.text().into_owned());
        let usable = |resource: &String| {
            !resource.is_empty() && resource.len() <= MAX_RESOURCE && !resource.chars().any(char::is_control)
        };
        let resource = wanted.filter(usable).unwrap_or_else(|| DEFAULT_RESOURCE.to_owned());
        // JIDs fold the local part to lower case.
        let jid = format!("{}@{}/{resource}", device.folded(), self.domain).into();
        let id = iq.attr("id").map(Into::into);
        self.outputs.push_back(StreamOutput::Bind { device: device.clone(), proof: proof.clone() });
        self.state = State::Binding { device, proof, id, jid };
    }

    fn stanza(&mut self, stanza: ElementRef<'_>, device: &DeviceId, jid: &str, now: Instant) {
        let name = match stanza.name() {
            "iq" => "iq",
            "message" => "message",
            "presence" => "presence",
            _ => return self.fail(StreamError::UnsupportedStanzaType),
        };
        if stanza.namespace() != ns::CLIENT {
            return self.fail(StreamError::UnsupportedStanzaType);
        }
        // RFC 6120 §8.1.2.1: a client speaks for itself alone.
        if stanza.attr("from").is_some_and(|from| !is_own(from, jid)) {
            return self.fail(StreamError::InvalidFrom);
        }
        let to_us =
            stanza.attr("to").is_none_or(|to| to.eq_ignore_ascii_case(&self.domain) || is_own(to, jid));
        let kind = stanza.attr("type");
        match (name, kind) {
            ("iq", Some("get" | "set")) => self.asked(stanza, jid, to_us),
            ("iq", Some("result" | "error")) => self.answered(stanza, device, to_us, now),
            ("iq", _) => self.refuse("iq", stanza, jid, StanzaError::BadRequest),
            ("message", Some("error")) => {}
            ("message", _) if to_us => {
                let envelopes = stanza::message(stanza, device, now);
                self.outputs.extend(envelopes.into_iter().map(StreamOutput::Deliver));
            }
            // The relay carries nothing from one device to another.
            ("message", _) => self.refuse("message", stanza, jid, StanzaError::ServiceUnavailable),
            _ => {}
        }
    }

    fn asked(&mut self, iq: ElementRef<'_>, jid: &str, to_us: bool) {
        let mut payloads = iq.children();
        let (Some(payload), None) = (payloads.next(), payloads.next()) else {
            return self.refuse("iq", iq, jid, StanzaError::BadRequest);
        };
        if !to_us {
            return self.refuse("iq", iq, jid, StanzaError::ServiceUnavailable);
        }
        if payload.is(ns::PING, "ping") {
            let piece = Addresses { domain: &self.domain, jid }.result(iq.attr("id"));
            self.send(piece);
        } else if payload.namespace() == ns::BIND {
            self.refuse("iq", iq, jid, StanzaError::NotAllowed);
        } else if payload.namespace() == ns::RELAY {
            match vocabulary::decode_resume(&payload.to_element(&ns::NAMES))
                .filter(|_| iq.attr("type") == Some("set"))
            {
                Some(Ok(session)) => {
                    let id = iq.attr("id").map(Into::into);
                    self.outputs.push_back(StreamOutput::Resume { id, session });
                }
                Some(Err(_)) | None => self.refuse("iq", iq, jid, StanzaError::BadRequest),
            }
        } else {
            self.refuse("iq", iq, jid, StanzaError::ServiceUnavailable);
        }
    }

    fn answered(&mut self, iq: ElementRef<'_>, device: &DeviceId, to_us: bool, now: Instant) {
        if self.ping.is_some_and(|ping| iq.attr("id") == Some(&*ping_id(ping))) {
            self.ping = None;
        } else if to_us && let Some(envelope) = stanza::answer(iq, device, now) {
            self.outputs.push_back(StreamOutput::Deliver(envelope));
        } else {
            tracing::debug!(%device, "an answer to nothing that was asked");
        }
    }

    fn refuse(&mut self, name: &'static str, stanza: ElementRef<'_>, jid: &str, error: StanzaError) {
        let piece = Addresses { domain: &self.domain, jid }.error(name, stanza.attr("id"), error);
        self.send(piece);
    }

    fn send(&mut self, piece: Piece) {
        self.outputs.push_back(StreamOutput::Send(piece));
    }

    fn fail(&mut self, error: StreamError) {
        if matches!(self.state, State::Over) {
            return;
        }
        self.state = State::Over;
        self.outputs.push_back(StreamOutput::Fail(error));
    }
}

fn ping_id(number: u64) -> String {
    format!("ping-{number}")
}

/// Whether `address` is the bare or the full JID `jid`.
fn is_own(address: &str, jid: &str) -> bool {
    let (bare, _) = jid.split_once('/').unwrap_or((jid, ""));
    match address.split_once('/') {
        None => address.eq_ignore_ascii_case(bare),
        Some((address, resource)) => {
            address.eq_ignore_ascii_case(bare) && jid.get(bare.len() + 1..) == Some(resource)
        }
    }
}

#[cfg(test)]
mod tests;
