//! The agent against a plain model, in any order of events.

use proptest::prelude::*;

use super::*;

/// A plain reader's view of the agent: no phases, no outputs, just what is known to be true.
#[derive(Debug, Default)]
struct Model {
    maintenance: bool,
    stopped: bool,
    has_token: bool,
    /// The token was refused since it was last taken.
    token_refused: bool,
    has_pin: bool,
    running: Option<(Attempt, Op)>,
    session: Option<(Attempt, Instant)>,
    registered_once: bool,
    sent_away: bool,
    away: bool,
}

impl Model {
    fn see(&mut self, now: Instant, outputs: &[Output], wake: Option<Instant>) {
        for output in outputs {
            match output {
                Output::Run(attempt, op) => {
                    assert!(self.maintenance && !self.stopped, "{op:?} while off");
                    assert!(self.running.is_none(), "{op:?} beside {:?}", self.running);
                    match op {
                        Op::Enroll => {
                            assert!(self.has_pin && self.session.is_none());
                            assert!(!self.away, "a PIN is for the device's own relay");
                            assert!(!self.has_token || self.token_refused, "a good token needs no PIN");
                        }
                        Op::Register => assert!(self.has_token),
                        Op::Connect { deadline, .. } => {
                            assert!(self.has_token && self.session.is_none() && self.registered_once);
                            assert_eq!(*deadline, now + Duration::from_secs(30));
                        }
                        Op::Better { deadline, .. } => {
                            assert!(self.has_token && self.session.is_some());
                            assert_eq!(*deadline, now + Duration::from_secs(30));
                        }
                        Op::AskAlive { .. } => {
                            let (_, quiet_since) = self.session.expect("asked for a session that is none");
                            assert!(now >= quiet_since + Duration::from_secs(60), "asked too early");
                        }
                    }
                    self.running = Some((*attempt, op.clone()));
                }
                Output::Abort(attempt) => {
                    let (running, _) = self.running.take().expect("aborted nothing");
                    assert_eq!(running, *attempt);
                }
                Output::Move(place) => {
                    assert!(self.session.is_none() && self.running.is_none());
                    self.away = *place == Place::Away;
                    assert!(std::mem::take(&mut self.sent_away) || !self.away, "nobody sent it away");
                    self.registered_once = false;
                }
                Output::CloseSession => assert!(self.session.take().is_some(), "closed no session"),
                Output::Refresh => {
                    let (_, quiet_since) = self.session.as_mut().expect("refreshed no session");
                    *quiet_since = now;
                }
                _ => {}
            }
        }
        let at_rest = !self.maintenance || self.stopped;
        assert!(!at_rest || wake.is_none(), "wakes for nothing");
        if !at_rest && (self.has_token || self.has_pin) {
            let wake = wake.expect("it would sleep for ever");
            assert!(wake <= now + Duration::from_secs(3600 + 24), "it would sleep too long");
        }
    }
}

#[derive(Debug, Clone)]
enum Move {
    Maintenance(bool),
    Activate,
    Register,
    Pin,
    Succeed(bool),
    Fail(FailureKind, Option<u64>),
    Stale,
    Pushed,
    SentAway,
    Better,
    Ended(EndReason),
    Pass(u64),
    Wake,
}

fn moves() -> impl Strategy<Value = Move> {
    let kinds = prop::sample::select(vec![
        FailureKind::Refused,
        FailureKind::UnknownDevice,
        FailureKind::Rejected,
        FailureKind::Replaced,
        FailureKind::Passing,
    ]);
    let reasons = prop::sample::select(vec![
        EndReason::Goodbye,
        EndReason::Lost,
        EndReason::Expired,
        EndReason::Replaced,
        EndReason::Revoked,
        EndReason::Drain { retry_after: Some(Duration::from_secs(5)) },
        EndReason::Overloaded { retry_after: None },
        EndReason::Misbehaved,
    ]);
    prop_oneof![
        1 => any::<bool>().prop_map(Move::Maintenance),
        1 => Just(Move::Activate),
        1 => Just(Move::Register),
        1 => Just(Move::Pin),
        8 => any::<bool>().prop_map(Move::Succeed),
        2 => (kinds, proptest::option::of(any::<u64>())).prop_map(|(kind, after)| Move::Fail(kind, after)),
        1 => Just(Move::Stale),
        2 => Just(Move::Pushed),
        1 => Just(Move::SentAway),
        2 => Just(Move::Better),
        2 => reasons.prop_map(Move::Ended),
        2 => (0..200u64).prop_map(Move::Pass),
        4 => Just(Move::Wake),
    ]
}

proptest! {
    /// Whatever happens in whatever order: one thing at a time, in the start-up order, nothing while off, never asleep
    /// for good, never a question before its time; and once the faults stop, online.
    #[test]
    fn s1_s2_s3_s10_any_history_keeps_the_order_and_comes_back_online(
        moves in proptest::collection::vec(moves(), 1..150),
        has_token in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut rig = Rig::new(config(), Known { has_token, has_pin: !has_token, resume: None, seed });
        let mut model = Model { has_token, has_pin: !has_token, ..Model::default() };
        let mut sessions = 0;
        // Once at rest, the last word is "on" and "here is a PIN".
        let ending = [Move::Maintenance(true), Move::Pin].into_iter().chain(std::iter::repeat_n(Move::Succeed(true), 60));
        let (faulty, mut last) = (moves.len(), SessionState::Off);
        for (n, next) in moves.into_iter().chain(ending).enumerate() {
            let outputs = match next {
                Move::Maintenance(on) => {
                    model.maintenance = on;
                    rig.input(Input::Maintenance(on))
                }
                Move::Activate => rig.input(Input::Activate),
                Move::Register => rig.input(Input::Register),
                Move::Pin => {
                    model.has_pin = true;
                    rig.input(Input::Pin)
                }
                Move::Succeed(flag) => match model.running.take() {
                    None => match rig.wake {
                        Some(at) if n >= faulty && rig.state != SessionState::Online => {
                            rig.now = rig.now.max(at);
                            rig.input(Input::Woken)
                        }
                        _ => continue,
                    },
                    Some((attempt, op)) => {
                        let done = match op {
                            Op::Enroll => {
                                (model.has_token, model.has_pin, model.token_refused) = (true, false, false);
                                Done::Enrolled
                            }
                            Op::Register => {
                                model.registered_once = true;
                                Done::Registered
                            }
                            Op::Connect { .. } | Op::Better { .. } => {
                                sessions += 1;
                                model.session = Some((attempt, rig.now));
                                Done::Connected { session: session(sessions), resumed: flag }
                            }
                            Op::AskAlive { .. } => Done::Alive { known: flag },
                        };
                        rig.input(Input::Done(attempt, Ok(done)))
                    }
                },
                Move::Fail(kind, retry_after) => {
                    let Some((attempt, op)) = model.running.take() else { continue };
                    let refused = matches!(kind, FailureKind::Refused | FailureKind::UnknownDevice);
                    match op {
                        Op::Enroll if refused => model.has_pin = false,
                        Op::Register if kind == FailureKind::Rejected => model.registered_once = true,
                        _ => {}
                    }
                    model.token_refused |= refused && !matches!(op, Op::Enroll) && !model.away;
                    let retry_after = retry_after.map(Duration::from_secs);
                    rig.input(Input::Done(attempt, Err(Failure { retry_after, ..failure(kind) })))
                }
                Move::Stale => rig.input(Input::Done(0, Ok(Done::Registered))),
                Move::Pushed => {
                    let Some((attempt, quiet_since)) = &mut model.session else { continue };
                    *quiet_since = rig.now;
                    let attempt = *attempt;
                    rig.input(Input::Pushed(attempt))
                }
                Move::SentAway => {
                    let Some((attempt, _)) = model.session else { continue };
                    model.sent_away = true;
                    rig.input(Input::SentAway(attempt))
                }
                Move::Better => {
                    let Some((attempt, _)) = model.session else { continue };
                    rig.input(Input::Better(attempt))
                }
                Move::Ended(reason) => {
                    let Some((attempt, _)) = model.session.take() else { continue };
                    model.token_refused |= reason == EndReason::Revoked && !model.away;
                    rig.input(Input::Ended(attempt, reason))
                }
                Move::Pass(seconds) => {
                    rig.pass(seconds);
                    rig.input(Input::Woken)
                }
                Move::Wake => match rig.wake {
                    Some(at) => {
                        rig.now = rig.now.max(at);
                        rig.input(Input::Woken)
                    }
                    None => continue,
                },
            };
            model.see(rig.now, &outputs, rig.wake);
            last = rig.state;
        }
        prop_assert_eq!(last, SessionState::Online);
        prop_assert!(model.session.is_some());
    }
}
