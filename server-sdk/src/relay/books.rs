//! Address books: changes are taken one after the other, and handed out to the devices that share the book (A5).
//!
//! ```text
//! PUT ──▶ change: merge, store ──▶ who lacks it now? ─┐
//! presence: a device came ───────▶ what does it lack? ─┴─▶ Distribution ─▶ deliver: a job of its app ─▶ <done version=''/>
//! ```
//!
//! What each device has is in the store alone, and looked at again right before each delivery: whatever was asked twice
//! or has changed meanwhile, a device gets the current version, once.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use relay_core::{
    Relay,
    app::MemorySource,
    book::{
        Book, BookKey, Conflict, Delivery, Distribution, DistributionConfig, Outcome, Parcel, Version, merge,
    },
    ids::DeviceId,
    relay::{JobCall, State, WatchEnd},
    request::Status,
    store::{BookPut, BookRecord, BookStored, MAX_PAGE, Store, StoreError, takes_books},
};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// Changes of books that share a lock wait for each other, no more.
const STRIPES: usize = 64;
/// How often a change is tried that another node was faster than.
const TRIES: usize = 8;
/// Questions to the store at once.
const LOOKS: usize = 2;
/// Devices that one of them is about at most: when many come at once, a question costs more than its answer.
const LOOKED_AT_ONCE: usize = 64;
/// How long the store is left alone that did not answer one.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The books of a relay. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Books {
    inner: Arc<Inner>,
}

struct Inner {
    relay: Relay,
    store: Arc<dyn Store>,
    changing: [tokio::sync::Mutex<()>; STRIPES],
    hasher: RandomState,
    desk: Mutex<Desk>,
    /// There is something new on the desk.
    news: Notify,
    looks: Arc<Semaphore>,
}

/// What is to be handed out.
struct Desk {
    machine: Distribution,
    /// Devices to ask the store about.
    devices: BTreeSet<DeviceId>,
    /// Books to ask the store about.
    books: BTreeSet<BookKey>,
    /// Books that are being delivered.
    parcels: BTreeMap<BookKey, Shared>,
}

/// What the deliveries of one book that are under way share, so that there is one document for all of them.
#[derive(Default)]
struct Shared {
    deliveries: usize,
    parcel: Option<(Version, Parcel)>,
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books").finish_non_exhaustive()
    }
}

/// What somebody wants a book to be.
#[derive(Debug)]
pub(crate) struct Edit {
    /// The version that it was made from; `None` if there was no such book.
    pub(crate) base: Option<Version>,
    pub(crate) content: Book,
    /// The device that reports it. What a device reports may be merged with what others did since; a service is told
    /// that it is late.
    pub(crate) by: Option<DeviceId>,
}

/// What came of an [`Edit`].
#[derive(Debug)]
pub(crate) struct Changed {
    /// The book as it now stands.
    pub(crate) record: BookRecord,
    /// Whether it is new.
    pub(crate) created: bool,
    /// Whether it is another than was wanted, since others have changed it, too.
    pub(crate) merged: bool,
}

/// Why a book is not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// It is not there.
    #[error("no such address book")]
    Unknown,
    /// It is there already.
    #[error("the address book is there already")]
    Exists,
    /// Another version stands, and the edit is not merged with it.
    #[error("the address book has changed since")]
    Stale,
    /// Another version stands, and the one that was edited is no longer remembered.
    #[error("the version that was edited is no longer known")]
    Forgotten,
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The account has too many.
    #[error("the account has as many address books as it can have")]
    Full,
    /// Others were faster, again and again.
    #[error("the address book changes too fast")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Books {
    pub(crate) fn new(relay: Relay, store: Arc<dyn Store>) -> Self {
        let desk = Desk {
            machine: Distribution::new(DistributionConfig::default()),
            devices: BTreeSet::new(),
            books: BTreeSet::new(),
            parcels: BTreeMap::new(),
        };
        let inner = Inner {
            relay,
            store,
            changing: [const { tokio::sync::Mutex::const_new(()) }; STRIPES],
            hasher: RandomState::new(),
            desk: Mutex::new(desk),
            news: Notify::new(),
            looks: Arc::new(Semaphore::new(LOOKS)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A book as it stands.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn read(&self, book: &BookKey) -> Result<Option<BookRecord>, StoreError> {
        self.inner.store.book(book).await
    }

    /// Makes a book what `edit` wants, or what it and those before it wanted together. On disk before it is told.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing is changed.
    ///
    /// # Cancel safety
    /// Dropped, it goes on: what is stored has to be handed out, too.
    pub(crate) async fn change(&self, book: &BookKey, edit: Edit) -> Result<Changed, ChangeError> {
        let (inner, book) = (self.inner.clone(), book.clone());
        let change = tokio::spawn(async move { inner.change(&book, Arc::new(edit)).await });
        change.await.unwrap_or_else(|_| Err(StoreError::unavailable("the relay is stopping").into()))
    }

    /// Looks what `device` lacks, if it is online: it registered, or counts for an account, just now.
    pub(crate) fn look(&self, device: &DeviceId) {
        if self.inner.is_online(device) {
            self.inner.desk().devices.insert(device.clone());
            self.inner.news.notify_one();
        }
    }

    /// Hands out what devices lack, until the relay stops.
    pub(crate) async fn run(self) {
        let mut tasks = JoinSet::new();
        let mut watch = self.inner.relay.watch_presence();
        tasks.spawn(self.inner.clone().look_at_all());
        loop {
            self.inner.start(&mut tasks);
            let wake_at = self.inner.desk().machine.wake_at();
            tokio::select! {
                change = watch.next() => match change {
                    Ok(change) => self.inner.presence(&change.device, change.state),
                    Err(WatchEnd::Stopping) => return,
                    // Whoever came or went meanwhile is found by looking at all.
                    Err(_) => {
                        watch = self.inner.relay.watch_presence();
                        tasks.spawn(self.inner.clone().look_at_all());
                    }
                },
                () = self.inner.news.notified() => {}
                Some(_) = tasks.join_next() => {}
                () = async { sleep_until(wake_at.map_or_else(Instant::now, Instant::from_std)).await },
                    if wake_at.is_some() =>
                {
                    let now = Instant::now().into_std();
                    self.inner.desk().machine.timeout(now);
                }
            }
        }
    }
}

impl Inner {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing on it is left half-done by a panic.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_online(&self, device: &DeviceId) -> bool {
        self.relay.presence(device).is_some_and(|presence| presence.state == State::Online)
    }

    async fn change(&self, book: &BookKey, edit: Arc<Edit>) -> Result<Changed, ChangeError> {
        let stripe = self.hasher.hash_one(book) as usize % STRIPES;
        let _alone = self.changing[stripe].lock().await;
        for _ in 0..TRIES {
            if let Some(changed) = self.try_change(book, &edit).await? {
                return Ok(changed);
            }
        }
        Err(ChangeError::Busy)
    }

    /// `None` if another node was faster.
    async fn try_change(&self, book: &BookKey, edit: &Arc<Edit>) -> Result<Option<Changed>, ChangeError> {
        let current = self.store.book(book).await?;
        let (content, merged) = match (&current, edit.base) {
            (None, Some(_)) => return Err(ChangeError::Unknown),
            (Some(_), None) => return Err(ChangeError::Exists),
            (Some(current), Some(base)) if base != current.version => {
                if edit.by.is_none() {
                    return Err(ChangeError::Stale);
                }
                let base = self.store.book_content(book, base).await?.ok_or(ChangeError::Forgotten)?;
                merge_contents(base, current.content.clone(), edit.clone()).await?
            }
            _ => {
                let edit = edit.clone();
                (blocking(move || Ok(edit.content.content().into())).await?, false)
            }
        };
        let created = current.is_none();
        let holder = edit.by.as_ref().filter(|_| !merged);
        if let Some(record) = current.as_ref().filter(|current| current.content == content) {
            if let Some(device) = holder {
                self.store.hold_book(book, device, record.version).await?;
                self.desk().machine.has(device, book, record.version);
            }
            return Ok(Some(Changed { record: record.clone(), created, merged }));
        }
        let mut put = BookPut::new(book.clone(), current.as_ref().map(|current| current.version), content);
        if let Some(device) = holder {
            put = put.held_by(device.clone());
        }
        let stored = self.store.put_book(&put, SystemTime::now()).await;
        // After an error, too: nobody knows then whether it is stored, and looking does no harm.
        self.desk().books.insert(book.clone());
        self.news.notify_one();
        let version = match stored? {
            BookStored::Stored(version) => version,
            BookStored::Full => return Err(ChangeError::Full),
            _ => return Ok(None),
        };
        if let Some(device) = holder {
            self.desk().machine.has(device, book, version);
        }
        tracing::info!(
            account = %book.account, book = %book.book, %version, merged,
            device = edit.by.as_ref().map(tracing::field::display), "address book changed"
        );
        let key = current.map_or_else(|| book.clone(), |current| current.key);
        Ok(Some(Changed { record: BookRecord::new(key, version, put.content), created, merged }))
    }

    fn presence(&self, device: &DeviceId, state: State) {
        let mut desk = self.desk();
        if state == State::Online {
            if desk.machine.knows(device) {
                desk.machine.online(device);
            }
            desk.devices.insert(device.clone());
        } else {
            desk.machine.offline(device);
        }
    }

    /// Looks at every device that is online: for a beginning, and after presence was not heard for a while.
    async fn look_at_all(self: Arc<Self>) {
        let known = self.desk().machine.devices();
        for device in known.iter().filter(|device| !self.is_online(device)) {
            self.desk().machine.offline(device);
        }
        let mut after = None;
        loop {
            match self.store.known(after.as_ref(), MAX_PAGE).await {
                Ok(page) => {
                    let ids = page.items.into_iter().map(|known| known.id);
                    let online: Vec<DeviceId> = ids.filter(|device| self.is_online(device)).collect();
                    self.desk().devices.extend(online);
                    self.news.notify_one();
                    after = page.next;
                    if after.is_none() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "who lacks an address book is asked again");
                    sleep(LOOK_AGAIN).await;
                }
            }
        }
    }

    /// Starts what there is room for.
    fn start(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let mut desk = self.desk();
        while !desk.books.is_empty() || !desk.devices.is_empty() {
            let Ok(permit) = self.looks.clone().try_acquire_owned() else { break };
            let inner = self.clone();
            if let Some(book) = desk.books.pop_first() {
                tasks.spawn(async move {
                    inner.look_at_book(&book).await;
                    drop(permit);
                });
            } else {
                let devices: Vec<DeviceId> =
                    std::iter::from_fn(|| desk.devices.pop_first()).take(LOOKED_AT_ONCE).collect();
                tasks.spawn(async move {
                    inner.look_at_devices(devices).await;
                    drop(permit);
                });
            }
        }
        while let Some(delivery) = desk.machine.next_delivery() {
            let inner = self.clone();
            desk.parcels.entry(delivery.book.clone()).or_default().deliveries += 1;
            let mut under_way = UnderWay { inner, delivery, outcome: Outcome::Failed };
            tasks.spawn(async move {
                let outcome = under_way.inner.deliver(&under_way.delivery).await;
                under_way.ended(outcome);
            });
        }
    }

    async fn look_at_book(&self, book: &BookKey) {
        let found: Result<(), StoreError> = async {
            let Some(record) = self.store.book(book).await? else { return Ok(()) };
            let mut after = None;
            loop {
                let page = self.store.lacking_devices(book, after.as_ref(), MAX_PAGE).await?;
                for device in &page.items {
                    self.lacks(device, book, record.version);
                }
                after = page.next;
                if after.is_none() {
                    return Ok(());
                }
            }
        }
        .await;
        if let Err(error) = found {
            tracing::warn!(%error, account = %book.account, book = %book.book, "who lacks this address book is asked again");
            sleep(LOOK_AGAIN).await;
            self.desk().books.insert(book.clone());
        }
    }

    async fn look_at_devices(&self, devices: Vec<DeviceId>) {
        match self.store.lacking_books(&devices).await {
            Ok(lacking) => {
                for (device, book, version) in lacking {
                    self.lacks(&device, &book, version);
                }
            }
            Err(error) => {
                tracing::warn!(%error, devices = devices.len(), "which address books devices lack is asked again");
                sleep(LOOK_AGAIN).await;
                self.desk().devices.extend(devices);
            }
        }
    }

    fn lacks(&self, device: &DeviceId, book: &BookKey, version: Version) {
        let mut desk = self.desk();
        // Looked at under the lock: a change of presence after this moment comes to the machine after it.
        if !self.is_online(device) {
            return;
        }
        if !desk.machine.knows(device) {
            desk.machine.online(device);
        }
        desk.machine.lacks(device, book, version);
        drop(desk);
        self.news.notify_one();
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let Delivery { device, book, .. } = delivery;
        match self.try_deliver(device, book).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(%error, %device, account = %book.account, book = %book.book, "address book not delivered");
                Outcome::Failed
            }
        }
    }

    async fn try_deliver(&self, device: &DeviceId, book: &BookKey) -> Result<Outcome, StoreError> {
        let Some((version, parcel)) = self.parcel_for(device, book).await? else {
            return Ok(Outcome::Refused);
        };
        let record = self.store.device(device).await?;
        let app = record
            .and_then(|record| record.apps.into_iter().find(|app| takes_books(std::slice::from_ref(app))));
        let Some(app) = app else { return Ok(Outcome::Refused) };
        let mut call = JobCall::new(device.clone(), app, Arc::new(MemorySource::new(parcel.data)));
        call.header = Some(parcel.header);
        let answer = match self.relay.job(call) {
            Ok(mut job) => job.finished().await,
            Err(error) => Err(error.error),
        };
        match answer {
            Ok(response) if response.status == Status::Ok => {
                let said = response.body.as_ref().and_then(|body| std::str::from_utf8(&body.bytes).ok());
                if said != Some(&*version.to_string()) {
                    tracing::warn!(%device, book = %book.book, %version, "the device does not say that it has this version");
                    return Ok(Outcome::Failed);
                }
                let counts = self.store.hold_book(book, device, version).await?;
                tracing::debug!(%device, book = %book.book, %version, "address book delivered");
                Ok(if counts { Outcome::Delivered(version) } else { Outcome::Refused })
            }
            Ok(response) if response.status.as_str() == "unknown-app" => Ok(Outcome::Refused),
            Ok(response) => {
                tracing::debug!(%device, book = %book.book, %version, status = response.status.as_str(), "the device did not take an address book");
                Ok(Outcome::Failed)
            }
            Err(error) => {
                tracing::debug!(%device, book = %book.book, %version, %error, "address book not delivered");
                Ok(Outcome::Failed)
            }
        }
    }

    /// The version of `book` that `device` lacks, ready to go; `None` if it has it meanwhile, or does not share the book
    /// any more.
    async fn parcel_for(
        &self,
        device: &DeviceId,
        book: &BookKey,
    ) -> Result<Option<(Version, Parcel)>, StoreError> {
        for _ in 0..TRIES {
            let lacking = self.store.lacking_books(std::slice::from_ref(device)).await?;
            let Some((.., version)) = lacking.into_iter().find(|(_, lacking, _)| lacking == book) else {
                return Ok(None);
            };
            let shared = self.desk().parcels.get(book).and_then(|shared| shared.parcel.clone());
            if let Some(parcel) = shared.filter(|(made, _)| *made == version) {
                return Ok(Some(parcel));
            }
            let Some(record) = self.store.book(book).await? else { return Ok(None) };
            let parcel = Parcel::new(&record.key.book, record.version, &record.content);
            if let Some(shared) = self.desk().parcels.get_mut(book) {
                shared.parcel = Some((record.version, parcel));
            }
            // If it is a newer one by now, this may be the device that made it: looked at again.
        }
        Err(StoreError::unavailable("the address book changes too fast"))
    }
}

/// A delivery that the machine waits for: it hears of its end, however that comes.
struct UnderWay {
    inner: Arc<Inner>,
    delivery: Delivery,
    outcome: Outcome,
}

impl UnderWay {
    fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut desk = self.inner.desk();
        desk.machine.finished(Instant::now().into_std(), &self.delivery.device, self.outcome);
        if let Entry::Occupied(mut shared) = desk.parcels.entry(self.delivery.book.clone()) {
            shared.get_mut().deliveries -= 1;
            if shared.get().deliveries == 0 {
                shared.remove();
            }
        }
    }
}

/// Puts `edit` of `base` onto `current`. Large books take milliseconds, so not on a thread that serves others.
async fn merge_contents(
    base: Arc<str>,
    current: Arc<str>,
    edit: Arc<Edit>,
) -> Result<(Arc<str>, bool), ChangeError> {
    blocking(move || {
        let stored = |content: &str| {
            Book::from_content(content)
                .map_err(|error| StoreError::damaged(format!("an address book: {error}")))
        };
        let merged = merge(&stored(&base)?, &stored(&current)?, &edit.content)?;
        Ok((merged.book.content().into(), merged.differs))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ChangeError> + Send + 'static,
) -> Result<T, ChangeError> {
    let stopping = |_| StoreError::unavailable("the relay is stopping");
    tokio::task::spawn_blocking(work).await.map_err(stopping)?
}

#[cfg(test)]
mod tests;
