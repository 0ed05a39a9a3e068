//! Attacks over HTTP, and what each of them gets (rows T of the threat list).
#![cfg(feature = "relay")]

mod http_support;

use http_support::{Rig, head};
use relay_core::{Body, Response};
use serde_json::json;

#[tokio::test]
async fn t4_responses_from_another_device_are_forbidden_and_the_call_goes_on() {
    let rig = Rig::start().await;
    let mut devices = [rig.device("a").await, rig.device("b").await, rig.device("c").await];
    let tokens: Vec<String> = devices.iter().map(|device| device.token.clone()).collect();
    let key = rig.key(&[]).await;
    for round in 0..30 {
        let mine = round % 3;
        let path = format!("/v1/devices/{}/objects/x", ["a", "b", "c"][mine]);
        let truth = format!("truth of {round}");
        let answer = async {
            let (id, _) = devices[mine].request().await;
            let path = format!("/v1/requests/{id}/response");
            for (other, token) in tokens.iter().enumerate().filter(|&(other, _)| other != mine) {
                let got = rig.call("POST", &path, token, &[], format!("forged by {other}").as_bytes()).await;
                got.expect(403, "forbidden");
            }
            assert_eq!(rig.call("POST", &path, &tokens[mine], &[], truth.as_bytes()).await.status, 204);
        };
        let (got, ()) = tokio::join!(rig.get(&path, &key), answer);
        assert_eq!(got.body, truth.as_bytes());
    }
}

#[tokio::test]
async fn t7_a_tampered_request_id_is_the_id_of_nothing() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let mut service = rig.wire().await;
    service.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
    let (id, _) = device.request().await;
    let id = id.as_str();
    let mut forged =
        vec![id[1..].to_owned(), id[..id.len() - 1].to_owned(), format!("{id}a"), "%00".into(), "é".into()];
    for at in 0..id.len() {
        let mut other = id.to_owned().into_bytes();
        // Another letter, not another case of the same.
        other[at] = if other[at].eq_ignore_ascii_case(&b'a') { b'b' } else { b'a' };
        forged.push(String::from_utf8(other).unwrap());
    }
    for forged in forged {
        let path = format!("/v1/requests/{}/response", forged.replace('é', "%C3%A9"));
        rig.call("POST", &path, &device.token, &[], b"forged").await.expect(404, "unknown-request");
    }
    let path = format!("/v1/requests/{id}/response");
    assert_eq!(rig.call("POST", &path, &device.token, &[], b"true").await.status, 204);
    assert_eq!(service.read().await.unwrap().body, b"true");
}

#[tokio::test]
async fn t10_enrolment_tells_nobody_which_devices_there_are() {
    let rig = Rig::with(|config| config.http.enrolments_per_minute = 1000).await;
    rig.enrol("enrolled").await;
    rig.post_json("/v1/devices/pending/pin", &rig.admin, "").await;
    let csv = [("content-type", "text/csv")];
    rig.call("POST", "/v1/devices/import", &rig.admin, &csv, b"device_id\nprepared\n").await;
    let mut answers = Vec::new();
    for device in ["enrolled", "pending", "prepared", "nobody", "-", &"x".repeat(64), "no id"] {
        let body = json!({"device_id": device, "pin": "99999999"}).to_string();
        let mut wire = rig.wire().await;
        let fields = [("content-type", "application/json"), ("connection", "close")];
        wire.send(&head("POST", "/v1/enroll", "", &fields, Some(body.len()))).await;
        wire.send(body.as_bytes()).await;
        answers.push(wire.rest().await);
    }
    assert!(answers.windows(2).all(|two| two[0] == two[1]), "answers differ");
    assert!(answers[0].starts_with(b"HTTP/1.1 401 "));
}

#[tokio::test]
async fn t45_no_name_on_the_wire_becomes_a_path() {
    let rig = Rig::start().await;
    for path in [
        "/v1/devices/..",
        "/v1/devices/%2e%2e",
        "/v1/devices/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/devices/..%5c..%5cx",
        "/v1/devices/a%00",
        "/v1/devices/%EF%BC%8E%EF%BC%8E",
        "/v1/devices/%252e%252e",
        "/v1/devices/d/objects/..",
        "/v1/devices/d/objects/a%00b",
        "/v1/devices/d/objects/a%5cb",
    ] {
        rig.get(path, &rig.admin).await.expect(400, "bad-request");
    }
    for path in
        ["/../etc/passwd", "/v1/devices/../../etc/passwd", "/.", "/v1/../healthz", "/healthz/..", "//healthz"]
    {
        rig.get(path, &rig.admin).await.expect(404, "not-found");
    }
    // A path-like object is the device's to understand, and goes nowhere else.
    rig.enrol("d").await;
    rig.get("/v1/devices/d/objects/../../etc/passwd", &rig.admin).await.expect(503, "device-offline");
}

#[tokio::test]
async fn t51_a_hostile_device_cannot_make_a_browser_run_its_answer() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let script = b"<script>alert(1)</script>";
    let fixed = [
        "cache-control",
        "content-length",
        "content-security-policy",
        "content-type",
        "relay-outcome",
        "relay-request-id",
        "x-content-type-options",
    ];
    for (kind, shown, sandboxed) in [
        ("text/html", "text/html", true),
        ("IMAGE/SVG+XML; charset=x", "IMAGE/SVG+XML; charset=x", true),
        ("text/plain", "text/plain", false),
        ("application/json; a=b", "application/json; a=b", false),
        ("text/html\r\nset-cookie: a=b", "application/octet-stream", false),
        ("", "application/octet-stream", false),
        ("nonsense", "nonsense", true),
    ] {
        let answer = async {
            let (id, _) = device.request().await;
            device.answer(id, Response::with_body(Body::new(kind, &script[..]))).await;
        };
        let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/x", &key), answer);
        assert_eq!((got.status, got.field("content-type"), &*got.body), (200, Some(shown), &script[..]));
        assert_eq!(got.field("x-content-type-options"), Some("nosniff"));
        assert_eq!(got.field("content-security-policy").is_some(), sandboxed, "{kind:?}");
        for (name, _) in &got.fields {
            assert!(fixed.contains(&&**name), "{name} is not of the fixed set");
        }
    }
    // By HTTP, its own header fields stay its own.
    let mut service = rig.wire().await;
    service.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
    let (id, _) = device.request().await;
    let fields = [("content-type", "text/plain"), ("set-cookie", "a=b"), ("relay-outcome", "offline")];
    let path = format!("/v1/requests/{id}/response");
    assert_eq!(rig.call("POST", &path, &device.token, &fields, b"x").await.status, 204);
    let got = service.read().await.unwrap();
    assert_eq!((got.status, got.outcome(), got.field("set-cookie")), (200, "answered", None));
}

#[tokio::test]
async fn t35_json_that_is_a_trap_is_refused_with_its_place() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let deep = format!(r#"{{"capabilities":{{"a":{}1{}}}}}"#, "[".repeat(100), "]".repeat(100));
    for (body, place) in [
        (r#"{"name":"a","name":"b"}"#, "body/name"),
        (r#"{"capabilities":{"x":1e400}}"#, "body/capabilities/x"),
        (r#"{"name":"\ud800"}"#, "body/name"),
        (&*deep, "body/capabilities/a/0"),
    ] {
        let got = rig.put_json("/v1/devices/d", &token, body).await;
        got.expect(400, "bad-request");
        assert!(got.json()["detail"].as_str().unwrap().contains(place), "{body}: {got:?}");
    }
    let bomb = format!(r#"{{"method":"X","body":{}"#, "[".repeat(500_000));
    rig.post_json("/v1/devices/d/requests", &rig.admin, &bomb).await.expect(400, "bad-request");
}
