//! How the device gets its session through the network: over which transport, by which proxy.

#[cfg(all(feature = "ws", feature = "bosh"))]
mod auto;
#[cfg(all(feature = "ws", feature = "bosh"))]
mod chooser;
#[cfg(any(feature = "ws", feature = "bosh"))]
mod learning;
#[cfg(any(feature = "ws", feature = "bosh"))]
mod network;
#[cfg(any(feature = "ws", feature = "bosh"))]
mod observed;
mod open;
mod proxy;
#[cfg(feature = "ws")]
mod tunnel;

use std::{fmt, time::Instant};

use async_trait::async_trait;
use relay_core::{
    error::TransportError,
    transport::{ConnectOptions, Session},
};

pub(crate) use self::{open::Opening, proxy::Proxy};

/// What carries the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Transport {
    /// WebSocket where the network lets it through, else XMPP over BOSH, which is plain HTTP. What worked is remembered, in
    /// the state folder too, and the better one is tried again after minutes at first, after a day at last, and when the
    /// session broke. The session is gone on with over the other transport: its ID, what is in flight and the device's being
    /// online stay.
    #[default]
    Auto,
    /// WebSocket alone.
    #[cfg(feature = "ws")]
    Ws,
    /// XMPP over BOSH alone.
    #[cfg(feature = "bosh")]
    Bosh,
}

/// A better transport than the one that carries the session.
#[async_trait]
pub(crate) trait Better: fmt::Debug + Send + Sync + 'static {
    /// When it is to be tried; `None` while the session goes over it.
    fn again_at(&self) -> Option<Instant>;

    /// The network may be another one: it is to be tried now.
    fn try_now(&self);

    /// Goes on with the session over it.
    async fn connect_better(&self, options: ConnectOptions) -> Result<Session, TransportError>;
}
