//! A relay on loopback, a client that shows every byte, and devices on the in-memory transport.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use relay_core::{
    Response,
    auth::Secret,
    envelope::Envelope,
    ids::{DeviceId, RequestId},
    memory::{self, MemoryConnector},
    transport::{CloseReason, ConnectOptions, Connector, EndReason, Full, Inbound, Session, Started},
};
use serde_json::Value;
use server_sdk::relay::{Server, ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// The longest that anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn device_id(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

/// A relay that runs.
pub struct Rig {
    pub address: SocketAddr,
    pub admin: String,
    pub relay: relay_core::Relay,
    pub auth: server_sdk::relay::auth::Auth,
    connector: MemoryConnector,
    stop: Option<oneshot::Sender<()>>,
    pub run: Option<JoinHandle<()>>,
}

impl Rig {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(set: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = ServerConfig::default();
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.drain_grace = Duration::from_secs(2);
        set(&mut config);
        Self::of(Server::in_memory(config).await.unwrap())
    }

    pub fn of(server: Server) -> Self {
        let (relay, auth) = (server.relay().clone(), server.auth().clone());
        let (connector, listener) = memory::transport(Arc::new(auth.clone()));
        let serving = relay.clone();
        tokio::spawn(async move { serving.serve(Box::new(listener)).await });
        let address = server.addresses()[0];
        let admin = match (server.administrator_key(), server.administrator_key_file()) {
            (Some(key), _) => key.expose().to_owned(),
            (None, Some(file)) => std::fs::read_to_string(file).unwrap().trim().to_owned(),
            (None, None) => String::new(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let run = tokio::spawn(server.run(async move { drop(stopped.await) }));
        Self { address, admin, relay, auth, connector, stop: Some(stop), run: Some(run) }
    }

    /// Tells the relay to stop.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has.
    pub async fn stopped(&mut self) {
        let run = self.run.take().unwrap();
        timeout(PATIENCE, run).await.expect("the relay stops").unwrap();
    }

    pub async fn wire(&self) -> Wire {
        Wire::connect(self.address).await
    }

    /// One call on a connection of its own.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        token: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Got {
        let mut wire = self.wire().await;
        wire.send(&head(method, path, token, fields, Some(body.len()))).await;
        wire.send(body).await;
        wire.read().await.expect("an answer")
    }

    pub async fn get(&self, path: &str, token: &str) -> Got {
        self.call("GET", path, token, &[], b"").await
    }

    pub async fn post_json(&self, path: &str, token: &str, json: &str) -> Got {
        self.call("POST", path, token, &[("content-type", "application/json")], json.as_bytes()).await
    }

    pub async fn put_json(&self, path: &str, token: &str, json: &str) -> Got {
        self.call("PUT", path, token, &[("content-type", "application/json")], json.as_bytes()).await
    }

    /// A key with these scopes.
    pub async fn key(&self, scopes: &[&str]) -> String {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        self.auth.new_key(scopes).await.unwrap().1.expose().to_owned()
    }

    /// Makes a device known and gives its token.
    pub async fn enrol(&self, id: &str) -> String {
        let pin = self.post_json(&format!("/v1/devices/{id}/pin"), &self.admin, "").await;
        assert_eq!(pin.status, 201, "{pin:?}");
        let pin = pin.json()["pin"].as_str().unwrap().to_owned();
        let enrolled =
            self.post_json("/v1/enroll", "", &format!(r#"{{"device_id":"{id}","pin":"{pin}"}}"#)).await;
        assert_eq!(enrolled.status, 201, "{enrolled:?}");
        enrolled.json()["token"].as_str().unwrap().to_owned()
    }

    /// Connects a device that is enrolled.
    pub async fn connect(&self, id: &str, token: &str) -> Device {
        let device = Device::connect(&self.connector, id, token).await;
        eventually(|| {
            self.relay.presence(&device.id).is_some_and(|p| p.state == relay_core::relay::State::Online)
        })
        .await;
        device
    }

    /// Enrols and connects.
    pub async fn device(&self, id: &str) -> Device {
        let token = self.enrol(id).await;
        self.connect(id, &token).await
    }
}

/// Waits for a condition.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the condition comes to hold");
}

/// A device on the in-memory transport.
pub struct Device {
    pub id: DeviceId,
    pub token: String,
    pub session: Session,
    inbox: mpsc::Receiver<Envelope>,
    inbound: Arc<Heard>,
}

impl Device {
    /// Connects by a transport of the test's own.
    pub async fn connect(connector: &dyn Connector, id: &str, token: &str) -> Self {
        let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
        let options = ConnectOptions::new(device_id(id), Secret::new(token), deadline);
        let mut session = connector.connect(options).await.unwrap();
        let (heard, inbox) = mpsc::channel(256);
        let inbound = Arc::new(Heard { heard: Mutex::new(Some(heard)), end: Mutex::new(None) });
        session.push.start(Started::new(session.id.clone(), session.resumed, inbound.clone()));
        Self { id: device_id(id), token: token.to_owned(), session, inbox, inbound }
    }

    /// The next request.
    pub async fn request(&mut self) -> (RequestId, Arc<relay_core::Request>) {
        loop {
            match self.envelope().await {
                Envelope::Request { id, request, .. } => return (id, request),
                _ => continue,
            }
        }
    }

    /// The next envelope.
    pub async fn envelope(&mut self) -> Envelope {
        timeout(PATIENCE, self.inbox.recv()).await.expect("an envelope in time").expect("the session lives")
    }

    /// How the session ends.
    pub async fn end(&mut self) -> EndReason {
        timeout(PATIENCE, async { while self.inbox.recv().await.is_some() {} })
            .await
            .expect("the session ends");
        self.inbound.end.lock().unwrap().expect("a reason")
    }

    /// Sends on the session.
    pub async fn push(&mut self, envelope: Envelope) {
        self.session.push.push(&mut std::collections::VecDeque::from([envelope])).await.unwrap();
    }

    /// Answers in the session.
    pub async fn answer(&mut self, id: RequestId, response: Response) {
        self.push(Envelope::Response { id, response, acknowledge: false }).await;
    }

    /// Goes offline.
    pub async fn close(mut self) {
        self.session.push.close(CloseReason::Shutdown).await;
    }
}

#[derive(Debug)]
struct Heard {
    heard: Mutex<Option<mpsc::Sender<Envelope>>>,
    end: Mutex<Option<EndReason>>,
}

impl Inbound for Heard {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        let heard = self.heard.lock().unwrap();
        match heard.as_ref().map(|heard| heard.try_send(envelope)) {
            Some(Err(mpsc::error::TrySendError::Full(envelope))) => Err(Full(envelope)),
            _ => Ok(()),
        }
    }
    fn resume(&self, _: &relay_core::ids::SessionId) -> bool {
        false
    }
    fn ended(&self, reason: EndReason) {
        *self.end.lock().unwrap() = Some(reason);
        self.heard.lock().unwrap().take();
    }
}

/// A request's head.
pub fn head(
    method: &str,
    path: &str,
    token: &str,
    fields: &[(&str, &str)],
    length: Option<usize>,
) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: relay\r\n");
    if !token.is_empty() {
        head += &format!("authorization: Bearer {token}\r\n");
    }
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = length {
        head += &format!("content-length: {length}\r\n");
    }
    (head + "\r\n").into_bytes()
}

/// A connection on which every byte is ours.
pub struct Wire {
    pub stream: TcpStream,
    pub read: Vec<u8>,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), read: Vec::new() }
    }

    /// Writes; a peer that no longer reads is no error here.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Reads one answer; `None` if the connection closed before its first byte.
    pub async fn read(&mut self) -> Option<Got> {
        timeout(PATIENCE, self.read_now()).await.expect("an answer in time")
    }

    async fn read_now(&mut self) -> Option<Got> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                assert!(self.read.is_empty(), "half a head: {:?}", String::from_utf8_lossy(&self.read));
                return None;
            }
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap();
        let status: u16 = status.split(' ').nth(1).unwrap().parse().unwrap();
        let fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut got = Got { status, fields, body: Vec::new() };
        let length = match got.field("content-length") {
            Some(length) => length.parse().unwrap(),
            None if status < 200 || matches!(status, 204 | 304) => 0,
            None => {
                while self.more().await {}
                self.read.len()
            }
        };
        while self.read.len() < length {
            assert!(self.more().await, "the body broke off");
        }
        got.body = self.read.drain(..length).collect();
        Some(got)
    }

    pub async fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer).await {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.read.extend_from_slice(&buffer[..read]);
                true
            }
        }
    }

    /// Everything until the relay closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        timeout(PATIENCE, async { while self.more().await {} }).await.expect("the connection is closed");
        std::mem::take(&mut self.read)
    }

    /// Waits until the relay has closed the connection.
    pub async fn closed(&mut self) {
        timeout(PATIENCE, async { while self.more().await {} }).await.expect("the connection is closed");
        assert!(self.read.is_empty(), "unexpected: {:?}", String::from_utf8_lossy(&self.read));
    }

    /// Whether the connection is still open and silent after `time`.
    pub async fn is_open_after(&mut self, time: Duration) -> bool {
        timeout(time, self.more()).await.is_err()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Got {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Got {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub fn outcome(&self) -> &str {
        self.field("relay-outcome").unwrap_or("none")
    }

    /// The code of a problem; checks that it is one, whole.
    pub fn code(&self) -> String {
        assert_eq!(self.field("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{self:?}");
        assert!(json["title"].is_string() && !json["detail"].as_str().unwrap().is_empty(), "{self:?}");
        json["type"].as_str().unwrap().strip_prefix("urn:relay:error:").expect("our type").to_owned()
    }

    /// Status and code at once.
    #[track_caller]
    pub fn expect(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{self:?}");
        self
    }
}
