//! The server's session machine against a model that calls no product code: requests in any order, lost, repeated and
//! changed, connections that break, pushes, and any passing of time.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use relay_core::xml::Limits;
use transport_bosh::{
    BoshServerConfig,
    proto::{
        manager::{End, ExchangeId, Manager, Output, Request, Terms},
        rid::Rid,
    },
    wire::body::{Piece, RequestBody},
};

const FIRST: u64 = 9_007_199_254_000_000;
const WAIT: u64 = 50_000;
const INACTIVITY: u64 = 60_000;
const REPEATS: u32 = 10;

/// What happens, seen from outside.
#[derive(Debug, Clone)]
enum Event {
    /// A request whose RID is that far from the first, with so many payloads.
    Post {
        offset: u64,
        payloads: usize,
    },
    /// The same, near the RID that is due.
    Near {
        distance: i64,
        payloads: usize,
    },
    Pause {
        seconds: u64,
    },
    Terminate {
        payloads: usize,
    },
    /// The connection of an earlier exchange breaks.
    Gone {
        back: usize,
    },
    Push,
    Pass {
        millis: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..20u64, 0..3usize).prop_map(|(offset, payloads)| Event::Post { offset, payloads }),
        12 => (-3..=3i64, 0..3usize).prop_map(|(distance, payloads)| Event::Near { distance, payloads }),
        8 => (0..3usize).prop_map(|payloads| Event::Near { distance: 1, payloads }),
        1 => (0..130u64).prop_map(|seconds| Event::Pause { seconds }),
        1 => (0..2usize).prop_map(|payloads| Event::Terminate { payloads }),
        3 => (0..4usize).prop_map(|back| Event::Gone { back }),
        5 => Just(Event::Push),
        5 => prop_oneof![1..200u64, 1_000..49_000u64, 49_999..60_001u64].prop_map(|millis| Event::Pass { millis }),
    ]
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Effect {
    Answer { exchange: u64, body: String },
    Deliver(u64),
    Ended(&'static str),
}

fn body(kind: &str, payloads: &str) -> String {
    let tail = if payloads.is_empty() { "/>".to_owned() } else { format!(">{payloads}</body>") };
    format!("<body xmlns='http://jabber.org/protocol/httpbind'{kind}{tail}")
}

fn terminate(condition: &str) -> String {
    body(&format!(" type='terminate' condition='{condition}'"), "")
}

struct Open {
    exchange: Option<u64>,
    since: u64,
}

struct Waiting {
    payloads: Vec<u64>,
    exchange: Option<u64>,
    pause: Option<u64>,
    terminate: bool,
}

/// XEP-0124 §8-§14 with `hold` 1 and `requests` 2, written as plainly as it can be.
struct Model {
    now: u64,
    last: u64,
    open: BTreeMap<u64, Open>,
    early: BTreeMap<u64, Waiting>,
    gap_since: u64,
    /// The answers that may be asked for again, oldest first.
    kept: VecDeque<(u64, String)>,
    /// How often each RID was repeated, and when a held one was last: a second forgives it one.
    repeats: BTreeMap<u64, (u32, u64)>,
    paused: Option<(u64, u64)>,
    silent_since: u64,
    farewell: Option<String>,
    /// The last RID that gets it.
    farewell_up_to: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            now: 0,
            last: 0,
            open: BTreeMap::new(),
            early: BTreeMap::new(),
            gap_since: 0,
            kept: VecDeque::from([(0, "creation".to_owned())]),
            repeats: BTreeMap::new(),
            paused: None,
            silent_since: 0,
            farewell: None,
            farewell_up_to: u64::MAX,
        }
    }

    fn live(&self) -> bool {
        self.open.values().any(|open| open.exchange.is_some())
    }

    fn attended(&self) -> bool {
        self.live() || self.early.values().any(|early| early.exchange.is_some())
    }

    fn post(&mut self, rid: u64, request: Waiting) -> Vec<Effect> {
        let exchange = request.exchange.unwrap();
        if let Some(farewell) = &self.farewell {
            let unknown = terminate("item-not-found");
            let farewell = if rid <= self.farewell_up_to { farewell } else { &unknown };
            return vec![Effect::Answer { exchange, body: farewell.clone() }];
        }
        let mut effects = Vec::new();
        let now = self.now;
        let stored = self.kept.iter().find(|(kept, _)| *kept == rid).map(|(_, body)| body.clone());
        let stored =
            stored.or_else(|| self.paused.filter(|(paused, _)| *paused == rid).map(|_| body("", "")));
        let known = self.open.contains_key(&rid) || self.early.contains_key(&rid) || stored.is_some();
        if known {
            let held = self.open.get(&rid).map(|open| open.since);
            let (repeats, last) = self.repeats.entry(rid).or_insert((0, 0));
            if let Some(since) = held {
                *repeats = repeats.saturating_sub(((now - since.max(*last)) / 1_000) as u32);
                *last = now;
            }
            *repeats += 1;
            let too_many = *repeats > REPEATS;
            let old = match (self.open.get_mut(&rid), self.early.get_mut(&rid)) {
                (Some(open), _) => open.exchange.replace(exchange),
                (None, Some(early)) => early.exchange.replace(exchange),
                (None, None) => None,
            };
            if let Some(old) = old {
                effects.push(Effect::Answer { exchange: old, body: body(" type='error'", "") });
            }
            if too_many && stored.is_some() {
                effects.extend(self.fail("policy-violation", exchange));
            } else if too_many {
                effects.extend(self.close("policy-violation", "failed"));
            } else if let Some(body) = stored {
                effects.push(Effect::Answer { exchange, body });
            }
            self.silent_since = now;
            return effects;
        }
        let extra = u64::from(request.terminate || request.pause.is_some());
        if rid <= self.last || rid > self.last + 2 + extra {
            return self.fail("item-not-found", exchange);
        }
        if self.early.is_empty() && rid != self.last + 1 {
            self.gap_since = now;
        }
        self.early.insert(rid, request);
        let (mut pause, mut terminated) = (None, false);
        let mut moved = false;
        while let Some(next) = self.early.remove(&(self.last + 1)) {
            moved = true;
            self.last += 1;
            if next.pause.is_some_and(|seconds| seconds > 120) {
                return [effects, self.refuse("policy-violation", next.exchange)].concat();
            }
            self.paused = None;
            pause = next.pause.map(|seconds| (self.last, seconds)).or(pause);
            terminated |= next.terminate;
            self.open.insert(self.last, Open { exchange: next.exchange, since: now });
            effects.extend(next.payloads.into_iter().map(Effect::Deliver));
        }
        if moved {
            self.gap_since = now;
        }
        self.silent_since = now;
        if terminated {
            let mut kind = " type='terminate'";
            let open = std::mem::take(&mut self.open).into_values().map(|open| open.exchange);
            let all = open.chain(std::mem::take(&mut self.early).into_values().map(|early| early.exchange));
            for exchange in all.flatten() {
                effects.push(Effect::Answer { exchange, body: body(kind, "") });
                kind = "";
            }
            self.farewell = Some(body(" type='terminate'", ""));
            self.farewell_up_to = self.last;
            effects.push(Effect::Ended("goodbye"));
            return effects;
        }
        if let Some((rid, seconds)) = pause {
            while self.open.first_key_value().is_some_and(|(first, _)| *first <= rid) {
                effects.extend(
                    self.answer("", self.open.first_key_value().is_some_and(|(first, _)| *first < rid)),
                );
            }
            self.paused = self.open.is_empty().then_some((rid, seconds * 1_000));
        }
        while self.open.len() > 1 {
            effects.extend(self.answer("", true));
        }
        effects
    }

    /// Answers the oldest.
    fn answer(&mut self, payloads: &str, keep: bool) -> Option<Effect> {
        let (rid, open) = self.open.pop_first().unwrap();
        let body = body("", payloads);
        if keep {
            self.kept.push_back((rid, body.clone()));
            while self.kept.len() > 2 {
                self.kept.pop_front();
            }
        }
        if open.exchange.is_some() {
            self.silent_since = self.now;
        }
        open.exchange.map(|exchange| Effect::Answer { exchange, body })
    }

    fn refuse(&mut self, condition: &str, exchange: Option<u64>) -> Vec<Effect> {
        match exchange {
            Some(exchange) => self.fail(condition, exchange),
            None => self.close(condition, "failed"),
        }
    }

    fn fail(&mut self, condition: &str, exchange: u64) -> Vec<Effect> {
        let mut effects = vec![Effect::Answer { exchange, body: terminate(condition) }];
        effects.extend(self.answer_all("other-request"));
        self.farewell = Some(terminate(condition));
        effects.push(Effect::Ended("failed"));
        effects
    }

    fn close(&mut self, condition: &str, how: &'static str) -> Vec<Effect> {
        let mut effects = self.answer_all(condition);
        self.farewell = Some(terminate(condition));
        effects.push(Effect::Ended(how));
        effects
    }

    fn answer_all(&mut self, condition: &str) -> Vec<Effect> {
        let open = std::mem::take(&mut self.open).into_values().map(|open| open.exchange);
        let all = open.chain(std::mem::take(&mut self.early).into_values().map(|early| early.exchange));
        all.flatten().map(|exchange| Effect::Answer { exchange, body: terminate(condition) }).collect()
    }

    fn gone(&mut self, exchange: u64) {
        let attended = self.attended();
        let open = self.open.values_mut().map(|open| &mut open.exchange);
        for at in open.chain(self.early.values_mut().map(|early| &mut early.exchange)) {
            if *at == Some(exchange) {
                *at = None;
            }
        }
        if attended && !self.attended() {
            self.silent_since = self.now;
        }
    }

    fn push(&mut self, payload: &str) -> Vec<Effect> {
        self.answer(payload, true).into_iter().collect()
    }

    /// The next moment at which something happens by itself, up to `until`.
    fn pass(&mut self, until: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        while self.farewell.is_none() {
            let wait = self.open.values().map(|open| open.since + WAIT).min();
            let gap = (!self.early.is_empty()).then_some(self.gap_since + WAIT);
            let inactivity = self.paused.map_or(INACTIVITY, |(_, millis)| millis);
            let silence = (!self.attended()).then_some(self.silent_since + inactivity);
            let Some(at) = [wait, gap, silence].into_iter().flatten().min().filter(|at| *at <= until) else {
                break;
            };
            self.now = self.now.max(at);
            if gap.is_some_and(|gap| gap <= self.now) {
                effects.extend(self.close("item-not-found", "failed"));
            } else if silence.is_some_and(|silence| silence <= self.now) {
                self.open.clear();
                self.early.clear();
                self.farewell = Some(terminate("item-not-found"));
                effects.push(Effect::Ended("silent"));
            } else {
                while self.open.values().any(|open| open.since + WAIT <= self.now) {
                    effects.extend(self.answer("", true));
                }
            }
        }
        self.now = until;
        effects
    }
}

/// The machine, driven the way its owner drives it.
struct Machine {
    manager: Manager<u64>,
    start: Instant,
    now: u64,
}

impl Machine {
    fn new() -> Self {
        let message = format!(
            "<body rid='{FIRST}' to='localhost' wait='50' hold='1' ver='1.11' xmlns='http://jabber.org/protocol/httpbind'/>"
        );
        let creation = RequestBody::parse(message.as_bytes(), &Limits::default()).unwrap();
        let terms = Terms::negotiate(&creation, &BoshServerConfig::default()).unwrap();
        let start = tokio::time::Instant::now().into_std();
        let mut manager = Manager::new(terms, creation.rid, ExchangeId(0), "sid='s'", None, start);
        manager.send(Piece::with_stream_prefix("<stream:features/>"));
        manager.settle(start);
        let mut machine = Self { manager, start, now: 0 };
        assert_eq!(machine.effects().len(), 1);
        machine
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn effects(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(output) = self.manager.poll_output() {
            match output {
                Output::Respond { exchange, body, .. } => effects.push(Effect::Answer {
                    exchange: exchange.0,
                    body: String::from_utf8(body.to_vec()).unwrap(),
                }),
                Output::Deliver(payload) => effects.push(Effect::Deliver(payload)),
                Output::Ended(end) => effects.push(Effect::Ended(match end {
                    End::Goodbye => "goodbye",
                    End::Silent => "silent",
                    End::Failed(_) => "failed",
                    End::Closed => "closed",
                })),
                _ => {}
            }
        }
        effects
    }

    fn post(&mut self, rid: u64, request: &Waiting) -> Vec<Effect> {
        let mut posted = Request::new(Rid::new(FIRST + rid).unwrap(), request.payloads.clone());
        posted.pause = request.pause.map(Duration::from_secs);
        posted.terminate = request.terminate;
        self.manager.request(posted, ExchangeId(request.exchange.unwrap()), self.at());
        self.manager.settle(self.at());
        self.effects()
    }

    fn pass(&mut self, until: u64) -> Vec<Effect> {
        let end = self.start + Duration::from_millis(until);
        let mut wakes = 0;
        while let Some(at) = self.manager.wake_at().filter(|at| *at <= end) {
            let millis = at.saturating_duration_since(self.start).as_millis() as u64;
            self.now = self.now.max(millis);
            self.manager.timeout(self.at());
            wakes += 1;
            assert!(wakes < 100, "the machine spins");
        }
        self.now = until;
        self.effects()
    }
}

/// What must hold whatever the model says.
#[derive(Default)]
struct Laws {
    /// By exchange, whether it was answered, and for which RID it was made.
    exchanges: BTreeMap<u64, (u64, bool)>,
    gone: Vec<u64>,
    /// The payloads that the first copy of each RID carried.
    first: BTreeMap<u64, Vec<u64>>,
    delivered: Vec<u64>,
    answers: BTreeMap<u64, String>,
    over: bool,
}

impl Laws {
    fn check(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Answer { exchange, body } => {
                    let (rid, answered) =
                        self.exchanges.get_mut(exchange).expect("an exchange that was made");
                    assert!(!std::mem::replace(answered, true), "exchange {exchange} is answered twice");
                    if !body.contains("type=") {
                        let first = self.answers.entry(*rid).or_insert_with(|| body.clone());
                        assert_eq!(first, body, "the answers to one RID differ");
                    }
                }
                Effect::Deliver(payload) => {
                    assert!(!self.over, "a payload after the end");
                    self.delivered.push(*payload);
                }
                Effect::Ended(_) => assert!(!std::mem::replace(&mut self.over, true), "ended twice"),
            }
        }
        // Each RID's first payloads, in RID order, without a gap, each once.
        let mut expected = self.first.values().flatten();
        for payload in &self.delivered {
            assert_eq!(Some(payload), expected.next());
        }
    }

    fn check_end(&self) {
        for (exchange, (rid, answered)) in &self.exchanges {
            assert!(
                *answered || self.gone.contains(exchange),
                "exchange {exchange} of RID {rid} is held for ever"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn t3_f12_any_order_loss_and_repetition_does_what_the_plain_model_does(
        events in proptest::collection::vec(event(), 1..60)
    ) {
        let (mut model, mut machine, mut laws) = (Model::new(), Machine::new(), Laws::default());
        let (mut exchange, mut payload) = (0_u64, 0_u64);
        for event in events {
            let (rid, payloads, pause, terminate) = match event {
                Event::Post { offset, payloads } => (offset, payloads, None, false),
                Event::Near { distance, payloads } => {
                    (model.last.saturating_add_signed(distance), payloads, None, false)
                }
                Event::Pause { seconds } => (model.last + 1, 0, Some(seconds), false),
                Event::Terminate { payloads } => (model.last + 1, payloads, None, true),
                Event::Gone { back } => {
                    let gone = exchange.saturating_sub(back as u64);
                    // A host only drops an exchange that waits.
                    if laws.exchanges.get(&gone).is_some_and(|(_, answered)| !answered) {
                        laws.gone.push(gone);
                        model.gone(gone);
                        machine.manager.gone(ExchangeId(gone), machine.at());
                    }
                    continue;
                }
                Event::Push => {
                    prop_assert_eq!(machine.manager.room().is_some(), model.live() && model.farewell.is_none());
                    if machine.manager.room().is_some() {
                        payload += 1;
                        let text = format!("<p n='{payload}'/>");
                        machine.manager.push(Piece::new(text.as_str()));
                        machine.manager.settle(machine.at());
                        let (expected, actual) = (model.push(&text), machine.effects());
                        prop_assert_eq!(&expected, &actual);
                        laws.check(&actual);
                    }
                    continue;
                }
                Event::Pass { millis } => {
                    let until = model.now + millis;
                    let (expected, actual) = (model.pass(until), machine.pass(until));
                    prop_assert_eq!(&expected, &actual);
                    laws.check(&actual);
                    continue;
                }
            };
            exchange += 1;
            let payloads: Vec<u64> = (0..payloads).map(|_| { payload += 1; payload }).collect();
            laws.exchanges.insert(exchange, (rid, false));
            if rid > 0 {
                laws.first.entry(rid).or_insert_with(|| payloads.clone());
            }
            let request = Waiting { payloads, exchange: Some(exchange), pause, terminate };
            let actual = machine.post(rid, &request);
            let expected: Vec<Effect> = model.post(rid, request);
            let fixed = |effects: Vec<Effect>| effects.into_iter().map(|effect| match effect {
                // The creation's answer is not the model's business.
                Effect::Answer { exchange, body } if body == "creation" || body.contains("sid='s'") => {
                    Effect::Answer { exchange, body: "creation".to_owned() }
                }
                other => other,
            }).collect::<Vec<_>>();
            prop_assert_eq!(fixed(expected), fixed(actual.clone()));
            laws.check(&actual);
        }
        let until = model.now + 1_000_000;
        laws.check(&machine.pass(until));
        laws.check_end();
        prop_assert!(laws.over, "a session that nobody uses ends");
    }
}
