//! The machine against a plain connection manager over a network that loses, delays, repeats and reorders.
//!
//! The model calls no product code but the XML parser. Whatever the network does, short of cutting the two ends off for
//! longer than a session lives, every payload arrives once and in order, both ways, and the session lives on.

use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// Milliseconds of virtual time.
type Time = u64;

const WAIT: Time = 50_000;
const REQUESTS: u64 = 2;

/// XEP-0124 in the simplest form that is right.
#[derive(Default)]
struct Manager {
    last: u64,
    /// Requests above `last`: their payloads and the copy to answer.
    early: BTreeMap<u64, (Vec<String>, u64)>,
    /// Requests processed and not answered: RID, copy, when the wait ends.
    held: VecDeque<(u64, u64, Time)>,
    answered: HashMap<u64, String>,
    received: Vec<String>,
    out: VecDeque<String>,
    /// Answers on their way: copy, document.
    answers: Vec<(u64, String)>,
    gone: bool,
}

impl Manager {
    /// `awaited`: the client waits for the answer to this very copy.
    fn request(&mut self, now: Time, copy: u64, rid: u64, payloads: Vec<String>, awaited: bool) {
        if let Some(document) = self.answered.get(&rid) {
            self.answers.push((copy, document.clone()));
            return;
        }
        if let Some(held) = self.held.iter_mut().find(|held| held.0 == rid) {
            // The old copy gets the recoverable error, the new one is held.
            let old = std::mem::replace(&mut held.1, copy);
            self.answers.push((old, body("type='error'", "")));
            return;
        }
        if rid <= self.last && !awaited {
            // What went astray on the network says nothing about the client.
            return;
        }
        if rid <= self.last || rid > self.last + REQUESTS {
            self.gone = true;
            return;
        }
        self.early.insert(rid, (payloads, copy));
        while let Some((payloads, copy)) = self.early.remove(&(self.last + 1)) {
            self.last += 1;
            self.received.extend(payloads);
            self.held.push_back((self.last, copy, now + WAIT));
        }
        self.pump();
    }

    fn pump(&mut self) {
        while !self.held.is_empty() && (!self.out.is_empty() || self.held.len() > 1) {
            let inside: String = self.out.drain(..).map(|text| message(&text)).collect();
            self.answer_oldest(inside);
        }
    }

    fn answer_oldest(&mut self, inside: String) {
        if let Some((rid, copy, _)) = self.held.pop_front() {
            let document = body("", &inside);
            self.answered.insert(rid, document.clone());
            // XEP-0124 §14.3 asks for no more.
            self.answered.retain(|kept, _| kept + REQUESTS > rid);
            self.answers.push((copy, document));
        }
    }

    fn expire(&mut self, now: Time) {
        while self.held.front().is_some_and(|held| held.2 <= now) {
            self.answer_oldest(String::new());
        }
    }
}

/// What becomes of one POST.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives {
        there: Time,
        back: Time,
    },
    /// It arrives, and so does a copy of it; only the first copy has somebody waiting.
    Doubled {
        there: Time,
        later: Time,
    },
    /// The connection breaks before it arrives.
    BrokenBefore,
    /// The connection breaks after it arrived.
    BrokenAfter {
        there: Time,
    },
    /// Nothing is ever heard, though it arrived or not.
    Silent {
        arrives: bool,
    },
}

#[derive(Debug, Clone)]
enum Step {
    ClientSends(u8),
    ServerSends(u8),
    Passes(Time),
    Refresh,
}

enum Event {
    Request { copy: u64, rid: u64, payloads: Vec<String> },
    Broken { copy: u64 },
    Answer { copy: u64, document: String },
}

struct World {
    rig: Rig,
    start: Instant,
    now: Time,
    manager: Manager,
    fates: Vec<Fate>,
    next_fate: usize,
    calm: bool,
    /// When a POST may be met with silence again. Two in a row can outlast a session.
    silence_from: Time,
    /// POSTs in a row that came to nothing.
    failures: u32,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    /// Copies under way: the exchange, and how long its answer takes.
    copies: HashMap<u64, (ExchangeId, Option<Time>)>,
}

impl World {
    fn new(fates: Vec<Fate>, keepalive: Option<u64>) -> Self {
        let mut settings = settings();
        settings.keepalive = keepalive.map(seconds);
        // Long enough that no run of bad luck amounts to being cut off.
        let rig = Rig::open_as(settings, &SESSION.replace("inactivity='60'", "inactivity='600'"));
        Self {
            start: rig.now,
            now: 0,
            manager: Manager { last: 1_001, ..Manager::default() },
            fates,
            next_fate: 0,
            calm: false,
            silence_from: 0,
            failures: 0,
            events: BTreeMap::new(),
            sequence: 0,
            copies: HashMap::new(),
            rig,
        }
    }

    fn schedule(&mut self, after: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + after, self.sequence), event);
    }

    fn fate(&mut self) -> Fate {
        if self.calm || self.fates.is_empty() {
            return Fate::Arrives { there: 5, back: 5 };
        }
        let fate = self.fates[self.next_fate % self.fates.len()];
        self.next_fate += 1;
        if matches!(fate, Fate::Silent { .. }) {
            if self.now < self.silence_from {
                return Fate::Arrives { there: 5, back: 5 };
            }
            self.silence_from = self.now + 300_000;
        }
        self.failures =
            if matches!(fate, Fate::Arrives { .. } | Fate::Doubled { .. }) { 0 } else { self.failures + 1 };
        if self.failures > 4 {
            self.failures = 0;
            return Fate::Arrives { there: 5, back: 5 };
        }
        fate
    }

    /// Puts every new POST on the network.
    fn transmit(&mut self) {
        for posted in std::mem::take(&mut self.rig.posts) {
            let (rid, payloads) = (posted.rid(), posted.texts());
            self.sequence += 1;
            let copy = self.sequence;
            let (exchange, fate) = (posted.exchange, self.fate());
            let back = match fate {
                Fate::Arrives { back, .. } => Some(back),
                Fate::Doubled { .. } => Some(1),
                _ => None,
            };
            self.copies.insert(copy, (exchange, back));
            let request = |copy| Event::Request { copy, rid, payloads: payloads.clone() };
            match fate {
                Fate::Arrives { there, .. } => self.schedule(there, request(copy)),
                Fate::Doubled { there, later } => {
                    self.schedule(there, request(copy));
                    self.schedule(there + later, request(u64::MAX));
                }
                Fate::BrokenBefore => self.schedule(1, Event::Broken { copy }),
                Fate::BrokenAfter { there } => {
                    self.schedule(there, request(copy));
                    self.schedule(there + 1, Event::Broken { copy });
                }
                Fate::Silent { arrives: true } => self.schedule(10, request(copy)),
                Fate::Silent { arrives: false } => {}
            }
        }
    }

    fn receive(&mut self) {
        for (copy, document) in std::mem::take(&mut self.manager.answers) {
            if let Some((_, Some(back))) = self.copies.get(&copy) {
                self.schedule(*back, Event::Answer { copy, document });
            }
        }
    }

    fn rig_at(&mut self, input: Input) {
        self.rig.now = self.start + Duration::from_millis(self.now);
        self.rig.input(input);
    }

    /// The next instant at which anything happens.
    fn next(&self) -> Time {
        let wake = self.rig.wake.map(|wake| {
            u64::try_from(wake.saturating_duration_since(self.start).as_micros().div_ceil(1_000)).unwrap()
        });
        let event = self.events.keys().next().map(|(at, _)| *at);
        let wait = self.manager.held.front().map(|held| held.2);
        [wake, event, wait].into_iter().flatten().min().unwrap_or(Time::MAX).max(self.now)
    }

    fn run_until(&mut self, until: Time) {
        let mut turns = 0;
        loop {
            self.transmit();
            self.receive();
            let next = self.next();
            if next > until {
                self.now = self.now.max(until);
                return;
            }
            turns = if next > self.now { 0 } else { turns + 1 };
            assert!(turns < 1_000, "time stands still at {next}");
            self.now = next;
            self.manager.expire(next);
            let due: Vec<(Time, u64)> = self.events.range(..=(next, u64::MAX)).map(|(key, _)| *key).collect();
            for key in due {
                match self.events.remove(&key).unwrap() {
                    Event::Request { copy, rid, payloads } => {
                        let exchange = self.copies.get(&copy).map(|(exchange, _)| *exchange);
                        let awaited =
                            exchange.is_some_and(|exchange| self.rig.machine.posted(exchange).is_some());
                        self.manager.request(next, copy, rid, payloads, awaited);
                    }
                    Event::Broken { copy } => {
                        let (exchange, _) = self.copies[&copy];
                        self.rig_at(Input::Failed { exchange, kind: ExchangeErrorKind::Interrupted });
                    }
                    Event::Answer { copy, document } => {
                        let (exchange, _) = self.copies[&copy];
                        self.rig_at(Input::Replied { exchange, reply: Reply::new(200, document) });
                    }
                }
            }
            self.rig_at(Input::Woken);
        }
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    let delay = || prop_oneof![3 => 1u64..50, 1 => 50u64..8_000];
    prop_oneof![
        6 => (delay(), delay()).prop_map(|(there, back)| Fate::Arrives { there, back }),
        2 => (delay(), delay()).prop_map(|(there, later)| Fate::Doubled { there, later }),
        1 => Just(Fate::BrokenBefore),
        2 => delay().prop_map(|there| Fate::BrokenAfter { there }),
        1 => any::<bool>().prop_map(|arrives| Fate::Silent { arrives }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..4).prop_map(Step::ClientSends),
        4 => (1u8..4).prop_map(Step::ServerSends),
        4 => (0u64..500).prop_map(Step::Passes),
        2 => (500u64..70_000).prop_map(Step::Passes),
        1 => Just(Step::Refresh),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn t3_every_payload_arrives_once_and_in_order_both_ways(
        steps in prop::collection::vec(step(), 1..40),
        fates in prop::collection::vec(fate(), 1..40),
        keepalive in prop::option::of(1u64..60),
    ) {
        let mut world = World::new(fates, keepalive);
        let (mut sent, mut pushed) = (0u64, 0u64);
        for step in steps {
            match step {
                Step::ClientSends(count) => {
                    for _ in 0..count {
                        sent += 1;
                        world.rig_at(Input::Send { payload: stanza(sent.to_string()), tag: Some(sent) });
                    }
                }
                Step::ServerSends(count) => {
                    for _ in 0..count {
                        pushed += 1;
                        world.manager.out.push_back(pushed.to_string());
                    }
                    world.manager.pump();
                }
                Step::Passes(time) => {
                    let until = world.now + time;
                    world.run_until(until);
                }
                Step::Refresh => world.rig_at(Input::Refresh),
            }
        }
        // Then the network is kind for long enough.
        world.calm = true;
        let until = world.now + 300_000;
        world.run_until(until);
        let all = |count: u64| (1..=count).map(|n| n.to_string()).collect::<Vec<_>>();
        prop_assert!(!world.manager.gone, "the client left the window");
        prop_assert_eq!(&world.rig.ended, &None);
        prop_assert_eq!(&world.manager.received, &all(sent));
        prop_assert_eq!(world.rig.texts(), all(pushed));
        prop_assert_eq!(world.rig.confirmed, sent);
        prop_assert!(world.manager.held.len() <= 1);
        prop_assert!(world.manager.held.len() + world.events.len() >= 1, "no request is held or on its way");
    }

    #[test]
    fn t52_no_answer_makes_the_machine_panic_or_spin(
        answers in prop::collection::vec((0usize..3, 0usize..12, any::<u16>(), "\\PC{0,40}"), 1..40),
    ) {
        let mut rig = Rig::new(settings());
        for (which, kind, number, text) in answers {
            if rig.posts.is_empty() {
                rig.pass(Duration::from_millis(u64::from(number) + 100));
                continue;
            }
            let rid = rig.posts[which % rig.posts.len()].rid();
            let number = u64::from(number);
            match kind {
                0 => rig.reply(rid, &text),
                1 => rig.reply(rid, &body(SESSION, "<stream:features/>")),
                2 => rig.reply(rid, &body(&format!("sid='x' wait='{number}' requests='{number}' hold='{number}'"), "")),
                3 => rig.empty(rid),
                4 => rig.reply(rid, &body("type='error'", "")),
                5 => rig.reply(rid, &body(&format!("report='{}' time='{number}'", 1_000 + number % 20), "")),
                6 => rig.reply_status(rid, u16::try_from(number % 700).unwrap(), &text),
                7 => rig.fail(rid),
                8 => rig.pass(Duration::from_millis(number)),
                9 => rig.reply(rid, &body("", &message("x"))),
                10 => rig.send("y"),
                _ => rig.input(Input::Refresh),
            }
            prop_assert!(rig.posts.len() <= 8);
        }
        rig.pass(seconds(1_000));
    }
}

#[test]
fn i6_an_answer_that_is_lost_is_still_there_however_much_is_to_be_said_meanwhile() {
    // The poll arrives and its answer does not; all the rest is well.
    let mut fates = vec![Fate::Arrives { there: 5, back: 5 }; 100];
    fates[0] = Fate::Silent { arrives: true };
    let mut world = World::new(fates, None);
    let all: Vec<String> = (1..=16).map(|n| n.to_string()).collect();
    world.run_until(10);
    for (tag, text) in (1..).zip(&all) {
        world.rig_at(Input::Send { payload: stanza(text.as_str()), tag: Some(tag) });
        world.run_until(world.now + 50);
        world.manager.out.push_back(text.clone());
        world.manager.pump();
        world.run_until(world.now + 50);
    }
    world.run_until(world.now + 120_000);
    assert!(!world.manager.gone, "the client asked for an answer that the peer keeps no longer");
    assert_eq!(world.rig.ended, None);
    assert_eq!(world.manager.received, all);
    assert_eq!(world.rig.texts(), all);
}
