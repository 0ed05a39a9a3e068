//! The connection manager: the server end, as a [`Listener`] that lives on somebody's HTTP server.
//!
//! The host gives each POST to its path to [`ConnectionManager::exchange`] and sends back the [`Reply`] that the returned
//! future resolves to; if its client goes away meanwhile, it drops the future. Sockets, TLS, time-outs and the bound on
//! a request's size are the host's.
//!
//! ```
//! # use std::{net::IpAddr, sync::Arc};
//! # use relay_core::auth::Authenticator;
//! use transport_bosh::{BoshServerConfig, ConnectionManager, Post, Reply};
//!
//! # async fn host(authenticator: Arc<dyn Authenticator>, relay: relay_core::Relay) {
//! let (manager, listener) = ConnectionManager::new(BoshServerConfig::new("example.net"), authenticator);
//! let serving = relay.serve(Box::new(listener));
//! // For each POST:
//! let answer = |body: bytes::Bytes, peer: IpAddr, secure: bool| manager.exchange(Post::new(body, peer, secure));
//! // GET, OPTIONS and anything else have answers too:
//! let _ = (Reply::greeting(), Reply::preflight(), Reply::method_not_allowed());
//! # }
//! ```

mod exchange;
mod http;
mod pending;
mod session;
mod sids;
mod source;
mod timer;

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use foldhash::quality::RandomState;
use relay_core::{
    auth::Authenticator,
    transport::{Incoming, Listener, TransportInfo},
    xml::Limits,
};
use tokio::{runtime::Handle, sync::mpsc};

pub use self::{
    exchange::Exchange,
    http::{CORS, Post, Reply, TEXT_XML},
};
use self::{
    pending::{Admitted, Pending},
    session::{Beginning, MAX_EARLY_UNBOUND, Session},
    sids::{Guesses, Key, Sid, Sids},
    timer::Timer,
};
use crate::{
    config::BoshServerConfig,
    proto::{
        manager::{self, ExchangeId, Request, Terms},
        stream::XmppStream,
    },
    wire::{
        TerminalCondition,
        body::{self, Payload, RequestBody},
    },
};

/// The transport's name and abilities.
pub const INFO: TransportInfo = TransportInfo::new("bosh").confirming().resumable();

const SHARDS: usize = 16;
/// The longest Content-Type that a client may wish for, in bytes.
const MAX_CONTENT: usize = 128;

/// Answers POSTs. Cheap to clone; all clones are one. When the last one goes, all sessions end.
#[derive(Debug, Clone)]
pub struct ConnectionManager {
    inner: Arc<Inner>,
}

type Sessions = HashMap<Key, Arc<Session>, RandomState>;

struct Inner {
    config: BoshServerConfig,
    domain: Arc<str>,
    limits: Limits,
    authenticator: Arc<dyn Authenticator>,
    runtime: Handle,
    sids: Sids,
    guesses: Mutex<Guesses>,
    pending: Mutex<Pending>,
    sessions: [Mutex<Sessions>; SHARDS],
    timer: Timer,
    knocks: mpsc::Sender<Incoming>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionManager").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl ConnectionManager {
    /// A connection manager, and the listener that yields the sessions made on it.
    ///
    /// # Panics
    /// Outside a tokio runtime: it starts its timer there.
    pub fn new(config: BoshServerConfig, authenticator: Arc<dyn Authenticator>) -> (Self, BoshListener) {
        let (knocks, incoming) = mpsc::channel(config.knocks.max(1));
        let runtime = Handle::current();
        let inner = Arc::new(Inner {
            domain: config.domain.to_ascii_lowercase().into(),
            limits: Limits::default().with_bytes(config.max_body),
            authenticator,
            runtime: runtime.clone(),
            sids: Sids::new(config.sid_key),
            guesses: Mutex::new(Guesses::new(config.forged_per_minute)),
            pending: Mutex::new(Pending::new(config.pending, config.authentication)),
            sessions: std::array::from_fn(|_| Mutex::default()),
            timer: Timer::default(),
            knocks,
            config,
        });
        runtime.spawn(Timer::run(Arc::downgrade(&inner), inner.timer.bell()));
        (Self { inner }, BoshListener { incoming })
    }

    /// Takes one POST in. It is processed before this returns; what is returned waits for the answer alone.
    pub fn exchange(&self, post: Post) -> Exchange {
        let inner = &self.inner;
        let Post { body, peer, secure } = post;
        if body.len() > inner.config.max_body {
            return Exchange::answered(Reply::closing(413, "The message is too large.\n"));
        }
        let request = match RequestBody::parse(&body, &inner.limits) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%peer, %error, "a message that is no <body/>");
                return inner.not_understood(&body, peer, secure);
            }
        };
        let cost = body.len();
        drop(body);
        match request.sid.as_deref() {
            None => inner.create(&request, peer, secure),
            Some(sid) => match inner.session(sid, peer, secure) {
                Ok(session) => {
                    let exchange = session.request(to_request(request, cost));
                    Exchange::waiting(session, exchange)
                }
                Err(reply) => Exchange::answered(reply),
            },
        }
    }

    /// How many sessions there are, the not yet bound and the just ended included.
    pub fn sessions(&self) -> usize {
        self.inner.sessions.iter().map(|shard| lock(shard).len()).sum()
    }
}

fn to_request(body: RequestBody, cost: usize) -> Request<Payload> {
    let mut request = Request::new(body.rid, body.payloads);
    request.cost = cost;
    request.ack = body.ack;
    request.pause = body.pause.map(|seconds| Duration::from_secs(seconds.into()));
    request.terminate = body.terminate;
    request.restart = body.restart;
    request.key = body.key;
    request.newkey = body.newkey;
    request
}

impl Inner {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions[usize::from(key[0]) % SHARDS])
    }

    fn find(&self, key: &Key) -> Option<Arc<Session>> {
        self.shard(key).get(key).cloned()
    }

    fn forget(&self, key: &Key) {
        let session = self.shard(key).remove(key);
        // Dropped with the shard free again.
        drop(session);
    }

    /// The session of `sid`, or what to answer.
    fn session(&self, sid: &str, peer: IpAddr, secure: bool) -> Result<Arc<Session>, Reply> {
        // Unknown, ended, foreign: one answer for all, so that it says nothing.
        let unknown = || Reply::new(200, body::terminate(TerminalCondition::ItemNotFound));
        let sid = Sid::parse(sid);
        let session = sid.and_then(|sid| self.find(&sid.key).filter(|session| session.sid.is(&sid)));
        let Some(session) = session else {
            if sid.is_some_and(|sid| self.sids.issued(&sid)) {
                return Err(unknown());
            }
            let wait = lock(&self.guesses).count(peer, session::now());
            return Err(match wait {
                Some(wait) => {
                    tracing::warn!(%peer, "too many SIDs that were never ours");
                    Reply::later(429, "Too many requests for sessions that never were.\n", seconds(wait))
                }
                None => unknown(),
            });
        };
        if session.secure && !secure {
            // XEP-0124 §19.1: the connection goes, the session stays, or anybody could end it.
            return Err(Reply::closing(403, "This session is served over TLS alone.\n"));
        }
        Ok(session)
    }

    fn not_understood(&self, message: &[u8], peer: IpAddr, secure: bool) -> Exchange {
        let Some((sid, rid)) = body::addressee(message, &self.limits) else {
            return Exchange::answered(Reply::new(200, body::terminate(TerminalCondition::BadRequest)));
        };
        match self.session(&sid, peer, secure) {
            Ok(session) => {
                let exchange = session.misbehaved(rid);
                Exchange::waiting(session, exchange)
            }
            Err(reply) => Exchange::answered(reply),
        }
    }

    fn create(self: &Arc<Self>, request: &RequestBody, peer: IpAddr, secure: bool) -> Exchange {
        let terms = match Terms::negotiate(request, &self.config) {
            Ok(terms) => terms,
            Err(refusal) => {
                let status = refusal.condition.http_status(refusal.legacy);
                return Exchange::answered(Reply::new(status, body::terminate(refusal.condition)));
            }
        };
        let now = session::now();
        let sid = self.sids.issue();
        let key = sid.key;
        let Some(place) = self.admit(peer, key, now) else {
            tracing::warn!(%peer, "too many sessions that have not logged in");
            let wait = seconds(self.config.authentication);
            return Exchange::answered(Reply::later(503, "Too many sessions are logging in.\n", wait));
        };
        let exchange = ExchangeId(0);
        let opening = terms.opening(&sid.text(), request.rid, &self.domain);
        let mut machine =
            manager::Manager::new(terms, request.rid, exchange, opening, request.newkey.as_deref(), now);
        machine.set_max_early(MAX_EARLY_UNBOUND);
        let stream = XmppStream::new(Arc::clone(&self.domain), secure, self.config.attempts);
        // Never waiting for anything, the first answer has the features (XEP-0206 §4).
        machine.send(stream.features());
        let beginning = Beginning {
            sid,
            manager: Arc::downgrade(self),
            source: peer,
            secure,
            content: request.content.as_deref().filter(|content| is_media_type(content)).map(Into::into),
            place,
            machine,
            stream,
            deadline: now + self.config.authentication,
        };
        let session = Session::new(beginning, exchange);
        self.shard(&key).insert(key, Arc::clone(&session));
        session.kick();
        Exchange::waiting(session, exchange)
    }

    fn admit(&self, peer: IpAddr, key: Key, now: Instant) -> Option<pending::Place> {
        // The key is random already; which session goes needs to be no more than that.
        let random = key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let Admitted { place, evicted } = self.pending().admit(peer, key, random, now)?;
        if let Some(evicted) = evicted.and_then(|evicted| self.find(&evicted)) {
            evicted.end(TerminalCondition::PolicyViolation);
        }
        Some(place)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for shard in &self.sessions {
            let sessions: Vec<_> = lock(shard).drain().map(|(_, session)| session).collect();
            for session in sessions {
                session.end(TerminalCondition::SystemShutdown);
            }
        }
        self.timer.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// Whether a client may have this as the Content-Type of its answers: it goes into a header as it is.
fn is_media_type(content: &str) -> bool {
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    let essence = content.split(';').next().unwrap_or("").trim_end();
    content.len() <= MAX_CONTENT
        && content.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        && essence.split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype))
}

/// Yields the sessions that devices bind on a [`ConnectionManager`].
#[derive(Debug)]
pub struct BoshListener {
    incoming: mpsc::Receiver<Incoming>,
}

#[async_trait]
impl Listener for BoshListener {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }
}
