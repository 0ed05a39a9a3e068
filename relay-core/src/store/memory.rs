//! A store that forgets with its process: for tests, and the reference of what a store does.

mod books;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;

use self::books::Books;
use super::{
    BookPut, BookRecord, BookStored, Credential, Description, DeviceQuery, DeviceRecord, DeviceSettings,
    Enrolment, KnownDevice, MAX_PAGE, MAX_WRONG_PINS, Membership, Page, Pin, PinAttempt, PinParameters,
    Prepared, Registered, Registration, ServiceKey, Store, StoreError, StoredSecret, takes_books,
};
use crate::{
    book::{BookKey, Version},
    ids::{AccountId, DeviceId, KeyId},
};

/// Keeps everything in memory, and nothing beyond it.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    secrets: HashMap<String, StoredSecret>,
    devices: BTreeMap<DeviceId, Device>,
    keys: BTreeMap<KeyId, ServiceKey>,
    books: Books,
}

#[derive(Debug)]
struct Device {
    own: Description,
    set: DeviceSettings,
    agreed: BTreeMap<AccountId, Membership>,
    known_since: SystemTime,
    registered_at: Option<SystemTime>,
    pin: Option<(Pin, u32)>,
    credential: Option<Credential>,
}

impl Device {
    fn record(&self, id: &DeviceId) -> DeviceRecord {
        DeviceRecord::merge(
            id.clone(),
            self.own.clone(),
            self.set.clone(),
            self.agreed.clone(),
            self.known_since,
            self.registered_at,
        )
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No method panics half-way through a change, so a poisoned lock guards whole data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn know(&mut self, device: &DeviceId, now: SystemTime) -> &mut Device {
        self.devices.entry(device.clone()).or_insert_with(|| Device {
            own: Description::default(),
            set: DeviceSettings::default(),
            agreed: BTreeMap::new(),
            known_since: now,
            registered_at: None,
            pin: None,
            credential: None,
        })
    }

    fn hold_book(&mut self, book: &BookKey, device: &DeviceId, version: Version) -> bool {
        let counts = self.devices.get(device).is_some_and(|stored| stored.agreed.contains_key(&book.account));
        if counts {
            self.books.hold(book, device, version);
        }
        counts
    }

    fn after<'a>(&'a self, after: Option<&DeviceId>) -> impl Iterator<Item = (&'a DeviceId, &'a Device)> {
        use std::ops::Bound;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.devices.range::<DeviceId, _>((start, Bound::Unbounded))
    }
}

/// The first `limit` of `items`, and whether there are more.
fn page<T>(mut items: impl Iterator<Item = (DeviceId, T)>, limit: usize) -> Page<T> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut found = Vec::new();
    let mut last = None;
    for (id, item) in items.by_ref().take(limit) {
        found.push(item);
        last = Some(id);
    }
    Page::new(found, last.filter(|_| items.next().is_some()))
}

#[async_trait]
impl Store for MemoryStore {
    async fn secret(&self, name: &str) -> Result<StoredSecret, StoreError> {
        Ok(self.lock().secrets.entry(name.to_owned()).or_insert_with(StoredSecret::random).clone())
    }

    async fn prepare(&self, devices: &[Prepared], now: SystemTime) -> Result<(), StoreError> {
        let mut inner = self.lock();
        for prepared in devices {
            let device = inner.know(&prepared.device, now);
            device.set = prepared.settings.or(&device.set);
            for account in &prepared.accounts {
                device.agreed.insert(account.clone(), Membership::Administrator);
            }
        }
        Ok(())
    }

    async fn register(
        &self,
        device: &DeviceId,
        registration: &Registration,
        now: SystemTime,
    ) -> Result<Registered, StoreError> {
        let mut inner = self.lock();
        let stored = inner.know(device, now);
        let first = stored.registered_at.replace(now).is_none();
        stored.own = Description::clone(registration);
        stored.agreed.retain(|account, by| {
            *by == Membership::Administrator || registration.accounts.contains(account)
        });
        let takes_books = takes_books(&registration.apps);
        let agreed: Vec<AccountId> = stored.agreed.keys().cloned().collect();
        inner.books.forget(device, |account| !takes_books || !agreed.contains(account));
        let (id, stored) = inner
            .devices
            .get_key_value(device)
            .ok_or_else(|| StoreError::damaged("a device went missing while it registered"))?;
        Ok(Registered::new(first, stored.record(id)))
    }

    async fn device(&self, device: &DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        Ok(self.lock().devices.get_key_value(device).map(|(id, stored)| stored.record(id)))
    }

    async fn devices(
        &self,
        query: &DeviceQuery,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceRecord>, StoreError> {
        let inner = self.lock();
        let found = inner
            .after(after)
            .map(|(id, stored)| (id.clone(), stored.record(id)))
            .filter(|(_, record)| query.matches(record));
        Ok(page(found, limit))
    }

    async fn known(&self, after: Option<&DeviceId>, limit: usize) -> Result<Page<KnownDevice>, StoreError> {
        let inner = self.lock();
        let known = inner.after(after).map(|(id, stored)| {
            let token_hash = stored.credential.as_ref().map(|credential| credential.token_hash);
            (id.clone(), KnownDevice::new(id.clone(), stored.own.keepalive, token_hash))
        });
        Ok(page(known, limit))
    }

    async fn agree(
        &self,
        device: &DeviceId,
        account: &AccountId,
        by: Membership,
    ) -> Result<bool, StoreError> {
        let mut inner = self.lock();
        let Some(stored) = inner.devices.get_mut(device) else { return Ok(false) };
        if by == Membership::Account && !stored.own.accounts.contains(account) {
            return Ok(false);
        }
        let agreed = stored.agreed.entry(account.clone()).or_insert(by);
        *agreed = by.max(*agreed);
        Ok(true)
    }

    async fn withdraw(&self, device: &DeviceId, account: &AccountId) -> Result<bool, StoreError> {
        let mut inner = self.lock();
        inner.books.forget(device, |of| of == account);
        Ok(inner.devices.get_mut(device).is_some_and(|stored| stored.agreed.remove(account).is_some()))
    }

    async fn put_pin(&self, pin: &Pin, now: SystemTime) -> Result<(), StoreError> {
        self.lock().know(&pin.device, now).pin = Some((pin.clone(), 0));
        Ok(())
    }

    async fn pin_parameters(&self, device: &DeviceId) -> Result<Option<PinParameters>, StoreError> {
        let inner = self.lock();
        let pin = inner.devices.get(device).and_then(|stored| stored.pin.as_ref());
        Ok(pin.map(|(pin, _)| pin.parameters.clone()))
    }

    async fn enrol(
        &self,
        attempt: &PinAttempt,
        credential: &Credential,
        now: SystemTime,
    ) -> Result<Enrolment, StoreError> {
        let mut inner = self.lock();
        let Some(stored) = inner.devices.get_mut(&attempt.device) else { return Ok(Enrolment::Refused) };
        let Some((pin, wrong)) = &mut stored.pin else { return Ok(Enrolment::Refused) };
        if pin.parameters.salt != attempt.salt {
            return Ok(Enrolment::Refused);
        }
        if !attempt.meets(&pin.hash) {
            *wrong = wrong.saturating_add(1);
            return Ok(Enrolment::Refused);
        }
        if *wrong >= MAX_WRONG_PINS || pin.expires <= now {
            return Ok(Enrolment::Refused);
        }
        stored.pin = None;
        stored.credential = Some(credential.clone());
        inner.books.forget(&attempt.device, |_| true);
        Ok(Enrolment::Enrolled)
    }

    async fn credential(&self, device: &DeviceId) -> Result<Option<Credential>, StoreError> {
        Ok(self.lock().devices.get(device).and_then(|stored| stored.credential.clone()))
    }

    async fn put_key(&self, key: &ServiceKey) -> Result<(), StoreError> {
        self.lock().keys.insert(key.id.clone(), key.clone());
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<ServiceKey>, StoreError> {
        Ok(self.lock().keys.values().cloned().collect())
    }

    async fn remove_key(&self, id: &KeyId) -> Result<bool, StoreError> {
        Ok(self.lock().keys.remove(id).is_some())
    }

    async fn book(&self, book: &BookKey) -> Result<Option<BookRecord>, StoreError> {
        Ok(self.lock().books.book(book))
    }

    async fn book_content(&self, book: &BookKey, version: Version) -> Result<Option<Arc<str>>, StoreError> {
        Ok(self.lock().books.content(book, version))
    }

    async fn put_book(&self, put: &BookPut, now: SystemTime) -> Result<BookStored, StoreError> {
        let mut inner = self.lock();
        let stored = inner.books.put(put, now);
        if let (BookStored::Stored(version), Some(holder)) = (stored, &put.holder) {
            inner.hold_book(&put.key, holder, version);
        }
        Ok(stored)
    }

    async fn hold_book(
        &self,
        book: &BookKey,
        device: &DeviceId,
        version: Version,
    ) -> Result<bool, StoreError> {
        Ok(self.lock().hold_book(book, device, version))
    }

    async fn lacking_devices(
        &self,
        book: &BookKey,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceId>, StoreError> {
        let inner = self.lock();
        let lacking = inner.after(after).filter(|(id, stored)| {
            stored.agreed.contains_key(&book.account)
                && takes_books(&stored.own.apps)
                && inner.books.lacks(book, id).is_some()
        });
        Ok(page(lacking.map(|(id, _)| (id.clone(), id.clone())), limit))
    }

    async fn lacking_books(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, BookKey, Version)>, StoreError> {
        let inner = self.lock();
        let sharing = devices.iter().filter_map(|device| {
            let stored = inner.devices.get(device).filter(|stored| takes_books(&stored.own.apps))?;
            Some((device, inner.books.lacking(device, stored.agreed.keys())))
        });
        let lacking = sharing.flat_map(|(device, books)| {
            books.into_iter().map(|(book, version)| (device.clone(), book, version))
        });
        Ok(lacking.collect())
    }
}

#[cfg(test)]
mod tests {
    crate::store_suite!(async { (std::sync::Arc::new(super::MemoryStore::new()), ()) });
}
