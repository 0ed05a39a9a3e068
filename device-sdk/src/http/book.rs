//! What a device and its relay say to each other of address books, by plain HTTP.

use std::fmt;

use relay_core::{
    book::{Book, Version},
    ids::{AccountId, BookId},
};

/// A change of an address book that a device reports.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BookReport {
    /// Whose book; `None` if the device counts for one account alone.
    pub account: Option<AccountId>,
    /// Which book.
    pub book: BookId,
    /// The version that was edited; `None` if there was no such book.
    pub base: Option<Version>,
    /// The document of what it is to be.
    pub document: String,
}

impl BookReport {
    /// That `book` of `account` is to be `document`, which was made from the version `base`.
    pub const fn new(
        account: Option<AccountId>,
        book: BookId,
        base: Option<Version>,
        document: String,
    ) -> Self {
        Self { account, book, base, document }
    }
}

impl fmt::Debug for BookReport {
    /// Whose addresses they are is nobody's business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BookReport")
            .field("book", &self.book)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// What the relay finally said of a reported change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BookVerdict {
    /// It is the book now, as this version.
    Taken(Version),
    /// The book is now what it and others have changed.
    Merged {
        /// As this version.
        version: Version,
        /// What is in it.
        content: Book,
    },
    /// Others have changed the same entries, and otherwise; nothing was taken.
    Conflict {
        /// Which, as kind and name: the first of them.
        entries: Vec<(Box<str>, Box<str>)>,
    },
    /// The relay does not know the version that was edited, or there is such a book already: it is to be read, and the
    /// change made anew.
    Stale,
    /// It is not taken, and would not be if it were sent again.
    Refused {
        /// The code of the relay's problem.
        code: Box<str>,
        /// The relay's words.
        words: Box<str>,
    },
}
