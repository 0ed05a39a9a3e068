//! `GET /v1/events`: who sees what, going on where one was, and how a stream ends.
#![cfg(feature = "relay")]

mod http_support;
mod job_support;

use std::time::Duration;

use http_support::{PATIENCE, Rig, device_id, eventually, head};
use job_support::{Caller, done, error, offered, printer, read_all};
use relay_core::{Body, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// One block of the stream.
#[derive(Debug, Default, PartialEq)]
struct Event {
    kind: String,
    id: Option<String>,
    data: Value,
}

impl Event {
    /// Device, state and epoch of a presence event.
    fn presence(&self) -> (String, String, u64) {
        assert_eq!(self.kind, "presence", "{self:?}");
        let text = |key: &str| self.data[key].as_str().unwrap().to_owned();
        (text("device"), text("state"), self.data["epoch"].as_u64().unwrap())
    }
}

/// A stream of events, byte by byte.
struct Watch {
    stream: TcpStream,
    raw: Vec<u8>,
    text: String,
    /// The stream ended as it should, not broken off.
    ended: bool,
    last: String,
}

impl Watch {
    async fn open(rig: &Rig, query: &str, key: &str, last: Option<&str>) -> Self {
        Self::on(TcpStream::connect(rig.address).await.unwrap(), query, key, last).await
    }

    async fn on(mut stream: TcpStream, query: &str, key: &str, last: Option<&str>) -> Self {
        let fields: Vec<_> = last.iter().map(|last| ("last-event-id", *last)).collect();
        stream.write_all(&head("GET", &format!("/v1/events{query}"), key, &fields, None)).await.unwrap();
        let mut watch =
            Self { stream, raw: Vec::new(), text: String::new(), ended: false, last: String::new() };
        let end = loop {
            if let Some(at) = watch.raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(watch.more().await);
        };
        let head = String::from_utf8(watch.raw.drain(..end).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        watch
    }

    /// A stream whose hello was read.
    async fn begun(rig: &Rig, query: &str, key: &str) -> Self {
        let mut watch = Self::open(rig, query, key, None).await;
        let hello = watch.block().await.expect("a hello");
        assert_eq!((&*hello.kind, hello.id.is_some()), ("", true), "{hello:?}");
        watch
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("more in time").unwrap();
        self.raw.extend_from_slice(&buffer[..read]);
        read > 0
    }

    /// Takes whole chunks out of what was read.
    fn unframe(&mut self) {
        while let Some(at) = self.raw.windows(2).position(|two| two == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&self.raw[..at]).unwrap(), 16).unwrap();
            if self.raw.len() < at + 2 + size + 2 {
                return;
            }
            self.text += std::str::from_utf8(&self.raw[at + 2..at + 2 + size]).unwrap();
            self.raw.drain(..at + 2 + size + 2);
            self.ended |= size == 0;
        }
    }

    /// The next block; `None` at the end of the stream.
    async fn block(&mut self) -> Option<Event> {
        loop {
            self.unframe();
            if let Some(at) = self.text.find("\n\n") {
                let block: String = self.text.drain(..at + 2).collect();
                let mut event = Event::default();
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("event", kind)) => event.kind = kind.into(),
                        Some(("id", id)) => event.id = Some(id.into()),
                        Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                        Some(("retry", "2000")) => {}
                        _ => assert!(line.is_empty() || line == ":", "{line:?}"),
                    }
                }
                self.last = event.id.clone().unwrap_or_else(|| self.last.clone());
                return Some(event);
            }
            if self.ended {
                return None;
            }
            assert!(self.more().await, "the stream broke off");
        }
    }

    async fn event(&mut self) -> Event {
        loop {
            let event = self.block().await.expect("an event");
            if !event.kind.is_empty() {
                return event;
            }
        }
    }

    async fn presence(&mut self) -> (String, String, u64) {
        self.event().await.presence()
    }

    /// The next event of requests or jobs: its kind, and what is said, without the time that it has.
    async fn outcome(&mut self) -> (String, Value) {
        let Event { kind, mut data, .. } = self.event().await;
        let time = data.as_object_mut().unwrap().remove("time").expect("when that was");
        assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
        (kind, data)
    }

    async fn end(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.block().await {
            events.push(event);
        }
        events
    }
}

fn seen(device: &str, state: &str, epoch: u64) -> (String, String, u64) {
    (device.into(), state.into(), epoch)
}

#[tokio::test]
async fn p4_presence_is_told_as_it_changes_with_its_epoch() {
    let rig = Rig::start().await;
    let mut all = Watch::begun(&rig, "", &rig.admin).await;
    let mut one = Watch::begun(&rig, "?type=presence", &rig.key(&[]).await).await;
    let token = rig.enrol("Printer-1").await;
    for epoch in 1..=3 {
        let device = rig.connect("printer-1", &token).await;
        for watch in [&mut all, &mut one] {
            assert_eq!(watch.presence().await, seen("Printer-1", "online", epoch));
        }
        device.close().await;
        for watch in [&mut all, &mut one] {
            assert_eq!(watch.presence().await, seen("Printer-1", "offline", epoch));
        }
    }
}

#[tokio::test]
async fn x2_watchers_are_told_of_devices_that_their_keys_see_and_of_no_other() {
    let rig = Rig::start().await;
    for id in ["a-1", "a-2", "b-1"] {
        rig.enrol(id).await;
    }
    let by_name = rig.key(&["device:a-*:GET"]).await;
    let by_list = rig.key(&["device:a-*:list"]).await;
    let by_account = rig.key(&["account:acme"]).await;
    let token = rig.enrol("b-1").await;
    rig.put_json("/v1/devices/b-1", &token, r#"{"accounts":["acme"]}"#).await;
    assert_eq!(rig.call("PUT", "/v1/accounts/acme/devices/b-1", &rig.admin, &[], b"").await.status, 204);
    let mut lists = Watch::begun(&rig, "", &by_list).await;
    let mut account = Watch::begun(&rig, "", &by_account).await;
    let mut picked = Watch::begun(&rig, "?device=A-2&device=b-1", &rig.admin).await;
    for id in ["a-1", "b-1", "a-2"] {
        let token = if id == "b-1" { token.clone() } else { rig.enrol(id).await };
        rig.connect(id, &token).await.close().await;
        eventually(|| {
            rig.relay.presence(&device_id(id)).is_some_and(|p| p.state == relay_core::relay::State::Offline)
        })
        .await;
    }
    for (watch, devices) in
        [(&mut lists, &["a-1", "a-2"][..]), (&mut account, &["b-1"]), (&mut picked, &["b-1", "a-2"])]
    {
        for device in devices {
            assert_eq!(watch.presence().await, seen(device, "online", 1));
            assert_eq!(watch.presence().await, seen(device, "offline", 1));
        }
    }
    // A key that may ask but not list sees what the list shows it: the same.
    let listed = rig.get("/v1/devices", &by_name).await.json()["devices"].as_array().unwrap().len();
    let mut asks = Watch::begun(&rig, "", &by_name).await;
    let device = rig.device("a-1").await;
    if listed > 0 {
        assert_eq!(asks.presence().await, seen("a-1", "online", 2));
    }
    device.close().await;

    rig.get("/v1/events?device=b-1", &by_list).await.expect(404, "unknown-device");
    rig.get("/v1/events?device=none", &rig.admin).await.expect(404, "unknown-device");
    rig.get("/v1/events?device=a%20b", &rig.admin).await.expect(400, "bad-request");
    rig.get("/v1/events?type=job&type=weather", &rig.admin).await.expect(400, "bad-request");
    rig.get("/v1/events?since=0", &rig.admin).await.expect(400, "bad-request");
    rig.get("/v1/events", "").await.expect(401, "unauthenticated");
    rig.get("/v1/events", &token).await.expect(403, "forbidden");
    rig.post_json("/v1/events", &rig.admin, "").await.expect(405, "method-not-allowed");
}

#[tokio::test]
async fn p4_a_watcher_goes_on_from_its_last_event_without_gap_or_repetition() {
    let rig = Rig::with(|config| config.relay.presence_log = 8).await;
    let token = rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let mut watch = Watch::begun(&rig, "", &key).await;
    rig.connect("d", &token).await.close().await;
    assert_eq!(watch.presence().await, seen("d", "online", 1));
    let online = watch.last.clone();
    drop(watch);
    rig.connect("d", &token).await.close().await;
    let mut again = Watch::open(&rig, "", &key, Some(&online)).await;
    for expected in [seen("d", "offline", 1), seen("d", "online", 2), seen("d", "offline", 2)] {
        assert_eq!(again.presence().await, expected);
    }
    // What is too old, another key's (T6), or nothing at all is no place to go on from: read the list anew.
    let other = rig.key(&[]).await;
    for (key, last) in [(&other, &*online), (&key, "17"), (&key, "AAAA"), (&rig.admin, &online)] {
        let mut reset = Watch::open(&rig, "", key, Some(last)).await;
        let event = reset.event().await;
        assert_eq!((&*event.kind, &event.data), ("reset", &json!({})), "{event:?}");
        assert!(event.id.is_some(), "from here it may go on");
    }
    for _ in 0..4 {
        rig.connect("d", &token).await.close().await;
        again.presence().await;
        again.presence().await;
    }
    assert_eq!(Watch::open(&rig, "", &key, Some(&online)).await.event().await.kind, "reset");
}

#[tokio::test]
async fn b15_t39_a_watcher_that_does_not_read_is_let_go_and_may_come_back() {
    let rig = Rig::with(|config| {
        config.relay.watcher_behind = 50;
        config.relay.presence_log = 100_000;
        config.relay.session_burst = 1_000_000;
    })
    .await;
    let mut devices = Vec::new();
    for id in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        devices.push((id, rig.enrol(id).await));
    }
    let key = rig.key(&[]).await;
    // With small segments a system buffers little for whoever does not read.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&rig.address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut deaf = Watch::on(TcpStream::from_std(socket.into()).unwrap(), "", &key, None).await;
    let mut reads = Watch::begun(&rig, "", &key).await;
    let mut changes = 0;
    while changes < 3_000 {
        let flaps = devices.iter().map(|(id, token)| async { rig.connect(id, token).await.close().await });
        futures_util::future::join_all(flaps).await;
        for _ in 0..2 * devices.len() {
            reads.presence().await;
            changes += 1;
        }
    }
    let events = timeout(PATIENCE, deaf.end()).await.expect("it is let go");
    assert!((2..changes).contains(&events.len()), "{} events", events.len());
    assert_eq!(rig_metric(&rig, "http_watchers_behind_total").await, 1);
    let last = deaf.last.clone();
    let mut back = Watch::open(&rig, "", &key, Some(&last)).await;
    let event = back.event().await;
    assert_eq!(event.kind, "presence", "it goes on where it was: {event:?}");
    // The one that reads was never touched.
    let device = rig.device("new").await;
    assert_eq!(reads.presence().await, seen("new", "online", 1));
    device.close().await;
}

async fn rig_metric(rig: &Rig, name: &str) -> u64 {
    let got = rig.get("/metrics", &rig.admin).await;
    let text = String::from_utf8(got.body).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect("the metric");
    line.parse().unwrap()
}

#[tokio::test]
async fn t17_a_revoked_key_watches_no_longer() {
    let rig = Rig::start().await;
    let created = rig.post_json("/v1/keys", &rig.admin, r#"{"scopes":[]}"#).await.json();
    let key = created["key"].as_str().unwrap().to_owned();
    let mut watch = Watch::begun(&rig, "", &key).await;
    let path = format!("/v1/keys/{}", created["id"].as_str().unwrap());
    assert_eq!(rig.call("DELETE", &path, &rig.admin, &[], b"").await.status, 204);
    // From now on it is told nothing, and soon the stream is over.
    let device = rig.device("d").await;
    assert_eq!(watch.end().await, []);
    assert_eq!(rig_metric(&rig, "http_watchers").await, 0);
    device.close().await;
}

#[tokio::test]
async fn l2_a_relay_that_stops_ends_the_streams_of_events() {
    let mut rig = Rig::with(|config| config.drain_grace = Duration::from_secs(10)).await;
    let mut watch = Watch::begun(&rig, "", &rig.admin).await;
    rig.stop();
    watch.end().await;
    rig.stopped().await;
}

#[tokio::test]
async fn b6_streams_of_events_count_as_calls_in_flight_of_their_key() {
    let rig = Rig::with(|config| config.http.service_in_flight = 2).await;
    let key = rig.key(&[]).await;
    let one = Watch::begun(&rig, "", &key).await;
    let two = Watch::begun(&rig, "", &key).await;
    rig.get("/v1/events", &key).await.expect(429, "too-many-requests");
    drop((one, two));
    timeout(PATIENCE, async {
        while rig_metric(&rig, "http_watchers").await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("whoever hangs up is noticed");
    Watch::begun(&rig, "", &key).await;
}

#[tokio::test]
async fn p4_a_quiet_stream_shows_signs_of_life_and_outlives_the_rest_between_requests() {
    let rig = Rig::with(|config| config.http.idle_timeout = Duration::from_secs(2)).await;
    let mut watch = Watch::begun(&rig, "", &rig.admin).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(watch.block().await, Some(Event::default()), "a comment");
    assert!(begun.elapsed() > Duration::from_secs(14), "{:?}", begun.elapsed());
    let device = rig.device("d").await;
    assert_eq!(watch.presence().await, seen("d", "online", 1));
    device.close().await;
}

/// A key with its ID.
async fn named_key(rig: &Rig) -> (String, String) {
    let made = rig.post_json("/v1/keys", &rig.admin, r#"{"scopes":[]}"#).await.json();
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn p4_t6_what_becomes_of_requests_is_told_to_the_key_that_made_them_and_to_administrators() {
    let rig = Rig::start().await;
    let (mut device, _) = (rig.device("Printer-1").await, rig.enrol("away").await);
    let ((a, key_a), (b, key_b)) = (named_key(&rig).await, named_key(&rig).await);
    let mut of_a = Watch::begun(&rig, "?type=request&type=job", &key_a).await;
    let mut of_b = Watch::begun(&rig, "?type=request&device=away", &key_b).await;
    let mut of_all = Watch::begun(&rig, "?type=request", &rig.admin).await;

    let ask = rig.get("/v1/devices/Printer-1/objects/x", &key_a);
    let answer = async {
        let (id, _) = device.request().await;
        device.answer(id.clone(), Response::with_body(Body::text("83"))).await;
        id
    };
    let (got, id) = tokio::join!(ask, answer);
    assert_eq!(got.status, 200);
    let answered = json!({
        "device": "Printer-1", "epoch": 1, "id": id, "key": a, "method": "GET", "state": "completed",
        "outcome": "answered",
    });
    rig.get("/v1/devices/away/objects/x", &key_b).await.expect(503, "device-offline");
    let offline = json!({
        "device": "away", "epoch": 0, "id": null, "key": b, "method": "GET", "state": "failed",
        "outcome": "offline", "code": "device-offline",
    });
    // A caller that hangs up.
    let mut gone = rig.wire().await;
    gone.send(&head("PUT", "/v1/devices/Printer-1/objects/y", &key_a, &[], Some(0))).await;
    device.request().await;
    drop(gone);
    let cancelled = json!({
        "device": "Printer-1", "epoch": 1, "id": null, "key": a, "method": "SET", "state": "cancelled",
    });
    for (watch, expected) in [
        (&mut of_a, &[&answered, &cancelled][..]),
        (&mut of_b, &[&offline]),
        (&mut of_all, &[&answered, &offline, &cancelled]),
    ] {
        for &expected in expected {
            assert_eq!(watch.outcome().await, ("request".into(), expected.clone()));
        }
    }
    // The device's own error is an answer, too; and what is no request at all is no event.
    rig.get("/v1/devices/none/objects/x", &key_a).await.expect(404, "unknown-device");
    let ask = rig.get("/v1/devices/Printer-1/objects/z", &key_a);
    let answer = async {
        let (id, _) = device.request().await;
        error(&mut device, &id, "no-such-thing", "words of the device").await;
    };
    tokio::join!(ask, answer).0.expect(502, "device-failed");
    let (_, unknown) = of_a.outcome().await;
    assert_eq!((&unknown["state"], &unknown["outcome"]), (&json!("failed"), &json!("unknown")));
    let (_, failed) = of_a.outcome().await;
    assert_eq!((&failed["outcome"], &failed["code"]), (&json!("answered"), &json!("device-failed")));
    assert!(!failed.to_string().contains("words"), "what the device said is the caller's: {failed}");
}

#[tokio::test]
async fn p4_how_jobs_go_is_told_to_their_end() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let (id_of_key, key) = named_key(&rig).await;
    let mut watch = Watch::begun(&rig, "?type=job&device=D", &key).await;
    let mut all = Watch::begun(&rig, "", &rig.admin).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 3000).await;
    let (id, _) = offered(&mut device).await;
    let reading = read_all(&rig, &device.token, &id);
    let sending = async {
        caller.go_on().await;
        assert_eq!(caller.status().await.status, 200);
        caller.wire.send(&job_support::document(3000)).await;
    };
    tokio::join!(reading, sending);
    done(&mut device, &id).await;
    caller.last().await;
    for watch in [&mut watch, &mut all] {
        let mut states = Vec::new();
        loop {
            let (kind, event) = watch.outcome().await;
            assert_eq!((&*kind, &event["device"], &event["id"]), ("job", &json!("d"), &json!(id)));
            assert_eq!((&event["epoch"], &event["key"]), (&json!(1), &json!(id_of_key)));
            let state = event["state"].as_str().unwrap().to_owned();
            states.push(state.clone());
            if state == "completed" {
                assert_eq!((&event["bytes"], &event["outcome"]), (&json!(3000), &json!("answered")));
                break;
            }
        }
        // States may be passed over, not repeated nor turned round.
        let ladder = ["accepted", "sending", "processing", "completed"];
        let places: Vec<_> =
            states.iter().map(|state| ladder.iter().position(|one| one == state).unwrap()).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "{states:?}");
    }
    let mut caller = Caller::print(&rig, "d", "", &key, 10).await;
    let (id, _) = offered(&mut device).await;
    error(&mut device, &id, "device-error", "paper jam").await;
    caller.status().await.expect(409, "device-error");
    let (_, jam) = watch.outcome().await;
    assert_eq!((&jam["state"], &jam["outcome"]), (&json!("failed"), &json!("refused")));
    assert_eq!((&jam["code"], jam.get("detail")), (&json!("device-error"), None));
}

#[tokio::test]
async fn p4_b15_outcomes_go_on_where_one_was_as_far_as_they_are_remembered() {
    let rig = Rig::with(|config| config.relay.watcher_behind = 4).await;
    rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let other = rig.key(&[]).await;
    let ask = async |key: &str, times: usize| {
        for _ in 0..times {
            rig.get("/v1/devices/d/objects/x", key).await.expect(503, "device-offline");
        }
    };
    let mut watch = Watch::begun(&rig, "", &key).await;
    ask(&key, 1).await;
    watch.outcome().await;
    let seen = watch.last.clone();
    drop(watch);
    ask(&key, 2).await;
    // What others ask, however much, pushes nothing out of it (T37).
    let mut others = Watch::begun(&rig, "", &other).await;
    for _ in 0..20 {
        ask(&other, 1).await;
        others.outcome().await;
    }
    let mut again = Watch::open(&rig, "", &key, Some(&seen)).await;
    for _ in 0..2 {
        assert_eq!(again.outcome().await.0, "request");
    }
    ask(&key, 1).await;
    again.outcome().await;
    // More than is remembered.
    ask(&key, 3).await;
    let mut late = Watch::open(&rig, "", &key, Some(&seen)).await;
    assert_eq!(late.event().await.kind, "reset");
    ask(&key, 1).await;
    assert_eq!(late.outcome().await.0, "request");
    // Presence alone is no place among outcomes.
    let presence = Watch::begun(&rig, "?type=presence", &key).await.last;
    assert_eq!(Watch::open(&rig, "", &key, Some(&presence)).await.event().await.kind, "reset");
}

#[tokio::test]
async fn l2_a_relay_that_stops_ends_streams_of_outcomes_too() {
    let mut rig = Rig::with(|config| config.drain_grace = Duration::from_secs(10)).await;
    let mut watch = Watch::begun(&rig, "?type=request", &rig.admin).await;
    rig.stop();
    watch.end().await;
    rig.stopped().await;
}
