//! One TCP connection as the rest of the house sees it: what it is doing, and what it was told to do.
//!
//! The connection's own task is the only one that moves it on; others may only give it an [`Order`]. It is kept in
//! atomics so that neither needs a lock.
//!
//! ```text
//! Fresh ──byte──▶ Head ──head read──▶ Busy ──answer ready──▶ Idle ──byte──▶ Head …
//! ```

use std::{
    cell::Cell,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What a connection is doing. Each but `Busy` is bounded in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Accepted; no byte yet.
    Fresh,
    /// A request's head is coming in.
    Head,
    /// A request is being read or answered; whoever answers it sets the bound.
    Busy,
    /// An answer was given; the next request may come.
    Idle,
}

/// What a connection is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Go on.
    None,
    /// Finish what runs, take nothing new.
    Drain,
    /// Make room for others: 503 and close.
    Shed,
    /// Close at once.
    Abort,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: IpAddr,
    phase: AtomicU8,
    /// The last write found the peer's window closed.
    blocked: AtomicBool,
    /// Writes that took something: moves on as long as the peer reads.
    writes: AtomicU32,
    /// The peer sends no more.
    ended: AtomicBool,
    /// Somebody who may was seen on it.
    trusted: AtomicBool,
    order: AtomicU8,
    pub(super) waker: AtomicWaker,
    /// Its places in the registry's lists; written under the registry's lock only.
    pub(super) place: AtomicUsize,
    pub(super) door_place: AtomicUsize,
}

impl Link {
    pub(super) fn new(peer: IpAddr) -> Self {
        Self {
            peer,
            phase: AtomicU8::new(Phase::Fresh as u8),
            blocked: AtomicBool::new(false),
            writes: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            trusted: AtomicBool::new(false),
            order: AtomicU8::new(Order::None as u8),
            waker: AtomicWaker::new(),
            place: AtomicUsize::new(usize::MAX),
            door_place: AtomicUsize::new(usize::MAX),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Fresh,
            1 => Phase::Head,
            2 => Phase::Busy,
            _ => Phase::Idle,
        }
    }

    /// A request's head was read.
    pub(super) fn busy(&self) {
        self.phase.store(Phase::Busy as u8, Relaxed);
    }

    /// An answer is ready to be written.
    pub(super) fn idle(&self) {
        self.phase.store(Phase::Idle as u8, Relaxed);
    }

    pub(super) fn blocked(&self) -> bool {
        self.blocked.load(Relaxed)
    }

    pub(super) fn writes(&self) -> u32 {
        self.writes.load(Relaxed)
    }

    pub(super) fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    pub(super) fn trusted(&self) -> bool {
        self.trusted.load(Relaxed)
    }

    /// Notes that it is trusted; whether it was not before.
    pub(super) fn trust(&self) -> bool {
        !self.trusted.load(Relaxed) && !self.trusted.swap(true, Relaxed)
    }

    pub(super) fn order(&self) -> Order {
        match self.order.load(Relaxed) {
            0 => Order::None,
            1 => Order::Drain,
            2 => Order::Shed,
            _ => Order::Abort,
        }
    }

    /// Gives an order; a stronger one stands.
    pub(super) fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Relaxed);
        self.waker.wake();
    }
}

thread_local! {
    /// While wakes on this thread are held back: whether there was one.
    static HELD_BACK: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Does `work`, which wakes no connection of this thread; what came of it, and whether it would have.
pub(super) fn held_back<T>(work: impl FnOnce() -> T) -> (T, bool) {
    struct Guard(Option<bool>);
    impl Drop for Guard {
        fn drop(&mut self) {
            HELD_BACK.set(self.0);
        }
    }
    let guard = Guard(HELD_BACK.replace(Some(false)));
    let done = work();
    let woken = HELD_BACK.get() == Some(true);
    drop(guard);
    (done, woken)
}

/// What wakes the connection's task, as the HTTP machine sees it.
impl Wake for Link {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if HELD_BACK.get().is_some() {
            HELD_BACK.set(Some(true));
        } else {
            self.waker.wake();
        }
    }
}

/// The socket of a [`Link`], which notes what passes.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) link: Arc<Link>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = result {
            if buffer.filled().len() == before {
                self.link.ended.store(true, Relaxed);
            } else if matches!(self.link.phase(), Phase::Fresh | Phase::Idle) {
                self.link.phase.store(Phase::Head as u8, Relaxed);
            }
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        match &result {
            Poll::Pending => self.link.blocked.store(true, Relaxed),
            Poll::Ready(_) => {
                self.link.blocked.store(false, Relaxed);
                self.link.writes.fetch_add(1, Relaxed);
            }
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
