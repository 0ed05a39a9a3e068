//! What is done with a device's address books: taken from the relay, reported to it, kept.

mod callers;
mod reporting;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    sync::Arc,
};

use relay_core::{
    book::{Book, BookDocument, MAX_SIZE, Parcel},
    ids::{AccountId, BookId},
};
use tokio::sync::{Mutex, Notify, broadcast, oneshot, watch};

use self::callers::{Callers, Told};
use super::{
    BookConflict, BookCopy, BookError, BookEvent, MAX_KEPT, Rejected, Reported,
    keep::{BookStore, Loaded},
    record::{Delivered, Record, Rejection, Slot},
};
use crate::{app::Job, event::SessionState, handler::HandlerError, reach::Reach};

/// What books need of the device.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) session: watch::Receiver<SessionState>,
    pub(crate) reach: watch::Receiver<Reach>,
    pub(crate) seed: u64,
}

/// The books of a device that was started.
pub(crate) struct Work {
    store: Arc<dyn BookStore>,
    account: Option<AccountId>,
    events: broadcast::Sender<BookEvent>,
    parts: Parts,
    /// Held from reading a record to writing it.
    desk: Mutex<Desk>,
    /// There is something to be reported, or asked for.
    news: Notify,
}

/// What there is to do. It may have what is done already: the records say how things are.
#[derive(Debug, Default)]
struct Desk {
    books: HashSet<BookId>,
    /// Books with an edit that waits, in the order in which those were made.
    waiting: BTreeMap<u64, BookId>,
    next_number: u64,
    /// Books that the relay is to be asked for.
    in_doubt: BTreeSet<BookId>,
    callers: HashMap<BookId, Callers>,
}

impl Work {
    /// Looks through what is kept.
    pub(super) async fn open(
        store: Arc<dyn BookStore>,
        account: Option<AccountId>,
        events: broadcast::Sender<BookEvent>,
        parts: Parts,
    ) -> io::Result<Self> {
        let work =
            Self { store, account, events, parts, desk: Mutex::new(Desk::default()), news: Notify::new() };
        let mut desk = Desk::default();
        for book in work.store.books().await? {
            let record = match work.load(&book).await {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(BookError::Store(error)) => return Err(error),
                Err(error) => return Err(io::Error::other(error)),
            };
            desk.next_number = desk.next_number.max(record.waits().map_or(0, |number| number + 1));
            desk.note(&record);
        }
        *work.desk.lock().await = desk;
        Ok(work)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state() == SessionState::Stopped
    }

    fn state(&self) -> SessionState {
        *self.parts.session.borrow()
    }

    fn tell(&self, event: BookEvent) {
        tracing::debug!(?event, "address book");
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    /// The record of `book`; what is damaged in it is said, and made whole as far as it can be.
    async fn load(&self, book: &BookId) -> Result<Option<Record>, BookError> {
        let (bytes, whole) = match self.store.load(book).await? {
            Loaded::Nothing => return Ok(None),
            Loaded::Record(bytes) => (Some(bytes), true),
            Loaded::Before(bytes) => (Some(bytes), false),
            Loaded::Damaged => (None, false),
        };
        let expected = book.clone();
        let record = blocking(move || {
            Ok(bytes.and_then(|bytes| Record::decode(&bytes)).filter(|record| record.id == expected))
        })
        .await?;
        match record {
            Some(record) if whole => Ok(Some(record)),
            record => {
                let recovered = record.is_some();
                let mut record = record.unwrap_or_else(|| Record::new(book.clone()));
                record.in_doubt = true;
                tracing::warn!(%book, recovered, "what was kept of an address book is damaged");
                self.save(&record).await?;
                self.tell(BookEvent::Damaged { book: book.clone(), recovered });
                Ok(Some(record))
            }
        }
    }

    async fn save(&self, record: &Record) -> Result<(), BookError> {
        let written = record.clone();
        let bytes = blocking(move || written.encode().map_err(io::Error::other)).await?;
        Ok(self.store.save(&record.id, bytes).await?)
    }

    pub(super) async fn list(&self) -> Vec<BookId> {
        let mut books: Vec<_> = self.desk.lock().await.books.iter().cloned().collect();
        books.sort();
        books
    }

    pub(super) async fn read(&self, book: &BookId) -> Result<Option<BookCopy>, BookError> {
        let mut desk = self.desk.lock().await;
        let Some(record) = self.load(book).await? else { return Ok(None) };
        desk.note(&record);
        drop(desk);
        if record.in_doubt {
            self.news.notify_one();
        }
        if record.is_lost() { Err(BookError::Damaged) } else { Ok(record.copy()) }
    }

    pub(super) async fn rejected(&self, book: &BookId) -> Result<Option<Rejected>, BookError> {
        let _alone = self.desk.lock().await;
        Ok(self.load(book).await?.and_then(|record| record.rejected))
    }

    pub(super) async fn discard_rejected(self: Arc<Self>, book: BookId) -> Result<(), BookError> {
        let discard = async move {
            let _alone = self.desk.lock().await;
            let Some(mut record) = self.load(&book).await? else { return Ok(()) };
            match record.rejected.take() {
                Some(_) => self.save(&record).await,
                None => Ok(()),
            }
        };
        whole(discard).await
    }

    /// A version comes from the relay.
    pub(super) async fn take(self: Arc<Self>, mut job: Job) -> Result<String, HandlerError> {
        let header = job.header().await?;
        let mut data = Vec::new();
        while let Some(bytes) = job.next().await? {
            if data.len() + bytes.len() > MAX_SIZE {
                let words = format!("an address book has {MAX_SIZE} bytes at most");
                return Err(HandlerError::other("too-large", words));
            }
            data.extend_from_slice(&bytes);
        }
        let opened = blocking(move || Ok(Parcel::open(&header, &data))).await.map_err(not_kept)?;
        let opened = opened.map_err(|error| HandlerError::other("bad-book", error))?;
        let BookDocument { book: Some(book), version: Some(version), content, .. } = opened else {
            return Err(HandlerError::other(
                "bad-book",
                "an address book comes with its name and its version",
            ));
        };
        let taken = whole(async move {
            let mut desk = self.desk.lock().await;
            let mut record = match self.load(&book).await? {
                Some(record) => record,
                None if desk.books.len() >= MAX_KEPT => return Err(BookError::Full),
                None => Record::new(book.clone()),
            };
            let before = record.clone();
            let delivered = record.deliver(version, Arc::new(content));
            if record != before {
                self.save(&record).await?;
            }
            desk.note(&record);
            if delivered == Delivered::New {
                self.tell(BookEvent::Received { book, version });
            }
            Ok(())
        });
        taken.await.map_err(not_kept)?;
        // One that is older than what is here was overtaken; it is answered all the same, or it would come again.
        Ok(version.to_string())
    }

    /// Somebody here made `edited` from `before`.
    pub(super) async fn report(
        self: Arc<Self>,
        before: BookCopy,
        edited: Book,
    ) -> Result<Reported, BookError> {
        edited.check_size()?;
        let book = before.book.clone();
        let answer = match whole(self.clone().keep(before, edited)).await? {
            Kept::Done(reported) => return Ok(reported),
            Kept::Asked(answer) => answer,
        };
        // It is on disk, whatever becomes of those who know of it.
        let Ok(Told { answer, rejection }) = answer.await else { return Ok(Reported::Kept) };
        if let Some(rejection) = rejection {
            // Not waited for: it is only now certain that the caller hears of it.
            tokio::spawn(async move { self.heard(&book, &rejection).await });
        }
        answer
    }

    /// What was set aside is in its caller's hands.
    async fn heard(&self, book: &BookId, rejection: &Rejection) {
        let heard = async {
            let _alone = self.desk.lock().await;
            let Some(mut record) = self.load(book).await? else { return Ok(()) };
            record.heard(rejection);
            self.save(&record).await
        };
        if let Err(error) = heard.await {
            tracing::warn!(%book, %error, "a change that was not taken stays set aside");
        }
    }

    async fn keep(self: Arc<Self>, before: BookCopy, edited: Book) -> Result<Kept, BookError> {
        let mut desk = self.desk.lock().await;
        let state = self.state();
        if state == SessionState::Stopped {
            return Err(BookError::Stopped);
        }
        let BookCopy { book, content, .. } = before;
        let mut record = match self.load(&book).await? {
            Some(record) => record,
            None if desk.books.len() >= MAX_KEPT => return Err(BookError::Full),
            None => Record::new(book.clone()),
        };
        if record.is_lost() {
            desk.note(&record);
            self.news.notify_one();
            return Err(BookError::Damaged);
        }
        let number = desk.next_number;
        let slot = match record.edit(&content, &edited, number) {
            Ok(slot) => slot,
            Err(why) => {
                let stands = record.copy().unwrap_or_else(|| BookCopy::empty(book));
                return Err(BookError::Conflict(Box::new(BookConflict { why, stands, edited })));
            }
        };
        if slot == Slot::Nowhere {
            return Ok(Kept::Done(Reported::Unchanged));
        }
        self.save(&record).await?;
        desk.next_number += 1;
        desk.note(&record);
        self.news.notify_one();
        if state != SessionState::Online {
            return Ok(Kept::Done(Reported::Kept));
        }
        let (caller, answer) = oneshot::channel();
        let callers = desk.callers.entry(book).or_default();
        match slot {
            Slot::Next => callers.next.push(caller),
            _ => callers.now.push(caller),
        }
        Ok(Kept::Asked(answer))
    }
}

/// What became of a change that was reported here.
enum Kept {
    Done(Reported),
    Asked(oneshot::Receiver<Told>),
}

impl Desk {
    /// Notes what there is to do about a book.
    fn note(&mut self, record: &Record) {
        self.books.insert(record.id.clone());
        self.waiting.retain(|_, book| *book != record.id);
        if let Some(number) = record.waits() {
            self.waiting.insert(number, record.id.clone());
        }
        if record.in_doubt {
            self.in_doubt.insert(record.id.clone());
        } else {
            self.in_doubt.remove(&record.id);
        }
    }

    /// There is no record of `book` any more.
    fn forget(&mut self, book: &BookId) {
        self.books.remove(book);
        self.waiting.retain(|_, waiting| waiting != book);
        self.in_doubt.remove(book);
    }
}

/// What the relay is told that has offered a version.
fn not_kept(error: BookError) -> HandlerError {
    match &error {
        BookError::Full => HandlerError::other("full", &error),
        BookError::Store(source) => HandlerError::other("failed", format!("{error}: {source}")),
        _ => HandlerError::other("failed", &error),
    }
}

/// Runs what must not stop half-way when nobody waits for it any more.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, BookError>> + Send + 'static,
) -> Result<T, BookError> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}

/// Large books take milliseconds, so not on a thread that does other things.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BookError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??)
}
