//! Making the ways to a relay from the device's settings.

use std::{sync::Arc, time::Duration};

use relay_core::{tls::Trust, transport::Connector};
use tokio::sync::broadcast::WeakSender;

#[cfg(any(feature = "ws", feature = "bosh"))]
use super::learning::{Bounds, Keeper, Learning};
#[cfg(any(feature = "ws", feature = "bosh"))]
use super::network::Lookout;
#[cfg(feature = "ws")]
use super::tunnel::ThroughProxy;
use super::{Better, Proxy, Transport};
use crate::{
    error::StartError,
    event::Event,
    http::client::{HttpRelay, RelayUrl},
    relays::Ways,
    state::State,
};

/// What all connections of the device have in common.
#[derive(Debug)]
#[cfg_attr(
    not(all(feature = "ws", feature = "bosh")),
    allow(dead_code, reason = "one transport alone needs less")
)]
pub(crate) struct Opening {
    pub(crate) transport: Transport,
    pub(crate) allow_plaintext: bool,
    pub(crate) proxy: Proxy,
    pub(crate) trust: Trust,
    #[cfg(feature = "bosh")]
    pub(crate) domain: String,
    pub(crate) keepalive: Duration,
    /// How short the keep-alive may become where the network wants it.
    pub(crate) shortest_keepalive: Duration,
    /// Whom to tell what was learned.
    pub(crate) events: WeakSender<Event>,
    pub(crate) state: State,
    pub(crate) seed: u64,
}

type Connectors = (Arc<dyn Connector>, Option<Arc<dyn Better>>);

impl Opening {
    /// The ways to the relay at `url`.
    pub(crate) fn ways(&self, url: &RelayUrl) -> Result<Ways, StartError> {
        let (connector, better) = self.connectors(url)?;
        Ok(Ways { connector, better, http: Arc::new(HttpRelay::new(url.clone(), &self.proxy, &self.trust)?) })
    }

    fn connectors(&self, url: &RelayUrl) -> Result<Connectors, StartError> {
        match self.transport {
            #[cfg(all(feature = "ws", feature = "bosh"))]
            Transport::Auto => {
                let (better, other) = (self.ws(url)?, self.bosh(url)?);
                let auto = super::auto::Auto::new(better, other, is_final, self.state.clone(), self.seed);
                let auto = Arc::new(auto);
                Ok((auto.clone(), Some(auto)))
            }
            #[cfg(feature = "ws")]
            Transport::Ws => Ok((self.ws(url)?, None)),
            #[cfg(all(feature = "ws", not(feature = "bosh")))]
            Transport::Auto => Ok((self.ws(url)?, None)),
            #[cfg(feature = "bosh")]
            Transport::Bosh => Ok((self.bosh(url)?, None)),
            #[cfg(all(feature = "bosh", not(feature = "ws")))]
            Transport::Auto => Ok((self.bosh(url)?, None)),
            #[cfg(not(any(feature = "ws", feature = "bosh")))]
            Transport::Auto => {
                let _ = (url, self);
                Err(StartError::NoConnector)
            }
        }
    }

    /// Between `longest` and the shortest that the device may use.
    #[cfg(any(feature = "ws", feature = "bosh"))]
    fn keeper(&self, transport: &'static str, url: &RelayUrl, [first, longest]: [Duration; 2]) -> Keeper {
        let bounds = Bounds { shortest: self.shortest_keepalive.min(longest), longest, first };
        let lookout = Lookout::new(transport, url.as_url(), &self.proxy);
        Keeper::new(bounds, lookout, self.events.clone(), self.state.clone())
    }

    #[cfg(feature = "ws")]
    fn ws(&self, url: &RelayUrl) -> Result<Arc<dyn Connector>, StartError> {
        let mut settings = transport_ws::WsSettings::new(url.join("ws"));
        settings.allow_plaintext = self.allow_plaintext;
        settings.dial = Arc::new(ThroughProxy::new(&self.proxy));
        settings.trust = self.trust.clone();
        let first = settings.control.keepalive.unwrap_or(self.keepalive);
        let connector = transport_ws::WsConnector::with_settings(settings)
            .map_err(|error| StartError::Tls(error.into()))?;
        // Before the device asks whether its session lives, the keep-alive has shown it.
        let longest = self.keepalive * 5 / 6;
        let keeper = self.keeper(connector.info().name, url, [first, longest]);
        Ok(Arc::new(Learning::new(connector, Arc::new(keeper))))
    }

    /// XMPP over BOSH, beside the relay's API.
    #[cfg(feature = "bosh")]
    fn bosh(&self, url: &RelayUrl) -> Result<Arc<dyn Connector>, StartError> {
        let mut settings = transport_bosh::http::HttpSettings::new(url.join("http-bind"));
        settings.allow_plaintext = self.allow_plaintext;
        settings.proxy = self.proxy.of_bosh();
        settings.trust = self.trust.clone();
        let connector = transport_bosh::client::BoshConnector::with_http(settings)
            .map_err(|error| StartError::Tls(error.into()))?;
        // A survival notification repeats the held request, which the relay then holds anew, and it ends a session over
        // ten repeats of one RID (XEP-0124 §14.3). Held no longer than from one to the next, none is repeated that often.
        let mut longest = self.keepalive;
        let connector = connector.with_domain(self.domain.clone()).with_settings(|bosh| {
            bosh.wait = bosh.wait.min(longest);
            longest = bosh.wait;
        });
        let keeper = Arc::new(self.keeper(connector.info().name, url, [longest, longest]));
        Ok(Arc::new(Learning::new(connector.with_idle_watch(keeper.clone()), keeper)))
    }
}

/// What the relay itself says means what it says, but for what says that no upgrade arrived: the device had sent one.
#[cfg(all(feature = "ws", feature = "bosh"))]
fn is_final(error: &relay_core::error::TransportError) -> bool {
    transport_ws::client::relay_said(error)
        .is_some_and(|problem| !matches!(problem.status, 400 | 404 | 405 | 426))
}
