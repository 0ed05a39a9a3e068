//! A connection manager, its owner, and a client that writes its messages by hand.
#![allow(dead_code, unreachable_pub, reason = "each test file includes this and uses a part of it")]

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use bytes::Bytes;
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    conformance::Owner,
    ids::DeviceId,
    transport::{Incoming, Listener, Session},
};
use transport_bosh::{BoshListener, BoshServerConfig, ConnectionManager, Post, Reply, server::Exchange};

pub const EMPTY: &str = "<body xmlns='http://jabber.org/protocol/httpbind'/>";
pub const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
/// The first RID of every client here.
pub const FIRST: u64 = 2_907_460_218_394_021;
/// The password of every device whose name begins with `dev`.
pub const TOKEN: &str = "s3cret-1";

pub fn terminated(condition: &str) -> String {
    format!("<body xmlns='http://jabber.org/protocol/httpbind' type='terminate' condition='{condition}'/>")
}

pub fn wrapped(payload: &str) -> String {
    format!("<body xmlns='http://jabber.org/protocol/httpbind'>{payload}</body>")
}

/// Knows the devices whose names begin with `dev`.
#[derive(Debug)]
pub struct Devices;

#[async_trait]
impl Authenticator for Devices {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        match credentials {
            Credentials::Device { device, token }
                if device.folded().starts_with("dev") && *token == Secret::new(TOKEN) =>
            {
                Ok(Principal::Device(device.clone()))
            }
            _ => Err(AuthError::Rejected),
        }
    }

    async fn verifier(&self, device: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
        let known = device.folded().starts_with("dev");
        let token = if known { Secret::new(TOKEN) } else { Secret::random() };
        Ok(ScramVerifier::derive(hash, &token, b"0123456789:;<=>?", 4096))
    }
}

pub struct Bench {
    pub manager: ConnectionManager,
    pub listener: BoshListener,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With the terms of the examples, changed by `change`.
    pub fn with(change: impl FnOnce(&mut BoshServerConfig)) -> Self {
        let mut config = BoshServerConfig::new("example.net");
        change(&mut config);
        Self::guarded_by(Arc::new(Devices), config)
    }

    pub fn guarded_by(authenticator: Arc<dyn Authenticator>, config: BoshServerConfig) -> Self {
        let (manager, listener) = ConnectionManager::new(config, authenticator);
        Self { manager, listener }
    }

    pub fn post_from(&self, peer: IpAddr, secure: bool, message: impl Into<String>) -> Exchange {
        self.manager.exchange(Post::new(Bytes::from(message.into()), peer, secure))
    }

    pub fn post(&self, message: impl Into<String>) -> Exchange {
        self.post_from(PEER, true, message)
    }

    pub async fn say(&self, message: impl Into<String>) -> String {
        text(self.post(message).await)
    }

    /// Says `message`, and polls until something comes back: a client that waits for nothing must.
    pub async fn ask(&self, client: &mut Client, message: String) -> String {
        let mut answer = self.say(message).await;
        while answer == EMPTY {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            answer = self.say(client.next("")).await;
        }
        answer
    }

    /// Creates a session; its client.
    pub async fn create(&self, attributes: &str) -> Client {
        let message = creation(attributes);
        let answer = self.say(message).await;
        let sid = answer.split_once(" sid='").expect("a SID").1.split_once('\'').expect("a SID").0;
        Client { sid: sid.to_owned(), rid: FIRST }
    }

    /// Creates a session and logs `device` in.
    pub async fn authenticate(&self, device: &str, attributes: &str) -> Client {
        let mut client = self.create(attributes).await;
        let plain = data_encoding::BASE64.encode(format!("\0{device}\0{TOKEN}").as_bytes());
        let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>");
        let message = client.next(&auth);
        let answer = self.ask(&mut client, message).await;
        assert!(answer.contains("<success"), "{answer}");
        let answer = self.say(client.next_with(RESTART, "")).await;
        assert!(answer.contains("<bind"), "{answer}");
        client
    }

    pub async fn accept(&mut self) -> Session {
        match self.listener.accept().await {
            Some(Incoming::Session(knock)) => knock.handshake.await.expect("a session"),
            other => panic!("{other:?}"),
        }
    }

    /// A bound session of `device`: its client and its owner.
    pub async fn bind(&mut self, device: &str, attributes: &str) -> (Client, Owner) {
        let mut client = self.authenticate(device, attributes).await;
        let binding = self.post(client.next(BIND));
        let owner = Owner::start(self.accept().await, None);
        let mut answer = text(binding.await);
        if answer == EMPTY {
            answer = self.say(client.next("")).await;
        }
        assert!(answer.contains("<jid>"), "{answer}");
        (client, owner)
    }
}

pub const TERMS: &str = "wait='50' hold='1' ver='1.11'";
pub const RESTART: &str = "to='example.net' xml:lang='en' xmpp:restart='true' xmlns:xmpp='urn:xmpp:xbosh'";
pub const BIND: &str = "<iq id='b1' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r1</resource></bind></iq>";

pub fn creation(attributes: &str) -> String {
    format!(
        "<body rid='{FIRST}' to='example.net' xml:lang='en' {attributes} xmpp:version='1.0' \
         xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh'/>"
    )
}

/// A client's numbers.
#[derive(Debug, Clone)]
pub struct Client {
    pub sid: String,
    pub rid: u64,
}

impl Client {
    /// The next request, with `payloads`.
    pub fn next(&mut self, payloads: &str) -> String {
        self.next_with("", payloads)
    }

    pub fn next_with(&mut self, attributes: &str, payloads: &str) -> String {
        self.rid += 1;
        self.message(self.rid, attributes, payloads)
    }

    pub fn message(&self, rid: u64, attributes: &str, payloads: &str) -> String {
        let blank = if attributes.is_empty() { "" } else { " " };
        let start = format!(
            "<body rid='{rid}' sid='{}'{blank}{attributes} xmlns='http://jabber.org/protocol/httpbind'",
            self.sid
        );
        if payloads.is_empty() { format!("{start}/>") } else { format!("{start}>{payloads}</body>") }
    }
}

pub fn text(reply: Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    String::from_utf8(reply.body.to_vec()).expect("UTF-8")
}

/// The answer, if it is there.
pub fn now(exchange: &mut Exchange) -> Option<Reply> {
    match Pin::new(exchange).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => Some(reply),
        Poll::Pending => None,
    }
}

pub fn assert_held(exchange: &mut Exchange) {
    if let Some(reply) = now(exchange) {
        panic!("it is not held, but answered {}", text(reply));
    }
}

/// The answer, which must be there.
pub fn at_once(exchange: &mut Exchange) -> String {
    text(now(exchange).expect("an answer at once"))
}
