use async_trait::async_trait;
use relay_core::{
    error::{ErrorKind, TransportError},
    transport::{ConnectOptions, Session, TransportInfo},
};

use super::*;
use crate::http::client::HttpRelay;

#[derive(Debug)]
struct Unplugged;

#[async_trait]
impl Connector for Unplugged {
    fn info(&self) -> TransportInfo {
        TransportInfo::new("unplugged")
    }

    async fn connect(&self, _: ConnectOptions) -> Result<Session, TransportError> {
        Err(TransportError::new("unplugged", ErrorKind::Unreachable, "unplugged"))
    }
}

fn url(text: &str) -> RelayUrl {
    RelayUrl::parse(text, true).unwrap()
}

fn relays(home: &str, allowed: &[&str], allow_plaintext: bool) -> Result<Relays, StartError> {
    let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    let open = Open::new(|url| {
        Ok(Ways::new(
            Arc::new(Unplugged),
            Arc::new(HttpRelay::new(
                url.clone(),
                &crate::transport::Proxy::Direct,
                &relay_core::tls::Trust::default(),
            )?),
        ))
    });
    Relays::new(RelayUrl::parse(home, allow_plaintext)?, &allowed, allow_plaintext, Some(open))
}

/// Where a device of `home` ends up that is sent to `to`.
fn sent(home: &str, allowed: &[&str], to: &str) -> Result<String, Refused> {
    let relays = relays(home, allowed, false).unwrap();
    relays.follow(relays.home(), to).map(|(url, _)| url.as_url().to_string())
}

#[test]
fn t15_without_a_word_of_the_vendor_s_a_device_is_sent_nowhere_but_to_its_own_relay() {
    let home = "https://relay.example";
    for to in [
        "https://relay.example",
        "https://RELAY.example:443/",
        "https://relay.example/blue/",
        "https://relay.example\\@other.example/",
    ] {
        assert!(sent(home, &[], to).is_ok(), "{to}");
    }
    for to in [
        "https://other.example/",
        "https://relay.example.other.example/",
        "https://evilrelay.example/",
        "https://a.relay.example/",
        "https://relay.example./",
        "https://relay.example:8443/",
        "https://192.0.2.1/",
        "https://other.example\\.relay.example/",
    ] {
        assert!(matches!(sent(home, &[], to), Err(Refused::NotAllowed)), "{to}");
    }
    for to in [
        "http://relay.example/",
        "//other.example",
        "/elsewhere",
        "",
        "https://",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "wss://relay.example/",
        "https://user:password@relay.example/",
        "https://relay.example/?token=1",
    ] {
        assert!(matches!(sent(home, &[], to), Err(Refused::Unusable(_))), "{to}");
    }
}

#[test]
fn l2_a_device_is_sent_to_what_its_vendor_allowed_and_to_nothing_that_looks_like_it() {
    let home = "https://relay.example/main/";
    let allowed = ["https://b.example:8443", "https://shared.example/ours", "https://*.relays.example"];
    for (to, ends_at) in [
        ("https://relay.example/main/", "https://relay.example/main/"),
        ("https://relay.example/main/two", "https://relay.example/main/two/"),
        ("https://b.example:8443/x", "https://b.example:8443/x/"),
        ("https://shared.example/ours", "https://shared.example/ours/"),
        ("https://eu.relays.example", "https://eu.relays.example/"),
        ("https://1.eu.RELAYS.example", "https://1.eu.relays.example/"),
    ] {
        assert_eq!(sent(home, &allowed, to).unwrap(), ends_at);
    }
    for to in [
        "https://relay.example/",
        "https://relay.example/mainly/",
        "https://relay.example/main/../other/",
        "https://relay.example/main/%2e%2e/other/",
        "https://b.example/",
        "https://shared.example/theirs/",
        "https://shared.example/ours/../theirs/",
        "https://relays.example/",
        "https://eu.relays.example:444/",
        "https://evilrelays.example/",
        "https://eu.relays.example.other.example/",
    ] {
        assert!(matches!(sent(home, &allowed, to), Err(Refused::NotAllowed)), "{to}");
    }
}

#[test]
fn t15_no_word_of_a_relay_s_leads_from_tls_to_plaintext() {
    assert!(matches!(relays("https://a.example", &["http://b.example"], true), Err(StartError::Plaintext)));
    assert!(matches!(relays("https://a.example", &["http://b.example"], false), Err(StartError::Plaintext)));
    let laboratory = relays("http://a.example", &["http://b.example", "https://c.example"], true).unwrap();
    let home = laboratory.home();
    assert!(laboratory.follow(home, "http://b.example").is_ok());
    assert!(laboratory.follow(home, "https://c.example").is_ok());
    let from = url("https://c.example");
    assert!(matches!(laboratory.follow(&from, "http://b.example"), Err(Refused::Plaintext)));
    assert!(matches!(laboratory.follow(&from, "http://a.example"), Err(Refused::Plaintext)));
    let loopback = relays("http://127.0.0.1:8080", &["http://[::1]:8081"], false).unwrap();
    assert!(loopback.follow(loopback.home(), "http://[::1]:8081").is_ok());
    assert!(matches!(loopback.follow(loopback.home(), "http://b.example"), Err(Refused::Unusable(_))));
}

#[test]
fn what_cannot_be_allowed_is_said_at_the_start() {
    for wrong in [
        "",
        "relay.example",
        "ftp://b.example",
        "https://*.example",
        "https://*",
        "https://a.*.example",
        "https://*a.b.example",
    ] {
        assert!(
            matches!(relays("https://a.example", &[wrong], false), Err(StartError::RelayUrl(_))),
            "{wrong}"
        );
    }
}

#[test]
fn a_transport_that_goes_to_one_relay_is_sent_nowhere() {
    let relays = Relays::new(url("https://a.example"), &[], false, None).unwrap();
    assert!(matches!(relays.follow(relays.home(), "https://a.example"), Err(Refused::OneRelay)));
}
