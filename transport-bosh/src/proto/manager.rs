//! One session as the connection manager sees it (XEP-0124): which of the client's requests to hold, and what to
//! answer them with.
//!
//! ```text
//!            RID in window           all before it came
//!  request ────────────────▶ early ─────────────────────▶ held ──▶ answered ──▶ (kept for repeats) ──▶ forgotten
//!            else: session over        payloads go up      │ data, a newer request, its wait, a pause, an end
//! ```
//!
//! - Payloads go up in RID order, each once; answers go out in RID order, each request once.
//! - Data leaves on the **oldest** held request; the **newest** stays held.
//! - An answer is kept **before** it is sent, and counts as given even if nobody is there to take it.
//!
//! The machine has no clock and does no I/O: it is told the time and what happened, and leaves behind [`Output`]s and a
//! time to wake it at. After it was told of requests, the owner handles what they carried, gives back what that
//! produced by [`Manager::send`], and only then calls [`Manager::settle`], so that replies ride on the oldest held
//! request.

mod answer;
mod polls;
mod terms;
mod types;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smallvec::SmallVec;

use self::polls::Polls;
pub use self::{
    terms::{Refusal, Terms},
    types::{End, ExchangeId, Output, Request},
};
use super::{
    keys::KeySequence,
    rid::{Replay, Rid},
    room,
};
use crate::wire::{
    TerminalCondition,
    body::{self, AnswerKind, AnswerTag, Piece},
};

/// How often one RID may be repeated (XEP-0124 §14.3 allows a limit).
const MAX_REPEATS: u8 = 10;

/// A client that names an older answer this long after the next one was given has lost that one: sooner, the two may
/// just have crossed.
const REPORT_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Held {
    rid: Rid,
    /// `None`: the client's connection broke.
    exchange: Option<ExchangeId>,
    deadline: Instant,
    repeats: u8,
    repeated_at: Instant,
}

#[derive(Debug)]
struct Early<P> {
    request: Request<P>,
    exchange: Option<ExchangeId>,
    repeats: u8,
}

/// What requests that come after the end are answered with.
#[derive(Debug, Clone)]
struct Farewell {
    status: u16,
    body: Bytes,
    /// The last RID that gets it; later ones never belonged to the session.
    up_to: Rid,
}

/// The machine.
#[derive(Debug)]
pub struct Manager<P> {
    terms: Terms,
    /// The highest RID taken in order.
    last: Rid,
    /// Unanswered, by RID.
    held: VecDeque<Held>,
    /// Waiting for a RID before theirs.
    early: Vec<Early<P>>,
    gap_since: Option<Instant>,
    replay: Replay,
    out: SmallVec<[Piece; 1]>,
    out_bytes: usize,
    /// Pushes taken into `out`, and of those, how many are still in it.
    pushed: u64,
    unsent: u64,
    confirmed: u64,
    keys: Option<KeySequence>,
    /// The attributes of the answer to the creation request.
    opening: Option<Box<str>>,
    /// An answer that the client seems to have missed.
    report: Option<Rid>,
    pausing: Option<(Rid, Duration)>,
    paused: Option<Paused>,
    terminating: bool,
    polls: Option<Polls>,
    /// Whether the last answer brought nothing.
    barren: bool,
    /// Since when no live request is there.
    idle_since: Option<Instant>,
    attached: bool,
    backpressure: bool,
    outputs: VecDeque<Output<P>>,
    /// In a box: few sessions take leave.
    farewell: Option<Box<Farewell>>,
}

#[derive(Debug)]
struct Paused {
    rid: Rid,
    inactivity: Duration,
    repeats: u8,
}

impl<P> Manager<P> {
    /// A session created by request `rid`, held by `exchange`, whose answer bears the attributes `opening`.
    pub fn new(
        terms: Terms,
        rid: Rid,
        exchange: ExchangeId,
        opening: impl Into<Box<str>>,
        newkey: Option<&str>,
        now: Instant,
    ) -> Self {
        let mut held = VecDeque::with_capacity(2);
        held.push_back(Held {
            rid,
            exchange: Some(exchange),
            deadline: now + terms.wait,
            repeats: 0,
            repeated_at: now,
        });
        Self {
            last: rid,
            held,
            early: Vec::new(),
            gap_since: None,
            replay: Replay::new(terms.requests.into(), terms.acks),
            out: SmallVec::new(),
            out_bytes: 0,
            pushed: 0,
            unsent: 0,
            confirmed: 0,
            keys: newkey.map(KeySequence::new),
            opening: Some(opening.into()),
            report: None,
            pausing: None,
            paused: None,
            terminating: false,
            polls: None,
            barren: false,
            idle_since: None,
            attached: false,
            backpressure: false,
            outputs: VecDeque::new(),
            farewell: None,
            terms,
        }
    }

    /// The terms in force.
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// From now on, polling too often is an offence. Not before the session is established: logging in takes rounds.
    pub fn enforce_polling(&mut self) {
        self.polls.get_or_insert_default();
    }

    /// Sets the bound on early requests, in bytes.
    pub const fn set_max_early(&mut self, bytes: usize) {
        self.terms.max_early = bytes;
    }

    /// Whether the session is over.
    pub const fn is_over(&self) -> bool {
        self.farewell.is_some()
    }

    /// Bytes that the session keeps for its peer.
    pub fn buffered(&self) -> usize {
        self.out_bytes
            + self.replay.bytes()
            + self.early.iter().map(|early| early.request.cost).sum::<usize>()
    }

    /// A request of the client.
    pub fn request(&mut self, request: Request<P>, exchange: ExchangeId, now: Instant) {
        if self.is_over() {
            return self.say_farewell(request.rid, exchange);
        }
        if self.repeated(request.rid, exchange, now) {
            return;
        }
        let window = self.last.plus(u64::from(self.terms.requests) + u64::from(request.may_exceed()));
        if request.rid <= self.last || request.rid > window {
            return self.fail(TerminalCondition::ItemNotFound, Some(exchange));
        }
        if request.rid == self.last.next() {
            self.take_in_order(request, exchange, now);
        } else {
            self.keep_early(request, exchange, now);
        }
        if !self.is_over() {
            self.outputs.push_back(Output::Alive);
            self.touch(now);
        }
    }

    /// The client of `exchange` is gone. What it was to be answered stays to be asked for again.
    pub fn gone(&mut self, exchange: ExchangeId, now: Instant) {
        let held = self.held.iter_mut().map(|held| &mut held.exchange);
        let early = self.early.iter_mut().map(|early| &mut early.exchange);
        if let Some(gone) = held.chain(early).find(|at| **at == Some(exchange)) {
            *gone = None;
            self.tell(now);
        }
    }

    /// How many more bytes a push may have for the answer that is being filled; `None`: wait for a live request.
    pub fn room(&self) -> Option<usize> {
        let live = self.held.iter().any(|held| held.exchange.is_some());
        // Between the polls of a polling client nothing is held; one body may wait for the next.
        let open = !self.is_over() && (live || (self.terms.polls() && self.paused.is_none()));
        (open && (self.out.is_empty() || self.out_bytes < self.terms.max_body))
            .then(|| self.terms.max_body.saturating_sub(self.out_bytes + body::OVERHEAD))
    }

    /// Whether nothing is waiting to be sent.
    pub fn is_drained(&self) -> bool {
        self.out.is_empty()
    }

    /// Sends `piece`, which is the owner's next push: they count from 1.
    pub fn push(&mut self, piece: Piece) {
        self.pushed += 1;
        self.unsent += 1;
        self.send(piece);
    }

    /// Sends `piece`.
    pub fn send(&mut self, piece: Piece) {
        if !self.is_over() {
            self.out_bytes += piece.xml.len();
            self.out.push(piece);
        }
    }

    /// What requests carried was handled: answers what is to be answered now.
    pub fn settle(&mut self, now: Instant) {
        if self.is_over() {
            return;
        }
        if self.terminating {
            return self.say_goodbye();
        }
        if let Some((rid, inactivity)) = self.pausing.take() {
            self.pause(rid, inactivity, now);
        }
        self.pump(now);
        self.tell(now);
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Instant) {
        if self.is_over() {
            return;
        }
        if self.gap_since.is_some_and(|since| now >= since + self.terms.gap) {
            return self.close(
                TerminalCondition::ItemNotFound,
                &[],
                End::Failed(TerminalCondition::ItemNotFound),
            );
        }
        if self.idle_deadline().is_some_and(|deadline| now >= deadline) {
            return self.expire();
        }
        self.release_expired(now);
        self.tell(now);
    }

    /// When to call [`Manager::timeout`].
    pub fn wake_at(&self) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let wait = self.held.iter().map(|held| held.deadline).min();
        let gap = self.gap_since.map(|since| since + self.terms.gap);
        [wait, gap, self.idle_deadline()].into_iter().flatten().min()
    }

    /// The owner ends the session: requests that are held, or the next one if none is, learn `condition`, with
    /// `pieces` beside what was still to be sent.
    pub fn end(&mut self, condition: TerminalCondition, pieces: &[Piece]) {
        if !self.is_over() {
            self.close(condition, pieces, End::Closed);
        }
    }

    /// The client broke a rule outside the order of its requests, in `exchange` with request `rid`.
    pub fn misbehaved(&mut self, condition: TerminalCondition, rid: Rid, exchange: ExchangeId) {
        if self.is_over() {
            self.say_farewell(rid, exchange);
        } else {
            self.fail(condition, Some(exchange));
        }
    }

    /// While it is set, no request is released to make room for a newer one, so that a client that is faster than the
    /// owner fills its window and waits.
    pub const fn set_backpressure(&mut self, on: bool) {
        self.backpressure = on;
    }

    /// Whether a live request is held.
    pub const fn is_attached(&self) -> bool {
        self.attached
    }

    /// The next thing to do; `None` once all is done.
    pub fn poll_output(&mut self) -> Option<Output<P>> {
        self.outputs.pop_front()
    }

    /// Takes the room of `spare` for what is to be done, unless it has some.
    pub fn lend(&mut self, spare: &mut VecDeque<Output<P>>) {
        room::lend(&mut self.outputs, spare);
    }

    /// Gives back the room that it took, for `spare` to keep: an idle session keeps none.
    pub fn shrink(&mut self, spare: &mut VecDeque<Output<P>>) {
        room::give_back(&mut self.outputs, spare);
        if self.early.is_empty() {
            self.early = Vec::new();
        }
    }

    /// XEP-0124 §14.3: a RID that was seen before. Whether this was one.
    fn repeated(&mut self, rid: Rid, exchange: ExchangeId, now: Instant) -> bool {
        let (repeats, superseded, replayed) =
            if let Some(held) = self.held.iter_mut().find(|held| held.rid == rid) {
                // Its wait goes on: a client that repeats it to keep a connection alive is answered all the same, and
                // counts as repeating too often only if it does so faster than once a second.
                let forgiven = now.saturating_duration_since(held.repeated_at).as_secs();
                held.repeats = held.repeats.saturating_sub(u8::try_from(forgiven).unwrap_or(u8::MAX));
                held.repeated_at = now;
                (&mut held.repeats, held.exchange.replace(exchange), None)
            } else if let Some(early) = self.early.iter_mut().find(|early| early.request.rid == rid) {
                (&mut early.repeats, early.exchange.replace(exchange), None)
            } else if let Some(answered) = self.replay.find(rid) {
                (&mut answered.repeats, None, Some(answered.body.clone()))
            } else if let Some(paused) = self.paused.as_mut().filter(|paused| paused.rid == rid) {
                (&mut paused.repeats, None, Some(body::answer(&AnswerTag::default(), &[])))
            } else {
                return false;
            };
        *repeats += 1;
        let too_many = *repeats > MAX_REPEATS;
        if let Some(old) = superseded {
            let body = body::answer(&self.tag(rid, AnswerKind::Error), &[]);
            self.outputs.push_back(Output::Respond { exchange: old, status: 200, body });
        }
        if too_many {
            let carrier = replayed.is_some().then_some(exchange);
            self.fail(TerminalCondition::PolicyViolation, carrier);
            return true;
        }
        if let Some(body) = replayed {
            self.outputs.push_back(Output::Respond { exchange, status: 200, body });
        }
        self.outputs.push_back(Output::Alive);
        self.touch(now);
        true
    }

    fn keep_early(&mut self, request: Request<P>, exchange: ExchangeId, now: Instant) {
        let waiting: usize = self.early.iter().map(|early| early.request.cost).sum();
        if waiting + request.cost > self.terms.max_early {
            return self.fail(TerminalCondition::PolicyViolation, Some(exchange));
        }
        self.confirm_window(&request);
        self.early.push(Early { request, exchange: Some(exchange), repeats: 0 });
        self.gap_since.get_or_insert(now);
    }

    fn take_in_order(&mut self, request: Request<P>, exchange: ExchangeId, now: Instant) {
        let mut next = Some((request, Some(exchange), 0));
        while let Some((request, exchange, repeats)) = next {
            self.last = request.rid;
            if !self.take(request, exchange, repeats, now) {
                return;
            }
            let following = self.last.next();
            next = self.early.iter().position(|early| early.request.rid == following).map(|at| {
                let early = self.early.remove(at);
                (early.request, early.exchange, early.repeats)
            });
        }
        // A gap that is left opened just now.
        self.gap_since = if self.early.is_empty() { None } else { Some(now) };
    }

    /// Takes the next request in order; `false` if it ended the session.
    fn take(&mut self, request: Request<P>, exchange: Option<ExchangeId>, repeats: u8, now: Instant) -> bool {
        if let Some(keys) = &mut self.keys
            && !keys.advance(request.key.as_deref(), request.newkey.as_deref())
        {
            self.fail(TerminalCondition::ItemNotFound, exchange);
            return false;
        }
        let others = !self.held.is_empty();
        let counts = others || (self.terms.polls() && self.barren);
        if let Some(polls) = &mut self.polls
            && !polls.allow(request.is_poll(), counts, self.terms.polling, now)
        {
            self.fail(TerminalCondition::PolicyViolation, exchange);
            return false;
        }
        if request.pause.is_some_and(|pause| pause > self.terms.max_pause) {
            self.fail(TerminalCondition::PolicyViolation, exchange);
            return false;
        }
        self.confirm_window(&request);
        self.confirm_ack(&request, others, now);
        self.paused = None;
        self.pausing = request.pause.map(|pause| (request.rid, pause)).or(self.pausing);
        self.terminating |= request.terminate;
        self.held.push_back(Held {
            rid: request.rid,
            exchange,
            deadline: now + self.terms.wait,
            repeats,
            repeated_at: now,
        });
        self.tell(now);
        if request.restart {
            // XEP-0206 §5: payloads of a restart are ignored.
            self.outputs.push_back(Output::Restart);
        } else {
            self.outputs.extend(request.payloads.into_iter().map(Output::Deliver));
        }
        true
    }

    /// XEP-0124 §11, §14.2: a client sends no RID further than `requests` beyond those whose answers it has. One that does
    /// loses what is lost on the way. With acknowledgements it says what it has, and nothing is inferred.
    fn confirm_window(&mut self, request: &Request<P>) {
        if self.terms.acks {
            return;
        }
        let outstanding = u64::from(self.terms.requests) + u64::from(request.may_exceed());
        self.confirm(request.rid.minus(outstanding));
    }

    fn confirm_ack(&mut self, request: &Request<P>, others: bool, now: Instant) {
        if !self.terms.acks {
            return;
        }
        let Some(ack) = request.ack else {
            // XEP-0124 §9.2: a client that waits for no answer says nothing. The answers are kept all the same.
            if !others {
                self.confirm(request.rid.minus(1));
            }
            return;
        };
        let Some(ack) = Rid::new(ack) else { return };
        // One that was not answered yet proves nothing.
        let oldest_open = self.held.front().map_or(self.last, |held| held.rid);
        if ack >= oldest_open {
            return;
        }
        self.confirm(ack);
        self.replay.acknowledge(ack);
        if let Some(missed) = self.replay.find(ack.next())
            && !missed.reported
            && now.saturating_duration_since(missed.at) >= REPORT_AFTER
        {
            missed.reported = true;
            self.report = Some(missed.rid);
        }
    }

    fn confirm(&mut self, up_to: Rid) {
        if let Some(pushed) = self.replay.pushed_up_to(up_to)
            && pushed > self.confirmed
        {
            self.confirmed = pushed;
            self.outputs.push_back(Output::Confirmed(pushed));
        }
    }

    fn live(&self) -> bool {
        self.held.iter().any(|held| held.exchange.is_some())
    }

    /// Says whether a push can go, and watches for silence while nothing is there to answer.
    fn tell(&mut self, now: Instant) {
        let live = self.live();
        if live != self.attached {
            self.attached = live;
            self.outputs.push_back(if live { Output::Attached } else { Output::Detached });
        }
        if live || self.early.iter().any(|early| early.exchange.is_some()) {
            self.idle_since = None;
        } else {
            self.idle_since.get_or_insert(now);
        }
    }

    /// A request was accepted: silence starts anew.
    fn touch(&mut self, now: Instant) {
        self.idle_since = None;
        self.tell(now);
    }

    fn idle_deadline(&self) -> Option<Instant> {
        let inactivity = self.paused.as_ref().map_or(self.terms.inactivity, |paused| paused.inactivity);
        Some(self.idle_since? + inactivity)
    }
}

#[cfg(test)]
mod tests;
