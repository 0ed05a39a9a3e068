//! Printing, and jobs for other apps: a document goes out, progress comes back.

use std::{fmt, path::Path, sync::Mutex, time::Duration};

use bytes::Bytes;
use relay_core::{
    app::{JobState, JobUpdate},
    ids::{AppName, DeviceId, DocumentId, RequestId},
    outcome::Outcome,
};
use reqwest::{
    Method,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::Deserialize;
use tokio::{
    io::AsyncRead,
    time::{Instant, sleep},
};

use super::{
    Client, Error, ErrorKind,
    error::kind_of,
    http::Following,
    upload::{Content, Sending},
};

/// How long it is tried to go on with a job whose connection broke: as long as a relay by default waits for that.
const RESUME: Duration = Duration::from_secs(60);
/// The pause before the first try.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is printed, and how: the ticket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct PrintJob {
    app: Option<AppName>,
    content_type: Option<String>,
    ticket: Vec<(String, String)>,
}

impl PrintJob {
    /// A ticket that says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who prints.
    pub fn user(self, user: impl Into<String>) -> Self {
        self.attribute("user", user)
    }

    /// What the job is called.
    pub fn job_name(self, name: impl Into<String>) -> Self {
        self.attribute("job_name", name)
    }

    /// The document's media type. A device that lacks it refuses before any byte moves.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// What else the ticket says: copies, sides, media.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.ticket.push((name.into(), value.into()));
        self
    }

    /// Another app than `print` is to do it.
    pub fn app(mut self, app: AppName) -> Self {
        self.app = Some(app);
        self
    }
}

/// A job that its document is still to be given to.
#[derive(Debug)]
#[must_use = "a job without its document is not sent"]
pub struct Printing {
    client: Client,
    device: DeviceId,
    job: PrintJob,
}

impl Printing {
    pub(super) const fn new(client: Client, device: DeviceId, job: PrintJob) -> Self {
        Self { client, device, job }
    }

    /// Sends `bytes`. Resolves once the device took the job, and goes on sending.
    ///
    /// # Errors
    /// [`Error`]: the device did not take the job; [`Error::is_safe_to_retry`] says whether it has certainly not begun.
    /// [`ErrorKind::DeviceError`] is its own error state, such as a paper jam.
    ///
    /// # Cancel safety
    /// Dropped, the job is cancelled unless the device took it just then.
    pub async fn bytes(self, bytes: impl Into<Bytes>) -> Result<JobStream, Error> {
        self.send(Content::Bytes(bytes.into())).await
    }

    /// Sends the file at `path`, of any size, piece by piece.
    ///
    /// # Errors
    /// As [`Printing::bytes`], and [`ErrorKind::Invalid`] if it cannot be read.
    ///
    /// # Cancel safety
    /// As [`Printing::bytes`].
    pub async fn file(self, path: impl AsRef<Path>) -> Result<JobStream, Error> {
        let path = path.as_ref().to_owned();
        let looked = path.clone();
        // Opened as well: that it is there is not enough.
        let length = tokio::task::spawn_blocking(move || std::fs::File::open(looked)?.metadata());
        let length = length.await.map_err(std::io::Error::other).flatten();
        let unreadable = |error| {
            let words = format!("{} cannot be read", path.display());
            Error::new(ErrorKind::Invalid, words).with_source(error)
        };
        let length = length.map_err(unreadable)?.len();
        self.send(Content::File(path, length)).await
    }

    /// Sends what `stream` gives. If the connection breaks before it is sent, the job cannot be gone on with.
    ///
    /// # Errors
    /// As [`Printing::bytes`].
    ///
    /// # Cancel safety
    /// As [`Printing::bytes`].
    pub async fn stream(self, stream: impl AsyncRead + Send + 'static) -> Result<JobStream, Error> {
        self.send(Content::Stream(Mutex::new(Some(Box::pin(stream))))).await
    }

    /// Prints a document that is kept on the relay.
    ///
    /// # Errors
    /// As [`Printing::bytes`].
    ///
    /// # Cancel safety
    /// As [`Printing::bytes`].
    pub async fn kept(mut self, document: &DocumentId) -> Result<JobStream, Error> {
        self.job = self.job.attribute("document", document.as_str());
        self.send(Content::Bytes(Bytes::new())).await
    }

    async fn send(self, mut content: Content) -> Result<JobStream, Error> {
        let Self { client, device, job } = self;
        let app = job.app.as_ref().map_or("print", |app| app.as_str());
        let ticket: Vec<_> = job.ticket.iter().map(|(name, value)| (&**name, value)).collect();
        let segments = ["devices", device.as_str(), "apps", app];
        let mut call = client.http.call_with_query(Method::POST, &segments, &ticket);
        if let Some(content_type) = &job.content_type {
            call = call.header(CONTENT_TYPE, content_type);
        }
        // RFC 7240 §4.3 counts whole seconds.
        let seconds = client.wait.as_secs() + u64::from(client.wait.subsec_nanos() > 0);
        call = call.header("Prefer", format!("wait={seconds}"));
        let mut sending = content.rest(0).ok_or_else(|| Error::new(ErrorKind::Invalid, "nothing to send"))?;
        let (body, length) = sending.take();
        if let Some(length) = length {
            call = call.header(CONTENT_LENGTH, length);
        }
        let following = client.http.follow(call.body(body), client.wait, || sending.moved()).await?;
        sending.open();
        let id = following.id.clone();
        Ok(JobStream {
            client,
            device,
            id,
            content,
            sending,
            base: 0,
            following: Some(following),
            over: false,
        })
    }
}

/// A job under way: how it goes, update by update. A connection that breaks is made anew, and what of the document the
/// relay lacks is sent again.
///
/// Dropped before the document is sent, the job fails, unless another goes on with it; after that it goes on by itself.
/// [`JobStream::cancel`] ends it.
pub struct JobStream {
    client: Client,
    device: DeviceId,
    id: RequestId,
    content: Content,
    sending: Sending,
    /// Where in the document `sending` begins.
    base: u64,
    following: Option<Following>,
    over: bool,
}

impl fmt::Debug for JobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobStream")
            .field("device", &self.device)
            .field("id", &self.id)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// What the relay says of a job: a line of progress, or all of it.
#[derive(Debug, Deserialize)]
struct Told {
    state: String,
    #[serde(default)]
    bytes: u64,
    note: Option<String>,
    code: Option<String>,
    detail: Option<String>,
    outcome: Option<String>,
    offset: Option<u64>,
}

impl Told {
    fn state(&self) -> JobState {
        state_of(&self.state)
    }
}

/// The state that a word stands for.
pub(super) fn state_of(word: &str) -> JobState {
    use JobState as S;
    let states = [S::Offered, S::Accepted, S::Sending, S::Processing, S::Completed, S::Failed, S::Cancelled];
    // A word that a later relay may have is one for being at work.
    states.into_iter().find(|state| state.as_str() == word).unwrap_or(S::Processing)
}

impl JobStream {
    /// The job's ID.
    pub const fn id(&self) -> &RequestId {
        &self.id
    }

    /// The next that is known of the job; `None` after its end. An update may say the same as the one before it.
    ///
    /// # Errors
    /// [`Error`] if the job failed: the device's words, or why the relay ended it. [`ErrorKind::Interrupted`] if the
    /// relay could not be reached any more, or does not know the job any more: then it is not known how it ended.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost that the next call would not tell.
    pub async fn next(&mut self) -> Result<Option<JobUpdate>, Error> {
        loop {
            if self.over {
                return Ok(None);
            }
            let Some(following) = &mut self.following else {
                match self.resume().await? {
                    Some(told) => return self.tell(told),
                    None => continue,
                }
            };
            let Some(line) = following.line().await else {
                self.following = None;
                continue;
            };
            match serde_json::from_slice::<Told>(&line) {
                Ok(told) => return self.tell(told),
                Err(_) => self.following = None,
            }
        }
    }

    /// Waits for its end. Cancelled is an end, too; see the state.
    ///
    /// # Errors
    /// As [`JobStream::next`].
    ///
    /// # Cancel safety
    /// As [`JobStream::next`].
    pub async fn finished(&mut self) -> Result<JobUpdate, Error> {
        let mut last = JobUpdate::default();
        while let Some(update) = self.next().await? {
            last = update;
        }
        Ok(last)
    }

    /// Cancels the job: the device is told.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it is over already.
    ///
    /// # Cancel safety
    /// Dropped, it is cancelled or not.
    pub async fn cancel(&self) -> Result<(), Error> {
        let call = self.client.http.call(Method::DELETE, &["requests", self.id.as_str()]);
        self.client.http.inquire(call).await.map(drop)
    }

    fn tell(&mut self, told: Told) -> Result<Option<JobUpdate>, Error> {
        let state = told.state();
        if state == JobState::Failed {
            self.over = true;
            return Err(self.failed(&told));
        }
        self.over = state.is_final();
        Ok(Some(JobUpdate { state, bytes: told.bytes, note: told.note.map(Into::into) }))
    }

    fn failed(&self, told: &Told) -> Error {
        let code = told.code.as_deref().unwrap_or("failed");
        let outcome: Option<Outcome> = told.outcome.as_deref().and_then(|word| word.parse().ok());
        let kind = match kind_of(code, 0) {
            // A code of the device's own.
            ErrorKind::Refused if outcome == Some(Outcome::Answered) => ErrorKind::DeviceFailed,
            kind => kind,
        };
        let words = match &told.detail {
            Some(detail) => super::http::readable(detail),
            None => format!("the job failed: {}", super::http::readable(code)),
        };
        let status = (kind == ErrorKind::DeviceFailed).then(|| code.to_owned());
        Error::new(kind, words)
            .with_code(code)
            .with_outcome(outcome)
            .with_request_id(Some(self.id.clone()))
            .with_device_status(status)
    }

    /// Finds out how the job is and goes on with it; what is told of it if it is over.
    async fn resume(&mut self) -> Result<Option<Told>, Error> {
        let since = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.try_to_resume().await {
                Ok(told) => return Ok(told),
                Err(error) => error,
            };
            let may_pass = error.kind().may_pass() || error.kind() == ErrorKind::Conflict;
            if !may_pass || since.elapsed() + pause > RESUME {
                self.over = true;
                return Err(match error.kind() {
                    // Not known any more: it is not known either how it ended.
                    ErrorKind::Unknown => self.interrupted("the relay does not know the job any more", error),
                    _ if may_pass => {
                        self.interrupted("the connection broke, and the job could not be gone on with", error)
                    }
                    _ => error,
                });
            }
            sleep(error.retry_after().unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn interrupted(&self, words: &str, error: Error) -> Error {
        Error::new(ErrorKind::Interrupted, words).with_source(error).with_request_id(Some(self.id.clone()))
    }

    async fn try_to_resume(&mut self) -> Result<Option<Told>, Error> {
        let http = &self.client.http;
        let told: Told = http.inquire_json(http.call(Method::GET, &["requests", self.id.as_str()])).await?;
        if told.state().is_final() {
            return Ok(Some(told));
        }
        let offset = told.offset.unwrap_or(0);
        // What was read once and all sent need not be had again.
        let all_sent = self.sending.whole().map(|length| self.base + length) == Some(offset);
        let mut sending = match all_sent {
            true => Content::Bytes(Bytes::new()).rest(0),
            false => self.content.rest(offset),
        }
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "the connection broke, and the document cannot be sent a second time",
            )
        })?;
        let (body, length) = sending.take();
        let mut call = http
            .call(Method::PATCH, &["requests", self.id.as_str()])
            .header(CONTENT_TYPE, "application/partial-upload")
            .header("Upload-Offset", offset);
        if let Some(length) = length {
            call = call.header(CONTENT_LENGTH, length);
        }
        let following = http.follow(call.body(body), self.client.wait, || sending.moved()).await?;
        sending.open();
        if !all_sent {
            (self.sending, self.base) = (sending, offset);
        }
        self.following = Some(following);
        Ok(None)
    }
}
