//! A control session on one connection, at either end.
//!
//! The driver hands in bytes ([`Machine::received`]), the time ([`Machine::timeout`]), the owner's envelopes
//! ([`Machine::push`]) and orders, writes what [`Machine::chunk`] gives, and carries out [`Machine::poll_output`]. It
//! reads from the connection while [`Machine::wants_read`] says so, and comes back at [`Machine::wake_at`].
//!
//! An envelope that the owner has no room for is offered again, and nothing is read meanwhile but control frames that
//! stand before the next message: a peer's ping does not go without its answer because this end's owner is busy.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use relay_core::{
    envelope::Envelope,
    ids::DeviceId,
    transport::{CloseReason, EndReason},
};

pub(crate) use super::link::LINGER;
pub use super::outgoing::Masks;
use super::{
    frame::Fault,
    link::{Cause, Link, LinkConfig, Message},
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
/// How long the verdict on an answer waits for something to go with. A peer waits for none of them, and a write costs as much
/// as all else that is done for an answer.
const VERDICT_WITHIN: Duration = Duration::from_secs(1);
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
    device: DeviceId,
    config: ControlConfig,
    link: Link,
    /// Bytes that came and are not yet read, since the owner has no room.
    unread: Vec<u8>,
    inbox: VecDeque<Envelope>,
    ended: bool,
    held: Option<Held>,
    messages: Option<Bucket>,
    /// Answers of the peer that do not count as its own messages.
    answers_due: u32,
    keepalive_at: Option<Instant>,
    /// When the relay said that a device may come back.
    retry_after: Option<Duration>,
    stats: Stats,
}

impl Machine {
    /// A session of `device`, on a connection that is there since `now`.
    pub fn new(end: End, device: DeviceId, config: ControlConfig, now: Instant) -> Self {
        let link = LinkConfig {
            frames: config.frames,
            controls: config.controls,
            ping_every: config.ping_every,
            answer_within: config.answer_within,
            write_within: config.write_within,
            close_within: config.close_within,
        };
        Self {
            device,
            link: Link::new(end, link, now),
            unread: Vec::new(),
            inbox: VecDeque::new(),
            ended: false,
            held: None,
            messages: config.messages.map(|(rate, burst)| Bucket::new(rate, burst, now)),
            answers_due: 0,
            keepalive_at: config.keepalive.map(|keepalive| now + keepalive),
            retry_after: None,
            stats: Stats::default(),
            config,
        }
    }

    /// How often things happened.
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether [`push`](Self::push) has room.
    pub fn has_room(&self) -> bool {
        self.link.is_open() && self.link.unwritten() < self.config.write_ahead
    }

    /// Why nothing can be pushed any more, if that is so.
    pub fn end(&self) -> Option<EndReason> {
        self.link.cause().map(|cause| match cause {
            Cause::Closed => EndReason::Closed,
            Cause::Peer(code) if self.link.is_relay() => close::end_at_relay(code),
            Cause::Peer(code) => close::end_at_device(code, self.retry_after),
            Cause::Fault(_) => EndReason::Misbehaved,
            Cause::Lost => EndReason::Lost,
        })
    }

    /// The rule that the peer broke, if that was the end.
    pub const fn fault(&self) -> Option<Fault> {
        match self.link.cause() {
            Some(Cause::Fault(fault)) => Some(fault),
            _ => None,
        }
    }

    /// Whether nothing is left to be done on the connection.
    pub const fn is_over(&self) -> bool {
        self.link.is_over()
    }

    /// Whether the end came in order: what is written was written whole, and the connection may be closed rather than cut.
    pub fn is_clean(&self) -> bool {
        self.link.is_clean()
    }

    /// Whether the peer may still be sending what will not be read, and for how long that is to be thrown away: a close with
    /// unread bytes would be a reset, which may overtake the close frame.
    pub fn lingers(&self) -> Option<Duration> {
        self.link.lingers()
    }

    /// Bytes that it keeps: of what came and was not handed on, and of what is not yet written.
    pub fn held(&self) -> usize {
        let inbox: usize = self.inbox.iter().map(Envelope::cost).sum();
        self.link.held() + self.unread.capacity() + inbox
    }

    /// Whether bytes are to be read from the connection.
    pub fn wants_read(&self) -> bool {
        !self.is_over() && self.unread.is_empty()
    }

    /// Takes an envelope of the owner's. Whoever asks first whether it [`has_room`](Self::has_room) keeps the bounds.
    pub fn push(&mut self, envelope: &Envelope, now: Instant) {
        if !self.link.is_open() {
            return;
        }
        if matches!(envelope, Envelope::Request { .. }) {
            self.answers_due = self.answers_due.saturating_add(ANSWERS);
        }
        let Some(text) = control::encode(envelope, &self.device, now) else { return };
        if matches!(envelope, Envelope::Ack { .. }) {
            self.link.text_within(&text, VERDICT_WITHIN, now);
        } else {
            self.link.text(&text);
        }
    }

    /// The owner ends the session.
    pub fn close(&mut self, reason: CloseReason, now: Instant) {
        let (code, words) = close::of_reason(&reason, self.link.is_relay());
        let come_back = match reason {
            CloseReason::Drain { retry_after, to } => Some((retry_after, to)),
            CloseReason::Overloaded { retry_after } => Some((retry_after, None)),
            _ => None,
        };
        if let Some((retry_after, to)) = come_back {
            self.push(&Envelope::Drain { retry_after, to: to.as_deref().map(Into::into) }, now);
        }
        self.link.take_leave(code, words, now);
    }

    /// From now on a data frame goes after so long without a message from the peer, counted from the last one.
    pub fn set_keepalive(&mut self, keepalive: Option<Duration>, now: Instant) {
        let quiet_since = match (self.keepalive_at, self.config.keepalive) {
            (Some(at), Some(before)) => at.checked_sub(before).unwrap_or(now),
            _ => now,
        };
        self.config.keepalive = keepalive;
        self.keepalive_at = keepalive.map(|keepalive| quiet_since + keepalive);
    }

    /// The owner thinks that the connection may be dead: it is given a short time to show otherwise.
    pub fn suspect(&mut self, now: Instant) {
        self.push(&Envelope::Ping, now);
        self.link.suspect(SUSPECT, now);
    }

    /// Bytes came before the opening handshake was over.
    pub fn too_early(&mut self, now: Instant) {
        self.fail(Fault::new(close::PROTOCOL, "frames before the opening handshake was over"), false, now);
    }

    /// The peer broke a rule. `legible`: its frames are still known from one another.
    fn fail(&mut self, fault: Fault, legible: bool, now: Instant) {
        tracing::debug!(device = %self.device, code = fault.code, words = fault.words, "the peer broke a rule");
        self.link.fail(fault, legible, now);
    }

    /// Bytes came.
    pub fn received(&mut self, bytes: &[u8], now: Instant) {
        if bytes.is_empty() || self.is_over() {
            return;
        }
        if self.unread.is_empty() {
            self.read(bytes, now);
        } else {
            self.unread.extend_from_slice(bytes);
            self.read_on(now);
        }
    }

    /// Reads on in what was left over.
    fn read_on(&mut self, now: Instant) {
        let unread = std::mem::take(&mut self.unread);
        if !unread.is_empty() {
            self.read(&unread, now);
        }
    }

    fn read(&mut self, mut bytes: &[u8], now: Instant) {
        // While the owner has no room, nothing is read that would only wait here.
        while let Some(message) = self.link.next_if(self.held.is_none(), &mut bytes, now) {
            match message {
                Message::Text(text) => self.message(&text, now),
                // The decoder takes none.
                Message::Binary(_) => {
                    self.fail(Fault::new(close::UNSUPPORTED, "messages here are text"), true, now);
                }
            }
        }
        if self.link.reads() {
            self.unread = bytes.to_vec();
        }
    }

    fn message(&mut self, message: &[u8], now: Instant) {
        self.keepalive_at = self.config.keepalive.map(|keepalive| now + keepalive);
        let read = match control::decode(message, &self.config.xml, &self.device, self.link.is_relay(), now) {
            Ok(read) => read,
            Err(fault) => return self.fail(fault, true, now),
        };
        let answers = matches!(read, Read::Envelope(Envelope::Response { .. } | Envelope::Received { .. }));
        if answers && self.answers_due > 0 {
            self.answers_due -= 1;
        } else if let Some(messages) = &mut self.messages
            && !messages.take(now)
        {
            return self.fail(Fault::new(close::POLICY, "too many messages"), true, now);
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
        self.link.lost();
    }

    /// The connection broke.
    pub fn broken(&mut self) {
        self.link.lost();
    }

    /// What is to be written next; empty if nothing is.
    pub fn chunk(&mut self) -> &[u8] {
        self.link.chunk()
    }

    /// Whether there is something to be written.
    pub fn wants_write(&self) -> bool {
        self.link.wants_write()
    }

    /// So much of it was written; none, if the peer takes nothing now.
    pub fn written(&mut self, bytes: usize, now: Instant) {
        self.link.written(bytes, now);
    }

    /// When to come back with [`timeout`](Self::timeout).
    pub fn wake_at(&self) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let held = self.held.filter(|held| !held.due).map(|held| held.until);
        let keepalive = self.keepalive_at.filter(|_| self.link.is_open());
        [self.link.wake_at(), keepalive, held].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Instant) {
        if let Some(held) = self.held.as_mut().filter(|held| held.until <= now) {
            held.due = true;
        }
        // An answer may stand behind what the owner has no room for.
        self.link.timeout(!self.unread.is_empty(), now);
        if self.link.is_open() && self.keepalive_at.is_some_and(|at| at <= now) {
            self.push(&Envelope::Ping, now);
            self.keepalive_at = self.config.keepalive.map(|keepalive| now + keepalive);
            self.link.expect_answer(now);
        }
    }

    /// What is to be done; `None` if nothing is now.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        loop {
            if self.link.take_alive() {
                return Some(Output::Alive);
            }
            if self.held.is_some_and(|held| !held.due && !self.is_over()) {
                return None;
            }
            if let Some(envelope) = self.inbox.pop_front() {
                return Some(Output::Envelope(envelope));
            }
            self.inbox = VecDeque::new();
            if self.held.take().is_none() {
                break;
            }
            self.read_on(now);
        }
        let reason = self.end().filter(|_| self.is_over() && !self.ended)?;
        self.ended = true;
        Some(Output::Ended(reason))
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
