//! Sessions of the test's own making: what a transport and a relay may do that ours seldom does.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use device_sdk::{Event, ObjectId, OnQuiet, Request, RequestId};
use relay_core::{
    envelope::Envelope,
    error::TransportError,
    ids::SessionId,
    transport::{
        CloseReason, ConnectOptions, Connector, Inbound, Push, Queue, Session, Started, TransportInfo,
    },
};

use crate::world::{World, device_id, toner, until};

fn request(n: usize) -> Envelope {
    let request = Arc::new(Request::get(device_id(), ObjectId::new("toner").unwrap()));
    let deadline = tokio::time::Instant::now().into_std() + Duration::from_secs(30);
    Envelope::Request { id: RequestId::new(&format!("r{n}")).unwrap(), request, deadline }
}

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
        self.0.take().unwrap().envelope(request(0)).unwrap();
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

/// Sessions that the test speaks on, and that take what it wants them to take.
#[derive(Debug, Clone)]
struct Script {
    inbound: Arc<Mutex<Option<Arc<dyn Inbound>>>>,
    taken: Arc<Mutex<Vec<Envelope>>>,
    takes: tokio::sync::watch::Sender<bool>,
}

impl Script {
    fn new() -> Self {
        let takes = tokio::sync::watch::Sender::new(true);
        Self { inbound: Arc::default(), taken: Arc::default(), takes }
    }

    /// The relay says all of this at once.
    fn says(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        let inbound = self.inbound.lock().unwrap().clone().expect("a session");
        for envelope in envelopes {
            inbound.envelope(envelope).unwrap();
        }
    }

    fn responses(&self) -> usize {
        let taken = self.taken.lock().unwrap();
        taken.iter().filter(|envelope| matches!(envelope, Envelope::Response { .. })).count()
    }
}

#[async_trait]
impl Push for Script {
    fn start(&mut self, started: Started) {
        started.inbound.envelope(Envelope::Pong).unwrap();
        *self.inbound.lock().unwrap() = Some(started.inbound);
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        self.takes.subscribe().wait_for(|takes| *takes).await.unwrap();
        self.taken.lock().unwrap().extend(std::iter::from_fn(|| queue.take()));
        Ok(())
    }

    fn refresh(&mut self) {}

    async fn close(&mut self, _: CloseReason) {}
}

#[async_trait]
impl Connector for Script {
    fn info(&self) -> TransportInfo {
        TransportInfo::new("script")
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        Ok(Session::new(options.device, SessionId::new("s").unwrap(), self.info(), Box::new(self.clone())))
    }
}

#[tokio::test(start_paused = true)]
async fn s6_a_stalled_session_collects_no_copies_of_an_answer() {
    let script = Script::new();
    let builder = World::new().device(toner()).connector(Arc::new(script.clone())).on_quiet(OnQuiet::Off);
    let device = builder.start().await.unwrap();
    device.online().await.unwrap();
    script.takes.send_replace(false);
    script.says((0..3).map(request));
    // Ten times what an acknowledgement is waited for.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(script.responses(), 0);
    script.takes.send_replace(true);
    // Not for long: what is not acknowledged is said again, at a time of its own.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(script.responses(), 3);
    assert!(device.is_online());
}

#[tokio::test(start_paused = true)]
async fn l2_what_comes_with_a_drain_is_handled_and_then_the_device_goes() {
    let (world, script) = (World::new(), Script::new());
    let device = world.device(toner()).connector(Arc::new(script.clone())).start().await.unwrap();
    let mut events = device.events();
    device.online().await.unwrap();
    let drain = Envelope::Drain { retry_after: Duration::from_secs(40), to: None };
    script.says([request(0), drain.clone(), request(1), drain, request(2)]);
    let mut settled = 0;
    let retry_in = loop {
        match until(&mut events, |event| matches!(event, Event::Settled { .. } | Event::Offline { .. })).await
        {
            Event::Offline { retry_in, .. } => break retry_in,
            _ => settled += 1,
        }
    };
    assert!(retry_in >= Duration::from_secs(40), "{retry_in:?}");
    while settled < 3 {
        until(&mut events, |event| matches!(event, Event::Settled { .. })).await;
        settled += 1;
    }
    assert_eq!(world.count("respond"), 3);
}
