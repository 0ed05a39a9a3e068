//! The embedded store: SQLite in WAL mode, one thread that writes, connections apart that read.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use relay_core::{
    book::{BookKey, Version},
    ids::{AccountId, DeviceId, KeyId},
    store::{
        BookPut, BookRecord, BookStored, Credential, DeviceQuery, DeviceRecord, Enrolment, KnownDevice,
        Membership, Page, Pin, PinAttempt, PinParameters, Prepared, Registered, Registration, ServiceKey,
        Store, StoreError, StoredSecret,
    },
};
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{
    books,
    folder::DataFolder,
    read,
    schema::{open, open_reader, store_error},
    write,
    writer::Writer,
};

/// Connections that read at once.
const READERS: usize = 4;

/// Keeps everything in one SQLite file of a [`DataFolder`].
///
/// A change is synced to disk before it is acknowledged; changes that are asked for at the same time share a sync.
/// Dropped, it waits for the changes handed in, closes the file and lets go of the folder.
pub struct SqliteStore {
    // Dropped in this order: the last connection to close works the log in and removes it, and only the writer may.
    readers: Arc<Readers>,
    writer: Writer,
}

struct Readers {
    path: Box<Path>,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.readers.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the database of `folder`, making it if the folder is fresh. Reads all of it once, to see that it is whole.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] or [`StoreError::Version`] if the database is not as this program would have left it;
    /// it is left as it is then. [`StoreError::Unavailable`] if it cannot be read or written.
    pub async fn open(folder: &DataFolder) -> Result<Self, StoreError> {
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || {
            let path = folder.database()?;
            let connection = open(&path)?;
            let readers = Readers {
                path: path.clone().into(),
                idle: Mutex::new(Vec::new()),
                permits: Arc::new(Semaphore::new(READERS)),
            };
            Ok(Self { writer: Writer::start(folder, path, connection)?, readers: Arc::new(readers) })
        })
        .await
        .map_err(|error| StoreError::unavailable(error.to_string()))?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let stopped = || StoreError::unavailable("the store has stopped");
        let readers = self.readers.clone();
        let permit = readers.permits.clone().acquire_owned().await.map_err(|_| stopped())?;
        let done = tokio::task::spawn_blocking(move || {
            // The permit goes with the work: a caller that leaves frees no connection that is still in use.
            let _permit = permit;
            readers.read(work)
        });
        done.await.map_err(|_| stopped())?
    }
}

impl Readers {
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open_reader(&self.path)?,
        };
        match work(&connection) {
            Ok(value) => {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                Ok(value)
            }
            // The connection goes with the error: the next reader starts with a fresh one.
            Err(error) => Err(store_error(&self.path, error)),
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn secret(&self, name: &str) -> Result<StoredSecret, StoreError> {
        let name = name.to_owned();
        self.writer.change(move |connection| write::secret(connection, &name)).await
    }

    async fn prepare(&self, devices: &[Prepared], now: SystemTime) -> Result<(), StoreError> {
        let devices = devices.to_vec();
        self.writer.change(move |connection| write::prepare(connection, &devices, now)).await
    }

    async fn register(
        &self,
        device: &DeviceId,
        registration: &Registration,
        now: SystemTime,
    ) -> Result<Registered, StoreError> {
        let (device, registration) = (device.clone(), registration.clone());
        self.writer.change(move |connection| write::register(connection, &device, &registration, now)).await
    }

    async fn device(&self, device: &DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        let device = device.clone();
        self.read(move |connection| read::device(connection, &device)).await
    }

    async fn devices(
        &self,
        query: &DeviceQuery,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceRecord>, StoreError> {
        let (query, after) = (query.clone(), after.cloned());
        self.read(move |connection| read::devices(connection, &query, after.as_ref(), limit)).await
    }

    async fn known(&self, after: Option<&DeviceId>, limit: usize) -> Result<Page<KnownDevice>, StoreError> {
        let after = after.cloned();
        self.read(move |connection| read::known(connection, after.as_ref(), limit)).await
    }

    async fn agree(
        &self,
        device: &DeviceId,
        account: &AccountId,
        by: Membership,
    ) -> Result<bool, StoreError> {
        let (device, account) = (device.clone(), account.clone());
        self.writer.change(move |connection| write::agree(connection, &device, &account, by)).await
    }

    async fn withdraw(&self, device: &DeviceId, account: &AccountId) -> Result<bool, StoreError> {
        let (device, account) = (device.clone(), account.clone());
        self.writer.change(move |connection| write::withdraw(connection, &device, &account)).await
    }

    async fn put_pin(&self, pin: &Pin, now: SystemTime) -> Result<(), StoreError> {
        let pin = pin.clone();
        self.writer.change(move |connection| write::put_pin(connection, &pin, now)).await
    }

    async fn pin_parameters(&self, device: &DeviceId) -> Result<Option<PinParameters>, StoreError> {
        let device = device.clone();
        self.read(move |connection| read::pin_parameters(connection, &device)).await
    }

    async fn enrol(
        &self,
        attempt: &PinAttempt,
        credential: &Credential,
        now: SystemTime,
    ) -> Result<Enrolment, StoreError> {
        let (attempt, credential) = (attempt.clone(), credential.clone());
        self.writer.change(move |connection| write::enrol(connection, &attempt, &credential, now)).await
    }

    async fn credential(&self, device: &DeviceId) -> Result<Option<Credential>, StoreError> {
        let device = device.clone();
        self.read(move |connection| read::credential(connection, &device)).await
    }

    async fn put_key(&self, key: &ServiceKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.writer.change(move |connection| write::put_key(connection, &key)).await
    }

    async fn keys(&self) -> Result<Vec<ServiceKey>, StoreError> {
        self.read(read::keys).await
    }

    async fn remove_key(&self, id: &KeyId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.writer.change(move |connection| write::remove_key(connection, &id)).await
    }

    async fn book(&self, book: &BookKey) -> Result<Option<BookRecord>, StoreError> {
        let book = book.clone();
        self.read(move |connection| books::book(connection, &book)).await
    }

    async fn book_content(&self, book: &BookKey, version: Version) -> Result<Option<Arc<str>>, StoreError> {
        let book = book.clone();
        self.read(move |connection| books::content(connection, &book, version)).await
    }

    async fn put_book(&self, put: &BookPut, now: SystemTime) -> Result<BookStored, StoreError> {
        let put = put.clone();
        self.writer.change(move |connection| books::put(connection, &put, now)).await
    }

    async fn hold_book(
        &self,
        book: &BookKey,
        device: &DeviceId,
        version: Version,
    ) -> Result<bool, StoreError> {
        let (book, device) = (book.clone(), device.clone());
        self.writer.change(move |connection| books::hold(connection, &book, &device, version)).await
    }

    async fn lacking_devices(
        &self,
        book: &BookKey,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceId>, StoreError> {
        let (book, after) = (book.clone(), after.cloned());
        self.read(move |connection| books::lacking_devices(connection, &book, after.as_ref(), limit)).await
    }

    async fn lacking_books(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, BookKey, Version)>, StoreError> {
        let devices = devices.to_vec();
        self.read(move |connection| books::lacking_books(connection, &devices)).await
    }
}

#[cfg(test)]
mod tests {
    async fn fresh() -> (std::sync::Arc<super::SqliteStore>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let data = super::DataFolder::open(&folder.path().join("data")).unwrap();
        (std::sync::Arc::new(super::SqliteStore::open(&data).await.unwrap()), folder)
    }

    relay_core::store_suite!(fresh());
}
