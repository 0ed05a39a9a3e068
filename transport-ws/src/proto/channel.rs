//! A job's channel on one connection, at either end.
//!
//! The driver hands in bytes ([`Machine::received`]), the time ([`Machine::timeout`]), the owner's messages
//! ([`Machine::push`]) and that it closes, writes what [`Machine::chunk`] gives, and hands on what
//! [`Machine::pop`] gives. It reads from the connection while [`Machine::wants_read`] says so, and comes back at
//! [`Machine::wake_at`].
//!
//! A message that the owner has not asked for waits here, within a bound; beyond it nothing is read, and the peer finds
//! its window closed. Credit keeps a peer that obeys it from getting there.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use relay_core::{
    ids::{AppName, RequestId},
    transport::CloseReason,
    xml::Element,
};

pub use super::link::Cause;
use super::{
    control::End,
    frame::Fault,
    link::{Link, LinkConfig, Message as Received},
    rate::Bucket,
};
use crate::{
    config::ChannelConfig,
    wire::{
        channel::{Message, Words},
        close,
    },
};

/// What a message counts beside its payload.
const FLAT: usize = 64;
/// Of each piece of data: one that there is new credit, one how far the app is. X4: they count against no rate.
const ANSWERS: u32 = 2;
/// How many of those may be saved up.
const MAX_ANSWERS: u32 = 1_000;

/// A message is larger than what goes on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message has {size} bytes, {max} go on a channel in one piece")]
pub struct TooLarge {
    /// Its size in bytes.
    pub size: usize,
    /// The bound in bytes.
    pub max: usize,
}

/// A channel on one connection.
#[derive(Debug)]
pub struct Machine<W: Words> {
    job: RequestId,
    app: AppName,
    config: ChannelConfig,
    link: Link,
    inbox: VecDeque<W::In>,
    inbox_bytes: usize,
    /// Bytes that came and are not yet read, since too much waits for the owner.
    unread: Vec<u8>,
    /// A message came: the relay's first is the header.
    begun: bool,
    /// The owner hears nothing any more.
    deaf: bool,
    messages: Option<Bucket>,
    answers_due: u32,
    /// Elements that were passed over.
    ignored: u64,
}

impl<W: Words> Machine<W> {
    /// The channel of `job`, which is one of `app`, on a connection that is there since `now`.
    pub fn new(end: End, job: RequestId, app: AppName, config: ChannelConfig, now: Instant) -> Self {
        let link = LinkConfig {
            frames: config.frames,
            controls: config.controls,
            ping_every: config.ping_every,
            answer_within: config.answer_within,
            write_within: config.write_within,
            close_within: config.close_within,
        };
        Self {
            job,
            app,
            link: Link::new(end, link, now),
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            unread: Vec::new(),
            begun: false,
            deaf: false,
            messages: config.messages.map(|(rate, burst)| Bucket::new(rate, burst, now)),
            answers_due: 0,
            ignored: 0,
            config,
        }
    }

    /// Bytes that it keeps: of what came and was not handed on, and of what is not yet written.
    pub fn held(&self) -> usize {
        self.link.held() + self.inbox_bytes + self.unread.capacity()
    }

    /// The job.
    pub const fn job(&self) -> &RequestId {
        &self.job
    }

    /// Whether this is the relay's end.
    pub const fn is_relay(&self) -> bool {
        self.link.is_relay()
    }

    /// How many elements were passed over.
    pub const fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Whether [`push`](Self::push) has room.
    pub fn has_room(&self) -> bool {
        self.link.is_open() && self.link.unwritten() < self.config.write_ahead
    }

    /// Why nothing can be pushed any more, if that is so.
    pub const fn cause(&self) -> Option<Cause> {
        self.link.cause()
    }

    /// Whether nothing is left to be done on the connection.
    pub const fn is_over(&self) -> bool {
        self.link.is_over()
    }

    /// Whether what was written was written whole, and the connection may be closed rather than cut.
    pub fn is_clean(&self) -> bool {
        self.link.is_clean()
    }

    /// For how long what the peer still sends is to be thrown away before the connection is closed, if that is so.
    pub fn lingers(&self) -> Option<Duration> {
        self.link.lingers()
    }

    /// Takes a message of the owner's. Whoever asks first whether it [`has_room`](Self::has_room) keeps the bounds.
    ///
    /// # Errors
    /// [`TooLarge`]: it was not taken, and the channel goes on.
    pub fn push(&mut self, message: W::Out) -> Result<(), TooLarge> {
        let message = W::encode(message, &self.job, &self.app);
        let size = match &message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) => bytes.len(),
        };
        // What is taken of a peer is what may be sent to it.
        let max = self.config.frames.message;
        if size > max {
            return Err(TooLarge { size, max });
        }
        match message {
            Message::Text(text) => self.link.text(&text),
            Message::Binary(bytes) => {
                self.answers_due = (self.answers_due + ANSWERS).min(MAX_ANSWERS);
                self.link.binary(&bytes);
            }
        }
        Ok(())
    }

    /// The owner closes the channel: in order, or for `reason`.
    pub fn close(&mut self, reason: Option<&CloseReason>, now: Instant) {
        let (code, words) =
            reason.map_or((close::NORMAL, ""), |reason| close::of_reason(reason, self.link.is_relay()));
        self.link.close(code, words, now);
        if self.cause() == Some(Cause::Closed) {
            self.deafen(now);
        }
    }

    /// The owner wants to hear nothing any more: what comes is thrown away.
    pub fn deafen(&mut self, now: Instant) {
        self.deaf = true;
        (self.inbox, self.inbox_bytes) = (VecDeque::new(), 0);
        self.read_on(now);
    }

    /// The owner is gone. A channel that is open breaks; a closing handshake goes on.
    pub fn abandon(&mut self, now: Instant) {
        self.deafen(now);
        if self.link.is_open() {
            self.link.lost();
        }
    }

    /// Bytes came before the opening handshake was over.
    pub fn too_early(&mut self, now: Instant) {
        self.fail(Fault::new(close::PROTOCOL, "frames before the opening handshake was over"), false, now);
    }

    fn fail(&mut self, fault: Fault, legible: bool, now: Instant) {
        if self.link.is_open() {
            tracing::debug!(request = %self.job, code = fault.code, words = fault.words, "the peer broke a rule");
        }
        self.link.fail(fault, legible, now);
    }

    /// Whether bytes are to be read from the connection.
    pub fn wants_read(&self) -> bool {
        !self.is_over() && self.unread.is_empty() && self.listens()
    }

    /// Whether there is room for another message.
    fn listens(&self) -> bool {
        !self.link.is_open() || self.inbox_bytes < self.config.read_ahead
    }

    /// Bytes came.
    pub fn received(&mut self, bytes: &[u8], now: Instant) {
        if self.unread.is_empty() {
            self.read(bytes, now);
        } else {
            self.unread.extend_from_slice(bytes);
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
        // Control frames that stand before the next message are read in any case: a ping is answered, a Close heard.
        while let Some(received) = self.link.next_if(self.listens(), &mut bytes, now) {
            let read = match received {
                Received::Text(text) => self.read_text(&text, now),
                Received::Binary(bytes) if !self.begun => {
                    self.fail(Fault::new(close::POLICY, "data before the header"), true, now);
                    drop(bytes);
                    None
                }
                Received::Binary(bytes) => W::binary(bytes),
            };
            self.begun = true;
            if let Some(message) = read.filter(|_| !self.deaf) {
                self.inbox_bytes += FLAT + W::len(&message);
                self.inbox.push_back(message);
            }
        }
        if self.link.reads() {
            self.unread = bytes.to_vec();
        }
    }

    fn read_text(&mut self, text: &[u8], now: Instant) -> Option<W::In> {
        if self.answers_due > 0 {
            self.answers_due -= 1;
        } else if let Some(messages) = &mut self.messages
            && !messages.take(now)
        {
            self.fail(Fault::new(close::POLICY, "too many messages"), true, now);
            return None;
        }
        let element = match Element::parse(text, &self.config.xml) {
            Ok(element) => element,
            Err(error) => {
                tracing::debug!(request = %self.job, %error, "a message that is not one element");
                self.fail(Fault::new(close::INVALID, "a message is not one XML element"), true, now);
                return None;
            }
        };
        match W::text(&element, !self.begun) {
            Ok(Some(message)) => Some(message),
            Ok(None) => {
                self.ignored += 1;
                tracing::debug!(request = %self.job, ignored = self.ignored, "an element that is not known here");
                None
            }
            Err(error) => {
                tracing::debug!(request = %self.job, %error, "an element that cannot be read");
                self.fail(Fault::new(close::POLICY, "an element means nothing on a channel"), true, now);
                None
            }
        }
    }

    /// The next message of the peer's.
    pub fn pop(&mut self, now: Instant) -> Option<W::In> {
        let message = self.inbox.pop_front()?;
        self.inbox_bytes -= FLAT + W::len(&message);
        // Not for every message: what is left over each time is copied.
        if self.inbox_bytes <= self.config.read_ahead / 2 {
            self.read_on(now);
        }
        if self.inbox.is_empty() {
            self.inbox = VecDeque::new();
        }
        Some(message)
    }

    /// Whether [`pop`](Self::pop) has something to give.
    pub fn has_news(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Why [`pop`](Self::pop) will give nothing more, if that is so.
    pub fn ended(&self) -> Option<Cause> {
        let cause = self.cause().filter(|_| self.inbox.is_empty())?;
        // This end's own close is over when the peer has heard of it.
        (cause != Cause::Closed || self.is_over()).then_some(cause)
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
        self.link.wake_at()
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Instant) {
        self.link.timeout(!self.wants_read(), now);
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
