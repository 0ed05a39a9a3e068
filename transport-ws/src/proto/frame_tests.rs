//! Frames by their bytes: what is taken, what is refused and with which code, in pieces of any size.

use proptest::prelude::*;

use super::*;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const TEXT: OpCode = OpCode::Data(Data::Text);
const BINARY: OpCode = OpCode::Data(Data::Binary);
const MORE: OpCode = OpCode::Data(Data::Continue);
const PING: OpCode = OpCode::Control(Control::Ping);
const CLOSE: OpCode = OpCode::Control(Control::Close);

fn frame(opcode: OpCode, last: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, opcode, last, payload, Some(KEY));
    bytes
}

fn read_by(limits: FrameLimits, bytes: &[u8], at_a_time: usize) -> Result<Vec<Received>, u16> {
    let mut decoder = Decoder::new(Side::Server, limits);
    let mut received = Vec::new();
    for chunk in bytes.chunks(at_a_time) {
        let mut chunk = chunk;
        while let Some(one) = decoder.next(&mut chunk, true).map_err(|fault| fault.code)? {
            received.push(one);
        }
        assert!(chunk.is_empty(), "bytes were left");
    }
    Ok(received)
}

fn read(bytes: &[u8]) -> Result<Vec<Received>, u16> {
    let whole = read_by(FrameLimits::default(), bytes, usize::MAX);
    for at_a_time in [1, 2, 3, 7] {
        let in_pieces = read_by(FrameLimits::default(), bytes, at_a_time);
        assert_eq!(in_pieces, whole, "{at_a_time} bytes at a time");
    }
    whole
}

fn text(text: &str) -> Received {
    Received::Text(text.as_bytes().to_vec())
}

#[test]
fn the_examples_of_the_rfc_are_read() {
    // RFC 6455 §5.7: a masked text frame.
    let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(read(&bytes), Ok(vec![text("Hello")]));
    assert_eq!(frame(TEXT, true, b"Hello"), bytes);
    // And at the other end, unmasked, whole and in two fragments.
    let mut client = Decoder::new(Side::Client, FrameLimits::default());
    let bytes =
        [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f];
    let mut rest = &bytes[..];
    assert_eq!(client.next(&mut rest, true), Ok(Some(text("Hello"))));
    assert_eq!(client.next(&mut rest, true), Ok(Some(text("Hello"))));
    assert_eq!(client.next(&mut rest, true), Ok(None));
    assert!(!client.is_amid());
}

#[test]
fn f6_a_ping_may_stand_between_fragments() {
    let bytes = [
        frame(TEXT, false, b"one "),
        frame(PING, true, b"?"),
        frame(MORE, false, b""),
        frame(MORE, true, b"two"),
    ];
    assert_eq!(read(&bytes.concat()), Ok(vec![Received::Ping(b"?".into()), text("one two")]));
}

#[test]
fn f7_a_character_may_be_split_between_frames_and_must_be_whole_in_the_end() {
    let printer = "a 🖨 b".as_bytes();
    for split in 0..=printer.len() {
        let bytes = [frame(TEXT, false, &printer[..split]), frame(MORE, true, &printer[split..])].concat();
        assert_eq!(read(&bytes), Ok(vec![text("a 🖨 b")]), "split at {split}");
    }
    let half = [frame(TEXT, false, &printer[..4]), frame(MORE, true, b"")].concat();
    assert_eq!(read(&half), Err(1007), "half a character at the end");
    for bad in [&b"\xff"[..], b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xf0\x9f"] {
        assert_eq!(read(&frame(TEXT, true, bad)), Err(1007), "{bad:?}");
    }
    // As soon as it is seen, not only when the message is whole.
    assert_eq!(read(&frame(TEXT, false, b"\xff")), Err(1007));
}

#[test]
fn t29_reserved_bits_opcodes_and_missing_masks_are_refused() {
    for bit in [0x40, 0x20, 0x10] {
        let mut bytes = frame(TEXT, true, b"a");
        bytes[0] |= bit;
        assert_eq!(read(&bytes), Err(1002), "bit {bit:x}");
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        let mut bytes = frame(TEXT, true, b"a");
        bytes[0] = 0x80 | opcode;
        assert_eq!(read(&bytes), Err(1002), "opcode {opcode}");
    }
    let mut unmasked = Vec::new();
    encode(&mut unmasked, TEXT, true, b"a", None);
    assert_eq!(read(&unmasked), Err(1002));
    let mut client = Decoder::new(Side::Client, FrameLimits::default());
    assert_eq!(client.next(&mut &frame(TEXT, true, b"a")[..], true).unwrap_err().code, 1002);
}

#[test]
fn f9_fragments_out_of_place_are_refused() {
    assert_eq!(read(&frame(MORE, true, b"a")), Err(1002));
    assert_eq!(read(&[frame(TEXT, false, b"a"), frame(TEXT, true, b"b")].concat()), Err(1002));
    assert_eq!(read(&[frame(TEXT, true, b"a"), frame(MORE, true, b"b")].concat()), Err(1002));
    assert_eq!(read(&frame(PING, false, b"a")), Err(1002));
    assert_eq!(read(&frame(BINARY, true, b"a")), Err(1003));
    let binary = FrameLimits { binary: true, ..FrameLimits::default() };
    assert_eq!(read_by(binary, &frame(BINARY, true, b"\xff"), 1), Ok(vec![Received::Binary(vec![0xff])]));
}

#[test]
fn f6_control_frames_have_125_bytes_at_most() {
    assert_eq!(read(&frame(PING, true, &[b'x'; 125])), Ok(vec![Received::Ping(vec![b'x'; 125])]));
    assert_eq!(read(&frame(PING, true, &[b'x'; 126])), Err(1002));
    assert_eq!(read(&frame(CLOSE, true, &[b'x'; 126])), Err(1002));
}

/// A header with its length in `form`: 7 bits, or 2 or 8 bytes.
fn header(first: u8, form: usize, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match form {
        2 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        8 => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        _ => bytes.push(0x80 | length as u8),
    }
    bytes.extend_from_slice(&KEY);
    bytes
}

#[test]
fn t28_lengths_are_minimal_and_what_is_announced_is_not_kept_room_for() {
    for (form, length, code) in [
        (2, 0, 1002),
        (2, 125, 1002),
        (8, 0, 1002),
        (8, 65_535, 1002),
        (8, 65_536, 0),
        (8, 65_537, 1009),
        (8, 1 << 40, 1009),
        (8, i64::MAX as u64, 1009),
        (8, 1 << 63, 1002),
        (8, u64::MAX, 1002),
    ] {
        let bytes = header(0x81, form, length);
        let read = read(&bytes);
        assert_eq!(read.err().unwrap_or(0), code, "{length} in {form} bytes");
    }
    let mut decoder = Decoder::new(Side::Server, FrameLimits::default());
    assert_eq!(decoder.next(&mut &header(0x81, 8, 65_536)[..], true), Ok(None));
    let kept = decoder.message.as_ref().map_or(0, |message| message.bytes.capacity());
    assert_eq!(kept, 0, "a header makes no room");
}

#[test]
fn b3_frames_messages_and_fragments_have_bounds_to_the_byte() {
    let limits = FrameLimits { frame: 100, message: 250, fragments: 4, binary: false };
    let whole = |sizes: &[usize]| {
        let last = sizes.len() - 1;
        let frames = sizes
            .iter()
            .enumerate()
            .map(|(n, &size)| frame(if n == 0 { TEXT } else { MORE }, n == last, &vec![b'x'; size]));
        read_by(limits, &frames.collect::<Vec<_>>().concat(), 64).map(|received| received.len())
    };
    assert_eq!(whole(&[100]), Ok(1));
    assert_eq!(whole(&[101]), Err(1009));
    assert_eq!(whole(&[100, 100, 50]), Ok(1));
    assert_eq!(whole(&[100, 100, 51]), Err(1009));
    assert_eq!(whole(&[0, 0, 0, 1]), Ok(1));
    assert_eq!(whole(&[0, 0, 0, 0, 1]), Err(1009));
    // The bounds are of each message anew.
    let twice = [frame(TEXT, true, &[b'x'; 100]), frame(TEXT, true, &[b'x'; 100])].concat();
    assert_eq!(read_by(limits, &twice, 1000).map(|received| received.len()), Ok(2));
}

#[test]
fn c5_close_frames_have_a_code_that_may_travel_or_nothing() {
    let close = |payload: &[u8]| read(&frame(CLOSE, true, payload));
    assert_eq!(close(b""), Ok(vec![Received::Close(None)]));
    assert_eq!(close(&close_payload(4001, "go")), Ok(vec![Received::Close(Some(4001))]));
    assert_eq!(close(b"\x03"), Err(1002));
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
        assert_eq!(close(&code.to_be_bytes()), Err(1002), "{code}");
    }
    assert_eq!(close(b"\x03\xe8\xff"), Err(1007));
}

#[test]
fn f6_the_words_of_a_close_frame_are_cut_at_a_character() {
    let payload = close_payload(1000, &"ä".repeat(100));
    assert_eq!(payload.len(), 2 + 122);
    assert!(std::str::from_utf8(&payload[2..]).is_ok());
}

#[test]
fn data_waits_where_only_control_is_wanted() {
    let bytes = [frame(PING, true, b"1"), frame(TEXT, true, b"later"), frame(PING, true, b"2")].concat();
    let mut decoder = Decoder::new(Side::Server, FrameLimits::default());
    let mut rest = &bytes[..];
    assert_eq!(decoder.next(&mut rest, false), Ok(Some(Received::Ping(b"1".into()))));
    assert_eq!(decoder.next(&mut rest, false), Ok(None));
    assert!(!rest.is_empty());
    assert_eq!(decoder.next(&mut rest, true), Ok(Some(text("later"))));
    assert_eq!(decoder.next(&mut rest, true), Ok(Some(Received::Ping(b"2".into()))));
}

#[derive(Debug, Clone)]
enum Sent {
    Text(String, Vec<usize>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn sent() -> impl Strategy<Value = Sent> {
    let payload = || proptest::collection::vec(any::<u8>(), 0..=125);
    prop_oneof![
        ("\\PC{0,300}", proptest::collection::vec(0usize..200, 0..6))
            .prop_map(|(text, cuts)| Sent::Text(text, cuts)),
        payload().prop_map(Sent::Ping),
        payload().prop_map(Sent::Pong),
    ]
}

/// The frames of one thing: a text is cut anywhere, also within characters.
fn frames(sent: &Sent) -> Vec<Vec<u8>> {
    let key = Some([1, 2, 3, 4]);
    let one = |opcode, last, payload: &[u8]| {
        let mut bytes = Vec::new();
        encode(&mut bytes, opcode, last, payload, key);
        bytes
    };
    match sent {
        Sent::Ping(payload) => vec![one(PING, true, payload)],
        Sent::Pong(payload) => vec![one(OpCode::Control(Control::Pong), true, payload)],
        Sent::Text(text, cuts) => {
            let mut rest = text.as_bytes();
            let mut frames = Vec::new();
            for cut in cuts {
                let (some, more) = rest.split_at((*cut).min(rest.len()));
                frames.push(one(if frames.is_empty() { TEXT } else { MORE }, false, some));
                rest = more;
            }
            frames.push(one(if frames.is_empty() { TEXT } else { MORE }, true, rest));
            frames
        }
    }
}

proptest! {
    /// Whatever is sent comes out as it went in, however it is cut into frames and the frames into reads.
    #[test]
    fn what_is_sent_is_what_is_received(all in proptest::collection::vec(sent(), 0..12), at_a_time in 1usize..500) {
        let bytes: Vec<u8> = all.iter().flat_map(frames).flatten().collect();
        let expected: Vec<_> = all.iter().map(|sent| match sent {
            Sent::Text(text, _) => Received::Text(text.clone().into_bytes()),
            Sent::Ping(payload) => Received::Ping(payload.clone()),
            Sent::Pong(payload) => Received::Pong(payload.clone()),
        }).collect();
        prop_assert_eq!(read_by(FrameLimits::default(), &bytes, at_a_time), Ok(expected));
    }

    /// No bytes make it panic, and it keeps no more of them than it got.
    #[test]
    fn t29_any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), at_a_time in 1usize..100) {
        let mut decoder = Decoder::new(Side::Server, FrameLimits::default());
        'all: for chunk in bytes.chunks(at_a_time) {
            let mut chunk = chunk;
            loop {
                match decoder.next(&mut chunk, true) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(fault) => {
                        prop_assert!(close::may_travel(fault.code));
                        break 'all;
                    }
                }
            }
        }
    }
}

/// Opcodes by name, for the machine's tests.
#[derive(Debug, Clone, Copy)]
pub(in crate::proto) struct Op(pub(in crate::proto) OpCode);

impl Op {
    pub(in crate::proto) const TEXT: Self = Self(TEXT);
    pub(in crate::proto) const PING: Self = Self(PING);
    pub(in crate::proto) const PONG: Self = Self(OpCode::Control(Control::Pong));
    pub(in crate::proto) const CLOSE: Self = Self(CLOSE);
}
