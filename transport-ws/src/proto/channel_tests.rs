use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use relay_core::app::{Digest, Progress, Sending, ToDevice, ToRelay};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::*;
use crate::{
    proto::frame::{Decoder, FrameLimits, Received as Frame, Side, encode},
    wire::channel::{DeviceEnd, RelayEnd},
};

const MASK: fn() -> [u8; 4] = || [1, 2, 3, 4];
const HEADER: &str = "<Job/>";

fn start() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn relay_with(config: ChannelConfig, now: Instant) -> Machine<RelayEnd> {
    machine(End::Relay, config, now)
}

fn relay(now: Instant) -> Machine<RelayEnd> {
    relay_with(ChannelConfig::relay(), now)
}

fn device(now: Instant) -> Machine<DeviceEnd> {
    machine(End::Device(MASK), ChannelConfig::device(), now)
}

fn machine<W: Words>(end: End, config: ChannelConfig, now: Instant) -> Machine<W> {
    Machine::new(end, RequestId::new("job").unwrap(), AppName::new("print").unwrap(), config, now)
}

/// Everything that `from` has to write, at most `at_a_time` bytes at once, to `to`.
fn carry<A: Words, B: Words>(from: &mut Machine<A>, to: &mut Machine<B>, at_a_time: usize, now: Instant) {
    while from.wants_write() && to.wants_read() {
        let chunk = from.chunk();
        let some = chunk[..chunk.len().min(at_a_time)].to_vec();
        from.written(some.len(), now);
        to.received(&some, now);
    }
}

/// What `from` writes, as frames.
fn frames<W: Words>(from: &mut Machine<W>, side: Side, now: Instant) -> Vec<Frame> {
    let limits = FrameLimits { binary: true, ..FrameLimits::default() };
    let mut decoder = Decoder::new(side, limits);
    let mut frames = Vec::new();
    while from.wants_write() {
        let chunk = from.chunk().to_vec();
        from.written(chunk.len(), now);
        let mut rest = &chunk[..];
        while let Some(frame) = decoder.next(&mut rest, true).unwrap() {
            frames.push(frame);
        }
    }
    frames
}

fn data(bytes: usize) -> ToDevice {
    ToDevice::Data(Bytes::from(vec![7; bytes]))
}

#[test]
fn a_channel_from_header_to_close() {
    let now = start();
    let (mut relay, mut device) = (relay(now), device(now));
    for message in [ToDevice::Header(HEADER.into()), data(5), ToDevice::End(Digest::of(b"")), ToDevice::Close]
    {
        relay.push(message.clone()).unwrap();
        carry(&mut relay, &mut device, 3, now);
        assert_eq!(device.pop(now), Some(message));
    }
    for message in
        [ToRelay::Credit { from: Some(1), bytes: 2 }, ToRelay::Progress(Progress::new(3)), ToRelay::Close]
    {
        device.push(message.clone()).unwrap();
        carry(&mut device, &mut relay, 3, now);
        assert_eq!(relay.pop(now), Some(message));
    }
    device.close(None, now);
    assert_eq!((device.cause(), device.ended()), (Some(Cause::Closed), None));
    carry(&mut device, &mut relay, 1, now);
    assert_eq!(relay.ended(), Some(Cause::Peer(Some(close::NORMAL))));
    assert!(!relay.is_over(), "its answer is not written yet");
    carry(&mut relay, &mut device, 1, now);
    // RFC 6455 §7.1.1: the relay closes the connection first.
    assert!(relay.is_over() && relay.is_clean() && !device.is_over());
    device.end_of_stream();
    assert_eq!((device.is_over(), device.ended()), (true, Some(Cause::Closed)));
}

#[test]
fn b5_a_control_frame_or_word_waits_behind_no_more_than_what_is_written_ahead() {
    let now = start();
    let (mut relay, mut device) = (relay(now), device(now));
    relay.push(ToDevice::Header(HEADER.into())).unwrap();
    let mut pieces = 0;
    while relay.has_room() {
        relay.push(data(Sending::PIECE)).unwrap();
        pieces += 1;
    }
    assert!(pieces <= 2, "{pieces} pieces wait");
    // The first write is under way.
    let first = relay.chunk().len();
    assert!(first <= Sending::PIECE + 14, "{first} bytes at once");
    device.push(ToRelay::Credit { from: Some(0), bytes: 1 }).unwrap();
    carry(&mut device, &mut relay, usize::MAX, now);
    let mut ping = Vec::new();
    encode(&mut ping, OpCode::Control(Control::Ping), true, b"quick", Some(MASK()));
    relay.received(&ping, now);
    let frames = frames(&mut relay, Side::Client, now);
    let pong = frames.iter().position(|frame| matches!(frame, Frame::Pong(_))).unwrap();
    assert!(pong <= 2, "the pong came after {pong} messages");
}

#[test]
fn t26_a_peer_that_takes_nothing_is_lost_in_time_and_one_that_takes_a_little_is_not() {
    let now = start();
    let within = ChannelConfig::relay().write_within;
    let mut relay = relay(now);
    relay.push(data(Sending::PIECE)).unwrap();
    relay.written(0, now);
    relay.timeout(now + within - Duration::from_millis(1));
    assert!(!relay.is_over());
    relay.written(1, now + within - Duration::from_millis(1));
    relay.timeout(now + within + Duration::from_secs(1));
    assert!(!relay.is_over(), "a byte was taken");
    relay.timeout(now + within * 2);
    assert_eq!(relay.ended(), Some(Cause::Lost));
}

#[test]
fn l4_a_silent_peer_is_lost_unless_it_takes_in_what_is_written() {
    let config = ChannelConfig::relay();
    let (ping, answer) = (config.ping_every.unwrap(), config.answer_within);
    let begin = start();
    let mut relay = relay(begin);
    relay.timeout(begin + ping);
    assert!(matches!(frames(&mut relay, Side::Client, begin + ping)[..], [Frame::Ping(_)]));
    relay.timeout(begin + ping + answer);
    assert_eq!(relay.ended(), Some(Cause::Lost));

    // A slow link: the pong stands behind data for minutes, which go on being taken.
    let mut relay = self::relay(begin);
    let mut now = begin;
    for _ in 0..200 {
        now += Duration::from_secs(2);
        relay.timeout(now);
        if relay.has_room() {
            relay.push(data(Sending::PIECE)).unwrap();
        }
        let some = relay.chunk().len().min(4_000);
        relay.written(some, now);
    }
    assert!(!relay.is_over());
}

#[test]
fn l4_an_owner_that_does_not_listen_hides_its_peers_pong_and_does_not_lose_it() {
    let config = ChannelConfig::device();
    let now = start();
    let mut device = device(now);
    let mut relay = relay(now);
    relay.push(ToDevice::Header(HEADER.into())).unwrap();
    while device.wants_read() {
        relay.push(data(Sending::PIECE)).unwrap();
        carry(&mut relay, &mut device, usize::MAX, now);
    }
    let later = now + config.ping_every.unwrap();
    device.timeout(later);
    let mut at = later;
    for _ in 0..10 {
        at += config.answer_within;
        device.timeout(at);
    }
    assert!(!device.is_over());
    while device.pop(now).is_some() {}
    device.timeout(at + config.answer_within);
    assert_eq!(device.ended(), Some(Cause::Lost));
}

#[test]
fn b4_what_waits_for_the_owner_is_bounded_whatever_its_size() {
    for size in [0, 1, 100, Sending::PIECE] {
        let now = start();
        let (mut relay, mut device) = (relay(now), device(now));
        relay.push(ToDevice::Header(HEADER.into())).unwrap();
        let mut messages = 0_usize;
        while device.wants_read() {
            relay.push(data(size)).unwrap();
            carry(&mut relay, &mut device, 16 * 1024, now);
            messages += 1;
            assert!(messages < 10_000, "no bound");
        }
        let held = messages * (size + FLAT);
        assert!(held <= ChannelConfig::device().read_ahead + Sending::PIECE + FLAT, "{held} for {size}");
        device.pop(now);
        device.pop(now);
        if size == Sending::PIECE {
            assert!(device.wants_read(), "there is room again");
        }
    }
}

#[test]
fn b4_many_small_messages_that_come_at_once_are_kept_as_they_came_until_there_is_room() {
    const READ: usize = 16 * 1024;
    let now = start();
    let mut device = device(now);
    let mut bytes = Vec::new();
    encode(&mut bytes, OpCode::Data(Data::Text), true, HEADER.as_bytes(), None);
    let count = (READ - bytes.len() - 4) / 2;
    for _ in 0..count {
        encode(&mut bytes, OpCode::Data(Data::Binary), true, b"", None);
    }
    encode(&mut bytes, OpCode::Control(Control::Close), true, &close::NORMAL.to_be_bytes(), None);
    device.received(&bytes, now);
    assert!(!device.wants_read() && device.cause().is_none(), "it has not come to the Close");
    let bound = ChannelConfig::device().read_ahead + FLAT + HEADER.len() + READ;
    assert!(device.held() <= bound, "{} bytes are kept", device.held());
    assert_eq!(device.pop(now), Some(ToDevice::Header(HEADER.into())));
    for _ in 0..count {
        assert_eq!(device.pop(now), Some(data(0)));
        assert!(device.held() <= bound, "{} bytes are kept", device.held());
    }
    assert_eq!((device.pop(now), device.ended()), (None, Some(Cause::Peer(Some(close::NORMAL)))));
}

#[test]
fn b4_l2_a_ping_before_what_there_is_no_room_for_is_answered() {
    let now = start();
    let mut device = device(now);
    let mut bytes = Vec::new();
    encode(&mut bytes, OpCode::Data(Data::Text), true, HEADER.as_bytes(), None);
    for _ in 0..4 {
        encode(&mut bytes, OpCode::Data(Data::Binary), true, &vec![7; Sending::PIECE], None);
    }
    encode(&mut bytes, OpCode::Control(Control::Ping), true, b"?", None);
    encode(&mut bytes, OpCode::Data(Data::Binary), true, b"x", None);
    device.received(&bytes, now);
    assert!(!device.wants_read());
    assert_eq!(frames(&mut device, Side::Server, now), [Frame::Pong(b"?".into())]);
}

#[test]
fn x4_only_so_many_answers_can_be_saved_up() {
    let now = start();
    let mut config = ChannelConfig::relay();
    config.messages = Some((1, 5));
    let (mut relay, mut device) = (relay_with(config, now), device(now));
    for _ in 0..10_000 {
        relay.push(data(1)).unwrap();
        frames(&mut relay, Side::Client, now);
    }
    let mut said = 0;
    while relay.cause().is_none() {
        device.push(ToRelay::Credit { from: None, bytes: 1 }).unwrap();
        carry(&mut device, &mut relay, usize::MAX, now);
        while relay.pop(now).is_some() {}
        said += 1;
    }
    assert_eq!(said, MAX_ANSWERS + 5 + 1);
    assert!(matches!(relay.cause(), Some(Cause::Fault(fault)) if fault.code == close::POLICY));
}

#[test]
fn f32_without_its_owner_an_open_channel_breaks_and_a_closing_one_goes_on() {
    let now = start();
    let mut relay = relay(now);
    relay.abandon(now);
    assert_eq!((relay.is_over(), relay.cause()), (true, Some(Cause::Lost)));
    let mut relay = self::relay(now);
    relay.close(None, now);
    relay.abandon(now);
    assert!(!relay.is_over() && relay.wants_write());
    relay.timeout(now + ChannelConfig::relay().close_within);
    assert!(relay.is_over());
}

#[test]
fn c1_nothing_follows_the_close() {
    let now = start();
    let mut device = device(now);
    device.push(ToRelay::Done { version: None }).unwrap();
    device.close(None, now);
    device.close(None, now);
    device.push(ToRelay::Close).unwrap();
    let frames = frames(&mut device, Side::Server, now);
    assert!(matches!(frames[..], [Frame::Text(_), Frame::Close(Some(close::NORMAL))]), "{frames:?}");
}

proptest! {
    /// Whatever comes, in whatever pieces: no panic, the bounds hold, and an end is the end.
    #[test]
    fn hostile_bytes_do_no_harm(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40),
        seconds in proptest::collection::vec(0u64..20, 40),
    ) {
        let mut now = start();
        let (mut relay, mut device) = (relay(now), device(now));
        for (chunk, seconds) in chunks.iter().zip(seconds) {
            now += Duration::from_secs(seconds);
            relay.timeout(now);
            device.timeout(now);
            relay.received(chunk, now);
            device.received(chunk, now);
            let causes = (relay.cause(), device.cause());
            frames(&mut relay, Side::Client, now);
            frames(&mut device, Side::Server, now);
            prop_assert!(relay.inbox_bytes <= relay.config.read_ahead + 200 * (FLAT + 1));
            prop_assert_eq!(causes.0.is_some() && relay.cause().is_none(), false);
            if let (Some(before), after) = (causes.1, device.cause()) {
                prop_assert_eq!(Some(before), after);
            }
        }
    }

    /// Messages cross whole and in order, whatever the pieces.
    #[test]
    fn messages_cross_in_order(
        sizes in proptest::collection::vec(0usize..40_000, 1..20),
        at_a_time in 1usize..30_000,
    ) {
        let now = start();
        let (mut relay, mut device) = (relay(now), device(now));
        relay.push(ToDevice::Header(HEADER.into())).unwrap();
        carry(&mut relay, &mut device, at_a_time, now);
        prop_assert_eq!(device.pop(now), Some(ToDevice::Header(HEADER.into())));
        for size in sizes {
            relay.push(data(size)).unwrap();
            carry(&mut relay, &mut device, at_a_time, now);
            prop_assert_eq!(device.pop(now), Some(data(size)));
        }
    }
}
