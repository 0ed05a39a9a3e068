//! `GET /v1/events`: what changes, as Server-Sent Events (P4).
//!
//! A watcher sees events of the devices that its key may list, and no others (X2). Each event's ID is a place from
//! which the same key may go on; it tells nothing else, not even how many events of others there were.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderName, HeaderValue, header};
use relay_core::{
    auth::Principal,
    ids::DeviceId,
    relay::{PresenceChange, PresenceWatch, WatchEnd},
};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    App, Call,
    access::{self, Ticket},
    body::{Pieces, Reply, ReplyBody},
    problem::{Problem, shown},
    route::{Query, Target},
};
use crate::relay::auth::{Action, Denied};

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
    let devices = wanted(call.query()?)?;
    let last = call.header(&LAST_EVENT_ID)?.map(str::to_owned);
    let app = call.app.clone();
    drop(call);
    for device in &devices {
        let target = Target::Device(device.clone());
        access::resolve(&app, &principal, target, Action::List).await?;
        app.store.device(device).await?.ok_or_else(Problem::unknown_device)?;
    }
    let ticket = Ticket::take(&app, &principal)?;
    let (pieces, mut body) = ReplyBody::stream();
    body.hold(ticket);
    let position = last.as_deref().map(|last| app.directory.open_position(last, &principal));
    let resumed = position.map(|position| app.relay.watch_presence_after(position?));
    let forgotten = matches!(resumed, Some(None));
    let watch = resumed.flatten().unwrap_or_else(|| app.relay.watch_presence());
    app.metrics.watchers.fetch_add(1, Relaxed);
    tokio::spawn(Watcher { app, principal, devices, watch, told: None }.run(pieces, forgotten));

    let mut reply = Reply::new(body);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx and its kin would keep events until a buffer is full.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(reply)
}

/// The devices that are asked for; none means all.
fn wanted(mut query: Query) -> Result<Vec<DeviceId>, Problem> {
    let devices = query.take_all("device");
    if devices.len() > MAX_DEVICES {
        return Err(Problem::bad(format!(
            "at most {MAX_DEVICES} devices can be named; leave them out for all"
        )));
    }
    for kind in query.take_all("type") {
        if kind != "presence" {
            return Err(Problem::bad(format!("type is {}; there are events of type presence", shown(&kind))));
        }
    }
    query.finish()?;
    Ok(devices.iter().map(|device| DeviceId::new(device)).collect::<Result<_, _>>()?)
}

/// Somebody who watches.
struct Watcher {
    app: Arc<App>,
    principal: Principal,
    devices: Vec<DeviceId>,
    watch: PresenceWatch,
    /// The position that the watcher was last told.
    told: Option<u64>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.app.metrics.watchers.fetch_sub(1, Relaxed);
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
                change = self.watch.next() => match change {
                    Ok(change) => match self.event(&change).await {
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

    /// The event that tells of `change`, if this watcher wants it and may have it.
    async fn event(&mut self, change: &PresenceChange) -> Result<Option<String>, Denied> {
        if !self.devices.is_empty() && !self.devices.contains(&change.device) {
            return Ok(None);
        }
        match self.app.auth.authorize(&self.principal, &change.device, Action::List).await {
            Ok(()) => {}
            Err(Denied::Store(error)) => return Err(error.into()),
            Err(_) => return Ok(None),
        }
        let mut event = "event: presence\n".to_owned();
        self.place(&mut event);
        let data = json!({
            "device": change.device,
            "epoch": change.epoch,
            "state": change.state.as_str(),
        });
        // What JSON writes has no line break in it.
        let _ = writeln!(event, "data: {data}\n");
        Ok(Some(event))
    }

    /// Says where the watcher is now, if it was not told yet.
    fn place(&mut self, event: &mut String) {
        let position = self.watch.position();
        if self.told.replace(position) != Some(position) {
            let _ = writeln!(event, "id: {}", self.app.directory.seal_position(position, &self.principal));
        }
    }
}
