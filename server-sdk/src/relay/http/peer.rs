//! Who calls: the other end of the connection, or whom a trusted proxy there speaks for.

use std::net::IpAddr;

use http::HeaderMap;

use super::App;

const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// The address that limits count by.
    pub(super) address: IpAddr,
    /// Whether it came over TLS all the way.
    pub(super) secure: bool,
}

impl Peer {
    pub(super) fn of(app: &App, connected: IpAddr, headers: &HeaderMap) -> Self {
        Self::behind(&app.trusted_proxies, connected, headers)
    }

    fn behind(trusted: &[IpAddr], connected: IpAddr, headers: &HeaderMap) -> Self {
        let connected = connected.to_canonical();
        if !is_proxy(trusted, connected) {
            return Self { address: connected, secure: false };
        }
        // Each proxy adds whom it saw at the end: what stands before the first stranger is only that one's word.
        let named = last_first(headers, FORWARDED_FOR)
            .map_while(|text| text.parse().ok())
            .map(|address: IpAddr| address.to_canonical());
        let mut address = connected;
        for named in named {
            address = named;
            if !is_proxy(trusted, named) {
                break;
            }
        }
        let secure =
            last_first(headers, FORWARDED_PROTO).next().is_some_and(|p| p.eq_ignore_ascii_case("https"));
        Self { address, secure }
    }
}

/// Whether a connection from `address` is one of a trusted proxy's.
pub(super) fn is_proxy(trusted: &[IpAddr], address: IpAddr) -> bool {
    trusted.iter().any(|proxy| proxy.to_canonical() == address.to_canonical())
}

/// The members of a list field, the last one first.
fn last_first<'a>(headers: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a str> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    values.into_iter().rev().flat_map(|value| value.rsplit(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn peer(connected: &str, fields: &[(&'static str, &'static str)]) -> (String, bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let trusted = ["127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        let peer = Peer::behind(&trusted, connected.parse().unwrap(), &headers);
        (peer.address.to_string(), peer.secure)
    }

    #[test]
    fn t34_forwarded_fields_count_from_trusted_proxies_alone() {
        let spoofed = [(FORWARDED_FOR, "203.0.113.1"), (FORWARDED_PROTO, "https")];
        assert_eq!(peer("198.51.100.1", &spoofed), ("198.51.100.1".into(), false));
        assert_eq!(peer("127.0.0.1", &spoofed), ("203.0.113.1".into(), true));
        assert_eq!(peer("::ffff:127.0.0.1", &spoofed), ("203.0.113.1".into(), true));
        assert_eq!(peer("127.0.0.1", &[]), ("127.0.0.1".into(), false));
    }

    #[test]
    fn t34_of_a_chain_the_last_stranger_counts() {
        let chain = [(FORWARDED_FOR, "6.6.6.6, 203.0.113.1"), (FORWARDED_FOR, "10.0.0.1")];
        assert_eq!(peer("127.0.0.1", &chain).0, "203.0.113.1");
        assert_eq!(peer("127.0.0.1", &[(FORWARDED_FOR, "6.6.6.6, unknown, 10.0.0.1")]).0, "10.0.0.1");
        assert_eq!(peer("127.0.0.1", &[(FORWARDED_FOR, "nonsense")]).0, "127.0.0.1");
        assert!(!peer("127.0.0.1", &[(FORWARDED_PROTO, "https, http")]).1);
    }
}
