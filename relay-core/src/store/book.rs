//! What a store keeps of address books.

use std::sync::Arc;

use super::App;
use crate::{
    book::{APP, BookKey, Version},
    ids::DeviceId,
};

/// An address book as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BookRecord {
    /// Whose, and which, in the spelling that came first.
    pub key: BookKey,
    /// Its version.
    pub version: Version,
    /// What is in it, as [`Book::content`](crate::book::Book::content) wrote it.
    pub content: Arc<str>,
}

impl BookRecord {
    /// A book of that version.
    pub const fn new(key: BookKey, version: Version, content: Arc<str>) -> Self {
        Self { key, version, content }
    }
}

/// A change of an address book.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BookPut {
    /// Which book.
    pub key: BookKey,
    /// The version that it was made from and that has to stand still; `None` if there has to be no such book yet.
    pub follows: Option<Version>,
    /// What is in it from now on, as [`Book::content`](crate::book::Book::content) wrote it.
    pub content: Arc<str>,
    /// The device that has just this already, since it reported it.
    pub holder: Option<DeviceId>,
}

impl BookPut {
    /// `content` as what follows `follows`.
    pub const fn new(key: BookKey, follows: Option<Version>, content: Arc<str>) -> Self {
        Self { key, follows, content, holder: None }
    }

    /// `device` has it already.
    #[must_use]
    pub fn held_by(mut self, device: DeviceId) -> Self {
        self.holder = Some(device);
        self
    }
}

/// What came of a [`BookPut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BookStored {
    /// It is the current version now, and this is its name.
    Stored(Version),
    /// Another version stands than the one it was to follow.
    Stale,
    /// The account has [`MAX_BOOKS`](crate::book::MAX_BOOKS) already.
    Full,
}

/// Whether a device with these apps shares its account's address books.
pub fn takes_books(apps: &[App]) -> bool {
    apps.iter().any(|app| app.name.as_str().eq_ignore_ascii_case(APP))
}
