//! Jobs: requests with data and progress. What a request is, the engine does; here is where the data comes from, how
//! far the device is, and the channel that is open for it.

use std::{
    collections::{
        HashMap,
        hash_map::Entry::{Occupied, Vacant},
    },
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::{Inner, Relay, now};
use crate::{
    app::{
        CreditError, Digest, JobState, JobUpdate, Offer, Progress, Sending, Source, SourceError, Step,
        ToDevice, ToRelay,
    },
    error::{ErrorKind, TransportError},
    ids::{DeviceId, RequestId},
    outcome::{CallError, RequestError},
    request::{Call, Request, Response, Status},
    request_ids::Place,
    store::App,
    transport::{ChannelKnock, CloseReason, RelayChannel},
};

/// How long a channel may stay after its job is over.
const LINGER: Duration = Duration::from_secs(5);
/// How often a job's deadline is moved at most.
const EXTEND_EVERY: Duration = Duration::from_secs(1);

/// One job for one device.
#[derive(Debug)]
#[non_exhaustive]
pub struct JobCall {
    /// Who is to do it.
    pub device: DeviceId,
    /// By which app, as the device's app table has it.
    pub app: App,
    /// What the app is told before the data: one XML element.
    pub header: Option<Box<str>>,
    /// The data.
    pub source: Arc<dyn Source>,
    /// How long the device may take to open the app.
    pub wait: Duration,
    /// The ID that the job had, if this goes on with one that the relay no longer has.
    pub id: Option<RequestId>,
    /// W3C trace context of the call.
    pub traceparent: Option<Box<str>>,
}

impl JobCall {
    /// `source` for `app` of `device`, which may take [`Call::DEFAULT_WAIT`] to open it.
    pub const fn new(device: DeviceId, app: App, source: Arc<dyn Source>) -> Self {
        Self { device, app, header: None, source, wait: Call::DEFAULT_WAIT, id: None, traceparent: None }
    }
}

type Answered = Result<Response, RequestError>;

/// A job under way. Dropped before it [finished](Job::finished), it is cancelled: the device is told.
#[derive(Debug)]
pub struct Job {
    relay: Relay,
    entry: Arc<Entry>,
    slot: u32,
    answer: oneshot::Receiver<Answered>,
    /// Set once it is over.
    end: Option<Answered>,
    _place: OwnedPlace,
}

#[derive(Debug)]
struct OwnedPlace(Relay);

impl Drop for OwnedPlace {
    fn drop(&mut self) {
        self.0.inner.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Job {
    /// Its ID.
    pub fn id(&self) -> &RequestId {
        &self.entry.id
    }

    /// How it is now, and as it changes. What is in between may be missed.
    pub fn updates(&self) -> watch::Receiver<JobUpdate> {
        self.entry.update.subscribe()
    }

    /// The data is late, not the device, which has all there is of it: that it says nothing is not held against it.
    pub fn awaits_data(&self) {
        self.relay.inner.job_lives(&self.entry);
    }

    /// Waits until the device opened the app; `Some` if the job is over instead: the device refused, or was not there.
    ///
    /// # Cancel safety
    /// Dropped and called again, it goes on waiting.
    pub async fn opened(&mut self) -> Option<Answered> {
        if self.end.is_some() {
            return self.end.clone();
        }
        let mut updates = self.entry.update.subscribe();
        let open = updates.wait_for(|update| update.state > JobState::Offered);
        tokio::select! {
            biased;
            answer = &mut self.answer => Some(self.over(answer)),
            _ = open => None,
        }
    }

    /// Waits for its end: the device's answer, or why there is none.
    ///
    /// # Errors
    /// [`RequestError`], as of a request.
    ///
    /// # Cancel safety
    /// Dropped and called again, it goes on waiting.
    pub async fn finished(&mut self) -> Answered {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let answer = (&mut self.answer).await;
        self.over(answer)
    }

    fn over(&mut self, answer: Result<Answered, oneshot::error::RecvError>) -> Answered {
        // The engine ends every call before it forgets it; without an engine nobody knows how far it got.
        let end = answer.unwrap_or(Err(RequestError::DeviceTimeout { received: true }));
        let state = match &end {
            Ok(Response { status: Status::Ok, .. }) => JobState::Completed,
            _ => JobState::Failed,
        };
        self.entry.end(state);
        self.end = Some(end.clone());
        end
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let id = &self.entry.id;
        if self.end.is_none() {
            self.entry.end(JobState::Cancelled);
            self.relay.inner.with_slot(self.slot, |shard, now| shard.cancel(now, id));
        }
        self.relay.inner.jobs.lock().remove(id);
    }
}

/// A job as those see it who move its data.
#[derive(Debug)]
struct Entry {
    id: RequestId,
    device: DeviceId,
    app: App,
    header: Box<str>,
    source: Arc<dyn Source>,
    update: watch::Sender<JobUpdate>,
    channels: watch::Sender<Channels>,
    extended: Mutex<Option<Instant>>,
    /// The highest offset that was handed out.
    sent: AtomicU64,
}

/// What became of a job's channels.
#[derive(Debug, Clone, Copy, Default)]
struct Channels {
    /// Counts them: only the newest is the job's.
    newest: u64,
    /// How often the device's credential was revoked, with which all until then were opened.
    revocations: u64,
}

impl Entry {
    /// Notes that it got as far as `state`.
    fn advance(&self, state: JobState, bytes: u64, note: Option<&str>) {
        self.update.send_if_modified(|update| {
            if update.state.is_final() {
                return false;
            }
            let before = (update.state, update.bytes);
            update.state = update.state.max(state);
            update.bytes = update.bytes.max(bytes);
            let news = note.is_some() && update.note.as_deref() != note;
            if news {
                update.note = note.map(Into::into);
            }
            news || before != (update.state, update.bytes)
        });
    }

    fn end(&self, state: JobState) {
        self.update.send_if_modified(|update| {
            let news = !update.state.is_final();
            if news {
                update.state = state;
            }
            news
        });
    }

    fn handed_out(&self, up_to: u64) {
        let sent = self.sent.fetch_max(up_to, Ordering::Relaxed).max(up_to);
        let all = self.source.digest().is_some_and(|digest| sent >= digest.bytes);
        self.advance(if all { JobState::Processing } else { JobState::Sending }, sent, None);
    }

    async fn over(&self) {
        let mut update = self.update.subscribe();
        let _ = update.wait_for(|update| update.state.is_final()).await;
    }
}

/// All jobs of a relay.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<HashMap<RequestId, Arc<Entry>>>);

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the channels that `device` has open: its credential was revoked.
    pub(super) fn hang_up(&self, device: &DeviceId) {
        // Nobody is called under the lock: who serves a channel sees that it is not the job's any more.
        for entry in self.lock().values().filter(|entry| entry.device == *device) {
            entry.channels.send_modify(|channels| channels.revocations += 1);
        }
    }

    /// The job `id`, if it is one of `device`.
    fn of(&self, device: &DeviceId, id: &RequestId) -> Option<Arc<Entry>> {
        self.lock().get(id).filter(|entry| entry.device == *device).cloned()
    }
}

/// The data of a job, for a device that reads it by HTTP.
#[derive(Debug)]
pub struct JobData {
    entry: Arc<Entry>,
    inner: Weak<Inner>,
}

impl JobData {
    /// Up to `max` bytes from `offset` on, as [`Source::read`].
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn read(&self, offset: u64, max: usize) -> Result<Bytes, SourceError> {
        let bytes = self.entry.source.read(offset, max).await?;
        if let Some(inner) = self.inner.upgrade() {
            inner.job_lives(&self.entry);
        }
        self.entry.handed_out(offset.saturating_add(bytes.len() as u64));
        Ok(bytes)
    }

    /// Length and hash, once all is there.
    pub fn digest(&self) -> Option<Digest> {
        self.entry.source.digest()
    }
}

impl Relay {
    /// Offers a job to a device.
    ///
    /// # Errors
    /// [`CallError`]: nothing was offered.
    pub fn job(&self, call: JobCall) -> Result<Job, CallError> {
        let JobCall { device, app, header, source, wait, id, traceparent } = call;
        if self.is_draining() {
            return Err(RequestError::Draining.into());
        }
        self.inner.take_place_in_flight()?;
        let place = OwnedPlace(self.clone());
        let slot = self.inner.slot(&device);
        let id = id.unwrap_or_else(|| self.inner.ids.issue(Place { node: 0, slot }));
        let mut request = Request::job(device.clone(), Offer::new(app.name.clone(), header.clone()));
        request.traceparent = traceparent;
        let entry = Arc::new(Entry {
            id: id.clone(),
            device,
            app,
            header: header.unwrap_or_else(|| "<Job/>".into()),
            source,
            update: watch::Sender::default(),
            channels: watch::Sender::default(),
            extended: Mutex::new(None),
            sent: AtomicU64::new(0),
        });
        // Before it is offered: the device may be quick.
        match self.inner.jobs.lock().entry(id.clone()) {
            Vacant(vacant) => vacant.insert(entry.clone()),
            Occupied(_) => return Err(RequestError::Refused("that job is under way".into()).into()),
        };
        let (waiter, answer) = oneshot::channel();
        let wait = wait.min(Call::MAX_WAIT);
        let offered = self
            .inner
            .with_slot(slot, |shard, now| shard.request(now, id.clone(), Arc::new(request), wait, waiter));
        if let Err(error) = offered {
            self.inner.jobs.lock().remove(&id);
            return Err(error.into());
        }
        Ok(Job { relay: self.clone(), entry, slot, answer, end: None, _place: place })
    }

    /// The data of job `id`, for `device` to read beside its session; `None` if it has no such job.
    pub fn job_data(&self, device: &DeviceId, id: &RequestId) -> Option<JobData> {
        self.heard(device);
        let entry = self.inner.jobs.of(device, id)?;
        self.inner.job_lives(&entry);
        entry.advance(JobState::Accepted, 0, None);
        Some(JobData { entry, inner: Arc::downgrade(&self.inner) })
    }

    /// `device` says how far it is with job `id`.
    pub fn job_progress(&self, device: &DeviceId, id: &RequestId, progress: &Progress) {
        if let Some(entry) = self.inner.jobs.of(device, id) {
            self.inner.job_lives(&entry);
            entry.advance(JobState::Accepted, progress.bytes, progress.note.as_deref());
        }
    }

    /// `device` closes the app of job `id` without an answer.
    pub(super) fn job_closed(&self, device: &DeviceId, id: &RequestId) {
        if self.inner.jobs.of(device, id).is_some() {
            let words = "the device closed the app before the job was done";
            self.respond(device, id, Response::error(failed("closed"), words));
        }
    }

    /// Lets a device open the channel of a job, if it is one of its own. What is to be done with it then.
    pub(super) async fn admit_channel(
        &self,
        knock: ChannelKnock,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let ChannelKnock { device, job, path, protocols, handshake, .. } = knock;
        let is_its_own =
            |app: &App| *app.path == *path && protocols.iter().any(|known| **known == *app.protocol);
        let entry = self.inner.jobs.of(&device, &job).filter(|entry| is_its_own(&entry.app));
        let Some(entry) = entry else {
            tracing::debug!(%device, request = %job, %path, "a channel for no job of that device and app");
            // Of a relay that stops it is not said that there is no such job: the next one may go on with it.
            if !self.is_draining() {
                let _ = handshake(None).await;
            }
            return None;
        };
        // T17: what was shown must still hold when the channel is there.
        let revocations = entry.channels.borrow().revocations;
        match handshake(Some(entry.app.clone())).await {
            Ok(channel) => {
                let relay = self.clone();
                Some(async move { relay.serve_channel(&entry, channel, revocations).await })
            }
            Err(error) => {
                tracing::debug!(%device, request = %job, %error, "a channel was not opened");
                None
            }
        }
    }

    async fn serve_channel(&self, entry: &Arc<Entry>, channel: RelayChannel, revocations: u64) {
        let RelayChannel { mut sender, mut receiver } = channel;
        let mut number = None;
        let mut channels = entry.channels.subscribe();
        entry.channels.send_if_modified(|channels| {
            let holds = channels.revocations == revocations;
            if holds {
                channels.newest += 1;
                number = Some(channels.newest);
            }
            holds
        });
        let Some(number) = number else { return sender.close_for(CloseReason::Revoked).await };
        self.inner.job_lives(entry);
        entry.advance(JobState::Accepted, 0, None);
        let sending = watch::Sender::new(Sending::new());
        let ended = {
            let talk = async {
                let mut listening = pin!(self.listen(entry, &mut *receiver, &sending));
                let spoken = tokio::select! {
                    heard = &mut listening => return heard,
                    spoken = self.speak(entry, &mut *sender, &sending) => spoken,
                };
                match spoken.as_ref().map_err(|error| error.kind) {
                    // A device may say its last word and go, while more is on its way to it.
                    Err(ErrorKind::Closed | ErrorKind::Interrupted) => listening.await,
                    // The header: the channel is as it was.
                    Err(ErrorKind::TooLarge) => {
                        let words = "the header is too large for the device's channel";
                        self.respond(&entry.device, &entry.id, Response::error(failed("too-large"), words));
                        Ok(())
                    }
                    _ => spoken,
                }
            };
            tokio::select! {
                biased;
                () = entry.over() => Ok(()),
                _ = channels.wait_for(|now| now.newest != number || now.revocations != revocations) => Ok(()),
                talked = talk => talked,
            }
        };
        let revoked = entry.channels.borrow().revocations != revocations;
        if revoked {
            return sender.close_for(CloseReason::Revoked).await;
        }
        match ended {
            Ok(()) => {
                // Whatever the device still says is of no use; that it closes is.
                let _ = tokio::time::timeout(LINGER, async {
                    if sender.send(ToDevice::Close).await.is_ok() {
                        while let Ok(Some(_)) = receiver.receive().await {}
                    }
                })
                .await;
            }
            Err(error) => {
                tracing::debug!(device = %entry.device, request = %entry.id, %error, "a channel broke");
                if error.kind == ErrorKind::PeerMisbehaved {
                    self.respond(
                        &entry.device,
                        &entry.id,
                        Response::error(failed("bad-channel"), &*error.words),
                    );
                }
            }
        }
        sender.close().await;
    }

    async fn listen(
        &self,
        entry: &Entry,
        receiver: &mut dyn crate::app::ChannelReceiver<ToRelay>,
        sending: &watch::Sender<Sending>,
    ) -> Result<(), TransportError> {
        while let Some(message) = receiver.receive().await? {
            self.heard(&entry.device);
            self.inner.job_lives(entry);
            match message {
                ToRelay::Credit { from, bytes } => {
                    let mut result = Ok(());
                    sending.send_modify(|sending| result = sending.credit(from, bytes));
                    result.map_err(|error| misbehaved(&error))?;
                }
                ToRelay::Progress(progress) => {
                    entry.advance(JobState::Accepted, progress.bytes, progress.note.as_deref());
                }
                ToRelay::Done { version } => {
                    let body = version.map(|version| crate::Body::text(String::from(version)));
                    self.respond(&entry.device, &entry.id, Response::new(Status::Ok, body));
                    // Nothing is left to be said, whether or not the caller has taken note of it yet.
                    return Ok(());
                }
                ToRelay::Error { status, words } => {
                    self.respond(&entry.device, &entry.id, Response::error(status, words));
                    return Ok(());
                }
                ToRelay::Close => {
                    self.job_closed(&entry.device, &entry.id);
                    return Ok(());
                }
            }
        }
        // Closed without a word: like a channel that broke, it may be opened anew.
        Err(TransportError::new("channel", ErrorKind::Closed, "the device closed the channel"))
    }

    async fn speak(
        &self,
        entry: &Entry,
        sender: &mut dyn crate::app::ChannelSender<ToDevice>,
        sending: &watch::Sender<Sending>,
    ) -> Result<(), TransportError> {
        let mut changed = sending.subscribe();
        loop {
            let step = changed.borrow_and_update().next();
            match step {
                Step::Header => {
                    sender.send(ToDevice::Header(entry.header.clone())).await?;
                    sending.send_modify(Sending::header_sent);
                }
                Step::Data { from, max } => {
                    let read = entry.source.read(from, max);
                    // New credit matters to a reading that asks for nothing, and to no other.
                    let read = async {
                        tokio::select! {
                            read = read => Some(read),
                            _ = changed.changed(), if max == 0 => None,
                        }
                    };
                    let Some(read) = read.await else { continue };
                    let bytes = match read {
                        Ok(bytes) => bytes,
                        Err(error) => {
                            let response = Response::error(failed("broke-off"), error.to_string());
                            self.respond(&entry.device, &entry.id, response);
                            return Ok(());
                        }
                    };
                    if !bytes.is_empty() {
                        let length = bytes.len();
                        sender.send(ToDevice::Data(bytes)).await?;
                        sending.send_modify(|sending| sending.data_sent(length));
                        entry.handed_out(from + length as u64);
                        self.inner.job_lives(entry);
                    } else if let Some(digest) =
                        entry.source.digest().filter(|digest| max > 0 || from >= digest.bytes)
                    {
                        let mut result = Ok(());
                        sending.send_modify(|sending| result = sending.source_ended(digest));
                        result.map_err(|error| misbehaved(&error))?;
                    } else {
                        // No credit, and more to come: nothing can be sent before the device says something.
                        let _ = changed.changed().await;
                    }
                }
                Step::End => {
                    let digest = entry.source.digest();
                    if let Some(digest) = digest {
                        sender.send(ToDevice::End(digest)).await?;
                        entry.handed_out(digest.bytes);
                    }
                    sending.send_modify(Sending::end_sent);
                }
                Step::Wait | Step::Rest => {
                    if changed.changed().await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl Inner {
    /// A sign of life of a job: it may take as long again.
    fn job_lives(self: &Arc<Self>, entry: &Entry) {
        let now = now();
        {
            let mut extended = entry.extended.lock().unwrap_or_else(PoisonError::into_inner);
            if extended.is_some_and(|at| now.saturating_duration_since(at) < EXTEND_EVERY) {
                return;
            }
            *extended = Some(now);
        }
        let until = now + self.config.job_silence;
        self.with_device(&entry.device, |shard, _| shard.extend(&entry.device, &entry.id, until));
    }
}

fn misbehaved(error: &CreditError) -> TransportError {
    TransportError::new("channel", ErrorKind::PeerMisbehaved, error.to_string())
}

fn failed(code: &str) -> Status {
    Status::parse(code).unwrap_or(Status::DeviceError)
}
