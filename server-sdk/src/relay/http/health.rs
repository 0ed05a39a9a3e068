//! Whether the relay lives, whether it takes work, and what it counted.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{HeaderValue, header};

use super::{
    Call, access,
    body::{Reply, ReplyBody},
    metrics::Gauges,
    problem::{Code, Problem},
};

fn text(words: impl Into<Bytes>, content_type: &'static str) -> Reply {
    let mut reply = Reply::new(ReplyBody::from(words.into()));
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// The process answers.
pub(super) fn alive() -> Reply {
    text("ok\n", "text/plain; charset=utf-8")
}

/// It takes new work: it is not stopping, and its store can be used.
pub(super) async fn ready(call: Call) -> Result<Reply, Problem> {
    if call.app.stopping.load(Relaxed) {
        return Err(Problem::new(Code::Draining, "the relay is stopping"));
    }
    call.app.store.known(None, 1).await.map_err(Problem::from)?;
    Ok(text("ready\n", "text/plain; charset=utf-8"))
}

/// Counters, as Prometheus reads them.
pub(super) fn metrics(call: &Call) -> Result<Reply, Problem> {
    access::service(call)?;
    let app = &call.app;
    let (connections, strangers) = app.door.counts();
    let now = Gauges {
        connections,
        strangers,
        sessions: app.relay.sessions(),
        ws_channels: app.ws.channels(),
        ws_ignored: app.ws.counters().ignored_elements(),
        ws_faults: app.ws.counters().faults().collect(),
        in_flight: app.relay.in_flight(),
        spooled: usize::try_from(app.spool.used()).unwrap_or(usize::MAX),
        ready: !app.stopping.load(Relaxed),
    };
    Ok(text(app.metrics.text(&now), "text/plain; version=0.0.4; charset=utf-8"))
}
