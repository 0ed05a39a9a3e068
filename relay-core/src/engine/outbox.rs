//! What waits to go onto one session, in order, within bounds.
//!
//! Requests beyond the bound wait in `overflow`, which in turn is bounded by the requests that one device may have in
//! flight; what is not a request has a small bound of its own and is refused beyond it.

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::{envelope::Envelope, ids::RequestId};

/// Envelopes other than requests that may wait: verdicts, cancellations, pongs.
pub(crate) const MAX_CONTROL: usize = 256;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    Request(RequestId),
    /// In a box: most entries are requests, and a place is made for each.
    Control(Box<Envelope>),
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: SmallVec<[(usize, Entry); 1]>,
    overflow: VecDeque<(usize, RequestId)>,
    requests: usize,
    bytes: usize,
}

/// How many requests, and how many bytes of them, may stand in the outbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) envelopes: usize,
    pub(crate) bytes: usize,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn next_cost(&self) -> Option<usize> {
        self.entries.first().map(|(cost, _)| *cost)
    }

    fn fits(&self, room: Room, cost: usize) -> bool {
        // One envelope always fits, however large: else it would never go.
        self.requests == 0 || (self.requests < room.envelopes && self.bytes + cost <= room.bytes)
    }

    pub(crate) fn push_request(&mut self, room: Room, id: RequestId, cost: usize) {
        if self.overflow.is_empty() && self.fits(room, cost) {
            self.admit(id, cost);
        } else {
            self.overflow.push_back((cost, id));
        }
    }

    fn admit(&mut self, id: RequestId, cost: usize) {
        self.requests += 1;
        self.bytes += cost;
        self.entries.push((cost, Entry::Request(id)));
    }

    pub(crate) fn has_control_room(&self) -> bool {
        self.entries.len() - self.requests < MAX_CONTROL
    }

    /// Whether there was room for it.
    pub(crate) fn push_control(&mut self, envelope: Envelope) -> bool {
        let room = self.has_control_room();
        if room {
            self.entries.push((envelope.cost(), Entry::Control(Box::new(envelope))));
        }
        room
    }

    pub(crate) fn take(&mut self, room: Room) -> Option<Entry> {
        if self.entries.is_empty() {
            return None;
        }
        let (cost, entry) = self.entries.remove(0);
        if matches!(entry, Entry::Request(_)) {
            self.requests -= 1;
            self.bytes -= cost;
            self.promote(room);
        }
        Some(entry)
    }

    fn promote(&mut self, room: Room) {
        while let Some(&(cost, _)) = self.overflow.front() {
            if !self.fits(room, cost) {
                return;
            }
            if let Some((cost, id)) = self.overflow.pop_front() {
                self.admit(id, cost);
            }
        }
        // An idle session keeps no buffer that a burst had needed.
        if self.entries.is_empty() && self.overflow.is_empty() {
            *self = Self::default();
        }
    }

    pub(crate) fn remove(&mut self, room: Room, id: &RequestId) {
        self.overflow.retain(|(_, waiting)| waiting != id);
        if let Some(index) =
            self.entries.iter().position(|(_, entry)| matches!(entry, Entry::Request(r) if r == id))
        {
            let (cost, _) = self.entries.remove(index);
            self.requests -= 1;
            self.bytes -= cost;
            self.promote(room);
        }
    }

    pub(crate) fn in_overflow(&self, id: &RequestId) -> bool {
        self.overflow.iter().any(|(_, waiting)| waiting == id)
    }

    /// Empties it: requests in order, then what else is worth carrying over to another session.
    pub(crate) fn drain(&mut self) -> (Vec<RequestId>, Vec<Envelope>) {
        let mut requests = Vec::new();
        let mut control = Vec::new();
        for (_, entry) in self.entries.drain(..) {
            match entry {
                Entry::Request(id) => requests.push(id),
                Entry::Control(envelope) => {
                    if let Envelope::Ack { .. } | Envelope::Cancel { .. } = *envelope {
                        control.push(*envelope);
                    }
                }
            }
        }
        requests.extend(self.overflow.drain(..).map(|(_, id)| id));
        *self = Self::default();
        (requests, control)
    }
}
