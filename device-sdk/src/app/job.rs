//! A job as its handler sees it.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use relay_core::{
    app::{Progress, print::PrintTicket},
    ids::{AppName, DeviceId, RequestId},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::run::{Run, Taken};
use crate::handler::HandlerError;

/// How much of what is there already is hashed at a time.
const PIECE: usize = 64 * 1024;

/// A piece of work for one of the device's apps: a document to print, say.
///
/// Where its data comes from, and how often that broke off and was gone on with, a handler does not see: it reads
/// [`next`](Self::next) until there is no more. The data comes as fast as it is taken; what is not taken is not fetched.
/// What came was checked against the sender's SHA-256 before [`next`](Self::next) says that it was all.
///
/// A job is cancelled when nobody wants it any more; then [`next`](Self::next) ends in an error. A handler that is at
/// work after the last byte asks [`is_cancelled`](Self::is_cancelled) or waits for [`cancelled`](Self::cancelled).
pub struct Job {
    pub(super) of: Arc<Of>,
    pub(super) run: Arc<watch::Sender<Run>>,
    pub(super) cancelled: CancellationToken,
}

/// What a job is.
#[derive(Debug)]
pub(super) struct Of {
    pub(super) id: RequestId,
    pub(super) app: AppName,
    pub(super) device: DeviceId,
    pub(super) traceparent: Option<Box<str>>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("id", &self.of.id).field("app", &self.of.app).finish_non_exhaustive()
    }
}

impl Job {
    /// Its ID, the same at service, relay and device, and whenever it is offered again: what an app that must not do a
    /// job twice keeps its work under.
    pub fn id(&self) -> &RequestId {
        &self.of.id
    }

    /// Whose work it is, if the handler serves several apps.
    pub fn app(&self) -> &AppName {
        &self.of.app
    }

    /// Which device it is for: this one, or one behind it.
    pub fn device(&self) -> &DeviceId {
        &self.of.device
    }

    /// The service's W3C trace context, to be the parent of the handler's own span.
    pub fn traceparent(&self) -> Option<&str> {
        self.of.traceparent.as_deref()
    }

    /// What the service says of the job before its data comes: one XML element.
    ///
    /// # Errors
    /// The job was cancelled.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost.
    pub async fn header(&mut self) -> Result<Box<str>, HandlerError> {
        self.wait(|run| run.header()).await
    }

    /// The header, read as a print job's: user, job name, media type, and what else the ticket says.
    ///
    /// # Errors
    /// The job was cancelled, or its header is none.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost.
    pub async fn ticket(&mut self) -> Result<PrintTicket, HandlerError> {
        PrintTicket::from_header(&self.header().await?)
            .map_err(|error| HandlerError::other("bad-ticket", format!("the job's ticket: {error}")))
    }

    /// The next bytes, in order; `None` once all were given and found to be what was sent. Waits for as long as the
    /// connection is gone.
    ///
    /// # Errors
    /// The job was cancelled (`cancelled`), or what came is not what was sent (`bad-data`): what was taken is to be
    /// thrown away.
    ///
    /// # Cancel safety
    /// Dropped before it resolved, no byte is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HandlerError> {
        self.wait(|run| match run.take() {
            Taken::Data(bytes) => Some(Ok(Some(bytes))),
            Taken::End => Some(Ok(None)),
            Taken::Failed(error) => Some(Err(error)),
            Taken::Wait => None,
        })
        .await?
    }

    /// Begins after what is on this device already, from an earlier run of the same job: reads `had` to its end, which
    /// is where the data then goes on, so that the check at the end is of the whole. How many bytes there were.
    ///
    /// To be said before anything else is asked of the job; after [`next`](Self::next) it is too late.
    ///
    /// # Errors
    /// `had` could not be read, or it is too late.
    pub async fn resume_with(
        &mut self,
        had: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<u64, HandlerError> {
        let (mut hasher, mut offset) = (Sha256::new(), 0);
        let mut piece = vec![0; PIECE];
        loop {
            match had.read(&mut piece).await? {
                0 => break,
                read => {
                    hasher.update(&piece[..read]);
                    offset += read as u64;
                }
            }
        }
        self.begin_at(offset, Some(hasher)).map(|()| offset)
    }

    /// Begins at `offset`: what is before it was taken by an earlier run of the same job, and is not to be had any more
    /// (it is on paper). The check at the end is then of the length alone; where the bytes are still there,
    /// [`resume_with`](Self::resume_with) is better.
    ///
    /// # Errors
    /// It is too late: [`next`](Self::next) gave bytes already.
    pub fn resume_from(&mut self, offset: u64) -> Result<(), HandlerError> {
        self.begin_at(offset, (offset == 0).then(Sha256::new))
    }

    fn begin_at(&self, offset: u64, hasher: Option<Sha256>) -> Result<(), HandlerError> {
        let mut in_time = false;
        self.run.send_modify(|run| in_time = run.begin_at(crate::now(), offset, hasher));
        let late = || HandlerError::other("too-late-to-resume", "a job is resumed before its data is taken");
        in_time.then_some(()).ok_or_else(late)
    }

    /// Takes all of the data into `sink`, and flushes it. How many bytes that were.
    ///
    /// # Errors
    /// As [`next`](Self::next), or what `sink` says.
    ///
    /// # Cancel safety
    /// Dropped half-way, it is not known what `sink` has.
    pub async fn copy_to(
        &mut self,
        sink: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64, HandlerError> {
        let mut copied = 0;
        while let Some(bytes) = self.next().await? {
            sink.write_all(&bytes).await?;
            copied += bytes.len() as u64;
        }
        sink.flush().await?;
        Ok(copied)
    }

    /// The data as a stream; `tokio_util::io::StreamReader` makes an `AsyncRead` of it.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, HandlerError>> + Send {
        futures_util::stream::unfold(Some(self), |job| async move {
            let mut job = job?;
            match job.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(job))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Tells the service how far the app is: so many bytes are done with, and words for people (which page, which tray;
    /// none if empty). Said as often as the handler likes; passed on at most once a second. Without it the service is
    /// told how many bytes were taken.
    pub fn progress(&self, bytes: u64, note: &str) {
        let progress = Progress::new(bytes);
        let progress = if note.is_empty() { progress } else { progress.with_note(note) };
        self.run.send_if_modified(|run| run.progress(progress));
    }

    /// Resolves when nobody wants the job any more, or the device is shut down. The handler is not stopped: only it
    /// knows where it can be.
    ///
    /// # Cancel safety
    /// Dropped and asked again, it resolves all the same.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Whether [`cancelled`](Self::cancelled) would resolve at once.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Waits until `ask` has an answer, or the job is cancelled.
    async fn wait<T>(&self, mut ask: impl FnMut(&mut Run) -> Option<T> + Send) -> Result<T, HandlerError>
    where
        T: Send,
    {
        let mut changed = self.run.subscribe();
        loop {
            if self.is_cancelled() {
                return Err(cancelled());
            }
            changed.mark_unchanged();
            let mut answer = None;
            // Those who link and speak are to hear of room and of the first wish, not of every look.
            self.run.send_if_modified(|run| {
                let had_begun = run.has_begun();
                answer = ask(run);
                answer.is_some() || !had_begun
            });
            if let Some(answer) = answer {
                return Ok(answer);
            }
            tokio::select! {
                biased;
                () = self.cancelled.cancelled() => {}
                _ = changed.changed() => {}
            }
        }
    }
}

/// What a handler is told of a job that nobody wants.
pub(super) fn cancelled() -> HandlerError {
    HandlerError::other("cancelled", "nobody wants the job any more")
}
