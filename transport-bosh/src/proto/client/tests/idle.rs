//! S4: how long a connection on which a request is held may be idle.

use super::*;

fn keeping(keepalive: u64) -> Rig {
    let mut settings = settings();
    settings.keepalive = Some(seconds(keepalive));
    Rig::open_as(settings, SESSION)
}

#[test]
fn s4_the_held_request_is_freed_by_an_empty_one_in_time() {
    let mut rig = keeping(20);
    for held in 1_002..1_010 {
        rig.pass(Duration::from_millis(19_900));
        assert_eq!(rig.rids(), [held]);
        rig.pass(Duration::from_millis(100));
        assert_eq!(rig.rids(), [held, held + 1]);
        assert!(rig.posts[1].texts().is_empty());
        rig.empty(held);
        assert_eq!(rig.rids(), [held + 1], "held in its place");
        assert_eq!(rig.idle.pop(), Some(Idle::Survived(seconds(20))));
    }
}

#[test]
fn s4_what_is_sent_and_what_comes_begins_the_time_anew() {
    let mut rig = keeping(20);
    rig.pass(seconds(15));
    rig.send("one");
    rig.empty(1_002);
    rig.pass(seconds(15));
    assert_eq!(rig.rids(), [1_003]);
    rig.reply(1_003, &body("", &message("two")));
    rig.pass(seconds(15));
    assert_eq!(rig.rids(), [1_004]);
}

#[test]
fn s4_it_can_change_while_a_request_is_held() {
    let mut rig = keeping(40);
    rig.pass(seconds(10));
    rig.input(Input::KeepAlive(Some(seconds(12))));
    rig.pass(seconds(1));
    assert_eq!(rig.rids(), [1_002]);
    rig.pass(seconds(1));
    assert_eq!(rig.rids(), [1_002, 1_003]);
}

#[test]
fn k3_the_peers_polling_interval_is_kept_to() {
    let mut rig = keeping(1);
    rig.pass(seconds(3));
    assert_eq!(rig.rids(), [1_002]);
    rig.pass(seconds(1));
    assert_eq!(rig.rids(), [1_002, 1_003]);
    rig.pass(seconds(5));
    assert_eq!(rig.rids(), [1_002, 1_003], "and no third one is sent");
}

#[test]
fn s4_a_peer_that_answers_sooner_by_itself_is_left_to() {
    let mut rig = keeping(50);
    rig.pass(seconds(55));
    assert_eq!(rig.rids(), [1_002]);
    rig.empty(1_002);
    assert_eq!(rig.idle, [Idle::Survived(seconds(55))]);
}

#[test]
fn s4_nothing_is_freed_for_an_owner_who_can_take_nothing() {
    let mut rig = keeping(20);
    rig.input(Input::Hold(true));
    rig.pass(seconds(30));
    assert_eq!(rig.rids(), [1_002]);
}

#[test]
fn s4_a_connection_that_was_closed_while_it_was_idle_was_cut_if_the_peer_is_there() {
    let mut rig = keeping(40);
    rig.pass(seconds(12));
    rig.fail(1_002);
    assert_eq!(rig.rids(), [1_002], "asked again at once");
    assert_eq!(rig.idle, []);
    rig.pass(seconds(6));
    assert_eq!(rig.rids(), [1_002, 1_003], "and freed well before the next cut");
    rig.empty(1_002);
    assert_eq!(rig.idle, [Idle::Cut(seconds(12), true), Idle::Survived(seconds(6))]);
}

#[test]
fn s4_a_proxy_that_answers_in_the_peers_place_has_cut() {
    let mut rig = keeping(40);
    rig.pass(seconds(30));
    rig.reply_status(1_002, 504, "<html>Gateway Time-out</html>");
    rig.pass(seconds(1));
    rig.empty(1_002);
    assert_eq!(rig.idle[0], Idle::Cut(seconds(30), true));
}

#[test]
fn s4_a_peer_that_went_cut_nothing() {
    for kind in [ExchangeErrorKind::Unreachable, ExchangeErrorKind::Interrupted] {
        let mut rig = keeping(40);
        rig.pass(seconds(12));
        rig.fail(1_002);
        let exchange = rig.take(1_002).exchange;
        rig.input(Input::Failed { exchange, kind });
        rig.pass(seconds(2));
        rig.empty(1_002);
        assert!(!rig.idle.iter().any(|idle| matches!(idle, Idle::Cut(..))), "{:?}", rig.idle);
    }
}

#[test]
fn s4_a_connection_that_is_dead_without_a_sign_is_found_by_the_answer_that_is_due() {
    let mut rig = keeping(20);
    rig.pass(seconds(20));
    assert_eq!(rig.rids(), [1_002, 1_003]);
    rig.pass(Duration::from_millis(9_900));
    assert!(rig.posts.iter().all(|posted| !posted.post.fresh));
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.rids(), [1_002, 1_003]);
    assert!(rig.posts.iter().all(|posted| posted.post.fresh), "either may be the dead one");
    rig.empty(1_002);
    assert_eq!(rig.idle, [Idle::Cut(seconds(20), false)]);
    assert_eq!(rig.rids(), [1_003]);
}

#[test]
fn s4_a_peer_that_is_slow_to_answer_gets_more_time_with_each_repeat() {
    let mut rig = keeping(20);
    let mut repeats = Vec::new();
    for second in 0..200 {
        rig.pass(seconds(1));
        if rig.posts.last().is_some_and(|posted| posted.post.fresh) && rig.abandoned.len() > repeats.len() * 2
        {
            repeats.push(second + 1);
        }
    }
    assert!((3..=6).contains(&repeats.len()), "{repeats:?}");
}

#[test]
fn s4_without_being_told_no_empty_request_goes_next_to_a_held_one() {
    let mut rig = Rig::open();
    rig.pass(seconds(59));
    assert_eq!(rig.rids(), [1_002]);
    // Its answer was due at 50 s; asked for anew, it shows that the connection was dead.
    rig.input(Input::Refresh);
    rig.empty(1_002);
    assert_eq!(rig.idle, [Idle::Cut(seconds(50), false)]);
}
