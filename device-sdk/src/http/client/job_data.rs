//! Reading a job's data: ranges, as RFC 9110 §14 has them, with the whole's hash as RFC 9530 has it.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{RequestBuilder, Response, StatusCode, header};

use super::{not_a_relay, read, unreachable};
use crate::http::{HttpError, HttpErrorKind, JobPart};

/// How long nothing may come: a job's own sender may be slow, and asking anew costs little.
const SILENCE: Duration = Duration::from_secs(30);
/// How long one part may take in all: a printer is slow.
const PART_WITHIN: Duration = Duration::from_secs(3600);

/// The part that begins at `from`.
pub(super) async fn fetch(request: RequestBuilder, from: u64) -> Result<Option<JobPart>, HttpError> {
    let request = request.header(header::RANGE, format!("bytes={from}-")).timeout(PART_WITHIN);
    let response = tokio::time::timeout(SILENCE, request.send()).await.map_err(|_| silent())?;
    let response = response.map_err(unreachable)?;
    let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let range = field(header::CONTENT_RANGE).and_then(ContentRange::parse);
    let sha256 = field(header::HeaderName::from_static("repr-digest")).and_then(sha256);
    match (response.status(), range) {
        (StatusCode::PARTIAL_CONTENT, Some(ContentRange { first: Some(first), total })) if first == from => {
            Ok(Some(part(response, total, sha256)))
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange { first: None, total: Some(total) })) => {
            Ok(Some(JobPart::new(Box::pin(futures_util::stream::empty()), Some(total), sha256)))
        }
        // A server need not know ranges (RFC 9110 §14.2).
        (StatusCode::OK, _) if from == 0 => {
            let total = response.content_length();
            Ok(Some(part(response, total, sha256)))
        }
        (StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, _) => {
            Err(not_a_relay())
        }
        (status, _) => {
            let answer = read(response).await?;
            // Only the relay's own words end a job: a portal's 404 is not the relay's.
            match &answer.problem {
                Some(problem) if problem.code == "no-data-yet" => {
                    Ok(Some(JobPart::new(Box::pin(futures_util::stream::empty()), None, None)))
                }
                Some(_) if matches!(status.as_u16(), 403 | 404 | 409 | 410) => Ok(None),
                _ => Err(answer.error()),
            }
        }
    }
}

fn part(response: Response, total: Option<u64>, sha256: Option<[u8; 32]>) -> JobPart {
    let data = futures_util::stream::unfold(Some(response), |response| async move {
        let mut response = response?;
        match tokio::time::timeout(SILENCE, response.chunk()).await {
            Ok(Ok(Some(bytes))) => Some((Ok(bytes), Some(response))),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some((Err(unreachable(error)), None)),
            Err(_) => Some((Err(silent()), None)),
        }
    });
    JobPart::new(Box::pin(data), total, sha256)
}

fn silent() -> HttpError {
    HttpError::new(HttpErrorKind::Unreachable, "nothing came for too long")
}

/// `bytes 0-99/200`, `bytes 0-99/*`, `bytes */200`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) first: Option<u64>,
    pub(crate) total: Option<u64>,
}

impl ContentRange {
    pub(crate) fn parse(field: &str) -> Option<Self> {
        let (range, total) = field.trim().strip_prefix("bytes ")?.split_once('/')?;
        let total = if total == "*" { None } else { Some(number(total)?) };
        if range == "*" {
            return total.is_some().then_some(Self { first: None, total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let fits = first <= last && total.is_none_or(|total| last < total);
        fits.then_some(Self { first: Some(first), total })
    }
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// The SHA-256 in `Repr-Digest: sha-512=:…:, sha-256=:…:`.
fn sha256(field: &str) -> Option<[u8; 32]> {
    let digests = field.split(',').filter_map(|member| member.trim().split_once('='));
    let (_, value) = digests.into_iter().find(|(name, _)| *name == "sha-256")?;
    let encoded = value.split(';').next()?.trim().strip_prefix(':')?.strip_suffix(':')?;
    STANDARD.decode(encoded).ok()?.try_into().ok()
}

#[cfg(test)]
mod fields {
    use super::*;

    #[test]
    fn t52_a_content_range_is_read_or_is_none() {
        let range = |first, total| Some(ContentRange { first, total });
        assert_eq!(ContentRange::parse("bytes 0-99/200"), range(Some(0), Some(200)));
        assert_eq!(ContentRange::parse("bytes 7-7/*"), range(Some(7), None));
        assert_eq!(ContentRange::parse("bytes */200"), range(None, Some(200)));
        for bad in [
            "",
            "bytes",
            "bytes 0-99",
            "bytes 9-0/200",
            "bytes 0-200/200",
            "bytes */*",
            "items 0-1/2",
            "bytes +1-2/3",
            "bytes 0-99999999999999999999/*",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn t52_a_digest_is_read_or_is_none() {
        let hash = STANDARD.encode([7; 32]);
        assert_eq!(sha256(&format!("sha-256=:{hash}:")), Some([7; 32]));
        assert_eq!(sha256(&format!("sha-512=:AAAA:, sha-256=:{hash}:;q=1")), Some([7; 32]));
        for bad in ["", "sha-256", "sha-256=::", "sha-256=:AAAA:", "sha-256=AAAA", "md5=:AAAA:"] {
            assert_eq!(sha256(bad), None, "{bad}");
        }
    }
}

#[cfg(test)]
#[path = "job_data_tests.rs"]
mod exchanges;
