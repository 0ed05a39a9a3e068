//! The whole device against the real engine, over the in-memory transport, in paused time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use device_sdk::{
    Body, Builder, Context, Device, DeviceId, Event, Events, HandlerError, HttpError, HttpErrorKind, Method,
    ObjectId, OnlineError, ReconnectConfig, Registration, RelayHttp, Request, RequestId, RespondBy, Response,
    Router, SessionState, Set, StartError, Verdict,
};
use relay_core::{
    Call, Relay,
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::SessionId,
    memory::{self, MemoryConnector},
    outcome::RequestError,
    relay::{Answer, State},
    transport::{
        CloseReason, ConnectOptions, Connector, Inbound, Push, Queue, Session, Started, TransportInfo,
    },
};

const PIN: &str = "12345678";
const TOKEN: &str = "token";

fn device_id() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

/// Lets in whoever shows the token.
#[derive(Debug)]
struct Door;

#[async_trait]
impl Authenticator for Door {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        match credentials {
            Credentials::Device { device, token } if token.expose() == TOKEN => {
                Ok(Principal::Device(device.clone()))
            }
            _ => Err(AuthError::Rejected),
        }
    }

    async fn verifier(&self, _: &DeviceId, _: ScramHash) -> Result<ScramVerifier, AuthError> {
        Err(AuthError::Unavailable)
    }
}

/// A relay that can be stopped and started anew, and what the device said to it.
#[derive(Debug, Clone)]
struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    relay: Mutex<(Relay, MemoryConnector)>,
    calls: Mutex<Vec<String>>,
    pin: Mutex<Option<String>>,
    /// Nothing reaches the relay.
    down: AtomicBool,
    /// So many answers by HTTP are lost before one arrives.
    lose: AtomicUsize,
}

fn start_relay() -> (Relay, MemoryConnector) {
    let (connector, listener) = memory::transport(Arc::new(Door));
    let relay = Relay::builder().build();
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(Box::new(listener)).await });
    (relay, connector)
}

impl World {
    fn new() -> Self {
        Self(Arc::new(Inner {
            relay: Mutex::new(start_relay()),
            calls: Mutex::default(),
            pin: Mutex::new(Some(PIN.to_owned())),
            down: AtomicBool::new(false),
            lose: AtomicUsize::new(0),
        }))
    }

    fn relay(&self) -> Relay {
        self.0.relay.lock().unwrap().0.clone()
    }

    fn connector(&self) -> MemoryConnector {
        self.0.relay.lock().unwrap().1.clone()
    }

    /// The relay dies without a word, and another with nothing in its memory takes its place.
    fn restart_relay(&self) {
        let before = std::mem::replace(&mut *self.0.relay.lock().unwrap(), start_relay());
        before.1.cut(&device_id());
    }

    fn log(&self, call: impl Into<String>) -> Result<(), HttpError> {
        if self.0.down.load(Ordering::SeqCst) {
            return Err(HttpError::new(HttpErrorKind::Unreachable, "down"));
        }
        self.calls().push(call.into());
        Ok(())
    }

    fn calls(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.calls.lock().unwrap()
    }

    fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|made| made.starts_with(call)).count()
    }

    fn device(&self, router: Router) -> Builder {
        Device::builder("https://relay.test", "printer-1")
            .token(TOKEN)
            .router(router)
            .connector(Arc::new(self.clone()))
            .relay_http(Arc::new(self.clone()))
    }

    async fn ask(&self, request: Request) -> Result<Answer, RequestError> {
        self.relay().request(Call::new(request)).await.map_err(|error| error.error)
    }

    async fn get(&self, object: &str) -> Result<String, RequestError> {
        let answer = self.ask(Request::get(device_id(), ObjectId::new(object).unwrap())).await?;
        Ok(words(&answer.response))
    }

    fn state(&self) -> Option<State> {
        self.relay().presence(&device_id()).map(|presence| presence.state)
    }
}

fn words(response: &Response) -> String {
    let body = response.body.as_ref().map_or("", |body| std::str::from_utf8(&body.bytes).unwrap());
    format!("{} {body}", response.status.as_str())
}

#[async_trait]
impl Connector for World {
    fn info(&self) -> TransportInfo {
        self.connector().info()
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let resuming = if options.resume.is_some() { "connect resuming" } else { "connect" };
        self.log(resuming).map_err(|_| TransportError::new("memory", ErrorKind::Unreachable, "down"))?;
        let connector = self.connector();
        connector.connect(options).await
    }
}

#[async_trait]
impl RelayHttp for World {
    async fn enroll(&self, device: &DeviceId, pin: &Secret) -> Result<Secret, HttpError> {
        self.log("enroll")?;
        let mut good = self.0.pin.lock().unwrap();
        if good.as_deref() != Some(pin.expose()) {
            return Err(HttpError::new(HttpErrorKind::Unauthenticated, "not accepted"));
        }
        *good = None;
        self.relay().know(device);
        Ok(Secret::new(TOKEN))
    }

    async fn register(
        &self,
        device: &DeviceId,
        token: &Secret,
        registration: &Registration,
    ) -> Result<(), HttpError> {
        self.log(format!("register {}", registration.name.as_deref().unwrap_or("")))?;
        if token.expose() != TOKEN {
            return Err(HttpError::new(HttpErrorKind::Unauthenticated, "not accepted"));
        }
        self.relay().registered(device, registration.keepalive);
        Ok(())
    }

    async fn alive(&self, device: &DeviceId, _: &Secret, session: &SessionId) -> Result<bool, HttpError> {
        self.log("alive")?;
        if !self.relay().knows(device) {
            return Err(HttpError::new(HttpErrorKind::UnknownDevice, "unknown device"));
        }
        Ok(self.relay().alive(device, session))
    }

    async fn respond(&self, _: &Secret, id: &RequestId, response: &Response) -> Result<Verdict, HttpError> {
        self.log("respond")?;
        let lost =
            self.0.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if lost {
            return Err(HttpError::new(HttpErrorKind::Unreachable, "lost"));
        }
        Ok(self.relay().respond(&device_id(), id, response.clone()).into())
    }
}

fn toner() -> Router {
    Router::new().get("toner", || async { Ok(83) })
}

async fn until(events: &mut Events, wanted: impl Fn(&Event) -> bool + Send + Sync) -> Event {
    tokio::time::timeout(Duration::from_secs(7200), async {
        loop {
            let event = events.next().await.expect("the device is there");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
    .expect("it comes")
}

fn is_online(event: &Event) -> bool {
    matches!(event, Event::Online { .. })
}

#[tokio::test(start_paused = true)]
async fn s2_it_registers_then_opens_its_session_and_answers() {
    let world = World::new();
    let device =
        world.device(toner()).registration(Registration::new().name("Copy room")).start().await.unwrap();
    device.online().await.unwrap();
    assert_eq!(*world.calls(), ["register Copy room", "connect"]);
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    assert_eq!(world.get("ink").await.unwrap(), "unknown-object the device has no such object");
}

#[tokio::test(start_paused = true)]
async fn s6_answers_go_by_http_or_in_the_session_as_the_vendor_chose() {
    for (way, by_http) in [(Some(RespondBy::Http), 1), (Some(RespondBy::Session), 0), (None, 0)] {
        let world = World::new();
        let mut builder = world.device(toner());
        if let Some(way) = way {
            builder = builder.respond_by(way);
        }
        let device = builder.start().await.unwrap();
        let mut events = device.events();
        device.online().await.unwrap();
        assert_eq!(world.get("toner").await.unwrap(), "ok 83");
        let settled = until(&mut events, |event| matches!(event, Event::Settled { .. })).await;
        assert!(matches!(settled, Event::Settled { verdict: Verdict::Accepted, .. }), "{settled:?}");
        assert_eq!(world.count("respond"), by_http, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s6_an_answer_that_was_lost_is_sent_again_until_it_arrives() {
    let world = World::new();
    let device = world.device(toner()).respond_by(RespondBy::Http).start().await.unwrap();
    device.online().await.unwrap();
    world.0.lose.store(4, Ordering::SeqCst);
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    assert_eq!(world.count("respond"), 5);
}

#[tokio::test(start_paused = true)]
async fn s6_an_answer_too_large_for_the_session_goes_by_http() {
    let world = World::new();
    let router = Router::new().get("page", || async { Ok(vec![7u8; 128 * 1024 + 1]) });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let answer = world.ask(Request::get(device_id(), ObjectId::new("page").unwrap())).await.unwrap();
    assert_eq!(answer.response.body.unwrap().bytes.len(), 128 * 1024 + 1);
    assert_eq!(world.count("respond"), 1);
}

#[tokio::test(start_paused = true)]
async fn s5_a_slow_handler_blocks_no_other_push_and_no_keep_alive() {
    let world = World::new();
    let router = toner().get("slow", || async {
        tokio::time::sleep(Duration::from_secs(500)).await;
        Ok("at last")
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let slow = Call::new(Request::get(device_id(), ObjectId::new("slow").unwrap()))
        .with_wait(Duration::from_secs(600));
    let relay = world.relay();
    let slow = tokio::spawn(async move { relay.request(slow).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(world.count("alive") >= 3, "{:?}", world.calls());
    assert_eq!(words(&slow.await.unwrap().unwrap().response), "ok at last");
}

#[tokio::test(start_paused = true)]
async fn s5_no_more_handlers_run_at_once_than_allowed() {
    let world = World::new();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, peak) = (running.clone(), most.clone());
    let router = Router::new().get("*", move || {
        let (inside, peak) = (inside.clone(), peak.clone());
        async move {
            peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let device = world.device(router).concurrency(4).start().await.unwrap();
    device.online().await.unwrap();
    let asking: Vec<_> = (0..40)
        .map(|n| {
            let world = world.clone();
            tokio::spawn(async move { world.get(&format!("o{n}")).await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap().unwrap(), "ok ");
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn f29_a_handler_that_panics_costs_its_own_call_alone() {
    let world = World::new();
    let router = toner()
        .get("bug", || async { if true { panic!("a vendor's bug") } else { Ok(()) } })
        .get("early", || -> std::future::Ready<Result<(), HandlerError>> {
            panic!("before the first await")
        });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    for object in ["bug", "early"] {
        assert_eq!(world.get(object).await.unwrap(), "handler-panicked the device's handler panicked");
    }
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
}

#[tokio::test(start_paused = true)]
async fn f5_when_the_service_hangs_up_the_handler_is_told() {
    let world = World::new();
    let told = Arc::new(tokio::sync::Notify::new());
    let telling = told.clone();
    let router = Router::new().get("long", move |context: Context| {
        let telling = telling.clone();
        async move {
            assert!(context.remaining() > Duration::from_secs(20));
            context.cancelled().await;
            telling.notify_one();
            Ok(())
        }
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let hung_up = tokio::time::timeout(Duration::from_secs(2), world.get("long")).await;
    assert!(hung_up.is_err());
    tokio::time::timeout(Duration::from_secs(1), told.notified()).await.expect("within a second");
}

#[tokio::test(start_paused = true)]
async fn q7_a_set_reaches_a_typed_handler_and_answers_the_value_now_in_force() {
    let world = World::new();
    let router = Router::new().set("level", |Set(level): Set<u8>| async move { Ok(level.min(100)) });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let set = |value: &str| Request::set(device_id(), ObjectId::new("level").unwrap(), Body::text(value));
    assert_eq!(words(&world.ask(set("200")).await.unwrap().response), "ok 100");
    assert!(words(&world.ask(set("full")).await.unwrap().response).starts_with("bad-value"));
}

#[tokio::test(start_paused = true)]
async fn s5_a_vendor_s_own_method_reaches_its_handler() {
    let world = World::new();
    let router = Router::new().method("REBOOT", |request: Request| async move { Ok(request.objects.len()) });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let answer = world.ask(Request::new(device_id(), Method::new("REBOOT").unwrap())).await.unwrap();
    assert_eq!(words(&answer.response), "ok 0");
}

#[tokio::test(start_paused = true)]
async fn s3_a_quiet_device_asks_whether_its_session_is_known() {
    let world = World::new();
    let device = world.device(toner()).keepalive(Duration::from_secs(60)).start().await.unwrap();
    let mut events = device.events();
    device.online().await.unwrap();
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    let survived = until(&mut events, |event| matches!(event, Event::Survival { .. })).await;
    assert_eq!(survived, Event::Survival { known: Some(true) });
    assert!(device.is_online());
    assert_eq!(world.count("connect"), 1);
}

#[tokio::test(start_paused = true)]
async fn s10_after_the_relay_died_and_came_back_pushes_work_untouched() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    let mut events = device.events();
    until(&mut events, is_online).await;
    for _ in 0..5 {
        world.restart_relay();
        until(&mut events, |event| matches!(event, Event::Offline { .. })).await;
        until(&mut events, is_online).await;
        assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    }
}

#[tokio::test(start_paused = true)]
async fn s10_it_never_gives_up() {
    let world = World::new();
    world.0.down.store(true, Ordering::SeqCst);
    let device = world.device(toner()).start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(7 * 24 * 3600)).await;
    assert_ne!(device.session_state(), SessionState::Online);
    world.0.down.store(false, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(30), device.online()).await.expect("soon").unwrap();
}

#[tokio::test(start_paused = true)]
async fn s1_maintenance_can_be_switched_at_run_time_and_survives_a_restart() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let device = world.device(toner()).state_folder(folder.path()).start().await.unwrap();
    device.online().await.unwrap();
    device.set_maintenance(false).await.unwrap();
    device.watch().wait_for(|state| *state == SessionState::Off).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), async {
        while world.state() != Some(State::Offline) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("a clean goodbye is offline at once");
    assert_eq!(world.get("toner").await, Err(RequestError::DeviceOffline));
    device.shutdown(Duration::ZERO).await;

    let calls = world.calls().len();
    let device = world.device(toner()).state_folder(folder.path()).start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(device.online().await, Err(OnlineError::Off));
    assert!(!device.maintenance());
    assert_eq!(world.calls().len(), calls, "off, it calls nobody");
    device.set_maintenance(true).await.unwrap();
    device.watch().wait_for(|state| *state == SessionState::Online).await.unwrap();
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
}

#[tokio::test(start_paused = true)]
async fn x1_it_enrolls_once_and_has_its_credential_after_a_restart() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let build = || {
        Device::builder("https://relay.test", "printer-1")
            .state_folder(folder.path())
            .connector(Arc::new(world.clone()))
            .relay_http(Arc::new(world.clone()))
    };
    assert!(matches!(build().start().await, Err(StartError::NoCredential)));
    let device = build().pin(PIN).start().await.unwrap();
    device.online().await.unwrap();
    assert_eq!(*world.calls(), ["enroll", "register ", "connect"]);
    device.shutdown(Duration::ZERO).await;
    let device = build().pin(PIN).start().await.unwrap();
    device.online().await.unwrap();
    assert_eq!(world.calls()[3..], ["register ", "connect resuming"]);
}

#[tokio::test(start_paused = true)]
async fn t11_a_wrong_pin_is_tried_once_and_a_new_one_mends_it() {
    let world = World::new();
    let device = Device::builder("https://relay.test", "printer-1")
        .pin("00000000")
        .connector(Arc::new(world.clone()))
        .relay_http(Arc::new(world.clone()))
        .start()
        .await
        .unwrap();
    assert_eq!(device.online().await, Err(OnlineError::Refused));
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(world.count("enroll"), 1);
    device.enroll(PIN).await.unwrap();
    device.watch().wait_for(|state| *state == SessionState::Online).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn p6_a_replaced_device_is_told_and_stays_away() {
    let world = World::new();
    let first = world.device(toner()).start().await.unwrap();
    let mut events = first.events();
    first.online().await.unwrap();
    let second = world.device(toner()).start().await.unwrap();
    second.online().await.unwrap();
    let event = until(&mut events, |event| matches!(event, Event::Offline { .. })).await;
    let Event::Offline { reason, retry_in } = event else { unreachable!() };
    assert_eq!(reason, relay_core::transport::EndReason::Replaced);
    assert!(retry_in >= Duration::from_secs(30), "{retry_in:?}");
    assert!(second.is_online());
}

#[tokio::test(start_paused = true)]
async fn k2_dropping_the_last_handle_ends_the_device() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    device.online().await.unwrap();
    let other = device.clone();
    drop(device);
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    let mut watch = other.watch();
    drop(other);
    watch.wait_for(|state| *state == SessionState::Stopped).await.unwrap();
    assert_eq!(world.get("toner").await, Err(RequestError::DeviceOffline));
}

#[tokio::test(start_paused = true)]
async fn k2_shutting_down_lets_what_is_at_work_finish() {
    for way in [RespondBy::Http, RespondBy::Session] {
        let world = World::new();
        let begun = Arc::new(tokio::sync::Notify::new());
        let telling = begun.clone();
        let router = Router::new().get("slow", move || {
            telling.notify_one();
            async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok("done")
            }
        });
        let device = world.device(router).respond_by(way).start().await.unwrap();
        device.online().await.unwrap();
        let asking = tokio::spawn({
            let world = world.clone();
            async move { world.get("slow").await }
        });
        begun.notified().await;
        device.shutdown(Duration::MAX).await;
        assert_eq!(asking.await.unwrap().unwrap(), "ok done");
        assert_eq!(device.session_state(), SessionState::Stopped);
        assert!(device.set_maintenance(true).await.is_err());
        assert_eq!(device.online().await, Err(OnlineError::Stopped));
        device.shutdown(Duration::MAX).await;
    }
}

#[tokio::test(start_paused = true)]
async fn k2_a_handler_without_end_does_not_hold_up_the_shutdown_beyond_its_grace() {
    let world = World::new();
    let begun = Arc::new(tokio::sync::Notify::new());
    let telling = begun.clone();
    let router = Router::new().get("never", move || {
        telling.notify_one();
        std::future::pending::<Result<(), HandlerError>>()
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let asking = tokio::spawn({
        let world = world.clone();
        async move { world.get("never").await }
    });
    begun.notified().await;
    let before = tokio::time::Instant::now();
    device.shutdown(Duration::from_secs(3)).await;
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    assert!(asking.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn events_that_a_slow_reader_missed_are_counted_not_hidden() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    device.online().await.unwrap();
    let mut events = device.events();
    for _ in 0..200 {
        world.get("toner").await.unwrap();
    }
    assert!(matches!(events.next().await, Some(Event::Lagged { missed }) if missed > 0));
}

#[tokio::test(start_paused = true)]
async fn p1_registering_again_tells_the_relay_what_changed() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    let mut events = device.events();
    until(&mut events, is_online).await;
    device.register(Registration::new().name("Lobby")).await.unwrap();
    until(&mut events, |event| *event == Event::Registered).await;
    assert_eq!(world.calls().last().unwrap(), "register Lobby");
    assert!(device.is_online());
}

#[tokio::test]
async fn what_cannot_be_is_said_at_the_start() {
    let world = World::new();
    let build = || world.device(Router::new());
    assert!(matches!(
        Device::builder("https://relay.test", "no id!").token("t").start().await,
        Err(StartError::DeviceId(_))
    ));
    assert!(matches!(
        Device::builder("http://relay.test", "printer-1").token("t").start().await,
        Err(StartError::Plaintext)
    ));
    assert!(matches!(
        build().keepalive(Duration::from_millis(999)).start().await,
        Err(StartError::Setting { setting: "keepalive", .. })
    ));
    let mut reconnect = ReconnectConfig::default();
    reconnect.longest = Duration::MAX;
    assert!(matches!(
        build().reconnect(reconnect).start().await,
        Err(StartError::Setting { setting: "reconnect", .. })
    ));
    assert!(matches!(build().concurrency(0).start().await, Err(StartError::Setting { .. })));
    let twice = Router::new().get("a", || async { Ok(1) }).get("a", || async { Ok(2) });
    assert!(matches!(build().router(twice).start().await, Err(StartError::Route { .. })));
}

#[tokio::test(start_paused = true)]
async fn q1_many_requests_at_once_each_get_their_own_answer() {
    let world = World::new();
    let router = Router::new().get("*", |object: ObjectId| async move {
        tokio::time::sleep(Duration::from_millis(object.as_str().len() as u64)).await;
        Ok(format!("value of {object}"))
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let mut answers = HashMap::new();
    for round in 0..20 {
        let asking: Vec<_> = (0..50)
            .map(|n| {
                let (world, object) = (world.clone(), format!("{round}/{n}"));
                tokio::spawn(async move { (object.clone(), world.get(&object).await.unwrap()) })
            })
            .collect();
        for asked in asking {
            let (object, answer) = asked.await.unwrap();
            answers.insert(object, answer);
        }
    }
    assert_eq!(answers.len(), 1000);
    for (object, answer) in answers {
        assert_eq!(answer, format!("ok value of {object}"));
    }
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
