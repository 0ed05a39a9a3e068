//! A device on a WebSocket by hand: it answers what it is asked, or stops reading when that is wanted of it.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

const TEXT: u8 = 1;
const PING: u8 = 9;
const PONG: u8 = 10;
/// What a head, or the lengths of a frame, may take at most.
const MAX_HEAD: usize = 16 * 1024;

/// One WebSocket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens `path` with a subprotocol. `window`: what the kernel keeps for a device that does not read.
    pub(crate) async fn open(
        to: SocketAddr,
        path: &str,
        protocol: &str,
        token: &str,
        window: Option<u32>,
    ) -> Result<Self, String> {
        let socket = TcpSocket::new_v4().map_err(|error| error.to_string())?;
        if let Some(window) = window {
            // Before it connects: the window's scale is settled then.
            socket.set_recv_buffer_size(window).map_err(|error| error.to_string())?;
        }
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = socket.connect(to).await.map_err(|error| error.to_string())?;
        let mut socket = Self { stream, buffer: Vec::new() };
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        socket.upgrade(&head).await.map_err(|error| format!("{path}: {error}"))?;
        Ok(socket)
    }

    async fn upgrade(&mut self, head: &str) -> io::Result<()> {
        self.stream.write_all(head.as_bytes()).await?;
        loop {
            let end = self.buffer.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 4);
                return if head.starts_with("HTTP/1.1 101") { Ok(()) } else { Err(io::Error::other(head)) };
            }
            if self.buffer.len() > MAX_HEAD || self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends a text message. Its mask is there, and made of zeros, which leaves the bytes as they are.
    pub(crate) async fn send(&mut self, text: &str) -> io::Result<()> {
        self.frame(TEXT, text.as_bytes()).await
    }

    async fn frame(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(length @ ..126) => frame.push(0x80 | length),
            _ => {
                let length = u16::try_from(payload.len()).map_err(io::Error::other)?;
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).await
    }

    /// The next message, as text; pings are answered.
    pub(crate) async fn receive(&mut self) -> io::Result<String> {
        let mut message = Vec::new();
        loop {
            let Some((first, payload, length)) = frame_in(&self.buffer) else {
                match self.stream.read_buf(&mut self.buffer).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => continue,
                }
            };
            let payload = self.buffer[payload..length].to_vec();
            self.buffer.drain(..length);
            match first & 0x0f {
                PING => self.frame(PONG, &payload).await?,
                PONG => {}
                0..=2 => {
                    message.extend(payload);
                    if first & 0x80 != 0 {
                        return Ok(String::from_utf8_lossy(&message).into_owned());
                    }
                }
                _ => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }

    /// Reads on, after not having read for a while: all messages until none came for `quiet`.
    pub(crate) async fn catch_up(&mut self, quiet: Duration) -> Vec<String> {
        let mut messages = Vec::new();
        while let Ok(Ok(message)) = timeout(quiet, self.receive()).await {
            messages.push(message);
        }
        messages
    }

    /// Answers every request, until the connection ends.
    pub(crate) async fn answer(mut self) -> io::Result<()> {
        loop {
            let message = self.receive().await?;
            if let Some(id) = request_id(&message) {
                let answer = format!(
                    "<response xmlns='urn:relay:1' id='{id}'><body type='text/plain'>83</body></response>"
                );
                self.send(&answer).await?;
            }
        }
    }
}

/// The whole frame at the beginning of `buffer`: its first byte, where its payload begins, and where it ends. A relay
/// does not mask.
fn frame_in(buffer: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*buffer.first()?, *buffer.get(1)?);
    let (head, length): (usize, usize) = match second {
        126 => (4, usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?))),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?)).unwrap_or(usize::MAX),
        ),
        length => (2, usize::from(length)),
    };
    let end = head.checked_add(length)?;
    (buffer.len() >= end).then_some((first, head, end))
}

/// The ID of the request that `message` is, if it is one.
pub(crate) fn request_id(message: &str) -> Option<&str> {
    message.strip_prefix("<request").and_then(id)
}

/// The ID of the job that `message` offers, if it does.
pub(crate) fn job_id(message: &str) -> Option<&str> {
    message.strip_prefix("<WebSocketControl").filter(|rest| rest.contains("<Status>open<")).and_then(id)
}

fn id(attributes: &str) -> Option<&str> {
    let value = attributes.split_once(" id=")?.1;
    let quote = value.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    value[1..].split(quote).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_when_it_is_whole() {
        for length in [0, 5, 125, 126, 16 * 1024, 70_000] {
            let mut bytes = vec![0x81];
            match length {
                0..126 => bytes.push(length as u8),
                126..65_536 => bytes.extend([&[126][..], &(length as u16).to_be_bytes()].concat()),
                _ => bytes.extend([&[127][..], &(length as u64).to_be_bytes()].concat()),
            }
            let head = bytes.len();
            bytes.extend(vec![7; length]);
            assert_eq!(frame_in(&bytes), Some((0x81, head, head + length)));
            assert_eq!(frame_in(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn a_request_and_an_offer_are_known_by_their_id() {
        assert_eq!(request_id("<request xmlns='urn:relay:1' id='a' method='GET'/>"), Some("a"));
        let offer = "<WebSocketControl xmlns='urn:relay:1' id=\"b\" wait='9'><Status>open</Status></WebSocketControl>";
        assert_eq!((request_id(offer), job_id(offer)), (None, Some("b")));
        assert_eq!(job_id(&offer.replace("open", "close")), None);
    }
}
