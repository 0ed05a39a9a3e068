//! The answer to an upgrade request, and what it means for the device.

use std::{io, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header, response};
use relay_core::error::{ErrorKind, TransportError};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{NAME, wire::handshake::AnswerError};

/// The longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;
/// The most fields of it.
const MAX_FIELDS: usize = 100;
/// The longest body of a refusal that is read.
const MAX_BODY: usize = 16 * 1024;
/// Answers before the answer (RFC 9110 §15.2).
const MAX_INTERIM: usize = 4;
/// T52: no peer makes a device wait for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How the relay's errors are called.
const PROBLEM: &str = "urn:relay:error:";
/// The code for a job that there is not, or not any more.
const UNKNOWN_JOB: &str = "unknown-request";

/// The relay's own refusal: it means what it says, and another transport would be told the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the relay answered {status} ({code}): {words}")]
#[non_exhaustive]
pub struct RelayProblem {
    /// The HTTP status.
    pub status: u16,
    /// The error's code, as in the relay's API.
    pub code: Box<str>,
    /// The relay's words.
    pub words: Box<str>,
}

/// No WebSocket to a relay here: what answered is none, or something in between lets none through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoWebSocket {
    /// An answer other than 101 that is not the relay's own: a page, a redirect, a proxy's error.
    #[error("what answered {status} is no relay that speaks WebSocket")]
    Answer {
        /// The HTTP status.
        status: u16,
    },
    /// A 101 that is not what was asked for.
    #[error(transparent)]
    Upgrade(#[from] AnswerError),
    /// Not HTTP, or too much of it.
    #[error("the answer is no HTTP/1.1 that can be read")]
    NoHttp,
    /// The connection ended, or broke, before there was an answer.
    #[error("the connection ended before there was an answer")]
    Cut,
}

/// The relay's own refusal, if `error` is one. Whatever else kept [`connect`](relay_core::transport::Connector::connect)
/// from a session may be the network's doing, and another transport may get through.
pub fn relay_said(error: &TransportError) -> Option<&RelayProblem> {
    error.source.as_ref()?.downcast_ref()
}

impl From<NoWebSocket> for TransportError {
    fn from(error: NoWebSocket) -> Self {
        Self::new(NAME, ErrorKind::Unreachable, "no WebSocket to a relay could be opened").with_source(error)
    }
}

impl From<io::Error> for NoWebSocket {
    fn from(_: io::Error) -> Self {
        Self::Cut
    }
}

/// The head of an answer, and what was read after it.
pub(super) struct Answer {
    pub(super) head: response::Parts,
    pub(super) rest: Vec<u8>,
}

/// Reads the head of the answer.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Answer, NoWebSocket> {
    let mut bytes = Vec::new();
    let mut interim = 0;
    loop {
        if let Some((head, size)) = parse(&bytes)? {
            bytes.drain(..size);
            if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(NoWebSocket::NoHttp);
                }
                continue;
            }
            return Ok(Answer { head, rest: bytes });
        }
        if bytes.len() >= MAX_HEAD {
            return Err(NoWebSocket::NoHttp);
        }
        let mut some = [0; 1024];
        match stream.read(&mut some).await? {
            0 => return Err(NoWebSocket::Cut),
            read => bytes.extend_from_slice(&some[..read]),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(response::Parts, usize)>, NoWebSocket> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    let size = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(NoWebSocket::NoHttp),
    };
    let mut headers = HeaderMap::new();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| NoWebSocket::NoHttp)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| NoWebSocket::NoHttp)?;
        headers.append(name, value);
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(NoWebSocket::NoHttp)?;
    let (mut head, ()) = http::Response::new(()).into_parts();
    head.status = status;
    head.version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    head.headers = headers;
    Ok(Some((head, size)))
}

/// What an answer other than 101 means.
pub(super) async fn refusal<S: AsyncRead + Unpin>(answer: Answer, stream: &mut S) -> TransportError {
    let Answer { head, rest } = answer;
    let status = head.status;
    let announced = value(&head.headers, &header::CONTENT_TYPE).is_some_and(|kind| {
        kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/problem+json")
    });
    let problem = if announced { body(&head.headers, rest, stream).await } else { None };
    let Some((code, words)) = problem.as_deref().and_then(read_problem) else {
        return NoWebSocket::Answer { status: status.as_u16() }.into();
    };
    let retry_after = value(&head.headers, &header::RETRY_AFTER)
        .and_then(|seconds| seconds.trim().parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Unauthenticated,
        StatusCode::TOO_MANY_REQUESTS => ErrorKind::Overloaded,
        StatusCode::NOT_FOUND if *code == *UNKNOWN_JOB => ErrorKind::Expired,
        _ if status.is_server_error() && retry_after.is_some() => ErrorKind::Overloaded,
        _ if status.is_server_error() => ErrorKind::Unreachable,
        _ => ErrorKind::PeerMisbehaved,
    };
    let mut error = TransportError::new(NAME, kind, "the relay opens nothing").with_source(RelayProblem {
        status: status.as_u16(),
        code,
        words,
    });
    error.retry_after = retry_after;
    error
}

fn value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The body, if it is whole and small.
async fn body<S: AsyncRead + Unpin>(
    headers: &HeaderMap,
    mut body: Vec<u8>,
    stream: &mut S,
) -> Option<Vec<u8>> {
    let length: usize = value(headers, &header::CONTENT_LENGTH)?.parse().ok()?;
    if length > MAX_BODY {
        return None;
    }
    while body.len() < length {
        let mut some = [0; 1024];
        match stream.read(&mut some).await {
            Ok(read @ 1..) => body.extend_from_slice(&some[..read]),
            _ => return None,
        }
    }
    body.truncate(length);
    Some(body)
}

fn read_problem(body: &[u8]) -> Option<(Box<str>, Box<str>)> {
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    let code = problem.get("type")?.as_str()?.strip_prefix(PROBLEM)?;
    let words = problem.get("detail").and_then(serde_json::Value::as_str).unwrap_or("");
    // T43: what a peer wrote is cut before it goes into logs.
    let cut =
        |text: &str| text.chars().filter(|c| !c.is_control()).take(256).collect::<String>().into_boxed_str();
    Some((cut(code), cut(words)))
}
