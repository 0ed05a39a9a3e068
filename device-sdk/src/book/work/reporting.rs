//! Reporting what was changed here, and asking for what was lost.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use relay_core::{book::BookDocument, ids::BookId};
use tokio::time::{Instant, sleep_until};

use super::{Work, blocking, callers::Told, whole};
use crate::{
    backoff::{Backoff, Jitter},
    book::{
        BookError, BookEvent, Reported,
        record::{Answered, Delivered, Record, Sending, Settled, Stand},
    },
    event::SessionState,
    http::{BookReport, BookVerdict, HttpError, HttpErrorKind},
};

/// The window of the first retry of a report while the device is online; it doubles up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// How often a report is made anew at once because the relay knows other versions than the device.
const TRIES: usize = 8;

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
                    changed = session.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => break,
                    },
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

    /// Does all that there is to do. What goes wrong with one book alone does not keep the others.
    async fn work(self: &Arc<Self>) -> Result<(), Failed> {
        let mut failures = BTreeMap::new();
        while let Some((book, doubted)) = self.next(&failures).await {
            let done = match doubted {
                true => self.ask_for(&book).await,
                false => self.report_all_of(&book).await,
            };
            match done {
                Ok(()) => {}
                Err(failed) if failed.is_of_one_book() => drop(failures.insert(book, failed)),
                Err(failed) => return Err(failed),
            }
        }
        failures.into_values().next().map_or(Ok(()), Err)
    }

    /// The next book, and whether something of it was lost here; in the order in which they were edited.
    async fn next(&self, failures: &BTreeMap<BookId, Failed>) -> Option<(BookId, bool)> {
        let desk = self.desk.lock().await;
        let doubted = desk.in_doubt.iter().map(|book| (book, true));
        let waiting = desk.waiting.values().map(|book| (book, false));
        let mut books = doubted.chain(waiting);
        books.find(|(book, _)| !failures.contains_key(*book)).map(|(book, doubted)| (book.clone(), doubted))
    }

    /// Asks the relay for a book of which something was lost here.
    async fn ask_for(self: &Arc<Self>, book: &BookId) -> Result<(), Failed> {
        let stands = self.stands(book).await?;
        let (work, book) = (self.clone(), book.clone());
        let learn = async move {
            let mut desk = work.desk.lock().await;
            let mut record = work.load(&book).await?.unwrap_or_else(|| Record::new(book.clone()));
            record.in_doubt = false;
            let news = stands
                .filter(|stands| record.deliver(stands.version, stands.content.clone()) == Delivered::New);
            work.save(&record).await?;
            desk.note(&record);
            if let Some(Stand { version, .. }) = news {
                work.tell(BookEvent::Received { book, version });
            }
            Ok(())
        };
        Ok(whole(learn).await?)
    }

    /// Reports the edit of a book, and those that are made meanwhile.
    async fn report_all_of(self: &Arc<Self>, book: &BookId) -> Result<(), Failed> {
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
            // What was answered is told, also if the session ends in this moment.
            let (work, book) = (self.clone(), book.clone());
            whole(async move { work.answered(&book, verdict, stands).await }).await?;
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

    /// A book as the relay has it; `None` if it has none, or none for this device.
    async fn stands(&self, book: &BookId) -> Result<Option<Stand>, HttpError> {
        let reach = self.parts.reach.borrow().clone();
        let document = match caught(reach.http().book(&reach.token, self.account.as_ref(), book)).await {
            Err(error) if error.kind == HttpErrorKind::Rejected => {
                tracing::warn!(%book, %error, "the relay does not say how an address book stands");
                None
            }
            asked => asked?,
        };
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

impl Failed {
    /// Whether another book may fare better.
    const fn is_of_one_book(&self) -> bool {
        match self {
            Self::Http(error) => matches!(error.kind, HttpErrorKind::Unexpected | HttpErrorKind::Rejected),
            Self::Store(_) | Self::Unsteady => true,
        }
    }

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

/// A vendor's own [`RelayHttp`](crate::RelayHttp) that panics must not end all reporting.
async fn caught<T>(call: impl Future<Output = Result<T, HttpError>>) -> Result<T, HttpError> {
    let panicked = |_| Err(HttpError::new(HttpErrorKind::Unexpected, "the call panicked"));
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(panicked)
}
