//! The machine's driver: one task per session, which makes the POSTs, keeps the time and hands on what comes.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use relay_core::{
    error::{ErrorKind, TransportError},
    ids::SessionId,
    random,
    xml::Element,
};
use tokio::sync::Notify;

use crate::{
    NAME,
    exchange::{Exchange, ExchangeError, Reply},
    proto::client::{
        ClientMachine, ClientSettings, End, ExchangeId, Input, Output,
        login::{Account, LoggedIn, Login, LoginError, Step},
    },
    wire::ns,
};

/// How long an end that failed to log in tries to say goodbye.
const SHORT_FAREWELL: Duration = Duration::from_secs(2);
/// How long what could not be handed on waits for the next try, at first and at most.
const OFFER_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What a session's task and its handle share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something for the task to do.
    work: Notify,
    /// There is room to send, or the session is over.
    changed: Notify,
}

pub(super) struct State {
    pub(super) machine: ClientMachine,
    /// Set once, when the session is over and everything was handed on.
    pub(super) ended: Option<End>,
    close: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("ended", &self.lock().ended).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `input` to the machine and lets the task act on it.
    pub(super) fn input(&self, input: Input) {
        self.lock().machine.handle_input(now(), input);
        self.work.notify_one();
    }

    pub(super) fn wake(&self) {
        self.work.notify_one();
    }

    /// Says goodbye as soon as the task runs.
    pub(super) fn close(&self) {
        self.lock().close = true;
        self.work.notify_one();
    }

    /// Waits until `act` makes something of the state.
    pub(super) async fn until<T>(&self, mut act: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Enabled before looking, so that no change in between is missed.
            changed.as_mut().enable();
            if let Some(result) = act(&mut self.lock()) {
                return result;
            }
            changed.await;
        }
    }

    /// Waits for the session to be over, all its tasks done.
    pub(super) async fn ended(&self) -> End {
        self.until(|state| state.ended.clone()).await
    }
}

/// Takes what a session brings. Called by the session's task alone, one call after the other, under no lock.
pub(super) trait Receiver: Send + 'static {
    /// A stanza. `shared` takes what is to be sent in answer.
    fn stanza(&mut self, stanza: Element, shared: &Shared);
    /// The peer answered.
    fn alive(&mut self) {}
    /// Everything sent up to this tag has arrived.
    fn confirmed(&mut self, _tag: u64) {}
    /// Whether requests get through.
    fn reachable(&mut self, _reachable: bool) {}
    /// An answer came over a connection that was idle for so long.
    fn survived(&mut self, _idle: Duration) {}
    /// A connection was cut after it was idle for so long.
    fn cut(&mut self, _idle: Duration, _seen: bool) {}
    /// Hands on what is pending; whether nothing is left.
    fn flush(&mut self) -> bool;
    /// Whether more is pending than this end is willing to keep.
    fn overflows(&mut self) -> bool;
    /// The session is over.
    fn ended(&mut self, end: &End);
}

type Answer = Result<Reply, ExchangeError>;
type Posting = Pin<Box<dyn Future<Output = Answer> + Send>>;

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    exchange: Arc<dyn Exchange>,
    posts: Vec<(ExchangeId, Posting)>,
    /// The last reason why a POST came to nothing, to be told with what follows from it.
    failure: Option<ExchangeError>,
    sid: Box<str>,
}

/// A session that is logged in and whose task does not run yet.
pub(super) struct Established {
    pub(super) driver: Driver,
    pub(super) login: LoggedIn,
    pub(super) sid: Box<str>,
}

impl Driver {
    fn new(exchange: Arc<dyn Exchange>, settings: ClientSettings) -> Self {
        let mut seeds = [0; 16];
        random::fill(&mut seeds);
        let [rid, jitter] = [&seeds[..8], &seeds[8..]]
            .map(|seed| seed.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        let machine = ClientMachine::new(settings, rid, jitter, now());
        let state = Mutex::new(State { machine, ended: None, close: false });
        let shared = Arc::new(Shared { state, work: Notify::new(), changed: Notify::new() });
        Self { shared, exchange, posts: Vec::new(), failure: None, sid: "".into() }
    }

    /// Creates a session and logs in.
    pub(super) async fn log_in(
        exchange: Arc<dyn Exchange>,
        settings: ClientSettings,
        account: Account,
        resume: Option<SessionId>,
        deadline: Instant,
    ) -> Result<Established, TransportError> {
        let nonce = random::base32::<20>();
        let mut login = Login::new(account, exchange.is_confidential(), nonce, resume);
        let mut driver = Self::new(exchange, settings);
        let result = tokio::time::timeout_at(deadline.into(), driver.negotiate(&mut login)).await;
        match result {
            Ok(Ok(login)) => {
                let sid = driver.sid.clone();
                Ok(Established { driver, login, sid })
            }
            Ok(Err(Refusal::Login(error))) => {
                driver.abort().await;
                Err(error.error())
            }
            Ok(Err(Refusal::End(end))) => {
                let error = end.refusal();
                Err(match driver.failure.take() {
                    Some(failure) => error.with_source(failure),
                    None => error,
                })
            }
            Err(_) => {
                let error =
                    TransportError::new(NAME, ErrorKind::TimedOut, "not logged in before the deadline");
                Err(match driver.failure.take() {
                    Some(failure) => error.with_source(failure),
                    None => error,
                })
            }
        }
    }

    async fn negotiate(&mut self, login: &mut Login) -> Result<LoggedIn, Refusal> {
        self.input(Input::Open);
        loop {
            let output = self.shared.lock().machine.poll_output();
            match output {
                Output::Payload(payload) => match login.handle(&payload).map_err(Refusal::Login)? {
                    Step::Wait => {}
                    Step::Send(payload) => self.input(Input::Send { payload, tag: None }),
                    Step::Restart => self.input(Input::Restart),
                    Step::Done(done) => return Ok(done),
                },
                Output::Created { sid, .. } => self.sid = sid,
                Output::Ended(end) => return Err(Refusal::End(end)),
                Output::WakeAt(at) => self.wait(at).await,
                other => self.obey(other),
            }
        }
    }

    /// A goodbye to a session in which nobody logged in.
    async fn abort(mut self) {
        self.input(Input::Close { payload: None });
        let farewell = async {
            loop {
                let output = self.shared.lock().machine.poll_output();
                match output {
                    Output::Ended(_) => return,
                    Output::WakeAt(at) => self.wait(at).await,
                    other => self.obey(other),
                }
            }
        };
        let _ = tokio::time::timeout(SHORT_FAREWELL, farewell).await;
    }

    /// Runs the session to its end.
    pub(super) async fn run(mut self, mut receiver: impl Receiver) {
        let _finish = Finish(Arc::clone(&self.shared));
        let mut patience = OFFER_AGAIN.0;
        let end = loop {
            let (wake, end) = self.turn(&mut receiver);
            if let Some(end) = end {
                break end;
            }
            if receiver.flush() {
                patience = OFFER_AGAIN.0;
                self.input(Input::Hold(false));
            } else {
                self.input(if receiver.overflows() {
                    Input::Close { payload: None }
                } else {
                    Input::Hold(true)
                });
            }
            let (wake, flushed) = match self.turn(&mut receiver) {
                (_, Some(end)) => break end,
                (again, None) => (again.or(wake), receiver.flush()),
            };
            let wake = if flushed {
                wake
            } else {
                let retry = now() + patience;
                patience = (patience * 2).min(OFFER_AGAIN.1);
                Some(wake.map_or(retry, |wake| wake.min(retry)))
            };
            if self.shared.lock().machine.has_room() {
                self.shared.changed.notify_waiters();
            }
            self.wait(wake).await;
            let close = std::mem::take(&mut self.shared.lock().close);
            if close {
                let goodbye = Element::new(ns::CLIENT, "presence").with_attr("type", "unavailable");
                self.input(Input::Close { payload: Some(goodbye) });
            }
        };
        tracing::debug!(%end, failure = self.failure.as_ref().map(ExchangeError::chain), "session over");
        // What came before the end is handed on before it, if its taker takes anything any more.
        let mut patience = OFFER_AGAIN.0;
        while !receiver.flush() && patience < OFFER_AGAIN.1 {
            tokio::time::sleep(patience).await;
            patience *= 2;
        }
        receiver.ended(&end);
        self.shared.lock().ended = Some(end);
    }

    /// Does everything there is to do now.
    fn turn(&mut self, receiver: &mut impl Receiver) -> (Option<Instant>, Option<End>) {
        loop {
            let output = self.shared.lock().machine.poll_output();
            match output {
                Output::Payload(payload) => receiver.stanza(payload, &self.shared),
                Output::Alive => receiver.alive(),
                Output::Confirmed(tag) => receiver.confirmed(tag),
                Output::Reachable(reachable) => receiver.reachable(reachable),
                Output::Survived { idle } => receiver.survived(idle),
                Output::Cut { idle, seen } => receiver.cut(idle, seen),
                Output::Ended(end) => return (None, Some(end)),
                Output::WakeAt(at) => return (at, None),
                other => self.obey(other),
            }
        }
    }

    fn obey(&mut self, output: Output) {
        match output {
            Output::Post { exchange: id, post } => {
                tracing::trace!(?post, "posting");
                let exchange = Arc::clone(&self.exchange);
                self.posts.push((id, Box::pin(async move { exchange.post(post).await })));
            }
            Output::Abandon(id) => self.posts.retain(|(posted, _)| *posted != id),
            _ => {}
        }
    }

    fn input(&self, input: Input) {
        self.shared.lock().machine.handle_input(now(), input);
    }

    /// Waits for an answer, for work or for the time, and tells the machine.
    async fn wait(&mut self, wake: Option<Instant>) {
        let answer = {
            let posts = &mut self.posts;
            let answered = poll_fn(|context| {
                for (i, (_, posting)) in posts.iter_mut().enumerate() {
                    if let Poll::Ready(answer) = posting.as_mut().poll(context) {
                        let (id, _) = posts.swap_remove(i);
                        return Poll::Ready((id, answer));
                    }
                }
                Poll::Pending
            });
            // Far enough away to be never, near enough for every clock.
            let wake = wake.unwrap_or_else(|| now() + Duration::from_secs(86_400));
            tokio::select! {
                biased;
                answer = answered => Some(answer),
                () = self.shared.work.notified() => None,
                () = tokio::time::sleep_until(wake.into()) => None,
            }
        };
        match answer {
            None => self.input(Input::Woken),
            Some((exchange, Ok(reply))) => self.input(Input::Replied { exchange, reply }),
            Some((exchange, Err(failure))) => {
                tracing::debug!(failure = failure.chain(), "no answer");
                self.input(Input::Failed { exchange, kind: failure.kind });
                self.failure = Some(failure);
            }
        }
    }
}

/// Whatever becomes of the task, nobody waits for it for ever.
struct Finish(Arc<Shared>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.lock().ended.get_or_insert(End::Closed);
        self.0.changed.notify_waiters();
    }
}

enum Refusal {
    Login(LoginError),
    End(End),
}

/// The answer to an iq that asks (XEP-0199, RFC 6120 §8.2.3): an empty result.
pub(super) fn empty_result(iq: &Element) -> Element {
    answer(iq, "result")
}

/// The answer to an iq that cannot be served.
pub(super) fn iq_error(iq: &Element, kind: &'static str, condition: &'static str) -> Element {
    let error = Element::new(ns::CLIENT, "error")
        .with_attr("type", kind)
        .with_child(Element::new(ns::STANZAS, condition));
    answer(iq, "error").with_child(error)
}

fn answer(iq: &Element, kind: &'static str) -> Element {
    let mut answer = Element::new(ns::CLIENT, "iq").with_attr("type", kind);
    if let Some(id) = iq.attr("id") {
        answer.set_attr("id", id);
    }
    if let Some(from) = iq.attr("from") {
        answer.set_attr("to", from);
    }
    answer
}

/// Whether `stanza` is an iq that wants an answer.
pub(super) fn asks(stanza: &Element) -> bool {
    stanza.is(ns::CLIENT, "iq") && matches!(stanza.attr("type"), Some("get" | "set"))
}

/// Whether `stanza` is a ping (XEP-0199), which is answered here.
pub(super) fn is_ping(stanza: &Element) -> bool {
    asks(stanza) && stanza.child(ns::PING, "ping").is_some()
}
