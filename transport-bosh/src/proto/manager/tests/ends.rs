//! Silence, pauses and ends.

use super::*;

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
fn i12_a_gap_that_is_not_filled_ends_the_session() {
    let mut d = Driver::new();
    let early = d.post(2, &["two"]);
    d.pass(seconds(50));
    assert_eq!(d.answers(), one(early, &terminated("item-not-found")));
    assert!(d.delivered.is_empty());
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
fn h11_a_client_without_ver_gets_statuses() {
    let mut d = Driver::with("wait='50' hold='1'");
    d.post(9, &[]);
    assert_eq!(d.statuses, [404]);
    let mut d = Driver::new();
    d.post(9, &[]);
    assert_eq!(d.statuses, [200]);
}
