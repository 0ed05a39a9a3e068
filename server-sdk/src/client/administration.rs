//! What an administrator does with a relay that runs, and an account's side for itself.

use std::time::SystemTime;

use bytes::Bytes;
use relay_core::{
    auth::Secret,
    ids::{AccountId, DeviceId, KeyId},
};
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::{Error, devices::time, http::Http};

/// The calls of administrators. Made by [`Client::administration`](super::Client::administration).
#[derive(Clone, Copy)]
pub struct Administration<'a> {
    http: &'a Http,
}

impl std::fmt::Debug for Administration<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Administration").finish_non_exhaustive()
    }
}

/// A PIN with which a device may enrol once.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct IssuedPin {
    /// Which device.
    pub device_id: DeviceId,
    /// The PIN.
    #[serde(deserialize_with = "secret")]
    pub pin: Secret,
    /// When it stops being good.
    #[serde(default, deserialize_with = "time")]
    pub expires: Option<SystemTime>,
}

/// A new key. It is told this once.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct NewKey {
    /// Its public name.
    pub id: KeyId,
    /// The key itself.
    #[serde(deserialize_with = "secret")]
    pub key: Secret,
}

/// A key, as far as it is told after it was made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Its public name.
    pub id: KeyId,
    /// What it may do; none: all that a service can.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// When it was made.
    #[serde(default, deserialize_with = "time")]
    pub created: Option<SystemTime>,
    /// When it stops being good, if ever.
    #[serde(default, deserialize_with = "time")]
    pub expires: Option<SystemTime>,
}

/// How a device table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableFormat {
    /// Comma-separated values with a line of names.
    Csv,
    /// A JSON object a line.
    Ndjson,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

impl<'a> Administration<'a> {
    pub(super) const fn new(http: &'a Http) -> Self {
        Self { http }
    }

    fn json(&self, method: Method, path: &[&str], body: &serde_json::Value) -> reqwest::RequestBuilder {
        self.http.call(method, path).header(CONTENT_TYPE, "application/json").body(body.to_string())
    }

    /// A new PIN for `device`, in place of any that it had; it belongs to `accounts` from now on.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Cancel safety
    /// Dropped, whether there is a new PIN is not known.
    pub async fn issue_pin(
        &self,
        device: impl AsRef<str>,
        accounts: &[AccountId],
    ) -> Result<IssuedPin, Error> {
        let device = DeviceId::new(device.as_ref())?;
        let body = json!({"accounts": accounts});
        self.http.inquire_json(self.json(Method::POST, &["devices", device.as_str(), "pin"], &body)).await
    }

    /// Imports a device table, whole or not at all; gives back how many devices it had.
    ///
    /// # Errors
    /// [`Error`], which says what is wrong in which line.
    ///
    /// # Cancel safety
    /// Dropped, whether it was imported is not known. Importing it again changes nothing more.
    pub async fn import(&self, table: impl Into<Bytes>, format: TableFormat) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Imported {
            imported: u64,
        }
        let content_type = match format {
            TableFormat::Csv => HeaderValue::from_static("text/csv; charset=utf-8"),
            TableFormat::Ndjson => HeaderValue::from_static("application/x-ndjson"),
        };
        let call = self.http.call(Method::POST, &["devices", "import"]).header(CONTENT_TYPE, content_type);
        let Imported { imported } = self.http.inquire_json(call.body(table.into())).await?;
        Ok(imported)
    }

    /// A new key that may do what `scopes` say; none: all that a service can.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Cancel safety
    /// Dropped, there may be a key that nobody has; see [`Administration::keys`].
    pub async fn new_key(&self, scopes: &[String]) -> Result<NewKey, Error> {
        self.http.inquire_json(self.json(Method::POST, &["keys"], &json!({"scopes": scopes}))).await
    }

    /// All keys.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Cancel safety
    /// Nothing is changed by it.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, Error> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<KeyInfo>,
        }
        let Keys { keys } = self.http.inquire_json(self.http.call(Method::GET, &["keys"])).await?;
        Ok(keys)
    }

    /// Revokes a key: it stops working.
    ///
    /// # Errors
    /// [`Error`]; [`Unknown`](super::ErrorKind::Unknown) if there is none.
    ///
    /// # Cancel safety
    /// Dropped, whether it still works is not known.
    pub async fn revoke_key(&self, id: &KeyId) -> Result<(), Error> {
        self.http.inquire(self.http.call(Method::DELETE, &["keys", id.as_str()])).await.map(drop)
    }

    /// The account's side agrees to a device that claims it, or an administrator gives it that device.
    ///
    /// # Errors
    /// [`Error`]; [`UnknownDevice`](super::ErrorKind::UnknownDevice) also if the device does not claim the account.
    ///
    /// # Cancel safety
    /// Dropped, whether it was agreed is not known; agreeing twice is agreeing once.
    pub async fn agree(&self, account: &AccountId, device: &DeviceId) -> Result<(), Error> {
        let path = ["accounts", account.as_str(), "devices", device.as_str()];
        self.http.inquire(self.http.call(Method::PUT, &path)).await.map(drop)
    }

    /// The account's side withdraws from a device.
    ///
    /// # Errors
    /// [`Error`]; [`UnknownDevice`](super::ErrorKind::UnknownDevice) if there was nothing to withdraw.
    ///
    /// # Cancel safety
    /// As [`Administration::agree`].
    pub async fn withdraw(&self, account: &AccountId, device: &DeviceId) -> Result<(), Error> {
        let path = ["accounts", account.as_str(), "devices", device.as_str()];
        self.http.inquire(self.http.call(Method::DELETE, &path)).await.map(drop)
    }
}
