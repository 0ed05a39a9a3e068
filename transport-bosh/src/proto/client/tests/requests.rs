//! Which requests are made.

use super::*;

#[test]
fn w5_the_first_request_has_a_rid_and_no_sid() {
    let rig = Rig::new(settings());
    let [creation] = &rig.posts[..] else { panic!("{:?}", rig.posts) };
    assert_eq!(creation.rid(), 1_001);
    assert_eq!(
        String::from_utf8_lossy(&creation.post.body),
        "<body rid='1001' to='example.net' xml:lang='en' ver='1.11' wait='50' hold='1' ack='1' xmpp:version='1.0' \
         xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh'/>"
    );
    assert_eq!(rig.payloads.len(), 0);
}

#[test]
fn i1_the_first_rid_leaves_room_to_count() {
    for seed in [0, 1, u64::MAX, 1 << 52, (1 << 53) - 1] {
        let mut machine = ClientMachine::new(settings(), seed, 0, beginning());
        machine.handle_input(beginning(), Input::Open);
        let Output::Post { post, .. } = machine.poll_output() else { panic!() };
        let body = Element::parse(&post.body, &Limits::default()).unwrap();
        let rid: u64 = body.attr("rid").unwrap().parse().unwrap();
        assert!(rid > 0 && rid <= 1 << 52, "{rid}");
    }
}

#[test]
fn w5_every_later_request_has_the_sid_and_the_next_rid() {
    let mut rig = Rig::open();
    for rid in 1_002..1_010 {
        assert_eq!(rig.rids(), [rid]);
        assert_eq!(rig.posts[0].body.attr("sid"), Some("s1"));
        rig.pass(seconds(40));
        rig.empty(rid);
    }
}

#[test]
fn i2_a_repeat_keeps_its_rid_and_its_bytes() {
    let mut rig = Rig::open();
    rig.send("one");
    let first = rig.posts.last().unwrap().post.body.clone();
    rig.fail(1_003);
    rig.pass(seconds(1));
    let again = rig.take(1_003);
    assert_eq!(again.post.body, first);
    assert!(again.post.fresh, "a repeat goes over a new connection");
    assert_eq!(rig.machine.stats().repeats, 1);
}

#[test]
fn k1_an_answer_makes_a_new_request_at_once() {
    let mut rig = Rig::open();
    rig.pass(seconds(50));
    rig.empty(1_002);
    assert_eq!(rig.rids(), [1_003]);
}

#[test]
fn k1_after_news_the_request_waits_a_moment_for_an_answer_to_carry() {
    let mut settings = settings();
    settings.gather = Duration::from_millis(2);
    let mut rig = Rig::open_as(settings, SESSION);
    rig.pass(seconds(1));
    rig.reply(1_002, &body("", &message("question")));
    assert_eq!(rig.rids(), [0_u64; 0]);
    rig.send("answer");
    assert_eq!(rig.rids(), [1_003]);
    assert_eq!(rig.posts[0].texts(), ["answer"]);
    rig.reply(1_003, &body("", &message("question without an answer")));
    rig.pass(Duration::from_millis(2));
    assert_eq!(rig.rids(), [1_004]);
}

#[test]
fn k2_never_more_than_requests_are_unanswered_but_for_the_goodbye() {
    let mut rig = Rig::open();
    for text in ["one", "two", "three"] {
        rig.send(text);
    }
    assert_eq!(rig.rids(), [1_002, 1_003]);
    assert!(!rig.machine.has_room());
    rig.input(Input::Close { payload: Some(stanza("bye")) });
    assert_eq!(rig.rids(), [1_002, 1_003, 1_004]);
    let goodbye = &rig.posts[2];
    assert_eq!(goodbye.body.attr("type"), Some("terminate"));
    assert_eq!(goodbye.texts(), ["two", "three", "bye"]);
}

#[test]
fn k2_the_number_of_requests_is_the_peers() {
    let mut rig = Rig::open_as(settings(), "sid='s' wait='50' hold='1' requests='3'");
    for text in ["one", "two", "three"] {
        rig.send(text);
    }
    assert_eq!(rig.rids(), [1_002, 1_003, 1_004]);
    let mut rig = Rig::open_as(settings(), "sid='s' wait='50' hold='1'");
    for text in ["one", "two"] {
        rig.send(text);
    }
    assert_eq!(rig.rids(), [1_002, 1_003], "two, if the peer does not say");
}

#[test]
fn k3_no_empty_request_goes_next_to_a_held_one() {
    let mut rig = Rig::open();
    rig.send("one");
    assert_eq!(rig.rids(), [1_002, 1_003]);
    // The connection manager frees the oldest and keeps the newest.
    rig.empty(1_002);
    assert_eq!(rig.rids(), [1_003]);
    rig.pass(seconds(30));
    assert_eq!(rig.rids(), [1_003]);
}

#[test]
fn k4_what_queues_up_goes_in_one_body_in_order() {
    let mut rig = Rig::open();
    for text in ["one", "two", "three", "four"] {
        rig.send(text);
    }
    rig.empty(1_002);
    assert_eq!(rig.rids(), [1_003, 1_004]);
    assert_eq!(rig.posts[1].texts(), ["two", "three", "four"]);
}

#[test]
fn k4_a_body_has_a_bound_and_a_payload_beyond_it_goes_alone() {
    let mut settings = settings();
    settings.max_request = 4_000;
    let mut rig = Rig::open_as(settings, SESSION);
    rig.send("first");
    for size in [1_000, 1_500, 10_000, 10] {
        rig.send(&"x".repeat(size));
    }
    let mut sizes = Vec::new();
    for rid in 1_003..1_007 {
        let carried = rig.take(rid);
        sizes.push(carried.texts().iter().map(String::len).collect::<Vec<_>>());
        rig.posts.insert(0, carried);
        rig.empty(rid - 1);
    }
    assert_eq!(sizes, [vec![5], vec![1_000, 1_500], vec![10_000], vec![10]]);
}

#[test]
fn k5_an_answer_may_take_the_wait_and_ten_seconds() {
    let mut rig = Rig::open();
    assert_eq!(rig.posts[0].post.timeout, seconds(60));
    let first = rig.posts[0].exchange;
    rig.pass(seconds(59));
    assert_eq!(rig.posts[0].exchange, first);
    rig.pass(seconds(1));
    assert_eq!(rig.abandoned, [first]);
    assert_eq!(rig.rids(), [1_002]);
    assert!(rig.posts[0].post.fresh);
}

#[test]
fn k7_the_time_of_an_answer_counts_from_the_sending() {
    let mut rig = Rig::open();
    for _ in 0..4 {
        rig.fail(1_002);
        while rig.posts.is_empty() {
            rig.pass(Duration::from_millis(100));
        }
    }
    let (last, sent) = (rig.posts[0].exchange, rig.now);
    rig.pass(seconds(59));
    assert_eq!(rig.posts[0].exchange, last, "posted at {sent:?} and already given up");
    rig.empty(1_002);
    assert_eq!(rig.ended, None);
}

#[test]
fn k8_the_wait_asked_for_is_below_the_time_outs_of_proxies() {
    assert!(ClientSettings::new("x").wait <= seconds(55));
    let rig = Rig::open_as(settings(), "sid='s' wait='600' hold='1' requests='2'");
    assert_eq!(rig.posts[0].post.timeout, seconds(60), "c4: a longer wait than asked for is not believed");
}

#[test]
fn k10_repeats_back_off_and_spread() {
    let delays = |jitter: u64| {
        let now = beginning();
        let mut machine = ClientMachine::new(settings(), 1, jitter, now);
        (0..8).map(|failures| machine.backoff(failures)).collect::<Vec<_>>()
    };
    let (a, b) = (delays(1), delays(2));
    assert_eq!((a[0], b[0]), (Duration::ZERO, Duration::ZERO));
    assert_ne!(a[1..], b[1..], "a fleet comes back in step");
    for delays in [a, b] {
        for (failures, delay) in (1..).zip(&delays[1..]) {
            let base = seconds(1 << (failures - 1)).min(timing::LONGEST_BACKOFF);
            assert!(*delay >= base / 2 && *delay <= base, "{delay:?} after {failures}");
        }
    }
}

#[test]
fn x8_the_request_after_success_is_the_restart_and_empty() {
    let mut rig = Rig::open();
    rig.send("auth");
    rig.empty(1_002);
    let exchange = rig.take(1_003).exchange;
    let reply = Reply::new(200, body("", "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>"));
    rig.machine.handle_input(rig.now, Input::Replied { exchange, reply });
    // As the log-in does it: in reaction to the payload, before anything else is asked of the machine.
    while !matches!(rig.machine.poll_output(), Output::Payload(_)) {}
    rig.machine.handle_input(rig.now, Input::Restart);
    rig.send("later");
    assert_eq!(rig.rids(), [1_004, 1_005]);
    let restart = &rig.posts[0];
    assert_eq!(restart.body.attr_ns(ns::XBOSH, "restart"), Some("true"));
    assert_eq!(restart.body.attr("to"), Some("example.net"));
    assert_eq!(restart.body.attr_ns(ns::XML, "lang"), Some("en"));
    assert_eq!(restart.texts(), [""; 0]);
    assert!(String::from_utf8_lossy(&restart.post.body).contains(" xmpp:restart='true'"));
}

#[test]
fn c6_without_features_in_the_first_answer_the_client_asks_for_them() {
    let mut rig = Rig::new(settings());
    rig.reply(1_001, &body(SESSION, ""));
    assert_eq!(rig.rids(), [1_002]);
    rig.reply(1_002, &body("", "<stream:features/>"));
    assert!(rig.payloads[0].is(ns::STREAMS, "features"));
}

#[test]
fn a2_a_request_tells_the_highest_answer_that_came_unless_nothing_is_outstanding() {
    let mut rig = Rig::open();
    assert_eq!(rig.posts[0].body.attr("ack"), None, "1001 is answered and nothing else was asked");
    rig.send("one");
    assert_eq!(rig.posts[1].body.attr("ack"), Some("1001"));
    rig.empty(1_002);
    rig.send("two");
    assert_eq!(rig.posts[1].body.attr("ack"), Some("1002"));
    let mut quiet = settings();
    quiet.acks = false;
    let mut rig = Rig::open_as(quiet, SESSION);
    rig.send("one");
    assert_eq!(rig.posts[1].body.attr("ack"), None);
}

#[test]
fn t8_a_session_that_can_only_poll_keeps_the_interval() {
    for granted in [
        "wait='0' hold='1' requests='2'",
        "wait='50' hold='0' requests='2'",
        "wait='50' hold='1' requests='1'",
    ] {
        let mut rig = Rig::open_as(settings(), &format!("sid='s' polling='5' {granted}"));
        assert_eq!(rig.rids(), [0_u64; 0], "a server in use counts from the creation on");
        rig.pass(seconds(5));
        assert_eq!(rig.rids(), [1_002]);
        rig.empty(1_002);
        rig.pass(seconds(4));
        assert_eq!(rig.rids(), [0_u64; 0]);
        rig.pass(seconds(1));
        assert_eq!(rig.rids(), [1_003]);
        rig.reply(1_003, &body("", &message("x")));
        assert_eq!(rig.rids(), [1_004], "what brought something may be followed at once");
        rig.empty(1_004);
        rig.send("not empty");
        assert_eq!(rig.rids(), [1_005]);
    }
}

#[test]
fn t52_a_peer_that_answers_at_once_does_not_make_this_end_spin() {
    let mut rig = Rig::open();
    let start = rig.now;
    let mut rounds = 0;
    while rig.now < start + seconds(60) {
        match rig.rids().first().copied() {
            Some(rid) => {
                rig.empty(rid);
                rounds += 1;
            }
            None => rig.pass(Duration::from_millis(100)),
        }
    }
    assert!(rounds < 30, "{rounds} rounds a minute");
    assert_eq!(rig.ended, None);
}

#[test]
fn held_back_it_asks_for_nothing_but_sends() {
    let mut rig = Rig::open();
    rig.input(Input::Hold(true));
    rig.reply(1_002, &body("", &message("x")));
    rig.pass(seconds(20));
    assert_eq!(rig.rids(), [0_u64; 0]);
    rig.send("one");
    assert_eq!(rig.rids(), [1_003]);
    rig.empty(1_003);
    rig.pass(seconds(200));
    rig.input(Input::Hold(false));
    assert_eq!(rig.rids(), [1_004]);
    rig.pass(seconds(50));
    assert_eq!(rig.ended, None, "the time held back is not the peer's silence");
}

#[test]
fn refresh_asks_again_on_new_connections_at_once() {
    let mut rig = Rig::open();
    rig.send("one");
    let old: Vec<ExchangeId> = rig.posts.iter().map(|posted| posted.exchange).collect();
    rig.pass(seconds(3));
    rig.input(Input::Refresh);
    assert_eq!(rig.abandoned, old);
    assert_eq!(rig.rids(), [1_002, 1_003]);
    assert!(rig.posts.iter().all(|posted| posted.post.fresh));
    rig.empty(1_002);
    rig.empty(1_003);
    assert_eq!(rig.rids(), [1_004]);
}

#[test]
fn confirmed_is_what_was_carried_by_an_answered_request() {
    let mut rig = Rig::open();
    rig.tagged("one", 1);
    rig.tagged("two", 2);
    rig.tagged("three", 3);
    assert_eq!(rig.confirmed, 0);
    rig.empty(1_002);
    assert_eq!(rig.confirmed, 0);
    rig.empty(1_003);
    assert_eq!(rig.confirmed, 1);
    // An answer to a later request tells that all before it was processed, in order.
    rig.tagged("four", 4);
    rig.empty(1_005);
    assert_eq!(rig.confirmed, 4);
}

#[test]
fn k2_requests_are_counted_from_the_lowest_unanswered_one() {
    let mut rig = Rig::open();
    rig.send("one");
    rig.empty(1_003);
    assert!(!rig.machine.has_room());
    rig.send("two");
    rig.send("three");
    assert_eq!(rig.rids(), [1_002], "the peer would keep the answer to it no longer");
    rig.empty(1_002);
    assert_eq!(rig.rids(), [1_004]);
    assert_eq!(rig.posts[0].texts(), ["two", "three"]);
    // One more is allowed for the goodbye (XEP-0124 §11).
    rig.send("four");
    rig.empty(1_005);
    rig.input(Input::Close { payload: None });
    assert_eq!(rig.rids(), [1_004, 1_006]);
}

#[test]
fn b2_a_request_has_no_more_elements_than_a_peer_reads() {
    let mut rig = Rig::open();
    rig.send("in the window");
    let children = 64;
    for _ in 0..32 {
        let payload =
            (0..children).fold(stanza(""), |stanza, _| stanza.with_child(Element::new("urn:x", "x")));
        rig.input(Input::Send { payload, tag: None });
    }
    let mut payloads = 0;
    for rid in 1_002.. {
        if payloads == 32 || rid > 1_020 {
            break;
        }
        if rid >= 1_004 {
            let posted = rig.posts.iter().find(|posted| posted.rid() == rid).expect("what is left goes on");
            let inside = posted.body.children().count();
            assert!(inside * (children + 1) <= 500, "{inside} payloads in one request");
            payloads += inside;
        }
        rig.empty(rid);
    }
    assert_eq!(payloads, 32);
}
