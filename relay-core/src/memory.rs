//! The in-memory transport: two ends in one process. The reference for what a transport does, and what tests and
//! doc-examples run on.
//!
//! Each direction of a session is a bounded channel; a task at each end hands on what arrives. A link can be cut
//! ([`MemoryConnector::cut`]), which both ends see as a lost connection.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    app::{Channel, ChannelReceiver, ChannelSender},
    auth::{Authenticator, Credentials, Principal},
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, SessionId},
    random,
    store::App,
    transport::{
        BoxFuture, ChannelKnock, ChannelOptions, CloseReason, ConnectOptions, Connector, DeviceChannel,
        EndReason, Full, Inbound, Incoming, Knock, Listener, PeerInfo, Push, Queue, RelayChannel, Session,
        Started, TransportInfo,
    },
};

/// Envelopes under way in one direction of a session.
const IN_TRANSIT: usize = 8;
/// Peers at the door.
const BACKLOG: usize = 128;
/// How long an end that was refused room waits before it offers the envelope again.
const OFFER_AGAIN: std::time::Duration = std::time::Duration::from_millis(5);

const INFO: TransportInfo = TransportInfo::new("memory").with_channels();

/// A transport of its own: the two ends find each other and nobody else. `authenticator` decides who is let in.
pub fn transport(authenticator: Arc<dyn Authenticator>) -> (MemoryConnector, MemoryListener) {
    let (door, knocks) = mpsc::channel(BACKLOG);
    (MemoryConnector { door, authenticator, links: Arc::default() }, MemoryListener { knocks })
}

/// The dialling end of [`transport`].
#[derive(Debug, Clone)]
pub struct MemoryConnector {
    door: mpsc::Sender<Incoming>,
    authenticator: Arc<dyn Authenticator>,
    links: Arc<Mutex<HashMap<DeviceId, watch::Sender<bool>>>>,
}

/// The listening end of [`transport`].
#[derive(Debug)]
pub struct MemoryListener {
    knocks: mpsc::Receiver<Incoming>,
}

impl MemoryConnector {
    /// What says that the newest connection of `device` was cut.
    fn link_of(&self, device: &DeviceId) -> watch::Receiver<bool> {
        let links = self.links.lock().unwrap_or_else(|e| e.into_inner());
        links.get(device).map_or_else(|| watch::Sender::new(false).subscribe(), watch::Sender::subscribe)
    }

    /// Breaks the newest connection of `device`, and the channels that were opened beside it: neither end can say
    /// goodbye.
    pub fn cut(&self, device: &DeviceId) {
        if let Some(link) = self.links.lock().unwrap_or_else(|e| e.into_inner()).remove(device) {
            link.send_replace(true);
        }
    }
}

fn error(kind: ErrorKind, words: &str) -> TransportError {
    TransportError::new(INFO.name, kind, words)
}

#[async_trait]
impl Connector for MemoryConnector {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let ConnectOptions { device, token, resume, deadline } = options;
        let proposed = SessionId::new(&random::base32::<20>()).map_err(|invalid| {
            error(ErrorKind::Internal, "a random session ID is one").with_source(invalid)
        })?;
        let (to_relay, at_relay) = mpsc::channel(IN_TRANSIT);
        let (to_device, at_device) = mpsc::channel(IN_TRANSIT);
        let (accepted, acceptance) = oneshot::channel();
        let link = watch::Sender::new(false);
        let relay_end = End::new(to_device, at_relay, link.subscribe(), Some(accepted));
        let device_end = End::new(to_relay, at_device, link.subscribe(), None);

        let authenticator = Arc::clone(&self.authenticator);
        let (name, asked_for) = (device.clone(), resume.clone());
        let handshake = Box::pin(async move {
            let credentials = Credentials::Device { device: name.clone(), token };
            match authenticator.authenticate(&credentials).await {
                Ok(Principal::Device(device)) if device == name => {
                    Ok(Session::new(device, proposed, INFO, Box::new(relay_end)).resuming(asked_for))
                }
                _ => {
                    let mut end = relay_end;
                    end.refuse(ErrorKind::Unauthenticated);
                    Err(error(ErrorKind::Unauthenticated, "credentials were not accepted"))
                }
            }
        });
        let connecting = async {
            let unreachable = || error(ErrorKind::Unreachable, "nobody listens");
            self.door
                .send(Incoming::Session(Knock { peer: PeerInfo::default(), handshake }))
                .await
                .map_err(|_| unreachable())?;
            acceptance.await.unwrap_or(Err(ErrorKind::Unreachable)).map_err(|kind| error(kind, "not let in"))
        };
        let (id, resumed) = tokio::time::timeout_at(deadline.into(), connecting)
            .await
            .map_err(|_| error(ErrorKind::TimedOut, "not let in before the deadline"))??;
        self.links.lock().unwrap_or_else(|e| e.into_inner()).insert(device.clone(), link);
        Ok(Session::new(device, id, INFO, Box::new(device_end)).with_resumed(resumed))
    }

    async fn channel(&self, options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        let ChannelOptions { device, token, job, app, deadline } = options;
        let credentials = Credentials::Device { device: device.clone(), token };
        match self.authenticator.authenticate(&credentials).await {
            Ok(Principal::Device(known)) if known == device => {}
            _ => return Err(error(ErrorKind::Unauthenticated, "credentials were not accepted")),
        }
        let (to_relay, at_relay) = mpsc::channel(IN_TRANSIT);
        let (to_device, at_device) = mpsc::channel(IN_TRANSIT);
        let (opened, opening) = oneshot::channel();
        let cut = self.link_of(&device);
        let relay_end = Channel::new(Half::new(to_device, &cut), Half::new(at_relay, &cut));
        let handshake: Handshake = Box::new(move |app| {
            Box::pin(async move {
                let _ = opened.send(app.is_some());
                app.map(|_| relay_end).ok_or_else(no_such_job)
            })
        });
        let knock = ChannelKnock {
            peer: PeerInfo::default(),
            device,
            job,
            path: app.path.into(),
            protocols: vec![app.protocol.into()],
            handshake,
        };
        let opening = async {
            let unreachable = |_| error(ErrorKind::Unreachable, "nobody listens");
            self.door.send(Incoming::Channel(knock)).await.map_err(unreachable)?;
            match opening.await {
                Ok(true) => Ok(()),
                Ok(false) => Err(no_such_job()),
                Err(_) => Err(error(ErrorKind::Overloaded, "the relay has no room now")),
            }
        };
        tokio::time::timeout_at(deadline.into(), opening)
            .await
            .map_err(|_| error(ErrorKind::TimedOut, "not opened before the deadline"))??;
        Ok(Channel::new(Half::new(to_relay, &cut), Half::new(at_device, &cut)))
    }
}

fn no_such_job() -> TransportError {
    error(ErrorKind::Expired, "there is no such job")
}

type Handshake = Box<dyn FnOnce(Option<App>) -> BoxFuture<Result<RelayChannel, TransportError>> + Send>;

/// One direction of a channel, at one of its ends.
#[derive(Debug)]
struct Half<W> {
    way: W,
    cut: watch::Receiver<bool>,
    closed: bool,
}

impl<W> Half<W> {
    fn new(way: W, cut: &watch::Receiver<bool>) -> Self {
        Self { way, cut: cut.clone(), closed: false }
    }
}

fn interrupted() -> TransportError {
    error(ErrorKind::Interrupted, "the link was cut")
}

#[async_trait]
impl<T: fmt::Debug + Send + 'static> ChannelSender<T> for Half<mpsc::Sender<Option<T>>> {
    async fn send(&mut self, message: T) -> Result<(), TransportError> {
        if self.closed {
            return Err(error(ErrorKind::Closed, "the channel is closed"));
        }
        tokio::select! {
            biased;
            Ok(_) = self.cut.wait_for(|cut| *cut) => Err(interrupted()),
            sent = self.way.send(Some(message)) => sent.map_err(|_| error(ErrorKind::Closed, "the peer is gone")),
        }
    }

    async fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            // A peer that reads nothing finds the way gone.
            let _ = self.way.send_timeout(None, std::time::Duration::from_secs(1)).await;
        }
    }
}

#[async_trait]
impl<T: fmt::Debug + Send + 'static> ChannelReceiver<T> for Half<mpsc::Receiver<Option<T>>> {
    async fn receive(&mut self) -> Result<Option<T>, TransportError> {
        tokio::select! {
            biased;
            Ok(_) = self.cut.wait_for(|cut| *cut) => Err(interrupted()),
            message = self.way.recv() => message.ok_or_else(interrupted),
        }
    }
}

#[async_trait]
impl Listener for MemoryListener {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn accept(&mut self) -> Option<Incoming> {
        self.knocks.recv().await
    }
}

#[derive(Debug)]
enum Message {
    Envelope(Envelope),
    Bye(EndReason),
}

type Acceptance = oneshot::Sender<Result<(SessionId, bool), ErrorKind>>;

#[derive(Debug)]
struct End {
    to_peer: mpsc::Sender<Message>,
    from_peer: Option<mpsc::Receiver<Message>>,
    cut: watch::Receiver<bool>,
    accepted: Option<Acceptance>,
    /// Changed when this end is closed, dropped with it: its own task ends either way.
    open: watch::Sender<()>,
}

impl End {
    fn new(
        to_peer: mpsc::Sender<Message>,
        from_peer: mpsc::Receiver<Message>,
        cut: watch::Receiver<bool>,
        accepted: Option<Acceptance>,
    ) -> Self {
        Self { to_peer, from_peer: Some(from_peer), cut, accepted, open: watch::Sender::new(()) }
    }

    fn refuse(&mut self, kind: ErrorKind) {
        if let Some(accepted) = self.accepted.take() {
            let _ = accepted.send(Err(kind));
        }
    }
}

#[async_trait]
impl Push for End {
    fn start(&mut self, started: Started) {
        if let Some(accepted) = self.accepted.take() {
            let _ = accepted.send(Ok((started.session, started.resumed)));
        }
        if let Some(from_peer) = self.from_peer.take() {
            tokio::spawn(receive(from_peer, self.cut.clone(), self.open.subscribe(), started.inbound));
        }
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        let closed = || error(ErrorKind::Closed, "the peer is gone");
        if queue.next_cost().is_none() {
            return Ok(());
        }
        let permit = tokio::select! {
            biased;
            Ok(_) = self.cut.wait_for(|cut| *cut) => return Err(error(ErrorKind::Interrupted, "the link was cut")),
            permit = self.to_peer.reserve() => permit.map_err(|_| closed())?,
        };
        if let Some(envelope) = queue.take() {
            permit.send(Message::Envelope(envelope));
        }
        Ok(())
    }

    fn refresh(&mut self) {}

    async fn close(&mut self, reason: CloseReason) {
        let elsewhere = match &reason {
            CloseReason::Drain { retry_after, to: Some(to) } => {
                Some(Envelope::Drain { retry_after: *retry_after, to: Some((**to).into()) })
            }
            _ => None,
        };
        let (kind, told) = match reason {
            CloseReason::Shutdown => (ErrorKind::Closed, EndReason::Goodbye),
            CloseReason::Drain { retry_after, .. } => {
                (ErrorKind::Overloaded, EndReason::Drain { retry_after: Some(retry_after) })
            }
            CloseReason::Replaced => (ErrorKind::Replaced, EndReason::Replaced),
            CloseReason::Revoked => (ErrorKind::Unauthenticated, EndReason::Revoked),
            CloseReason::Overloaded { retry_after } => {
                (ErrorKind::Overloaded, EndReason::Overloaded { retry_after: Some(retry_after) })
            }
            CloseReason::Misbehaved => (ErrorKind::PeerMisbehaved, EndReason::Misbehaved),
        };
        self.refuse(kind);
        // A peer that reads nothing does not learn why.
        let farewell = tokio::time::timeout(std::time::Duration::from_secs(1), async {
            for message in elsewhere.map(Message::Envelope).into_iter().chain([Message::Bye(told)]) {
                let _ = self.to_peer.send(message).await;
            }
        });
        tokio::select! {
            _ = farewell => {}
            Ok(_) = self.cut.wait_for(|cut| *cut) => {}
        }
        self.open.send_replace(());
    }
}

async fn receive(
    mut from_peer: mpsc::Receiver<Message>,
    mut cut: watch::Receiver<bool>,
    mut open: watch::Receiver<()>,
    inbound: Arc<dyn Inbound>,
) {
    inbound.attached();
    let reason = loop {
        let message = tokio::select! {
            biased;
            Ok(_) = cut.wait_for(|cut| *cut) => break EndReason::Lost,
            message = from_peer.recv() => message,
            _ = open.changed() => break EndReason::Closed,
        };
        match message {
            None => break EndReason::Goodbye,
            Some(Message::Bye(reason)) => break reason,
            Some(Message::Envelope(mut envelope)) => {
                inbound.alive();
                while let Err(Full(back)) = inbound.envelope(envelope) {
                    envelope = back;
                    tokio::time::sleep(OFFER_AGAIN).await;
                    if *cut.borrow() || open.has_changed().is_err() {
                        break;
                    }
                }
            }
        }
    };
    inbound.ended(reason);
}
