//! What answers mean.

use super::*;

#[test]
fn i3_answers_are_taken_in_the_order_of_the_requests() {
    let mut rig = Rig::open();
    rig.send("one");
    rig.reply(1_003, &body("", &message("second")));
    assert_eq!(rig.texts(), [""; 0]);
    rig.reply(1_002, &body("", &message("first")));
    assert_eq!(rig.texts(), ["first", "second"]);
    assert_eq!(rig.rids(), [1_004]);
}

#[test]
fn k6_an_overtaken_request_is_asked_again_soon() {
    let mut rig = Rig::open();
    rig.send("one");
    rig.empty(1_003);
    let overtaken = rig.posts[0].exchange;
    rig.pass(Duration::from_millis(4_900));
    assert_eq!(rig.abandoned, []);
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.abandoned, [overtaken]);
    assert_eq!(rig.rids(), [1_002]);
    assert!(rig.posts[0].post.fresh);
    // Each further repeat waits twice as long.
    rig.pass(Duration::from_millis(9_900));
    assert_eq!(rig.abandoned.len(), 1);
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.abandoned.len(), 2);
    rig.reply(1_002, &body("", &message("late")));
    assert_eq!(rig.texts(), ["late"]);
}

#[test]
fn e3_the_first_terminate_ends_it_and_its_payloads_count() {
    let mut rig = Rig::open();
    rig.send("one");
    rig.reply(1_003, &body("type='terminate'", &message("last words")));
    assert_eq!(rig.texts(), ["last words"]);
    assert_eq!(rig.ended, Some(End::Goodbye));
    assert_eq!(rig.posts.len(), 0, "the sibling is abandoned, whatever it says");
    assert_eq!(rig.wake, None);
}

#[test]
fn f34_terminal_is_understood_as_terminate() {
    let mut rig = Rig::open();
    rig.reply(1_002, &body("type='terminal'", ""));
    assert_eq!(rig.ended, Some(End::Goodbye));
}

#[test]
fn e1_the_goodbye_is_over_when_it_is_answered() {
    let mut rig = Rig::open();
    rig.input(Input::Close { payload: Some(stanza("bye")) });
    assert_eq!(rig.rids(), [1_002, 1_003]);
    rig.reply(1_002, &body("type='terminate'", ""));
    assert_eq!(rig.ended, Some(End::Closed));

    let mut rig = Rig::open();
    rig.input(Input::Close { payload: None });
    rig.empty(1_002);
    assert_eq!(rig.ended, None);
    rig.reply(1_003, &body("", &message("last")));
    assert_eq!(rig.texts(), ["last"]);
    assert_eq!(rig.ended, Some(End::Closed));
}

#[test]
fn e1_a_goodbye_that_nobody_answers_is_over_in_time() {
    let mut rig = Rig::open();
    rig.input(Input::Close { payload: None });
    rig.fail(1_003);
    rig.pass(Duration::from_millis(4_999));
    assert_eq!(rig.ended, None);
    assert_eq!(rig.rids(), [1_002, 1_003], "it is repeated like any other");
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.ended, Some(End::Closed));
}

#[test]
fn e6_every_condition_ends_it_even_one_nobody_knows() {
    for (attributes, inside, end) in [
        ("condition='item-not-found'", "", End::Condition(TerminalCondition::ItemNotFound)),
        (
            "condition='policy-violation'",
            "<x xmlns='urn:x'/>",
            End::Condition(TerminalCondition::PolicyViolation),
        ),
        (
            "condition='gone-fishing'",
            "<x xmlns='urn:x'>y</x>",
            End::Condition(TerminalCondition::UndefinedCondition),
        ),
        (
            "condition='remote-stream-error'",
            "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>x</text></stream:error>",
            End::StreamError("conflict".into()),
        ),
        (
            "condition='remote-stream-error'",
            "<text xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>",
            End::StreamError("system-shutdown".into()),
        ),
        ("condition='remote-stream-error'", "", End::Condition(TerminalCondition::RemoteStreamError)),
    ] {
        let mut rig = Rig::open();
        rig.reply(1_002, &body(&format!("type='terminate' {attributes}"), inside));
        assert_eq!(rig.ended, Some(end), "{attributes}");
    }
}

#[test]
fn e7_a_recoverable_error_repeats_it_and_every_earlier_one_lowest_first() {
    let mut rig = Rig::open();
    rig.send("one");
    let bodies: Vec<Bytes> = rig.posts.iter().map(|posted| posted.post.body.clone()).collect();
    rig.reply(1_003, &body("type='error'", ""));
    assert_eq!(rig.rids(), [1_002, 1_003]);
    assert_eq!(rig.posts.iter().map(|posted| posted.post.body.clone()).collect::<Vec<_>>(), bodies);
    assert_eq!(rig.ended, None);
}

#[test]
fn e7_an_error_to_an_exchange_that_was_superseded_says_nothing() {
    let mut rig = Rig::open();
    let old = rig.posts[0].exchange;
    rig.input(Input::Refresh);
    let new = rig.posts[0].exchange;
    rig.input(Input::Replied { exchange: old, reply: Reply::new(200, body("type='error'", "")) });
    assert_eq!(rig.posts[0].exchange, new);
    assert_eq!(rig.machine.stats().repeats, 1);
}

#[test]
fn t52_errors_without_end_are_met_with_patience() {
    // So speaks a connection manager behind a proxy that doubles every POST, too.
    let mut rig = Rig::open();
    let (start, mut errors) = (rig.now, 0);
    while rig.now < start + seconds(300) {
        match rig.rids()[..] {
            [] => rig.pass(Duration::from_millis(100)),
            _ => {
                rig.reply(1_002, &body("type='error'", ""));
                errors += 1;
            }
        }
    }
    assert!(errors < 80, "{errors} repeats in five minutes");
    assert_eq!(rig.ended, None);
}

#[test]
fn h12_statuses_that_are_a_proxys_repeat_the_request() {
    for status in [204, 301, 302, 408, 425, 429, 500, 502, 503, 504, 524] {
        let mut rig = Rig::open();
        rig.reply_status(1_002, status, "<html><body>502</body></html>");
        assert_eq!(rig.ended, None, "{status}");
        assert_eq!(rig.rids(), [1_002], "{status}");
    }
}

#[test]
fn h12_other_statuses_end_the_session() {
    for (status, reason) in [
        (400, EndReason::Misbehaved),
        (403, EndReason::Lost),
        (404, EndReason::Expired),
        (410, EndReason::Lost),
        (413, EndReason::Lost),
    ] {
        let mut rig = Rig::open();
        rig.reply_status(1_002, status, "");
        assert_eq!(rig.ended.map(|end| end.reason()), Some(reason), "{status}");
    }
}

#[test]
fn h12_retry_after_is_kept_to_but_not_beyond_the_sessions_life() {
    for (asked, waited) in [(5, 5), (1_000_000_000, 30)] {
        let mut rig = Rig::open();
        let exchange = rig.take(1_002).exchange;
        let reply = Reply::new(503, "").with_retry_after(Some(seconds(asked)));
        rig.input(Input::Replied { exchange, reply });
        rig.pass(seconds(waited - 1));
        assert_eq!(rig.rids(), [0_u64; 0]);
        rig.pass(seconds(1));
        assert_eq!(rig.rids(), [1_002]);
    }
}

#[test]
fn f1_a_page_of_a_proxy_is_no_answer_whatever_its_status() {
    for page in [
        "<html><body>Please log in to this hotel</body></html>",
        "<!DOCTYPE html><html></html>",
        "",
        "<body xmlns='http://www.w3.org/1999/xhtml'/>",
        "<body xmlns='http://jabber.org/protocol/httpbind'><message xmlns='jabber:client'>cut off he",
    ] {
        let mut rig = Rig::open();
        rig.reply(1_002, page);
        assert_eq!(rig.rids(), [1_002], "{page}");
        rig.reply(1_002, &body("", &message("x")));
        assert_eq!(rig.texts(), ["x"]);
    }
    let mut rig = Rig::open();
    for _ in 0..20 {
        if rig.ended.is_none() {
            rig.reply(1_002, "<html/>");
            rig.pass(seconds(8));
        }
    }
    assert!(matches!(rig.ended, Some(End::Misbehaved(_))), "{:?}", rig.ended);
}

#[test]
fn a_session_is_given_up_when_the_peer_has_done_so_too() {
    let mut rig = Rig::open();
    let start = rig.now;
    while rig.ended.is_none() {
        assert!(rig.now < start + seconds(200), "never given up");
        if rig.rids().is_empty() {
            rig.pass(Duration::from_millis(500));
        } else {
            rig.fail(1_002);
        }
    }
    assert_eq!(rig.ended, Some(End::Silent));
    assert!(rig.now >= start + seconds(110), "wait and inactivity were not over");
    assert!(rig.now < start + seconds(112));
    assert_eq!(rig.reachable, [true, false]);
}

#[test]
fn an_answer_after_failures_goes_on_where_it_was() {
    let mut rig = Rig::open();
    rig.fail(1_002);
    rig.fail(1_002);
    assert_eq!(rig.reachable, [true, false]);
    rig.pass(seconds(1));
    rig.reply(1_002, &body("", &message("x")));
    assert_eq!(rig.reachable, [true, false, true]);
    assert_eq!((rig.texts(), rig.rids()), (vec!["x".to_owned()], vec![1_003]));
}

#[test]
fn a3_a_report_of_a_lost_answer_asks_again_for_it() {
    let mut rig = Rig::open();
    rig.send("one");
    rig.reply(1_002, &body("report='1003' time='100'", ""));
    assert_eq!(rig.abandoned, [], "it may well be under way");
    let mut rig = Rig::open();
    rig.send("one");
    rig.reply(1_002, &body("report='1003' time='6000'", ""));
    assert_eq!(rig.abandoned.len(), 1);
    assert_eq!(rig.rids(), [1_003]);
}

#[test]
fn c5_a_sid_on_every_answer_is_nothing_new() {
    let mut rig = Rig::open();
    rig.pass(seconds(50));
    rig.reply(1_002, &body("sid='s1' authid='x'", ""));
    assert_eq!(rig.posts[0].body.attr("sid"), Some("s1"));
    rig.reply(1_003, &body("sid='another'", ""));
    assert_eq!(rig.posts[0].body.attr("sid"), Some("s1"));
}

#[test]
fn a_creation_that_fails_is_not_repeated() {
    let mut rig = Rig::new(settings());
    rig.fail(1_001);
    assert_eq!(rig.ended, Some(End::Unreachable(ExchangeErrorKind::Interrupted)));
    for (status, kind) in [
        (429, ErrorKind::Overloaded),
        (503, ErrorKind::Overloaded),
        (502, ErrorKind::Unreachable),
        (404, ErrorKind::Expired),
        (302, ErrorKind::Unreachable),
    ] {
        let mut rig = Rig::new(settings());
        rig.reply_status(1_001, status, "");
        assert_eq!(rig.ended.unwrap().refusal().kind, kind, "{status}");
    }
    let mut rig = Rig::new(settings());
    let exchange = rig.take(1_001).exchange;
    let reply = Reply::new(503, "").with_retry_after(Some(seconds(1_000_000_000)));
    rig.input(Input::Replied { exchange, reply });
    assert_eq!(rig.ended.unwrap().refusal().retry_after, Some(seconds(3_600)), "t52");
    let mut rig = Rig::new(settings());
    rig.pass(seconds(20));
    assert_eq!(rig.ended, Some(End::Unreachable(ExchangeErrorKind::TimedOut)));
    for page in
        [&body("", ""), &body("sid=''", ""), &body(&format!("sid='{}'", "x".repeat(600)), ""), "<html/>"]
    {
        let mut rig = Rig::new(settings());
        rig.reply(1_001, page);
        assert!(matches!(rig.ended, Some(End::Misbehaved(_))), "{page}");
    }
    let mut rig = Rig::new(settings());
    rig.reply(1_001, &body("type='terminate' condition='host-unknown'", ""));
    assert_eq!(rig.ended.unwrap().refusal().kind, ErrorKind::Unsupported);
}

#[test]
fn w7_numbers_that_are_none_or_too_large_do_no_harm() {
    let granted = "sid='s' wait='-1' hold='x' requests='99999999999999999999' inactivity='4294967297' polling='' ver='9'";
    let mut rig = Rig::open_as(settings(), granted);
    assert_eq!(rig.posts[0].post.timeout, seconds(60));
    for i in 0..20 {
        rig.send(&i.to_string());
    }
    assert_eq!(rig.posts.len(), 8);
    let mut rig = Rig::open_as(settings(), "sid='s' wait='50' hold='1' requests='0'");
    rig.pass(seconds(5));
    assert_eq!(rig.posts.len(), 1);
}

#[test]
fn w1_the_wrapper_is_known_by_its_namespace() {
    let mut rig = Rig::open();
    let answer = "<?xml version='1.0'?>\n<b:body xmlns:b='http://jabber.org/protocol/httpbind'>\n \
                  <message xmlns='jabber:client'>x</message>\n</b:body>\n";
    rig.reply(1_002, answer);
    assert_eq!(rig.texts(), ["x"]);
}

#[test]
fn w10_stanzas_that_inherit_the_wrappers_namespace_are_stanzas() {
    let mut rig = Rig::open();
    let inside = "<message><body>hi</body><x xmlns='urn:x'/></message><presence/><iq/><other/>";
    rig.reply(1_002, &body("", inside));
    let [message, presence, iq, other] = &rig.payloads[..] else { panic!("{:?}", rig.payloads) };
    assert!(
        message.is(ns::CLIENT, "message") && presence.is(ns::CLIENT, "presence") && iq.is(ns::CLIENT, "iq")
    );
    assert!(message.child(ns::CLIENT, "body").is_some() && message.child("urn:x", "x").is_some());
    assert!(other.is(ns::BOSH, "other"));
}

#[test]
fn closing_before_there_is_a_session_is_over_at_once() {
    let mut rig = Rig::new(settings());
    rig.input(Input::Close { payload: None });
    assert_eq!(rig.ended, Some(End::Closed));
    rig.input(Input::Open);
    rig.send("x");
    rig.pass(seconds(100));
    assert_eq!(rig.posts.len(), 0);
}

#[test]
fn x7_a_challenge_may_come_on_the_older_request() {
    let mut rig = Rig::open();
    rig.send("auth");
    assert_eq!(rig.rids(), [1_002, 1_003]);
    let exchange = rig.take(1_002).exchange;
    let challenge = body("", "<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>eA==</challenge>");
    rig.input(Input::Replied { exchange, reply: Reply::new(200, challenge) });
    assert!(rig.payloads[0].is(ns::SASL, "challenge"));
    assert_eq!(rig.rids(), [1_003], "what carried the auth is the one that is held now");
    rig.send("response");
    assert_eq!(rig.rids(), [1_003, 1_004]);
}

#[test]
fn x16_errors_in_stanzas_are_payloads() {
    let mut rig = Rig::open();
    rig.reply(1_002, &body("", "<message xmlns='jabber:client' type='error'>x</message>"));
    assert_eq!((rig.texts(), &rig.ended), (vec!["x".to_owned()], &None));
}

#[test]
fn m1_a_stream_that_is_named_is_not_named_back() {
    let mut rig = Rig::open_as(
        settings(),
        &format!("{SESSION} stream='first' authid='a' charsets='x y' accept='gzip'"),
    );
    rig.send("one");
    for posted in &rig.posts {
        assert_eq!(posted.body.attr("stream"), None);
    }
    rig.reply(1_002, &body("stream='first'", &message("x")));
    assert_eq!(rig.texts(), ["x"]);
}

#[test]
fn f32_a_session_that_is_gone_says_so_at_any_time() {
    let mut rig = Rig::open();
    rig.pass(seconds(49));
    rig.reply(1_002, &body("type='terminate' condition='item-not-found'", ""));
    assert_eq!(rig.ended.map(|end| end.reason()), Some(EndReason::Expired));
}

#[test]
fn f28_neither_sid_nor_payloads_are_shown() {
    let mut rig = Rig::new(settings());
    let exchange = rig.take(1_001).exchange;
    let input = Input::Replied {
        exchange,
        reply: Reply::new(200, body("sid='s1-secret' requests='2'", &message("x"))),
    };
    let mut shown = format!("{input:?}");
    rig.machine.handle_input(rig.now, input);
    let secret = || Element::new(ns::SASL, "auth").with_text("AGRldjEAczNjcmV0LTE=");
    let send = Input::Send { payload: secret(), tag: None };
    shown.push_str(&format!("{send:?}"));
    rig.machine.handle_input(rig.now, send);
    loop {
        let output = rig.machine.poll_output();
        shown.push_str(&format!("{output:?} {:?}", rig.machine));
        if matches!(output, Output::WakeAt(_)) {
            break;
        }
    }
    assert!(!shown.contains("secret") && !shown.contains("AGRl"), "{shown}");
}
