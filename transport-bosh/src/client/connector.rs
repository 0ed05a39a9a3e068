//! A device's session with a relay.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, SessionId},
    request::{Response, Status},
    transport::{
        CloseReason, ConnectOptions, Connector, EndReason, Full, Inbound, Push, Queue, Session, Started,
        TransportInfo,
    },
    xml::{
        Element,
        vocabulary::{self, Decoded},
    },
};

use super::driver::{self, Driver, Established, Receiver, Shared};
use crate::{
    NAME,
    exchange::Exchange,
    proto::client::{ClientSettings, End, Input, login::Account},
    server::INFO,
    wire::ns,
};

/// Events that wait for an owner who takes nothing, before the session is given up.
const MAX_PENDING: usize = 2_048;

/// Dials a relay over BOSH.
#[derive(Debug, Clone)]
pub struct BoshConnector {
    exchange: Arc<dyn Exchange>,
    settings: ClientSettings,
    resource: Option<String>,
    watch: Option<Arc<dyn IdleWatch>>,
    /// Of all clones.
    live: Arc<Mutex<Live>>,
}

/// Hears how connections fare on which requests are held. Called by a session's task, under no lock: returns at once.
pub trait IdleWatch: fmt::Debug + Send + Sync + 'static {
    /// An answer came over a connection that was idle for so long.
    fn survived(&self, idle: Duration);
    /// A connection was gone after it was idle for so long, while the relay is there. `seen`: it was closed then; else it
    /// was found dead.
    fn cut(&self, idle: Duration, seen: bool);
}

/// What can change while a session lives.
#[derive(Debug, Default)]
struct Live {
    keepalive: Option<Duration>,
    /// The session that was opened last.
    session: Weak<Shared>,
}

impl BoshConnector {
    /// A connector to the relay whose connection manager is at `url` (`https://relay.example/http-bind`), serving the
    /// domain `localhost`, as relays do unless they are told otherwise.
    ///
    /// # Errors
    /// As [`ReqwestExchange::new`](crate::http::ReqwestExchange::new).
    #[cfg(feature = "reqwest")]
    pub fn new(url: &str) -> Result<Self, TransportError> {
        Self::with_http(crate::http::HttpSettings::new(url))
    }

    /// The same, with everything about HTTP said expressly.
    ///
    /// # Errors
    /// As [`ReqwestExchange::new`](crate::http::ReqwestExchange::new).
    #[cfg(feature = "reqwest")]
    pub fn with_http(settings: crate::http::HttpSettings) -> Result<Self, TransportError> {
        Ok(Self::over(Arc::new(crate::http::ReqwestExchange::new(settings)?)))
    }

    /// A connector that posts over `exchange`.
    pub fn over(exchange: Arc<dyn Exchange>) -> Self {
        Self {
            exchange,
            settings: ClientSettings::new("localhost"),
            resource: None,
            watch: None,
            live: Arc::default(),
        }
    }

    /// The relay's domain is `domain`.
    #[must_use]
    pub fn with_domain(mut self, domain: impl Into<String>) -> Self {
        self.settings.to = domain.into();
        self
    }

    /// Sets the resource that is bound, the relay's choice otherwise.
    #[must_use]
    pub fn with_resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// Changes what is asked for and the bounds.
    #[must_use]
    pub fn with_settings(mut self, change: impl FnOnce(&mut ClientSettings)) -> Self {
        change(&mut self.settings);
        self.live().keepalive = self.settings.keepalive;
        self
    }

    /// Tells `watch` how the connections of all sessions fare.
    #[must_use]
    pub fn with_idle_watch(mut self, watch: Arc<dyn IdleWatch>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Changes [`ClientSettings::keepalive`], for the session that was opened last and those to come.
    pub fn set_keepalive(&self, keepalive: Option<Duration>) {
        let session = {
            let mut live = self.live();
            live.keepalive = keepalive;
            live.session.upgrade()
        };
        if let Some(session) = session {
            session.input(Input::KeepAlive(keepalive));
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Connector for BoshConnector {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let mut account = Account::new(options.device.as_str(), options.token);
        account.resource.clone_from(&self.resource);
        let Established { driver, login, sid } = Driver::log_in(
            Arc::clone(&self.exchange),
            self.settings.clone(),
            account,
            options.resume.clone(),
            options.deadline,
        )
        .await?;
        let created = SessionId::new(&sid).map_err(|error| {
            TransportError::new(NAME, ErrorKind::PeerMisbehaved, "the peer's SID is not one of a relay")
                .with_source(error)
        })?;
        let (id, resumed) = match (options.resume, login.resumed) {
            (Some(id), Some(true)) => (id, true),
            _ => (created, false),
        };
        let device = options.device;
        let shared = Arc::clone(&driver.shared);
        let keepalive = {
            let mut live = self.live();
            live.session = Arc::downgrade(&shared);
            live.keepalive
        };
        shared.input(Input::KeepAlive(keepalive));
        let owner = Arc::new(Mutex::new(None));
        tokio::spawn(driver.run(Incoming {
            device: device.clone(),
            domain: self.settings.to.clone(),
            owner: Arc::clone(&owner),
            inbound: None,
            watch: self.watch.clone(),
            pending: VecDeque::from([Event::Attached]),
            overflown: false,
        }));
        let push =
            BoshPush { device: device.clone(), domain: self.settings.to.clone(), shared, owner, taken: 0 };
        Ok(Session::new(device, id, INFO, Box::new(push)).with_resumed(resumed))
    }
}

type Owner = Arc<Mutex<Option<Arc<dyn Inbound>>>>;

/// The half of a session that takes envelopes to the relay.
struct BoshPush {
    device: DeviceId,
    domain: String,
    shared: Arc<Shared>,
    owner: Owner,
    taken: u64,
}

impl fmt::Debug for BoshPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoshPush")
            .field("device", &self.device)
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Push for BoshPush {
    fn start(&mut self, started: Started) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(started.inbound);
        self.shared.wake();
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        if queue.next_cost().is_none() {
            return Ok(());
        }
        let (device, domain, taken) = (&self.device, &self.domain, &mut self.taken);
        let pushed = self.shared.until(|state| {
            if let Some(end) = &state.ended {
                return Some(Err(end.error()));
            }
            // One envelope may be larger than what is left of a request: it then gets the next one for itself.
            let mut fits = state.machine.has_room();
            if !fits {
                return None;
            }
            while fits && let Some(envelope) = queue.take() {
                *taken += 1;
                if let Some(payload) = stanza(&envelope, device, domain) {
                    state.machine.handle_input(driver::now(), Input::Send { payload, tag: Some(*taken) });
                }
                fits = state.machine.has_room();
            }
            Some(Ok(()))
        });
        let pushed = pushed.await;
        self.shared.wake();
        pushed
    }

    fn refresh(&mut self) {
        self.shared.input(Input::Refresh);
    }

    async fn close(&mut self, _reason: CloseReason) {
        self.shared.close();
        self.shared.ended().await;
    }
}

impl Drop for BoshPush {
    fn drop(&mut self) {
        // Nobody is left to tell; without an owner the task would wait for one.
        let _ =
            self.owner.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| Arc::new(Nobody));
        self.shared.close();
    }
}

/// `envelope` as a stanza to the relay: a response is the result of the request's iq, all else a message. `None` for what
/// no device says.
fn stanza(envelope: &Envelope, device: &DeviceId, domain: &str) -> Option<Element> {
    let payload = match vocabulary::encode(envelope, device, driver::now()) {
        Ok(payload) => payload,
        Err(error) => {
            tracing::warn!(%error, "an envelope cannot be written");
            let Envelope::Response { id, .. } = envelope else { return None };
            // The caller learns that there is an answer, and why it does not get it.
            let status = Status::parse("too-large").unwrap_or(Status::DeviceError);
            let response = Response::error(status, error.to_string());
            let refusal = Envelope::Response { id: id.clone(), response, acknowledge: true };
            vocabulary::encode(&refusal, device, driver::now()).ok()?
        }
    };
    let stanza = match envelope {
        Envelope::Response { id, .. } => {
            Element::new(ns::CLIENT, "iq").with_attr("type", "result").with_attr("id", id.as_str())
        }
        _ => Element::new(ns::CLIENT, "message"),
    };
    Some(stanza.with_attr("to", domain).with_child(payload))
}

enum Event {
    Envelope(Envelope),
    Alive,
    Confirmed(u64),
    Attached,
    Detached,
}

/// Hands what the relay says to the session's owner.
struct Incoming {
    device: DeviceId,
    domain: String,
    owner: Owner,
    inbound: Option<Arc<dyn Inbound>>,
    watch: Option<Arc<dyn IdleWatch>>,
    /// In order, until the owner takes it.
    pending: VecDeque<Event>,
    overflown: bool,
}

impl Receiver for Incoming {
    fn stanza(&mut self, stanza: Element, shared: &Shared) {
        if driver::is_ping(&stanza) {
            shared.input(Input::Send { payload: driver::empty_result(&stanza), tag: None });
        } else if driver::asks(&stanza) {
            if let Err((kind, condition)) = self.request(&stanza) {
                shared.input(Input::Send { payload: driver::iq_error(&stanza, kind, condition), tag: None });
            }
        } else if stanza.is(ns::CLIENT, "message") {
            self.message(&stanza);
        }
    }

    fn alive(&mut self) {
        if !matches!(self.pending.back(), Some(Event::Alive)) {
            self.pending.push_back(Event::Alive);
        }
    }

    fn confirmed(&mut self, tag: u64) {
        self.pending.push_back(Event::Confirmed(tag));
    }

    fn reachable(&mut self, reachable: bool) {
        self.pending.push_back(if reachable { Event::Attached } else { Event::Detached });
    }

    fn survived(&mut self, idle: Duration) {
        if let Some(watch) = &self.watch {
            watch.survived(idle);
        }
    }

    fn cut(&mut self, idle: Duration, seen: bool) {
        if let Some(watch) = &self.watch {
            watch.cut(idle, seen);
        }
    }

    fn flush(&mut self) -> bool {
        if self.inbound.is_none() {
            self.inbound = self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        let Some(inbound) = &self.inbound else { return false };
        while let Some(event) = self.pending.pop_front() {
            match event {
                Event::Envelope(envelope) => {
                    if let Err(Full(envelope)) = inbound.envelope(envelope) {
                        self.pending.push_front(Event::Envelope(envelope));
                        return false;
                    }
                }
                Event::Alive => inbound.alive(),
                Event::Confirmed(number) => inbound.confirmed(number),
                Event::Attached => inbound.attached(),
                Event::Detached => inbound.detached(),
            }
        }
        true
    }

    fn overflows(&mut self) -> bool {
        self.overflown |= self.pending.len() > MAX_PENDING;
        self.overflown
    }

    fn ended(&mut self, end: &End) {
        let Some(inbound) = &self.inbound else { return };
        let reason = if self.overflown { EndReason::Overloaded { retry_after: None } } else { end.reason() };
        inbound.ended(reason);
    }
}

impl Incoming {
    /// A stanza without `from` is the server's own (RFC 6120 §8.1.2.1). What others send is not the relay's word.
    fn is_from_relay(&self, stanza: &Element) -> bool {
        stanza.attr("from").is_none_or(|from| from.eq_ignore_ascii_case(&self.domain))
    }

    /// An iq that asks: a request of the relay's, or what nobody here serves.
    fn request(&mut self, iq: &Element) -> Result<(), (&'static str, &'static str)> {
        let unserved = Err(("cancel", "service-unavailable"));
        if !self.is_from_relay(iq) {
            return unserved;
        }
        let Some(payload) = iq.child(ns::RELAY, "request") else { return unserved };
        match vocabulary::decode(payload, &self.device, driver::now()) {
            // The result of the iq is the response to the request: one ID for both.
            Ok(Decoded::Envelope(envelope @ Envelope::Request { .. }))
                if payload.attr("id") == iq.attr("id") =>
            {
                self.pending.push_back(Event::Envelope(envelope));
                Ok(())
            }
            Ok(_) => Err(("modify", "bad-request")),
            Err(error) => {
                tracing::warn!(%error, "a request cannot be read");
                Err(("modify", "bad-request"))
            }
        }
    }

    /// A message: whatever else the relay has to say.
    fn message(&mut self, message: &Element) {
        if !self.is_from_relay(message) || message.attr("type") == Some("error") {
            return;
        }
        for payload in message.children().filter(|child| *child.namespace() == ns::RELAY) {
            match vocabulary::decode(payload, &self.device, driver::now()) {
                Ok(Decoded::Envelope(
                    envelope @ (Envelope::Ack { .. }
                    | Envelope::Cancel { .. }
                    | Envelope::Close { .. }
                    | Envelope::Drain { .. }
                    | Envelope::Ping
                    | Envelope::Pong),
                )) => self.pending.push_back(Event::Envelope(envelope)),
                // Of requests only jobs come so.
                Ok(Decoded::Envelope(envelope @ Envelope::Request { .. })) if is_job(&envelope) => {
                    self.pending.push_back(Event::Envelope(envelope));
                }
                Ok(Decoded::Unknown(name)) => {
                    let name: String = name.chars().take(64).collect();
                    tracing::debug!(name, "ignored an unknown element");
                }
                Ok(_) => tracing::debug!("ignored an envelope that no message carries"),
                Err(error) => tracing::warn!(%error, "ignored an element that cannot be read"),
            }
        }
    }
}

fn is_job(envelope: &Envelope) -> bool {
    matches!(envelope, Envelope::Request { request, .. } if request.offer.is_some())
}

/// The owner of a session whose owner is gone.
#[derive(Debug)]
struct Nobody;

impl Inbound for Nobody {
    fn envelope(&self, _: Envelope) -> Result<(), Full> {
        Ok(())
    }
    fn ended(&self, _: EndReason) {}
}
