//! Where a device keeps its address books.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use relay_core::ids::BookId;

use super::record::Record;
use crate::{
    error::StateError,
    state::State,
    whole_file::{Form, Found, WholeFile, io_error, make_private_folder},
};

/// Where a device keeps its address books, if not in its state folder: a place for one record a book, of up to 32 MiB and
/// mostly far less. What is in a record is the SDK's own.
///
/// # Implementing
/// The device says that it has a book, or that it keeps a change, once [`save`](Self::save) is through: from then on it has to
/// survive a power cut. At any moment a record is the old one or the new one, whole. One device uses a place at a time;
/// calls come one after the other.
#[async_trait]
pub trait BookStore: fmt::Debug + Send + Sync + 'static {
    /// The books of which there are records.
    ///
    /// # Errors
    /// Any: the device does not start.
    async fn books(&self) -> io::Result<Vec<BookId>>;

    /// The record of `book`.
    ///
    /// # Errors
    /// Any: whoever asked is told so.
    async fn load(&self, book: &BookId) -> io::Result<Loaded>;

    /// Puts `record` in the place of that of `book`.
    ///
    /// # Errors
    /// Any: nothing is to have changed then.
    async fn save(&self, book: &BookId, record: Vec<u8>) -> io::Result<()>;
}

/// What a [`BookStore`] has of a book.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loaded {
    /// Nothing, and never had.
    Nothing,
    /// What was saved last.
    Record(Vec<u8>),
    /// What was saved before that; the last record is damaged.
    Before(Vec<u8>),
    /// Something, and it is damaged beyond use.
    Damaged,
}

/// In memory alone: gone with the process.
#[derive(Debug, Default)]
pub(super) struct InMemory(Mutex<HashMap<BookId, Vec<u8>>>);

impl InMemory {
    fn records(&self) -> MutexGuard<'_, HashMap<BookId, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl BookStore for InMemory {
    async fn books(&self) -> io::Result<Vec<BookId>> {
        Ok(self.records().keys().cloned().collect())
    }

    async fn load(&self, book: &BookId) -> io::Result<Loaded> {
        Ok(self.records().get(book).cloned().map_or(Loaded::Nothing, Loaded::Record))
    }

    async fn save(&self, book: &BookId, record: Vec<u8>) -> io::Result<()> {
        self.records().insert(book.clone(), record);
        Ok(())
    }
}

static FORM: Form = Form { magic: "relay-device-book", version: 1, max: 32 * 1024 * 1024 };
const FOLDER: &str = "books";
const SUFFIX: &str = ".book";

/// In the device's state folder: a [`WholeFile`] a book.
#[derive(Debug, Clone)]
pub(super) struct InFolder {
    state: State,
    folder: PathBuf,
    files: Arc<Mutex<HashMap<BookId, WholeFile>>>,
}

impl InFolder {
    /// `None` if the device has no state folder.
    pub(super) fn of(state: &State) -> Option<Self> {
        let folder = state.folder()?.join(FOLDER);
        Some(Self { state: state.clone(), folder, files: Arc::default() })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StateError> + Send + 'static,
    ) -> io::Result<T> {
        let store = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            // Once it is let go of, the folder may be another device's.
            let _hold = store.state.hold().ok_or_else(|| io::Error::other("the device was shut down"))?;
            work(&store).map_err(io::Error::other)
        });
        work.await.map_err(io::Error::other)?
    }

    fn open(&self, book: &BookId) -> Result<(WholeFile, Found<Vec<u8>>), StateError> {
        let read = |record: &[u8]| Record::decode(record).map(|_| record.to_vec());
        WholeFile::open(&FORM, &self.folder, &file_of(book), read)
    }

    fn files(&self) -> MutexGuard<'_, HashMap<BookId, WholeFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// T45: a name from the wire is no path. Its bytes are written as hexadecimal digits, in small letters, since it is the same
/// book in capitals.
fn file_of(book: &BookId) -> String {
    format!("{}{SUFFIX}", HEXLOWER.encode(book.as_str().to_ascii_lowercase().as_bytes()))
}

fn book_of(file: &Path) -> Option<BookId> {
    let name = file.file_name()?.to_str()?;
    let digits = name.strip_suffix(".old").unwrap_or(name).strip_suffix(SUFFIX)?;
    let name = HEXLOWER.decode(digits.as_bytes()).ok()?;
    BookId::new(std::str::from_utf8(&name).ok()?).ok()
}

#[async_trait]
impl BookStore for InFolder {
    async fn books(&self) -> io::Result<Vec<BookId>> {
        self.blocking(|store| {
            make_private_folder(&store.folder).map_err(io_error("make", &store.folder))?;
            let list = || -> io::Result<BTreeSet<BookId>> {
                let mut books = BTreeSet::new();
                for entry in fs::read_dir(&store.folder)? {
                    books.extend(book_of(&entry?.path()));
                }
                Ok(books)
            };
            list().map(|books| books.into_iter().collect()).map_err(io_error("read", &store.folder))
        })
        .await
    }

    async fn load(&self, book: &BookId) -> io::Result<Loaded> {
        let book = book.clone();
        self.blocking(move |store| {
            let (file, found) = store.open(&book)?;
            store.files().insert(book, file);
            Ok(match found {
                Found::Whole(record) => Loaded::Record(record),
                Found::Before(record) => Loaded::Before(record),
                Found::Torn => Loaded::Damaged,
                Found::Nothing => Loaded::Nothing,
            })
        })
        .await
    }

    async fn save(&self, book: &BookId, record: Vec<u8>) -> io::Result<()> {
        let book = book.clone();
        self.blocking(move |store| {
            let known = store.files().remove(&book);
            let mut file = match known {
                Some(file) => file,
                None => store.open(&book)?.0,
            };
            let written = file.write(&record);
            store.files().insert(book, file);
            written
        })
        .await
    }
}
