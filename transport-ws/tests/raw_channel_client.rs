//! The device's end of a channel against a relay of hand-made bytes: what is asked, which answers are taken and what the
//! others mean, what each frame is, closes and deadlines.

mod support;

use std::{sync::Arc, time::Duration};

use relay_core::{
    app::{Digest, Progress, ToDevice, ToRelay},
    auth::Secret,
    error::{ErrorKind, TransportError},
    ids::{AppName, DeviceId},
    request::Status,
    store::App,
    transport::{ChannelOptions, Connector, DeviceChannel},
};
use support::{
    PATIENCE,
    channel::{app, device_hears, device_says, job, piece},
    raw::{BINARY, CLOSE, PING, Raw, TEXT, frame, masked},
};
use tokio::net::TcpListener;
use transport_ws::{
    WsConnector, WsSettings,
    client::relay_said,
    proto::frame::{Received, Side},
    wire::handshake::accept,
};

const SHORT: Duration = Duration::from_millis(300);
const HEADER: &str = "<PrintJobRequest><Job/></PrintJobRequest>";

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

    fn options() -> ChannelOptions {
        let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
        ChannelOptions::new(
            DeviceId::new("printer-1").unwrap(),
            Secret::new("the-token"),
            job(),
            app(),
            deadline,
        )
    }

    async fn accept(listener: &TcpListener) -> (Raw, String, String) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut raw = Raw::of(stream, Side::Server);
        let got = raw.head().await;
        let key = got.field("sec-websocket-key").unwrap().to_owned();
        (raw, got.head, key)
    }

    /// Asks a relay that answers with what `answer` makes of the key.
    async fn ask(
        &self,
        answer: impl Fn(&str) -> String + Send + Sync,
    ) -> (Result<DeviceChannel, TransportError>, Raw, String) {
        let relay = async {
            let (mut raw, head, key) = Self::accept(&self.listener).await;
            raw.send(answer(&key).as_bytes()).await;
            (raw, head)
        };
        let (channel, (raw, head)) = tokio::join!(self.connector.channel(Self::options()), relay);
        (channel, raw, head)
    }

    async fn open(&self) -> (DeviceChannel, Raw) {
        let (channel, raw, _) = self.ask(switching).await;
        (channel.unwrap(), raw)
    }
}

fn switching(key: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\
         Sec-WebSocket-Protocol: print\r\n\r\n",
        accept(key)
    )
}

fn problem(status: u16, code: &str, more: &str) -> String {
    let body = format!(r#"{{"type":"urn:relay:error:{code}","title":"No","detail":"because"}}"#);
    format!(
        "HTTP/1.1 {status} No\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n{more}\r\n{body}",
        body.len()
    )
}

fn said(payload: &str) -> Vec<u8> {
    frame(TEXT, true, payload.as_bytes(), None)
}

#[tokio::test]
async fn a3_the_request_names_path_job_protocol_and_token() {
    let rig = Rig::start().await;
    let (channel, _raw, head) = rig.ask(switching).await;
    channel.unwrap();
    assert!(head.starts_with("GET /base/ws/print?id=job-1 HTTP/1.1\r\n"), "{head}");
    for field in [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: print",
        "Authorization: Bearer the-token",
    ] {
        assert!(head.contains(&format!("\r\n{field}\r\n")), "{field} in {head}");
    }
    let lower = head.to_ascii_lowercase();
    for absent in ["origin:", "relay-session:", "sec-websocket-extensions:"] {
        assert!(!lower.contains(absent), "{absent} in {head}");
    }
}

#[tokio::test]
async fn a2_an_app_with_a_port_of_its_own_is_reached_there() {
    let rig = Rig::start().await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = other.local_addr().unwrap().port();
    let mut options = Rig::options();
    options.app.port = Some(port);
    let relay = async {
        let (mut raw, head, key) = Rig::accept(&other).await;
        raw.send(switching(&key).as_bytes()).await;
        (raw, head)
    };
    let (channel, (_raw, head)) = tokio::join!(rig.connector.channel(options), relay);
    channel.unwrap();
    assert!(head.contains(&format!("\r\nHost: 127.0.0.1:{port}\r\n")), "{head}");
}

#[tokio::test]
async fn o10_refusals_are_told_apart_by_what_to_do_next() {
    let rig = Rig::start().await;
    let page = "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno".to_owned();
    let later = Some(Duration::from_secs(7));
    for (answer, kind, relays_own, retry_after) in [
        (problem(404, "unknown-request", ""), ErrorKind::Expired, true, None),
        (problem(401, "unauthenticated", ""), ErrorKind::Unauthenticated, true, None),
        (problem(403, "forbidden", ""), ErrorKind::Unauthenticated, true, None),
        (problem(400, "bad-request", ""), ErrorKind::PeerMisbehaved, true, None),
        (problem(429, "too-many-requests", "Retry-After: 7\r\n"), ErrorKind::Overloaded, true, later),
        (problem(503, "draining", "Retry-After: 7\r\n"), ErrorKind::Overloaded, true, later),
        (problem(503, "store-unavailable", ""), ErrorKind::Unreachable, true, None),
        (page, ErrorKind::Unreachable, false, None),
    ] {
        let (channel, ..) = rig.ask(|_| answer.clone()).await;
        let error = channel.expect_err("no channel comes of this");
        assert_eq!(
            (error.kind, relay_said(&error).is_some(), error.retry_after),
            (kind, relays_own, retry_after),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn o2_o6_a_101_is_taken_only_if_it_is_what_was_asked_for() {
    let rig = Rig::start().await;
    let good = |key: &str| switching(key);
    let wrong: [fn(String) -> String; 5] = [
        |answer| answer.replace("Protocol: print", "Protocol: Print"),
        |answer| answer.replace("Sec-WebSocket-Protocol: print\r\n", ""),
        |answer| answer.replace("Protocol: print", "Protocol: control"),
        |answer| answer.replace("Accept: ", "Accept: x"),
        |answer| answer.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
    ];
    for change in wrong {
        let (channel, ..) = rig.ask(|key| change(good(key))).await;
        assert_eq!(channel.expect_err("not what was asked for").kind, ErrorKind::Unreachable);
    }
}

#[tokio::test]
async fn o9_a_relay_that_does_not_answer_is_given_up_at_the_deadline() {
    let rig = Rig::start().await;
    let mut options = Rig::options();
    options.deadline = (tokio::time::Instant::now() + SHORT).into_std();
    let relay = async {
        let (raw, ..) = Rig::accept(&rig.listener).await;
        raw
    };
    let (channel, _raw) = tokio::join!(rig.connector.channel(options), relay);
    assert_eq!(channel.unwrap_err().kind, ErrorKind::TimedOut);
    // And so it is by the connector's own bound.
    let rig = Rig::with(|settings| settings.handshake = SHORT).await;
    let relay = async {
        let (raw, ..) = Rig::accept(&rig.listener).await;
        raw
    };
    let (channel, _raw) = tokio::join!(rig.connector.channel(Rig::options()), relay);
    assert_eq!(channel.unwrap_err().kind, ErrorKind::TimedOut);
}

#[tokio::test]
async fn o12_handshakes_of_channels_come_one_after_the_other() {
    let rig = Rig::start().await;
    let (first, second) = (rig.connector.channel(Rig::options()), rig.connector.channel(Rig::options()));
    let relay = async {
        let (mut one, _, key) = Rig::accept(&rig.listener).await;
        let early = tokio::time::timeout(SHORT, rig.listener.accept()).await;
        assert!(early.is_err(), "a second handshake while the first was under way");
        one.send(switching(&key).as_bytes()).await;
        let (mut two, _, key) = Rig::accept(&rig.listener).await;
        two.send(switching(&key).as_bytes()).await;
        (one, two)
    };
    let (first, second, _relays) = tokio::join!(first, second, relay);
    assert!(first.is_ok() && second.is_ok());
}

#[tokio::test]
async fn an_app_whose_path_or_protocol_would_be_another_request_is_refused_here() {
    let rig = Rig::start().await;
    let name = AppName::new("print").unwrap();
    for (path, protocol) in [("/a\r\nx: y", "print"), ("/a b", "print"), ("/print", "a b"), ("/print", "")] {
        let mut options = Rig::options();
        options.app = App { name: name.clone(), path: path.into(), port: None, protocol: protocol.into() };
        let refused = rig.connector.channel(options).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unsupported, "{path} {protocol}");
    }
}

#[tokio::test]
async fn what_the_relay_says_is_read_as_it_is_documented() {
    let rig = Rig::start().await;
    // Frames may stand right behind the 101.
    let relay = async {
        let (mut raw, _, key) = Rig::accept(&rig.listener).await;
        raw.send(&[switching(&key).into_bytes(), said(HEADER)].concat()).await;
        raw
    };
    let (channel, mut raw) = tokio::join!(rig.connector.channel(Rig::options()), relay);
    let mut channel = channel.unwrap();
    let header = ToDevice::Header(HEADER.into());
    assert_eq!(device_hears(&mut channel).await.unwrap(), Some(header));
    raw.drip(&frame(BINARY, true, b"data", None)).await;
    assert_eq!(device_hears(&mut channel).await.unwrap(), Some(ToDevice::Data("data".into())));
    raw.send(&frame(BINARY, true, &piece(), None)).await;
    assert_eq!(device_hears(&mut channel).await.unwrap(), Some(ToDevice::Data(piece())));
    let digest = Digest::of(b"data");
    raw.send(&said("<wave xmlns='urn:relay:1'/>")).await;
    raw.send(&said(&format!("<end xmlns='urn:relay:1' bytes='4' sha256='{}'/>", digest.hex()))).await;
    assert_eq!(device_hears(&mut channel).await.unwrap(), Some(ToDevice::End(digest)));
    raw.send(&said(
        "<WebSocketControl xmlns='urn:relay:1' id='job-1'><AppName>print</AppName><Status>close</Status></WebSocketControl>",
    ))
    .await;
    assert_eq!(device_hears(&mut channel).await.unwrap(), Some(ToDevice::Close));
}

#[tokio::test]
async fn what_a_device_says_is_masked_text_as_it_is_documented() {
    let rig = Rig::start().await;
    let (mut channel, mut raw) = rig.open().await;
    for (message, parts) in [
        (ToRelay::Credit { from: Some(7), bytes: 100 }, vec!["<credit ", "from='7'", "bytes='100'"]),
        (ToRelay::Credit { from: None, bytes: 5 }, vec!["<credit ", "bytes='5'"]),
        (ToRelay::Progress(Progress::new(12).with_note("p")), vec!["<progress ", "bytes='12'", "note='p'"]),
        (ToRelay::Done { version: Some("3".into()) }, vec!["<done ", "version='3'"]),
        (
            ToRelay::Error { status: Status::DeviceError, words: "jam".into() },
            vec!["<error ", "code='device-error'", ">jam<"],
        ),
        (ToRelay::Close, vec!["id='job-1'", "<AppName>printer</AppName>", "<Status>close</Status>"]),
    ] {
        device_says(&mut channel, message).await.unwrap();
        // The raw relay's decoder takes no frame without a mask.
        let Some(Received::Text(text)) = raw.read().await else { panic!("text") };
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("urn:relay:1"), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[tokio::test]
async fn t30_a_relay_that_breaks_a_rule_is_told_and_the_channel_is_over() {
    let rig = Rig::start().await;
    for (what, bytes, code) in [
        ("data before the header", frame(BINARY, true, b"x", None), 1008),
        ("a mask", masked(TEXT, true, HEADER.as_bytes()), 1002),
        ("no XML", said("hello"), 1007),
        ("another namespace", [said(HEADER), said("<end/>")].concat(), 1008),
        (
            "an end without a hash",
            [said(HEADER), said("<end xmlns='urn:relay:1' bytes='1'/>")].concat(),
            1008,
        ),
        ("too much at once", frame(BINARY, true, &vec![0; 64 * 1024 + 1], None), 1009),
    ] {
        let (mut channel, mut raw) = rig.open().await;
        raw.send(&bytes).await;
        let error = loop {
            match device_hears(&mut channel).await {
                Ok(Some(ToDevice::Header(_))) => {}
                Ok(other) => panic!("{what}: {other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, ErrorKind::PeerMisbehaved, "{what}");
        let told = loop {
            match raw.read().await {
                Some(Received::Close(told)) => break told,
                Some(_) => {}
                None => panic!("{what}: no close"),
            }
        };
        assert_eq!(told, Some(code), "{what}");
    }
}

#[tokio::test]
async fn c1_what_a_relays_close_means() {
    let rig = Rig::start().await;
    for (code, kind) in [
        (None, None),
        (Some(1000_u16), None),
        (Some(1001), None),
        (Some(1008), Some(ErrorKind::Interrupted)),
        (Some(1011), Some(ErrorKind::Interrupted)),
        (Some(1012), Some(ErrorKind::Interrupted)),
        (Some(1013), Some(ErrorKind::Overloaded)),
        (Some(4003), Some(ErrorKind::Unauthenticated)),
    ] {
        let (mut channel, mut raw) = rig.open().await;
        let payload = code.map(u16::to_be_bytes);
        let close = frame(CLOSE, true, payload.as_ref().map_or(&[][..], |code| &code[..]), None);
        raw.send(&[said(HEADER), close].concat()).await;
        assert_eq!(device_hears(&mut channel).await.unwrap(), Some(ToDevice::Header(HEADER.into())));
        match kind {
            None => assert_eq!(device_hears(&mut channel).await.unwrap(), None, "{code:?}"),
            Some(kind) => assert_eq!(device_hears(&mut channel).await.unwrap_err().kind, kind, "{code:?}"),
        }
        // RFC 6455 §5.5.1: the code comes back.
        assert_eq!(raw.read().await, Some(Received::Close(code)));
    }
    let (mut channel, raw) = rig.open().await;
    drop(raw);
    assert_eq!(device_hears(&mut channel).await.unwrap_err().kind, ErrorKind::Interrupted);
}

#[tokio::test]
async fn c1_the_device_closes_and_waits_for_the_relay_within_its_time() {
    let rig = Rig::with(|settings| settings.channel.close_within = SHORT).await;
    let (mut channel, mut raw) = rig.open().await;
    // Data that was on its way stands before the relay's close.
    let relay = async {
        assert_eq!(raw.read().await, Some(Received::Close(Some(1000))));
        let late = [said(HEADER), frame(BINARY, true, &piece(), None)].concat();
        raw.send(&[late, frame(CLOSE, true, &1000_u16.to_be_bytes(), None)].concat()).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await;
        raw
    };
    let closing = tokio::time::timeout(PATIENCE, channel.sender.close());
    let (closed, _raw) = tokio::join!(closing, relay);
    closed.expect("bounded in time");
    assert_eq!(device_hears(&mut channel).await.unwrap(), None);
    let sent = device_says(&mut channel, ToRelay::Done { version: None }).await;
    assert_eq!(sent.unwrap_err().kind, ErrorKind::Closed);
    // A relay that does not answer is not waited for.
    let (mut channel, _raw) = rig.open().await;
    tokio::time::timeout(PATIENCE, channel.sender.close()).await.expect("bounded in time");
}

#[tokio::test]
async fn l1_l2_pings_are_answered_while_the_app_is_busy() {
    let rig = Rig::start().await;
    let (_channel, mut raw) = rig.open().await;
    raw.send(&[said(HEADER), frame(PING, true, b"there?", None)].concat()).await;
    assert_eq!(raw.read().await, Some(Received::Pong(b"there?".into())));
}

#[tokio::test]
async fn l4_a_relay_that_shows_no_life_is_lost() {
    let rig = Rig::with(|settings| {
        settings.channel.ping_every = Some(SHORT);
        settings.channel.answer_within = SHORT;
    })
    .await;
    let (mut channel, _raw) = rig.open().await;
    assert_eq!(device_hears(&mut channel).await.unwrap_err().kind, ErrorKind::Interrupted);
}

#[tokio::test]
async fn b4_a_device_that_does_not_listen_holds_up_the_relay_within_a_bound() {
    let rig = Rig::start().await;
    let (mut channel, mut raw) = rig.open().await;
    raw.send(&said(HEADER)).await;
    let one = frame(BINARY, true, &piece(), None);
    let mut sent = 0_usize;
    while tokio::time::timeout(SHORT, tokio::io::AsyncWriteExt::write_all(&mut raw.stream, &one))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < 1_024, "{sent} pieces went to nobody");
    }
    assert_eq!(device_hears(&mut channel).await.unwrap(), Some(ToDevice::Header(HEADER.into())));
    for _ in 0..sent {
        assert_eq!(device_hears(&mut channel).await.unwrap(), Some(ToDevice::Data(piece())));
    }
}

#[tokio::test]
async fn t15_a_channel_goes_by_the_same_rules_of_tls_as_its_session() {
    assert!(WsConnector::new("ws://relay.example/ws").is_err());
    // What answers in clear is no relay behind TLS.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = WsSettings::new(format!("wss://{}/ws", listener.local_addr().unwrap()));
    let connector = Arc::new(WsConnector::with_settings(settings).unwrap());
    let relay = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 No\r\n\r\n").await;
    };
    let (channel, ()) = tokio::join!(connector.channel(Rig::options()), relay);
    assert_eq!(channel.unwrap_err().kind, ErrorKind::Unreachable);
}
