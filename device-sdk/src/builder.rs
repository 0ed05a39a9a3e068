//! Starting a device.

use std::{path::PathBuf, sync::Arc, time::Duration};

use relay_core::{auth::Secret, ids::DeviceId, tls::Trust, transport::Connector};
use tokio::sync::{Mutex, broadcast, mpsc, watch};

use crate::{
    agent::{Agent, AgentConfig, Known, OnQuiet},
    app::{App, Table},
    backoff::{MAX_RETRY_AFTER, ReconnectConfig},
    book::{self, AddressBooks},
    device::{Device, Inner},
    error::{StartError, StateError},
    event::{BACKLOG, Event, SessionState},
    http::{
        RelayHttp,
        client::{HttpRelay, RelayUrl},
    },
    ledger::{Ledger, LedgerConfig, RespondBy},
    pull::Puller,
    reach::Reach,
    registration::Registration,
    relays::{Open, Relays, Ways},
    router::Router,
    shell::{Parts, Shell},
    state::{Damage, State},
    transport::{Opening, Proxy, Transport},
};

const KEEPALIVE: Duration = Duration::from_secs(60);
const SHORTEST_KEEPALIVE: Duration = Duration::from_secs(10);
const SHORTEST_OF_ALL: Duration = Duration::from_millis(100);
const MIN_KEEPALIVE: Duration = Duration::from_secs(1);
const MAX_KEEPALIVE: Duration = Duration::from_secs(24 * 3600);
const MAX_CONCURRENCY: usize = 1024;

/// What a device is made of. Made by [`Device::builder`]; everything has a default but the credential.
#[derive(Debug)]
#[must_use = "a device starts with `start`"]
pub struct Builder {
    relay_url: String,
    device_id: String,
    pin: Option<Secret>,
    token: Option<Secret>,
    state_folder: Option<PathBuf>,
    maintenance: bool,
    keepalive: Duration,
    shortest_keepalive: Duration,
    on_quiet: OnQuiet,
    registration: Registration,
    router: Router,
    apps: Vec<App>,
    address_books: Option<AddressBooks>,
    respond_by: Option<RespondBy>,
    concurrency: usize,
    reconnect: ReconnectConfig,
    allow_plaintext: bool,
    allow_relays: Vec<String>,
    #[cfg(feature = "bosh")]
    domain: String,
    transport: Transport,
    proxy: Proxy,
    trust: Trust,
    connector: Option<Arc<dyn Connector>>,
    relay_http: Option<Arc<dyn RelayHttp>>,
    /// What makes the ways to a relay, in the tests of being sent from one to another.
    #[cfg(test)]
    pub(crate) open: Option<Open>,
}

impl Builder {
    pub(crate) fn new(relay_url: String, device_id: String) -> Self {
        Self {
            relay_url,
            device_id,
            pin: None,
            token: None,
            state_folder: None,
            maintenance: true,
            keepalive: KEEPALIVE,
            shortest_keepalive: SHORTEST_KEEPALIVE,
            on_quiet: OnQuiet::default(),
            registration: Registration::new(),
            router: Router::new(),
            apps: Vec::new(),
            address_books: None,
            respond_by: None,
            concurrency: 16,
            reconnect: ReconnectConfig::default(),
            allow_plaintext: false,
            allow_relays: Vec::new(),
            #[cfg(feature = "bosh")]
            domain: "localhost".to_owned(),
            transport: Transport::default(),
            proxy: Proxy::default(),
            trust: Trust::default(),
            connector: None,
            relay_http: None,
            #[cfg(test)]
            open: None,
        }
    }

    /// The one-time PIN that the device trades for its own credential when it first starts, and when the relay no
    /// longer takes the one it has.
    pub fn pin(mut self, pin: impl Into<String>) -> Self {
        self.pin = Some(Secret::new(pin));
        self
    }

    /// The device's credential, if it was enrolled in some other way. What the state folder holds comes first.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Secret::new(token));
        self
    }

    /// Where the device keeps its credential and settings. Without it they are gone when the process is, and the PIN is
    /// spent all the same: a device that is to outlive a restart has a folder.
    pub fn state_folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_folder = Some(path.into());
        self
    }

    /// Session maintenance as the device leaves the factory. Default: on. Once
    /// [`set_maintenance`](Device::set_maintenance) was called, what was said there holds.
    pub const fn maintenance(mut self, on: bool) -> Self {
        self.maintenance = on;
        self
    }

    /// How long nothing may be pushed before the device makes sure that its session lives. Default 60 s; 1 s to 24 h.
    /// Shorter finds a dead connection sooner and costs a call each time; longer than what the network leaves an idle
    /// connection alone, and pushes wait that long.
    pub const fn keepalive(mut self, keepalive: Duration) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// How often at most something is sent on an idle WebSocket so that the network in between leaves it alone. Default
    /// 10 s; 100 ms to 24 h. How often it is, the device learns by itself ([`Event::KeepAlive`]): beginning with 50 s, it goes
    /// down to this where connections are cut, and up to five sixths of [`keepalive`](Self::keepalive) where they are not.
    pub const fn shortest_keepalive(mut self, shortest: Duration) -> Self {
        self.shortest_keepalive = shortest;
        self
    }

    /// How it makes sure. Default: [`OnQuiet::Ask`].
    pub const fn on_quiet(mut self, on_quiet: OnQuiet) -> Self {
        self.on_quiet = on_quiet;
        self
    }

    /// What the device tells the relay about itself.
    pub fn registration(mut self, registration: Registration) -> Self {
        self.registration = registration;
        self
    }

    /// What the device does when it is asked.
    pub fn router(mut self, router: Router) -> Self {
        self.router = router;
        self
    }

    /// A named function of the device that services send work to: printing, say. The relay is told of it by itself.
    pub fn app(mut self, app: App) -> Self {
        self.apps.push(app);
        self
    }

    /// The address books that the device shares with the others of its account. The relay is told of their app by
    /// itself; they are used through `books`, from the start on.
    pub fn address_books(mut self, books: &AddressBooks) -> Self {
        self.address_books = Some(books.clone());
        self
    }

    /// Which way answers go. Default: [`RespondBy::Http`] over BOSH, else [`RespondBy::Session`]. Answers too large
    /// for the session go by HTTP in any case.
    pub const fn respond_by(mut self, way: RespondBy) -> Self {
        self.respond_by = Some(way);
        self
    }

    /// How many handlers run at once. Default 16; 1 to 1,024. Above it requests wait, 64 in all; beyond that the device
    /// answers `busy`.
    pub const fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// How the device comes back to a relay that it lost.
    pub const fn reconnect(mut self, reconnect: ReconnectConfig) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// Lets the credential travel unencrypted to another machine. For a laboratory.
    pub const fn allow_plaintext(mut self) -> Self {
        self.allow_plaintext = true;
        self
    }

    /// Relays that the device may be sent to, beside its own. A relay that stops may name another one to come back to,
    /// and the device shows its credential there, so this is a list of whom the vendor trusts with it: URLs, each an
    /// origin and the path that is to begin with, such as `https://relay-2.example`; `https://*.relay.example` is every
    /// name below `relay.example`. Default: none. Has no effect with a [`connector`](Self::connector) or
    /// [`relay_http`](Self::relay_http) of one's own, which go to one relay.
    pub fn allow_relays(mut self, urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allow_relays.extend(urls.into_iter().map(Into::into));
        self
    }

    /// The relay's XMPP domain, for BOSH. Default: `localhost`, as the relay's.
    #[cfg(feature = "bosh")]
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = domain.into();
        self
    }

    /// What carries the session. Default: [`Transport::Auto`].
    pub const fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// The HTTP proxy that everything goes through: `http://[user:password@]host[:port]`. Default: what the environment
    /// says, in `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`. WebSockets and TLS go through it by CONNECT; names
    /// are resolved there.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Proxy::Url(Secret::new(url));
        self
    }

    /// Whom to believe that it is the relay, or a server that documents are pulled from: authorities of certificates.
    /// Default: those of the system. A relay with a certificate of one's own making needs
    /// `Trust::System.and(certificate)`, and a device that shall speak to none but its vendor's `Trust::nobody().and(…)`.
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// No proxy, whatever the environment says.
    pub fn no_proxy(mut self) -> Self {
        self.proxy = Proxy::Direct;
        self
    }

    /// What opens the session, in the place of the built-in transports.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = Some(connector);
        self
    }

    /// What makes the calls beside the session. Default: HTTP, at the relay's URL.
    pub fn relay_http(mut self, relay_http: Arc<dyn RelayHttp>) -> Self {
        self.relay_http = Some(relay_http);
        self
    }

    /// Starts the device: from here on it enrolls, registers, connects, answers and comes back by itself, on the tokio
    /// runtime that this is called on. Does not wait for the relay; [`Device::online`] does.
    ///
    /// # Errors
    /// [`StartError`]: something that it was given cannot be, or its state folder cannot be used.
    ///
    /// # Cancel safety
    /// Dropped half-way, no device runs.
    pub async fn start(mut self) -> Result<Device, StartError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let device = DeviceId::new(&self.device_id)?;
        let url = RelayUrl::parse(&self.relay_url, self.allow_plaintext)?;
        self.check()?;
        self.apps.extend(self.address_books.as_ref().map(AddressBooks::app));
        let apps = Table::new(self.apps)?;
        let (state, damage) = open_state(self.state_folder, &device).await?;
        let stored = state.read();
        let token = stored.token().or(self.token);
        if token.is_none() && self.pin.is_none() {
            return Err(StartError::NoCredential);
        }

        let (events, first_events) = broadcast::channel(BACKLOG);
        let opening = Opening {
            transport: self.transport,
            allow_plaintext: self.allow_plaintext,
            proxy: self.proxy.clone(),
            trust: self.trust.clone(),
            #[cfg(feature = "bosh")]
            domain: self.domain,
            keepalive: self.keepalive,
            shortest_keepalive: self.shortest_keepalive,
            events: events.downgrade(),
            state: state.clone(),
            seed: seed(),
        };
        let open = Open::new(move |url| opening.ways(url));
        #[cfg(test)]
        let open = self.open.unwrap_or(open);
        let (ways, open) = match (self.connector, self.relay_http) {
            (None, None) => (open.at(&url)?, Some(open)),
            (Some(connector), Some(http)) => (Ways::new(connector, http), None),
            (Some(connector), None) => {
                (Ways::new(connector, Arc::new(HttpRelay::new(url.clone(), &self.proxy, &self.trust)?)), None)
            }
            (None, Some(http)) => (Ways { http, ..open.at(&url)? }, None),
        };
        let relays = Relays::new(url, &self.allow_relays, self.allow_plaintext, open)?;

        let keepalive = (self.on_quiet != OnQuiet::Off).then_some(self.keepalive);
        let agent = Agent::new(
            AgentConfig {
                keepalive,
                on_quiet: self.on_quiet,
                answer_within: Duration::from_secs(10),
                step_within: Duration::from_secs(30),
                reconnect: self.reconnect,
            },
            Known {
                has_token: token.is_some(),
                has_pin: self.pin.is_some(),
                resume: stored.session(),
                seed: seed(),
            },
        );
        let respond_by = self.respond_by.unwrap_or_else(|| RespondBy::over(&ways.connector.info()));
        let mut ledger = LedgerConfig::new(respond_by);
        ledger.concurrency = self.concurrency;

        let mut registration = Registration { keepalive, ..self.registration };
        apps.register(&mut registration);
        let (reach, watched) = watch::channel(Reach {
            ways: ways.clone(),
            at: relays.home().clone(),
            token: token.clone().unwrap_or_else(|| Secret::new("")),
            channels: ways.connector.info().channels,
        });

        let (commands, receiver) = mpsc::channel(16);
        let maintenance = stored.maintenance.unwrap_or(self.maintenance);
        let first = if maintenance { SessionState::Starting } else { SessionState::Off };
        let (session_state, watch) = watch::channel(first);
        let books = match &self.address_books {
            Some(books) => {
                let parts = book::Parts { session: watch.clone(), reach: watched.clone(), seed: seed() };
                Some(books.open(&state, parts).await?)
            }
            None => None,
        };
        let handle = Device::new(Inner {
            id: device.clone(),
            commands,
            events: events.downgrade(),
            first_events: std::sync::Mutex::new(Some(first_events)),
            session_state: watch,
            state: state.clone(),
            maintenance_by_default: self.maintenance,
            switching: Mutex::new(()),
            puller: Puller {
                reach: watched,
                allow_plaintext: self.allow_plaintext,
                proxy: self.proxy.clone(),
                trust: self.trust.clone(),
            },
        });
        let shell = Shell::new(Parts {
            device,
            agent,
            ledger: Ledger::new(ledger, seed()),
            relays,
            ways,
            router: self.router,
            apps,
            reach,
            seed: seed(),
            respond_by: self.respond_by,
            state,
            registration,
            pin: self.pin,
            token,
            commands: receiver,
            events,
            session_state,
            damage: damage.map(|Damage { recovered }| Event::StateDamaged { recovered }),
        });
        runtime.spawn(shell.run(maintenance));
        if let Some(books) = books {
            runtime.spawn(books.run());
        }
        Ok(handle)
    }

    fn check(&self) -> Result<(), StartError> {
        self.router.check()?;
        self.proxy.check()?;
        if !(MIN_KEEPALIVE..=MAX_KEEPALIVE).contains(&self.keepalive) {
            return Err(StartError::Setting { setting: "keepalive", bounds: "1 s to 24 h" });
        }
        if !(SHORTEST_OF_ALL..=MAX_KEEPALIVE).contains(&self.shortest_keepalive) {
            return Err(StartError::Setting { setting: "shortest keepalive", bounds: "100 ms to 24 h" });
        }
        if !(1..=MAX_CONCURRENCY).contains(&self.concurrency) {
            return Err(StartError::Setting { setting: "concurrency", bounds: "1 to 1,024" });
        }
        let ReconnectConfig { first, longest, stable_after, replaced, refused } = self.reconnect;
        let windows = Duration::from_millis(1)..=MAX_RETRY_AFTER;
        let in_bounds = [first, longest, replaced, refused].iter().all(|window| windows.contains(window));
        if !in_bounds || longest < first || stable_after > MAX_KEEPALIVE {
            return Err(StartError::Setting {
                setting: "reconnect",
                bounds: "windows of 1 ms to 1 h, the longest not below the first, and stable after at most 24 h",
            });
        }
        Ok(())
    }
}

async fn open_state(
    folder: Option<PathBuf>,
    device: &DeviceId,
) -> Result<(State, Option<Damage>), StateError> {
    let Some(folder) = folder else { return Ok((State::in_memory(device), None)) };
    let (device, path) = (device.clone(), folder.clone());
    tokio::task::spawn_blocking(move || State::open(&folder, &device)).await.unwrap_or_else(|error| {
        Err(StateError::Io { what: "open", path, source: std::io::Error::other(error) })
    })
}

/// Where jitter starts: a fleet that is switched on together must still not act together.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    relay_core::random::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
