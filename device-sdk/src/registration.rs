//! What a device tells its relay about itself.

use std::time::Duration;

use relay_core::ids::{AccountId, AppName, SiteId};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// What a device is. Everything is optional; what an administrator prepared wins over what the device says.
///
/// ```
/// let registration = device_sdk::Registration::new().name("Copy room").model("Example 7000").location("2nd floor");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Registration {
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What its maker calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its MAC address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// The keep-alive in force; the SDK fills it in.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub keepalive: Option<Duration>,
    /// What it can do: memory, paper sizes, ….
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub capabilities: Map<String, Value>,
    /// Document types that it prints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<String>,
    /// Its apps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<App>,
    /// Accounts that it says it belongs to; each counts once that account's side agreed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<AccountId>,
    /// The LAN that it stands in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteId>,
}

/// A named function of a device, and where its channel is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// The path appended to `/ws`.
    pub path: String,
    /// The port; the control session's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name of its protocol.
    pub protocol: String,
}

fn seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.unwrap_or_default().as_secs())
}

impl Registration {
    /// One that says nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What people call it.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What its maker calls it.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Its MAC address.
    #[must_use]
    pub fn mac(mut self, mac: impl Into<String>) -> Self {
        self.mac = Some(mac.into());
        self
    }

    /// Where it stands.
    #[must_use]
    pub fn location(mut self, location: impl Into<String>) -> Self {
        self.location = Some(location.into());
        self
    }

    /// Something that it can do.
    #[must_use]
    pub fn capability(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.capabilities.insert(name.into(), value.into());
        self
    }

    /// A document type that it prints: `application/pdf`, say.
    #[must_use]
    pub fn format(mut self, format: impl Into<String>) -> Self {
        self.formats.push(format.into());
        self
    }

    /// An account that it says it belongs to.
    #[must_use]
    pub fn account(mut self, account: AccountId) -> Self {
        self.accounts.push(account);
        self
    }
}
