//! Watching: devices that come and go, and what becomes of requests and jobs.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use relay_core::{
    app::JobState,
    ids::{DeviceId, KeyId, Method, RequestId},
    outcome::Outcome,
    relay::State,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use tokio::time::{Instant, sleep_until};

use super::{
    Client, Error, ErrorKind,
    devices::{state, time},
    http::Lines,
    print::state_of,
};

/// The longest pause before the first try to come back, unless the relay says another.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The most that one event may have, in bytes.
const MAX_DATA: usize = 64 * 1024;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// Devices that come and go.
    Presence,
    /// What becomes of requests.
    Request,
    /// How jobs go.
    Job,
}

impl EventKind {
    /// The word in `type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Presence => "presence",
            Self::Request => "request",
            Self::Job => "job",
        }
    }
}

/// Which events are wanted. Nothing said, it is all that the key may see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct EventFilter {
    devices: Vec<DeviceId>,
    kinds: Vec<EventKind>,
}

impl EventFilter {
    /// All events that the key may see.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those of this device, and of others that are named so: at most 100.
    pub fn device(mut self, device: DeviceId) -> Self {
        self.devices.push(device);
        self
    }

    /// Those of this kind, and of others that are named so.
    pub fn kind(mut self, kind: EventKind) -> Self {
        self.kinds.push(kind);
        self
    }

    fn query(&self) -> Vec<(&'static str, &str)> {
        let devices = self.devices.iter().map(|device| ("device", device.as_str()));
        devices.chain(self.kinds.iter().map(|kind| ("type", kind.as_str()))).collect()
    }
}

/// Something happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A device came or went.
    Presence(PresenceEvent),
    /// A request is over.
    Request(RequestEvent),
    /// A job went on, or is over.
    Job(JobEvent),
    /// What happened meanwhile is not remembered: to know how things stand, look anew. What follows is whole again.
    Reset,
    /// The connection broke. It is made anew by [`Events::next`], which goes on where it was.
    Interrupted(Error),
    /// There is a connection again.
    Resumed,
}

/// A device came or went.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct PresenceEvent {
    /// Which device.
    pub device: DeviceId,
    /// Grows with each session of the device. An event of a lower one than is known says nothing.
    pub epoch: u64,
    /// Whether it can be reached now.
    #[serde(deserialize_with = "state")]
    pub state: State,
    /// When that was.
    #[serde(default, deserialize_with = "time")]
    pub time: Option<SystemTime>,
}

/// A request is over.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RequestEvent {
    /// The device that it was for.
    pub device: DeviceId,
    /// The device's epoch when it was over.
    #[serde(default)]
    pub epoch: u64,
    /// Its ID, if it was given one that its caller was told.
    #[serde(default)]
    pub id: Option<RequestId>,
    /// What was asked.
    pub method: Method,
    /// Completed (the device answered what was asked), failed, or cancelled (its caller hung up).
    #[serde(deserialize_with = "job_state")]
    pub state: JobState,
    /// How far it came; not known if it was cancelled.
    #[serde(default, deserialize_with = "outcome")]
    pub outcome: Option<Outcome>,
    /// Why it failed: the relay's code for it, such as `device-offline`.
    #[serde(default)]
    pub code: Option<String>,
    /// The key that made it.
    #[serde(default)]
    pub key: Option<KeyId>,
    /// When it was over.
    #[serde(default, deserialize_with = "time")]
    pub time: Option<SystemTime>,
}

/// A job went on, or is over.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct JobEvent {
    /// The device that does it.
    pub device: DeviceId,
    /// The device's epoch.
    #[serde(default)]
    pub epoch: u64,
    /// Its ID.
    pub id: RequestId,
    /// What it is at. States may be passed over.
    #[serde(deserialize_with = "job_state")]
    pub state: JobState,
    /// Bytes of its document that the device has, or is done with.
    #[serde(default)]
    pub bytes: u64,
    /// How far it came, once it is over.
    #[serde(default, deserialize_with = "outcome")]
    pub outcome: Option<Outcome>,
    /// Why it failed: the device's code, or the relay's.
    #[serde(default)]
    pub code: Option<String>,
    /// The key that made it.
    #[serde(default)]
    pub key: Option<KeyId>,
    /// When that was.
    #[serde(default, deserialize_with = "time")]
    pub time: Option<SystemTime>,
}

fn job_state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobState, D::Error> {
    Ok(state_of(&String::deserialize(deserializer)?))
}

fn outcome<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Outcome>, D::Error> {
    let word = Option::<String>::deserialize(deserializer)?;
    Ok(word.and_then(|word| word.parse().ok()))
}

/// Events as they come: [`Client::events`].
///
/// A connection that breaks is made anew after a pause that grows, and goes on where it was. Both are told, as
/// [`Event::Interrupted`] and [`Event::Resumed`], for whoever wants to say so.
///
/// ```no_run
/// # async fn run(relay: server_sdk::Client) -> Result<(), server_sdk::Error> {
/// use server_sdk::client::{Event, EventFilter};
///
/// let mut events = relay.events(EventFilter::all()).await?;
/// // Now that nothing is missed any more, relay.devices(…) says how things stand.
/// loop {
///     match events.next().await? {
///         Event::Presence(change) => println!("{} is {}", change.device, change.state.as_str()),
///         Event::Reset => println!("look anew"),
///         _ => {}
///     }
/// }
/// # }
/// ```
pub struct Events {
    client: Client,
    filter: EventFilter,
    lines: Option<Lines>,
    /// Where to go on.
    last: Option<String>,
    block: Block,
    retry: Retry,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("filter", &self.filter)
            .field("open", &self.lines.is_some())
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(super) async fn open(client: Client, filter: EventFilter) -> Result<Self, Error> {
        let lines = Some(subscribe(&client, &filter, None).await?);
        Ok(Self { client, filter, lines, last: None, block: Block::default(), retry: Retry::new() })
    }

    /// The next event.
    ///
    /// # Errors
    /// [`Error`] if coming back is of no use as things are: the key no longer holds, or may no longer see the device. It
    /// may be called again all the same.
    ///
    /// # Cancel safety
    /// Dropped, no event is lost: the next call gives it.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let Some(lines) = &mut self.lines else {
                sleep_until(self.retry.at).await;
                // Should this be dropped, the next try is no earlier than it would be otherwise.
                self.retry.later();
                match subscribe(&self.client, &self.filter, self.last.as_deref()).await {
                    Ok(lines) => {
                        self.lines = Some(lines);
                        return Ok(Event::Resumed);
                    }
                    Err(error) => {
                        self.retry.not_before(error.retry_after());
                        return if error.kind().may_pass() {
                            Ok(Event::Interrupted(error))
                        } else {
                            Err(error)
                        };
                    }
                }
            };
            let broken = match lines.next().await {
                Ok(Some(line)) => match self.take(&line) {
                    Ok(Some(event)) => return Ok(event),
                    Ok(None) => continue,
                    Err(error) => error,
                },
                Ok(None) => Error::new(ErrorKind::Interrupted, "the relay ended the stream of events"),
                Err(error) => error,
            };
            self.lines = None;
            self.block = Block::default();
            self.retry.later();
            return Ok(Event::Interrupted(broken.of_inquiry()));
        }
    }

    /// Takes in a line; the event that is whole with it.
    fn take(&mut self, line: &[u8]) -> Result<Option<Event>, Error> {
        let unreadable = |words: &str| Error::new(ErrorKind::NotTheRelay, words);
        let line = std::str::from_utf8(line).map_err(|_| unreadable("an event is not text"))?;
        let line = line.trim_end_matches(['\n', '\r']);
        if !line.is_empty() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.block.kind),
                "data" if self.block.data.len() + value.len() > MAX_DATA => {
                    return Err(unreadable("an event is larger than any that a relay tells"));
                }
                "data" => self.block.data += value,
                // Only with the block that it stands in: one that broke off was not heard.
                "id" => self.block.id = Some(value.to_owned()),
                "retry" => self.retry.first(value),
                _ => {}
            }
            return Ok(None);
        }
        let Block { kind, data, id } = std::mem::take(&mut self.block);
        self.last = id.or_else(|| self.last.take());
        self.retry.reset();
        fn read<T: DeserializeOwned>(data: &str) -> Result<T, Error> {
            serde_json::from_str(data).map_err(|error| {
                Error::new(ErrorKind::NotTheRelay, "an event is not what a relay tells").with_source(error)
            })
        }
        Ok(match &*kind {
            "presence" => Some(Event::Presence(read(&data)?)),
            "request" => Some(Event::Request(read(&data)?)),
            "job" => Some(Event::Job(read(&data)?)),
            "reset" => Some(Event::Reset),
            // A sign of life, or what a later relay tells of.
            _ => None,
        })
    }
}

/// A block of the stream, as far as it was read.
#[derive(Default)]
struct Block {
    kind: String,
    data: String,
    id: Option<String>,
}

async fn subscribe(client: &Client, filter: &EventFilter, last: Option<&str>) -> Result<Lines, Error> {
    let mut call = client.http.call_with_query(reqwest::Method::GET, &["events"], &filter.query());
    if let Some(last) = last {
        call = call.header("Last-Event-ID", last);
    }
    client.http.subscribe(call).await
}

/// When to come back: windows that double, and in each a moment at random, so that all who watch a relay do not come back
/// to it in step.
struct Retry {
    first: Duration,
    window: Duration,
    at: Instant,
    jitter: RandomState,
    tries: u64,
}

impl Retry {
    fn new() -> Self {
        let first = FIRST_PAUSE;
        Self { first, window: first, at: Instant::now(), jitter: RandomState::new(), tries: 0 }
    }

    /// What the relay says that the first pause may be, in milliseconds.
    fn first(&mut self, milliseconds: &str) {
        if let Ok(milliseconds) = milliseconds.parse() {
            self.first = Duration::from_millis(milliseconds).clamp(Duration::from_millis(100), LONGEST_PAUSE);
        }
    }

    fn reset(&mut self) {
        self.window = self.first;
    }

    fn later(&mut self) {
        self.tries += 1;
        let part = self.jitter.hash_one(self.tries) as f64 / u64::MAX as f64;
        self.at = Instant::now() + self.window.mul_f64(part);
        self.window = (self.window * 2).min(LONGEST_PAUSE);
    }

    fn not_before(&mut self, after: Option<Duration>) {
        self.at = self.at.max(Instant::now() + after.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds_and_begin_anew() {
        let mut retry = Retry::new();
        retry.first("500");
        retry.reset();
        for _ in 0..20 {
            let window = retry.window;
            let before = Instant::now();
            retry.later();
            assert!(retry.at <= Instant::now() + window && retry.at >= before);
        }
        assert_eq!(retry.window, LONGEST_PAUSE);
        retry.not_before(Some(Duration::from_secs(3600)));
        assert!(retry.at > Instant::now() + Duration::from_secs(3500));
        retry.reset();
        assert_eq!(retry.window, Duration::from_millis(500));
    }
}
