//! One end of a session as its owner holds it, for cases to drive.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    envelope::Envelope,
    error::TransportError,
    ids::{DeviceId, SessionId},
    transport::{CloseReason, EndReason, Full, Inbound, Push, Queue, Session, Started},
};

/// How long a case waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the peer's words arrived as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// [`Inbound::envelope`]
    Envelope(Envelope),
    /// [`Inbound::confirmed`]
    Confirmed(u64),
    /// [`Inbound::attached`]
    Attached,
    /// [`Inbound::detached`]
    Detached,
    /// [`Inbound::resume`], which was granted.
    Resume(SessionId),
    /// [`Inbound::ended`]
    Ended(EndReason),
}

#[derive(Debug, Default)]
struct Recorder {
    state: Mutex<Recorded>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Recorded {
    events: VecDeque<Event>,
    full: bool,
    offered: usize,
    ended: bool,
    confirmed: u64,
}

impl Recorder {
    fn with<R>(&self, f: impl FnOnce(&mut Recorded) -> R) -> R {
        f(&mut self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn record(&self, event: Event) {
        self.with(|recorded| {
            assert!(!recorded.ended, "{event:?} after the session ended");
            recorded.events.push_back(event);
        });
        self.changed.notify_waiters();
    }
}

impl Inbound for Recorder {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        let full = self.with(|recorded| {
            recorded.offered += 1;
            recorded.full
        });
        if full {
            return Err(Full(envelope));
        }
        self.record(Event::Envelope(envelope));
        Ok(())
    }
    fn confirmed(&self, number: u64) {
        self.with(|recorded| recorded.confirmed = recorded.confirmed.max(number));
        self.record(Event::Confirmed(number));
    }
    fn attached(&self) {
        self.record(Event::Attached);
    }
    fn detached(&self) {
        self.record(Event::Detached);
    }
    fn resume(&self, session: &SessionId) -> bool {
        self.record(Event::Resume(session.clone()));
        true
    }
    fn ended(&self, reason: EndReason) {
        self.record(Event::Ended(reason));
        self.with(|recorded| recorded.ended = true);
    }
}

/// One end of a session, with everything that its peer said.
#[derive(Debug)]
pub struct Owner {
    /// Whose session it is.
    pub device: DeviceId,
    /// Its ID in force.
    pub id: SessionId,
    push: Box<dyn Push>,
    recorder: Arc<Recorder>,
    taken: u64,
}

struct List<'a> {
    waiting: &'a mut VecDeque<Envelope>,
    taken: &'a mut u64,
}

impl Queue for List<'_> {
    fn next_cost(&mut self) -> Option<usize> {
        self.waiting.front().map(Envelope::cost)
    }
    fn take(&mut self) -> Option<Envelope> {
        let envelope = self.waiting.pop_front()?;
        *self.taken += 1;
        Some(envelope)
    }
}

impl Owner {
    /// Takes `session`, under its own ID or under `id`.
    pub fn start(session: Session, id: Option<SessionId>) -> Self {
        let Session { device, id: proposed, mut push, .. } = session;
        let recorder = Arc::new(Recorder::default());
        let resumed = id.is_some();
        let id = id.unwrap_or(proposed);
        push.start(Started::new(id.clone(), resumed, Arc::clone(&recorder) as Arc<dyn Inbound>));
        Self { device, id, push, recorder, taken: 0 }
    }

    /// Pushes once from `waiting`.
    ///
    /// # Errors
    /// The transport's.
    pub async fn push(&mut self, waiting: &mut VecDeque<Envelope>) -> Result<(), TransportError> {
        self.push.push(&mut List { waiting, taken: &mut self.taken }).await
    }

    /// Pushes all of `envelopes`, waiting for room as often as it takes.
    ///
    /// # Errors
    /// The transport's.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    pub async fn send(
        &mut self,
        envelopes: impl IntoIterator<Item = Envelope>,
    ) -> Result<(), TransportError> {
        let mut waiting = envelopes.into_iter().collect();
        let pushing = async {
            while !VecDeque::is_empty(&waiting) {
                self.push(&mut waiting).await?;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, pushing).await.expect("there is room in time")
    }

    /// The next event that `wanted` makes something of; others are passed over.
    ///
    /// # Panics
    /// If it does not come within [`PATIENCE`].
    pub async fn next<T>(&self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let changed = self.recorder.changed.notified();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                let found = self.recorder.with(|recorded| {
                    while let Some(event) = recorded.events.pop_front() {
                        if let Some(found) = wanted(event) {
                            return Some(found);
                        }
                    }
                    None
                });
                if let Some(found) = found {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("what must come comes in time")
    }

    /// The next `count` envelopes.
    pub async fn receive(&self, count: usize) -> Vec<Envelope> {
        let mut received = Vec::with_capacity(count);
        while received.len() < count {
            received.push(
                self.next(|event| match event {
                    Event::Envelope(envelope) => Some(envelope),
                    Event::Ended(reason) => panic!("the session ended ({reason:?})"),
                    _ => None,
                })
                .await,
            );
        }
        received
    }

    /// Why the session ended.
    pub async fn ended(&self) -> EndReason {
        self.next(|event| if let Event::Ended(reason) = event { Some(reason) } else { None }).await
    }

    /// Waits for a connection on which a push can go.
    pub async fn attached(&self) {
        self.next(|event| (event == Event::Attached).then_some(())).await;
    }

    /// Envelopes that arrived and that nobody asked for yet.
    pub fn unread(&self) -> usize {
        let count = |recorded: &mut Recorded| {
            recorded.events.iter().filter(|event| matches!(event, Event::Envelope(_))).count()
        };
        self.recorder.with(count)
    }

    /// Whether envelopes are given back as too many from now on.
    pub fn set_full(&self, full: bool) {
        self.recorder.with(|recorded| recorded.full = full);
    }

    /// How often an envelope was offered, taken or not.
    pub fn offered(&self) -> usize {
        self.recorder.with(|recorded| recorded.offered)
    }

    /// The highest number confirmed.
    pub fn confirmed(&self) -> u64 {
        self.recorder.with(|recorded| recorded.confirmed)
    }

    /// How many envelopes the transport has taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The transport's half.
    pub fn push_half(&mut self) -> &mut dyn Push {
        &mut *self.push
    }

    /// Ends the session, and leaves the transport's half in place.
    pub async fn close(&mut self, reason: CloseReason) {
        tokio::time::timeout(PATIENCE, self.push.close(reason)).await.expect("a close is bounded in time");
    }
}
