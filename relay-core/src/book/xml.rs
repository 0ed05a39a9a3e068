//! A book as a document, and back.

use std::collections::BTreeMap;

use super::{Book, InvalidBook, MAX_ENTRIES, MAX_KINDS, MAX_SIZE, Version};
use crate::{
    ids::BookId,
    xml::{Element, Limits, Namespace, push_attribute},
};

pub(super) const ROOT: &str = "AddressBook";
/// What stands around the content at most.
const LABELS: usize = 160;

/// An address book as it travels: `<AddressBook book='' version=''>…</AddressBook>`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BookDocument {
    /// Which book it says it is.
    pub book: Option<BookId>,
    /// Which version it says it is, or was before it was edited.
    pub version: Option<Version>,
    /// What is in it.
    pub content: Book,
}

impl BookDocument {
    /// One level and one element more than there can be, so that the refusal says what is wrong.
    pub(super) const LIMITS: Limits = Limits {
        bytes: MAX_SIZE,
        depth: 4,
        elements: MAX_ENTRIES + MAX_KINDS + 2,
        attributes: 64,
        declarations: 16,
        bindings: 64,
        attribute_bytes: 8 * 1024,
    };

    /// Reads a document. Whatever in it is not part of an address book is refused rather than lost.
    ///
    /// # Errors
    /// [`InvalidBook`] says what, and where.
    pub fn parse(document: &[u8]) -> Result<Self, InvalidBook> {
        if document.len() > MAX_SIZE {
            return Err(InvalidBook::Size(document.len()));
        }
        let root = Element::parse(document, &Self::LIMITS)?;
        if root.name() != ROOT {
            return Err(InvalidBook::at(root.name(), "is not an AddressBook"));
        }
        plain(ROOT, &root)?;
        let (mut book, mut version) = (None, None);
        for attribute in root.attributes() {
            match &*attribute.name {
                "book" if attribute.namespace.is_empty() => {
                    let id = BookId::new(&attribute.value)
                        .map_err(|error| InvalidBook::at(ROOT, format!("book: {error}")))?;
                    book = Some(id);
                }
                "version" if attribute.namespace.is_empty() => {
                    let number = attribute
                        .value
                        .parse()
                        .map_err(|_| InvalidBook::at(ROOT, "version: is none that a relay gave out"))?;
                    version = Some(number);
                }
                _ => return Err(InvalidBook::at(ROOT, "has an attribute other than book and version")),
            }
        }
        if root.has_text() {
            return Err(InvalidBook::at(ROOT, "has text outside its entries"));
        }
        let mut content = Book::new();
        for kind in root.children() {
            read_kind(&mut content, kind)?;
        }
        content.check_size()?;
        Ok(Self { book, version, content })
    }
}

fn read_kind(book: &mut Book, kind: &Element) -> Result<(), InvalidBook> {
    let at = kind.name();
    plain(at, kind)?;
    unadorned(at, kind)?;
    if kind.has_text() {
        return Err(InvalidBook::at(at, "has text outside its entries"));
    }
    if book.kinds.contains_key(at) {
        return Err(InvalidBook::at(at, "is there twice"));
    }
    for entry in kind.children() {
        let place = || format!("{at}/{}", entry.name());
        plain(&place(), entry)?;
        unadorned(&place(), entry)?;
        if entry.children().next().is_some() {
            return Err(InvalidBook::at(&place(), "has elements in it; an entry has text alone"));
        }
        if book.get(at, entry.name()).is_some() {
            return Err(InvalidBook::at(&place(), "is there twice"));
        }
        book.set(at, entry.name(), &entry.text())?;
    }
    Ok(())
}

fn plain(place: &str, element: &Element) -> Result<(), InvalidBook> {
    if element.namespace().is_empty() {
        return Ok(());
    }
    Err(InvalidBook::at(place, "is in a namespace; the elements of an address book are in none"))
}

fn unadorned(place: &str, element: &Element) -> Result<(), InvalidBook> {
    if element.attributes().is_empty() {
        return Ok(());
    }
    Err(InvalidBook::at(place, "has an attribute; kinds and entries have none"))
}

impl Book {
    /// The kinds and entries as XML, without the element around them: what stores keep. The same for equal books.
    pub fn content(&self) -> String {
        let mut out = String::new();
        for (kind, entries) in &self.kinds {
            let mut element = Element::new(Namespace::NONE, kind.to_string());
            for (name, value) in entries {
                element.push(Element::new(Namespace::NONE, name.to_string()).with_text(&**value));
            }
            element.write_to(&mut out, "");
        }
        out
    }

    /// What [`Book::content`] wrote.
    ///
    /// # Errors
    /// [`InvalidBook`]: it did not.
    pub fn from_content(content: &str) -> Result<Self, InvalidBook> {
        BookDocument::parse(document(None, None, content).as_bytes()).map(|document| document.content)
    }

    /// Whether it is within [`MAX_SIZE`].
    ///
    /// # Errors
    /// [`InvalidBook`] if it is not, or has too much in it.
    pub fn check_size(&self) -> Result<(), InvalidBook> {
        self.check()?;
        let size = self.content().len() + LABELS;
        if size > MAX_SIZE { Err(InvalidBook::Size(size)) } else { Ok(()) }
    }

    /// The document of this book.
    pub fn to_document(&self, book: Option<&BookId>, version: Option<Version>) -> String {
        document(book, version, &self.content())
    }

    pub(super) fn of(kinds: BTreeMap<Box<str>, super::Entries>) -> Self {
        Self { kinds }
    }
}

/// The document around `content`, as [`Book::content`] gave it.
pub fn document(book: Option<&BookId>, version: Option<Version>, content: &str) -> String {
    let mut out = String::with_capacity(content.len() + LABELS);
    out.push('<');
    out.push_str(ROOT);
    if let Some(book) = book {
        push_attribute(&mut out, "book", book.as_str());
    }
    if let Some(version) = version {
        push_attribute(&mut out, "version", &version.to_string());
    }
    out.push('>');
    out.push_str(content);
    out.push_str("</AddressBook>");
    out
}
