mod away;
mod model;

use super::*;
use crate::backoff::ReconnectConfig;

fn session(n: u64) -> SessionId {
    SessionId::new(&format!("session-{n}")).unwrap()
}

fn config() -> AgentConfig {
    AgentConfig {
        keepalive: Some(Duration::from_secs(60)),
        on_quiet: OnQuiet::Ask,
        answer_within: Duration::from_secs(10),
        step_within: Duration::from_secs(30),
        reconnect: ReconnectConfig::default(),
    }
}

fn known() -> Known {
    Known { has_token: true, has_pin: false, resume: None, seed: 1 }
}

fn failure(kind: FailureKind) -> Failure {
    Failure { kind, words: "words".into(), retry_after: None }
}

/// An agent under a clock of its own.
struct Rig {
    now: Instant,
    agent: Agent,
    wake: Option<Instant>,
    events: Vec<Event>,
    state: SessionState,
    attempt: Attempt,
}

impl Rig {
    fn new(config: AgentConfig, known: Known) -> Self {
        let agent = Agent::new(config, known);
        Self {
            now: crate::now(),
            agent,
            wake: None,
            events: Vec::new(),
            state: SessionState::Off,
            attempt: 0,
        }
    }

    /// What the shell is to do.
    fn input(&mut self, input: Input) -> Vec<Output> {
        self.agent.handle_input(self.now, input);
        let mut outputs = Vec::new();
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Event(event) => self.events.push(event),
                Output::State(state) => self.state = state,
                Output::Run(attempt, op) => {
                    self.attempt = attempt;
                    outputs.push(Output::Run(attempt, op));
                }
                other => outputs.push(other),
            }
        }
        self.wake = self.agent.wake_at();
        outputs
    }

    fn ops(&mut self, input: Input) -> Vec<Op> {
        let op = |output| match output {
            Output::Run(_, op) => Some(op),
            _ => None,
        };
        self.input(input).into_iter().filter_map(op).collect()
    }

    fn done(&mut self, result: Result<Done, Failure>) -> Vec<Output> {
        self.input(Input::Done(self.attempt, result))
    }

    fn wait(&self) -> Duration {
        self.wake.expect("the agent waits for something") - self.now
    }

    fn wake(&mut self) -> Vec<Output> {
        self.now = self.wake.expect("the agent waits for something");
        self.input(Input::Woken)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Goes online with session `n`.
    fn online(&mut self, n: u64) {
        if self.state == SessionState::Off {
            self.input(Input::Maintenance(true));
        }
        for _ in 0..3 {
            if matches!(self.agent.phase, Phase::Online { .. }) {
                break;
            }
            let Some(running) = &self.agent.running else { panic!("nothing runs: {:?}", self.agent) };
            let done = match running.step {
                Some(Step::Enroll) => Done::Enrolled,
                Some(Step::Register) => Done::Registered,
                _ => Done::Connected { session: session(n), resumed: false },
            };
            self.done(Ok(done));
        }
        self.input(Input::Pushed(self.attempt));
        assert_eq!(self.state, SessionState::Online);
    }

    fn ended(&mut self, reason: EndReason) -> Vec<Output> {
        let Phase::Online { attempt, .. } = self.agent.phase else { panic!("not online: {:?}", self.agent) };
        self.input(Input::Ended(attempt, reason))
    }
}

fn connect(rig: &Rig, resume: Option<SessionId>) -> Output {
    Output::Run(rig.attempt, Op::Connect { resume, deadline: rig.now + Duration::from_secs(30) })
}

#[test]
fn s2_start_up_is_register_then_session() {
    let mut rig = Rig::new(config(), known());
    assert_eq!(rig.ops(Input::Maintenance(true)), [Op::Register]);
    assert_eq!(rig.state, SessionState::Starting);
    let outputs = rig.done(Ok(Done::Registered));
    assert_eq!(outputs, [connect(&rig, None)]);
    assert_eq!(rig.done(Ok(Done::Connected { session: session(1), resumed: false })), []);
    assert_eq!(rig.state, SessionState::Starting);
    let attempt = rig.attempt;
    rig.input(Input::Pushed(attempt));
    assert_eq!(rig.state, SessionState::Online);
}

#[test]
fn p2_it_is_online_once_a_push_came_through_or_is_taken_to_be_after_a_while() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    rig.done(Ok(Done::Registered));
    rig.done(Ok(Done::Connected { session: session(1), resumed: true }));
    assert_eq!((rig.state, rig.wait()), (SessionState::Starting, Duration::from_secs(10)));
    rig.wake();
    assert_eq!(rig.state, SessionState::Online);
    assert_eq!(rig.events.last(), Some(&Event::Online { resumed: true }));
    assert_eq!(rig.wait(), Duration::from_secs(60), "quiet since a fresh connection was opened");
}

#[test]
fn x1_a_pin_is_traded_for_a_credential_before_anything_else() {
    let mut rig = Rig::new(config(), Known { has_token: false, has_pin: true, ..known() });
    assert_eq!(rig.ops(Input::Maintenance(true)), [Op::Enroll]);
    assert_eq!(rig.done(Ok(Done::Enrolled)), [Output::Run(2, Op::Register)]);
    assert_eq!(rig.events.last(), Some(&Event::Enrolled));
}

#[test]
fn x1_a_refused_pin_is_never_shown_again() {
    let mut rig = Rig::new(config(), Known { has_token: false, has_pin: true, ..known() });
    rig.input(Input::Maintenance(true));
    assert_eq!(rig.done(Err(failure(FailureKind::Refused))), []);
    assert_eq!((rig.state, rig.wake), (SessionState::Refused, None));
    assert_eq!(rig.ops(Input::Activate), []);
    assert_eq!(rig.ops(Input::Pin), [Op::Enroll]);
}

#[test]
fn s1_off_calls_nobody_and_switching_starts_and_cleanly_ends_the_session() {
    let mut rig = Rig::new(config(), known());
    for input in [Input::Woken, Input::Activate, Input::Register, Input::Pin, Input::Maintenance(false)] {
        assert_eq!(rig.input(input), []);
        assert_eq!(rig.wake, None);
    }
    rig.online(1);
    assert_eq!(rig.input(Input::Maintenance(false)), [Output::CloseSession]);
    assert_eq!((rig.state, rig.wake), (SessionState::Off, None));
    assert_eq!(rig.ops(Input::Maintenance(true)), [Op::Register], "it starts as it did at first");
}

#[test]
fn s1_switching_off_abandons_what_is_under_way() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    let attempt = rig.attempt;
    assert_eq!(rig.input(Input::Maintenance(false)), [Output::Abort(attempt)]);
    assert_eq!(rig.input(Input::Done(attempt, Ok(Done::Registered))), [], "too late to matter");
    assert_eq!(rig.state, SessionState::Off);
}

#[test]
fn s3_when_nothing_was_pushed_the_relay_is_asked_and_a_known_session_gets_a_fresh_connection() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    assert_eq!(rig.wait(), Duration::from_secs(60));
    let outputs = rig.wake();
    assert_eq!(outputs, [Output::Run(rig.attempt, Op::AskAlive { session: session(1) })]);
    assert_eq!(rig.done(Ok(Done::Alive { known: true })), [Output::Refresh]);
    assert_eq!(rig.events.last(), Some(&Event::Survival { known: Some(true) }));
    assert_eq!(rig.wait(), Duration::from_secs(60));
}

#[test]
fn s3_a_push_puts_the_question_off() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    let attempt = rig.attempt;
    rig.pass(59);
    assert_eq!(rig.input(Input::Pushed(attempt)), []);
    assert_eq!(rig.wait(), Duration::from_secs(60));
    assert_eq!(rig.input(Input::Pushed(attempt - 1)), [], "of a session before this one");
}

#[test]
fn s3_an_unknown_session_gets_a_new_one_without_registering() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    rig.wake();
    let outputs = rig.done(Ok(Done::Alive { known: false }));
    assert_eq!(outputs, [Output::CloseSession, connect(&rig, None)]);
}

#[test]
fn s3_an_unknown_device_registers_again() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    rig.wake();
    let outputs = rig.done(Err(failure(FailureKind::UnknownDevice)));
    assert_eq!(outputs, [Output::CloseSession, Output::Run(rig.attempt, Op::Register)]);
}

#[test]
fn s3_no_answer_in_ten_seconds_is_a_new_session() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    rig.wake();
    let asked = rig.attempt;
    assert_eq!(rig.wait(), Duration::from_secs(10));
    let outputs = rig.wake();
    // Whatever is in flight carries over if the relay does know the session after all.
    assert_eq!(outputs, [Output::Abort(asked), Output::CloseSession, connect(&rig, Some(session(1)))]);
    assert_eq!(rig.events.last(), Some(&Event::Survival { known: None }));
}

#[test]
fn s3_the_alternatives_reopen_renew_or_do_nothing() {
    let mut rig = Rig::new(AgentConfig { on_quiet: OnQuiet::Reopen, ..config() }, known());
    rig.online(1);
    assert_eq!(rig.wake(), [Output::Refresh]);
    assert_eq!(rig.wait(), Duration::from_secs(60));

    let mut rig = Rig::new(AgentConfig { on_quiet: OnQuiet::NewSession, ..config() }, known());
    rig.online(1);
    let outputs = rig.wake();
    assert_eq!(outputs, [Output::CloseSession, connect(&rig, None)]);

    let mut rig = Rig::new(AgentConfig { on_quiet: OnQuiet::Off, ..config() }, known());
    rig.online(1);
    assert_eq!(rig.wake, None);
}

#[test]
fn s10_a_lost_session_comes_back_after_a_jittered_wait_on_the_session_it_had() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    assert_eq!(rig.ended(EndReason::Lost), []);
    assert_eq!(rig.state, SessionState::Waiting);
    assert!(rig.wait() <= Duration::from_secs(2));
    let outputs = rig.wake();
    assert_eq!(outputs, [connect(&rig, Some(session(1)))], "registered already: straight to the session");
}

#[test]
fn s10_it_tries_for_ever_and_never_longer_apart_than_the_widest_window() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    for _ in 0..10_000 {
        rig.done(Err(failure(FailureKind::Passing)));
        assert!(rig.wait() <= Duration::from_secs(24));
        assert_eq!(rig.wake().len(), 1);
    }
}

#[test]
fn s10_the_window_starts_anew_only_after_a_session_that_lived() {
    let mut rig = Rig::new(config(), known());
    let mut widest = Duration::ZERO;
    for _ in 0..200 {
        rig.online(1);
        rig.pass(170);
        rig.ended(EndReason::Lost);
        widest = widest.max(rig.wait());
        rig.wake();
    }
    assert!(widest > Duration::from_secs(20), "short-lived sessions must not start it anew: {widest:?}");
    for _ in 0..200 {
        rig.online(1);
        rig.pass(180);
        rig.ended(EndReason::Lost);
        assert!(rig.wait() <= Duration::from_secs(2));
        rig.wake();
    }
}

#[test]
fn s10_a_relay_that_drains_says_when_to_come_back() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    rig.ended(EndReason::Drain { retry_after: Some(Duration::from_secs(15)) });
    assert!((15..=30).contains(&rig.wait().as_secs()), "{:?}", rig.wait());
    rig.wake();
    rig.online(2);
    rig.ended(EndReason::Overloaded { retry_after: Some(Duration::from_secs(1_000_000_000)) });
    assert!(rig.wait() <= Duration::from_secs(3600 + 24), "T52: {:?}", rig.wait());
}

#[test]
fn s10_a_step_that_hangs_is_given_up() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    let attempt = rig.attempt;
    assert_eq!(rig.wait(), Duration::from_secs(30));
    assert_eq!(rig.wake(), [Output::Abort(attempt)]);
    assert_eq!(rig.state, SessionState::Waiting);
}

#[test]
fn s10_a_refused_credential_is_said_and_shown_again_slowly() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    for _ in 0..20 {
        assert_eq!(rig.done(Err(failure(FailureKind::Refused))), []);
        assert_eq!(rig.state, SessionState::Refused);
        assert!(matches!(rig.events.last(), Some(Event::CredentialRefused { retry_in: Some(_), .. })));
        assert!(
            rig.wait() >= Duration::from_secs(450) && rig.wait() <= Duration::from_secs(3600),
            "{:?}",
            rig.wait()
        );
        rig.wake();
    }
    rig.online(1);
    rig.ended(EndReason::Revoked);
    assert_eq!(rig.state, SessionState::Refused);
}

#[test]
fn x1_a_refused_token_gives_way_to_a_pin_that_was_not_tried() {
    let mut rig = Rig::new(config(), Known { has_pin: true, ..known() });
    rig.input(Input::Maintenance(true));
    let outputs = rig.done(Err(failure(FailureKind::Refused)));
    assert_eq!(outputs, [Output::Run(rig.attempt, Op::Enroll)]);
    // A PIN from the device's first days: the token is still the best there is.
    assert_eq!(rig.done(Err(failure(FailureKind::Refused))), []);
    assert_eq!(rig.state, SessionState::Refused);
    let outputs = rig.wake();
    assert_eq!(outputs, [Output::Run(rig.attempt, Op::Register)]);
}

#[test]
fn p6_a_replaced_device_stays_away_longer_each_time() {
    let mut rig = Rig::new(config(), known());
    let mut least = Duration::from_secs(30);
    for n in 0..12 {
        rig.online(n);
        // Two clones take turns: each holds the session while the other waits.
        rig.pass(600);
        rig.ended(EndReason::Replaced);
        assert!(rig.wait() >= least && rig.wait() <= Duration::from_secs(3600), "{n}: {:?}", rig.wait());
        assert!(matches!(rig.events.last(), Some(Event::Offline { reason: EndReason::Replaced, .. })));
        least = (least * 2).min(Duration::from_secs(1800));
        let outputs = rig.wake();
        assert_eq!(outputs, [connect(&rig, None)]);
    }
    rig.online(100);
    rig.pass(3600);
    rig.ended(EndReason::Replaced);
    assert!(rig.wait() <= Duration::from_secs(60), "an hour of peace: it was no clone");
}

#[test]
fn p1_a_registration_that_the_relay_does_not_take_keeps_nobody_offline() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    let outputs = rig.done(Err(failure(FailureKind::Rejected)));
    assert_eq!(outputs, [connect(&rig, None)]);
    assert!(matches!(rig.events.last(), Some(Event::RegistrationRefused { .. })));
}

#[test]
fn p1_registering_again_happens_beside_the_session_and_is_tried_again() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    assert_eq!(rig.ops(Input::Register), [Op::Register]);
    // What it is changed once more before the relay answered: that call says the old.
    let old = rig.attempt;
    let outputs = rig.input(Input::Register);
    assert_eq!(outputs, [Output::Abort(old), Output::Run(rig.attempt, Op::Register)]);
    assert_eq!(rig.done(Err(failure(FailureKind::Passing))), []);
    assert_eq!(rig.state, SessionState::Online);
    let outputs = rig.wake();
    assert_eq!(outputs, [Output::Run(rig.attempt, Op::Register)]);
    rig.done(Ok(Done::Registered));
    assert_eq!(rig.events.last(), Some(&Event::Registered));
}

/// Begins to go over to a better transport.
fn moving() -> Rig {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    let Phase::Online { attempt, .. } = rig.agent.phase else { panic!() };
    let ops = rig.ops(Input::Better(attempt));
    assert_eq!(ops, [Op::Better { session: session(1), deadline: rig.now + Duration::from_secs(30) }]);
    rig.events.clear();
    rig
}

#[test]
fn s8_going_over_to_a_better_transport_the_device_stays_online() {
    for ends_before in [false, true] {
        let mut rig = moving();
        if ends_before {
            // The relay has left the old way before the device hears of the new one.
            assert_eq!(rig.ended(EndReason::Replaced), []);
        }
        rig.done(Ok(Done::Connected { session: session(1), resumed: true }));
        rig.input(Input::Pushed(rig.attempt));
        assert_eq!((rig.state, &rig.events[..]), (SessionState::Online, &[][..]));
        assert_eq!(rig.wait(), Duration::from_secs(60));
    }
}

#[test]
fn s8_a_better_transport_that_is_none_changes_nothing() {
    let mut rig = moving();
    rig.done(Err(failure(FailureKind::Passing)));
    assert_eq!((rig.state, &rig.events[..]), (SessionState::Online, &[][..]));
    // And a session that broke meanwhile is as any that breaks.
    let mut rig = moving();
    rig.ended(EndReason::Lost);
    assert_eq!(rig.state, SessionState::Online);
    rig.done(Err(failure(FailureKind::Passing)));
    assert_eq!(rig.state, SessionState::Waiting);
    assert!(matches!(rig.events[..], [Event::Offline { reason: EndReason::Lost, .. }]));
}

#[test]
fn f10_a_way_on_which_nothing_comes_is_opened_afresh() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    rig.done(Ok(Done::Registered));
    rig.done(Ok(Done::Connected { session: session(1), resumed: false }));
    assert_eq!((rig.state, rig.wait()), (SessionState::Starting, PROOF_WITHIN));
    assert_eq!(rig.wake(), [Output::Refresh]);
    assert_eq!(rig.state, SessionState::Online);
}

#[test]
fn s1_activating_does_not_wait_for_the_back_off() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    rig.done(Err(failure(FailureKind::Passing)));
    assert_eq!(rig.ops(Input::Activate), [Op::Register]);
    rig.online(1);
    let outputs = rig.input(Input::Activate);
    assert_eq!(outputs, [Output::Refresh, Output::Run(rig.attempt, Op::Register)]);
}

#[test]
fn s8_activated_it_leaves_what_hangs_on_a_network_that_is_gone() {
    let mut rig = Rig::new(config(), known());
    rig.input(Input::Maintenance(true));
    let hanging = rig.attempt;
    let outputs = rig.input(Input::Activate);
    assert_eq!(outputs, [Output::Abort(hanging), Output::Run(rig.attempt, Op::Register)]);
    rig.done(Ok(Done::Registered));
    let hanging = rig.attempt;
    let outputs = rig.input(Input::Activate);
    assert_eq!(outputs, [Output::Abort(hanging), Output::Run(rig.attempt, Op::Register)]);
    // A PIN that is under way is spent, and what it is traded for is not to be lost.
    let mut rig = Rig::new(config(), Known { has_token: false, has_pin: true, ..known() });
    rig.input(Input::Maintenance(true));
    assert_eq!(rig.input(Input::Activate), []);
}

#[test]
fn k2_shut_down_it_says_goodbye_and_nothing_more() {
    let mut rig = Rig::new(config(), known());
    rig.online(1);
    assert_eq!(rig.input(Input::Shutdown), [Output::CloseSession]);
    assert_eq!((rig.state, rig.wake), (SessionState::Stopped, None));
    for input in [Input::Maintenance(true), Input::Activate, Input::Woken, Input::Register, Input::Pin] {
        assert_eq!(rig.input(input), []);
    }
}
