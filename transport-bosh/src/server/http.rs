//! What passes between the connection manager and the HTTP server that hosts it.

use std::{borrow::Cow, net::IpAddr};

use bytes::Bytes;

/// The Content-Type of a `<body/>` whose session asked for no other.
pub const TEXT_XML: &str = "text/xml; charset=utf-8";

/// One HTTP POST to the connection manager's path.
#[derive(Debug)]
#[non_exhaustive]
pub struct Post {
    /// The whole message.
    pub body: Bytes,
    /// Where it comes from: the address that limits count by. Behind a trusted proxy, the one that the proxy names.
    pub peer: IpAddr,
    /// Whether it came over TLS, all the way from the client or its trusted proxy.
    pub secure: bool,
}

impl Post {
    /// `body` from `peer`.
    pub const fn new(body: Bytes, peer: IpAddr, secure: bool) -> Self {
        Self { body, peer, secure }
    }
}

/// What the host answers an HTTP request with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The Content-Type: visible ASCII and blanks alone.
    pub content_type: Cow<'static, str>,
    /// The message. To be sent with a Content-Length, not chunked (XEP-0124 §5).
    pub body: Bytes,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// Whether to close the connection after it.
    pub close: bool,
}

impl Reply {
    pub(crate) const fn new(status: u16, body: Bytes) -> Self {
        Self { status, content_type: Cow::Borrowed(TEXT_XML), body, retry_after: None, close: false }
    }

    /// A message in the usual form, which nearly all have: hosts may keep its header fields.
    pub const fn usual() -> Self {
        Self::new(200, Bytes::new())
    }

    /// Whether its header fields are those of [`Reply::usual`].
    pub fn is_usual(&self) -> bool {
        self.status == 200 && self.content_type == TEXT_XML && self.retry_after.is_none() && !self.close
    }

    const fn text(status: u16, words: &'static str) -> Self {
        Self {
            status,
            content_type: Cow::Borrowed("text/plain; charset=utf-8"),
            body: Bytes::from_static(words.as_bytes()),
            retry_after: None,
            close: false,
        }
    }

    /// Refused for now; come back after `seconds`.
    pub(crate) const fn later(status: u16, words: &'static str, seconds: u32) -> Self {
        let mut reply = Self::text(status, words);
        reply.retry_after = Some(seconds);
        reply
    }

    /// Refused, and the connection closed.
    pub(crate) const fn closing(status: u16, words: &'static str) -> Self {
        let mut reply = Self::text(status, words);
        reply.close = true;
        reply
    }

    /// The answer to GET and HEAD: a small text, since proxies and people probe with it.
    pub const fn greeting() -> Self {
        Self::text(200, "This is a BOSH connection manager (XEP-0124). XMPP clients POST here.\n")
    }

    /// The answer to OPTIONS, by which a browser asks whether a page may POST here.
    pub const fn preflight() -> Self {
        Self::text(204, "")
    }

    /// The answer to any method but POST, GET, HEAD and OPTIONS.
    pub const fn method_not_allowed() -> Self {
        Self::text(405, "Only POST, GET, HEAD and OPTIONS.\n")
    }

    /// The header fields to send, names in lower case. Content-Length and Connection are the host's.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        let retry = self.retry_after.map(|seconds| ("retry-after", Cow::Owned(seconds.to_string())));
        let allow = (self.status == 405).then_some(("allow", Cow::Borrowed("POST, GET, HEAD, OPTIONS")));
        let cors = if self.status == 204 { &CORS[..] } else { &CORS[..1] };
        let cors = cors.iter().map(|&(name, value)| (name, Cow::Borrowed(value)));
        [("content-type", Cow::Borrowed(&*self.content_type)), ("cache-control", Cow::Borrowed("no-store"))]
            .into_iter()
            .chain(retry)
            .chain(allow)
            .chain(cors)
    }
}

/// What lets pages of any origin use the connection manager: `*` without credentials, as sessions live by SID and
/// token, never by cookie. Answers to OPTIONS carry all of them, others the first.
pub const CORS: [(&str, &str); 4] = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "POST, OPTIONS"),
    ("access-control-allow-headers", "Content-Type"),
    ("access-control-max-age", "7200"),
];
