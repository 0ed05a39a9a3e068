//! A control session on one connection, at either end.
//!
//! ```text
//! Open ── owner closes, or a rule is broken ─▶ Closing(our Close sent) ── peer's Close ─▶ Closing(both) ─▶ Over
//! Open ── peer's Close ─▶ Closing(both: ours is the answer) ── all written (device: and end of stream) ─▶ Over
//! Open, Closing ── silence, no room to write, end of stream, time is up ─▶ Over
//! ```
//!
//! The driver hands in bytes ([`Machine::received`]), the time ([`Machine::timeout`]), the owner's envelopes
//! ([`Machine::push`]) and orders, writes what [`Machine::chunk`] gives, and carries out [`Machine::poll_output`]. It
//! reads from the connection while [`Machine::wants_read`] says so, and comes back at [`Machine::wake_at`].

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use relay_core::{
    envelope::Envelope,
    ids::DeviceId,
    transport::{CloseReason, EndReason},
};

pub use super::outgoing::Masks;
use super::{
    frame::{Decoder, Fault, Received, Side},
    outgoing::Outgoing,
    rate::Bucket,
};
use crate::{
    config::ControlConfig,
    wire::{
        close,
        control::{self, Read},
    },
};

/// How long an envelope that the owner had no room for waits for the next try, at first and at most.
const OFFER_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long a connection that is suspected may take to show life.
const SUSPECT: Duration = Duration::from_secs(5);
/// How much is still read, and thrown away, of a peer that broke a rule.
pub(crate) const LINGER: usize = 1024 * 1024;
/// Of each answer that is due: one that it is received, one that is final.
const ANSWERS: u32 = 2;

/// Which end the machine is.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// The relay, which listens.
    Relay,
    /// The device, which dialled and masks what it sends.
    Device(Masks),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// The peer showed a sign of life.
    Alive,
    /// The peer said this.
    Envelope(Envelope),
    /// It is over; nothing follows.
    Ended(EndReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closing(Closing),
    Over(EndReason),
}

/// Our Close is sent, or waits to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Closing {
    reason: EndReason,
    until: Instant,
    /// The peer's Close came: nothing more does.
    heard: bool,
    /// What the peer still says counts.
    listening: bool,
    /// What it still says can be read, so that its Close will be found.
    legible: bool,
}

/// An envelope that the owner had no room for.
#[derive(Debug, Clone, Copy)]
struct Held {
    until: Instant,
    patience: Duration,
    /// Whether it is to be offered now.
    due: bool,
}

/// How often things happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Elements that were passed over.
    pub ignored: u64,
}

/// A control session on one connection.
#[derive(Debug)]
pub struct Machine {
    end: End,
    device: DeviceId,
    config: ControlConfig,
    state: State,
    decoder: Decoder,
    /// Bytes that came and are not yet read, since the owner has no room.
    unread: Vec<u8>,
    outgoing: Outgoing,
    inbox: VecDeque<Envelope>,
    alive: bool,
    ended: bool,
    held: Option<Held>,
    messages: Option<Bucket>,
    controls: Bucket,
    /// Answers of the peer that do not count as its own messages.
    answers_due: u32,
    pongs_due: u32,
    pings: u64,
    ping_at: Option<Instant>,
    keepalive_at: Option<Instant>,
    /// When the connection counts as lost unless something comes.
    silent_at: Option<Instant>,
    /// When it does unless something can be written.
    stalled_at: Option<Instant>,
    /// When the relay said that a device may come back.
    retry_after: Option<Duration>,
    thrown_away: usize,
    lingers: bool,
    stats: Stats,
}

impl Machine {
    /// A session of `device`, on a connection that is there since `now`.
    pub fn new(end: End, device: DeviceId, config: ControlConfig, now: Instant) -> Self {
        let (side, masks) = match end {
            End::Relay => (Side::Server, None),
            End::Device(masks) => (Side::Client, Some(masks)),
        };
        Self {
            end,
            device,
            state: State::Open,
            decoder: Decoder::new(side, config.frames),
            unread: Vec::new(),
            outgoing: Outgoing::new(masks),
            inbox: VecDeque::new(),
            alive: false,
            ended: false,
            held: None,
            messages: config.messages.map(|(rate, burst)| Bucket::new(rate, burst, now)),
            controls: Bucket::new(config.controls.0, config.controls.1, now),
            answers_due: 0,
            pongs_due: 0,
            pings: 0,
            ping_at: config.ping_every.map(|every| now + every),
            keepalive_at: config.keepalive.map(|keepalive| now + keepalive),
            silent_at: None,
            stalled_at: None,
            retry_after: None,
            thrown_away: 0,
            lingers: false,
            stats: Stats::default(),
            config,
        }
    }

    const fn is_relay(&self) -> bool {
        matches!(self.end, End::Relay)
    }

    /// How often things happened.
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether [`push`](Self::push) has room.
    pub fn has_room(&self) -> bool {
        self.state == State::Open && self.outgoing.len() < self.config.write_ahead
    }

    /// Why nothing can be pushed any more, if that is so.
    pub const fn end(&self) -> Option<EndReason> {
        match self.state {
            State::Open => None,
            State::Closing(Closing { reason, .. }) | State::Over(reason) => Some(reason),
        }
    }

    /// Whether nothing is left to be done on the connection.
    pub const fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    /// Whether the end came in order: what is written was written whole, and the connection may be closed rather than cut.
    pub fn is_clean(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Whether the peer may still be sending what will not be read, and for how long that is to be thrown away: a close with
    /// unread bytes would be a reset, which may overtake the close frame.
    pub fn lingers(&self) -> Option<Duration> {
        (self.lingers && self.is_over()).then_some(self.config.close_within)
    }

    /// Whether bytes are to be read from the connection.
    pub fn wants_read(&self) -> bool {
        !self.is_over() && self.unread.is_empty()
    }

    /// Takes an envelope of the owner's. Whoever asks first whether it [`has_room`](Self::has_room) keeps the bounds.
    pub fn push(&mut self, envelope: &Envelope, now: Instant) {
        if self.state != State::Open {
            return;
        }
        if matches!(envelope, Envelope::Request { .. }) {
            self.answers_due = self.answers_due.saturating_add(ANSWERS);
        }
        if let Some(text) = control::encode(envelope, &self.device, now) {
            self.outgoing.text(&text);
        }
    }

    /// The owner ends the session.
    pub fn close(&mut self, reason: CloseReason, now: Instant) {
        if self.state != State::Open {
            return;
        }
        if let CloseReason::Drain { retry_after } | CloseReason::Overloaded { retry_after } = reason {
            self.push(&Envelope::Drain { retry_after, to: None }, now);
        }
        let (code, words) = close::of_reason(reason, self.is_relay());
        self.outgoing.close(Some(code), words);
        self.closing(EndReason::Closed, now, |closing| closing.listening = true);
    }

    /// The owner thinks that the connection may be dead: it is given a short time to show otherwise.
    pub fn suspect(&mut self, now: Instant) {
        if self.state == State::Open {
            self.send_ping();
            self.push(&Envelope::Ping, now);
            let until = now + SUSPECT;
            self.silent_at = Some(self.silent_at.map_or(until, |at| at.min(until)));
        }
    }

    fn send_ping(&mut self) {
        self.pings += 1;
        self.pongs_due = self.pongs_due.saturating_add(1);
        let payload = self.pings.to_be_bytes();
        self.outgoing.ping(&payload);
    }

    fn closing(&mut self, reason: EndReason, now: Instant, change: impl FnOnce(&mut Closing)) {
        let until = now + self.config.close_within;
        let mut closing = Closing { reason, until, heard: false, listening: false, legible: true };
        change(&mut closing);
        self.state = State::Closing(closing);
        (self.ping_at, self.keepalive_at, self.silent_at) = (None, None, None);
        self.settle();
    }

    /// Bytes came before the opening handshake was over.
    pub fn too_early(&mut self, now: Instant) {
        self.fail(Fault::new(close::PROTOCOL, "frames before the opening handshake was over"), false, now);
    }

    /// The peer broke a rule. `legible`: its frames are still known from one another.
    fn fail(&mut self, fault: Fault, legible: bool, now: Instant) {
        tracing::debug!(device = %self.device, code = fault.code, words = fault.words, "the peer broke a rule");
        match &mut self.state {
            State::Open => {
                self.outgoing.drop_data();
                self.outgoing.close(Some(fault.code), fault.words);
                self.closing(EndReason::Misbehaved, now, |closing| closing.legible = legible);
            }
            State::Closing(closing) => (closing.listening, closing.legible) = (false, legible),
            State::Over(_) => {}
        }
    }

    fn over(&mut self, reason: EndReason) {
        // Closed is closed, however the connection then went.
        let reason = self.end().unwrap_or(reason);
        self.state = State::Over(reason);
        self.unread = Vec::new();
        (self.ping_at, self.keepalive_at, self.silent_at, self.stalled_at) = (None, None, None, None);
    }

    /// RFC 6455 §7.1.1: the server closes the connection once both Closes have gone; the client waits for that.
    fn settle(&mut self) {
        let State::Closing(Closing { reason, heard, legible, .. }) = self.state else { return };
        if self.outgoing.is_empty() && (!legible || (heard && self.is_relay())) {
            self.lingers = !legible;
            self.over(reason);
        }
    }

    /// Bytes came.
    pub fn received(&mut self, bytes: &[u8], now: Instant) {
        if bytes.is_empty() || self.is_over() {
            return;
        }
        if self.unread.is_empty() {
            let mut rest = bytes;
            self.read(&mut rest, now);
            if self.keeps_reading() {
                self.unread = rest.to_vec();
            }
        } else {
            self.unread.extend_from_slice(bytes);
            self.read_on(now);
        }
    }

    const fn keeps_reading(&self) -> bool {
        matches!(self.state, State::Open | State::Closing(Closing { heard: false, legible: true, .. }))
    }

    /// Whether what the peer says counts.
    const fn listens(&self) -> bool {
        matches!(self.state, State::Open | State::Closing(Closing { heard: false, listening: true, .. }))
    }

    /// Reads on in what was left over.
    fn read_on(&mut self, now: Instant) {
        if self.unread.is_empty() {
            return;
        }
        let unread = std::mem::take(&mut self.unread);
        let mut rest = &unread[..];
        self.read(&mut rest, now);
        if self.keeps_reading() && !rest.is_empty() {
            self.unread = rest.to_vec();
        }
    }

    fn read(&mut self, bytes: &mut &[u8], now: Instant) {
        if !self.listens() {
            self.throw_away(bytes.len());
        }
        while self.keeps_reading() {
            // While the owner has no room, nothing is read that would only wait here.
            let data = self.held.is_none() || !self.listens();
            match self.decoder.next(bytes, data) {
                Ok(Some(received)) => self.take_in(received, now),
                Ok(None) => return,
                Err(fault) => self.fail(fault, false, now),
            }
        }
    }

    fn throw_away(&mut self, bytes: usize) {
        self.thrown_away = self.thrown_away.saturating_add(bytes);
        if self.thrown_away > LINGER {
            self.over(EndReason::Misbehaved);
        }
    }

    fn take_in(&mut self, received: Received, now: Instant) {
        self.alive = true;
        self.silent_at = None;
        if !self.listens() && !matches!(received, Received::Close(_)) {
            return;
        }
        match received {
            Received::Text(message) => self.message(&message, now),
            // The decoder takes none.
            Received::Binary(_) => self.refuse(close::UNSUPPORTED, "messages here are text", now),
            Received::Ping(payload) => {
                if self.controls.take(now) {
                    // No pong after our Close: nothing may follow that (RFC 6455 §5.5.1).
                    if self.state == State::Open {
                        self.outgoing.pong(&payload);
                    }
                } else {
                    self.refuse(close::POLICY, "too many control frames", now);
                }
            }
            Received::Pong(_) if self.pongs_due > 0 => self.pongs_due -= 1,
            Received::Pong(_) => {
                // Unasked for is legal (RFC 6455 §5.5.3), within the rate.
                if !self.controls.take(now) {
                    self.refuse(close::POLICY, "too many control frames", now);
                }
            }
            Received::Close(code) => self.close_came(code, now),
        }
    }

    /// The peer broke a rule with a frame that is one.
    fn refuse(&mut self, code: u16, words: &'static str, now: Instant) {
        self.fail(Fault::new(code, words), true, now);
    }

    fn close_came(&mut self, code: Option<u16>, now: Instant) {
        match &mut self.state {
            State::Open => {
                let reason = match self.end {
                    End::Relay => close::end_at_relay(code),
                    End::Device(_) => close::end_at_device(code, self.retry_after),
                };
                self.outgoing.drop_data();
                self.outgoing.close(code, "");
                self.closing(reason, now, |closing| closing.heard = true);
            }
            State::Closing(closing) => {
                closing.heard = true;
                self.settle();
            }
            State::Over(_) => {}
        }
    }

    fn message(&mut self, message: &[u8], now: Instant) {
        self.keepalive_at = self.config.keepalive.filter(|_| self.state == State::Open).map(|k| now + k);
        let read = match control::decode(message, &self.config.xml, &self.device, self.is_relay(), now) {
            Ok(read) => read,
            Err(fault) => return self.fail(fault, true, now),
        };
        let answers = matches!(read, Read::Envelope(Envelope::Response { .. } | Envelope::Received { .. }));
        if answers && self.answers_due > 0 {
            self.answers_due -= 1;
        } else if let Some(messages) = &mut self.messages
            && !messages.take(now)
        {
            return self.refuse(close::POLICY, "too many messages", now);
        }
        match read {
            Read::Envelope(envelope) => {
                if let Envelope::Drain { retry_after, .. } = envelope {
                    self.retry_after = Some(retry_after);
                }
                self.inbox.push_back(envelope);
            }
            Read::Ignored(why) => {
                self.stats.ignored += 1;
                tracing::debug!(device = %self.device, %why, ignored = self.stats.ignored, "ignored");
            }
        }
    }

    /// The peer sends no more.
    pub fn end_of_stream(&mut self) {
        self.over(EndReason::Lost);
    }

    /// The connection broke.
    pub fn broken(&mut self) {
        self.over(EndReason::Lost);
    }

    /// What is to be written next; empty if nothing is.
    pub fn chunk(&mut self) -> &[u8] {
        if self.is_over() { &[] } else { self.outgoing.chunk() }
    }

    /// Whether there is something to be written.
    pub fn wants_write(&self) -> bool {
        !self.is_over() && !self.outgoing.is_empty()
    }

    /// So much of it was written; none, if the peer takes nothing now.
    pub fn written(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.outgoing.advance(bytes);
            self.stalled_at = None;
        }
        if self.outgoing.is_empty() {
            self.stalled_at = None;
            self.settle();
        } else if !self.is_over() {
            self.stalled_at.get_or_insert(now + self.config.write_within);
        }
    }

    /// When to come back with [`timeout`](Self::timeout).
    pub fn wake_at(&self) -> Option<Instant> {
        let closing = match self.state {
            State::Closing(Closing { until, .. }) => Some(until),
            State::Open => None,
            State::Over(_) => return None,
        };
        let held = self.held.filter(|held| !held.due).map(|held| held.until);
        [self.ping_at, self.keepalive_at, self.silent_at, self.stalled_at, closing, held]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(held) = self.held.as_mut().filter(|held| held.until <= now) {
            held.due = true;
        }
        match self.state {
            State::Over(_) => return,
            State::Closing(Closing { until, reason, .. }) if until <= now => return self.over(reason),
            _ => {}
        }
        if due(self.stalled_at) {
            tracing::debug!(device = %self.device, "the peer takes nothing of what is written");
            return self.over(EndReason::Lost);
        }
        if due(self.silent_at) {
            if self.unread.is_empty() {
                tracing::debug!(device = %self.device, "no answer to a ping");
                return self.over(EndReason::Lost);
            }
            // The answer may stand behind what the owner has no room for.
            self.silent_at = Some(now + self.config.answer_within);
        }
        if due(self.ping_at) {
            self.send_ping();
            self.ping_at = self.config.ping_every.map(|every| now + every);
            self.silent_at.get_or_insert(now + self.config.answer_within);
        }
        if due(self.keepalive_at) {
            self.push(&Envelope::Ping, now);
            self.keepalive_at = self.config.keepalive.map(|keepalive| now + keepalive);
            self.silent_at.get_or_insert(now + self.config.answer_within);
        }
    }

    /// What is to be done; `None` if nothing is now.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        if std::mem::take(&mut self.alive) {
            return Some(Output::Alive);
        }
        if self.held.is_none_or(|held| held.due || self.is_over()) {
            if let Some(envelope) = self.inbox.pop_front() {
                return Some(Output::Envelope(envelope));
            }
            if self.inbox.capacity() > 0 {
                self.inbox = VecDeque::new();
            }
            if self.held.take().is_some() {
                self.read_on(now);
                return self.poll_output(now);
            }
        }
        match self.state {
            State::Over(reason) if !self.ended => {
                self.ended = true;
                Some(Output::Ended(reason))
            }
            _ => None,
        }
    }

    /// The owner has no room for `envelope`: it is offered again a little later, and nothing is read until then.
    pub fn give_back(&mut self, envelope: Envelope, now: Instant) {
        if self.is_over() {
            // It was the owner's last chance.
            return;
        }
        self.inbox.push_front(envelope);
        let patience = self.held.map_or(OFFER_AGAIN.0, |held| (held.patience * 2).min(OFFER_AGAIN.1));
        self.held = Some(Held { until: now + patience, patience, due: false });
    }
}

#[cfg(test)]
#[path = "control_tests/mod.rs"]
mod tests;
