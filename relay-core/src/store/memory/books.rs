//! Address books in memory.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::SystemTime,
};

use super::super::{BookPut, BookRecord, BookStored, MAX_PAGE};
use crate::{
    book::{BookKey, MAX_BOOKS, Version, kept},
    ids::{AccountId, DeviceId},
};

#[derive(Debug, Default)]
pub(super) struct Books {
    /// Each with its versions; the last one stands.
    books: BTreeMap<BookKey, BTreeMap<Version, Arc<str>>>,
    copies: BTreeMap<(DeviceId, BookKey), Version>,
}

impl Books {
    pub(super) fn book(&self, key: &BookKey) -> Option<BookRecord> {
        let (key, versions) = self.books.get_key_value(key)?;
        let (version, content) = versions.last_key_value()?;
        Some(BookRecord::new(key.clone(), *version, content.clone()))
    }

    pub(super) fn content(&self, key: &BookKey, version: Version) -> Option<Arc<str>> {
        self.books.get(key)?.get(&version).cloned()
    }

    pub(super) fn put(&mut self, put: &BookPut, now: SystemTime) -> BookStored {
        let of_account = self.of(&put.key.account).count();
        let versions = match self.books.entry(put.key.clone()) {
            Entry::Occupied(versions) => versions.into_mut(),
            Entry::Vacant(_) if put.follows.is_some() => return BookStored::Stale,
            Entry::Vacant(_) if of_account >= MAX_BOOKS => return BookStored::Full,
            Entry::Vacant(vacant) => vacant.insert(BTreeMap::new()),
        };
        let current = versions.last_key_value().map(|(version, _)| *version);
        if current != put.follows {
            return BookStored::Stale;
        }
        let version = Version::after(current, now);
        let kept = kept(versions.values().rev().map(|content| content.len()));
        while versions.len() > kept {
            versions.pop_first();
        }
        versions.insert(version, put.content.clone());
        BookStored::Stored(version)
    }

    pub(super) fn hold(&mut self, key: &BookKey, device: &DeviceId, version: Version) {
        let held = self.copies.entry((device.clone(), key.clone())).or_insert(version);
        *held = version.max(*held);
    }

    /// Whether `device` holds another version than the current one, or none.
    pub(super) fn lacks(&self, key: &BookKey, device: &DeviceId) -> Option<Version> {
        let (current, _) = self.books.get(key)?.last_key_value()?;
        (self.copies.get(&(device.clone(), key.clone())) != Some(current)).then_some(*current)
    }

    pub(super) fn lacking<'a>(
        &self,
        device: &DeviceId,
        accounts: impl Iterator<Item = &'a AccountId>,
    ) -> Vec<(BookKey, Version)> {
        let keys = accounts.flat_map(|account| self.of(account));
        let lacking = keys.filter_map(|key| Some((key.clone(), self.lacks(key, device)?)));
        lacking.take(MAX_PAGE).collect()
    }

    /// Forgets what `device` holds, of those accounts that meet `gone`.
    pub(super) fn forget(&mut self, device: &DeviceId, gone: impl Fn(&AccountId) -> bool) {
        self.copies.retain(|(holder, key), _| holder != device || !gone(&key.account));
    }

    fn of<'a>(&'a self, account: &'a AccountId) -> impl Iterator<Item = &'a BookKey> {
        self.books
            .keys()
            .skip_while(move |key| key.account < *account)
            .take_while(move |key| key.account == *account)
    }
}
