//! The machine in virtual time: every time-out, bound and end, and a pair of them against a plain model.

mod model;
mod table;

use std::time::{Duration, Instant};

use relay_core::{
    envelope::Envelope,
    ids::{DeviceId, Method, ObjectId, RequestId},
    request::{Body, Request, Response},
};

use super::{
    super::frame::{self, Decoder, Received, Side},
    *,
};

const KEY: [u8; 4] = [1, 2, 3, 4];

fn key() -> [u8; 4] {
    KEY
}

fn device() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

fn id(number: usize) -> RequestId {
    RequestId::new(&format!("request-{number}")).unwrap()
}

fn response(number: usize, size: usize) -> Envelope {
    let response = Response::with_body(Body::new("text/plain", vec![b'x'; size]));
    Envelope::Response { id: id(number), response, acknowledge: true }
}

fn request(number: usize, size: usize, deadline: Instant) -> Envelope {
    let mut request = Request::new(device(), Method::set()).with_object(ObjectId::new("a").unwrap());
    request.body = Some(Body::new("text/plain", vec![b'x'; size]));
    Envelope::Request { id: id(number), request: std::sync::Arc::new(request), deadline }
}

fn start() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A machine, its clock, and what it said so far.
struct Rig {
    machine: Machine,
    now: Instant,
    start: Instant,
    outputs: Vec<Output>,
    /// What it wrote, read as its peer reads it.
    wrote: Vec<Received>,
    peer: Decoder,
}

impl Rig {
    fn relay() -> Self {
        Self::with(End::Relay, ControlConfig::relay())
    }

    fn device() -> Self {
        Self::with(End::Device(key), ControlConfig::device())
    }

    fn with(end: End, config: ControlConfig) -> Self {
        let now = start();
        let side = match end {
            End::Relay => Side::Client,
            End::Device(_) => Side::Server,
        };
        let peer = Decoder::new(side, config.frames);
        let machine = Machine::new(end, device(), config, now);
        Self { machine, now, start: now, outputs: Vec::new(), wrote: Vec::new(), peer }
    }

    /// The time so far, in milliseconds.
    fn ms(&self) -> u128 {
        (self.now - self.start).as_millis()
    }

    /// Writes all there is, and hears all there is to hear.
    fn settle(&mut self) {
        while self.machine.wants_write() {
            let mut bytes = self.machine.chunk().to_vec();
            self.machine.written(bytes.len(), self.now);
            let mut rest = &bytes[..];
            while let Some(one) = self.peer.next(&mut rest, true).expect("it writes what may be written") {
                self.wrote.push(one);
            }
            bytes.clear();
        }
        self.hear();
    }

    fn hear(&mut self) {
        while let Some(output) = self.machine.poll_output(self.now) {
            self.outputs.push(output);
        }
    }

    /// Lets time pass, waking the machine whenever it wants to be.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(wake) = self.machine.wake_at().filter(|wake| *wake <= until) {
            self.now = self.now.max(wake);
            self.machine.timeout(self.now);
            self.settle();
        }
        self.now = until;
        self.machine.timeout(self.now);
        self.settle();
    }

    /// The peer sends a frame.
    fn frame(&mut self, opcode: frame::tests::Op, payload: &[u8]) {
        let mut bytes = Vec::new();
        let key = self.machine.link.is_relay().then_some(KEY);
        frame::encode(&mut bytes, opcode.0, true, payload, key);
        self.bytes(&bytes);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.machine.received(bytes, self.now);
        self.settle();
    }

    fn text(&mut self, text: &str) {
        self.frame(frame::tests::Op::TEXT, text.as_bytes());
    }

    fn ping(&mut self) {
        self.frame(frame::tests::Op::PING, b"?");
    }

    fn close(&mut self, code: u16) {
        self.frame(frame::tests::Op::CLOSE, &code.to_be_bytes());
    }

    fn envelopes(&self) -> Vec<&Envelope> {
        let mut envelopes = Vec::new();
        for output in &self.outputs {
            if let Output::Envelope(envelope) = output {
                envelopes.push(envelope);
            }
        }
        envelopes
    }

    fn ended(&self) -> Option<EndReason> {
        self.outputs.iter().find_map(|output| match output {
            Output::Ended(reason) => Some(*reason),
            _ => None,
        })
    }

    fn closed_with(&self) -> Option<u16> {
        self.wrote.iter().find_map(|wrote| match wrote {
            Received::Close(code) => *code,
            _ => None,
        })
    }

    fn pings(&self) -> usize {
        self.wrote.iter().filter(|wrote| matches!(wrote, Received::Ping(_))).count()
    }
}
