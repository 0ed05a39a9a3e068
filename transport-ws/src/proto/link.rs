//! One WebSocket connection, at either end: frames, pings, the closing handshake, deadlines. What its messages say is for
//! whoever keeps it.
//!
//! ```text
//! Open ── this end closes, or the peer breaks a rule ─▶ Closing(our Close sent) ── peer's Close ─▶ Closing(both) ─▶ Over
//! Open ── peer's Close ─▶ Closing(both: ours is the answer) ── all written (device: and end of stream) ─▶ Over
//! Open, Closing ── silence, no room to write, end of stream, time is up ─▶ Over
//! ```

use std::time::{Duration, Instant};

use super::{
    control::End,
    frame::{Decoder, Fault, FrameLimits, Received, Side},
    outgoing::Outgoing,
    rate::Bucket,
};
use crate::wire::close;

/// How much is still read, and thrown away, of a peer that broke a rule.
pub(crate) const LINGER: usize = 1024 * 1024;

/// Times and rates of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkConfig {
    pub(super) frames: FrameLimits,
    /// Control frames of the peer's in a second, and at once, those apart that were asked for.
    pub(super) controls: (u32, u32),
    pub(super) ping_every: Option<Duration>,
    pub(super) answer_within: Duration,
    pub(super) write_within: Duration,
    pub(super) close_within: Duration,
}

/// Why a connection ends. The first reason stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// This end closed it.
    Closed,
    /// The peer closed it, with this code if it said one.
    Peer(Option<u16>),
    /// The peer broke a rule.
    Fault(Fault),
    /// It broke: the peer said nothing of it.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closing(Closing),
    Over(Cause),
}

/// Our Close is sent, or waits to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Closing {
    cause: Cause,
    until: Instant,
    /// The peer's Close came: nothing more does.
    heard: bool,
    /// What it still says counts.
    listening: bool,
    /// What it still says can be read, so that its Close will be found.
    legible: bool,
}

/// A whole message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

#[derive(Debug)]
pub(super) struct Link {
    is_relay: bool,
    config: LinkConfig,
    state: State,
    decoder: Decoder,
    outgoing: Outgoing,
    controls: Bucket,
    pongs_due: u32,
    pings: u64,
    ping_at: Option<Instant>,
    /// When the connection counts as lost unless something comes.
    silent_at: Option<Instant>,
    /// When it does unless something can be written.
    stalled_at: Option<Instant>,
    /// When what has found nothing to go with is sent by itself.
    patient_until: Option<Instant>,
    thrown_away: usize,
    lingers: bool,
    /// A frame came since somebody asked.
    alive: bool,
}

impl Link {
    pub(super) fn new(end: End, config: LinkConfig, now: Instant) -> Self {
        let (side, masks) = match end {
            End::Relay => (Side::Server, None),
            End::Device(masks) => (Side::Client, Some(masks)),
        };
        Self {
            is_relay: matches!(end, End::Relay),
            state: State::Open,
            decoder: Decoder::new(side, config.frames),
            outgoing: Outgoing::new(masks),
            controls: Bucket::new(config.controls.0, config.controls.1, now),
            pongs_due: 0,
            pings: 0,
            ping_at: config.ping_every.map(|every| now + every),
            silent_at: None,
            stalled_at: None,
            patient_until: None,
            thrown_away: 0,
            lingers: false,
            alive: false,
            config,
        }
    }

    pub(super) const fn is_relay(&self) -> bool {
        self.is_relay
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Why it ends, if it does.
    pub(super) const fn cause(&self) -> Option<Cause> {
        match self.state {
            State::Open => None,
            State::Closing(Closing { cause, .. }) | State::Over(cause) => Some(cause),
        }
    }

    /// Whether nothing is left to be done on the connection.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    /// Bytes that wait to be written.
    pub(super) fn unwritten(&self) -> usize {
        self.outgoing.len()
    }

    /// Bytes that are kept.
    pub(super) fn held(&self) -> usize {
        self.decoder.held() + self.outgoing.held()
    }

    pub(super) fn text(&mut self, text: &str) {
        if self.is_open() {
            self.outgoing.text(text);
        }
    }

    /// Sends a text that nobody waits for: within this time, or as soon as there is something for it to go with.
    pub(super) fn text_within(&mut self, text: &str, within: Duration, now: Instant) {
        if self.is_open() {
            if !self.outgoing.is_patient() {
                self.patient_until = Some(now + within);
            }
            self.outgoing.text_patiently(text);
        }
    }

    pub(super) fn binary(&mut self, bytes: &[u8]) {
        if self.is_open() {
            self.outgoing.binary(bytes);
        }
    }

    /// Whether what the peer says counts.
    pub(super) const fn listens(&self) -> bool {
        matches!(self.state, State::Open | State::Closing(Closing { heard: false, listening: true, .. }))
    }

    /// Whether what comes is read.
    pub(super) const fn reads(&self) -> bool {
        matches!(self.state, State::Open | State::Closing(Closing { heard: false, legible: true, .. }))
    }

    /// Whether a frame came since this was last asked.
    pub(super) fn take_alive(&mut self) -> bool {
        std::mem::take(&mut self.alive)
    }

    /// Sends a ping now; unless something comes `within` this time, the connection counts as lost.
    pub(super) fn suspect(&mut self, within: Duration, now: Instant) {
        if self.is_open() {
            self.ping();
            let until = now + within;
            self.silent_at = Some(self.silent_at.map_or(until, |at| at.min(until)));
        }
    }

    /// Something was sent that the peer answers: unless anything comes in time, the connection counts as lost.
    pub(super) fn expect_answer(&mut self, now: Instant) {
        if self.is_open() {
            self.silent_at.get_or_insert(now + self.config.answer_within);
        }
    }

    fn ping(&mut self) {
        self.pings += 1;
        self.pongs_due = self.pongs_due.saturating_add(1);
        self.outgoing.ping(&self.pings.to_be_bytes());
    }

    /// This end takes its leave. What the peer still says before it does too counts.
    pub(super) fn take_leave(&mut self, code: u16, words: &str, now: Instant) {
        if self.is_open() {
            self.outgoing.close(Some(code), words);
            self.closing(Cause::Closed, now, |closing| closing.listening = true);
        }
    }

    /// This end closes. What the peer still says counts for nothing.
    pub(super) fn close(&mut self, code: u16, words: &str, now: Instant) {
        if self.is_open() {
            self.outgoing.close(Some(code), words);
            self.closing(Cause::Closed, now, |_| ());
        }
    }

    /// The peer broke a rule. `legible`: its frames are still known from one another.
    pub(super) fn fail(&mut self, fault: Fault, legible: bool, now: Instant) {
        match &mut self.state {
            State::Open => {
                self.outgoing.drop_data();
                self.outgoing.close(Some(fault.code), fault.words);
                self.closing(Cause::Fault(fault), now, |closing| closing.legible = legible);
            }
            State::Closing(closing) => {
                closing.listening = false;
                closing.legible &= legible;
                self.settle();
            }
            State::Over(_) => {}
        }
    }

    fn closing(&mut self, cause: Cause, now: Instant, change: impl FnOnce(&mut Closing)) {
        let until = now + self.config.close_within;
        let mut closing = Closing { cause, until, heard: false, listening: false, legible: true };
        change(&mut closing);
        self.state = State::Closing(closing);
        (self.ping_at, self.silent_at) = (None, None);
        self.settle();
    }

    fn over(&mut self, cause: Cause) {
        // Closed is closed, however the connection then went.
        self.state = State::Over(self.cause().unwrap_or(cause));
        (self.ping_at, self.silent_at, self.stalled_at) = (None, None, None);
    }

    /// RFC 6455 §7.1.1: the server closes the connection once both Closes have gone; the client waits for that.
    fn settle(&mut self) {
        let State::Closing(Closing { cause, heard, legible, .. }) = self.state else { return };
        if self.outgoing.is_empty() && (!legible || (heard && self.is_relay)) {
            self.lingers = !legible;
            self.over(cause);
        }
    }

    /// Whether the peer may still be sending what will not be read, and for how long that is to be thrown away: a close with
    /// unread bytes would be a reset, which may overtake the close frame.
    pub(super) fn lingers(&self) -> Option<Duration> {
        (self.lingers && self.is_over()).then_some(self.config.close_within)
    }

    /// The connection broke, or its end came before everything was said.
    pub(super) fn lost(&mut self) {
        self.over(Cause::Lost);
    }

    /// Reads from `bytes`, which it moves on, to the next message that counts; `None` if there is none in them. Unless one is
    /// `wanted`, it stops at the first frame that is part of one.
    pub(super) fn next_if(&mut self, wanted: bool, bytes: &mut &[u8], now: Instant) -> Option<Message> {
        if !self.listens() {
            self.throw_away(bytes.len());
        }
        while self.reads() {
            match self.decoder.next(bytes, wanted || !self.listens()) {
                Ok(Some(received)) => {
                    if let Some(message) = self.take_in(received, now) {
                        return Some(message);
                    }
                }
                Ok(None) => return None,
                Err(fault) => self.fail(fault, false, now),
            }
        }
        None
    }

    /// The closing handshake is bounded in time; whoever broke a rule gets less.
    fn throw_away(&mut self, bytes: usize) {
        self.thrown_away = self.thrown_away.saturating_add(bytes);
        if let Some(cause @ Cause::Fault(_)) = self.cause()
            && self.thrown_away > LINGER
        {
            self.over(cause);
        }
    }

    fn take_in(&mut self, received: Received, now: Instant) -> Option<Message> {
        (self.alive, self.silent_at) = (true, None);
        match received {
            Received::Close(code) => self.close_came(code, now),
            _ if !self.listens() => {}
            Received::Text(text) => return Some(Message::Text(text)),
            Received::Binary(bytes) => return Some(Message::Binary(bytes)),
            Received::Pong(_) if self.pongs_due > 0 => self.pongs_due -= 1,
            received => {
                // A pong that nobody asked for is legal (RFC 6455 §5.5.3), within the rate.
                if !self.controls.take(now) {
                    self.fail(Fault::new(close::POLICY, "too many control frames"), true, now);
                } else if let Received::Ping(payload) = received
                    // Nothing follows our Close (RFC 6455 §5.5.1).
                    && self.is_open()
                {
                    self.outgoing.pong(&payload);
                }
            }
        }
        None
    }

    fn close_came(&mut self, code: Option<u16>, now: Instant) {
        match &mut self.state {
            State::Open => {
                self.outgoing.drop_data();
                self.outgoing.close(code, "");
                self.closing(Cause::Peer(code), now, |closing| closing.heard = true);
            }
            State::Closing(closing) => {
                closing.heard = true;
                self.settle();
            }
            State::Over(_) => {}
        }
    }

    /// What is to be written next; empty if nothing is.
    pub(super) fn chunk(&mut self) -> &[u8] {
        if self.is_over() { &[] } else { self.outgoing.chunk() }
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.is_over() && !self.outgoing.is_empty()
    }

    /// Whether everything that was to be written was.
    pub(super) fn is_clean(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// So much was written; none, if the peer takes nothing now.
    pub(super) fn written(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.outgoing.advance(bytes);
            // A peer that makes room again lives; its pong stands behind what was written. That there is room tells nothing:
            // the system takes for a peer that is gone, too.
            if self.stalled_at.take().is_some() {
                self.silent_at = self.silent_at.map(|_| now + self.config.answer_within);
            }
        }
        if self.outgoing.is_empty() {
            self.stalled_at = None;
            self.settle();
        } else if !self.is_over() {
            self.stalled_at.get_or_insert(now + self.config.write_within);
        }
    }

    /// When to come back with [`timeout`](Self::timeout).
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let closing = match self.state {
            State::Closing(Closing { until, .. }) => Some(until),
            State::Open => None,
            State::Over(_) => return None,
        };
        let patient = self.patient_until.filter(|_| self.outgoing.is_patient());
        [self.ping_at, self.silent_at, self.stalled_at, closing, patient].into_iter().flatten().min()
    }

    /// Time has passed. `deaf`: nothing is read now, so that silence says nothing.
    pub(super) fn timeout(&mut self, deaf: bool, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        match self.state {
            State::Over(_) => return,
            State::Closing(Closing { until, cause, .. }) if until <= now => return self.over(cause),
            _ => {}
        }
        if due(self.stalled_at) {
            tracing::debug!("the peer takes nothing of what is written");
            return self.over(Cause::Lost);
        }
        if due(self.silent_at) {
            if !deaf {
                tracing::debug!("no answer to a ping");
                return self.over(Cause::Lost);
            }
            self.silent_at = Some(now + self.config.answer_within);
        }
        if due(self.patient_until) {
            self.patient_until = None;
            self.outgoing.hurry();
        }
        if due(self.ping_at) {
            self.ping();
            self.ping_at = self.config.ping_every.map(|every| now + every);
            self.silent_at.get_or_insert(now + self.config.answer_within);
        }
    }
}
