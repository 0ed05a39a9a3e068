//! What a device keeps of one address book, and what becomes of it: a machine without I/O.
//!
//! ```text
//!              edited                 sent                   answered
//!   stands ───────────▶ edit ─────────────────▶ edit, sent ────────────▶ stands
//!                        │ ▲ edited              │    edited ▲             │
//!                        └─┘                     └──▶ next ──┘             └─ next is the edit now
//! ```
//!
//! Edits that were not sent yet become one. Of one that was sent nobody knows whether the relay has it before it says so,
//! hence it stays as it was sent, with the version that it was made from, and what is edited meanwhile is the next one.
//! What others changed arrives beside all of that; the relay puts both together when it gets the edit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use relay_core::{
    book::{Book, Conflict, MAX_ENTRIES, Version, merge},
    ids::BookId,
};
use serde::{Deserialize, Serialize};

use super::{BookCopy, Change, Rejected};
use crate::http::BookVerdict;

/// Changes that are set aside of one book. More are more than two books have entries.
const MAX_CHANGES: usize = 2 * MAX_ENTRIES;

/// A version, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) version: Version,
    pub(crate) content: Arc<Book>,
}

/// A change made here that the relay has not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edit {
    /// Since when it waits, among all edits of the device.
    number: u64,
    /// What it was made from; `None` if there was no such book.
    base: Option<Stand>,
    content: Arc<Book>,
    /// Whether the relay may have it already.
    sent: bool,
}

/// One address book on this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: BookId,
    /// The last version of the relay's that is known here.
    stands: Option<Stand>,
    edit: Option<Edit>,
    /// Made from the edit's content.
    next: Option<Arc<Book>>,
    pub(crate) rejected: Option<Rejected>,
    /// Something of it was lost, so the relay has to be asked for it.
    pub(crate) in_doubt: bool,
}

/// What came of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// It is what stands now.
    New,
    /// It is here already, or something newer is.
    Known,
}

/// Where an edit went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// It changes nothing.
    Nowhere,
    /// It is the edit that is to be reported, or part of it.
    Now,
    /// The one after that.
    Next,
}

/// Why a change was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// These entries, as kind and name, were changed otherwise meanwhile.
    Conflict(Conflict),
    /// The relay says no, with a code and words.
    Refused { code: Box<str>, words: Box<str> },
}

/// A change that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) why: Why,
    base: Option<Arc<Book>>,
    pub(crate) edited: Arc<Book>,
}

/// What became of an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The relay has it, as this version; `merged`: together with what others changed.
    Reported { version: Version, merged: bool },
    /// It is to be reported anew, as it is now.
    Again,
    /// It was not taken, and is part of the next one, which is to be reported now.
    Carried,
    /// It was not taken.
    Rejected(Rejection),
}

/// What the relay's answer to an edit comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) edit: Settled,
    /// What was edited meanwhile cannot be had together with what came of the edit.
    pub(crate) next: Option<Rejection>,
    /// Whether something is known of the relay's book that was not before.
    pub(crate) news: bool,
}

impl Answered {
    const fn of(edit: Settled) -> Self {
        Self { edit, next: None, news: false }
    }
}

/// What is to be reported.
#[derive(Debug, Clone)]
pub(crate) struct Sending {
    pub(crate) base: Option<Version>,
    pub(crate) content: Arc<Book>,
}

impl Record {
    pub(crate) const fn new(id: BookId) -> Self {
        Self { id, stands: None, edit: None, next: None, rejected: None, in_doubt: false }
    }

    /// The book as it is on this device, with what was changed here and is not reported yet.
    fn view(&self) -> Option<&Arc<Book>> {
        let edit = self.edit.as_ref().map(|edit| &edit.content);
        self.next.as_ref().or(edit).or_else(|| self.stands.as_ref().map(|stands| &stands.content))
    }

    /// The same, for whoever asks; `None` if there is no such book here.
    pub(crate) fn copy(&self) -> Option<BookCopy> {
        let content = Book::clone(self.view()?);
        Some(BookCopy {
            book: self.id.clone(),
            version: self.stands.as_ref().map(|stands| stands.version),
            content,
            reported: self.edit.is_none(),
        })
    }

    /// The number of the edit that waits to be reported.
    pub(crate) fn waits(&self) -> Option<u64> {
        self.edit.as_ref().map(|edit| edit.number)
    }

    /// Whether nothing is known of it but that something was lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.in_doubt && self.view().is_none()
    }

    /// A version comes from the relay.
    pub(crate) fn deliver(&mut self, version: Version, content: Arc<Book>) -> Delivered {
        self.in_doubt = false;
        if self.stands.as_ref().is_some_and(|stands| stands.version >= version) {
            return Delivered::Known;
        }
        self.stands = Some(Stand { version, content });
        Delivered::New
    }

    /// Somebody made `edited` from `before`, as it once was on this device.
    pub(crate) fn edit(&mut self, before: &Book, edited: &Book, number: u64) -> Result<Slot, Conflict> {
        let empty = Book::new();
        let view = self.view().map_or(&empty, |view| view);
        let wanted = Arc::new(match view == before {
            true => edited.clone(),
            false => merge(before, view, edited)?.book,
        });
        if self.view() == Some(&wanted) {
            return Ok(Slot::Nowhere);
        }
        match &mut self.edit {
            Some(Edit { sent: true, .. }) => {
                self.next = Some(wanted);
                return Ok(Slot::Next);
            }
            Some(edit) => edit.content = wanted,
            None => {
                self.edit = Some(Edit { number, base: self.stands.clone(), content: wanted, sent: false });
            }
        }
        Ok(Slot::Now)
    }

    /// What is to be reported, which counts as sent from now on; and whether it did already.
    pub(crate) fn send(&mut self) -> Option<(Sending, bool)> {
        let edit = self.edit.as_mut()?;
        let before = std::mem::replace(&mut edit.sent, true);
        let base = edit.base.as_ref().map(|base| base.version);
        Some((Sending { base, content: edit.content.clone() }, before))
    }

    /// The relay has answered what was sent; `stands` is what it has, where the verdict asks for it.
    pub(crate) fn answered(&mut self, verdict: BookVerdict, stands: Option<Stand>) -> Answered {
        let Some(edit) = self.edit.take() else { return Answered::of(Settled::Again) };
        match verdict {
            BookVerdict::Taken(version) => {
                self.deliver(version, edit.content.clone());
                let base = Some(Stand { version, content: edit.content });
                self.promote(base, edit.number);
                Answered::of(Settled::Reported { version, merged: false })
            }
            BookVerdict::Merged { version, content } => {
                let content = Arc::new(content);
                let news = self.deliver(version, content.clone()) == Delivered::New;
                let next = self.rebase_next(&edit.content, Stand { version, content }, edit.number);
                Answered { edit: Settled::Reported { version, merged: true }, next, news }
            }
            BookVerdict::Conflict { entries } => {
                let count = entries.len();
                let why = Why::Conflict(Conflict::Entries { entries, count });
                let news = self.learn(stands);
                Answered { news, ..self.refuse(edit, why) }
            }
            BookVerdict::Refused { code, words } => self.refuse(edit, Why::Refused { code, words }),
            BookVerdict::Stale => {
                let Some(stands) = stands else {
                    // Asked again, it may be told.
                    self.edit = Some(edit);
                    return Answered::of(Settled::Again);
                };
                let news = self.learn(Some(stands.clone()));
                Answered { news, ..self.make_anew(edit, stands) }
            }
        }
    }

    fn learn(&mut self, stands: Option<Stand>) -> bool {
        stands.is_some_and(|stands| self.deliver(stands.version, stands.content) == Delivered::New)
    }

    /// What was edited meanwhile is to be reported now.
    fn promote(&mut self, base: Option<Stand>, number: u64) {
        let content = self.next.take().filter(|next| base.as_ref().is_none_or(|base| base.content != *next));
        self.edit = content.map(|content| Edit { number, base, content, sent: false });
    }

    /// The same, made from `was`, after something else came of that.
    fn rebase_next(&mut self, was: &Book, now: Stand, number: u64) -> Option<Rejection> {
        let next = self.next.take()?;
        match merge(was, &now.content, &next) {
            Ok(merged) => {
                self.next = Some(Arc::new(merged.book));
                self.promote(Some(now), number);
                None
            }
            Err(conflict) => Some(Rejection {
                why: Why::Conflict(conflict),
                base: Some(Arc::new(was.clone())),
                edited: next,
            }),
        }
    }

    fn refuse(&mut self, edit: Edit, why: Why) -> Answered {
        if self.next.is_some() {
            // It has all that this one has, and perhaps what makes it one that can be taken.
            self.promote(edit.base, edit.number);
            return Answered::of(Settled::Carried);
        }
        let base = edit.base.map(|base| base.content);
        Answered::of(Settled::Rejected(Rejection { why, base, edited: edit.content }))
    }

    /// The relay does not remember what the edit was made from: it is made from what stands now.
    fn make_anew(&mut self, edit: Edit, stands: Stand) -> Answered {
        let empty = Book::new();
        let base = edit.base.as_ref().map_or(&empty, |base| &*base.content);
        let wanted = self.next.take().unwrap_or_else(|| edit.content.clone());
        match merge(base, &stands.content, &wanted) {
            Ok(merged) if merged.book == *stands.content => {
                Answered::of(Settled::Reported { version: stands.version, merged: merged.differs })
            }
            Ok(merged) => {
                let content = Arc::new(merged.book);
                self.edit = Some(Edit { number: edit.number, base: Some(stands), content, sent: false });
                Answered::of(Settled::Again)
            }
            Err(conflict) => {
                let base = edit.base.map(|base| base.content);
                let why = Why::Conflict(conflict);
                Answered::of(Settled::Rejected(Rejection { why, base, edited: wanted }))
            }
        }
    }

    /// Keeps what a rejected edit changed, for whoever looks later. What was changed again is as it was changed last.
    pub(crate) fn set_aside(&mut self, rejection: &Rejection) {
        let before = self.rejected.take().map(|rejected| rejected.changes).unwrap_or_default();
        let new = rejection.changes();
        let mut changes: BTreeMap<_, _> =
            before.into_iter().map(|change| ((change.kind, change.name), change.value)).collect();
        if changes.len() + new.len() > MAX_CHANGES {
            tracing::warn!(book = %self.id, "changes that were not taken are forgotten: nobody has looked at them");
            changes.clear();
        }
        changes.extend(new.into_iter().map(|change| ((change.kind, change.name), change.value)));
        let changes = changes.into_iter().map(|((kind, name), value)| Change { kind, name, value });
        self.rejected = Some(Rejected { why: rejection.why.words(), changes: changes.collect() });
    }

    /// Somebody was there to hear of it after all.
    pub(crate) fn heard(&mut self, rejection: &Rejection) {
        let heard = rejection.changes();
        if let Some(rejected) = &mut self.rejected {
            rejected.changes.retain(|change| !heard.contains(change));
        }
        self.rejected.take_if(|rejected| rejected.changes.is_empty());
    }
}

impl Rejection {
    /// What was to be changed, by kind and name.
    fn changes(&self) -> BTreeSet<Change> {
        let empty = Book::new();
        let (base, edited) = (self.base.as_deref().unwrap_or(&empty), &*self.edited);
        let written = edited.entries().filter(|(kind, name, value)| base.get(kind, name) != Some(value));
        let gone = base.entries().filter(|(kind, name, _)| edited.get(kind, name).is_none());
        let written = written.map(|(kind, name, value)| (kind, name, Some(value)));
        let change = |(kind, name, value): (&str, &str, Option<&str>)| Change {
            kind: kind.into(),
            name: name.into(),
            value: value.map(Into::into),
        };
        written.chain(gone.map(|(kind, name, _)| (kind, name, None))).map(change).collect()
    }
}

impl Why {
    pub(crate) fn words(&self) -> Box<str> {
        match self {
            Self::Conflict(conflict) => conflict.to_string().into(),
            Self::Refused { words, .. } => words.clone(),
        }
    }
}

/// How a record is written.
#[derive(Serialize, Deserialize)]
struct Wire {
    book: String,
    stands: Option<WireStand>,
    edit: Option<WireEdit>,
    next: Option<String>,
    rejected: Option<Rejected>,
    in_doubt: bool,
}

#[derive(Serialize, Deserialize)]
struct WireStand {
    version: u64,
    content: String,
}

#[derive(Serialize, Deserialize)]
struct WireEdit {
    number: u64,
    base: Option<WireStand>,
    content: String,
    sent: bool,
}

impl WireStand {
    fn of(stand: &Stand) -> Self {
        Self { version: stand.version.number(), content: stand.content.content() }
    }

    fn read(self) -> Option<Stand> {
        Some(Stand { version: Version::new(self.version).ok()?, content: read(&self.content)? })
    }
}

fn read(content: &str) -> Option<Arc<Book>> {
    Book::from_content(content).ok().map(Arc::new)
}

/// What is not there is `None`, what cannot be read is, too.
fn whole<T, R>(part: Option<T>, read: impl FnOnce(T) -> Option<R>) -> Option<Option<R>> {
    part.map_or(Some(None), |part| read(part).map(Some))
}

impl Record {
    /// As it is kept.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let edit = self.edit.as_ref().map(|edit| WireEdit {
            number: edit.number,
            base: edit.base.as_ref().map(WireStand::of),
            content: edit.content.content(),
            sent: edit.sent,
        });
        serde_json::to_vec(&Wire {
            book: self.id.to_string(),
            stands: self.stands.as_ref().map(WireStand::of),
            edit,
            next: self.next.as_ref().map(|next| next.content()),
            rejected: self.rejected.clone(),
            in_doubt: self.in_doubt,
        })
    }

    /// What was kept; `None` if it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let wire: Wire = serde_json::from_slice(bytes).ok()?;
        let edit = |edit: WireEdit| {
            let base = whole(edit.base, WireStand::read)?;
            Some(Edit { number: edit.number, base, content: read(&edit.content)?, sent: edit.sent })
        };
        Some(Self {
            id: BookId::new(&wire.book).ok()?,
            stands: whole(wire.stands, WireStand::read)?,
            edit: whole(wire.edit, edit)?,
            next: whole(wire.next, |next| read(&next))?,
            rejected: wire.rejected,
            in_doubt: wire.in_doubt,
        })
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
