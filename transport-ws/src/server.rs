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
//!
//! A request for a path below [`WsServerConfig::path`] opens the channel of a job: the same two steps, and the listener
//! yields it as an [`Incoming::Channel`].

mod channel;

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
    counters::Counters,
    proto::control::{End, Machine},
    session::{self, Beginning, Shared, WsPush},
    stream::BoxStream,
    wire::handshake::{CONTROL, ChannelHead, Head, HeadError},
};

/// When a device may come back that finds no room, or has too many channels: they end with their jobs.
const COME_BACK: Duration = Duration::from_secs(2);

/// The transport's name and abilities.
pub const INFO: TransportInfo = TransportInfo::new(crate::NAME).with_channels();

/// Opens control sessions and channels. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct WsManager {
    inner: Arc<Inner>,
}

struct Inner {
    config: WsServerConfig,
    authenticator: Arc<dyn Authenticator>,
    runtime: Handle,
    knocks: mpsc::Sender<Incoming>,
    /// How many channels each device has open, or is opening.
    channels: Mutex<HashMap<DeviceId, usize>>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsManager").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why an upgrade request opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Its head is none that opens a WebSocket here.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The token is not one that holds.
    #[error("the token is not one that holds")]
    Unauthenticated,
    /// The token is that of a service.
    #[error("this is for devices")]
    Forbidden,
    /// The token could not be checked now.
    #[error("the token cannot be checked now")]
    Unavailable,
    /// There is no such job of the device that shows the token, or none of the app at that path.
    #[error("there is no such job")]
    UnknownJob,
    /// The relay has too many sessions, or the device opens too many, or has too many channels.
    #[error("too many sessions or channels; come back later")]
    TooMany {
        /// When to come back.
        retry_after: Duration,
    },
    /// The relay has no room now to look who it is.
    #[error("the relay is busy; come back later")]
    Busy {
        /// When to come back.
        retry_after: Duration,
    },
    /// The relay stops, or takes nobody in now.
    #[error("the relay takes nobody in now")]
    Closed,
}

impl WsManager {
    /// A manager, and the listener that yields the sessions opened on it.
    ///
    /// # Panics
    /// Outside a tokio runtime: sessions run there.
    pub fn new(config: WsServerConfig, authenticator: Arc<dyn Authenticator>) -> (Self, WsListener) {
        let (knocks, incoming) = mpsc::channel(config.knocks.max(1));
        let inner = Inner {
            config,
            authenticator,
            runtime: Handle::current(),
            knocks,
            channels: Mutex::default(),
            counters: Arc::default(),
        };
        (Self { inner: Arc::new(inner) }, WsListener { incoming })
    }

    /// Channels that are open now.
    pub fn channels(&self) -> usize {
        self.inner.channels.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// What was counted on its control sessions.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Takes an upgrade request in: checks its head and its token, and asks the listener's owner. Bounded in time.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was opened.
    ///
    /// # Cancel safety
    /// Dropped half-way, what may have been opened is lost.
    pub async fn upgrade(&self, head: &http::request::Parts, peer: IpAddr) -> Result<Accepted, Refusal> {
        let handshake = self.inner.config.handshake;
        if let Some(path) = channel::path(&self.inner.config.path, head.uri.path()) {
            let (path, head) = (path.into(), ChannelHead::read(head)?);
            let opening = self.inner.open(path, head, peer);
            return tokio::time::timeout(handshake, opening).await.unwrap_or(Err(Refusal::Closed));
        }
        let head = Head::read(head)?;
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
            // A peer that went away meanwhile is not to take the place of a session that lives.
            if verdict.is_closed() {
                let words = "the device went away before it was let in";
                return Err(TransportError::new(INFO.name, ErrorKind::Interrupted, words));
            }
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
        self.knock(Incoming::Session(Knock { peer: PeerInfo::at(peer), handshake }))?;
        let taken = verdict_comes.await.unwrap_or_else(|_| Err(self.turned_away()))?;
        let session = taken.id.as_str().into();
        let taken = Opened::Session { taken, runtime: self.runtime.clone() };
        Ok(Accepted { accept, protocol: CONTROL.into(), session: Some(session), taken })
    }

    fn knock(&self, incoming: Incoming) -> Result<(), Refusal> {
        self.knocks.try_send(incoming).map_err(|_| self.turned_away())
    }

    /// Why the listener's owner does not make up its mind.
    fn turned_away(&self) -> Refusal {
        // Without an owner nobody knows which jobs there are.
        if self.knocks.is_closed() { Refusal::Closed } else { Refusal::Busy { retry_after: COME_BACK } }
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
        let shared = Shared::new(machine, Arc::clone(&self.counters));
        let push = WsPush::new(shared, Box::new(AtTheDoor { verdict }), patience);
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

/// What a connection is for.
enum Opened {
    Session {
        taken: Taken,
        runtime: Handle,
    },
    /// Whoever gets it has the channel.
    Channel(oneshot::Sender<(BoxStream, Vec<u8>)>),
}

/// A session or channel that its owner has taken: answer 101 with these fields, then hand over the connection. Dropped,
/// it is lost.
#[must_use = "a session without a connection is lost"]
pub struct Accepted {
    accept: String,
    protocol: Box<str>,
    /// The session's ID in force, if it is one.
    session: Option<Box<str>>,
    taken: Opened,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl Accepted {
    /// The header fields of the 101.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fields = [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-accept", &*self.accept),
            ("sec-websocket-protocol", &*self.protocol),
        ];
        fields.into_iter().chain(self.session.as_deref().map(|session| ("relay-session", session)))
    }

    /// The 101 was written, and what comes on `stream` now are frames. `early` is what the host read after the request's
    /// head: RFC 6455 §4.1 has a client wait for the answer, so that anything in it ends what was opened.
    pub fn attach(self, stream: impl AsyncRead + AsyncWrite + Send + 'static, early: &[u8]) {
        if !early.is_empty() {
            tracing::debug!(bytes = early.len(), "a peer did not wait for the end of the opening handshake");
        }
        match self.taken {
            Opened::Session { mut taken, runtime } => {
                let Some(inbound) = taken.inbound.take() else { return };
                if !early.is_empty() {
                    taken.shared.too_early();
                }
                taken.shared.run(Box::pin(stream), b"", inbound, &runtime);
            }
            // If nobody waits for it any more it is dropped, and the peer sees that.
            Opened::Channel(opened) => drop(opened.send((Box::pin(stream), early.to_vec()))),
        }
    }
}

/// Yields the sessions and channels that devices open on a [`WsManager`].
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
