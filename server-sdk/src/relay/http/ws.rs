//! `/ws`: the WebSocket's door. A connection that is let through it leaves HTTP, and keeps its place in the house.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use transport_ws::{
    Accepted, Refusal,
    wire::handshake::{HeadError, VERSION},
};

use super::{
    Call,
    body::{Reply, ReplyBody},
    door::Place,
    link::Order,
    problem::{Code, Problem},
};

/// Opens a control session, or below its path the channel of a job, if the head and the token are good and the relay takes
/// it. The connection leaves HTTP once the answer is written.
pub(super) fn upgrade(call: Call) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let Call { app, place, peer, parts, body } = call;
    drop(body);
    async move {
        match app.ws.upgrade(&parts, peer.address).await {
            Ok(accepted) => {
                place.trust();
                let reply = switching(&accepted);
                place.upgrade(accepted);
                Ok(reply)
            }
            Err(refusal) => refuse(&refusal),
        }
    }
}

fn switching(accepted: &Accepted) -> Reply {
    let mut reply = Reply::new(ReplyBody::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in accepted.fields() {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    reply
}

fn refuse(refusal: &Refusal) -> Result<Reply, Problem> {
    let words = refusal.to_string();
    Err(match refusal {
        // RFC 6455 §4.4, RFC 9110 §15.5.22: what is to be asked for instead.
        Refusal::Head(HeadError::NoUpgrade | HeadError::Version) => {
            let mut reply = Problem::new(Code::UpgradeRequired, words).reply();
            let headers = reply.headers_mut();
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
            return Ok(reply);
        }
        Refusal::Head(HeadError::NoToken) | Refusal::Unauthenticated => {
            Problem::new(Code::Unauthenticated, words)
        }
        Refusal::Head(_) => Problem::new(Code::BadRequest, words),
        Refusal::Forbidden => Problem::new(Code::Forbidden, words),
        // As for a job that exists, and is none of this device's business.
        Refusal::UnknownJob => Problem::new(Code::UnknownRequest, words),
        Refusal::TooMany { retry_after } => {
            Problem::new(Code::TooManyRequests, words).retry_after(*retry_after)
        }
        Refusal::Unavailable => Problem::store(),
        Refusal::Busy { retry_after } => Problem::new(Code::Overloaded, words).retry_after(*retry_after),
        _ => Problem::new(Code::Draining, words).retry_after(Duration::from_secs(1)),
    })
}

/// The answer was written: what comes on `stream` from now on is the session's.
pub(super) fn attach(accepted: Accepted, stream: TcpStream, early: &Bytes, place: Arc<Place>) {
    accepted.attach(Upgraded { stream, place, stalled: false }, early);
}

/// A connection that left HTTP. It counts as one until it is closed, and obeys an order to go.
#[derive(Debug)]
struct Upgraded {
    stream: TcpStream,
    place: Arc<Place>,
    /// The last write found the peer's window closed.
    stalled: bool,
}

impl Upgraded {
    fn obey(&self, cx: &mut Context<'_>) -> io::Result<()> {
        self.place.link.waker.register(cx.waker());
        match self.place.link.order() {
            Order::Abort => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.obey(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.stalled = written.is_pending();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        if self.stalled {
            // A reset: what the peer does not read is not kept for it.
            let _ = self.stream.set_zero_linger();
        }
    }
}
