//! A device by hand: two connections, blocking, without recovery, keep-alive or time-outs of its own.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    enrol::Credential,
    http, wire,
    xml::{attribute, text},
};

/// Logged in, with a request held by the relay.
#[derive(Debug)]
pub(crate) struct RawDevice {
    device: wire::Device,
    /// While one holds a request, the other one is for sending (XEP-0124 §18.1: nothing is pipelined).
    lines: [Line; 2],
    held: Option<usize>,
    arrived: VecDeque<String>,
}

#[derive(Debug)]
struct Line {
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
        let line = || {
            let stream = TcpStream::connect_timeout(&relay, Duration::from_secs(5)).unwrap();
            stream.set_nodelay(true).unwrap();
            Line { stream, buffer: Vec::new() }
        };
        let credential = Credential { id: id.to_owned(), token: token.to_owned() };
        let device = wire::Device::new(&credential, "localhost");
        let mut raw = Self { device, lines: [line(), line()], held: None, arrived: VecDeque::new() };
        let mut random = [0; 16];
        getrandom::fill(&mut random).unwrap();
        let mut next = Some(raw.device.create(random));
        while let Some(body) = next {
            raw.lines[0].post(&body);
            let answer = raw.lines[0].receive().unwrap();
            next = raw.device.advance(&answer).unwrap();
        }
        raw.send("");
        raw
    }

    /// How long [`receive`](Self::receive) waits; for ever if this is not called.
    pub(crate) fn wait_at_most(&self, wait: Duration) {
        self.lines.iter().for_each(|line| line.stream.set_read_timeout(Some(wait)).unwrap());
    }

    /// The connections themselves, so that somebody else can end them.
    pub(crate) fn connections(&self) -> [TcpStream; 2] {
        self.lines.each_ref().map(|line| line.stream.try_clone().unwrap())
    }

    /// Sends a `<body/>` with `payload`, which the relay then holds.
    pub(crate) fn send(&mut self, payload: &str) {
        let body = self.device.body(payload);
        let free = self.held.map_or(0, |held| 1 - held);
        self.lines[free].post(&body);
        if let Some(held) = self.held.replace(free) {
            // The one held so far is answered now, with whatever there is.
            let body = self.lines[held].receive().unwrap();
            self.arrived.push_back(body);
        }
    }

    /// The next `<body/>` of the relay. If nothing was held, an empty one is sent first.
    pub(crate) fn receive(&mut self) -> io::Result<String> {
        if let Some(body) = self.arrived.pop_front() {
            return Ok(body);
        }
        if self.held.is_none() {
            self.send("");
        }
        let Some(held) = self.held else { return Err(io::ErrorKind::NotConnected.into()) };
        let body = self.lines[held].receive()?;
        self.held = None;
        Ok(body)
    }

    /// The next request. Nothing is held afterwards.
    pub(crate) fn pushed(&mut self) -> io::Result<Pushed> {
        loop {
            let body = self.receive()?;
            let request = wire::iqs(&body).find_map(|iq| {
                Some(Pushed {
                    request: attribute(iq, "id")?.to_owned(),
                    object: text(iq, "object")?.to_owned(),
                })
            });
            if let Some(request) = request {
                return Ok(request);
            }
        }
    }
}

impl Line {
    fn post(&mut self, body: &str) {
        let to = self.stream.peer_addr().unwrap();
        self.stream.write_all(&http::request(to, "POST /http-bind", &[], body.as_bytes())).unwrap();
    }

    fn receive(&mut self) -> io::Result<String> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(answer) = http::parse(&mut self.buffer)? {
                assert_eq!(answer.status, 200, "{}", answer.text());
                return Ok(answer.text());
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }
}
