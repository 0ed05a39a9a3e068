//! Why something was not done with an address book.

use std::io;

use relay_core::book::{Book, Conflict, InvalidBook};

use super::{BookCopy, MAX_KEPT};

/// Why a book could not be read, or a change of it was not taken. By kind: what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// The books were not given to a device, or it has not started.
    #[error("the device of these address books has not started")]
    NotStarted,
    /// The device was shut down. A change that it had kept is reported when it starts again.
    #[error("the device was shut down")]
    Stopped,
    /// The book has something in it that no book can have, or too much.
    #[error(transparent)]
    Invalid(#[from] InvalidBook),
    /// Others have changed the same entries, and otherwise. Somebody has to choose, and [`report`] again from what stands.
    ///
    /// [`report`]: super::AddressBooks::report
    #[error(transparent)]
    Conflict(Box<BookConflict>),
    /// The relay does not take the change, and would not if it were sent again: `unknown-book` if the device does not share
    /// the book, `ambiguous-account` if it has to say [whose](super::AddressBooks::account) it is.
    #[error("the relay does not take it: {words}")]
    Refused {
        /// The code of the relay's problem.
        code: Box<str>,
        /// The relay's words.
        words: Box<str>,
    },
    /// What was kept of the book is damaged. It comes again from the relay, at the next connection.
    #[error("what was kept of the address book is damaged; the relay is asked for it at the next connection")]
    Damaged,
    /// There are as many books as a device keeps.
    #[error("a device keeps {MAX_KEPT} address books at most")]
    Full,
    /// The place where books are kept could not be read or written; nothing changed.
    #[error("the address book could not be read or written")]
    Store(#[from] io::Error),
}

/// Two changes that cannot both be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
#[non_exhaustive]
pub struct BookConflict {
    /// Which entries are in conflict, or which bound both together are beyond.
    pub why: Conflict,
    /// The book as it is here now, with what others have changed.
    pub stands: BookCopy,
    /// The book as it was to be.
    pub edited: Book,
}
