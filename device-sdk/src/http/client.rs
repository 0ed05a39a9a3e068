//! [`RelayHttp`] by reqwest.

mod books;
mod job_data;

pub(crate) use self::job_data::ContentRange;

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use relay_core::{
    auth::Secret,
    book::{BookDocument, MAX_SIZE},
    ids::{AccountId, BookId, DeviceId, RequestId, SessionId},
    request::Response,
    retry_after,
    tls::Trust,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, header, redirect};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::json;

use super::{BookReport, BookVerdict, HttpError, HttpErrorKind, JobPart, RelayHttp, Verdict};
use crate::{error::StartError, registration::Registration, transport::Proxy};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long an answer's delivery may take, over what its size takes: said twice is met with 409, so a stale connection is
/// better given up soon.
const DELIVERY_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection rests: a relay of thousands of devices holds none that is idle.
const IDLE: Duration = Duration::from_secs(15);
/// T52: what a relay answers to a device is small; what is longer is not read.
const MAX_ANSWER: usize = 64 * 1024;
/// The slowest uplink that an answer's time is reckoned for, in bytes a second.
const SLOWEST: usize = 8 * 1024;

/// Where the relay is: its origin, and a path if it is not at the root.
#[derive(Debug, Clone)]
pub(crate) struct RelayUrl(Url);

impl RelayUrl {
    pub(crate) fn parse(text: &str, allow_plaintext: bool) -> Result<Self, StartError> {
        let wrong = |why: String| StartError::RelayUrl(format!("{text:?}: {why}").into());
        let mut url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            // Not echoed: it may be a secret.
            return Err(StartError::RelayUrl("it has a user name or password in it".into()));
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return Err(wrong("it names no host".into()));
        };
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(host) || allow_plaintext => {}
            "http" => return Err(StartError::Plaintext),
            other => return Err(wrong(format!("its scheme is {other}, not https or http"))),
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has a query or a fragment".into()));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }

    pub(crate) const fn as_url(&self) -> &Url {
        &self.0
    }

    /// Whether `url` is the relay's: its origin, and below its path.
    pub(crate) fn covers(&self, url: &Url) -> bool {
        self.0.origin() == url.origin() && url.path().starts_with(self.0.path())
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// `path`, made of fixed words and IDs: none of them can leave the relay's own origin.
    pub(crate) fn join(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}{path}", self.0.path()));
        url
    }
}

/// Whether `host`, as a URL has it, is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// What reaches `url`.
pub(crate) fn client_for(url: &Url, proxy: &Proxy, trust: &Trust) -> Result<Client, StartError> {
    client(&tls(url, trust)?, proxy).map_err(|error| StartError::Tls(error.into()))
}

/// The device's credential, as a header has it.
pub(crate) fn bearer(token: &Secret) -> header::HeaderValue {
    let mut value = header::HeaderValue::try_from(format!("Bearer {}", token.expose()))
        .unwrap_or_else(|_| header::HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

fn tls(url: &Url, trust: &Trust) -> Result<ClientConfig, StartError> {
    // A machine without any certificates can still talk to its own loopback.
    let trust = if url.scheme() == "https" { trust } else { &Trust::nobody() };
    trust.client_config().map_err(|error| StartError::Tls(error.into()))
}

/// A client without connections, yet; no redirects.
fn client(tls: &ClientConfig, proxy: &Proxy) -> Result<Client, reqwest::Error> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .http1_only()
        // T15: a token never follows a redirect.
        .redirect(redirect::Policy::none())
        .referer(false)
        // The agent decides about retries; one beneath it would spend a PIN twice.
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_WITHIN)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(2)
        .tcp_nodelay(true)
        .user_agent(concat!("device-sdk/", env!("CARGO_PKG_VERSION")));
    proxy.apply(builder)?.build()
}

/// Calls a relay by HTTP.
#[derive(Debug)]
pub(crate) struct HttpRelay {
    tls: ClientConfig,
    proxy: Proxy,
    client: Mutex<Client>,
    url: RelayUrl,
}

/// What the relay answered, as far as the device is concerned.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
    /// The code of a problem of the relay's own.
    problem: Option<Problem>,
    etag: Option<Box<str>>,
    retry_after: Option<Duration>,
}

#[derive(Debug)]
struct Problem {
    code: String,
    words: String,
}

impl HttpRelay {
    pub(crate) fn new(url: RelayUrl, proxy: &Proxy, trust: &Trust) -> Result<Self, StartError> {
        let tls = tls(url.as_url(), trust)?;
        let client = Mutex::new(client(&tls, proxy).map_err(|error| StartError::Tls(error.into()))?);
        Ok(Self { tls, proxy: proxy.clone(), client, url })
    }

    /// Connections made so far may be dead without a sign, forgotten by a NAT: none of them is used again.
    fn start_afresh(&self) {
        // The old ones may well live: if there is no client to be had, they are better than none.
        if let Ok(fresh) = client(&self.tls, &self.proxy) {
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_to(method, self.url.join(path))
    }

    fn request_to(&self, method: Method, url: Url) -> RequestBuilder {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        client.request(method, url).timeout(ANSWER_WITHIN)
    }

    fn authorized(&self, method: Method, path: &str, token: &Secret) -> RequestBuilder {
        self.request(method, path).header(header::AUTHORIZATION, bearer(token))
    }

    /// To an address book, which takes the time that `bytes` of one take.
    fn to_book(
        &self,
        method: Method,
        token: &Secret,
        account: Option<&AccountId>,
        book: &BookId,
        bytes: usize,
    ) -> RequestBuilder {
        let mut url = self.url.join(&format!("v1/address-books/{book}"));
        if let Some(account) = account {
            url.query_pairs_mut().append_pair("account", account.as_str());
        }
        let request = self.request_to(method, url).header(header::AUTHORIZATION, bearer(token));
        request.timeout(ANSWER_WITHIN + Duration::from_secs((bytes / SLOWEST) as u64))
    }
}

fn unreachable(error: reqwest::Error) -> HttpError {
    HttpError {
        source: Some(error.without_url().into()),
        ..HttpError::new(HttpErrorKind::Unreachable, "the relay was not reached, or its answer was lost")
    }
}

async fn send(request: RequestBuilder) -> Result<Answer, HttpError> {
    read(request.send().await.map_err(unreachable)?).await
}

async fn read(response: reqwest::Response) -> Result<Answer, HttpError> {
    read_within(response, MAX_ANSWER).await
}

async fn read_within(mut response: reqwest::Response, bound: usize) -> Result<Answer, HttpError> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let retry_after = header(header::RETRY_AFTER)
        .and_then(|field| retry_after::read(field, header(header::DATE), SystemTime::now()));
    let is_problem =
        header(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/problem+json"));
    let etag = header(header::ETAG).map(Into::into);
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > bound {
            return Err(HttpError::new(HttpErrorKind::Unexpected, "the answer is longer than a relay's are"));
        }
        body.extend_from_slice(&chunk);
    }
    let problem = is_problem.then(|| problem(&body)).flatten();
    Ok(Answer { status, body, problem, etag, retry_after })
}

fn problem(body: &[u8]) -> Option<Problem> {
    #[derive(Deserialize)]
    struct Wire {
        r#type: String,
        #[serde(default)]
        title: String,
        #[serde(default)]
        detail: String,
    }
    let wire: Wire = serde_json::from_slice(body).ok()?;
    let code = wire.r#type.strip_prefix("urn:relay:error:")?.to_owned();
    let words = if wire.detail.is_empty() { wire.title } else { wire.detail };
    Some(Problem { code, words })
}

impl Answer {
    /// What the answer means when it is not the one hoped for.
    fn error(self) -> HttpError {
        let (kind, words) = match (self.status.as_u16(), self.problem) {
            (429, problem) => {
                (HttpErrorKind::Overloaded, words(problem, "the relay asks for fewer requests"))
            }
            (502..=504, problem) => {
                (HttpErrorKind::Overloaded, words(problem, "the relay is not there for now"))
            }
            (_, None) => (
                HttpErrorKind::Unexpected,
                format!("HTTP {} from something that does not speak as a relay does", self.status.as_u16()),
            ),
            (401 | 403, problem) => (HttpErrorKind::Unauthenticated, words(problem, "not accepted")),
            (404, Some(problem)) if problem.code == "unknown-device" => {
                (HttpErrorKind::UnknownDevice, words(Some(problem), "unknown device"))
            }
            (400..=499, problem) => (HttpErrorKind::Rejected, words(problem, "not accepted")),
            (_, problem) => (HttpErrorKind::Unexpected, words(problem, "the relay failed")),
        };
        HttpError { retry_after: self.retry_after, ..HttpError::new(kind, words) }
    }
}

fn words(problem: Option<Problem>, otherwise: &str) -> String {
    match problem {
        Some(problem) if !problem.words.is_empty() => problem.words,
        _ => otherwise.to_owned(),
    }
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a Answer) -> Result<T, HttpError> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| HttpError { source: Some(error.into()), ..not_a_relay() })
}

fn not_a_relay() -> HttpError {
    HttpError::new(HttpErrorKind::Unexpected, "the answer is none that a relay gives")
}

#[async_trait]
impl RelayHttp for HttpRelay {
    async fn enroll(&self, device: &DeviceId, pin: &Secret) -> Result<Secret, HttpError> {
        #[derive(Deserialize)]
        struct Enrolled {
            token: String,
        }
        let body = json!({ "device_id": device.as_str(), "pin": pin.expose() }).to_string();
        let request = self
            .request(Method::POST, "v1/enroll")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let answer = send(request).await?;
        match answer.status.as_u16() {
            201 => parse::<Enrolled>(&answer).map(|enrolled| Secret::new(enrolled.token)),
            _ => Err(answer.error()),
        }
    }

    async fn register(
        &self,
        device: &DeviceId,
        token: &Secret,
        registration: &Registration,
    ) -> Result<(), HttpError> {
        let body = serde_json::to_vec(registration)
            .map_err(|error| HttpError::new(HttpErrorKind::Rejected, error.to_string()))?;
        let request = self
            .authorized(Method::PUT, &format!("v1/devices/{device}"), token)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let answer = send(request).await?;
        match answer.status.as_u16() {
            200 | 201 => Ok(()),
            _ => Err(answer.error()),
        }
    }

    async fn alive(&self, device: &DeviceId, token: &Secret, session: &SessionId) -> Result<bool, HttpError> {
        #[derive(Deserialize)]
        struct Alive {
            session: String,
        }
        // The question is about the session and the relay, not about a connection from before; and when the session goes
        // on over a fresh connection, so do the answers.
        self.start_afresh();
        let body = json!({ "session": session.as_str() }).to_string();
        let request = self
            .authorized(Method::POST, &format!("v1/devices/{device}/alive"), token)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let answer = send(request).await?;
        match answer.status.as_u16() {
            200 => match parse::<Alive>(&answer)?.session.as_str() {
                "known" => Ok(true),
                "unknown" => Ok(false),
                _ => Err(not_a_relay()),
            },
            _ => Err(answer.error()),
        }
    }

    async fn respond(
        &self,
        token: &Secret,
        id: &RequestId,
        response: &Response,
    ) -> Result<Verdict, HttpError> {
        let size = response.body.as_ref().map_or(0, |body| body.bytes.len());
        let within = DELIVERY_WITHIN + Duration::from_secs((size / SLOWEST) as u64);
        let mut request = self
            .authorized(Method::POST, &format!("v1/requests/{id}/response"), token)
            .timeout(within)
            .header("relay-status", response.status.as_str());
        request = match &response.body {
            Some(body) => request.header(header::CONTENT_TYPE, body.content_type()).body(body.bytes.clone()),
            None => request.header(header::CONTENT_LENGTH, 0),
        };
        let answer = send(request).await?;
        // Only the relay's own words are final: a portal's 403 is not the relay's.
        match (answer.status.as_u16(), &answer.problem) {
            (204, _) => Ok(Verdict::Accepted),
            (403, Some(_)) => Ok(Verdict::Forbidden),
            (404, Some(_)) => Ok(Verdict::Unknown),
            (409, Some(_)) => Ok(Verdict::AlreadyAnswered),
            (410, Some(_)) => Ok(Verdict::TooLate),
            (413, Some(_)) => Ok(Verdict::TooLarge),
            _ => Err(answer.error()),
        }
    }

    async fn job_data(
        &self,
        token: &Secret,
        id: &RequestId,
        from: u64,
    ) -> Result<Option<JobPart>, HttpError> {
        job_data::fetch(self.authorized(Method::GET, &format!("v1/requests/{id}/body"), token), from).await
    }

    async fn report_book(&self, token: &Secret, report: &BookReport) -> Result<BookVerdict, HttpError> {
        let account = report.account.as_ref();
        let bytes = report.document.len() + MAX_SIZE;
        books::put(self.to_book(Method::PUT, token, account, &report.book, bytes), report).await
    }

    async fn book(
        &self,
        token: &Secret,
        account: Option<&AccountId>,
        book: &BookId,
    ) -> Result<Option<BookDocument>, HttpError> {
        books::get(self.to_book(Method::GET, token, account, book, MAX_SIZE), book).await
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
