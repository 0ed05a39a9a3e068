//! The custom transport passes the kit that the built-in ones are held to.

#[path = "../src/bin/custom-transport.rs"]
#[allow(dead_code, reason = "the program's own main is not run here")]
mod line;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use relay_core::{
    auth::Authenticator,
    conformance::{Harness, Running},
    ids::DeviceId,
    transport::{Connector, TransportInfo},
};
use tokio::task::AbortHandle;

use self::line::{LineConnector, LineListener, socket};

#[derive(Debug)]
struct Lines;

/// Passes connections on, and can break those that there are.
#[derive(Debug, Clone, Default)]
struct Middle {
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Middle {
    fn before(&self, relay: SocketAddr) -> SocketAddr {
        let door = socket(relay).expect("a socket");
        door.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let listener = door.listen(64).expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let connections = Arc::clone(&self.connections);
        tokio::spawn(async move {
            while let Ok((mut device, _)) = listener.accept().await {
                let passing = tokio::spawn(async move {
                    if let Ok(mut relay) = socket(relay).expect("a socket").connect(relay).await {
                        let _ = tokio::io::copy_bidirectional(&mut device, &mut relay).await;
                    }
                });
                connections.lock().unwrap().push(passing.abort_handle());
            }
        });
        address
    }
}

#[async_trait]
impl Harness for Lines {
    type Guard = Middle;

    fn info(&self) -> TransportInfo {
        LineConnector::new(([127, 0, 0, 1], 1).into()).info()
    }

    async fn start(&self, authenticator: Arc<dyn Authenticator>) -> Running<Middle> {
        let listener = LineListener::bind(([127, 0, 0, 1], 0).into(), authenticator).expect("a free port");
        let middle = Middle::default();
        let address = middle.before(listener.address().expect("it is bound"));
        Running {
            connector: Arc::new(LineConnector::new(address)),
            listener: Box::new(listener),
            guard: middle,
        }
    }

    async fn cut(&self, middle: &Middle, _: &DeviceId) {
        middle.connections.lock().unwrap().drain(..).for_each(|connection| connection.abort());
    }
}

relay_core::transport_conformance!(Lines);
