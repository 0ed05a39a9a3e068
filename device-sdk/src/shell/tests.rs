//! L2: a device that is sent from relay to relay, over relays that note who calls them.

use std::sync::Mutex;

use async_trait::async_trait;
use relay_core::{
    book::BookDocument,
    error::ErrorKind,
    ids::{AccountId, BookId, ObjectId, SessionId},
    transport::{ConnectOptions, Connector, Inbound, Queue, Session, TransportInfo},
};

use super::*;
use crate::{
    BookReport, BookVerdict, Builder, Device, HttpError, HttpErrorKind, JobPart, RelayHttp, RespondBy,
    relays::Open,
};

/// All relays there are.
#[derive(Debug, Clone, Default)]
struct World(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    calls: Vec<String>,
    inbound: Option<Arc<dyn Inbound>>,
    down: Option<&'static str>,
}

/// One of them.
#[derive(Debug, Clone)]
struct Relay {
    host: String,
    world: World,
}

impl World {
    fn device(&self) -> Builder {
        let world = self.clone();
        let router = Router::new().get("toner", || async { Ok(83) });
        let mut builder = Device::builder("https://home.example", "printer-1").token("token").router(router);
        builder.open = Some(Open::new(move |url| {
            let host = url.as_url().host_str().unwrap_or_default().to_owned();
            let relay = Arc::new(Relay { host, world: world.clone() });
            Ok(Ways::new(relay.clone(), relay))
        }));
        builder.respond_by(RespondBy::Http)
    }

    /// The relay that the device is at says this.
    fn says(&self, envelope: Envelope) {
        let inbound = self.0.lock().unwrap().inbound.clone().expect("a session");
        inbound.envelope(envelope).unwrap();
    }

    fn drains(&self, to: Option<&str>) {
        self.says(Envelope::Drain { retry_after: Duration::from_secs(5), to: to.map(Into::into) });
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
}

impl Relay {
    fn note(&self, call: &str) -> bool {
        let mut noted = self.world.0.lock().unwrap();
        noted.calls.push(format!("{} {call}", self.host));
        noted.down != Some(&*self.host)
    }

    fn called(&self, call: &str) -> Result<(), HttpError> {
        match self.note(call) {
            true => Ok(()),
            false => Err(HttpError::new(HttpErrorKind::Unreachable, "down")),
        }
    }
}

#[async_trait]
impl Connector for Relay {
    fn info(&self) -> TransportInfo {
        TransportInfo::new("noted")
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        if !self.note("connect") {
            return Err(TransportError::new("noted", ErrorKind::Unreachable, "down"));
        }
        let push = Box::new(Link { world: self.world.clone() });
        Ok(Session::new(options.device, SessionId::new("s").unwrap(), self.info(), push))
    }
}

#[async_trait]
impl RelayHttp for Relay {
    async fn enroll(&self, _: &DeviceId, _: &Secret) -> Result<Secret, HttpError> {
        self.called("enroll").map(|()| Secret::new("token"))
    }

    async fn register(&self, _: &DeviceId, _: &Secret, _: &Registration) -> Result<(), HttpError> {
        self.called("register")
    }

    async fn alive(&self, _: &DeviceId, _: &Secret, _: &SessionId) -> Result<bool, HttpError> {
        self.called("alive").map(|()| true)
    }

    async fn respond(&self, _: &Secret, _: &RequestId, _: &Response) -> Result<Verdict, HttpError> {
        self.called("respond").map(|()| Verdict::Accepted)
    }

    async fn job_data(&self, _: &Secret, _: &RequestId, _: u64) -> Result<Option<JobPart>, HttpError> {
        self.called("job_data").map(|()| None)
    }

    async fn report_book(&self, _: &Secret, _: &BookReport) -> Result<BookVerdict, HttpError> {
        self.called("report_book").map(|()| BookVerdict::Stale)
    }

    async fn book(
        &self,
        _: &Secret,
        _: Option<&AccountId>,
        _: &BookId,
    ) -> Result<Option<BookDocument>, HttpError> {
        self.called("book").map(|()| None)
    }
}

#[derive(Debug)]
struct Link {
    world: World,
}

#[async_trait]
impl Push for Link {
    fn start(&mut self, started: Started) {
        started.inbound.envelope(Envelope::Pong).unwrap();
        self.world.0.lock().unwrap().inbound = Some(started.inbound);
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        while queue.take().is_some() {}
        Ok(())
    }

    fn refresh(&mut self) {}

    async fn close(&mut self, _: CloseReason) {}
}

async fn until(events: &mut crate::Events, wanted: impl Fn(&Event) -> bool + Send + Sync) -> Event {
    let found = async {
        loop {
            let event = events.next().await.expect("the device is there");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(3_600), found).await.expect("it comes")
}

fn is_online(event: &Event) -> bool {
    matches!(event, Event::Online { .. })
}

fn is_sent_away(event: &Event) -> bool {
    matches!(event, Event::SentAway { .. })
}

#[tokio::test(start_paused = true)]
async fn l2_a_device_comes_back_where_its_relay_says_if_its_vendor_allowed_that() {
    let world = World::default();
    let device = world.device().allow_relays(["https://next.example"]).start().await.unwrap();
    let mut events = device.events();
    until(&mut events, is_online).await;
    assert_eq!(world.calls(), ["home.example register", "home.example connect"]);
    let before = tokio::time::Instant::now();
    world.drains(Some("https://next.example/"));
    let sent = until(&mut events, is_sent_away).await;
    assert_eq!(sent, Event::SentAway { to: "https://next.example/".into(), followed: true });
    until(&mut events, is_online).await;
    assert!(before.elapsed() >= Duration::from_secs(5), "{:?}", before.elapsed());
    assert_eq!(world.calls(), ["next.example register", "next.example connect"]);
    // Answers go there too.
    let request =
        Arc::new(Request::get(DeviceId::new("printer-1").unwrap(), ObjectId::new("toner").unwrap()));
    let deadline = crate::now() + Duration::from_secs(30);
    world.says(Envelope::Request { id: RequestId::new("r1").unwrap(), request, deadline });
    until(&mut events, |event| matches!(event, Event::Settled { .. })).await;
    assert_eq!(world.calls(), ["next.example respond"]);
}

#[tokio::test(start_paused = true)]
async fn t15_a_device_shows_its_credential_to_no_relay_that_was_not_allowed() {
    let world = World::default();
    let device = world.device().allow_relays(["https://next.example"]).start().await.unwrap();
    let mut events = device.events();
    until(&mut events, is_online).await;
    for to in ["https://evil.example/", "http://next.example/", "https://next.example.evil.example/", "?"] {
        world.calls();
        world.drains(Some(to));
        let sent = until(&mut events, is_sent_away).await;
        assert_eq!(sent, Event::SentAway { to: to.into(), followed: false });
        until(&mut events, is_online).await;
        assert_eq!(world.calls(), ["home.example connect"], "{to}");
    }
}

#[tokio::test(start_paused = true)]
async fn l2_a_device_that_finds_nobody_where_it_was_sent_comes_home() {
    let world = World::default();
    world.0.lock().unwrap().down = Some("next.example");
    let device = world.device().allow_relays(["https://*.example", "https://next.example"]);
    assert!(device.start().await.is_err(), "every name below a registry's");
    let device = world.device().allow_relays(["https://next.example"]).start().await.unwrap();
    let mut events = device.events();
    until(&mut events, is_online).await;
    world.calls();
    world.drains(Some("https://next.example/"));
    until(&mut events, is_sent_away).await;
    until(&mut events, is_online).await;
    assert_eq!(world.calls(), ["next.example register", "home.example register", "home.example connect"]);
}
