//! The page and its files as a browser gets them, and what other sites' pages may not do.
#![cfg(feature = "relay")]

mod http_support;

use http_support::{Got, Rig, head};

async fn file(rig: &Rig, path: &str) -> Got {
    rig.get(path, "").await
}

#[tokio::test]
async fn a6_the_page_and_all_that_it_loads_are_served_to_anybody() {
    let rig = Rig::start().await;
    let page = file(&rig, "/").await;
    assert_eq!((page.status, page.field("content-type")), (200, Some("text/html; charset=utf-8")));
    let text = String::from_utf8(page.body).unwrap();
    let loaded: Vec<&str> = text.split('"').filter(|text| text.starts_with("/console/")).collect();
    assert!(loaded.len() >= 3, "{loaded:?}");
    for path in loaded {
        let got = file(&rig, path).await;
        assert_eq!(got.status, 200, "{path}");
        assert!(!got.body.is_empty());
    }
    for path in [
        "/console",
        "/console/",
        "/console/nothing.js",
        "/console/app.js/x",
        "/console/..%2fapp.js",
        "/index.html",
    ] {
        file(&rig, path).await.expect(404, "not-found");
    }
    rig.post_json("/", "", "{}").await.expect(405, "method-not-allowed");
    let mut wire = rig.wire().await;
    wire.send(&head("HEAD", "/", "", &[("connection", "close")], None)).await;
    assert!(wire.rest().await.ends_with(b"\r\n\r\n"), "a head, and no body");
}

#[tokio::test]
async fn t50_the_page_is_framed_by_nobody_and_loads_nothing_from_elsewhere() {
    let rig = Rig::start().await;
    for path in ["/", "/console/app.js", "/console/style.css", "/console/icon.svg"] {
        let got = file(&rig, path).await;
        let policy = got.field("content-security-policy").expect("a policy");
        for part in ["default-src 'self'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"]
        {
            assert!(policy.contains(part), "{path}: {part} in {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(got.field(name), Some(value), "{path}");
        }
        assert_eq!(got.field("set-cookie"), None);
        assert_eq!(got.field("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn t50_what_another_sites_page_sends_changes_nothing() {
    let rig = Rig::start().await;
    let evil = [("origin", "https://evil.example")];
    let by_browser = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    for fields in [&evil[..], &by_browser] {
        for (method, path) in [
            ("POST", "/v1/keys"),
            ("POST", "/v1/devices/d/pin"),
            ("PUT", "/v1/devices/d/objects/x"),
            ("POST", "/v1/devices/d/requests"),
            ("DELETE", "/v1/keys/k"),
            ("POST", "/v1/enroll"),
        ] {
            // With a key that would hold, even.
            let got = rig.call(method, path, &rig.admin, fields, b"{}").await;
            got.expect(403, "forbidden");
            assert_eq!(got.field("access-control-allow-origin"), None);
        }
    }
    let got = rig.call("POST", "/v1/devices/d/requests", &rig.admin, &evil, b"{}").await;
    assert_eq!(got.outcome(), "refused", "an answer to a call says how far it came");
    assert!(!rig.relay.knows(&http_support::device_id("d")));
    // Its own page's calls are made.
    for fields in [&[("origin", "http://relay")][..], &[("sec-fetch-site", "same-origin")]] {
        let got = rig.call("POST", "/v1/devices/d/pin", &rig.admin, fields, b"").await;
        assert_eq!(got.status, 201, "{got:?}");
    }
    // BOSH has clients in pages of any origin, and credentials of its own.
    let bosh = rig.call("POST", "/http-bind", "", &evil, b"<body/>").await;
    assert_ne!(bosh.status, 403, "{bosh:?}");
}

#[tokio::test]
async fn t43_a_name_of_a_mebibyte_is_refused_before_any_page_shows_it() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let name = "x".repeat(1024 * 1024);
    let got = rig.put_json("/v1/devices/d", &token, &format!(r#"{{"name":"{name}"}}"#)).await;
    got.expect(413, "too-large");
    let got = rig.put_json("/v1/devices/d", &token, &format!(r#"{{"name":"{}"}}"#, &name[..257])).await;
    got.expect(400, "bad-request");
    // What fits is told as it is, whole in one line of JSON: showing it harmlessly is the page's part.
    let hostile = "<script>alert(1)</script>\u{202e}\u{7}";
    let json = serde_json::json!({ "name": hostile }).to_string();
    let got = rig.put_json("/v1/devices/d", &token, &json).await;
    if got.status == 201 {
        let seen = rig.get("/v1/devices/d", &rig.admin).await;
        assert_eq!(seen.json()["name"], hostile);
        assert_eq!(seen.field("content-type"), Some("application/json"));
    } else {
        got.expect(400, "bad-request");
    }
}
