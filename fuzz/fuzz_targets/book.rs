//! Any bytes as an address book: no panic, and what is taken keeps its bounds, and reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::book::{Book, BookDocument, MAX_ENTRIES, MAX_NAME, MAX_SIZE, MAX_VALUE};

fuzz_target!(|document: &[u8]| {
    let Ok(read) = BookDocument::parse(document) else { return };
    assert!(read.content.len() <= MAX_ENTRIES);
    for (kind, name, value) in read.content.entries() {
        assert!(!kind.is_empty() && kind.chars().count() <= MAX_NAME);
        assert!(!name.is_empty() && name.chars().count() <= MAX_NAME);
        assert!(value.chars().count() <= MAX_VALUE);
    }
    let written = read.content.to_document(read.book.as_ref(), read.version);
    assert!(written.len() <= MAX_SIZE);
    assert_eq!(BookDocument::parse(written.as_bytes()).as_ref(), Ok(&read));
    // What a store keeps.
    assert_eq!(Book::from_content(&read.content.content()).as_ref(), Ok(&read.content));
    // Entry by entry, in another order.
    let mut built = Book::new();
    let entries: Vec<_> = read.content.entries().collect();
    for (kind, name, value) in entries.into_iter().rev() {
        assert_eq!(built.set(kind, name, value), Ok(None));
    }
    assert_eq!(built, read.content);
});
