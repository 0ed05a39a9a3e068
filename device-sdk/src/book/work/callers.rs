//! Those who have reported a change, and wait to hear what becomes of it.

use relay_core::book::Book;
use tokio::sync::oneshot;

use crate::book::{
    BookConflict, BookCopy, BookError, Reported,
    record::{Record, Rejection, Settled, Why},
};

/// Who waits to hear what becomes of a book's edits: of the one that is to be reported, and of the next.
#[derive(Debug, Default)]
pub(super) struct Callers {
    pub(super) now: Vec<Caller>,
    pub(super) next: Vec<Caller>,
}

pub(super) type Caller = oneshot::Sender<Told>;

/// What a caller hears.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) answer: Result<Reported, BookError>,
    /// What need not stay set aside once this was heard.
    pub(super) rejection: Option<Rejection>,
}

impl Callers {
    pub(super) fn is_empty(&self) -> bool {
        self.now.is_empty() && self.next.is_empty()
    }

    /// Tells those whom it is about what became of the edit, and of the next. Gives back those who go on waiting, and
    /// whether somebody was there to hear of a rejection.
    pub(super) fn tell(mut self, edit: &Settled, next: Option<&Rejection>, record: &Record) -> (Self, bool) {
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
