//! A version on its way to a device: a job of the app [`APP`](super::APP).

use bytes::Bytes;

use super::{BookDocument, InvalidBook, Version, document, xml::ROOT};
use crate::{
    app::Offer,
    ids::BookId,
    xml::{Element, Limits, push_attribute},
};

/// A version as it is delivered. A book that fits into a job's header is that header, and the job has no data. Of a
/// larger one the header is `<AddressBook book='' version='' length=''/>`, and the document is the job's data, which
/// goes by credit and can be resumed like any.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parcel {
    /// The job's header.
    pub header: Box<str>,
    /// The job's data.
    pub data: Bytes,
}

impl Parcel {
    /// `version` of `book`, with `content` in it.
    pub fn new(book: &BookId, version: Version, content: &str) -> Self {
        let document = document(Some(book), Some(version), content);
        if document.len() <= Offer::MAX_HEADER {
            return Self { header: document.into(), data: Bytes::new() };
        }
        let mut header = format!("<{ROOT}");
        push_attribute(&mut header, "book", book.as_str());
        push_attribute(&mut header, "version", &version.to_string());
        push_attribute(&mut header, "length", &document.len().to_string());
        header.push_str("/>");
        Self { header: header.into(), data: document.into() }
    }

    /// What is in a parcel: for the device, once it has all of the data.
    ///
    /// # Errors
    /// [`InvalidBook`] if header or data are none of an address book, or do not belong together.
    pub fn open(header: &str, data: &[u8]) -> Result<BookDocument, InvalidBook> {
        let limits = Limits { bytes: Offer::MAX_HEADER, ..BookDocument::LIMITS };
        let element = Element::parse(header.as_bytes(), &limits)?;
        let wrong = |words: &'static str| Err(InvalidBook::at(ROOT, words));
        let Some(length) = element.attr("length") else {
            return match data {
                [] => BookDocument::parse(header.as_bytes()),
                _ => wrong("the header is the whole document, and yet there are data"),
            };
        };
        let is_label = element.name() == ROOT
            && element.namespace().is_empty()
            && element.children().next().is_none()
            && !element.has_text();
        if !is_label {
            return wrong("the header speaks of a document and is none of an address book");
        }
        let opened = BookDocument::parse(data)?;
        let labels = [
            ("book", opened.book.as_ref().map(ToString::to_string)),
            ("version", opened.version.map(|v| v.to_string())),
        ];
        let same = labels.iter().all(|(name, label)| element.attr(name) == label.as_deref());
        if !same || length != data.len().to_string() {
            return wrong("the header speaks of another document than the data are");
        }
        Ok(opened)
    }
}
