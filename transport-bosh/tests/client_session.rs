//! The client's sessions against a server that does and says what the test wants.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{
    Body, Response,
    auth::Secret,
    envelope::{Envelope, MAX_INLINE_BODY},
    error::ErrorKind,
    ids::{DeviceId, RequestId, SessionId},
    outcome::Disposition,
    transport::{CloseReason, ConnectOptions, Connector, EndReason, Full, Inbound, Session, Started},
    xml::{Element, Limits},
};
use tokio::sync::{Notify, oneshot};
use transport_bosh::{
    client::{Account, BoshConnector, ClientSettings, XmppClient, XmppSession},
    exchange::{Exchange, ExchangeError, Post, Reply},
    wire::ns,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection manager and XMPP server in a few lines: lets everybody in and says what it is told to say.
#[derive(Debug, Default)]
struct Server {
    state: Mutex<ServerState>,
    changed: Notify,
    fresh: AtomicUsize,
    silent: AtomicBool,
    posts: AtomicUsize,
}

#[derive(Debug, Default)]
struct ServerState {
    held: Option<oneshot::Sender<String>>,
    out: Vec<String>,
    /// Stanzas received after the log-in.
    received: VecDeque<Element>,
    terminated: bool,
    resumable: Option<&'static str>,
}

fn body(attributes: &str, inside: &str) -> String {
    format!("<body {attributes} xmlns='{}' xmlns:stream='{}'>{inside}</body>", ns::BOSH, ns::STREAMS)
}

fn features(inside: &str) -> String {
    format!("<stream:features>{inside}</stream:features>")
}

impl Server {
    /// The answer to a request of the log-in.
    fn negotiate(&self, request: &Element) -> Option<String> {
        if request.attr("sid").is_none() {
            let mechanisms =
                format!("<mechanisms xmlns='{}'><mechanism>PLAIN</mechanism></mechanisms>", ns::SASL);
            let granted = "sid='session-1' wait='50' hold='1' requests='2' inactivity='60'";
            return Some(body(granted, &features(&mechanisms)));
        }
        if request.attr_ns(ns::XBOSH, "restart").is_some() {
            return Some(body("", &features(&format!("<bind xmlns='{}'/>", ns::BIND))));
        }
        let payload = request.children().next()?;
        if payload.is(ns::SASL, "auth") {
            return Some(body("", &format!("<success xmlns='{}'/>", ns::SASL)));
        }
        if payload.child(ns::BIND, "bind").is_some() {
            let bind = format!("<bind xmlns='{}'><jid>printer-1@localhost/r</jid></bind>", ns::BIND);
            return Some(body(
                "",
                &format!("<iq xmlns='jabber:client' id='bind-1' type='result'>{bind}</iq>"),
            ));
        }
        if let Some(resume) = payload.child(ns::RELAY, "resume") {
            let known = self.state.lock().unwrap().resumable;
            let kind = if resume.attr("session") == known { "result" } else { "error" };
            return Some(body("", &format!("<iq xmlns='jabber:client' id='resume-1' type='{kind}'/>")));
        }
        None
    }

    /// Says `stanza` on the held request, or on the next one.
    fn say(&self, stanza: &str) {
        let mut state = self.state.lock().unwrap();
        match state.held.take() {
            Some(held) => drop(held.send(body("", stanza))),
            None => state.out.push(stanza.to_owned()),
        }
    }

    fn end(&self, condition: &str) {
        let held = self.state.lock().unwrap().held.take();
        held.unwrap().send(body(&format!("type='terminate' condition='{condition}'"), "")).unwrap();
    }

    /// The next stanza from the client.
    async fn hear(&self) -> Element {
        self.until("a stanza", |state| state.received.pop_front()).await
    }

    async fn until<T>(&self, what: &str, mut act: impl FnMut(&mut ServerState) -> Option<T>) -> T {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(result) = act(&mut self.state.lock().unwrap()) {
                    return result;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no {what} in time"))
    }

    async fn held(&self) {
        self.until("held request", |state| state.held.is_some().then_some(())).await;
    }

    async fn terminated(&self) {
        self.until("goodbye", |state| state.terminated.then_some(())).await;
    }

    fn is_held(&self) -> bool {
        self.state.lock().unwrap().held.is_some()
    }
}

#[derive(Debug, Clone)]
struct Link(Arc<Server>);

#[async_trait]
impl Exchange for Link {
    async fn post(&self, post: Post) -> Result<Reply, ExchangeError> {
        let server = &self.0;
        server.posts.fetch_add(1, Ordering::SeqCst);
        if server.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        server.fresh.fetch_add(usize::from(post.fresh), Ordering::SeqCst);
        let mut request = Element::parse(&post.body, &Limits::default()).unwrap();
        if let Some(answer) = server.negotiate(&request) {
            return Ok(Reply::new(200, answer));
        }
        let terminate = request.attr("type") == Some("terminate");
        let answer = {
            let mut state = server.state.lock().unwrap();
            state.received.extend(request.take_children());
            state.terminated |= terminate;
            // The newest request is the one that is held.
            let (holder, answer) = oneshot::channel();
            if let Some(older) = state.held.replace(holder) {
                let _ = older.send(body("", &std::mem::take(&mut state.out).concat()));
            }
            if terminate || !state.out.is_empty() {
                let out = std::mem::take(&mut state.out).concat();
                let _ = state.held.take().unwrap().send(body("", &out));
            }
            answer
        };
        server.changed.notify_waiters();
        match answer.await {
            Ok(answer) => Ok(Reply::new(200, answer)),
            // Another copy of the same request took its place.
            Err(_) => std::future::pending().await,
        }
    }

    fn is_confidential(&self) -> bool {
        true
    }
}

/// The owner of a session, as a test wants it.
#[derive(Debug, Default)]
struct Owner {
    events: Mutex<VecDeque<Event>>,
    changed: Notify,
    full: AtomicBool,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Envelope(Envelope),
    Confirmed(u64),
    Ended(EndReason),
}

impl Owner {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push_back(event);
        self.changed.notify_waiters();
    }

    async fn next(&self) -> Event {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(event) = self.events.lock().unwrap().pop_front() {
                    return event;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("something happens")
    }
}

impl Inbound for Owner {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Full(envelope));
        }
        self.note(Event::Envelope(envelope));
        Ok(())
    }
    fn confirmed(&self, number: u64) {
        self.note(Event::Confirmed(number));
    }
    fn ended(&self, reason: EndReason) {
        self.note(Event::Ended(reason));
    }
}

fn options() -> ConnectOptions {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    ConnectOptions::new(DeviceId::new("printer-1").unwrap(), Secret::new("token"), deadline.into_std())
}

async fn connected() -> (Arc<Server>, Session, Arc<Owner>) {
    let server = Arc::new(Server::default());
    let connector = BoshConnector::over(Arc::new(Link(Arc::clone(&server))));
    let mut session = connector.connect(options()).await.unwrap();
    let owner = Arc::new(Owner::default());
    session.push.start(Started::new(session.id.clone(), false, Arc::clone(&owner) as Arc<dyn Inbound>));
    server.held().await;
    (server, session, owner)
}

async fn logged_in() -> (Arc<Server>, XmppSession) {
    let server = Arc::new(Server::default());
    let client = XmppClient::over(Arc::new(Link(Arc::clone(&server))), ClientSettings::new("localhost"));
    let session = client.log_in(Account::new("printer-1", Secret::new("token")), PATIENCE).await.unwrap();
    server.held().await;
    (server, session)
}

async fn push(session: &mut Session, envelope: Envelope) {
    let mut outbox = VecDeque::from([envelope]);
    session.push.push(&mut outbox).await.unwrap();
    assert!(outbox.is_empty());
}

fn id(id: &str) -> RequestId {
    RequestId::new(id).unwrap()
}

fn request_iq(from: &str, iq: &str, request: &str) -> String {
    format!(
        "<iq xmlns='jabber:client' type='get' from='{from}' to='printer-1@localhost/r' id='{iq}'>\
         <request xmlns='urn:relay:1' id='{request}' method='GET' wait='30'><object>1.3.6</object></request></iq>"
    )
}

fn error_condition(iq: &Element) -> &str {
    assert_eq!(iq.attr("type"), Some("error"), "{}", iq.to_document());
    iq.child(ns::CLIENT, "error").unwrap().children().next().unwrap().name()
}

#[tokio::test]
async fn a_request_reaches_the_owner_and_its_response_is_the_iqs_result() {
    let (server, mut session, owner) = connected().await;
    assert_eq!(session.id.as_str(), "session-1");
    server.say(&request_iq("localhost", "q1", "q1"));
    let Event::Envelope(Envelope::Request { id: asked, request, .. }) = owner.next().await else { panic!() };
    assert_eq!((asked, request.objects[0].as_str()), (id("q1"), "1.3.6"));

    push(&mut session, Envelope::Received { id: id("q1") }).await;
    let heard = server.hear().await;
    assert!(heard.is(ns::CLIENT, "message") && heard.attr("to") == Some("localhost"));
    assert!(heard.child(ns::RELAY, "received").is_some());
    let response = Response::with_body(Body::text("42"));
    push(&mut session, Envelope::Response { id: id("q1"), response, acknowledge: true }).await;
    assert_eq!(
        server.hear().await.to_document(),
        "<iq type='result' id='q1' to='localhost' xmlns='jabber:client'><response id='q1' status='ok' \
         xmlns='urn:relay:1'><body type='text/plain; charset=utf-8'>42</body></response></iq>"
    );
    server.say(
        "<message xmlns='jabber:client'><ack xmlns='urn:relay:1' id='q1' outcome='accepted'/></message>",
    );
    let mut seen = Vec::new();
    loop {
        match owner.next().await {
            Event::Envelope(envelope) => {
                assert_eq!(envelope, Envelope::Ack { id: id("q1"), disposition: Disposition::Accepted });
                break;
            }
            Event::Confirmed(number) => seen.push(number),
            Event::Ended(reason) => panic!("{reason:?}"),
        }
    }
    assert_eq!(seen.last(), Some(&2), "both envelopes had certainly arrived: {seen:?}");
}

#[tokio::test]
async fn p3_pings_are_answered_on_either_kind_of_session() {
    let ping =
        "<iq xmlns='jabber:client' type='get' id='p1' from='localhost'><ping xmlns='urn:xmpp:ping'/></iq>";
    let (server, _session, _owner) = connected().await;
    server.say(ping);
    assert_eq!(
        server.hear().await.to_document(),
        "<iq type='result' id='p1' to='localhost' xmlns='jabber:client'/>"
    );
    let (server, _session) = logged_in().await;
    server.say(ping);
    assert_eq!(
        server.hear().await.to_document(),
        "<iq type='result' id='p1' to='localhost' xmlns='jabber:client'/>"
    );
}

#[tokio::test]
async fn x14_what_nobody_serves_is_answered_with_an_error() {
    let (server, _session, _owner) = connected().await;
    for (iq, condition) in [
        (
            "<iq xmlns='jabber:client' type='set' id='a' from='localhost'><query xmlns='jabber:iq:roster'/></iq>".to_owned(),
            "service-unavailable",
        ),
        (request_iq("stranger@localhost/x", "b", "b"), "service-unavailable"),
        (request_iq("localhost", "c", "another"), "bad-request"),
        (request_iq("localhost", "d", "d").replace("method='GET'", ""), "bad-request"),
    ] {
        server.say(&iq);
        assert_eq!(error_condition(&server.hear().await), condition, "{iq}");
        server.held().await;
    }
}

#[tokio::test]
async fn t5_only_the_relay_is_believed_and_only_in_the_right_stanza() {
    let (server, _session, owner) = connected().await;
    let relay = |inside: &str| format!("<message xmlns='jabber:client' from='localhost'>{inside}</message>");
    let cancel = |id: &str| format!("<cancel xmlns='urn:relay:1' id='{id}'/>");
    for stanza in [
        format!("<message xmlns='jabber:client' from='stranger@localhost/x'>{}</message>", cancel("a")),
        format!("<message xmlns='jabber:client' type='error' from='localhost'>{}</message>", cancel("b")),
        format!("<iq xmlns='jabber:client' type='result' id='c' from='localhost'>{}</iq>", cancel("c")),
        format!("<presence xmlns='jabber:client'>{}</presence>", cancel("d")),
        relay("<request xmlns='urn:relay:1' id='e' method='GET'/>"),
        relay("<response xmlns='urn:relay:1' id='f'/>"),
        relay("<hologram xmlns='urn:relay:1'/>"),
        relay("<cancel xmlns='urn:relay:1'/>"),
        relay("<cancel xmlns='urn:other' id='g'/>"),
        relay(&cancel("last")),
    ] {
        server.say(&stanza);
        server.held().await;
    }
    assert_eq!(owner.next().await, Event::Envelope(Envelope::Cancel { id: id("last") }));
}

#[tokio::test]
async fn e1_a_session_that_is_closed_or_dropped_says_goodbye() {
    let (server, mut session, owner) = connected().await;
    session.push.close(CloseReason::Shutdown).await;
    server.terminated().await;
    assert_eq!(owner.next().await, Event::Ended(EndReason::Closed));
    let goodbye = server.hear().await;
    assert!(goodbye.is(ns::CLIENT, "presence") && goodbye.attr("type") == Some("unavailable"));
    let mut outbox = VecDeque::from([Envelope::Ping]);
    let error = session.push.push(&mut outbox).await.unwrap_err();
    assert_eq!((error.kind, outbox.len()), (ErrorKind::Closed, 1), "nothing was taken");

    let (server, session, _owner) = connected().await;
    drop(session);
    server.terminated().await;

    // Without ever having been started, too.
    let server = Arc::new(Server::default());
    let connector = BoshConnector::over(Arc::new(Link(Arc::clone(&server))));
    drop(connector.connect(options()).await.unwrap());
    server.terminated().await;

    let (server, session) = logged_in().await;
    drop(session);
    server.terminated().await;
    let (server, session) = logged_in().await;
    session.close().await;
    server.terminated().await;
}

#[tokio::test]
async fn the_owner_learns_how_a_session_ended() {
    for (condition, reason, kind) in [
        ("item-not-found", EndReason::Expired, ErrorKind::Expired),
        ("system-shutdown", EndReason::Drain { retry_after: None }, ErrorKind::Closed),
        ("policy-violation", EndReason::Overloaded { retry_after: None }, ErrorKind::Overloaded),
    ] {
        let (server, mut session, owner) = connected().await;
        server.end(condition);
        assert_eq!(owner.next().await, Event::Ended(reason));
        let error = session.push.push(&mut VecDeque::from([Envelope::Ping])).await.unwrap_err();
        assert_eq!(error.kind, kind);
    }
}

#[tokio::test]
async fn a_full_owner_stops_the_relay_and_loses_nothing() {
    let (server, _session, owner) = connected().await;
    owner.full.store(true, Ordering::SeqCst);
    let count = 200;
    for n in 0..count {
        server.say(&format!(
            "<message xmlns='jabber:client'><cancel xmlns='urn:relay:1' id='r{n}'/></message>"
        ));
    }
    // One more request may have been on its way; then there is none.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let posts = server.posts.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.posts.load(Ordering::SeqCst), posts, "it goes on asking");
    assert!(!server.is_held());
    owner.full.store(false, Ordering::SeqCst);
    for n in 0..count {
        assert_eq!(owner.next().await, Event::Envelope(Envelope::Cancel { id: id(&format!("r{n}")) }));
    }
    server.held().await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_server_and_loses_nothing() {
    let (server, mut session) = logged_in().await;
    let count = 500;
    for n in 0..count {
        server.say(&format!("<message xmlns='jabber:client' id='{n}'/>"));
    }
    for n in 0..count {
        let stanza = tokio::time::timeout(PATIENCE, session.receive()).await.unwrap().unwrap();
        assert_eq!(stanza.attr("id"), Some(n.to_string().as_str()));
    }
    server.held().await;
}

#[tokio::test]
async fn an_answer_too_large_for_the_session_becomes_an_error_that_says_so() {
    let (server, mut session, _owner) = connected().await;
    let response = Response::with_body(Body::new("image/png", vec![0; MAX_INLINE_BODY + 1]));
    push(&mut session, Envelope::Response { id: id("q1"), response, acknowledge: true }).await;
    let heard = server.hear().await;
    let response = heard.child(ns::RELAY, "response").unwrap();
    assert_eq!((response.attr("id"), response.attr("status")), (Some("q1"), Some("too-large")));
}

#[tokio::test]
async fn a_session_is_resumed_if_the_relay_knows_it() {
    let server = Arc::new(Server::default());
    server.state.lock().unwrap().resumable = Some("old-1");
    let connector = BoshConnector::over(Arc::new(Link(Arc::clone(&server))));
    for (asked, resumed, named) in [("old-1", true, "old-1"), ("old-2", false, "session-1")] {
        let asked = SessionId::new(asked).unwrap();
        let session = connector.connect(options().resuming(Some(asked))).await.unwrap();
        assert_eq!((session.resumed, session.id.as_str()), (resumed, named));
    }
}

#[tokio::test]
async fn refresh_asks_again_on_a_new_connection_at_once() {
    let (server, mut session, _owner) = connected().await;
    let before = server.posts.load(Ordering::SeqCst);
    session.push.refresh();
    server.until("another post", |_| (server.fresh.load(Ordering::SeqCst) == 1).then_some(())).await;
    assert_eq!(server.posts.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn the_deadline_of_connecting_holds() {
    let server = Arc::new(Server::default());
    server.silent.store(true, Ordering::SeqCst);
    let connector = BoshConnector::over(Arc::new(Link(server)));
    let mut options = options();
    options.deadline = (tokio::time::Instant::now() + Duration::from_millis(50)).into_std();
    let error = connector.connect(options).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::TimedOut);
}

#[tokio::test]
async fn t44_neither_sid_nor_token_is_shown() {
    let (_server, session, _owner) = connected().await;
    let (_, xmpp) = logged_in().await;
    let shown = format!("{session:?} {xmpp:?} {:?}", Account::new("printer-1", Secret::new("token-1")));
    assert!(!shown.contains("session-1") && !shown.contains("token-1"), "{shown}");
}
