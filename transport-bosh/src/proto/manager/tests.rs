mod acks;
mod ends;
mod order;
mod rates;

use relay_core::xml::Limits;

use super::*;
use crate::{config::BoshServerConfig, wire::body::RequestBody};

const EMPTY: &str = "<body xmlns='http://jabber.org/protocol/httpbind'/>";
const ERROR: &str = "<body xmlns='http://jabber.org/protocol/httpbind' type='error'/>";
const GOODBYE: &str = "<body xmlns='http://jabber.org/protocol/httpbind' type='terminate'/>";

fn terminated(condition: &str) -> String {
    format!("<body xmlns='http://jabber.org/protocol/httpbind' type='terminate' condition='{condition}'/>")
}

fn with(payload: &str) -> String {
    format!("<body xmlns='http://jabber.org/protocol/httpbind'>{payload}</body>")
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A machine, the time, and what came out of it. RIDs count from the creation's, which is 0.
struct Driver {
    manager: Manager<&'static str>,
    base: Rid,
    start: Instant,
    now: Instant,
    exchanges: u64,
    answers: Vec<(u64, String)>,
    statuses: Vec<u16>,
    delivered: Vec<&'static str>,
    other: Vec<Output<&'static str>>,
}

impl Driver {
    fn new() -> Self {
        Self::with("wait='50' hold='1' ver='1.11'")
    }

    fn with(attributes: &str) -> Self {
        let message = format!(
            "<body rid='1000' to='localhost' {attributes} xmlns='http://jabber.org/protocol/httpbind'/>"
        );
        let body = RequestBody::parse(message.as_bytes(), &Limits::default()).unwrap();
        let terms = Terms::negotiate(&body, &BoshServerConfig::default()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of virtual time")]
        let now = Instant::now();
        let opening = terms.opening("sid", body.rid, "localhost");
        let mut manager = Manager::new(terms, body.rid, ExchangeId(0), opening, body.newkey.as_deref(), now);
        manager.send(Piece::with_stream_prefix("<stream:features/>"));
        let mut driver = Self {
            manager,
            base: body.rid,
            start: now,
            now,
            exchanges: 0,
            answers: Vec::new(),
            statuses: Vec::new(),
            delivered: Vec::new(),
            other: Vec::new(),
        };
        driver.settle();
        assert_eq!(driver.answers.len(), 1, "creation is answered at once");
        driver.answers.clear();
        driver.other.clear();
        driver.statuses.clear();
        driver
    }

    fn settle(&mut self) {
        self.collect();
        self.manager.settle(self.now);
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(output) = self.manager.poll_output() {
            match output {
                Output::Respond { exchange, status, body } => {
                    self.statuses.push(status);
                    self.answers.push((exchange.0, String::from_utf8(body.to_vec()).unwrap()));
                }
                Output::Deliver(payload) => self.delivered.push(payload),
                other => self.other.push(other),
            }
        }
    }

    fn rid(&self, offset: i64) -> Rid {
        Rid::new(self.base.get().checked_add_signed(offset).unwrap()).unwrap()
    }

    fn make(&self, offset: i64, payloads: &[&'static str]) -> Request<&'static str> {
        Request::new(self.rid(offset), payloads.to_vec())
    }

    /// Sends the request `offset`; its exchange.
    fn post(&mut self, offset: i64, payloads: &[&'static str]) -> u64 {
        let request = self.make(offset, payloads);
        self.send(request)
    }

    fn send(&mut self, request: Request<&'static str>) -> u64 {
        self.exchanges += 1;
        self.manager.request(request, ExchangeId(self.exchanges), self.now);
        self.settle();
        self.exchanges
    }

    fn push(&mut self, payload: &'static str) {
        assert!(self.manager.room().is_some(), "there is no room for a push");
        self.manager.push(Piece::new(payload));
        self.settle();
    }

    /// Lets time pass, waking the machine whenever it wants.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.manager.wake_at().filter(|at| *at <= until) {
            assert!(at >= self.now || self.now == self.start, "a machine that wakes in the past spins");
            self.now = at.max(self.now);
            self.manager.timeout(self.now);
            self.settle();
        }
        self.now = until;
    }

    fn answers(&mut self) -> Vec<(u64, String)> {
        std::mem::take(&mut self.answers)
    }

    fn ended(&self) -> Option<End> {
        self.other.iter().find_map(|output| match output {
            Output::Ended(end) => Some(*end),
            _ => None,
        })
    }

    fn confirmed(&self) -> Option<u64> {
        self.other.iter().rev().find_map(|output| match output {
            Output::Confirmed(number) => Some(*number),
            _ => None,
        })
    }
}

fn one(exchange: u64, body: &str) -> Vec<(u64, String)> {
    vec![(exchange, body.to_owned())]
}
