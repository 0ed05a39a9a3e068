//! A session on its connection: the machine, the byte stream, one task that reads, and the owner's push half.
//!
//! A push writes on the spot, on the task that asked for it; only what the connection does not take at once is left to the
//! session's own task. That task alone calls [`Inbound`], with no lock held.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use relay_core::{
    envelope::Envelope,
    error::{ErrorKind, TransportError},
    ids::SessionId,
    transport::{CloseReason, EndReason, Full, Inbound, Push, Queue, Started},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Handle,
    sync::Notify,
    time::{Sleep, sleep_until},
};

use crate::{
    NAME,
    counters::Counters,
    proto::control::{LINGER, Machine, Output},
    pump,
    stream::BoxStream,
};

/// Read at once.
const READ: usize = 4 * 1024;
/// How long a connection may take to be closed.
const SHUTDOWN: Duration = Duration::from_secs(1);
/// When to look at the clock if nothing is due: far enough away to be never, near enough for every clock.
pub(crate) const NEVER: Duration = Duration::from_secs(86_400);

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What a session's task and its push half share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// There is room to push, or the session is over.
    changed: Notify,
    counters: Arc<Counters>,
}

struct State {
    machine: Machine,
    /// The connection; not there before the opening handshake is done, nor after the end.
    stream: Option<BoxStream>,
    unflushed: bool,
    /// Of the session's task, once it runs.
    task: Option<Waker>,
    /// When it looks at the clock again; none while it is at work, after which it looks in any case.
    looks_at: Option<Instant>,
    /// Set once nothing more will be told to the owner.
    told: bool,
    /// How many ignored elements are counted already.
    ignored: u64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("end", &self.lock().machine.end()).finish_non_exhaustive()
    }
}

impl State {
    fn write(&mut self, cx: &mut Context<'_>) {
        if let Some(stream) = &mut self.stream {
            pump::write(stream, &mut self.machine, &mut self.unflushed, cx);
        }
    }

    /// Whether there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        self.stream.as_mut().is_some_and(|stream| pump::read::<READ>(stream, &mut self.machine, cx))
    }
}

impl Shared {
    pub(crate) fn new(machine: Machine, counters: Arc<Counters>) -> Arc<Self> {
        let state = State {
            machine,
            stream: None,
            unflushed: false,
            task: None,
            looks_at: None,
            told: false,
            ignored: 0,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), counters })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is there, and the owner: the session's task runs from now on. `early` is what came on the connection
    /// together with the end of the handshake.
    pub(crate) fn run(
        self: &Arc<Self>,
        stream: BoxStream,
        early: &[u8],
        inbound: Arc<dyn Inbound>,
        runtime: &Handle,
    ) {
        {
            let mut state = self.lock();
            state.stream = Some(stream);
            state.machine.received(early, now());
        }
        // What the owner would have pushed before there was a connection can go now.
        self.changed.notify_waiters();
        runtime.spawn(drive(Arc::clone(self), inbound));
    }

    /// The peer did not wait for the end of the opening handshake.
    pub(crate) fn too_early(&self) {
        self.order(Machine::too_early);
    }

    /// The connection never came about, or will not be used.
    pub(crate) fn abandon(&self, inbound: Option<Arc<dyn Inbound>>) {
        let reason = {
            let mut state = self.lock();
            state.machine.broken();
            state.machine.end().unwrap_or(EndReason::Lost)
        };
        if let Some(inbound) = inbound {
            inbound.ended(reason);
        }
        self.finish();
    }

    fn finish(&self) {
        let stream = {
            let mut state = self.lock();
            state.machine.broken();
            state.told = true;
            state.stream.take()
        };
        drop(stream);
        self.changed.notify_waiters();
    }

    /// Acts on the machine, and lets the task see to what follows.
    fn order(&self, act: impl FnOnce(&mut Machine, Instant)) {
        let task = {
            let mut state = self.lock();
            act(&mut state.machine, now());
            state.task.clone()
        };
        if let Some(task) = task {
            task.wake();
        }
        self.changed.notify_waiters();
    }

    pub(crate) fn set_keepalive(&self, keepalive: Option<Duration>) {
        self.order(|machine, now| machine.set_keepalive(keepalive, now));
    }

    /// Takes from the queue what there is room for, and writes it; `None` if there is no room.
    fn take_from(&self, queue: &mut dyn Queue) -> Option<Result<(), TransportError>> {
        let task = {
            let mut state = self.lock();
            if let Some(reason) = state.machine.end() {
                return Some(Err(error_of(reason)));
            }
            if state.stream.is_none() || !state.machine.has_room() {
                return None;
            }
            // What waits already is the task's to write, which is told when it can.
            let at_once = !state.machine.wants_write() && !state.unflushed;
            let now = now();
            while state.machine.has_room()
                && let Some(envelope) = queue.take()
            {
                state.machine.push(&envelope, now);
            }
            if at_once {
                state.write(&mut Context::from_waker(Waker::noop()));
            }
            let late =
                state.machine.wake_at().is_some_and(|at| state.looks_at.is_some_and(|looks| at < looks));
            let left = state.machine.wants_write() || state.unflushed || state.machine.is_over() || late;
            if left { state.task.clone() } else { None }
        };
        if let Some(task) = task {
            task.wake();
        }
        Some(Ok(()))
    }

    /// One turn of the session's task: writes, reads, watches the time, until there is something to tell.
    fn turn(&self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<Output> {
        let (output, room) = {
            let mut state = self.lock();
            if !state.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                state.task = Some(cx.waker().clone());
            }
            let had_room = state.machine.has_room();
            state.looks_at = None;
            let output = loop {
                let now = now();
                state.machine.timeout(now);
                // An answer to a ping goes before anything is made of what came with it.
                state.write(cx);
                if let Some(output) = state.machine.poll_output(now) {
                    break Some(output);
                }
                let more = state.read(cx);
                state.write(cx);
                if let Some(output) = state.machine.poll_output(now) {
                    break Some(output);
                }
                if more {
                    cx.waker().wake_by_ref();
                    break None;
                }
                let wake = state.machine.wake_at().unwrap_or_else(|| now + NEVER);
                // Set anew only where it would be late: one that is early costs a look.
                if sleep.is_elapsed() || wake < sleep.deadline().into_std() {
                    sleep.as_mut().reset(wake.into());
                }
                if sleep.as_mut().poll(cx).is_pending() {
                    state.looks_at = Some(sleep.deadline().into_std());
                    break None;
                }
            };
            let ignored = state.machine.stats().ignored;
            if ignored != state.ignored {
                self.counters.ignored(ignored - state.ignored);
                state.ignored = ignored;
            }
            (output, !had_room && state.machine.has_room())
        };
        if room {
            self.changed.notify_waiters();
        }
        output.map_or(Poll::Pending, Poll::Ready)
    }
}

/// The session's task.
async fn drive(shared: Arc<Shared>, inbound: Arc<dyn Inbound>) {
    let finish = Finish(shared);
    let shared = &finish.0;
    inbound.attached();
    let mut sleep = pin!(sleep_until((now() + NEVER).into()));
    loop {
        match poll_fn(|cx| shared.turn(cx, sleep.as_mut())).await {
            Output::Alive => inbound.alive(),
            Output::Envelope(envelope) => {
                if let Err(Full(envelope)) = inbound.envelope(envelope) {
                    shared.lock().machine.give_back(envelope, now());
                }
            }
            Output::Ended(reason) => {
                if let Some(fault) = shared.lock().machine.fault() {
                    shared.counters.fault(fault.code);
                }
                // Nobody waits for a push that cannot be.
                shared.changed.notify_waiters();
                inbound.ended(reason);
                break;
            }
        }
    }
    let (stream, clean, lingers) = {
        let mut state = shared.lock();
        (state.stream.take(), state.machine.is_clean(), state.machine.lingers())
    };
    shared.finish();
    // What was written whole is to arrive, the close frame last of all. What was not is cut.
    if let Some(stream) = stream.filter(|_| clean) {
        farewell(stream, lingers).await;
    }
}

/// Closes the connection; if it `lingers`, not before the peer does, within bounds.
pub(crate) async fn farewell(mut stream: BoxStream, lingers: Option<Duration>) {
    let farewell = async {
        stream.shutdown().await?;
        let mut left = if lingers.is_some() { LINGER } else { 0 };
        // Not in the task itself, which would carry it from the first.
        let mut scrap = vec![0; READ];
        while left > 0 {
            match stream.read(&mut scrap).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(lingers.unwrap_or(SHUTDOWN), farewell).await;
}

/// Whatever becomes of the task, nobody waits for it for ever.
struct Finish(Arc<Shared>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn error_of(reason: EndReason) -> TransportError {
    let (kind, words) = match reason {
        EndReason::Lost => (ErrorKind::Interrupted, "the connection was lost"),
        EndReason::Misbehaved => (ErrorKind::Interrupted, "the session ended over a rule that was broken"),
        _ => (ErrorKind::Closed, "the session is over"),
    };
    TransportError::new(NAME, kind, words)
}

/// What has not come together yet when a session begins.
pub(crate) trait Beginning: fmt::Debug + Send + 'static {
    /// The owner took the session.
    fn started(self: Box<Self>, started: Started, shared: &Arc<Shared>);
    /// The owner closed it, without having taken it; or, without a reason, dropped it.
    fn refused(self: Box<Self>, reason: Option<CloseReason>, shared: &Arc<Shared>);
}

/// The half of a session that takes envelopes to the peer.
#[derive(Debug)]
pub(crate) struct WsPush {
    shared: Arc<Shared>,
    /// Until the owner has said whether it takes the session.
    beginning: Option<Box<dyn Beginning>>,
    patience: Duration,
}

impl WsPush {
    /// A push half whose closing takes `patience` at most.
    pub(crate) fn new(shared: Arc<Shared>, beginning: Box<dyn Beginning>, patience: Duration) -> Self {
        Self { shared, beginning: Some(beginning), patience }
    }
}

#[async_trait]
impl Push for WsPush {
    fn start(&mut self, started: Started) {
        if let Some(beginning) = self.beginning.take() {
            beginning.started(started, &self.shared);
        }
    }

    async fn push(&mut self, queue: &mut dyn Queue) -> Result<(), TransportError> {
        if queue.next_cost().is_none() {
            return Ok(());
        }
        // Most pushes find room at once.
        if let Some(taken) = self.shared.take_from(queue) {
            return taken;
        }
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            // Enabled before looking, so that no change in between is missed.
            changed.as_mut().enable();
            if let Some(taken) = self.shared.take_from(queue) {
                return taken;
            }
            changed.await;
        }
    }

    fn refresh(&mut self) {
        self.shared.order(Machine::suspect);
    }

    async fn close(&mut self, reason: CloseReason) {
        self.shared.order(|machine, now| machine.close(reason.clone(), now));
        if let Some(beginning) = self.beginning.take() {
            return beginning.refused(Some(reason), &self.shared);
        }
        let told = async {
            loop {
                let mut changed = pin!(self.shared.changed.notified());
                changed.as_mut().enable();
                if self.shared.lock().told {
                    return;
                }
                changed.await;
            }
        };
        // The machine is bounded in time; an owner that does not return from its own call is not.
        let _ = tokio::time::timeout(self.patience, told).await;
    }
}

impl Drop for WsPush {
    fn drop(&mut self) {
        self.shared.order(|machine, now| machine.close(CloseReason::Shutdown, now));
        if let Some(beginning) = self.beginning.take() {
            beginning.refused(None, &self.shared);
        }
    }
}

/// The owner of a session whose owner is gone.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Inbound for Nobody {
    fn envelope(&self, _: Envelope) -> Result<(), Full> {
        Ok(())
    }
    fn alive(&self) {}
    fn confirmed(&self, _: u64) {}
    fn attached(&self) {}
    fn detached(&self) {}
    fn resume(&self, _: &SessionId) -> bool {
        false
    }
    fn ended(&self, _: EndReason) {}
}

#[cfg(test)]
mod tests {
    use relay_core::ids::DeviceId;

    use super::*;
    use crate::{config::ControlConfig, proto::control::End};

    #[test]
    fn f1_an_idle_session_is_a_machine_and_a_small_task() {
        let device = DeviceId::new("printer-1").unwrap();
        let machine = Machine::new(End::Relay, device, ControlConfig::relay(), now());
        let shared = Shared::new(machine, Arc::default());
        let task = size_of_val(&drive(Arc::clone(&shared), Arc::new(Nobody)));
        let shared = size_of::<Shared>();
        assert!(task <= 640 && shared <= 1280, "{task} and {shared} bytes");
    }
}
