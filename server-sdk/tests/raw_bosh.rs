//! `/http-bind` in bytes: what a body over the bound does to its session, held requests, and hang-ups.
#![cfg(feature = "relay")]

mod http_support;

use std::time::Duration;

use http_support::{Got, Rig, Wire, head};

const NAMESPACES: &str = "xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh'";

/// A session that has not logged in yet.
struct Session {
    sid: String,
    rid: u64,
}

impl Session {
    async fn open(wire: &mut Wire) -> Self {
        let rid = 1_000_000;
        let body = format!(
            "<body rid='{rid}' to='localhost' ver='1.6' wait='60' hold='1' xml:lang='en' xmpp:version='1.0' {NAMESPACES}/>"
        );
        let got = post(wire, &body).await;
        let text = String::from_utf8(got.body).unwrap();
        assert_eq!(got.status, 200, "{text}");
        let sid = ["sid='", "sid=\""].iter().find_map(|start| text.split_once(start)).expect(&text).1;
        let sid = sid.split(['\'', '"']).next().unwrap().to_owned();
        Self { sid, rid }
    }

    fn next(&mut self, payload: &str) -> String {
        self.rid += 1;
        format!("<body rid='{}' sid='{}' {NAMESPACES}>{payload}</body>", self.rid, self.sid)
    }
}

async fn post(wire: &mut Wire, body: &str) -> Got {
    send(wire, body).await;
    wire.read().await.expect("an answer")
}

async fn send(wire: &mut Wire, body: &str) {
    let mut bytes =
        head("POST", "/http-bind", "", &[("content-type", "text/xml; charset=utf-8")], Some(body.len()));
    bytes.extend_from_slice(body.as_bytes());
    wire.send(&bytes).await;
}

/// The first step of a log-in, which the relay answers with a challenge.
const AUTH: &str = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>biwsbj1kLHI9YWJjZGVmZ2g=</auth>";

#[tokio::test]
async fn b2_a_body_over_the_bound_is_413_and_its_session_does_not_notice() {
    let rig = Rig::start().await;
    let mut wire = rig.wire().await;
    let mut session = Session::open(&mut wire).await;
    let frame = session.next("").len();
    session.rid -= 1;
    let pad = |size: usize| " ".repeat(size - frame);
    // One byte over, told and untold; the RID is not used up by it.
    let over = session.next(&pad(256 * 1024 + 1));
    session.rid -= 1;
    let mut other = rig.wire().await;
    post(&mut other, &over).await.expect(413, "too-large");
    other.closed().await;
    let mut other = rig.wire().await;
    other.send(&head("POST", "/http-bind", "", &[("transfer-encoding", "chunked")], None)).await;
    other.send(format!("{:x}\r\n{over}\r\n0\r\n\r\n", over.len()).as_bytes()).await;
    other.read().await.unwrap().expect(413, "too-large");
    // The session goes on, with a body of exactly the bound.
    let body = session.next(AUTH);
    let body = body.replace("</body>", &format!("{}</body>", " ".repeat(256 * 1024 - body.len())));
    assert_eq!(body.len(), 256 * 1024);
    let got = post(&mut wire, &body).await;
    let text = String::from_utf8_lossy(&got.body).into_owned();
    assert!(got.status == 200 && text.contains("<challenge"), "{text}");
}

#[tokio::test]
async fn h5_answers_have_a_length_and_proxies_may_chunk_requests() {
    let rig = Rig::start().await;
    let mut wire = rig.wire().await;
    let mut session = Session::open(&mut wire).await;
    let body = session.next(AUTH);
    wire.send(&head("POST", "/http-bind/", "", &[("Transfer-Encoding", "chunked")], None)).await;
    for chunk in body.as_bytes().chunks(7) {
        wire.send(format!("{:x}\r\n", chunk.len()).as_bytes()).await;
        wire.send(chunk).await;
        wire.send(b"\r\n").await;
    }
    wire.send(b"0\r\n\r\n").await;
    let got = wire.read().await.unwrap();
    assert!(String::from_utf8_lossy(&got.body).contains("<challenge"), "{got:?}");
    assert_eq!(got.field("content-type"), Some("text/xml; charset=utf-8"));
    assert_eq!(got.field("cache-control"), Some("no-store"));
    assert_eq!(got.field("access-control-allow-origin"), Some("*"));
    assert!(got.field("content-length").is_some() && got.field("transfer-encoding").is_none());
}

#[tokio::test]
async fn a_request_is_held_until_there_is_something_to_say() {
    let rig = Rig::with(|config| config.http.head_timeout = Duration::from_millis(200)).await;
    let mut wire = rig.wire().await;
    let mut session = Session::open(&mut wire).await;
    let mut held = rig.wire().await;
    send(&mut held, &session.next("")).await;
    // Longer than a head or a stranger's rest may take: held is neither.
    assert!(held.is_open_after(Duration::from_millis(600)).await);
    // The connection that the session was made on rested meanwhile, and a stranger's rest is short.
    wire.closed().await;
    let later = post(&mut rig.wire().await, &session.next(AUTH)).await;
    let held = held.read().await.unwrap();
    // Which of the two has it is the connection manager's to choose; both are answered.
    let challenges = [&held, &later].map(|got| String::from_utf8_lossy(&got.body).contains("<challenge"));
    assert_eq!(challenges.iter().filter(|&&has| has).count(), 1, "{held:?} {later:?}");
}
