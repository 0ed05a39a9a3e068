//! The client's half of XEP-0124: which request to POST next, and what to do with its answer.
//!
//! ```text
//! Idle ── Open ──▶ Creating ── answer ──▶ Open ── Close ──▶ Closing ── answer ──▶ Ended
//!                     └──────── no answer, refusal, terminate, silence ──────────▶ Ended
//! ```
//!
//! Requests are numbered without gaps (RID). From the lowest unanswered one on, at most `requests` of them are made; one
//! is kept at the connection manager, empty if there is nothing to say. An answer that is lost, late, or spoken by a
//! proxy makes the same bytes go out again under the same RID, and the connection manager gives the same answer to both,
//! so that every payload arrives once and in order, both ways, for as long as the session lives.
//!
//! The machine does no I/O and has no clock and no randomness: its driver hands it inputs with the time, and takes
//! outputs until it gets [`Output::WakeAt`].

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use relay_core::{retry_after, xml::Element};

use self::{idle::Suspected, timing::timeout, wrapper::Wrapper};
use crate::{
    exchange::{ExchangeErrorKind, Post, Reply},
    proto::rid::Rid,
    wire::body::{MAX_ELEMENTS, count_elements},
};

mod end;
mod idle;
pub mod login;
mod scram;
#[cfg(test)]
mod tests;
mod timing;
mod types;
mod wrapper;

pub use self::{
    end::End,
    types::{ClientSettings, ClientStats, ExchangeId, Input, Output},
    wrapper::Granted,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Creation,
    Payloads,
    Poll,
    Restart,
    Terminate,
}

#[derive(Debug)]
enum State {
    /// To be posted (again) at this time.
    Due(Instant),
    Posted {
        exchange: ExchangeId,
        at: Instant,
    },
    /// Answered, but an earlier one is not.
    Answered(Box<Wrapper>),
}

#[derive(Debug)]
struct Request {
    rid: Rid,
    kind: Kind,
    body: Bytes,
    tag: Option<u64>,
    state: State,
    posts: u32,
    failures: u32,
    garbled: u32,
    fresh: bool,
    first_posted: Instant,
}

#[derive(Debug)]
struct Queued {
    text: String,
    elements: usize,
    tag: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Creating,
    Open,
    Closing { until: Instant },
    Ended,
}

/// Answers to one request that are none at BOSH level, before the peer is given up. A proxy's page passes; a peer that
/// always speaks so does not know BOSH.
const MAX_GARBLED: u32 = 6;
/// The longest SID taken.
const MAX_SID: usize = 512;

/// The client's end of one session.
pub struct ClientMachine {
    settings: ClientSettings,
    phase: Phase,
    now: Instant,
    jitter: u64,
    next_rid: Rid,
    next_exchange: u64,
    sid: Box<str>,
    granted: Granted,
    /// Unanswered requests and answers that wait for an earlier one; lowest RID first, no gaps.
    requests: VecDeque<Request>,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    restart: bool,
    hold: bool,
    /// The highest RID whose answer was taken in order.
    delivered: Option<Rid>,
    confirmed: u64,
    last_answer: Instant,
    reachable: bool,
    /// Since when an answer is here whose predecessor is not.
    gap_since: Option<Instant>,
    poll_not_before: Instant,
    not_held: u32,
    suspected: Option<Suspected>,
    outputs: VecDeque<Output>,
    stats: ClientStats,
}

impl fmt::Debug for ClientMachine {
    // The SID is a secret, and payloads are nobody's to show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientMachine")
            .field("phase", &self.phase)
            .field("requests", &self.requests.len())
            .field("queued_bytes", &self.queued_bytes)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl ClientMachine {
    /// A session that does not exist yet. `first_rid` and `jitter` must be random: the first because nobody is to guess
    /// it (XEP-0124 §14.1; 2⁵² and above are folded below), the second so that a fleet does not come back in step.
    pub fn new(settings: ClientSettings, first_rid: u64, jitter: u64, now: Instant) -> Self {
        let granted = Granted {
            wait: settings.wait,
            requests: 1,
            hold: 1,
            inactivity: None,
            polling: None,
            max_pause: None,
            acks: false,
        };
        Self {
            phase: Phase::Idle,
            now,
            jitter: jitter | 1,
            // Half the range is left to count up in: no session comes to its end.
            next_rid: Rid::new(first_rid % (1 << 52)).unwrap_or(Rid::MAX).next(),
            next_exchange: 0,
            sid: "".into(),
            granted,
            requests: VecDeque::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            restart: false,
            hold: false,
            delivered: None,
            confirmed: 0,
            last_answer: now,
            reachable: false,
            gap_since: None,
            poll_not_before: now,
            not_held: 0,
            suspected: None,
            outputs: VecDeque::new(),
            stats: ClientStats::default(),
            settings,
        }
    }

    /// How often things happened.
    pub const fn stats(&self) -> ClientStats {
        self.stats
    }

    /// Whether a payload handed in now would leave at once.
    pub fn has_room(&self) -> bool {
        self.phase == Phase::Open && self.queued_bytes < self.settings.max_request / 2 && self.in_window()
    }

    /// Bytes waiting to leave.
    pub const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether the session is over.
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Takes in what happened at `now`.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        self.now = self.now.max(now);
        if self.phase == Phase::Ended {
            return;
        }
        match input {
            Input::Open if self.phase == Phase::Idle => self.create(),
            Input::Open | Input::Woken => {}
            Input::Send { payload, tag } => {
                let text = wrapper::payload(&payload);
                self.queued_bytes += text.len();
                let elements = count_elements(&text);
                self.queue.push_back(Queued { text, elements, tag });
            }
            Input::Restart => self.restart = true,
            Input::Hold(hold) => self.hold = hold,
            Input::KeepAlive(keepalive) => self.settings.keepalive = keepalive,
            Input::Refresh => {
                self.suspect_overdue();
                self.refresh();
            }
            Input::Close { payload } => self.close(payload.as_ref()),
            Input::Replied { exchange, reply } => self.replied(exchange, &reply),
            Input::Failed { exchange, kind } => self.failed(exchange, kind),
        }
        self.expire();
    }

    /// The next thing to do; [`Output::WakeAt`] if there is none.
    pub fn poll_output(&mut self) -> Output {
        if self.outputs.is_empty() {
            self.pump();
        }
        self.outputs.pop_front().unwrap_or_else(|| Output::WakeAt(self.wake_at()))
    }

    /// Whether a request may be made. What is answered counts too while an earlier one is not: the peer keeps its last
    /// `requests` answers (XEP-0124 §14.3), and one that is lost must not be the one before those.
    fn in_window(&self) -> bool {
        self.requests.len() < self.granted.requests
    }

    fn create(&mut self) {
        self.phase = Phase::Creating;
        let rid = self.take_rid();
        let body = wrapper::creation(&self.settings, rid);
        self.add(rid, Kind::Creation, body, None);
    }

    fn take_rid(&mut self) -> Rid {
        let rid = self.next_rid;
        self.next_rid = rid.next();
        rid
    }

    fn add(&mut self, rid: Rid, kind: Kind, body: Bytes, tag: Option<u64>) {
        self.stats.requests += 1;
        self.requests.push_back(Request {
            rid,
            kind,
            body,
            tag,
            state: State::Due(self.now),
            posts: 0,
            failures: 0,
            garbled: 0,
            fresh: false,
            first_posted: self.now,
        });
    }

    /// The RID to acknowledge in a request that is made now (XEP-0124 §9.2): none when nothing is outstanding.
    fn ack(&self, rid: Rid) -> Option<Rid> {
        self.delivered.filter(|delivered| self.settings.acks && delivered.next() != rid)
    }

    /// Makes and posts what may go now.
    fn pump(&mut self) {
        if matches!(self.phase, Phase::Idle | Phase::Ended) {
            return;
        }
        self.make_requests();
        for i in 0..self.requests.len() {
            self.post_if_due(i);
        }
    }

    fn make_requests(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        if self.restart {
            // XEP-0206 §5: the next request after success, and empty.
            if self.in_window() {
                self.restart = false;
                let rid = self.take_rid();
                let body = wrapper::restart(&self.settings, &self.sid, rid, self.ack(rid));
                self.add(rid, Kind::Restart, body, None);
            }
            return;
        }
        while !self.queue.is_empty() && self.in_window() {
            self.add_payloads(Kind::Payloads);
        }
        // An empty request next to a held one would be overactivity (XEP-0124 §11), but for one now and then.
        let free = self.requests.is_empty() && !self.hold && self.now >= self.poll_not_before;
        if free || self.nudge_at().is_some_and(|at| self.now >= at) {
            let rid = self.take_rid();
            let body = wrapper::request(&self.sid, rid, self.ack(rid), false, std::iter::empty());
            self.add(rid, Kind::Poll, body, None);
        }
    }

    /// One request with as much of the queue as fits, in order.
    fn add_payloads(&mut self, kind: Kind) {
        let mut size = wrapper::OVERHEAD;
        let mut elements = 0;
        let mut count = 0;
        for queued in &self.queue {
            size += queued.text.len();
            elements += queued.elements;
            if count > 0 && (size > self.settings.max_request || elements > MAX_ELEMENTS) {
                break;
            }
            count += 1;
        }
        let rid = self.take_rid();
        let batch: Vec<Queued> = self.queue.drain(..count).collect();
        self.queued_bytes -= batch.iter().map(|queued| queued.text.len()).sum::<usize>();
        let tag = batch.iter().filter_map(|queued| queued.tag).max();
        let texts = batch.iter().map(|queued| queued.text.as_str());
        let body = wrapper::request(&self.sid, rid, self.ack(rid), kind == Kind::Terminate, texts);
        self.add(rid, kind, body, tag);
    }

    fn post_if_due(&mut self, i: usize) {
        let request = &mut self.requests[i];
        if !matches!(request.state, State::Due(at) if at <= self.now) {
            return;
        }
        let exchange = ExchangeId(self.next_exchange);
        self.next_exchange += 1;
        // Counted from the moment of sending: time spent in back-off is not the peer's.
        request.state = State::Posted { exchange, at: self.now };
        if request.posts > 0 {
            self.stats.repeats += 1;
        } else {
            request.first_posted = self.now;
        }
        request.posts += 1;
        let timeout = timeout(&self.settings, &self.granted, request.kind);
        let post = Post::new(request.body.clone(), timeout).with_fresh(request.fresh);
        self.outputs.push_back(Output::Post { exchange, post });
    }

    fn posted(&self, exchange: ExchangeId) -> Option<usize> {
        // An answer to a POST that was superseded says nothing (XEP-0124 §14.3).
        self.requests
            .iter()
            .position(|request| matches!(request.state, State::Posted { exchange: e, .. } if e == exchange))
    }

    /// For how long its POST has been under way.
    fn idle(&self, i: usize) -> Duration {
        match self.requests[i].state {
            State::Posted { at, .. } => self.now.saturating_duration_since(at),
            _ => Duration::ZERO,
        }
    }

    fn replied(&mut self, exchange: ExchangeId, reply: &Reply) {
        let Some(i) = self.posted(exchange) else { return };
        let creating = self.requests[i].kind == Kind::Creation;
        let idle = self.idle(i);
        match reply.status {
            200 => match Wrapper::parse(&reply.body, self.settings.max_reply) {
                Ok(wrapper) => {
                    self.survived(idle);
                    self.answered(i, wrapper);
                }
                Err(_) => {
                    self.lost(idle, ExchangeErrorKind::Interrupted);
                    self.garbled(i);
                }
            },
            status if creating => self.refused(status, reply.retry_after),
            // Whatever else is not ours to say comes from something between us and the connection manager.
            408 | 425 | 429 | 500.. | ..400 => {
                self.lost(idle, ExchangeErrorKind::Interrupted);
                self.try_again(i, reply.retry_after);
            }
            status => self.refused(status, reply.retry_after),
        }
    }

    fn refused(&mut self, status: u16, retry_after: Option<Duration>) {
        let retry_after = retry_after.map(|wait| wait.min(retry_after::LONGEST));
        self.end(End::Status { status, retry_after });
    }

    fn failed(&mut self, exchange: ExchangeId, kind: ExchangeErrorKind) {
        let Some(i) = self.posted(exchange) else { return };
        self.lost(self.idle(i), kind);
        if self.requests[i].kind == Kind::Creation {
            // Repeated, it could make a second session: nobody would know the first one's SID.
            self.end(End::Unreachable(kind));
        } else if kind == ExchangeErrorKind::TooLarge {
            self.garbled(i);
        } else {
            self.try_again(i, None);
        }
    }

    fn garbled(&mut self, i: usize) {
        let request = &mut self.requests[i];
        request.garbled += 1;
        if request.kind == Kind::Creation || request.garbled > MAX_GARBLED {
            self.end(End::Misbehaved("the peer does not answer as a BOSH connection manager"));
        } else {
            self.try_again(i, None);
        }
    }

    /// Back-off before the same bytes go out again on a new connection.
    fn try_again(&mut self, i: usize, retry_after: Option<Duration>) {
        self.stats.failures += 1;
        let patience = self.inactivity() / 2;
        let backoff = self.backoff(self.requests[i].failures);
        let request = &mut self.requests[i];
        request.failures += 1;
        request.fresh = true;
        let delay = backoff.max(retry_after.unwrap_or_default().min(patience));
        request.state = State::Due(self.now + delay);
        // One failure happens to every connection that a proxy closes in the same instant.
        if i == 0 && request.failures >= 2 && self.reachable {
            self.reachable = false;
            self.outputs.push_back(Output::Reachable(false));
        }
    }

    fn answered(&mut self, i: usize, wrapper: Wrapper) {
        self.last_answer = self.now;
        self.outputs.push_back(Output::Alive);
        if !self.reachable {
            self.reachable = true;
            self.outputs.push_back(Output::Reachable(true));
        }
        if let Some(end) = wrapper.end() {
            self.terminated(i, wrapper, end);
        } else if wrapper.is_error() {
            // XEP-0124 §17.3: this one and every earlier one that is unanswered, the lowest first.
            for i in 0..=i {
                self.supersede(i, true);
            }
        } else {
            self.stats.answers += 1;
            self.requests[i].state = State::Answered(Box::new(wrapper));
            self.confirm(i);
            self.deliver();
        }
    }

    /// Posts a request anew, whatever became of it, unless it is answered.
    fn supersede(&mut self, i: usize, back_off: bool) {
        let delay = if back_off { self.backoff(self.requests[i].failures) } else { Duration::ZERO };
        let request = &mut self.requests[i];
        match request.state {
            State::Answered(_) => return,
            State::Posted { exchange, .. } => self.outputs.push_back(Output::Abandon(exchange)),
            State::Due(_) => {}
        }
        request.failures += u32::from(back_off);
        request.fresh = true;
        request.state = State::Due(self.now + delay);
    }

    /// An answer to a request tells that it and all before it were processed: the peer does so in order.
    fn confirm(&mut self, i: usize) {
        let tag = self.requests.iter().take(i + 1).filter_map(|request| request.tag).max();
        if let Some(tag) = tag.filter(|tag| *tag > self.confirmed) {
            self.confirmed = tag;
            self.outputs.push_back(Output::Confirmed(tag));
        }
    }

    /// Takes answers in the order of the requests, up to the first gap.
    fn deliver(&mut self) {
        while matches!(self.requests.front(), Some(Request { state: State::Answered(_), .. })) {
            let Some(Request { rid, kind, state: State::Answered(wrapper), first_posted, .. }) =
                self.requests.pop_front()
            else {
                return;
            };
            self.delivered = Some(rid);
            if kind == Kind::Creation && !self.created(&wrapper) {
                return;
            }
            let report = wrapper.report();
            let before = self.outputs.len();
            self.outputs.extend(wrapper.payloads().into_iter().map(Output::Payload));
            let empty = self.outputs.len() == before;
            self.stats.empty_answers += u64::from(empty);
            self.pace(kind, empty, first_posted);
            if kind == Kind::Terminate {
                self.end(End::Closed);
                return;
            }
            if let Some((rid, age)) = report {
                self.reported(rid, age);
            }
        }
        let waiting = self.requests.iter().any(|request| matches!(request.state, State::Answered(_)));
        self.gap_since = waiting.then(|| self.gap_since.unwrap_or(self.now));
    }

    fn created(&mut self, wrapper: &Wrapper) -> bool {
        let Some(sid) = wrapper.sid().filter(|sid| sid.len() <= MAX_SID) else {
            self.end(End::Misbehaved("the session was created without a usable sid"));
            return false;
        };
        self.sid = sid.into();
        self.granted = wrapper.granted(&self.settings);
        self.outputs.push_back(Output::Created { sid: self.sid.clone(), granted: self.granted });
        if self.phase == Phase::Creating {
            self.phase = Phase::Open;
        }
        true
    }

    /// The peer says which answer it thinks was lost (XEP-0124 §9.2). One that is just under way needs no repeat.
    fn reported(&mut self, rid: Rid, age: Duration) {
        if age < self.secondary() {
            return;
        }
        if let Some(i) = self.requests.iter().position(|request| request.rid == rid) {
            self.supersede(i, true);
        }
    }

    /// The peer ends the session: on whichever request it said so first, what it sent along still counts.
    fn terminated(&mut self, i: usize, wrapper: Wrapper, end: End) {
        let closing = matches!(self.phase, Phase::Closing { .. });
        if end == End::Goodbye {
            self.confirm(i);
        }
        self.outputs.extend(wrapper.payloads().into_iter().map(Output::Payload));
        self.end(if closing { End::Closed } else { end });
    }

    fn refresh(&mut self) {
        for i in 0..self.requests.len() {
            self.supersede(i, false);
        }
    }

    fn close(&mut self, payload: Option<&Element>) {
        match self.phase {
            Phase::Open => {}
            Phase::Idle | Phase::Creating => return self.end(End::Closed),
            Phase::Closing { .. } | Phase::Ended => return,
        }
        self.phase = Phase::Closing { until: self.now + self.settings.farewell };
        if let Some(payload) = payload {
            let text = wrapper::payload(payload);
            self.queued_bytes += text.len();
            let elements = count_elements(&text);
            self.queue.push_back(Queued { text, elements, tag: None });
        }
        // XEP-0124 §11: one more than `requests` is allowed for this.
        self.add_payloads(Kind::Terminate);
    }

    fn end(&mut self, end: End) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Ended;
        for request in self.requests.drain(..) {
            if let State::Posted { exchange, .. } = request.state {
                self.outputs.push_back(Output::Abandon(exchange));
            }
        }
        self.queue.clear();
        self.queued_bytes = 0;
        self.outputs.push_back(Output::Ended(end));
    }
}
