//! Where the device may be sent (L2): a relay that goes may say where to come back, and the device's credential goes
//! along. So it goes to its relay's own address, to what the vendor allowed beside it, and nowhere else.

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use relay_core::transport::Connector;

use crate::{
    error::StartError,
    http::{RelayHttp, client::RelayUrl},
    transport::Better,
};

/// What carries a device's sessions with a relay, and its calls beside them.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    pub(crate) connector: Arc<dyn Connector>,
    /// The better of two transports, if there are two.
    pub(crate) better: Option<Arc<dyn Better>>,
    pub(crate) http: Arc<dyn RelayHttp>,
}

impl Ways {
    /// Ways over one transport.
    pub(crate) fn new(connector: Arc<dyn Connector>, http: Arc<dyn RelayHttp>) -> Self {
        Self { connector, better: None, http }
    }
}

/// Makes the ways to the relay at a URL.
pub(crate) struct Open(Box<OpenAt>);

type OpenAt = dyn Fn(&RelayUrl) -> Result<Ways, StartError> + Send + Sync;

impl Open {
    pub(crate) fn new(open: impl Fn(&RelayUrl) -> Result<Ways, StartError> + Send + Sync + 'static) -> Self {
        Self(Box::new(open))
    }

    pub(crate) fn at(&self, url: &RelayUrl) -> Result<Ways, StartError> {
        (self.0)(url)
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open")
    }
}

/// Why a device does not go where it is sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("what the device was given to connect with goes to one relay")]
    OneRelay,
    #[error("it cannot be used: {0}")]
    Unusable(#[from] StartError),
    #[error("it is neither the device's relay nor among those that were allowed")]
    NotAllowed,
    #[error("it is not encrypted, and where the device is now is")]
    Plaintext,
}

/// Where the device goes.
#[derive(Debug)]
pub(crate) struct Relays {
    home: RelayUrl,
    allowed: Vec<Allowed>,
    allow_plaintext: bool,
    open: Option<Open>,
}

impl Relays {
    /// `home` is the relay that the device is configured for, `allowed` are those that it may be sent to beside it.
    /// Without `open` it can be sent nowhere.
    pub(crate) fn new(
        home: RelayUrl,
        allowed: &[String],
        allow_plaintext: bool,
        open: Option<Open>,
    ) -> Result<Self, StartError> {
        let allowed = allowed
            .iter()
            .map(|text| Allowed::parse(text, allow_plaintext))
            .collect::<Result<Vec<_>, _>>()?;
        if home.is_tls() && allowed.iter().any(|allowed| !allowed.url.is_tls()) {
            return Err(StartError::Plaintext);
        }
        Ok(Self { home, allowed, allow_plaintext, open })
    }

    /// Where the device is configured to go.
    pub(crate) const fn home(&self) -> &RelayUrl {
        &self.home
    }

    /// The relay at `to`, and the ways there, if the device may go there from the relay at `from`.
    pub(crate) fn follow(&self, from: &RelayUrl, to: &str) -> Result<(RelayUrl, Ways), Refused> {
        let open = self.open.as_ref().ok_or(Refused::OneRelay)?;
        let to = RelayUrl::parse(to, self.allow_plaintext)?;
        let home = Allowed { url: self.home.clone(), below: None };
        if !std::iter::once(&home).chain(&self.allowed).any(|allowed| allowed.covers(&to)) {
            return Err(Refused::NotAllowed);
        }
        if from.is_tls() && !to.is_tls() {
            return Err(Refused::Plaintext);
        }
        let ways = open.at(&to)?;
        Ok((to, ways))
    }
}

/// An address that a vendor allowed: an origin and the path that it begins with; `https://*.relay.example` is every name
/// below `relay.example`.
#[derive(Debug, Clone)]
struct Allowed {
    url: RelayUrl,
    /// `.relay.example`, for names below it.
    below: Option<Box<str>>,
}

impl Allowed {
    fn parse(text: &str, allow_plaintext: bool) -> Result<Self, StartError> {
        let url = RelayUrl::parse(text, allow_plaintext)?;
        let host = url.as_url().host_str().unwrap_or_default();
        let below = host.strip_prefix('*').map(Box::from);
        let wrong = |why| Err(StartError::RelayUrl(format!("{text:?}: {why}").into()));
        match below.as_deref().unwrap_or(host) {
            rest if rest.contains('*') => return wrong("`*` stands for the first part of a name alone"),
            // A domain of one label is a registry's: whoever pays has a name below it.
            rest if below.is_some() && !(rest.starts_with('.') && rest.matches('.').count() > 1) => {
                return wrong("`*` wants a domain of one's own after it, such as `*.relay.example`");
            }
            _ => {}
        }
        Ok(Self { url, below })
    }

    fn covers(&self, to: &RelayUrl) -> bool {
        let (own, to) = (self.url.as_url(), to.as_url());
        let host = match (&self.below, to.domain()) {
            (Some(below), Some(name)) => name.len() > below.len() && name.ends_with(&**below),
            (Some(_), None) => false,
            (None, _) => own.host() == to.host(),
        };
        host && own.scheme() == to.scheme()
            && own.port_or_known_default() == to.port_or_known_default()
            // Both end in a slash.
            && to.path().starts_with(own.path())
    }
}
