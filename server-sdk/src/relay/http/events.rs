//! `GET /v1/events`: what changes, as Server-Sent Events (P4).
//!
//! A watcher sees events of the devices that its key may list, and what becomes of requests and jobs that its key made,
//! and no others (X2, T6). Each event's ID is a place from which the same key may go on; it tells nothing else, not even
//! how many events of others there were.

use std::{
    fmt::Write,
    future::pending,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderName, HeaderValue, header};
use relay_core::{
    auth::Principal,
    ids::DeviceId,
    relay::{PresenceChange, PresenceWatch, Watch, WatchEnd},
};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    App, Call,
    access::{self, Ticket},
    body::{Pieces, Reply, ReplyBody},
    inquiry::rfc3339,
    outcomes::{Happened, Kind, Watching},
    problem::{Problem, shown},
    route::{Query, Target},
};
use crate::relay::{
    auth::{Action, Denied},
    directory::Position,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How often a watcher's key is looked at again: so long may a revoked one still watch (T17).
const KEY_CHECK: Duration = Duration::from_secs(5);
/// How many such looks there are between two signs of life.
const KEEP_ALIVE: u32 = 3;
/// When a watcher whose stream ended is to come back, in milliseconds.
const RETRY: u32 = 2000;
/// Devices that one call may name.
const MAX_DEVICES: usize = 100;

/// `GET /v1/events`
pub(super) async fn events(call: Call) -> Result<Reply, Problem> {
    let principal = access::service(&call)?;
    let wanted = Wanted::read(call.query()?)?;
    let last = call.header(&LAST_EVENT_ID)?.map(str::to_owned);
    let app = call.app.clone();
    drop(call);
    for device in &wanted.devices {
        let target = Target::Device(device.clone());
        access::resolve(&app, &principal, target, Action::List).await?;
        app.store.device(device).await?.ok_or_else(Problem::unknown_device)?;
    }
    let ticket = Ticket::take(&app, &principal)?;
    let (pieces, mut body) = ReplyBody::stream();
    body.hold(ticket);
    let resumed = last.as_deref().map(|last| {
        let position = app.directory.open_position(last, &principal)?;
        wanted.watches(&app, &principal, Some(position))
    });
    let forgotten = matches!(resumed, Some(None));
    let watches = resumed.flatten().or_else(|| wanted.watches(&app, &principal, None));
    let (presence, outcomes) = watches.unwrap_or_default();
    app.metrics.watchers.fetch_add(1, Relaxed);
    tokio::spawn(Watcher { app, principal, wanted, presence, outcomes, told: None }.run(pieces, forgotten));

    let mut reply = Reply::new(body);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx and its kin would keep events until a buffer is full.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(reply)
}

/// What is asked for.
struct Wanted {
    /// None means all.
    devices: Vec<DeviceId>,
    presence: bool,
    requests: bool,
    jobs: bool,
}

impl Wanted {
    fn read(mut query: Query) -> Result<Self, Problem> {
        let devices = query.take_all("device");
        if devices.len() > MAX_DEVICES {
            return Err(Problem::bad(format!(
                "at most {MAX_DEVICES} devices can be named; leave them out for all"
            )));
        }
        let kinds = query.take_all("type");
        query.finish()?;
        let devices = devices.iter().map(|device| DeviceId::new(device)).collect::<Result<_, _>>()?;
        let all = kinds.is_empty();
        let mut wanted = Self { devices, presence: all, requests: all, jobs: all };
        for kind in kinds {
            match &*kind {
                "presence" => wanted.presence = true,
                "request" => wanted.requests = true,
                "job" => wanted.jobs = true,
                _ => {
                    let kind = shown(&kind);
                    let words = format!("type is {kind}; there are events of type presence, request and job");
                    return Err(Problem::bad(words));
                }
            }
        }
        Ok(wanted)
    }

    /// Watches all that is wanted, from now on or from `position`; `None` if one of them does not reach back there.
    fn watches(
        &self,
        app: &App,
        principal: &Principal,
        position: Option<Position>,
    ) -> Option<(Option<PresenceWatch>, Option<Watching>)> {
        let presence = self.presence.then(|| match position {
            Some(position) => app.relay.watch_presence_after(position.presence),
            None => Some(app.relay.watch_presence()),
        });
        let outcomes = (self.requests || self.jobs)
            .then(|| app.outcomes.watch(principal, position.map(|position| position.outcomes)));
        if matches!(presence, Some(None)) || matches!(outcomes, Some(None)) {
            return None;
        }
        Some((presence.flatten(), outcomes.flatten()))
    }

    fn has(&self, device: &DeviceId) -> bool {
        self.devices.is_empty() || self.devices.contains(device)
    }
}

/// Somebody who watches.
struct Watcher {
    app: Arc<App>,
    principal: Principal,
    wanted: Wanted,
    presence: Option<PresenceWatch>,
    outcomes: Option<Watching>,
    /// The position that the watcher was last told.
    told: Option<Position>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.app.metrics.watchers.fetch_sub(1, Relaxed);
    }
}

/// What there is to tell.
enum News {
    Presence(PresenceChange),
    Outcome(Happened),
}

async fn next<T: Clone>(watch: Option<&mut Watch<T>>) -> Result<T, WatchEnd> {
    match watch {
        Some(watch) => watch.next().await,
        None => pending().await,
    }
}

impl Watcher {
    /// Tells what changes, until one of both ends has enough.
    async fn run(mut self, pieces: Pieces, forgotten: bool) {
        let mut hello = format!("retry: {RETRY}\n");
        if forgotten {
            hello += "event: reset\ndata: {}\n";
        }
        self.place(&mut hello);
        if pieces.send(hello + "\n").await.is_err() {
            return;
        }
        let mut checks = interval(KEY_CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        checks.tick().await;
        let mut quiet = 0;
        loop {
            let piece = tokio::select! {
                () = pieces.hung_up() => return,
                news = self.news() => match news {
                    Ok(news) => match self.event(&news).await {
                        Ok(Some(event)) => event,
                        Ok(None) => continue,
                        // It may come back to where it was.
                        Err(_) => return pieces.finish(),
                    },
                    Err(end) => {
                        tracing::debug!(key = ?self.principal, %end, "watcher let go");
                        if end == WatchEnd::Behind {
                            self.app.metrics.watchers_behind.fetch_add(1, Relaxed);
                        }
                        return pieces.finish();
                    }
                },
                _ = checks.tick() => {
                    if !self.app.auth.holds(&self.principal) {
                        return pieces.finish();
                    }
                    quiet += 1;
                    if quiet < KEEP_ALIVE {
                        continue;
                    }
                    let mut sign = ":\n".to_owned();
                    self.place(&mut sign);
                    sign + "\n"
                }
            };
            quiet = 0;
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
    }

    /// What comes next; that a device is there before what it answered.
    async fn news(&mut self) -> Result<News, WatchEnd> {
        tokio::select! {
            biased;
            change = next(self.presence.as_mut()) => change.map(News::Presence),
            happened = next(self.outcomes.as_mut().map(|outcomes| &mut outcomes.watch)) => {
                happened.map(News::Outcome)
            }
        }
    }

    /// The event that tells of `news`, if this watcher wants it and may have it.
    async fn event(&mut self, news: &News) -> Result<Option<String>, Denied> {
        let (kind, data) = match news {
            News::Presence(change) if !self.wanted.has(&change.device) => return Ok(None),
            News::Presence(change) => {
                match self.app.auth.authorize(&self.principal, &change.device, Action::List).await {
                    Ok(()) => {}
                    Err(Denied::Store(error)) => return Err(error.into()),
                    Err(_) => return Ok(None),
                }
                let data = json!({
                    "device": change.device,
                    "epoch": change.epoch,
                    "state": change.state.as_str(),
                    "time": rfc3339(change.time),
                });
                ("presence", data.to_string().into())
            }
            News::Outcome(Happened { kind, device, data }) => {
                let wanted = match kind {
                    Kind::Request => self.wanted.requests,
                    Kind::Job => self.wanted.jobs,
                };
                if !wanted || !self.wanted.has(device) {
                    return Ok(None);
                }
                (kind.as_str(), data.clone())
            }
        };
        let mut event = format!("event: {kind}\n");
        self.place(&mut event);
        // What JSON writes has no line break in it.
        let _ = writeln!(event, "data: {data}\n");
        Ok(Some(event))
    }

    /// Says where the watcher is now, if it was not told yet.
    fn place(&mut self, event: &mut String) {
        let position = Position {
            presence: self.presence.as_ref().map_or(0, Watch::position),
            outcomes: self.outcomes.as_ref().map_or(0, |outcomes| outcomes.watch.position()),
        };
        if self.told.replace(position) != Some(position) {
            let _ = writeln!(event, "id: {}", self.app.directory.seal_position(position, &self.principal));
        }
    }
}
