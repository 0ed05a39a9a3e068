//! A WebSocket peer whose every byte is ours.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use transport_ws::proto::frame::{Decoder, FrameLimits, Received, Side, encode};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::PATIENCE;

pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
pub const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
pub const TEXT: OpCode = OpCode::Data(Data::Text);
pub const BINARY: OpCode = OpCode::Data(Data::Binary);
pub const MORE: OpCode = OpCode::Data(Data::Continue);
pub const PING: OpCode = OpCode::Control(Control::Ping);
pub const PONG: OpCode = OpCode::Control(Control::Pong);
pub const CLOSE: OpCode = OpCode::Control(Control::Close);

/// The head of a good upgrade request, with `change`s: a field's new value, or `None` to leave it out.
pub fn head(changes: &[(&str, Option<&str>)]) -> String {
    let mut fields = vec![
        ("host", "relay"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
        ("sec-websocket-protocol", "control"),
        ("authorization", "Bearer printer-1"),
    ];
    for (name, value) in changes {
        fields.retain(|(known, _)| known != name);
        if let Some(value) = value {
            fields.push((name, value));
        }
    }
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET /ws HTTP/1.1\r\n{fields}\r\n")
}

/// A frame, masked.
pub fn masked(opcode: OpCode, last: bool, payload: &[u8]) -> Vec<u8> {
    frame(opcode, last, payload, Some(MASK))
}

/// A frame.
pub fn frame(opcode: OpCode, last: bool, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, opcode, last, payload, mask);
    bytes
}

/// An HTTP head as it came.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub head: String,
}

impl Got {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.split("\r\n").find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One end of a connection.
pub struct Raw {
    pub stream: TcpStream,
    bytes: Vec<u8>,
    decoder: Decoder,
}

impl Raw {
    /// The dialling end.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).await.unwrap(), Side::Client)
    }

    pub fn of(stream: TcpStream, side: Side) -> Self {
        stream.set_nodelay(true).unwrap();
        let mut limits = FrameLimits::default();
        limits.binary = true;
        Self { stream, bytes: Vec::new(), decoder: Decoder::new(side, limits) }
    }

    /// Opens a control session with a good head but for `changes`.
    pub async fn open(address: SocketAddr, changes: &[(&str, Option<&str>)]) -> (Self, Got) {
        let mut raw = Self::connect(address).await;
        raw.send(head(changes).as_bytes()).await;
        let got = raw.head().await;
        (raw, got)
    }

    /// Writes; a peer that no longer reads is no error here.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Writes byte by byte, each in a segment of its own.
    pub async fn drip(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(&[*byte]).await;
            tokio::task::yield_now().await;
        }
    }

    async fn more(&mut self) -> bool {
        let mut some = [0; 16 * 1024];
        match self.stream.read(&mut some).await {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.bytes.extend_from_slice(&some[..read]);
                true
            }
        }
    }

    /// The next HTTP head.
    pub async fn head(&mut self) -> Got {
        timeout(PATIENCE, async {
            loop {
                if let Some(at) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                    let rest = self.bytes.split_off(at + 4);
                    let head = String::from_utf8(std::mem::replace(&mut self.bytes, rest)).unwrap();
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap_or(0);
                    return Got { status, head };
                }
                assert!(self.more().await, "no head: {:?}", String::from_utf8_lossy(&self.bytes));
            }
        })
        .await
        .expect("a head in time")
    }

    /// The next whole thing; `None` once the connection is closed.
    pub async fn read(&mut self) -> Option<Received> {
        timeout(PATIENCE, async {
            loop {
                let mut rest = &self.bytes[..];
                let received = self.decoder.next(&mut rest, true).expect("what comes is well-formed");
                let left = rest.len();
                self.bytes.drain(..self.bytes.len() - left);
                if received.is_some() {
                    return received;
                }
                if !self.more().await {
                    return None;
                }
            }
        })
        .await
        .expect("something in time")
    }

    /// The code with which the peer closes, and then the end of the connection. What else comes is passed over.
    pub async fn closed_with(&mut self) -> Option<u16> {
        let code = loop {
            match self.read().await {
                Some(Received::Close(code)) => break code,
                Some(_) => {}
                None => return None,
            }
        };
        let mut payload = Vec::new();
        if let Some(code) = code {
            payload.extend_from_slice(&code.to_be_bytes());
        }
        self.send(&masked(CLOSE, true, &payload)).await;
        timeout(PATIENCE, async { while self.more().await {} }).await.expect("the connection is closed");
        code
    }

    /// Whether nothing comes for `time`.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.more()).await.is_err()
    }
}
