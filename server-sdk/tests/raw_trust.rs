//! Whom a log-in lets in (T17), and whose connection is no stranger's (B8): that of a device that logged in, and nobody
//! else's, whatever is answered.
#![cfg(feature = "relay")]

mod http_support;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use http_support::{Got, Rig, Wire, head};
use sha2::{Digest, Sha256};

const NAMESPACES: &str = "xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh'";
const SASL: &str = "xmlns='urn:ietf:params:xml:ns:xmpp-sasl'";

async fn send(wire: &mut Wire, body: &str) {
    let mut bytes = head("POST", "/http-bind", "", &[("content-type", "text/xml")], Some(body.len()));
    bytes.extend_from_slice(body.as_bytes());
    wire.send(&bytes).await;
}

async fn post(wire: &mut Wire, body: &str) -> Got {
    send(wire, body).await;
    wire.read().await.expect("an answer")
}

fn text(got: &Got) -> String {
    assert_eq!(got.status, 200, "{got:?}");
    String::from_utf8(got.body.clone()).unwrap()
}

/// A session, and the connection on which it says everything.
struct Session {
    wire: Wire,
    sid: String,
    rid: u64,
}

impl Session {
    async fn open(rig: &Rig) -> Self {
        let mut wire = rig.wire().await;
        let rid = 1_000_000;
        let body = format!(
            "<body rid='{rid}' to='localhost' ver='1.6' wait='60' hold='1' xml:lang='en' xmpp:version='1.0' {NAMESPACES}/>"
        );
        let answer = text(&post(&mut wire, &body).await);
        let sid = between(&answer, " sid='", "'").to_owned();
        Self { wire, sid, rid }
    }

    fn next(&mut self, attributes: &str, payload: &str) -> String {
        self.rid += 1;
        format!("<body rid='{}' sid='{}' {attributes} {NAMESPACES}>{payload}</body>", self.rid, self.sid)
    }

    async fn say(&mut self, attributes: &str, payload: &str) -> String {
        let body = self.next(attributes, payload);
        let mut answer = text(&post(&mut self.wire, &body).await);
        // Whatever takes longer than the request is held comes with the next one.
        while !answer.contains("</body>") {
            let body = self.next("", "");
            answer = text(&post(&mut self.wire, &body).await);
        }
        answer
    }

    /// Logs in by SCRAM-SHA-256 and binds.
    async fn bind(&mut self, device: &str, token: &str) {
        let proof = self.challenged(device, token).await;
        self.prove(&proof).await;
        let answer = self.take_place().await;
        assert!(answer.contains("<jid>"), "{answer}");
    }

    /// Begins to log in by SCRAM-SHA-256; the proof that is asked for.
    async fn challenged(&mut self, device: &str, token: &str) -> String {
        let first = format!("n={device},r=abcdefgh");
        let encoded = STANDARD.encode(format!("n,,{first}"));
        let answer = self.say("", &format!("<auth {SASL} mechanism='SCRAM-SHA-256'>{encoded}</auth>")).await;
        let challenge = STANDARD.decode(between(&answer, &format!("<challenge {SASL}>"), "<")).unwrap();
        let challenge = String::from_utf8(challenge).unwrap();
        STANDARD.encode(scram(token, &first, &challenge))
    }

    async fn prove(&mut self, encoded: &str) {
        let answer = self.say("", &format!("<response {SASL}>{encoded}</response>")).await;
        assert!(answer.contains("<success"), "{answer}");
    }

    async fn take_place(&mut self) -> String {
        let answer = self.say("to='localhost' xml:lang='en' xmpp:restart='true'", "").await;
        assert!(answer.contains("<bind"), "{answer}");
        let bind = "<iq id='b1' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
        self.say("", bind).await
    }
}

fn between<'t>(text: &'t str, start: &str, end: &str) -> &'t str {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("no {start} in {text}"));
    rest.split_once(end).unwrap().0
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// The last message of a client (RFC 5802 §3).
fn scram(token: &str, first: &str, challenge: &str) -> String {
    let field = |name: char| -> &str {
        challenge.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).unwrap()
    };
    let salt = STANDARD.decode(field('s')).unwrap();
    let mut salted = [0; 32];
    pbkdf2::pbkdf2_hmac::<Sha256>(token.as_bytes(), &salt, field('i').parse().unwrap(), &mut salted);
    let without_proof = format!("c=biws,r={}", field('r'));
    let key = hmac(&salted, b"Client Key");
    let signature = hmac(&Sha256::digest(key), format!("{first},{challenge},{without_proof}").as_bytes());
    let proof: Vec<u8> = key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
    format!("{without_proof},p={}", STANDARD.encode(proof))
}

/// A view of the metrics whose own connection is no stranger's.
struct Metrics {
    wire: Wire,
    key: String,
}

impl Metrics {
    async fn of(rig: &Rig) -> Self {
        let mut metrics = Self { wire: rig.wire().await, key: rig.admin.clone() };
        metrics.number("http_connections").await;
        metrics
    }

    async fn number(&mut self, name: &str) -> usize {
        self.wire.send(&head("GET", "/metrics", &self.key, &[], None)).await;
        let metrics = text(&self.wire.read().await.expect("metrics"));
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }

    /// Waits until there are so many.
    async fn reaches(&mut self, name: &str, wanted: usize) {
        let deadline = tokio::time::Instant::now() + http_support::PATIENCE;
        while self.number(name).await != wanted {
            assert!(tokio::time::Instant::now() < deadline, "{name} does not become {wanted}");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    async fn strangers(&mut self) -> usize {
        self.number("http_connections_unauthenticated").await
    }
}

#[tokio::test]
async fn b8_what_anybody_can_say_on_http_bind_trusts_no_connection() {
    let rig = Rig::start().await;
    let mut metrics = Metrics::of(&rig).await;
    metrics.reaches("http_connections_unauthenticated", 0).await;

    let mut garbage = rig.wire().await;
    text(&post(&mut garbage, "no body at all").await);
    assert_eq!(metrics.strangers().await, 1, "garbage");

    let mut unknown = rig.wire().await;
    let sid = "a".repeat(45);
    text(&post(&mut unknown, &format!("<body rid='1' sid='{sid}' {NAMESPACES}/>")).await);
    assert_eq!(metrics.strangers().await, 2, "an unknown SID");

    let mut session = Session::open(&rig).await;
    assert_eq!(metrics.strangers().await, 3, "a session that anybody can make");

    let before = metrics.number("http_bosh_posts_total").await;
    let held = session.next("", "");
    send(&mut session.wire, &held).await;
    metrics.reaches("http_bosh_posts_total", before + 1).await;
    assert!(session.wire.is_open_after(std::time::Duration::from_millis(100)).await, "it is held");
    assert_eq!(metrics.strangers().await, 3, "a request that is held before anybody logged in");
}

#[tokio::test]
async fn b8_the_poll_of_a_device_that_logged_in_trusts_its_connection() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let mut metrics = Metrics::of(&rig).await;
    metrics.reaches("http_connections_unauthenticated", 0).await;
    let mut session = Session::open(&rig).await;
    session.bind("d", &token).await;
    assert_eq!(metrics.strangers().await, 1, "until its device has bound, a session is anybody's");
    let held = session.next("", "");
    send(&mut session.wire, &held).await;
    metrics.reaches("http_connections_unauthenticated", 0).await;
    // And so does whatever else comes with its SID, on any connection.
    let mut second = rig.wire().await;
    let poll = session.next("", "<message xmlns='jabber:client'/>");
    send(&mut second, &poll).await;
    metrics.reaches("http_connections", 3).await;
    metrics.reaches("http_connections_unauthenticated", 0).await;
}

#[tokio::test]
async fn t17_a_log_in_under_way_does_not_outlive_its_credential() {
    let rig = Rig::start().await;
    for replaced_after_the_proof in [false, true] {
        let old = rig.enrol("d").await;
        let opened = rig.relay.sessions_opened();
        let mut session = Session::open(&rig).await;
        let proof = session.challenged("d", &old).await;
        let new = if replaced_after_the_proof {
            session.prove(&proof).await;
            rig.enrol("d").await
        } else {
            let new = rig.enrol("d").await;
            session.prove(&proof).await;
            new
        };
        let answer = session.take_place().await;
        assert!(answer.contains("<not-authorized ") && answer.contains("type='terminate'"), "{answer}");
        assert_eq!(rig.relay.sessions_opened(), opened, "it was never there");
        // With the credential now in force it comes in.
        Session::open(&rig).await.bind("d", &new).await;
    }
}
