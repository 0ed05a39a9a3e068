//! A relay as a whole: bound, run, drained.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use relay_core::{
    Relay,
    auth::Secret,
    relay::Translate,
    request_ids::MacRequestIds,
    store::{MemoryStore, Store, StoreError},
    transport::Listener,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use transport_bosh::{BoshListener, ConnectionManager};
use transport_ws::{WsListener, WsManager};

use super::{
    auth::{Auth, NewKeyError},
    config::{ConfigError, ServerConfig},
    convert::Convert,
    directory::Directory,
    documents::Documents,
    http::{App, jobs, listen},
    jobs::{Jobs, Revived},
    spool::Spool,
    store::{DataFolder, FolderError, SqliteStore},
};

/// How long connections may still take to write what they have, once the engine is down.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The settings contradict themselves.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Plain HTTP on an address that others can reach.
    #[error(
        "{address} is not a loopback address, and tokens would cross the network in plain text; put TLS in front of the relay and allow plain text, or listen on loopback"
    )]
    Plaintext {
        /// The address.
        address: SocketAddr,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The store cannot be opened or read.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The documents that are kept cannot be read.
    #[error("the documents in the data folder cannot be read")]
    Documents(#[source] io::Error),
    /// The administrator's key cannot be made.
    #[error("the administrator's key cannot be made")]
    Key(#[from] NewKeyError),
}

/// A relay that is bound to its addresses and ready to [run](Server::run).
///
/// ```no_run
/// # async fn run() -> Result<(), server_sdk::relay::ServeError> {
/// use server_sdk::relay::{Server, ServerConfig};
///
/// let server = Server::bind(ServerConfig::default()).await?;
/// println!("listening on {:?}", server.addresses());
/// server.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await;
/// # Ok(())
/// # }
/// ```
pub struct Server {
    app: Arc<App>,
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    bosh: BoshListener,
    ws: WsListener,
    room: usize,
    administrator: Option<Secret>,
    key_file: Option<PathBuf>,
    drain_grace: Duration,
    drain_retry_after: Duration,
    drain_to: Option<Box<str>>,
    revived: Vec<Revived>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Server {
    /// A relay on its own data folder: opens the database, makes the administrator's key if there is none, and listens.
    ///
    /// # Errors
    /// [`ServeError`] says what stands in the way. A damaged or newer database is never replaced.
    pub async fn bind(config: ServerConfig) -> Result<Self, ServeError> {
        config.check()?;
        refuse_plaintext(&config)?;
        let folder = DataFolder::open(&config.data)?;
        let store = Arc::new(SqliteStore::open(&folder).await?);
        let mut server = Self::with(config, store, None, Some(folder.path())).await?;
        server.key_file = Some(folder.administrator_key(&server.app.auth).await?);
        Ok(server)
    }

    /// A relay that keeps all in memory: gone with it are devices and keys. For tests and first steps; its
    /// [`administrator_key`](Self::administrator_key) is a new one each time.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn in_memory(config: ServerConfig) -> Result<Self, ServeError> {
        Self::hosted(config, Arc::new(MemoryStore::new()), None).await
    }

    /// A relay on a store of the host's, with a hook that puts requests into the form that a device model understands
    /// (Q6). An administrator's key is made if the store has none; it is nowhere but in
    /// [`administrator_key`](Self::administrator_key).
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn hosted(
        config: ServerConfig,
        store: Arc<dyn Store>,
        translate: Option<Arc<dyn Translate>>,
    ) -> Result<Self, ServeError> {
        config.check()?;
        refuse_plaintext(&config)?;
        let mut server = Self::with(config, store, translate, None).await?;
        let auth = &server.app.auth;
        if !auth.keys().iter().any(|key| key.scopes.iter().any(|scope| scope == "admin")) {
            let (_, key) = auth.new_key(vec!["admin".into()]).await?;
            server.administrator = Some(key);
        }
        Ok(server)
    }

    async fn with(
        config: ServerConfig,
        store: Arc<dyn Store>,
        translate: Option<Arc<dyn Translate>>,
        data: Option<&Path>,
    ) -> Result<Self, ServeError> {
        let (finished_for, finished_max) = (config.relay.finished_for, config.relay.finished_max);
        let watcher_behind = config.relay.watcher_behind;
        let ids = MacRequestIds::new(store.secret("request-ids").await?.expose());
        let mut relay = Relay::builder().config(config.relay).request_ids(Arc::new(ids));
        if let Some(translate) = translate {
            relay = relay.translate(translate);
        }
        let relay = relay.build();
        let known = |device: &_, keepalive| relay.registered(device, keepalive);
        let auth = Auth::load(store.clone(), config.http.enrolments_per_minute, known).await?;
        let mut bosh = config.bosh;
        bosh.domain = config.domain;
        bosh.max_body = config.http.max_bosh_body;
        if bosh.sid_key.is_none() {
            bosh.sid_key = Some(*store.secret("bosh-sids").await?.expose());
        }
        let (manager, bosh) = ConnectionManager::new(bosh, Arc::new(auth.clone()));
        let (ws_manager, ws) = WsManager::new(config.ws, Arc::new(auth.clone()));
        let directory = Directory::new(auth.clone()).await?;
        let room = config.http.max_connections.unwrap_or_else(|| listen::room(descriptors()));
        let spool = Spool::open(data, config.spool).map_err(|(path, source)| FolderError::Io {
            what: "make",
            path,
            source,
        })?;
        let holds = |key: &_| auth.keys().iter().any(|known| known.id == *key);
        let documents = Documents::load(spool.clone(), holds).await.map_err(ServeError::Documents)?;
        let jobs = Arc::new(Jobs::new(spool, finished_for, finished_max));
        let revived = jobs.recover().await;
        let managers = (manager, ws_manager);
        let http = (config.http, config.trusted_proxies, watcher_behind);
        let app = Arc::new(App::new(relay, store, auth, directory, managers, (documents, jobs), http));
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in config.listen {
            let listener = listen::bind(address).map_err(|source| ServeError::Listen { address, source })?;
            addresses.push(listener.local_addr().map_err(|source| ServeError::Listen { address, source })?);
            listeners.push(listener);
        }
        Ok(Self {
            app,
            listeners,
            addresses,
            bosh,
            ws,
            room,
            administrator: None,
            key_file: None,
            drain_grace: config.drain_grace,
            drain_retry_after: config.drain_retry_after,
            drain_to: config.drain_to,
            revived,
        })
    }

    /// Lets `hook` turn documents into what a device takes, where it does not take them as they are (Q6). The first one
    /// that is given holds.
    #[must_use]
    pub fn with_convert(self, hook: Arc<dyn Convert>) -> Self {
        // An error: another was given before.
        let _ = self.app.convert.set(hook);
        self
    }

    /// The addresses that it listens on, with the ports that it got.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The engine, for requests from within the process and for other transports
    /// ([`Relay::serve`](relay_core::Relay::serve)).
    pub fn relay(&self) -> &Relay {
        &self.app.relay
    }

    /// Tokens, keys and PINs, for a host that gives them out itself.
    pub fn auth(&self) -> &Auth {
        &self.app.auth
    }

    /// The administrator's key, if it was made at this start and is written nowhere.
    pub const fn administrator_key(&self) -> Option<&Secret> {
        self.administrator.as_ref()
    }

    /// The file in the data folder that has the administrator's key.
    pub fn administrator_key_file(&self) -> Option<&Path> {
        self.key_file.as_deref()
    }

    /// Serves until `shutdown` resolves, then drains: not ready any more, calls in flight finish or fail definitely,
    /// devices are told to come back, connections are closed.
    ///
    /// # Cancel safety
    /// Dropped, it closes its addresses and connections at once, without draining.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self {
            app, listeners, bosh, ws, room, drain_grace, drain_retry_after, drain_to, revived, ..
        } = self;
        let _cut = Cut(app.clone());
        let room = Arc::new(Semaphore::new(room));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(listen::accept(listener, app.clone(), room.clone()));
        }
        let devices: [Box<dyn Listener>; 2] = [Box::new(bosh), Box::new(ws)];
        for transport in devices {
            let relay = app.relay.clone();
            accepting.spawn(async move { relay.serve(transport).await });
        }
        accepting.spawn(app.books.clone().run());
        jobs::revive(&app, revived);
        shutdown.await;
        tracing::info!("draining");
        app.stop();
        app.relay.shutdown(drain_grace, drain_retry_after, drain_to.as_deref()).await;
        // Until here, health was still to be asked, and responses to be brought.
        accepting.shutdown().await;
        app.close(LAST_WORDS).await;
        tracing::info!("stopped");
    }
}

/// Cuts what is left when a server goes without having drained.
struct Cut(Arc<App>);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.stop();
        self.0.cut();
    }
}

fn refuse_plaintext(config: &ServerConfig) -> Result<(), ServeError> {
    match config.listen.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
        Some(&address) if !config.allow_plaintext => Err(ServeError::Plaintext { address }),
        _ => Ok(()),
    }
}

/// The descriptors that the process may have.
fn descriptors() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}
