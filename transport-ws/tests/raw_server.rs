//! The server end by hand-made bytes: the opening handshake, frames of every shape, closes and deadlines.

mod support;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier},
    conformance::{Event, Owner},
    envelope::Envelope,
    ids::{DeviceId, Method, ObjectId, RequestId, SessionId},
    request::{Body, Request},
    transport::{CloseReason, EndReason, Incoming, Knock, Listener},
};
use support::{
    ByName, PATIENCE, Rig,
    raw::{ACCEPT, BINARY, CLOSE, MORE, PING, PONG, Raw, TEXT, frame, head, masked},
};
use transport_ws::{Refusal, WsListener, WsManager, WsServerConfig, proto::frame::Received};

const PING_ELEMENT: &[u8] = b"<ping xmlns='urn:relay:1'/>";
const SHORT: Duration = Duration::from_millis(300);

fn request(owner: &Owner, size: usize) -> Envelope {
    let mut request =
        Request::new(owner.device.clone(), Method::get()).with_object(ObjectId::new("a").unwrap());
    request.body = Some(Body::text("x".repeat(size)));
    let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
    Envelope::Request { id: RequestId::new("r").unwrap(), request: Arc::new(request), deadline }
}

#[tokio::test]
async fn o3_a_good_head_is_answered_with_the_subprotocol_byte_for_byte() {
    let mut rig = Rig::start().await;
    for offered in ["control", "v9.control,control", "print, control , x"] {
        let changes = [("sec-websocket-protocol", Some(offered))];
        let ((_raw, got), session) = tokio::join!(Raw::open(rig.host.address, &changes), async {
            Owner::start(rig.knock().await, None)
        });
        assert_eq!((got.status, got.field("sec-websocket-protocol")), (101, Some("control")), "{offered}");
        assert_eq!(got.field("sec-websocket-accept"), Some(ACCEPT));
        assert_eq!(got.field("relay-session"), Some(session.id.as_str()));
        assert_eq!(got.field("sec-websocket-extensions"), None);
    }
    // Split over two lines, as RFC 6455 §11.3.4 allows.
    let address = rig.host.address;
    let mut raw = Raw::connect(address).await;
    let two = head(&[("sec-websocket-protocol", None)])
        .replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: other\r\nSec-WebSocket-Protocol: control\r\n\r\n");
    raw.send(two.as_bytes()).await;
    let (got, _owner) = tokio::join!(raw.head(), async { Owner::start(rig.knock().await, None) });
    assert_eq!((got.status, got.field("sec-websocket-protocol")), (101, Some("control")));
}

#[tokio::test]
async fn o4_what_is_no_control_session_is_refused_before_101() {
    let rig = Rig::start().await;
    for (changes, status) in [
        (("sec-websocket-protocol", None), 400),
        (("sec-websocket-protocol", Some("Control")), 400),
        (("sec-websocket-protocol", Some("print")), 400),
        (("sec-websocket-protocol", Some("a b, control")), 400),
        (("sec-websocket-key", None), 400),
        (("sec-websocket-key", Some("c2hvcnQ=")), 400),
        (("sec-websocket-version", Some("8")), 426),
        (("sec-websocket-version", None), 426),
        (("upgrade", None), 426),
        (("upgrade", Some("h2c")), 426),
        (("connection", Some("keep-alive")), 426),
        (("authorization", None), 401),
        (("authorization", Some("Basic cHJpbnRlci0x")), 401),
        (("authorization", Some("Bearer wrong")), 401),
        (("authorization", Some("Bearer service")), 403),
        (("authorization", Some("Bearer down")), 503),
    ] {
        let (_, got) = Raw::open(rig.host.address, &[changes]).await;
        assert_eq!(got.status, status, "{changes:?}");
        assert_eq!(got.field("upgrade"), None);
    }
}

#[tokio::test]
async fn o7_origin_is_not_looked_at_where_there_is_a_token() {
    let mut rig = Rig::start().await;
    rig.pair_with(&[("origin", Some("https://elsewhere.example"))]).await;
    let changes = [("origin", Some("https://elsewhere.example")), ("authorization", None)];
    assert_eq!(Raw::open(rig.host.address, &changes).await.1.status, 401);
}

#[tokio::test]
async fn relay_session_goes_both_ways() {
    let mut rig = Rig::start().await;
    let wanted = SessionId::new("session-before").unwrap();
    let changes = [("relay-session", Some("session-before"))];
    let address = rig.host.address;
    // Granted: the same ID comes back.
    let ((_, got), _owner) = tokio::join!(Raw::open(address, &changes), async {
        let session = rig.knock().await;
        assert_eq!(session.resume.as_ref(), Some(&wanted));
        Owner::start(session, Some(wanted.clone()))
    });
    assert_eq!(got.field("relay-session"), Some("session-before"));
    // Not granted: another.
    let ((_, got), owner) =
        tokio::join!(Raw::open(address, &changes), async { Owner::start(rig.knock().await, None) });
    assert_eq!(got.field("relay-session"), Some(owner.id.as_str()));
    assert_ne!(owner.id, wanted);
    // What is no ID is asked for by nobody.
    let changes = [("relay-session", Some("no id"))];
    let (_, session) = tokio::join!(Raw::open(address, &changes), async {
        let session = rig.knock().await;
        assert_eq!(session.resume, None);
        Owner::start(session, None)
    });
    drop(session);
}

#[tokio::test]
async fn b12_what_the_owner_refuses_is_refused_before_101() {
    let mut rig = Rig::start().await;
    let address = rig.host.address;
    for (reason, status) in [
        (CloseReason::Overloaded { retry_after: Duration::from_secs(9) }, 429),
        (CloseReason::Shutdown, 503),
        (CloseReason::Revoked, 401),
    ] {
        let ((_, got), ()) = tokio::join!(Raw::open(address, &[]), async {
            rig.knock().await.push.close(reason.clone()).await;
        });
        assert_eq!(got.status, status, "{reason:?}");
    }
    let ((_, got), ()) = tokio::join!(Raw::open(address, &[]), async { drop(rig.knock().await) });
    assert_eq!(got.status, 503, "a session that is dropped");
    drop(rig.listener);
    assert_eq!(Raw::open(address, &[]).await.1.status, 503, "nobody listens");
}

/// The head of a good upgrade request, as a host hands it over.
fn parts() -> http::request::Parts {
    let mut request = http::Request::get("/ws");
    for line in head(&[]).lines().skip(1).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    request.body(()).unwrap().into_parts().0
}

async fn next_knock(listener: &mut WsListener) -> Knock {
    match tokio::time::timeout(PATIENCE, listener.accept()).await.expect("somebody knocks in time") {
        Some(Incoming::Session(knock)) => knock,
        other => panic!("no session: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_pushed_before_there_is_a_connection_goes_once_there_is() {
    let (manager, mut listener) = WsManager::new(WsServerConfig::default(), Arc::new(ByName));
    let parts = parts();
    let (accepted, mut owner) = tokio::join!(manager.upgrade(&parts, [127, 0, 0, 1].into()), async {
        Owner::start(next_knock(&mut listener).await.handshake.await.unwrap(), None)
    });
    let mut waiting = VecDeque::from([Envelope::Ping]);
    {
        let mut pushing = std::pin::pin!(owner.push(&mut waiting));
        let waker = std::task::Waker::noop();
        assert!(pushing.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
        let (near, mut far) = tokio::io::duplex(1024);
        accepted.unwrap().attach(near, b"");
        tokio::time::timeout(PATIENCE, pushing).await.expect("it goes").unwrap();
        let mut bytes = [0; 64];
        let read = tokio::io::AsyncReadExt::read(&mut far, &mut bytes).await.unwrap();
        assert!(bytes[..read].ends_with(PING_ELEMENT));
    }
    assert!(VecDeque::is_empty(&waiting));
}

#[tokio::test]
async fn p6_a_peer_that_went_away_at_the_door_gets_no_session() {
    let (manager, mut listener) = WsManager::new(WsServerConfig::default(), Arc::new(ByName));
    let parts = parts();
    {
        let mut upgrading = std::pin::pin!(manager.upgrade(&parts, [127, 0, 0, 1].into()));
        let waker = std::task::Waker::noop();
        assert!(upgrading.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    }
    let knock = next_knock(&mut listener).await;
    assert!(knock.handshake.await.is_err(), "it would take the place of one that lives");
    // Gone after it was let in: its owner is told.
    let (accepted, owner) = tokio::join!(manager.upgrade(&parts, [127, 0, 0, 1].into()), async {
        Owner::start(next_knock(&mut listener).await.handshake.await.unwrap(), None)
    });
    drop(accepted);
    assert_eq!(owner.ended().await, EndReason::Lost);
}

#[tokio::test]
async fn t17_a_token_that_is_revoked_at_the_door_gets_no_session() {
    #[derive(Debug, Default)]
    struct Once(std::sync::atomic::AtomicBool);
    #[async_trait::async_trait]
    impl Authenticator for Once {
        async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
            match self.0.swap(true, std::sync::atomic::Ordering::Relaxed) {
                false => ByName.authenticate(credentials).await,
                true => Err(AuthError::Rejected),
            }
        }
        async fn verifier(&self, device: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
            ByName.verifier(device, hash).await
        }
    }
    let (manager, mut listener) = WsManager::new(WsServerConfig::default(), Arc::new(Once::default()));
    let parts = parts();
    let (refused, handshake) = tokio::join!(manager.upgrade(&parts, [127, 0, 0, 1].into()), async {
        next_knock(&mut listener).await.handshake.await
    });
    assert_eq!(refused.unwrap_err(), Refusal::Unauthenticated);
    assert!(handshake.is_err());
}

#[tokio::test]
async fn b8_an_upgrade_that_nobody_decides_about_ends_in_time() {
    let rig = Rig::with(|config| config.handshake = SHORT).await;
    assert_eq!(Raw::open(rig.host.address, &[]).await.1.status, 503);
}

#[tokio::test]
async fn t34_bytes_before_the_101_end_the_session() {
    let mut rig = Rig::start().await;
    let mut raw = Raw::connect(rig.host.address).await;
    let early = [head(&[]).into_bytes(), masked(TEXT, true, PING_ELEMENT)].concat();
    raw.send(&early).await;
    let owner = Owner::start(rig.knock().await, None);
    assert_eq!(raw.head().await.status, 101);
    assert_eq!(raw.closed_with().await, Some(1002));
    assert_eq!(owner.ended().await, EndReason::Misbehaved);
    assert_eq!(owner.unread(), 0, "what came early is not believed");
}

#[tokio::test]
async fn f8_frames_are_read_whatever_the_segments() {
    let mut rig = Rig::start().await;
    let (mut raw, owner) = rig.pair().await;
    raw.drip(&masked(TEXT, true, PING_ELEMENT)).await;
    assert_eq!(owner.receive(1).await, [Envelope::Ping]);
    // One element in frames of one byte each, with a ping between any two.
    let mut bytes = Vec::new();
    for (n, byte) in PING_ELEMENT.iter().enumerate() {
        let last = n + 1 == PING_ELEMENT.len();
        bytes.extend(masked(if n == 0 { TEXT } else { MORE }, last, &[*byte]));
        if n % 9 == 4 {
            bytes.extend(masked(PING, true, b"between"));
        }
    }
    raw.drip(&bytes).await;
    assert_eq!(owner.receive(1).await, [Envelope::Ping]);
    for _ in 0..3 {
        assert_eq!(raw.read().await, Some(Received::Pong(b"between".into())));
    }
    // Many in one segment.
    let burst: Vec<u8> = (0..400).flat_map(|_| masked(TEXT, true, PING_ELEMENT)).collect();
    raw.send(&burst).await;
    assert_eq!(owner.receive(400).await.len(), 400);
}

#[tokio::test]
async fn f7_a_character_may_be_split_between_fragments() {
    let mut rig = Rig::start().await;
    let (mut raw, owner) = rig.pair().await;
    let element =
        "<response xmlns='urn:relay:1' id='r'><body type='text/plain'>ä🖨</body></response>".as_bytes();
    for at in 0..element.len() {
        if !element[at].is_ascii() {
            let bytes = [
                masked(TEXT, false, &element[..at]),
                masked(PING, true, b""),
                masked(MORE, true, &element[at..]),
            ];
            raw.send(&bytes.concat()).await;
            let [Envelope::Response { response, .. }] = &owner.receive(1).await[..] else {
                panic!("a response")
            };
            assert_eq!(response.body.as_ref().unwrap().bytes, "ä🖨".as_bytes(), "split at {at}");
            assert!(matches!(raw.read().await, Some(Received::Pong(_))));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A header that says `length` in `form` bytes, with nothing behind it.
fn header(first: u8, form: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match form {
        2 => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0xff);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

#[tokio::test]
async fn t29_t30_what_breaks_a_rule_is_told_with_its_code() {
    let mut rig = Rig::start().await;
    let bits = |first: u8| {
        let mut bytes = masked(TEXT, true, PING_ELEMENT);
        bytes[0] = first;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("no mask", frame(TEXT, true, PING_ELEMENT, None), 1002),
        ("an unmasked ping", frame(PING, true, b"", None), 1002),
        ("reserved bit 1, as compression sets it", bits(0xc1), 1002),
        ("reserved bit 2", bits(0xa1), 1002),
        ("reserved bit 3", bits(0x91), 1002),
        ("opcode 3", bits(0x83), 1002),
        ("opcode 11", bits(0x8b), 1002),
        ("a continuation of nothing", masked(MORE, true, b"x"), 1002),
        ("a message in a message", [masked(TEXT, false, b"<"), masked(TEXT, true, b"x")].concat(), 1002),
        ("a ping in fragments", masked(PING, false, b"x"), 1002),
        ("a ping of 126 bytes", masked(PING, true, &[0; 126]), 1002),
        ("a length in too many bytes", header(0x81, 2, 100), 1002),
        ("and in far too many", header(0x81, 8, 60_000), 1002),
        ("a length of more than 63 bits", header(0x81, 8, 1 << 63), 1002),
        ("a close of one byte", masked(CLOSE, true, &[3]), 1002),
        ("a close with 1005", masked(CLOSE, true, &1005_u16.to_be_bytes()), 1002),
        ("a close with 999", masked(CLOSE, true, &999_u16.to_be_bytes()), 1002),
        ("a close whose words are not UTF-8", masked(CLOSE, true, b"\x03\xe8\xff"), 1007),
        ("binary", masked(BINARY, true, PING_ELEMENT), 1003),
        ("text that is not UTF-8", masked(TEXT, true, b"<\xff/>"), 1007),
        ("half a character at the end", masked(TEXT, true, b"<a>\xc3"), 1007),
        ("no XML", masked(TEXT, true, b"hello"), 1007),
        ("an empty message", masked(TEXT, true, b""), 1007),
        ("two elements", masked(TEXT, true, b"<a/><b/>"), 1007),
        ("a document type", masked(TEXT, true, b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"), 1007),
        ("an element of another namespace", masked(TEXT, true, b"<ping/>"), 1008),
        ("a frame of 64 KiB and one byte", header(0x81, 8, 64 * 1024 + 1), 1009),
        ("a frame of exbibytes", header(0x81, 8, 1 << 62), 1009),
        (
            "65 fragments",
            (0..65).flat_map(|n| masked(if n == 0 { TEXT } else { MORE }, false, b" ")).collect(),
            1009,
        ),
    ];
    for (n, (what, bytes, code)) in cases.into_iter().enumerate() {
        let name = format!("Bearer printer-{n}");
        let (mut raw, owner) = rig.pair_with(&[("authorization", Some(&name))]).await;
        raw.send(&bytes).await;
        assert_eq!(raw.closed_with().await, Some(code), "{what}");
        assert_eq!(owner.ended().await, EndReason::Misbehaved, "{what}");
        assert_eq!(owner.unread(), 0, "{what}");
    }
}

#[tokio::test]
async fn b3_a_message_of_256_kib_is_taken_and_one_byte_more_is_not() {
    let mut rig = Rig::start().await;
    for (extra, taken) in [(0, true), (1, false)] {
        let (mut raw, owner) = rig.pair().await;
        let start = b"<pong xmlns='urn:relay:1'>".to_vec();
        let end = b"</pong>";
        let mut message = start.clone();
        message.resize(256 * 1024 - end.len() + extra, b'x');
        message.extend_from_slice(end);
        let frames = message.len().div_ceil(64 * 1024);
        for (n, some) in message.chunks(64 * 1024).enumerate() {
            raw.send(&masked(if n == 0 { TEXT } else { MORE }, n + 1 == frames, some)).await;
        }
        if taken {
            assert_eq!(owner.receive(1).await, [Envelope::Pong]);
        } else {
            assert_eq!(raw.closed_with().await, Some(1009));
            assert_eq!(owner.ended().await, EndReason::Misbehaved);
        }
    }
}

#[tokio::test]
async fn t27_a_flood_of_pings_is_cut_off() {
    let mut rig = Rig::start().await;
    let (mut raw, owner) = rig.pair().await;
    let flood: Vec<u8> = (0..1000).flat_map(|_| masked(PING, true, b"")).collect();
    raw.send(&flood).await;
    assert_eq!(raw.closed_with().await, Some(1008));
    assert_eq!(owner.ended().await, EndReason::Misbehaved);
}

#[tokio::test]
async fn t27_a_flood_of_messages_is_cut_off() {
    let mut rig = Rig::start().await;
    let (mut raw, owner) = rig.pair().await;
    let flood: Vec<u8> = (0..5000).flat_map(|_| masked(TEXT, true, PING_ELEMENT)).collect();
    raw.send(&flood).await;
    assert_eq!(raw.closed_with().await, Some(1008));
    assert_eq!(owner.ended().await, EndReason::Misbehaved);
}

#[tokio::test]
async fn t30_what_is_not_known_is_passed_over() {
    let mut rig = Rig::start().await;
    let (mut raw, owner) = rig.pair().await;
    for nothing in [
        "<fancy xmlns='urn:relay:1'/>",
        "<request xmlns='urn:relay:1' id='a' method='GET'/>",
        "<drain xmlns='urn:relay:1' retry-after='1'/>",
        "<response xmlns='urn:relay:1'/>",
        "<received xmlns='urn:relay:1' id='a b'/>",
    ] {
        raw.send(&masked(TEXT, true, nothing.as_bytes())).await;
    }
    raw.send(&masked(TEXT, true, b"<?xml version='1.0'?><r:received xmlns:r='urn:relay:1' id='x'/>")).await;
    let id = RequestId::new("x").unwrap();
    assert_eq!(owner.receive(1).await, [Envelope::Received { id }]);
}

#[tokio::test]
async fn l2_a_ping_is_answered_while_the_owner_is_busy() {
    let mut rig = Rig::start().await;
    let (mut raw, owner) = rig.pair().await;
    owner.set_full(true);
    raw.send(&masked(TEXT, true, PING_ELEMENT)).await;
    while owner.offered() == 0 {
        tokio::task::yield_now().await;
    }
    raw.send(&masked(PING, true, b"still there?")).await;
    let pong = tokio::time::timeout(Duration::from_secs(1), raw.read()).await.expect("a pong in a second");
    assert_eq!(pong, Some(Received::Pong(b"still there?".into())));
    owner.set_full(false);
    assert_eq!(owner.receive(1).await, [Envelope::Ping]);
}

#[tokio::test]
async fn l4_a_silent_peer_is_pinged_and_then_lost() {
    let quick = |config: &mut WsServerConfig| {
        config.control.ping_every = Some(SHORT);
        config.control.answer_within = SHORT;
    };
    let mut rig = Rig::with(quick).await;
    let (mut raw, owner) = rig.pair().await;
    for _ in 0..3 {
        let Some(Received::Ping(payload)) = raw.read().await else { panic!("a ping") };
        assert_eq!(payload.len(), 8);
        raw.send(&masked(PONG, true, &payload)).await;
    }
    // Without an answer: cut, and no close before it.
    while let Some(received) = raw.read().await {
        assert!(matches!(received, Received::Ping(_)), "{received:?}");
    }
    assert_eq!(owner.ended().await, EndReason::Lost);
}

#[tokio::test]
async fn t26_a_peer_that_reads_nothing_holds_up_its_owner_within_bounds_and_is_lost() {
    let mut rig = Rig::with(|config| config.control.write_within = SHORT).await;
    let (raw, mut owner) = rig.pair().await;
    let mut waiting: VecDeque<_> = (0..2_000).map(|_| request(&owner, 16 * 1024)).collect();
    let error = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(error) = owner.push(&mut waiting).await {
                break error;
            }
        }
    });
    error.await.expect("the deadline passes");
    let taken = 2_000 - waiting.len();
    assert!(
        taken * 16 * 1024 < 16 * 1024 * 1024,
        "{taken} were taken, for the kernel's buffers and 64 KiB of ours"
    );
    assert_eq!(owner.ended().await, EndReason::Lost);
    drop(raw);
}

#[tokio::test]
async fn c1_the_relay_answers_a_close_and_closes_the_connection_first() {
    let mut rig = Rig::start().await;
    for (payload, reason) in [
        (&1000_u16.to_be_bytes()[..], EndReason::Goodbye),
        (b"\x03\xe9going away", EndReason::Goodbye),
        (b"", EndReason::Goodbye),
        (&4711_u16.to_be_bytes(), EndReason::Goodbye),
        (&1002_u16.to_be_bytes(), EndReason::Misbehaved),
    ] {
        let (mut raw, owner) = rig.pair().await;
        raw.send(&masked(CLOSE, true, payload)).await;
        // Whatever follows a close is nothing.
        raw.send(&masked(TEXT, true, PING_ELEMENT)).await;
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        assert_eq!(raw.read().await, Some(Received::Close(code)));
        assert_eq!(raw.read().await, None);
        assert_eq!(owner.ended().await, reason);
        assert_eq!(owner.unread(), 0);
    }
}

#[tokio::test]
async fn c1_what_was_pushed_goes_before_the_close_and_the_reason_with_it() {
    let mut rig = Rig::start().await;
    let later = Duration::from_secs(7);
    for (reason, code, words) in [
        (CloseReason::Drain { retry_after: later, to: None }, 1012, true),
        (CloseReason::Overloaded { retry_after: later }, 1013, true),
        (CloseReason::Replaced, 4001, false),
        (CloseReason::Revoked, 4003, false),
        (CloseReason::Shutdown, 1001, false),
        (CloseReason::Misbehaved, 1008, false),
    ] {
        let (mut raw, mut owner) = rig.pair().await;
        owner.attached().await;
        owner.send([request(&owner, 100_000)]).await.unwrap();
        let (_, ()) = tokio::join!(owner.close(reason.clone()), async {
            assert!(matches!(raw.read().await, Some(Received::Text(text)) if text.len() > 100_000));
            if words {
                let Some(Received::Text(drain)) = raw.read().await else { panic!("when to come back") };
                let drain = String::from_utf8(drain).unwrap();
                assert!(drain.starts_with("<drain ") && drain.contains(" retry-after='7'"), "{drain}");
            }
            assert_eq!(raw.closed_with().await, Some(code), "{reason:?}");
        });
        assert_eq!(owner.ended().await, EndReason::Closed);
    }
}

#[tokio::test]
async fn c3_a_peer_that_never_answers_a_close_is_left_in_time() {
    let mut rig = Rig::with(|config| config.control.close_within = SHORT).await;
    let (mut raw, mut owner) = rig.pair().await;
    owner.attached().await;
    owner.close(CloseReason::Shutdown).await;
    assert_eq!(owner.ended().await, EndReason::Closed);
    assert_eq!(raw.read().await, Some(Received::Close(Some(1001))));
    assert_eq!(raw.read().await, None);
}

#[tokio::test]
async fn c4_a_connection_that_ends_without_a_close_is_lost() {
    let mut rig = Rig::start().await;
    let (raw, owner) = rig.pair().await;
    owner.attached().await;
    drop(raw);
    assert_eq!(owner.ended().await, EndReason::Lost);
    let (raw, owner) = rig.pair().await;
    owner.attached().await;
    raw.stream.set_zero_linger().unwrap();
    drop(raw);
    assert_eq!(
        owner.next(|event| if let Event::Ended(reason) = event { Some(reason) } else { None }).await,
        EndReason::Lost
    );
}

#[tokio::test]
async fn b5_a_pong_does_not_wait_for_a_message_that_the_peer_reads_slowly() {
    let mut rig = Rig::start().await;
    let (mut raw, mut owner) = rig.pair().await;
    owner.attached().await;
    // Fill what the kernel takes, and then some of ours.
    let mut waiting: VecDeque<_> = (0..2_000).map(|_| request(&owner, 100_000)).collect();
    while let Ok(pushed) = tokio::time::timeout(SHORT, owner.push(&mut waiting)).await {
        pushed.unwrap();
    }
    let taken = 2_000 - waiting.len();
    raw.send(&masked(PING, true, b"?")).await;
    let mut before = 0;
    loop {
        match raw.read().await {
            Some(Received::Text(_)) => before += 1,
            Some(Received::Pong(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(before < taken, "the pong came behind all {taken} messages");
}
