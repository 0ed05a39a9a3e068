//! The conformance kit over both ends, on TCP over loopback, with a link in between that can be cut.

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    conformance::{Harness, Running},
    error::TransportError,
    ids::DeviceId,
    transport::{ChannelOptions, ConnectOptions, Connector, DeviceChannel, Listener, Session, TransportInfo},
};
use support::{Cuts, Host};
use transport_ws::{WsConnector, WsManager, WsServerConfig};

/// A bearer token says whose it is; the kit's is the same for all. So that its devices can be told apart, each shows its
/// name together with it.
#[derive(Debug)]
struct Named(WsConnector);

#[async_trait]
impl Connector for Named {
    fn info(&self) -> TransportInfo {
        self.0.info()
    }

    async fn connect(&self, mut options: ConnectOptions) -> Result<Session, TransportError> {
        options.token = named(&options.device, &options.token);
        self.0.connect(options).await
    }

    async fn channel(&self, mut options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        options.token = named(&options.device, &options.token);
        self.0.channel(options).await
    }
}

fn named(device: &DeviceId, token: &Secret) -> Secret {
    Secret::new(format!("{}~{}", device.as_str(), token.expose()).replace(' ', "_"))
}

#[derive(Debug)]
struct ByName(Arc<dyn Authenticator>);

#[async_trait]
impl Authenticator for ByName {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        let Credentials::Bearer(shown) = credentials else { return Err(AuthError::Rejected) };
        let (name, token) = shown.expose().split_once('~').ok_or(AuthError::Rejected)?;
        let device = DeviceId::new(name).map_err(|_| AuthError::Rejected)?;
        self.0.authenticate(&Credentials::Device { device, token: Secret::new(token) }).await
    }

    async fn verifier(&self, device: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
        self.0.verifier(device, hash).await
    }
}

#[derive(Debug)]
struct WebSocket;

#[async_trait]
impl Harness for WebSocket {
    type Guard = (Host, Arc<Cuts>);

    fn info(&self) -> TransportInfo {
        transport_ws::server::INFO
    }

    async fn start(&self, authenticator: Arc<dyn Authenticator>) -> Running<Self::Guard> {
        let (manager, listener) = WsManager::new(WsServerConfig::default(), Arc::new(ByName(authenticator)));
        let host = Host::start(manager).await;
        let cuts = Arc::new(Cuts::default());
        let settings = support::settings(host.address, Arc::clone(&cuts));
        let connector: Arc<dyn Connector> =
            Arc::new(Named(WsConnector::with_settings(settings).expect("the settings are good")));
        let listener: Box<dyn Listener> = Box::new(listener);
        Running { connector, listener, guard: (host, cuts) }
    }

    async fn cut(&self, (_, cuts): &Self::Guard, _: &DeviceId) {
        cuts.cut();
    }
}

relay_core::transport_conformance!(WebSocket);
