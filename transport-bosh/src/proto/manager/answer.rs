//! Which held request to answer, with what, and how a session ends.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{End, ExchangeId, Farewell, Manager, Output, Paused};
use crate::{
    proto::rid::{Answered, Replay, Rid},
    wire::{
        TerminalCondition,
        body::{self, AnswerKind, AnswerTag, Piece},
    },
};

impl<P> Manager<P> {
    pub(super) fn pump(&mut self, now: Instant) {
        while !self.held.is_empty()
            && (!self.out.is_empty() || self.opening.is_some() || self.report.is_some())
        {
            self.respond(now);
        }
        while self.held.len() > usize::from(self.terms.hold) && !self.backpressure {
            self.respond(now);
        }
        self.release_expired(now);
    }

    /// Answers what waited long enough, and what must be answered before it.
    pub(super) fn release_expired(&mut self, now: Instant) {
        if let Some(expired) = self.held.iter().rposition(|held| now >= held.deadline) {
            for _ in 0..=expired {
                self.respond(now);
            }
        }
    }

    /// Answers the oldest held request with what is waiting, as far as it fits.
    fn respond(&mut self, now: Instant) {
        let Some(oldest) = self.held.pop_front() else { return };
        let pieces = self.take_out();
        self.barren = pieces.is_empty();
        let body = match self.opening.take() {
            Some(opening) => body::creation(&opening, &pieces),
            None => {
                let mut tag = self.tag(oldest.rid, AnswerKind::Normal);
                tag.report = self.report.take().and_then(|rid| {
                    let at = self.replay.find(rid)?.at;
                    Some((rid, now.saturating_duration_since(at).as_millis()))
                });
                body::answer(&tag, &pieces)
            }
        };
        // Kept before it is sent: only that makes an answer that is lost on the way recoverable.
        self.replay.store(Answered {
            rid: oldest.rid,
            body: body.clone(),
            at: now,
            pushed: self.pushed - self.unsent,
            repeats: oldest.repeats,
            reported: false,
            acknowledged: false,
        });
        if let Some(exchange) = oldest.exchange {
            self.outputs.push_back(Output::Respond { exchange, status: 200, body });
        }
    }

    fn take_out(&mut self) -> SmallVec<[Piece; 1]> {
        let budget = self.terms.max_body.saturating_sub(body::OVERHEAD);
        let mut size = 0;
        let mut elements = 0;
        let mut count = 0;
        for piece in &self.out {
            size += piece.xml.len();
            elements += piece.elements;
            if count > 0 && (size > budget || elements > body::MAX_ELEMENTS) {
                size -= piece.xml.len();
                break;
            }
            count += 1;
        }
        self.out_bytes -= size;
        let pieces: SmallVec<[Piece; 1]> = if count == self.out.len() {
            std::mem::take(&mut self.out)
        } else {
            self.out.drain(..count).collect()
        };
        // Other pieces may stand between them: this counts too many as unsent rather than too few.
        self.unsent = self.unsent.min(self.out.len() as u64);
        pieces
    }

    pub(super) fn tag(&self, rid: Rid, kind: AnswerKind) -> AnswerTag {
        // XEP-0124 §9.1: the highest RID with no gap below, unless it is the one being answered.
        let ack = (self.terms.acks && self.last != rid).then_some(self.last);
        AnswerTag { ack, report: None, kind }
    }

    /// XEP-0124 §10: everything up to the pause is answered at once, with nothing in it.
    pub(super) fn pause(&mut self, rid: Rid, inactivity: Duration, now: Instant) {
        while self.held.front().is_some_and(|held| held.rid <= rid) {
            let Some(held) = self.held.pop_front() else { break };
            let body = match self.opening.take() {
                Some(opening) => body::creation(&opening, &[]),
                None => body::answer(&self.tag(held.rid, AnswerKind::Normal), &[]),
            };
            if held.rid < rid {
                self.replay.store(Answered {
                    rid: held.rid,
                    body: body.clone(),
                    at: now,
                    pushed: self.pushed - self.unsent,
                    repeats: held.repeats,
                    reported: false,
                    acknowledged: false,
                });
            }
            if let Some(exchange) = held.exchange {
                self.outputs.push_back(Output::Respond { exchange, status: 200, body });
            }
        }
        self.paused = self.held.is_empty().then_some(Paused { rid, inactivity, repeats: 0 });
    }

    /// XEP-0124 §13: the oldest learns of the end, the others are answered empty.
    pub(super) fn say_goodbye(&mut self) {
        let body =
            body::answer(&AnswerTag { kind: AnswerKind::Terminate(None), ..AnswerTag::default() }, &[]);
        self.farewell = Some(Box::new(Farewell { status: 200, body, up_to: self.last }));
        let mut kind = AnswerKind::Terminate(None);
        let mut pieces = self.take_out();
        let early = std::mem::take(&mut self.early).into_iter().map(|early| early.exchange);
        let open: Vec<_> =
            std::mem::take(&mut self.held).into_iter().map(|held| held.exchange).chain(early).collect();
        for exchange in open.into_iter().flatten() {
            let body = body::answer(&AnswerTag { kind, ..AnswerTag::default() }, &pieces);
            (kind, pieces) = (AnswerKind::Normal, SmallVec::new());
            self.outputs.push_back(Output::Respond { exchange, status: 200, body });
        }
        self.forget(End::Goodbye);
    }

    /// Ends the session for what came in `exchange`.
    pub(super) fn fail(&mut self, condition: TerminalCondition, exchange: Option<ExchangeId>) {
        let status = condition.http_status(self.terms.legacy);
        if let Some(exchange) = exchange {
            let body = body::terminate(condition);
            self.outputs.push_back(Output::Respond { exchange, status, body });
            let body = body::terminate(TerminalCondition::OtherRequest);
            self.answer_all(&body);
            self.farewell =
                Some(Box::new(Farewell { status, body: body::terminate(condition), up_to: Rid::MAX }));
            self.forget(End::Failed(condition));
        } else {
            self.close(condition, &[], End::Failed(condition));
        }
    }

    pub(super) fn close(&mut self, condition: TerminalCondition, pieces: &[Piece], end: End) {
        let tag = AnswerTag { kind: AnswerKind::Terminate(Some(condition)), ..AnswerTag::default() };
        let status = condition.http_status(self.terms.legacy);
        if let Some(first) = self.held.iter().position(|held| held.exchange.is_some())
            && let Some(exchange) = self.held[first].exchange.take()
        {
            let mut all = self.take_out();
            all.extend(pieces.iter().cloned());
            let body = body::answer(&tag, &all);
            self.outputs.push_back(Output::Respond { exchange, status, body });
        }
        let body = body::answer(&tag, pieces);
        self.answer_all(&body);
        self.farewell = Some(Box::new(Farewell { status, body, up_to: Rid::MAX }));
        self.forget(end);
    }

    /// The client was silent for too long: its session is as unknown as if it had never been.
    pub(super) fn expire(&mut self) {
        let body = body::terminate(TerminalCondition::ItemNotFound);
        self.farewell = Some(Box::new(Farewell { status: 200, body, up_to: Rid::MAX }));
        self.forget(End::Silent);
    }

    /// Answers a request that comes after the end.
    pub(super) fn say_farewell(&mut self, rid: Rid, exchange: ExchangeId) {
        let farewell = self.farewell.as_ref().filter(|farewell| rid <= farewell.up_to);
        let (status, body) = match farewell {
            Some(farewell) => (farewell.status, farewell.body.clone()),
            None => {
                let condition = TerminalCondition::ItemNotFound;
                (condition.http_status(self.terms.legacy), body::terminate(condition))
            }
        };
        self.outputs.push_back(Output::Respond { exchange, status, body });
    }

    fn answer_all(&mut self, body: &Bytes) {
        let held = self.held.drain(..).map(|held| held.exchange);
        let early = self.early.drain(..).map(|early| early.exchange);
        let open = held.chain(early).flatten();
        let respond = |exchange| Output::Respond { exchange, status: 200, body: body.clone() };
        self.outputs.extend(open.map(respond));
    }

    pub(super) fn forget(&mut self, end: End) {
        self.held = VecDeque::new();
        self.early = Vec::new();
        self.out = SmallVec::new();
        self.out_bytes = 0;
        self.replay = Replay::new(0, false);
        self.gap_since = None;
        self.idle_since = None;
        // What the last requests carried is handled before the end is heard of.
        if std::mem::take(&mut self.attached) {
            self.outputs.push_back(Output::Detached);
        }
        self.outputs.push_back(Output::Ended(end));
    }
}
