//! How long the network leaves a connection alone on which a request is held: heeded, and told.
//!
//! While a request is held, nothing passes on its connection, and much that stands in between forgets such a connection
//! before `wait` is over. One more empty request in time has the held one answered at once and is held in its place; the
//! peer allows that no more often than `polling` (XEP-0124 §11).
//!
//! A POST that was lost after it was held for a while is only suspected to have been cut for that: if what is posted next
//! comes to nothing at once, it was the peer or the whole network that went.

use std::time::{Duration, Instant};

use super::{
    ClientMachine, Kind, Output, Phase, State,
    timing::{DEFAULT_POLLING, NOT_HELD},
};
use crate::exchange::ExchangeErrorKind;

/// Clocks and the way there are not exact, and a peer counts from arrival to arrival.
const SLACK: Duration = Duration::from_millis(100);
/// An answer that is overdue for less may be under way.
const OVERDUE: Duration = Duration::from_secs(1);

/// A connection that was lost, perhaps for being idle so long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspected {
    idle: Duration,
    seen: bool,
}

impl ClientMachine {
    /// When the held request is to be freed by another one, so that its connection is idle no longer than it may be.
    pub(super) fn nudge_at(&self) -> Option<Instant> {
        let holds = self.granted.hold > 0 && self.in_window() && !self.hold && !self.restart;
        if self.phase != Phase::Open || !holds || !self.queue.is_empty() || self.requests.len() != 1 {
            return None;
        }
        let held = self.requests.front()?;
        let State::Posted { at, .. } = held.state else { return None };
        // After a cut the peer is to answer well before the next one.
        let hurry = self.suspected.map(|suspected| suspected.idle / 2);
        let idle = [self.settings.keepalive, hurry].into_iter().flatten().min()?;
        if idle >= self.granted.wait {
            return None;
        }
        let polling = self.granted.polling.unwrap_or(DEFAULT_POLLING) + SLACK;
        Some((at + idle).max(held.first_posted + polling))
    }

    /// When the answer to the held request must have come, which the request after it made due. The connection of one or
    /// the other is dead otherwise, and nothing says which.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        let (held, nudge) = (self.requests.front()?, self.requests.back()?);
        let (State::Posted { at: held_at, .. }, State::Posted { at, .. }) = (&held.state, &nudge.state)
        else {
            return None;
        };
        // Each repeat gets twice the time of the one before.
        let patience = self.settings.margin * (1 << nudge.posts.saturating_sub(1).min(3));
        (nudge.rid != held.rid && nudge.kind == Kind::Poll).then(|| *held_at.max(at) + patience)
    }

    /// Asks again for all of it on new connections if the answer is overdue.
    pub(super) fn see_to_overdue(&mut self) {
        if self.overdue_at().is_some_and(|at| self.now >= at) {
            if let (Some(State::Posted { at, .. }), Some(nudge)) =
                (self.requests.front().map(|held| &held.state), self.requests.back())
            {
                self.suspect(nudge.first_posted.saturating_duration_since(*at), false);
            }
            self.refresh();
        }
    }

    /// What waits is asked for again on new connections; was it overdue?
    pub(super) fn suspect_overdue(&mut self) {
        if let Some(State::Posted { at, .. }) = self.requests.front().map(|held| &held.state)
            && self.now.saturating_duration_since(*at) > self.granted.wait + OVERDUE
        {
            self.suspect(self.granted.wait, false);
        }
    }

    /// A POST came to nothing after `idle`.
    pub(super) fn lost(&mut self, idle: Duration, kind: ExchangeErrorKind) {
        match kind {
            ExchangeErrorKind::Interrupted => self.suspect(idle, true),
            ExchangeErrorKind::TimedOut => self.suspect(idle.min(self.granted.wait), false),
            // There was no connection to be cut.
            _ => self.suspected = None,
        }
    }

    /// `seen`: the connection was closed then; else it was found dead.
    fn suspect(&mut self, idle: Duration, seen: bool) {
        if idle < NOT_HELD {
            self.suspected = None;
        } else if let Some(before) = self.suspected.replace(Suspected { idle, seen }) {
            // The one after that was held as well.
            self.tell_cut(before);
        }
    }

    /// The peer answered, on a connection that was idle for so long.
    pub(super) fn survived(&mut self, idle: Duration) {
        if let Some(suspected) = self.suspected.take() {
            self.tell_cut(suspected);
        }
        if idle >= NOT_HELD {
            self.outputs.push_back(Output::Survived { idle });
        }
    }

    fn tell_cut(&mut self, Suspected { idle, seen }: Suspected) {
        self.outputs.push_back(Output::Cut { idle, seen });
    }
}
