//! The device's one task: carries out what the agent and the ledger say, and tells them what happened.

mod jobs;
mod ops;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    future::{Future, pending},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use relay_core::{
    auth::Secret,
    envelope::Envelope,
    error::TransportError,
    ids::{DeviceId, RequestId},
    request::{Request, Response},
    transport::{BoxFuture, CloseReason, EndReason, Push, Started},
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    jobs::Jobs,
    ops::{Outcome, end_reason},
};
use crate::{
    agent::{self, Agent, Attempt, Done, Failure, Place},
    app::{Table, work::Note},
    event::{Event, SessionState},
    handler::{Context, status},
    http::{Verdict, client::RelayUrl},
    ledger::{self, Ledger, RespondBy},
    reach::Reach,
    registration::Registration,
    relays::{Relays, Ways},
    router::Router,
    session::{Mailbox, Outbox},
    state::State,
};

/// How long a session may take to say goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

/// What a handle tells the task.
#[derive(Debug)]
pub(crate) enum Command {
    Maintenance(bool),
    Register(Box<Registration>),
    Activate,
    Enroll(Secret),
    Shutdown { grace: Duration },
}

pub(crate) struct Parts {
    pub(crate) device: DeviceId,
    pub(crate) agent: Agent,
    pub(crate) ledger: Ledger,
    pub(crate) relays: Relays,
    pub(crate) ways: Ways,
    pub(crate) router: Router,
    pub(crate) apps: Table,
    pub(crate) reach: watch::Sender<Reach>,
    pub(crate) seed: u64,
    /// Which way answers go; that of the session's transport if nothing was said.
    pub(crate) respond_by: Option<RespondBy>,
    pub(crate) state: State,
    pub(crate) registration: Registration,
    pub(crate) pin: Option<Secret>,
    pub(crate) token: Option<Secret>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) session_state: watch::Sender<SessionState>,
    /// What was found wrong before there was anybody to tell.
    pub(crate) damage: Option<Event>,
}

struct Running {
    attempt: Attempt,
    future: BoxFuture<Result<Outcome, Failure>>,
}

/// The session in force.
struct Link {
    attempt: Attempt,
    mailbox: Arc<Mailbox>,
    push: Box<dyn Push>,
    outbox: Outbox,
}

pub(crate) struct Shell {
    device: DeviceId,
    agent: Agent,
    ledger: Ledger,
    relays: Relays,
    /// To the relay that the device is configured for.
    home: Ways,
    /// To the relay that it is at, and where that is.
    ways: Ways,
    at: RelayUrl,
    /// To the relay that it was sent to.
    sent_to: Option<(RelayUrl, Ways)>,
    router: Arc<Router>,
    respond_by: Option<RespondBy>,
    /// That of the session in force, or the last one.
    transport: &'static str,
    state: State,
    registration: Registration,
    pin: Option<Secret>,
    token: Option<Secret>,
    commands: mpsc::Receiver<Command>,
    events: broadcast::Sender<Event>,
    session_state: watch::Sender<SessionState>,
    running: Option<Running>,
    link: Option<Link>,
    handlers: JoinSet<(RequestId, Response)>,
    cancels: HashMap<RequestId, CancellationToken>,
    jobs: Jobs,
    deliveries: JoinSet<(RequestId, Result<Verdict, Option<Duration>>)>,
    /// Sessions that are being closed. What still comes on them is not lost.
    goodbyes: JoinSet<Arc<Mailbox>>,
    leaving: Option<Leaving>,
    damage: Option<Event>,
}

/// Shutting down.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    /// What is at work gets until then.
    Finishing(Instant),
    /// The session is being closed; what is still owed gets until then.
    Closing(Instant),
}

enum Happened {
    Command(Option<Command>),
    Mail,
    Pushed(Result<(), TransportError>),
    Ran(Attempt, Result<Outcome, Failure>),
    Handled(RequestId, Response),
    Noted(Option<Note>),
    Delivered(RequestId, Result<Verdict, Option<Duration>>),
    Closed(Arc<Mailbox>),
    Woken,
}

impl Shell {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            device: parts.device,
            agent: parts.agent,
            ledger: parts.ledger,
            at: parts.relays.home().clone(),
            relays: parts.relays,
            home: parts.ways.clone(),
            ways: parts.ways,
            sent_to: None,
            router: Arc::new(parts.router),
            respond_by: parts.respond_by,
            transport: "",
            state: parts.state,
            registration: parts.registration,
            pin: parts.pin,
            token: parts.token,
            commands: parts.commands,
            events: parts.events,
            session_state: parts.session_state,
            running: None,
            link: None,
            handlers: JoinSet::new(),
            cancels: HashMap::new(),
            jobs: Jobs::new(parts.apps, parts.reach, parts.seed),
            deliveries: JoinSet::new(),
            goodbyes: JoinSet::new(),
            leaving: None,
            damage: parts.damage,
        }
    }

    pub(crate) async fn run(mut self, maintenance: bool) {
        if let Some(damage) = self.damage.take() {
            self.tell(damage);
        }
        self.agent.handle_input(crate::now(), agent::Input::Maintenance(maintenance));
        loop {
            let wake = self.carry_out();
            if self.has_left() {
                break;
            }
            let happened = self.next(wake).await;
            self.take_in(happened);
        }
        self.commands.close();
        self.state.release();
        self.session_state.send_replace(SessionState::Stopped);
        let _ = self.events.send(Event::Stopped);
    }

    /// Waits for the next thing to happen. Everything here may be dropped half-way.
    async fn next(&mut self, wake: Option<Instant>) -> Happened {
        let Self { commands, link, running, handlers, jobs, deliveries, goodbyes, leaving, .. } = self;
        let mailbox = link.as_ref().map(|link| link.mailbox.clone());
        let mail = async {
            match &mailbox {
                Some(mailbox) => mailbox.arrived().await,
                None => pending().await,
            }
        };
        let pushing = async {
            match link {
                Some(link) if !link.outbox.is_empty() => link.push.push(&mut link.outbox).await,
                _ => pending().await,
            }
        };
        let ran = async {
            match running {
                Some(running) => (running.attempt, running.future.as_mut().await),
                None => pending().await,
            }
        };
        let waking = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            command = commands.recv(), if leaving.is_none() => Happened::Command(command),
            () = mail => Happened::Mail,
            pushed = pushing => Happened::Pushed(pushed),
            (attempt, result) = ran => Happened::Ran(attempt, result),
            Some(Ok((id, response))) = handlers.join_next() => Happened::Handled(id, response),
            note = jobs.next() => Happened::Noted(note),
            Some(Ok((id, result))) = deliveries.join_next() => Happened::Delivered(id, result),
            Some(Ok(mailbox)) = goodbyes.join_next() => Happened::Closed(mailbox),
            () = waking => Happened::Woken,
        }
    }

    fn take_in(&mut self, happened: Happened) {
        let now = crate::now();
        match happened {
            Happened::Command(command) => self.command(now, command),
            Happened::Mail => self.mail(now),
            Happened::Pushed(Ok(())) => {}
            Happened::Pushed(Err(error)) => {
                tracing::debug!(%error, "the session takes nothing more");
                // What the transport says of the end, if it says anything, is truer than its last error.
                self.mail(now);
                self.session_over(now, end_reason(&error));
            }
            Happened::Ran(attempt, result) => self.ran(now, attempt, result),
            Happened::Handled(id, response) => {
                self.cancels.remove(&id);
                self.ledger.handle_input(now, ledger::Input::Finished { id, response });
            }
            Happened::Noted(note) => {
                if let Some(note) = note {
                    self.note(note);
                }
            }
            Happened::Delivered(id, result) => {
                self.ledger.handle_input(now, ledger::Input::Delivered { id, result });
            }
            Happened::Closed(mailbox) => self.leftovers(now, &mailbox),
            Happened::Woken => {
                if let (Some(link), Some(at)) = (&self.link, self.better_at())
                    && at <= now
                {
                    self.agent.handle_input(now, agent::Input::Better(link.attempt));
                }
                self.agent.handle_input(now, agent::Input::Woken);
                self.ledger.handle_input(now, ledger::Input::Woken);
            }
        }
        if let Some(Leaving::Finishing(until)) = self.leaving
            && (until <= now || self.ledger.is_idle())
        {
            self.leaving = Some(Leaving::Closing(now + GOODBYE_WITHIN));
            for cancel in self.cancels.values() {
                cancel.cancel();
            }
            self.jobs.cancel_all();
            self.agent.handle_input(now, agent::Input::Shutdown);
        }
    }

    /// Whether all is said and done, or has had its time.
    fn has_left(&self) -> bool {
        match self.leaving {
            Some(Leaving::Closing(until)) => {
                until <= crate::now()
                    || (self.goodbyes.is_empty() && !self.ledger.owes() && self.jobs.is_empty())
            }
            _ => false,
        }
    }

    fn command(&mut self, now: Instant, command: Option<Command>) {
        let input = match command {
            Some(Command::Maintenance(on)) => agent::Input::Maintenance(on),
            Some(Command::Activate) => {
                if let Some(better) = &self.ways.better {
                    better.try_now();
                }
                agent::Input::Activate
            }
            Some(Command::Register(registration)) => {
                let keepalive = self.registration.keepalive;
                self.registration = Registration { keepalive, ..*registration };
                self.jobs.table().register(&mut self.registration);
                agent::Input::Register
            }
            Some(Command::Enroll(pin)) => {
                self.pin = Some(pin);
                agent::Input::Pin
            }
            Some(Command::Shutdown { grace }) => {
                self.leaving = Some(Leaving::Finishing(now + grace));
                self.ledger.handle_input(now, ledger::Input::TakeNoMore);
                return;
            }
            // The last handle is gone: nobody can want this device any more.
            None => {
                self.leaving = Some(Leaving::Finishing(now));
                self.ledger.handle_input(now, ledger::Input::TakeNoMore);
                return;
            }
        };
        self.agent.handle_input(now, input);
    }

    fn mail(&mut self, now: Instant) {
        let Some(link) = &self.link else { return };
        let attempt = link.attempt;
        let (envelopes, ended) = link.mailbox.take();
        let (mut drain, mut sent_to) = (None, None);
        for envelope in envelopes {
            self.agent.handle_input(now, agent::Input::Pushed(attempt));
            match envelope {
                Envelope::Ping => self.put(Envelope::Pong),
                Envelope::Drain { retry_after, to } => {
                    sent_to = to;
                    drain = Some(EndReason::Drain { retry_after: Some(retry_after) });
                }
                other => self.enter(now, other),
            }
        }
        if let Some(to) = sent_to {
            self.sent_away(now, attempt, to);
        }
        // Why the transport saw it end says less than the relay did.
        if let Some(reason) = drain.or(ended) {
            self.session_over(now, reason);
        }
    }

    /// L2: the relay says where to come back.
    fn sent_away(&mut self, now: Instant, attempt: Attempt, to: Box<str>) {
        let followed = self.relays.follow(&self.at, &to);
        if let Err(refused) = &followed {
            tracing::warn!(device = %self.device, ?to, %refused, "the relay sent the device where it does not go");
        }
        self.tell(Event::SentAway { to, followed: followed.is_ok() });
        if let Ok(relay) = followed {
            self.sent_to = Some(relay);
            self.agent.handle_input(now, agent::Input::SentAway(attempt));
        }
    }

    /// What came before the session was closed: pushed while this end said goodbye, and no less in need of an answer.
    fn leftovers(&mut self, now: Instant, mailbox: &Mailbox) {
        for envelope in mailbox.take().0 {
            self.enter(now, envelope);
        }
    }

    fn enter(&mut self, now: Instant, envelope: Envelope) {
        let input = match envelope {
            Envelope::Request { id, request, deadline } => ledger::Input::Request { id, request, deadline },
            Envelope::Cancel { id } => ledger::Input::Cancel { id },
            Envelope::Close { id, .. } => ledger::Input::Close { id },
            Envelope::Ack { id, disposition } => ledger::Input::Ack { id, disposition },
            // Nothing else is for a device to hear.
            _ => return,
        };
        self.ledger.handle_input(now, input);
    }

    /// The session in force is over, or is to be.
    fn session_over(&mut self, now: Instant, reason: EndReason) {
        let Some(attempt) = self.link.as_ref().map(|link| link.attempt) else { return };
        self.say_goodbye();
        self.ledger.handle_input(now, ledger::Input::SessionDown);
        self.agent.handle_input(now, agent::Input::Ended(attempt, reason));
    }

    fn say_goodbye(&mut self) {
        if let Some(mut link) = self.link.take() {
            self.goodbyes.spawn(async move {
                let _ = tokio::time::timeout(GOODBYE_WITHIN, link.push.close(CloseReason::Shutdown)).await;
                link.mailbox
            });
        }
    }

    fn put(&mut self, envelope: Envelope) {
        if let Some(link) = &mut self.link {
            link.outbox.put(envelope);
        }
    }

    fn ran(&mut self, now: Instant, attempt: Attempt, result: Result<Outcome, Failure>) {
        self.running = None;
        let result = result.map(|outcome| match outcome {
            Outcome::Enrolled(token) => {
                (self.token, self.pin) = (Some(token), None);
                self.reached(None);
                Done::Enrolled
            }
            Outcome::Registered => Done::Registered,
            Outcome::Alive(known) => Done::Alive { known },
            Outcome::Connected(mut session) => {
                if self.link.is_some() {
                    // The session went over to a better transport; the relay has left the old one.
                    self.say_goodbye();
                    self.ledger.handle_input(now, ledger::Input::SessionDown);
                }
                let mailbox = Arc::new(Mailbox::default());
                session.push.start(Started::new(session.id.clone(), session.resumed, mailbox.clone()));
                let max_body = session.info.max_body;
                self.reached(Some(session.info.channels));
                let mut outbox = Outbox::default();
                // Its pong is the push that shows that pushes come through.
                outbox.put(Envelope::Ping);
                self.link = Some(Link { attempt, mailbox, push: session.push, outbox });
                let respond_by = self.respond_by.unwrap_or_else(|| RespondBy::over(&session.info));
                self.ledger.handle_input(now, ledger::Input::SessionUp { max_body, respond_by });
                if self.transport != session.info.name {
                    self.transport = session.info.name;
                    self.tell(Event::Transport { name: self.transport });
                }
                Done::Connected { session: session.id, resumed: session.resumed }
            }
        });
        self.agent.handle_input(now, agent::Input::Done(attempt, result));
    }

    /// Carries out everything that the machines say; returns when they want to be woken.
    fn carry_out(&mut self) -> Option<Instant> {
        loop {
            if let Some(output) = self.agent.poll_output() {
                self.carry_out_agent(output);
            } else if let Some(output) = self.ledger.poll_output() {
                self.carry_out_ledger(output);
            } else {
                break;
            }
        }
        let leaving = self.leaving.map(|leaving| match leaving {
            Leaving::Finishing(until) | Leaving::Closing(until) => until,
        });
        [self.agent.wake_at(), self.ledger.wake_at(), leaving, self.better_at()].into_iter().flatten().min()
    }

    /// S8: when a better transport is tried than the one that carries the session.
    fn better_at(&self) -> Option<Instant> {
        let may = self.link.is_some() && self.running.is_none() && self.leaving.is_none();
        self.ways.better.as_ref().filter(|_| may)?.again_at()
    }

    fn carry_out_agent(&mut self, output: agent::Output) {
        match output {
            agent::Output::Run(attempt, op) => {
                let future = self.start(op);
                self.running = Some(Running { attempt, future });
            }
            agent::Output::Abort(attempt) => {
                self.running.take_if(|running| running.attempt == attempt);
            }
            agent::Output::Move(Place::Home) => {
                (self.at, self.ways) = (self.relays.home().clone(), self.home.clone());
                self.reached(None);
            }
            agent::Output::Move(Place::Away) => {
                if let Some(relay) = self.sent_to.take() {
                    (self.at, self.ways) = relay;
                    self.reached(None);
                }
            }
            agent::Output::Refresh => {
                if let Some(link) = &mut self.link {
                    link.push.refresh();
                }
            }
            agent::Output::CloseSession => {
                self.say_goodbye();
                self.ledger.handle_input(crate::now(), ledger::Input::SessionDown);
            }
            agent::Output::State(SessionState::Stopped) | agent::Output::Event(Event::Stopped) => {}
            agent::Output::State(state) => {
                self.session_state.send_replace(state);
            }
            agent::Output::Event(event) => self.tell(event),
        }
    }

    fn carry_out_ledger(&mut self, output: ledger::Output) {
        match output {
            ledger::Output::Run { id, request, deadline } => self.handle(id, request, deadline),
            ledger::Output::Offer { id, request } => self.offered(id, &request),
            ledger::Output::OfferedAgain { id, request } => self.jobs.offered_again(&id, &request),
            ledger::Output::Cancel(id) => {
                if let Some(cancel) = self.cancels.get(&id) {
                    cancel.cancel();
                }
                self.jobs.cancel(&id);
            }
            ledger::Output::Deliver(id, response) => self.deliver(id, response),
            ledger::Output::Push(envelope) => self.put(envelope),
            ledger::Output::Withdraw(id) => {
                if let Some(link) = &mut self.link {
                    link.outbox.withdraw(&id);
                }
            }
            ledger::Output::Event(event) => self.tell(event),
        }
    }

    fn tell(&self, event: Event) {
        match &event {
            Event::CredentialRefused { words, .. } => {
                tracing::error!(device = %self.device, %words, "credential refused")
            }
            Event::RegistrationRefused { words } => {
                tracing::error!(device = %self.device, %words, "registration refused");
            }
            Event::Failed { step, words, retry_in } => {
                tracing::warn!(device = %self.device, ?step, %words, ?retry_in, "could not reach the relay");
            }
            Event::Online { .. } | Event::Offline { .. } => tracing::info!(device = %self.device, ?event),
            _ => tracing::debug!(device = %self.device, ?event),
        }
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    /// S5: runs the vendor's handler in a task of its own; the ledger says how many run at once.
    fn handle(&mut self, id: RequestId, request: Arc<Request>, deadline: Instant) {
        let cancel = CancellationToken::new();
        self.cancels.insert(id.clone(), cancel.clone());
        let context = Context::new(id.clone(), deadline, cancel, request.traceparent.clone());
        let router = self.router.clone();
        let span = tracing::info_span!(
            "device.request", request_id = %id, asks = ledger::summary(&request.method, &request.objects)
        );
        let run = async move {
            let answer = async { router.answer(&request, &context).await };
            let response = AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!("the handler panicked");
                Response::error(status("handler-panicked"), "the device's handler panicked")
            });
            tracing::debug!(status = response.status.as_str(), "answered");
            (id, response)
        };
        self.handlers.spawn(instrumented(run, span));
    }

    fn deliver(&mut self, id: RequestId, response: Response) {
        let http = self.ways.http.clone();
        let token = self.token.clone().unwrap_or_else(|| Secret::new(""));
        self.deliveries.spawn(async move {
            let attempt = AssertUnwindSafe(http.respond(&token, &id, &response)).catch_unwind().await;
            let result = match attempt {
                Ok(Ok(verdict)) => Ok(verdict),
                Ok(Err(error)) => {
                    tracing::warn!(request_id = %id, %error, "the answer is not delivered yet");
                    Err(error.retry_after)
                }
                Err(_) => Err(None),
            };
            (id, result)
        });
    }
}

async fn instrumented<T>(future: impl Future<Output = T>, span: tracing::Span) -> T {
    use tracing::Instrument as _;
    future.instrument(span).await
}
