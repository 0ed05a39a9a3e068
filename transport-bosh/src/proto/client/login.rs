//! Log-in over a BOSH session: features, SASL, restart, resource binding (RFC 6120 §6 and §7, XEP-0206 §5), and the
//! relay's `<resume/>`.
//!
//! ```text
//! features ─▶ SASL (strictly alternating) ─▶ success, restart ─▶ features ─▶ bind ─▶ (session) ─▶ (resume) ─▶ done
//! ```

use std::{borrow::Cow, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use relay_core::{
    auth::{ScramHash, Secret},
    error::{ErrorKind, TransportError},
    ids::SessionId,
    xml::{Element, vocabulary},
};

use super::scram::{Scram, ScramError};
use crate::{NAME, wire::ns};

/// Who logs in, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Account {
    /// The local part of the JID.
    pub user: String,
    /// The password; at a relay, the device's token.
    pub password: Secret,
    /// The resource wanted; the server's choice if `None`.
    pub resource: Option<String>,
}

impl Account {
    /// `user` with `password`, whatever resource.
    pub fn new(user: impl Into<String>, password: Secret) -> Self {
        Self { user: user.into(), password, resource: None }
    }

    /// Wants `resource`.
    #[must_use]
    pub fn with_resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }
}

/// Why somebody was not logged in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The server does not accept name and password. Nothing else is tried with them (threat T14).
    #[error("the server did not accept the credentials: {0}")]
    Rejected(Box<str>),
    /// The server cannot check them now.
    #[error("the server cannot check credentials now")]
    Temporary,
    /// The server offers no mechanism that may be used: PLAIN is used over TLS alone.
    #[error("the server offers no mechanism that may be used here")]
    NoMechanism,
    /// The server did not prove that it knows the account, or broke the exchange.
    #[error("the server failed the exchange: {0}")]
    Server(Box<str>),
    /// The name or password cannot be prepared as RFC 4013 asks.
    #[error("the name or password has characters that are not allowed")]
    Preparation,
    /// No address was bound.
    #[error("the server did not bind a resource: {0}")]
    Bind(Box<str>),
}

impl LoginError {
    /// As an error at the seam.
    pub fn error(self) -> TransportError {
        let kind = match self {
            Self::Rejected(_) | Self::NoMechanism | Self::Preparation => ErrorKind::Unauthenticated,
            Self::Temporary => ErrorKind::Overloaded,
            Self::Server(_) | Self::Bind(_) => ErrorKind::PeerMisbehaved,
        };
        TransportError::new(NAME, kind, "not logged in").with_source(self)
    }
}

impl From<ScramError> for LoginError {
    fn from(error: ScramError) -> Self {
        match error {
            ScramError::Rejected => Self::Rejected("invalid proof".into()),
            other => Self::Server(other.to_string().into()),
        }
    }
}

/// Somebody is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoggedIn {
    /// The full JID that the server bound.
    pub jid: Box<str>,
    /// Whether the session asked for was resumed; `None` if none was asked for.
    pub resumed: Option<bool>,
}

/// What to do after a payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Wait for the next payload.
    Wait,
    /// Send this.
    Send(Element),
    /// Restart the stream.
    Restart,
    /// Done: whatever else comes is the session's.
    Done(LoggedIn),
}

impl fmt::Debug for Step {
    // What is sent may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait => f.write_str("Wait"),
            Self::Send(payload) => write!(f, "Send(<{}/>)", payload.name()),
            Self::Restart => f.write_str("Restart"),
            Self::Done(done) => write!(f, "Done({done:?})"),
        }
    }
}

#[derive(Debug)]
enum State {
    Mechanisms,
    Scram { scram: Box<Scram>, proved: bool },
    Plain,
    Features,
    Binding { session: bool },
    Session { jid: Box<str> },
    Resuming { jid: Box<str> },
    Over,
}

/// One log-in. Payloads go in, steps come out.
#[derive(Debug)]
pub struct Login {
    account: Account,
    resume: Option<SessionId>,
    confidential: bool,
    nonce: String,
    state: State,
}

const BIND_ID: &str = "bind-1";
const SESSION_ID: &str = "session-1";
const RESUME_ID: &str = "resume-1";
/// The longest JID (RFC 7622 §3.1 has three parts of 1,023 bytes).
const MAX_JID: usize = 3_071;

impl Login {
    /// A log-in of `account`. `nonce` must be random and printable, without commas. Passwords are shown in clear only
    /// if the connection is `confidential`. With `resume`, asks a relay to go on with that session.
    pub const fn new(account: Account, confidential: bool, nonce: String, resume: Option<SessionId>) -> Self {
        Self { account, resume, confidential, nonce, state: State::Mechanisms }
    }

    /// Takes a payload of the peer.
    ///
    /// # Errors
    /// [`LoginError`]; the log-in is over.
    pub fn handle(&mut self, payload: &Element) -> Result<Step, LoginError> {
        let step = self.step(payload);
        if step.is_err() {
            self.state = State::Over;
        }
        step
    }

    fn step(&mut self, payload: &Element) -> Result<Step, LoginError> {
        let features = payload.is(ns::STREAMS, "features");
        let sasl = *payload.namespace() == ns::SASL;
        match &self.state {
            State::Mechanisms if features => match payload.child(ns::SASL, "mechanisms") {
                Some(mechanisms) => self.authenticate(mechanisms),
                None => Err(LoginError::NoMechanism),
            },
            State::Scram { .. } | State::Plain if sasl => match payload.name() {
                "challenge" => self.challenged(payload),
                "success" => self.succeeded(payload),
                "failure" => Err(failure(payload)),
                _ => Ok(Step::Wait),
            },
            State::Features if features => self.bind(payload),
            State::Binding { .. } | State::Session { .. } | State::Resuming { .. }
                if payload.is(ns::CLIENT, "iq") =>
            {
                self.iq(payload)
            }
            _ => Ok(Step::Wait),
        }
    }

    fn authenticate(&mut self, mechanisms: &Element) -> Result<Step, LoginError> {
        let offered = |name: &str| {
            mechanisms.children().any(|mechanism| {
                mechanism.is(ns::SASL, "mechanism") && mechanism.text().trim().eq_ignore_ascii_case(name)
            })
        };
        let user = prepare(&self.account.user)?.into_owned();
        let password = Secret::new(prepare(self.account.password.expose())?);
        let scram = if offered("SCRAM-SHA-256") {
            Some((ScramHash::Sha256, "SCRAM-SHA-256"))
        } else if offered("SCRAM-SHA-1") {
            Some((ScramHash::Sha1, "SCRAM-SHA-1"))
        } else {
            None
        };
        let (mechanism, response) = match scram {
            Some((hash, mechanism)) => {
                let scram = Scram::new(hash, &user, password, self.nonce.clone());
                let first = scram.client_first();
                self.state = State::Scram { scram: Box::new(scram), proved: false };
                (mechanism, first)
            }
            None if offered("PLAIN") && self.confidential => {
                self.state = State::Plain;
                ("PLAIN", format!("\0{user}\0{}", password.expose()))
            }
            None => return Err(LoginError::NoMechanism),
        };
        let auth = Element::new(ns::SASL, "auth").with_attr("mechanism", mechanism);
        Ok(Step::Send(auth.with_text(STANDARD.encode(response))))
    }

    fn challenged(&mut self, payload: &Element) -> Result<Step, LoginError> {
        let State::Scram { scram, proved } = &mut self.state else {
            return Err(LoginError::Server("a challenge was not expected".into()));
        };
        let challenge = sasl_text(payload)?;
        let response = Element::new(ns::SASL, "response");
        // Some servers send their proof as a challenge, and success after it without data.
        if challenge.starts_with("v=") || challenge.starts_with("e=") {
            scram.verify(&challenge)?;
            *proved = true;
            return Ok(Step::Send(response));
        }
        Ok(Step::Send(response.with_text(STANDARD.encode(scram.client_final(&challenge)?))))
    }

    fn succeeded(&mut self, payload: &Element) -> Result<Step, LoginError> {
        // RFC 5802 §3: a server that cannot show `v=` is not the one that knows the account.
        if let State::Scram { scram, proved: false } = &mut self.state {
            scram.verify(&sasl_text(payload)?)?;
        }
        self.state = State::Features;
        Ok(Step::Restart)
    }

    fn bind(&mut self, features: &Element) -> Result<Step, LoginError> {
        if features.child(ns::BIND, "bind").is_none() {
            return Err(LoginError::Bind("it is not offered".into()));
        }
        // RFC 3921: only servers of old want it.
        let session = features
            .child(ns::SESSION, "session")
            .is_some_and(|session| session.child(ns::SESSION, "optional").is_none());
        self.state = State::Binding { session };
        let mut bind = Element::new(ns::BIND, "bind");
        if let Some(resource) = &self.account.resource {
            bind.push(Element::new(ns::BIND, "resource").with_text(&**resource));
        }
        Ok(Step::Send(set(BIND_ID, bind)))
    }

    fn iq(&mut self, iq: &Element) -> Result<Step, LoginError> {
        let wanted = match self.state {
            State::Binding { .. } => BIND_ID,
            State::Session { .. } => SESSION_ID,
            _ => RESUME_ID,
        };
        let ok = match iq.attr("type") {
            Some("result") => true,
            Some("error") => false,
            // What is asked of us before the log-in is over is asked too early.
            _ => return Ok(Step::Wait),
        };
        if iq.attr("id") != Some(wanted) {
            return Ok(Step::Wait);
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Binding { session } if ok => {
                let jid = iq
                    .child(ns::BIND, "bind")
                    .and_then(|bind| bind.child(ns::BIND, "jid"))
                    .map(|jid| jid.text().trim().to_owned())
                    .filter(|jid| !jid.is_empty() && jid.len() <= MAX_JID)
                    .ok_or_else(|| LoginError::Bind("the answer has no jid".into()))?;
                if session {
                    self.state = State::Session { jid: jid.into() };
                    return Ok(Step::Send(set(SESSION_ID, Element::new(ns::SESSION, "session"))));
                }
                Ok(self.bound(jid.into()))
            }
            State::Binding { .. } => Err(LoginError::Bind(condition(iq))),
            State::Session { jid } if ok => Ok(self.bound(jid)),
            State::Session { .. } => Err(LoginError::Bind(condition(iq))),
            State::Resuming { jid } => Ok(Step::Done(LoggedIn { jid, resumed: Some(ok) })),
            other => {
                self.state = other;
                Ok(Step::Wait)
            }
        }
    }

    fn bound(&mut self, jid: Box<str>) -> Step {
        match self.resume.take() {
            None => Step::Done(LoggedIn { jid, resumed: None }),
            Some(session) => {
                self.state = State::Resuming { jid };
                Step::Send(set(RESUME_ID, vocabulary::encode_resume(&session)))
            }
        }
    }
}

fn set(id: &'static str, payload: Element) -> Element {
    Element::new(ns::CLIENT, "iq").with_attr("id", id).with_attr("type", "set").with_child(payload)
}

/// SASLprep (RFC 4013), as SCRAM and PLAIN ask for.
fn prepare(text: &str) -> Result<Cow<'_, str>, LoginError> {
    match stringprep::saslprep(text) {
        Ok(prepared) if !prepared.contains('\0') => Ok(prepared),
        _ => Err(LoginError::Preparation),
    }
}

/// What a SASL element carries: base64, whose white space the XEP's own examples have.
fn sasl_text(element: &Element) -> Result<String, LoginError> {
    let malformed = || LoginError::Server("a SASL message cannot be read".into());
    let mut text = element.text().into_owned();
    text.retain(|c| !c.is_ascii_whitespace());
    if text.is_empty() || text == "=" {
        return Ok(String::new());
    }
    String::from_utf8(STANDARD.decode(text).map_err(|_| malformed())?).map_err(|_| malformed())
}

fn failure(failure: &Element) -> LoginError {
    let name = failure.children().find(|child| child.name() != "text").map_or("", |child| child.name());
    match name {
        "temporary-auth-failure" => LoginError::Temporary,
        "" => LoginError::Rejected("for no reason given".into()),
        name => LoginError::Rejected(shortened(name)),
    }
}

/// The condition of a stanza error.
fn condition(stanza: &Element) -> Box<str> {
    let name = stanza
        .child(ns::CLIENT, "error")
        .and_then(|error| {
            error.children().find(|child| *child.namespace() == ns::STANZAS && child.name() != "text")
        })
        .map_or("undefined-condition", |condition| condition.name());
    shortened(name)
}

/// What a peer says is shown to people, so it is cut to a length that they read.
fn shortened(name: &str) -> Box<str> {
    name.chars().take(64).collect::<String>().into()
}
