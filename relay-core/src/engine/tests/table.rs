//! One rule a test, step by step.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::super::{Effect, Opening, SessionKey, Shard};
use crate::{
    config::RelayConfig,
    envelope::Envelope,
    ids::{DeviceId, Method, ObjectId, RequestId, SessionId},
    outcome::{Disposition, RequestError},
    presence::State,
    request::{Body, Request, Response},
    transport::{CloseReason, EndReason, TransportInfo},
};

type Machine = Shard<u32, u64>;

struct World {
    shard: Machine,
    now: Instant,
    next_key: u64,
    finished: Vec<(u32, Result<Response, RequestError>)>,
    closed: Vec<(u64, CloseReason)>,
    presence: Vec<(State, u64)>,
}

fn device() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

fn rid(n: u32) -> RequestId {
    RequestId::new(&format!("r{n}")).unwrap()
}

fn sid(text: &str) -> SessionId {
    SessionId::new(text).unwrap()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl World {
    fn new() -> Self {
        Self::with(RelayConfig::default())
    }

    fn with(config: RelayConfig) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut shard = Shard::new(Arc::new(config), 1);
        shard.know(&device());
        Self { shard, now, next_key: 1, finished: vec![], closed: vec![], presence: vec![] }
    }

    fn effects(&mut self) {
        for effect in self.shard.drain_effects() {
            match effect {
                Effect::Finish { waiter, result } => self.finished.push((waiter, result)),
                Effect::Pump { .. } => {}
                Effect::Close { handle, reason } => self.closed.push((handle, reason)),
                Effect::Presence { state, epoch, .. } => self.presence.push((state, epoch)),
            }
        }
    }

    fn after(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(at) = self.shard.wake_at().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.shard.wake(self.now);
            self.effects();
        }
        self.now = until;
    }

    fn try_open(&mut self, id: &str, resume: Option<&str>) -> Result<(SessionKey, bool), CloseReason> {
        let key = SessionKey { device: self.shard.know(&device()), number: self.next_key };
        self.next_key += 1;
        let opening = Opening {
            id: sid(id),
            resume: resume.map(sid),
            info: TransportInfo::new("test").confirming(),
            key,
            handle: key.number,
        };
        let opened = self.shard.open(self.now, opening);
        self.effects();
        opened.map(|opened| (key, opened.resumed))
    }

    fn online(&mut self, id: &str) -> SessionKey {
        let (key, _) = self.try_open(id, None).unwrap();
        self.shard.attached(self.now, key);
        self.effects();
        key
    }

    fn ask(&mut self, n: u32, wait: u64) -> Result<(), RequestError> {
        self.ask_with(n, wait, 0)
    }

    fn ask_with(&mut self, n: u32, wait: u64, size: usize) -> Result<(), RequestError> {
        let request = Request::new(device(), Method::get())
            .with_object(ObjectId::new("x").unwrap())
            .with_body(Body::new("a/b", vec![0; size]));
        let result = self.shard.request(self.now, rid(n), Arc::new(request), secs(wait), n);
        self.effects();
        result
    }

    fn taken(&mut self, key: SessionKey) -> Vec<String> {
        let mut taken = vec![];
        while let Some(envelope) = self.shard.take(key) {
            taken.push(match envelope {
                Envelope::Request { id, .. } => format!("request {id}"),
                Envelope::Cancel { id } => format!("cancel {id}"),
                Envelope::Ack { id, disposition } => format!("ack {id} {}", disposition.as_str()),
                other => format!("{other:?}"),
            });
        }
        assert!(self.shard.pumped(key));
        taken
    }

    fn respond(&mut self, from: &str, n: u32) -> Disposition {
        let verdict = self.shard.respond(self.now, &DeviceId::new(from).unwrap(), &rid(n), Response::ok());
        self.effects();
        verdict
    }

    fn ended(&mut self, key: SessionKey, reason: EndReason) {
        self.shard.ended(self.now, key, reason);
        self.effects();
    }

    fn detached(&mut self, key: SessionKey) {
        self.shard.detached(self.now, key);
        self.effects();
    }

    fn state(&self) -> State {
        self.shard.presence(self.now, &device()).unwrap().state
    }

    fn errors(&mut self) -> Vec<(u32, RequestError)> {
        self.finished.drain(..).map(|(waiter, result)| (waiter, result.unwrap_err())).collect()
    }
}

#[test]
fn q1_the_answer_goes_to_the_call_that_asked() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 30).unwrap();
    world.ask(2, 30).unwrap();
    assert_eq!(world.taken(key), ["request r1", "request r2"]);
    assert_eq!(world.respond("printer-1", 2), Disposition::Accepted);
    assert_eq!(world.finished.pop(), Some((2, Ok(Response::ok()))));
    assert_eq!(world.respond("PRINTER-1", 1), Disposition::Accepted, "IDs compare without case");
    assert_eq!(world.finished.pop(), Some((1, Ok(Response::ok()))));
}

#[test]
fn q2_offline_and_unknown_are_errors_at_once() {
    let mut world = World::new();
    assert_eq!(world.ask(1, 30), Err(RequestError::DeviceOffline));
    let request = Arc::new(Request::new(DeviceId::new("nobody").unwrap(), Method::get()));
    let asked = world.shard.request(world.now, rid(2), request, secs(30), 2);
    assert_eq!(asked, Err(RequestError::UnknownDevice));
    assert_eq!(world.shard.wake_at(), None, "nothing waits for them");
}

#[test]
fn q3_no_answer_in_time_and_a_late_one_is_refused() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 5).unwrap();
    world.taken(key);
    world.after(secs(5));
    assert_eq!(world.errors(), [(1, RequestError::DeviceTimeout { received: false })]);
    assert_eq!(world.taken(key), ["cancel r1"], "the device is told");
    assert_eq!(world.respond("printer-1", 1), Disposition::TooLate);
    assert_eq!(world.respond("printer-2", 1), Disposition::Forbidden);
    world.after(secs(601));
    assert_eq!(world.respond("printer-1", 1), Disposition::Unknown, "remembered for ten minutes");
}

#[test]
fn l1_the_error_says_how_far_it_came() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 5).unwrap();
    world.ask(2, 5).unwrap();
    world.ask(3, 5).unwrap();
    assert!(world.shard.take(key).is_some());
    assert!(world.shard.take(key).is_some());
    world.shard.received(&device(), &rid(2));
    world.shard.received(&device(), &rid(3));
    world.after(secs(5));
    assert_eq!(
        world.errors(),
        [
            (1, RequestError::DeviceTimeout { received: false }),
            (2, RequestError::DeviceTimeout { received: true }),
            (3, RequestError::NotSent),
        ]
    );
}

#[test]
fn q4_every_delivery_of_a_response_has_its_verdict() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 30).unwrap();
    world.taken(key);
    assert_eq!(world.respond("printer-2", 1), Disposition::Forbidden);
    assert!(world.finished.is_empty(), "the call goes on");
    assert_eq!(world.respond("printer-1", 1), Disposition::Accepted);
    assert_eq!(world.respond("printer-1", 1), Disposition::AlreadyAnswered);
    assert_eq!(world.respond("printer-2", 1), Disposition::Forbidden);
    assert_eq!(world.respond("printer-1", 7), Disposition::Unknown);
}

#[test]
fn a_caller_that_hangs_up_cancels_its_request() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 30).unwrap();
    world.shard.cancel(world.now, &rid(1));
    assert_eq!(world.taken(key), [] as [&str; 0], "never sent, so nothing to tell");
    world.ask(2, 30).unwrap();
    world.taken(key);
    world.shard.cancel(world.now, &rid(2));
    assert_eq!(world.taken(key), ["cancel r2"]);
    assert_eq!(world.respond("printer-1", 2), Disposition::TooLate);
}

#[test]
fn p2_a_broken_connection_leaves_it_online_for_the_resume_window() {
    let mut world = World::new();
    let key = world.online("s1");
    assert_eq!(world.presence, [(State::Online, 1)]);
    world.detached(key);
    world.after(secs(9));
    assert_eq!(world.state(), State::Online);
    world.ask(1, 30).unwrap();
    world.after(secs(1));
    assert_eq!(world.state(), State::Offline);
    assert_eq!(world.errors(), [(1, RequestError::DeviceOffline)], "it waited in the outbox, unsent");
    assert_eq!(world.ask(2, 30), Err(RequestError::DeviceOffline));
    world.shard.attached(world.now, key);
    world.effects();
    assert_eq!(world.presence, [(State::Online, 1), (State::Offline, 1), (State::Online, 1)]);
}

#[test]
fn p2_a_lost_session_lingers_for_the_resume_window() {
    let mut world = World::new();
    let first = world.online("s1");
    world.ask(1, 30).unwrap();
    world.taken(first);
    world.ended(first, EndReason::Lost);
    assert_eq!(world.state(), State::Online);
    assert!(!world.shard.alive(world.now, &device(), &sid("s1")), "nothing can use it any more");
    world.ask(2, 30).unwrap();
    let (second, resumed) = world.try_open("s2", Some("s1")).unwrap();
    assert!(resumed);
    world.shard.attached(world.now, second);
    assert_eq!(world.taken(second), ["request r1", "request r2"], "what was unconfirmed goes first");
    assert_eq!(world.state(), State::Online);
    assert_eq!(world.presence, [(State::Online, 1)], "never shown offline");
    assert!(world.shard.alive(world.now, &device(), &sid("s1")));
    assert!(world.shard.alive(world.now, &device(), &sid("s2")));
}

#[test]
fn p2_goodbye_is_offline_at_once() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 30).unwrap();
    world.taken(key);
    world.ask(2, 30).unwrap();
    world.ended(key, EndReason::Goodbye);
    assert_eq!(world.state(), State::Offline);
    assert_eq!(world.errors(), [(2, RequestError::DeviceOffline)], "what was sent waits for its answer");
    assert_eq!(world.respond("printer-1", 1), Disposition::Accepted);
}

#[test]
fn p2_silence_is_offline_after_the_presence_timer() {
    let mut world = World::new();
    let key = world.online("s1");
    world.after(secs(119));
    world.shard.heard_on(world.now, key);
    world.after(secs(119));
    assert_eq!(world.state(), State::Online);
    world.after(secs(1));
    assert_eq!(world.state(), State::Offline);
    world.shard.heard(world.now, &device());
    world.effects();
    assert_eq!(world.state(), State::Online, "its connection is still there, and it spoke");
}

#[test]
fn p2_the_presence_timer_is_twice_the_keepalive_if_that_is_longer() {
    let mut world = World::new();
    world.shard.registered(&device(), Some(secs(10)));
    assert_eq!(world.shard.presence(world.now, &device()).unwrap().detects_loss_within, secs(120));
    world.shard.registered(&device(), Some(secs(300)));
    assert_eq!(world.shard.presence(world.now, &device()).unwrap().detects_loss_within, secs(600));
    world.online("s1");
    world.after(secs(599));
    assert_eq!(world.state(), State::Online);
    world.after(secs(1));
    assert_eq!(world.state(), State::Offline);
}

#[test]
fn p6_a_second_session_takes_over_with_what_is_in_flight() {
    let mut world = World::new();
    let first = world.online("s1");
    world.ask(1, 30).unwrap();
    world.ask(2, 30).unwrap();
    world.taken(first);
    world.shard.confirmed(first, 1);
    world.ask(3, 30).unwrap();
    let (second, resumed) = world.try_open("s2", None).unwrap();
    assert!(!resumed);
    assert_eq!(world.closed, [(first.number, CloseReason::Replaced)]);
    world.shard.attached(world.now, second);
    world.effects();
    assert_eq!(world.taken(second), ["request r2", "request r3"], "r1 was confirmed: the device has it");
    for n in 1..=3 {
        assert_eq!(world.respond("printer-1", n), Disposition::Accepted);
    }
}

#[test]
fn t9_a_late_end_of_the_loser_changes_nothing() {
    let mut world = World::new();
    let first = world.online("s1");
    let second = world.online("s2");
    for reason in [EndReason::Goodbye, EndReason::Lost, EndReason::Replaced] {
        world.ended(first, reason);
    }
    world.detached(first);
    world.shard.confirmed(first, 99);
    world.after(secs(11));
    assert_eq!(world.state(), State::Online);
    assert_eq!(world.presence, [(State::Online, 1)]);
    world.ask(1, 30).unwrap();
    assert_eq!(world.taken(first), [] as [&str; 0]);
    assert_eq!(world.taken(second), ["request r1"]);
}

#[test]
fn a_session_is_resumed_only_by_its_own_id() {
    let mut world = World::new();
    let first = world.online("s1");
    world.ended(first, EndReason::Lost);
    let (second, resumed) = world.try_open("s2", Some("another")).unwrap();
    assert!(!resumed);
    assert!(world.shard.resume(second, &sid("s1")), "asked within the session");
    assert!(world.shard.resume(second, &sid("s1")), "asked again");
    assert!(!world.shard.resume(first, &sid("s1")), "from a session that is over");
    for id in ["s1", "s2"] {
        assert!(world.shard.alive(world.now, &device(), &sid(id)));
    }
    assert!(!world.shard.alive(world.now, &device(), &sid("another")));
}

#[test]
fn l1_sent_is_sticky_though_it_goes_back_to_the_outbox() {
    let mut world = World::new();
    let first = world.online("s1");
    world.ask(1, 20).unwrap();
    world.taken(first);
    world.ended(first, EndReason::Goodbye);
    world.after(secs(15));
    let (_second, _) = world.try_open("s2", None).unwrap();
    world.after(secs(5));
    assert_eq!(world.errors(), [(1, RequestError::DeviceTimeout { received: false })]);
}

#[test]
fn a_received_request_is_not_sent_again() {
    let mut world = World::new();
    let first = world.online("s1");
    world.ask(1, 20).unwrap();
    world.taken(first);
    world.shard.received(&device(), &rid(1));
    world.ended(first, EndReason::Lost);
    let second = world.online("s2");
    assert_eq!(world.taken(second), [] as [&str; 0]);
    assert_eq!(world.respond("printer-1", 1), Disposition::Accepted);
}

#[test]
fn b6_a_device_has_a_bounded_number_in_flight() {
    let mut world = World::new();
    let key = world.online("s1");
    for n in 0..64 {
        world.ask(n, 30).unwrap();
    }
    let refused = world.ask(64, 30).unwrap_err();
    assert!(matches!(refused, RequestError::TooManyRequests { .. }), "{refused:?}");
    world.taken(key);
    world.respond("printer-1", 3);
    world.ask(65, 30).unwrap();
}

#[test]
fn b5_beyond_the_outbox_a_request_waits_for_room_then_is_refused() {
    let mut world = World::with(RelayConfig { outbox_bytes: 10_000, ..RelayConfig::default() });
    let key = world.online("s1");
    world.ask_with(1, 30, 9_000).unwrap();
    world.ask_with(2, 5, 9_000).unwrap();
    world.ask_with(3, 30, 9_000).unwrap();
    world.after(secs(5));
    let errors = world.errors();
    assert!(matches!(errors[..], [(2, RequestError::TooManyRequests { .. })]), "{errors:?}");
    assert_eq!(world.taken(key), ["request r1", "request r3"], "room came, in order");
}

#[test]
fn b12_sessions_cannot_be_opened_at_any_rate() {
    let mut world = World::new();
    for n in 0..10 {
        world.try_open(&format!("s{n}"), None).unwrap();
    }
    let Err(CloseReason::Overloaded { retry_after }) = world.try_open("s10", None) else {
        panic!("the eleventh at once was taken")
    };
    assert_eq!(retry_after, secs(10), "six a minute");
    world.after(retry_after);
    world.try_open("s11", None).unwrap();
    world.try_open("s12", None).unwrap_err();
}

#[test]
fn larger_than_the_transport_takes_is_refused_before_it_is_queued() {
    let mut world = World::new();
    world.online("s1");
    let max = crate::envelope::MAX_INLINE_BODY;
    world.ask_with(1, 30, max).unwrap();
    assert_eq!(world.ask_with(2, 30, max + 1), Err(RequestError::TooLarge { size: max + 1, max }));
}

#[test]
fn l2_a_relay_that_stops_ends_every_call_and_every_session() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 30).unwrap();
    world.taken(key);
    world.ask(2, 30).unwrap();
    world.shard.end_calls(world.now);
    world.effects();
    let mut errors = world.errors();
    errors.sort_by_key(|(waiter, _)| *waiter);
    assert_eq!(errors, [(1, RequestError::DeviceTimeout { received: false }), (2, RequestError::Draining)]);
    let reason = CloseReason::Drain { retry_after: secs(3), to: None };
    world.shard.close_sessions(reason.clone());
    world.effects();
    assert_eq!(world.closed, [(key.number, reason)]);
}

#[test]
fn t17_a_revoked_credential_ends_its_session_and_no_call() {
    let mut world = World::new();
    let key = world.online("s1");
    world.ask(1, 30).unwrap();
    world.taken(key);
    world.ask(2, 30).unwrap();
    world.shard.revoke(world.now, &device());
    world.effects();
    assert_eq!(world.closed, [(key.number, CloseReason::Revoked)]);
    assert_eq!(world.state(), State::Offline);
    assert_eq!(world.errors(), [(2, RequestError::DeviceOffline)]);
    let next = world.online("s2");
    assert_eq!(world.taken(next), ["request r1"], "it goes to whoever has the credential now");
}

#[test]
fn what_cannot_be_answered_is_not_taken_in() {
    let mut world = World::new();
    let key = world.online("s1");
    let mut queued = 0;
    while world.shard.has_control_room(key) {
        assert!(world.shard.push_control(key, Envelope::Pong));
        queued += 1;
    }
    assert_eq!(queued, 256);
    assert!(!world.shard.push_control(key, Envelope::Pong));
    assert_eq!(world.taken(key).len(), 256);
    assert!(world.shard.has_control_room(key));
}

#[test]
fn b6_a_request_names_a_bounded_number_of_objects() {
    let mut world = World::new();
    world.online("s1");
    let mut request = Request::new(device(), Method::get());
    request.objects = vec![ObjectId::new("x").unwrap(); 257];
    let asked = world.shard.request(world.now, rid(1), Arc::new(request.clone()), secs(5), 1);
    assert!(matches!(asked, Err(RequestError::Refused(_))), "{asked:?}");
    request.objects.pop();
    assert_eq!(world.shard.request(world.now, rid(1), Arc::new(request), secs(5), 1), Ok(()));
}

#[test]
fn p2_a_keepalive_that_is_taken_back_is_the_relays_timer_again() {
    let mut world = World::new();
    world.shard.registered(&device(), Some(Duration::MAX));
    assert_eq!(world.shard.presence(world.now, &device()).unwrap().detects_loss_within, secs(7 * 24 * 3600));
    world.online("s1");
    world.shard.registered(&device(), None);
    assert_eq!(world.shard.presence(world.now, &device()).unwrap().detects_loss_within, secs(120));
}

#[test]
fn i9_nothing_stays_behind() {
    let mut world = World::new();
    for round in 0..50 {
        let key = world.online(&format!("s{round}"));
        for n in 0..64 {
            world.ask(round * 64 + n, 30).unwrap();
        }
        world.taken(key);
        for n in 0..40 {
            world.respond("printer-1", round * 64 + n);
        }
        world.ended(key, EndReason::Goodbye);
        world.after(secs(60));
    }
    assert!(world.shard.pending.is_empty());
    assert_eq!(world.shard.wake_at(), None);
    assert_eq!(world.shard.sessions(), 0);
    let known = &world.shard.devices[0];
    assert!(known.in_flight.is_empty() && known.resend.is_empty() && known.session.is_none());
}
