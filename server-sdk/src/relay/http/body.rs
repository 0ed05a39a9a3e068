//! Bodies: reading them within bounds of size and time (B4, B9), and giving them, whole or as they come.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{self, Relaxed},
        },
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::header;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    App,
    access::Ticket,
    door::Place,
    link::held_back,
    problem::{Code, Problem},
};

/// An answer.
pub(super) type Reply = http::Response<ReplyBody>;

/// A body: in memory, or as it comes. It is given in pieces that the connection's write buffer can forget again.
#[derive(Debug, Default)]
pub(super) struct ReplyBody {
    bytes: Bytes,
    rest: Option<Box<Rest>>,
    ticket: Option<Ticket>,
}

/// What of a streamed body is still to come.
#[derive(Debug)]
struct Rest {
    pieces: mpsc::Receiver<Bytes>,
    whole: Arc<AtomicBool>,
    busy: Option<Busy>,
}

/// A connection whose answer is still being written: it does not rest, however long the next piece takes.
#[derive(Debug)]
struct Busy(Arc<Place>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.link.idle();
    }
}

impl ReplyBody {
    /// A body that is given as it comes. A peer that does not read it keeps [`Pieces::send`] waiting, until the
    /// connection's write time-out ends both.
    pub(super) fn stream() -> (Pieces, Self) {
        let (sender, pieces) = mpsc::channel(WAITING);
        let whole = Arc::new(AtomicBool::new(false));
        let rest = Box::new(Rest { pieces, whole: whole.clone(), busy: None });
        (Pieces { sender, whole }, Self { rest: Some(rest), ..Self::default() })
    }

    /// The call counts as in flight until its answer is on its way: memory that nobody reads has a bound, too.
    pub(super) fn hold(&mut self, ticket: Option<Ticket>) {
        self.ticket = ticket;
    }

    /// The answer is ready to be written on the connection of `place`.
    pub(super) fn begin(&mut self, place: &Arc<Place>) {
        match &mut self.rest {
            Some(rest) => rest.busy = Some(Busy(place.clone())),
            None => place.link.idle(),
        }
    }
}

/// The writing end of a streamed body. Dropped without [`finish`](Self::finish), the body breaks off, and its reader
/// can tell: part of an answer is never taken for all of it.
#[derive(Debug)]
pub(super) struct Pieces {
    sender: mpsc::Sender<Bytes>,
    whole: Arc<AtomicBool>,
}

impl Pieces {
    /// Sends one more piece, once there is room for it.
    ///
    /// # Errors
    /// [`HungUp`]: nobody reads any more, and nobody will.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, nothing of the piece was sent.
    pub(super) async fn send(&self, piece: impl Into<Bytes>) -> Result<(), HungUp> {
        self.sender.send(piece.into()).await.map_err(|_| HungUp)
    }

    /// Resolves once nobody reads any more.
    pub(super) async fn hung_up(&self) {
        self.sender.closed().await;
    }

    /// That was all.
    pub(super) fn finish(self) {
        self.whole.store(true, Ordering::Release);
    }
}

/// Whoever the answer was for is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller hung up")]
pub(super) struct HungUp;

/// Whoever wrote the answer is gone before it was whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer broke off")]
pub(super) struct BrokenOff;

/// The largest piece: hyper keeps a write buffer as large as the largest piece that ever went through it.
const PIECE: usize = 16 * 1024;
/// Pieces of a streamed body that wait for the connection.
const WAITING: usize = 4;

impl From<Bytes> for ReplyBody {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, ..Self::default() }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        while self.bytes.is_empty() {
            let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
            match ready!(rest.pieces.poll_recv(cx)) {
                Some(piece) => self.bytes = piece,
                None if rest.whole.load(Ordering::Acquire) => self.rest = None,
                None => return Poll::Ready(Some(Err(BrokenOff))),
            }
        }
        let piece = PIECE.min(self.bytes.len());
        Poll::Ready(Some(Ok(Frame::data(self.bytes.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest {
            Some(_) => SizeHint::new(),
            None => SizeHint::with_exact(self.bytes.len() as u64),
        }
    }
}

/// Bodies up to this size are copied out of the connection's read buffer, which would otherwise live as long as they.
const COPIED: usize = 4 * 1024;

/// Refuses bodies that are encoded: nothing here decodes them (T31).
pub(super) fn refuse_encoded(headers: &http::HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(Problem::new(
            Code::UnsupportedMediaType,
            "Content-Encoding is not taken; send the body as it is",
        )
        .closing()),
        _ => Ok(()),
    }
}

/// What bodies that are being read may take, all together.
#[derive(Debug)]
pub(super) struct Reading {
    taken: AtomicUsize,
    max: usize,
}

impl Reading {
    pub(super) const fn new(max: usize) -> Self {
        Self { taken: AtomicUsize::new(0), max }
    }
}

/// One body's part of it, given back when dropped.
struct Share<'a> {
    all: &'a Reading,
    size: usize,
}

impl Share<'_> {
    fn grow(&mut self, by: usize) -> Result<(), Problem> {
        self.size += by;
        if self.all.taken.fetch_add(by, Relaxed) + by > self.all.max {
            return Err(Problem::new(Code::Overloaded, "too much is being sent to the relay at once")
                .retry_after(Duration::from_secs(1))
                .closing());
        }
        Ok(())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.all.taken.fetch_sub(self.size, Relaxed);
    }
}

/// Reads a body of at most `max` bytes.
///
/// # Errors
/// 413 as soon as the size is known or the byte over the bound came; 408 if it comes too slowly; 503 if there is no
/// memory for it.
pub(super) async fn read(mut body: Incoming, max: usize, app: &App) -> Result<Bytes, Problem> {
    // Most bodies came along with their head: no clock is looked at for those.
    match poll_fn(|cx| Poll::Ready(begin(&mut body, max, cx))).await? {
        Begun::All(bytes) => Ok(bytes),
        Begun::Part(bytes) => Box::pin(read_on(body, bytes, max, app)).await,
    }
}

/// What of a body is there at once.
enum Begun {
    All(Bytes),
    Part(Bytes),
}

fn begin(body: &mut Incoming, max: usize, cx: &mut Context<'_>) -> Result<Begun, Problem> {
    let announced = body.size_hint().lower();
    if announced > max as u64 {
        return Err(too_large(max));
    }
    if body.is_end_stream() {
        return Ok(Begun::All(Bytes::new()));
    }
    // Who takes a piece of a body wakes whoever reads the connection for the next one, also after the last, when there
    // is nothing more to be read: half of all turns of a connection would be for that.
    let (frame, woken) = held_back(|| Pin::new(&mut *body).poll_frame(cx));
    if woken && !body.is_end_stream() {
        cx.waker().wake_by_ref();
    }
    match frame {
        Poll::Pending => Ok(Begun::Part(Bytes::new())),
        Poll::Ready(None) => Ok(Begun::All(Bytes::new())),
        Poll::Ready(Some(frame)) => {
            let bytes = data(frame)?;
            if bytes.len() > max {
                return Err(too_large(max));
            }
            if !body.is_end_stream() && bytes.len() as u64 != announced {
                return Ok(Begun::Part(bytes));
            }
            Ok(Begun::All(if bytes.len() <= COPIED { Bytes::copy_from_slice(&bytes) } else { bytes }))
        }
    }
}

async fn read_on(mut body: Incoming, begun: Bytes, max: usize, app: &App) -> Result<Bytes, Problem> {
    let limits = &app.limits;
    let mut share = Share { all: &app.reading, size: 0 };
    share.grow(begun.len())?;
    // What is announced is not yet there: memory follows what came.
    let mut all = BytesMut::from(&*begun);
    drop(begun);
    let start = Instant::now();
    let mut last = start;
    loop {
        let by_rate = start
            + limits
                .body_idle_timeout
                .max(Duration::from_secs_f64(all.len() as f64 / f64::from(limits.body_min_rate.max(1))));
        let deadline = (last + limits.body_idle_timeout).min(start + limits.body_timeout).min(by_rate);
        let frame = timeout_at(deadline, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)));
        let Ok(frame) = frame.await else {
            let words = format!("the body came too slowly: {} bytes so far", all.len());
            return Err(Problem::new(Code::TooSlow, words).closing());
        };
        let Some(frame) = frame else { return Ok(all.freeze()) };
        let bytes = data(frame)?;
        if all.len() + bytes.len() > max {
            return Err(too_large(max));
        }
        share.grow(bytes.len())?;
        all.extend_from_slice(&bytes);
        last = Instant::now();
    }
}

fn data(frame: Result<Frame<Bytes>, hyper::Error>) -> Result<Bytes, Problem> {
    match frame {
        // Trailers are nothing that we know.
        Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
        Err(error) => {
            Err(Problem::bad(format!("the body broke off or is not framed as announced: {error}")).closing())
        }
    }
}

fn too_large(max: usize) -> Problem {
    Problem::new(Code::TooLarge, format!("the body has more than {max} bytes")).closing()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(body: &mut ReplyBody) -> Option<Result<Bytes, BrokenOff>> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().expect("data")))
    }

    #[tokio::test]
    async fn a_streamed_body_waits_for_its_reader_and_ends_when_it_is_finished() {
        let (pieces, mut body) = ReplyBody::stream();
        for _ in 0..WAITING {
            pieces.send("line\n").await.unwrap();
        }
        assert!(timeout_at(Instant::now(), pieces.send("more")).await.is_err(), "there is no room");
        assert_eq!(next(&mut body).await, Some(Ok(Bytes::from("line\n"))));
        pieces.send(vec![b'x'; PIECE + 1]).await.unwrap();
        pieces.finish();
        let mut rest = Vec::new();
        while let Some(piece) = next(&mut body).await {
            rest.push(piece.unwrap().len());
        }
        assert_eq!(rest, [5, 5, 5, PIECE, 1]);
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn f3_a_streamed_body_that_nobody_finished_breaks_off() {
        let (pieces, mut body) = ReplyBody::stream();
        pieces.send("half a").await.unwrap();
        drop(pieces);
        assert_eq!(next(&mut body).await, Some(Ok(Bytes::from("half a"))));
        assert_eq!(next(&mut body).await, Some(Err(BrokenOff)));
    }

    #[tokio::test]
    async fn whoever_writes_a_streamed_body_learns_that_its_reader_is_gone() {
        let (pieces, body) = ReplyBody::stream();
        drop(body);
        pieces.hung_up().await;
        assert_eq!(pieces.send("x").await, Err(HungUp));
    }
}
