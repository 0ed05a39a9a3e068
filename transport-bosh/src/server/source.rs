//! Who counts as one, where strangers share something.

use std::net::{IpAddr, Ipv6Addr};

/// The source of what comes from `peer`: an IPv4 address, or the /64 that an IPv6 address is in, since one host has all
/// of it.
pub(super) fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}
