//! Acknowledgements and keys.

use super::*;

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
    let big = format!("<p>{}</p>", "x".repeat(1_000));
    d.manager.push(Piece::new(big.as_str()));
    d.settle();
    assert!(d.manager.buffered() > 1_000);
    let mut request = d.make(2, &[]);
    request.ack = Some(1001);
    d.send(request);
    assert_eq!(d.confirmed(), Some(1));
    assert!(d.manager.buffered() < 512);
    // A copy of the first request that comes late is no reason to end the session.
    d.answers();
    let late = d.post(1, &[]);
    assert_eq!(d.answers()[0].0, late);
    assert_eq!(d.ended(), None);
}

#[test]
fn i6_with_acks_every_answer_that_the_client_lacks_is_kept() {
    let mut d = Driver::with("wait='50' hold='1' ver='1.11' ack='1'");
    d.post(1, &[]);
    d.push("<lost/>");
    d.answers();
    for i in 2..=40 {
        let mut request = d.make(i, &[]);
        request.ack = Some(1000);
        d.send(request);
        d.push("<p/>");
    }
    d.answers();
    assert_eq!(d.confirmed(), None);
    let again = d.post(1, &[]);
    assert_eq!(d.answers(), one(again, &with("<lost/>")));
    // But not for ever.
    for i in 41..=70 {
        let mut request = d.make(i, &[]);
        request.ack = Some(1000);
        d.send(request);
        d.push("<p/>");
    }
    d.post(1, &[]);
    assert_eq!(d.ended(), Some(End::Failed(TerminalCondition::ItemNotFound)));
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
