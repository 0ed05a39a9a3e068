//! The WebSocket machines, of control sessions and channels, at either end: any bytes in any chunks at any time, with an
//! owner and a connection that have room or not. Judged from outside, by a reader of RFC 6455 that shares no line with them:
//! no panic and no spin; nothing of a peer is taken that the RFC forbids, and nothing refused as forbidden that is not; what
//! is written is a stream that any peer must take; nothing follows a Close, either way; what is kept stays within the
//! bounds; and a connection on which nothing comes any more ends.
//!
//! The input is a script: which machine, which bounds, then steps (see [`Run::step`]).
#![no_main]

#[path = "websocket/judge.rs"]
mod judge;

use std::{
    cell::Cell,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use judge::{End as Verdict, Rules, Said, judge};
use libfuzzer_sys::fuzz_target;
use relay_core::{
    Body, Request, Response,
    app::{Digest, Progress, ToDevice, ToRelay},
    envelope::Envelope,
    ids::{AppName, DeviceId, ObjectId, RequestId},
    outcome::Disposition,
    transport::CloseReason,
    xml::Element,
};
use transport_ws::{
    ChannelConfig, ControlConfig,
    proto::{
        channel::{self, Cause},
        control::{self, End, Output},
        frame::FrameLimits,
    },
    wire::channel::{DeviceEnd, RelayEnd, Words},
};

static START: LazyLock<Instant> = LazyLock::new(|| tokio::time::Instant::now().into_std());

/// What a peer may well say, so that a script gets beyond the frames.
const TO_RELAY: [&str; 12] = [
    "<ping xmlns='urn:relay:1'/>",
    "<pong xmlns='urn:relay:1'/>",
    "<received xmlns='urn:relay:1' id='r1'/>",
    "<response xmlns='urn:relay:1' id='r1'><body>83</body></response>",
    "<progress xmlns='urn:relay:1' id='r1' bytes='1'/>",
    "<credit xmlns='urn:relay:1' from='0' bytes='65536'/>",
    "<credit xmlns='urn:relay:1' bytes='16384'/>",
    "<progress xmlns='urn:relay:1' bytes='9' note='page 1'/>",
    "<done xmlns='urn:relay:1'/>",
    "<error xmlns='urn:relay:1' code='device-error'>paper jam</error>",
    "<WebSocketControl xmlns='urn:relay:1' id='r1'><AppName>print</AppName><Status>close</Status></WebSocketControl>",
    "<wave xmlns='urn:relay:1'/>",
];
const TO_DEVICE: [&str; 12] = [
    "<ping xmlns='urn:relay:1'/>",
    "<pong xmlns='urn:relay:1'/>",
    "<request xmlns='urn:relay:1' id='r1' method='GET' wait='30'><object>toner</object></request>",
    "<ack xmlns='urn:relay:1' id='r1' outcome='accepted'/>",
    "<cancel xmlns='urn:relay:1' id='r1'/>",
    "<drain xmlns='urn:relay:1' retry-after='5'/>",
    "<WebSocketControl xmlns='urn:relay:1' id='r1' wait='30'><AppName>print</AppName><Status>open</Status></WebSocketControl>",
    "<PrintJobRequest><Job><User>Ann</User></Job></PrintJobRequest>",
    "<end xmlns='urn:relay:1' bytes='0' sha256='e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'/>",
    "<WebSocketControl xmlns='urn:relay:1' id='r1'><AppName>print</AppName><Status>close</Status></WebSocketControl>",
    "<?xml version='1.0'?><ping xmlns='urn:relay:1'/>",
    "<wave xmlns='urn:relay:1'/>",
];

thread_local! {
    static MASK: Cell<u32> = const { Cell::new(1) };
}

/// Around what may stand in a Close, and what may not.
const CODES: [u16; 16] =
    [0, 999, 1000, 1003, 1004, 1005, 1006, 1007, 1014, 1015, 1016, 2999, 3000, 4999, 5000, u16::MAX];
/// How much is on its way to a machine at most, give or take a frame.
const MOST: usize = 400_000;

fn mask() -> [u8; 4] {
    MASK.set(MASK.get().wrapping_mul(0x9e37_79b9).wrapping_add(0x7f4a_7c15));
    MASK.get().to_be_bytes()
}

fn id() -> RequestId {
    RequestId::new("r1").unwrap()
}

fn app() -> AppName {
    AppName::new("print").unwrap()
}

fn device() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

/// A machine, with what its owner does.
trait Machine {
    fn received(&mut self, bytes: &[u8], now: Instant);
    fn wants_read(&self) -> bool;
    fn end_of_stream(&mut self);
    fn chunk(&mut self) -> &[u8];
    fn written(&mut self, bytes: usize, now: Instant);
    fn wake_at(&self) -> Option<Instant>;
    fn timeout(&mut self, now: Instant);
    fn is_over(&self) -> bool;
    fn held(&self) -> usize;
    /// Whether it has ended, or is about to, and with which fault.
    fn ending(&self) -> Option<Option<u16>>;
    fn ignored(&self) -> usize;
    /// The owner, as far as it has `room`, takes what there is: how many messages of the peer's it heard.
    fn hear(&mut self, room: bool, now: Instant) -> usize;
    /// The owner says something of about so many bytes.
    fn say(&mut self, what: u8, bytes: usize, now: Instant);
    fn close(&mut self, why: u8, now: Instant);
    fn suspect(&mut self, now: Instant);
}

struct Control {
    machine: control::Machine,
    relay: bool,
    ended: bool,
}

impl Machine for Control {
    fn received(&mut self, bytes: &[u8], now: Instant) {
        self.machine.received(bytes, now);
    }
    fn wants_read(&self) -> bool {
        self.machine.wants_read()
    }
    fn end_of_stream(&mut self) {
        self.machine.end_of_stream();
    }
    fn chunk(&mut self) -> &[u8] {
        self.machine.chunk()
    }
    fn written(&mut self, bytes: usize, now: Instant) {
        self.machine.written(bytes, now);
    }
    fn wake_at(&self) -> Option<Instant> {
        self.machine.wake_at()
    }
    fn timeout(&mut self, now: Instant) {
        self.machine.timeout(now);
    }
    fn is_over(&self) -> bool {
        self.machine.is_over()
    }
    fn held(&self) -> usize {
        self.machine.held()
    }
    fn ending(&self) -> Option<Option<u16>> {
        self.machine.end().map(|_| self.machine.fault().map(|fault| fault.code))
    }
    fn ignored(&self) -> usize {
        self.machine.stats().ignored as usize
    }
    fn hear(&mut self, room: bool, now: Instant) -> usize {
        let mut heard = 0;
        let mut alive = 0;
        while let Some(output) = self.machine.poll_output(now) {
            match output {
                Output::Alive => alive += 1,
                Output::Envelope(envelope) if !room => {
                    self.machine.give_back(envelope, now);
                    // One that is over has nobody to offer it to again: it counts as heard.
                    heard += usize::from(self.machine.is_over());
                }
                Output::Envelope(_) => heard += 1,
                Output::Ended(_) => assert!(!std::mem::replace(&mut self.ended, true), "ended twice"),
            }
            assert!(alive < 10_000, "the machine spins");
        }
        heard
    }
    fn say(&mut self, what: u8, bytes: usize, now: Instant) {
        if !self.machine.has_room() {
            return;
        }
        let body = || Body::new("application/octet-stream", vec![what; bytes]);
        let envelope = match (self.relay, what % 5) {
            (_, 0) => Envelope::Ping,
            (true, 1) => Envelope::Ack { id: id(), disposition: Disposition::Accepted },
            (true, 2) => Envelope::Cancel { id: id() },
            (true, _) => {
                let request = Request::set(device(), ObjectId::new("toner").unwrap(), body());
                Envelope::Request {
                    id: id(),
                    request: Arc::new(request),
                    deadline: now + Duration::from_secs(9),
                }
            }
            (false, 1) => Envelope::Received { id: id() },
            (false, 2) => Envelope::Progress { id: id(), progress: Progress::new(7) },
            (false, _) => {
                Envelope::Response { id: id(), response: Response::with_body(body()), acknowledge: true }
            }
        };
        self.machine.push(&envelope, now);
    }
    fn close(&mut self, why: u8, now: Instant) {
        let retry_after = Duration::from_secs(5);
        let reason = match why % 6 {
            0 => CloseReason::Drain { retry_after, to: None },
            1 => CloseReason::Replaced,
            2 => CloseReason::Revoked,
            3 => CloseReason::Overloaded { retry_after },
            4 => CloseReason::Misbehaved,
            _ => CloseReason::Shutdown,
        };
        self.machine.close(reason, now);
    }
    fn suspect(&mut self, now: Instant) {
        if self.machine.has_room() {
            self.machine.suspect(now);
        }
    }
}

struct Channel<W: Words> {
    machine: channel::Machine<W>,
    say: fn(u8, usize) -> W::Out,
}

impl<W: Words> Machine for Channel<W> {
    fn received(&mut self, bytes: &[u8], now: Instant) {
        self.machine.received(bytes, now);
    }
    fn wants_read(&self) -> bool {
        self.machine.wants_read()
    }
    fn end_of_stream(&mut self) {
        self.machine.end_of_stream();
    }
    fn chunk(&mut self) -> &[u8] {
        self.machine.chunk()
    }
    fn written(&mut self, bytes: usize, now: Instant) {
        self.machine.written(bytes, now);
    }
    fn wake_at(&self) -> Option<Instant> {
        self.machine.wake_at()
    }
    fn timeout(&mut self, now: Instant) {
        self.machine.timeout(now);
    }
    fn is_over(&self) -> bool {
        self.machine.is_over()
    }
    fn held(&self) -> usize {
        self.machine.held()
    }
    fn ending(&self) -> Option<Option<u16>> {
        self.machine.cause().map(|cause| match cause {
            Cause::Fault(fault) => Some(fault.code),
            _ => None,
        })
    }
    fn ignored(&self) -> usize {
        self.machine.ignored() as usize
    }
    fn hear(&mut self, room: bool, now: Instant) -> usize {
        let mut heard = 0;
        while room && self.machine.pop(now).is_some() {
            heard += 1;
        }
        heard
    }
    fn say(&mut self, what: u8, bytes: usize, _: Instant) {
        if self.machine.has_room() {
            let _ = self.machine.push((self.say)(what, bytes));
        }
    }
    fn close(&mut self, why: u8, now: Instant) {
        let reason = (why % 2 == 1).then_some(CloseReason::Revoked);
        self.machine.close(reason.as_ref(), now);
    }
    fn suspect(&mut self, _: Instant) {}
}

fn relay_says(what: u8, bytes: usize) -> ToDevice {
    match what % 4 {
        0 => ToDevice::Header("<Job/>".into()),
        1 => ToDevice::End(Digest::of(b"")),
        2 => ToDevice::Close,
        _ => ToDevice::Data(vec![what; bytes.min(16 * 1024)].into()),
    }
}

fn device_says(what: u8, bytes: usize) -> ToRelay {
    match what % 4 {
        0 => ToRelay::Credit { from: Some(bytes as u64), bytes: bytes as u64 },
        1 => ToRelay::Credit { from: None, bytes: u64::MAX },
        2 => ToRelay::Progress(Progress::new(bytes as u64).with_note("page 1")),
        _ => ToRelay::Done { version: None },
    }
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }
    fn short(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (some, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        some
    }
}

struct Run {
    machine: Box<dyn Machine>,
    /// Whether the machine is the relay's.
    relay: bool,
    rules: Rules,
    /// What the machine may keep.
    bound: usize,
    now: Instant,
    /// On its way to the machine, and how far that is.
    coming: Vec<u8>,
    at: usize,
    eof: bool,
    /// How much of it comes at once, and how much its driver reads at most.
    chunk: usize,
    most: usize,
    came: Vec<u8>,
    went: Vec<u8>,
    /// What the connection still takes.
    takes: usize,
    room: bool,
    heard: usize,
}

impl Run {
    fn new(kind: u8, bounds: u8) -> Self {
        let relay = kind % 2 == 0;
        let mut frames = FrameLimits::default();
        if bounds % 2 == 0 {
            (frames.frame, frames.message, frames.fragments) = (300, 700, 5);
        }
        let end = if relay { End::Relay } else { End::Device(mask) };
        let is_control = kind % 4 < 2;
        let (machine, ahead): (Box<dyn Machine>, _) = if is_control {
            let mut config = if relay { ControlConfig::relay() } else { ControlConfig::device() };
            config.frames = frames;
            let ahead = config.write_ahead;
            let machine = control::Machine::new(end, device(), config, *START);
            (Box::new(Control { machine, relay, ended: false }), ahead)
        } else {
            let mut config = if relay { ChannelConfig::relay() } else { ChannelConfig::device() };
            frames.binary = !relay;
            config.frames = frames;
            let ahead = config.write_ahead + config.read_ahead;
            if relay {
                let machine = channel::Machine::<RelayEnd>::new(end, id(), app(), config, *START);
                (Box::new(Channel { machine, say: relay_says }), ahead)
            } else {
                let machine = channel::Machine::<DeviceEnd>::new(end, id(), app(), config, *START);
                (Box::new(Channel { machine, say: device_says }), ahead)
            }
        };
        let FrameLimits { frame, message, fragments, binary, .. } = frames;
        let rules = Rules { masked: relay, frame, message, fragments, binary };
        // A message that is being put together, in a buffer that grows by doubling; one that went over what may wait to be
        // heard; one that went over what may wait to be written, and control frames beside it.
        let bound = ahead + 3 * message + 100 * 1024;
        let most = if is_control { 4 * 1024 } else { 16 * 1024 };
        Self {
            machine,
            relay,
            rules,
            bound,
            now: *START,
            coming: vec![],
            at: 0,
            eof: false,
            chunk: most,
            most,
            came: vec![],
            went: vec![],
            takes: usize::MAX,
            room: true,
            heard: 0,
        }
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        let bit = if self.rules.masked { 0x80 } else { 0 };
        match payload.len() {
            short @ ..=125 => frame.push(bit | short as u8),
            middle @ ..=0xffff => {
                frame.push(bit | 126);
                frame.extend_from_slice(&(middle as u16).to_be_bytes());
            }
            long => {
                frame.push(bit | 127);
                frame.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        let key = if self.rules.masked { [7, 0xb0, 9, 3] } else { [0; 4] };
        if self.rules.masked {
            frame.extend_from_slice(&key);
        }
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        self.coming.extend_from_slice(&frame);
    }

    /// One step of the script; `None` at its end.
    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        if self.coming.len() > MOST {
            // More would only take time.
            return None;
        }
        match script.byte()? % 14 {
            // Bytes as they are.
            0 => {
                let count = script.short()? % 4096;
                self.coming.extend_from_slice(script.bytes(count));
            }
            // A frame with any first byte, otherwise right.
            1 => {
                let (first, count) = (script.byte()?, script.short()? % 2048);
                let payload = script.bytes(count).to_vec();
                self.frame(first, &payload);
            }
            // One character again and again, so that a few bytes make a large frame.
            2 => {
                let (first, count, with) = (script.byte()?, script.short()?, script.byte()?);
                self.frame(first, &vec![with; count]);
            }
            // Something that has a meaning.
            3 => {
                let words = if self.relay { TO_RELAY } else { TO_DEVICE };
                let word = words[usize::from(script.byte()?) % words.len()];
                self.frame(0x81, word.as_bytes());
            }
            4 => self.pass(Duration::from_millis(script.short()? as u64)),
            5 => {
                self.takes = match script.short()? {
                    0xffff => usize::MAX,
                    some => some,
                };
            }
            6 => self.chunk = usize::from(script.byte()?) * self.most / 256 + 1,
            7 => {
                let (what, bytes) = (script.byte()?, script.short()?);
                self.machine.say(what, bytes, self.now);
            }
            8 => self.machine.close(script.byte()?, self.now),
            9 => self.room = !self.room,
            10 => self.machine.suspect(self.now),
            // A small frame again and again, so that a few bytes make a flood.
            11 => {
                let (first, count, times) = (script.byte()?, script.byte()? % 64, script.short()? % 10_000);
                let payload = script.bytes(count.into()).to_vec();
                for _ in 0..times.min(MOST / (payload.len() + 6)) {
                    self.frame(first, &payload);
                }
            }
            12 => self.eof = true,
            // A Close, with a code at one of the edges of what is allowed.
            _ => {
                let code: u16 = CODES[usize::from(script.byte()?) % CODES.len()];
                self.frame(0x88, &code.to_be_bytes());
            }
        }
        self.turn();
        Some(())
    }

    /// What its driver does, as far as the connection and the owner let it.
    fn turn(&mut self) {
        for _ in 0..self.coming.len() + 100 {
            self.write();
            self.heard += self.machine.hear(self.room, self.now);
            assert!(self.machine.held() <= self.bound, "{} bytes are kept", self.machine.held());
            if !self.machine.wants_read() || self.machine.is_over() {
                return;
            }
            if self.at == self.coming.len() {
                (self.coming, self.at) = (vec![], 0);
                if std::mem::take(&mut self.eof) {
                    self.machine.end_of_stream();
                    continue;
                }
                return;
            }
            let rest = &self.coming[self.at..];
            // Few bytes at a time where there are few: a flood of single ones would only take time.
            let some = self.chunk.max(self.coming.len() / 4_000).min(self.most);
            let chunk = &rest[..some.min(rest.len())];
            self.at += chunk.len();
            self.came.extend_from_slice(chunk);
            self.machine.received(chunk, self.now);
        }
        panic!("the machine spins");
    }

    fn write(&mut self) {
        loop {
            let chunk = self.machine.chunk();
            if chunk.is_empty() {
                return;
            }
            let some = chunk.len().min(self.takes);
            self.went.extend_from_slice(&chunk[..some]);
            self.takes = self.takes.saturating_sub(if self.takes == usize::MAX { 0 } else { some });
            self.machine.written(some, self.now);
            if some == 0 {
                return;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut wakes = 0;
        while let Some(at) = self.machine.wake_at().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.machine.timeout(self.now);
            self.turn();
            wakes += 1;
            assert!(wakes < 5_000, "the machine spins");
        }
        self.now = until;
    }

    /// The peer, its connection and the owner do nothing to stand in the way any more.
    fn finish(mut self) {
        (self.room, self.takes) = (true, usize::MAX);
        self.turn();
        // What the owner had no room for is offered again a little later.
        self.pass(Duration::from_millis(200));
        self.judge();
        self.pass(Duration::from_secs(600));
        assert!(self.machine.is_over(), "a connection on which nothing comes ends");
        let heard = self.heard;
        self.coming.clear();
        self.frame(0x81, b"<ping xmlns='urn:relay:1'/>");
        let late = std::mem::take(&mut self.coming);
        self.machine.received(&late, self.now);
        self.heard += self.machine.hear(true, self.now);
        assert!(self.heard == heard && self.machine.chunk().is_empty(), "nothing is after the end");
        self.judge();
    }

    fn judge(&self) {
        let came = judge(&self.came, &self.rules);
        let went = judge(
            &self.went,
            &Rules {
                masked: !self.relay,
                frame: 16 * 1024,
                message: usize::MAX,
                fragments: usize::MAX,
                binary: true,
            },
        );
        self.judge_input(&came);
        self.judge_output(&went, &came);
    }

    fn judge_input(&self, came: &Said) {
        let messages = came.texts.len() + came.binaries;
        let taken = self.heard + self.machine.ignored();
        assert!(taken <= messages, "{taken} messages are taken of {messages} that came before the end");
        let ending = self.machine.ending();
        match &came.end {
            Verdict::Open { .. } => {}
            Verdict::Closed { .. } => assert!(ending.is_some(), "a Close is not heard"),
            Verdict::Broken { codes } => {
                assert!(ending.is_some(), "a broken rule passes ({codes:?})");
            }
        }
        let Some(Some(code)) = ending else { return };
        let judged: &[u16] = match &came.end {
            Verdict::Broken { codes } => codes,
            Verdict::Open { doomed: true } => &[1002, 1007],
            _ => &[],
        };
        let readable = |text: &Vec<u8>| Element::parse(text, &relay_core::xml::Limits::default()).is_ok();
        match code {
            1007 if !judged.contains(&1007) => {
                assert!(!came.texts.iter().all(readable), "refused as unreadable, which it is not");
            }
            // Rates, and words of no meaning.
            1008 => {}
            code => {
                assert!(judged.contains(&code), "refused with {code}, and the RFC has nothing against it")
            }
        }
    }

    fn judge_output(&self, went: &Said, came: &Said) {
        match &went.end {
            Verdict::Broken { codes } => panic!("what is written breaks a rule: {codes:?}"),
            Verdict::Closed { after, .. } if *after > 0 => panic!("{after} bytes after the Close"),
            Verdict::Closed { code, .. } => match self.machine.ending() {
                None => panic!("a Close, and no end"),
                Some(Some(fault)) => assert_eq!(*code, Some(fault), "the Close says what was wrong"),
                Some(None) => {}
            },
            Verdict::Open { .. } => {}
        }
        for pong in &went.pongs {
            assert!(came.pings.contains(pong), "a pong to no ping");
        }
        let settled =
            self.machine.ending().is_none() && self.takes == usize::MAX && self.machine.wants_read();
        if let (true, Some(ping)) = (settled, came.pings.last()) {
            assert_eq!(went.pongs.last(), Some(ping), "the latest ping is answered");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let (Some(kind), Some(bounds)) = (script.byte(), script.byte()) else { return };
    MASK.set(1);
    let mut run = Run::new(kind, bounds);
    for _ in 0..500 {
        if run.step(&mut script).is_none() {
            break;
        }
    }
    run.finish();
});
