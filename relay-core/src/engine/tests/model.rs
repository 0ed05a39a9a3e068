//! Any order of events, compared step by step with a plain model: lists, a clock that ticks in half seconds, and the
//! rules as `docs` state them. The model calls no product code but the types that it compares.
//!
//! Waits end on half seconds and everything else happens on whole ones, so that no two rules meet in one instant.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::super::{Effect, Opening, SessionKey, Shard};
use crate::{
    config::RelayConfig,
    envelope::Envelope,
    ids::{DeviceId, Method, RequestId, SessionId},
    outcome::{Disposition, RequestError},
    presence::State,
    request::{Request, Response},
    transport::{EndReason, TransportInfo},
};

const DEVICES: usize = 2;
const WINDOW: u64 = 20; // half seconds
const SILENCE: u64 = 240;
const REMEMBERED: u64 = 1200;

#[derive(Debug, Clone)]
enum Op {
    Open { device: usize },
    Attach { session: usize },
    Detach { session: usize },
    Heard { session: usize },
    End { session: usize, lost: bool },
    Ask { device: usize, wait: u64 },
    Take { session: usize },
    Confirm { session: usize, number: u64 },
    Received { device: usize, call: usize },
    Respond { device: usize, call: usize },
    HangUp { call: usize },
    Wait { seconds: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let device = || 0..DEVICES;
    // Mostly the newest, sometimes an old one: counted from the end.
    let recent = || prop_oneof![4 => 0..2usize, 1 => 2..6usize];
    let op = prop_oneof![
        3 => device().prop_map(|device| Op::Open { device }),
        4 => recent().prop_map(|session| Op::Attach { session }),
        2 => recent().prop_map(|session| Op::Detach { session }),
        1 => recent().prop_map(|session| Op::Heard { session }),
        2 => (recent(), any::<bool>()).prop_map(|(session, lost)| Op::End { session, lost }),
        8 => (device(), 1..40u64).prop_map(|(device, wait)| Op::Ask { device, wait }),
        8 => recent().prop_map(|session| Op::Take { session }),
        2 => (recent(), 0..6u64).prop_map(|(session, number)| Op::Confirm { session, number }),
        2 => (device(), recent()).prop_map(|(device, call)| Op::Received { device, call }),
        5 => (device(), recent()).prop_map(|(device, call)| Op::Respond { device, call }),
        2 => recent().prop_map(|call| Op::HangUp { call }),
        4 => prop_oneof![3 => 1..5u64, 2 => 5..30u64, 1 => 100..130u64].prop_map(|seconds| Op::Wait { seconds }),
    ];
    prop::collection::vec(op, 1..80)
}

// ---- the model -------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq)]
enum End {
    Answered,
    Offline,
    NotSent,
    Timeout { received: bool },
}

#[derive(Debug)]
struct Call {
    device: usize,
    deadline: u64,
    sent: bool,
    received: bool,
    end: Option<End>,
    ended_at: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Item {
    Request(usize),
    Cancel(usize),
}

#[derive(Debug, Default)]
struct ModelSession {
    device: usize,
    over: bool,
    /// Its transport is gone, and only the window holds it.
    broken: bool,
    attached: bool,
    window_ends: Option<u64>,
    outbox: Vec<Item>,
    /// What it took, in order, the first being number 1; `None` once confirmed, answered or received.
    taken: Vec<Option<usize>>,
}

#[derive(Debug, Default)]
struct ModelDevice {
    session: Option<usize>,
    heard: Option<u64>,
    online: bool,
    again: Vec<usize>,
}

#[derive(Debug, Default)]
struct Model {
    time: u64,
    devices: Vec<ModelDevice>,
    sessions: Vec<ModelSession>,
    calls: Vec<Call>,
    ended: Vec<(usize, End)>,
}

impl Model {
    fn current(&self, session: usize) -> bool {
        self.devices[self.sessions[session].device].session == Some(session)
    }

    fn end(&mut self, call: usize, end: End) {
        if self.calls[call].end.is_some() {
            return;
        }
        self.calls[call].end = Some(end.clone());
        self.calls[call].ended_at = self.time;
        self.ended.push((call, end));
        let device = self.calls[call].device;
        self.devices[device].again.retain(|other| *other != call);
        for session in &mut self.sessions {
            session.outbox.retain(|item| *item != Item::Request(call));
            session.taken.iter_mut().filter(|taken| **taken == Some(call)).for_each(|taken| *taken = None);
        }
    }

    fn give_up(&mut self, call: usize) {
        let Call { device, sent, received, end: None, .. } = self.calls[call] else { return };
        self.end(call, if sent { End::Timeout { received } } else { End::NotSent });
        if sent && let Some(session) = self.devices[device].session {
            self.sessions[session].outbox.push(Item::Cancel(call));
        }
    }

    /// What is unconfirmed, then what still waits, as calls; cancellations apart.
    fn dissolve(&mut self, session: usize) -> (Vec<usize>, Vec<Item>) {
        let session = &mut self.sessions[session];
        let mut calls: Vec<_> = session.taken.iter_mut().filter_map(Option::take).collect();
        let items = std::mem::take(&mut session.outbox);
        calls.extend(
            items.iter().filter_map(|item| if let Item::Request(call) = item { Some(*call) } else { None }),
        );
        (calls, items.into_iter().filter(|item| matches!(item, Item::Cancel(_))).collect())
    }

    fn settle(&mut self, device: usize) {
        let this = &self.devices[device];
        let spoken = this.heard.is_some_and(|heard| heard + SILENCE > self.time);
        let reachable = this.session.is_some_and(|session| {
            let session = &self.sessions[session];
            session.attached || (this.online && session.window_ends.is_some_and(|ends| ends > self.time))
        });
        let online = spoken && reachable;
        let was = std::mem::replace(&mut self.devices[device].online, online);
        if was && !online {
            for call in 0..self.calls.len() {
                if self.calls[call].device == device && !self.calls[call].sent {
                    self.end(call, End::Offline);
                }
            }
        }
    }

    fn drop_session(&mut self, device: usize) {
        let Some(session) = self.devices[device].session.take() else { return };
        self.sessions[session].over = true;
        let (calls, _) = self.dissolve(session);
        for call in calls {
            if self.calls[call].sent {
                self.devices[device].again.push(call);
            } else {
                self.end(call, End::Offline);
            }
        }
        self.settle(device);
    }

    fn tick(&mut self) {
        self.time += 1;
        for call in 0..self.calls.len() {
            if self.calls[call].deadline == self.time {
                self.give_up(call);
            }
        }
        for device in 0..self.devices.len() {
            if let Some(session) = self.devices[device].session
                && self.sessions[session].broken
                && self.sessions[session].window_ends.is_some_and(|ends| ends <= self.time)
            {
                self.drop_session(device);
            }
            self.settle(device);
        }
    }

    fn open(&mut self, device: usize) {
        let number = self.sessions.len();
        let mut session = ModelSession { device, ..ModelSession::default() };
        let mut calls = std::mem::take(&mut self.devices[device].again);
        if let Some(old) = self.devices[device].session.take() {
            self.sessions[old].over = true;
            if self.devices[device].online {
                session.window_ends = Some(self.time + WINDOW);
            }
            let (more, cancels) = self.dissolve(old);
            calls.extend(more);
            session.outbox = cancels;
        }
        session.outbox.extend(calls.into_iter().map(Item::Request));
        self.sessions.push(session);
        self.devices[device].session = Some(number);
        self.devices[device].heard = Some(self.time);
    }
}

// ---- both, side by side ----------------------------------------------------------------------------------------

struct Both {
    model: Model,
    shard: Shard<usize, usize>,
    origin: Instant,
}

fn name(device: usize) -> DeviceId {
    DeviceId::new(&format!("printer-{device}")).unwrap()
}

fn rid(call: usize) -> RequestId {
    RequestId::new(&format!("r{call}")).unwrap()
}

impl Both {
    fn new() -> Self {
        let config = RelayConfig { session_burst: 1_000_000, ..RelayConfig::default() };
        let mut shard = Shard::new(Arc::new(config), 1);
        (0..DEVICES).for_each(|device| {
            shard.know(&name(device));
        });
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let origin = Instant::now();
        let model =
            Model { devices: (0..DEVICES).map(|_| ModelDevice::default()).collect(), ..Model::default() };
        Self { model, shard, origin }
    }

    fn now(&self) -> Instant {
        self.origin + Duration::from_millis(500 * self.model.time)
    }

    /// The session that `back` points at, counted from the newest.
    fn session(&self, back: usize) -> Option<usize> {
        self.model.sessions.len().checked_sub(back + 1)
    }

    fn key(&mut self, session: usize) -> SessionKey {
        let device = self.shard.know(&name(self.model.sessions[session].device));
        SessionKey { device, number: session as u64 }
    }

    fn call(&self, back: usize) -> Option<usize> {
        self.model.calls.len().checked_sub(back + 1)
    }

    fn step(&mut self, op: Op) {
        let now = self.now();
        match op {
            Op::Open { device } => {
                let number = self.model.sessions.len();
                let opening = Opening {
                    id: SessionId::new(&format!("s{number}")).unwrap(),
                    resume: None,
                    info: TransportInfo::new("test"),
                    key: SessionKey { device: self.shard.know(&name(device)), number: number as u64 },
                    handle: number,
                };
                self.shard.open(now, opening).unwrap();
                self.model.open(device);
            }
            Op::Attach { session } => {
                let Some(session) = self.session(session) else { return };
                if self.model.sessions[session].broken {
                    return; // a transport that ended a session says no more of it
                }
                let device = self.model.sessions[session].device;
                let key = self.key(session);
                self.shard.attached(now, key);
                if self.model.current(session) {
                    self.model.devices[device].heard = Some(self.model.time);
                    self.model.sessions[session].attached = true;
                    self.model.sessions[session].window_ends = None;
                    self.model.settle(device);
                }
            }
            Op::Detach { session } => {
                let Some(session) = self.session(session) else { return };
                let key = self.key(session);
                self.shard.detached(now, key);
                if self.model.current(session) && self.model.sessions[session].attached {
                    self.model.sessions[session].attached = false;
                    self.model.sessions[session].window_ends = Some(self.model.time + WINDOW);
                }
            }
            Op::Heard { session } => {
                let Some(session) = self.session(session) else { return };
                let device = self.model.sessions[session].device;
                let key = self.key(session);
                self.shard.heard_on(now, key);
                if self.model.current(session) {
                    self.model.devices[device].heard = Some(self.model.time);
                    self.model.settle(device);
                }
            }
            Op::End { session, lost } => {
                let Some(session) = self.session(session) else { return };
                let device = self.model.sessions[session].device;
                let reason = if lost { EndReason::Lost } else { EndReason::Goodbye };
                let key = self.key(session);
                self.shard.ended(now, key, reason);
                if self.model.current(session) && !self.model.sessions[session].broken {
                    self.model.sessions[session].broken = true;
                    if lost && self.model.devices[device].online {
                        self.model.sessions[session].attached = false;
                        let ends = self.model.time + WINDOW;
                        let (calls, cancels) = self.model.dissolve(session);
                        let session = &mut self.model.sessions[session];
                        session.window_ends.get_or_insert(ends);
                        session.outbox = cancels;
                        session.outbox.extend(calls.into_iter().map(Item::Request));
                    } else {
                        self.model.drop_session(device);
                    }
                } else if self.model.current(session) && !(lost && self.model.devices[device].online) {
                    self.model.drop_session(device);
                }
            }
            Op::Ask { device, wait } => {
                let call = self.model.calls.len();
                let request = Arc::new(Request::new(name(device), Method::get()));
                let wait = 2 * wait + 1;
                let asked =
                    self.shard.request(now, rid(call), request, Duration::from_millis(500 * wait), call);
                let in_flight =
                    self.model.calls.iter().filter(|c| c.device == device && c.end.is_none()).count();
                if !self.model.devices[device].online {
                    assert_eq!(asked, Err(RequestError::DeviceOffline));
                } else if in_flight >= 64 {
                    assert!(matches!(asked, Err(RequestError::TooManyRequests { .. })));
                } else {
                    assert_eq!(asked, Ok(()));
                    let deadline = self.model.time + wait;
                    self.model.calls.push(Call {
                        device,
                        deadline,
                        sent: false,
                        received: false,
                        end: None,
                        ended_at: 0,
                    });
                    let session = self.model.devices[device].session.expect("online means a session");
                    self.model.sessions[session].outbox.push(Item::Request(call));
                }
            }
            Op::Take { session } => {
                let Some(session) = self.session(session) else { return };
                if self.model.sessions[session].broken {
                    return; // and takes nothing
                }
                let key = self.key(session);
                let taken = self.shard.take(key).map(|envelope| match envelope {
                    Envelope::Request { id, .. } => format!("request {id}"),
                    Envelope::Cancel { id } => format!("cancel {id}"),
                    other => panic!("{other:?}"),
                });
                let expected = (self.model.current(session)
                    && !self.model.sessions[session].outbox.is_empty())
                .then(|| self.model.sessions[session].outbox.remove(0));
                let words = expected.as_ref().map(|item| match item {
                    Item::Request(call) => format!("request r{call}"),
                    Item::Cancel(call) => format!("cancel r{call}"),
                });
                assert_eq!(taken, words);
                match expected {
                    Some(Item::Request(call)) => {
                        self.model.calls[call].sent = true;
                        self.model.sessions[session].taken.push(Some(call));
                    }
                    Some(Item::Cancel(_)) => self.model.sessions[session].taken.push(None),
                    None => {}
                }
            }
            Op::Confirm { session, number } => {
                let Some(session) = self.session(session) else { return };
                let key = self.key(session);
                self.shard.confirmed(key, number);
                if self.model.current(session) {
                    self.model.sessions[session]
                        .taken
                        .iter_mut()
                        .take(number as usize)
                        .for_each(|t| *t = None);
                }
            }
            Op::Received { device, call } => {
                let Some(call) = self.call(call) else { return };
                self.shard.received(&name(device), &rid(call));
                let this = &mut self.model.calls[call];
                if this.device == device && this.sent && this.end.is_none() {
                    this.received = true;
                    self.model.devices[device].again.retain(|other| *other != call);
                    for session in &mut self.model.sessions {
                        session.taken.iter_mut().filter(|t| **t == Some(call)).for_each(|t| *t = None);
                    }
                }
            }
            Op::Respond { device, call } => {
                let Some(call) = self.call(call) else { return };
                let verdict = self.shard.respond(now, &name(device), &rid(call), Response::ok());
                self.model.devices[device].heard = Some(self.model.time);
                self.model.settle(device);
                let this = &self.model.calls[call];
                let expected = match (&this.end, this.device == device) {
                    (Some(_), _) if this.ended_at + REMEMBERED <= self.model.time => Disposition::Unknown,
                    (_, false) => Disposition::Forbidden,
                    (None, true) => Disposition::Accepted,
                    (Some(End::Answered), true) => Disposition::AlreadyAnswered,
                    (Some(_), true) => Disposition::TooLate,
                };
                assert_eq!(verdict, expected);
                if expected == Disposition::Accepted {
                    self.model.end(call, End::Answered);
                }
            }
            Op::HangUp { call } => {
                let Some(call) = self.call(call) else { return };
                self.shard.cancel(now, &rid(call));
                self.model.give_up(call);
            }
            Op::Wait { seconds } => {
                for _ in 0..2 * seconds {
                    self.model.tick();
                    self.shard.wake(self.now());
                }
            }
        }
    }

    fn compare(&mut self) {
        let mut ended: Vec<_> = Vec::new();
        for effect in self.shard.drain_effects() {
            if let Effect::Finish { waiter, result } = effect {
                let end = match result {
                    Ok(_) => End::Answered,
                    Err(RequestError::DeviceOffline) => End::Offline,
                    Err(RequestError::NotSent) => End::NotSent,
                    Err(RequestError::DeviceTimeout { received }) => End::Timeout { received },
                    Err(other) => panic!("{other:?}"),
                };
                ended.push((waiter, end));
            }
        }
        let mut expected = std::mem::take(&mut self.model.ended);
        ended.sort_by_key(|(call, _)| *call);
        expected.sort_by_key(|(call, _)| *call);
        assert_eq!(ended, expected);
        for device in 0..DEVICES {
            let presence = self.shard.presence(self.now(), &name(device)).unwrap();
            assert_eq!(presence.state == State::Online, self.model.devices[device].online, "device {device}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn l1_q1_p2_p6_the_engine_does_as_the_model(ops in ops()) {
        let mut both = Both::new();
        for op in ops {
            both.step(op);
            both.compare();
        }
        // Whatever happened, every call ends by its deadline and nothing stays behind.
        both.step(Op::Wait { seconds: 60 });
        both.compare();
        prop_assert!(both.model.calls.iter().all(|call| call.end.is_some()));
        prop_assert!(both.shard.pending.is_empty());
    }
}
