//! The conformance kit over both ends, with a link in between that can be cut: at any moment, before a request arrives
//! or after its answer was given.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{
    auth::Authenticator,
    conformance::{Harness, Running},
    ids::DeviceId,
    transport::{Connector, Listener, TransportInfo},
};
use tokio::sync::watch;
use transport_bosh::{
    BoshServerConfig, ConnectionManager,
    client::BoshConnector,
    exchange::{Exchange, ExchangeError, ExchangeErrorKind, Post, Reply},
};

/// Carries POSTs to a connection manager in the same process, as long as nobody cuts it.
#[derive(Debug)]
struct Link {
    manager: ConnectionManager,
    /// Grows with each cut.
    cuts: watch::Receiver<u64>,
    posts: AtomicU64,
}

impl Link {
    fn broken(words: &str) -> ExchangeError {
        ExchangeError::new(ExchangeErrorKind::Interrupted, words)
    }
}

#[async_trait]
impl Exchange for Link {
    async fn post(&self, post: Post) -> Result<Reply, ExchangeError> {
        let mut cuts = self.cuts.clone();
        cuts.borrow_and_update();
        let number = self.posts.fetch_add(1, Ordering::Relaxed);
        // Each way takes a moment, so that a cut can fall between sending and arriving.
        let way = Duration::from_millis(number % 3);
        let there = async {
            tokio::time::sleep(way).await;
            let peer = std::net::Ipv4Addr::LOCALHOST.into();
            let reply = self.manager.exchange(transport_bosh::Post::new(post.body, peer, true)).await;
            tokio::time::sleep(way).await;
            Reply::new(reply.status, reply.body)
                .with_retry_after(reply.retry_after.map(|seconds| Duration::from_secs(seconds.into())))
        };
        tokio::select! {
            biased;
            _ = cuts.changed() => Err(Self::broken("the link was cut")),
            reply = tokio::time::timeout(post.timeout, there) => {
                reply.map_err(|_| ExchangeError::new(ExchangeErrorKind::TimedOut, "no answer in time"))
            }
        }
    }

    fn is_confidential(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Bosh;

#[async_trait]
impl Harness for Bosh {
    type Guard = watch::Sender<u64>;

    fn info(&self) -> TransportInfo {
        transport_bosh::server::INFO
    }

    async fn start(&self, authenticator: Arc<dyn Authenticator>) -> Running<Self::Guard> {
        let (manager, listener) = ConnectionManager::new(BoshServerConfig::default(), authenticator);
        let (cut, cuts) = watch::channel(0);
        let link = Link { manager, cuts, posts: AtomicU64::new(0) };
        let connector: Arc<dyn Connector> = Arc::new(BoshConnector::over(Arc::new(link)));
        let listener: Box<dyn Listener> = Box::new(listener);
        Running { connector, listener, guard: cut }
    }

    async fn cut(&self, guard: &Self::Guard, _: &DeviceId) {
        guard.send_modify(|cuts| *cuts += 1);
    }
}

relay_core::transport_conformance!(Bosh);
