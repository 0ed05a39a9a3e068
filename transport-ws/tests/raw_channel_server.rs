//! The server end of a channel by hand-made bytes: who is let in, what each frame is, rules, rates, closes and deadlines.

mod support;

use std::time::Duration;

use relay_core::{
    app::{Digest, Progress, Sending, ToDevice, ToRelay},
    error::ErrorKind,
    ids::DeviceId,
    request::Status,
};
use support::{
    PATIENCE, Rig,
    channel::{PATH, app, channel_head, job, piece, relay_hears, relay_says},
    raw::{ACCEPT, BINARY, CLOSE, MORE, PING, PONG, Raw, TEXT, frame, masked},
};
use transport_ws::proto::frame::Received;

const SHORT: Duration = Duration::from_millis(300);
const CREDIT: &str = "<credit xmlns='urn:relay:1' bytes='1'/>";

fn text(payload: &str) -> Vec<u8> {
    masked(TEXT, true, payload.as_bytes())
}

#[tokio::test]
async fn o3_the_apps_subprotocol_is_echoed_byte_for_byte() {
    let mut rig = Rig::start().await;
    for offered in ["print", "x, print", "Print,print , y"] {
        let changes = [("sec-websocket-protocol", Some(offered))];
        let ((_raw, got), channel) = tokio::join!(Raw::ask(rig.host.address, PATH, &changes), async {
            let knock = rig.channel_knock().await;
            assert_eq!(knock.device, DeviceId::new("printer-1").unwrap());
            assert_eq!((&knock.job, &*knock.path), (&job(), "/print"));
            assert!(knock.peer.address.is_some_and(|address| address.is_loopback()));
            (knock.handshake)(Some(app())).await
        });
        assert!(channel.is_ok());
        assert_eq!((got.status, got.field("sec-websocket-protocol")), (101, Some("print")), "{offered}");
        assert_eq!(got.field("sec-websocket-accept"), Some(ACCEPT));
        assert_eq!((got.field("relay-session"), got.field("sec-websocket-extensions")), (None, None));
    }
}

#[tokio::test]
async fn o4_a_head_that_opens_no_channel_is_refused_before_101_and_asks_nobody() {
    let rig = Rig::start().await;
    for (path, change, status) in [
        (PATH, ("sec-websocket-protocol", None), 400),
        (PATH, ("sec-websocket-protocol", Some("")), 400),
        (PATH, ("sec-websocket-protocol", Some("a b")), 400),
        (PATH, ("sec-websocket-key", None), 400),
        ("/ws/print", ("origin", None), 400),
        ("/ws/print?job=job-1", ("origin", None), 400),
        ("/ws/print?id=", ("origin", None), 404),
        ("/ws/print?id=a%20b", ("origin", None), 404),
        (PATH, ("sec-websocket-version", Some("8")), 426),
        (PATH, ("upgrade", None), 426),
        (PATH, ("authorization", None), 401),
        (PATH, ("authorization", Some("Bearer wrong")), 401),
        (PATH, ("authorization", Some("Bearer service")), 403),
        (PATH, ("authorization", Some("Bearer down")), 503),
    ] {
        let (_, got) = Raw::ask(rig.host.address, path, &[change]).await;
        assert_eq!(got.status, status, "{path} {change:?}");
        assert_eq!(got.field("upgrade"), None);
    }
}

#[tokio::test]
async fn a3_what_is_no_job_is_404_and_nothing_is_upgraded() {
    let mut rig = Rig::start().await;
    let address = rig.host.address;
    let ((_, got), refused) = tokio::join!(Raw::ask(address, PATH, &[]), async {
        let knock = rig.channel_knock().await;
        (knock.handshake)(None).await.expect_err("no channel")
    });
    assert_eq!((got.status, got.field("upgrade")), (404, None));
    assert_eq!(refused.kind, ErrorKind::Closed);
    // Without anybody to ask, nobody knows whether there is such a job.
    drop(rig.listener);
    assert_eq!(Raw::ask(address, PATH, &[]).await.1.status, 503);
}

#[tokio::test]
async fn b8_a_channel_that_nobody_decides_about_ends_in_time() {
    let mut rig = Rig::with(|config| config.handshake = SHORT).await;
    let address = rig.host.address;
    let ((_, got), knock) = tokio::join!(Raw::ask(address, PATH, &[]), rig.channel_knock());
    assert_eq!(got.status, 503);
    let late = (knock.handshake)(Some(app())).await.expect_err("the device is gone");
    assert_eq!(late.kind, ErrorKind::Interrupted);
}

#[tokio::test]
async fn b6_a_device_has_so_many_channels_and_no_more() {
    let mut rig = Rig::with(|config| config.channels_per_device = 2).await;
    let (first, _first) = rig.channel().await;
    let (_raw, second) = rig.channel().await;
    let (_, got) = Raw::ask(rig.host.address, PATH, &[]).await;
    assert_eq!(got.status, 429);
    // Another device has its own.
    rig.channel_with(&[("authorization", Some("Bearer printer-2"))]).await;
    drop((first, second));
    tokio::time::timeout(PATIENCE, async {
        loop {
            let asked = Raw::ask(rig.host.address, PATH, &[]);
            let answered = tokio::select! {
                (_, got) = asked => got.status == 101,
                knock = rig.channel_knock() => (knock.handshake)(Some(app())).await.is_ok(),
            };
            if answered {
                break;
            }
        }
    })
    .await
    .expect("places are given back");
}

#[tokio::test]
async fn t34_bytes_before_the_101_end_the_channel() {
    let mut rig = Rig::start().await;
    let mut raw = Raw::connect(rig.host.address).await;
    raw.send(&[channel_head(PATH, &[]).into_bytes(), text(CREDIT)].concat()).await;
    let knock = rig.channel_knock().await;
    let (got, channel) = tokio::join!(raw.head(), (knock.handshake)(Some(app())));
    assert_eq!(got.status, 101);
    let mut channel = channel.unwrap();
    assert_eq!(raw.closed_with().await, Some(1002));
    assert_eq!(relay_hears(&mut channel).await.unwrap_err().kind, ErrorKind::PeerMisbehaved);
}

#[tokio::test]
async fn what_a_device_says_is_read_as_it_is_documented() {
    let mut rig = Rig::start().await;
    let (mut raw, mut channel) = rig.channel().await;
    for (said, heard) in [
        ("<credit xmlns='urn:relay:1' from='7' bytes='100'/>", ToRelay::Credit { from: Some(7), bytes: 100 }),
        ("<r:credit xmlns:r='urn:relay:1' bytes='5'/>", ToRelay::Credit { from: None, bytes: 5 }),
        (
            "<progress xmlns='urn:relay:1' bytes='12' note='page 1'/>",
            ToRelay::Progress(Progress::new(12).with_note("page 1")),
        ),
        ("<done xmlns='urn:relay:1'/>", ToRelay::Done { version: None }),
        (
            "<error xmlns='urn:relay:1' code='device-error'>paper jam</error>",
            ToRelay::Error { status: Status::DeviceError, words: "paper jam".into() },
        ),
        (
            "<WebSocketControl xmlns='urn:relay:1' id='job-1'><AppName>printer</AppName><Status>close</Status></WebSocketControl>",
            ToRelay::Close,
        ),
    ] {
        // What is not known is passed over.
        raw.send(&text("<wave xmlns='urn:relay:1'/>")).await;
        raw.drip(&text(said)).await;
        assert_eq!(relay_hears(&mut channel).await.unwrap(), Some(heard), "{said}");
    }
}

#[tokio::test]
async fn what_the_relay_says_is_framed_as_it_is_documented() {
    let mut rig = Rig::start().await;
    let (mut raw, mut channel) = rig.channel().await;
    let header = "<PrintJobRequest><Job><User>ä</User></Job></PrintJobRequest>";
    for message in [
        ToDevice::Header(header.into()),
        ToDevice::Data(piece()),
        ToDevice::Data(vec![].into()),
        ToDevice::End(Digest::of(b"")),
        ToDevice::Close,
    ] {
        relay_says(&mut channel, message).await.unwrap();
    }
    assert_eq!(raw.read().await, Some(Received::Text(header.into())));
    assert_eq!(raw.read().await, Some(Received::Binary(piece().to_vec())));
    assert_eq!(raw.read().await, Some(Received::Binary(vec![])));
    let Some(Received::Text(end)) = raw.read().await else { panic!("the end is text") };
    let end = String::from_utf8(end).unwrap();
    let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert!(end.starts_with("<end ") && end.contains("bytes='0'") && end.contains(hash), "{end}");
    let Some(Received::Text(close)) = raw.read().await else { panic!("the word is text") };
    let close = String::from_utf8(close).unwrap();
    assert!(close.contains("<AppName>printer</AppName><Status>close</Status>"), "{close}");
    let long = ToDevice::Header(format!("<a>{}</a>", "x".repeat(256 * 1024)).into());
    assert_eq!(relay_says(&mut channel, long).await.unwrap_err().kind, ErrorKind::TooLarge);
    relay_says(&mut channel, ToDevice::Data(vec![1].into())).await.expect("the channel goes on");
    assert_eq!(raw.read().await, Some(Received::Binary(vec![1])));
}

#[tokio::test]
async fn t29_t30_what_breaks_a_rule_is_told_with_its_code() {
    let mut rig = Rig::start().await;
    let big = |length: u64| {
        let mut bytes = vec![0x81, 0xff];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    let flagged = |first: u8| {
        let mut bytes = text(CREDIT);
        bytes[0] = first;
        bytes
    };
    for (what, bytes, code) in [
        ("data, which goes the other way here", masked(BINARY, true, b"data"), 1003),
        ("empty data", masked(BINARY, true, b""), 1003),
        ("no mask", frame(TEXT, true, CREDIT.as_bytes(), None), 1002),
        ("reserved bits", flagged(0xc1), 1002),
        ("opcode 3", flagged(0x83), 1002),
        ("a continuation of nothing", masked(MORE, true, b"x"), 1002),
        ("a ping of 126 bytes", masked(PING, true, &[0; 126]), 1002),
        ("a close with 1005", masked(CLOSE, true, &1005_u16.to_be_bytes()), 1002),
        ("no UTF-8", masked(TEXT, true, b"<\xff/>"), 1007),
        ("no XML", text("credit"), 1007),
        ("a document type", text("<!DOCTYPE a><a/>"), 1007),
        ("another namespace", text("<credit bytes='1'/>"), 1008),
        ("credit that is no number", text("<credit xmlns='urn:relay:1' bytes='-1'/>"), 1008),
        ("a frame of 64 KiB and one byte", big(64 * 1024 + 1), 1009),
        ("a frame of exbibytes", big(1 << 62), 1009),
        (
            "65 fragments",
            (0..65).flat_map(|n| masked(if n == 0 { TEXT } else { MORE }, false, b" ")).collect(),
            1009,
        ),
    ] {
        let (mut raw, mut channel) = rig.channel().await;
        raw.send(&[text(CREDIT), bytes].concat()).await;
        assert_eq!(raw.closed_with().await, Some(code), "{what}");
        // What was said before counts.
        let credit = ToRelay::Credit { from: None, bytes: 1 };
        assert_eq!(relay_hears(&mut channel).await.unwrap(), Some(credit), "{what}");
        assert_eq!(relay_hears(&mut channel).await.unwrap_err().kind, ErrorKind::PeerMisbehaved, "{what}");
        let sent = relay_says(&mut channel, ToDevice::Close).await;
        assert_eq!(sent.unwrap_err().kind, ErrorKind::PeerMisbehaved, "{what}");
    }
}

#[tokio::test]
async fn t27_floods_are_cut_off() {
    let mut rig = Rig::start().await;
    for flood in [text(CREDIT), masked(PING, true, b"x"), masked(PONG, true, b"x")] {
        let (mut raw, mut channel) = rig.channel().await;
        raw.send(&flood.repeat(700)).await;
        let hearing = async { while let Ok(Some(_)) = channel.receiver.receive().await {} };
        let (code, ()) = tokio::join!(raw.closed_with(), hearing);
        assert_eq!(code, Some(1008));
    }
}

#[tokio::test]
async fn x4_answers_to_data_count_against_no_rate() {
    const PIECES: usize = 600;
    let mut rig = Rig::start().await;
    let (mut raw, mut channel) = rig.channel().await;
    for n in 0..PIECES {
        relay_says(&mut channel, ToDevice::Data(vec![1].into())).await.unwrap();
        assert_eq!(raw.read().await, Some(Received::Binary(vec![1])));
        raw.send(&[text(CREDIT), text("<progress xmlns='urn:relay:1' bytes='1'/>")].concat()).await;
        for _ in 0..2 {
            assert!(relay_hears(&mut channel).await.unwrap().is_some(), "after {n} pieces");
        }
    }
}

#[tokio::test]
async fn c1_c3_the_devices_close_is_answered_and_the_relay_closes_first() {
    let mut rig = Rig::start().await;
    for (code, told) in [(None, None), (Some(1000_u16), Some(1000)), (Some(1001), Some(1001))] {
        let (mut raw, mut channel) = rig.channel().await;
        let payload = code.map(u16::to_be_bytes);
        let close = masked(CLOSE, true, payload.as_ref().map_or(&[][..], |code| &code[..]));
        raw.send(&[text("<done xmlns='urn:relay:1'/>"), close].concat()).await;
        assert_eq!(raw.closed_with().await, told);
        assert_eq!(relay_hears(&mut channel).await.unwrap(), Some(ToRelay::Done { version: None }));
        assert_eq!(relay_hears(&mut channel).await.unwrap(), None);
    }
    // A device that is not content says so: that is no end in order.
    let (mut raw, mut channel) = rig.channel().await;
    raw.send(&masked(CLOSE, true, &1011_u16.to_be_bytes())).await;
    assert_eq!(raw.closed_with().await, Some(1011));
    assert_eq!(relay_hears(&mut channel).await.unwrap_err().kind, ErrorKind::Interrupted);
}

#[tokio::test]
async fn c3_a_device_that_does_not_answer_the_relays_close_is_not_waited_for() {
    let mut rig = Rig::with(|config| config.channel.close_within = SHORT).await;
    let (mut raw, mut channel) = rig.channel().await;
    tokio::time::timeout(PATIENCE, channel.sender.close()).await.expect("bounded in time");
    assert_eq!(raw.read().await, Some(Received::Close(Some(1000))));
    assert_eq!(raw.read().await, None, "the connection is closed");
}

#[tokio::test]
async fn l4_a_device_is_pinged_and_one_that_shows_no_life_is_lost() {
    let mut rig = Rig::with(|config| {
        config.channel.ping_every = Some(SHORT);
        config.channel.answer_within = SHORT;
    })
    .await;
    let (mut raw, mut channel) = rig.channel().await;
    for _ in 0..3 {
        let Some(Received::Ping(payload)) = raw.read().await else { panic!("a ping") };
        raw.send(&masked(PONG, true, &payload)).await;
    }
    raw.send(&text(CREDIT)).await;
    assert!(relay_hears(&mut channel).await.unwrap().is_some());
    assert_eq!(relay_hears(&mut channel).await.unwrap_err().kind, ErrorKind::Interrupted);
    while raw.read().await.is_some() {}
}

#[tokio::test]
async fn t26_a_device_that_takes_nothing_is_lost_after_its_time_and_costs_little() {
    let mut rig = Rig::with(|config| config.channel.write_within = SHORT * 2).await;
    let (_raw, mut channel) = rig.channel().await;
    let mut sent = 0;
    let error = loop {
        match relay_says(&mut channel, ToDevice::Data(piece())).await {
            Ok(()) => sent += Sending::PIECE,
            Err(error) => break error,
        }
        assert!(sent < 16 * 1024 * 1024, "{sent} bytes towards a device that takes nothing");
    };
    assert_eq!(error.kind, ErrorKind::Interrupted);
    assert_eq!(relay_hears(&mut channel).await.unwrap_err().kind, ErrorKind::Interrupted);
}

#[tokio::test]
async fn b4_an_owner_that_does_not_listen_stops_the_reading_within_a_bound() {
    let mut rig = Rig::with(|config| config.channel.messages = None).await;
    let (mut raw, mut channel) = rig.channel().await;
    let note = format!("<progress xmlns='urn:relay:1' bytes='1' note='{}'/>", "x".repeat(8_000));
    let one = text(&note);
    let mut sent = 0_usize;
    while tokio::time::timeout(SHORT, tokio::io::AsyncWriteExt::write_all(&mut raw.stream, &one))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < 4_000, "{sent} messages of 8 KB went to nobody");
    }
    // Whatever was cut off half-way ends the channel; all that was said before is heard.
    drop(raw);
    let mut heard = 0;
    let error = loop {
        match relay_hears(&mut channel).await {
            Ok(Some(_)) => heard += 1,
            Ok(None) => panic!("no end in order"),
            Err(error) => break error,
        }
    };
    assert_eq!((heard, error.kind), (sent, ErrorKind::Interrupted));
}
