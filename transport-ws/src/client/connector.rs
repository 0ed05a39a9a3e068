//! [`Connector`] over WebSocket.

use std::{
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use http::{StatusCode, Uri};
use relay_core::{
    auth::Secret,
    error::{ErrorKind, TransportError},
    ids::SessionId,
    random,
    tls::Trust,
    transport::{
        ChannelOptions, CloseReason, ConnectOptions, Connector, DeviceChannel, Session, Started,
        TransportInfo,
    },
};
use rustls::pki_types::ServerName;
use tokio::{io::AsyncWriteExt, runtime::Handle};
use tokio_rustls::TlsConnector;

use super::{
    answer::{self, Answer, NoWebSocket},
    dial::{Dial, Direct, Target},
};
use crate::{
    NAME,
    config::{ChannelConfig, ControlConfig},
    proto::control::{End, Machine},
    server::INFO,
    session::{self, Beginning, Nobody, Shared, WsPush},
    stream::BoxStream,
    wire::handshake::{CONTROL, RELAY_SESSION, VERSION, read_answer},
};

/// How to reach a relay by WebSocket.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WsSettings {
    /// Where it is: `wss://relay.example/ws` (or `https:`, which is the same).
    pub url: String,
    /// Whether a `ws:` address other than this machine is allowed (no). The token and everything else are then readable on
    /// the way.
    pub allow_plaintext: bool,
    /// Whom to trust (the system).
    pub trust: Trust,
    /// How the connection is made ([`Direct`]).
    pub dial: Arc<dyn Dial>,
    /// How long dialling, TLS and the opening handshake may take together (20 s).
    pub handshake: Duration,
    /// Bounds and times of the session.
    pub control: ControlConfig,
    /// Bounds and times of each channel.
    pub channel: ChannelConfig,
}

impl WsSettings {
    /// The defaults, for the relay at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            allow_plaintext: false,
            trust: Trust::default(),
            dial: Arc::new(Direct),
            handshake: Duration::from_secs(20),
            control: ControlConfig::device(),
            channel: ChannelConfig::device(),
        }
    }
}

/// Dials a relay by WebSocket.
#[derive(Clone)]
pub struct WsConnector {
    dial: Arc<dyn Dial>,
    tls: Option<TlsConnector>,
    pub(super) target: Target,
    host: Box<str>,
    pub(super) path: Box<str>,
    handshake: Duration,
    control: ControlConfig,
    pub(super) channel: ChannelConfig,
    /// Of all clones.
    live: Arc<Mutex<Live>>,
    /// RFC 6455 §4.1: to one host one handshake at a time. A control session waits for no channel's.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
}

/// What can change while a session lives.
struct Live {
    keepalive: Option<Duration>,
    /// The session that was opened last.
    session: Weak<Shared>,
}

impl fmt::Debug for WsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsConnector")
            .field("target", &self.target)
            .field("dial", &self.dial)
            .finish_non_exhaustive()
    }
}

impl WsConnector {
    /// A connector to the relay whose WebSocket endpoint is at `url` (`wss://relay.example/ws`).
    ///
    /// # Errors
    /// As [`with_settings`](Self::with_settings).
    pub fn new(url: &str) -> Result<Self, TransportError> {
        Self::with_settings(WsSettings::new(url))
    }

    /// The same, with everything said expressly.
    ///
    /// # Errors
    /// `Unsupported` if the address is none, or in clear to another machine without being allowed; `Internal` if the
    /// trusted certificates cannot be read.
    pub fn with_settings(settings: WsSettings) -> Result<Self, TransportError> {
        let unsupported = |words: &str| TransportError::new(NAME, ErrorKind::Unsupported, words);
        if settings.url.contains('#') {
            return Err(unsupported("the relay's address has a fragment"));
        }
        let uri: Uri = settings.url.parse().map_err(|error: http::uri::InvalidUri| {
            unsupported("the relay's address is no URL").with_source(error)
        })?;
        let secure = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            _ => return Err(unsupported("the relay's address is neither wss nor ws")),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let Some(authority) = authority else {
            return Err(unsupported("the relay's address needs a host and takes no credentials"));
        };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        if name.is_empty() {
            return Err(unsupported("the relay's address needs a host and takes no credentials"));
        }
        if !secure && !settings.allow_plaintext && !is_this_machine(name) {
            return Err(unsupported(
                "a WebSocket in clear to another machine is refused: use wss, or allow plaintext expressly",
            ));
        }
        let internal = |error: rustls::Error| {
            TransportError::new(NAME, ErrorKind::Internal, "TLS cannot be set up").with_source(error)
        };
        let connector = |config| TlsConnector::from(Arc::new(config));
        let tls =
            secure.then(|| settings.trust.client_config().map(connector).map_err(internal)).transpose()?;
        let default_port = if secure { 443 } else { 80 };
        let target = Target::new(name, authority.port_u16().unwrap_or(default_port), secure);
        let host = host_field(&target);
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).into();
        let WsSettings { dial, handshake, control, channel, .. } = settings;
        let turn = Arc::default();
        let live = Arc::new(Mutex::new(Live { keepalive: control.keepalive, session: Weak::new() }));
        Ok(Self { dial, tls, target, host, path, handshake, control, channel, live, turn })
    }

    /// Changes [`ControlConfig::keepalive`], for the session that was opened last and those to come.
    pub fn set_keepalive(&self, keepalive: Option<Duration>) {
        let session = {
            let mut live = self.live();
            live.keepalive = keepalive;
            live.session.upgrade()
        };
        if let Some(session) = session {
            session.set_keepalive(keepalive);
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dials, opens a WebSocket as `opening` says, and gives the answer, whose status is 101, with what came after it.
    pub(super) async fn open(
        &self,
        opening: &Opening<'_>,
    ) -> Result<(BoxStream, Answer, String), TransportError> {
        let unreachable = |words: &str, error: io::Error| {
            TransportError::new(NAME, ErrorKind::Unreachable, words).with_source(error)
        };
        let stream = self
            .dial
            .dial(opening.target)
            .await
            .map_err(|error| unreachable("the relay cannot be reached", error))?;
        let mut stream: BoxStream = match &self.tls {
            None => stream,
            Some(tls) => {
                let name = ServerName::try_from(opening.target.host.to_string()).map_err(|error| {
                    TransportError::new(NAME, ErrorKind::Unsupported, "the relay's name is none of TLS")
                        .with_source(error)
                })?;
                let secure = tls.connect(name, stream).await;
                Box::pin(secure.map_err(|error| unreachable("no TLS with the relay", error))?)
            }
        };
        let mut key = [0; 16];
        random::fill(&mut key);
        let key = BASE64.encode(key);
        let request = opening.request(&key)?;
        let sent = async {
            stream.write_all(&request).await?;
            stream.flush().await
        };
        sent.await.map_err(NoWebSocket::from)?;
        let answer = answer::read(&mut stream).await?;
        if answer.head.status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(answer::refusal(answer, &mut stream).await);
        }
        Ok((stream, answer, key))
    }

    async fn session(
        &self,
        options: &ConnectOptions,
    ) -> Result<(BoxStream, Vec<u8>, SessionId), TransportError> {
        let opening = Opening {
            target: &self.target,
            host: &self.host,
            path: &self.path,
            protocol: CONTROL,
            token: &options.token,
            session: options.resume.as_ref(),
        };
        let (stream, answer, key) = self.open(&opening).await?;
        let session = read_answer(&answer.head, &key).map_err(NoWebSocket::from)?;
        Ok((stream, answer.rest, session))
    }
}

/// What one WebSocket is opened with.
pub(super) struct Opening<'o> {
    pub(super) target: &'o Target,
    /// What stands in Host.
    pub(super) host: &'o str,
    /// Path and query.
    pub(super) path: &'o str,
    pub(super) protocol: &'o str,
    pub(super) token: &'o Secret,
    /// The session to go on with.
    pub(super) session: Option<&'o SessionId>,
}

impl Opening<'_> {
    /// The upgrade request. No Origin: this is no page of a browser.
    fn request(&self, key: &str) -> Result<Vec<u8>, TransportError> {
        let token = self.token.expose();
        // A token that could end the field would be another request.
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TransportError::new(
                NAME,
                ErrorKind::Unauthenticated,
                "the token is none that can be shown",
            ));
        }
        let Self { path, host, protocol, .. } = self;
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: {VERSION}\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n\
             Authorization: Bearer {token}\r\n"
        );
        if let Some(resume) = self.session {
            request.push_str(&format!("{RELAY_SESSION}: {}\r\n", resume.as_str()));
        }
        request.push_str("\r\n");
        Ok(request.into_bytes())
    }
}

#[async_trait]
impl Connector for WsConnector {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let deadline = options.deadline.min(session::now() + self.handshake);
        let opening = tokio::time::timeout_at(deadline.into(), self.session(&options));
        let (stream, early, id) = opening.await.unwrap_or_else(|_| {
            Err(TransportError::new(NAME, ErrorKind::TimedOut, "no session before the deadline"))
        })?;
        let resumed = options.resume.as_ref() == Some(&id);
        let end = End::Device(fresh_mask);
        let mut control = self.control.clone();
        let shared = {
            let mut live = self.live();
            control.keepalive = live.keepalive;
            let machine = Machine::new(end, options.device.clone(), control, session::now());
            let shared = Shared::new(machine, Arc::default());
            live.session = Arc::downgrade(&shared);
            shared
        };
        let connected = Connected { stream, early, runtime: Handle::current() };
        let push = WsPush::new(shared, Box::new(connected), self.control.close_within * 2);
        Ok(Session::new(options.device, id, INFO, Box::new(push)).with_resumed(resumed))
    }

    async fn channel(&self, options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        let deadline = options.deadline.min(session::now() + self.handshake);
        let opening = tokio::time::timeout_at(deadline.into(), self.open_channel(options));
        opening.await.unwrap_or_else(|_| {
            Err(TransportError::new(NAME, ErrorKind::TimedOut, "no channel before the deadline"))
        })
    }
}

/// A connection that nobody reads yet.
struct Connected {
    stream: BoxStream,
    early: Vec<u8>,
    runtime: Handle,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("early", &self.early.len()).finish_non_exhaustive()
    }
}

impl Beginning for Connected {
    fn started(self: Box<Self>, started: Started, shared: &Arc<Shared>) {
        let Self { stream, early, runtime } = *self;
        shared.run(stream, &early, started.inbound, &runtime);
    }

    /// The relay is told, which believes that the session lives.
    fn refused(self: Box<Self>, _: Option<CloseReason>, shared: &Arc<Shared>) {
        let Self { stream, early, runtime } = *self;
        shared.run(stream, &early, Arc::new(Nobody), &runtime);
    }
}

/// RFC 9110 §7.2: with the port only where it is not the scheme's.
pub(super) fn host_field(target: &Target) -> Box<str> {
    let text = target.to_string();
    let default = if target.secure { ":443" } else { ":80" };
    text.strip_suffix(default).unwrap_or(&text).into()
}

/// RFC 6455 §5.3: fresh for each frame, from a source that nobody can predict.
pub(super) fn fresh_mask() -> [u8; 4] {
    let mut mask = [0; 4];
    random::fill(&mut mask);
    mask
}

/// Whether `host` names this machine, whatever a resolver says.
fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
