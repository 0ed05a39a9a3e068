//! A host for the server end on loopback, with no HTTP but what an upgrade needs, and a dialler whose links can be cut.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod channel;
pub mod raw;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    conformance::Owner,
    ids::{DeviceId, KeyId},
    transport::{Incoming, Listener, Session},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use transport_ws::{
    Refusal, WsListener, WsManager, WsServerConfig, WsSettings,
    client::{Dial, Direct, Target},
    stream::BoxStream,
    wire::handshake::HeadError,
};

use self::raw::Raw;

/// The longest that anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Serves upgrades on a port of its own until dropped.
#[derive(Debug)]
pub struct Host {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Host {
    pub async fn start(manager: WsManager) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let manager = manager.clone();
                tokio::spawn(async move { serve(stream, peer, manager).await });
            }
        });
        Self { address, accepting }
    }
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, manager: WsManager) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut bytes = Vec::new();
    let (head, rest) = loop {
        let mut some = [0; 1024];
        let read = stream.read(&mut some).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&some[..read]);
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut fields);
        if let httparse::Status::Complete(size) = request.parse(&bytes).ok()? {
            let mut head = http::Request::builder().method(request.method?).uri(request.path?);
            head = head.version(if request.version == Some(1) {
                http::Version::HTTP_11
            } else {
                http::Version::HTTP_10
            });
            for field in request.headers.iter() {
                head = head.header(field.name, field.value);
            }
            let (head, ()) = head.body(()).ok()?.into_parts();
            break (head, bytes.split_off(size));
        }
    };
    // A client that goes away takes its request back.
    let mut probe = [0; 1];
    let upgraded = tokio::select! {
        upgraded = manager.upgrade(&head, peer.ip()) => upgraded,
        _ = stream.peek(&mut probe), if rest.is_empty() => return None,
    };
    match upgraded {
        Ok(accepted) => {
            let mut answer = String::from("HTTP/1.1 101 Switching Protocols\r\n");
            for (name, value) in accepted.fields() {
                answer.push_str(&format!("{name}: {value}\r\n"));
            }
            answer.push_str("\r\n");
            stream.write_all(answer.as_bytes()).await.ok()?;
            accepted.attach(stream, &rest);
        }
        Err(refusal) => {
            let (status, code) = match &refusal {
                Refusal::Head(HeadError::NoToken) | Refusal::Unauthenticated => (401, "unauthenticated"),
                Refusal::Head(HeadError::Version | HeadError::NoUpgrade) => (426, "upgrade-required"),
                Refusal::Head(_) => (400, "bad-request"),
                Refusal::Forbidden => (403, "forbidden"),
                Refusal::UnknownJob => (404, "unknown-request"),
                Refusal::TooMany { .. } => (429, "too-many-requests"),
                Refusal::Busy { .. } => (503, "overloaded"),
                _ => (503, "draining"),
            };
            let body = format!(r#"{{"type":"urn:relay:error:{code}","detail":"{refusal}"}}"#);
            let answer = format!(
                "HTTP/1.1 {status} No\r\ncontent-type: application/problem+json\r\nretry-after: 3\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.ok()?;
        }
    }
    Some(())
}

/// Cuts every link made so far.
#[derive(Debug)]
pub struct Cuts(watch::Sender<u64>);

impl Default for Cuts {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Cuts {
    pub fn cut(&self) {
        self.0.send_modify(|cuts| *cuts += 1);
    }
}

#[async_trait]
impl Dial for Cuts {
    /// Through a task that carries the bytes, so that a cut is a reset at both ends.
    async fn dial(&self, target: &Target) -> io::Result<BoxStream> {
        let mut cuts = self.0.subscribe();
        cuts.borrow_and_update();
        let relay = Direct.dial(target).await?;
        let (near, far) = tokio::io::duplex(16 * 1024);
        tokio::spawn(async move {
            let (mut far, mut relay) = (far, Unpinned(relay));
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut far, &mut relay) => {}
                _ = cuts.changed() => {}
            }
        });
        Ok(Box::pin(near))
    }
}

struct Unpinned(BoxStream);

impl AsyncRead for Unpinned {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Unpinned {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}

/// Settings of a device that dials `address` over links that `cuts` cuts.
pub fn settings(address: SocketAddr, cuts: Arc<Cuts>) -> WsSettings {
    let mut settings = WsSettings::new(format!("ws://{address}/ws"));
    settings.dial = cuts;
    settings
}

/// Lets in any device whose token is its name.
#[derive(Debug)]
pub struct ByName;

#[async_trait]
impl Authenticator for ByName {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        let Credentials::Bearer(token) = credentials else { return Err(AuthError::Rejected) };
        match token.expose() {
            "wrong" => Err(AuthError::Rejected),
            "down" => Err(AuthError::Unavailable),
            "service" => KeyId::new("key").map(Principal::Service).map_err(|_| AuthError::Rejected),
            name => DeviceId::new(name).map(Principal::Device).map_err(|_| AuthError::Rejected),
        }
    }

    async fn verifier(&self, _: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
        Ok(ScramVerifier::derive(hash, &Secret::new("x"), b"salt", 4096))
    }
}

/// A server end on loopback whose sessions are taken by [`Owner`]s.
pub struct Rig {
    pub host: Host,
    pub listener: WsListener,
}

impl Rig {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut WsServerConfig)) -> Self {
        let mut config = WsServerConfig::default();
        change(&mut config);
        let (manager, listener) = WsManager::new(config, Arc::new(ByName));
        Self { host: Host::start(manager).await, listener }
    }

    /// The next session that knocks, as it is before its owner took it.
    pub async fn knock(&mut self) -> Session {
        let knock = async {
            match self.listener.accept().await {
                Some(Incoming::Session(knock)) => knock.handshake.await.expect("it is let in"),
                other => panic!("no session: {other:?}"),
            }
        };
        tokio::time::timeout(PATIENCE, knock).await.expect("somebody knocks in time")
    }

    /// A raw device and the owner of its session at the relay.
    pub async fn pair(&mut self) -> (Raw, Owner) {
        self.pair_with(&[]).await
    }

    pub async fn pair_with(&mut self, changes: &[(&str, Option<&str>)]) -> (Raw, Owner) {
        let address = self.host.address;
        let ((raw, got), session) = tokio::join!(Raw::open(address, changes), async {
            let session = self.knock().await;
            Owner::start(session, None)
        });
        assert_eq!(got.status, 101, "{got:?}");
        (raw, session)
    }
}
