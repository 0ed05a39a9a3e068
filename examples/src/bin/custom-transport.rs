//! A transport of one's own, in one file: the session is a TCP connection, each line of it one element.
//!
//! ```text
//! device ─▶ relay   HELLO <device> <token> [<session to go on with>]
//! relay  ─▶ device  OK <session> <new|resumed>      or   NO <word> [<seconds>]
//! both              one element of the session vocabulary a line, until   BYE <word> [<seconds>]
//! ```
//!
//! Everything it needs is in `relay-core`, and nothing in the relay or the device knows that it exists.
//! `tests/custom_transport.rs` puts it to the conformance kit; run this program to see a relay, a device and a service
//! talk over it:
//!
//! ```sh
//! cargo run --bin custom-transport
//! ```
//!
//! It is an example: the line is not encrypted, so it belongs on a loopback address or inside a tunnel.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use relay_core::{
    auth::{Authenticator, Credentials, Principal, Secret},
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, SessionId},
    random,
    transport::{
        CloseReason, ConnectOptions, Connector, EndReason, Full, Inbound, Incoming, Knock, Listener,
        PeerInfo, Push, Queue, Session, Started, TransportInfo,
    },
    xml::{
        Element, Limits,
        vocabulary::{self, Decoded},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::timeout,
};

/// What this transport says of itself. It confirms nothing, and a broken connection ends the session: the engine then
/// keeps the device online for its resume window, and a new connection goes on with it.
const INFO: TransportInfo = TransportInfo::new("line");
/// The longest line: an element with the largest body, in base64.
const MAX_LINE: usize = 256 * 1024;
/// Lines on their way to the socket.
const LINES: usize = 8;
const HANDSHAKE: Duration = Duration::from_secs(15);
const FAREWELL: Duration = Duration::from_secs(2);

fn error(kind: ErrorKind, words: impl Into<String>) -> TransportError {
    TransportError::new(INFO.name, kind, words)
}

fn broken(io: std::io::Error) -> TransportError {
    error(ErrorKind::Interrupted, "the connection broke").with_source(io)
}

/// The system's buffers are part of what may wait for a peer that reads nothing: left alone, they grow to megabytes.
pub(crate) fn socket(towards: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if towards.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_send_buffer_size(64 * 1024)?;
    socket.set_recv_buffer_size(64 * 1024)?;
    Ok(socket)
}

// ---- the side that dials ---------------------------------------------------------------------------------------

/// Dials a relay that listens with [`LineListener`].
#[derive(Debug)]
pub(crate) struct LineConnector {
    relay: SocketAddr,
}

impl LineConnector {
    /// To the relay at `relay`.
    pub(crate) fn new(relay: SocketAddr) -> Self {
        Self { relay }
    }

    async fn greet(&self, options: &ConnectOptions) -> Result<Session, TransportError> {
        let unreachable = |io| error(ErrorKind::Unreachable, "cannot connect").with_source(io);
        let stream =
            socket(self.relay).map_err(unreachable)?.connect(self.relay).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(broken)?;
        let (read, mut write) = stream.into_split();
        let mut lines = Lines::new(read);
        let resume = options.resume.as_ref().map_or("", SessionId::as_str);
        let hello = format!("HELLO {} {} {resume}\n", options.device, options.token.expose());
        write.write_all(hello.as_bytes()).await.map_err(broken)?;

        let answer = lines.next().await?.ok_or_else(|| error(ErrorKind::Interrupted, "hung up on"))?;
        let mut words = answer.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("OK"), Some(id), Some(how)) => {
                let invalid = |_| error(ErrorKind::PeerMisbehaved, "the session's ID is none");
                let id = SessionId::new(id).map_err(invalid)?;
                let push = Line::new(lines, write, options.device.clone(), None);
                let session = Session::new(options.device.clone(), id, INFO, Box::new(push));
                Ok(session.with_resumed(how == "resumed"))
            }
            (Some("NO"), Some("unauthenticated"), _) => {
                Err(error(ErrorKind::Unauthenticated, "the token was not accepted"))
            }
            (Some("NO"), Some(word), seconds) => {
                let refused = error(ErrorKind::Overloaded, format!("refused: {word}"));
                Err(seconds.and_then(seconds_of).map_or(refused, |after| {
                    error(ErrorKind::Overloaded, format!("refused: {word}")).with_retry_after(after)
                }))
            }
            _ => Err(error(ErrorKind::PeerMisbehaved, "neither OK nor NO")),
        }
    }
}

#[async_trait]
impl Connector for LineConnector {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let late = |_| error(ErrorKind::TimedOut, "not let in before the deadline");
        tokio::time::timeout_at(options.deadline.into(), self.greet(&options)).await.map_err(late)?
    }
}

// ---- the side that listens -------------------------------------------------------------------------------------

/// Lets devices in on a TCP port.
#[derive(Debug)]
pub(crate) struct LineListener {
    listener: TcpListener,
    authenticator: Arc<dyn Authenticator>,
}

impl LineListener {
    /// Listens at `address`; port 0 takes a free one.
    pub(crate) fn bind(address: SocketAddr, authenticator: Arc<dyn Authenticator>) -> std::io::Result<Self> {
        let socket = socket(address)?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { listener: socket.listen(1024)?, authenticator })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[async_trait]
impl Listener for LineListener {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn accept(&mut self) -> Option<Incoming> {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let handshake = let_in(stream, Arc::clone(&self.authenticator));
                    let handshake = Box::pin(async move {
                        let late = |_| error(ErrorKind::TimedOut, "no HELLO in time");
                        timeout(HANDSHAKE, handshake).await.map_err(late)?
                    });
                    return Some(Incoming::Session(Knock { peer: PeerInfo::at(peer.ip()), handshake }));
                }
                // Out of descriptors, or a peer that was gone at once: others may fare better.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

async fn let_in(stream: TcpStream, authenticator: Arc<dyn Authenticator>) -> Result<Session, TransportError> {
    stream.set_nodelay(true).map_err(broken)?;
    let (read, mut write) = stream.into_split();
    let mut lines = Lines::new(read);
    let hello = lines.next().await?.unwrap_or_default();
    let mut words = hello.split(' ');
    let (Some("HELLO"), Some(name), Some(token)) = (words.next(), words.next(), words.next()) else {
        return Err(error(ErrorKind::PeerMisbehaved, "no HELLO"));
    };
    let resume = words.next().and_then(|id| SessionId::new(id).ok());
    if let Ok(device) = DeviceId::new(name) {
        let credentials = Credentials::Device { device, token: Secret::new(token) };
        if let Ok(Principal::Device(device)) = authenticator.authenticate(&credentials).await {
            let none = |_| error(ErrorKind::Internal, "a random session ID is one");
            let id = SessionId::new(&random::base32::<20>()).map_err(none)?;
            let push = Line::new(lines, write, device.clone(), Some(Greeting));
            return Ok(Session::new(device, id, INFO, Box::new(push)).resuming(resume));
        }
    }
    write.write_all(b"NO unauthenticated\n").await.map_err(broken)?;
    Err(error(ErrorKind::Unauthenticated, "credentials were not accepted"))
}

// ---- one end of a session, the same on both sides --------------------------------------------------------------

/// The relay's end still owes its peer an answer to HELLO.
#[derive(Debug)]
struct Greeting;

#[derive(Debug)]
struct Line {
    device: DeviceId,
    /// To the task that writes; dropped, it shuts the connection.
    out: mpsc::Sender<String>,
    /// Until `start`.
    lines: Option<Lines>,
    greeting: Option<Greeting>,
    /// Whether the session is over, whoever ended it.
    over: Arc<watch::Sender<bool>>,
}

impl Line {
    fn new(lines: Lines, write: OwnedWriteHalf, device: DeviceId, greeting: Option<Greeting>) -> Self {
        let (out, queue) = mpsc::channel(LINES);
        tokio::spawn(write_lines(queue, write));
        Self { device, out, lines: Some(lines), greeting, over: Arc::new(watch::Sender::new(false)) }
    }
}

#[async_trait]
impl Push for Line {
    fn start(&mut self, started: Started) {
        if self.greeting.take().is_some() {
            let how = if started.resumed { "resumed" } else { "new" };
            // Nothing else is in the queue yet, so there is room.
            let _ = self.out.try_send(format!("OK {} {how}\n", started.session.as_str()));
        }
        if let Some(lines) = self.lines.take() {
            let (device, over, inbound) = (self.device.clone(), Arc::clone(&self.over), started.inbound);
            tokio::spawn(async move {
                inbound.attached();
                let reason = read_lines(lines, &device, &over, &*inbound).await;
                over.send_replace(true);
                inbound.ended(reason);
            });
        }
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        if queue.next_cost().is_none() {
            return Ok(());
        }
        // Wait for room first; take only then. Dropped while it waits, nothing was taken.
        let closed = || error(ErrorKind::Closed, "the session is over");
        let mut over = self.over.subscribe();
        let room = tokio::select! {
            biased;
            _ = over.wait_for(|over| *over) => return Err(closed()),
            room = self.out.reserve() => room.map_err(|_| closed())?,
        };
        if let Some(envelope) = queue.take() {
            let now = tokio::time::Instant::now().into_std();
            match vocabulary::encode(&envelope, &self.device, now) {
                Ok(element) => room.send(line_of(&element)),
                Err(invalid) => {
                    return Err(error(ErrorKind::TooLarge, "not for this session").with_source(invalid));
                }
            }
        }
        Ok(())
    }

    // There is one connection, and a dead one is a session that ends: nothing to do it over.
    fn refresh(&mut self) {}

    async fn close(&mut self, reason: CloseReason) {
        let farewell = match (self.greeting.take(), reason) {
            (Some(_), CloseReason::Revoked) => "NO unauthenticated\n".to_owned(),
            (Some(_), CloseReason::Overloaded { retry_after } | CloseReason::Drain { retry_after, .. }) => {
                format!("NO overloaded {}\n", retry_after.as_secs())
            }
            (Some(_), _) => "NO session\n".to_owned(),
            (None, CloseReason::Drain { retry_after, .. }) => {
                format!("BYE drain {}\n", retry_after.as_secs())
            }
            (None, CloseReason::Overloaded { retry_after }) => {
                format!("BYE overloaded {}\n", retry_after.as_secs())
            }
            (None, CloseReason::Replaced) => "BYE replaced\n".to_owned(),
            (None, CloseReason::Revoked) => "BYE revoked\n".to_owned(),
            (None, CloseReason::Misbehaved) => "BYE misbehaved\n".to_owned(),
            (None, _) => "BYE\n".to_owned(),
        };
        // A peer that reads nothing does not learn why.
        let _ = self.out.send_timeout(farewell, FAREWELL).await;
        self.over.send_replace(true);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.out.try_send("BYE\n".to_owned());
        self.over.send_replace(true);
    }
}

/// One line of an element. A line break in a text becomes a character reference, which means the same.
fn line_of(element: &Element) -> String {
    let mut line = element.to_document().replace('\n', "&#10;");
    line.push('\n');
    line
}

async fn write_lines(mut queue: mpsc::Receiver<String>, mut write: OwnedWriteHalf) {
    while let Some(line) = queue.recv().await {
        let last = line.starts_with("BYE") || line.starts_with("NO ");
        if write.write_all(line.as_bytes()).await.is_err() || last {
            break;
        }
    }
    let _ = write.shutdown().await;
}

async fn read_lines(
    mut lines: Lines,
    device: &DeviceId,
    over: &watch::Sender<bool>,
    inbound: &dyn Inbound,
) -> EndReason {
    let mut over = over.subscribe();
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = over.wait_for(|over| *over) => return EndReason::Closed,
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return EndReason::Lost,
            Err(error) if error.kind == ErrorKind::Interrupted => return EndReason::Lost,
            Err(_) => return EndReason::Misbehaved,
        };
        inbound.alive();
        if let Some(farewell) = line.strip_prefix("BYE") {
            return reason_of(farewell.trim());
        }
        let now = tokio::time::Instant::now().into_std();
        let element = Element::parse(line.as_bytes(), &Limits::default());
        let mut envelope =
            match element.ok().and_then(|element| vocabulary::decode(&element, device, now).ok()) {
                Some(Decoded::Envelope(envelope)) => envelope,
                // A later version's word: not ours to end a session over.
                Some(_) => continue,
                None => return EndReason::Misbehaved,
            };
        // Reading on only when there was room is what slows the peer down.
        while let Err(Full(back)) = inbound.envelope(envelope) {
            envelope = back;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
                _ = over.wait_for(|over| *over) => return EndReason::Closed,
            }
        }
    }
}

fn reason_of(farewell: &str) -> EndReason {
    let (word, seconds) = farewell.split_once(' ').unwrap_or((farewell, ""));
    match word {
        "drain" => EndReason::Drain { retry_after: seconds_of(seconds) },
        "overloaded" => EndReason::Overloaded { retry_after: seconds_of(seconds) },
        "replaced" => EndReason::Replaced,
        "revoked" => EndReason::Revoked,
        "misbehaved" => EndReason::Misbehaved,
        _ => EndReason::Goodbye,
    }
}

fn seconds_of(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_secs)
}

/// Lines of bounded length.
#[derive(Debug)]
struct Lines {
    read: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    fn new(read: OwnedReadHalf) -> Self {
        Self { read: BufReader::with_capacity(4096, read), line: Vec::new() }
    }

    /// The next line, without its end; `None` after the last. Dropped half-way, the half is kept.
    async fn next(&mut self) -> Result<Option<String>, TransportError> {
        let room = (MAX_LINE + 1).saturating_sub(self.line.len()) as u64;
        (&mut self.read).take(room).read_until(b'\n', &mut self.line).await.map_err(broken)?;
        if self.line.pop_if(|last| *last == b'\n').is_none() {
            let whole = self.line.len() > MAX_LINE;
            return if whole { Err(error(ErrorKind::TooLarge, "the line is too long")) } else { Ok(None) };
        }
        let line = String::from_utf8(std::mem::take(&mut self.line));
        line.map(Some).map_err(|invalid| error(ErrorKind::PeerMisbehaved, "not UTF-8").with_source(invalid))
    }
}

// ---- a relay, a device and a service that talk over it ---------------------------------------------------------

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    use demo::{Ears, OneDevice};
    use relay_core::{Call, Relay, Request, Response, ids::ObjectId, relay::State};

    let (name, token) = (DeviceId::new("printer-1")?, Secret::random());
    let relay = Relay::default();
    let door = OneDevice { device: name.clone(), token: token.clone() };
    let listener = LineListener::bind("127.0.0.1:0".parse()?, Arc::new(door))?;
    let address = listener.address()?;
    println!("relay: listening for lines on {address}");
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(Box::new(listener)).await });

    // The device: answers every request with the level of its toner.
    let deadline = (tokio::time::Instant::now() + Duration::from_secs(5)).into_std();
    let options = ConnectOptions::new(name.clone(), token, deadline);
    let Session { id, mut push, .. } = LineConnector::new(address).connect(options).await?;
    let (heard, mut hears) = mpsc::channel(8);
    push.start(Started::new(id, false, Arc::new(Ears { heard })));
    println!("device: {name} is connected");
    tokio::spawn(async move {
        while let Some(envelope) = hears.recv().await {
            let Envelope::Request { id, request, .. } = envelope else { continue };
            println!("device: asked to {} {}", request.method, request.objects[0]);
            let response = Response::with_body(relay_core::Body::text("73"));
            let answer = Envelope::Response { id, response, acknowledge: false };
            if push.push(&mut VecDeque::from([answer])).await.is_err() {
                break;
            }
        }
    });

    // The service: one call.
    while relay.presence(&name).is_none_or(|presence| presence.state != State::Online) {
        tokio::task::yield_now().await;
    }
    let answer = relay.request(Call::new(Request::get(name, ObjectId::new("toner")?))).await?;
    let level = answer.response.body.map(|body| String::from_utf8_lossy(&body.bytes).into_owned());
    println!("service: toner {} %, read over a transport that nobody else has", level.unwrap_or_default());
    relay.shutdown(Duration::ZERO, Duration::from_secs(1), None).await;
    Ok(())
}

/// What the program above needs beside the transport: a door for one device, and its ears.
mod demo {
    use relay_core::auth::{AuthError, ScramHash, ScramVerifier};

    use super::*;

    #[derive(Debug)]
    pub(super) struct OneDevice {
        pub(super) device: DeviceId,
        pub(super) token: Secret,
    }

    #[async_trait]
    impl Authenticator for OneDevice {
        async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
            match credentials {
                Credentials::Device { device, token } if *device == self.device && *token == self.token => {
                    Ok(Principal::Device(device.clone()))
                }
                _ => Err(AuthError::Rejected),
            }
        }

        async fn verifier(&self, _: &DeviceId, _: ScramHash) -> Result<ScramVerifier, AuthError> {
            Err(AuthError::Unavailable)
        }
    }

    #[derive(Debug)]
    pub(super) struct Ears {
        pub(super) heard: mpsc::Sender<Envelope>,
    }

    impl Inbound for Ears {
        fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
            self.heard.try_send(envelope).map_err(|error| Full(error.into_inner()))
        }
        fn ended(&self, reason: EndReason) {
            println!("device: the session ended ({reason:?})");
        }
    }
}
