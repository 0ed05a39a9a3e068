//! What a store keeps, and what it is asked for.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::registration::{App, Description};
use crate::{
    auth::ScramVerifier,
    ids::{AccountId, DeviceId, KeyId, SiteId},
};

/// 32 random bytes that the relay keeps to itself. Shown by nothing, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredSecret(Zeroizing<[u8; 32]>);

impl StoredSecret {
    /// A new one.
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        crate::random::fill(&mut *bytes);
        Self(bytes)
    }

    /// One that was stored.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself. Never log it.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredSecret(…)")
    }
}

/// What can be known of a device both from itself and from an administrator, whose word wins (P5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Its name for people.
    pub name: Option<String>,
    /// Its make and model.
    pub model: Option<String>,
    /// Its MAC address.
    pub mac: Option<String>,
    /// Where it stands.
    pub location: Option<String>,
}

impl DeviceSettings {
    /// These, and where they say nothing, what `other` says.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let either = |one: &Option<String>, other: &Option<String>| one.clone().or_else(|| other.clone());
        Self {
            name: either(&self.name, &other.name),
            model: either(&self.model, &other.model),
            mac: either(&self.mac, &other.mac),
            location: either(&self.location, &other.location),
        }
    }
}

impl From<&Description> for DeviceSettings {
    fn from(own: &Description) -> Self {
        Self {
            name: own.name.clone(),
            model: own.model.clone(),
            mac: own.mac.clone(),
            location: own.location.clone(),
        }
    }
}

/// A device as an administrator prepares it, before it first calls or after.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prepared {
    /// Which device.
    pub device: DeviceId,
    /// What the administrator sets.
    pub settings: DeviceSettings,
    /// Accounts that it shall count for.
    pub accounts: Vec<AccountId>,
}

impl Prepared {
    /// `device`, with nothing set.
    pub const fn new(device: DeviceId) -> Self {
        let settings = DeviceSettings { name: None, model: None, mac: None, location: None };
        Self { device, settings, accounts: Vec::new() }
    }

    /// Sets `settings`.
    #[must_use]
    pub fn with_settings(mut self, settings: DeviceSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Counts for `account`, too.
    #[must_use]
    pub fn with_account(mut self, account: AccountId) -> Self {
        self.accounts.push(account);
        self
    }
}

/// On whose word a device counts for an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Membership {
    /// The account's own side's, on top of the device's claim.
    Account,
    /// An administrator's, whatever the device claims.
    Administrator,
}

/// A device as the relay knows it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeviceRecord {
    /// Its ID, in the spelling that came first.
    pub id: DeviceId,
    /// What holds: the administrator's word, else the device's.
    pub settings: DeviceSettings,
    /// Those of the settings that an administrator set.
    pub set_by_administrator: DeviceSettings,
    /// How long it lets pass without a push before it asks the relay.
    pub keepalive: Option<Duration>,
    /// What it can do.
    pub capabilities: Map<String, Value>,
    /// Media types that it prints.
    pub formats: Vec<String>,
    /// Its apps.
    pub apps: Vec<App>,
    /// The accounts that it counts for, in order.
    pub accounts: Vec<AccountId>,
    /// The accounts that it claims and nobody has agreed to, in order.
    pub unconfirmed_accounts: Vec<AccountId>,
    /// The accounts that it claims, as it does.
    pub claimed_accounts: Vec<AccountId>,
    /// The LAN that it stands in, if it is a gateway.
    pub site: Option<SiteId>,
    /// When it was made known.
    pub known_since: SystemTime,
    /// When it last registered; `None` if it never did.
    pub registered_at: Option<SystemTime>,
}

impl DeviceRecord {
    /// What follows from a device's own words (`own`, empty if it never registered), an administrator's settings, and
    /// what was agreed. For stores.
    pub fn merge(
        id: DeviceId,
        own: Description,
        set_by_administrator: DeviceSettings,
        agreed: BTreeMap<AccountId, Membership>,
        known_since: SystemTime,
        registered_at: Option<SystemTime>,
    ) -> Self {
        let claimed: HashSet<&AccountId> = own.accounts.iter().collect();
        let accounts: Vec<AccountId> = agreed
            .iter()
            .filter(|(account, by)| **by == Membership::Administrator || claimed.contains(account))
            .map(|(account, _)| account.clone())
            .collect();
        let mut unconfirmed: Vec<AccountId> =
            own.accounts.iter().filter(|account| !agreed.contains_key(account)).cloned().collect();
        unconfirmed.sort();
        unconfirmed.dedup();
        Self {
            id,
            settings: set_by_administrator.or(&DeviceSettings::from(&own)),
            set_by_administrator,
            keepalive: own.keepalive,
            capabilities: own.capabilities,
            formats: own.formats,
            apps: own.apps,
            accounts,
            unconfirmed_accounts: unconfirmed,
            claimed_accounts: own.accounts,
            site: own.site,
            known_since,
            registered_at,
        }
    }
}

/// What a relay keeps in memory of each known device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownDevice {
    /// Its ID.
    pub id: DeviceId,
    /// What it registered.
    pub keepalive: Option<Duration>,
    /// SHA-256 of its token, if it has enrolled.
    pub token_hash: Option<[u8; 32]>,
}

impl KnownDevice {
    /// A known device.
    pub const fn new(id: DeviceId, keepalive: Option<Duration>, token_hash: Option<[u8; 32]>) -> Self {
        Self { id, keepalive, token_hash }
    }
}

/// Which devices are looked for: those that meet all that is said. Text is equal whatever its case; no character of it
/// stands for others (T41).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceQuery {
    /// Counts for this account.
    pub account: Option<AccountId>,
    /// Has this name.
    pub name: Option<String>,
    /// Is of this model.
    pub model: Option<String>,
    /// Stands here.
    pub location: Option<String>,
    /// Has this capability, as [`has_capability`] reads it.
    pub capability: Option<String>,
}

impl DeviceQuery {
    /// All devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `record` meets it.
    pub fn matches(&self, record: &DeviceRecord) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| match (wanted, found) {
            (None, _) => true,
            (Some(wanted), Some(found)) => fold(wanted) == fold(found),
            (Some(_), None) => false,
        };
        self.account.as_ref().is_none_or(|account| record.accounts.contains(account))
            && same(&self.name, &record.settings.name)
            && same(&self.model, &record.settings.model)
            && same(&self.location, &record.settings.location)
            && self.capability.as_ref().is_none_or(|wanted| has_capability(&record.capabilities, wanted))
    }
}

/// The form of a text that is equal for all its cases.
pub fn fold(text: &str) -> String {
    text.to_lowercase()
}

/// Whether `capabilities` have what `wanted` names: `color` is a member that is there and neither `false` nor `null`;
/// `paper:A4` is a member `paper` that is, or is an array with, the string, number or truth value `A4`. A colon in the
/// member's own name is tried, too. Case does not matter.
pub fn has_capability(capabilities: &Map<String, Value>, wanted: &str) -> bool {
    let wanted = fold(wanted);
    let is = |value: &Value, wanted: &str| match value {
        Value::String(text) => fold(text) == wanted,
        Value::Bool(value) => wanted == if *value { "true" } else { "false" },
        Value::Number(value) => value.to_string() == wanted,
        _ => false,
    };
    capabilities.iter().any(|(name, value)| {
        let name = fold(name);
        let Some(rest) = wanted.strip_prefix(&name) else { return false };
        match rest.strip_prefix(':') {
            None => rest.is_empty() && !matches!(value, Value::Null | Value::Bool(false)),
            Some(wanted) => match value {
                Value::Array(values) => values.iter().any(|value| is(value, wanted)),
                value => is(value, wanted),
            },
        }
    })
}

/// A part of a long list.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Page<T> {
    /// What was found, by ID.
    pub items: Vec<T>,
    /// What to ask on from: everything up to and including it was looked at. `None` at the end of the list.
    pub next: Option<DeviceId>,
}

impl<T> Page<T> {
    /// A page.
    pub const fn new(items: Vec<T>, next: Option<DeviceId>) -> Self {
        Self { items, next }
    }
}

/// How to hash a try at a PIN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinParameters {
    /// The salt.
    pub salt: [u8; 16],
    /// Rounds of PBKDF2 with HMAC-SHA-256.
    pub iterations: u32,
}

/// A PIN with which a device may enrol once.
#[derive(Clone, PartialEq, Eq)]
pub struct Pin {
    /// Which device.
    pub device: DeviceId,
    /// How it was hashed.
    pub parameters: PinParameters,
    /// Its hash.
    pub hash: [u8; 32],
    /// When it stops being good.
    pub expires: SystemTime,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin")
            .field("device", &self.device)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// A try at a PIN.
#[derive(Clone)]
pub struct PinAttempt {
    /// Which device.
    pub device: DeviceId,
    /// How the try was hashed. A PIN with another salt is neither met nor does the try count against it: it was stored
    /// after the salt was asked for.
    pub salt: [u8; 16],
    /// Its hash.
    pub hash: [u8; 32],
}

impl PinAttempt {
    /// Whether this try meets a PIN of `hash`. Takes the same time whether it does or not.
    pub fn meets(&self, hash: &[u8; 32]) -> bool {
        use subtle::ConstantTimeEq;
        self.hash.ct_eq(hash).into()
    }
}

impl fmt::Debug for PinAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinAttempt").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What a device shows from its enrolment on, as the relay keeps it: enough to check, not enough to show.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// SHA-256 of its token.
    pub token_hash: [u8; 32],
    /// For SCRAM-SHA-256.
    pub sha256: ScramVerifier,
    /// For SCRAM-SHA-1.
    pub sha1: ScramVerifier,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// A service's or an administrator's key, as the relay keeps it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceKey {
    /// Its public name.
    pub id: KeyId,
    /// SHA-256 of the key itself.
    pub hash: [u8; 32],
    /// What it may do, as written. None: all that a service can.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created: SystemTime,
    /// When it stops being good, if ever.
    pub expires: Option<SystemTime>,
}

impl ServiceKey {
    /// A key without an end.
    pub const fn new(id: KeyId, hash: [u8; 32], scopes: Vec<String>, created: SystemTime) -> Self {
        Self { id, hash, scopes, created, expires: None }
    }

    /// Good until `expires`.
    #[must_use]
    pub const fn with_expiry(mut self, expires: SystemTime) -> Self {
        self.expires = Some(expires);
        self
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceKey")
            .field("id", &self.id)
            .field("scopes", &self.scopes)
            .field("created", &self.created)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn p3_a_capability_is_a_member_or_one_of_its_values() {
        let capabilities = json!({
            "color": true, "Paper": ["A4", "a3"], "memory": 512, "duplex": false, "a:b": "c", "x": null
        });
        let capabilities = capabilities.as_object().unwrap();
        for wanted in
            ["color", "COLOR", "color:true", "paper", "paper:a4", "paper:A3", "memory:512", "a:b", "a:b:c"]
        {
            assert!(has_capability(capabilities, wanted), "{wanted}");
        }
        for wanted in ["", "colo", "colors", "duplex", "x", "paper:A5", "paper:", "memory:5", "%", "p%"] {
            assert!(!has_capability(capabilities, wanted), "{wanted}");
        }
    }

    #[test]
    fn t44_nothing_secret_is_shown() {
        let secret = StoredSecret::new([7; 32]);
        let key = ServiceKey::new(KeyId::new("k").unwrap(), [7; 32], Vec::new(), SystemTime::UNIX_EPOCH);
        let shown = format!("{secret:?} {key:?}");
        assert!(!shown.contains('7'), "{shown}");
    }
}
