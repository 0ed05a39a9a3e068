//! Jobs in the device's task: handed to their apps, and what their tasks say handed on.

use std::{collections::HashMap, sync::Arc};

use relay_core::{
    app::Offer,
    auth::Secret,
    envelope::Envelope,
    ids::RequestId,
    request::{Request, Response, Status},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{Shell, instrumented};
use crate::{
    app::{
        self, Table,
        work::{Ended, Handle, Note, Work},
    },
    event::{Event, JobEnd},
    ledger,
    reach::Reach,
};

/// Words of jobs' tasks that wait for the device's; full, they wait.
const NOTES: usize = 64;

/// The jobs that are at work, or wait for their turn.
pub(super) struct Jobs {
    table: Table,
    reach: watch::Sender<Reach>,
    handles: HashMap<RequestId, Handle>,
    works: JoinSet<()>,
    sender: mpsc::Sender<Note>,
    notes: mpsc::Receiver<Note>,
    seed: u64,
}

impl Jobs {
    pub(super) fn new(table: Table, reach: watch::Sender<Reach>, seed: u64) -> Self {
        let (sender, notes) = mpsc::channel(NOTES);
        Self { table, reach, handles: HashMap::new(), works: JoinSet::new(), sender, notes, seed }
    }

    pub(super) const fn table(&self) -> &Table {
        &self.table
    }

    /// The next thing that a job's task says; `None` for one that is over and done with. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Note> {
        let Self { notes, works, .. } = self;
        tokio::select! {
            biased;
            Some(note) = notes.recv() => Some(note),
            Some(_) = works.join_next() => None,
            else => std::future::pending().await,
        }
    }

    /// Whether no job is at work, and no channel of one is being closed.
    pub(super) fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    pub(super) fn cancel(&self, id: &RequestId) {
        if let Some(handle) = self.handles.get(id) {
            handle.cancelled.cancel();
        }
    }

    pub(super) fn cancel_all(&self) {
        self.handles.values().for_each(|handle| handle.cancelled.cancel());
    }

    pub(super) fn offered_again(&self, id: &RequestId, request: &Request) {
        if let Some(handle) = self.handles.get(id) {
            handle.offered_again(request);
        }
    }

    /// Begins a job, or says why not.
    fn begin(&mut self, id: &RequestId, request: &Request, offer: &Offer) -> Result<(), Response> {
        let served = self.table.find(&offer.app).ok_or_else(|| app::unknown_app(&offer.app))?;
        let jobs = self.handles.values().filter(|handle| handle.app == offer.app).count();
        if !served.has_room(jobs) {
            return Err(app::busy());
        }
        self.seed = self.seed.wrapping_add(1);
        let (work, handle) =
            Work::new(id.clone(), request, served, self.reach.subscribe(), self.sender.clone(), self.seed);
        self.handles.insert(id.clone(), handle);
        let span = tracing::info_span!("device.job", request_id = %id, app = %offer.app);
        self.works.spawn(instrumented(work.work(), span));
        Ok(())
    }
}

impl Shell {
    /// A3: work for an app.
    pub(super) fn offered(&mut self, id: RequestId, request: &Arc<Request>) {
        let Some(offer) = &request.offer else { return };
        if let Err(response) = self.jobs.begin(&id, request, offer) {
            self.tell(Event::JobEnded { id: id.clone(), app: offer.app.clone(), end: end_of(&response) });
            self.ledger.handle_input(crate::now(), ledger::Input::Finished { id, response });
        }
    }

    pub(super) fn note(&mut self, note: Note) {
        match note {
            Note::Started(id) => {
                if let Some(handle) = self.jobs.handles.get(&id) {
                    let app = handle.app.clone();
                    self.tell(Event::JobStarted { id, app });
                }
            }
            Note::Progress { id, progress, say } => {
                if say {
                    self.put(Envelope::Progress { id: id.clone(), progress: progress.clone() });
                }
                self.tell(Event::JobProgress { id, progress });
            }
            Note::Ended { id, ended } => {
                let Some(handle) = self.jobs.handles.remove(&id) else { return };
                let end = match &ended {
                    Ended::Answer(response) => end_of(response),
                    Ended::Unwanted => JobEnd::Cancelled,
                };
                self.tell(Event::JobEnded { id: id.clone(), app: handle.app, end });
                let input = match ended {
                    Ended::Answer(response) => ledger::Input::Finished { id, response },
                    Ended::Unwanted => ledger::Input::Unwanted { id },
                };
                self.ledger.handle_input(crate::now(), input);
            }
        }
    }

    /// Tells those who reach the relay beside the session where it is now.
    pub(super) fn reached(&self, channels: Option<bool>) {
        self.jobs.reach.send_modify(|reach| {
            *reach = Reach {
                ways: self.ways.clone(),
                at: self.at.clone(),
                token: self.token.clone().unwrap_or_else(|| Secret::new("")),
                channels: channels.unwrap_or(reach.channels),
            };
        });
    }
}

fn end_of(response: &Response) -> JobEnd {
    match &response.status {
        Status::Ok => JobEnd::Done,
        status => {
            let words = response.body.as_ref().map_or(&[][..], |body| &body.bytes);
            JobEnd::Failed { status: status.clone(), words: String::from_utf8_lossy(words).into() }
        }
    }
}
