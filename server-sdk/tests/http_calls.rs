//! Requests to devices over the HTTP API: one call in, the device's answer out, or how far it came.
#![cfg(feature = "relay")]

mod http_support;

use std::time::Duration;

use http_support::{PATIENCE, Rig, device_id, eventually, head};
use relay_core::{Body, Response, envelope::Envelope, relay::State, request::Status, transport::EndReason};

#[tokio::test]
async fn q1_the_devices_answer_is_the_answer_of_that_very_call() {
    let rig = Rig::start().await;
    let mut device = rig.device("printer-1").await;
    let key = rig.key(&[]).await;
    let call = rig.get("/v1/devices/PRINTER-1/objects/1.3.6.1.2.1.43.11.1.1.9.1.1", &key);
    let answer = async {
        let (id, request) = device.request().await;
        assert!(request.method.is_get());
        assert_eq!(request.objects[0].as_str(), "1.3.6.1.2.1.43.11.1.1.9.1.1");
        assert_eq!(request.body, None);
        let all: Vec<u8> = (0..=255).collect();
        device.answer(id.clone(), Response::with_body(Body::new("application/x-level", all))).await;
        id
    };
    let (got, id) = tokio::join!(call, answer);
    assert_eq!(got.status, 200);
    assert_eq!(got.body, (0..=255).collect::<Vec<u8>>());
    assert_eq!(got.field("content-type"), Some("application/x-level"));
    assert_eq!(got.field("relay-request-id"), Some(id.as_str()));
    assert_eq!(got.outcome(), "answered");
    assert_eq!(got.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(got.field("preference-applied"), None);
}

#[tokio::test]
async fn q7_a_set_carries_its_value_and_answers_with_the_one_in_force() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let call =
        rig.call("PUT", "/v1/devices/d/objects/tray%2F1", &key, &[("content-type", "text/plain")], b"A4");
    let answer = async {
        let (id, request) = device.request().await;
        assert!(request.method.is_set());
        assert_eq!(request.objects[0].as_str(), "tray/1");
        assert_eq!(request.body, Some(Body::new("text/plain", &b"A4"[..])));
        device.answer(id, Response::with_body(Body::text("A3"))).await;
    };
    let (got, ()) = tokio::join!(call, answer);
    assert_eq!((got.status, &*got.body), (200, &b"A3"[..]));
}

#[tokio::test]
async fn q7_any_method_goes_in_json_or_as_the_body_itself() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let path = "/v1/devices/d/requests";
    let json =
        r#"{"method":"CLEAN","objects":["head/1","head/2"],"body_base64":"AAH/","content_type":"a/b"}"#;
    let both = async {
        for _ in 0..2 {
            let (id, request) = device.request().await;
            assert_eq!(request.method.as_str(), "CLEAN");
            let objects: Vec<_> = request.objects.iter().map(|object| object.as_str()).collect();
            assert_eq!(objects, ["head/1", "head/2"]);
            assert_eq!(request.body, Some(Body::new("a/b", &[0u8, 1, 255][..])));
            device.answer(id, Response::ok()).await;
        }
    };
    let calls = async {
        let got = rig.post_json(path, &key, json).await;
        assert_eq!((got.status, got.body.len(), got.outcome()), (200, 0, "answered"));
        let query = format!("{path}?method=CLEAN&object=head%2F1&object=head/2");
        let got = rig.call("POST", &query, &key, &[("content-type", "a/b")], &[0, 1, 255]).await;
        assert_eq!((got.status, got.body.len(), got.outcome()), (200, 0, "answered"));
    };
    tokio::join!(both, calls);
}

#[tokio::test]
async fn q2_offline_is_an_error_at_once() {
    let rig = Rig::start().await;
    rig.enrol("d").await;
    let key = rig.key(&[]).await;
    let before = tokio::time::Instant::now();
    let got = rig.call("GET", "/v1/devices/d/objects/x", &key, &[("prefer", "wait=60")], b"").await;
    got.expect(503, "device-offline");
    assert_eq!(got.outcome(), "offline");
    assert!(before.elapsed() < Duration::from_secs(5), "it waited");
}

#[tokio::test]
async fn q2_unknown_is_another_error() {
    let rig = Rig::start().await;
    let key = rig.key(&[]).await;
    let got = rig.get("/v1/devices/nobody/objects/x", &key).await;
    got.expect(404, "unknown-device");
    assert_eq!(got.outcome(), "unknown");
}

#[tokio::test]
async fn q3_no_answer_in_the_callers_time_is_said_and_a_late_response_refused() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let call = rig.call("GET", "/v1/devices/d/objects/x", &key, &[("prefer", "respond-async, wait=1")], b"");
    let (got, (id, _)) = tokio::join!(call, device.request());
    got.expect(504, "device-timeout");
    assert_eq!(got.outcome(), "sent");
    assert_eq!(got.field("relay-request-id"), Some(id.as_str()));
    let path = format!("/v1/requests/{id}/response");
    rig.call("POST", &path, &device.token, &[], b"late").await.expect(410, "too-late");
}

#[tokio::test]
async fn l1_received_is_told_from_sent() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let call = rig.call("GET", "/v1/devices/d/objects/x", &key, &[("prefer", "wait=1")], b"");
    let answer = async {
        let (id, _) = device.request().await;
        device.push(Envelope::Received { id }).await;
    };
    let (got, ()) = tokio::join!(call, answer);
    got.expect(504, "device-timeout");
    assert_eq!(got.outcome(), "received");
}

#[tokio::test]
async fn q4_every_response_by_http_is_met_with_its_verdict() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let other = rig.enrol("other").await;
    let key = rig.key(&[]).await;
    let call = rig.call("GET", "/v1/devices/d/objects/x", &key, &[("prefer", "wait=20")], b"");
    let answer = async {
        let (id, _) = device.request().await;
        let path = format!("/v1/requests/{id}/response");
        // X3, T4: not theirs, and the call goes on.
        rig.call("POST", &path, &other, &[], b"forged").await.expect(403, "forbidden");
        rig.call("POST", &path, &key, &[], b"forged").await.expect(403, "forbidden");
        rig.call("POST", &path, "", &[], b"forged").await.expect(401, "unauthenticated");
        let bad = [("relay-status", "a b")];
        rig.call("POST", &path, &device.token, &bad, b"").await.expect(400, "bad-request");
        let got = rig.call("POST", &path, &device.token, &[("content-type", "text/plain")], b"42 %").await;
        assert_eq!((got.status, got.body.len()), (204, 0));
        rig.call("POST", &path, &device.token, &[], b"again").await.expect(409, "already-answered");
        rig.call("POST", &path, &other, &[], b"again").await.expect(403, "forbidden");
    };
    let (got, ()) = tokio::join!(call, answer);
    assert_eq!((got.status, &*got.body), (200, &b"42 %"[..]));
    let path = "/v1/requests/nothing-of-ours/response";
    rig.call("POST", path, &device.token, &[], b"").await.expect(404, "unknown-request");
}

#[tokio::test]
async fn q4_a_response_is_not_kept_waiting_by_a_service_that_does_not_read() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let mut service = rig.wire().await;
    service.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
    let (id, _) = device.request().await;
    let big = vec![b'x'; 1024 * 1024];
    let path = format!("/v1/requests/{id}/response");
    let got = rig.call("POST", &path, &device.token, &[], &big).await;
    assert_eq!(got.status, 204);
    let got = service.read().await.unwrap();
    assert_eq!((got.status, got.body.len()), (200, big.len()));
}

#[tokio::test]
async fn l1_the_devices_own_errors_come_as_its_words() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    for (code, words, status, expected) in [
        ("unknown-object", "no tray 9", 404, "unknown-object"),
        ("device-error", "paper jam\u{1b}[31m in tray 2", 409, "device-error"),
        ("vendor.7", "lamp", 502, "device-failed"),
    ] {
        let answer = async {
            let (id, _) = device.request().await;
            device.answer(id, Response::error(Status::parse(code).unwrap(), words)).await;
        };
        let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/x", &key), answer);
        got.expect(status, expected);
        assert_eq!(got.outcome(), "answered");
        assert!(got.field("relay-request-id").is_some());
        let json = got.json();
        assert_eq!(json["detail"], words.replace('\u{1b}', "\u{fffd}"));
        if status == 502 {
            assert_eq!((&json["device_status"], &json["device_detail"]), (&code.into(), &words.into()));
        }
    }
}

#[tokio::test]
async fn l1_every_answer_to_a_call_says_how_far_it_came() {
    let rig = Rig::with(|config| config.http.max_target = 300).await;
    rig.enrol("d").await;
    let key = rig.key(&["device:d:GET"]).await;
    let object = "/v1/devices/d/objects/x";
    let requests = "/v1/devices/d/requests";
    let long = format!("{object}{}", "x".repeat(300));
    let json = [("content-type", "application/json")];
    for (method, path, token, fields, body, status, code) in [
        ("GET", object, "", &[][..], "", 401, "unauthenticated"),
        ("GET", object, "nonsense", &[], "", 401, "unauthenticated"),
        ("PUT", object, &key, &[], "", 403, "forbidden"),
        ("POST", requests, &key, &json, r#"{"method":"SET"}"#, 403, "forbidden"),
        ("POST", requests, &key, &json, r#"{"method":"#, 400, "bad-request"),
        ("POST", requests, &key, &[("content-type", "text/xml")], "<a/>", 415, "unsupported-media-type"),
        ("POST", requests, &key, &[("content-encoding", "gzip")], "x", 415, "unsupported-media-type"),
        ("GET", requests, &key, &[], "", 405, "method-not-allowed"),
        ("DELETE", object, &key, &[], "", 405, "method-not-allowed"),
        ("GET", "/v1/devices/d/objects/a%20b", &key, &[], "", 400, "bad-request"),
        ("GET", "/v1/devices/d/objects/x?deliver=queue", &key, &[], "", 400, "bad-request"),
        ("GET", "/v1/devices/d/objects/x?token=x", &key, &[], "", 400, "bad-request"),
        ("GET", object, &key, &[("idempotency-key", "1")], "", 400, "bad-request"),
        ("GET", &long, &key, &[], "", 414, "uri-too-long"),
        ("GET", "/v1/accounts/none/objects/x", &key, &[], "", 404, "unknown-device"),
    ] {
        let got = rig.call(method, path, token, fields, body.as_bytes()).await;
        got.expect(status, code);
        let outcome = if code == "unknown-device" { "unknown" } else { "refused" };
        assert_eq!(got.outcome(), outcome, "{method} {path}: {got:?}");
    }
}

#[tokio::test]
async fn l1_a_body_too_large_for_the_session_is_refused_before_anything_is_sent() {
    let rig = Rig::start().await;
    let _device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let got = rig.call("PUT", "/v1/devices/d/objects/x", &key, &[], &vec![0; 200 * 1024]).await;
    got.expect(413, "too-large");
    assert_eq!(got.outcome(), "refused");
}

#[tokio::test]
async fn q5_an_account_with_one_device_stands_for_it_and_with_several_for_none() {
    let rig = Rig::start().await;
    let key = rig.key(&[]).await;
    let acme = rig.key(&["account:acme"]).await;
    let only_one = rig.key(&["device:one"]).await;
    let path = "/v1/accounts/acme/objects/x";
    let mut one = rig.device("one").await;
    rig.put_json("/v1/devices/one", &one.token, r#"{"accounts":["acme"]}"#).await;
    // T47: claimed, but not agreed to.
    rig.get(path, &key).await.expect(404, "unknown-device");
    assert_eq!(rig.call("PUT", "/v1/accounts/acme/devices/one", &acme, &[], b"").await.status, 204);
    for token in [&key, &acme, &only_one] {
        let answer = async {
            let (id, _) = one.request().await;
            one.answer(id, Response::with_body(Body::text("1"))).await;
        };
        let (got, ()) = tokio::join!(rig.get(path, token), answer);
        assert_eq!((got.status, &*got.body), (200, &b"1"[..]));
    }
    let two = rig.device("two").await;
    rig.put_json("/v1/devices/two", &two.token, r#"{"accounts":["acme"]}"#).await;
    assert_eq!(rig.call("PUT", "/v1/accounts/acme/devices/two", &acme, &[], b"").await.status, 204);
    let got = rig.get(path, &key).await;
    got.expect(409, "ambiguous-account");
    assert_eq!(got.outcome(), "refused");
    rig.get("/v1/accounts/acme", &key).await.expect(409, "ambiguous-account");
    rig.post_json("/v1/accounts/acme/requests", &acme, r#"{"method":"GET"}"#)
        .await
        .expect(409, "ambiguous-account");
    // Whoever sees but one of them has one.
    assert_eq!(rig.get("/v1/accounts/acme", &only_one).await.json()["id"], "one");
    // And whoever sees none has none.
    let foreign = rig.key(&["device:x-*"]).await;
    let none = rig.get(path, &foreign).await;
    none.expect(404, "unknown-device");
    assert_eq!(none.body, rig.get("/v1/devices/nobody/objects/x", &key).await.body);
    assert_eq!(rig.call("DELETE", "/v1/accounts/acme/devices/two", &acme, &[], b"").await.status, 204);
    assert_eq!(rig.get("/v1/accounts/acme", &key).await.json()["id"], "one");
}

#[tokio::test]
async fn f5_a_service_that_hangs_up_cancels_its_request() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let mut service = rig.wire().await;
    service.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
    let (asked, _) = device.request().await;
    drop(service);
    loop {
        if let Envelope::Cancel { id } = device.envelope().await {
            assert_eq!(id, asked);
            break;
        }
    }
    let path = format!("/v1/requests/{asked}/response");
    rig.call("POST", &path, &device.token, &[], b"").await.expect(410, "too-late");
    assert_eq!(rig.relay.in_flight(), 0);

    let metrics = async || String::from_utf8(rig.get("/metrics", &key).await.body).unwrap();
    let counted = "relay_requests_total{outcome=\"cancelled\"} 1";
    tokio::time::timeout(PATIENCE, async {
        while !metrics().await.lines().any(|line| line == counted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is counted");
    assert!(metrics().await.contains("relay_request_duration_seconds_count 1\n"));
}

#[tokio::test]
async fn b6_a_key_has_a_bound_of_calls_in_flight_and_others_are_not_touched() {
    let rig = Rig::with(|config| config.http.service_in_flight = 2).await;
    let mut device = rig.device("d").await;
    let (greedy, other) = (rig.key(&[]).await, rig.key(&[]).await);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut wire = rig.wire().await;
        wire.send(&head("GET", "/v1/devices/d/objects/x", &greedy, &[], None)).await;
        held.push((wire, device.request().await.0));
    }
    let got = rig.get("/v1/devices/d/objects/x", &greedy).await;
    got.expect(429, "too-many-requests");
    assert_eq!((got.outcome(), got.field("retry-after")), ("refused", Some("1")));
    let answer = async {
        let (id, _) = device.request().await;
        device.answer(id, Response::ok()).await;
    };
    let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/x", &other), answer);
    assert_eq!(got.status, 200);
    for (mut wire, id) in held {
        device.answer(id, Response::ok()).await;
        assert_eq!(wire.read().await.unwrap().status, 200);
    }
    // Their places are free again.
    let answer = async {
        let (id, _) = device.request().await;
        device.answer(id, Response::ok()).await;
    };
    let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/x", &greedy), answer);
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn b6_a_device_has_a_bound_of_requests_in_flight() {
    let rig = Rig::with(|config| config.relay.device_in_flight = 1).await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let mut held = rig.wire().await;
    held.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
    let (id, _) = device.request().await;
    let got = rig.get("/v1/devices/d/objects/x", &key).await;
    got.expect(429, "too-many-requests");
    assert!(got.field("retry-after").is_some());
    device.answer(id, Response::ok()).await;
    assert_eq!(held.read().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_preferred_wait_is_said_to_have_been_applied() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    for (prefer, applied) in [("wait=7", "wait=7"), ("wait=100000", "wait=600")] {
        let answer = async {
            let (id, _) = device.request().await;
            device.answer(id, Response::ok()).await;
        };
        let fields = [("prefer", prefer)];
        let call = rig.call("GET", "/v1/devices/d/objects/x", &key, &fields, b"");
        let (got, ()) = tokio::join!(call, answer);
        assert_eq!(got.field("preference-applied"), Some(applied));
    }
}

#[tokio::test]
async fn k4_the_trace_of_a_call_travels_with_its_request() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = async {
        let (id, request) = device.request().await;
        assert_eq!(request.traceparent.as_deref(), Some(trace));
        device.answer(id, Response::ok()).await;
    };
    let fields = [("traceparent", trace)];
    let call = rig.call("GET", "/v1/devices/d/objects/x", &key, &fields, b"");
    assert_eq!(tokio::join!(call, answer).0.status, 200);
}

#[tokio::test]
async fn l2_a_relay_that_stops_finishes_what_runs_and_says_no_to_the_rest() {
    let mut rig = Rig::with(|config| config.drain_grace = Duration::from_secs(10)).await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let mut held = rig.wire().await;
    held.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
    let (id, _) = device.request().await;
    let mut idle = rig.wire().await;
    idle.send(&head("GET", "/readyz", "", &[], None)).await;
    assert_eq!(idle.read().await.unwrap().status, 200);
    rig.stop();
    eventually(|| rig.relay.is_draining()).await;
    rig.get("/readyz", "").await.expect(503, "draining");
    assert_eq!(rig.get("/healthz", "").await.status, 200);
    let refused = rig.get("/v1/devices/d/objects/x", &key).await;
    refused.expect(503, "draining");
    assert_eq!((refused.outcome(), refused.field("retry-after").is_some()), ("refused", true));
    let path = format!("/v1/requests/{id}/response");
    assert_eq!(rig.call("POST", &path, &device.token, &[], b"done").await.status, 204);
    let got = held.read().await.unwrap();
    assert_eq!((got.status, &*got.body), (200, &b"done"[..]));
    assert!(matches!(device.end().await, EndReason::Drain { retry_after: Some(_) }));
    rig.stopped().await;
    idle.closed().await;
    held.closed().await;
    assert!(tokio::net::TcpStream::connect(rig.address).await.is_err());
}

#[tokio::test]
async fn p2_any_http_request_of_a_device_restarts_its_presence_timer() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let heard = || rig.relay.presence(&device_id("d")).unwrap().last_heard;
    assert_eq!(heard(), None);
    rig.post_json("/v1/devices/d/alive", &token, r#"{"session":"x"}"#).await;
    let first = heard().expect("it was heard");
    tokio::time::sleep(Duration::from_millis(30)).await;
    rig.call("POST", "/v1/requests/none/response", &token, &[], b"").await;
    assert!(heard().unwrap() < first + Duration::from_millis(30));
    assert_eq!(rig.relay.presence(&device_id("d")).unwrap().state, State::Offline);
}
