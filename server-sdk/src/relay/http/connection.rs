//! One connection from its first byte to its last: hyper's HTTP/1.1 machine, held to our time-outs.
//!
//! hyper's own head time-out also counts the rest between two requests, so the bounds are kept here: each [`Phase`]
//! has a deadline, and one sleep per connection, moved lazily, watches the nearest.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{
    Edge,
    door::Place,
    link::{Link, Order, Phase, Watched},
    problem::{Code, Problem},
    ws,
};
use crate::relay::config::HttpLimits;

/// How long what nobody wants is still read after the last answer: a close with unread bytes would be a reset, which
/// may overtake the answer.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// HTTP says that it is done.
    Done,
    /// A head did not come in time.
    TooSlow,
    /// It had to make room.
    Shed,
    /// Idle for too long, or told to go.
    Cut,
    /// The peer does not read.
    Stalled,
}

/// The HTTP machine's settings, the same for all connections.
pub(super) fn builder(limits: &HttpLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .half_close(false)
        .auto_date_header(false)
        .max_header_size(limits.max_head)
        // Buffers begin with 8 KiB each way; this is how far a large head may make the one for reading grow.
        .max_buf_size(limits.max_head.max(8192))
        .writev(false);
    builder
}

/// Serves one connection until it ends.
pub(super) async fn serve(stream: TcpStream, place: Arc<Place>, edge: Edge) {
    let link = &place.link;
    let (end, stream, early) = {
        let app = edge.app.clone();
        let io = TokioIo::new(Watched { stream, link: link.clone() });
        let mut connection = app.http.serve_connection(io, edge);
        let mut clock = Clock::new(link, &app.limits);
        // Not the task's own: `body` holds back the wakes that mean nothing.
        let waker = Waker::from(link.clone());
        let end = {
            let mut sleep = pin!(sleep_until(clock.armed));
            let mut draining = false;
            poll_fn(|cx| {
                link.waker.register(cx.waker());
                match link.order() {
                    Order::None => {}
                    Order::Drain if draining => {}
                    Order::Drain => {
                        draining = true;
                        Pin::new(&mut connection).graceful_shutdown();
                    }
                    Order::Shed => return Poll::Ready(End::Shed),
                    Order::Abort => return Poll::Ready(End::Cut),
                }
                if let Poll::Ready(result) = Pin::new(&mut connection).poll(&mut Context::from_waker(&waker))
                {
                    if let Err(error) = result {
                        tracing::debug!(peer = %link.peer, %error, "connection broke");
                        drop(place.take_upgrade());
                    }
                    return Poll::Ready(End::Done);
                }
                loop {
                    match clock.look(link, sleep.as_mut()) {
                        Look::Over(end) => return Poll::Ready(end),
                        Look::Rest | Look::Watched => return Poll::Pending,
                        Look::Watch if sleep.as_mut().poll(cx).is_pending() => return Poll::Pending,
                        Look::Watch => {}
                    }
                }
            })
            .await
        };
        // The machine goes now, with its buffers and the call that may still run in it; the socket stays.
        if end == End::Shed {
            app.metrics.refused.fetch_add(1, Relaxed);
        }
        let parts = connection.into_parts();
        (end, parts.io.into_inner().stream, parts.read_buf)
    };
    match place.take_upgrade() {
        Some(accepted) if end == End::Done => ws::attach(*accepted, stream, &early, place),
        _ => finish(stream, end, link).await,
    }
}

/// Says what can still be said, and closes.
async fn finish(mut stream: TcpStream, end: End, link: &Link) {
    let words = match end {
        End::Done => None,
        End::TooSlow => Some(Problem::new(Code::TooSlow, "the request's head did not come in time")),
        End::Shed => Some(
            Problem::new(Code::Overloaded, "too many connections without a credential")
                .retry_after(Duration::from_secs(5)),
        ),
        End::Cut => return,
        End::Stalled => {
            tracing::debug!(peer = %link.peer, "connection cut: its peer does not read");
            // A reset: what the peer does not read is not kept for it.
            let _ = stream.set_zero_linger();
            return;
        }
    };
    if let Some(problem) = words {
        tracing::debug!(peer = %link.peer, %problem, "connection cut");
        if link.blocked() || stream.try_write(&problem.raw()).is_err() {
            return;
        }
    }
    if link.ended() || stream.shutdown().await.is_err() {
        return;
    }
    let _ = timeout(LINGER, async {
        let mut rest = LINGER_BYTES;
        // Not in the task itself: every connection would carry it from its first byte on.
        let mut scrap = vec![0u8; 4096];
        while let Ok(read @ 1..) = stream.read(&mut scrap).await {
            rest = rest.saturating_sub(read);
            if rest == 0 {
                break;
            }
        }
    })
    .await;
}

/// What a look at the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Nothing to wait for but the network.
    Rest,
    /// Wait for the sleep as well, which has to be polled first.
    Watch,
    /// Wait for the sleep as well.
    Watched,
    /// Time is up.
    Over(End),
}

/// The deadlines of one connection.
#[derive(Debug)]
struct Clock {
    head: Duration,
    idle: Duration,
    write: Duration,
    /// What the deadline is of.
    phase: Phase,
    writes: u32,
    deadline: Option<Instant>,
    /// Set while the peer's window is closed: when that is too long, and the writes so far.
    stall: Option<(Instant, u32)>,
    /// When the sleep will look up.
    armed: Instant,
    /// Whether it was polled since it was set: it wakes this task then, and no other poll of it says more than
    /// [`Sleep::is_elapsed`].
    watched: bool,
}

impl Clock {
    fn new(link: &Link, limits: &HttpLimits) -> Self {
        let deadline = Instant::now() + limits.head_timeout;
        Self {
            head: limits.head_timeout,
            idle: limits.idle_timeout,
            write: limits.write_timeout,
            phase: Phase::Fresh,
            writes: link.writes(),
            deadline: Some(deadline),
            stall: None,
            armed: deadline,
            watched: false,
        }
    }

    fn look(&mut self, link: &Link, sleep: Pin<&mut Sleep>) -> Look {
        self.follow(link);
        let stall = self.stall.map(|(at, _)| at);
        let Some(next) = self.deadline.into_iter().chain(stall).min() else { return Look::Rest };
        if sleep.is_elapsed() {
            let now = Instant::now();
            if next <= now {
                if let Some(end) = self.expire(link, now) {
                    return Look::Over(end);
                }
                return self.look(link, sleep);
            }
            self.set(next, sleep);
        } else if next < self.armed {
            self.set(next, sleep);
        }
        if std::mem::replace(&mut self.watched, true) { Look::Watched } else { Look::Watch }
    }

    fn set(&mut self, next: Instant, sleep: Pin<&mut Sleep>) {
        sleep.reset(next);
        (self.armed, self.watched) = (next, false);
    }

    /// Follows the connection into its phase.
    fn follow(&mut self, link: &Link) {
        let (phase, writes) = (link.phase(), link.writes());
        // Between two looks a whole request may have passed: then this is another head.
        if phase != self.phase || (phase == Phase::Head && writes != self.writes) {
            self.deadline = match phase {
                // All of the first head has to come within one head time, from when the connection was there.
                Phase::Fresh => self.deadline,
                Phase::Head if self.phase == Phase::Fresh => self.deadline,
                Phase::Head => Some(Instant::now() + self.head),
                Phase::Busy => None,
                Phase::Idle => Some(Instant::now() + self.rest(link)),
            };
            (self.phase, self.writes) = (phase, writes);
        }
        self.stall = match self.stall {
            _ if !link.blocked() => None,
            Some((at, before)) if before == writes => Some((at, writes)),
            _ => Some((Instant::now() + self.write, writes)),
        };
    }

    fn rest(&self, link: &Link) -> Duration {
        // A stranger is given a head's time, however many unauthenticated answers it had.
        if link.trusted() { self.idle } else { self.head.min(self.idle) }
    }

    fn expire(&mut self, link: &Link, now: Instant) -> Option<End> {
        if self.stall.is_some_and(|(at, _)| at <= now) {
            return Some(End::Stalled);
        }
        match self.phase {
            Phase::Fresh => Some(End::Cut),
            Phase::Head => Some(End::TooSlow),
            // It answered since the deadline was set, or is still writing: not idle.
            Phase::Idle if self.writes != link.writes() || link.blocked() => {
                self.writes = link.writes();
                self.deadline = Some(now + self.rest(link));
                None
            }
            Phase::Idle => Some(End::Cut),
            Phase::Busy => None,
        }
    }
}
