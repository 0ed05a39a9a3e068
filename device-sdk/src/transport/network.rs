//! Which way the device's connections take, as far as it shows without asking anybody: from which network of its own, to
//! which relay. What is learned of one way is not believed of another.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::Url;

use super::Proxy;

/// How long a name may take to be resolved.
const RESOLVED_WITHIN: Duration = Duration::from_secs(2);

/// Looks where the device is.
pub(super) struct Lookout {
    transport: &'static str,
    /// The relay, as its URL names it.
    relay: Box<str>,
    /// Whom connections are made to: the relay, or the proxy before it.
    hop: (Box<str>, u16),
    /// Where that was last.
    at: Mutex<Option<SocketAddr>>,
}

impl fmt::Debug for Lookout {
    // The hop may be a proxy, whose name is nobody's to show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookout").field("relay", &self.relay).finish_non_exhaustive()
    }
}

impl Lookout {
    /// For connections of `transport` to the relay at `url`.
    pub(super) fn new(transport: &'static str, url: &Url, proxy: &Proxy) -> Self {
        let bare = |host: &str| Box::from(host.trim_matches(['[', ']']));
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(443));
        let hop = proxy.matcher().and_then(|matcher| {
            let proxy = matcher.intercept(&url.as_str().parse().ok()?)?;
            let port = proxy.uri().port_u16().unwrap_or(80);
            Some((bare(proxy.uri().host()?), port))
        });
        Self {
            transport,
            relay: format!("{host}:{port}").into(),
            hop: hop.unwrap_or_else(|| (bare(host), port)),
            at: Mutex::new(None),
        }
    }

    /// The way that a new connection takes; `None` if that does not show.
    pub(super) async fn look(&self) -> Option<Box<str>> {
        let (host, port) = &self.hop;
        let found = tokio::time::timeout(RESOLVED_WITHIN, tokio::net::lookup_host((&**host, *port))).await;
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.ok()?.ok()?.next()?);
        self.glance()
    }

    /// The same, without a question to anybody: by what is known already.
    pub(super) fn glance(&self) -> Option<Box<str>> {
        let at = (*self.at.lock().unwrap_or_else(PoisonError::into_inner))?;
        let network = network_towards(at)?;
        Some(format!("{} {} {network}", self.transport, self.relay).into())
    }
}

/// The network of the address that packets to `at` leave from. Nothing is sent.
fn network_towards(at: SocketAddr) -> Option<String> {
    let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(at).ok()?;
    Some(match socket.local_addr().ok()?.ip().to_canonical() {
        // What most networks are: an address from DHCP changes within it.
        IpAddr::V4(address) => format!("{}/24", address & Ipv4Addr::new(255, 255, 255, 0)),
        IpAddr::V6(address) => format!("{}/64", Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
    })
}

#[cfg(test)]
mod tests {
    use relay_core::auth::Secret;

    use super::*;

    fn lookout(url: &str, proxy: &Proxy) -> Lookout {
        Lookout::new("ws", &url.parse().unwrap(), proxy)
    }

    #[tokio::test]
    async fn s4_a_way_is_told_by_transport_relay_and_network() {
        let here = lookout("http://127.0.0.1:8080/", &Proxy::Direct);
        assert_eq!(here.glance(), None, "nothing is known yet");
        let way = here.look().await;
        assert_eq!(way.as_deref(), Some("ws 127.0.0.1:8080 127.0.0.0/24"));
        assert_eq!(here.glance(), way);
    }

    #[tokio::test]
    async fn s4_behind_a_proxy_it_is_the_way_to_the_proxy() {
        let proxy = Proxy::Url(Secret::new("http://user:secret@127.0.0.1:3128"));
        let behind = lookout("https://relay.invalid/", &proxy);
        assert_eq!(behind.look().await.as_deref(), Some("ws relay.invalid:443 127.0.0.0/24"));
        assert!(!format!("{behind:?}").contains("secret"));
    }

    #[tokio::test]
    async fn s4_a_name_that_nobody_knows_is_no_way() {
        assert_eq!(lookout("https://relay.invalid/", &Proxy::Direct).look().await, None);
    }
}
