//! A service that speaks plain HTTP and knows nothing of the SDK.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What came back, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a header field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// One request on a connection of its own. `fields` are lines without their ends.
pub(crate) fn ask(to: SocketAddr, line: &str, fields: &[&str], body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&request(to, line, &[fields, &["Connection: close"]].concat(), body))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&mut answer)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A connection for one request after the other.
#[derive(Debug)]
pub(crate) struct Connection {
    to: SocketAddr,
    stream: tokio::net::TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = tokio::net::TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { to, stream, buffer: Vec::new() })
    }

    pub(crate) async fn ask(&mut self, line: &str, fields: &[&str], body: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(&request(self.to, line, fields, body)).await?;
        loop {
            if let Some(answer) = parse(&mut self.buffer)? {
                return Ok(answer);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// A request in bytes.
pub(crate) fn request(to: SocketAddr, line: &str, fields: &[&str], body: &[u8]) -> Vec<u8> {
    let mut request = format!("{line} HTTP/1.1\r\nHost: {to}\r\nContent-Length: {}\r\n", body.len());
    for field in fields {
        request.push_str(field);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    [request.as_bytes(), body].concat()
}

/// Takes the answer at the beginning of `buffer`, if it is whole.
pub(crate) fn parse(buffer: &mut Vec<u8>) -> io::Result<Option<Answer>> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut answer = Answer { status, head, body: Vec::new() };
    let length =
        answer.field("content-length").map_or(Ok(0), str::parse).map_err(|_| io::ErrorKind::InvalidData)?;
    assert!(answer.field("transfer-encoding").is_none(), "bodies are read by their length: {}", answer.head);
    if buffer.len() < end + 4 + length {
        return Ok(None);
    }
    answer.body = buffer[end + 4..end + 4 + length].to_vec();
    buffer.drain(..end + 4 + length);
    Ok(Some(answer))
}
