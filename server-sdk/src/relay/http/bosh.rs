//! `/http-bind`: the connection manager's door.

use std::{
    future::Future,
    sync::{LazyLock, atomic::Ordering::Relaxed},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use transport_bosh::{Post, Reply as BoshReply};

use super::{
    Call,
    body::{self, Reply, ReplyBody},
    problem::Problem,
};

/// The answer to any method but POST: browsers and proxies ask with them what is here.
pub(super) fn probe(method: &Method) -> Reply {
    to_http(match *method {
        Method::GET | Method::HEAD => BoshReply::greeting(),
        Method::OPTIONS => BoshReply::preflight(),
        _ => BoshReply::method_not_allowed(),
    })
}

/// Whether a POST can be taken at all.
pub(super) fn admit(headers: &HeaderMap) -> Result<(), Problem> {
    body::refuse_encoded(headers).map_err(Problem::for_any_origin)
}

/// Hands a POST to the connection manager and waits for what it has to say.
///
/// Thousands of these wait at any time: the head is gone before the future is made, which carries the body alone, and
/// that only until it is read.
pub(super) fn exchange(call: Call) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let Call { app, place, peer, parts, body } = call;
    drop(parts);
    async move {
        app.metrics.bosh_posts.fetch_add(1, Relaxed);
        let bytes =
            body::read(body, app.limits.max_bosh_body, &app).await.map_err(Problem::for_any_origin)?;
        let exchange = app.bosh.exchange(Post::new(bytes, peer.address, peer.secure));
        // Anybody can have a session made and a request of it held: a device that logged in is no stranger.
        if exchange.is_bound() {
            place.trust();
        }
        Ok(to_http(exchange.await))
    }
}

/// The fields of nearly every answer: copying them takes a fraction of making them.
static USUAL: LazyLock<HeaderMap> = LazyLock::new(|| fields(&BoshReply::usual()));

fn to_http(reply: BoshReply) -> Reply {
    let mut http = Reply::new(ReplyBody::default());
    *http.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *http.headers_mut() = if reply.is_usual() { USUAL.clone() } else { fields(&reply) };
    *http.body_mut() = ReplyBody::from(reply.body);
    http
}

fn fields(reply: &BoshReply) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    for (name, value) in reply.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if reply.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers
}
