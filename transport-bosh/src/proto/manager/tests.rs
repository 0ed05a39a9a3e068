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

#[test]
fn x4_an_empty_poll_is_held_for_the_wait_and_released_empty() {
    let mut d = Driver::new();
    let poll = d.post(1, &[]);
    d.pass(seconds(50) - Duration::from_millis(1));
    assert!(d.answers().is_empty());
    d.pass(Duration::from_millis(1));
    assert_eq!(d.answers(), one(poll, EMPTY));
}

#[test]
fn x5_s2_a_push_leaves_at_once_on_the_held_request() {
    let mut d = Driver::new();
    let poll = d.post(1, &[]);
    d.push("<p/>");
    assert_eq!(d.answers(), one(poll, &with("<p/>")));
    assert!(d.manager.room().is_none(), "nothing is held now");
}

#[test]
fn x6_s3_the_reply_rides_on_the_oldest_and_the_newest_stays_held() {
    let mut d = Driver::new();
    let a = d.post(1, &[]);
    d.exchanges += 1;
    let b = d.exchanges;
    let request = d.make(2, &["ping"]);
    d.manager.request(request, ExchangeId(b), d.now);
    d.collect();
    assert_eq!(d.delivered, ["ping"]);
    d.manager.send(Piece::new("<pong/>"));
    d.settle();
    assert_eq!(d.answers(), one(a, &with("<pong/>")));
    d.pass(seconds(50));
    assert_eq!(d.answers(), one(b, EMPTY));
}

#[test]
fn s4_a_newer_request_releases_the_oldest_empty() {
    let mut d = Driver::new();
    let a = d.post(1, &[]);
    let b = d.post(2, &["data"]);
    assert_eq!(d.answers(), one(a, EMPTY));
    d.push("<p/>");
    assert_eq!(d.answers(), one(b, &with("<p/>")));
}

#[test]
fn s5_a_newer_request_does_not_restart_the_older_ones_wait() {
    let mut d = Driver::new();
    // Two may be held here.
    d.manager.terms.hold = 2;
    d.manager.terms.requests = 3;
    let a = d.post(1, &[]);
    d.pass(seconds(30));
    let b = d.post(2, &[]);
    d.pass(seconds(20));
    assert_eq!(d.answers(), one(a, EMPTY));
    d.pass(seconds(30));
    assert_eq!(d.answers(), one(b, EMPTY));
}

#[test]
fn x7_i7_s6_a_lost_answer_is_given_again_byte_for_byte_and_nothing_is_processed_twice() {
    let mut d = Driver::new();
    let first = d.post(1, &["count"]);
    d.push("<one/>");
    assert_eq!(d.answers(), one(first, &with("<one/>")));
    let again = d.post(1, &["count"]);
    assert_eq!(d.answers(), one(again, &with("<one/>")));
    let changed = d.post(1, &["something else"]);
    assert_eq!(d.answers(), one(changed, &with("<one/>")));
    assert_eq!(d.delivered, ["count"]);
}

#[test]
fn s6_i13_an_answer_without_anybody_to_take_it_is_kept_and_not_queued_again() {
    let mut d = Driver::new();
    d.manager.terms.hold = 2;
    d.manager.terms.requests = 3;
    let dead = d.post(1, &[]);
    d.manager.gone(ExchangeId(dead), d.now);
    let live = d.post(2, &[]);
    d.push("<p/>");
    assert!(d.answers().is_empty(), "the oldest request's answer has nobody to take it");
    let again = d.post(1, &[]);
    assert_eq!(d.answers(), one(again, &with("<p/>")));
    d.pass(seconds(50));
    assert_eq!(d.answers(), one(live, EMPTY));
}

#[test]
fn x8_i8_a_repeat_of_a_held_rid_takes_over_and_the_old_exchange_gets_the_recoverable_error() {
    let mut d = Driver::new();
    let old = d.post(1, &["a"]);
    d.pass(seconds(20));
    let new = d.post(1, &["a"]);
    assert_eq!(d.answers(), one(old, ERROR));
    d.pass(seconds(49));
    assert!(d.answers().is_empty(), "the new copy waits its own time");
    d.push("<p/>");
    assert_eq!(d.answers(), one(new, &with("<p/>")));
    assert_eq!(d.delivered, ["a"]);
}

#[test]
fn x9_i4_a_request_that_is_early_waits_for_the_gap_and_both_go_up_in_order() {
    let mut d = Driver::new();
    let two = d.post(2, &["two"]);
    assert!(d.delivered.is_empty() && d.answers().is_empty());
    let one_ = d.post(1, &["one"]);
    assert_eq!(d.delivered, ["one", "two"]);
    assert_eq!(d.answers(), one(one_, EMPTY));
    d.push("<p/>");
    assert_eq!(d.answers(), one(two, &with("<p/>")));
}

#[test]
fn i8_f5_a_repeat_of_an_early_rid_replaces_its_first_copy() {
    let mut d = Driver::new();
    let first = d.post(2, &["two"]);
    let second = d.post(2, &["changed"]);
    assert_eq!(d.answers(), one(first, ERROR));
    d.post(1, &[]);
    assert_eq!(d.delivered, ["two"]);
    d.answers();
    d.push("<p/>");
    assert_eq!(d.answers(), one(second, &with("<p/>")));
}

#[test]
fn x10_i5_a_rid_above_the_window_ends_the_session_for_good() {
    let mut d = Driver::new();
    let held = d.post(1, &[]);
    let beyond = d.post(4, &["lost"]);
    assert_eq!(d.answers(), [(beyond, terminated("item-not-found")), (held, terminated("other-request"))]);
    assert_eq!(d.ended(), Some(End::Failed(TerminalCondition::ItemNotFound)));
    let next = d.post(2, &[]);
    assert_eq!(d.answers(), one(next, &terminated("item-not-found")));
    assert!(d.delivered.is_empty());
}

#[test]
fn i4_the_window_reaches_exactly_requests_beyond_the_last() {
    let mut d = Driver::new();
    d.post(1, &[]);
    d.post(3, &["in"]);
    assert_eq!(d.ended(), None);
    d.post(2, &[]);
    assert_eq!(d.delivered, ["in"]);
}

#[test]
fn i4_k2_one_more_is_let_in_to_terminate_or_pause() {
    let mut d = Driver::new();
    d.post(1, &[]);
    let mut request = d.make(4, &[]);
    request.terminate = true;
    d.send(request);
    assert_eq!(d.ended(), None, "it waits for those before it");
    d.post(2, &[]);
    d.post(3, &[]);
    assert_eq!(d.ended(), Some(End::Goodbye));
}

#[test]
fn i5_i6_f8_as_many_answers_are_kept_as_requests_and_older_ones_are_not_found() {
    let mut d = Driver::new();
    for i in 1..=4 {
        d.post(i, &[]);
    }
    d.answers();
    // 1, 2 and 3 were answered; 4 is held.
    for kept in [3, 2] {
        let again = d.post(kept, &[]);
        assert_eq!(d.answers(), one(again, EMPTY), "{kept}");
    }
    let old = d.post(1, &[]);
    assert_eq!(d.answers()[0], (old, terminated("item-not-found")));
    assert!(matches!(d.ended(), Some(End::Failed(TerminalCondition::ItemNotFound))));
}

#[test]
fn i10_t3_more_than_ten_repeats_end_the_session() {
    for held in [true, false] {
        let mut d = Driver::new();
        d.post(1, &[]);
        if !held {
            d.push("<p/>");
        }
        for _ in 0..10 {
            d.post(1, &[]);
        }
        assert_eq!(d.ended(), None);
        d.answers();
        let last = d.post(1, &[]);
        assert!(d.answers().contains(&(last, terminated("policy-violation"))));
        assert_eq!(d.ended(), Some(End::Failed(TerminalCondition::PolicyViolation)));
    }
}

#[test]
fn i12_a_gap_that_is_not_filled_ends_the_session() {
    let mut d = Driver::new();
    let early = d.post(2, &["two"]);
    d.pass(seconds(50));
    assert_eq!(d.answers(), one(early, &terminated("item-not-found")));
    assert!(d.delivered.is_empty());
}

#[test]
fn wait_is_not_restarted_by_a_replay() {
    let mut d = Driver::new();
    d.post(1, &[]);
    let held = d.post(2, &[]);
    d.answers();
    for _ in 0..4 {
        d.pass(seconds(10));
        let again = d.post(1, &[]);
        assert_eq!(d.answers(), one(again, EMPTY));
    }
    d.pass(seconds(10));
    assert_eq!(d.answers(), one(held, EMPTY));
}

#[test]
fn x11_e1_e2_the_clients_terminate_delivers_its_payloads_and_answers_everything() {
    let mut d = Driver::new();
    let a = d.post(1, &[]);
    let mut request = d.make(2, &["bye"]);
    request.terminate = true;
    let b = d.send(request);
    assert_eq!(d.delivered, ["bye"]);
    assert_eq!(d.answers(), [(a, GOODBYE.to_owned()), (b, EMPTY.to_owned())]);
    assert_eq!(d.ended(), Some(End::Goodbye));
    // E5: a goodbye whose answer was lost is said again; the session is as unknown as any other.
    let again = d.post(2, &["bye"]);
    assert_eq!(d.answers(), one(again, GOODBYE));
    let more = d.post(3, &[]);
    assert_eq!(d.answers(), one(more, &terminated("item-not-found")));
    assert_eq!(d.delivered, ["bye"]);
}

#[test]
fn e1_what_was_to_be_sent_rides_on_the_last_answer() {
    let mut d = Driver::new();
    let mut request = d.make(1, &["bye"]);
    request.terminate = true;
    d.exchanges += 1;
    d.manager.request(request, ExchangeId(d.exchanges), d.now);
    d.manager.send(Piece::new("<last/>"));
    d.settle();
    let body = "<body xmlns='http://jabber.org/protocol/httpbind' type='terminate'><last/></body>";
    assert_eq!(d.answers(), one(d.exchanges, body));
}

#[test]
fn x12_e2_the_servers_end_is_told_on_the_held_request() {
    let mut d = Driver::new();
    let held = d.post(1, &[]);
    d.manager.end(TerminalCondition::SystemShutdown, &[]);
    d.settle();
    assert_eq!(d.answers(), one(held, &terminated("system-shutdown")));
    assert_eq!(d.ended(), Some(End::Closed));
}

#[test]
fn e4_f9_without_a_held_request_the_next_one_learns_the_reason() {
    let mut d = Driver::new();
    let conflict = Piece::with_stream_prefix("<stream:error><conflict/></stream:error>");
    d.manager.end(TerminalCondition::RemoteStreamError, std::slice::from_ref(&conflict));
    d.settle();
    let late = d.post(1, &[]);
    let (exchange, body) = d.answers().remove(0);
    assert_eq!(exchange, late);
    assert!(body.contains("condition='remote-stream-error'") && body.contains("<conflict/>"), "{body}");
    // E5: and once more, should that answer be lost.
    let again = d.post(1, &[]);
    assert_eq!(d.answers(), one(again, &body));
}

#[test]
fn x13_t1_silence_for_longer_than_inactivity_ends_the_session() {
    let mut d = Driver::new();
    let poll = d.post(1, &[]);
    d.pass(seconds(50));
    assert_eq!(d.answers(), one(poll, EMPTY));
    d.pass(seconds(60) - Duration::from_millis(1));
    assert_eq!(d.ended(), None);
    d.pass(Duration::from_millis(1));
    assert_eq!(d.ended(), Some(End::Silent));
    let late = d.post(2, &["late"]);
    assert_eq!(d.answers(), one(late, &terminated("item-not-found")));
    assert!(d.delivered.is_empty());
}

#[test]
fn t3_a_dead_exchange_is_no_held_request_and_any_accepted_request_stops_the_clock() {
    let mut d = Driver::new();
    let poll = d.post(1, &[]);
    d.pass(seconds(5));
    d.manager.gone(ExchangeId(poll), d.now);
    d.settle();
    assert!(d.manager.room().is_none());
    d.pass(seconds(40));
    let again = d.post(1, &[]);
    assert_eq!(d.ended(), None);
    // A replay counts as well, and so does an early request.
    d.push("<p/>");
    assert_eq!(d.answers(), one(again, &with("<p/>")));
    d.pass(seconds(59));
    d.post(1, &[]);
    d.pass(seconds(59));
    assert_eq!(d.ended(), None);
    d.pass(seconds(1));
    assert_eq!(d.ended(), Some(End::Silent));
}

#[test]
fn attached_and_detached_follow_the_live_held_request() {
    let mut d = Driver::new();
    let poll = d.post(1, &[]);
    assert_eq!(d.other, [Output::Attached, Output::Alive]);
    d.other.clear();
    d.manager.gone(ExchangeId(poll), d.now);
    d.settle();
    assert_eq!(d.other, [Output::Detached]);
    d.other.clear();
    d.post(1, &[]);
    assert_eq!(d.other, [Output::Alive, Output::Attached]);
}

#[test]
fn x14_t4_a_pause_answers_everything_empty_and_stretches_the_silence() {
    let mut d = Driver::new();
    let a = d.post(1, &[]);
    let mut request = d.make(2, &[]);
    request.pause = Some(seconds(90));
    let b = d.send(request.clone());
    assert_eq!(d.answers(), [(a, EMPTY.to_owned()), (b, EMPTY.to_owned())]);
    assert!(d.manager.room().is_none(), "nothing is pushed during a pause");
    d.pass(seconds(89));
    assert_eq!(d.ended(), None);
    // A pause whose answer was lost is answered again.
    let again = d.send(request);
    assert_eq!(d.answers(), one(again, EMPTY));
    d.pass(seconds(89));
    d.post(3, &[]);
    d.pass(seconds(50 + 59));
    assert_eq!(d.ended(), None);
    d.pass(seconds(1));
    assert_eq!(d.ended(), Some(End::Silent), "inactivity is what it was before the pause");
}

#[test]
fn t4_a_pauses_answer_carries_no_payloads() {
    let mut d = Driver::new();
    let mut request = d.make(1, &["iq"]);
    request.pause = Some(seconds(10));
    d.exchanges += 1;
    d.manager.request(request, ExchangeId(d.exchanges), d.now);
    d.manager.send(Piece::new("<reply/>"));
    d.settle();
    assert_eq!(d.answers(), one(d.exchanges, EMPTY));
    let next = d.post(2, &[]);
    assert_eq!(d.answers(), one(next, &with("<reply/>")));
}

#[test]
fn t5_a_pause_may_be_short_and_not_longer_than_agreed() {
    let mut d = Driver::new();
    let mut request = d.make(1, &[]);
    request.pause = Some(seconds(1));
    d.send(request);
    d.pass(seconds(1));
    assert_eq!(d.ended(), Some(End::Silent));
    let mut d = Driver::new();
    let mut request = d.make(1, &[]);
    request.pause = Some(seconds(121));
    let pause = d.send(request);
    assert_eq!(d.answers(), one(pause, &terminated("policy-violation")));
}

#[test]
fn t6_t10_every_new_request_releases_the_oldest_so_nobody_outruns_the_window() {
    let mut d = Driver::new();
    d.manager.enforce_polling();
    for i in 1..100 {
        d.post(i, &["data"]);
        // Repeats are no new requests.
        if i % 10 != 0 {
            d.post(i, &[]);
        }
    }
    assert_eq!(d.ended(), None);
    assert_eq!(d.delivered.len(), 99);
}

#[test]
fn t7_t38_polls_beside_a_held_request_are_let_pass_in_a_burst_and_then_are_not() {
    let mut d = Driver::new();
    for i in 1..=30 {
        d.post(i, &[]);
    }
    assert_eq!(d.ended(), None, "while logging in, nobody counts");
    d.manager.enforce_polling();
    for i in 31..=41 {
        d.post(i, &[]);
    }
    assert_eq!(d.ended(), None);
    d.answers();
    let over = d.post(42, &[]);
    assert_eq!(d.answers()[0], (over, terminated("policy-violation")));
}

#[test]
fn t7_polls_at_the_interval_never_offend() {
    let mut d = Driver::new();
    d.manager.enforce_polling();
    for i in 1..=100 {
        d.post(i, &[]);
        d.pass(seconds(2));
    }
    assert_eq!(d.ended(), None);
}

#[test]
fn t8_t9_a_polling_session_is_answered_at_once_and_may_not_hammer() {
    for attributes in ["wait='0' hold='1' ver='1.11'", "wait='50' hold='0' ver='1.11'"] {
        let mut d = Driver::with(attributes);
        d.manager.enforce_polling();
        let poll = d.post(1, &[]);
        assert_eq!(d.answers(), one(poll, EMPTY));
        assert!(d.manager.wake_at().unwrap() > d.now, "nothing to wake for but the silence");
        // What is pushed between polls waits for the next one.
        d.push("<p/>");
        d.pass(seconds(5));
        let poll = d.post(2, &[]);
        assert_eq!(d.answers(), one(poll, &with("<p/>")));
        for i in 3..=40 {
            d.post(i, &[]);
        }
        assert_eq!(d.ended(), Some(End::Failed(TerminalCondition::PolicyViolation)));
    }
}

#[test]
fn t8_polls_that_bring_something_may_follow_at_once() {
    let mut d = Driver::with("wait='0' hold='1' ver='1.11'");
    d.manager.enforce_polling();
    for i in 1..=50 {
        d.push("<p/>");
        d.post(i, &[]);
    }
    assert_eq!(d.ended(), None);
}

#[test]
fn a1_answers_name_the_highest_rid_received_unless_they_answer_it() {
    let mut d = Driver::with("wait='50' hold='1' ver='1.11' ack='1'");
    let a = d.post(1, &[]);
    d.push("<p/>");
    assert_eq!(d.answers(), one(a, &with("<p/>")));
    let b = d.post(2, &[]);
    d.post(3, &[]);
    assert_eq!(d.answers(), one(b, "<body xmlns='http://jabber.org/protocol/httpbind' ack='1003'/>"));
}

#[test]
fn x16_a3_a_client_that_missed_an_answer_is_told_so_at_once() {
    let mut d = Driver::with("wait='50' hold='1' ver='1.11' ack='1'");
    d.post(1, &[]);
    d.post(2, &[]);
    d.push("<p/>");
    d.answers();
    d.pass(Duration::from_millis(852));
    let mut request = d.make(3, &[]);
    request.ack = Some(1001);
    let c = d.send(request);
    let body = "<body xmlns='http://jabber.org/protocol/httpbind' report='1002' time='852'/>";
    assert_eq!(d.answers(), one(c, body));
    // The client asks for it again, and it is there.
    let again = d.post(2, &[]);
    assert_eq!(d.answers(), one(again, "<body xmlns='http://jabber.org/protocol/httpbind'><p/></body>"));
}

#[test]
fn a3_an_answer_that_may_just_have_crossed_is_not_reported() {
    let mut d = Driver::with("wait='50' hold='1' ver='1.11' ack='1'");
    d.post(1, &[]);
    d.post(2, &[]);
    d.push("<p/>");
    d.answers();
    let mut request = d.make(3, &[]);
    request.ack = Some(1001);
    d.send(request);
    assert!(d.answers().is_empty(), "it is held");
}

#[test]
fn a4_a5_f22_acks_that_nobody_agreed_on_or_that_cannot_be_change_nothing() {
    for (attributes, ack) in
        [("ver='1.11'", 1001), ("ver='1.11' ack='1'", 1002), ("ver='1.11' ack='1'", u64::MAX)]
    {
        let mut d = Driver::with(attributes);
        d.post(1, &[]);
        d.push("<p/>");
        d.answers();
        let mut request = d.make(2, &[]);
        request.ack = Some(ack);
        d.send(request);
        d.answers();
        let again = d.post(1, &[]);
        assert_eq!(d.answers().last().unwrap().0, again);
        assert_eq!((d.ended(), d.confirmed()), (None, None), "{attributes} {ack}");
    }
}

#[test]
fn a5_an_ack_confirms_pushes_and_frees_the_answers_kept() {
    let mut d = Driver::with("wait='50' hold='1' ver='1.11' ack='1'");
    d.post(1, &[]);
    d.push("<p/>");
    let kept = d.manager.buffered();
    let mut request = d.make(2, &[]);
    request.ack = Some(1001);
    d.send(request);
    assert_eq!(d.confirmed(), Some(1));
    assert!(d.manager.buffered() < kept);
}

#[test]
fn a2_a_client_that_agreed_to_acks_and_waits_for_nothing_has_all_answers() {
    let mut d = Driver::with("wait='50' hold='1' ver='1.11' ack='1'");
    d.post(1, &[]);
    d.push("<p/>");
    d.post(2, &[]);
    assert_eq!(d.confirmed(), Some(1));
    let again = d.post(1, &[]);
    assert!(d.answers().iter().any(|(exchange, body)| *exchange == again && body.contains("<p/>")));
}

#[test]
fn under_backpressure_the_window_fills_and_nothing_is_released_early() {
    let mut d = Driver::new();
    d.manager.set_backpressure(true);
    let a = d.post(1, &["a"]);
    d.post(2, &["b"]);
    assert!(d.answers().is_empty());
    d.manager.set_backpressure(false);
    d.settle();
    assert_eq!(d.answers(), one(a, EMPTY));
}

#[test]
fn without_acks_the_window_confirms_pushes() {
    let mut d = Driver::new();
    d.post(1, &[]);
    d.push("<p/>");
    d.post(2, &[]);
    assert_eq!(d.confirmed(), None, "the client may send 2 while 1 is unanswered");
    d.post(3, &[]);
    assert_eq!(d.confirmed(), Some(1), "but not 3");
}

#[test]
fn y2_y5_keys_are_checked_in_rid_order_and_replays_are_not() {
    let keys = ["03dce970eb5c1f231aa3f7bf84c4ee5ec8cda71c", "7b797403693795befaa10e0117384927c22dccf3"];
    let newkey = "newkey='6757b18b27134d15bc709c7f22689a73acb3f00c' ver='1.11'";
    let keyed = |d: &Driver, offset: i64, key: &str| {
        let mut request = d.make(offset, &["x"]);
        request.key = Some(key.into());
        request
    };
    let mut d = Driver::with(newkey);
    let second = keyed(&d, 2, keys[0]);
    d.send(second);
    let first = keyed(&d, 1, keys[1]);
    d.send(first.clone());
    assert_eq!(d.delivered.len(), 2);
    d.send(first);
    assert_eq!(d.ended(), None, "a repeat is not checked against the key that is due now");
    let mut d = Driver::with(newkey);
    let bare = d.post(1, &["x"]);
    assert_eq!(d.answers(), one(bare, &terminated("item-not-found")));
    assert!(d.delivered.is_empty(), "what came without its key is not processed");
}

#[test]
fn s7_s8_an_answer_is_bounded_and_the_rest_waits_for_the_next_request() {
    let mut d = Driver::new();
    let big = format!("<p>{}</p>", "x".repeat(100_000));
    for _ in 0..3 {
        d.manager.send(Piece::new(big.as_str()));
    }
    let a = d.post(1, &[]);
    let answers = d.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].0, answers[0].1.matches("<p>").count()), (a, 2));
    let b = d.post(2, &[]);
    assert_eq!(d.answers(), one(b, &with(&big)));
    d.post(3, &[]);
    d.manager.push(Piece::new(big.as_str()));
    d.manager.push(Piece::new(big.as_str()));
    assert!(d.manager.room().is_some_and(|room| room < 100_000));
    d.manager.push(Piece::new(big.as_str()));
    assert!(d.manager.room().is_none(), "the answer is full");
}

#[test]
fn early_requests_are_bounded_in_bytes() {
    let mut d = Driver::new();
    d.manager.set_max_early(1_000);
    let mut request = d.make(2, &["x"]);
    request.cost = 1_001;
    let early = d.send(request);
    assert_eq!(d.answers(), one(early, &terminated("policy-violation")));
}

#[test]
fn h11_a_client_without_ver_gets_statuses() {
    let mut d = Driver::with("wait='50' hold='1'");
    d.post(9, &[]);
    assert_eq!(d.statuses, [404]);
    let mut d = Driver::new();
    d.post(9, &[]);
    assert_eq!(d.statuses, [200]);
}

#[test]
fn x9_x11_a_restart_hides_its_payloads_and_is_told() {
    let mut d = Driver::new();
    let mut request = d.make(1, &["ignored"]);
    request.restart = true;
    d.exchanges += 1;
    d.manager.request(request, ExchangeId(d.exchanges), d.now);
    d.collect();
    assert!(d.other.contains(&Output::Restart) && d.delivered.is_empty());
    d.manager.send(Piece::with_stream_prefix("<stream:features/>"));
    d.settle();
    assert_eq!(d.answers().len(), 1, "it is not held");
}

#[test]
fn an_idle_session_keeps_little() {
    let mut d = Driver::new();
    for i in 1..50 {
        d.post(i, &["data"]);
        d.push("<p>some text of the usual length, an answer to something, say</p>");
    }
    d.post(50, &[]);
    assert!(d.manager.buffered() < 512, "{} bytes", d.manager.buffered());
    assert!(size_of::<Manager<()>>() <= 640, "{} bytes", size_of::<Manager<()>>());
}
