//! Bounds.

use relay_core::xml::Element;

use super::*;

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

#[test]
fn b2_an_answer_has_no_more_elements_than_a_peer_reads() {
    let mut d = Driver::new();
    // 64 requests of 16 objects each, as they come when many wait for one device.
    let payload = format!("<iq xmlns='jabber:client'><query>{}</query></iq>", "<object/>".repeat(16));
    for _ in 0..64 {
        d.manager.push(Piece::new(payload.as_str()));
    }
    let mut arrived = 0;
    for offset in 1..10 {
        d.post(offset, &[]);
        for (_, answer) in d.answers() {
            let limits = Limits::default();
            let body = Element::parse(answer.as_bytes(), &limits).expect("a peer can read every answer");
            assert!(answer.matches("<object/>").count() + 2 * body.children().count() <= 500);
            arrived += body.children().count();
        }
    }
    assert_eq!(arrived, 64, "all go, one answer after the other");
    // One payload always goes, whatever is in it.
    let large = format!("<iq xmlns='jabber:client'>{}</iq>", "<object/>".repeat(600));
    d.manager.push(Piece::new(large.as_str()));
    d.manager.push(Piece::new("<next/>"));
    d.post(10, &[]);
    assert!(d.answers().iter().any(|(_, answer)| *answer == with(&large)));
}
