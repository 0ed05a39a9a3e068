//! One call and its answer: what the relay said, or that it was not the relay who said it.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use relay_core::{auth::Secret, ids::RequestId, outcome::Outcome, retry_after, tls::Trust};
use reqwest::{
    Client, Method, RequestBuilder, Response, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect, retry,
};
use serde::de::DeserializeOwned;

use super::error::{Error, ErrorKind, kind_of};

/// How long after the time of a call the relay's own answer is waited for.
const MARGIN: Duration = Duration::from_secs(5);
/// How long an answer that comes line by line may be silent: three times as long as the relay's is.
const SILENCE: Duration = Duration::from_secs(45);
/// How long the relay may take for what asks no device.
const INQUIRY: Duration = Duration::from_secs(30);
/// The longest words of an answer that stand in an error, in characters.
const MAX_WORDS: usize = 2048;

/// A relay, and the way to it.
pub(super) struct Http {
    client: Client,
    base: Url,
    authorization: HeaderValue,
    max_answer: usize,
}

/// What came back, whole.
pub(super) struct Reply {
    pub(super) content_type: Option<String>,
    pub(super) body: Bytes,
    pub(super) request_id: Option<RequestId>,
}

/// What the relay itself answered.
pub(super) struct Inquired {
    /// 200 to 299, or 304.
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    pub(super) body: Bytes,
}

pub(super) struct Settings {
    pub(super) url: String,
    pub(super) key: Secret,
    pub(super) allow_plaintext: bool,
    pub(super) trust: Trust,
    pub(super) connect_timeout: Duration,
    pub(super) max_answer: usize,
}

impl Http {
    pub(super) fn new(settings: Settings) -> Result<Self, Error> {
        let Settings { url, key, allow_plaintext, trust, connect_timeout, max_answer } = settings;
        let invalid = |words: String| Error::new(ErrorKind::Invalid, words);
        let mut base = Url::parse(&url)
            .map_err(|error| invalid(format!("the relay's address {url:?} is no URL: {error}")))?;
        let local = is_this_machine(&base);
        match base.scheme() {
            "https" => {}
            "http" if allow_plaintext || local => {}
            "http" => {
                let words = format!(
                    "the relay's address {url:?} is plain HTTP to another machine, so key and data could be read on \
                     the way; use https, or allow plaintext"
                );
                return Err(invalid(words));
            }
            _ => return Err(invalid(format!("the relay's address {url:?} is neither https nor http"))),
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(invalid(
                "the relay's address takes no credentials; give the key apart from it".into(),
            ));
        }
        base.set_query(None);
        base.set_fragment(None);
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.expose()))
            .map_err(|_| invalid("the key has characters that no key has".into()))?;
        authorization.set_sensitive(true);
        let no_client = |error: reqwest::Error| {
            Error::new(ErrorKind::Invalid, "no HTTP client can be made").with_source(error)
        };
        // A machine without any certificates can still talk to its own loopback.
        let trust = if base.scheme() == "https" { trust } else { Trust::nobody() };
        let tls = trust
            .client_config()
            .map_err(|error| Error::new(ErrorKind::Invalid, "TLS cannot be set up").with_source(error))?;
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            // T15: a token never follows a redirect.
            .redirect(redirect::Policy::none())
            // Whether asking again is safe is the caller's to judge.
            .retry(retry::never())
            .referer(false)
            .http1_only()
            .tcp_nodelay(true)
            .user_agent(concat!("server-sdk/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(connect_timeout)
            // Shorter than the relay keeps an idle connection, which would else be closed at the moment of use.
            .pool_idle_timeout(Duration::from_secs(50));
        if local {
            // What is meant for this machine does not go to a proxy.
            builder = builder.no_proxy();
        }
        Ok(Self { client: builder.build().map_err(no_client)?, base, authorization, max_answer })
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// A call of `method` to the path of these segments.
    pub(super) fn call(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.client.request(method, self.url(segments)).header(AUTHORIZATION, self.authorization.clone())
    }

    /// The same with a query.
    pub(super) fn call_with_query(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, impl AsRef<str>)],
    ) -> RequestBuilder {
        let mut url = self.url(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query.iter().map(|(name, value)| (name, value.as_ref())));
        }
        self.client.request(method, url).header(AUTHORIZATION, self.authorization.clone())
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(segments);
        }
        url
    }

    /// Makes a call that asks a device, and waits `wait` for its answer.
    pub(super) async fn ask(&self, call: RequestBuilder, wait: Duration) -> Result<Reply, Error> {
        // RFC 7240 §4.3 counts whole seconds.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let call = call.header("Prefer", format!("wait={seconds}"));
        let limit = wait.saturating_add(MARGIN);
        let response = self.send(call, limit).await?;
        let about = About::read(&response);
        let status = response.status().as_u16();
        let body = self.body(response).await.map_err(|error| {
            // F3: a cut body is never an answer, although the relay has said how far the request came.
            error.with_status(status).with_request_id(about.request_id.clone()).with_outcome(about.outcome)
        })?;
        match about.outcome {
            Some(Outcome::Answered) if status == 200 => {
                Ok(Reply { content_type: about.content_type, body, request_id: about.request_id })
            }
            _ if status < 400 => Err(not_the_relay(status, &about)),
            _ => Err(about.error(status, &body)),
        }
    }

    /// Makes a call that asks the relay alone.
    pub(super) async fn inquire(&self, call: RequestBuilder) -> Result<Bytes, Error> {
        self.inquire_with(call).await.map(|inquired| inquired.body)
    }

    /// The same, with what the answer's head says.
    pub(super) async fn inquire_with(&self, call: RequestBuilder) -> Result<Inquired, Error> {
        let inquire = async {
            let response = self.send(call, INQUIRY).await?;
            let about = About::read(&response);
            let etag = text(response.headers(), ETAG.as_str()).map(str::to_owned);
            let status = response.status().as_u16();
            let body = self.body(response).await?;
            match status {
                200..300 | 304 => Ok(Inquired { status, etag, body }),
                0..400 => Err(not_the_relay(status, &about)),
                _ => Err(about.error(status, &body)),
            }
        };
        inquire.await.map_err(Error::of_inquiry)
    }

    /// The same, of which the answer is JSON.
    pub(super) async fn inquire_json<T: DeserializeOwned>(&self, call: RequestBuilder) -> Result<T, Error> {
        let body = self.inquire(call).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let words = "the answer is not what a relay says; is that address a relay's?";
            Error::new(ErrorKind::NotTheRelay, words).with_source(error).of_inquiry()
        })
    }

    /// Makes a call for a job, whose answer comes as the job goes on. `moved` counts what of the call's body went out: as
    /// long as that grows, the relay is not late.
    pub(super) async fn follow(
        &self,
        call: RequestBuilder,
        limit: Duration,
        moved: impl Fn() -> u64,
    ) -> Result<Following, Error> {
        let mut answer = std::pin::pin!(call.send());
        let mut before = moved();
        let response = loop {
            match tokio::time::timeout(limit.saturating_add(MARGIN), &mut answer).await {
                Ok(response) => break response.map_err(|error| self.failed(error))?,
                Err(_) if moved() != before => before = moved(),
                Err(_) => {
                    let words = "the relay did not say in time whether the device takes the job";
                    return Err(Error::new(ErrorKind::Interrupted, words));
                }
            }
        };
        let about = About::read(&response);
        let status = response.status().as_u16();
        match (status, &about.request_id) {
            (200, Some(id)) if about.outcome.is_some() => {
                Ok(Following { id: id.clone(), lines: Lines::of(response) })
            }
            (..400, _) => Err(not_the_relay(status, &about)),
            _ => {
                let body = self.body(response).await.map_err(|error| {
                    error
                        .with_status(status)
                        .with_request_id(about.request_id.clone())
                        .with_outcome(about.outcome)
                })?;
                Err(about.error(status, &body))
            }
        }
    }

    /// Makes a call whose answer is a stream of events.
    pub(super) async fn subscribe(&self, call: RequestBuilder) -> Result<Lines, Error> {
        let subscribe = async {
            let response = call.send().await.map_err(|error| self.failed(error))?;
            let about = About::read(&response);
            let status = response.status().as_u16();
            match status {
                200 if about.is("text/event-stream") => Ok(Lines::of(response)),
                ..400 => Err(not_the_relay(status, &about)),
                _ => Err(about.error(status, &self.body(response).await?)),
            }
        };
        let late = || Err(Error::new(ErrorKind::Interrupted, "the relay did not answer in time"));
        let subscribed = tokio::time::timeout(INQUIRY, subscribe).await;
        subscribed.unwrap_or_else(|_| late()).map_err(Error::of_inquiry)
    }

    async fn send(&self, call: RequestBuilder, limit: Duration) -> Result<Response, Error> {
        call.timeout(limit).send().await.map_err(|error| self.failed(error))
    }

    /// The body, read no further than the bound: what the peer announces proves nothing.
    async fn body(&self, mut response: Response) -> Result<Bytes, Error> {
        let too_large = || {
            let words = format!("the answer has more than {} bytes", self.max_answer);
            Err(Error::new(ErrorKind::TooLarge, words))
        };
        if response.content_length().unwrap_or(0) > self.max_answer as u64 {
            return too_large();
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(error))? {
            if body.len() + chunk.len() > self.max_answer {
                return too_large();
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn failed(&self, error: reqwest::Error) -> Error {
        let place = self.base.origin().ascii_serialization();
        let (kind, words) = if error.is_builder() {
            (ErrorKind::Invalid, "the call cannot be made".to_owned())
        } else if error.is_connect() {
            (ErrorKind::Unreachable, format!("the relay at {place} cannot be reached"))
        } else if error.is_timeout() {
            (ErrorKind::Interrupted, format!("the relay at {place} did not answer in time"))
        } else {
            (
                ErrorKind::Interrupted,
                format!("the connection to the relay at {place} broke before the answer was whole"),
            )
        };
        // The URL is known to the caller, and would be said twice.
        Error::new(kind, words).with_source(error.without_url())
    }
}

/// A job's answer, which comes as the job goes on.
pub(super) struct Following {
    pub(super) id: RequestId,
    lines: Lines,
}

impl Following {
    /// The next line that is whole; `None` once no more comes, however that came about.
    pub(super) async fn line(&mut self) -> Option<BytesMut> {
        self.lines.next().await.ok().flatten()
    }
}

/// An answer that comes line by line.
pub(super) struct Lines {
    response: Response,
    waiting: BytesMut,
}

impl Lines {
    /// The longest line.
    const MAX_LINE: usize = 64 * 1024;

    fn of(response: Response) -> Self {
        Self { response, waiting: BytesMut::new() }
    }

    /// The next line that is whole; `None` at the answer's end. Dropped before it resolves, nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>, Error> {
        let broken = |words| Error::new(ErrorKind::Interrupted, words);
        loop {
            if let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.waiting.split_to(end + 1)));
            }
            if self.waiting.len() > Self::MAX_LINE {
                return Err(Error::new(
                    ErrorKind::NotTheRelay,
                    "a line is longer than any that a relay writes",
                ));
            }
            match tokio::time::timeout(SILENCE, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => self.waiting.extend_from_slice(&chunk),
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => {
                    let error = error.without_url();
                    return Err(broken("the connection to the relay broke").with_source(error));
                }
                Err(_) => return Err(broken("the relay gave no sign of life")),
            }
        }
    }
}

/// What an answer says of itself.
struct About {
    outcome: Option<Outcome>,
    request_id: Option<RequestId>,
    retry_after: Option<Duration>,
    content_type: Option<String>,
    location: Option<String>,
}

impl About {
    fn read(response: &Response) -> Self {
        let headers = response.headers();
        Self {
            outcome: text(headers, "relay-outcome").and_then(|word| word.parse().ok()),
            request_id: text(headers, "relay-request-id").and_then(|id| RequestId::new(id).ok()),
            retry_after: text(headers, RETRY_AFTER.as_str())
                .and_then(|field| retry_after::read(field, text(headers, DATE.as_str()), SystemTime::now())),
            content_type: text(headers, CONTENT_TYPE.as_str()).map(str::to_owned),
            location: text(headers, "location").map(str::to_owned),
        }
    }

    /// Whether the answer is of that media type.
    fn is(&self, media_type: &str) -> bool {
        let essence = self.content_type.as_deref().and_then(|value| value.split(';').next());
        essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media_type))
    }

    /// The error that an answer of `status` with `body` is.
    fn error(self, status: u16, body: &[u8]) -> Error {
        let problem = self
            .is("application/problem+json")
            .then(|| serde_json::from_slice::<Problem>(body).ok())
            .flatten();
        let code = problem.as_ref().and_then(|problem| problem.kind.strip_prefix("urn:relay:error:"));
        let (Some(problem), Some(code)) = (&problem, code) else {
            return not_the_relay(status, &self).with_retry_after(self.retry_after);
        };
        let words = match (&problem.detail, &problem.title) {
            (Some(detail), _) if !detail.is_empty() => readable(detail),
            (_, Some(title)) => readable(title),
            _ => format!("the relay says {code}"),
        };
        Error::new(kind_of(code, status), words)
            .with_status(status)
            .with_code(code)
            .with_outcome(self.outcome)
            .with_request_id(self.request_id)
            .with_retry_after(self.retry_after)
            .with_device_status(problem.device_status.as_deref().map(readable))
    }
}

/// RFC 9457, as far as it matters here.
#[derive(serde::Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: Option<String>,
    detail: Option<String>,
    device_status: Option<String>,
}

fn not_the_relay(status: u16, about: &About) -> Error {
    let words = match &about.location {
        Some(location) => format!(
            "not the relay answered, but something that redirects ({status}) to {}; the key is not sent there",
            readable(location)
        ),
        None => format!("not the relay answered, but something else on the way (HTTP status {status})"),
    };
    Error::new(ErrorKind::NotTheRelay, words).with_status(status)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Words of others, as they may stand in a log or on a terminal (T43).
pub(super) fn readable(words: &str) -> String {
    words.chars().take(MAX_WORDS).map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Whether `url` names this machine, whatever a resolver says.
fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || literal.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}
