//! What is behind a session's lock.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use relay_core::{
    auth::{ScramHash, Secret},
    envelope::Envelope,
    ids::{DeviceId, SessionId},
    transport::{EndReason, Inbound},
};

use super::super::pending::Place;
use crate::{
    proto::{
        manager::{End, ExchangeId, Manager, Output},
        room,
        stream::{Proof, StreamError, StreamOutput, XmppStream},
    },
    wire::{
        TerminalCondition,
        body::{Payload, Piece},
    },
};

/// How long an end that is owed an answer can still learn what it was (XEP-0124 §14.3).
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Room that no session is using.
#[derive(Debug, Default)]
struct Spare {
    outputs: VecDeque<Output<Payload>>,
    stream: VecDeque<StreamOutput>,
    events: VecDeque<Event>,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

impl Spare {
    /// Does nothing on a thread that ends: it has none any more.
    fn with(work: impl FnOnce(&mut Self)) {
        let _ = SPARE.try_with(|spare| work(&mut spare.borrow_mut()));
    }
}

/// Something to be done outside the lock.
#[derive(Debug)]
pub(super) enum Event {
    Envelope(Envelope),
    Alive,
    Attached,
    Detached,
    Confirmed(u64),
    Resume { id: Option<Box<str>>, session: SessionId },
    Ended(EndReason),
    Verifier { serial: u64, device: DeviceId, hash: ScramHash },
    Authenticate { serial: u64, device: DeviceId, token: Secret },
    Knock(DeviceId, Box<Proof>),
}

/// An exchange whose host has not fetched its answer yet.
#[derive(Debug)]
struct Open {
    id: ExchangeId,
    waker: Option<Waker>,
    reply: Option<(u16, Bytes)>,
}

/// An owner that took nothing when it was offered something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stuck {
    pub(super) since: Instant,
    pub(super) again: Instant,
    pub(super) pause: Duration,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) machine: Manager<Payload>,
    pub(super) stream: XmppStream,
    open: Vec<Open>,
    exchanges: u64,
    pub(super) events: VecDeque<Event>,
    pub(super) draining: bool,
    /// In a box, as is `place`: few sessions have one.
    pub(super) stuck: Option<Box<Stuck>>,
    pub(super) inbound: Option<Arc<dyn Inbound>>,
    /// Whether the owner was told that a push can go.
    pub(super) attached: bool,
    /// Who waits for room to push.
    pub(super) pusher: Option<Waker>,
    /// When the timer is set to go off.
    pub(super) timer: Option<Instant>,
    /// The place at the door, until the session is bound.
    pub(super) place: Option<Box<Place>>,
    /// When it must be bound.
    pub(super) deadline: Option<Instant>,
    pub(super) heard: Instant,
    pub(super) retry_after: Option<u32>,
    /// Why the session is over, as its owner is to hear it.
    pub(super) end: Option<EndReason>,
    /// Until when requests after the end are told of it; then the session is forgotten.
    pub(super) tombstone: Option<Instant>,
}

impl State {
    pub(super) fn new(
        machine: Manager<Payload>,
        stream: XmppStream,
        place: Place,
        deadline: Instant,
        exchange: ExchangeId,
    ) -> Self {
        Self {
            machine,
            stream,
            open: vec![Open { id: exchange, waker: None, reply: None }],
            exchanges: exchange.0,
            events: VecDeque::new(),
            draining: false,
            stuck: None,
            inbound: None,
            attached: false,
            pusher: None,
            timer: None,
            place: Some(Box::new(place)),
            heard: deadline,
            deadline: Some(deadline),
            retry_after: None,
            end: None,
            tombstone: None,
        }
    }

    pub(super) fn open_exchange(&mut self) -> ExchangeId {
        self.exchanges += 1;
        let id = ExchangeId(self.exchanges);
        self.open.push(Open { id, waker: None, reply: None });
        id
    }

    /// The host lets go of an exchange; whether it was still to be answered.
    pub(super) fn close_exchange(&mut self, id: ExchangeId) -> bool {
        let Some(at) = self.open.iter().position(|open| open.id == id) else { return false };
        self.open.swap_remove(at).reply.is_none()
    }

    /// Whether its owner took the session, and it is not over.
    pub(super) fn is_bound(&self) -> bool {
        self.inbound.is_some() && !self.machine.is_over()
    }

    pub(super) fn poll_reply(&mut self, id: ExchangeId, context: &mut Context<'_>) -> Poll<(u16, Bytes)> {
        let Some(at) = self.open.iter().position(|open| open.id == id) else { return Poll::Pending };
        let open = &mut self.open[at];
        if let Some(reply) = open.reply.take() {
            self.open.swap_remove(at);
            return Poll::Ready(reply);
        }
        match &mut open.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Ends the session for what the client did inside its stream.
    pub(super) fn fail(&mut self, error: StreamError) {
        self.end.get_or_insert(EndReason::Misbehaved);
        self.machine.end(TerminalCondition::RemoteStreamError, &[error.to_piece()]);
    }

    /// Ends the session because its owner wants it, with `pieces` for the client.
    pub(super) fn close(&mut self, condition: TerminalCondition, pieces: &[Piece]) {
        self.end.get_or_insert(EndReason::Closed);
        self.machine.end(condition, pieces);
    }

    /// Takes the room for a round that the last one on this thread gave back.
    pub(super) fn lend(&mut self) {
        Spare::with(|spare| {
            self.machine.lend(&mut spare.outputs);
            self.stream.lend(&mut spare.stream);
            room::lend(&mut self.events, &mut spare.events);
        });
    }

    /// Gives back the room that this round took.
    pub(super) fn shrink(&mut self) {
        Spare::with(|spare| {
            self.machine.shrink(&mut spare.outputs);
            self.stream.shrink(&mut spare.stream);
            room::give_back(&mut self.events, &mut spare.events);
        });
        if self.open.len() <= 2 && self.open.capacity() > 2 {
            self.open.shrink_to(2);
        }
    }

    /// Moves what the machines want done to where it belongs, until they want no more.
    pub(super) fn absorb(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.machine.poll_output() {
                self.managed(output, now);
            } else if let Some(output) = self.stream.poll_output() {
                self.streamed(output);
            } else {
                return;
            }
        }
    }

    fn managed(&mut self, output: Output<Payload>, now: Instant) {
        match output {
            Output::Respond { exchange, status, body } => {
                if let Some(open) = self.open.iter_mut().find(|open| open.id == exchange) {
                    open.reply = Some((status, body));
                    if let Some(waker) = open.waker.take() {
                        waker.wake();
                    }
                }
            }
            Output::Deliver(payload) => self.stream.element(payload.element(), now),
            Output::Restart => self.stream.restart(),
            // To be attached is a sign of life too.
            Output::Alive if self.events.iter().any(|event| matches!(event, Event::Attached)) => {}
            Output::Alive => self.tell(Event::Alive),
            Output::Attached => self.tell_attached(true),
            Output::Detached => self.tell_attached(false),
            Output::Confirmed(number) => self.tell(Event::Confirmed(number)),
            Output::Ended(end) => self.ended(end, now),
        }
    }

    fn streamed(&mut self, output: StreamOutput) {
        match output {
            StreamOutput::Send(piece) => self.machine.send(piece),
            StreamOutput::Verifier { serial, device, hash } => {
                self.events.push_back(Event::Verifier { serial, device, hash })
            }
            StreamOutput::Authenticate { serial, device, token } => {
                self.events.push_back(Event::Authenticate { serial, device, token });
            }
            StreamOutput::Bind { device, proof } => self.events.push_back(Event::Knock(device, proof)),
            StreamOutput::Deliver(envelope) => self.tell(Event::Envelope(envelope)),
            StreamOutput::Resume { id, session } => self.tell(Event::Resume { id, session }),
            StreamOutput::Fail(error) => self.fail(error),
        }
    }

    /// Tells the owner, if there is one.
    fn tell(&mut self, event: Event) {
        if self.inbound.is_some() {
            self.events.push_back(event);
        }
    }

    pub(super) fn tell_attached(&mut self, attached: bool) {
        if self.inbound.is_some() && self.attached != attached {
            self.attached = attached;
            self.events.push_back(if attached { Event::Attached } else { Event::Detached });
        }
    }

    fn ended(&mut self, end: End, now: Instant) {
        let reason = *self.end.get_or_insert(match end {
            End::Goodbye => EndReason::Goodbye,
            End::Silent => EndReason::Lost,
            End::Failed(_) => EndReason::Misbehaved,
            End::Closed => EndReason::Closed,
        });
        // Whoever never logged in is owed no memory.
        self.tombstone = match end {
            End::Silent => None,
            _ if self.inbound.is_none() => None,
            End::Closed => Some(now + self.machine.terms().inactivity),
            End::Goodbye | End::Failed(_) => Some(now + LAST_WORDS),
        };
        self.deadline = None;
        self.stuck = None;
        self.tell(Event::Ended(reason));
        if let Some(pusher) = self.pusher.take() {
            pusher.wake();
        }
    }
}
