//! How the kit gets hold of a transport.

use std::{fmt, future::Future, sync::Arc};

use async_trait::async_trait;

use super::owner::{Owner, PATIENCE};
use crate::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    ids::DeviceId,
    transport::{ConnectOptions, Connector, Incoming, Listener, Session, TransportInfo},
};

/// Starts the transport under test.
#[async_trait]
pub trait Harness: fmt::Debug + Send + Sync {
    /// What must live for as long as the transport is used: servers, temporary folders.
    type Guard: Send + Sync;

    /// What the transport claims.
    fn info(&self) -> TransportInfo;

    /// A listener that lets in whom `authenticator` does, and a connector to it.
    async fn start(&self, authenticator: Arc<dyn Authenticator>) -> Running<Self::Guard>;

    /// Breaks the connections of `device` without a goodbye. New ones can be made at once.
    async fn cut(&self, guard: &Self::Guard, device: &DeviceId);
}

/// A transport that runs.
#[derive(Debug)]
pub struct Running<G> {
    /// The dialling end.
    pub connector: Arc<dyn Connector>,
    /// The listening end.
    pub listener: Box<dyn Listener>,
    /// Kept while both are used.
    pub guard: G,
}

/// Lets in every device that shows [`token`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Let;

/// The token that [`Let`] accepts.
pub fn token() -> Secret {
    Secret::new("conformance-token")
}

#[async_trait]
impl Authenticator for Let {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        match credentials {
            Credentials::Device { device, token: shown } if *shown == token() => {
                Ok(Principal::Device(device.clone()))
            }
            _ => Err(AuthError::Rejected),
        }
    }

    async fn verifier(&self, _: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
        Ok(ScramVerifier::derive(hash, &token(), b"conformance-salt", 4096))
    }
}

/// Connects `device` and lets it in: both ends, (dialling, listening), as their owners hold them.
///
/// # Panics
/// If that does not come about: the case has failed.
pub async fn connected<G>(running: &mut Running<G>, device: &str) -> (Owner, Owner) {
    let options = options(device);
    let (dialled, heard) = tokio::join!(running.connector.connect(options), async {
        let session = accept(&mut *running.listener).await;
        Owner::start(session, None)
    });
    (Owner::start(dialled.expect("the device is let in"), None), heard)
}

/// How the kit connects.
pub(super) fn options(device: &str) -> ConnectOptions {
    let device = DeviceId::new(device).expect("the kit's device IDs are valid");
    ConnectOptions::new(device, token(), (tokio::time::Instant::now() + PATIENCE).into_std())
}

/// The next session that knocks and is let in by its transport.
pub(super) async fn accept(listener: &mut dyn Listener) -> Session {
    let knock = async {
        loop {
            match listener.accept().await {
                Some(Incoming::Session(knock)) => match knock.handshake.await {
                    Ok(session) => return session,
                    Err(_) => continue,
                },
                Some(Incoming::Channel(_)) => {}
                None => panic!("the listener closed"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, knock).await.expect("somebody knocks in time")
}

/// Runs a case to its end on a runtime of its own.
///
/// # Panics
/// If the case does.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(case);
}
