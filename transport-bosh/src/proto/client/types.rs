//! What goes into the client's machine and what comes out.

use std::{
    fmt,
    time::{Duration, Instant},
};

use relay_core::xml::Element;

use super::{End, Granted};
use crate::exchange::{ExchangeErrorKind, Post, Reply};

/// What a client asks for, and its bounds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientSettings {
    /// The XMPP domain.
    pub to: String,
    /// The language of what people read (`en`).
    pub language: String,
    /// The longest that the peer is to hold a request (50 s). It must stay below the time-out of every proxy on the
    /// way, most of which have 60 s; shorter costs rounds.
    pub wait: Duration,
    /// The longest that a connection on which a request is held may be idle (`wait`). Shorter, another empty request frees
    /// the held one and is held in its place, which networks that forget idle connections sooner than that make needful.
    pub keepalive: Option<Duration>,
    /// Requests to be held at once (1).
    pub hold: u8,
    /// Whether to tell the peer which answers came (XEP-0124 §9), so that it keeps no more of them than it must.
    pub acks: bool,
    /// The largest request made, in bytes (200 KiB), unless a single payload is larger.
    pub max_request: usize,
    /// The largest answer taken, in bytes (512 KiB).
    pub max_reply: usize,
    /// How much later than `wait` an answer is given up (10 s).
    pub margin: Duration,
    /// How long the creation of the session may take (20 s).
    pub creation: Duration,
    /// How long the next empty request waits for an answer to what has just come, so that one request carries that
    /// and is then held (2 ms). Longer, pushes in between wait; zero, every answer costs a request more.
    pub gather: Duration,
    /// How long a goodbye may take (5 s).
    pub farewell: Duration,
}

impl ClientSettings {
    /// The defaults, for the domain `to`.
    pub fn new(to: impl Into<String>) -> Self {
        Self {
            to: to.into(),
            language: "en".into(),
            wait: Duration::from_secs(50),
            keepalive: None,
            hold: 1,
            acks: true,
            max_request: 200 * 1024,
            max_reply: 512 * 1024,
            margin: Duration::from_secs(10),
            creation: Duration::from_secs(20),
            gather: Duration::from_millis(2),
            farewell: Duration::from_secs(5),
        }
    }
}

/// Names one POST; a repeat of the same request is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId(pub(super) u64);

/// What happens to a session.
#[non_exhaustive]
pub enum Input {
    /// Create the session. The first input.
    Open,
    /// Send a payload. `tag` comes back in [`Output::Confirmed`].
    Send {
        /// The payload.
        payload: Element,
        /// What its sender calls it; tags must grow.
        tag: Option<u64>,
    },
    /// The next request restarts the stream (XEP-0206 §5).
    Restart,
    /// Make no request on the session's own account until told otherwise: what came cannot be taken just now.
    Hold(bool),
    /// Changes [`ClientSettings::keepalive`].
    KeepAlive(Option<Duration>),
    /// What waits for answers may be waiting on dead connections: ask again on new ones.
    Refresh,
    /// Say goodbye, with a last payload.
    Close {
        /// The payload.
        payload: Option<Element>,
    },
    /// A POST was answered.
    Replied {
        /// Which.
        exchange: ExchangeId,
        /// The answer.
        reply: Reply,
    },
    /// A POST came to no answer.
    Failed {
        /// Which.
        exchange: ExchangeId,
        /// How.
        kind: ExchangeErrorKind,
    },
    /// The time of [`Output::WakeAt`] has come.
    Woken,
}

impl fmt::Debug for Input {
    // Payloads may be credentials and are nobody's to show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("Open"),
            Self::Send { payload, tag } => write!(f, "Send(<{}/>, {tag:?})", payload.name()),
            Self::Restart => f.write_str("Restart"),
            Self::Hold(hold) => write!(f, "Hold({hold})"),
            Self::KeepAlive(keepalive) => write!(f, "KeepAlive({keepalive:?})"),
            Self::Refresh => f.write_str("Refresh"),
            Self::Close { .. } => f.write_str("Close"),
            Self::Replied { exchange, reply } => write!(f, "Replied({exchange:?}, {reply:?})"),
            Self::Failed { exchange, kind } => write!(f, "Failed({exchange:?}, {kind:?})"),
            Self::Woken => f.write_str("Woken"),
        }
    }
}

/// What a session wants done, or says.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// POST this.
    Post {
        /// Its name.
        exchange: ExchangeId,
        /// What to post.
        post: Post,
    },
    /// The answer to this POST does not matter any more: drop it, so that its connection is closed.
    Abandon(ExchangeId),
    /// The session is there.
    Created {
        /// Its SID.
        sid: Box<str>,
        /// What the peer granted.
        granted: Granted,
    },
    /// The peer answered at BOSH level: a sign of life.
    Alive,
    /// A payload from the peer. Whatever is sent in reaction before the next output goes into the same request.
    Payload(Element),
    /// The peer has certainly got every payload up to this tag.
    Confirmed(u64),
    /// Whether requests get through.
    Reachable(bool),
    /// An answer came over a connection that was idle for so long.
    Survived {
        /// How long.
        idle: Duration,
    },
    /// A connection was gone after it was idle for so long, and the peer is there.
    Cut {
        /// How long.
        idle: Duration,
        /// Whether it was closed then; else it was found dead, and may have been so for a while.
        seen: bool,
    },
    /// The session is over. Nothing follows but abandoned posts.
    Ended(End),
    /// Nothing more for now; come back at this time, or with the next input.
    WakeAt(Option<Instant>),
}

impl fmt::Debug for Output {
    // The SID is a secret, and payloads are nobody's to show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Post { exchange, post } => write!(f, "Post({exchange:?}, {post:?})"),
            Self::Abandon(exchange) => write!(f, "Abandon({exchange:?})"),
            Self::Created { granted, .. } => write!(f, "Created({granted:?})"),
            Self::Alive => f.write_str("Alive"),
            Self::Payload(payload) => write!(f, "Payload(<{}/>)", payload.name()),
            Self::Confirmed(tag) => write!(f, "Confirmed({tag})"),
            Self::Reachable(reachable) => write!(f, "Reachable({reachable})"),
            Self::Survived { idle } => write!(f, "Survived({idle:?})"),
            Self::Cut { idle, seen } => write!(f, "Cut({idle:?}, seen: {seen})"),
            Self::Ended(end) => write!(f, "Ended({end:?})"),
            Self::WakeAt(at) => write!(f, "WakeAt({at:?})"),
        }
    }
}

/// How often things happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ClientStats {
    /// Requests made: RIDs used.
    pub requests: u64,
    /// POSTs of a request that had been posted before.
    pub repeats: u64,
    /// Answers taken, each RID counted once.
    pub answers: u64,
    /// Answers without a payload: mostly the ends of waits.
    pub empty_answers: u64,
    /// POSTs that came to no answer at BOSH level.
    pub failures: u64,
}
