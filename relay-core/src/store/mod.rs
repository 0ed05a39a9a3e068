//! What outlives the relay's process: devices, enrolment, keys, secrets, address books.
//!
//! Presence and routing are never stored. Whatever a method acknowledges is on disk by then ([`MemoryStore`], for tests
//! and relays without state, is the stated exception). The relay's edge checks what it hands in: names by their types,
//! registrations by [`Registration`], so a store only keeps and finds.
//!
//! ```text
//!   unknown ── prepare, put_pin ─▶ known ── enrol ─▶ has a credential ── register ─▶ described
//! ```

use std::{fmt, sync::Arc, time::SystemTime};

use async_trait::async_trait;

use crate::{
    book::{BookKey, Version},
    ids::{AccountId, DeviceId, KeyId},
};

mod book;
pub mod json;
mod memory;
mod record;
mod registration;
#[cfg(any(test, feature = "conformance"))]
pub mod suite;

pub use book::{BookPut, BookRecord, BookStored, takes_books};
pub use memory::MemoryStore;
pub use record::{
    Credential, DeviceQuery, DeviceRecord, DeviceSettings, KnownDevice, Membership, Page, Pin, PinAttempt,
    PinParameters, Prepared, ServiceKey, StoredSecret, fold, has_capability,
};
pub use registration::{
    App, Description, InvalidRegistration, MAX_ACCOUNTS, MAX_APPS, MAX_DEPTH, MAX_REGISTRATION, MAX_TEXT,
    Registration,
};

/// The most records in one page (B15).
pub const MAX_PAGE: usize = 1000;
/// Wrong PINs after which a PIN is void for good (B11).
pub const MAX_WRONG_PINS: u32 = 5;

/// Keeps what outlives the relay's process.
///
/// # Implementing
/// - A method that returns `Ok` has made its change durable, whole, and visible to every later call. One that returns
///   an error has changed nothing, or the caller cannot know (`Unavailable`) and will ask again.
/// - Methods run concurrently; each is atomic.
/// - Device and account IDs are equal whatever their case; the spelling that came first is the one that is shown.
/// - `now` comes from the caller, so that a store has no clock.
/// - Nothing here may block the thread that polls it.
///
/// The module `suite` (feature `conformance`) is the definition in tests.
///
/// # Cancel safety
/// Of every method: dropped half-way, its change is made whole or not at all, and which is not known.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The secret of that name: 32 random bytes, made when first asked for and the same ever after.
    async fn secret(&self, name: &str) -> Result<StoredSecret, StoreError>;

    /// Makes `devices` known, with what an administrator set, all or none. A setting that is `None` stays what it was;
    /// accounts are added, as [`Membership::Administrator`].
    async fn prepare(&self, devices: &[Prepared], now: SystemTime) -> Result<(), StoreError>;

    /// Stores what `device` says of itself in place of what it said before, making it known if it is not. An account
    /// that it no longer claims loses its [`Membership::Account`].
    async fn register(
        &self,
        device: &DeviceId,
        registration: &Registration,
        now: SystemTime,
    ) -> Result<Registered, StoreError>;

    /// One device, if it is known.
    async fn device(&self, device: &DeviceId) -> Result<Option<DeviceRecord>, StoreError>;

    /// Known devices that meet `query`, by ID, from the first one beyond `after`; `limit` is cut to 1 to [`MAX_PAGE`].
    /// A page may be shorter than `limit`, even empty, and still have a `next`: work for one page is bounded.
    async fn devices(
        &self,
        query: &DeviceQuery,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceRecord>, StoreError>;

    /// All known devices, by ID, with what a relay keeps in memory of each. Pages as in [`Store::devices`].
    async fn known(&self, after: Option<&DeviceId>, limit: usize) -> Result<Page<KnownDevice>, StoreError>;

    /// Makes `device` count for `account` on the word of `by`. False, and nothing is changed, if the device is not
    /// known, or `by` is [`Membership::Account`] and the device does not claim that account: an account may accept a
    /// device, not take one. An administrator's word is not weakened by an account's.
    async fn agree(&self, device: &DeviceId, account: &AccountId, by: Membership)
    -> Result<bool, StoreError>;

    /// Takes back any agreement, whoever gave it. False if there was none.
    async fn withdraw(&self, device: &DeviceId, account: &AccountId) -> Result<bool, StoreError>;

    /// Stores `pin` in place of any PIN that its device had, with no wrong tries, and makes the device known.
    async fn put_pin(&self, pin: &Pin, now: SystemTime) -> Result<(), StoreError>;

    /// How to hash a try at the PIN of `device`, if it has one, be it expired or void.
    async fn pin_parameters(&self, device: &DeviceId) -> Result<Option<PinParameters>, StoreError>;

    /// Spends a PIN: if `attempt` meets a PIN that is neither expired nor void, removes that PIN and stores
    /// `credential` in place of any that the device had, as one change. Else counts the try against the PIN, which is
    /// void at the [`MAX_WRONG_PINS`]th.
    ///
    /// A try against a device without a PIN must take the time of any other (T10): a store that waits for a disk to
    /// count a try waits for it then, too.
    async fn enrol(
        &self,
        attempt: &PinAttempt,
        credential: &Credential,
        now: SystemTime,
    ) -> Result<Enrolment, StoreError>;

    /// The credential of `device`, if it has enrolled.
    async fn credential(&self, device: &DeviceId) -> Result<Option<Credential>, StoreError>;

    /// Stores a key, in place of any of the same ID.
    async fn put_key(&self, key: &ServiceKey) -> Result<(), StoreError>;

    /// All keys, by ID, expired ones included.
    async fn keys(&self) -> Result<Vec<ServiceKey>, StoreError>;

    /// Removes a key. False if there was none.
    async fn remove_key(&self, id: &KeyId) -> Result<bool, StoreError>;

    /// An address book as it stands, if there is one.
    async fn book(&self, book: &BookKey) -> Result<Option<BookRecord>, StoreError>;

    /// What an address book had in it at `version`, the current one or one before it that is still remembered
    /// ([`kept`](crate::book::kept)).
    async fn book_content(&self, book: &BookKey, version: Version) -> Result<Option<Arc<str>>, StoreError>;

    /// Stores the next version of an address book, if the one that it follows stands still: of several at a time one
    /// is stored and the others are [`BookStored::Stale`]. The version is [`Version::after`] the one before and `now`.
    async fn put_book(&self, put: &BookPut, now: SystemTime) -> Result<BookStored, StoreError>;

    /// `device` has `version` of an address book: nothing older, from now on. False, and nothing is changed, if it does
    /// not count for the book's account.
    ///
    /// What it has is forgotten once it no longer counts for that account, registers without the app
    /// ([`takes_books`]), or enrols anew: it then may have lost it.
    async fn hold_book(
        &self,
        book: &BookKey,
        device: &DeviceId,
        version: Version,
    ) -> Result<bool, StoreError>;

    /// The devices that share an address book ([`takes_books`]) and have another version of it than the current one, or
    /// none. Pages as in [`Store::devices`].
    async fn lacking_devices(
        &self,
        book: &BookKey,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceId>, StoreError>;

    /// The address books that `devices` share and have another version of than the current one, or none: who lacks
    /// which, with the current version; [`MAX_PAGE`] at most for each. Asked for every device that comes, so of many at
    /// once when many come.
    async fn lacking_books(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, BookKey, Version)>, StoreError>;
}

/// What came of a registration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Registered {
    /// Whether it is the device's first.
    pub first: bool,
    /// The device as it now stands.
    pub record: DeviceRecord,
}

impl Registered {
    /// The outcome of a registration that left `record`.
    pub const fn new(first: bool, record: DeviceRecord) -> Self {
        Self { first, record }
    }
}

/// What came of a try at a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Enrolment {
    /// The PIN is spent, the credential stored.
    Enrolled,
    /// Wrong, unknown, expired, void: deliberately one and the same.
    Refused,
}

/// Why a store did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be used now: disk full, input or output error, stopping. Try again later.
    #[error("the store cannot be used now: {words}")]
    Unavailable {
        /// What happened.
        words: Box<str>,
        /// What it was in its own terms.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// What it holds is not what it wrote. Nothing helps but an administrator.
    #[error("the store is damaged: {words}")]
    Damaged {
        /// What is wrong, and where.
        words: Box<str>,
        /// What it was in its own terms.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// Another relay uses it.
    #[error("the store is in use: {words}")]
    InUse {
        /// By whom, as far as known.
        words: Box<str>,
    },
    /// It was written by another version of this program.
    #[error("the store has version {found}, this program reads up to {supported}")]
    Version {
        /// The version that was found.
        found: i64,
        /// The newest version that can be read.
        supported: i64,
    },
}

impl StoreError {
    /// An [`StoreError::Unavailable`] without a source.
    pub fn unavailable(words: impl Into<Box<str>>) -> Self {
        Self::Unavailable { words: words.into(), source: None }
    }

    /// A [`StoreError::Damaged`] without a source.
    pub fn damaged(words: impl Into<Box<str>>) -> Self {
        Self::Damaged { words: words.into(), source: None }
    }
}
