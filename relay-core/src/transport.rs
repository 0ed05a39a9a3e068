//! The seam between the relay (or a device) and what carries its sessions.
//!
//! Both ends of a transport look alike. One side dials ([`Connector`]), the other listens ([`Listener`]); each gets
//! a [`Session`], whose [`Push`] half takes envelopes to the peer. What the peer sends comes the other way as calls
//! of [`Inbound`], which the owner of the session hands over in [`Push::start`].
//!
//! ```text
//!   owner (engine or device) ── Push::push(queue) ─▶ transport ─▶ network ─▶ peer
//!   owner ◀─ Inbound::{envelope, attached, …} ────── transport ◀─ network ◀─ peer
//! ```
//!
//! - **The owner queues, the transport pulls.** [`Push::push`] waits for room, then takes from the [`Queue`],
//!   synchronously, what fits. A BOSH session fills one `<body/>` with all that is pending; a WebSocket writes frame
//!   after frame. Leaving the queue is the moment at which a request counts as sent.
//! - **Inbound is a call, not a task.** An idle session has no task and no channel on the owner's side.
//! - **Nobody calls under a lock.** A transport calls [`Inbound`] with none of its locks held: the owner may answer by
//!   pushing on that very session before the call returns. The owner calls [`Push`] with none of its own held; a
//!   transport may call [`Queue`] under its locks.
//!
//! The conformance kit (feature `conformance`) is the definition of what a transport promises.

use std::{
    collections::VecDeque, fmt, future::Future, net::IpAddr, pin::Pin, sync::Arc, time::Duration,
    time::Instant,
};

use async_trait::async_trait;

use crate::{
    app::{Channel, ToDevice, ToRelay},
    auth::Secret,
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, RequestId, SessionId},
    store::App,
};

/// A boxed future, as handshakes are.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// What a transport is and can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportInfo {
    /// Its name in logs, metrics and inquiries: `bosh`, `ws`, `memory`, ….
    pub name: &'static str,
    /// The largest body of a request or response that it takes, in bytes.
    pub max_body: usize,
    /// Whether it reports [`Inbound::confirmed`].
    pub confirms: bool,
    /// Whether a session outlives a broken connection.
    pub resumable: bool,
    /// Whether a device opens a channel of this transport's for a job. If not, it reads the job's data by HTTP.
    pub channels: bool,
}

impl TransportInfo {
    /// A transport that takes bodies up to [`crate::envelope::MAX_INLINE_BODY`], confirms nothing and ends with its connection.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            max_body: crate::envelope::MAX_INLINE_BODY,
            confirms: false,
            resumable: false,
            channels: false,
        }
    }

    /// Reports [`Inbound::confirmed`].
    #[must_use]
    pub const fn confirming(mut self) -> Self {
        self.confirms = true;
        self
    }

    /// Opens channels for jobs.
    #[must_use]
    pub const fn with_channels(mut self) -> Self {
        self.channels = true;
        self
    }

    /// Keeps sessions over a broken connection.
    #[must_use]
    pub const fn resumable(mut self) -> Self {
        self.resumable = true;
        self
    }
}

/// Opens sessions from the side that dials: the device.
#[async_trait]
pub trait Connector: fmt::Debug + Send + Sync + 'static {
    /// What this transport is and can do.
    fn info(&self) -> TransportInfo;

    /// Connects, authenticates and establishes a session.
    ///
    /// # Errors
    /// By [`ErrorKind`]: `Unreachable` if nothing was sent, `Unauthenticated` if the
    /// credential was not accepted, `TimedOut` at `options.deadline`, `Overloaded` with a time to come back.
    ///
    /// # Cancel safety
    /// Dropped half-way, no session stays behind for longer than the relay's log-in time-out.
    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError>;

    /// Opens the channel of a job, beside the session. Only of transports that say [`TransportInfo::channels`].
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Expired` if the relay has no such job (any more); `Unsupported` from transports
    /// without channels.
    ///
    /// # Cancel safety
    /// Dropped half-way, no channel stays behind.
    async fn channel(&self, options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        let _ = options;
        let words = "this transport has no channels";
        Err(TransportError::new(self.info().name, ErrorKind::Unsupported, words))
    }
}

/// The device's end of a job's channel.
pub type DeviceChannel = Channel<ToRelay, ToDevice>;
/// The relay's end of a job's channel.
pub type RelayChannel = Channel<ToDevice, ToRelay>;

/// Which channel to open.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ChannelOptions {
    /// Who opens it.
    pub device: DeviceId,
    /// Its credential.
    pub token: Secret,
    /// The job.
    pub job: RequestId,
    /// Whose job it is, as the device's app table has it.
    pub app: App,
    /// When to give up.
    pub deadline: Instant,
}

impl ChannelOptions {
    /// The channel of `job` for `app` of `device`, to be there before `deadline`.
    pub const fn new(device: DeviceId, token: Secret, job: RequestId, app: App, deadline: Instant) -> Self {
        Self { device, token, job, app, deadline }
    }
}

/// How to connect.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// Who connects.
    pub device: DeviceId,
    /// Its credential.
    pub token: Secret,
    /// The session to go on with, if there is one.
    pub resume: Option<SessionId>,
    /// When to give up.
    pub deadline: Instant,
}

impl ConnectOptions {
    /// A new session for `device`, to be there before `deadline`.
    pub const fn new(device: DeviceId, token: Secret, deadline: Instant) -> Self {
        Self { device, token, resume: None, deadline }
    }

    /// Goes on with `session` if the relay still has it.
    #[must_use]
    pub fn resuming(mut self, session: Option<SessionId>) -> Self {
        self.resume = session;
        self
    }
}

/// Yields sessions on the side that listens: the relay.
#[async_trait]
pub trait Listener: fmt::Debug + Send + 'static {
    /// What this transport is and can do.
    fn info(&self) -> TransportInfo;

    /// The next peer that knocks. Retries transient errors itself; `None` means closed for good. Never waits for a
    /// peer's handshake.
    ///
    /// # Cancel safety
    /// Dropped, nobody who knocked is lost.
    async fn accept(&mut self) -> Option<Incoming>;
}

/// Who has knocked.
#[non_exhaustive]
pub enum Incoming {
    /// A device that wants a session.
    Session(Knock),
    /// A device that opens the channel of a job.
    Channel(ChannelKnock),
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(knock) => f.debug_tuple("Session").field(&knock.peer).finish(),
            Self::Channel(knock) => f.debug_tuple("Channel").field(&knock.peer).field(&knock.job).finish(),
        }
    }
}

/// A peer at the door. Await `handshake` to let it in; drop it to refuse.
pub struct Knock {
    /// Where it comes from.
    pub peer: PeerInfo,
    /// Authenticates it and makes its session. Bounded in time by the transport.
    pub handshake: BoxFuture<Result<Session, TransportError>>,
}

impl fmt::Debug for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Knock").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What opens a channel, or says that there is no such job: the handshake of a [`ChannelKnock`].
pub type OpenChannel = Box<dyn FnOnce(Option<App>) -> BoxFuture<Result<RelayChannel, TransportError>> + Send>;

/// A device, authenticated, that wants to open the channel of a job. Await `handshake` to let it in, or to tell it that it
/// has no such job. Drop it if there is no room now: it may come back.
pub struct ChannelKnock {
    /// Where it comes from.
    pub peer: PeerInfo,
    /// Who it is.
    pub device: DeviceId,
    /// Whose channel it wants.
    pub job: RequestId,
    /// The path that it asked for, without what all channels' paths begin with, as the app table has it.
    pub path: Box<str>,
    /// The protocols that it offered; the channel's must be among them.
    pub protocols: Vec<Box<str>>,
    /// Opens the channel, as one of the app given, whose protocol was offered. Without an app there is no such job of that
    /// device: it is told so, and this is an error. Bounded in time by the transport.
    pub handshake: OpenChannel,
}

impl fmt::Debug for ChannelKnock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelKnock")
            .field("peer", &self.peer)
            .field("device", &self.device)
            .field("job", &self.job)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Where a peer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Its address, if the transport has such a thing.
    pub address: Option<IpAddr>,
}

impl PeerInfo {
    /// A peer at `address`.
    pub const fn at(address: IpAddr) -> Self {
        Self { address: Some(address) }
    }
}

/// One end of an authenticated session.
#[derive(Debug)]
#[non_exhaustive]
pub struct Session {
    /// The device that the session is with (on the relay) or of (on the device), as authenticated.
    pub device: DeviceId,
    /// The session's ID. On the relay a proposal: the engine decides ([`Started::session`]).
    pub id: SessionId,
    /// On the relay: the session that the peer wants to go on with, if it said so at the door.
    pub resume: Option<SessionId>,
    /// On the device: whether the relay went on with the session that was asked for.
    pub resumed: bool,
    /// Which transport.
    pub info: TransportInfo,
    /// Takes envelopes to the peer.
    pub push: Box<dyn Push>,
}

impl Session {
    /// A session of `device` named `id`, nothing resumed.
    pub fn new(device: DeviceId, id: SessionId, info: TransportInfo, push: Box<dyn Push>) -> Self {
        Self { device, id, resume: None, resumed: false, info, push }
    }

    /// On the relay: the peer wants to go on with `session`.
    #[must_use]
    pub fn resuming(mut self, session: Option<SessionId>) -> Self {
        self.resume = session;
        self
    }

    /// On the device: says whether the relay went on with the session asked for.
    #[must_use]
    pub const fn with_resumed(mut self, resumed: bool) -> Self {
        self.resumed = resumed;
        self
    }
}

/// What the owner tells a session when it takes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Started {
    /// The session's ID in force; what the peer is to be told.
    pub session: SessionId,
    /// Whether the session that the peer wanted to go on with is the one it got.
    pub resumed: bool,
    /// Where what the peer sends is to go.
    pub inbound: Arc<dyn Inbound>,
}

impl Started {
    /// `session`, as asked for or new, whose peer's words go to `inbound`.
    pub fn new(session: SessionId, resumed: bool, inbound: Arc<dyn Inbound>) -> Self {
        Self { session, resumed, inbound }
    }
}

/// The half of a session that takes envelopes to the peer. Dropping it ends the session like
/// `close(CloseReason::Shutdown)`, in bounded time.
#[async_trait]
pub trait Push: fmt::Debug + Send + 'static {
    /// The owner has taken the session. Called once, before anything else; the peer's words may come from now on.
    fn start(&mut self, started: Started);

    /// Waits for room (this is the back-pressure), then takes, synchronously, what fits. Returns once at least one
    /// envelope was taken, or at once if the queue is empty. The owner calls again while the queue is not empty.
    ///
    /// # Errors
    /// `Closed`, `Expired` or `Interrupted` once the session is over: nothing was taken.
    ///
    /// # Cancel safety
    /// Dropped before it returned, nothing was taken. What was taken is sent whole or, with the session, lost whole.
    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError>;

    /// On the dialling side: the connection that the session waits on may be dead without a sign; go on over a fresh
    /// one (BOSH repeats the outstanding RIDs on new TCP connections; a WebSocket resumes). Returns at once. On the
    /// listening side: nothing to do.
    fn refresh(&mut self);

    /// Ends the session and tells the peer why, as far as it still listens. Bounded in time.
    async fn close(&mut self, reason: CloseReason);
}

/// What is waiting to go to the peer, in order.
pub trait Queue: Send {
    /// What the next envelope weighs ([`Envelope::cost`]); `None` if there is none.
    fn next_cost(&mut self) -> Option<usize>;

    /// Takes the next envelope. The first one taken in a session has number 1, the next 2, and so on; see
    /// [`Inbound::confirmed`].
    fn take(&mut self) -> Option<Envelope>;
}

/// A plain list, for owners that need no more.
impl Queue for VecDeque<Envelope> {
    fn next_cost(&mut self) -> Option<usize> {
        self.front().map(Envelope::cost)
    }

    fn take(&mut self) -> Option<Envelope> {
        self.pop_front()
    }
}

/// Where what a peer says goes.
///
/// Calls return without waiting. For one session, a transport makes them one after the other, in the order in which
/// things happened. What a device has no use for, it need not hear.
pub trait Inbound: fmt::Debug + Send + Sync + 'static {
    /// An envelope from the peer.
    ///
    /// # Errors
    /// [`Full`] gives it back: the transport takes nothing more from the peer until it could hand this one over, or
    /// ends the session.
    fn envelope(&self, envelope: Envelope) -> Result<(), Full>;

    /// The peer showed a sign of life.
    fn alive(&self) {}

    /// The peer has certainly got the envelopes numbered up to and including `number`. Only from transports that say
    /// [`TransportInfo::confirms`].
    fn confirmed(&self, _number: u64) {}

    /// There is a connection on which a push can go.
    fn attached(&self) {}

    /// There is none any more; it may come back. What was taken and not confirmed stays the transport's to deliver.
    fn detached(&self) {}

    /// The peer asks, within this session, to go on with an earlier one. Whether the session now bears that ID.
    fn resume(&self, _session: &SessionId) -> bool {
        false
    }

    /// The session is over; nothing follows.
    fn ended(&self, reason: EndReason);
}

/// An envelope given back by [`Inbound::envelope`].
#[derive(Debug)]
pub struct Full(pub Envelope);

/// Why the owner ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The owner wants no session any more.
    Shutdown,
    /// The relay stops; come back after this time.
    Drain {
        /// When to come back.
        retry_after: Duration,
        /// Where to, if elsewhere: a URL. It reaches the device as [`Envelope::Drain`].
        to: Option<Arc<str>>,
    },
    /// A newer session of the same device took over.
    Replaced,
    /// The credential no longer holds.
    Revoked,
    /// Too many sessions; come back after this time.
    Overloaded {
        /// When to come back.
        retry_after: Duration,
    },
    /// The peer broke a rule.
    Misbehaved,
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// The peer said goodbye.
    Goodbye,
    /// The peer was silent for too long, or its connection broke for good.
    Lost,
    /// The peer no longer knows this session.
    Expired,
    /// A newer session of the same device took over.
    Replaced,
    /// The credential no longer holds.
    Revoked,
    /// The peer stops; come back after this time, if it said one.
    Drain {
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// The peer asks for fewer or slower requests.
    Overloaded {
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// One end broke a rule.
    Misbehaved,
    /// This end closed it.
    Closed,
}
