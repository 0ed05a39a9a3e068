//! The HTTP API call by call: what it does, and each way in which it says no.
#![cfg(feature = "relay")]

mod http_support;

use http_support::{Rig, device_id, head};
use serde_json::json;

const REGISTRATION: &str = r#"{"name":"Copy room","model":"MX-1","mac":"02:00:5e:10:00:01","location":"2nd floor",
    "keepalive":90,"capabilities":{"color":true,"paper":["A4"]},"formats":["application/pdf"],
    "apps":[{"name":"print","path":"/print","protocol":"print"}],"accounts":["acme"],"site":"hq"}"#;

#[tokio::test]
async fn x1_a_pin_is_good_once_and_every_failure_looks_the_same() {
    let rig = Rig::start().await;
    let pin = rig.post_json("/v1/devices/d/pin", &rig.admin, "").await;
    assert_eq!(pin.status, 201);
    assert_eq!(pin.json()["device_id"], "d");
    assert_eq!(pin.field("cache-control"), Some("no-store"));
    let pin = pin.json()["pin"].as_str().unwrap().to_owned();
    let body = |device: &str, pin: &str| json!({"device_id": device, "pin": pin}).to_string();
    let refused = rig.post_json("/v1/enroll", "", &body("d", "00000000")).await;
    refused.expect(401, "unauthenticated");
    for (device, pin) in [("nobody", "00000000"), ("no body", "x"), ("d", ""), ("nobody", &*pin)] {
        let got = rig.post_json("/v1/enroll", "", &body(device, pin)).await;
        assert_eq!((got.status, &got.fields, &got.body), (401, &refused.fields, &refused.body));
    }
    let got = rig.post_json("/v1/enroll", "", &body("D", &pin)).await;
    assert_eq!((got.status, got.field("cache-control")), (201, Some("no-store")));
    assert_eq!(rig.post_json("/v1/enroll", "", &body("d", &pin)).await.body, refused.body);
    assert_eq!(rig.get("/v1/devices/d", &rig.admin).await.json()["state"], "offline");
}

#[tokio::test]
async fn b11_who_guesses_pins_is_slowed_down() {
    let rig = Rig::with(|config| config.http.enrolments_per_minute = 3).await;
    for _ in 0..3 {
        rig.post_json("/v1/enroll", "", r#"{"device_id":"d","pin":"1"}"#)
            .await
            .expect(401, "unauthenticated");
    }
    let got = rig.post_json("/v1/enroll", "", r#"{"device_id":"d","pin":"1"}"#).await;
    got.expect(429, "too-many-requests");
    assert!(got.field("retry-after").is_some());
}

#[tokio::test]
async fn enrolment_that_cannot_be_understood_says_why() {
    let rig = Rig::start().await;
    for (body, words) in [
        ("", "body"),
        ("[]", "is not an object"),
        (r#"{"device_id":"d"}"#, "body/pin: is missing"),
        (r#"{"device_id":7,"pin":"1"}"#, "body/device_id: is not a string"),
        (r#"{"device_id":"d","pin":"1","x":1}"#, "body/x"),
    ] {
        let got = rig.post_json("/v1/enroll", "", body).await;
        got.expect(400, "bad-request");
        assert!(got.json()["detail"].as_str().unwrap().contains(words), "{body}: {got:?}");
    }
}

#[tokio::test]
async fn p1_a_device_registers_with_201_and_then_200() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let got = rig.put_json("/v1/devices/D", &token, REGISTRATION).await;
    assert_eq!(got.status, 201, "{got:?}");
    assert_eq!(rig.put_json("/v1/devices/d", &token, REGISTRATION).await.status, 200);
    let seen = rig.get("/v1/devices/d", &rig.admin).await.json();
    for (key, value) in [
        ("id", json!("d")),
        ("name", json!("Copy room")),
        ("model", json!("MX-1")),
        ("mac", json!("02:00:5e:10:00:01")),
        ("location", json!("2nd floor")),
        ("state", json!("offline")),
        ("epoch", json!(0)),
        ("transport", json!(null)),
        ("detects_loss_within", json!(180)),
        ("capabilities", json!({"color": true, "paper": ["A4"]})),
        ("formats", json!(["application/pdf"])),
        ("apps", json!([{"name": "print", "path": "/print", "protocol": "print"}])),
        // Claimed, not yet agreed to.
        ("accounts", json!([])),
        ("site", json!("hq")),
    ] {
        assert_eq!(seen[key], value, "{key} in {seen}");
    }
    assert!(seen["last_heard"].as_str().unwrap().ends_with('Z'), "{seen}");
    for (body, words) in [
        ("{", "body"),
        (r#"{"name":7}"#, "body/name"),
        (r#"{"accounts":["a b"]}"#, "body/accounts/0"),
        (r#"{"keepalive":0.1}"#, "body/keepalive"),
    ] {
        let got = rig.put_json("/v1/devices/d", &token, body).await;
        got.expect(400, "bad-request");
        assert!(got.json()["detail"].as_str().unwrap().contains(words), "{body}: {got:?}");
    }
    let long = "{}".to_owned() + &" ".repeat(70_000);
    rig.put_json("/v1/devices/d", &token, &long).await.expect(413, "too-large");
}

#[tokio::test]
async fn s3_a_survival_notification_says_whether_the_session_is_known() {
    let rig = Rig::start().await;
    let device = rig.device("d").await;
    let path = "/v1/devices/d/alive";
    let session = format!("{:?}", device.session.id);
    assert!(session.contains('…'), "{session}");
    let got = rig.post_json(path, &device.token, r#"{"session":"abc"}"#).await;
    assert_eq!((got.status, got.json()), (200, json!({"session": "unknown"})));
    let got = rig.post_json(path, &device.token, r#"{"session":"a b\u0000"}"#).await;
    assert_eq!((got.status, got.json()), (200, json!({"session": "unknown"})));
    let id = json!({"session": device.session.id.as_str()}).to_string();
    let got = rig.post_json(path, &device.token, &id).await;
    assert_eq!((got.status, got.json()), (200, json!({"session": "known"})));
    rig.post_json(path, &device.token, r#"{}"#).await.expect(400, "bad-request");
}

#[tokio::test]
async fn x3_each_call_is_for_those_whom_it_is_for() {
    let rig = Rig::start().await;
    let (one, two) = (rig.enrol("one").await, rig.enrol("two").await);
    let service = rig.key(&[]).await;
    let request =
        rig.relay.presence(&device_id("one")).is_some().then_some("/v1/requests/x/response").unwrap();
    let csv = [("content-type", "text/csv")];
    let json = [("content-type", "application/json")];
    // Who may: a device (`one`), a service, the administrator.
    for (method, path, fields, body, device, of_service, of_admin) in [
        ("PUT", "/v1/devices/one", &json, "{}", true, false, false),
        ("POST", "/v1/devices/one/alive", &json, r#"{"session":"s"}"#, true, false, false),
        ("POST", request, &json, "{}", true, false, false),
        ("GET", "/v1/devices", &json, "", false, true, true),
        ("GET", "/v1/devices/one", &json, "", false, true, true),
        ("GET", "/v1/accounts/acme", &json, "", false, true, true),
        ("GET", "/v1/devices/one/objects/x", &json, "", false, true, true),
        ("PUT", "/v1/devices/one/objects/x", &json, "", false, true, true),
        ("POST", "/v1/devices/one/requests", &json, r#"{"method":"X"}"#, false, true, true),
        ("PUT", "/v1/accounts/acme/devices/one", &json, "", false, true, true),
        ("DELETE", "/v1/accounts/acme/devices/one", &json, "", false, true, true),
        ("GET", "/metrics", &json, "", false, true, true),
        ("POST", "/v1/devices/import", &csv, "device_id\n", false, false, true),
        ("POST", "/v1/devices/one/pin", &json, "", false, false, true),
        ("GET", "/v1/keys", &json, "", false, false, true),
        ("POST", "/v1/keys", &json, "{}", false, false, true),
        ("DELETE", "/v1/keys/none", &json, "", false, false, true),
    ] {
        let admin = &rig.admin;
        for (token, may) in [(&one, device), (&service, of_service), (admin, of_admin)] {
            let got = rig.call(method, path, token, fields, body.as_bytes()).await;
            let who = if token == admin {
                "admin"
            } else if token == &one {
                "device"
            } else {
                "service"
            };
            assert_eq!(!matches!(got.status, 401 | 403), may, "{who}: {method} {path}: {got:?}");
            if !may {
                got.expect(403, "forbidden");
            }
        }
        let got = rig.call(method, path, "", fields, body.as_bytes()).await;
        got.expect(401, "unauthenticated");
        assert_eq!(got.field("www-authenticate"), Some("Bearer"));
        if device && path != request {
            // T8: another device's own calls are not for this one.
            rig.call(method, path, &two, fields, body.as_bytes()).await.expect(403, "forbidden");
        }
    }
}

#[tokio::test]
async fn p3_devices_are_found_by_what_they_are_in_pages() {
    let rig = Rig::start().await;
    let table = "device_id,name,model,location,accounts\n\
        p-1,Alpha,MX-1,hall,acme\np-2,Beta,MX-1,100%,acme;beta\np-3,Gamma,MX-2,hall,beta\n";
    let got = rig
        .call("POST", "/v1/devices/import", &rig.admin, &[("content-type", "text/csv")], table.as_bytes())
        .await;
    assert_eq!((got.status, got.json()), (200, json!({"imported": 3})));
    let token = rig.enrol("p-2").await;
    rig.put_json("/v1/devices/p-2", &token, r#"{"capabilities":{"color":true,"paper":["A4"]}}"#).await;
    let _online = rig.connect("p-2", &token).await;
    let all = rig.key(&[]).await;
    let find = async |key: &str, query: &str| {
        let got = rig.get(&format!("/v1/devices{query}"), key).await;
        assert_eq!(got.status, 200, "{query}: {got:?}");
        let json = got.json();
        let ids: Vec<String> = json["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["id"].as_str().unwrap().to_owned())
            .collect();
        (ids.join(" "), json["next"].as_str().map(str::to_owned))
    };
    for (query, found) in [
        ("", "p-1 p-2 p-3"),
        ("?account=ACME", "p-1 p-2"),
        ("?name=alpha", "p-1"),
        ("?model=mx-1&location=hall", "p-1"),
        ("?location=100%25", "p-2"),
        ("?location=%25", ""),
        ("?capability=color", "p-2"),
        ("?capability=paper:A4", "p-2"),
        ("?state=online", "p-2"),
        ("?state=offline&account=beta", "p-3"),
        ("?state=asleep", ""),
        ("?name=", "p-1 p-2 p-3"),
    ] {
        assert_eq!(find(&all, query).await, (found.to_owned(), None), "{query}");
    }
    let (first, next) = find(&all, "?limit=2").await;
    assert_eq!(first, "p-1 p-2");
    let next = next.unwrap();
    assert_eq!(find(&all, &format!("?limit=2&cursor={next}")).await, ("p-3".to_owned(), None));
    // X2: of all that, a key finds what it may see.
    let beta = rig.key(&["account:beta:list", "device:p-1:GET"]).await;
    assert_eq!(find(&beta, "").await.0, "p-2 p-3");
    // T6, T7: a cursor is good for whom it was given to.
    rig.get(&format!("/v1/devices?limit=2&cursor={next}"), &beta).await.expect(400, "bad-request");
    for query in ["?limit=0", "?limit=1001", "?limit=x", "?state=on", "?nam=x", "?cursor=x", "?account=a%20b"]
    {
        rig.get(&format!("/v1/devices{query}"), &all).await.expect(400, "bad-request");
    }
}

#[tokio::test]
async fn x2_a_device_outside_ones_scope_does_not_exist() {
    let rig = Rig::start().await;
    rig.enrol("mine").await;
    rig.enrol("theirs").await;
    let key = rig.key(&["device:mine"]).await;
    assert_eq!(rig.get("/v1/devices/mine", &key).await.status, 200);
    for (method, path, body) in [
        ("GET", "/v1/devices/WHO", ""),
        ("GET", "/v1/devices/WHO/objects/x", ""),
        ("PUT", "/v1/devices/WHO/objects/x", "1"),
        ("POST", "/v1/devices/WHO/requests", r#"{"method":"X"}"#),
        ("POST", "/v1/devices/WHO/requests?method=X", ""),
    ] {
        let of =
            async |who: &str| rig.call(method, &path.replace("WHO", who), &key, &[], body.as_bytes()).await;
        let (theirs, none) = (of("theirs").await, of("none").await);
        theirs.expect(404, "unknown-device");
        assert_eq!((&theirs.fields, &theirs.body), (&none.fields, &none.body), "{method} {path}");
    }
    // What it sees but may not ask is 403.
    let reader = rig.key(&["device:mine:GET"]).await;
    rig.get("/v1/devices/mine", &reader).await.expect(403, "forbidden");
    rig.call("PUT", "/v1/devices/mine/objects/x", &reader, &[], b"1").await.expect(403, "forbidden");
    rig.get("/v1/devices/mine/objects/x", &reader).await.expect(503, "device-offline");
}

#[tokio::test]
async fn p1_an_account_counts_once_its_side_agreed() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    rig.put_json("/v1/devices/d", &token, r#"{"accounts":["acme"]}"#).await;
    let (acme, other) = (rig.key(&["account:acme"]).await, rig.key(&["account:other"]).await);
    let accounts = async || rig.get("/v1/devices/d", &rig.admin).await.json()["accounts"].clone();
    let call = async |method: &str, path: &str, key: &str| rig.call(method, path, key, &[], b"").await;
    call("PUT", "/v1/accounts/acme/devices/d", &other).await.expect(403, "forbidden");
    // Nobody can take a device that does not claim them, nor learn that it is there.
    let none = call("PUT", "/v1/accounts/other/devices/none", &other).await;
    let taken = call("PUT", "/v1/accounts/other/devices/d", &other).await;
    taken.expect(404, "unknown-device");
    assert_eq!(taken.body, none.body);
    assert_eq!(accounts().await, json!([]));
    assert_eq!(call("PUT", "/v1/accounts/ACME/devices/D", &acme).await.status, 204);
    assert_eq!(accounts().await, json!(["ACME"]));
    assert_eq!(call("PUT", "/v1/accounts/other/devices/d", &rig.admin).await.status, 204);
    assert_eq!(call("DELETE", "/v1/accounts/acme/devices/d", &acme).await.status, 204);
    assert_eq!(accounts().await, json!(["other"]));
    call("DELETE", "/v1/accounts/acme/devices/d", &acme).await.expect(404, "unknown-device");
}

#[tokio::test]
async fn p5_a_device_table_is_taken_whole_or_not_at_all() {
    let rig = Rig::start().await;
    let token = rig.enrol("p-1").await;
    rig.put_json("/v1/devices/p-1", &token, r#"{"name":"own","model":"M"}"#).await;
    let import = async |kind: &str, body: &[u8]| {
        rig.call("POST", "/v1/devices/import", &rig.admin, &[("content-type", kind)], body).await
    };
    let bad = import("text/csv; charset=utf-8", b"device_id,name\np-9,x\nbad id,y\np-8,z,z\n").await;
    bad.expect(400, "bad-request");
    let errors = bad.json()["errors"].clone();
    assert_eq!((&errors[0]["line"], &errors[1]["line"]), (&json!(3), &json!(4)), "{errors}");
    rig.get("/v1/devices/p-9", &rig.admin).await.expect(404, "unknown-device");

    let good = import(
        "application/x-ndjson",
        b"{\"device_id\":\"p-1\",\"name\":\"set\"}\n{\"device_id\":\"p-9\"}\n",
    )
    .await;
    assert_eq!((good.status, good.json()), (200, json!({"imported": 2})));
    let seen = rig.get("/v1/devices/p-1", &rig.admin).await.json();
    // The administrator's word wins, the device's stands where there is none.
    assert_eq!((&seen["name"], &seen["model"]), (&json!("set"), &json!("M")));
    rig.get("/v1/devices/p-9/objects/x", &rig.admin).await.expect(503, "device-offline");
    import("text/plain", b"x").await.expect(415, "unsupported-media-type");
    import("application/x-ndjson", b"[]").await.expect(400, "bad-request");
}

#[tokio::test]
async fn x2_keys_are_made_shown_once_and_revoked() {
    let rig = Rig::start().await;
    let made = rig.post_json("/v1/keys", &rig.admin, r#"{"scopes":["device:d*:GET,list"]}"#).await;
    assert_eq!((made.status, made.field("cache-control")), (201, Some("no-store")));
    let (id, key) =
        (made.json()["id"].as_str().unwrap().to_owned(), made.json()["key"].as_str().unwrap().to_owned());
    rig.enrol("d").await;
    assert_eq!(rig.get("/v1/devices/d", &key).await.status, 200);
    let listed = rig.get("/v1/keys", &rig.admin).await;
    assert!(!String::from_utf8_lossy(&listed.body).contains(&key), "the key itself is told once");
    let listed = listed.json();
    let mine = listed["keys"].as_array().unwrap().iter().find(|one| one["id"] == *id).unwrap();
    assert_eq!(mine["scopes"], json!(["device:d*:GET,list"]));
    let path = format!("/v1/keys/{id}");
    assert_eq!(rig.call("DELETE", &path, &rig.admin, &[], b"").await.status, 204);
    rig.call("DELETE", &path, &rig.admin, &[], b"").await.expect(404, "unknown-key");
    rig.get("/v1/devices/d", &key).await.expect(401, "unauthenticated");
    for bad in [r#"{"scopes":["x"]}"#, r#"{"scopes":"admin"}"#, r#"{"scopes":[1]}"#, r#"{"scope":[]}"#] {
        rig.post_json("/v1/keys", &rig.admin, bad).await.expect(400, "bad-request");
    }
}

#[tokio::test]
async fn health_and_counters_can_be_asked() {
    let rig = Rig::start().await;
    assert_eq!(rig.get("/healthz", "").await.status, 200);
    assert_eq!(rig.get("/readyz", "").await.status, 200);
    rig.get("/v1/devices/none/objects/x", &rig.admin).await.expect(404, "unknown-device");
    let got = rig.get("/metrics", &rig.admin).await;
    assert_eq!(got.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(got.body).unwrap();
    for line in [
        "relay_requests_total{outcome=\"unknown\"} 1",
        "relay_ready 1",
        "relay_sessions 0",
        "relay_request_duration_seconds_count 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    // Prometheus' text form: a name with its help and type, then its values.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let family = name.split('{').next().unwrap();
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end)).unwrap_or(family);
        assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
    }
}

#[tokio::test]
async fn paths_and_methods_that_are_none_are_told_apart() {
    let rig = Rig::start().await;
    for path in [
        "/x",
        "/v1",
        "/v1/",
        "/v2/devices",
        "/v1/devices/d/x",
        "/v1/requests/x/y",
        "/healthz/x",
        "/console/x",
    ] {
        rig.get(path, &rig.admin).await.expect(404, "not-found");
    }
    for (method, path, allow) in [
        ("POST", "/healthz", "GET"),
        ("GET", "/v1/enroll", "POST"),
        ("DELETE", "/v1/devices/d", "GET, PUT"),
        ("POST", "/v1/devices/d", "GET, PUT"),
        ("GET", "/v1/requests/x/response", "POST"),
        ("POST", "/v1/accounts/a/devices/d", "PUT, DELETE"),
        ("PUT", "/v1/keys", "GET, POST"),
        ("GET", "/v1/keys/x", "DELETE"),
    ] {
        let got = rig.call(method, path, &rig.admin, &[], b"").await;
        got.expect(405, "method-not-allowed");
        assert_eq!(got.field("allow"), Some(allow), "{method} {path}");
    }
}

#[tokio::test]
async fn h13_h14_the_binding_answers_probes_and_browsers() {
    let rig = Rig::start().await;
    for path in ["/http-bind", "/http-bind/"] {
        let got = rig.get(path, "").await;
        assert_eq!((got.status, got.field("cache-control")), (200, Some("no-store")));
        assert!(got.field("content-type").unwrap().starts_with("text/plain"));
        let got = rig.call("OPTIONS", path, "", &[("origin", "https://example.com")], b"").await;
        assert_eq!(got.field("access-control-allow-origin"), Some("*"));
        assert_eq!(got.field("access-control-allow-methods"), Some("POST, OPTIONS"));
        assert_eq!(got.field("access-control-allow-headers"), Some("Content-Type"));
        assert!(got.status == 204 && got.field("access-control-max-age").is_some());
        let got = rig.call("PUT", path, "", &[], b"").await;
        assert_eq!((got.status, got.field("allow").is_some()), (405, true));
        let got = rig.call("POST", path, "", &[("content-encoding", "gzip")], b"x").await;
        got.expect(415, "unsupported-media-type");
        assert_eq!(got.field("access-control-allow-origin"), Some("*"));
    }
    // H3: whatever the Content-Type is.
    for kind in ["text/xml; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"] {
        let got = rig.call("POST", "/http-bind", "", &[("content-type", kind)], b"<nonsense").await;
        assert_ne!(got.status, 415, "{kind}");
        assert_eq!(got.field("access-control-allow-origin"), Some("*"));
        assert!(got.field("content-length").is_some() && got.field("transfer-encoding").is_none());
    }
    let mut wire = rig.wire().await;
    wire.send(&head("HEAD", "/http-bind", "", &[("connection", "close")], None)).await;
    let text = String::from_utf8(wire.rest().await).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
}
