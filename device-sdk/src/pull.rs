//! Pull services (S7): what the device's user has it fetch or hand in, by the device's own HTTP stack and proxies, from
//! and to any server.
//!
//! Unlike everything else that a device does, this begins with a URL from outside. The device's credential goes with it
//! to the relay alone, and to wherever a redirect leads no more than to anywhere else.

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use relay_core::{auth::Secret, tls::Trust};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url, header};
use tokio::{sync::watch, time::timeout};

use crate::{
    backoff::{Backoff, Jitter},
    http::client::{ContentRange, bearer, client_for, is_loopback},
    reach::Reach,
    transport::Proxy,
};

/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(30);
/// How long one exchange may take in all.
const WITHIN: Duration = Duration::from_secs(24 * 3600);
const REDIRECTS: usize = 10;
/// How often what broke off is tried again without a byte coming of it.
const TRIES: u32 = 8;
/// The longest words of a server's that are shown, in bytes.
const MAX_WORDS: usize = 256;

/// Why something was not fetched or handed in. What could be helped by trying again was tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The URL is none that can be used.
    #[error("the URL cannot be used: {0}")]
    Url(Box<str>),
    /// `http://` to another machine, and [`allow_plaintext`](crate::Builder::allow_plaintext) was not said; or a redirect
    /// that leaves TLS.
    #[error("that is http:// to another machine, where anybody in between could read or change it")]
    Plaintext,
    /// The server sends from one place to another without end.
    #[error("the server redirects too often")]
    TooManyRedirects,
    /// The server says no.
    #[error("the server says {status}{words}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says of it, if anything: `: …`.
        words: Box<str>,
    },
    /// What broke off cannot be gone on with: the server has something else there now, or does not say what it has.
    #[error("it broke off, and what the server has now may be something else")]
    Changed,
    /// The server was not reached, or fell silent.
    #[error("the server was not reached, or fell silent")]
    Unreachable(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
    /// The server's answer is none that makes sense here.
    #[error("the server's answer makes no sense: {0}")]
    Unexpected(Box<str>),
}

/// What pull services need of the device.
#[derive(Debug, Clone)]
pub(crate) struct Puller {
    pub(crate) reach: watch::Receiver<Reach>,
    pub(crate) allow_plaintext: bool,
    pub(crate) proxy: Proxy,
    pub(crate) trust: Trust,
}

/// Something to be fetched. Made by [`Device::pull`](crate::Device::pull).
#[derive(Debug)]
#[must_use = "nothing is fetched before `start`"]
pub struct Pull {
    puller: Puller,
    url: String,
    from: Option<(u64, String)>,
}

impl Pull {
    pub(crate) const fn new(puller: Puller, url: String) -> Self {
        Self { puller, url, from: None }
    }

    /// Goes on with what an earlier run of the device had of it: `offset` bytes of what was then marked by `etag`
    /// ([`Download::etag`]). If the server has something else there now, that is [`PullError::Changed`].
    pub fn resume_from(mut self, offset: u64, etag: impl Into<String>) -> Self {
        self.from = Some((offset, etag.into()));
        self
    }

    /// Asks for it; resolves when the server has begun to answer.
    ///
    /// # Errors
    /// [`PullError`].
    ///
    /// # Cancel safety
    /// Dropped, nothing is fetched.
    pub async fn start(self) -> Result<Download, PullError> {
        let (offset, etag) = self.from.unwrap_or_default();
        let etag = Some(etag).filter(|etag| is_strong(etag));
        if offset > 0 && etag.is_none() {
            return Err(PullError::Changed);
        }
        let url = self.puller.check(&self.url)?;
        let mut download = Download {
            puller: self.puller,
            url,
            content_type: None,
            etag,
            total: None,
            position: offset,
            body: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(10)),
            failures: 0,
            done: false,
        };
        download.ask().await?;
        Ok(download)
    }
}

/// Something that is being fetched. What breaks off is gone on with from there, if the server can do that.
pub struct Download {
    puller: Puller,
    url: Url,
    content_type: Option<Box<str>>,
    etag: Option<String>,
    total: Option<u64>,
    position: u64,
    body: Option<Response>,
    backoff: Backoff,
    failures: u32,
    done: bool,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("position", &self.position)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Download {
    /// Where it comes from, after redirects.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Its media type, as the server says.
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// What marks this version of it, if the server says so: for [`Pull::resume_from`].
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// How long it is, if the server says so.
    pub const fn total(&self) -> Option<u64> {
        self.total
    }

    /// How much of it was given so far.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, in order; `None` at the end. As fast as they are taken: what is not taken is not fetched.
    ///
    /// # Errors
    /// [`PullError`]: there will be no more.
    ///
    /// # Cancel safety
    /// Dropped before it resolved, no byte is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        loop {
            if self.done {
                return Ok(None);
            }
            let broke = match &mut self.body {
                None => None,
                Some(body) => match timeout(SILENCE, body.chunk()).await {
                    Ok(Ok(Some(bytes))) if bytes.is_empty() => continue,
                    Ok(Ok(Some(bytes))) => {
                        self.position += bytes.len() as u64;
                        self.failures = 0;
                        self.backoff.reset();
                        return Ok(Some(bytes));
                    }
                    Ok(Ok(None)) if self.total.is_none_or(|total| total == self.position) => {
                        (self.done, self.body) = (true, None);
                        continue;
                    }
                    Ok(Ok(None)) => None,
                    Ok(Err(error)) => Some(error),
                    Err(_) => None,
                },
            };
            self.body = None;
            self.again(broke.map(|error| error.without_url().into())).await?;
        }
    }

    /// It broke off.
    async fn again(
        &mut self,
        mut cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<(), PullError> {
        if self.etag.is_none() && self.position > 0 {
            return Err(PullError::Changed);
        }
        let mut seed = [0; 8];
        relay_core::random::fill(&mut seed);
        let mut jitter = Jitter::new(u64::from_le_bytes(seed));
        loop {
            if self.failures >= TRIES {
                return Err(PullError::Unreachable(cause));
            }
            self.failures += 1;
            let wait = self.backoff.next(&mut jitter, None);
            tokio::time::sleep(wait).await;
            match self.ask().await {
                Err(PullError::Unreachable(again)) => cause = again,
                Err(PullError::Refused { status: 429 | 500..=599, .. }) => {}
                answered => return answered,
            }
        }
    }

    /// Asks for what is missing.
    async fn ask(&mut self) -> Result<(), PullError> {
        let (position, etag) = (self.position, self.etag.clone());
        let (url, response) = self
            .puller
            .exchange(Method::GET, self.url.clone(), |request| match &etag {
                Some(etag) if position > 0 => {
                    request.header(header::RANGE, format!("bytes={position}-")).header(header::IF_RANGE, etag)
                }
                _ => request,
            })
            .await?;
        self.url = url;
        let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let range = field(header::CONTENT_RANGE).and_then(ContentRange::parse);
        if let Some(encoding) = field(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            let words = format!("it is encoded as {encoding:?}, which was not asked for");
            return Err(PullError::Unexpected(words.into()));
        }
        match (response.status(), range) {
            (StatusCode::OK, _) if position == 0 => {
                self.total = field(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
            }
            (StatusCode::PARTIAL_CONTENT, Some(ContentRange { first: Some(first), total }))
                if first == position =>
            {
                if field(header::ETAG).is_some_and(|now| Some(now) != self.etag.as_deref()) {
                    return Err(PullError::Changed);
                }
                self.total = total.or(self.total);
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange { total, .. }))
                if total == Some(position) =>
            {
                (self.total, self.done) = (total, true);
                return Ok(());
            }
            (StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE, _) => return Err(PullError::Changed),
            (status, _) if status.is_success() => {
                return Err(PullError::Unexpected(format!("HTTP {}", status.as_u16()).into()));
            }
            _ => return Err(refused(response).await),
        }
        self.content_type = field(header::CONTENT_TYPE).map(Into::into);
        self.etag =
            field(header::ETAG).filter(|etag| is_strong(etag)).map(Into::into).or_else(|| self.etag.take());
        self.body = Some(response);
        Ok(())
    }
}

/// RFC 9110 §13.1.5: a weak mark is none to go on by.
fn is_strong(etag: &str) -> bool {
    etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"')
}

/// Something to be handed in. Made by [`Device::push`](crate::Device::push).
#[derive(Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct Push {
    puller: Puller,
    url: String,
    method: Method,
    content_type: String,
}

impl Push {
    pub(crate) fn new(puller: Puller, url: String, content_type: String) -> Self {
        Self { puller, url, method: Method::PUT, content_type }
    }

    /// By POST instead of PUT.
    pub fn post(mut self) -> Self {
        self.method = Method::POST;
        self
    }

    /// Sends `data`, as fast as the server takes it. A stream can be sent once: what breaks off is to be begun anew, and a
    /// redirect is an error.
    ///
    /// # Errors
    /// [`PullError`]. After [`PullError::Unreachable`] nobody knows what the server has.
    ///
    /// # Cancel safety
    /// Dropped half-way, it breaks off.
    pub async fn send<S, E>(self, data: S) -> Result<(), PullError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let url = self.puller.check(&self.url)?;
        let body = Body::wrap_stream(data.map_err(Into::into));
        let request = self
            .puller
            .request(self.method, &url)?
            .header(header::CONTENT_TYPE, self.content_type)
            .body(body);
        let response = request.send().await.map_err(unreachable)?;
        match response.status() {
            status if status.is_success() => Ok(()),
            _ => Err(refused(response).await),
        }
    }
}

impl Puller {
    fn check(&self, text: &str) -> Result<Url, PullError> {
        let url = Url::parse(text).map_err(|error| PullError::Url(error.to_string().into()))?;
        self.check_url(url)
    }

    fn check_url(&self, url: Url) -> Result<Url, PullError> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(PullError::Url("it has a user name or password in it".into()));
        }
        match (url.scheme(), url.host_str()) {
            ("https", Some(_)) => Ok(url),
            ("http", Some(host)) if self.allow_plaintext || is_loopback(host) => Ok(url),
            ("http", Some(_)) => Err(PullError::Plaintext),
            (scheme, _) => Err(PullError::Url(format!("its scheme is {scheme}, not https or http").into())),
        }
    }

    fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder, PullError> {
        let client: Client = client_for(url, &self.proxy, &self.trust)
            .map_err(|error| PullError::Unreachable(Some(error.into())))?;
        let request = client.request(method, url.clone()).timeout(WITHIN);
        Ok(match self.token_for(url) {
            Some(token) => request.header(header::AUTHORIZATION, bearer(&token)),
            None => request,
        })
    }

    /// T15: the credential is for the relay alone, and never in the clear where the relay itself is not.
    fn token_for(&self, url: &Url) -> Option<Secret> {
        let reach = self.reach.borrow();
        (reach.at.covers(url) && !reach.token.expose().is_empty()).then(|| reach.token.clone())
    }

    /// Follows redirects, each by the same rules as the first step.
    async fn exchange(
        &self,
        method: Method,
        mut url: Url,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<(Url, Response), PullError> {
        for _ in 0..=REDIRECTS {
            let request =
                with(self.request(method.clone(), &url)?).header(header::ACCEPT_ENCODING, "identity");
            let response =
                timeout(SILENCE, request.send()).await.map_err(|_| PullError::Unreachable(None))?;
            let response = response.map_err(unreachable)?;
            let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let location = response.headers().get(header::LOCATION).filter(|_| redirects);
            let Some(location) = location else { return Ok((url, response)) };
            let text =
                location.to_str().map_err(|_| PullError::Unexpected("its Location is no URL".into()))?;
            let next = url.join(text).map_err(|_| PullError::Unexpected("its Location is no URL".into()))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(PullError::Plaintext);
            }
            url = self.check_url(next)?;
        }
        Err(PullError::TooManyRedirects)
    }
}

fn unreachable(error: reqwest::Error) -> PullError {
    PullError::Unreachable(Some(error.without_url().into()))
}

/// What a server says when it says no: the title of a problem (RFC 9457), if that is what it is.
async fn refused(mut response: Response) -> PullError {
    let status = response.status().as_u16();
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    let chunk = timeout(SILENCE, response.chunk()).await;
    let title = match chunk {
        Ok(Ok(Some(bytes))) if is_problem => serde_json::from_slice::<serde_json::Value>(&bytes)
            .ok()
            .and_then(|problem| problem["title"].as_str().map(str::to_owned)),
        _ => None,
    };
    let words = title.map(|title| {
        let title: String = title.chars().filter(|c| !c.is_control()).collect();
        format!(": {}", &title[..title.floor_char_boundary(MAX_WORDS)])
    });
    PullError::Refused { status, words: words.unwrap_or_default().into() }
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
