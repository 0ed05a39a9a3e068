//! The HTTP API: sockets, bounds, tokens and JSON, and nothing that the engine should know.
//!
//! A request comes through here in one line: [`listen`] accepts its connection, [`connection`] holds it to its
//! time-outs, [`route`] finds the call, one of [`calls`], [`devices`], [`inquiry`], [`admin`], [`bosh`], [`ws`] and
//! [`health`] does it, and [`problem`] says what went wrong. Head and body are dropped before an answer is awaited: thousands of
//! requests are held at any time.

mod access;
mod admin;
mod body;
mod books;
mod bosh;
mod calls;
mod connection;
mod devices;
mod documents;
mod door;
mod events;
mod health;
mod import;
mod inquiry;
mod intake;
mod job_data;
pub(crate) mod jobs;
mod link;
pub(crate) mod listen;
mod metrics;
mod origin;
mod outcomes;
mod page;
mod peer;
mod problem;
mod requests;
mod route;
mod ws;

use std::{
    convert::Infallible,
    future::Future,
    net::IpAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Method, header, request::Parts};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use relay_core::{Relay, store::Store};
use serde_json::Value;
use tokio::time::Instant;
use tracing::Instrument;
use transport_bosh::ConnectionManager;
use transport_ws::WsManager;

use self::{
    body::{Reply, ReplyBody},
    door::{Door, Place},
    link::Order,
    metrics::Metrics,
    peer::Peer,
    problem::{Code, Problem, shown},
    route::Route,
};
use crate::relay::{
    Convert, auth::Auth, books::Books, config::HttpLimits, directory::Directory, documents::Documents,
    jobs::Jobs, spool::Spool,
};

/// `Relay-Outcome`: how far a request came (L1).
const RELAY_OUTCOME: HeaderName = HeaderName::from_static("relay-outcome");
/// `Relay-Request-Id`: the ID that the relay gave a request.
const RELAY_REQUEST_ID: HeaderName = HeaderName::from_static("relay-request-id");
/// `Relay-Status`: how a device says that a request went.
const RELAY_STATUS: HeaderName = HeaderName::from_static("relay-status");

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) relay: Relay,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) auth: Auth,
    pub(crate) books: Books,
    pub(crate) spool: Spool,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) documents: Documents,
    pub(crate) convert: OnceLock<Arc<dyn Convert>>,
    pub(crate) bosh: ConnectionManager,
    pub(crate) ws: WsManager,
    limits: HttpLimits,
    http: http1::Builder,
    door: Arc<Door>,
    metrics: Metrics,
    outcomes: Arc<outcomes::Outcomes>,
    reading: body::Reading,
    in_flight: access::InFlight,
    directory: Directory,
    stopping: AtomicBool,
    trusted_proxies: Vec<IpAddr>,
}

impl App {
    pub(crate) fn new(
        relay: Relay,
        store: Arc<dyn Store>,
        auth: Auth,
        directory: Directory,
        (bosh, ws): (ConnectionManager, WsManager),
        (documents, jobs): (Documents, Arc<Jobs>),
        (limits, trusted_proxies, watcher_behind): (HttpLimits, Vec<IpAddr>, usize),
    ) -> Self {
        Self {
            books: Books::new(relay.clone(), store.clone()),
            spool: documents.spool().clone(),
            jobs,
            documents,
            convert: OnceLock::new(),
            relay,
            store,
            auth,
            bosh,
            ws,
            http: connection::builder(&limits),
            door: Arc::new(Door::new(limits.max_strangers, limits.head_timeout)),
            metrics: Metrics::default(),
            outcomes: Arc::new(outcomes::Outcomes::new(watcher_behind)),
            reading: body::Reading::new(limits.max_reading),
            in_flight: access::InFlight::new(limits.service_in_flight),
            directory,
            stopping: AtomicBool::new(false),
            trusted_proxies,
            limits,
        }
    }

    /// From now on the server is not ready for new work.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.outcomes.end();
    }

    /// Lets every connection finish what runs on it, and cuts those that take longer than `grace`.
    pub(crate) async fn close(&self, grace: Duration) {
        self.door.order_all(Order::Drain);
        if tokio::time::timeout(grace, self.door.emptied()).await.is_err() {
            self.cut();
            self.door.emptied().await;
        }
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.door.order_all(Order::Abort);
    }
}

/// A connection's way into the house.
#[derive(Debug)]
struct Edge {
    app: Arc<App>,
    place: Arc<Place>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

impl Service<http::Request<Incoming>> for Edge {
    type Response = Reply;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: http::Request<Incoming>) -> Answer {
        self.place.link.busy();
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let span = tracing::debug_span!(
            "http.request",
            peer = %self.place.link.peer,
            method = shown(parts.method.as_str()),
            path = shown(path),
        );
        let answer = self.route(parts, body);
        // Most relays run without it, and then it costs nothing.
        if span.is_disabled() { answer } else { Box::pin(answer.instrument(span)) }
    }
}

impl Edge {
    fn route(&self, parts: Parts, body: Incoming) -> Answer {
        let path = parts.uri.path();
        if parts.uri.path_and_query().map_or(0, |target| target.as_str().len()) > self.app.limits.max_target {
            let words = format!("the target has more than {} bytes", self.app.limits.max_target);
            return self.refuse(&parts, Problem::new(Code::UriTooLong, words).closing());
        }
        let route = match route::find(&parts.method, path) {
            Ok(route) => route,
            Err(problem) => return self.refuse(&parts, problem),
        };
        if !matches!(route, Route::Bosh | Route::WebSocket)
            && let Err(problem) = origin::check(&parts.method, &parts.headers)
        {
            return self.refuse(&parts, problem);
        }
        let peer = Peer::of(&self.app, self.place.link.peer, &parts.headers);
        let call = Call { app: self.app.clone(), place: self.place.clone(), peer, parts, body };
        match route {
            Route::Bosh => match bosh::admit(&call.parts.headers) {
                _ if call.parts.method != Method::POST => {
                    self.answer(std::future::ready(Ok(bosh::probe(&call.parts.method))))
                }
                Ok(()) => self.answer(bosh::exchange(call)),
                Err(problem) => self.answer(std::future::ready(Err(problem))),
            },
            Route::Page(asset) => self.answer(std::future::ready(Ok(page::reply(asset)))),
            Route::WebSocket => self.answer(ws::upgrade(call)),
            Route::Health => self.answer(std::future::ready(Ok(health::alive()))),
            Route::Ready => self.answer(health::ready(call)),
            Route::Metrics => self.answer(async move { health::metrics(&call) }),
            Route::Enroll => self.answer(devices::enroll(call)),
            Route::Register(device) => self.answer(devices::register(call, device)),
            Route::Alive(device) => self.answer(devices::alive(call, device)),
            Route::Respond(request) => self.answer(devices::respond(call, request)),
            Route::Job(target, app) => self.answer(jobs::start(call, target, app)),
            Route::JobData(request) => self.answer(job_data::body(call, request)),
            Route::Request(request) => self.answer(async move { requests::get(&call, &request) }),
            Route::RequestResult(request) => self.answer(async move { requests::result(&call, &request) }),
            Route::ResumeUpload(request) => self.answer(requests::resume(call, request)),
            Route::CancelRequest(request) => self.answer(requests::cancel(call, request)),
            Route::Documents => self.answer(async move { documents::list(&call) }),
            Route::GetDocument(name) => self.answer(documents::get(call, name)),
            Route::PutDocument(name) => self.answer(documents::put(call, name)),
            Route::DeleteDocument(name) => self.answer(documents::delete(call, name)),
            Route::Events => self.answer(events::events(call)),
            Route::Devices => self.answer(inquiry::devices(call)),
            Route::Device(target) => self.answer(inquiry::device(call, target)),
            Route::GetObject(target, object) => self.answer(calls::get(call, target, object)),
            Route::SetObject(target, object) => self.answer(calls::set(call, target, object)),
            Route::Requests(target) => self.answer(calls::request(call, target)),
            Route::Agree(account, device) => self.answer(admin::agree(call, account, device)),
            Route::Withdraw(account, device) => self.answer(admin::withdraw(call, account, device)),
            Route::GetBook(book) => self.answer(books::get(call, book)),
            Route::PutBook(book) => self.answer(books::put(call, book)),
            Route::Import => self.answer(admin::import(call)),
            Route::NewPin(device) => self.answer(admin::new_pin(call, device)),
            Route::Keys => self.answer(async move { admin::keys(&call) }),
            Route::NewKey => self.answer(admin::new_key(call)),
            Route::RevokeKey(key) => self.answer(admin::revoke_key(call, key)),
        }
    }

    /// Boxes a call, once.
    fn answer(&self, call: impl Future<Output = Result<Reply, Problem>> + Send + 'static) -> Answer {
        let (app, place) = (self.app.clone(), self.place.clone());
        // Not an async block: that would hold the call twice, once as it came and once as it is awaited.
        Box::pin(AssertUnwindSafe(call).catch_unwind().map(move |answered| {
            let mut reply = match answered {
                Ok(Ok(reply)) => reply,
                Ok(Err(problem)) => {
                    tracing::debug!(%problem, "refused");
                    problem.reply()
                }
                // A bug, or a hook of the host's: that call fails, nothing else notices.
                Err(_) => {
                    tracing::error!("a call panicked");
                    Problem::new(Code::Internal, "the relay failed in this call").closing().reply()
                }
            };
            app.metrics.answer(reply.status());
            reply.body_mut().begin(&place);
            tracing::debug!(status = reply.status().as_u16(), "answered");
            Ok(reply)
        }))
    }

    fn refuse(&self, parts: &Parts, problem: Problem) -> Answer {
        let problem = if route::is_call(parts.uri.path()) { problem.of_call() } else { problem };
        self.answer(std::future::ready(Err(problem)))
    }
}

/// One HTTP request on its way through.
struct Call {
    app: Arc<App>,
    place: Arc<Place>,
    /// Who calls, as far as that can be believed.
    peer: Peer,
    parts: Parts,
    body: Incoming,
}

impl Call {
    /// A header field's value as text; one that is there more than once or is not ASCII is an error.
    fn header(&self, name: &HeaderName) -> Result<Option<&str>, Problem> {
        text_of(&self.parts.headers, name)
    }

    fn query(&self) -> Result<route::Query, Problem> {
        route::Query::read(self.parts.uri.query())
    }
}

fn text_of<'a>(headers: &'a http::HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::bad(format!("the header field {name} is there more than once")));
    }
    value.to_str().map(Some).map_err(|_| Problem::bad(format!("the header field {name} is not plain text")))
}

/// Whether `headers` announce JSON, or nothing.
fn expect_json(headers: &http::HeaderMap) -> Result<(), Problem> {
    body::refuse_encoded(headers)?;
    let Some(value) = text_of(headers, &header::CONTENT_TYPE)? else { return Ok(()) };
    let essence = value.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(
        Code::UnsupportedMediaType,
        format!("application/json is wanted here, not {}", shown(essence)),
    )
    .closing())
}

/// An answer in JSON.
fn json(status: http::StatusCode, value: &Value) -> Reply {
    let mut reply = Reply::new(ReplyBody::from(bytes::Bytes::from(value.to_string())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// An answer without a body.
fn empty(status: http::StatusCode) -> Reply {
    let mut reply = Reply::new(ReplyBody::default());
    *reply.status_mut() = status;
    reply
}

fn now() -> Instant {
    Instant::now()
}
