//! One job: from which offset its data is wanted, how much of it can be taken, what is to be said of it and when. No
//! I/O, no clock.
//!
//! ```text
//! Down ── its time ─▶ Opening ─▶ Open ── broke ─▶ Down        any ── the handler ended ─▶ its last word, then nothing
//!                        └─ failed ─▶ Down         Open (a stream) ── all is here ─▶ Down, not to be opened again
//! ```
//!
//! The data is linked to the relay by a channel of the transport's or by a stream of plain HTTP. Of the two the machine
//! knows one difference: on a channel the relay waits to be told from where and how much (`credit`), and listens there;
//! a stream begins where it was opened and is read as far as there is room, and what is said goes in the session.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use relay_core::app::{Digest, Progress, ToRelay};
use sha2::{Digest as _, Sha256};

use crate::{
    backoff::{Backoff, Jitter},
    handler::HandlerError,
};

/// What a header is when a job has none.
pub(crate) const NO_HEADER: &str = "<Job/>";

/// The times and bounds of one job.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes that may be here and not taken by the handler.
    pub(crate) window: u64,
    /// How long nothing may be said of a job that is at work: the relay gives up after 60 s.
    pub(crate) keep_alive: Duration,
    /// How often progress is said at most.
    pub(crate) news_every: Duration,
    /// How long a job is kept whose data cannot be had.
    pub(crate) give_up_after: Duration,
    /// The windows in which a link that broke is opened anew. The longest is well below the relay's patience.
    pub(crate) retry: (Duration, Duration),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 256 * 1024,
            keep_alive: Duration::from_secs(20),
            news_every: Duration::from_secs(1),
            give_up_after: Duration::from_secs(600),
            retry: (Duration::from_secs(1), Duration::from_secs(10)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down {
        retry_at: Instant,
    },
    Opening,
    /// `from`: where it begins, once that was said.
    Open {
        channel: bool,
        from: Option<u64>,
    },
}

/// What is to be done about the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Open it, so that data comes from there on.
    Open { from: u64 },
    /// Nothing before that time, or before something changes.
    Wait(Option<Instant>),
    /// It could not be had for so long that the relay has certainly given up.
    GiveUp,
    /// Nothing more: the handler ended.
    Over,
}

/// What the handler gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    Data(Bytes),
    /// All was taken, and is what was sent.
    End,
    Failed(HandlerError),
    /// Nothing yet.
    Wait,
}

/// The relay broke a rule: the link is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misbehaved {
    #[error("data beyond what was asked for")]
    BeyondCredit,
    #[error("data beyond the end")]
    BeyondEnd,
    #[error("an end without a hash")]
    NoDigest,
}

#[derive(Debug)]
pub(crate) struct Run {
    limits: Limits,
    jitter: Jitter,
    backoff: Backoff,
    link: Link,
    /// Counts links: what is said to an earlier one changes nothing.
    number: u64,
    was_opened: bool,
    /// Since when nothing useful came.
    trouble_since: Option<Instant>,
    header: Option<Box<str>>,
    /// The handler has asked for something: it will not say any more where it begins, unless it does so at once.
    begun: bool,
    /// `None`: the handler began where it says, and nobody knows the hash of what is before.
    hasher: Option<Sha256>,
    /// The offset of the next byte from the relay.
    position: u64,
    /// Up to where the relay may send on a channel.
    limit: u64,
    buffer: VecDeque<Bytes>,
    buffered: u64,
    /// The offset of the next byte for the handler.
    taken: u64,
    handed_out: bool,
    /// All is here.
    end: Option<Digest>,
    wrong: Option<HandlerError>,
    /// What the handler said.
    progress: Option<Progress>,
    news: bool,
    told_at: Instant,
    /// When the relay last heard of the job.
    said_at: Instant,
    /// The handler ended; the word for it that is yet to be said on a channel.
    last_word: Option<Option<ToRelay>>,
    had_word: bool,
}

impl Run {
    pub(crate) fn new(now: Instant, limits: Limits, header: Option<Box<str>>, seed: u64) -> Self {
        Self {
            jitter: Jitter::new(seed),
            backoff: Backoff::new(limits.retry.0, limits.retry.1),
            limits,
            link: Link::Down { retry_at: now },
            number: 0,
            was_opened: false,
            trouble_since: None,
            header,
            begun: false,
            hasher: Some(Sha256::new()),
            position: 0,
            limit: 0,
            buffer: VecDeque::new(),
            buffered: 0,
            taken: 0,
            handed_out: false,
            end: None,
            wrong: None,
            progress: None,
            news: false,
            told_at: now,
            said_at: now,
            last_word: None,
            had_word: false,
        }
    }

    // --- the link ---

    /// What is to be done about the link now.
    pub(crate) fn step(&self, now: Instant) -> Step {
        if self.last_word.is_some() {
            return Step::Over;
        }
        let Link::Down { retry_at } = self.link else { return Step::Wait(None) };
        if self.is_complete() {
            return Step::Wait(None);
        }
        if self.trouble_since.is_some_and(|since| now >= since + self.limits.give_up_after) {
            Step::GiveUp
        } else if retry_at <= now {
            Step::Open { from: self.position }
        } else {
            Step::Wait(Some(retry_at))
        }
    }

    pub(crate) fn opening(&mut self) {
        self.link = Link::Opening;
    }

    /// The link is there; a stream begins at `from`, a channel where the relay is told. Its number, if it is of use.
    pub(crate) fn opened(&mut self, now: Instant, channel: bool, from: u64) -> Option<u64> {
        (self.was_opened, self.said_at) = (true, now);
        if !channel && from != self.position {
            self.link = Link::Down { retry_at: now };
            return None;
        }
        self.number += 1;
        self.link = Link::Open { channel, from: (!channel).then_some(from) };
        self.limit = self.position;
        Some(self.number)
    }

    /// A stream was read to its end.
    pub(crate) const fn done_reading(&mut self, now: Instant) {
        self.link = Link::Down { retry_at: now };
    }

    /// The link broke, or could not be opened.
    pub(crate) fn broke(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.trouble_since.get_or_insert(now);
        let retry_after = retry_after.map(|asked| asked.min(self.limits.retry.1));
        self.link = Link::Down { retry_at: now + self.backoff.next(&mut self.jitter, retry_after) };
    }

    /// The relay has no more of the data yet, and said so after a while.
    pub(crate) fn nothing_yet(&mut self, now: Instant) {
        self.useful();
        self.link = Link::Down { retry_at: now + self.limits.retry.0 };
    }

    /// There is reason to believe that the link can be had now.
    pub(crate) fn retry_now(&mut self, now: Instant) -> bool {
        match &mut self.link {
            Link::Down { retry_at } if *retry_at > now => {
                *retry_at = now;
                true
            }
            _ => false,
        }
    }

    /// Whether link `number` is still the one that is wanted.
    pub(crate) fn is_current(&self, number: u64) -> bool {
        self.number == number && matches!(self.link, Link::Open { .. })
    }

    /// Whether there is a channel.
    pub(crate) const fn is_channel(&self) -> bool {
        matches!(self.link, Link::Open { channel: true, .. })
    }

    pub(crate) const fn was_opened(&self) -> bool {
        self.was_opened
    }

    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    fn useful(&mut self) {
        self.trouble_since = None;
        self.backoff.reset();
    }

    // --- what comes on it ---

    pub(crate) fn header_came(&mut self, header: Box<str>) {
        // It comes on every channel: a channel that brings nothing else is of no use.
        if self.header.is_none() {
            self.header = Some(header);
            self.useful();
        }
    }

    /// How many bytes of a stream may be read now.
    pub(crate) const fn room(&self) -> u64 {
        if self.begun && self.wrong.is_none() { self.limits.window.saturating_sub(self.buffered) } else { 0 }
    }

    /// # Errors
    /// [`Misbehaved`].
    pub(crate) fn data(&mut self, bytes: Bytes) -> Result<(), Misbehaved> {
        let length = bytes.len() as u64;
        if self.end.is_some() {
            return Err(Misbehaved::BeyondEnd);
        }
        if self.is_channel() && length > self.limit.saturating_sub(self.position) {
            return Err(Misbehaved::BeyondCredit);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.useful();
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        self.position += length;
        self.buffered += length;
        self.buffer.push_back(bytes);
        Ok(())
    }

    /// That was all. Whether it is what was sent the handler learns after the last byte.
    pub(crate) fn ended(&mut self, end: Digest) {
        self.useful();
        let sha256 = self.hasher.as_ref().map(|hasher| <[u8; 32]>::from(hasher.clone().finalize()));
        if end.bytes != self.position || sha256.is_some_and(|sha256| sha256 != end.sha256) {
            self.wrong = Some(HandlerError::other("bad-data", "what arrived is not what was sent"));
        }
        self.end = Some(end);
    }

    /// A part of a stream was read to its end; `total` and `sha256` are what the relay knows of the whole. Whether there
    /// is no more.
    ///
    /// # Errors
    /// [`Misbehaved`].
    pub(crate) fn part_ended(
        &mut self,
        total: Option<u64>,
        sha256: Option<[u8; 32]>,
    ) -> Result<bool, Misbehaved> {
        match (total, sha256) {
            (Some(total), _) if total < self.position => Err(Misbehaved::BeyondEnd),
            (Some(total), Some(sha256)) if total == self.position => {
                self.ended(Digest { bytes: total, sha256 });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    pub(crate) const fn is_complete(&self) -> bool {
        self.end.is_some()
    }

    // --- the handler ---

    /// The header, once it is here; asking for it is what makes it come.
    pub(crate) fn header(&mut self) -> Option<Box<str>> {
        self.begun = true;
        match (&self.header, self.link) {
            (Some(header), _) => Some(header.clone()),
            // On a stream nothing but data comes.
            (None, Link::Open { channel: false, .. }) => Some(NO_HEADER.into()),
            (None, _) => None,
        }
    }

    /// The job was offered again, on another session maybe.
    pub(crate) fn offered_again(&mut self, now: Instant, header: Option<Box<str>>) {
        if self.header.is_none() {
            self.header = header;
        }
        self.retry_now(now);
    }

    /// What is before `offset` is on this device already. Whether that can still be said: nothing was handed out yet.
    pub(crate) fn begin_at(&mut self, now: Instant, offset: u64, hasher: Option<Sha256>) -> bool {
        if self.handed_out {
            return false;
        }
        let moved = offset != self.position;
        (self.hasher, self.position, self.taken) = (hasher, offset, offset);
        self.buffer.clear();
        (self.buffered, self.end, self.wrong) = (0, None, None);
        match self.link {
            // It began elsewhere.
            Link::Open { from: Some(_), .. } if moved => self.link = Link::Down { retry_at: now },
            Link::Down { .. } => {
                self.retry_now(now);
            }
            Link::Open { .. } | Link::Opening => self.limit = self.limit.max(offset),
        }
        true
    }

    pub(crate) fn take(&mut self) -> Taken {
        self.begun = true;
        if let Some(bytes) = self.buffer.pop_front() {
            self.handed_out = true;
            self.buffered -= bytes.len() as u64;
            self.taken += bytes.len() as u64;
            return Taken::Data(bytes);
        }
        match (&self.wrong, &self.end) {
            (Some(wrong), _) => Taken::Failed(wrong.clone()),
            (None, Some(_)) => {
                self.handed_out = true;
                Taken::End
            }
            (None, None) => Taken::Wait,
        }
    }

    pub(crate) const fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether that is news.
    pub(crate) fn progress(&mut self, progress: Progress) -> bool {
        let news = self.progress.as_ref() != Some(&progress);
        if news {
            (self.progress, self.news) = (Some(progress), true);
        }
        news
    }

    /// The handler ended: `word` is what to say of it on a channel; `None` if nobody wants to hear of it, or the job is to
    /// be gone on with by the device's next run.
    pub(crate) fn handler_ended(&mut self, word: Option<ToRelay>) {
        self.buffer.clear();
        (self.buffered, self.had_word) = (0, word.is_some());
        self.last_word = Some(word);
    }

    /// What the handler said before it ended and nobody was told.
    pub(crate) fn last_news(&mut self) -> Option<Progress> {
        std::mem::take(&mut self.news).then(|| self.progress.clone()).flatten()
    }

    /// Whether the relay, having heard the last word, is to close the channel.
    pub(crate) const fn had_word(&self) -> bool {
        self.had_word
    }

    /// Whether nothing more is to be said on a channel.
    pub(crate) const fn has_said_all(&self) -> bool {
        match &self.last_word {
            None => false,
            Some(None) => true,
            Some(Some(_)) => !self.is_channel(),
        }
    }

    // --- what is to be said ---

    fn progress_at(&self) -> Instant {
        let alive_at = self.said_at + self.limits.keep_alive;
        if self.news { alive_at.min(self.told_at + self.limits.news_every) } else { alive_at }
    }

    fn say_progress(&mut self, now: Instant) -> Option<Progress> {
        if self.progress_at() > now {
            return None;
        }
        (self.told_at, self.said_at, self.news) = (now, now, false);
        Some(self.progress.clone().unwrap_or_else(|| Progress::new(self.taken)))
    }

    /// What to say next on the channel.
    pub(crate) fn say(&mut self, now: Instant) -> Option<ToRelay> {
        if !self.is_channel() {
            return None;
        }
        if self.last_word.is_some() {
            return match self.last_news() {
                Some(progress) => Some(ToRelay::Progress(progress)),
                None => self.last_word.as_mut().and_then(Option::take),
            };
        }
        if self.begun && self.end.is_none() && self.wrong.is_none() {
            let can_take = self.limits.window.saturating_sub(self.buffered);
            if let Link::Open { from: from @ None, .. } = &mut self.link {
                *from = Some(self.position);
                self.limit = self.position + can_take;
                self.said_at = now;
                return Some(ToRelay::Credit { from: Some(self.position), bytes: can_take });
            }
            let more = can_take.saturating_sub(self.limit - self.position);
            // In halves: a word for each piece would be as many words as pieces.
            if more >= self.limits.window / 2 {
                self.limit += more;
                self.said_at = now;
                return Some(ToRelay::Credit { from: None, bytes: more });
            }
        }
        self.say_progress(now).map(ToRelay::Progress)
    }

    /// What to say next in the session: progress, where there is no channel for it. A job whose data is neither here nor
    /// on its way is not called alive.
    pub(crate) fn note(&mut self, now: Instant) -> Option<Progress> {
        if !self.speaks_in_session() {
            return None;
        }
        self.say_progress(now)
    }

    fn speaks_in_session(&self) -> bool {
        let linked = match self.link {
            Link::Open { channel, .. } => !channel,
            Link::Down { .. } | Link::Opening => self.is_complete(),
        };
        linked && self.last_word.is_none()
    }

    /// When [`say`](Self::say) has something to say if nothing else happens.
    pub(crate) fn say_at(&self) -> Option<Instant> {
        self.last_word.is_none().then(|| self.progress_at())
    }

    /// When [`note`](Self::note) has.
    pub(crate) fn note_at(&self) -> Option<Instant> {
        self.speaks_in_session().then(|| self.progress_at())
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
