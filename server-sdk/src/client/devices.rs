//! Finding devices, and what is known of them.

use std::{collections::VecDeque, time::Duration, time::SystemTime};

use relay_core::{
    ids::{AccountId, DeviceId, SiteId},
    relay::State,
    store::App,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Client, Error};

/// A device as the relay knows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Device {
    /// Its ID.
    pub id: DeviceId,
    /// Its name for people.
    pub name: Option<String>,
    /// Its make and model.
    pub model: Option<String>,
    /// Its MAC address.
    pub mac: Option<String>,
    /// Where it stands.
    pub location: Option<String>,
    /// Whether it can be reached.
    #[serde(flatten)]
    pub presence: Presence,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Map<String, Value>,
    /// Media types that it prints.
    #[serde(default)]
    pub formats: Vec<String>,
    /// Its apps.
    #[serde(default)]
    pub apps: Vec<App>,
    /// The accounts that it belongs to.
    #[serde(default)]
    pub accounts: Vec<AccountId>,
    /// The LAN that it stands in, if it is a gateway.
    pub site: Option<SiteId>,
}

/// Whether a device can be reached, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Presence {
    /// Whether it can be reached.
    #[serde(deserialize_with = "state")]
    pub state: State,
    /// Grows with each new session of the device; 0 if it had none since the relay started.
    #[serde(default)]
    pub epoch: u64,
    /// When it was last heard.
    #[serde(default, deserialize_with = "time")]
    pub last_heard: Option<SystemTime>,
    /// Within how long its loss would be noticed.
    #[serde(default, deserialize_with = "seconds")]
    pub detects_loss_within: Option<Duration>,
    /// Which transport carries its session.
    pub transport: Option<String>,
}

impl Presence {
    /// Whether a request can go to it now.
    pub fn is_online(&self) -> bool {
        self.state == State::Online
    }
}

pub(super) fn state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<State, D::Error> {
    let word = String::deserialize(deserializer)?;
    [State::Online, State::Offline, State::Asleep]
        .into_iter()
        .find(|state| state.as_str() == word)
        .ok_or_else(|| D::Error::custom(format_args!("{word:?} is no state of a device")))
}

pub(super) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let parse =
        |text: String| OffsetDateTime::parse(&text, &Rfc3339).map(SystemTime::from).map_err(D::Error::custom);
    text.map(parse).transpose()
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let seconds = Option::<f64>::deserialize(deserializer)?;
    seconds.map(|seconds| Duration::try_from_secs_f64(seconds).map_err(D::Error::custom)).transpose()
}

/// Which devices are looked for: those that meet all that is said. Text is equal whatever its case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceFilter {
    /// Belongs to this account.
    pub account: Option<AccountId>,
    /// Is in this state.
    pub state: Option<State>,
    /// Has this name.
    pub name: Option<String>,
    /// Is of this model.
    pub model: Option<String>,
    /// Stands here.
    pub location: Option<String>,
    /// Has this capability: `color` is one that is there and not `false`, `paper:A4` one that is A4 or has it among its
    /// values.
    pub capability: Option<String>,
    /// How many devices a page has at most (100; 1 to 1,000).
    pub page: Option<usize>,
}

impl DeviceFilter {
    /// All devices that the key may see.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those of `account`.
    #[must_use]
    pub fn account(mut self, account: AccountId) -> Self {
        self.account = Some(account);
        self
    }

    /// Those in `state`.
    #[must_use]
    pub const fn state(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }

    /// Those of that name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Those of that model.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Those that stand there.
    #[must_use]
    pub fn location(mut self, location: impl Into<String>) -> Self {
        self.location = Some(location.into());
        self
    }

    /// Those that can do that.
    #[must_use]
    pub fn capability(mut self, capability: impl Into<String>) -> Self {
        self.capability = Some(capability.into());
        self
    }

    /// At most `devices` a page.
    #[must_use]
    pub const fn page(mut self, devices: usize) -> Self {
        self.page = Some(devices);
        self
    }

    pub(super) fn query(&self, cursor: Option<&str>) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        let mut put = |name, value: Option<String>| query.extend(value.map(|value| (name, value)));
        put("account", self.account.as_ref().map(|account| account.as_str().to_owned()));
        put("state", self.state.map(|state| state.as_str().to_owned()));
        put("name", self.name.clone());
        put("model", self.model.clone());
        put("location", self.location.clone());
        put("capability", self.capability.clone());
        put("limit", self.page.map(|devices| devices.clamp(1, relay_core::store::MAX_PAGE).to_string()));
        put("cursor", cursor.map(str::to_owned));
        query
    }
}

/// Some of the devices that were looked for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct DevicesPage {
    /// The devices.
    pub devices: Vec<Device>,
    /// Where the next page begins; `None` if this is the last.
    pub next: Option<String>,
}

/// The devices that were looked for, one after the other.
///
/// ```no_run
/// # async fn run(relay: server_sdk::Client) -> Result<(), server_sdk::Error> {
/// let mut devices = relay.devices(server_sdk::DeviceFilter::all());
/// while let Some(device) = devices.next().await? {
///     println!("{} is {}", device.id, device.presence.state.as_str());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Devices {
    client: Client,
    filter: DeviceFilter,
    fetched: VecDeque<Device>,
    /// `None` before the first page; then where the next begins, `None` again if there is none.
    next: Option<Option<String>>,
}

impl Devices {
    pub(super) fn new(client: Client, filter: DeviceFilter) -> Self {
        Self { client, filter, fetched: VecDeque::new(), next: None }
    }

    /// The next device, or `None` after the last.
    ///
    /// # Errors
    /// [`Error`]. What was given so far stands, and asking again goes on where it failed.
    ///
    /// # Cancel safety
    /// Dropped, no device is lost: the next call goes on from the same place.
    pub async fn next(&mut self) -> Result<Option<Device>, Error> {
        loop {
            if let Some(device) = self.fetched.pop_front() {
                return Ok(Some(device));
            }
            let cursor = match &self.next {
                None => None,
                Some(Some(cursor)) => Some(cursor.clone()),
                Some(None) => return Ok(None),
            };
            let page = self.client.devices_page(&self.filter, cursor.as_deref()).await?;
            self.fetched = page.devices.into();
            self.next = Some(page.next);
        }
    }

    /// All that are left.
    ///
    /// # Errors
    /// As [`Devices::next`]; what was fetched is lost then.
    ///
    /// # Cancel safety
    /// Not: dropped, what was fetched is lost.
    pub async fn collect(mut self) -> Result<Vec<Device>, Error> {
        let mut devices = Vec::new();
        while let Some(device) = self.next().await? {
            devices.push(device);
        }
        Ok(devices)
    }
}
