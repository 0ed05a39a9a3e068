//! Which request is held, which answered, and what is given again.

use super::*;

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
    d.push("<p/>");
    assert_eq!(d.answers(), one(new, &with("<p/>")));
    assert_eq!(d.delivered, ["a"]);
}

#[test]
fn a_held_request_that_is_repeated_again_and_again_is_answered_after_its_wait_all_the_same() {
    let mut d = Driver::new();
    d.post(1, &[]);
    let mut last = 0;
    for _ in 0..24 {
        d.pass(seconds(2));
        last = d.post(1, &[]);
    }
    assert_eq!(d.ended(), None, "a keep-alive is no offence");
    d.answers();
    d.pass(seconds(2));
    assert_eq!(d.answers(), one(last, EMPTY));
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
