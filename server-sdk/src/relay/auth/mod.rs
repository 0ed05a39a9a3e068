//! Who may do what: tokens, keys, PINs and scopes.
//!
//! Tokens and keys are 256 random bits, so they are kept as plain SHA-256: nobody can try them out. All of them are in
//! one table in memory, by hash; a call costs one hash and one look-up, and no store.

mod enrol;
mod rate;
mod scope;

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use foldhash::quality::RandomState;
use hmac::{Hmac, KeyInit, Mac};
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    ids::{AccountId, AppName, DeviceId, KeyId, Method},
    store::{
        Credential, DeviceRecord, KnownDevice, MAX_PAGE, Membership, ServiceKey, Store, StoreError,
        StoredSecret,
    },
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use self::rate::Rate;
pub use self::{
    enrol::{EnrolError, IssuedPin},
    scope::{InvalidScope, Scopes},
};

/// Rounds of PBKDF2. The least that RFC 7677 §4 allows is enough here: what they protect is 256 random bits, which no
/// number of guesses finds; more rounds would only make log-in dear for the relay (T13).
const ITERATIONS: u32 = 4096;
/// The most keys that a relay holds.
pub const MAX_KEYS: usize = 10_000;

/// What somebody wants to do to a device.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Action<'a> {
    /// See that it is there, and what is known of it.
    List,
    /// Ask it this.
    Method(&'a Method),
    /// Use this app of it.
    App(&'a AppName),
}

/// Why somebody may not.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// For the caller there is no such device: say what would be said if there were none at all.
    #[error("no such device")]
    UnknownDevice,
    /// The caller sees the device, but may not do this.
    #[error("this key does not allow it")]
    Forbidden,
    /// It cannot be found out now.
    #[error("it cannot be found out now")]
    Store(#[from] StoreError),
}

/// Why there is no new key.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NewKeyError {
    /// A scope that is none.
    #[error(transparent)]
    Scope(#[from] InvalidScope),
    /// [`MAX_KEYS`] are there already.
    #[error("there are {MAX_KEYS} keys already; revoke some")]
    Full,
    /// The store could not keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks credentials and scopes. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    /// Salts of dummy verifiers and dummy PINs are derived from it, so that they are the same whenever asked for.
    dummy: StoredSecret,
    table: RwLock<Table>,
    rate: Rate,
    enrolment: enrol::Enrolment,
    /// Held while keys change, so that two new ones cannot both be the last that fits.
    keys_change: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    holders: HashMap<[u8; 32], Holder, RandomState>,
    devices: HashMap<DeviceId, [u8; 32], RandomState>,
    keys: HashMap<KeyId, Arc<Key>, RandomState>,
}

enum Holder {
    Device(DeviceId),
    Key(Arc<Key>),
}

/// A key with its scopes parsed.
struct Key {
    stored: ServiceKey,
    scopes: Scopes,
}

impl Key {
    fn principal(&self) -> Principal {
        let id = self.stored.id.clone();
        if self.scopes.is_administrator() { Principal::Administrator(id) } else { Principal::Service(id) }
    }

    fn is_expired(&self) -> bool {
        self.stored.expires.is_some_and(|expires| expires <= SystemTime::now())
    }
}

impl Table {
    fn put_device(&mut self, device: DeviceId, hash: [u8; 32]) {
        if let Some(old) = self.devices.insert(device.clone(), hash) {
            self.holders.remove(&old);
        }
        self.holders.insert(hash, Holder::Device(device));
    }

    fn put_key(&mut self, stored: ServiceKey) -> Result<(), InvalidScope> {
        let scopes = Scopes::parse(&stored.scopes)?;
        let key = Arc::new(Key { stored, scopes });
        if let Some(old) = self.keys.insert(key.stored.id.clone(), key.clone()) {
            self.holders.remove(&old.stored.hash);
        }
        self.holders.insert(key.stored.hash, Holder::Key(key));
        Ok(())
    }
}

impl Auth {
    /// Reads all keys and tokens of `store`; every device that it knows is given to `known` on the way.
    /// `tries_per_minute` bounds the failed enrolments of one source address.
    ///
    /// # Errors
    /// [`StoreError`], also if a stored key has a scope that cannot be read: passing over it could allow too much.
    pub async fn load(
        store: Arc<dyn Store>,
        tries_per_minute: u32,
        mut known: impl FnMut(&DeviceId, Option<Duration>) + Send,
    ) -> Result<Self, StoreError> {
        let mut table = Table::default();
        for key in store.keys().await? {
            let id = key.id.clone();
            table.put_key(key).map_err(|error| StoreError::damaged(format!("key {id}: {error}")))?;
        }
        let mut after = None;
        loop {
            let page = store.known(after.as_ref(), MAX_PAGE).await?;
            for KnownDevice { id, keepalive, token_hash, .. } in page.items {
                known(&id, keepalive);
                if let Some(hash) = token_hash {
                    table.put_device(id, hash);
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let dummy = store.secret("unknown-devices").await?;
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                dummy,
                table: RwLock::new(table),
                rate: Rate::new(tries_per_minute),
                enrolment: enrol::Enrolment::default(),
                keys_change: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Who holds `token`: one hash and one look-up.
    pub fn principal(&self, token: &Secret) -> Option<Principal> {
        let hash = sha256(token);
        let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
        let (found, holder) = table.holders.get_key_value(&hash)?;
        // T12: the table is searched by a hash, which tells nothing of the token; what is left is compared in
        // constant time.
        if !bool::from(words(found).ct_eq(&words(&hash))) {
            return None;
        }
        match holder {
            Holder::Device(device) => Some(Principal::Device(device.clone())),
            Holder::Key(key) => (!key.is_expired()).then(|| key.principal()),
        }
    }

    /// Whether `principal` may do `action` to `device`. A device may do nothing a service can, not even to itself.
    ///
    /// # Errors
    /// [`Denied`] says whether it sees the device at all.
    pub async fn authorize(
        &self,
        principal: &Principal,
        device: &DeviceId,
        action: Action<'_>,
    ) -> Result<(), Denied> {
        // None: a device, or a key that was revoked while its call was under way.
        let key = self.key(principal).ok_or(Denied::Forbidden)?;
        if key.scopes.allows(device, &[], action) {
            return Ok(());
        }
        // Only scopes by account need to know the device; keys without one are judged without the store.
        let accounts = match key.scopes.name_accounts() {
            true => self.inner.store.device(device).await?.map(|record| record.accounts).unwrap_or_default(),
            false => Vec::new(),
        };
        if key.scopes.allows(device, &accounts, action) {
            Ok(())
        } else if key.scopes.see(device, &accounts) {
            Err(Denied::Forbidden)
        } else {
            Err(Denied::UnknownDevice)
        }
    }

    /// Whether `principal` may do `action` to the device of `record`.
    pub fn allows(&self, principal: &Principal, record: &DeviceRecord, action: Action<'_>) -> bool {
        self.key(principal).is_some_and(|key| key.scopes.allows(&record.id, &record.accounts, action))
    }

    /// The account of which alone `principal` sees devices, if that is so: then those of others need not be looked at.
    pub(crate) fn only_account(&self, principal: &Principal) -> Option<AccountId> {
        self.key(principal)?.scopes.only_account().cloned()
    }

    /// Whether the key of `principal` still holds: it was not revoked and has not expired.
    pub(crate) fn holds(&self, principal: &Principal) -> bool {
        self.key(principal).is_some_and(|key| !key.is_expired())
    }

    /// Whether `principal` may use `app` for `account` as a whole: its address books, say.
    ///
    /// # Errors
    /// [`Denied::UnknownDevice`] if it knows nothing of that account.
    pub fn authorize_account(
        &self,
        principal: &Principal,
        account: &AccountId,
        app: &AppName,
    ) -> Result<(), Denied> {
        match self.key(principal).ok_or(Denied::Forbidden)?.scopes.on_account(account, Action::App(app)) {
            Some(true) => Ok(()),
            Some(false) => Err(Denied::Forbidden),
            None => Err(Denied::UnknownDevice),
        }
    }

    /// On whose word a device counts for `account` if `principal` agrees to it; `None` if it has no say there. A key
    /// speaks for an account if one of its scopes is that account without limits, or it has no scope at all.
    pub fn speaks_for(&self, principal: &Principal, account: &AccountId) -> Option<Membership> {
        let key = self.key(principal)?;
        if key.scopes.is_administrator() {
            return Some(Membership::Administrator);
        }
        key.scopes.speak_for(account).then_some(Membership::Account)
    }

    /// A new key that may do what `scopes` say: its public name, and itself, which is shown this once.
    ///
    /// # Errors
    /// [`NewKeyError`].
    pub async fn new_key(&self, scopes: Vec<String>) -> Result<(KeyId, Secret), NewKeyError> {
        Scopes::parse(&scopes)?;
        let id = KeyId::new(&format!("key-{}", relay_core::random::base32::<10>()))
            .map_err(|e| NewKeyError::Store(StoreError::damaged(e.to_string())))?;
        let key = Secret::random();
        self.put_key(ServiceKey::new(id.clone(), sha256(&key), scopes, SystemTime::now())).await?;
        Ok((id, key))
    }

    /// Stores `key` in place of any of its ID.
    pub(crate) async fn put_key(&self, key: ServiceKey) -> Result<(), NewKeyError> {
        Scopes::parse(&key.scopes)?;
        let inner = self.inner.clone();
        completes(async move {
            let _alone = inner.keys_change.lock().await;
            let replaces = inner.read().keys.contains_key(&key.id);
            if !replaces && inner.read().keys.len() >= MAX_KEYS {
                return Err(NewKeyError::Full);
            }
            inner.store.put_key(&key).await?;
            inner.write().put_key(key)?;
            Ok(())
        })
        .await
        .unwrap_or_else(|| Err(StoreError::unavailable("the relay is stopping").into()))
    }

    /// All keys, by ID.
    pub fn keys(&self) -> Vec<ServiceKey> {
        let mut keys: Vec<ServiceKey> =
            self.inner.read().keys.values().map(|key| key.stored.clone()).collect();
        keys.sort_by(|one, other| one.id.cmp(&other.id));
        keys
    }

    /// Revokes a key. False if there was none.
    ///
    /// # Errors
    /// [`StoreError`]: the key still works.
    pub async fn revoke_key(&self, id: &KeyId) -> Result<bool, StoreError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        completes(async move {
            let _alone = inner.keys_change.lock().await;
            let removed = inner.store.remove_key(&id).await?;
            let mut table = inner.write();
            if let Some(key) = table.keys.remove(&id) {
                table.holders.remove(&key.stored.hash);
            }
            Ok(removed)
        })
        .await
        .unwrap_or_else(|| Err(StoreError::unavailable("the relay is stopping")))
    }

    /// A new PIN with which `device` may enrol once, in place of any that it had; it counts for `accounts` from now on.
    ///
    /// # Errors
    /// [`EnrolError::Busy`], [`EnrolError::Store`].
    pub async fn issue_pin(
        &self,
        device: &DeviceId,
        accounts: &[AccountId],
    ) -> Result<IssuedPin, EnrolError> {
        enrol::issue_pin(&self.inner, device, accounts).await
    }

    /// Spends `pin`: the token of `device` from now on. Any earlier token of it stops working.
    ///
    /// # Errors
    /// [`EnrolError::Refused`] whatever is wrong with device or PIN (T10), [`EnrolError::TooMany`] for the source.
    ///
    /// # Cancel safety
    /// Dropped half-way, the PIN may be spent and the token lost with it.
    pub async fn enrol(&self, device: &DeviceId, pin: &Secret, source: IpAddr) -> Result<Secret, EnrolError> {
        enrol::enrol(&self.inner, device, pin, source).await
    }

    fn key(&self, principal: &Principal) -> Option<Arc<Key>> {
        let (Principal::Service(id) | Principal::Administrator(id)) = principal else { return None };
        self.inner.read().keys.get(id).cloned()
    }

    /// The store behind it.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }
}

impl Inner {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// `length` bytes that are always the same for `device` and `purpose`, and look random to all but this relay.
    fn derived(&self, purpose: &str, device: &DeviceId, length: usize) -> Box<[u8]> {
        let mut bytes = Vec::with_capacity(64);
        for block in 0u8..2 {
            let mut mac =
                Hmac::<Sha256>::new_from_slice(self.dummy.expose()).expect("HMAC takes a key of any length");
            mac.update(&[block]);
            mac.update(purpose.as_bytes());
            mac.update(&[0]);
            mac.update(device.folded().as_bytes());
            bytes.extend_from_slice(&mac.finalize().into_bytes());
        }
        bytes.truncate(length);
        bytes.into()
    }

    /// What no proof meets: its keys are the image of nothing that anybody knows.
    fn dummy_verifier(&self, device: &DeviceId, hash: ScramHash) -> ScramVerifier {
        let (name, length) = match hash {
            ScramHash::Sha1 => ("sha-1", 20),
            _ => ("sha-256", 32),
        };
        ScramVerifier {
            iterations: ITERATIONS,
            salt: self.derived(&format!("salt {name}"), device, enrol::SALT),
            stored_key: self.derived(&format!("stored key {name}"), device, length),
            server_key: self.derived(&format!("server key {name}"), device, length),
        }
    }
}

#[async_trait]
impl Authenticator for Auth {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        match credentials {
            Credentials::Bearer(token) => self.principal(token).ok_or(AuthError::Rejected),
            Credentials::Device { device, token } => {
                let principal = self.principal(token).ok_or(AuthError::Rejected)?;
                match &principal {
                    Principal::Device(holder) if holder == device => Ok(principal),
                    _ => Err(AuthError::Rejected),
                }
            }
            _ => Err(AuthError::Rejected),
        }
    }

    async fn verifier(&self, device: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
        // The dummy is made for known devices, too: the same work for both (T10).
        let dummy = self.inner.dummy_verifier(device, hash);
        let stored = self.inner.store.credential(device).await.map_err(|error| {
            tracing::warn!(%error, "a log-in could not be checked");
            AuthError::Unavailable
        })?;
        Ok(match (stored, hash) {
            (Some(Credential { sha1, .. }), ScramHash::Sha1) => sha1,
            (Some(Credential { sha256, .. }), ScramHash::Sha256) => sha256,
            _ => dummy,
        })
    }
}

/// SHA-256 of a token or key.
pub(crate) fn sha256(secret: &Secret) -> [u8; 32] {
    Sha256::digest(secret.expose().as_bytes()).into()
}

/// `hash` by words, of which a comparison in constant time takes a quarter of the steps that one by bytes does.
fn words(hash: &[u8; 32]) -> [u64; 4] {
    let (words, _) = hash.as_chunks();
    std::array::from_fn(|at| words.get(at).copied().map_or(0, u64::from_ne_bytes))
}

/// Runs `change` to its end even if the caller goes: what the store and the table hold must not part. `None` if the
/// runtime is going down.
async fn completes<T: Send + 'static>(change: impl Future<Output = T> + Send + 'static) -> Option<T> {
    tokio::spawn(change).await.ok()
}

#[cfg(test)]
mod tests;
