//! `/v1/address-books/{book}`: reading a book, and changing it without losing what others changed (A5, F33).

use http::{HeaderValue, StatusCode, header};
use relay_core::{
    auth::Principal,
    book::{APP, BookDocument, BookKey, Conflict, InvalidBook, MAX_SIZE, Version, document},
    ids::{AccountId, AppName, BookId},
    store::{BookRecord, takes_books},
};
use serde_json::json;

use super::{
    App, Call, access,
    body::{self, Reply, ReplyBody},
    empty,
    problem::{Code, Problem, shown},
    route::Query,
    text_of,
};
use crate::relay::{
    auth::Denied,
    books::{ChangeError, Changed, Edit},
};

/// `GET /v1/address-books/{book}`
pub(super) async fn get(call: Call, book: BookId) -> Result<Reply, Problem> {
    let principal = access::principal(&call)?;
    let query = call.query()?;
    let known = call.header(&header::IF_NONE_MATCH)?.map(str::to_owned);
    let app = call.app.clone();
    drop(call);
    let account = account(&app, &principal, query).await?;
    let record = app.books.read(&BookKey::new(account, book)).await?.ok_or_else(unknown_book)?;
    let mut reply = match known.is_some_and(|known| names(&known, record.version)) {
        true => empty(StatusCode::NOT_MODIFIED),
        false => whole(&record),
    };
    reply.headers_mut().insert(header::ETAG, etag(record.version));
    Ok(reply)
}

/// `PUT /v1/address-books/{book}`
pub(super) async fn put(call: Call, book: BookId) -> Result<Reply, Problem> {
    let principal = access::principal(&call)?;
    let query = call.query()?;
    let headers = &call.parts.headers;
    body::refuse_encoded(headers)?;
    expect_xml(headers)?;
    let base = Base::read(headers)?;
    let path = call.parts.uri.clone();
    let Call { app, parts, body, .. } = call;
    drop(parts);
    let account = account(&app, &principal, query).await?;
    let key = BookKey::new(account, book);
    let bytes = body::read(body, MAX_SIZE, &app).await?;
    // Large books take milliseconds, so not on a thread that serves others.
    let read = tokio::task::spawn_blocking(move || BookDocument::parse(&bytes)).await;
    let read = read.map_err(|_| Problem::new(Code::Internal, "the relay failed in this call"))??;
    if read.book.as_ref().is_some_and(|named| *named != key.book) {
        return Err(Problem::bad("AddressBook: book: is another than the one in the path"));
    }
    let base = match base {
        Base::None => None,
        Base::Unknown => return Err(stale("the entity tag is of no version of this address book")),
        Base::Version(version) => {
            // Whoever sends an old copy under a new tag would undo what others did in between.
            if read.version.is_some_and(|named| named != version) {
                let words = "AddressBook: version: is another than the one in If-Match; what was edited?";
                return Err(Problem::bad(words));
            }
            Some(version)
        }
    };
    let by = match &principal {
        Principal::Device(device) => Some(device.clone()),
        _ => None,
    };
    let edit = Edit { base, content: read.content, by };
    let Changed { record, created, merged } = app.books.change(&key, edit).await?;
    if merged {
        // RFC 9110 §9.3.4: what stands is not what was sent, so no ETag; it is in the body, with its version.
        let mut reply = whole(&record);
        if let Ok(location) = HeaderValue::from_str(path.path()) {
            reply.headers_mut().insert(header::CONTENT_LOCATION, location);
        }
        return Ok(reply);
    }
    let mut reply = empty(if created { StatusCode::CREATED } else { StatusCode::NO_CONTENT });
    reply.headers_mut().insert(header::ETAG, etag(record.version));
    Ok(reply)
}

/// What a change is made from.
enum Base {
    /// `If-None-Match: *`: there is no such book.
    None,
    /// `If-Match` with one of our tags.
    Version(Version),
    /// `If-Match` with any other.
    Unknown,
}

impl Base {
    fn read(headers: &http::HeaderMap) -> Result<Self, Problem> {
        let (matches, none_matches) =
            (text_of(headers, &header::IF_MATCH)?, text_of(headers, &header::IF_NONE_MATCH)?);
        let required = |words| Err(Problem::new(Code::PreconditionRequired, words));
        match (matches.map(str::trim), none_matches.map(str::trim)) {
            (Some(_), Some(_)) => Err(Problem::bad("If-Match and If-None-Match exclude each other here")),
            (None, Some("*")) => Ok(Self::None),
            (None, _) => required(
                "say what was edited: If-Match with the ETag of that version, or If-None-Match: * for a new address book",
            ),
            (Some("*"), None) => required(
                "If-Match: * names no version, and would undo what others changed; send the ETag of the one that was edited",
            ),
            (Some(tag), None) => {
                let version = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
                match version {
                    Some(tag) if tag.contains('"') => Err(Problem::bad("If-Match: name one version")),
                    Some(tag) => Ok(tag.parse().map_or(Self::Unknown, Self::Version)),
                    // RFC 9110 §13.1.1: a weak tag matches nothing.
                    None if tag.starts_with("W/\"") => Ok(Self::Unknown),
                    None => Err(Problem::bad(format!(
                        "If-Match has {}, which is no entity tag; it stands in double quotes",
                        shown(tag)
                    ))),
                }
            }
        }
    }
}

/// Whether `If-None-Match` names `version` (RFC 9110 §13.1.2: weak tags count, too).
fn names(field: &str, version: Version) -> bool {
    let tag = format!("\"{version}\"");
    field.trim() == "*"
        || field.split(',').map(str::trim).any(|known| known.strip_prefix("W/").unwrap_or(known) == tag)
}

fn etag(version: Version) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

fn whole(record: &BookRecord) -> Reply {
    let text = document(Some(&record.key.book), Some(record.version), &record.content);
    let mut reply = Reply::new(ReplyBody::from(bytes::Bytes::from(text)));
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    reply
}

fn expect_xml(headers: &http::HeaderMap) -> Result<(), Problem> {
    let Some(value) = text_of(headers, &header::CONTENT_TYPE)? else { return Ok(()) };
    let essence = value.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/xml") || essence.eq_ignore_ascii_case("text/xml") {
        return Ok(());
    }
    let words = format!("application/xml is wanted here, not {}", shown(essence));
    Err(Problem::new(Code::UnsupportedMediaType, words).closing())
}

/// Whose book is meant: the account that is named, else the only one that the caller has. What is none of the caller's
/// business is not there (X2, T47).
async fn account(app: &App, principal: &Principal, mut query: Query) -> Result<AccountId, Problem> {
    let named = query.take("account")?.map(|name| AccountId::new(&name)).transpose()?;
    query.finish()?;
    let several = || {
        Problem::new(Code::AmbiguousAccount, "whose address book is not clear; name the account: ?account=")
    };
    let Principal::Device(device) = principal else {
        let account = named.or_else(|| app.auth.only_account(principal)).ok_or_else(several)?;
        let address = AppName::new(APP)?;
        return match app.auth.authorize_account(principal, &account, &address) {
            Ok(()) => Ok(account),
            Err(Denied::UnknownDevice) => Err(unknown_book()),
            Err(_) => {
                Err(Problem::new(Code::Forbidden, "the key's scopes do not allow app/address on the account"))
            }
        };
    };
    let record = app.store.device(device).await?;
    if !record.as_ref().is_some_and(|record| takes_books(&record.apps)) {
        let words = "the device has registered no app named address, so it shares no address book";
        return Err(Problem::new(Code::Forbidden, words));
    }
    let mut accounts = record.map(|record| record.accounts).unwrap_or_default();
    if let Some(named) = named {
        return if accounts.contains(&named) { Ok(named) } else { Err(unknown_book()) };
    }
    let account = accounts.pop().ok_or_else(unknown_book)?;
    if accounts.is_empty() { Ok(account) } else { Err(several()) }
}

/// The same for a book that is not there and for one that the caller may not see.
fn unknown_book() -> Problem {
    Problem::new(Code::UnknownBook, "no such address book")
}

fn stale(words: &'static str) -> Problem {
    Problem::new(Code::PreconditionFailed, words)
}

impl From<InvalidBook> for Problem {
    fn from(error: InvalidBook) -> Self {
        match error {
            InvalidBook::Size(_) => Self::new(Code::TooLarge, error.to_string()),
            error => Self::bad(error.to_string()),
        }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Unknown => unknown_book(),
            ChangeError::Exists => stale("there is such an address book already; edit its current version"),
            ChangeError::Stale => {
                stale("the address book has changed since that version; read it, and make the change anew")
            }
            ChangeError::Forgotten => {
                stale("that version is not remembered; read the address book, and make the change anew")
            }
            ChangeError::Conflict(conflict) => {
                let words = conflict.to_string();
                match conflict {
                    Conflict::Entries { entries, .. } => {
                        let places =
                            entries.iter().map(|(kind, name)| json!({"entry": format!("{kind}/{name}")}));
                        Self::new(Code::PreconditionFailed, words).with_errors(places.collect())
                    }
                    _ => Self::new(Code::TooLarge, words),
                }
            }
            ChangeError::Full => Self::new(Code::Conflict, error.to_string()),
            ChangeError::Busy => {
                Self::new(Code::Overloaded, error.to_string()).retry_after(std::time::Duration::from_secs(1))
            }
            ChangeError::Store(error) => error.into(),
        }
    }
}
