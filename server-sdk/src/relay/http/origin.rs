//! Where a browser's request comes from (T50).

use http::{HeaderMap, HeaderName, Method, header};

use super::problem::{Code, Problem};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what a page of another site makes a browser send, if it would change something. The API has no cookies, so
/// such a request has no right to anything anyway; this keeps it from being tried.
///
/// Browsers say themselves where a request comes from; those that do not say it in `Sec-Fetch-Site` send an `Origin`,
/// which has to be this host. Programs that are no browsers send neither.
pub(super) fn check(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) || is_own(headers) {
        return Ok(());
    }
    Err(Problem::new(Code::Forbidden, "the request comes from a page of another site").closing())
}

fn is_own(headers: &HeaderMap) -> bool {
    match headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes()) {
        Some(b"same-origin" | b"none") => return true,
        Some(_) => return false,
        None => {}
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return true };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, rest)| rest);
    match (authority, host, origins.next()) {
        (Some(authority), Some(host), None) => authority.eq_ignore_ascii_case(host),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(method: Method, fields: &[(&'static str, &'static str)]) -> bool {
        let headers = fields
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect();
        check(&method, &headers).is_ok()
    }

    #[test]
    fn t50_what_another_sites_page_sends_is_known_as_such() {
        let host = ("host", "relay.example:8080");
        assert!(allowed(Method::POST, &[host]), "no browser");
        assert!(allowed(Method::POST, &[host, ("origin", "http://relay.example:8080")]));
        assert!(allowed(Method::PUT, &[host, ("origin", "https://Relay.Example:8080")]));
        // Behind a proxy that changes Host, the browser's own word is what counts.
        let behind = ("host", "127.0.0.1:8080");
        assert!(allowed(
            Method::POST,
            &[behind, ("origin", "https://relay.example"), ("sec-fetch-site", "same-origin")]
        ));
        for fields in [
            &[host, ("origin", "http://evil.example")][..],
            &[host, ("origin", "http://relay.example")],
            &[host, ("origin", "http://relay.example:8080.evil.example")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[("origin", "http://relay.example:8080")],
            &[host, ("origin", "http://relay.example:8080"), ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site")],
        ] {
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                assert!(!allowed(method, fields), "{fields:?}");
            }
            assert!(allowed(Method::GET, fields), "what changes nothing is none of its business");
        }
    }
}
