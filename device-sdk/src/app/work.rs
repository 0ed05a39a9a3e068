//! The task of one job: its turn, its link to the relay, its handler.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _};
use relay_core::{
    app::{Progress, ToDevice, ToRelay},
    error::{ErrorKind, TransportError},
    ids::{AppName, RequestId},
    request::{Request, Response, Status},
    transport::{ChannelOptions, DeviceChannel},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Job, Served, answered,
    job::Of,
    run::{Limits, Run, Step},
};
use crate::{
    handler::status,
    http::{HttpError, JobPart},
    reach::Reach,
};

/// How long opening a channel may take.
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// How long the relay is waited for to close the channel of a job that is over, and then how long closing may take: no
/// channel outlives its job by more than 5 s.
const LINGER: Duration = Duration::from_secs(3);
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How often a job that waits for its turn says so.
const WAITING_EVERY: Duration = Duration::from_secs(20);

/// What the task of a job tells the device's.
#[derive(Debug)]
pub(crate) enum Note {
    /// The handler runs.
    Started(RequestId),
    /// How far it is; `say`: to be said in the session, as there is no channel to say it on.
    Progress {
        id: RequestId,
        progress: Progress,
        say: bool,
    },
    Ended {
        id: RequestId,
        ended: Ended,
    },
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// This is its answer.
    Answer(Response),
    /// Nobody wants it any more, or the relay does not have it any more.
    Unwanted,
}

/// What the device's task keeps of a job.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) app: AppName,
    pub(crate) cancelled: CancellationToken,
    run: Arc<watch::Sender<Run>>,
}

impl Handle {
    /// The relay offers the job again: it has it still.
    pub(crate) fn offered_again(&self, request: &Request) {
        let header = request.offer.as_ref().and_then(|offer| offer.header.clone());
        self.run.send_modify(|run| run.offered_again(crate::now(), header));
    }
}

/// A job that is about to be done.
pub(crate) struct Work {
    of: Arc<Of>,
    app: Arc<Served>,
    run: Arc<watch::Sender<Run>>,
    cancelled: CancellationToken,
    reach: watch::Receiver<Reach>,
    notes: mpsc::Sender<Note>,
}

/// Why a link is of no more use.
enum Parted {
    /// It broke; another may be had.
    Broke(Option<Duration>),
    /// The relay has closed it, or does not have the job any more.
    Closed,
}

impl From<TransportError> for Parted {
    fn from(error: TransportError) -> Self {
        tracing::debug!(%error, "a job's channel is gone");
        match error.kind {
            ErrorKind::Expired => Self::Closed,
            _ => Self::Broke(error.retry_after),
        }
    }
}

impl From<HttpError> for Parted {
    fn from(error: HttpError) -> Self {
        tracing::debug!(%error, "a job's data broke off");
        Self::Broke(error.retry_after)
    }
}

enum Link {
    Channel(DeviceChannel),
    Stream(JobPart),
}

impl Work {
    /// What `request` offers, for `app`, which has it in its table.
    pub(crate) fn new(
        id: RequestId,
        request: &Request,
        app: Arc<Served>,
        reach: watch::Receiver<Reach>,
        notes: mpsc::Sender<Note>,
        seed: u64,
    ) -> (Self, Handle) {
        let header = request.offer.as_ref().and_then(|offer| offer.header.clone());
        let run = Arc::new(watch::Sender::new(Run::new(crate::now(), Limits::default(), header, seed)));
        let cancelled = CancellationToken::new();
        let name = app.entry.name.clone();
        let handle = Handle { app: name.clone(), cancelled: cancelled.clone(), run: run.clone() };
        let of =
            Of { id, app: name, device: request.device.clone(), traceparent: request.traceparent.clone() };
        (Self { of: Arc::new(of), app, run, cancelled, reach, notes }, handle)
    }

    /// Does it.
    pub(crate) async fn work(self) {
        let mut linked = pin!(self.keep_linked().fuse());
        let ended = match self.begin().await {
            Ok(_turn) => self.handle(linked.as_mut()).await,
            Err(ended) => ended,
        };
        let word = match &ended {
            Ended::Answer(response) => Some(last_word(response)),
            Ended::Unwanted => None,
        };
        let mut unsaid = None;
        self.run.send_modify(|run| {
            run.handler_ended(word);
            unsaid = if run.is_channel() { None } else { run.last_news() };
        });
        if let Some(progress) = unsaid {
            self.tell(Note::Progress { id: self.of.id.clone(), progress, say: true }).await;
        }
        {
            // On the channel first: it is the shorter way.
            let mut said = self.run.subscribe();
            let said = said.wait_for(Run::has_said_all);
            tokio::select! {
                _ = tokio::time::timeout(LINGER, said) => {}
                () = linked.as_mut() => {}
            }
        }
        self.tell(Note::Ended { id: self.of.id.clone(), ended }).await;
        let is_open = self.run.borrow().is_channel();
        if is_open {
            let _ = tokio::time::timeout(LINGER + CLOSE_WITHIN, linked).await;
        }
    }

    async fn tell(&self, note: Note) {
        // Without the device's task there is nobody who would want to know.
        let _ = self.notes.send(note).await;
    }

    /// Up to its turn: A3, what is wrong is said instead of opening.
    async fn begin(&self) -> Result<OwnedSemaphorePermit, Ended> {
        let ready = || (self.app.ready)().map_err(|error| Ended::Answer(answered(Err(error))));
        ready()?;
        let turns = self.app.turns.clone();
        if let Ok(turn) = turns.clone().try_acquire_owned() {
            return Ok(turn);
        }
        let waiting = async {
            loop {
                let progress = Progress::new(0).with_note("waiting for the jobs before it");
                self.tell(Note::Progress { id: self.of.id.clone(), progress, say: true }).await;
                tokio::time::sleep(WAITING_EVERY).await;
            }
        };
        let turn = tokio::select! {
            turn = turns.acquire_owned() => turn.map_err(|_| Ended::Unwanted)?,
            () = self.cancelled.cancelled() => return Err(Ended::Unwanted),
            () = waiting => return Err(Ended::Unwanted),
        };
        ready()?;
        Ok(turn)
    }

    /// From its turn to its end. `linked` keeps the link, and ends once the relay does not have the job any more.
    async fn handle(&self, mut linked: Pin<&mut impl Future<Output = ()>>) -> Ended {
        let mut opened = self.run.subscribe();
        let opened = tokio::select! {
            opened = opened.wait_for(Run::was_opened) => opened.is_ok(),
            () = linked.as_mut() => false,
            () = self.cancelled.cancelled() => false,
        };
        if !opened {
            return Ended::Unwanted;
        }
        self.tell(Note::Started(self.of.id.clone())).await;
        let job = Job { of: self.of.clone(), run: self.run.clone(), cancelled: self.cancelled.clone() };
        // In a task of its own: a handler that keeps its thread busy does not keep the job from being called alive.
        let mut handler = JoinSet::new();
        handler.spawn(tracing::Instrument::in_current_span((self.app.run)(job)));
        let mut noting = pin!(self.keep_noting());
        let result = loop {
            tokio::select! {
                result = handler.join_next() => break result,
                () = linked.as_mut() => self.cancelled.cancel(),
                () = noting.as_mut() => {}
            }
        };
        let response = match result {
            Some(Ok(result)) => answered(result),
            _ => {
                tracing::error!("the handler panicked");
                Response::error(status("handler-panicked"), "the device's handler panicked")
            }
        };
        // What was done is done, and said, also when nobody wants it any more.
        match response.status {
            Status::Ok => Ended::Answer(response),
            _ if self.cancelled.is_cancelled() => Ended::Unwanted,
            _ => Ended::Answer(response),
        }
    }

    /// Says in the session what cannot be said on a channel.
    async fn keep_noting(&self) {
        let mut changed = self.run.subscribe();
        loop {
            changed.mark_unchanged();
            let mut note = None;
            self.run.send_if_modified(|run| {
                note = run.note(crate::now());
                note.is_some()
            });
            if let Some(progress) = note {
                self.tell(Note::Progress { id: self.of.id.clone(), progress, say: true }).await;
            }
            let next = self.run.borrow().note_at();
            wait(next, &mut changed).await;
        }
    }

    /// Links the job to the relay, again and again; ends when the relay does not have it any more, or nothing is to be
    /// said or heard of it any more.
    async fn keep_linked(&self) {
        let mut reach = self.reach.clone();
        let mut changed = self.run.subscribe();
        loop {
            changed.mark_unchanged();
            let step = self.run.borrow().step(crate::now());
            match step {
                Step::Over | Step::GiveUp => return,
                Step::Wait(until) => {
                    tokio::select! {
                        () = wait(until, &mut changed) => {}
                        // Where a session can be had, so can a link.
                        Ok(()) = reach.changed() => {
                            self.run.send_if_modified(|run| run.retry_now(crate::now()));
                        }
                    }
                }
                Step::Open { from } => {
                    self.run.send_modify(Run::opening);
                    let at = reach.borrow_and_update().clone();
                    let parted = match self.open(&at, from).await {
                        Ok(link) => self.serve(&at, link, from).await,
                        Err(parted) => Err(parted),
                    };
                    match parted {
                        Ok(()) => {}
                        Err(Parted::Broke(retry_after)) => {
                            self.run.send_modify(|run| run.broke(crate::now(), retry_after));
                        }
                        Err(Parted::Closed) => {
                            self.run.send_modify(|run| run.done_reading(crate::now()));
                            return;
                        }
                    }
                }
            }
        }
    }

    async fn open(&self, at: &Reach, from: u64) -> Result<Link, Parted> {
        if !at.channels {
            let part = at.http().job_data(&at.token, &self.of.id, from).await?;
            return part.map(Link::Stream).ok_or(Parted::Closed);
        }
        let options = ChannelOptions::new(
            self.of.device.clone(),
            at.token.clone(),
            self.of.id.clone(),
            self.app.entry.clone(),
            crate::now() + OPEN_WITHIN,
        );
        Ok(Link::Channel(at.connector().channel(options).await?))
    }

    /// Serves a link until it is of no more use; `Ok` if another one may be wanted.
    async fn serve(&self, at: &Reach, link: Link, from: u64) -> Result<(), Parted> {
        let mut number = None;
        let channel = matches!(link, Link::Channel(_));
        self.run.send_modify(|run| number = run.opened(crate::now(), channel, from));
        let Some(number) = number else { return Ok(()) };
        let mut run = self.run.subscribe();
        let not_wanted = async move {
            let _ = run.wait_for(|run| !run.is_current(number)).await;
            Ok(())
        };
        match link {
            Link::Stream(part) => {
                tokio::select! {
                    biased;
                    parted = not_wanted => parted,
                    parted = self.read(at, part) => parted,
                }
            }
            Link::Channel(DeviceChannel { mut sender, mut receiver, .. }) => {
                let mut run = self.run.subscribe();
                let over = async move {
                    let had_word = run.wait_for(Run::has_said_all).await.is_ok_and(|run| run.had_word());
                    if had_word {
                        tokio::time::sleep(LINGER).await;
                    }
                    Err(Parted::Closed)
                };
                let parted = tokio::select! {
                    biased;
                    parted = not_wanted => parted,
                    parted = self.listen(&mut *receiver) => parted,
                    parted = self.speak(&mut *sender) => parted,
                    parted = over => parted,
                };
                let _ = tokio::time::timeout(CLOSE_WITHIN, sender.close()).await;
                parted
            }
        }
    }

    async fn listen(
        &self,
        receiver: &mut dyn relay_core::app::ChannelReceiver<ToDevice>,
    ) -> Result<(), Parted> {
        while let Some(message) = receiver.receive().await? {
            let mut heard = Ok(());
            match message {
                ToDevice::Header(header) => self.run.send_modify(|run| run.header_came(header)),
                ToDevice::Data(bytes) => self.run.send_modify(|run| heard = run.data(bytes)),
                ToDevice::End(digest) => self.run.send_modify(|run| run.ended(digest)),
                ToDevice::Close => return Err(Parted::Closed),
                // Of a later version; what it cannot do without it will not send.
                _ => {}
            }
            heard.map_err(misbehaved)?;
        }
        Err(Parted::Broke(None))
    }

    async fn speak(&self, sender: &mut dyn relay_core::app::ChannelSender<ToRelay>) -> Result<(), Parted> {
        let mut changed = self.run.subscribe();
        loop {
            changed.mark_unchanged();
            let mut word = None;
            self.run.send_if_modified(|run| {
                word = run.say(crate::now());
                word.is_some()
            });
            let Some(word) = word else {
                let next = self.run.borrow().say_at();
                wait(next, &mut changed).await;
                continue;
            };
            let told = match &word {
                ToRelay::Progress(progress) => Some(progress.clone()),
                _ => None,
            };
            sender.send(word).await?;
            if let Some(progress) = told {
                self.tell(Note::Progress { id: self.of.id.clone(), progress, say: false }).await;
            }
        }
    }

    /// Reads the data by plain HTTP, part after part.
    async fn read(&self, at: &Reach, mut part: JobPart) -> Result<(), Parted> {
        let mut changed = self.run.subscribe();
        loop {
            let mut read = false;
            loop {
                while changed.borrow_and_update().room() == 0 {
                    let _ = changed.changed().await;
                }
                let Some(bytes) = part.data.next().await else { break };
                let bytes = bytes?;
                let mut heard = Ok(());
                read |= !bytes.is_empty();
                self.run.send_modify(|run| heard = run.data(bytes));
                heard.map_err(misbehaved)?;
            }
            let mut ended = Ok(false);
            self.run.send_modify(|run| {
                ended = run.part_ended(part.total, part.sha256);
                if ended == Ok(true) {
                    run.done_reading(crate::now());
                }
            });
            if ended.map_err(misbehaved)? {
                return Ok(());
            }
            if !read && part.total == Some(self.run.borrow().position()) {
                return Err(misbehaved(super::run::Misbehaved::NoDigest));
            }
            if !read {
                self.run.send_modify(|run| run.nothing_yet(crate::now()));
                return Ok(());
            }
            let from = self.run.borrow().position();
            part = at.http().job_data(&at.token, &self.of.id, from).await?.ok_or(Parted::Closed)?;
        }
    }
}

fn misbehaved(error: super::run::Misbehaved) -> Parted {
    tracing::warn!(%error, "the relay broke a rule");
    Parted::Broke(None)
}

/// What is said on a channel of a job that is answered so.
fn last_word(response: &Response) -> ToRelay {
    let words = response.body.as_ref().map(|body| String::from_utf8_lossy(&body.bytes).into_owned().into());
    match &response.status {
        Status::Ok => ToRelay::Done { version: words },
        status => ToRelay::Error { status: status.clone(), words: words.unwrap_or_default() },
    }
}

/// Until then, or a change.
async fn wait(until: Option<std::time::Instant>, changed: &mut watch::Receiver<Run>) {
    let until = async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = until => {}
        _ = changed.changed() => {}
    }
}
