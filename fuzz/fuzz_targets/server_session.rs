//! The server's session machine, fed any sequence of requests, lost connections, pushes and moments: no panic, no spin,
//! every exchange answered once at most and in RID order, payloads in RID order, and in the end nothing held.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
    time::{Duration, Instant},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use relay_core::xml::Limits;
use transport_bosh::{
    BoshServerConfig,
    proto::{
        manager::{ExchangeId, Manager, Output, Request, Terms},
        rid::Rid,
    },
    wire::{
        TerminalCondition,
        body::{Piece, RequestBody},
    },
};

static START: LazyLock<Instant> = LazyLock::new(|| tokio::time::Instant::now().into_std());
const FIRST: u64 = 1_000;

#[derive(Debug, Arbitrary)]
struct Session {
    wait: u8,
    hold: u8,
    acks: bool,
    legacy: bool,
    keyed: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Request {
        distance: i8,
        payloads: u8,
        cost: u16,
        ack: Option<i8>,
        pause: Option<u8>,
        terminate: bool,
        restart: bool,
    },
    Far(u64),
    Gone(u8),
    Push {
        length: u16,
    },
    Send {
        length: u16,
    },
    Settle,
    Pass {
        millis: u32,
    },
    Backpressure(bool),
    EnforcePolling,
    Misbehaved(i8),
    End,
}

fn piece(length: usize) -> Piece {
    Piece::new(format!("<p>{}</p>", "x".repeat(length)))
}

struct Run {
    manager: Manager<(u64, u8)>,
    now: Instant,
    last: u64,
    exchanges: BTreeMap<u64, u64>,
    answered: BTreeSet<u64>,
    delivered: Option<(u64, u8)>,
    attached: bool,
    confirmed: u64,
    pushed: u64,
    over: bool,
}

impl Run {
    fn rid(&self, distance: i8) -> u64 {
        self.last.saturating_add_signed(i64::from(distance))
    }

    fn open(&mut self, rid: u64) -> ExchangeId {
        let exchange = self.exchanges.len() as u64;
        self.exchanges.insert(exchange, rid);
        ExchangeId(exchange)
    }

    fn drain(&mut self) {
        while let Some(output) = self.manager.poll_output() {
            match output {
                Output::Respond { exchange, status, body } => {
                    assert!(self.exchanges.contains_key(&exchange.0));
                    assert!(self.answered.insert(exchange.0), "answered twice");
                    assert!(matches!(status, 200 | 400 | 403 | 404));
                    let limits = Limits::default().with_bytes(usize::MAX);
                    assert!(relay_core::xml::Element::parse(&body, &limits).is_ok());
                }
                Output::Deliver(payload) => {
                    assert!(!self.over && self.delivered < Some(payload), "out of order");
                    self.last = self.last.max(payload.0);
                    self.delivered = Some(payload);
                }
                Output::Attached => assert!(!std::mem::replace(&mut self.attached, true)),
                Output::Detached => assert!(std::mem::replace(&mut self.attached, false)),
                Output::Confirmed(number) => {
                    assert!(number > self.confirmed && number <= self.pushed);
                    self.confirmed = number;
                }
                Output::Ended(_) => assert!(!std::mem::replace(&mut self.over, true)),
                Output::Alive | Output::Restart => {}
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut wakes = 0;
        while let Some(at) = self.manager.wake_at().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.manager.timeout(self.now);
            self.drain();
            wakes += 1;
            assert!(wakes < 200, "the machine spins");
        }
        self.now = until;
    }
}

fuzz_target!(|session: Session| {
    let newkey = if session.keyed { "newkey='6757b18b27134d15bc709c7f22689a73acb3f00c'" } else { "" };
    let message = format!(
        "<body rid='{FIRST}' to='localhost' wait='{}' hold='{}' ack='{}' {} {newkey} xmlns='http://jabber.org/protocol/httpbind'/>",
        session.wait,
        session.hold,
        u8::from(session.acks),
        if session.legacy { "" } else { "ver='1.11'" },
    );
    let Ok(creation) = RequestBody::parse(message.as_bytes(), &Limits::default()) else { return };
    let mut config = BoshServerConfig::default();
    config.hold = 3;
    // Small, so that few bytes fill an answer.
    config.max_body = 4_096;
    let Ok(terms) = Terms::negotiate(&creation, &config) else { return };
    let newkey = creation.newkey.as_deref();
    let mut run = Run {
        manager: Manager::new(terms, creation.rid, ExchangeId(0), "sid='s'", newkey, *START),
        now: *START,
        last: FIRST,
        exchanges: BTreeMap::from([(0, FIRST)]),
        answered: BTreeSet::new(),
        delivered: None,
        attached: false,
        confirmed: 0,
        pushed: 0,
        over: false,
    };
    for step in session.steps.into_iter().take(200) {
        match step {
            Step::Request { distance, payloads, cost, ack, pause, terminate, restart } => {
                let number = run.rid(distance);
                let Some(rid) = Rid::new(number) else { continue };
                let payloads = (0..payloads % 4).map(|i| (number, i)).collect();
                let mut request = Request::new(rid, payloads);
                request.cost = cost.into();
                request.ack = ack.map(|ack| run.rid(ack));
                request.pause = pause.map(|seconds| Duration::from_secs(seconds.into()));
                request.terminate = terminate;
                request.restart = restart;
                let exchange = run.open(number);
                run.manager.request(request, exchange, run.now);
                // RIDs without payloads count as well.
                run.last = run.last.max(number.min(run.last + 1));
            }
            Step::Far(number) => {
                let Some(rid) = Rid::new(number) else { continue };
                let exchange = run.open(number);
                run.manager.request(Request::new(rid, vec![(number, 0)]), exchange, run.now);
            }
            Step::Gone(back) => {
                let exchange = (run.exchanges.len() as u64 - 1).saturating_sub(back.into());
                if run.answered.insert(exchange) {
                    run.manager.gone(ExchangeId(exchange), run.now);
                }
            }
            Step::Push { length } => {
                if run.manager.room().is_some() {
                    run.pushed += 1;
                    run.manager.push(piece(usize::from(length) % 3_000));
                }
            }
            Step::Send { length } => run.manager.send(piece(usize::from(length) % 6_000)),
            Step::Settle => run.manager.settle(run.now),
            Step::Pass { millis } => run.pass(Duration::from_millis(millis.into())),
            Step::Backpressure(on) => run.manager.set_backpressure(on),
            Step::EnforcePolling => run.manager.enforce_polling(),
            Step::Misbehaved(distance) => {
                let number = run.rid(distance);
                let Some(rid) = Rid::new(number) else { continue };
                let exchange = run.open(number);
                run.manager.misbehaved(TerminalCondition::BadRequest, rid, exchange);
            }
            Step::End => run.manager.end(TerminalCondition::SystemShutdown, &[Piece::new("<bye/>")]),
        }
        run.drain();
    }
    run.manager.set_backpressure(false);
    run.manager.settle(run.now);
    run.drain();
    run.pass(Duration::from_secs(10_000));
    run.manager.settle(run.now);
    run.drain();
    assert!(run.over, "a session that nobody uses ends");
    for exchange in run.exchanges.keys() {
        assert!(run.answered.contains(exchange), "an exchange is held for ever");
    }
});
