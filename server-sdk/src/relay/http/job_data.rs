//! `GET /v1/requests/{request}/body`: what a job moves, for a device that reads it beside its session.
//!
//! The data may still be coming in: a part is what is there, and asking for what is not there yet waits. Only the newest
//! reading of a job is served, so that a device which lost a connection is not kept from reading on by its ghost.

use std::time::Duration;

use data_encoding::BASE64;
use http::{HeaderName, HeaderValue, StatusCode, header};
use relay_core::{
    app::{Digest, SourceError},
    ids::RequestId,
    relay::JobData,
};
use tokio::time::{Instant, timeout_at};

use super::{
    Call, access,
    body::{Pieces, Reply, ReplyBody},
    problem::{Code, Problem},
    requests::unknown_request,
};

/// The most bytes in one part: what a device that breaks off may have to fetch again.
const PART: u64 = 4 * 1024 * 1024;
/// What is read at once: what one slow device holds in memory is a few of these.
const PIECE: usize = 16 * 1024;
/// How long a device waits for what is not there yet: proxies cut what is silent for a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(25);
/// How long a device that knows a job waits for a relay that was started anew to know it, too.
const REVIVAL: Duration = Duration::from_secs(10);

/// RFC 9530.
pub(super) const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// `GET /v1/requests/{request}/body`
pub(super) async fn body(call: Call, request: RequestId) -> Result<Reply, Problem> {
    let device = access::any_device(&call)?;
    let range = call.header(&header::RANGE)?.and_then(Range::read);
    let app = call.app.clone();
    drop(call);
    let tracked = app.jobs.for_device(&device, &request);
    let mut data = app.relay.job_data(&device, &request);
    if data.is_none()
        && let Some(tracked) = &tracked
    {
        // The device may be back before its job is: both survived the relay.
        let mut report = tracked.report();
        let deadline = Instant::now() + REVIVAL;
        while data.is_none() && report.borrow_and_update().end.is_none() {
            let next = (Instant::now() + Duration::from_millis(100)).min(deadline);
            if timeout_at(next, report.changed()).await.is_err() && next == deadline {
                break;
            }
            data = app.relay.job_data(&device, &request);
        }
    }
    let data = data.ok_or_else(unknown_request)?;
    let newest = tracked.as_ref().map(|tracked| tracked.read_anew());
    let from = range.map_or(0, |range| range.from);
    let deadline = Instant::now() + LONGEST_WAIT;
    let first = match timeout_at(deadline, data.read(from, PIECE)).await {
        Ok(first) => first.map_err(|error| lost(&error))?,
        Err(_) => {
            return Err(Problem::new(Code::NoDataYet, "there is no more of the data yet; ask again")
                .retry_after(Duration::from_secs(1)));
        }
    };
    let digest = data.digest();
    let (pieces, body) = ReplyBody::stream();
    let mut reply = Reply::new(body);
    let headers = reply.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(digest) = digest {
        headers.insert(REPR_DIGEST, repr_digest(&digest));
    }
    let total = digest.map(|digest| digest.bytes);
    let to = match range {
        Some(_) if first.is_empty() => {
            let mut reply = Problem::new(Code::RangeNotSatisfiable, "the data ends there").reply();
            let headers = reply.headers_mut();
            put(headers, header::CONTENT_RANGE, &format!("bytes */{}", total.unwrap_or(from)));
            if let Some(digest) = digest {
                headers.insert(REPR_DIGEST, repr_digest(&digest));
            }
            return Ok(reply);
        }
        Some(range) => {
            let there = tracked.and_then(|tracked| tracked.available()).or(total).unwrap_or(0);
            let to = there.min(from + PART).max(from + first.len() as u64).min(range.to);
            let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
            put(headers, header::CONTENT_RANGE, &format!("bytes {from}-{}/{total}", to - 1));
            put(headers, header::CONTENT_LENGTH, &(to - from).to_string());
            *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
            to
        }
        None => {
            if let Some(total) = total {
                put(headers, header::CONTENT_LENGTH, &total.to_string());
            }
            u64::MAX
        }
    };
    let reading = Reading { data, at: from, to };
    tokio::spawn(async move {
        let replaced = async {
            match newest {
                Some(newest) => newest.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = reading.give(pieces, first) => {}
            // What was begun breaks off, and whoever read it sees that.
            () = replaced => {}
        }
    });
    Ok(reply)
}

fn put(headers: &mut http::HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

pub(super) fn repr_digest(digest: &Digest) -> HeaderValue {
    let value = format!("sha-256=:{}:", BASE64.encode(&digest.sha256));
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static(""))
}

fn lost(error: &SourceError) -> Problem {
    match error {
        SourceError::BrokeOff { .. } => Problem::new(Code::TooLate, error.to_string()),
        _ => {
            tracing::error!(%error, "a job's data cannot be read");
            Problem::store()
        }
    }
}

/// The one range that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    from: u64,
    /// Exclusive.
    to: u64,
}

impl Range {
    /// `bytes=N-` or `bytes=N-M`; any other is as good as none (RFC 9110 §14.2).
    fn read(value: &str) -> Option<Self> {
        let number =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
        let (unit, range) = value.split_once('=')?;
        let (from, to) = range.trim().split_once('-')?;
        let from = number(from.trim())?;
        let to = match to.trim() {
            "" => u64::MAX,
            to => number(to)?.checked_add(1)?,
        };
        (unit.trim().eq_ignore_ascii_case("bytes") && from < to && from < u64::MAX - PART)
            .then_some(Self { from, to })
    }
}

/// A part of a job's data on its way.
struct Reading {
    data: JobData,
    at: u64,
    to: u64,
}

impl Reading {
    async fn give(mut self, pieces: Pieces, first: bytes::Bytes) {
        let mut piece = first;
        loop {
            let left = usize::try_from(self.to - self.at).unwrap_or(usize::MAX);
            piece.truncate(left);
            if piece.is_empty() {
                return pieces.finish();
            }
            self.at += piece.len() as u64;
            if pieces.send(piece).await.is_err() {
                return;
            }
            if self.at == self.to {
                return pieces.finish();
            }
            let left = usize::try_from(self.to - self.at).unwrap_or(usize::MAX);
            let next = tokio::select! {
                next = self.data.read(self.at, PIECE.min(left)) => next,
                () = pieces.hung_up() => return,
            };
            match next {
                Ok(next) => piece = next,
                // Not finished: part of the data is never taken for all of it.
                Err(error) => {
                    tracing::debug!(%error, "a device's reading broke off");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_or_passed_over() {
        let range = |from, to| Some(Range { from, to });
        for (text, read) in [
            ("bytes=0-", range(0, u64::MAX)),
            ("Bytes = 5 - 9", range(5, 10)),
            ("bytes=5-5", range(5, 6)),
            ("bytes=5-4", None),
            ("bytes=-5", None),
            ("bytes=+5-", None),
            ("bytes=1-2,4-5", None),
            ("bytes=18446744073709551615-", None),
            ("bytes=18446744073709551616-", None),
            ("lines=1-", None),
            ("", None),
        ] {
            assert_eq!(Range::read(text), read, "{text}");
        }
    }
}
