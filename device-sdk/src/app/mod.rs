//! Apps: named functions of the device, and the jobs that are sent to them.
//!
//! ```text
//! offer ─▶ in the table? ─▶ in order? ─▶ its turn ─▶ linked ─▶ the handler runs ─▶ answer to the offer's request
//!             └─ no: unknown-app  └─ no: its error      ▲         │
//!                                                       └ broke ◀─┘
//! ```
//!
//! The ledger knows a job as a request that is at work; here is what is done about it. [`run`] is the machine of one job,
//! [`work`] the task around it.

mod job;
pub(crate) mod run;
pub(crate) mod work;

use std::{collections::HashMap, fmt, sync::Arc};

use relay_core::{
    ids::AppName,
    request::{Body, Response, Status},
    store,
    transport::BoxFuture,
};
use tokio::sync::Semaphore;

pub use self::job::Job;
use crate::{error::StartError, handler::HandlerError};

const MAX_CONCURRENCY: usize = 64;
/// Jobs of one app that wait for their turn.
const WAITING: usize = 16;

type Run = Arc<dyn Fn(Job) -> BoxFuture<Result<Option<Body>, HandlerError>> + Send + Sync>;
type Ready = Arc<dyn Fn() -> Result<(), HandlerError> + Send + Sync>;

/// A named function of the device, and what does its work.
///
/// ```
/// use device_sdk::{App, HandlerError, Job};
///
/// let jammed = || false;
/// let print = App::new("print", |mut job: Job| async move {
///     let mut part = tokio::fs::File::options()
///         .create(true).read(true).write(true).truncate(false)
///         .open(format!("/var/spool/{}.part", job.id()))
///         .await?;
///     job.resume_with(&mut part).await?;
///     job.copy_to(&mut part).await?;
///     part.sync_all().await?;
///     Ok(())
/// })
/// .ready(move || if jammed() { Err(HandlerError::device_error("paper jam")) } else { Ok(()) });
/// # let _ = print;
/// ```
pub struct App {
    name: String,
    path: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
    concurrency: usize,
    run: Run,
    ready: Ready,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What an app's handler ends with: nothing, or the version that the device now has, for apps whose data has versions.
pub trait IntoVersion {
    /// The version.
    fn into_version(self) -> Option<String>;
}

impl IntoVersion for () {
    fn into_version(self) -> Option<String> {
        None
    }
}

impl IntoVersion for String {
    fn into_version(self) -> Option<String> {
        Some(self)
    }
}

impl IntoVersion for &str {
    fn into_version(self) -> Option<String> {
        Some(self.to_owned())
    }
}

impl<T: IntoVersion> IntoVersion for Option<T> {
    fn into_version(self) -> Option<String> {
        self.and_then(IntoVersion::into_version)
    }
}

impl App {
    /// An app named `name` (`[A-Za-z0-9._-]{1,64}`), whose jobs `handler` does. Its path is `/name`, its protocol `name`.
    pub fn new<Running, Version>(
        name: impl Into<String>,
        handler: impl Fn(Job) -> Running + Send + Sync + 'static,
    ) -> Self
    where
        Running: Future<Output = Result<Version, HandlerError>> + Send + 'static,
        Version: IntoVersion,
    {
        let run = move |job| -> BoxFuture<_> {
            let running = handler(job);
            Box::pin(async move { Ok(running.await?.into_version().map(Body::text)) })
        };
        Self {
            name: name.into(),
            path: None,
            port: None,
            protocol: None,
            concurrency: 1,
            run: Arc::new(run),
            ready: Arc::new(|| Ok(())),
        }
    }

    /// Whether the app can begin a job now, asked before anything is opened or read, and when a job that waited has its
    /// turn. An error (`HandlerError::device_error("paper jam")`) is what the service gets instead. Is not to block.
    #[must_use]
    pub fn ready(mut self, ready: impl Fn() -> Result<(), HandlerError> + Send + Sync + 'static) -> Self {
        self.ready = Arc::new(ready);
        self
    }

    /// How many jobs it does at once. Default 1: a printer prints one. 1 to 64. Sixteen more wait for their turn; beyond
    /// that the device answers `busy`.
    #[must_use]
    pub const fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self
    }

    /// What is appended to the address of the control session, if not `/name`.
    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The port of its channels, if not that of the control session.
    #[must_use]
    pub const fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The name of its protocol, if not the app's.
    #[must_use]
    pub fn protocol(mut self, protocol: impl Into<String>) -> Self {
        self.protocol = Some(protocol.into());
        self
    }

    fn serve(self) -> Result<Served, StartError> {
        let wrong = |why: String| StartError::App { name: self.name.as_str().into(), why: why.into() };
        let name = AppName::new(&self.name).map_err(|error| wrong(error.to_string()))?;
        if !(1..=MAX_CONCURRENCY).contains(&self.concurrency) {
            return Err(wrong(format!("it does 1 to {MAX_CONCURRENCY} jobs at once")));
        }
        let entry = store::App {
            path: self.path.clone().unwrap_or_else(|| format!("/{name}")),
            port: self.port,
            protocol: self.protocol.clone().unwrap_or_else(|| name.to_string()),
            name,
        };
        // The relay's own check of the table: better said now than at each registration.
        let table = store::Description { apps: vec![entry.clone()], ..store::Description::new() };
        store::Registration::new(table).map_err(|error| wrong(error.to_string()))?;
        Ok(Served {
            entry,
            turns: Arc::new(Semaphore::new(self.concurrency)),
            at_once: self.concurrency + WAITING,
            run: self.run,
            ready: self.ready,
        })
    }
}

/// An app in service.
pub(crate) struct Served {
    entry: store::App,
    /// One for each job that may be at work.
    turns: Arc<Semaphore>,
    /// Jobs that are at work or wait.
    at_once: usize,
    run: Run,
    ready: Ready,
}

/// The device's apps (A2).
#[derive(Default)]
pub(crate) struct Table(HashMap<AppName, Arc<Served>>);

impl Table {
    pub(crate) fn new(apps: Vec<App>) -> Result<Self, StartError> {
        let mut table = HashMap::new();
        for app in apps {
            let served = app.serve()?;
            let name = served.entry.name.clone();
            if table.contains_key(&name) || table.len() >= store::MAX_APPS {
                let why = format!("each has its own name, and there are {} at most", store::MAX_APPS);
                return Err(StartError::App { name: name.as_str().into(), why: why.into() });
            }
            table.insert(name, Arc::new(served));
        }
        Ok(Self(table))
    }

    /// What the relay is told of them, in the place of what `registration` says of apps of the same names.
    pub(crate) fn register(&self, registration: &mut store::Description) {
        registration.apps.retain(|app| !self.0.contains_key(&app.name));
        let mut own: Vec<_> = self.0.values().map(|app| app.entry.clone()).collect();
        own.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        registration.apps.extend(own);
    }

    pub(crate) fn find(&self, name: &AppName) -> Option<Arc<Served>> {
        self.0.get(name).cloned()
    }
}

impl Served {
    /// Whether it has room for one more beside the `jobs` that it has.
    pub(crate) const fn has_room(&self, jobs: usize) -> bool {
        jobs < self.at_once
    }
}

/// What a job is answered by a device that does not have its app.
pub(crate) fn unknown_app(name: &AppName) -> Response {
    answer(HandlerError::other("unknown-app", format!("the device has no app {name}")))
}

/// What a job is answered whose app has too many of them.
pub(crate) fn busy() -> Response {
    answer(HandlerError::other("busy", "the app has too many jobs at once"))
}

fn answer(error: HandlerError) -> Response {
    Response::error(error.status().clone(), error.words())
}

fn answered(result: Result<Option<Body>, HandlerError>) -> Response {
    match result {
        Ok(version) => Response::new(Status::Ok, version),
        Err(error) => answer(error),
    }
}
