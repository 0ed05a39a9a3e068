//! `relay watch`: what happens at a relay, a line each.

use std::{
    io,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use server_sdk::{
    Client, Error, JobState, Outcome,
    client::{Event, EventFilter, Events, JobEvent, PresenceEvent, RequestEvent},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    arguments::Watch,
    failure::Failure,
    output::{self, plain},
};

/// How long a relay may be away before it is said again that it is.
const SAY_AGAIN: Duration = Duration::from_secs(60);

pub(crate) async fn watch(relay: &Client, url: &str, watch: Watch, json: bool) -> Result<(), Failure> {
    let mut filter = EventFilter::all();
    for device in watch.devices {
        filter = filter.device(device);
    }
    for kind in watch.kinds {
        filter = filter.kind(kind);
    }
    let unheard = |error| Failure::own("signals of the system cannot be heard").because(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(unheard)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unheard)?;
    let mut away = Away { url, json, said: None };
    let following = async {
        let mut events = relay.events(filter).await?;
        follow(&mut events, &mut away).await
    };
    let followed = tokio::select! {
        followed = following => followed,
        // That is how it ends.
        _ = terminate.recv() => Ok(Ok(())),
        _ = interrupt.recv() => Ok(Ok(())),
    };
    followed
        .map_err(|error| Failure::call(url, error))?
        .map_err(|error| Failure::own("the standard output cannot be written").because(error))
}

/// Until nobody reads on.
async fn follow(events: &mut Events, away: &mut Away<'_>) -> Result<io::Result<()>, Error> {
    loop {
        let line = match events.next().await? {
            Event::Interrupted(error) => {
                away.is_so(&error);
                continue;
            }
            Event::Resumed => {
                away.is_over();
                continue;
            }
            Event::Reset => match away.json {
                true => json!({ "event": "reset" }).to_string(),
                false => {
                    "(some of what happened meanwhile is not known; `relay devices` says how things stand)"
                        .into()
                }
            },
            event => match told(&event, away.json) {
                Some(line) => line,
                None => continue,
            },
        };
        match output::print_on(format!("{line}\n").as_bytes()) {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

fn told(event: &Event, json: bool) -> Option<String> {
    Some(match (event, json) {
        (Event::Presence(event), true) => presence_json(event).to_string(),
        (Event::Request(event), true) => request_json(event).to_string(),
        (Event::Job(event), true) => job_json(event).to_string(),
        (Event::Presence(PresenceEvent { device, epoch, state, time, .. }), false) => {
            line(*time, device.as_str(), &format!("{}, session {epoch}", state.as_str()))
        }
        (Event::Request(event), false) => {
            let id = event.id.as_ref().map(|id| format!(", {id}")).unwrap_or_default();
            let end = end(event.state, event.outcome, event.code.as_deref());
            line(event.time, event.device.as_str(), &format!("{} {end}{id}", event.method))
        }
        (Event::Job(event), false) => {
            let end = end(event.state, event.outcome, event.code.as_deref());
            let words = format!("job {} {end}, {} bytes", event.id, event.bytes);
            line(event.time, event.device.as_str(), &words)
        }
        _ => return None,
    })
}

fn line(time: Option<SystemTime>, device: &str, words: &str) -> String {
    let time = time.map(output::rfc3339).unwrap_or_default();
    plain(&format!("{time:<20}  {device}  {words}"))
}

fn end(state: JobState, outcome: Option<Outcome>, code: Option<&str>) -> String {
    let mut words = state.as_str().to_owned();
    if let Some(code) = code {
        words += &format!(": {code}");
    }
    if let Some(outcome) = outcome {
        words += &format!(" ({outcome})");
    }
    words
}

fn presence_json(event: &PresenceEvent) -> Value {
    json!({
        "event": "presence",
        "device": event.device,
        "epoch": event.epoch,
        "state": event.state.as_str(),
        "time": event.time.map(output::rfc3339),
    })
}

fn request_json(event: &RequestEvent) -> Value {
    json!({
        "event": "request",
        "device": event.device,
        "epoch": event.epoch,
        "id": event.id,
        "method": event.method,
        "state": event.state.as_str(),
        "outcome": event.outcome.map(Outcome::as_str),
        "code": event.code,
        "key": event.key,
        "time": event.time.map(output::rfc3339),
    })
}

fn job_json(event: &JobEvent) -> Value {
    json!({
        "event": "job",
        "device": event.device,
        "epoch": event.epoch,
        "id": event.id,
        "state": event.state.as_str(),
        "bytes": event.bytes,
        "outcome": event.outcome.map(Outcome::as_str),
        "code": event.code,
        "key": event.key,
        "time": event.time.map(output::rfc3339),
    })
}

/// A relay that is not reached just now: said on the standard error, and not at every try.
struct Away<'a> {
    url: &'a str,
    json: bool,
    said: Option<tokio::time::Instant>,
}

impl Away<'_> {
    fn is_so(&mut self, error: &Error) {
        if self.said.is_some_and(|said| said.elapsed() < SAY_AGAIN) {
            return;
        }
        self.said = Some(tokio::time::Instant::now());
        if self.json {
            eprintln!(
                "{}",
                json!({ "event": "interrupted", "relay": self.url, "detail": error.to_string() })
            );
        } else {
            eprintln!("{}; trying again ({})", plain(&error.to_string()), plain(self.url));
        }
    }

    fn is_over(&mut self) {
        self.said = None;
        if self.json {
            eprintln!("{}", json!({ "event": "resumed", "relay": self.url }));
        } else {
            eprintln!("connected again ({})", plain(self.url));
        }
    }
}
