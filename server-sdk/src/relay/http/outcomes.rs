//! What becomes of requests and jobs, for the keys that made them (P4).
//!
//! Each key that somebody watches with has a log of its own: no key sees what others ask (T6), and what others ask pushes
//! nothing out of its log (T37). Administrators share one, which has all. While nobody watches, a request costs one look
//! at a counter.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use relay_core::{
    Request,
    app::JobState,
    auth::Principal,
    ids::{DeviceId, KeyId, Method},
    outcome::Outcome,
    relay::{Changes, Watch},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{App, RELAY_REQUEST_ID, body::Reply, inquiry::rfc3339, jobs, problem::Problem};
use crate::relay::jobs::Tracked;

/// How long a log is kept, and goes on, after its last watcher left: so long that one may come back.
const KEPT_FOR: Duration = Duration::from_secs(300);
/// Logs without a watcher that are kept at most.
const KEPT: usize = 100;

/// Which of the two it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Job,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Job => "job",
        }
    }
}

/// Something became of a request or job.
#[derive(Debug, Clone)]
pub(super) struct Happened {
    pub(super) kind: Kind,
    pub(super) device: DeviceId,
    /// As JSON, on one line.
    pub(super) data: Arc<str>,
}

/// Whose log: a key's, or `None`, that of all administrators.
type Whose = Option<KeyId>;

fn whose(principal: &Principal) -> Whose {
    match principal {
        Principal::Service(key) => Some(key.clone()),
        _ => None,
    }
}

/// The logs of all keys that somebody watches with, or did a moment ago.
#[derive(Debug)]
pub(super) struct Outcomes {
    /// How many a watcher may leave unread, and how many are kept for one that comes back.
    behind: usize,
    /// Logs there are.
    there: AtomicUsize,
    logs: Mutex<Logs>,
}

#[derive(Debug, Default)]
struct Logs {
    by_key: HashMap<Whose, Log>,
    ended: bool,
}

#[derive(Debug)]
struct Log {
    changes: Arc<Changes<Happened>>,
    watchers: usize,
    /// When the last of them left.
    left: Instant,
}

impl Outcomes {
    pub(super) fn new(behind: usize) -> Self {
        Self { behind, there: AtomicUsize::new(0), logs: Mutex::default() }
    }

    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches what `principal` may see: from now on, or after `position`. `None`: that is not remembered.
    pub(super) fn watch(self: &Arc<Self>, principal: &Principal, position: Option<u64>) -> Option<Watching> {
        let whose = whose(principal);
        let mut logs = self.logs();
        let Logs { by_key, ended } = &mut *logs;
        let watch = match (by_key.get_mut(&whose), position) {
            (Some(log), Some(position)) => {
                let watch = log.changes.watch_after(position)?;
                log.watchers += 1;
                watch
            }
            (None, Some(_)) => return None,
            (Some(log), None) => {
                log.watchers += 1;
                log.changes.watch()
            }
            (None, None) => {
                let changes = Arc::new(Changes::new(self.behind, self.behind));
                if *ended {
                    changes.end();
                }
                let watch = changes.watch();
                by_key.insert(whose.clone(), Log { changes, watchers: 1, left: Instant::now() });
                watch
            }
        };
        logs.sweep(&self.there);
        Some(Watching { watch, outcomes: self.clone(), whose })
    }

    fn leave(&self, whose: &Whose) {
        let mut logs = self.logs();
        if let Some(log) = logs.by_key.get_mut(whose) {
            log.watchers -= 1;
            log.left = Instant::now();
        }
        logs.sweep(&self.there);
    }

    /// The relay stops.
    pub(super) fn end(&self) {
        let mut logs = self.logs();
        logs.ended = true;
        logs.by_key.values().for_each(|log| log.changes.end());
    }

    /// Where it is to be written down what becomes of what `key` asks for. `None`: nowhere.
    fn of(&self, key: &KeyId) -> Option<Vec<Arc<Changes<Happened>>>> {
        if self.there.load(Relaxed) == 0 {
            return None;
        }
        let mut logs = self.logs();
        let mut found = Vec::new();
        for whose in [Some(key.clone()), None] {
            match logs.by_key.get(&whose) {
                Some(log) if log.is_over() => drop(logs.by_key.remove(&whose)),
                Some(log) => found.push(log.changes.clone()),
                None => {}
            }
        }
        self.there.store(logs.by_key.len(), Relaxed);
        (!found.is_empty()).then_some(found)
    }

    /// Notes a request that is about to be made, if what becomes of it is wanted anywhere.
    pub(super) fn note(&self, principal: &Principal, request: &Request) -> Option<Box<Noted>> {
        let (Principal::Service(key) | Principal::Administrator(key)) = principal else { return None };
        let logs = self.of(key)?;
        let (device, method) = (request.device.clone(), request.method.clone());
        Some(Box::new(Noted { logs, key: key.clone(), device, method }))
    }

    /// Writes down what becomes of a job, until its end.
    pub(super) async fn follow(&self, app: &App, job: &Tracked) {
        let mut reports = job.report();
        let mut told = JobState::Offered;
        loop {
            let report = reports.borrow_and_update().clone();
            let state = report.update.state;
            if state != told
                && let Some(logs) = self.of(job.owner())
            {
                let mut data = json!({ "id": job.id, "state": state.as_str(), "bytes": report.update.bytes });
                if let Some((outcome, end)) = &report.end {
                    data["outcome"] = outcome.as_str().into();
                    jobs::describe(end, &job.id, &mut data);
                    // The device's words are between it and the caller.
                    data.as_object_mut().map(|data| data.remove("detail"));
                }
                write(app, &logs, Kind::Job, &job.device, job.owner(), data);
            }
            told = state;
            if report.end.is_some() || reports.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Log {
    /// Nobody came back to it.
    fn is_over(&self) -> bool {
        self.watchers == 0 && self.left.elapsed() > KEPT_FOR
    }
}

impl Logs {
    fn sweep(&mut self, there: &AtomicUsize) {
        self.by_key.retain(|_, log| !log.is_over());
        let unwatched = || self.by_key.iter().filter(|(_, log)| log.watchers == 0);
        if unwatched().count() > KEPT
            && let Some(longest) = unwatched().min_by_key(|(_, log)| log.left).map(|(whose, _)| whose.clone())
        {
            self.by_key.remove(&longest);
        }
        there.store(self.by_key.len(), Relaxed);
    }
}

/// A watch that its log counts as a watcher.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) watch: Watch<Happened>,
    outcomes: Arc<Outcomes>,
    whose: Whose,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.outcomes.leave(&self.whose);
    }
}

/// A request under way, of which the outcome is to be written down.
pub(super) struct Noted {
    logs: Vec<Arc<Changes<Happened>>>,
    key: KeyId,
    device: DeviceId,
    method: Method,
}

impl Noted {
    /// Writes down how it ended.
    pub(super) fn ended(&self, app: &App, result: &Result<Reply, Problem>) {
        let mut data = json!({ "method": self.method });
        match result {
            Ok(reply) => {
                data["id"] = reply.headers().get(RELAY_REQUEST_ID).and_then(|id| id.to_str().ok()).into();
                data["state"] = JobState::Completed.as_str().into();
                data["outcome"] = Outcome::Answered.as_str().into();
            }
            Err(problem) => {
                data["id"] = problem.request().map(|id| id.as_str()).into();
                data["state"] = JobState::Failed.as_str().into();
                data["outcome"] = problem.outcome().as_str().into();
                data["code"] = problem.code().as_str().into();
            }
        }
        write(app, &self.logs, Kind::Request, &self.device, &self.key, data);
    }

    /// Its caller hung up.
    pub(super) fn cancelled(&self, app: &App) {
        let data = json!({ "id": null, "method": self.method, "state": JobState::Cancelled.as_str() });
        write(app, &self.logs, Kind::Request, &self.device, &self.key, data);
    }
}

fn write(
    app: &App,
    logs: &[Arc<Changes<Happened>>],
    kind: Kind,
    device: &DeviceId,
    key: &KeyId,
    mut data: Value,
) {
    data["device"] = device.as_str().into();
    data["epoch"] = app.relay.presence(device).map_or(0, |presence| presence.epoch).into();
    data["key"] = key.as_str().into();
    data["time"] = rfc3339(SystemTime::now()).into();
    let happened = Happened { kind, device: device.clone(), data: data.to_string().into() };
    for log in logs {
        let number = log.write(happened.clone());
        log.announce(number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn id(n: usize) -> KeyId {
        KeyId::new(&format!("key-{n}")).unwrap()
    }

    fn watch(outcomes: &Arc<Outcomes>, n: usize, position: Option<u64>) -> Option<Watching> {
        outcomes.watch(&Principal::Service(id(n)), position)
    }

    #[tokio::test(start_paused = true)]
    async fn b15_a_log_goes_on_for_a_while_after_its_last_watcher_left_and_is_then_forgotten() {
        let outcomes = Arc::new(Outcomes::new(4));
        assert!(outcomes.of(&id(0)).is_none(), "nobody watches");
        let watching = watch(&outcomes, 0, None).unwrap();
        let position = Some(watching.watch.position());
        advance(2 * KEPT_FOR).await;
        assert_eq!(outcomes.of(&id(0)).map(|logs| logs.len()), Some(1));
        assert!(outcomes.of(&id(1)).is_none() && watch(&outcomes, 1, position).is_none());
        drop(watching);
        advance(KEPT_FOR).await;
        assert!(outcomes.of(&id(0)).is_some());
        drop(watch(&outcomes, 0, position).expect("it came back in time"));
        advance(KEPT_FOR + Duration::from_secs(1)).await;
        assert!(outcomes.of(&id(0)).is_none());
        assert_eq!(outcomes.there.load(Relaxed), 0, "requests no longer look for it");
        assert!(watch(&outcomes, 0, position).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn b15_logs_without_a_watcher_have_a_bound() {
        let outcomes = Arc::new(Outcomes::new(4));
        let watched = watch(&outcomes, 0, None);
        for n in 1..KEPT + 50 {
            drop(watch(&outcomes, n, None));
            advance(Duration::from_millis(1)).await;
        }
        assert_eq!(outcomes.there.load(Relaxed), KEPT + 1);
        assert!(outcomes.of(&id(0)).is_some() && outcomes.of(&id(KEPT + 49)).is_some());
        assert!(outcomes.of(&id(1)).is_none(), "the one that was left longest ago went");
        drop(watched);
        outcomes.end();
        let ended = watch(&outcomes, 0, None).unwrap().watch.next().await;
        assert!(ended.is_err(), "{ended:?}");
        let ended = watch(&outcomes, 1, None).unwrap().watch.next().await;
        assert!(ended.is_err(), "{ended:?}");
    }

    #[tokio::test]
    async fn administrators_share_the_log_that_has_all() {
        let outcomes = Arc::new(Outcomes::new(4));
        let watchings = [7, 8].map(|n| outcomes.watch(&Principal::Administrator(id(n)), None).unwrap());
        assert_eq!(outcomes.there.load(Relaxed), 1);
        assert_eq!(outcomes.of(&id(0)).map(|logs| logs.len()), Some(1));
        let own = watch(&outcomes, 0, None);
        assert_eq!(outcomes.of(&id(0)).map(|logs| logs.len()), Some(2));
        drop((own, watchings));
    }
}
