//! The printer's address books: what becomes of them is told a line each, and its panel replaces one by what is in a file.

use std::path::{Path, PathBuf};

use device_sdk::{
    AddressBooks,
    book::{BookCopy, BookDocument, BookError, BookEvent, BookEvents, BookId, Reported},
};
use examples::Failure;
use tokio::{fs, sync::mpsc};

/// The book that a file without a name in it is for: that of the service `address-book`.
const NAME: &str = "addresses";

/// Says what happens, a line each.
pub(crate) async fn tell(books: AddressBooks, mut events: BookEvents) {
    while let Some(event) = events.next().await {
        match event {
            BookEvent::Received { book, version } => {
                println!("book {book}: version {version}, with {}", entries(&books, &book).await);
            }
            BookEvent::Reported { book, version, merged } => {
                let merged = if merged { ", with what others have changed" } else { "" };
                println!("book {book}: reported as version {version}{merged}");
            }
            BookEvent::Rejected { book, words } => println!("book {book}: not taken, {words}"),
            BookEvent::Damaged { book, recovered: true } => {
                println!("book {book} damaged: the one before is used");
            }
            BookEvent::Damaged { book, recovered: false } => println!("book {book} damaged: nothing is left"),
            other => println!("{other:?}"),
        }
    }
}

async fn entries(books: &AddressBooks, book: &BookId) -> String {
    match books.read(book).await {
        Ok(copy) => format!("{} entries", copy.map_or(0, |copy| copy.content.len())),
        Err(error) => error.to_string(),
    }
}

/// Makes books of files, one after the other, until there are no more.
pub(crate) async fn replace(books: AddressBooks, mut files: mpsc::Receiver<PathBuf>) {
    while let Some(file) = files.recv().await {
        match replace_by(&books, &file).await {
            Ok(said) => println!("{said}"),
            Err(error) => println!("book: {error:?}"),
        }
    }
}

async fn replace_by(books: &AddressBooks, file: &Path) -> Result<String, Failure> {
    let document = BookDocument::parse(&fs::read(file).await?)?;
    let book = match document.book {
        Some(book) => book,
        None => BookId::new(NAME)?,
    };
    let before = books.read(&book).await?.unwrap_or_else(|| BookCopy::empty(book.clone()));
    if document.version.is_some() && document.version != before.version {
        // All that came since would be undone.
        return Ok(format!("book {book}: the file is another version than the printer has"));
    }
    Ok(match books.report(&before, document.content).await {
        Ok(Reported::Unchanged) => format!("book {book}: nothing changed"),
        Ok(Reported::Kept) => format!("book {book}: kept, to be reported at the next connection"),
        Ok(Reported::Merged { version }) => {
            format!("book {book}: changed together with others, version {version}")
        }
        Ok(Reported::Accepted { version }) => format!("book {book}: changed, version {version}"),
        Ok(other) => format!("book {book}: {other:?}"),
        Err(BookError::Conflict(conflict)) => format!("book {book}: not changed, {conflict}"),
        Err(error) => return Err(error.into()),
    })
}
