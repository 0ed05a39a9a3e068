//! Frames (RFC 6455 §5): from bytes to whole messages and control frames, and back.
//!
//! The headers are tungstenite's to read and write. Putting messages together is done here, because its own reader has
//! no bound on the number of fragments, reserves what a header announces rather than what came, and takes lengths that
//! are not minimal.

use std::io::Cursor;

use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use crate::wire::close;

/// The longest header: 2 bytes, 8 of length, 4 of mask.
const MAX_HEADER: usize = 14;
/// The longest payload of a control frame (RFC 6455 §5.5).
pub const MAX_CONTROL: usize = 125;

/// What a peer may send in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameLimits {
    /// Payload of one frame, in bytes (64 KiB).
    pub frame: usize,
    /// One message, in bytes (256 KiB).
    pub message: usize,
    /// Frames of one message (64).
    pub fragments: usize,
    /// Whether messages may be binary (no).
    pub binary: bool,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { frame: 64 * 1024, message: 256 * 1024, fragments: 64, binary: false }
    }
}

/// A rule that the peer broke: the close code, and words for both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Fault {
    /// What to close with.
    pub code: u16,
    /// What was wrong.
    pub words: &'static str,
}

impl Fault {
    pub(crate) const fn new(code: u16, words: &'static str) -> Self {
        Self { code, words }
    }

    const fn protocol(words: &'static str) -> Self {
        Self::new(close::PROTOCOL, words)
    }

    const fn too_big(words: &'static str) -> Self {
        Self::new(close::TOO_BIG, words)
    }
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// A whole text message: UTF-8.
    Text(Vec<u8>),
    /// A whole binary message.
    Binary(Vec<u8>),
    /// A ping, to be answered with the same payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// The peer's last frame: its code, if it has one.
    Close(Option<u16>),
}

/// Which end reads: the one that dialled gets frames without a mask, the other with (RFC 6455 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It dialled.
    Client,
    /// It listened.
    Server,
}

#[derive(Debug)]
struct Message {
    text: bool,
    bytes: Vec<u8>,
    /// How much of a text is known to be UTF-8.
    checked: usize,
    fragments: usize,
}

#[derive(Debug)]
struct Frame {
    header: FrameHeader,
    left: usize,
    /// Bytes unmasked so far.
    at: usize,
}

impl Frame {
    fn is_control(&self) -> bool {
        matches!(self.header.opcode, OpCode::Control(_))
    }
}

/// Puts frames together. Keeps no byte more than it was given.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    limits: FrameLimits,
    /// The start of a header whose rest has not come.
    stash: [u8; MAX_HEADER],
    stashed: usize,
    frame: Option<Frame>,
    control: Vec<u8>,
    message: Option<Message>,
}

impl Decoder {
    /// A decoder for the end `side`.
    pub const fn new(side: Side, limits: FrameLimits) -> Self {
        Self {
            side,
            limits,
            stash: [0; MAX_HEADER],
            stashed: 0,
            frame: None,
            control: Vec::new(),
            message: None,
        }
    }

    /// Reads from `bytes`, which it moves on, to the next whole thing; `None` if that has not come yet. If `data` is not
    /// wanted now, it reads control frames alone, and stops at the first other one.
    ///
    /// # Errors
    /// [`Fault`]: the rule that the peer broke. There is nothing to be read after it.
    pub fn next(&mut self, bytes: &mut &[u8], data: bool) -> Result<Option<Received>, Fault> {
        loop {
            if self.frame.is_none() && !self.header(bytes)? {
                return Ok(None);
            }
            let Some(frame) = &mut self.frame else { return Ok(None) };
            if !data && !frame.is_control() {
                return Ok(None);
            }
            let some = frame.left.min(bytes.len());
            let (payload, rest) = bytes.split_at(some);
            *bytes = rest;
            frame.left -= some;
            let target = match (&mut self.message, frame.is_control()) {
                (Some(message), false) => &mut message.bytes,
                _ => &mut self.control,
            };
            let start = target.len();
            target.extend_from_slice(payload);
            if let Some(key) = frame.header.mask {
                mask(&mut target[start..], key, frame.at);
            }
            frame.at += some;
            let (done, is_control) = (frame.left == 0, frame.is_control());
            if !is_control {
                self.check_text(done)?;
            }
            if !done {
                return Ok(None);
            }
            if let Some(received) = self.finish()? {
                return Ok(Some(received));
            }
        }
    }

    /// Whether it is in the middle of a frame or a message.
    pub fn is_amid(&self) -> bool {
        self.stashed > 0 || self.frame.is_some() || self.message.is_some()
    }

    /// Bytes that it keeps room for.
    pub fn held(&self) -> usize {
        let message = self.message.as_ref().map_or(0, |message| message.bytes.capacity());
        self.control.capacity() + message
    }

    /// Reads a header; whether it is there whole.
    fn header(&mut self, bytes: &mut &[u8]) -> Result<bool, Fault> {
        if bytes.is_empty() {
            return Ok(false);
        }
        // Most headers come whole; the others are put together in the stash.
        let parsed = if self.stashed == 0 {
            let parsed = parse(bytes)?;
            match &parsed {
                Some((_, _, size)) => *bytes = &bytes[*size..],
                None => {
                    self.stash[..bytes.len()].copy_from_slice(bytes);
                    self.stashed = bytes.len();
                    *bytes = &[];
                }
            }
            parsed
        } else {
            let mut parsed = None;
            while let (None, Some((&byte, rest))) = (&parsed, bytes.split_first()) {
                self.stash[self.stashed] = byte;
                self.stashed += 1;
                *bytes = rest;
                parsed = parse(&self.stash[..self.stashed])?;
            }
            if parsed.is_some() {
                self.stashed = 0;
            }
            parsed
        };
        let Some((header, length, size)) = parsed else { return Ok(false) };
        let left = self.admit(&header, length, size)?;
        self.frame = Some(Frame { header, left, at: 0 });
        Ok(true)
    }

    /// Judges a header by everything that can be known from it, so that nothing is kept of what is refused.
    fn admit(&mut self, header: &FrameHeader, length: u64, size: usize) -> Result<usize, Fault> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Fault::protocol("reserved bits are set, and no extension was agreed on"));
        }
        match (self.side, header.mask) {
            (Side::Server, None) => return Err(Fault::protocol("a frame to the relay is not masked")),
            (Side::Client, Some(_)) => return Err(Fault::protocol("a frame from the relay is masked")),
            _ => {}
        }
        // RFC 6455 §5.2: the minimal number of bytes must be used, and the most significant bit must be 0.
        if header.len(length) != size || length > i64::MAX as u64 {
            return Err(Fault::protocol("a length is not in its shortest form"));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = match header.opcode {
            OpCode::Control(_) => {
                if !header.is_final || length > MAX_CONTROL {
                    return Err(Fault::protocol("a control frame is fragmented or has more than 125 bytes"));
                }
                self.control.clear();
                return Ok(length);
            }
            OpCode::Data(data) => data,
        };
        if length > self.limits.frame {
            return Err(Fault::too_big("a frame is too big"));
        }
        let (so_far, fragments) = match (&mut self.message, data) {
            (None, Data::Continue) => return Err(Fault::protocol("a continuation of no message")),
            (Some(_), Data::Text | Data::Binary) => {
                return Err(Fault::protocol("a message begins inside another"));
            }
            (Some(message), Data::Continue) => {
                message.fragments += 1;
                (message.bytes.len(), message.fragments)
            }
            (None, Data::Binary) if !self.limits.binary => {
                return Err(Fault::new(close::UNSUPPORTED, "messages here are text"));
            }
            (None, Data::Text | Data::Binary) => {
                let text = data == Data::Text;
                self.message = Some(Message { text, bytes: Vec::new(), checked: 0, fragments: 1 });
                (0, 1)
            }
            (_, Data::Reserved(_)) => return Err(Fault::protocol("an opcode is reserved")),
        };
        if so_far.saturating_add(length) > self.limits.message {
            return Err(Fault::too_big("a message is too big"));
        }
        if fragments > self.limits.fragments {
            return Err(Fault::too_big("a message has too many fragments"));
        }
        Ok(length)
    }

    /// RFC 6455 §8.1: text is UTF-8 over the whole message; a character may be split between two frames.
    fn check_text(&mut self, frame_done: bool) -> Result<(), Fault> {
        let last = frame_done && self.frame.as_ref().is_some_and(|frame| frame.header.is_final);
        let Some(message) = self.message.as_mut().filter(|message| message.text) else { return Ok(()) };
        match std::str::from_utf8(&message.bytes[message.checked..]) {
            Ok(_) => message.checked = message.bytes.len(),
            Err(error) if error.error_len().is_none() && !last => message.checked += error.valid_up_to(),
            Err(_) => return Err(Fault::new(close::INVALID, "text is not UTF-8")),
        }
        Ok(())
    }

    /// Makes something of a frame that is there whole.
    fn finish(&mut self) -> Result<Option<Received>, Fault> {
        let Some(Frame { header, .. }) = self.frame.take() else { return Ok(None) };
        let control = match header.opcode {
            OpCode::Control(control) => control,
            OpCode::Data(_) if !header.is_final => return Ok(None),
            OpCode::Data(_) => {
                return Ok(self.message.take().map(|message| match message.text {
                    true => Received::Text(message.bytes),
                    false => Received::Binary(message.bytes),
                }));
            }
        };
        let payload = std::mem::take(&mut self.control);
        Ok(Some(match control {
            Control::Ping => Received::Ping(payload),
            Control::Pong => Received::Pong(payload),
            _ => Received::Close(close_code(&payload)?),
        }))
    }
}

/// A header at the start of `bytes`: it, the payload's length, and its own.
fn parse(bytes: &[u8]) -> Result<Option<(FrameHeader, u64, usize)>, Fault> {
    let mut cursor = Cursor::new(bytes);
    match FrameHeader::parse(&mut cursor) {
        Ok(parsed) => {
            let size = usize::try_from(cursor.position()).unwrap_or(MAX_HEADER);
            Ok(parsed.map(|(header, length)| (header, length, size)))
        }
        Err(_) => Err(Fault::protocol("an opcode is reserved")),
    }
}

/// RFC 6455 §5.5.1, §7.4: two bytes of code and words in UTF-8, or nothing.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Fault> {
    let Some((code, words)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(Fault::protocol("a close frame has one byte, which is no code"))
        };
    };
    let code = u16::from_be_bytes(*code);
    if !close::may_travel(code) {
        return Err(Fault::protocol("a close code is one that must not be sent"));
    }
    if std::str::from_utf8(words).is_err() {
        return Err(Fault::new(close::INVALID, "the words of a close frame are not UTF-8"));
    }
    Ok(Some(code))
}

/// RFC 6455 §5.3, beginning `at` bytes into the payload.
fn mask(bytes: &mut [u8], key: [u8; 4], at: usize) {
    let mut key = key;
    key.rotate_left(at % 4);
    let mut words = bytes.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, key) in word.iter_mut().zip(key) {
            *byte ^= key;
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// Appends one frame to `out`; masked with `key`, if there is one.
pub fn encode(out: &mut Vec<u8>, opcode: OpCode, is_final: bool, payload: &[u8], key: Option<[u8; 4]>) {
    let header = FrameHeader { is_final, opcode, mask: key, ..FrameHeader::default() };
    let length = payload.len() as u64;
    out.reserve_exact(header.len(length) + payload.len());
    // Writing to a vector cannot fail.
    let _ = header.format(length, out);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = key {
        mask(&mut out[start..], key, 0);
    }
}

/// The payload of a close frame: `words` are cut to what fits, at a character.
pub fn close_payload(code: u16, words: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    let end = words.floor_char_boundary(MAX_CONTROL - payload.len());
    payload.extend_from_slice(&words.as_bytes()[..end]);
    payload
}

#[cfg(test)]
#[path = "frame_tests.rs"]
pub(super) mod tests;
