//! Logging in (RFC 6120 §6): SCRAM-SHA-256, SCRAM-SHA-1, and PLAIN over TLS.
//!
//! Mechanisms with channel binding are not offered: the requests of one session come over several TLS connections, so
//! that there is no one channel to bind to.

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use relay_core::{
    auth::{AuthError, Principal, ScramHash, ScramVerifier, Secret},
    ids::DeviceId,
    xml::{Element, ElementRef},
};

use super::{
    Proof, State, StreamError, StreamOutput, XmppStream,
    scram::{Challenge, ClientFirst, ScramError},
};
use crate::wire::{body::Piece, ns};

/// How far a log-in has come.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing was said.
    Start,
    /// The client named a mechanism and is to speak first.
    Named(Mechanism),
    /// A verifier is being looked up.
    LookingUp { serial: u64, device: DeviceId, hash: ScramHash, first: Box<ClientFirst> },
    /// The client is to prove that it knows the token.
    Challenged { device: DeviceId, challenge: Box<Challenge> },
    /// A token is being checked.
    Checking { serial: u64, device: DeviceId, token: Secret },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Scram(ScramHash),
    Plain,
}

/// Why a log-in failed, by its element's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Aborted,
    EncryptionRequired,
    IncorrectEncoding,
    InvalidAuthzid,
    InvalidMechanism,
    MalformedRequest,
    NotAuthorized,
    Temporary,
}

impl Failure {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::EncryptionRequired => "encryption-required",
            Self::IncorrectEncoding => "incorrect-encoding",
            Self::InvalidAuthzid => "invalid-authzid",
            Self::InvalidMechanism => "invalid-mechanism",
            Self::MalformedRequest => "malformed-request",
            Self::NotAuthorized => "not-authorized",
            Self::Temporary => "temporary-auth-failure",
        }
    }
}

impl From<ScramError> for Failure {
    fn from(error: ScramError) -> Self {
        match error {
            ScramError::Malformed => Self::MalformedRequest,
            ScramError::Rejected => Self::NotAuthorized,
        }
    }
}

pub(super) fn features(secure: bool) -> String {
    let plain = if secure { "<mechanism>PLAIN</mechanism>" } else { "" };
    format!(
        "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>SCRAM-SHA-256</mechanism>\
         <mechanism>SCRAM-SHA-1</mechanism>{plain}</mechanisms></stream:features>"
    )
}

impl XmppStream {
    pub(super) fn sasl(&mut self, element: ElementRef<'_>) {
        let State::Mechanisms(step) = &mut self.state else { return };
        let step = std::mem::replace(step, Step::Start);
        let next = match (element.name(), step) {
            // Steps alternate: whoever speaks while it is our turn is not following.
            (_, Step::LookingUp { .. } | Step::Checking { .. }) => {
                return self.fail(StreamError::PolicyViolation);
            }
            ("auth", Step::Start) => self.named(element),
            ("response", Step::Named(mechanism)) => {
                decode(element).and_then(|message| self.first(mechanism, &message))
            }
            ("response", Step::Challenged { device, challenge }) => {
                decode(element).and_then(|message| self.last(device, *challenge, &message))
            }
            ("abort", _) => Err(Failure::Aborted),
            _ => Err(Failure::MalformedRequest),
        };
        match next {
            Ok(Some(step)) => self.state = State::Mechanisms(step),
            Ok(None) => {}
            Err(failure) => self.failed(failure),
        }
    }

    /// What [`StreamOutput::Verifier`] asked for as question `serial`; an answer to any but the one that is open does
    /// nothing. `nonce` is ours: fresh, random, printable, without commas.
    pub fn verified(&mut self, serial: u64, verifier: Result<ScramVerifier, AuthError>, nonce: &str) {
        let State::Mechanisms(step) = &mut self.state else { return };
        match std::mem::replace(step, Step::Start) {
            Step::LookingUp { serial: open, device, hash, first } if open == serial => match verifier {
                Ok(verifier) => {
                    let (challenge, message) = Challenge::new(&first, hash, verifier, nonce);
                    let challenge = Box::new(challenge);
                    self.state = State::Mechanisms(Step::Challenged { device, challenge });
                    self.say("challenge", &message);
                }
                Err(error) => self.failed(error.into()),
            },
            other => *step = other,
        }
    }

    /// What [`StreamOutput::Authenticate`] asked for as question `serial`; an answer to any but the one that is open
    /// does nothing.
    pub fn authenticated(&mut self, serial: u64, principal: Result<Principal, AuthError>) {
        let State::Mechanisms(step) = &mut self.state else { return };
        match std::mem::replace(step, Step::Start) {
            Step::Checking { serial: open, device, token } if open == serial => match principal {
                Ok(Principal::Device(proved)) if proved == device => {
                    self.succeeded(device, Proof::Token(token), "");
                }
                Ok(_) => self.failed(Failure::NotAuthorized),
                Err(error) => self.failed(error.into()),
            },
            other => *step = other,
        }
    }

    fn named(&mut self, auth: ElementRef<'_>) -> Result<Option<Step>, Failure> {
        let mechanism = match auth.attr("mechanism") {
            Some("SCRAM-SHA-256") => Mechanism::Scram(ScramHash::Sha256),
            Some("SCRAM-SHA-1") => Mechanism::Scram(ScramHash::Sha1),
            Some("PLAIN") if self.secure => Mechanism::Plain,
            Some("PLAIN") => return Err(Failure::EncryptionRequired),
            _ => return Err(Failure::InvalidMechanism),
        };
        let message = decode(auth)?;
        if message.is_empty() {
            // RFC 6120 §6.4.2: no initial response. All of these mechanisms begin with the client, so it is asked.
            self.say("challenge", "");
            return Ok(Some(Step::Named(mechanism)));
        }
        self.first(mechanism, &message)
    }

    fn first(&mut self, mechanism: Mechanism, message: &str) -> Result<Option<Step>, Failure> {
        match mechanism {
            Mechanism::Scram(hash) => {
                let first = Box::new(ClientFirst::parse(message)?);
                let device = self.claimed(&first.name, first.authzid.as_deref())?;
                let serial = self.ask();
                self.outputs.push_back(StreamOutput::Verifier { serial, device: device.clone(), hash });
                Ok(Some(Step::LookingUp { serial, device, hash, first }))
            }
            Mechanism::Plain => {
                let mut parts = message.split('\0');
                let (Some(authzid), Some(name), Some(token), None) =
                    (parts.next(), parts.next(), parts.next(), parts.next())
                else {
                    return Err(Failure::MalformedRequest);
                };
                let device = self.claimed(name, Some(authzid).filter(|authzid| !authzid.is_empty()))?;
                let token = Secret::new(token);
                let serial = self.ask();
                let (asked, shown) = (device.clone(), token.clone());
                self.outputs.push_back(StreamOutput::Authenticate { serial, device: asked, token: shown });
                Ok(Some(Step::Checking { serial, device, token }))
            }
        }
    }

    fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    fn last(
        &mut self,
        device: DeviceId,
        challenge: Challenge,
        message: &str,
    ) -> Result<Option<Step>, Failure> {
        let signature = challenge.finish(message)?;
        let (hash, verifier) = challenge.into_verifier();
        self.succeeded(device, Proof::Verifier(hash, verifier), &signature);
        Ok(None)
    }

    /// The device that a client says it is. A name that no device can have has nothing to hide by taking longer.
    fn claimed(&self, name: &str, authzid: Option<&str>) -> Result<DeviceId, Failure> {
        let device = DeviceId::new(name).map_err(|_| Failure::NotAuthorized)?;
        // RFC 6120 §6.3.8: a bare JID; some clients give the name alone.
        let acts_as_itself = authzid.is_none_or(|authzid| {
            let (local, domain) = authzid.split_once('@').unwrap_or((authzid, &self.domain));
            local.eq_ignore_ascii_case(device.as_str()) && domain.eq_ignore_ascii_case(&self.domain)
        });
        if acts_as_itself { Ok(device) } else { Err(Failure::InvalidAuthzid) }
    }

    fn succeeded(&mut self, device: DeviceId, proof: Proof, data: &str) {
        self.state = State::Succeeded(device, Box::new(proof));
        self.say("success", data);
    }

    fn failed(&mut self, failure: Failure) {
        self.state = State::Mechanisms(Step::Start);
        let name = failure.as_str();
        self.send(Piece::new(format!("<failure xmlns='{}'><{name}/></failure>", ns::SASL)));
        self.attempts = self.attempts.saturating_sub(1);
        if self.attempts == 0 {
            self.fail(StreamError::PolicyViolation);
        }
    }

    fn say(&mut self, name: &'static str, data: &str) {
        let mut element = Element::new(ns::SASL, name);
        if !data.is_empty() {
            element.push_text(STANDARD.encode(data));
        }
        self.send(Piece::new(element.to_document()));
    }
}

impl From<AuthError> for Failure {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Rejected => Self::NotAuthorized,
            _ => Self::Temporary,
        }
    }
}

/// Reads base64 with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The text that an element carries in base64; `=` is the empty one.
fn decode(element: ElementRef<'_>) -> Result<String, Failure> {
    let text: Vec<u8> = element.text().bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    if text == b"=" {
        return Ok(String::new());
    }
    let bytes = LENIENT.decode(text).map_err(|_| Failure::IncorrectEncoding)?;
    String::from_utf8(bytes).map_err(|_| Failure::MalformedRequest)
}
