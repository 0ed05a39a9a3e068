//! What is done with a device's address books: taken from the relay, reported to it, kept.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use relay_core::{
    book::{Book, BookDocument, MAX_SIZE, Parcel},
    ids::{AccountId, BookId},
};
use tokio::{
    sync::{Mutex, Notify, broadcast, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    BookConflict, BookCopy, BookError, BookEvent, MAX_KEPT, Rejected, Reported,
    keep::{BookStore, Loaded},
    record::{Answered, Delivered, Record, Rejection, Sending, Settled, Slot, Stand, Why},
};
use crate::{
    app::Job,
    backoff::{Backoff, Jitter},
    event::SessionState,
    handler::HandlerError,
    http::{BookReport, BookVerdict, HttpError, HttpErrorKind},
    reach::Reach,
};

/// The window of the first retry of a report while the device is online; it doubles up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// How often a report is made anew at once because the relay knows other versions than the device.
const TRIES: usize = 8;

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

/// Who waits to hear what becomes of a book's edits: of the one that is to be reported, and of the next.
#[derive(Debug, Default)]
struct Callers {
    now: Vec<Caller>,
    next: Vec<Caller>,
}

type Caller = oneshot::Sender<Told>;

/// What a caller hears.
#[derive(Debug)]
struct Told {
    answer: Result<Reported, BookError>,
    /// What need not stay set aside once this was heard.
    rejection: Option<Rejection>,
}

/// Why the relay is not asked any more for now.
#[derive(Debug)]
enum Failed {
    Http(HttpError),
    Store(BookError),
    /// It says something else each time.
    Unsteady,
}

impl From<BookError> for Failed {
    fn from(error: BookError) -> Self {
        Self::Store(error)
    }
}

impl From<HttpError> for Failed {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
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

    /// Reports what there is to report whenever the device is online, until it is shut down.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut session = self.parts.session.clone();
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut jitter = Jitter::new(self.parts.seed);
        let mut again: Option<Instant> = None;
        loop {
            let state = *session.borrow_and_update();
            if state == SessionState::Stopped {
                break;
            }
            if state == SessionState::Online && again.is_none_or(|at| at <= Instant::now()) {
                again = tokio::select! {
                    worked = self.work() => match worked {
                        Ok(()) => {
                            backoff.reset();
                            None
                        }
                        Err(failed) => {
                            let wait = backoff.next(&mut jitter, failed.retry_after());
                            tracing::warn!(%failed, ?wait, "address books are reported later");
                            Some(Instant::now() + wait)
                        }
                    },
                    // Once it is off it calls nobody; on a new session it may get through.
                    _ = session.changed() => continue,
                };
            }
            if again.is_some() || state != SessionState::Online {
                self.put_off().await;
            }
            let wait = async {
                match again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = session.changed() => {
                    again = None;
                    if changed.is_err() {
                        break;
                    }
                }
                () = self.news.notified() => {}
                () = wait => {}
            }
        }
        self.put_off().await;
    }

    /// Those who wait hear that it is kept.
    async fn put_off(&self) {
        for (_, callers) in self.desk.lock().await.callers.drain() {
            for caller in callers.now.into_iter().chain(callers.next) {
                let _ = caller.send(Told { answer: Ok(Reported::Kept), rejection: None });
            }
        }
    }

    /// Does all that there is to do.
    async fn work(&self) -> Result<(), Failed> {
        loop {
            let desk = self.desk.lock().await;
            let edited = desk.waiting.first_key_value().map(|(_, book)| book.clone());
            let doubted = desk.in_doubt.first().cloned();
            drop(desk);
            if let Some(book) = doubted {
                self.ask_for(&book).await?;
            } else if let Some(book) = edited {
                self.report_all_of(&book).await?;
            } else {
                return Ok(());
            }
        }
    }

    /// Asks the relay for a book of which something was lost here.
    async fn ask_for(&self, book: &BookId) -> Result<(), Failed> {
        let stands = self.stands(book).await?;
        let mut desk = self.desk.lock().await;
        let mut record = self.load(book).await?.unwrap_or_else(|| Record::new(book.clone()));
        record.in_doubt = false;
        if let Some(Stand { version, content }) = stands
            && record.deliver(version, content) == Delivered::New
        {
            self.tell_after_saving(&record, BookEvent::Received { book: book.clone(), version }).await?;
        } else {
            self.save(&record).await?;
        }
        desk.note(&record);
        Ok(())
    }

    async fn tell_after_saving(&self, record: &Record, event: BookEvent) -> Result<(), BookError> {
        self.save(record).await?;
        self.tell(event);
        Ok(())
    }

    /// Reports the edit of a book, and those that are made meanwhile.
    async fn report_all_of(&self, book: &BookId) -> Result<(), Failed> {
        for _ in 0..TRIES {
            let mut desk = self.desk.lock().await;
            let Some(mut record) = self.load(book).await? else {
                desk.forget(book);
                return Ok(());
            };
            let Some((sending, before)) = record.send() else {
                desk.note(&record);
                return Ok(());
            };
            if !before {
                self.save(&record).await?;
            }
            drop(desk);
            let (verdict, stands) = self.send(book, sending).await?;
            self.answered(book, verdict, stands).await?;
        }
        Err(Failed::Unsteady)
    }

    /// Sends an edit; what stands comes with a verdict that asks for it.
    async fn send(&self, book: &BookId, sending: Sending) -> Result<(BookVerdict, Option<Stand>), Failed> {
        let Sending { base, content } = sending;
        let named = book.clone();
        let document = blocking(move || Ok(content.to_document(Some(&named), base))).await?;
        let report = BookReport::new(self.account.clone(), book.clone(), base, document);
        let reach = self.parts.reach.borrow().clone();
        let call = reach.http().report_book(&reach.token, &report);
        let verdict = caught(call).await?;
        let stands = match &verdict {
            BookVerdict::Conflict { .. } | BookVerdict::Stale => self.stands(book).await?,
            _ => None,
        };
        Ok((verdict, stands))
    }

    /// A book as the relay has it.
    async fn stands(&self, book: &BookId) -> Result<Option<Stand>, HttpError> {
        let reach = self.parts.reach.borrow().clone();
        let document = caught(reach.http().book(&reach.token, self.account.as_ref(), book)).await?;
        let stand = |document: BookDocument| {
            document.version.map(|version| Stand { version, content: Arc::new(document.content) })
        };
        Ok(document.and_then(stand))
    }

    /// Makes of the relay's answer what there is to be made of it, and tells those who wait.
    async fn answered(
        &self,
        book: &BookId,
        verdict: BookVerdict,
        stands: Option<Stand>,
    ) -> Result<(), BookError> {
        let mut desk = self.desk.lock().await;
        let Some(mut record) = self.load(book).await? else { return Ok(()) };
        let Answered { edit, next, news } = record.answered(verdict, stands);
        let callers = desk.callers.remove(book).unwrap_or_default();
        let rejection = match (&edit, &next) {
            (Settled::Rejected(rejection), _) | (_, Some(rejection)) => Some(rejection),
            _ => None,
        };
        // Until somebody has heard of it.
        if let Some(rejection) = rejection {
            record.set_aside(rejection);
        }
        if let Err(error) = self.save(&record).await {
            // Asked again, the relay answers the same.
            desk.callers.insert(book.clone(), callers);
            return Err(error);
        }
        if news && let Some(version) = record.copy().and_then(|copy| copy.version) {
            let merged = matches!(edit, Settled::Reported { merged: true, .. });
            if !merged {
                self.tell(BookEvent::Received { book: book.clone(), version });
            }
        }
        if let Settled::Reported { version, merged } = edit {
            self.tell(BookEvent::Reported { book: book.clone(), version, merged });
        }
        desk.note(&record);
        let (waiting, heard) = callers.tell(&edit, next.as_ref(), &record);
        if !waiting.is_empty() {
            desk.callers.insert(book.clone(), waiting);
        }
        if let Some(rejection) = rejection
            && !heard
        {
            self.tell(BookEvent::Rejected { book: book.clone(), words: rejection.why.words() });
        }
        Ok(())
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

impl Callers {
    fn is_empty(&self) -> bool {
        self.now.is_empty() && self.next.is_empty()
    }

    /// Tells those whom it is about what became of the edit, and of the next. Gives back those who go on waiting, and
    /// whether somebody was there to hear of a rejection.
    fn tell(mut self, edit: &Settled, next: Option<&Rejection>, record: &Record) -> (Self, bool) {
        let mut heard = false;
        let mut rejected = |callers: Vec<Caller>, rejection: &Rejection| {
            for caller in callers {
                let answer = Err(error_of(rejection, record));
                heard |= caller.send(Told { answer, rejection: Some(rejection.clone()) }).is_ok();
            }
        };
        match edit {
            Settled::Again | Settled::Carried => self.now.append(&mut self.next),
            Settled::Rejected(rejection) => {
                self.now.append(&mut self.next);
                rejected(std::mem::take(&mut self.now), rejection);
            }
            Settled::Reported { version, merged } => {
                let version = *version;
                let reported = match merged {
                    true => Reported::Merged { version },
                    false => Reported::Accepted { version },
                };
                let mut done = std::mem::replace(&mut self.now, std::mem::take(&mut self.next));
                match next {
                    Some(rejection) => rejected(std::mem::take(&mut self.now), rejection),
                    // What was edited meanwhile is in it already.
                    None if record.waits().is_none() => done.append(&mut self.now),
                    None => {}
                }
                for caller in done {
                    let _ = caller.send(Told { answer: Ok(reported.clone()), rejection: None });
                }
            }
        }
        (self, heard)
    }
}

fn error_of(rejection: &Rejection, record: &Record) -> BookError {
    match &rejection.why {
        Why::Refused { code, words } => BookError::Refused { code: code.clone(), words: words.clone() },
        Why::Conflict(why) => BookError::Conflict(Box::new(BookConflict {
            why: why.clone(),
            stands: record.copy().unwrap_or_else(|| BookCopy::empty(record.id.clone())),
            edited: Book::clone(&rejection.edited),
        })),
    }
}

impl Failed {
    const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Http(error) => error.retry_after,
            _ => None,
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Unsteady => f.write_str("the relay knows other versions each time"),
        }
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

/// A vendor's own [`RelayHttp`](crate::RelayHttp) that panics must not end all reporting.
async fn caught<T>(call: impl Future<Output = Result<T, HttpError>>) -> Result<T, HttpError> {
    let panicked = |_| Err(HttpError::new(HttpErrorKind::Unexpected, "the call panicked"));
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(panicked)
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
