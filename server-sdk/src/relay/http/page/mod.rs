//! The page for people (A6), at `/`, and the few files that it is made of.
//!
//! They are part of the program: there is nothing to build, and a browser loads nothing from anywhere else. The page
//! calls the API as any service does, with a key in `Authorization`; it keeps no cookie, so a request that another site
//! makes a browser send carries nobody's right to anything.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};

use super::body::{Reply, ReplyBody};

/// A file of the page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The page itself.
pub(super) static INDEX: Asset =
    Asset { name: "", content_type: "text/html; charset=utf-8", content: include_str!("index.html") };

/// What it loads from `/console/`.
static ASSETS: [Asset; 7] = [
    Asset { name: "app.js", content_type: SCRIPT, content: include_str!("app.js") },
    Asset { name: "icon.svg", content_type: "image/svg+xml", content: include_str!("icon.svg") },
    Asset { name: "jobs.js", content_type: SCRIPT, content: include_str!("jobs.js") },
    Asset { name: "printers.js", content_type: SCRIPT, content: include_str!("printers.js") },
    Asset { name: "relay.js", content_type: SCRIPT, content: include_str!("relay.js") },
    Asset { name: "style.css", content_type: "text/css; charset=utf-8", content: include_str!("style.css") },
    Asset { name: "words.js", content_type: SCRIPT, content: include_str!("words.js") },
];

/// The file of that name.
pub(super) fn asset(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}

/// T50: nothing runs or loads but these files, nobody frames the page, no form leads elsewhere, and no script writes
/// markup.
const POLICY: &str = "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The file as an answer.
pub(super) fn reply(asset: &'static Asset) -> Reply {
    let mut reply = Reply::new(ReplyBody::from(Bytes::from_static(asset.content.as_bytes())));
    let headers = reply.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, asset.content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The relay may be another version tomorrow, and all files of the page change with it.
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t50_the_page_has_no_markup_that_runs_and_no_script_that_writes_markup() {
        for unwanted in ["<script>", "style=", "onclick", "onload=", "javascript:", "http:", "https:"] {
            assert!(!INDEX.content.contains(unwanted), "{unwanted}");
        }
        for asset in ASSETS.iter().filter(|asset| asset.content_type == SCRIPT) {
            for unwanted in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "Function(",
                "localStorage",
                "cookie",
            ] {
                assert!(!asset.content.contains(unwanted), "{unwanted} in {}", asset.name);
            }
        }
    }

    #[test]
    fn a6_the_page_loads_nothing_that_is_not_there() {
        let mut loaded: Vec<&str> =
            INDEX.content.split('"').filter_map(|text| text.strip_prefix("/console/")).collect();
        for asset in &ASSETS {
            loaded.extend(asset.content.split('"').filter_map(|text| text.strip_prefix("./")));
        }
        for name in &loaded {
            assert!(asset(name).is_some(), "{name}");
        }
        for asset in &ASSETS {
            assert!(loaded.contains(&asset.name), "{} is loaded by nobody", asset.name);
        }
    }
}
