//! An XMPP client by other hands is a device of our relay: Strophe.js, under Node, logs in over BOSH with SCRAM and
//! answers HTTP calls with ordinary iqs.

#[path = "support/http.rs"]
mod http;
#[path = "support/relay.rs"]
mod relay;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use http::{Answer, ask};
use relay::Relay;
use serde_json::Value;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(20);

/// The Node process, line by line; killed when dropped.
struct Strophe {
    child: Child,
    lines: Receiver<String>,
}

impl Strophe {
    fn start(relay: &Relay, device: &str, token: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/strophe");
        assert!(
            folder.join("node_modules/strophe.js").exists(),
            "Strophe.js is missing: run ./test strophe, or npm ci in {}",
            folder.display()
        );
        let mut child = Command::new("node")
            .current_dir(folder)
            .arg("device.mjs")
            .args([&format!("http://{}/http-bind", relay.address), &format!("{device}@localhost"), token])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The next line that begins with `word`.
    fn wait_for(&self, word: &str) -> String {
        let end = Instant::now() + SOON;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(word) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no line {word:?} from the device, only {seen:?}"),
            }
        }
    }
}

impl Drop for Strophe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(relay: &Relay, key: &str, line: &str, fields: &[&str], body: &[u8]) -> Answer {
    let bearer = format!("Authorization: Bearer {key}");
    ask(relay.address, line, &[&[bearer.as_str()], fields].concat(), body).unwrap()
}

fn wait_until_online(relay: &Relay, key: &str) -> Value {
    let end = Instant::now() + SOON;
    loop {
        let about = call(relay, key, "GET /v1/devices/printer-1", &[], b"").json();
        if about["state"] == "online" {
            return about;
        }
        assert!(Instant::now() < end, "{about}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn strophe_answers_http_calls_with_ordinary_iqs() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(&folder.path().join("data"));
    let (token, key) = (relay.enrol("printer-1"), relay.key());

    let offline = call(&relay, &key, "GET /v1/devices/printer-1/objects/level", &[], b"");
    assert_eq!(
        (offline.status, offline.field("relay-outcome")),
        (503, Some("offline")),
        "{}",
        offline.text()
    );

    let mut strophe = Strophe::start(&relay, "printer-1", &token);
    strophe.wait_for("connected");
    // Connected, Strophe takes a moment until it polls; only then can a push go to it.
    let about = wait_until_online(&relay, &key);
    assert_eq!(about["transport"], "bosh", "{about}");

    // A payload of any kind is the answer, as it is.
    let level = call(&relay, &key, "GET /v1/devices/printer-1/objects/level", &[], b"");
    assert_eq!((level.status, level.field("relay-outcome")), (200, Some("answered")), "{}", level.text());
    assert!(level.field("content-type").unwrap().starts_with("application/xml"), "{level:?}");
    let text = level.text();
    assert!(text.starts_with("<level") && text.ends_with("</level>"), "{text}");
    for part in ["urn:example:toner", "color=", "black", "43 &lt;%"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let id = level.field("relay-request-id").expect("accepted requests have an ID").to_owned();
    assert_eq!(strophe.wait_for("request"), format!("request {id} level"));

    // No payload is an empty answer.
    let line = "PUT /v1/devices/printer-1/objects/empty";
    let empty = call(&relay, &key, line, &["Content-Type: text/plain"], b"new value");
    assert_eq!((empty.status, empty.body.len()), (200, 0), "{}", empty.text());

    // An iq error is an error.
    let missing = call(&relay, &key, "GET /v1/devices/printer-1/objects/missing", &[], b"");
    assert_eq!(
        (missing.status, missing.field("relay-outcome")),
        (404, Some("answered")),
        "{}",
        missing.text()
    );
    assert_eq!(missing.json()["type"], "urn:relay:error:unknown-object");

    // Who does not answer was asked all the same.
    let deaf = call(&relay, &key, "GET /v1/devices/printer-1/objects/deaf", &["Prefer: wait=1"], b"");
    assert_eq!((deaf.status, deaf.field("relay-outcome")), (504, Some("sent")), "{}", deaf.text());

    // One after the other. Strophe itself looks at what it has to send every 100 ms, and no poll comes on top of that.
    let start = Instant::now();
    for _ in 0..30 {
        assert_eq!(call(&relay, &key, "GET /v1/devices/printer-1/objects/level", &[], b"").status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(15), "30 calls took {:?}", start.elapsed());

    // A clean goodbye is offline at once.
    strophe.child.stdin.take().unwrap().write_all(b"bye\n").unwrap();
    strophe.wait_for("disconnected");
    let gone = call(&relay, &key, "GET /v1/devices/printer-1/objects/level", &[], b"");
    assert_eq!((gone.status, gone.field("relay-outcome")), (503, Some("offline")), "{}", gone.text());
}

#[test]
fn strophe_with_a_wrong_token_is_turned_away() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::start(&folder.path().join("data"));
    relay.enrol("printer-1");
    let strophe = Strophe::start(&relay, "printer-1", "not-the-token");
    strophe.wait_for("authfail");
}
