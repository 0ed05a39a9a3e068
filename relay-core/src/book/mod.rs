//! Address books: what is in one, how edits made at the same time become one, and who still has to get it.
//!
//! A book belongs to an account, and that account's devices with the app [`APP`] share it. Its content is a table of
//! **entries**, each with a name and a value, within **kinds** (`email`, and what a vendor adds):
//!
//! ```text
//! <AddressBook book='staff' version='1795181234567'>
//!   <email><User1>xxx@xxx.co.jp</User1><User2>yyy@yyy.co.jp</User2></email>
//! </AddressBook>
//! ```
//!
//! The order of entries means nothing, and a kind without entries is none. Every change makes a new [`Version`].
//!
//! ```text
//! edit of version N ──▶ is N the current version? ── yes ─▶ it is the next version
//!                                │ no
//!                                └─▶ merge(N, current, edit) ─▶ what both sides wanted, or Conflict
//! ```
//!
//! [`Distribution`] says which device gets what next, [`Parcel`] how it goes there.

mod distribution;
mod merge;
mod parcel;
#[cfg(test)]
mod tests;
mod xml;

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr, time::SystemTime};

pub use self::{
    distribution::{Delivery, Distribution, DistributionConfig, Outcome},
    merge::{Conflict, MAX_NAMED, Merged, merge},
    parcel::Parcel,
    xml::{BookDocument, document},
};
use crate::{
    ids::{AccountId, BookId},
    xml::{XmlError, is_local_name, is_text},
};

/// The name of the app that takes address books, on a device.
pub const APP: &str = "address";
/// The most entries of a book.
pub const MAX_ENTRIES: usize = 10_000;
/// The most kinds of a book.
pub const MAX_KINDS: usize = 64;
/// The longest name of a kind or an entry, in characters.
pub const MAX_NAME: usize = 64;
/// The longest value, in characters.
pub const MAX_VALUE: usize = 1024;
/// The largest book as a document, in bytes.
pub const MAX_SIZE: usize = 1024 * 1024;
/// The most books of one account.
pub const MAX_BOOKS: usize = 64;

/// How many versions before the current one are remembered, so that an edit of them can be merged.
const MAX_OLD: usize = 32;
/// How many bytes they may have, all together.
const MAX_OLD_SIZE: usize = 4 * 1024 * 1024;

/// Whose book, and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BookKey {
    /// The account that it belongs to.
    pub account: AccountId,
    /// Its name within that account.
    pub book: BookId,
}

impl BookKey {
    /// The book `book` of `account`.
    pub const fn new(account: AccountId, book: BookId) -> Self {
        Self { account, book }
    }
}

/// Names one state of a book. Grows with every change, and is no count: see [`Version::after`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// The largest one: what a signed 64-bit number holds.
    const MAX: u64 = i64::MAX as u64;

    /// The version that follows `previous`: the time in milliseconds, or one more than before if that is larger.
    ///
    /// A relay whose store was lost, or set back to a copy, so gives out no version a second time for another content:
    /// a device that edits what it once got from that relay is told that its version is not known, rather than merged
    /// with something that it never saw.
    #[must_use]
    pub fn after(previous: Option<Self>, now: SystemTime) -> Self {
        let time = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let time = u64::try_from(time).unwrap_or(Self::MAX);
        let least = previous.map_or(1, |Self(previous)| previous.saturating_add(1));
        Self(time.max(least).min(Self::MAX))
    }

    /// A version that was stored.
    ///
    /// # Errors
    /// [`InvalidVersion`] if `number` is 0 or more than a signed 64-bit number holds.
    pub const fn new(number: u64) -> Result<Self, InvalidVersion> {
        if number == 0 || number > Self::MAX { Err(InvalidVersion) } else { Ok(Self(number)) }
    }

    /// The number, to store it.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A text that is no version of a book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version of an address book")]
pub struct InvalidVersion;

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        // One spelling for each: no sign, no zeros in front.
        if !text.starts_with(|c: char| matches!(c, '1'..='9')) {
            return Err(InvalidVersion);
        }
        text.parse().map_err(|_| InvalidVersion).and_then(Self::new)
    }
}

/// What is wrong with a book, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBook {
    /// It cannot be read at all.
    #[error("the address book cannot be read: {0}")]
    Xml(#[from] XmlError),
    /// Something in it is not as an address book has it.
    #[error("{place}: {words}")]
    Content {
        /// Where: `AddressBook`, the name of a kind, or `kind/entry`.
        place: Box<str>,
        /// What.
        words: Cow<'static, str>,
    },
    /// More than [`MAX_ENTRIES`].
    #[error("the address book has more than {MAX_ENTRIES} entries")]
    Entries,
    /// More than [`MAX_KINDS`].
    #[error("the address book has more than {MAX_KINDS} kinds of entries")]
    Kinds,
    /// More than [`MAX_SIZE`].
    #[error("the address book has {0} bytes, {MAX_SIZE} are allowed")]
    Size(usize),
}

impl InvalidBook {
    fn at(place: &str, words: impl Into<Cow<'static, str>>) -> Self {
        // Twice the longest name: more is no name, and need not be repeated.
        let place: String = place.chars().take(2 * MAX_NAME + 1).collect();
        Self::Content { place: place.into(), words: words.into() }
    }
}

type Entries = BTreeMap<Box<str>, Box<str>>;

/// The content of an address book, within bounds.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Book {
    /// None of them is empty.
    kinds: BTreeMap<Box<str>, Entries>,
}

impl fmt::Debug for Book {
    /// Whose addresses they are is nobody's business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Book({} entries)", self.len())
    }
}

impl Book {
    /// An empty one.
    pub const fn new() -> Self {
        Self { kinds: BTreeMap::new() }
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.kinds.values().map(BTreeMap::len).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The value of an entry.
    pub fn get(&self, kind: &str, name: &str) -> Option<&str> {
        self.kinds.get(kind)?.get(name).map(|value| &**value)
    }

    /// All entries, as kind, name and value.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.kinds
            .iter()
            .flat_map(|(kind, entries)| entries.iter().map(|(name, value)| (&**kind, &**name, &**value)))
    }

    /// Adds or changes an entry. What it had is given back.
    ///
    /// # Errors
    /// [`InvalidBook`] if a name is none of XML's, or something is beyond its bound; nothing is changed then.
    pub fn set(&mut self, kind: &str, name: &str, value: &str) -> Result<Option<Box<str>>, InvalidBook> {
        check_name(kind, kind)?;
        let place = || format!("{kind}/{name}");
        check_name(&place(), name)?;
        if value.len() > MAX_VALUE && value.chars().count() > MAX_VALUE {
            let length = value.chars().count();
            let words = format!("has {length} characters, {MAX_VALUE} are allowed");
            return Err(InvalidBook::at(&place(), words));
        }
        if !is_text(value) {
            return Err(InvalidBook::at(&place(), "has a character that is none of XML's"));
        }
        if self.get(kind, name).is_none() {
            if self.len() >= MAX_ENTRIES {
                return Err(InvalidBook::Entries);
            }
            if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(kind) {
                return Err(InvalidBook::Kinds);
            }
        }
        Ok(self.put(kind, name, value))
    }

    /// Removes an entry. What it had is given back.
    pub fn remove(&mut self, kind: &str, name: &str) -> Option<Box<str>> {
        let entries = self.kinds.get_mut(kind)?;
        let value = entries.remove(name);
        if entries.is_empty() {
            self.kinds.remove(kind);
        }
        value
    }

    fn put(&mut self, kind: &str, name: &str, value: &str) -> Option<Box<str>> {
        // Nearly always the kind is there.
        match self.kinds.get_mut(kind) {
            Some(entries) => entries.insert(name.into(), value.into()),
            None => {
                let entries = Entries::from([(name.into(), value.into())]);
                self.kinds.insert(kind.into(), entries);
                None
            }
        }
    }

    /// Checks what holds of a book as a whole.
    fn check(&self) -> Result<(), InvalidBook> {
        if self.len() > MAX_ENTRIES {
            return Err(InvalidBook::Entries);
        }
        if self.kinds.len() > MAX_KINDS {
            return Err(InvalidBook::Kinds);
        }
        Ok(())
    }
}

fn check_name(place: &str, name: &str) -> Result<(), InvalidBook> {
    if !is_local_name(name) {
        return Err(InvalidBook::at(place, "is no name that an element of XML can have"));
    }
    if name.len() > MAX_NAME && name.chars().count() > MAX_NAME {
        return Err(InvalidBook::at(place, format!("is a name of more than {MAX_NAME} characters")));
    }
    Ok(())
}

/// How many of the versions before the current one are kept, given their sizes in bytes, newest first. For stores.
pub fn kept(sizes: impl IntoIterator<Item = usize>) -> usize {
    let mut all = 0usize;
    sizes
        .into_iter()
        .take(MAX_OLD)
        .take_while(|size| {
            all = all.saturating_add(*size);
            all <= MAX_OLD_SIZE
        })
        .count()
}
