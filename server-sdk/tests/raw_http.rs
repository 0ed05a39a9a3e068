//! HTTP/1.1 as it is spoken in bytes: framing, versions, pipelining, what is smuggled and what is ignored.
#![cfg(feature = "relay")]

mod http_support;

use std::time::Duration;

use http_support::{Rig, Wire, head};
use relay_core::{Body, Response};

async fn sent(rig: &Rig, bytes: &[u8]) -> Wire {
    let mut wire = rig.wire().await;
    wire.send(bytes).await;
    wire
}

#[tokio::test]
async fn t33_http_2_is_not_served() {
    let rig = Rig::start().await;
    let mut wire = sent(&rig, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let rest = wire.rest().await;
    assert!(!rest.windows(3).any(|three| three == b"200"), "{:?}", String::from_utf8_lossy(&rest));
    let mut wire =
        sent(&rig, b"GET /healthz HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n").await;
    assert_eq!(wire.read().await.unwrap().status, 200);
}

#[tokio::test]
async fn t34_a_request_has_one_length_or_none() {
    let rig = Rig::start().await;
    // Both: the coding counts, and the connection does not go on (RFC 9112 §6.1).
    for fields in [
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
    ] {
        let bytes = format!(
            "POST /v1/enroll HTTP/1.1\r\nhost: x\r\n{fields}\r\n2\r\n{{}}\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        );
        let mut wire = sent(&rig, bytes.as_bytes()).await;
        let got = wire.read().await.unwrap();
        got.expect(400, "bad-request");
        assert!(got.json()["detail"].as_str().unwrap().contains("body/device_id"), "{got:?}");
        assert_eq!(got.field("connection"), Some("close"));
        assert_eq!(wire.rest().await, b"", "what was smuggled is not answered");
    }
    for bad in [
        "POST /v1/enroll HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        "POST /v1/enroll HTTP/1.1\r\nhost: x\r\ncontent-length: +2\r\n\r\n{}",
        "POST /v1/enroll HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n{}",
        "POST /v1/enroll HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n{}",
        "POST /v1/enroll HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n{}",
        "POST /v1/enroll HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\n: x\r\n\r\n",
        "GET  /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.2\r\n\r\n",
        "GET /healthz\r\n\r\n",
        "GET /heal\0thz HTTP/1.1\r\n\r\n",
        "G(T /healthz HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03",
    ] {
        let mut wire = sent(&rig, bad.as_bytes()).await;
        let status = wire.read().await.map(|got| got.status);
        assert!(matches!(status, None | Some(400)), "{bad:?}: {status:?}");
        wire.closed().await;
    }
    for bad in ["g\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "2\r\n{}x\r\n"] {
        let bytes = format!("POST /v1/enroll HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{bad}");
        let mut wire = sent(&rig, bytes.as_bytes()).await;
        if let Some(got) = wire.read().await {
            got.expect(400, "bad-request");
        }
        wire.closed().await;
    }
    assert_eq!(rig.get("/healthz", "").await.status, 200);
}

#[tokio::test]
async fn t34_fields_that_are_ours_to_say_are_not_believed() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let fields = [
        ("relay-request-id", "mine"),
        ("relay-outcome", "answered"),
        ("relay-status", "device-error"),
        ("relay-session", "mine"),
        ("x-forwarded-for", "203.0.113.9"),
        ("forwarded", "for=203.0.113.9"),
        ("connection", "authorization"),
    ];
    let answer = async {
        let (id, _) = device.request().await;
        assert_ne!(id.as_str(), "mine");
        device.answer(id.clone(), Response::with_body(Body::text("x"))).await;
        id
    };
    let (got, id) = tokio::join!(rig.call("GET", "/v1/devices/d/objects/x", &key, &fields, b""), answer);
    assert_eq!((got.status, got.field("relay-request-id")), (200, Some(id.as_str())));
    let got = rig.call("GET", "/v1/devices/none/objects/x", &key, &fields, b"").await;
    assert_eq!((got.outcome(), got.field("relay-request-id")), ("unknown", None));
}

#[tokio::test]
async fn b11_a_forwarded_address_does_not_make_another_source() {
    let rig = Rig::with(|config| config.http.enrolments_per_minute = 2).await;
    let body = br#"{"device_id":"d","pin":"1"}"#;
    let mut statuses = Vec::new();
    for n in 0..3 {
        let forwarded = format!("203.0.113.{n}");
        let fields = [("content-type", "application/json"), ("x-forwarded-for", &*forwarded)];
        statuses.push(rig.call("POST", "/v1/enroll", "", &fields, body).await.status);
    }
    assert_eq!(statuses, [401, 401, 429]);
}

#[tokio::test]
async fn h6_http_1_0_and_connection_close_are_understood() {
    let rig = Rig::start().await;
    let mut wire = sent(&rig, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    let text = String::from_utf8(wire.rest().await).unwrap();
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("\r\n\r\nok\n"), "{text}");
    let mut wire = sent(&rig, b"GET /healthz HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
    assert_eq!(wire.read().await.unwrap().status, 200);
    wire.send(b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert_eq!(wire.read().await.unwrap().status, 200);
    wire.closed().await;
    let mut wire = sent(&rig, &head("GET", "/healthz", "", &[("Connection", "Close")], None)).await;
    let got = wire.read().await.unwrap();
    assert_eq!((got.status, got.field("connection")), (200, Some("close")));
    wire.closed().await;
}

#[tokio::test]
async fn h6_targets_in_absolute_form_and_field_names_in_any_case_are_understood() {
    let rig = Rig::start().await;
    let bytes = format!(
        "GET http://elsewhere.example:5222/v1/devices HTTP/1.1\r\nHOST: elsewhere.example:5222\r\nAUTHORIZATION:bearer {}\r\n\r\n",
        rig.admin
    );
    assert_eq!(sent(&rig, bytes.as_bytes()).await.read().await.unwrap().status, 200);
    for odd in
        ["OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", "CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n"]
    {
        sent(&rig, odd.as_bytes()).await.read().await.unwrap().expect(404, "not-found");
    }
}

#[tokio::test]
async fn h6_a_body_that_is_announced_is_asked_for_unless_it_is_refused() {
    let rig = Rig::start().await;
    let expect = ("expect", "100-continue");
    let json = ("content-type", "application/json");
    let mut wire = sent(&rig, &head("POST", "/v1/enroll", "", &[expect, json], Some(2))).await;
    assert_eq!(wire.read().await.unwrap().status, 100);
    wire.send(b"{}").await;
    wire.read().await.unwrap().expect(400, "bad-request");
    for (fields, length, status) in
        [(&[expect, json], 100_000, 413), (&[expect, ("content-type", "text/xml")], 2, 415)]
    {
        let mut wire = sent(&rig, &head("POST", "/v1/enroll", "", fields, Some(length))).await;
        assert_eq!(wire.read().await.unwrap().status, status);
        wire.closed().await;
    }
    let mut wire = sent(&rig, &head("PUT", "/v1/devices/d", "", &[expect], Some(2))).await;
    assert_eq!(wire.read().await.unwrap().status, 401);
}

#[tokio::test]
async fn h9_requests_sent_ahead_are_answered_in_their_order() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let mut bytes = Vec::new();
    for object in ["a", "b", "c"] {
        bytes.extend(head("GET", &format!("/v1/devices/d/objects/{object}"), &key, &[], None));
    }
    let mut wire = sent(&rig, &bytes).await;
    for object in ["a", "b", "c"] {
        let (id, request) = device.request().await;
        assert_eq!(request.objects[0].as_str(), object);
        device.answer(id, Response::with_body(Body::text(object))).await;
        let got = wire.read().await.unwrap();
        assert_eq!((got.status, &*got.body), (200, object.as_bytes()));
    }
}

#[tokio::test]
async fn an_error_leaves_the_connection_as_good_as_it_was() {
    let rig = Rig::start().await;
    let mut wire = rig.wire().await;
    for (path, status) in
        [("/nothing", 404), ("/v1/devices/a%20b", 400), ("/v1/devices", 401), ("/healthz", 200)]
    {
        wire.send(&head("GET", path, "", &[], None)).await;
        assert_eq!(wire.read().await.unwrap().status, status, "{path}");
    }
    wire.send(&head("POST", "/v1/enroll", "", &[("content-type", "application/json")], Some(3))).await;
    wire.send(b"{x}").await;
    wire.read().await.unwrap().expect(400, "bad-request");
    wire.send(&head("GET", "/healthz", "", &[], None)).await;
    assert_eq!(wire.read().await.unwrap().status, 200);
}

#[tokio::test]
async fn an_answer_in_pieces_arrives_whole() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let mut wire = rig.wire().await;
    // Around the size of a piece, and of the write buffer.
    for size in [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 64 * 1024, 100_000] {
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        wire.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
        let (id, _) = device.request().await;
        device.answer(id, Response::with_body(Body::new("a/b", bytes.clone()))).await;
        let got = wire.read().await.unwrap();
        assert!(got.body == bytes, "{size} bytes differ");
    }
}

#[tokio::test]
async fn t7_garbage_never_takes_the_relay_down() {
    let rig = Rig::start().await;
    let good = head("POST", "/v1/devices/d/requests?method=GET&object=a%2Fb", &rig.admin, &[], Some(4));
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for round in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.drain(at..(at + random(16)).min(bytes.len()))),
                2 => bytes.insert(at, random(256) as u8),
                _ => bytes.truncate(at + 1),
            }
            if bytes.is_empty() {
                bytes.push(b'x');
            }
        }
        let mut wire = sent(&rig, &bytes).await;
        wire.send(b"body").await;
        tokio::io::AsyncWriteExt::shutdown(&mut wire.stream).await.unwrap();
        let rest = wire.rest().await;
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1."),
            "round {round}: {:?}",
            String::from_utf8_lossy(&rest)
        );
        assert!(!rest.starts_with(b"HTTP/1.1 5"), "round {round}: {:?}", String::from_utf8_lossy(&rest));
    }
    tokio::time::timeout(Duration::from_secs(5), rig.get("/healthz", "")).await.expect("it serves");
}

#[tokio::test]
async fn t34_a_trusted_proxy_says_whom_it_speaks_for() {
    let rig = Rig::with(|config| {
        config.http.enrolments_per_minute = 1;
        config.http.max_strangers = 1;
        config.http.head_timeout = Duration::from_secs(60);
        config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    // Its connections are no strangers'.
    let (_one, _two) = (rig.wire().await, rig.wire().await);
    let body = br#"{"device_id":"d","pin":"1"}"#;
    let mut statuses = Vec::new();
    for forwarded in ["203.0.113.1", "203.0.113.2", "1.1.1.1, 203.0.113.2"] {
        let fields = [("content-type", "application/json"), ("x-forwarded-for", forwarded)];
        statuses.push(rig.call("POST", "/v1/enroll", "", &fields, body).await.status);
    }
    assert_eq!(statuses, [401, 401, 429]);
}
