//! The whole relay over the in-memory transport, in paused time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{
    Body, Call, Relay, Request, Response,
    conformance::{Let, token},
    envelope::Envelope,
    ids::{DeviceId, Method, ObjectId, RequestId, SessionId},
    memory::{self, MemoryConnector},
    outcome::{Disposition, Outcome, RequestError},
    relay::{RelayConfig, State, Translate},
    transport::{ConnectOptions, Connector, EndReason, Full, Inbound, Push, Started},
};
use tokio::sync::mpsc;

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn get(device: &str, object: &str) -> Call {
    Call::new(Request::get(id(device), ObjectId::new(object).unwrap()))
}

fn relay() -> (Relay, MemoryConnector) {
    start(Relay::default())
}

fn start(relay: Relay) -> (Relay, MemoryConnector) {
    let (connector, listener) = memory::transport(Arc::new(Let));
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(Box::new(listener)).await });
    (relay, connector)
}

/// A device by hand: what it gets can be read, and it can say anything.
struct Device {
    name: DeviceId,
    session: SessionId,
    resumed: bool,
    got: mpsc::Receiver<Envelope>,
    ended: mpsc::Receiver<EndReason>,
    push: Box<dyn Push>,
}

#[derive(Debug)]
struct Ears {
    got: mpsc::Sender<Envelope>,
    ended: mpsc::Sender<EndReason>,
    deaf: Mutex<bool>,
}

impl Inbound for Ears {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        if *self.deaf.lock().unwrap() {
            return Err(Full(envelope));
        }
        self.got.try_send(envelope).map_err(|error| Full(error.into_inner()))
    }
    fn ended(&self, reason: EndReason) {
        let _ = self.ended.try_send(reason);
    }
}

impl Device {
    async fn connect(connector: &MemoryConnector, name: &str, resume: Option<SessionId>) -> Self {
        Self::connect_deaf(connector, name, resume, false).await
    }

    async fn connect_deaf(
        connector: &MemoryConnector,
        name: &str,
        resume: Option<SessionId>,
        deaf: bool,
    ) -> Self {
        let deadline = (tokio::time::Instant::now() + Duration::from_secs(10)).into_std();
        let options = ConnectOptions::new(id(name), token(), deadline).resuming(resume);
        let session = connector.connect(options).await.unwrap();
        let (got_tx, got) = mpsc::channel(1000);
        let (ended_tx, ended) = mpsc::channel(8);
        let mut push = session.push;
        let ears = Ears { got: got_tx, ended: ended_tx, deaf: Mutex::new(deaf) };
        push.start(Started::new(session.id.clone(), session.resumed, Arc::new(ears)));
        Self { name: id(name), session: session.id, resumed: session.resumed, got, ended, push }
    }

    async fn say(&mut self, envelope: Envelope) {
        let mut queue = VecDeque::from([envelope]);
        while !VecDeque::is_empty(&queue) {
            self.push.push(&mut queue).await.unwrap();
        }
    }

    async fn request(&mut self) -> (RequestId, Arc<Request>) {
        match self.got.recv().await.unwrap() {
            Envelope::Request { id, request, .. } => (id, request),
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&mut self, id: RequestId, text: &str) {
        let response = Response::with_body(Body::text(text));
        self.say(Envelope::Response { id, response, acknowledge: true }).await;
    }

    /// Answers every request with its object's name, for good.
    fn echo(mut self) {
        tokio::spawn(async move {
            while let Some(envelope) = self.got.recv().await {
                if let Envelope::Request { id, request, .. } = envelope {
                    self.answer(id, request.objects[0].as_str()).await;
                }
            }
        });
    }
}

async fn state(relay: &Relay, device: &str, wanted: State) {
    for _ in 0..10_000 {
        if relay.presence(&id(device)).is_some_and(|presence| presence.state == wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{device} never became {wanted:?}");
}

async fn answer_in_background(
    relay: &Relay,
    call: Call,
) -> tokio::task::JoinHandle<Result<String, RequestError>> {
    let relay = relay.clone();
    let handle = tokio::spawn(async move {
        let answer = relay.request(call).await.map_err(|error| error.error)?;
        Ok(String::from_utf8(answer.response.body.unwrap().bytes.to_vec()).unwrap())
    });
    tokio::task::yield_now().await;
    handle
}

#[tokio::test(start_paused = true)]
async fn q1_a_call_comes_back_with_the_devices_answer() {
    let (relay, connector) = relay();
    let mut device = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let call = answer_in_background(&relay, get("PRINTER-1", "toner")).await;
    let (id, request) = device.request().await;
    assert!(request.method.is_get());
    device.answer(id.clone(), "73").await;
    assert_eq!(call.await.unwrap(), Ok("73".to_owned()));
    let ack = device.got.recv().await.unwrap();
    assert_eq!(ack, Envelope::Ack { id: id.clone(), disposition: Disposition::Accepted });
    device.answer(id.clone(), "73").await;
    let ack = device.got.recv().await.unwrap();
    assert_eq!(ack, Envelope::Ack { id, disposition: Disposition::AlreadyAnswered });
}

#[tokio::test(start_paused = true)]
async fn q2_nobody_waits_for_a_device_that_is_not_there() {
    let (relay, _connector) = relay();
    relay.know(&id("printer-1"));
    let before = tokio::time::Instant::now();
    let offline = relay.request(get("printer-1", "toner")).await.unwrap_err();
    assert_eq!((offline.error.outcome(), offline.id), (Outcome::Offline, None));
    let unknown = relay.request(get("printer-2", "toner")).await.unwrap_err();
    assert_eq!(unknown.error.outcome(), Outcome::Unknown);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn q3_time_runs_out_truthfully() {
    let (relay, connector) = relay();
    let mut device = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let before = tokio::time::Instant::now();
    let call =
        answer_in_background(&relay, get("printer-1", "toner").with_wait(Duration::from_secs(5))).await;
    let (id, _) = device.request().await;
    assert_eq!(call.await.unwrap(), Err(RequestError::DeviceTimeout { received: false }));
    let late = before.elapsed();
    assert!(late >= Duration::from_secs(5) && late < Duration::from_millis(5100), "{late:?}");
    assert_eq!(device.got.recv().await.unwrap(), Envelope::Cancel { id: id.clone() });
    assert_eq!(relay.respond(&device.name, &id, Response::ok()), Disposition::TooLate);

    let call =
        answer_in_background(&relay, get("printer-1", "toner").with_wait(Duration::from_secs(5))).await;
    let (id, _) = device.request().await;
    device.say(Envelope::Received { id }).await;
    assert_eq!(call.await.unwrap(), Err(RequestError::DeviceTimeout { received: true }));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_cancels_its_request() {
    let (relay, connector) = relay();
    let mut device = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let call = answer_in_background(&relay, get("printer-1", "toner")).await;
    let (id, _) = device.request().await;
    call.abort();
    assert_eq!(device.got.recv().await.unwrap(), Envelope::Cancel { id: id.clone() });
    assert_eq!(relay.respond(&device.name, &id, Response::ok()), Disposition::TooLate);
    assert_eq!(relay.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn t4_response_from_another_device_is_forbidden_and_the_call_goes_on() {
    let (relay, connector) = relay();
    let mut device = Device::connect(&connector, "printer-1", None).await;
    let mut other = Device::connect(&connector, "printer-2", None).await;
    state(&relay, "printer-1", State::Online).await;
    let call = answer_in_background(&relay, get("printer-1", "toner")).await;
    let (id, _) = device.request().await;
    other.answer(id.clone(), "0").await;
    let ack = other.got.recv().await.unwrap();
    assert_eq!(ack, Envelope::Ack { id: id.clone(), disposition: Disposition::Forbidden });
    assert_eq!(relay.respond(&other.name, &id, Response::ok()), Disposition::Forbidden);
    assert_eq!(
        relay.respond(&device.name, &id, Response::with_body(Body::text("73"))),
        Disposition::Accepted
    );
    assert_eq!(call.await.unwrap(), Ok("73".to_owned()));
    let forged = RequestId::new("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").unwrap();
    assert_eq!(relay.respond(&device.name, &forged, Response::ok()), Disposition::Unknown);
}

#[tokio::test(start_paused = true)]
async fn p2_a_cut_connection_is_bridged_by_a_resumed_session() {
    let (relay, connector) = relay();
    let mut first = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let call = answer_in_background(&relay, get("printer-1", "toner")).await;
    let (id, _) = first.request().await;
    connector.cut(&first.name);
    assert_eq!(first.ended.recv().await, Some(EndReason::Lost));
    let during = answer_in_background(&relay, get("printer-1", "tray")).await;
    let mut second = Device::connect(&connector, "printer-1", Some(first.session.clone())).await;
    assert!(second.resumed);
    assert_eq!(second.session, first.session);
    assert!(relay.alive(&second.name, &first.session));
    let (again, _) = second.request().await;
    assert_eq!(again, id, "unconfirmed, so sent again under its own ID");
    second.answer(id, "73").await;
    let (id, _) = second.request().await;
    second.answer(id, "A4").await;
    assert_eq!(call.await.unwrap(), Ok("73".to_owned()));
    assert_eq!(during.await.unwrap(), Ok("A4".to_owned()));
    assert_eq!(relay.presence(&second.name).unwrap().state, State::Online);
}

#[tokio::test(start_paused = true)]
async fn p6_the_newer_session_takes_over_and_the_older_is_told() {
    let (relay, connector) = relay();
    let mut first = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let epoch = relay.presence(&first.name).unwrap().epoch;
    let mut second = Device::connect(&connector, "printer-1", None).await;
    assert_eq!(first.ended.recv().await, Some(EndReason::Replaced));
    assert!(!second.resumed);
    assert_ne!(first.session, second.session);
    assert!(!relay.alive(&second.name, &first.session));
    let call = answer_in_background(&relay, get("printer-1", "toner")).await;
    let (id, _) = second.request().await;
    second.answer(id, "73").await;
    assert_eq!(call.await.unwrap(), Ok("73".to_owned()));
    assert_eq!(relay.presence(&second.name).unwrap().epoch, epoch + 1);
    assert_eq!((relay.sessions(), relay.sessions_opened(), relay.sessions_refused()), (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_reads_nothing_slows_its_own_callers_only() {
    let config = RelayConfig::default();
    let limit = config.device_in_flight;
    let (relay, connector) = start(Relay::builder().config(config).build());
    let _deaf = Device::connect_deaf(&connector, "printer-1", None, true).await;
    Device::connect(&connector, "printer-2", None).await.echo();
    state(&relay, "printer-1", State::Online).await;
    state(&relay, "printer-2", State::Online).await;
    let mut stuck = Vec::new();
    for _ in 0..limit {
        stuck.push(answer_in_background(&relay, get("printer-1", "x")).await);
    }
    let refused = relay.request(get("printer-1", "x")).await.unwrap_err();
    assert!(matches!(refused.error, RequestError::TooManyRequests { .. }), "{refused:?}");
    let answer = relay.request(get("printer-2", "toner")).await.unwrap();
    assert_eq!(answer.response.body, Some(Body::text("toner")));
    let mut outcomes = std::collections::BTreeMap::new();
    for call in stuck {
        *outcomes.entry(call.await.unwrap().unwrap_err().outcome()).or_insert(0) += 1;
    }
    // What fitted into the transport was sent; the rest never left the outbox.
    assert!(outcomes[&Outcome::Sent] > 0 && outcomes[&Outcome::Queued] > 0, "{outcomes:?}");
    assert_eq!(outcomes.values().sum::<i32>() as usize, limit);
}

#[tokio::test(start_paused = true)]
async fn l2_a_relay_that_stops_tells_its_devices_and_ends_its_calls() {
    let (relay, connector) = relay();
    let mut device = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let answered = answer_in_background(&relay, get("printer-1", "toner")).await;
    let unanswered = answer_in_background(&relay, get("printer-1", "tray")).await;
    let (first, _) = device.request().await;
    let stopping = tokio::spawn({
        let relay = relay.clone();
        async move {
            relay
                .shutdown(Duration::from_secs(2), Duration::from_secs(7), Some("https://next.example/"))
                .await
        }
    });
    tokio::task::yield_now().await;
    let refused = relay.request(get("printer-1", "toner")).await.unwrap_err();
    assert_eq!(refused.error, RequestError::Draining);
    device.answer(first, "73").await;
    assert_eq!(answered.await.unwrap(), Ok("73".to_owned()), "in flight finishes");
    assert_eq!(unanswered.await.unwrap(), Err(RequestError::DeviceTimeout { received: false }));
    stopping.await.unwrap();
    let (retry_after, to) = (Duration::from_secs(7), Some("https://next.example/".into()));
    let drain = Envelope::Drain { retry_after, to };
    while device.got.recv().await.expect("where to go") != drain {}
    assert_eq!(
        device.ended.recv().await,
        Some(EndReason::Drain { retry_after: Some(Duration::from_secs(7)) })
    );
    assert_eq!(relay.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn b6_the_relay_has_a_bounded_number_in_flight() {
    let config = {
        let mut config = RelayConfig::default();
        config.relay_in_flight = 2;
        config
    };
    let (relay, connector) = start(Relay::builder().config(config).build());
    let mut device = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let _one = answer_in_background(&relay, get("printer-1", "x")).await;
    let _two = answer_in_background(&relay, get("printer-1", "x")).await;
    let refused = relay.request(get("printer-1", "x")).await.unwrap_err();
    assert!(matches!(refused.error, RequestError::TooManyRequests { .. }));
    assert!(refused.error.is_safe_to_retry());
    let (id, _) = device.request().await;
    device.answer(id, "1").await;
    let _ = device.got.recv().await;
    let _ = device.got.recv().await;
    answer_in_background(&relay, get("printer-1", "x")).await;
}

#[derive(Debug)]
struct Dialect;

#[async_trait]
impl Translate for Dialect {
    async fn request(&self, mut request: Request) -> Result<Request, RequestError> {
        if request.method == Method::new("EXPLODE").unwrap() {
            return Err(RequestError::Refused("this model does not explode".into()));
        }
        if request.objects == [ObjectId::new("toner").unwrap()] {
            request.objects = vec![ObjectId::new("1.3.6.1.2.1.43.11.1.1.9.1.1").unwrap()];
        }
        Ok(request)
    }

    async fn response(&self, request: &Request, mut response: Response) -> Response {
        if request.objects == [ObjectId::new("toner").unwrap()] {
            response.body = Some(Body::text("translated"));
        }
        response
    }
}

#[tokio::test(start_paused = true)]
async fn q6_a_hook_translates_both_ways() {
    let (relay, connector) = start(Relay::builder().translate(Arc::new(Dialect)).build());
    let mut device = Device::connect(&connector, "printer-1", None).await;
    state(&relay, "printer-1", State::Online).await;
    let call = answer_in_background(&relay, get("printer-1", "toner")).await;
    let (asked, request) = device.request().await;
    assert_eq!(request.objects[0].as_str(), "1.3.6.1.2.1.43.11.1.1.9.1.1");
    device.answer(asked, "73").await;
    assert_eq!(call.await.unwrap(), Ok("translated".to_owned()));
    let explode = Call::new(Request::new(id("printer-1"), Method::new("EXPLODE").unwrap()));
    let refused = relay.request(explode).await.unwrap_err();
    assert_eq!(refused.error.outcome(), Outcome::Refused);
}

#[derive(Debug)]
struct Stalls {
    before: bool,
}

#[async_trait]
impl Translate for Stalls {
    async fn request(&self, request: Request) -> Result<Request, RequestError> {
        if self.before {
            std::future::pending::<()>().await;
        }
        Ok(request)
    }

    async fn response(&self, _: &Request, _: Response) -> Response {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn i1_a_hook_that_stalls_ends_its_call_at_the_deadline_and_says_how_far_it_came() {
    for before in [true, false] {
        let (relay, connector) = start(Relay::builder().translate(Arc::new(Stalls { before })).build());
        Device::connect(&connector, "printer-1", None).await.echo();
        state(&relay, "printer-1", State::Online).await;
        let error =
            relay.request(get("printer-1", "toner").with_wait(Duration::from_secs(5))).await.unwrap_err();
        let expected = if before { Outcome::Queued } else { Outcome::Answered };
        assert_eq!(error.error.outcome(), expected);
        assert_eq!(relay.in_flight(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn q1_no_answer_ever_goes_to_the_wrong_caller() {
    let (relay, connector) = relay();
    for n in 0..20 {
        Device::connect(&connector, &format!("printer-{n}"), None).await.echo();
    }
    for n in 0..20 {
        state(&relay, &format!("printer-{n}"), State::Online).await;
    }
    let mut callers = Vec::new();
    for caller in 0..50 {
        let relay = relay.clone();
        callers.push(tokio::spawn(async move {
            for turn in 0..100 {
                let object = format!("{caller}/{turn}");
                let answer = relay.request(get(&format!("printer-{}", turn % 20), &object)).await.unwrap();
                assert_eq!(answer.response.body, Some(Body::text(object)));
            }
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(relay.in_flight(), 0);
}
