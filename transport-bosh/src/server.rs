//! The connection manager: the server end as a [`Listener`] that lives on somebody's HTTP server.

mod http;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use relay_core::{
    auth::Authenticator,
    transport::{Incoming, Listener, TransportInfo},
};

pub use self::http::{CORS, Post, Reply, TEXT_XML};
use crate::config::BoshServerConfig;

/// The transport's name and abilities.
pub const INFO: TransportInfo = TransportInfo::new("bosh").confirming().resumable();

/// Answers POSTs. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct ConnectionManager {}

impl ConnectionManager {
    /// A connection manager, and the listener that yields the sessions made on it. Must be called within a tokio runtime.
    pub fn new(config: BoshServerConfig, authenticator: Arc<dyn Authenticator>) -> (Self, BoshListener) {
        let _ = (config, authenticator);
        (Self {}, BoshListener {})
    }

    /// Takes one POST in. It is processed before this returns; what is returned waits for the answer alone.
    pub fn exchange(&self, post: Post) -> Exchange {
        let _ = post;
        Exchange {}
    }
}

/// One HTTP exchange that waits for its answer. Dropping it says that the client has gone.
#[derive(Debug)]
#[must_use = "an exchange that is dropped counts as broken off by the client"]
pub struct Exchange {}

impl Future for Exchange {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Reply> {
        Poll::Ready(Reply::greeting())
    }
}

/// Yields the sessions that devices bind on a [`ConnectionManager`].
#[derive(Debug)]
pub struct BoshListener {}

#[async_trait]
impl Listener for BoshListener {
    fn info(&self) -> TransportInfo {
        INFO
    }

    async fn accept(&mut self) -> Option<Incoming> {
        std::future::pending().await
    }
}
