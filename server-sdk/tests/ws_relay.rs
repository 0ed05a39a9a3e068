//! Devices over WebSocket on a whole relay: real calls by HTTP, resumption, ends, draining, and what an upgraded
//! connection is to the rest of the house.
#![cfg(feature = "relay")]

mod http_support;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_support::{Got, PATIENCE, Rig, Wire, device_id, eventually};
use relay_core::{
    Body, Response,
    auth::Secret,
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{RequestId, SessionId},
    relay::State,
    transport::{CloseReason, ConnectOptions, Connector, EndReason, Full, Inbound, Session, Started},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use transport_ws::{
    WsConnector,
    client::relay_said,
    proto::frame::{Decoder, FrameLimits, Received, Side, close_payload, encode},
};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// A device over WebSocket.
struct Device {
    session: Session,
    inbox: mpsc::Receiver<Envelope>,
    heard: Arc<Heard>,
}

#[derive(Debug)]
struct Heard {
    inbox: Mutex<Option<mpsc::Sender<Envelope>>>,
    end: Mutex<Option<EndReason>>,
}

impl Inbound for Heard {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        let inbox = self.inbox.lock().unwrap();
        match inbox.as_ref().map(|inbox| inbox.try_send(envelope)) {
            Some(Err(mpsc::error::TrySendError::Full(envelope))) => Err(Full(envelope)),
            _ => Ok(()),
        }
    }
    fn ended(&self, reason: EndReason) {
        *self.end.lock().unwrap() = Some(reason);
        self.inbox.lock().unwrap().take();
    }
}

async fn dial(
    rig: &Rig,
    id: &str,
    token: &str,
    resume: Option<SessionId>,
) -> Result<Session, TransportError> {
    let connector = WsConnector::new(&format!("ws://{}/ws", rig.address)).unwrap();
    let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
    connector.connect(ConnectOptions::new(device_id(id), Secret::new(token), deadline).resuming(resume)).await
}

impl Device {
    async fn connect(rig: &Rig, id: &str, token: &str, resume: Option<SessionId>) -> Self {
        let mut session = dial(rig, id, token, resume).await.unwrap();
        let (heard, inbox) = mpsc::channel(256);
        let heard = Arc::new(Heard { inbox: Mutex::new(Some(heard)), end: Mutex::new(None) });
        session.push.start(Started::new(session.id.clone(), session.resumed, heard.clone()));
        let id = device_id(id);
        eventually(|| rig.relay.presence(&id).is_some_and(|presence| presence.state == State::Online)).await;
        Self { session, inbox, heard }
    }

    async fn envelope(&mut self) -> Envelope {
        timeout(PATIENCE, self.inbox.recv()).await.expect("an envelope in time").expect("the session lives")
    }

    async fn request(&mut self) -> RequestId {
        loop {
            if let Envelope::Request { id, .. } = self.envelope().await {
                return id;
            }
        }
    }

    async fn push(&mut self, envelope: Envelope) {
        self.session.push.push(&mut VecDeque::from([envelope])).await.unwrap();
    }

    async fn answer(&mut self, id: RequestId, text: &str) {
        let response = Response::with_body(Body::text(text));
        self.push(Envelope::Response { id, response, acknowledge: true }).await;
    }

    async fn end(&mut self) -> EndReason {
        timeout(PATIENCE, async { while self.inbox.recv().await.is_some() {} })
            .await
            .expect("the session ends");
        self.heard.end.lock().unwrap().expect("a reason")
    }
}

/// A device whose every byte is ours.
struct RawDevice {
    wire: Wire,
    decoder: Decoder,
}

fn upgrade(token: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut all = vec![
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "control"),
    ];
    for (name, value) in fields {
        all.retain(|(known, _)| known != name);
        if !value.is_empty() {
            all.push((name, value));
        }
    }
    http_support::head("GET", "/ws", token, &all, None)
}

impl RawDevice {
    async fn open(rig: &Rig, token: &str, fields: &[(&str, &str)]) -> (Self, Got) {
        let mut wire = rig.wire().await;
        wire.send(&upgrade(token, fields)).await;
        let got = wire.read().await.expect("an answer");
        (Self { wire, decoder: Decoder::new(Side::Client, FrameLimits::default()) }, got)
    }

    async fn send(&mut self, opcode: OpCode, payload: &[u8]) {
        let mut frame = Vec::new();
        encode(&mut frame, opcode, true, payload, Some([9, 8, 7, 6]));
        self.wire.send(&frame).await;
    }

    async fn read(&mut self) -> Option<Received> {
        loop {
            let mut rest = &self.wire.read[..];
            let received = self.decoder.next(&mut rest, true).expect("well-formed frames");
            let left = rest.len();
            self.wire.read.drain(..self.wire.read.len() - left);
            if received.is_some() {
                return received;
            }
            let mut some = [0; 4096];
            let read = tokio::io::AsyncReadExt::read(&mut self.wire.stream, &mut some);
            match timeout(PATIENCE, read).await.expect("something in time") {
                Ok(read @ 1..) => self.wire.read.extend_from_slice(&some[..read]),
                _ => return None,
            }
        }
    }

    /// The code of the relay's close, the texts before it passed over, and then the end of the connection.
    async fn closed_with(&mut self) -> (Option<u16>, Vec<String>) {
        let mut texts = Vec::new();
        loop {
            match self.read().await {
                Some(Received::Text(text)) => texts.push(String::from_utf8(text).unwrap()),
                Some(Received::Close(code)) => {
                    self.send(OpCode::Control(Control::Close), &close_payload(code.unwrap_or(1000), ""))
                        .await;
                    assert_eq!(self.read().await, None, "the relay closes the connection first");
                    return (code, texts);
                }
                Some(_) => {}
                None => return (None, texts),
            }
        }
    }
}

#[tokio::test]
async fn q1_a_device_over_websocket_answers_a_get() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let mut device = Device::connect(&rig, "d", &token, None).await;
    let answering = async {
        let id = device.request().await;
        device.answer(id.clone(), "83").await;
        assert!(matches!(device.envelope().await, Envelope::Ack { id: acked, .. } if acked == id));
    };
    let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/level", &key), answering);
    assert_eq!((got.status, &*got.body, got.outcome()), (200, &b"83"[..], "answered"));
    let shown = rig.get("/v1/devices/d", &key).await.json();
    assert_eq!((&shown["state"], &shown["transport"]), (&"online".into(), &"ws".into()));
    // The keep-alive as data.
    device.push(Envelope::Ping).await;
    assert_eq!(device.envelope().await, Envelope::Pong);
    device.session.push.close(CloseReason::Shutdown).await;
    eventually(|| rig.relay.presence(&device_id("d")).is_some_and(|p| p.state == State::Offline)).await;
    rig.get("/v1/devices/d/objects/level", &key).await.expect(503, "device-offline");
}

#[tokio::test]
async fn p2_a_connection_that_breaks_is_resumed_under_the_same_id_and_nothing_is_lost() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let (mut raw, got) = RawDevice::open(&rig, &token, &[]).await;
    assert_eq!(got.status, 101);
    let id = SessionId::new(got.field("relay-session").unwrap()).unwrap();
    let broken = async {
        // It has the request, and goes without a word.
        assert!(matches!(raw.read().await, Some(Received::Text(text)) if text.starts_with(b"<request ")));
        drop(raw);
        let mut device = Device::connect(&rig, "d", &token, Some(id.clone())).await;
        assert_eq!((&device.session.id, device.session.resumed), (&id, true));
        let request = device.request().await;
        device.answer(request, "after all").await;
        device
    };
    let (got, device) = tokio::join!(rig.get("/v1/devices/d/objects/x", &key), broken);
    assert_eq!((got.status, &*got.body), (200, &b"after all"[..]));
    // One that is not known is a new session.
    drop(device);
    let unknown = SessionId::new("a-session-of-nobody").unwrap();
    let device = Device::connect(&rig, "d", &token, Some(unknown.clone())).await;
    assert!(!device.session.resumed);
    assert_ne!(device.session.id, unknown);
}

#[tokio::test]
async fn p6_a_session_that_is_taken_over_is_closed_with_4001() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let (mut first, _) = RawDevice::open(&rig, &token, &[]).await;
    let mut second = Device::connect(&rig, "d", &token, None).await;
    assert_eq!(first.closed_with().await.0, Some(4001));
    let (mut third, got) = RawDevice::open(&rig, &token, &[]).await;
    assert_eq!(got.status, 101);
    assert_eq!(second.end().await, EndReason::Replaced);
    // The end of those that lost changes nothing.
    let key = rig.key(&[]).await;
    let answering = async {
        let Some(Received::Text(request)) = third.read().await else { panic!("a request") };
        let request = String::from_utf8(request).unwrap();
        let id = request.split("id='").nth(1).unwrap().split('\'').next().unwrap();
        let answer = format!("<response xmlns='urn:relay:1' id='{id}'><body>third</body></response>");
        third.send(OpCode::Data(Data::Text), answer.as_bytes()).await;
    };
    let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/x", &key), answering);
    assert_eq!((got.status, &*got.body), (200, &b"third"[..]));
}

#[tokio::test]
async fn t17_a_revoked_credential_ends_the_session_with_4003() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let (mut raw, _) = RawDevice::open(&rig, &token, &[]).await;
    let id = device_id("d");
    eventually(|| rig.relay.presence(&id).is_some_and(|presence| presence.state == State::Online)).await;
    // Enrolled anew: the old token stops working, and what was made with it.
    let other = rig.enrol("d").await;
    assert_eq!(timeout(Duration::from_secs(5), raw.closed_with()).await.unwrap().0, Some(4003));
    let error = dial(&rig, "d", &token, None).await.unwrap_err();
    assert_eq!(
        (error.kind, &*relay_said(&error).unwrap().code),
        (ErrorKind::Unauthenticated, "unauthenticated")
    );
    Device::connect(&rig, "d", &other, None).await;
}

#[tokio::test]
async fn l2_a_relay_that_stops_says_when_to_come_back_and_where_and_closes_with_1012() {
    let mut rig = Rig::with(|config| config.drain_to = Some("https://next.example/".into())).await;
    let (token, other) = (rig.enrol("d").await, rig.enrol("e").await);
    let (mut raw, _) = RawDevice::open(&rig, &token, &[]).await;
    let mut device = Device::connect(&rig, "e", &other, None).await;
    rig.stop();
    let (code, texts) = raw.closed_with().await;
    assert_eq!(code, Some(1012));
    let drain = texts.last().unwrap();
    assert!(drain.starts_with("<drain ") && drain.contains("retry-after='5'"), "{drain}");
    assert!(drain.contains("to='https://next.example/'"), "{drain}");
    assert_eq!(device.end().await, EndReason::Drain { retry_after: Some(Duration::from_secs(5)) });
    drop(device);
    rig.stopped().await;
}

#[tokio::test]
async fn l2_a_peer_that_does_not_go_does_not_keep_the_relay() {
    let mut rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let (raw, _) = RawDevice::open(&rig, &token, &[]).await;
    rig.stop();
    rig.stopped().await;
    drop(raw);
}

#[tokio::test]
async fn b12_too_many_sessions_are_429_before_101() {
    let rig = Rig::with(|config| config.relay.session_burst = 2).await;
    let token = rig.enrol("d").await;
    for _ in 0..2 {
        assert_eq!(RawDevice::open(&rig, &token, &[]).await.1.status, 101);
    }
    let (_, got) = RawDevice::open(&rig, &token, &[]).await;
    got.expect(429, "too-many-requests");
    assert!(got.field("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    let error = dial(&rig, "d", &token, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert!(error.retry_after.is_some() && relay_said(&error).is_some());
}

#[tokio::test]
async fn o4_what_opens_no_session_is_a_problem_and_the_connection_goes_on() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let mut wire = rig.wire().await;
    for (token, field, status, code) in [
        ("", ("x", ""), 401, "unauthenticated"),
        ("nonsense", ("x", ""), 401, "unauthenticated"),
        (&*key, ("x", ""), 403, "forbidden"),
        (&*token, ("sec-websocket-protocol", "chat"), 400, "bad-request"),
        (&*token, ("sec-websocket-protocol", ""), 400, "bad-request"),
        (&*token, ("sec-websocket-key", "short"), 400, "bad-request"),
        (&*token, ("sec-websocket-version", "12"), 426, "upgrade-required"),
        (&*token, ("upgrade", ""), 426, "upgrade-required"),
    ] {
        wire.send(&upgrade(token, &[field])).await;
        let got = wire.read().await.expect("an answer");
        got.expect(status, code);
        if status == 426 {
            assert_eq!(got.field("sec-websocket-version"), Some("13"));
            assert_eq!(got.field("upgrade"), Some("websocket"));
        }
    }
    rig.call("POST", "/ws", &token, &[], b"").await.expect(405, "method-not-allowed");
    wire.send(&http_support::head("GET", "/healthz", "", &[], None)).await;
    assert_eq!(wire.read().await.unwrap().status, 200);
    // And with a good head, on that very connection.
    wire.send(&upgrade(&token, &[("origin", "https://elsewhere.example")])).await;
    let got = wire.read().await.unwrap();
    assert_eq!((got.status, got.field("sec-websocket-accept")), (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
    assert_eq!(got.field("sec-websocket-protocol"), Some("control"));
}

#[tokio::test]
async fn b8_the_time_outs_of_http_do_not_cut_a_session() {
    let short = Duration::from_millis(200);
    let rig = Rig::with(|config| {
        config.http.head_timeout = short;
        config.http.idle_timeout = short;
        config.http.write_timeout = short;
        config.ws.control.ping_every = Some(Duration::from_millis(150));
    })
    .await;
    let token = rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let mut device = Device::connect(&rig, "d", &token, None).await;
    sleep(short * 6).await;
    let answering = async {
        let id = device.request().await;
        device.answer(id, "still").await;
    };
    let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/x", &key), answering);
    assert_eq!((got.status, &*got.body), (200, &b"still"[..]));
}

#[tokio::test]
async fn b10_an_upgraded_connection_goes_on_counting_as_one() {
    let rig = Rig::with(|config| config.http.max_connections = Some(2)).await;
    let token = rig.enrol("d").await;
    let (raw, _) = RawDevice::open(&rig, &token, &[]).await;
    let mut held = rig.wire().await;
    held.send(&http_support::head("GET", "/healthz", "", &[], None)).await;
    assert_eq!(held.read().await.unwrap().status, 200);
    // The third waits in the backlog, until the session has gone.
    let mut waiting = rig.wire().await;
    waiting.send(&http_support::head("GET", "/healthz", "", &[], None)).await;
    assert!(waiting.is_open_after(Duration::from_millis(300)).await);
    drop(raw);
    assert_eq!(waiting.read().await.unwrap().status, 200);
}

#[tokio::test]
async fn b8_a_device_with_a_session_is_no_stranger() {
    let rig = Rig::with(|config| config.http.max_strangers = 1).await;
    let token = rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let mut device = Device::connect(&rig, "d", &token, None).await;
    for _ in 0..5 {
        let mut stranger = rig.wire().await;
        stranger.send(b"GET /healthz").await;
    }
    let answering = async {
        let id = device.request().await;
        device.answer(id, "here").await;
    };
    let asking = async {
        loop {
            let mut wire = rig.wire().await;
            wire.send(&http_support::head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
            match wire.read().await {
                Some(got) if got.status == 200 => return got,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let (got, ()) = tokio::join!(asking, answering);
    assert_eq!(&*got.body, b"here");
}

#[tokio::test]
async fn t34_frames_that_come_with_the_head_end_the_session() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let mut wire = rig.wire().await;
    let mut bytes = upgrade(&token, &[]);
    encode(&mut bytes, OpCode::Data(Data::Text), true, b"<ping xmlns='urn:relay:1'/>", Some([1, 2, 3, 4]));
    wire.send(&bytes).await;
    assert_eq!(wire.read().await.unwrap().status, 101);
    let mut raw = RawDevice { wire, decoder: Decoder::new(Side::Client, FrameLimits::default()) };
    let (code, texts) = raw.closed_with().await;
    assert_eq!((code, texts.len()), (Some(1002), 0));
}

#[tokio::test]
async fn t4_a_response_over_websocket_from_another_device_is_forbidden() {
    let rig = Rig::start().await;
    let (token, other) = (rig.enrol("a").await, rig.enrol("b").await);
    let key = rig.key(&[]).await;
    let mut device = Device::connect(&rig, "a", &token, None).await;
    let mut thief = Device::connect(&rig, "b", &other, None).await;
    let answering = async {
        let id = device.request().await;
        thief.answer(id.clone(), "stolen").await;
        let Envelope::Ack { disposition, .. } = thief.envelope().await else { panic!("a verdict") };
        assert_eq!(disposition.as_str(), "forbidden");
        device.answer(id, "genuine").await;
    };
    let (got, ()) = tokio::join!(rig.get("/v1/devices/a/objects/x", &key), answering);
    assert_eq!((got.status, &*got.body), (200, &b"genuine"[..]));
}
