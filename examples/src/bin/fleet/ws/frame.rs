//! Frames as a device writes and reads them (RFC 6455 §5.2), one message a frame: what the relay and the forwarder send is
//! never so long that they would split it.

/// A frame that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Text(&'a str),
    Ping(&'a [u8]),
    Pong,
    /// The code, if there is one.
    Close(Option<u16>),
}

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
/// Says that the length is in the next two bytes.
const LENGTH_16: u8 = 126;
/// Says that it is in the next eight.
const LENGTH_64: u8 = 127;

/// The frame at the beginning of `bytes`, and its size; `None` if more bytes are needed.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, String> {
    let Some((&[first, second], rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let (length, rest) = match second {
        LENGTH_16 => match rest.split_first_chunk() {
            Some((&length, rest)) => (usize::from(u16::from_be_bytes(length)), rest),
            None => return Ok(None),
        },
        LENGTH_64.. => return Err(format!("a frame that begins with {first:#x}, {second:#x}")),
        short => (usize::from(short), rest),
    };
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let frame = match first.checked_sub(FINAL) {
        Some(TEXT) => Frame::Text(std::str::from_utf8(payload).map_err(|error| error.to_string())?),
        Some(PING) => Frame::Ping(payload),
        Some(PONG) => Frame::Pong,
        Some(CLOSE) => Frame::Close(payload.first_chunk().copied().map(u16::from_be_bytes)),
        _ => return Err(format!("a frame that begins with {first:#x}")),
    };
    Ok(Some((frame, bytes.len() - rest.len() + length)))
}

/// Appends a text message, masked with `key`.
pub(super) fn text(out: &mut Vec<u8>, key: [u8; 4], text: &str) -> Result<(), String> {
    write(out, TEXT, key, text.as_bytes())
}

/// Appends the answer to a ping.
pub(super) fn pong(out: &mut Vec<u8>, key: [u8; 4], payload: &[u8]) -> Result<(), String> {
    write(out, PONG, key, payload)
}

fn write(out: &mut Vec<u8>, opcode: u8, key: [u8; 4], payload: &[u8]) -> Result<(), String> {
    out.push(FINAL | opcode);
    match u8::try_from(payload.len()) {
        Ok(length) if length < LENGTH_16 => out.push(MASKED | length),
        _ => {
            let length = u16::try_from(payload.len()).map_err(|_| "a message too long for one frame")?;
            out.push(MASKED | LENGTH_16);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_own_frames_are_read_and_written() {
        // RFC 6455 §5.7.
        assert_eq!(read(b"\x81\x05Hello"), Ok(Some((Frame::Text("Hello"), 7))));
        assert_eq!(read(b"\x89\x05Hello"), Ok(Some((Frame::Ping(b"Hello"), 7))));
        let mut out = Vec::new();
        text(&mut out, [0x37, 0xfa, 0x21, 0x3d], "Hello").unwrap();
        assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        let mut out = Vec::new();
        pong(&mut out, [0x37, 0xfa, 0x21, 0x3d], b"Hello").unwrap();
        assert_eq!(out, b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    }

    #[test]
    fn either_form_of_a_length_ends_where_it_says() {
        for length in [0, 1, 125, 126, 300, 65_535] {
            let long = "x".repeat(length);
            let mut written = Vec::new();
            text(&mut written, [0; 4], &long).unwrap();
            // What a server sends is the same without a mask.
            let header = written.len() - length - 4;
            written.drain(header..header + 4);
            written[1] &= !MASKED;
            for part in 0..written.len() {
                assert_eq!(read(&written[..part]), Ok(None), "{part} of {length}");
            }
            let size = written.len();
            written.extend_from_slice(b"\x81");
            assert_eq!(read(&written), Ok(Some((Frame::Text(&long), size))));
        }
        assert!(text(&mut Vec::new(), [0; 4], &"x".repeat(65_536)).is_err());
    }

    #[test]
    fn a_close_has_a_code_or_none() {
        assert_eq!(read(b"\x88\x00"), Ok(Some((Frame::Close(None), 2))));
        assert_eq!(read(b"\x88\x02\x0f\xa1"), Ok(Some((Frame::Close(Some(4001)), 4))));
    }

    #[test]
    fn what_the_server_would_not_send_is_an_error() {
        for bytes in [b"\x01\x00", b"\x82\x00", b"\xc1\x00", b"\x81\x80", b"\x81\x7f", b"\x80\x00"] {
            assert!(read(bytes).is_err(), "{bytes:x?}");
        }
    }
}
