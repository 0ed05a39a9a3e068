//! What a peer must not send, on control sessions and on channels alike: text that is none, Closes that are none, words after
//! a Close, and compression that nobody agreed on.

mod support;

use std::time::Duration;

use relay_core::{
    conformance::Owner,
    error::ErrorKind,
    transport::{EndReason, RelayChannel},
};
use support::{
    Rig,
    channel::{PATH, app, relay_hears},
    raw::{BINARY, CLOSE, Got, MORE, PING, Raw, TEXT, masked},
};
use tokio::time::timeout;
use transport_ws::proto::frame::Received;

const WORD: &[u8] = b"<ping xmlns='urn:relay:1'/>";

/// The relay's end of a raw device's connection.
enum Relay {
    Control(Owner),
    Channel(RelayChannel),
}

/// The device broke a rule, and said nothing that counts until then.
#[expect(clippy::future_not_send, reason = "an owner is driven on one thread")]
async fn misbehaved(relay: Relay, what: &str) {
    match relay {
        Relay::Control(owner) => {
            assert_eq!(owner.ended().await, EndReason::Misbehaved, "{what}");
            assert_eq!(owner.unread(), 0, "{what}");
        }
        Relay::Channel(mut channel) => {
            let heard = relay_hears(&mut channel).await.expect_err(what);
            assert_eq!(heard.kind, ErrorKind::PeerMisbehaved, "{what}");
        }
    }
}

async fn ask(rig: &mut Rig, channel: bool, changes: &[(&str, Option<&str>)]) -> (Raw, Got, Relay) {
    let address = rig.host.address;
    if channel {
        let ((raw, got), opened) = tokio::join!(Raw::ask(address, PATH, changes), async {
            let knock = rig.channel_knock().await;
            (knock.handshake)(Some(app())).await.expect("a channel")
        });
        (raw, got, Relay::Channel(opened))
    } else {
        let ((raw, got), owner) =
            tokio::join!(Raw::open(address, changes), async { Owner::start(rig.knock().await, None) });
        (raw, got, Relay::Control(owner))
    }
}

async fn open(rig: &mut Rig, channel: bool) -> (Raw, Relay) {
    let (raw, got, relay) = ask(rig, channel, &[]).await;
    assert_eq!(got.status, 101);
    (raw, relay)
}

#[tokio::test]
async fn t22_what_is_no_utf8_of_xml_characters_is_1007_wherever_it_is_cut() {
    let mut rig = Rig::start().await;
    let utf16 = |order: fn(u16) -> [u8; 2]| -> Vec<u8> {
        "\u{feff}<ping xmlns='urn:relay:1'/>".encode_utf16().flat_map(order).collect()
    };
    let inside = |bytes: &[u8]| [b"<ping xmlns='urn:relay:1' a='", bytes, b"'/>"].concat();
    for (what, text) in [
        ("a byte of no character", inside(b"\xff")),
        ("an overlong form", inside(b"\xc0\xaf")),
        ("a continuation of nothing", inside(b"\x80")),
        ("a surrogate", inside(b"\xed\xa0\x80")),
        ("a pair of them", inside(b"\xed\xa0\xbd\xed\xb6\xa8")),
        ("beyond U+10FFFF", inside(b"\xf4\x90\x80\x80")),
        ("half a character at the end", [WORD, b"\xe2\x82"].concat()),
        ("NUL", inside(b"\0")),
        ("U+FFFE", inside("\u{fffe}".as_bytes())),
        ("NUL by reference", inside(b"&#0;")),
        ("a surrogate by reference", inside(b"&#xd800;")),
        ("UTF-16, little end first", utf16(u16::to_le_bytes)),
        ("UTF-16, big end first", utf16(u16::to_be_bytes)),
    ] {
        for channel in [false, true] {
            // Whole, in two frames that are cut in the middle of it, and byte by byte with pings between.
            let middle = text.len() - 4;
            let two = [masked(TEXT, false, &text[..middle]), masked(MORE, true, &text[middle..])].concat();
            let single = |(n, byte): (usize, &u8)| {
                let frame = masked(if n == 0 { TEXT } else { MORE }, n + 1 == text.len(), &[*byte]);
                if n == 0 { [frame, masked(PING, true, b"")].concat() } else { frame }
            };
            let bytes: Vec<u8> = text.iter().enumerate().flat_map(single).collect();
            for sent in [masked(TEXT, true, &text), two, bytes] {
                let (mut raw, relay) = open(&mut rig, channel).await;
                raw.send(&sent).await;
                assert_eq!(raw.closed_with().await, Some(1007), "{what}");
                misbehaved(relay, what).await;
            }
        }
    }
}

#[tokio::test]
async fn t29_a_close_that_the_rfc_forbids_is_1002_and_one_that_it_allows_comes_back() {
    let mut rig = Rig::start().await;
    for channel in [false, true] {
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, u16::MAX] {
            let (mut raw, relay) = open(&mut rig, channel).await;
            raw.send(&masked(CLOSE, true, &code.to_be_bytes())).await;
            assert_eq!(raw.closed_with().await, Some(1002), "{code}");
            misbehaved(relay, &code.to_string()).await;
        }
        for code in [1000_u16, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999] {
            let (mut raw, _relay) = open(&mut rig, channel).await;
            raw.send(&masked(CLOSE, true, &code.to_be_bytes())).await;
            assert_eq!(raw.closed_with().await, Some(code));
        }
        let (mut raw, relay) = open(&mut rig, channel).await;
        raw.send(&masked(CLOSE, true, &[&1000_u16.to_be_bytes()[..], b"\xff"].concat())).await;
        assert_eq!(raw.closed_with().await, Some(1007), "words that are no UTF-8");
        misbehaved(relay, "words that are no UTF-8").await;
    }
}

#[tokio::test]
async fn t29_nothing_counts_after_a_close() {
    let mut rig = Rig::start().await;
    for after in
        [masked(TEXT, true, WORD), masked(PING, true, b"?"), masked(BINARY, true, b"x"), vec![0xff; 9]]
    {
        let (mut raw, relay) = open(&mut rig, false).await;
        raw.send(&[masked(CLOSE, true, &1000_u16.to_be_bytes()), after.clone()].concat()).await;
        // No pong before the Close that answers, and nothing behind it.
        assert_eq!(raw.read().await, Some(Received::Close(Some(1000))));
        assert_eq!(raw.read().await, None);
        let Relay::Control(owner) = relay else { panic!("a session") };
        assert_eq!((owner.ended().await, owner.unread()), (EndReason::Goodbye, 0));

        let (mut raw, relay) = open(&mut rig, true).await;
        raw.send(&[masked(CLOSE, true, &1000_u16.to_be_bytes()), after].concat()).await;
        assert_eq!(raw.read().await, Some(Received::Close(Some(1000))));
        assert_eq!(raw.read().await, None);
        let Relay::Channel(mut channel) = relay else { panic!("a channel") };
        assert_eq!(relay_hears(&mut channel).await.unwrap(), None);
    }
}

#[tokio::test]
async fn t31_compression_is_never_agreed_on_and_what_comes_compressed_is_refused_by_its_first_byte() {
    let mut rig = Rig::start().await;
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=10, permessage-bzip2",
    ] {
        for channel in [false, true] {
            let changes = [("sec-websocket-extensions", Some(offer))];
            let (mut raw, got, relay) = ask(&mut rig, channel, &changes).await;
            assert_eq!((got.status, got.field("sec-websocket-extensions")), (101, None), "{offer}");
            // RFC 7692 §6: the first reserved bit says so. The 64 KiB would be 64 MiB; they need not even come.
            let mut bomb = masked(TEXT, true, &[0; 65_000]);
            bomb[0] |= 0x40;
            raw.send(&bomb[..8]).await;
            let closed = timeout(Duration::from_secs(5), raw.closed_with()).await.expect("at once");
            assert_eq!(closed, Some(1002), "{offer}");
            misbehaved(relay, offer).await;
        }
    }
}
