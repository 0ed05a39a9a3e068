//! What a device says of itself, within bounds.

use std::{collections::HashSet, ops::Deref, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::{InvalidJson, Limits, parse};
use crate::ids::{AccountId, AppName, SiteId};

/// The longest registration, in bytes of JSON (B14).
pub const MAX_REGISTRATION: usize = 64 * 1024;
/// How far arrays and objects go inside each other (B14).
pub const MAX_DEPTH: usize = 16;
/// The longest string, in characters (B14).
pub const MAX_TEXT: usize = 256;
/// The most apps of a device (B14).
pub const MAX_APPS: usize = 64;
/// The most accounts that a device may claim (B14).
pub const MAX_ACCOUNTS: usize = 64;
/// The longest keep-alive.
const MAX_KEEPALIVE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is wrong with a registration, and where.
pub type InvalidRegistration = InvalidJson;

/// What a device says of itself. Everything is optional; what an administrator prepared wins over what the device says.
/// [`Registration`] is one that is within bounds.
///
/// ```
/// let printer = relay_core::store::Description::new().name("Copy room").model("Example 7000").location("2nd floor");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Its name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its make and model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its MAC address, as it writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// How long it lets pass without a push before it asks the relay; `None` if it never asks. 1 s to 24 h.
    #[serde(skip_serializing_if = "Option::is_none", with = "seconds")]
    pub keepalive: Option<Duration>,
    /// What it can do: memory, paper sizes, ….
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub capabilities: Map<String, Value>,
    /// Media types that it prints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<String>,
    /// Its apps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<App>,
    /// Accounts that it says it belongs to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<AccountId>,
    /// The LAN that it stands in, if it is a gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteId>,
}

impl Description {
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

/// A named function of a device, and where its channel is opened (A2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// What is appended to `/ws`: starts with `/`, segments of `[A-Za-z0-9._~-]`, none of them `.` or `..`.
    pub path: String,
    /// Its port, if not that of the control session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name of its protocol: a token (RFC 9110 §5.6.2).
    pub protocol: String,
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) if time.subsec_nanos() == 0 => serializer.serialize_u64(time.as_secs()),
            Some(time) => serializer.serialize_f64(time.as_secs_f64()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
    }
}

/// A [`Description`] within the bounds of B14.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registration(Description);

impl Registration {
    /// Checks `description`.
    ///
    /// # Errors
    /// [`InvalidRegistration`] with the first thing that is wrong, and its place.
    pub fn new(description: Description) -> Result<Self, InvalidRegistration> {
        let json = serde_json::to_vec(&description).map_err(|e| InvalidJson::new("", e.to_string()))?;
        Self::from_json(&json)
    }

    /// Reads a registration as it comes from a device. What is left out or `null` is not said; members that have no
    /// meaning here are passed over, so that a newer device may register with an older relay.
    ///
    /// # Errors
    /// [`InvalidRegistration`] with the first thing that is wrong, and its place.
    pub fn from_json(bytes: &[u8]) -> Result<Self, InvalidRegistration> {
        let value = parse(bytes, &Limits { size: MAX_REGISTRATION, depth: MAX_DEPTH, text: MAX_TEXT })?;
        let Value::Object(mut members) = value else { return Err(InvalidJson::new("", "is not an object")) };
        let mut take = |name: &str| members.remove(name).filter(|value| !value.is_null());
        Ok(Self(Description {
            name: text(take("name"), "name")?,
            model: text(take("model"), "model")?,
            mac: text(take("mac"), "mac")?,
            location: text(take("location"), "location")?,
            keepalive: take("keepalive").map_or(Ok(None), keepalive)?,
            capabilities: match take("capabilities") {
                None => Map::new(),
                Some(Value::Object(capabilities)) => capabilities,
                Some(_) => return Err(InvalidJson::new("capabilities", "is not an object")),
            },
            formats: list(take("formats"), "formats", usize::MAX, |value, place| {
                required(value, place).and_then(|format| match format.is_empty() {
                    true => Err(InvalidJson::new(place, "is empty")),
                    false => Ok(format),
                })
            })?,
            apps: apps(take("apps"))?,
            accounts: list(take("accounts"), "accounts", MAX_ACCOUNTS, |value, place| {
                AccountId::new(&required(value, place)?).map_err(|e| InvalidJson::new(place, e.to_string()))
            })?,
            site: match text(take("site"), "site")? {
                Some(site) => Some(SiteId::new(&site).map_err(|e| InvalidJson::new("site", e.to_string()))?),
                None => None,
            },
        }))
    }

    /// What the device says.
    pub fn into_description(self) -> Description {
        self.0
    }
}

impl Deref for Registration {
    type Target = Description;
    fn deref(&self) -> &Description {
        &self.0
    }
}

/// A string; an empty one says nothing.
fn text(value: Option<Value>, place: &str) -> Result<Option<String>, InvalidJson> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(_) => Err(InvalidJson::new(place, "is not a string")),
    }
}

fn required(value: Value, place: &str) -> Result<String, InvalidJson> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(InvalidJson::new(place, "is not a string")),
    }
}

fn keepalive(value: Value) -> Result<Option<Duration>, InvalidJson> {
    let wrong = || InvalidJson::new("keepalive", "is not 0 (off) or a number of seconds from 1 to 86400");
    let seconds = value.as_f64().ok_or_else(wrong)?;
    if seconds == 0.0 {
        return Ok(None);
    }
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if time < Duration::from_secs(1) || time > MAX_KEEPALIVE {
        return Err(wrong());
    }
    Ok(Some(time))
}

fn list<T>(
    value: Option<Value>,
    place: &str,
    max: usize,
    mut read: impl FnMut(Value, &str) -> Result<T, InvalidJson>,
) -> Result<Vec<T>, InvalidJson> {
    let values = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(InvalidJson::new(place, "is not an array")),
    };
    if values.len() > max {
        return Err(InvalidJson::new(place, format!("has {} entries, {max} are allowed", values.len())));
    }
    values.into_iter().enumerate().map(|(at, value)| read(value, &format!("{place}/{at}"))).collect()
}

fn apps(value: Option<Value>) -> Result<Vec<App>, InvalidJson> {
    let mut names = HashSet::new();
    list(value, "apps", MAX_APPS, |value, place| {
        let Value::Object(mut members) = value else {
            return Err(InvalidJson::new(place, "is not an object"));
        };
        let mut member = |name: &str| {
            let place = format!("{place}/{name}");
            let value = members.remove(name).ok_or_else(|| InvalidJson::new(&place, "is missing"))?;
            Ok::<_, InvalidJson>((required(value, &place)?, place))
        };
        let (name, at) = member("name")?;
        let name = AppName::new(&name).map_err(|e| InvalidJson::new(&at, e.to_string()))?;
        if !names.insert(name.clone()) {
            return Err(InvalidJson::new(&at, "is the name of another app, too"));
        }
        let (path, at) = member("path")?;
        if !is_path(&path) {
            let words = "is not a path: it starts with / and has segments of A-Z a-z 0-9 . _ ~ -, none of them . or ..";
            return Err(InvalidJson::new(&at, words));
        }
        let (protocol, at) = member("protocol")?;
        if !is_token(&protocol) {
            return Err(InvalidJson::new(&at, "is not the name of a protocol: a token of RFC 9110"));
        }
        let port = match members.remove("port").filter(|port| !port.is_null()) {
            None => None,
            Some(port) => Some(
                port.as_u64()
                    .and_then(|port| u16::try_from(port).ok())
                    .filter(|&port| port != 0)
                    .ok_or_else(|| {
                        InvalidJson::new(&format!("{place}/port"), "is not a port: a number from 1 to 65535")
                    })?,
            ),
        };
        Ok(App { name, path, port, protocol })
    })
}

fn is_path(path: &str) -> bool {
    let segment = |segment: &str| {
        !matches!(segment, "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-'))
    };
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Registration, InvalidRegistration> {
        Registration::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn p1_a_registration_says_all_of_the_contract() {
        let registration = read(json!({
            "name": "Copy room", "model": "MX-1", "mac": "02:00:5e:10:00:01", "location": "2nd floor", "keepalive": 90,
            "capabilities": {"color": true, "paper": ["A4", "A3"]}, "formats": ["application/pdf"],
            "apps": [{"name": "print", "path": "/print", "protocol": "print"},
                     {"name": "address", "path": "/a/b", "port": 8443, "protocol": "address"}],
            "accounts": ["acme"], "site": "hq", "later": {"than": "us"},
        }))
        .unwrap();
        assert_eq!(registration.keepalive, Some(Duration::from_secs(90)));
        assert_eq!(registration.apps[1].port, Some(8443));
        assert_eq!(registration.site.as_ref().map(SiteId::as_str), Some("hq"));
        let again = Registration::new(registration.clone().into_description()).unwrap();
        assert_eq!(again, registration);
        assert_eq!(read(json!({"name": "", "mac": null, "keepalive": 0})).unwrap(), Registration::default());
    }

    #[test]
    fn b14_a_registration_beyond_bounds_says_what_and_where() {
        let app = |name: &str| json!({"name": name, "path": "/p", "protocol": "p"});
        let many = |count: usize| (0..count).map(|n| app(&format!("app{n}"))).collect::<Vec<_>>();
        assert!(read(json!({"apps": many(64)})).is_ok());
        let accounts = |count: usize| (0..count).map(|n| json!(format!("a{n}"))).collect::<Vec<_>>();
        assert!(read(json!({"accounts": accounts(64)})).is_ok());
        for (bad, place) in [
            (json!([]), "body"),
            (json!({"apps": many(65)}), "body/apps"),
            (json!({"accounts": accounts(65)}), "body/accounts"),
            (json!({"accounts": ["a", "b c"]}), "body/accounts/1"),
            (json!({"name": 7}), "body/name"),
            (json!({"name": "x".repeat(257)}), "body/name"),
            (json!({"keepalive": 0.5}), "body/keepalive"),
            (json!({"keepalive": 86401}), "body/keepalive"),
            (json!({"keepalive": -1}), "body/keepalive"),
            (json!({"keepalive": "60"}), "body/keepalive"),
            (json!({"capabilities": []}), "body/capabilities"),
            (json!({"formats": [""]}), "body/formats/0"),
            (json!({"site": "a/b"}), "body/site"),
            (json!({"apps": [app("a"), app("A")]}), "body/apps/1/name"),
            (json!({"apps": [{"name": "a", "protocol": "p"}]}), "body/apps/0/path"),
            (json!({"apps": [{"name": "a", "path": "/x/../y", "protocol": "p"}]}), "body/apps/0/path"),
            (json!({"apps": [{"name": "a", "path": "/%2e%2e", "protocol": "p"}]}), "body/apps/0/path"),
            (json!({"apps": [{"name": "a", "path": "/x", "protocol": "a b"}]}), "body/apps/0/protocol"),
            (json!({"apps": [{"name": "a", "path": "/x", "protocol": "p", "port": 0}]}), "body/apps/0/port"),
        ] {
            assert_eq!(read(bad.clone()).unwrap_err().place, place, "{bad}");
        }
    }
}
