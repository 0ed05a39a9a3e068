//! A device by hand: one connection, blocking, without recovery, keep-alive or time-outs of its own.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::wire;

/// Logged in, with a request held by the relay.
#[derive(Debug)]
pub(crate) struct RawDevice {
    device: wire::Device,
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What the relay pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub(crate) request: String,
    pub(crate) object: String,
}

impl RawDevice {
    pub(crate) fn log_in(relay: SocketAddr, id: &str, token: &str) -> Self {
        let stream = TcpStream::connect_timeout(&relay, Duration::from_secs(5)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self { device: wire::Device::new(id, token, "localhost"), stream, buffer: Vec::new() };
        let mut random = [0; 16];
        getrandom::fill(&mut random).unwrap();
        let mut next = Some(raw.device.create(random));
        while let Some(body) = next {
            raw.post(&body);
            let answer = raw.receive().unwrap();
            next = raw.device.advance(&answer).unwrap();
        }
        raw.send("");
        raw
    }

    /// How long [`receive`](Self::receive) waits; for ever if this is not called.
    pub(crate) fn wait_at_most(&self, wait: Duration) {
        self.stream.set_read_timeout(Some(wait)).unwrap();
    }

    /// The connection itself, so that somebody else can end it.
    pub(crate) fn connection(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    /// Sends a `<body/>` with `payload`, which the relay then holds.
    pub(crate) fn send(&mut self, payload: &str) {
        let body = self.device.body(payload);
        self.post(&body);
    }

    fn post(&mut self, body: &str) {
        self.stream.write_all(wire::request("POST /http-bind HTTP/1.1", body).as_bytes()).unwrap();
    }

    /// The next `<body/>` of the relay.
    pub(crate) fn receive(&mut self) -> io::Result<String> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(answer) = wire::answer(&self.buffer).unwrap() {
                let body = String::from_utf8_lossy(&self.buffer[answer.head..answer.whole]).into_owned();
                self.buffer.drain(..answer.whole);
                assert_eq!(answer.status, 200, "{body}");
                return Ok(body);
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// The next request; `<body/>`s without one are passed over, with a new one held after each.
    pub(crate) fn pushed(&mut self) -> io::Result<Pushed> {
        loop {
            let body = self.receive()?;
            self.send("");
            let request = wire::iqs(&body).find_map(|iq| {
                Some(Pushed {
                    request: wire::attribute(iq, "id")?.to_owned(),
                    object: wire::text(iq, "object")?.to_owned(),
                })
            });
            if let Some(request) = request {
                return Ok(request);
            }
        }
    }
}
