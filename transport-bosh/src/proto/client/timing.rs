//! When the client does what: back-off, time-outs, pace.

use std::time::{Duration, Instant};

use super::{ClientMachine, ClientSettings, End, Granted, Kind, Output, Phase, State};
use crate::exchange::ExchangeErrorKind;

/// The first repeat is immediate, the next after one second, then two, and so on up to this.
pub(super) const LONGEST_BACKOFF: Duration = Duration::from_secs(8);
/// Inactivity assumed of a peer that names none.
const DEFAULT_INACTIVITY: Duration = Duration::from_secs(120);
/// The least interval between polls of a session that can only poll, if the peer names none.
pub(super) const DEFAULT_POLLING: Duration = Duration::from_secs(2);
/// An empty answer to an empty request within this time was not held.
pub(super) const NOT_HELD: Duration = Duration::from_millis(500);
/// So many of them in a row are taken as they come.
const NOT_HELD_ALLOWED: u32 = 3;

impl ClientMachine {
    pub(super) fn backoff(&mut self, failures: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let base = Duration::from_secs(1 << (failures - 1).min(10)).min(LONGEST_BACKOFF);
        // xorshift64: spreads, keeps no secret.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let parts = u32::try_from(self.jitter % 512).unwrap_or(0);
        base / 2 + base * parts / 1_024
    }

    /// When the next empty request may go.
    pub(super) fn pace(&mut self, kind: Kind, empty: bool, posted: Instant) {
        let polling = self.granted.wait.is_zero() || self.granted.hold == 0 || self.granted.requests == 1;
        if polling {
            // A server in use counts from the creation on, whatever that brought.
            if empty || kind == Kind::Creation {
                self.poll_not_before = posted + self.granted.polling.unwrap_or(DEFAULT_POLLING);
            }
            return;
        }
        if !empty {
            self.poll_not_before = self.now + self.settings.gather;
        }
        let held = self.now.saturating_duration_since(posted) >= NOT_HELD;
        if kind != Kind::Poll || !empty || held {
            self.not_held = 0;
            return;
        }
        self.not_held += 1;
        if self.not_held > NOT_HELD_ALLOWED {
            // A peer that says it holds requests and does not must not make this end spin.
            let pause = self.granted.polling.unwrap_or(DEFAULT_POLLING).max(Duration::from_secs(1));
            self.poll_not_before = self.now + pause.min(self.inactivity() / 2);
        }
    }

    pub(super) fn inactivity(&self) -> Duration {
        self.granted.inactivity.unwrap_or(DEFAULT_INACTIVITY).max(Duration::from_secs(1))
    }

    /// How long an answer may overtake an earlier one.
    pub(super) fn secondary(&self) -> Duration {
        (self.granted.wait / 10).max(Duration::from_millis(200))
    }

    /// When the peer has certainly given the session up: it held a request for `wait`, then waited for the next. While
    /// a POST is under way it may be held at this moment, so there is no such time.
    fn given_up_at(&self) -> Option<Instant> {
        let asked = self.requests.front()?.first_posted;
        let under_way = self.requests.iter().any(|request| matches!(request.state, State::Posted { .. }));
        (!under_way).then(|| self.last_answer.max(asked) + self.granted.wait + self.inactivity())
    }

    fn gap_repeat_at(&self) -> Option<Instant> {
        let front = self.requests.front()?;
        let State::Posted { at, .. } = front.state else { return None };
        // Each repeat gets twice the time of the one before.
        let patience = self.secondary() * (1 << front.failures.min(6));
        Some(self.gap_since?.max(at) + patience)
    }

    /// Acts on every time that has come.
    pub(super) fn expire(&mut self) {
        let now = self.now;
        match self.phase {
            Phase::Closing { until } if now >= until => return self.end(End::Closed),
            Phase::Open if self.given_up_at().is_some_and(|at| now >= at) => {
                return self.end(End::Silent);
            }
            Phase::Idle | Phase::Ended => return,
            _ => {}
        }
        if self.gap_repeat_at().is_some_and(|at| now >= at) {
            self.supersede(0, false);
            if let Some(front) = self.requests.front_mut() {
                front.failures += 1;
            }
        }
        self.see_to_overdue();
        for i in 0..self.requests.len() {
            let request = &self.requests[i];
            let State::Posted { exchange, at } = request.state else { continue };
            let (kind, timeout) = (request.kind, timeout(&self.settings, &self.granted, request.kind));
            if now < at + timeout {
                continue;
            }
            self.outputs.push_back(Output::Abandon(exchange));
            self.lost(now.saturating_duration_since(at), ExchangeErrorKind::TimedOut);
            if kind == Kind::Creation {
                self.requests.clear();
                return self.end(End::Unreachable(ExchangeErrorKind::TimedOut));
            }
            self.try_again(i, None);
        }
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        let mut earliest = match self.phase {
            Phase::Idle | Phase::Ended => return None,
            Phase::Closing { until } => Some(until),
            Phase::Open if self.requests.is_empty() => (!self.hold).then_some(self.poll_not_before),
            Phase::Open => self.given_up_at(),
            Phase::Creating => None,
        };
        let mut at = |instant: Instant| earliest = Some(earliest.map_or(instant, |e| e.min(instant)));
        for request in &self.requests {
            match request.state {
                State::Due(due) => at(due),
                State::Posted { at: posted, .. } => {
                    at(posted + timeout(&self.settings, &self.granted, request.kind));
                }
                State::Answered(_) => {}
            }
        }
        for due in [self.gap_repeat_at(), self.nudge_at(), self.overdue_at()].into_iter().flatten() {
            at(due);
        }
        earliest
    }
}

/// How long the answer to a request of `kind` may take.
pub(super) fn timeout(settings: &ClientSettings, granted: &Granted, kind: Kind) -> Duration {
    match kind {
        Kind::Creation => settings.creation,
        Kind::Terminate => settings.farewell,
        Kind::Payloads | Kind::Poll | Kind::Restart => granted.wait + settings.margin,
    }
}
