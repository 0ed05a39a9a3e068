//! Address books: PUT and GET, with ETag and If-Match as RFC 9110 has them.

use relay_core::{
    book::{BookDocument, MAX_SIZE, Version},
    ids::BookId,
};
use reqwest::{RequestBuilder, header};
use serde::Deserialize;

use super::{Answer, Problem, not_a_relay, read_within, unreachable};
use crate::http::{BookReport, BookVerdict, HttpError, HttpErrorKind};

/// Reports a change.
pub(super) async fn put(request: RequestBuilder, report: &BookReport) -> Result<BookVerdict, HttpError> {
    let request = match report.base {
        Some(base) => request.header(header::IF_MATCH, format!("\"{base}\"")),
        None => request.header(header::IF_NONE_MATCH, "*"),
    };
    let request = request.header(header::CONTENT_TYPE, "application/xml").body(report.document.clone());
    let answer = read_within(request.send().await.map_err(unreachable)?, MAX_SIZE).await?;
    // Only the relay's own words end anything: a portal's 412 is not the relay's.
    match (answer.status.as_u16(), &answer.problem) {
        (201 | 204, _) => {
            let version = answer.etag.as_deref().and_then(version_in).ok_or_else(not_a_relay)?;
            Ok(BookVerdict::Taken(version))
        }
        (200, _) => {
            let (version, document) = opened(&answer, &report.book)?;
            Ok(BookVerdict::Merged { version, content: document.content })
        }
        (412, Some(_)) => Ok(match entries(&answer.body) {
            entries if entries.is_empty() => BookVerdict::Stale,
            entries => BookVerdict::Conflict { entries },
        }),
        (400 | 403 | 404 | 409 | 413 | 415 | 428, Some(Problem { code, words })) => {
            Ok(BookVerdict::Refused { code: code.as_str().into(), words: words.as_str().into() })
        }
        _ => Err(answer.error()),
    }
}

/// Reads a book as it stands.
pub(super) async fn get(request: RequestBuilder, book: &BookId) -> Result<Option<BookDocument>, HttpError> {
    let answer = read_within(request.send().await.map_err(unreachable)?, MAX_SIZE).await?;
    match (answer.status.as_u16(), &answer.problem) {
        (200, _) => Ok(Some(opened(&answer, book)?.1)),
        (404, Some(problem)) if problem.code == "unknown-book" => Ok(None),
        _ => Err(answer.error()),
    }
}

fn opened(answer: &Answer, book: &BookId) -> Result<(Version, BookDocument), HttpError> {
    let document = BookDocument::parse(&answer.body)
        .map_err(|error| HttpError { source: Some(error.into()), ..not_a_relay() })?;
    match (&document.book, document.version) {
        (Some(named), Some(version)) if named == book => Ok((version, document)),
        _ => Err(HttpError::new(HttpErrorKind::Unexpected, "the answer is another address book")),
    }
}

fn version_in(etag: &str) -> Option<Version> {
    etag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

/// The entries that are in conflict.
fn entries(problem: &[u8]) -> Vec<(Box<str>, Box<str>)> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(default)]
        errors: Vec<Place>,
    }
    #[derive(Deserialize)]
    struct Place {
        #[serde(default)]
        entry: String,
    }
    let places = serde_json::from_slice::<Wire>(problem).map(|wire| wire.errors).unwrap_or_default();
    let split = |place: Place| place.entry.split_once('/').map(|(kind, name)| (kind.into(), name.into()));
    places.into_iter().filter_map(split).collect()
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
