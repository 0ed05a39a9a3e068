//! A channel on its connection: the machine, the byte stream, one task, and the owner's two halves.
//!
//! What is sent is written on the spot, and only what the connection does not take at once is left to the task, which
//! reads ahead within a bound, answers pings, and sees to the closing handshake.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use relay_core::{
    app::{Channel, ChannelReceiver, ChannelSender},
    error::{ErrorKind, TransportError},
    transport::CloseReason,
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Sleep, sleep_until},
};

use crate::{
    NAME,
    proto::channel::{Cause, Machine},
    pump,
    session::{NEVER, farewell, now},
    stream::BoxStream,
    wire::{channel::Words, close},
};

/// Read at once: a piece of data.
const READ: usize = 16 * 1024;

/// What a channel's task and its halves share.
struct Shared<W: Words> {
    state: Mutex<State<W>>,
    /// There is room to send, or there will never be.
    room: Notify,
    /// Something came, or nothing more will.
    news: Notify,
}

struct State<W: Words> {
    machine: Machine<W>,
    stream: Option<BoxStream>,
    unflushed: bool,
    /// Of the channel's task, once it runs.
    task: Option<Waker>,
    halves: u8,
    /// The task is done with the connection.
    done: bool,
}

impl<W: Words> fmt::Debug for Shared<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Shared")
            .field("job", state.machine.job())
            .field("cause", &state.machine.cause())
            .finish_non_exhaustive()
    }
}

impl<W: Words> State<W> {
    fn write(&mut self, cx: &mut Context<'_>) {
        if let Some(stream) = &mut self.stream {
            pump::write(stream, &mut self.machine, &mut self.unflushed, cx);
        }
    }

    /// Whether there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        self.stream.as_mut().is_some_and(|stream| pump::read::<READ>(stream, &mut self.machine, cx))
    }

    /// Why nothing can be sent any more.
    fn error(&self) -> Option<TransportError> {
        self.machine.cause().map(|cause| {
            let relay = self.machine.is_relay();
            ended(cause, relay).unwrap_or_else(|| error(ErrorKind::Closed, "the channel is closed"))
        })
    }
}

fn error(kind: ErrorKind, words: impl Into<String>) -> TransportError {
    TransportError::new(NAME, kind, words)
}

/// The error that an end is, unless it was one in order.
fn ended(cause: Cause, relay: bool) -> Option<TransportError> {
    Some(match cause {
        Cause::Closed | Cause::Peer(None | Some(close::NORMAL | close::GOING_AWAY)) => return None,
        Cause::Lost => error(ErrorKind::Interrupted, "the channel's connection was lost"),
        Cause::Fault(fault) => error(ErrorKind::PeerMisbehaved, fault.words).with_source(fault),
        Cause::Peer(Some(close::REVOKED)) if !relay => {
            error(ErrorKind::Unauthenticated, "the credential was revoked")
        }
        Cause::Peer(Some(close::TRY_LATER)) if !relay => {
            error(ErrorKind::Overloaded, "the relay has too many channels")
        }
        Cause::Peer(Some(code)) => {
            error(ErrorKind::Interrupted, format!("the peer broke the channel off with code {code}"))
        }
    })
}

/// A channel on `stream`, of which `early` was read already. Its task holds `place`.
pub(crate) fn run<W: Words>(
    mut machine: Machine<W>,
    stream: BoxStream,
    early: &[u8],
    place: impl Send + 'static,
    runtime: &Handle,
) -> Channel<W::Out, W::In> {
    machine.received(early, now());
    let state = State { machine, stream: Some(stream), unflushed: false, task: None, halves: 2, done: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), room: Notify::new(), news: Notify::new() });
    let task = drive(Arc::clone(&shared));
    runtime.spawn(async move {
        task.await;
        drop(place);
    });
    Channel::new(Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

async fn drive<W: Words>(shared: Arc<Shared<W>>) {
    let finish = Finish(shared);
    let shared = &finish.0;
    let mut sleep = pin!(sleep_until((now() + NEVER).into()));
    poll_fn(|cx| shared.turn(cx, sleep.as_mut())).await;
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

/// Whatever becomes of the task, nobody waits for it for ever.
struct Finish<W: Words>(Arc<Shared<W>>);

impl<W: Words> Drop for Finish<W> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl<W: Words> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self) {
        let stream = {
            let mut state = self.lock();
            state.machine.broken();
            state.done = true;
            state.stream.take()
        };
        drop(stream);
        self.room.notify_one();
        self.news.notify_one();
    }

    /// Acts on what is shared, and lets the task see to what follows.
    fn order(&self, act: impl FnOnce(&mut State<W>)) {
        let task = {
            let mut state = self.lock();
            act(&mut state);
            state.task.clone()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// One turn of the task: writes, reads, watches the time, until nothing is left to be done.
    fn turn(&self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<()> {
        let mut state = self.lock();
        if !state.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            state.task = Some(cx.waker().clone());
        }
        let over = loop {
            let now = now();
            state.machine.timeout(now);
            state.write(cx);
            let more = state.read(cx);
            state.write(cx);
            if state.machine.is_over() {
                break true;
            }
            if more {
                cx.waker().wake_by_ref();
                break false;
            }
            let wake = state.machine.wake_at().unwrap_or_else(|| now + NEVER);
            // Set anew only where it would be late: one that is early costs a look.
            if sleep.is_elapsed() || wake < sleep.deadline().into_std() {
                sleep.as_mut().reset(wake.into());
            }
            if sleep.as_mut().poll(cx).is_pending() {
                break false;
            }
        };
        let ended = state.machine.cause().is_some();
        let (room, news) = (ended || state.machine.has_room(), ended || state.machine.has_news());
        drop(state);
        if room {
            self.room.notify_one();
        }
        if news {
            self.news.notify_one();
        }
        if over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Takes a message if there is room, and writes it; gives it back if there is none.
    fn take(&self, message: W::Out) -> Result<Result<(), TransportError>, W::Out> {
        let task = {
            let mut state = self.lock();
            if let Some(error) = state.error() {
                return Ok(Err(error));
            }
            if !state.machine.has_room() {
                return Err(message);
            }
            // What waits already is the task's to write, which is told when it can.
            let at_once = !state.machine.wants_write() && !state.unflushed;
            if let Err(too_large) = state.machine.push(message) {
                let words = "the message is too large for a channel";
                return Ok(Err(error(ErrorKind::TooLarge, words).with_source(too_large)));
            }
            if at_once {
                state.write(&mut Context::from_waker(Waker::noop()));
            }
            let left = state.machine.wants_write() || state.unflushed || state.machine.is_over();
            if left { state.task.clone() } else { None }
        };
        if let Some(task) = task {
            task.wake();
        }
        Ok(Ok(()))
    }

    /// A half is gone. Without either, the channel breaks, unless it is being closed.
    fn leave(&self, receiver: bool) {
        self.order(|state| {
            state.halves -= 1;
            if state.halves == 0 {
                state.machine.abandon(now());
            } else if receiver {
                state.machine.deafen(now());
            }
        });
    }
}

#[derive(Debug)]
struct Sender<W: Words> {
    shared: Arc<Shared<W>>,
}

#[async_trait]
impl<W: Words> ChannelSender<W::Out> for Sender<W> {
    async fn send(&mut self, mut message: W::Out) -> Result<(), TransportError> {
        loop {
            match self.shared.take(message) {
                Ok(taken) => return taken,
                Err(back) => message = back,
            }
            self.shared.room.notified().await;
        }
    }

    async fn close(&mut self) {
        self.close_with(None).await;
    }

    async fn close_for(&mut self, reason: CloseReason) {
        self.close_with(Some(&reason)).await;
    }
}

impl<W: Words> Sender<W> {
    async fn close_with(&self, reason: Option<&CloseReason>) {
        self.shared.order(|state| state.machine.close(reason, now()));
        // The machine is bounded in time.
        while !self.shared.lock().done {
            self.shared.room.notified().await;
        }
    }
}

impl<W: Words> Drop for Sender<W> {
    fn drop(&mut self) {
        self.shared.leave(false);
    }
}

#[derive(Debug)]
struct Receiver<W: Words> {
    shared: Arc<Shared<W>>,
}

impl<W: Words> Receiver<W> {
    fn next(&self) -> Option<Result<Option<W::In>, TransportError>> {
        let (message, task) = {
            let mut state = self.shared.lock();
            let full = !state.machine.wants_read();
            let Some(message) = state.machine.pop(now()) else {
                let cause = state.machine.ended()?;
                return Some(ended(cause, state.machine.is_relay()).map_or(Ok(None), Err));
            };
            // What was left over may have been read: there may be something to answer.
            let machine = &state.machine;
            let more = machine.wants_read() || machine.wants_write() || machine.is_over();
            let task = if full && more { state.task.clone() } else { None };
            (message, task)
        };
        if let Some(task) = task {
            task.wake();
        }
        Some(Ok(Some(message)))
    }
}

#[async_trait]
impl<W: Words> ChannelReceiver<W::In> for Receiver<W> {
    async fn receive(&mut self) -> Result<Option<W::In>, TransportError> {
        loop {
            if let Some(next) = self.next() {
                return next;
            }
            self.shared.news.notified().await;
        }
    }
}

impl<W: Words> Drop for Receiver<W> {
    fn drop(&mut self) {
        self.shared.leave(true);
    }
}
