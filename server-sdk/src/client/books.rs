//! Address books of an account: reading, changing without losing what others change, watching.

use std::time::Duration;

use relay_core::{
    book::{Book, BookDocument, Version},
    ids::{AccountId, BookId},
};
use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH},
};

use super::{Client, Error, ErrorKind, http::Http};

/// How often [`AddressBook::edit`] begins anew because others were faster.
const TRIES: usize = 16;

/// An address book of an account, made by [`Client::address_book`]. The account's devices that have the app `address`
/// get every change of it.
///
/// ```no_run
/// # async fn run(relay: server_sdk::Client) -> Result<(), server_sdk::Error> {
/// let staff = relay.address_book("acme", "staff")?;
/// staff.edit(|book| book.set("email", "Ann", "ann@acme.example").map(drop)).await?;
/// for (kind, name, value) in staff.read().await?.content.entries() {
///     println!("{kind}: {name} is {value}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AddressBook {
    client: Client,
    account: AccountId,
    book: BookId,
}

/// An address book as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BookVersion {
    /// The name of that state.
    pub version: Version,
    /// What was in it.
    pub content: Book,
}

impl AddressBook {
    pub(super) const fn new(client: Client, account: AccountId, book: BookId) -> Self {
        Self { client, account, book }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Error`], whose kind is [`ErrorKind::Unknown`] if there is no such book, or none that the key may see.
    ///
    /// # Cancel safety
    /// Nothing is changed by it, so it may be dropped at any time.
    pub async fn read(&self) -> Result<BookVersion, Error> {
        let read = self.http().inquire_with(self.call(Method::GET)).await?;
        opened(&read.body)
    }

    /// Reads it, if it is not `known` any more.
    ///
    /// # Errors
    /// As [`AddressBook::read`].
    ///
    /// # Cancel safety
    /// As [`AddressBook::read`].
    pub async fn read_unless(&self, known: Version) -> Result<Option<BookVersion>, Error> {
        let call = self.call(Method::GET).header(IF_NONE_MATCH, tag(known));
        let read = self.http().inquire_with(call).await?;
        if read.status == 304 { Ok(None) } else { opened(&read.body).map(Some) }
    }

    /// Makes it, with `content` in it.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] if it is there already.
    ///
    /// # Cancel safety
    /// Dropped, it may have been made.
    pub async fn create(&self, content: &Book) -> Result<Version, Error> {
        self.put(self.call(Method::PUT).header(IF_NONE_MATCH, "*"), None, content).await
    }

    /// Puts `content`, which was made from `version`, in its place.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] if others have changed it since: read it again, and make the change anew.
    ///
    /// # Cancel safety
    /// Dropped, it may have been changed; sending the same again does it once.
    pub async fn replace(&self, version: Version, content: &Book) -> Result<Version, Error> {
        self.put(self.call(Method::PUT).header(IF_MATCH, tag(version)), Some(version), content).await
    }

    /// Changes it: reads it, has `edit` change that, and puts it back; all anew if others were faster, so that no
    /// change of theirs is lost. A book that is not there begins empty. Gives what it is then.
    ///
    /// # Errors
    /// What `edit` says, as [`ErrorKind::Invalid`]; else as [`AddressBook::replace`].
    ///
    /// # Cancel safety
    /// Dropped, it may have been changed.
    pub async fn edit<E: std::error::Error + Send + Sync + 'static>(
        &self,
        mut edit: impl FnMut(&mut Book) -> Result<(), E>,
    ) -> Result<BookVersion, Error> {
        let mut tries = 1;
        loop {
            let before = match self.read().await {
                Ok(found) => Some(found),
                Err(error) if error.code() == Some("unknown-book") => None,
                Err(error) => return Err(error),
            };
            let mut content = before.as_ref().map(|before| before.content.clone()).unwrap_or_default();
            edit(&mut content).map_err(|error| {
                Error::new(ErrorKind::Invalid, "the change cannot be made").with_source(error).of_inquiry()
            })?;
            let put = match before {
                Some(before) if before.content == content => return Ok(before),
                Some(before) => self.replace(before.version, &content).await,
                None => self.create(&content).await,
            };
            match put {
                Ok(version) => return Ok(BookVersion { version, content }),
                Err(error) if error.kind() == ErrorKind::Stale && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// What it is now, then what it becomes: it is asked for `every` so often, which costs little while nothing
    /// changes.
    pub const fn watch(self, every: Duration) -> BookWatch {
        BookWatch { book: self, every, seen: None }
    }

    async fn put(
        &self,
        call: RequestBuilder,
        from: Option<Version>,
        content: &Book,
    ) -> Result<Version, Error> {
        content.check_size().map_err(|error| {
            Error::new(ErrorKind::TooLarge, error.to_string()).with_source(error).of_inquiry()
        })?;
        let document = content.to_document(Some(&self.book), from);
        let put =
            self.http().inquire_with(call.header(CONTENT_TYPE, "application/xml").body(document)).await?;
        let version =
            put.etag.as_deref().and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok());
        version.ok_or_else(|| not_a_book("the answer does not say which version it is now"))
    }

    fn call(&self, method: Method) -> RequestBuilder {
        let query = [("account", self.account.as_str())];
        self.http().call_with_query(method, &["address-books", self.book.as_str()], &query)
    }

    fn http(&self) -> &Http {
        &self.client.http
    }
}

/// Changes of an address book, as they are seen: [`AddressBook::watch`].
#[derive(Debug)]
pub struct BookWatch {
    book: AddressBook,
    every: Duration,
    seen: Option<Version>,
}

impl BookWatch {
    /// The book as it is now, the first time; then once it is another than the one that was given last. What came and
    /// went in between is not seen.
    ///
    /// # Errors
    /// As [`AddressBook::read`]. It may be called again.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost: the next call sees it.
    pub async fn next(&mut self) -> Result<BookVersion, Error> {
        loop {
            let now = match self.seen {
                None => Some(self.book.read().await?),
                Some(seen) => {
                    tokio::time::sleep(self.every).await;
                    self.book.read_unless(seen).await?
                }
            };
            if let Some(now) = now {
                self.seen = Some(now.version);
                return Ok(now);
            }
        }
    }
}

fn tag(version: Version) -> String {
    format!("\"{version}\"")
}

fn opened(body: &[u8]) -> Result<BookVersion, Error> {
    let read = BookDocument::parse(body)
        .map_err(|error| not_a_book("the answer is no address book").with_source(error))?;
    let version = read.version.ok_or_else(|| not_a_book("the answer does not say which version it is"))?;
    Ok(BookVersion { version, content: read.content })
}

fn not_a_book(words: &str) -> Error {
    Error::new(ErrorKind::NotTheRelay, words).of_inquiry()
}
