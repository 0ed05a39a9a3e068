//! L2: sent to another relay.

use super::*;

fn drained() -> EndReason {
    EndReason::Drain { retry_after: Some(Duration::from_secs(5)) }
}

/// Online at a relay that the device was sent to.
fn away() -> Rig {
    let mut rig = Rig::new(config(), Known { has_pin: true, ..known() });
    rig.online(1);
    let attempt = rig.attempt;
    assert_eq!(rig.input(Input::SentAway(attempt)), []);
    assert_eq!(rig.ended(drained()), []);
    assert!(rig.wait() >= Duration::from_secs(5), "{:?}", rig.wait());
    let outputs = rig.wake();
    assert_eq!(outputs, [Output::Move(Place::Away), Output::Run(rig.attempt, Op::Register)]);
    rig.online(2);
    rig
}

#[test]
fn l2_sent_away_the_device_registers_and_connects_there_and_stays_over_lost_sessions() {
    let mut rig = away();
    for n in 3..10 {
        assert_eq!(rig.ended(if n % 2 == 0 { EndReason::Lost } else { drained() }), []);
        let outputs = rig.wake();
        assert_eq!(outputs, [connect(&rig, Some(session(n - 1)))]);
        rig.online(n);
    }
}

#[test]
fn l2_sent_on_from_there_it_goes_on() {
    let mut rig = away();
    let attempt = rig.attempt;
    rig.input(Input::SentAway(attempt));
    rig.ended(drained());
    let outputs = rig.wake();
    assert_eq!(outputs, [Output::Move(Place::Away), Output::Run(rig.attempt, Op::Register)]);
}

#[test]
fn l2_whatever_fails_there_sends_it_home_and_nothing_there_judges_its_credential() {
    for kind in [FailureKind::Refused, FailureKind::UnknownDevice, FailureKind::Passing] {
        for after_registering in [false, true] {
            let mut rig = away();
            if !after_registering {
                let attempt = rig.attempt;
                rig.input(Input::SentAway(attempt));
            }
            rig.ended(drained());
            rig.wake();
            let outputs = rig.done(Err(failure(kind)));
            assert_eq!(outputs, [Output::Move(Place::Home)]);
            assert_eq!(rig.state, SessionState::Waiting);
            assert!(matches!(rig.events.last(), Some(Event::Failed { .. })), "{:?}", rig.events.last());
            let outputs = rig.wake();
            assert_eq!(outputs, [Output::Run(rig.attempt, Op::Register)], "its PIN is not shown anywhere");
            rig.online(9);
        }
    }
}

#[test]
fn l2_no_answer_in_time_there_sends_it_home_too() {
    let mut rig = away();
    rig.ended(EndReason::Lost);
    rig.wake();
    let outputs = rig.wake();
    assert!(outputs.contains(&Output::Move(Place::Home)), "{outputs:?}");
}

#[test]
fn l2_revoked_there_it_asks_at_home() {
    let mut rig = away();
    assert_eq!(rig.ended(EndReason::Revoked), [Output::Move(Place::Home)]);
    assert_eq!(rig.state, SessionState::Waiting);
    let outputs = rig.wake();
    assert_eq!(outputs, [Output::Run(rig.attempt, Op::Register)]);
}

#[test]
fn s1_switched_off_and_on_it_begins_at_home() {
    let mut rig = away();
    assert_eq!(rig.input(Input::Maintenance(false)), [Output::CloseSession, Output::Move(Place::Home)]);
    let outputs = rig.input(Input::Maintenance(true));
    assert_eq!(outputs, [Output::Run(rig.attempt, Op::Register)]);
}

#[test]
fn l2_what_was_said_on_a_session_that_is_over_sends_it_nowhere() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    let before = rig.attempt;
    rig.ended(EndReason::Lost);
    rig.input(Input::SentAway(before));
    let outputs = rig.wake();
    assert_eq!(outputs, [connect(&rig, Some(session(1)))]);
}
