//! The client's HTTP, byte by byte: what it sends, and what it makes of answers good and bad.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use relay_core::error::ErrorKind;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use transport_bosh::{
    exchange::{Exchange, ExchangeError, ExchangeErrorKind, Post, Reply},
    http::{HttpSettings, Proxy, ReqwestExchange, Trust},
};

/// A request as it came over the wire.
#[derive(Debug, Clone)]
struct Seen {
    connection: usize,
    head: String,
    body: Vec<u8>,
}

/// What the server does with a request.
#[derive(Clone)]
enum Act {
    Answer(Vec<u8>),
    AnswerAndClose(Vec<u8>),
    Close,
    Hang,
}

fn answer(status: &str, headers: &str, body: &str) -> Act {
    let length = body.len();
    Act::Answer(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}").into_bytes())
}

fn ok(body: &str) -> Act {
    answer("200 OK", "Content-Type: text/xml; charset=utf-8\r\n", body)
}

type Script = Arc<dyn Fn(usize) -> Act + Send + Sync>;
type Wrap<S> = Arc<dyn Fn(TcpStream) -> Pin<Box<dyn Future<Output = Option<S>> + Send>> + Send + Sync>;

/// A server that does what the test says, by the number of the request.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let plain: Wrap<TcpStream> = Arc::new(|stream| Box::pin(async { Some(stream) }));
        Self::start_over(plain, script).await
    }

    async fn start_over<S>(wrap: Wrap<S>, script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, all): (Script, _) = (Arc::new(script), Arc::clone(&seen));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (wrap, script, seen) = (Arc::clone(&wrap), Arc::clone(&script), Arc::clone(&all));
                tokio::spawn(async move {
                    if let Some(stream) = wrap(stream).await {
                        serve(stream, connection, &script, &seen).await;
                    }
                });
            }
        });
        Self { port, seen }
    }

    fn settings(&self) -> HttpSettings {
        let mut settings = HttpSettings::new(format!("http://127.0.0.1:{}/http-bind", self.port));
        settings.proxy = Proxy::Direct;
        settings
    }

    fn exchange(&self) -> ReqwestExchange {
        ReqwestExchange::new(self.settings()).unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve<S>(mut stream: S, connection: usize, script: &Script, seen: &Mutex<Vec<Seen>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        let length = header(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = buffer.drain(..length).collect();
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(Seen { connection, head, body });
            seen.len() - 1
        };
        match script(number) {
            Act::Answer(bytes) => stream.write_all(&bytes).await.unwrap(),
            Act::AnswerAndClose(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                let _ = stream.shutdown().await;
                return;
            }
            Act::Close => return,
            Act::Hang => std::future::pending().await,
        }
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn post(body: &'static str) -> Post {
    Post::new(body.into(), Duration::from_secs(10))
}

async fn kind(exchange: &ReqwestExchange) -> ExchangeErrorKind {
    exchange.post(post("x")).await.expect_err("an answer came").kind
}

#[tokio::test]
async fn h1_h2_h5_a_request_is_a_plain_post_of_known_length() {
    let server = Server::start(|_| ok("<body/>")).await;
    let reply = server.exchange().post(post("<body rid='1'/>")).await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (200, &b"<body/>"[..]));
    let [seen] = &server.seen()[..] else { panic!() };
    assert!(seen.head.starts_with("POST /http-bind HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(header(&seen.head, "content-type"), Some("text/xml; charset=utf-8"));
    assert_eq!(header(&seen.head, "content-length"), Some("15"));
    assert_eq!(seen.body, b"<body rid='1'/>");
    for absent in ["transfer-encoding", "accept-encoding", "cookie", "authorization", "expect", "referer"] {
        assert_eq!(header(&seen.head, absent), None, "{}", seen.head);
    }
}

#[tokio::test]
async fn h3_h5_a_chunked_answer_of_any_type_is_read() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/html\r\n\r\n3\r\n<bo\r\n4\r\ndy/>\r\n0\r\n\r\n";
    let server = Server::start(move |_| Act::Answer(chunked.into())).await;
    assert_eq!(server.exchange().post(post("x")).await.unwrap().body, "<body/>");
    let old = "HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\n\r\n<body/>";
    let server = Server::start(move |_| Act::AnswerAndClose(old.into())).await;
    assert_eq!(server.exchange().post(post("x")).await.unwrap().body, "<body/>");
}

#[tokio::test]
async fn h10_a_held_request_does_not_keep_another_one_waiting() {
    let server = Server::start(|number| if number == 0 { Act::Hang } else { ok("<body/>") }).await;
    let exchange = Arc::new(server.exchange());
    let held = tokio::spawn({
        let exchange = Arc::clone(&exchange);
        async move { exchange.post(post("held")).await }
    });
    while server.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..3 {
        exchange.post(post("next")).await.unwrap();
    }
    let connections: Vec<usize> = server.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 1, 1, 1], "and the second connection is used again");
    assert!(!held.is_finished());
    held.abort();
}

#[tokio::test]
async fn a_fresh_post_uses_a_new_connection() {
    let server = Server::start(|_| ok("<body/>")).await;
    let exchange = server.exchange();
    for fresh in [false, false, true, false, true] {
        exchange.post(post("x").with_fresh(fresh)).await.unwrap();
    }
    let connections: Vec<usize> = server.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 1, 1, 2]);
}

#[tokio::test]
async fn h16_redirects_that_change_the_method_are_not_followed() {
    for status in ["301 Moved", "302 Found", "303 See Other"] {
        let server = Server::start(move |_| answer(status, "Location: /elsewhere\r\n", "")).await;
        let reply = server.exchange().post(post("x")).await.unwrap();
        assert_eq!(reply.status.to_string(), status[..3]);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn h16_a_redirect_that_keeps_the_method_is_followed_on_the_same_host() {
    for status in ["307 Temporary Redirect", "308 Permanent Redirect"] {
        let server = Server::start(move |number| match number {
            0 => answer(status, "Location: /elsewhere\r\n", ""),
            _ => ok("<body/>"),
        })
        .await;
        let reply = server.exchange().post(post("<body rid='1'/>")).await.unwrap();
        assert_eq!(reply.status, 200);
        let seen = server.seen();
        assert!(seen[1].head.starts_with("POST /elsewhere HTTP/1.1"), "{}", seen[1].head);
        assert_eq!(seen[1].body, seen[0].body);
    }
}

#[tokio::test]
async fn t15_nothing_follows_a_redirect_to_another_host_or_port() {
    let other = Server::start(|_| ok("<body/>")).await;
    for host in ["127.0.0.1", "localhost", "127.0.0.2"] {
        let location = format!("Location: http://{host}:{}/http-bind\r\n", other.port);
        let server = Server::start(move |_| answer("307 Temporary Redirect", &location, "")).await;
        assert_eq!(server.exchange().post(post("secret")).await.unwrap().status, 307);
    }
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test]
async fn h16_redirects_without_end_are_left() {
    let server = Server::start(|_| answer("307 Temporary Redirect", "Location: /again\r\n", "")).await;
    assert_eq!(server.exchange().post(post("x")).await.unwrap().status, 307);
    assert!(server.seen().len() <= 5, "{}", server.seen().len());
}

#[tokio::test]
async fn t52_an_answer_beyond_the_bound_is_not_read_to_its_end() {
    let announced = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n<body".to_owned();
    let server = Server::start(move |_| Act::Answer(announced.clone().into())).await;
    assert_eq!(kind(&server.exchange()).await, ExchangeErrorKind::TooLarge);

    let chunk = format!("{:x}\r\n{}\r\n", 65_536, "x".repeat(65_536));
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(9));
    let server = Server::start(move |_| Act::Answer(chunked.clone().into())).await;
    assert_eq!(kind(&server.exchange()).await, ExchangeErrorKind::TooLarge);

    let server = Server::start(|_| ok(&"x".repeat(512 * 1024))).await;
    assert_eq!(server.exchange().post(post("x")).await.unwrap().body.len(), 512 * 1024);
}

#[tokio::test]
async fn f3_half_an_answer_is_none() {
    for cut in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<body xmlns='http",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<body\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "",
    ] {
        let server = Server::start(move |_| Act::AnswerAndClose(cut.into())).await;
        assert_eq!(kind(&server.exchange()).await, ExchangeErrorKind::Interrupted, "{cut}");
    }
}

#[tokio::test]
async fn k9_a_post_that_was_cut_off_is_not_repeated_by_the_http_layer() {
    let server = Server::start(|number| if number == 0 { ok("<body/>") } else { Act::Close }).await;
    let exchange = server.exchange();
    exchange.post(post("first")).await.unwrap();
    // On a connection that was used before, where HTTP libraries like to try again.
    assert_eq!(kind(&exchange).await, ExchangeErrorKind::Interrupted);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn f1_a_proxys_page_is_an_answer_with_its_status() {
    let page = "<html><head><title>502 Bad Gateway</title></head></html>";
    let server = Server::start(move |_| answer("502 Bad Gateway", "Retry-After: 7\r\n", page)).await;
    let reply = server.exchange().post(post("x")).await.unwrap();
    assert_eq!(reply, Reply::new(502, page).with_retry_after(Some(Duration::from_secs(7))));
    let fields = "Date: Fri, 20 Nov 2026 10:00:00 GMT\r\nRetry-After: Fri, 20 Nov 2026 10:00:09 GMT\r\n";
    let server = Server::start(move |_| answer("503 Busy", fields, "")).await;
    let reply = server.exchange().post(post("x")).await.unwrap();
    assert_eq!(reply.retry_after, Some(Duration::from_secs(9)), "s10: the other form");
}

#[tokio::test]
async fn k5_an_answer_that_does_not_come_times_out() {
    let server = Server::start(|_| Act::Hang).await;
    let post = Post::new("x".into(), Duration::from_millis(100));
    let error = server.exchange().post(post).await.unwrap_err();
    assert_eq!(error.kind, ExchangeErrorKind::TimedOut);
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut settings = HttpSettings::new(format!("http://127.0.0.1:{port}/"));
    settings.proxy = Proxy::Direct;
    assert_eq!(kind(&ReqwestExchange::new(settings).unwrap()).await, ExchangeErrorKind::Unreachable);
}

#[tokio::test]
async fn a_proxy_is_taken_if_told_so() {
    let proxy = Server::start(|_| ok("<body/>")).await;
    let mut settings = HttpSettings::new("http://relay.invalid/http-bind");
    settings.allow_plaintext = true;
    settings.proxy = Proxy::Url(format!("http://127.0.0.1:{}", proxy.port));
    ReqwestExchange::new(settings).unwrap().post(post("x")).await.unwrap();
    assert!(proxy.seen()[0].head.starts_with("POST http://relay.invalid/http-bind HTTP/1.1"));
}

#[test]
fn t15_plain_http_to_another_machine_is_refused_unless_allowed() {
    for url in [
        "http://relay.example/http-bind",
        "http://192.168.1.1/",
        "http://[2001:db8::1]/",
        "http://localhost.example/",
        "http://127.0.0.1.example/",
        "ftp://localhost/",
        "localhost:8080",
        "",
        "https://user:password@relay.example/",
    ] {
        let error = ReqwestExchange::new(HttpSettings::new(url)).expect_err(url);
        assert_eq!(error.kind, ErrorKind::Unsupported, "{url}");
    }
    for url in ["http://localhost:1/", "http://127.0.0.1:1/", "http://[::1]:1/", "https://relay.example/"] {
        let exchange = ReqwestExchange::new(HttpSettings::new(url)).expect(url);
        assert_eq!(exchange.is_confidential(), url.starts_with("https"), "{url}");
    }
    let mut settings = HttpSettings::new("http://relay.example/http-bind");
    settings.allow_plaintext = true;
    assert!(!ReqwestExchange::new(settings).unwrap().is_confidential());
}

const AUTHORITY: &[u8] = include_bytes!("tls/ca.der");

async fn tls_server() -> Server {
    let certificate = include_bytes!("tls/server.der").to_vec().into();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(include_bytes!("tls/server.key.der").to_vec());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let wrap: Wrap<tokio_rustls::server::TlsStream<TcpStream>> = Arc::new(move |stream| {
        let acceptor = acceptor.clone();
        Box::pin(async move { acceptor.accept(stream).await.ok() })
    });
    Server::start_over(wrap, |_| ok("<body/>")).await
}

async fn post_over_tls(server: &Server, trust: Trust) -> Result<Reply, ExchangeError> {
    let mut settings = HttpSettings::new(format!("https://localhost:{}/http-bind", server.port));
    settings.proxy = Proxy::Direct;
    settings.trust = trust;
    let exchange = ReqwestExchange::new(settings).unwrap();
    assert!(exchange.is_confidential());
    exchange.post(post("x")).await
}

#[tokio::test]
async fn t15_only_a_trusted_certificate_is_accepted() {
    let server = tls_server().await;
    let ours = || vec![AUTHORITY.to_vec().into()];
    assert_eq!(post_over_tls(&server, Trust::Only(ours())).await.unwrap().status, 200);
    assert_eq!(post_over_tls(&server, Trust::SystemAnd(ours())).await.unwrap().status, 200);
    for trust in [Trust::System, Trust::Only(Vec::new())] {
        let error = post_over_tls(&server, trust).await.unwrap_err();
        assert_eq!(error.kind, ExchangeErrorKind::Untrusted, "{}", error.chain());
    }
    assert_eq!(server.seen().len(), 2, "nothing was said to a server that is not trusted");
}
