//! T43, T44: what the log and all other output may not show. Alone in its process, as it listens to all that is logged.
#![cfg(feature = "relay")]

mod http_support;

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use http_support::Rig;
use relay_core::{Response, request::Status};
use serde_json::json;

/// Everything that is logged, down to the last trace.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Logs what this thread, and so this test's runtime, does.
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).expect("logs are UTF-8")
    }
}

#[tokio::test]
async fn t43_t44_hostile_names_stay_on_their_line_and_secrets_in_nobodys_log() {
    let (log, _guard) = Log::start();
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let evil = "evil\r\n2026-01-01 INFO forged\u{1b}[31m\u{202e}";
    let name =
        json!({"name": evil, "model": evil, "location": evil, "capabilities": {evil: evil}}).to_string();
    assert_eq!(rig.put_json("/v1/devices/d", &device.token, &name).await.status, 201);
    let mut outputs = vec![rig.get("/v1/devices", &key).await, rig.get("/v1/devices/d", &key).await];
    for status in ["device-error", "unknown-object", "x"] {
        let answer = async {
            let (id, _) = device.request().await;
            device
                .answer(
                    id,
                    Response::error(Status::parse(status).unwrap(), evil.repeat(100_000 / evil.len())),
                )
                .await;
        };
        let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/x", &key), answer);
        assert!(got.body.len() < 20_000, "{} bytes of words", got.body.len());
        outputs.push(got);
    }
    outputs.push(rig.get("/metrics", &key).await);
    for path in [
        "/v1/devices/a%0d%0aforged",
        "/v1/devices/d/objects/%1b%5b31m",
        "/%0d%0aforged",
        "/v1/devices?x%0a=1",
    ] {
        outputs.push(rig.get(path, &key).await);
    }
    let long = "%1b".repeat(2_000);
    for path in [
        "/v1/devices?LONG=1",
        "/v1/devices?state=LONG",
        "/v1/devices?limit=LONG",
        "/v1/devices/LONG",
        "/LONG",
    ] {
        let got = rig.get(&path.replace("LONG", &long), &key).await;
        assert!(got.body.len() < 1_500, "{got:?}");
        outputs.push(got);
    }
    outputs.push(rig.call(&"X".repeat(4_000), "/v1/devices", &key, &[], b"").await);
    let bad_status = [("relay-status", "x y\u{7f}z")];
    outputs.push(rig.call("POST", "/v1/requests/x/response", &device.token, &bad_status, b"").await);
    let csv = format!("device_id,name\n\"{evil}\",x\n");
    let fields = [("content-type", "text/csv")];
    outputs.push(rig.call("POST", "/v1/devices/import", &rig.admin, &fields, csv.as_bytes()).await);
    rig.post_json("/v1/enroll", "", &json!({"device_id": evil, "pin": "canary-pin"}).to_string()).await;
    outputs.push(rig.get("/v1/devices", "canary-token").await);
    outputs.push(rig.get("/v1/devices?token=canary-query", &key).await);
    outputs.push(rig.call("GET", "/v1/devices", "", &[("authorization", "Basic canary-basic")], b"").await);
    outputs
        .push(rig.post_json("/v1/devices/d/alive", &device.token, r#"{"session":"canary-session"}"#).await);

    let log = log.text();
    assert!(log.contains("device enrolled"), "the log is there:\n{log}");
    for line in log.lines() {
        assert!(!line.starts_with("2026-01-01 INFO forged"), "forged: {line}");
        assert!(!line.contains(['\u{1b}', '\u{202e}']), "control characters: {line:?}");
        assert!(line.len() < 2_000, "{} bytes in one line", line.len());
    }
    let canaries = [&*device.token, &*key, &*rig.admin, device.session.id.as_str(), "canary"];
    for canary in canaries {
        assert!(!log.contains(canary), "{canary} is in the log:\n{log}");
    }
    for got in outputs {
        for (name, value) in &got.fields {
            assert!(!value.contains(['\r', '\n', '\u{1b}']), "{name}: {value:?}");
        }
        let body = String::from_utf8(got.body.clone()).unwrap();
        assert!(!body.contains("\u{1b}") && !body.contains("\r\n2026"), "{body:?}");
        for canary in canaries {
            assert!(!body.contains(canary), "{canary} is in {body}");
        }
    }
}
