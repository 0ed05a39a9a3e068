//! The device's end against a relay of hand-made bytes: what is asked, which answers are taken and what the others mean,
//! frames of every shape.

mod support;

use std::{sync::Arc, time::Duration};

use relay_core::{
    auth::Secret,
    conformance::Owner,
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, RequestId, SessionId},
    request::Response,
    transport::{CloseReason, ConnectOptions, Connector, EndReason, Session},
};
use support::{
    PATIENCE,
    raw::{BINARY, CLOSE, MORE, PING, Raw, TEXT, frame, masked},
};
use tokio::net::TcpListener;
use transport_ws::{
    WsConnector, WsSettings,
    client::relay_said,
    proto::frame::{Received, Side},
    wire::handshake::accept,
};

const SHORT: Duration = Duration::from_millis(300);
const PONG_ELEMENT: &[u8] = b"<pong xmlns='urn:relay:1'/>";

/// A listener in a relay's place, and a device's connector to it.
struct Rig {
    listener: TcpListener,
    connector: WsConnector,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut WsSettings)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut settings = WsSettings::new(format!("ws://{}/base/ws", listener.local_addr().unwrap()));
        change(&mut settings);
        Self { listener, connector: WsConnector::with_settings(settings).unwrap() }
    }

    fn options() -> ConnectOptions {
        let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
        ConnectOptions::new(DeviceId::new("printer-1").unwrap(), Secret::new("the-token"), deadline)
    }

    /// Connects, while `relay` plays the other side; it gets the connection with the request's head read, and the key.
    async fn connect<T>(
        &self,
        options: ConnectOptions,
        relay: impl AsyncFnOnce(&mut Raw, String, String) -> T,
    ) -> (Result<Session, TransportError>, Raw, T) {
        let relay_side = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let mut raw = Raw::of(stream, Side::Server);
            let got = raw.head().await;
            let key = got.field("sec-websocket-key").unwrap().to_owned();
            let result = relay(&mut raw, got.head, key).await;
            (raw, result)
        };
        let (session, (raw, result)) = tokio::join!(self.connector.connect(options), relay_side);
        (session, raw, result)
    }

    /// Connects to a relay that answers `answer` and closes.
    async fn refused(&self, answer: &[u8]) -> TransportError {
        let connecting = self.connect(Self::options(), async |raw, _, _| {
            raw.send(answer).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await;
        });
        connecting.await.0.expect_err("no session comes of this")
    }

    /// A session and the raw relay at its other end.
    async fn pair(&self) -> (Owner, Raw) {
        let (session, raw, ()) =
            self.connect(Self::options(), async |raw, _, key| raw.send(&good(&key)).await).await;
        (Owner::start(session.unwrap(), None), raw)
    }
}

fn good(key: &str) -> Vec<u8> {
    switching(key, &[])
}

/// A 101 to `key`, with `changes`: a field's new value, or `None` to leave it out.
fn switching(key: &str, changes: &[(&str, Option<&str>)]) -> Vec<u8> {
    let accepted = accept(key);
    let mut fields = vec![
        ("Upgrade", "WebSocket"),
        ("Connection", "keep-alive, upgrade"),
        ("Sec-WebSocket-Accept", &*accepted),
        ("Sec-WebSocket-Protocol", "control"),
        ("Relay-Session", "session-1"),
    ];
    for (name, value) in changes {
        fields.retain(|(known, _)| known != name);
        fields.extend(value.map(|value| (*name, value)));
    }
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n").into_bytes()
}

fn problem(status: &str, code: &str, fields: &str) -> Vec<u8> {
    let body = format!(r#"{{"type":"urn:relay:error:{code}","title":"No","detail":"because of {code}"}}"#);
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test]
async fn o1_o5_o13_the_request_is_as_the_rfc_wants_it() {
    let rig = Rig::start().await;
    let host = rig.listener.local_addr().unwrap().to_string();
    let options = Rig::options().resuming(Some(SessionId::new("session-0").unwrap()));
    let (session, _raw, head) = rig
        .connect(options, async |raw, head, key| {
            raw.send(&good(&key)).await;
            head
        })
        .await;
    let session = session.unwrap();
    assert_eq!((session.id.as_str(), session.resumed), ("session-1", false));
    let key = head.split("Sec-WebSocket-Key: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
    assert_eq!(
        head,
        format!(
            "GET /base/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: control\r\n\
             Authorization: Bearer the-token\r\nrelay-session: session-0\r\n\r\n"
        ),
        "and neither Origin nor an extension"
    );
    assert_eq!(key.len(), 24);
    let (session, _raw, again) = rig
        .connect(
            Rig::options().resuming(Some(SessionId::new("session-1").unwrap())),
            async |raw, head, key| {
                raw.send(&good(&key)).await;
                head
            },
        )
        .await;
    assert!(!again.contains(&key), "a key is used once");
    assert!(session.unwrap().resumed, "the same ID came back");
}

#[tokio::test]
async fn o2_o6_an_answer_that_was_not_asked_for_opens_nothing() {
    let rig = Rig::start().await;
    for change in [
        ("Sec-WebSocket-Protocol", None),
        ("Sec-WebSocket-Protocol", Some("Control")),
        ("Sec-WebSocket-Protocol", Some("chat")),
        ("Sec-WebSocket-Extensions", Some("permessage-deflate")),
        ("Sec-WebSocket-Accept", Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")),
        ("Sec-WebSocket-Accept", None),
        ("Upgrade", None),
        ("Upgrade", Some("h2c")),
        ("Connection", Some("close")),
        ("Relay-Session", None),
    ] {
        let answer =
            async |raw: &mut Raw, _: String, key: String| raw.send(&switching(&key, &[change])).await;
        let error = rig.connect(Rig::options(), answer).await.0.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable, "{change:?}");
        assert!(relay_said(&error).is_none(), "{change:?}: another transport may get through");
    }
}

#[tokio::test]
async fn o10_the_relays_own_refusals_mean_what_they_say() {
    let rig = Rig::start().await;
    for (answer, kind, code, later) in [
        (
            problem("401 Unauthorized", "unauthenticated", ""),
            ErrorKind::Unauthenticated,
            "unauthenticated",
            None,
        ),
        (problem("403 Forbidden", "forbidden", ""), ErrorKind::Unauthenticated, "forbidden", None),
        (
            problem("429 No", "too-many-requests", "Retry-After: 7\r\n"),
            ErrorKind::Overloaded,
            "too-many-requests",
            Some(7),
        ),
        (problem("503 No", "draining", "Retry-After: 3\r\n"), ErrorKind::Overloaded, "draining", Some(3)),
        (problem("503 No", "store-unavailable", ""), ErrorKind::Unreachable, "store-unavailable", None),
        (
            problem("503 No", "draining", "Retry-After: 1000000000\r\n"),
            ErrorKind::Overloaded,
            "draining",
            Some(3600),
        ),
        (problem("400 No", "bad-request", ""), ErrorKind::PeerMisbehaved, "bad-request", None),
    ] {
        let error = rig.refused(&answer).await;
        let said = relay_said(&error).unwrap_or_else(|| panic!("{code}: {error:?}"));
        assert_eq!((error.kind, &*said.code), (kind, code));
        assert_eq!(error.retry_after, later.map(Duration::from_secs), "{code}");
        assert_eq!(&*said.words, format!("because of {code}"));
    }
}

#[tokio::test]
async fn s8_whatever_else_answers_is_no_relay_and_says_nothing_about_one() {
    let rig = Rig::start().await;
    let html = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>Log in!<>";
    let foreign = br#"{"type":"about:blank","status":401}"#;
    let elsewhere = [
        format!(
            "HTTP/1.1 401 No\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n",
            foreign.len()
        )
        .as_bytes(),
        foreign,
    ]
    .concat();
    let cut_off = problem("401 No", "unauthenticated", "");
    let huge = format!("HTTP/1.1 101 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let long = problem("401 No", &"x".repeat(20_000), "");
    let answers: Vec<(&str, &[u8])> = vec![
        ("a portal's page", html),
        (
            "a redirect",
            b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "a redirect that keeps the method",
            b"HTTP/1.1 307 No\r\nLocation: /ws\r\nContent-Length: 0\r\n\r\n",
        ),
        ("a proxy's refusal", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"),
        ("a proxy's time-out", b"HTTP/1.1 504 Gateway Timeout\r\nContent-Type: text/html\r\n\r\n<html>"),
        ("a stripped upgrade", b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n"),
        ("a problem of somebody else's", &elsewhere),
        ("a problem that is cut off", &cut_off[..120]),
        ("a problem that is too long", &long),
        ("a head that is cut off", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web"),
        ("a head that is too long", huge.as_bytes()),
        ("101 in HTTP/1.0", b"HTTP/1.0 101 Switching Protocols\r\n\r\n"),
        ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("HTTP/2", b"\0\0\x12\x04\0\0\0\0\0"),
        ("nothing", b""),
    ];
    for (what, answer) in answers {
        let error = rig.refused(answer).await;
        assert_eq!(error.kind, ErrorKind::Unreachable, "{what}: {error:?}");
        assert!(relay_said(&error).is_none(), "{what}");
        assert!(error.source.is_some(), "{what}");
    }
    // T15: one connection each, to the place that was named, with the token on none other.
    let nobody = tokio::time::timeout(SHORT, rig.listener.accept()).await;
    assert!(nobody.is_err(), "no redirect is followed");
}

#[tokio::test]
async fn o9_an_answer_that_does_not_come_is_not_waited_for_for_ever() {
    let rig = Rig::with(|settings| settings.handshake = SHORT).await;
    for start in [
        &b""[..],
        b"HTTP/1.1 101 Switch",
        b"HTTP/1.1 401 No\r\nContent-Type: application/problem+json\r\nContent-Length: 9\r\n\r\n{",
    ] {
        let (session, _raw, ()) = rig.connect(Rig::options(), async |raw, _, _| raw.send(start).await).await;
        let error = session.unwrap_err();
        assert_eq!(error.kind, ErrorKind::TimedOut);
        assert!(relay_said(&error).is_none());
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let rig = Rig::start().await;
    drop(rig.listener);
    let error = rig.connector.connect(Rig::options()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(relay_said(&error).is_none());
}

#[tokio::test]
async fn a_101_is_read_whatever_the_segments_and_whatever_came_before_it() {
    let rig = Rig::start().await;
    let (session, mut raw, ()) = rig
        .connect(Rig::options(), async |raw, _, key| {
            raw.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").await;
            raw.drip(&good(&key)).await;
        })
        .await;
    let owner = Owner::start(session.unwrap(), None);
    raw.drip(&frame(TEXT, true, PONG_ELEMENT, None)).await;
    assert_eq!(owner.receive(1).await, [Envelope::Pong]);
}

#[tokio::test]
async fn the_101_and_the_first_frames_may_come_in_one_segment() {
    let rig = Rig::start().await;
    for cut in [0, 1, 5, 20] {
        let two = [frame(TEXT, true, PONG_ELEMENT, None), frame(TEXT, true, PONG_ELEMENT, None)].concat();
        let (early, late) = two.split_at(two.len() - cut);
        let (session, mut raw, ()) = rig
            .connect(Rig::options(), async |raw, _, key| {
                raw.send(&[good(&key), early.to_vec()].concat()).await
            })
            .await;
        let owner = Owner::start(session.unwrap(), None);
        raw.send(late).await;
        assert_eq!(owner.receive(2).await, [Envelope::Pong, Envelope::Pong], "{cut} bytes came later");
    }
}

#[tokio::test]
async fn f5_what_a_device_sends_is_masked_and_never_twice_alike() {
    let rig = Rig::start().await;
    let (mut owner, mut raw) = rig.pair().await;
    let id = RequestId::new("r").unwrap();
    let response = || Envelope::Response { id: id.clone(), response: Response::ok(), acknowledge: true };
    owner.send([response(), response()]).await.unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < 2 * 56 {
        let mut some = [0; 1024];
        let read = tokio::io::AsyncReadExt::read(&mut raw.stream, &mut some).await.unwrap();
        bytes.extend_from_slice(&some[..read]);
    }
    let (one, two) = bytes.split_at(bytes.len() / 2);
    assert_eq!((one[0], one[1] & 0x80), (0x81, 0x80), "text, whole, masked");
    assert_eq!((one.len(), two.len()), (56, 56));
    assert_ne!(one[2..6], two[2..6], "another mask");
    assert_ne!(one[6..], two[6..]);
}

#[tokio::test]
async fn t52_a_relay_that_breaks_a_rule_is_told() {
    let rig = Rig::start().await;
    let plain = |opcode, last, payload: &[u8]| frame(opcode, last, payload, None);
    for (what, bytes, code) in [
        ("a masked frame", masked(TEXT, true, PONG_ELEMENT), 1002),
        ("compression", [&[0xc1, 0x02][..], b"ab"].concat(), 1002),
        ("a reserved opcode", vec![0x84, 0], 1002),
        ("a length in too many bytes", vec![0x81, 126, 0, 5, 1, 2, 3, 4, 5], 1002),
        ("binary", plain(BINARY, true, PONG_ELEMENT), 1003),
        ("text that is not UTF-8", plain(TEXT, true, b"\xff"), 1007),
        ("a page", plain(TEXT, true, b"<!DOCTYPE html><html/>"), 1007),
        ("a frame of 64 KiB and one byte", vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 1], 1009),
        (
            "65 fragments",
            (0..65).flat_map(|n| plain(if n == 0 { TEXT } else { MORE }, false, b" ")).collect(),
            1009,
        ),
        ("a flood of pings", (0..50).flat_map(|_| plain(PING, true, b"")).collect(), 1008),
    ] {
        let (owner, mut raw) = rig.pair().await;
        raw.send(&bytes).await;
        let code_came = loop {
            match raw.read().await {
                Some(Received::Close(code)) => break code,
                Some(_) => {}
                None => break None,
            }
        };
        assert_eq!(code_came, Some(code), "{what}");
        raw.send(&plain(CLOSE, true, &code.to_be_bytes())).await;
        drop(raw);
        assert_eq!(owner.ended().await, EndReason::Misbehaved, "{what}");
    }
}

#[tokio::test]
async fn a_device_hears_what_the_relays_close_means() {
    let rig = Rig::start().await;
    for (code, reason) in [
        (Some(1000), EndReason::Goodbye),
        (Some(1001), EndReason::Goodbye),
        (None, EndReason::Goodbye),
        (Some(1011), EndReason::Lost),
        (Some(1012), EndReason::Drain { retry_after: None }),
        (Some(1013), EndReason::Overloaded { retry_after: None }),
        (Some(1008), EndReason::Misbehaved),
        (Some(4001), EndReason::Replaced),
        (Some(4003), EndReason::Revoked),
        (Some(4999), EndReason::Lost),
    ] {
        let (owner, mut raw) = rig.pair().await;
        let payload = code.map(|code: u16| code.to_be_bytes().to_vec()).unwrap_or_default();
        raw.send(&frame(CLOSE, true, &payload, None)).await;
        assert_eq!(raw.read().await, Some(Received::Close(code)), "the code comes back");
        // RFC 6455 §7.1.1: the client waits for the server to close the connection.
        assert!(raw.is_silent_for(Duration::from_millis(50)).await, "{code:?}");
        drop(raw);
        assert_eq!(owner.ended().await, reason, "{code:?}");
    }
}

#[tokio::test]
async fn c3_a_device_does_not_wait_for_a_relay_that_says_nothing() {
    let rig = Rig::with(|settings| settings.control.close_within = SHORT).await;
    let (mut owner, mut raw) = rig.pair().await;
    owner.close(CloseReason::Shutdown).await;
    assert_eq!(owner.ended().await, EndReason::Closed);
    assert_eq!(raw.read().await, Some(Received::Close(Some(1000))));
    assert_eq!(raw.read().await, None);
}

#[tokio::test]
async fn a_session_that_nobody_takes_is_given_back() {
    let rig = Rig::start().await;
    let (session, mut raw, ()) =
        rig.connect(Rig::options(), async |raw, _, key| raw.send(&good(&key)).await).await;
    drop(session);
    assert_eq!(raw.read().await, Some(Received::Close(Some(1000))));
}

#[tokio::test]
async fn s4_a_device_sends_data_to_keep_its_connection_and_hears_the_answer() {
    let rig = Rig::with(|settings| {
        settings.control.keepalive = Some(SHORT);
        settings.control.answer_within = SHORT;
    })
    .await;
    let (owner, mut raw) = rig.pair().await;
    for _ in 0..3 {
        assert_eq!(raw.read().await, Some(Received::Text(b"<ping xmlns='urn:relay:1'/>".to_vec())));
        raw.send(&frame(TEXT, true, PONG_ELEMENT, None)).await;
        assert_eq!(owner.receive(1).await, [Envelope::Pong]);
    }
    assert!(matches!(raw.read().await, Some(Received::Text(_))));
    assert_eq!(owner.ended().await, EndReason::Lost, "a relay that says nothing any more");
}

#[tokio::test]
async fn s3_a_refresh_asks_whether_the_connection_lives() {
    let rig = Rig::start().await;
    let (mut owner, mut raw) = rig.pair().await;
    owner.push_half().refresh();
    assert!(matches!(raw.read().await, Some(Received::Ping(_))));
    assert!(matches!(raw.read().await, Some(Received::Text(_))));
    raw.send(&frame(TEXT, true, PONG_ELEMENT, None)).await;
    assert_eq!(owner.receive(1).await, [Envelope::Pong]);
}

#[test]
fn t15_addresses_are_refused_that_would_show_the_token() {
    let refused = |url: &str| WsConnector::new(url).expect_err(url).kind;
    for url in [
        "ws://relay.example/ws",
        "http://192.0.2.1/ws",
        "ws://localhost.example/ws",
        "ftp://relay.example/ws",
        "wss://user:secret@relay.example/ws",
        "wss:///ws",
        "/ws",
        "wss://relay.example/ws#fragment",
        "",
    ] {
        assert_eq!(refused(url), ErrorKind::Unsupported, "{url}");
    }
    for url in [
        "wss://relay.example/ws",
        "https://relay.example:8443/a/ws?b=c",
        "ws://127.0.0.1:1/ws",
        "ws://[::1]/ws",
    ] {
        assert!(WsConnector::new(url).is_ok(), "{url}");
    }
    let mut settings = WsSettings::new("ws://relay.example/ws");
    settings.allow_plaintext = true;
    let connector = WsConnector::with_settings(settings).unwrap();
    assert!(format!("{connector:?}").contains("relay.example"));
}

#[tokio::test]
async fn t34_a_token_that_would_be_another_field_is_not_sent() {
    let rig = Rig::start().await;
    for token in ["", "a\r\nX: y", "a b", "ä"] {
        let mut options = Rig::options();
        options.token = Secret::new(token);
        let (error, accepted) = tokio::join!(rig.connector.connect(options), rig.listener.accept());
        assert_eq!(error.unwrap_err().kind, ErrorKind::Unauthenticated, "{token:?}");
        let mut raw = Raw::of(accepted.unwrap().0, Side::Server);
        assert_eq!(raw.read().await, None, "nothing was said");
    }
}

#[tokio::test]
async fn a_dialler_is_told_where_to_and_what_it_gives_is_used() {
    #[derive(Debug)]
    struct Elsewhere(std::net::SocketAddr, tokio::sync::mpsc::Sender<String>);
    #[async_trait::async_trait]
    impl transport_ws::client::Dial for Elsewhere {
        async fn dial(
            &self,
            target: &transport_ws::client::Target,
        ) -> std::io::Result<transport_ws::stream::BoxStream> {
            self.1.send(format!("{target} {}", target.secure)).await.unwrap();
            Ok(Box::pin(tokio::net::TcpStream::connect(self.0).await?))
        }
    }
    let (dialled, mut targets) = tokio::sync::mpsc::channel(8);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut settings = WsSettings::new("ws://[2001:db8::1]/ws");
    settings.allow_plaintext = true;
    settings.dial = Arc::new(Elsewhere(address, dialled));
    let rig = Rig { listener, connector: WsConnector::with_settings(settings).unwrap() };
    let (session, _raw, head) = rig
        .connect(Rig::options(), async |raw, head, key| {
            raw.send(&good(&key)).await;
            head
        })
        .await;
    session.unwrap();
    assert!(head.contains("Host: [2001:db8::1]\r\n"), "{head}");
    assert_eq!(targets.recv().await.unwrap(), "[2001:db8::1]:80 false");
}
