//! Address books: a device shares those of its account with the account's other devices.
//!
//! ```text
//! relay ── a new version ──▶ AddressBooks ──▶ kept, then answered ──▶ BookEvent::Received
//! relay ◀── a change ─────── AddressBooks ◀── report(before, edited) ◀── somebody at the panel
//! ```
//!
//! ```no_run
//! use device_sdk::{Device, book::{AddressBooks, BookEvent, BookId, Reported}};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let books = AddressBooks::new();
//! let device = Device::builder("https://relay.example", "printer-1")
//!     .pin("12345678")
//!     .state_folder("/var/lib/printer-1")
//!     .address_books(&books)
//!     .start()
//!     .await?;
//!
//! // Somebody adds an address at the panel.
//! let staff = BookId::new("staff")?;
//! match books.edit(&staff, |book| book.set("email", "Ann", "ann@acme.example").map(drop)).await? {
//!     Reported::Merged { .. } => println!("others have changed it, too; both changes are in it"),
//!     Reported::Kept => println!("will be reported at the next connection"),
//!     _ => println!("all devices get it"),
//! }
//!
//! // And others add some elsewhere.
//! let mut events = books.events();
//! while let Some(event) = events.next().await {
//!     if let BookEvent::Received { book, .. } = event
//!         && let Some(copy) = books.read(&book).await?
//!     {
//!         println!("{book} has {} entries now", copy.content.len());
//!     }
//! }
//! # drop(device);
//! # Ok(())
//! # }
//! ```
//!
//! # What is lost, and what is not
//!
//! A version that came is answered once it is kept, and a change that was reported is kept before it is sent. What was
//! changed while the device is offline, or was not answered, is reported at the next connection, also after a restart. A
//! version that comes meanwhile is kept beside it; the relay puts both together, or says which entries both sides have
//! changed. A change that it does not take is in the error, or, if nobody waits for that any more, is set aside
//! ([`AddressBooks::rejected`]).
//!
//! # Several accounts
//!
//! A device that counts for several accounts has to say to whose books its changes go ([`AddressBooks::account`]). A
//! book comes with its name and without its account, so accounts that share a device must not have books of the same
//! name.

mod error;
mod keep;
mod record;
mod work;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use relay_core::{book::APP, ids::AccountId};
pub use relay_core::{
    book::{Book, BookDocument, InvalidBook, MAX_ENTRIES, MAX_KINDS, MAX_NAME, MAX_SIZE, MAX_VALUE, Version},
    ids::BookId,
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

pub(crate) use self::work::Parts;
pub use self::{
    error::{BookConflict, BookError},
    keep::{BookStore, Loaded},
};
use self::{
    keep::{InFolder, InMemory},
    work::Work,
};
use crate::{
    app::{App, Job},
    error::{StartError, StateError},
    handler::HandlerError,
    state::State,
};

/// The most address books that a device keeps.
pub const MAX_KEPT: usize = 256;
/// How many events a reader can be behind.
const BACKLOG: usize = 64;

/// A device's address books. Cheap to clone; all clones are one. Given to
/// [`Builder::address_books`](crate::Builder::address_books). See the [module](self).
#[derive(Clone)]
pub struct AddressBooks {
    inner: Arc<Inner>,
}

struct Inner {
    account: Option<AccountId>,
    place: Option<Arc<dyn BookStore>>,
    events: broadcast::Sender<BookEvent>,
    work: OnceLock<Arc<Work>>,
}

impl fmt::Debug for AddressBooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressBooks").field("account", &self.inner.account).finish_non_exhaustive()
    }
}

impl Default for AddressBooks {
    fn default() -> Self {
        Self::new()
    }
}

/// An address book as it was on this device at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BookCopy {
    /// Which book.
    pub book: BookId,
    /// The last version of the relay's that is known here; `None` if there is none.
    pub version: Option<Version>,
    /// What was in it, with what was changed here.
    pub content: Book,
    /// Whether the relay has all of that; false while it does not.
    pub reported: bool,
}

impl BookCopy {
    /// A book that is not there yet.
    pub const fn empty(book: BookId) -> Self {
        Self { book, version: None, content: Book::new(), reported: true }
    }
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reported {
    /// It changed nothing, and was not reported.
    Unchanged,
    /// The relay has it, and hands it out.
    Accepted {
        /// As this version.
        version: Version,
    },
    /// The relay has it together with what others have changed; so has this device.
    Merged {
        /// As this version.
        version: Version,
    },
    /// It is kept, and reported at the next connection, or when the relay takes it. A [`BookEvent`] says when.
    Kept,
}

/// Something that happened to an address book.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BookEvent {
    /// A new version came from the relay, and is kept.
    Received {
        /// Of this book.
        book: BookId,
        /// Its name.
        version: Version,
    },
    /// The relay has what was changed here.
    Reported {
        /// In this book.
        book: BookId,
        /// As this version.
        version: Version,
        /// Whether it is another than was reported, as others have changed it, too.
        merged: bool,
    },
    /// What was changed here is not taken, and nobody waited to hear it: it is set aside, see
    /// [`AddressBooks::rejected`].
    Rejected {
        /// In this book.
        book: BookId,
        /// Why.
        words: Box<str>,
    },
    /// What was kept of a book was damaged. The relay is asked for it at the next connection.
    Damaged {
        /// Of this one.
        book: BookId,
        /// Whether what was kept before that was whole and is used.
        recovered: bool,
    },
    /// The reader was too slow: this many events are gone for it. What there is, [`AddressBooks::list`] says.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// A reader of [`BookEvent`]s. Holds the latest 64; a slower reader sees [`BookEvent::Lagged`], never silence.
#[derive(Debug)]
pub struct BookEvents(broadcast::Receiver<BookEvent>);

impl BookEvents {
    /// The next event; `None` once all [`AddressBooks`] are gone.
    ///
    /// # Cancel safety
    /// Dropped before it resolved, no event is lost.
    pub async fn next(&mut self) -> Option<BookEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(BookEvent::Lagged { missed }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Changes that the relay did not take, and nobody was there to hear it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rejected {
    /// Why the last of them was not taken.
    pub why: Box<str>,
    /// The changes, by kind and name.
    pub changes: Vec<Change>,
}

/// A change of one entry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Change {
    /// The entry's kind.
    pub kind: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// What it was to be; `None`: it was to be removed.
    pub value: Option<Box<str>>,
}

impl fmt::Debug for Change {
    /// Whose addresses they are is nobody's business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Change({}/{})", self.kind, self.name)
    }
}

impl AddressBooks {
    /// Books that are kept in the device's [state folder](crate::Builder::state_folder), or, if it has none, in memory
    /// alone.
    pub fn new() -> Self {
        Self::with(None, None, broadcast::channel(BACKLOG).0)
    }

    /// Books that are kept in `place`.
    pub fn kept_in(place: Arc<dyn BookStore>) -> Self {
        Self::with(None, Some(place), broadcast::channel(BACKLOG).0)
    }

    /// Whose books a change is for, if the device counts for several accounts. To be said before the device starts.
    #[must_use]
    pub fn account(self, account: AccountId) -> Self {
        Self::with(Some(account), self.inner.place.clone(), self.inner.events.clone())
    }

    fn with(
        account: Option<AccountId>,
        place: Option<Arc<dyn BookStore>>,
        events: broadcast::Sender<BookEvent>,
    ) -> Self {
        Self { inner: Arc::new(Inner { account, place, events, work: OnceLock::new() }) }
    }

    /// What happens to the books, from now on.
    pub fn events(&self) -> BookEvents {
        BookEvents(self.inner.events.subscribe())
    }

    /// The books that are here.
    ///
    /// # Errors
    /// [`BookError::NotStarted`] or [`BookError::Stopped`].
    ///
    /// # Cancel safety
    /// Dropped, nothing changes.
    pub async fn list(&self) -> Result<Vec<BookId>, BookError> {
        Ok(self.work()?.list().await)
    }

    /// A book as it is here, with what was changed here; `None` if there is no such book.
    ///
    /// # Errors
    /// [`BookError::Damaged`] if what was kept of it is, and the relay was not asked for it yet; or it could not be read.
    ///
    /// # Cancel safety
    /// Dropped, nothing changes.
    pub async fn read(&self, book: &BookId) -> Result<Option<BookCopy>, BookError> {
        self.work()?.read(book).await
    }

    /// Reports a change: that the book of which `before` is a [copy](Self::read) is to be `edited`. What came into the
    /// book since that copy was made stays in it. A book that is not there yet begins as [`BookCopy::empty`].
    ///
    /// Resolves when the relay has answered, if the device is online, else once the change is kept.
    ///
    /// # Errors
    /// [`BookError`]: the change is not kept here any more. [`BookError::Conflict`] has it, and the book as it stands.
    ///
    /// # Cancel safety
    /// Dropped, the change is kept and reported all the same, unless it cannot be; what becomes of it is told by
    /// [`events`](Self::events).
    pub async fn report(&self, before: &BookCopy, edited: Book) -> Result<Reported, BookError> {
        self.work()?.clone().report(before.clone(), edited).await
    }

    /// Changes a book and reports it: has `edit` change what is here now, or an empty book.
    ///
    /// # Errors
    /// What `edit` says, as [`BookError::Invalid`]; else as [`report`](Self::report).
    ///
    /// # Cancel safety
    /// As [`report`](Self::report).
    pub async fn edit(
        &self,
        book: &BookId,
        edit: impl FnOnce(&mut Book) -> Result<(), InvalidBook>,
    ) -> Result<Reported, BookError> {
        let before = self.read(book).await?.unwrap_or_else(|| BookCopy::empty(book.clone()));
        let mut edited = before.content.clone();
        edit(&mut edited)?;
        self.report(&before, edited).await
    }

    /// What was changed here, was not taken, and nobody was there to hear it. Stays, over restarts, until it is
    /// [discarded](Self::discard_rejected); whoever wants it all the same [edits](Self::edit) the book anew.
    ///
    /// # Errors
    /// It could not be read.
    ///
    /// # Cancel safety
    /// Dropped, nothing changes.
    pub async fn rejected(&self, book: &BookId) -> Result<Option<Rejected>, BookError> {
        self.work()?.rejected(book).await
    }

    /// Forgets what [`rejected`](Self::rejected) has.
    ///
    /// # Errors
    /// It could not be written, and is still there.
    ///
    /// # Cancel safety
    /// Dropped half-way, it may be done.
    pub async fn discard_rejected(&self, book: &BookId) -> Result<(), BookError> {
        self.work()?.clone().discard_rejected(book.clone()).await
    }

    fn work(&self) -> Result<&Arc<Work>, BookError> {
        let work = self.inner.work.get().ok_or(BookError::NotStarted)?;
        if work.is_stopped() { Err(BookError::Stopped) } else { Ok(work) }
    }

    /// The app that takes them.
    pub(crate) fn app(&self) -> App {
        let books = self.clone();
        App::new(APP, move |job: Job| {
            let work = books.inner.work.get().cloned();
            async move {
                let work = work.ok_or_else(|| HandlerError::other("failed", "the device has not started"))?;
                work.take(job).await
            }
        })
    }

    /// Opens what is kept, for a device with this state.
    pub(crate) async fn open(&self, state: &State, parts: Parts) -> Result<Arc<Work>, StartError> {
        let place = match &self.inner.place {
            Some(place) => place.clone(),
            None => InFolder::of(state).map_or_else(
                || Arc::new(InMemory::default()) as Arc<dyn BookStore>,
                |folder| Arc::new(folder),
            ),
        };
        let work = Work::open(place, self.inner.account.clone(), self.inner.events.clone(), parts);
        let work = Arc::new(work.await.map_err(unusable)?);
        let taken =
            StartError::App { name: APP.into(), why: "these address books are another device's".into() };
        self.inner.work.set(work.clone()).map_err(|_| taken)?;
        Ok(work)
    }
}

/// The state folder says itself what is wrong with it.
fn unusable(error: std::io::Error) -> StartError {
    let error = error.downcast::<StateError>();
    StartError::State(error.unwrap_or_else(|source| StateError::Io {
        what: "read the address books",
        path: "the vendor's store".into(),
        source,
    }))
}
