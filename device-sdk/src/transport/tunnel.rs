//! To the relay's WebSocket through a proxy: it is asked for a tunnel (CONNECT, RFC 9110 §9.3.6) by the relay's name, which
//! it resolves. TLS is with the relay.

use std::{fmt, io};

use async_trait::async_trait;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use transport_ws::{
    client::{Dial, Direct, Target},
    stream::BoxStream,
};

use super::Proxy;

/// The longest head of a proxy's answer.
const MAX_HEAD: usize = 16 * 1024;

/// Dials by way of the proxy that is to be taken for the target, if one is.
pub(crate) struct ThroughProxy(Option<Matcher>);

impl fmt::Debug for ThroughProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThroughProxy")
    }
}

impl ThroughProxy {
    pub(crate) fn new(proxy: &Proxy) -> Self {
        Self(proxy.matcher())
    }

    fn proxy_for(&self, target: &Target) -> Option<Intercept> {
        let scheme = if target.secure { "https" } else { "http" };
        self.0.as_ref()?.intercept(&format!("{scheme}://{target}/").parse().ok()?)
    }
}

#[async_trait]
impl Dial for ThroughProxy {
    async fn dial(&self, target: &Target) -> io::Result<BoxStream> {
        match self.proxy_for(target) {
            None => Direct.dial(target).await,
            Some(proxy) => tunnel(&proxy, target).await,
        }
    }
}

async fn tunnel(proxy: &Intercept, target: &Target) -> io::Result<BoxStream> {
    let wrong = |words: String| io::Error::other(words);
    let uri = proxy.uri();
    if uri.scheme_str() != Some("http") {
        return Err(wrong(format!("a proxy by {} is not supported", uri.scheme_str().unwrap_or("nothing"))));
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let at = Target::new(host, uri.port_u16().unwrap_or(80), false);
    let stream = Direct.dial(&at).await?;
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(credentials) = proxy.basic_auth() {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(credentials.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    // What stands after the head in the same packet is the tunnel's, and stays in the buffer for whoever reads next.
    let mut stream = BufReader::new(stream);
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    loop {
        let status = loop {
            let available = stream.fill_buf().await?;
            if available.is_empty() {
                return Err(wrong("the proxy closed the connection".to_owned()));
            }
            let (line, whole) = match available.iter().position(|byte| *byte == b'\n') {
                Some(end) => (&available[..=end], true),
                None => (available, false),
            };
            if head.len() + line.len() > MAX_HEAD {
                return Err(wrong("the proxy's answer has no end".to_owned()));
            }
            head.extend_from_slice(line);
            let read = line.len();
            stream.consume(read);
            if whole && (head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n")) {
                break status_of(&head).ok_or_else(|| wrong("what answered is no HTTP proxy".to_owned()))?;
            }
        };
        match status {
            // RFC 9110 §15.2: more is to come.
            100..=199 => head.clear(),
            200..=299 => return Ok(Box::pin(stream)),
            407 => return Err(wrong("the proxy does not take these credentials (407)".to_owned())),
            other => return Err(wrong(format!("the proxy answered {other}"))),
        }
    }
}

fn status_of(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\n').next()?).ok()?;
    let mut words = line.trim_end().split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
