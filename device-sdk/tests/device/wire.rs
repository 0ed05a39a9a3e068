//! Sessions of the test's own making: what a transport and a relay may do that ours seldom does.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use device_sdk::{Event, ObjectId, Request, RequestId};
use relay_core::{
    envelope::Envelope,
    error::TransportError,
    ids::SessionId,
    transport::{
        CloseReason, ConnectOptions, Connector, Inbound, Push, Queue, Session, Started, TransportInfo,
    },
};

use crate::world::{World, device_id, toner, until};

/// A session on which the relay pushes a last request while the device says goodbye.
#[derive(Debug)]
struct LastWord(Option<Arc<dyn Inbound>>);

#[async_trait]
impl Push for LastWord {
    fn start(&mut self, started: Started) {
        started.inbound.envelope(Envelope::Pong).unwrap();
        self.0 = Some(started.inbound);
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        while queue.take().is_some() {}
        Ok(())
    }

    fn refresh(&mut self) {}

    async fn close(&mut self, _: CloseReason) {
        let request = Arc::new(Request::get(device_id(), ObjectId::new("toner").unwrap()));
        let deadline = tokio::time::Instant::now().into_std() + Duration::from_secs(30);
        let id = RequestId::new("last").unwrap();
        self.0.take().unwrap().envelope(Envelope::Request { id, request, deadline }).unwrap();
    }
}

#[derive(Debug)]
struct LastWords;

#[async_trait]
impl Connector for LastWords {
    fn info(&self) -> TransportInfo {
        TransportInfo::new("last-words")
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        Ok(Session::new(options.device, SessionId::new("s").unwrap(), self.info(), Box::new(LastWord(None))))
    }
}

#[tokio::test(start_paused = true)]
async fn l1_what_is_pushed_while_the_device_says_goodbye_is_answered_all_the_same() {
    let world = World::new();
    let device = world.device(toner()).connector(Arc::new(LastWords)).start().await.unwrap();
    let mut events = device.events();
    device.online().await.unwrap();
    device.set_maintenance(false).await.unwrap();
    until(&mut events, |event| matches!(event, Event::Settled { .. })).await;
    assert_eq!(world.count("respond"), 1);

    let world = World::new();
    let device = world.device(toner()).connector(Arc::new(LastWords)).start().await.unwrap();
    device.online().await.unwrap();
    device.shutdown(Duration::from_secs(1)).await;
    assert_eq!(world.count("respond"), 1);
}
