//! The in-memory transport passes the kit that every other transport is held to.

use std::sync::Arc;

use async_trait::async_trait;
use relay_core::{
    auth::Authenticator,
    conformance::{Harness, Running},
    ids::DeviceId,
    memory::{self, MemoryConnector},
    transport::{Connector, TransportInfo},
};

#[derive(Debug)]
struct Memory;

#[async_trait]
impl Harness for Memory {
    type Guard = MemoryConnector;

    fn info(&self) -> TransportInfo {
        TransportInfo::new("memory").with_channels()
    }

    async fn start(&self, authenticator: Arc<dyn Authenticator>) -> Running<MemoryConnector> {
        let (connector, listener) = memory::transport(authenticator);
        Running { guard: connector.clone(), connector: Arc::new(connector), listener: Box::new(listener) }
    }

    async fn cut(&self, connector: &MemoryConnector, device: &DeviceId) {
        assert_eq!(connector.info(), self.info());
        connector.cut(device);
    }
}

relay_core::transport_conformance!(Memory);
