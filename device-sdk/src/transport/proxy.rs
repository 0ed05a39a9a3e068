//! The way out through an HTTP proxy (S9).
//!
//! Which proxy, if any, is decided as every HTTP client decides it, for the device's HTTP by reqwest, for its WebSockets
//! as there.

#[cfg(any(feature = "ws", feature = "bosh"))]
use hyper_util::client::proxy::matcher::Matcher;
use relay_core::auth::Secret;
use reqwest::Url;

use crate::error::StartError;

/// Which proxy the device takes.
#[derive(Debug, Clone, Default)]
pub(crate) enum Proxy {
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    #[default]
    Environment,
    /// None.
    Direct,
    /// The one at this URL, which may hold a password, for everything.
    Url(Secret),
}

impl Proxy {
    /// Whether it can be used: `http://[user:password@]host[:port]`.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let Self::Url(url) = self else { return Ok(()) };
        // Not echoed: it may hold a password.
        let wrong = |why: &str| Err(StartError::Proxy(why.into()));
        match Url::parse(url.expose()) {
            Err(error) => wrong(&error.to_string()),
            Ok(url) if url.scheme() != "http" => wrong("its scheme is not http"),
            Ok(url) if url.host_str().is_none_or(str::is_empty) => wrong("it names no host"),
            Ok(url) if !matches!(url.path(), "" | "/") || url.query().is_some() => {
                wrong("there is something after its host")
            }
            Ok(_) => Ok(()),
        }
    }

    /// What says which one is taken for a target; `None`: none for any.
    #[cfg(any(feature = "ws", feature = "bosh"))]
    pub(super) fn matcher(&self) -> Option<Matcher> {
        match self {
            Self::Environment => Some(Matcher::from_env()),
            Self::Direct => None,
            Self::Url(url) => Some(Matcher::builder().all(url.expose()).build()),
        }
    }

    /// The same for HTTP.
    pub(crate) fn apply(
        &self,
        builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, reqwest::Error> {
        Ok(match self {
            Self::Environment => builder,
            Self::Direct => builder.no_proxy(),
            Self::Url(url) => builder.proxy(reqwest::Proxy::all(url.expose())?),
        })
    }

    /// The same for BOSH.
    #[cfg(feature = "bosh")]
    pub(crate) fn of_bosh(&self) -> transport_bosh::http::Proxy {
        match self {
            Self::Environment => transport_bosh::http::Proxy::Environment,
            Self::Direct => transport_bosh::http::Proxy::Direct,
            Self::Url(url) => transport_bosh::http::Proxy::Url(url.expose().to_owned()),
        }
    }
}
