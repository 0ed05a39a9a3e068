//! RFC 6455 once more, read from the RFC and for nothing but judging: all the bytes of one direction in, what they say and
//! where they go wrong out. It shares no line with the product.

/// What holds for one direction.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether it is from the client (§5.1).
    pub masked: bool,
    pub frame: usize,
    pub message: usize,
    pub fragments: usize,
    pub binary: bool,
}

/// How it stands after all of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// More may come. `doomed`: what there is of the next frame may be refused before it is there whole.
    Open { doomed: bool },
    /// A Close came: its code, and how many bytes came after it.
    Closed { code: Option<u16>, after: usize },
    /// A rule was broken: each of these codes says so.
    Broken { codes: Vec<u16> },
}

/// What was said until then.
#[derive(Debug)]
pub struct Said {
    pub texts: Vec<Vec<u8>>,
    pub binaries: usize,
    pub pings: Vec<Vec<u8>>,
    pub pongs: Vec<Vec<u8>>,
    pub end: End,
}

/// §7.4.1, §7.4.2 and the registry that they set up: what may stand in a Close frame.
pub fn may_travel(code: u16) -> bool {
    match code {
        1000 | 1001 | 1002 | 1003 => true,
        1007 | 1008 | 1009 | 1010 | 1011 | 1012 | 1013 | 1014 => true,
        3000..=4999 => true,
        _ => false,
    }
}

struct Header {
    fin: bool,
    reserved: u8,
    opcode: u8,
    masked: bool,
    length: u64,
    shortest: bool,
    key: [u8; 4],
    size: usize,
}

/// §5.2.
fn header(bytes: &[u8]) -> Option<Header> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (length, mut size) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let masked = second & 0x80 != 0;
    let mut key = [0; 4];
    if masked {
        key = bytes.get(size..size + 4)?.try_into().ok()?;
        size += 4;
    }
    let shortest = match second & 0x7f {
        126 => length > 125,
        127 => length > 0xffff && length >> 63 == 0,
        _ => true,
    };
    let (fin, reserved, opcode) = (first & 0x80 != 0, first >> 4 & 7, first & 15);
    Some(Header { fin, reserved, opcode, masked, length, shortest, key, size })
}

struct Message {
    text: bool,
    bytes: Vec<u8>,
    frames: usize,
}

/// Whether `bytes` are UTF-8, or could become it.
fn utf8(bytes: &[u8], whole: bool) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none() && !whole,
    }
}

pub fn judge(all: &[u8], rules: &Rules) -> Said {
    let mut said =
        Said { texts: vec![], binaries: 0, pings: vec![], pongs: vec![], end: End::Open { doomed: false } };
    let mut message: Option<Message> = None;
    let mut rest = all;
    while let Some(header) = header(rest) {
        let control = header.opcode >= 8;
        let mut codes = vec![];
        // §5.2, §5.1, §5.5, §5.4.
        let protocol = header.reserved != 0
            || !matches!(header.opcode, 0 | 1 | 2 | 8 | 9 | 10)
            || header.masked != rules.masked
            || !header.shortest
            || control && (!header.fin || header.length > 125)
            || header.opcode == 0 && message.is_none()
            || matches!(header.opcode, 1 | 2) && message.is_some();
        if protocol {
            codes.push(1002);
        }
        if !control {
            let (length, frames) =
                message.as_ref().map_or((0, 0), |message| (message.bytes.len(), message.frames));
            let message = header.length.saturating_add(length as u64);
            if header.length > rules.frame as u64
                || message > rules.message as u64
                || frames + 1 > rules.fragments
            {
                codes.push(1009);
            }
            if header.opcode == 2 && !rules.binary {
                codes.push(1003);
            }
        }
        if !codes.is_empty() {
            said.end = End::Broken { codes };
            return said;
        }
        let length = header.length as usize;
        let payload = &rest[header.size..];
        let whole = payload.len() >= length;
        let mut payload = payload[..length.min(payload.len())].to_vec();
        for (at, byte) in payload.iter_mut().enumerate() {
            *byte ^= header.key[at % 4];
        }
        if !control {
            let message =
                message.get_or_insert(Message { text: header.opcode == 1, bytes: vec![], frames: 0 });
            message.frames += 1;
            message.bytes.extend_from_slice(&payload);
            // §8.1.
            if message.text && !utf8(&message.bytes, whole && header.fin) {
                said.end = if whole { End::Broken { codes: vec![1007] } } else { End::Open { doomed: true } };
                return said;
            }
        }
        if !whole {
            return said;
        }
        rest = &rest[header.size + length..];
        match header.opcode {
            8 => {
                // §5.5.1, §7.1.5.
                said.end = match payload.split_first_chunk() {
                    None if payload.is_empty() => End::Closed { code: None, after: rest.len() },
                    None => End::Broken { codes: vec![1002] },
                    Some((code, _)) if !may_travel(u16::from_be_bytes(*code)) => {
                        End::Broken { codes: vec![1002] }
                    }
                    Some((_, words)) if !utf8(words, true) => End::Broken { codes: vec![1007] },
                    Some((code, _)) => {
                        End::Closed { code: Some(u16::from_be_bytes(*code)), after: rest.len() }
                    }
                };
                return said;
            }
            9 => said.pings.push(payload),
            10 => said.pongs.push(payload),
            _ if header.fin => match message.take() {
                Some(Message { text: true, bytes, .. }) => said.texts.push(bytes),
                _ => said.binaries += 1,
            },
            _ => {}
        }
    }
    let reserved = |first: &u8| !matches!(first & 15, 0 | 1 | 2 | 8 | 9 | 10);
    said.end = End::Open { doomed: rest.first().is_some_and(reserved) };
    said
}
