//! The server end, as a [`Listener`] that lives on somebody's HTTP server.
//!
//! The host gives the head of each upgrade request to [`WsManager::upgrade`]. What comes back is either a [`Refusal`],
//! which it turns into an answer of its own, or an [`Accepted`]: it answers 101 with [`Accepted::fields`] and, once that is
//! written, hands over the connection ([`Accepted::attach`]). Sockets, TLS, and the bounds on the request are the host's.
//!
//! ```
//! # use std::{net::IpAddr, sync::Arc};
//! # use relay_core::auth::Authenticator;
//! use transport_ws::{WsManager, WsServerConfig};
//!
//! # async fn host(authenticator: Arc<dyn Authenticator>, relay: relay_core::Relay, head: http::request::Parts,
//! #     peer: IpAddr, stream: tokio::net::TcpStream) {
//! let (manager, listener) = WsManager::new(WsServerConfig::default(), authenticator);
//! let serving = relay.serve(Box::new(listener));
//! // For each upgrade request:
//! match manager.upgrade(&head, peer).await {
//!     Ok(accepted) => {
//!         for (name, value) in accepted.fields() { /* into the 101, which is written, and then: */ }
//!         accepted.attach(stream, b"");
//!     }
//!     Err(refusal) => eprintln!("{refusal}"),
//! }
//! # }
//! ```

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal},
    error::{ErrorKind, TransportError},
    ids::{DeviceId, SessionId},
    random,
    transport::{CloseReason, Inbound, Incoming, Knock, Listener, PeerInfo, Session, Started, TransportInfo},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use crate::{
    config::WsServerConfig,
    proto::control::{End, Machine},
    session::{self, Beginning, Shared, WsPush},
    wire::handshake::{CONTROL, Head, HeadError},
};

/// The transport's name and abilities.
pub const INFO: TransportInfo = TransportInfo::new(crate::NAME);

/// Opens control sessions. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct WsManager {
    inner: Arc<Inner>,
}

struct Inner {
    config: WsServerConfig,
    authenticator: Arc<dyn Authenticator>,
    runtime: Handle,
    knocks: mpsc::Sender<Incoming>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsManager").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why an upgrade request opens no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Its head is none that opens a control session.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The token is not one that holds.
    #[error("the token is not one that holds")]
    Unauthenticated,
    /// The token is that of a service.
    #[error("a control session is for devices")]
    Forbidden,
    /// The token could not be checked now.
    #[error("the token cannot be checked now")]
    Unavailable,
    /// The relay has too many sessions, or the device opens too many.
    #[error("too many sessions; come back later")]
    TooMany {
        /// When to come back.
        retry_after: Duration,
    },
    /// The relay stops, or takes no sessions now.
    #[error("the relay takes no sessions now")]
    Closed,
}

impl WsManager {
    /// A manager, and the listener that yields the sessions opened on it.
    ///
    /// # Panics
    /// Outside a tokio runtime: sessions run there.
    pub fn new(config: WsServerConfig, authenticator: Arc<dyn Authenticator>) -> (Self, WsListener) {
        let (knocks, incoming) = mpsc::channel(config.knocks.max(1));
        let inner = Inner { config, authenticator, runtime: Handle::current(), knocks };
        (Self { inner: Arc::new(inner) }, WsListener { incoming })
    }

    /// Takes an upgrade request in: checks its head and its token, and asks the listener's owner. Bounded in time.
    ///
    /// # Errors
    /// [`Refusal`]: no session was made.
    ///
    /// # Cancel safety
    /// Dropped half-way, the session that may have been made is lost.
    pub async fn upgrade(&self, head: &http::request::Parts, peer: IpAddr) -> Result<Accepted, Refusal> {
        let head = Head::read(head)?;
        let handshake = self.inner.config.handshake;
        // The head is not kept while the owner makes up its mind.
        tokio::time::timeout(handshake, self.inner.admit(head, peer)).await.unwrap_or(Err(Refusal::Closed))
    }
}

impl Inner {
    async fn admit(self: &Arc<Self>, head: Head, peer: IpAddr) -> Result<Accepted, Refusal> {
        let Head { accept, token, resume } = head;
        let credentials = Credentials::Bearer(token);
        let device = self.device(&credentials).await?;
        let (verdict, verdict_comes) = oneshot::channel();
        let id = SessionId::new(&random::base32::<20>()).map_err(|_| Refusal::Closed)?;
        let inner = Arc::clone(self);
        let handshake = Box::pin(async move {
            // T17: the credential may have been revoked while the owner was busy elsewhere.
            let refused = match inner.device(&credentials).await {
                Ok(holder) if holder == device => {
                    return Ok(inner.session(device, id, resume, verdict));
                }
                Ok(_) => Refusal::Unauthenticated,
                Err(refused) => refused,
            };
            let error =
                TransportError::new(INFO.name, ErrorKind::Unauthenticated, "the token no longer holds");
            let _ = verdict.send(Err(refused.clone()));
            Err(error.with_source(refused))
        });
        let knock = Incoming::Session(Knock { peer: PeerInfo::at(peer), handshake });
        self.knocks.try_send(knock).map_err(|_| Refusal::Closed)?;
        let taken = verdict_comes.await.unwrap_or(Err(Refusal::Closed))?;
        Ok(Accepted { accept, taken: Some(taken), runtime: self.runtime.clone() })
    }

    /// The device that shows `credentials`.
    async fn device(&self, credentials: &Credentials) -> Result<DeviceId, Refusal> {
        match self.authenticator.authenticate(credentials).await {
            Ok(Principal::Device(device)) => Ok(device),
            Ok(_) => Err(Refusal::Forbidden),
            Err(AuthError::Rejected) => Err(Refusal::Unauthenticated),
            Err(_) => Err(Refusal::Unavailable),
        }
    }

    /// The session, ready for its owner.
    fn session(
        &self,
        device: DeviceId,
        id: SessionId,
        resume: Option<SessionId>,
        verdict: oneshot::Sender<Verdict>,
    ) -> Session {
        let mut config = self.config.control.clone();
        config.ping_every = config.ping_every.map(jittered);
        let patience = config.close_within * 2;
        let machine = Machine::new(End::Relay, device.clone(), config, session::now());
        let push = WsPush::new(Shared::new(machine), Box::new(AtTheDoor { verdict }), patience);
        Session::new(device, id, INFO, Box::new(push)).resuming(resume)
    }
}

/// Up to a tenth more or less: sessions that began together are not to ping together.
fn jittered(every: Duration) -> Duration {
    let mut random = [0; 2];
    random::fill(&mut random);
    let part = f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX);
    every.mul_f64(0.9 + 0.2 * part)
}

type Verdict = Result<Taken, Refusal>;

/// A session that its owner has taken, and that has no connection yet.
struct Taken {
    id: SessionId,
    shared: Arc<Shared>,
    /// Until the connection is there.
    inbound: Option<Arc<dyn Inbound>>,
}

/// The opening handshake waits for the owner's verdict.
#[derive(Debug)]
struct AtTheDoor {
    verdict: oneshot::Sender<Verdict>,
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Whoever was to answer went away: the owner has a session without a connection.
        if let Some(inbound) = self.inbound.take() {
            self.shared.abandon(Some(inbound));
        }
    }
}

impl Beginning for AtTheDoor {
    fn started(self: Box<Self>, started: Started, shared: &Arc<Shared>) {
        let Started { session, inbound, .. } = started;
        let taken = Taken { id: session, shared: Arc::clone(shared), inbound: Some(inbound) };
        // If nobody waits for it any more it is dropped, and the owner told.
        let _ = self.verdict.send(Ok(taken));
    }

    fn refused(self: Box<Self>, reason: Option<CloseReason>, shared: &Arc<Shared>) {
        let refusal = match reason {
            Some(CloseReason::Overloaded { retry_after }) => Refusal::TooMany { retry_after },
            Some(CloseReason::Revoked) => Refusal::Unauthenticated,
            _ => Refusal::Closed,
        };
        let _ = self.verdict.send(Err(refusal));
        shared.abandon(None);
    }
}

/// A session that its owner has taken: answer 101 with these fields, then hand over the connection. Dropped, the session
/// is lost.
#[derive(Debug)]
#[must_use = "a session without a connection is lost"]
pub struct Accepted {
    accept: String,
    taken: Option<Taken>,
    runtime: Handle,
}

impl Accepted {
    /// The session's ID in force.
    pub fn session(&self) -> &str {
        self.taken.as_ref().map_or("", |taken| taken.id.as_str())
    }

    /// The header fields of the 101.
    pub fn fields(&self) -> [(&'static str, &str); 5] {
        [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-accept", &self.accept),
            ("sec-websocket-protocol", CONTROL),
            ("relay-session", self.session()),
        ]
    }

    /// The 101 was written, and what comes on `stream` now are frames. `early` is what the host read after the request's
    /// head: RFC 6455 §4.1 has a client wait for the answer, so that anything in it ends the session.
    pub fn attach(mut self, stream: impl AsyncRead + AsyncWrite + Send + 'static, early: &[u8]) {
        let Some(mut taken) = self.taken.take() else { return };
        let Some(inbound) = taken.inbound.take() else { return };
        if !early.is_empty() {
            tracing::debug!(bytes = early.len(), "a peer did not wait for the end of the opening handshake");
            taken.shared.too_early();
        }
        taken.shared.run(Box::pin(stream), b"", inbound, &self.runtime);
    }
}

/// Yields the sessions that devices open on a [`WsManager`].
#[derive(Debug)]
pub struct WsListener {
    incoming: mpsc::Receiver<Incoming>,
}

#[async_trait]
impl Listener for WsListener {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }
}
