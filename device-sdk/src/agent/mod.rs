//! The agent: when to enroll, register, connect, ask and come back. No I/O, no clock, no randomness of its own.
//!
//! ```text
//! Off ◀─ maintenance off ── any                     any ── shutdown ─▶ Stopped
//! Off ── maintenance on ─▶ Working(enroll? ─▶ register? ─▶ connect) ─▶ Online
//! Working ── failed ─▶ Waiting ── its time ─▶ Working
//! Working ── PIN refused ─▶ Refused ── new PIN ─▶ Working
//! Online ── ended, or asked in vain ─▶ Waiting or Working
//! ```
//!
//! A relay may send the device to another one, where it goes at the end of that wait. There it stays, over lost sessions,
//! until a step fails; then it goes home, to the relay that it is configured for, which alone judges its credential and
//! sees its PIN.
//!
//! The shell carries out what [`Agent::poll_output`] says, one [`Op`] at a time, and reports back through
//! [`Agent::handle_input`]. An operation bears its number; what is reported under a number that is no longer current
//! changes nothing.

mod messages;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use relay_core::{ids::SessionId, transport::EndReason};

pub use self::messages::OnQuiet;
pub(crate) use self::messages::{
    AgentConfig, Attempt, Done, Failure, FailureKind, Input, Known, Op, Output, Place,
};
use crate::{
    backoff::{Backoff, Jitter},
    event::{Event, SessionState, Step},
};

/// A takeover by another machine is forgotten only after this long: clones take turns for hours.
const REPLACED_FORGOTTEN: Duration = Duration::from_secs(3600);
/// How long the relay's first push, the answer to the device's ping, is waited for before the device calls itself online.
/// Not having it is no reason to give the session up: a relay may be busy.
const PROOF_WITHIN: Duration = Duration::from_secs(10);
const LONGEST_SLOW: Duration = Duration::from_secs(3600);

#[derive(Debug)]
enum Phase {
    Off,
    Working,
    /// `refused`: because the token was not accepted.
    Waiting {
        until: Instant,
        refused: bool,
    },
    Refused,
    /// `unproven`: no push has come yet; when to believe in the session all the same, and what to tell then.
    Online {
        session: SessionId,
        attempt: Attempt,
        since: Instant,
        quiet_since: Instant,
        unproven: Option<Unproven>,
    },
    Stopped,
}

#[derive(Debug)]
struct Unproven {
    until: Instant,
    /// What to tell; nothing if the device was online all the time.
    resumed: Option<bool>,
}

#[derive(Debug)]
struct Running {
    attempt: Attempt,
    step: Option<Step>,
    deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Agent {
    config: AgentConfig,
    phase: Phase,
    running: Option<Running>,
    attempts: Attempt,
    has_token: bool,
    /// The token was refused, and there is a PIN: enroll anew. If that fails, the token is still the best there is.
    enroll_anew: bool,
    has_pin: bool,
    registered: bool,
    /// Online only: when what could not be registered is tried again.
    register_at: Option<Instant>,
    resume: Option<SessionId>,
    backoff: Backoff,
    jitter: Jitter,
    replaced: u32,
    refused: u32,
    place: Place,
    /// To go to another relay with the next step.
    sent_away: bool,
    /// The session in force ended while the device was going over to a better transport, as it does when that comes about.
    ended_meanwhile: Option<EndReason>,
    outputs: VecDeque<Output>,
}

impl Agent {
    /// An agent with session maintenance off.
    pub(crate) fn new(config: AgentConfig, known: Known) -> Self {
        Self {
            backoff: Backoff::new(config.reconnect.first, config.reconnect.longest),
            config,
            phase: Phase::Off,
            running: None,
            attempts: 0,
            has_token: known.has_token,
            enroll_anew: false,
            has_pin: known.has_pin,
            registered: false,
            register_at: None,
            resume: known.resume,
            jitter: Jitter::new(known.seed),
            replaced: 0,
            refused: 0,
            place: Place::Home,
            sent_away: false,
            ended_meanwhile: None,
            outputs: VecDeque::new(),
        }
    }

    pub(crate) fn handle_input(&mut self, now: Instant, input: Input) {
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        match input {
            Input::Maintenance(on) => self.maintenance(now, on),
            Input::Activate => self.activate(now),
            Input::Register => self.register_again(now),
            Input::Pin => {
                self.has_pin = true;
                if matches!(self.phase, Phase::Refused | Phase::Waiting { refused: true, .. }) {
                    self.enroll_anew = true;
                    self.refused = 0;
                    self.next_step(now);
                }
            }
            Input::Done(attempt, result) => self.done(now, attempt, result),
            Input::Pushed(of) => {
                if let Phase::Online { attempt, quiet_since, .. } = &mut self.phase
                    && *attempt == of
                {
                    *quiet_since = now;
                    self.proven();
                }
            }
            Input::SentAway(of) => {
                if matches!(&self.phase, Phase::Online { attempt, .. } if *attempt == of) {
                    self.sent_away = true;
                }
            }
            Input::Ended(of, reason) => {
                if matches!(&self.phase, Phase::Online { attempt, .. } if *attempt == of) {
                    self.ended(now, reason);
                }
            }
            Input::Better(of) => self.better(now, of),
            Input::Woken => self.woken(now),
            Input::Shutdown => {
                self.leave();
                self.phase = Phase::Stopped;
                self.tell(SessionState::Stopped);
                self.event(Event::Stopped);
            }
        }
    }

    /// What is to be done; `None` once all is.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to come back with [`Input::Woken`], whatever else happens before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let running = self.running.as_ref().map(|running| running.deadline);
        let [own, unproven] = match &self.phase {
            Phase::Waiting { until, .. } => [Some(*until), None],
            Phase::Online { quiet_since, unproven, .. } => {
                let own = [self.quiet_at(*quiet_since), self.register_at].into_iter().flatten().min();
                // One operation at a time: what is due while one runs is seen to when it is done.
                [own.filter(|_| running.is_none()), unproven.as_ref().map(|unproven| unproven.until)]
            }
            _ => [None, None],
        };
        [running, own, unproven].into_iter().flatten().min()
    }

    fn quiet_at(&self, quiet_since: Instant) -> Option<Instant> {
        match self.config.on_quiet {
            OnQuiet::Off => None,
            _ => self.config.keepalive.map(|keepalive| quiet_since + keepalive),
        }
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn tell(&mut self, state: SessionState) {
        self.outputs.push_back(Output::State(state));
    }

    fn run(&mut self, now: Instant, op: Op, within: Duration) {
        self.attempts += 1;
        let attempt = self.attempts;
        let step = match &op {
            Op::Enroll => Some(Step::Enroll),
            Op::Register => Some(Step::Register),
            Op::Connect { .. } | Op::Better { .. } => Some(Step::Connect),
            Op::AskAlive { .. } => None,
        };
        self.running = Some(Running { attempt, step, deadline: now + within });
        self.outputs.push_back(Output::Run(attempt, op));
    }

    /// Online, and about to go over to another transport.
    fn is_moving(&self) -> bool {
        let connecting = self.running.as_ref().is_some_and(|running| running.step == Some(Step::Connect));
        connecting && matches!(self.phase, Phase::Online { .. })
    }

    fn better(&mut self, now: Instant, of: Attempt) {
        if let Phase::Online { attempt, session, .. } = &self.phase
            && *attempt == of
            && self.running.is_none()
        {
            let within = self.config.step_within;
            let session = session.clone();
            self.run(now, Op::Better { session, deadline: now + within }, within);
        }
    }

    /// The session goes over a better transport now, or a new one does.
    fn moved(&mut self, now: Instant, attempt: Attempt, session: SessionId, resumed: bool) {
        self.ended_meanwhile = None;
        self.resume = Some(session.clone());
        let owed = match &self.phase {
            Phase::Online { unproven: Some(unproven), .. } => unproven.resumed,
            _ => None,
        };
        let resumed = if resumed { owed } else { Some(false) };
        let unproven = Some(Unproven { until: now + PROOF_WITHIN, resumed });
        self.phase = Phase::Online { session, attempt, since: now, quiet_since: now, unproven };
        self.register_online(now);
    }

    fn abort(&mut self) {
        if let Some(running) = self.running.take() {
            self.outputs.push_back(Output::Abort(running.attempt));
        }
    }

    /// Leaves whatever the device is in the middle of.
    fn leave(&mut self) {
        self.abort();
        let ended = self.ended_meanwhile.take().is_some();
        if matches!(self.phase, Phase::Online { .. }) && !ended {
            self.outputs.push_back(Output::CloseSession);
        }
    }

    fn maintenance(&mut self, now: Instant, on: bool) {
        if on == !matches!(self.phase, Phase::Off) {
            return;
        }
        self.event(Event::Maintenance { on });
        if on {
            self.start_over(now);
        } else {
            self.leave();
            self.go_home();
            self.phase = Phase::Off;
            // A clean goodbye: the relay has nothing to go on with.
            self.resume = None;
            self.tell(SessionState::Off);
        }
    }

    fn activate(&mut self, now: Instant) {
        match self.phase {
            Phase::Waiting { .. } | Phase::Refused => self.start_over(now),
            Phase::Online { .. } => {
                self.registered = false;
                self.refresh(now);
                self.register_online(now);
            }
            // What is under way may be on a network that is gone. A PIN alone is waited for: shown, it is spent.
            Phase::Working
                if self.running.as_ref().is_some_and(|running| running.step != Some(Step::Enroll)) =>
            {
                self.abort();
                self.start_over(now);
            }
            Phase::Off | Phase::Working | Phase::Stopped => {}
        }
    }

    fn register_again(&mut self, now: Instant) {
        self.registered = false;
        let telling_the_old =
            self.running.as_ref().is_some_and(|running| running.step == Some(Step::Register));
        if telling_the_old {
            self.abort();
        }
        match self.phase {
            Phase::Online { .. } => self.register_online(now),
            Phase::Working if telling_the_old => self.next_step(now),
            _ => {}
        }
    }

    fn start_over(&mut self, now: Instant) {
        self.backoff.reset();
        self.refused = 0;
        self.registered = false;
        self.next_step(now);
    }

    fn go(&mut self, place: Place) {
        self.place = place;
        // What the one relay knows of the device the other may not.
        self.registered = false;
        self.outputs.push_back(Output::Move(place));
    }

    /// Whether the device was not there.
    fn go_home(&mut self) -> bool {
        self.sent_away = false;
        let away = self.place == Place::Away;
        if away {
            self.go(Place::Home);
        }
        away
    }

    /// The start-up order: credential, registration, session.
    fn next_step(&mut self, now: Instant) {
        if std::mem::take(&mut self.sent_away) {
            self.go(Place::Away);
        }
        let within = self.config.step_within;
        if !self.has_token && !self.has_pin {
            self.phase = Phase::Refused;
            self.tell(SessionState::Refused);
            return;
        }
        if !matches!(self.phase, Phase::Working) {
            self.phase = Phase::Working;
            self.tell(SessionState::Starting);
        }
        if !self.has_token || self.enroll_anew {
            self.run(now, Op::Enroll, within);
        } else if !self.registered {
            self.run(now, Op::Register, within);
        } else {
            let resume = self.resume.clone();
            self.run(now, Op::Connect { resume, deadline: now + within }, within);
        }
    }

    fn register_online(&mut self, now: Instant) {
        if self.running.is_none() && !self.registered {
            self.register_at = None;
            self.run(now, Op::Register, self.config.step_within);
        }
    }

    fn done(&mut self, now: Instant, attempt: Attempt, result: Result<Done, Failure>) {
        let Some(running) = self.running.take_if(|running| running.attempt == attempt) else { return };
        if matches!(self.phase, Phase::Online { .. }) {
            return match (running.step, result) {
                (Some(Step::Connect), Ok(Done::Connected { session, resumed })) => {
                    self.moved(now, attempt, session, resumed);
                }
                // It stays where it is, if that is still there.
                (Some(Step::Connect), _) => match self.ended_meanwhile.take() {
                    Some(reason) => self.ended(now, reason),
                    None => self.register_online(now),
                },
                (step, result) => self.done_online(now, step, result),
            };
        }
        let Some(step) = running.step else { return };
        match result {
            Ok(Done::Enrolled) => {
                (self.has_token, self.has_pin, self.enroll_anew) = (true, false, false);
                self.event(Event::Enrolled);
                self.next_step(now);
            }
            Ok(Done::Registered) => {
                self.registered = true;
                self.event(Event::Registered);
                self.next_step(now);
            }
            Ok(Done::Connected { session, resumed }) => {
                self.refused = 0;
                self.resume = Some(session.clone());
                let unproven = Some(Unproven { until: now + PROOF_WITHIN, resumed: Some(resumed) });
                self.phase = Phase::Online { session, attempt, since: now, quiet_since: now, unproven };
                self.register_at = None;
                self.register_online(now);
            }
            Ok(Done::Alive { .. }) => self.fail(now, step, Failure::passing("an answer to another question")),
            Err(failure) => self.fail(now, step, failure),
        }
    }

    /// Established is not yet reachable: only a push that came through shows that pushes do.
    fn proven(&mut self) {
        if let Phase::Online { unproven, .. } = &mut self.phase
            && let Some(Unproven { resumed: Some(resumed), .. }) = unproven.take()
        {
            self.tell(SessionState::Online);
            self.event(Event::Online { resumed });
        }
    }

    fn done_online(&mut self, now: Instant, step: Option<Step>, result: Result<Done, Failure>) {
        match (step, result) {
            (None, Ok(Done::Alive { known: true })) => {
                self.event(Event::Survival { known: Some(true) });
                self.refresh(now);
                self.register_online(now);
            }
            (None, answer) => {
                let known = match answer {
                    Ok(_) => Some(false),
                    Err(Failure { kind: FailureKind::UnknownDevice, .. }) => {
                        self.registered = false;
                        Some(false)
                    }
                    Err(_) => None,
                };
                if known.is_some() {
                    self.resume = None;
                }
                self.event(Event::Survival { known });
                self.new_session(now);
            }
            (Some(_), Ok(_)) => {
                self.registered = true;
                self.event(Event::Registered);
            }
            (Some(_), Err(failure)) if failure.kind == FailureKind::Rejected => {
                self.registered = true;
                self.event(Event::RegistrationRefused { words: failure.words });
            }
            // The session is up, so there is no hurry and nothing to tear down.
            (Some(step), Err(failure)) => {
                let longest = self.config.reconnect.longest;
                let retry_in =
                    longest + Backoff::new(longest, longest).next(&mut self.jitter, failure.retry_after);
                self.register_at = Some(now + retry_in);
                self.event(Event::Failed { step, words: failure.words, retry_in });
            }
        }
    }

    fn refresh(&mut self, now: Instant) {
        if let Phase::Online { quiet_since, .. } = &mut self.phase {
            *quiet_since = now;
            if self.ended_meanwhile.is_none() {
                self.outputs.push_back(Output::Refresh);
            }
        }
    }

    fn new_session(&mut self, now: Instant) {
        self.outputs.push_back(Output::CloseSession);
        self.phase = Phase::Working;
        self.tell(SessionState::Starting);
        self.next_step(now);
    }

    fn wait(&mut self, now: Instant, delay: Duration) {
        self.phase = Phase::Waiting { until: now + delay, refused: false };
        self.tell(SessionState::Waiting);
    }

    fn fail(&mut self, now: Instant, step: Step, failure: Failure) {
        let kind = match failure.kind {
            kind @ (FailureKind::Rejected | FailureKind::Replaced) => kind,
            _ if self.go_home() => FailureKind::Passing,
            kind => kind,
        };
        match kind {
            FailureKind::Refused | FailureKind::UnknownDevice => self.refuse(now, step, failure.words),
            FailureKind::Rejected if step == Step::Register => {
                self.registered = true;
                self.event(Event::RegistrationRefused { words: failure.words });
                self.next_step(now);
            }
            FailureKind::Replaced => {
                let retry_in = self.replaced_delay();
                self.wait(now, retry_in);
                self.event(Event::Failed { step, words: failure.words, retry_in });
            }
            FailureKind::Rejected | FailureKind::Passing => {
                let retry_in = self.backoff.next(&mut self.jitter, failure.retry_after);
                self.wait(now, retry_in);
                self.event(Event::Failed { step, words: failure.words, retry_in });
            }
        }
    }

    /// The credential was not accepted. A PIN is never shown twice: five wrong tries would void a good one.
    fn refuse(&mut self, now: Instant, step: Step, words: Box<str>) {
        if step == Step::Enroll {
            (self.has_pin, self.enroll_anew) = (false, false);
        }
        if !self.has_token {
            self.phase = Phase::Refused;
            self.tell(SessionState::Refused);
            self.event(Event::CredentialRefused { step, words, retry_in: None });
            return;
        }
        if self.has_pin {
            // A token from before, and a PIN that was not tried: the device was enrolled anew.
            self.enroll_anew = true;
            self.event(Event::CredentialRefused { step, words, retry_in: Some(Duration::ZERO) });
            return self.next_step(now);
        }
        let window = self.config.reconnect.refused.saturating_mul(2u32.saturating_pow(self.refused.min(8)));
        let window = window.min(LONGEST_SLOW);
        self.refused = self.refused.saturating_add(1);
        let retry_in = window / 2 + self.jitter.within(window / 2);
        self.phase = Phase::Waiting { until: now + retry_in, refused: true };
        self.tell(SessionState::Refused);
        self.event(Event::CredentialRefused { step, words, retry_in: Some(retry_in) });
    }

    fn replaced_delay(&mut self) -> Duration {
        let window =
            self.config.reconnect.replaced.saturating_mul(2u32.saturating_pow(self.replaced.min(12)));
        let window = window.min(LONGEST_SLOW);
        self.replaced = self.replaced.saturating_add(1);
        window / 2 + self.jitter.within(window / 2)
    }

    fn ended(&mut self, now: Instant, reason: EndReason) {
        if self.is_moving() {
            self.ended_meanwhile = Some(reason);
            return;
        }
        let Phase::Online { since, .. } = &self.phase else { return };
        let lived = now.saturating_duration_since(*since);
        self.abort();
        if lived >= self.config.reconnect.stable_after {
            self.backoff.reset();
        }
        if lived >= REPLACED_FORGOTTEN {
            self.replaced = 0;
        }
        let retry_in = match reason {
            EndReason::Replaced => {
                self.resume = None;
                self.replaced_delay()
            }
            EndReason::Revoked => {
                self.resume = None;
                if self.go_home() {
                    let retry_in = self.backoff.next(&mut self.jitter, None);
                    self.wait(now, retry_in);
                    return self.event(Event::Offline { reason, retry_in });
                }
                self.event(Event::Offline { reason, retry_in: self.config.reconnect.refused });
                return self.refuse(now, Step::Connect, "the relay revoked it".into());
            }
            EndReason::Drain { retry_after } | EndReason::Overloaded { retry_after } => {
                self.backoff.next(&mut self.jitter, retry_after)
            }
            EndReason::Expired => {
                self.resume = None;
                self.backoff.next(&mut self.jitter, None)
            }
            _ => self.backoff.next(&mut self.jitter, None),
        };
        self.wait(now, retry_in);
        self.event(Event::Offline { reason, retry_in });
    }

    fn woken(&mut self, now: Instant) {
        if let Some(running) = self.running.as_ref().filter(|running| running.deadline <= now) {
            let attempt = running.attempt;
            self.outputs.push_back(Output::Abort(attempt));
            self.done(now, attempt, Err(Failure::passing("no answer in time")));
            return;
        }
        match &self.phase {
            Phase::Waiting { until, .. } if *until <= now => self.next_step(now),
            Phase::Online { unproven: Some(unproven), .. } if unproven.until <= now => {
                self.proven();
                // A relay may be busy; a way through which nothing comes is none.
                self.refresh(now);
            }
            Phase::Online { .. }
                if self.running.is_none() && self.register_at.is_some_and(|at| at <= now) =>
            {
                self.register_online(now);
            }
            Phase::Online { session, quiet_since, .. }
                if self.running.is_none() && self.quiet_at(*quiet_since).is_some_and(|at| at <= now) =>
            {
                match self.config.on_quiet {
                    OnQuiet::Ask => {
                        let session = session.clone();
                        self.run(now, Op::AskAlive { session }, self.config.answer_within);
                    }
                    OnQuiet::Reopen => {
                        self.refresh(now);
                        self.register_online(now);
                    }
                    OnQuiet::NewSession => {
                        self.resume = None;
                        self.new_session(now);
                    }
                    OnQuiet::Off => {}
                }
            }
            _ => {}
        }
    }
}
