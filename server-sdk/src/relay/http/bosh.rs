//! `/http-bind`: the connection manager's door.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::Poll,
};

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use transport_bosh::{Post, Reply as BoshReply};

use super::{
    Call,
    body::{self, Reply, ReplyBody},
    problem::Problem,
};

/// Hands a POST to the connection manager and waits for what it has to say.
///
/// Thousands of these wait at any time: the head is gone before the future is made, which carries the body alone, and
/// that only until it is read.
pub(super) fn exchange(call: Call) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let Call { app, place, peer, parts, body } = call;
    let encoded = body::refuse_encoded(&parts.headers).map_err(Problem::for_any_origin);
    let at_once = match parts.method {
        Method::POST => None,
        Method::GET | Method::HEAD => Some(BoshReply::greeting()),
        Method::OPTIONS => Some(BoshReply::preflight()),
        _ => Some(BoshReply::method_not_allowed()),
    };
    drop(parts);
    async move {
        if let Some(reply) = at_once {
            return Ok(to_http(reply));
        }
        app.metrics.bosh_posts.fetch_add(1, Relaxed);
        encoded?;
        let bytes =
            body::read(body, app.limits.max_bosh_body, &app).await.map_err(Problem::for_any_origin)?;
        let mut exchange = app.bosh.exchange(Post::new(bytes, peer.address, peer.secure));
        // Held means that the manager knows the session: this is no stranger's connection.
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut exchange).poll(cx))).await;
        let reply = match first {
            Poll::Ready(reply) => reply,
            Poll::Pending => {
                place.trust();
                exchange.await
            }
        };
        if !reply.close && reply.status == 200 {
            place.trust();
        }
        Ok(to_http(reply))
    }
}

fn to_http(reply: BoshReply) -> Reply {
    let mut http = Reply::new(ReplyBody::default());
    *http.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = http.headers_mut();
    for (name, value) in reply.headers() {
        let value = match value {
            std::borrow::Cow::Borrowed(_) => HeaderValue::from_str(&value),
            std::borrow::Cow::Owned(value) => HeaderValue::try_from(value),
        };
        if let Ok(value) = value {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if reply.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    *http.body_mut() = ReplyBody::from(reply.body);
    http
}
