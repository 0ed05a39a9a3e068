//! The ledger: every request from its coming in until its answer is settled. No I/O, no clock.
//!
//! ```text
//! request ─▶ Queued ─▶ Running ─▶ Owed (answer known, not yet settled) ─▶ settled, remembered
//!    └─ too many ─▶ Owed (`busy`)                  ▲     └─ failed ─▶ sent again, with back-off
//! the same ID again: still running → nothing; answered → that answer again, never the handler again
//! ```
//!
//! A job (a request with an offer in it) runs at once, in no handler's place: when it has its turn, and how long it may
//! take, is its app's. One that came to nothing because nobody wanted it is forgotten, so that it can be offered again
//! and gone on with.

mod messages;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use relay_core::{
    envelope::{Envelope, MAX_INLINE_BODY},
    ids::{Method, ObjectId, RequestId},
    request::{Request, Response},
};

pub use self::messages::RespondBy;
pub(crate) use self::messages::{Input, LedgerConfig, Output};
use crate::{
    backoff::{Backoff, Jitter},
    event::Event,
    handler::status,
    http::Verdict,
};

#[derive(Debug)]
enum Stage {
    Queued(Arc<Request>),
    Running,
    /// Answered; the relay has not said what became of it.
    Owed {
        response: Response,
        way: Way,
        backoff: Backoff,
    },
    Settled {
        response: Option<Response>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Waiting for one of the HTTP deliveries to be free.
    Ready,
    /// An HTTP delivery is under way.
    Delivering,
    /// In the session, until then.
    Pushed(Instant),
    /// To be sent again then.
    Later(Instant),
}

#[derive(Debug)]
struct Entry {
    stage: Stage,
    /// A job has none.
    deadline: Option<Instant>,
    /// When to say `received`, if it was not said.
    received_at: Option<Instant>,
    cancelled: bool,
}

impl Entry {
    const fn is_job(&self) -> bool {
        self.deadline.is_none()
    }
}

#[derive(Debug)]
pub(crate) struct Ledger {
    config: LedgerConfig,
    jitter: Jitter,
    entries: HashMap<RequestId, Entry>,
    /// Queued, in order of arrival.
    queue: VecDeque<RequestId>,
    /// Not settled, in order of arrival.
    open: Vec<RequestId>,
    /// Settled, oldest first.
    settled: VecDeque<(Instant, RequestId)>,
    /// Settled with an answer that is still kept, oldest first.
    kept: VecDeque<RequestId>,
    kept_bytes: usize,
    running: usize,
    delivering: usize,
    /// The largest body that the session takes, if there is a session.
    session: Option<usize>,
    taking: bool,
    outputs: VecDeque<Output>,
}

impl Ledger {
    pub(crate) fn new(config: LedgerConfig, seed: u64) -> Self {
        Self {
            config,
            jitter: Jitter::new(seed),
            entries: HashMap::new(),
            queue: VecDeque::new(),
            open: Vec::new(),
            settled: VecDeque::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            running: 0,
            delivering: 0,
            session: None,
            taking: true,
            outputs: VecDeque::new(),
        }
    }

    /// Whether nothing is queued, at work or unsettled.
    pub(crate) const fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether an answer is known that is not settled.
    pub(crate) fn owes(&self) -> bool {
        let owed = |id| matches!(self.entries.get(id), Some(Entry { stage: Stage::Owed { .. }, .. }));
        self.open.iter().any(owed)
    }

    pub(crate) fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Request { id, request, deadline } => self.request(now, id, request, deadline),
            Input::Cancel { id } => self.cancel(now, &id),
            Input::Close { id } => {
                let is_job_at_work = |entry: &&Entry| entry.is_job() && matches!(entry.stage, Stage::Running);
                if self.entries.get(&id).filter(is_job_at_work).is_some() {
                    self.cancel(now, &id);
                }
            }
            Input::Finished { id, response } => self.finished(now, &id, response),
            Input::Unwanted { id } => self.unwanted(&id),
            Input::Delivered { id, result } => self.delivered(now, &id, result),
            Input::Ack { id, disposition } => self.acknowledged(now, &id, disposition.into()),
            Input::SessionUp { max_body, respond_by } => {
                self.config.respond_by = respond_by;
                self.session = Some(max_body.min(MAX_INLINE_BODY));
                for id in self.open.clone() {
                    self.send_again(now, &id, |way| matches!(way, Way::Pushed(_) | Way::Later(_)));
                }
            }
            Input::SessionDown => {
                self.session = None;
                // Whether the relay got them nobody knows; by HTTP it says so.
                for id in self.open.clone() {
                    self.send_again(now, &id, |way| matches!(way, Way::Pushed(_)));
                }
            }
            Input::TakeNoMore => self.taking = false,
            Input::Woken => {}
        }
        self.see_to_time(now);
        self.start_deliveries();
        self.forget(now);
    }

    /// What is to be done; `None` once all is.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to come back with [`Input::Woken`], whatever else happens before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let due = |id: &RequestId| {
            let entry = self.entries.get(id)?;
            match &entry.stage {
                Stage::Queued(_) | Stage::Running => {
                    let deadline = entry.deadline.filter(|_| !entry.cancelled);
                    [entry.received_at, deadline].into_iter().flatten().min()
                }
                Stage::Owed { way: Way::Pushed(at) | Way::Later(at), .. } => Some(*at),
                Stage::Owed { .. } | Stage::Settled { .. } => None,
            }
        };
        self.open.iter().filter_map(due).min()
    }

    fn request(&mut self, now: Instant, id: RequestId, request: Arc<Request>, deadline: Instant) {
        if self.entries.contains_key(&id) {
            return self.request_again(now, &id, request);
        }
        // Refusals are owed too; twice the bound is where a relay that minds no bound is no longer listened to.
        if self.open.len() >= self.config.in_flight.saturating_mul(2) {
            self.outputs.push_back(Output::Event(Event::TurnedAway { id }));
            return;
        }
        let received_at = Some(now + self.config.received_after);
        if request.offer.is_some() {
            return self.offer(now, id, request, received_at);
        }
        self.outputs.push_back(Output::Event(Event::Requested {
            id: id.clone(),
            method: request.method.clone(),
            objects: request.objects.clone(),
        }));
        // What is answered no longer counts here: the relay gives its place away as soon as it has the answer, and pushes
        // the next request before this end has heard of that.
        let full = self.queue.len() + self.running >= self.config.in_flight;
        self.open.push(id.clone());
        self.entries.insert(
            id.clone(),
            Entry { stage: Stage::Queued(request), deadline: Some(deadline), received_at, cancelled: false },
        );
        if full || !self.taking {
            self.turn_away(now, &id);
        } else {
            self.queue.push_back(id);
            self.start_handlers(now);
        }
    }

    fn offer(&mut self, now: Instant, id: RequestId, request: Arc<Request>, received_at: Option<Instant>) {
        self.open.push(id.clone());
        let entry = Entry { stage: Stage::Running, deadline: None, received_at, cancelled: false };
        self.entries.insert(id.clone(), entry);
        if self.taking {
            self.outputs.push_back(Output::Offer { id, request });
        } else {
            self.turn_away(now, &id);
        }
    }

    fn turn_away(&mut self, now: Instant, id: &RequestId) {
        self.outputs.push_back(Output::Event(Event::TurnedAway { id: id.clone() }));
        let (code, words) = if self.taking {
            ("busy", "the device has too many requests at once")
        } else {
            ("shutting-down", "the device is being shut down")
        };
        self.owe(now, id, Response::error(status(code), words));
    }

    /// B13: a request that was seen is not run again; what it was answered is sent again.
    fn request_again(&mut self, now: Instant, id: &RequestId, request: Arc<Request>) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        match &mut entry.stage {
            Stage::Queued(_) | Stage::Running => {
                // The relay does not know that it arrived.
                entry.received_at = Some(now);
                if entry.is_job() {
                    self.outputs.push_back(Output::OfferedAgain { id: id.clone(), request });
                }
                return;
            }
            Stage::Owed { .. } => {}
            Stage::Settled { response } => {
                let response = response.take();
                self.kept_bytes -= response.as_ref().map_or(0, cost);
                self.settled.retain(|(_, settled)| settled != id);
                self.open.push(id.clone());
                let response = response.unwrap_or_else(|| {
                    Response::error(status("already-handled"), "handled; its answer is no longer kept")
                });
                self.owe(now, id, response);
                return;
            }
        }
        self.send_again(now, id, |way| !matches!(way, Way::Delivering));
    }

    fn start_handlers(&mut self, now: Instant) {
        while self.running < self.config.concurrency {
            let Some(id) = self.queue.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if let Stage::Queued(request) = &entry.stage {
                let request = request.clone();
                entry.stage = Stage::Running;
                self.running += 1;
                let deadline = entry.deadline.unwrap_or(now);
                self.outputs.push_back(Output::Run { id, request, deadline });
            }
        }
    }

    fn cancel(&mut self, now: Instant, id: &RequestId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let already = std::mem::replace(&mut entry.cancelled, true);
        match &entry.stage {
            Stage::Queued(_) => {
                self.queue.retain(|queued| queued != id);
                self.remember_response(
                    id,
                    Response::error(status("cancelled"), "cancelled before it was run"),
                );
                self.close(now, id, None);
            }
            Stage::Running if !already => self.outputs.push_back(Output::Cancel(id.clone())),
            Stage::Owed { way, .. } if *way != Way::Delivering => self.close(now, id, Some(Verdict::TooLate)),
            // A delivery under way brings its own verdict.
            Stage::Owed { .. } | Stage::Running | Stage::Settled { .. } => {}
        }
    }

    fn finished(&mut self, now: Instant, id: &RequestId, response: Response) {
        let Some(entry) = self.entries.get(id) else { return };
        if !matches!(entry.stage, Stage::Running) {
            return;
        }
        if !entry.is_job() {
            self.running -= 1;
        }
        let wanted = !entry.cancelled || entry.deadline.is_some_and(|deadline| deadline <= now);
        if wanted {
            self.owe(now, id, response);
        } else {
            // The relay said that nobody wants it.
            self.remember_response(id, response);
            self.close(now, id, None);
        }
        self.start_handlers(now);
    }

    /// A job that was cancelled, or is not to be had any more, and was not done.
    fn unwanted(&mut self, id: &RequestId) {
        if self.entries.get(id).is_some_and(|entry| matches!(entry.stage, Stage::Running)) {
            self.entries.remove(id);
            self.open.retain(|open| open != id);
            self.outputs.push_back(Output::Withdraw(id.clone()));
        }
    }

    fn remember_response(&mut self, id: &RequestId, response: Response) {
        if let Some(entry) = self.entries.get_mut(id) {
            let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
            entry.stage = Stage::Owed { response, way: Way::Ready, backoff };
        }
    }

    fn owe(&mut self, now: Instant, id: &RequestId, response: Response) {
        self.remember_response(id, response);
        self.send_again(now, id, |_| true);
    }

    /// Sends what is owed, if it stands where `which` says.
    fn send_again(&mut self, now: Instant, id: &RequestId, which: impl Fn(Way) -> bool) {
        let Some(Entry { stage: Stage::Owed { response, way, .. }, .. }) = self.entries.get_mut(id) else {
            return;
        };
        if !which(*way) {
            return;
        }
        let size = response.body.as_ref().map_or(0, |body| body.bytes.len());
        let in_session =
            self.config.respond_by == RespondBy::Session && self.session.is_some_and(|max| size <= max);
        if in_session {
            *way = Way::Pushed(now + self.config.ack_within);
            let (id, response) = (id.clone(), response.clone());
            self.outputs.push_back(Output::Push(Envelope::Response { id, response, acknowledge: true }));
        } else {
            *way = Way::Ready;
        }
    }

    fn start_deliveries(&mut self) {
        for id in &self.open {
            if self.delivering >= self.config.deliveries {
                return;
            }
            if let Some(Entry { stage: Stage::Owed { response, way: way @ Way::Ready, .. }, .. }) =
                self.entries.get_mut(id)
            {
                *way = Way::Delivering;
                self.delivering += 1;
                self.outputs.push_back(Output::Deliver(id.clone(), response.clone()));
            }
        }
    }

    fn delivered(&mut self, now: Instant, id: &RequestId, result: Result<Verdict, Option<Duration>>) {
        self.delivering = self.delivering.saturating_sub(1);
        match result {
            Ok(Verdict::TooLarge) => {
                let Some(Entry { stage: Stage::Owed { response, way, .. }, .. }) = self.entries.get_mut(id)
                else {
                    return;
                };
                let words = "the device's answer is larger than the relay takes";
                let smaller = Response::error(status("too-large"), words);
                // The caller is better told that than left to wait in vain; said once, then it is settled.
                if *response == smaller {
                    self.settle(now, id, Verdict::TooLarge);
                } else {
                    (*response, *way) = (smaller, Way::Ready);
                }
            }
            Ok(verdict) => self.settle(now, id, verdict),
            Err(retry_after) => {
                if let Some(Entry { stage: Stage::Owed { way, backoff, .. }, .. }) = self.entries.get_mut(id)
                {
                    *way = Way::Later(now + backoff.next(&mut self.jitter, retry_after));
                }
            }
        }
    }

    fn acknowledged(&mut self, now: Instant, id: &RequestId, verdict: Verdict) {
        let delivering = |entry: &Entry| matches!(entry.stage, Stage::Owed { way: Way::Delivering, .. });
        if !self.entries.get(id).is_some_and(delivering) {
            self.settle(now, id, verdict);
        }
    }

    fn settle(&mut self, now: Instant, id: &RequestId, verdict: Verdict) {
        if matches!(self.entries.get(id), Some(Entry { stage: Stage::Owed { .. }, .. })) {
            self.close(now, id, Some(verdict));
        }
    }

    /// Nothing more is owed for `id`; it stays remembered.
    fn close(&mut self, now: Instant, id: &RequestId, verdict: Option<Verdict>) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let stage = std::mem::replace(&mut entry.stage, Stage::Settled { response: None });
        if let Stage::Owed { response, .. } = stage {
            self.kept_bytes += cost(&response);
            self.kept.push_back(id.clone());
            entry.stage = Stage::Settled { response: Some(response) };
        }
        self.open.retain(|open| open != id);
        self.settled.push_back((now, id.clone()));
        self.outputs.push_back(Output::Withdraw(id.clone()));
        if let Some(verdict) = verdict {
            self.outputs.push_back(Output::Event(Event::Settled { id: id.clone(), verdict }));
        }
    }

    fn see_to_time(&mut self, now: Instant) {
        for id in self.open.clone() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            match &mut entry.stage {
                Stage::Queued(_) | Stage::Running => {
                    if entry.received_at.is_some_and(|at| at <= now) {
                        entry.received_at = None;
                        if self.session.is_some() {
                            self.outputs.push_back(Output::Push(Envelope::Received { id: id.clone() }));
                        }
                    }
                    if entry.deadline.is_some_and(|deadline| deadline <= now) && !entry.cancelled {
                        self.cancel(now, &id);
                    }
                }
                Stage::Owed { way, backoff, .. } => match *way {
                    Way::Pushed(at) if at <= now => {
                        *way = Way::Later(now + backoff.next(&mut self.jitter, None));
                    }
                    Way::Later(at) if at <= now => self.send_again(now, &id, |_| true),
                    _ => {}
                },
                Stage::Settled { .. } => {}
            }
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((settled_at, _)) = self.settled.front() {
            let old = now.saturating_duration_since(*settled_at) >= self.config.remembered_for;
            if !old && self.settled.len() <= self.config.remembered {
                break;
            }
            let Some((_, id)) = self.settled.pop_front() else { break };
            if let Some(Entry { stage: Stage::Settled { response: Some(response) }, .. }) =
                self.entries.remove(&id)
            {
                self.kept_bytes -= cost(&response);
            }
        }
        // A request that came again leaves its old place in `kept` behind, so its length is bounded here as well.
        while self.kept_bytes > self.config.remembered_bytes || self.kept.len() > self.config.remembered {
            let Some(id) = self.kept.pop_front() else { break };
            if let Some(Entry { stage: Stage::Settled { response }, .. }) = self.entries.get_mut(&id)
                && let Some(response) = response.take()
            {
                self.kept_bytes -= cost(&response);
            }
        }
    }
}

fn cost(response: &Response) -> usize {
    response.body.as_ref().map_or(0, |body| body.bytes.len())
}

/// What a request asks, for logs.
pub(crate) fn summary(method: &Method, objects: &[ObjectId]) -> String {
    match objects {
        [] => method.to_string(),
        [object] => format!("{method} {object}"),
        [object, rest @ ..] => format!("{method} {object} and {} more", rest.len()),
    }
}
