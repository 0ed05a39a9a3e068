//! [`Exchange`] over the network, by reqwest.

use std::{
    fmt,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
pub use relay_core::tls::Trust;
use relay_core::{
    error::{ErrorKind, TransportError},
    retry_after,
};
use reqwest::{Client, Url, header, redirect};
use rustls::ClientConfig;

use crate::{
    NAME,
    exchange::{CONTENT_TYPE, Exchange, ExchangeError, ExchangeErrorKind, Post, Reply, SIMULTANEOUS},
};

/// How to reach a connection manager over the network.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpSettings {
    /// Where it is: `https://relay.example/http-bind`.
    pub url: String,
    /// Whether an `http:` address other than this machine is allowed (no). Everything is then readable on the way.
    pub allow_plaintext: bool,
    /// Whom to trust (the system).
    pub trust: Trust,
    /// Which proxy to take (what the environment says).
    pub proxy: Proxy,
    /// How long a connection may take to be made (10 s).
    pub connect_timeout: Duration,
    /// The largest answer taken, in bytes (512 KiB).
    pub max_reply: usize,
}

impl HttpSettings {
    /// The defaults, for the connection manager at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            allow_plaintext: false,
            trust: Trust::default(),
            proxy: Proxy::default(),
            connect_timeout: Duration::from_secs(10),
            max_reply: 512 * 1024,
        }
    }
}

/// Which proxy is taken.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Proxy {
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, as everybody reads them.
    #[default]
    Environment,
    /// None.
    Direct,
    /// The one at this URL.
    Url(String),
}

impl fmt::Debug for Proxy {
    // A proxy's URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "Environment",
            Self::Direct => "Direct",
            Self::Url(_) => "Url(…)",
        })
    }
}

/// Posts over the network.
pub struct ReqwestExchange {
    settings: HttpSettings,
    url: Url,
    tls: ClientConfig,
    client: Mutex<Client>,
}

impl fmt::Debug for ReqwestExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReqwestExchange").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl ReqwestExchange {
    /// Checks the settings and the certificates. Connects to nobody.
    ///
    /// # Errors
    /// `Unsupported` if the address is none, or in clear to another machine without being allowed; `Internal` if the
    /// trusted certificates cannot be read.
    pub fn new(settings: HttpSettings) -> Result<Self, TransportError> {
        let unsupported = |words: &str| TransportError::new(NAME, ErrorKind::Unsupported, words);
        let url = Url::parse(&settings.url)
            .map_err(|error| unsupported("the connection manager's address is no URL").with_source(error))?;
        match url.scheme() {
            "https" => {}
            "http" if settings.allow_plaintext || is_this_machine(&url) => {}
            "http" => {
                return Err(unsupported(
                    "plain HTTP to another machine is refused: use https, or allow plaintext expressly",
                ));
            }
            _ => return Err(unsupported("the connection manager's address is neither https nor http")),
        }
        if url.host_str().is_none() || !url.username().is_empty() || url.password().is_some() {
            return Err(unsupported(
                "the connection manager's address needs a host and takes no credentials",
            ));
        }
        // A machine without any certificates can still talk to its own loopback.
        let trust = if url.scheme() == "https" { &settings.trust } else { &Trust::nobody() };
        let tls = trust.client_config().map_err(|error| {
            TransportError::new(NAME, ErrorKind::Internal, "TLS cannot be set up").with_source(error)
        })?;
        let client = client(&settings, &tls)?;
        Ok(Self { settings, url, tls, client: Mutex::new(client) })
    }

    /// A client whose connections are all yet to be made, if `fresh`.
    fn client(&self, fresh: bool) -> Result<Client, ExchangeError> {
        let mut current = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh {
            *current = client(&self.settings, &self.tls).map_err(|error| {
                ExchangeError::new(ExchangeErrorKind::Unreachable, "no HTTP client").with_source(error)
            })?;
        }
        Ok(current.clone())
    }

    async fn answer(&self, response: reqwest::Response) -> Result<Reply, ExchangeError> {
        let status = response.status().as_u16();
        let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = field(header::RETRY_AFTER)
            .and_then(|after| retry_after::read(after, field(header::DATE), SystemTime::now()));
        Ok(Reply::new(status, self.body(response).await?).with_retry_after(retry_after))
    }

    /// The body, read no further than the bound: what the peer announces proves nothing.
    async fn body(&self, mut response: reqwest::Response) -> Result<Bytes, ExchangeError> {
        let too_large = || {
            let words = format!("the answer has more than {} bytes", self.settings.max_reply);
            Err(ExchangeError::new(ExchangeErrorKind::TooLarge, words))
        };
        let announced = response.content_length().unwrap_or(0);
        if announced > self.settings.max_reply as u64 {
            return too_large();
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > self.settings.max_reply {
                return too_large();
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

#[async_trait]
impl Exchange for ReqwestExchange {
    async fn post(&self, post: Post) -> Result<Reply, ExchangeError> {
        let sending = self
            .client(post.fresh)?
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, CONTENT_TYPE)
            .timeout(post.timeout)
            .body(post.body)
            .send();
        let response = sending.await.map_err(failed)?;
        self.answer(response).await
    }

    fn is_confidential(&self) -> bool {
        self.url.scheme() == "https"
    }
}

fn failed(error: reqwest::Error) -> ExchangeError {
    let kind = if error.is_connect() {
        if is_untrusted(&error) { ExchangeErrorKind::Untrusted } else { ExchangeErrorKind::Unreachable }
    } else if error.is_timeout() {
        ExchangeErrorKind::TimedOut
    } else {
        ExchangeErrorKind::Interrupted
    };
    // The URL is known to whoever reads this, and may be long.
    ExchangeError::new(kind, "the connection manager did not answer").with_source(error.without_url())
}

/// Whether the peer's certificate was the reason.
fn is_untrusted(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        use rustls::Error as Tls;
        if matches!(error.downcast_ref(), Some(Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented)) {
            return true;
        }
        // An I/O error shows what it wraps as itself, not as its source.
        cause = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

fn client(settings: &HttpSettings, tls: &ClientConfig) -> Result<Client, TransportError> {
    let internal = |error: reqwest::Error| {
        TransportError::new(NAME, ErrorKind::Unsupported, "no HTTP client can be made").with_source(error)
    };
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .redirect(redirect::Policy::custom(redirect))
        // XEP-0124 §14.3 makes a repeat harmless, but only the session knows when one is due.
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(settings.connect_timeout)
        .pool_max_idle_per_host(SIMULTANEOUS)
        // Shorter than servers and balancers keep idle connections: they close them at the moment of use otherwise.
        .pool_idle_timeout(Duration::from_secs(50));
    builder = match &settings.proxy {
        Proxy::Environment => builder,
        Proxy::Direct => builder.no_proxy(),
        Proxy::Url(url) => builder.proxy(reqwest::Proxy::all(url).map_err(internal)?),
    };
    builder.build().map_err(internal)
}

/// Only what keeps method, body, host and secrecy: a SASL message or SID never follows a redirect elsewhere.
fn redirect(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let keeps_method = matches!(attempt.status().as_u16(), 307 | 308);
    let next = attempt.url();
    let same_host = attempt.previous().last().is_some_and(|last| {
        let same_place = next.host_str() == last.host_str();
        let same_scheme =
            next.scheme() == last.scheme() && next.port_or_known_default() == last.port_or_known_default();
        same_place && (same_scheme || (last.scheme() == "http" && next.scheme() == "https"))
    });
    if keeps_method && same_host && attempt.previous().len() <= 3 { attempt.follow() } else { attempt.stop() }
}

/// Whether `url` names this machine, whatever a resolver says.
fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || literal.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
