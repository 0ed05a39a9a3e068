//! Jobs that came by HTTP: each with its document, its key, and a memory of how it ended.
//!
//! A job belongs to its ID and not to the connection that brought it: a caller that loses its connection goes on with
//! the upload ([`Tracked::take_upload`]), and one that goes away for good after the upload leaves the job to end by
//! itself. What a relay needs to go on with a job that it was killed in is noted down beside the document.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use relay_core::{
    Relay, Response,
    app::{JobState, JobUpdate, Source},
    ids::{DeviceId, KeyId, RequestId},
    outcome::{Outcome, RequestError},
    relay::{Job, JobCall},
    request::Status,
    store::App,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{OwnedMutexGuard, Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::spool::{Kind, Spool, SpoolError, Spooled, Writer};

/// How often a device that has all there is of a late document is held to be at work.
const AWAITING: Duration = Duration::from_secs(10);
/// How long an upload that lost its connection may take to let go of the document.
const LET_GO: Duration = Duration::from_secs(5);
/// Jobs of a relay before this one that are gone on with. Each costs an open file from the start.
const MAX_REVIVED: usize = 1_000;
/// Documents of theirs that are read at once, for their hashes.
const READING: usize = 2;

/// How a job ended.
#[derive(Debug)]
pub(crate) enum End {
    /// By the device's answer.
    Answered(Response),
    /// Without one.
    Unanswered(RequestError),
    /// Its caller did not want it any more.
    Cancelled,
    /// Its document never came whole: a code and words.
    NoDocument(&'static str, String),
}

impl End {
    /// What the job is at, for good.
    pub(crate) const fn state(&self) -> JobState {
        match self {
            Self::Answered(Response { status: Status::Ok, .. }) => JobState::Completed,
            Self::Cancelled => JobState::Cancelled,
            _ => JobState::Failed,
        }
    }

    /// How far the job came.
    fn outcome(&self, opened: bool) -> Outcome {
        match self {
            // It looked, and did not begin: an error state, or an app that it lacks.
            Self::Answered(response) if !opened && is_refusal(&response.status) => Outcome::Refused,
            Self::Answered(_) => Outcome::Answered,
            Self::Unanswered(error) => error.outcome(),
            Self::Cancelled | Self::NoDocument(..) if opened => Outcome::Received,
            Self::Cancelled | Self::NoDocument(..) => Outcome::Sent,
        }
    }
}

/// A job as its caller may know it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// How far it is.
    pub(crate) update: JobUpdate,
    /// How it ended, once it did, and how far it had come.
    pub(crate) end: Option<(Outcome, Arc<End>)>,
}

/// Whether a device that says so instead of opening the app has done nothing.
fn is_refusal(status: &Status) -> bool {
    *status == Status::DeviceError || status.as_str() == UNKNOWN_APP
}

/// A device's word for an app that it lacks.
pub(crate) const UNKNOWN_APP: &str = "unknown-app";

/// Who is uploading.
#[derive(Debug, Clone, Copy)]
struct Upload {
    /// Grows with each that begins: the one before it has to let go.
    number: u64,
    /// Set while nobody is.
    idle_since: Option<Instant>,
}

/// A job that came by HTTP.
pub(crate) struct Tracked {
    pub(crate) id: RequestId,
    pub(crate) device: DeviceId,
    /// The key that it belongs to: for every other there is no such job.
    owner: KeyId,
    report: watch::Sender<Report>,
    /// Gone once the job is over.
    documents: Mutex<Option<Documents>>,
    writer: Arc<tokio::sync::Mutex<Option<Writer>>>,
    upload: watch::Sender<Upload>,
    /// Counts the device's readings of the data: only the newest is served.
    reading: watch::Sender<u64>,
    /// Why it is to end without the device's answer.
    give_up: watch::Sender<Option<Arc<End>>>,
    /// What is noted down of it, and under which name.
    noted: Option<(Box<str>, Value)>,
}

/// What a job moves.
#[derive(Debug, Clone)]
struct Documents {
    /// What the caller sends.
    sent: Arc<Spooled>,
    /// What the device gets: the same, unless it is converted on the way.
    data: Arc<Spooled>,
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").field("id", &self.id).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Tracked {
    /// The key that it belongs to.
    pub(crate) const fn owner(&self) -> &KeyId {
        &self.owner
    }

    /// How it is, and as it changes.
    pub(crate) fn report(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }

    /// Bytes of the document that the relay has; `None` once the job is over.
    pub(crate) fn offset(&self) -> Option<u64> {
        self.documents().as_ref().map(|documents| documents.sent.available())
    }

    /// Bytes that are there for the device; `None` once the job is over.
    pub(crate) fn available(&self) -> Option<u64> {
        self.documents().as_ref().map(|documents| documents.data.available())
    }

    /// Whether the relay has all of the document.
    pub(crate) fn has_all(&self) -> bool {
        self.documents().as_ref().is_none_or(|documents| documents.sent.is_whole())
    }

    fn documents(&self) -> MutexGuard<'_, Option<Documents>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it came, as far as is known while it is not over.
    pub(crate) fn outcome(&self) -> Outcome {
        match self.report.borrow().update.state {
            JobState::Offered => Outcome::Sent,
            _ => Outcome::Received,
        }
    }

    /// Waits until the device opened the app, or the job is over.
    pub(crate) async fn opened(&self) -> Report {
        let mut report = self.report();
        let opened = report.wait_for(|report| report.update.state > JobState::Offered);
        opened.await.map(|report| report.clone()).unwrap_or_default()
    }

    /// Waits until it is over.
    pub(crate) async fn over(&self) -> Option<(Outcome, Arc<End>)> {
        let mut report = self.report();
        let over = report.wait_for(|report| report.end.is_some());
        over.await.ok().and_then(|report| report.end.clone())
    }

    /// Ends the job, unless it ended before.
    pub(crate) fn give_up(&self, end: End) {
        self.give_up.send_if_modified(|give_up| {
            let first = give_up.is_none();
            if first {
                *give_up = Some(Arc::new(end));
            }
            first
        });
    }

    /// The device reads the data: what it read before on another connection ends, and so does this once it reads anew.
    pub(crate) fn read_anew(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut number = 0;
        self.reading.send_modify(|readings| {
            *readings += 1;
            number = *readings;
        });
        let mut reading = self.reading.subscribe();
        async move { drop(reading.wait_for(|newest| *newest != number).await) }
    }

    /// Takes the upload over from whoever had it. `None`: the document is whole, or the job is over, or whoever has it
    /// does not let go.
    pub(crate) async fn take_upload(self: &Arc<Self>) -> Option<Uploading> {
        let mut number = 0;
        self.upload.send_modify(|upload| {
            upload.number += 1;
            upload.idle_since = None;
            number = upload.number;
        });
        let abandoned = Abandoned { tracked: self.clone(), number };
        let writer = timeout(LET_GO, self.writer.clone().lock_owned()).await.ok()?;
        if writer.is_none() || self.report.borrow().end.is_some() {
            return None;
        }
        Some(Uploading { writer, others: self.upload.subscribe(), abandoned })
    }
}

/// Notes, when dropped, that nobody is uploading any more.
#[derive(Debug)]
struct Abandoned {
    tracked: Arc<Tracked>,
    number: u64,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.tracked.upload.send_if_modified(|upload| {
            let last = upload.number == self.number;
            if last {
                upload.idle_since = Some(Instant::now());
            }
            last
        });
    }
}

/// An upload under way, the only one of its job. Dropped, another may go on with it.
#[derive(Debug)]
pub(crate) struct Uploading {
    writer: OwnedMutexGuard<Option<Writer>>,
    others: watch::Receiver<Upload>,
    abandoned: Abandoned,
}

impl Uploading {
    /// Where the document goes.
    pub(crate) fn writer(&mut self) -> Option<&mut Writer> {
        self.writer.as_mut()
    }

    /// Resolves once somebody else took it over, or the job is over.
    pub(crate) async fn not_wanted(&mut self) {
        let Abandoned { tracked, number } = &self.abandoned;
        tokio::select! {
            _ = tracked.over() => {}
            _ = self.others.wait_for(|upload| upload.number != *number) => {}
        }
    }

    /// The document is whole, or will never be: nobody needs to go on with it.
    pub(crate) fn close(mut self) {
        *self.writer = None;
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.as_mut() {
            writer.rest();
        }
    }
}

#[cfg(test)]
impl Tracked {
    /// One whose document is still coming in, with nobody behind it.
    pub(crate) async fn alone() -> (Arc<Self>, Writer) {
        let spool = Spool::open(None, super::config::SpoolLimits::default()).unwrap();
        let writer = spool.begin(Kind::Job, None).await.unwrap();
        let jobs = Jobs::new(spool, Duration::from_secs(600), 10);
        let sent = writer.spooled().clone();
        let documents = Documents { data: sent.clone(), sent };
        let name = |text| RequestId::new(text).unwrap();
        let (device, owner) = (DeviceId::new("d").unwrap(), KeyId::new("k").unwrap());
        (jobs.insert(name("r"), device, owner, documents, None, None), writer)
    }

    /// Reports what is said here.
    pub(crate) fn tell(&self, update: JobUpdate, end: Option<End>) {
        let end = end.map(|end| (end.outcome(true), Arc::new(end)));
        self.report.send_replace(Report { update, end });
    }
}

/// What a relay that starts anew has to know of a job.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    id: RequestId,
    device: DeviceId,
    app: App,
    header: Option<Box<str>>,
    owner: KeyId,
    /// Whether all of the document is there.
    whole: bool,
    wait: Duration,
    /// Of the system's run in which it was written: what a file has after a power failure is not known.
    boot: String,
}

/// A job of a relay before this one, to go on with.
#[derive(Debug)]
pub(crate) struct Revived {
    pub(crate) tracked: Arc<Tracked>,
    note: Note,
}

/// All jobs that came by HTTP.
#[derive(Debug)]
pub(crate) struct Jobs {
    spool: Spool,
    boot: Option<String>,
    finished_for: Duration,
    finished_max: usize,
    table: Mutex<Table>,
    /// Documents that are read again at once.
    reading: Semaphore,
}

#[derive(Debug, Default)]
struct Table {
    jobs: HashMap<RequestId, Arc<Tracked>>,
    finished: VecDeque<(Instant, RequestId)>,
    sweeping: bool,
}

/// What is told of a job beside its document, and whose it is.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) owner: KeyId,
    pub(crate) device: DeviceId,
    pub(crate) app: App,
    pub(crate) header: Option<Box<str>>,
    pub(crate) wait: Duration,
}

/// A job's document.
#[derive(Debug)]
pub(crate) struct Document {
    /// As the caller sends it.
    pub(crate) sent: Arc<Spooled>,
    /// As the device gets it, if that is something else.
    pub(crate) converted: Option<Arc<Spooled>>,
    /// The rest of it, if that is still to come.
    pub(crate) writer: Option<Writer>,
    /// Whether it is the job's alone, so that a relay after this one could go on with it.
    pub(crate) own: bool,
}

impl Document {
    /// What the device gets.
    pub(crate) fn data(&self) -> &Arc<Spooled> {
        self.converted.as_ref().unwrap_or(&self.sent)
    }
}

impl Jobs {
    /// None yet.
    pub(crate) fn new(spool: Spool, finished_for: Duration, finished_max: usize) -> Self {
        let reading = Semaphore::new(READING);
        Self { spool, boot: boot(), finished_for, finished_max, table: Mutex::default(), reading }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job `id`, if it is one of `owner`'s.
    pub(crate) fn of(&self, owner: &KeyId, id: &RequestId) -> Option<Arc<Tracked>> {
        self.table().jobs.get(id).filter(|job| job.owner == *owner).cloned()
    }

    /// The job `id`, if it is one for `device`.
    pub(crate) fn for_device(&self, device: &DeviceId, id: &RequestId) -> Option<Arc<Tracked>> {
        self.table().jobs.get(id).filter(|job| job.device == *device).cloned()
    }

    /// Keeps track of a job that was offered; it is noted down if it can be gone on with.
    pub(crate) async fn track(&self, job: &Job, told: Told, document: Document) -> Arc<Tracked> {
        let id = job.id().clone();
        let noted = match (&self.boot, document.own && document.converted.is_none()) {
            (Some(boot), true) if self.spool.is_on_disk() => {
                let note = Note {
                    id: id.clone(),
                    device: told.device.clone(),
                    app: told.app,
                    header: told.header,
                    owner: told.owner.clone(),
                    whole: document.sent.is_whole(),
                    wait: told.wait,
                    boot: boot.clone(),
                };
                serde_json::to_value(note).ok().map(|note| (document.sent.name().into(), note))
            }
            _ => None,
        };
        let documents = Documents { data: document.data().clone(), sent: document.sent };
        let tracked = self.insert(id, told.device, told.owner, documents, document.writer, noted);
        if self.note(&tracked).await
            && let Some(documents) = &*tracked.documents()
        {
            // Should this job never end, a relay after this one goes on with it, or removes it.
            documents.sent.stays();
        }
        tracked
    }

    fn insert(
        &self,
        id: RequestId,
        device: DeviceId,
        owner: KeyId,
        documents: Documents,
        writer: Option<Writer>,
        noted: Option<(Box<str>, Value)>,
    ) -> Arc<Tracked> {
        let tracked = Arc::new(Tracked {
            id: id.clone(),
            device,
            owner,
            report: watch::Sender::default(),
            documents: Mutex::new(Some(documents)),
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            upload: watch::Sender::new(Upload { number: 0, idle_since: Some(Instant::now()) }),
            reading: watch::Sender::new(0),
            give_up: watch::Sender::new(None),
            noted,
        });
        self.table().jobs.insert(id, tracked.clone());
        tracked
    }

    /// Notes a job down, as it is now; whether it is.
    pub(crate) async fn note(&self, tracked: &Tracked) -> bool {
        let Some((name, note)) = &tracked.noted else { return false };
        let mut note = note.clone();
        note["whole"] = tracked.has_all().into();
        let noted = self.spool.note(Kind::Job, name, &note, false).await;
        if let Err(error) = &noted {
            // The job runs all the same; only a relay after this one could not go on with it.
            tracing::warn!(request = %tracked.id, %error, "a job cannot be noted down");
        }
        noted.is_ok()
    }

    /// Sees `job` through to its end, and remembers that for a while. How far it came.
    pub(crate) async fn run(self: &Arc<Self>, mut job: Job, tracked: Arc<Tracked>) -> Outcome {
        let mut updates = job.updates();
        let mut upload = tracked.upload.subscribe();
        let mut give_up = tracked.give_up.subscribe();
        let resume = self.spool.limits().upload_resume;
        let mut opened = false;
        let end = loop {
            let update = updates.borrow_and_update().clone();
            let documents = tracked.documents().clone();
            let late = documents.as_ref().is_some_and(|documents| !documents.sent.is_whole());
            let abandoned = upload.borrow_and_update().idle_since.map(|since| since + resume);
            opened |= matches!(update.state, JobState::Accepted | JobState::Sending | JobState::Processing);
            let waits = opened
                && documents.is_some_and(|Documents { data, .. }| {
                    !data.is_whole() && update.bytes >= data.available()
                });
            if !update.state.is_final() {
                tracked.report.send_modify(|report| report.update = update);
            }
            tokio::select! {
                biased;
                answer = job.finished() => break match answer {
                    Ok(response) => End::Answered(response),
                    Err(error) => End::Unanswered(error),
                }
                .into(),
                end = given_up(&mut give_up) => break end,
                _ = updates.changed() => {}
                _ = upload.changed() => {}
                () = at(abandoned), if late && opened => {
                    let words = format!(
                        "the document broke off after {} bytes, and nobody went on with it",
                        tracked.offset().unwrap_or(0)
                    );
                    break End::NoDocument("broke-off", words).into();
                }
                () = sleep(AWAITING), if waits => job.awaits_data(),
            }
        };
        let last = updates.borrow().clone();
        // Unless it ended by itself, the device is told.
        drop(job);
        self.end(&tracked, end, last, opened).await
    }

    async fn end(
        self: &Arc<Self>,
        tracked: &Arc<Tracked>,
        end: Arc<End>,
        last: JobUpdate,
        opened: bool,
    ) -> Outcome {
        let outcome = end.outcome(opened);
        let documents = tracked.documents().take();
        tracked.report.send_modify(|report| {
            report.update = JobUpdate { state: end.state(), ..last };
            report.end = Some((outcome, end));
        });
        drop(documents);
        if let Some((name, _)) = &tracked.noted {
            self.spool.remove(Kind::Job, name).await;
        }
        // Whoever is uploading finds that nobody wants it, and lets go.
        *tracked.writer.lock().await = None;
        self.remember(&tracked.id);
        outcome
    }

    fn remember(self: &Arc<Self>, id: &RequestId) {
        let now = Instant::now();
        let mut table = self.table();
        table.finished.push_back((now + self.finished_for, id.clone()));
        table.sweep(now, self.finished_max);
        if !table.sweeping && !table.finished.is_empty() {
            table.sweeping = true;
            drop(table);
            let jobs = self.clone();
            tokio::spawn(async move { jobs.forget_in_time().await });
        }
    }

    async fn forget_in_time(&self) {
        loop {
            let next = {
                let mut table = self.table();
                table.sweep(Instant::now(), self.finished_max);
                match table.finished.front() {
                    Some((at, _)) => *at,
                    None => {
                        table.sweeping = false;
                        return;
                    }
                }
            };
            // Many at once, rather than one a wake-up.
            sleep_until(next + Duration::from_secs(1)).await;
        }
    }

    /// Takes over the jobs of a relay before this one, which [`Jobs::revive`] is then to go on with. Until then, their
    /// callers and devices find them, and wait.
    pub(crate) async fn recover(&self) -> Vec<Revived> {
        let notes = match self.spool.notes(Kind::Job).await {
            Ok(notes) => notes,
            Err(error) => {
                tracing::error!(%error, "the spool cannot be read; jobs before this start are not gone on with");
                return Vec::new();
            }
        };
        let mut revived = Vec::new();
        for (name, value) in notes {
            let note = serde_json::from_value::<Note>(value.clone()).ok();
            let note =
                note.filter(|note| Some(&note.boot) == self.boot.as_ref() && revived.len() < MAX_REVIVED);
            let opened = match &note {
                Some(_) => self.spool.reopen(Kind::Job, &name).await.ok(),
                None => None,
            };
            let (Some(note), Some(writer)) = (note, opened) else {
                self.spool.remove(Kind::Job, &name).await;
                continue;
            };
            let sent = writer.spooled().clone();
            let (id, device, owner) = (note.id.clone(), note.device.clone(), note.owner.clone());
            let documents = Documents { data: sent.clone(), sent };
            let tracked = self.insert(id, device, owner, documents, Some(writer), Some((name, value)));
            revived.push(Revived { tracked, note });
        }
        revived
    }

    async fn read_again(&self, tracked: &Tracked, whole: bool) -> Result<(), SpoolError> {
        // Whoever wants to go on with the upload waits as long.
        let mut slot = tracked.writer.lock().await;
        let _turn = self.reading.acquire().await;
        if let Some(writer) = slot.as_mut() {
            writer.read_again().await?;
            if whole {
                writer.finish().await?;
                *slot = None;
            }
        }
        Ok(())
    }

    /// Goes on with a job of a relay before this one, under the ID that its device and its caller know.
    pub(crate) async fn revive(self: &Arc<Self>, relay: &Relay, revived: Revived) -> Outcome {
        let Revived { tracked, note } = revived;
        let Some(Documents { data, .. }) = tracked.documents().clone() else { return Outcome::Refused };
        if let Err(error) = self.read_again(&tracked, note.whole).await {
            tracing::warn!(request = %note.id, %error, "a job's document cannot be read");
            let end = End::NoDocument("store-unavailable", error.to_string()).into();
            return self.end(&tracked, end, JobUpdate::default(), false).await;
        }
        let resume = self.spool.limits().upload_resume.max(note.wait);
        let deadline = Instant::now() + resume;
        let mut presence = relay.watch_presence();
        let mut give_up = tracked.give_up.subscribe();
        let end = loop {
            let mut call =
                JobCall::new(note.device.clone(), note.app.clone(), data.clone() as Arc<dyn Source>);
            call.header.clone_from(&note.header);
            call.wait = note.wait;
            call.id = Some(note.id.clone());
            match relay.job(call) {
                Ok(job) => {
                    tracing::info!(request = %note.id, device = %note.device, "going on with a job");
                    return self.run(job, tracked).await;
                }
                Err(error) if error.error != RequestError::DeviceOffline => {
                    break End::Unanswered(error.error).into();
                }
                Err(_) => {}
            }
            // It comes back by itself; until then there is nothing to do.
            let back = async {
                loop {
                    match presence.next().await {
                        Ok(change) if change.device != note.device => {}
                        Ok(_) => return,
                        Err(_) => {
                            presence = relay.watch_presence();
                            return sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
            };
            tokio::select! {
                () = back => {}
                end = given_up(&mut give_up) => break end,
                () = sleep_until(deadline) => break End::Unanswered(RequestError::DeviceOffline).into(),
            }
        };
        self.end(&tracked, end, JobUpdate::default(), false).await
    }
}

impl Table {
    fn sweep(&mut self, now: Instant, max: usize) {
        while let Some((at, _)) = self.finished.front() {
            if *at > now && self.finished.len() <= max {
                return;
            }
            if let Some((_, id)) = self.finished.pop_front() {
                self.jobs.remove(&id);
            }
        }
        self.finished.shrink_to(64);
        self.jobs.shrink_to(64);
    }
}

/// Resolves once the job is to end without the device's answer.
async fn given_up(give_up: &mut watch::Receiver<Option<Arc<End>>>) -> Arc<End> {
    match give_up.wait_for(Option::is_some).await.ok().and_then(|given| given.clone()) {
        Some(end) => end,
        // The job holds the sender.
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Which run of the system this is.
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}
