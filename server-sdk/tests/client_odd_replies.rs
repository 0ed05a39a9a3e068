//! The client against what is no relay, or one that breaks off: raw bytes on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use server_sdk::{Client, DeviceFilter, Error, ErrorKind, Outcome};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

/// Answers each connection's first request with fixed bytes, then closes; tells what was asked.
struct Server {
    address: SocketAddr,
    asked: mpsc::Receiver<String>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn answering(reply: impl Into<Vec<u8>>) -> Self {
        let (reply, listener) = (reply.into(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let (tell, asked) = mpsc::channel(64);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (reply, tell) = (reply.clone(), tell.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                        let mut buffer = [0; 4096];
                        match stream.read(&mut buffer).await {
                            Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
                            _ => return,
                        }
                    }
                    tell.send(String::from_utf8(head).unwrap()).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            }
        });
        Self { address, asked, connections }
    }

    fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address), "the-key").unwrap()
    }

    async fn ask(&self) -> Error {
        self.client().get("d", "a").await.unwrap_err()
    }
}

fn reply(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{fields}\r\n{body}", body.len())
}

#[tokio::test]
async fn l1_a_proxys_own_answer_is_never_taken_for_the_relays() {
    let html = "content-type: text/html\r\n";
    for (odd, status) in [
        (reply("504 Gateway Timeout", html, "<html>"), 504),
        (reply("503 Service Unavailable", html, "<html>"), 503),
        (reply("404 Not Found", "content-type: application/json\r\n", "{}"), 404),
        // A portal's page, and an answer that says nothing of how far the request came.
        (reply("200 OK", html, "<html>log in here</html>"), 200),
        (reply("200 OK", "relay-outcome: sent\r\n", "7"), 200),
        (reply("202 Accepted", "", ""), 202),
        (
            reply(
                "502 Bad Gateway",
                "content-type: application/problem+json\r\n",
                r#"{"type":"about:blank","status":502}"#,
            ),
            502,
        ),
        (reply("503 No", "content-type: application/problem+json\r\n", "not json"), 503),
    ] {
        let error = Server::answering(odd.clone()).await.ask().await;
        assert_eq!(
            (error.kind(), error.status()),
            (ErrorKind::NotTheRelay, Some(status)),
            "{odd}: {error:?}"
        );
        assert_eq!(error.outcome(), None, "{odd}");
        assert!(!error.is_safe_to_retry(), "{odd}: it may have gone on to the relay");
    }
}

#[tokio::test]
async fn l1_the_relays_own_errors_are_read_from_its_header_and_problem() {
    let problem = |code: &str| {
        format!(r#"{{"type":"urn:relay:error:{code}","title":"T","status":503,"detail":"in words"}}"#)
    };
    let fields = |outcome: &str| {
        format!(
            "content-type: application/problem+json; charset=utf-8\r\nretry-after: 7\r\nrelay-request-id: r1\r\n{outcome}"
        )
    };
    let server =
        Server::answering(reply("503 x", &fields("relay-outcome: queued\r\n"), &problem("draining"))).await;
    let error = server.ask().await;
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Some(Outcome::Queued)));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!(error.request_id().map(|id| id.as_str().to_owned()).as_deref(), Some("r1"));
    assert_eq!(error.to_string(), "in words");
    assert!(error.is_safe_to_retry());

    let dates = "date: Fri, 20 Nov 2026 10:00:00 GMT\r\nretry-after: Fri, 20 Nov 2026 10:00:09 GMT\r\n";
    let dated = format!("content-type: application/problem+json\r\n{dates}");
    let server = Server::answering(reply("503 x", &dated, &problem("draining"))).await;
    assert_eq!(server.ask().await.retry_after(), Some(Duration::from_secs(9)), "s10: the other form");

    // The relay's words, but not its outcome: how far it came is not known.
    let server = Server::answering(reply("429 x", &fields(""), &problem("too-many-requests"))).await;
    let error = server.ask().await;
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooManyRequests, None));
    assert!(!error.is_safe_to_retry());
    // A code of a later relay is judged by its status.
    let server =
        Server::answering(reply("503 x", &fields("relay-outcome: refused\r\n"), &problem("on-holiday")))
            .await;
    let error = server.ask().await;
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("on-holiday")));
}

#[tokio::test]
async fn f3_a_cut_answer_is_no_answer() {
    let whole = reply("200 OK", "relay-outcome: answered\r\nrelay-request-id: r1\r\n", "0123456789");
    for cut in 0..whole.len() {
        let error = Server::answering(&whole.as_bytes()[..cut]).await.ask().await;
        assert_eq!(error.kind(), ErrorKind::Interrupted, "cut at {cut}: {error:?}");
        assert!(!error.is_safe_to_retry(), "cut at {cut}");
    }
    let answer = Server::answering(whole).await.client().get("d", "a").await.unwrap();
    assert_eq!(answer.text().unwrap(), "0123456789");
    let chunked =
        "HTTP/1.1 200 OK\r\nrelay-outcome: answered\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n";
    assert_eq!(Server::answering(chunked).await.ask().await.kind(), ErrorKind::Interrupted);
}

#[tokio::test]
async fn t15_a_key_follows_no_redirect() {
    let target = Server::answering(reply("200 OK", "relay-outcome: answered\r\n", "7")).await;
    for status in ["301 x", "302 x", "307 x", "308 x"] {
        let fields = format!("location: http://{}/v1/devices/d/objects/a\r\n", target.address);
        let error = Server::answering(reply(status, &fields, "")).await.ask().await;
        assert_eq!(error.kind(), ErrorKind::NotTheRelay, "{error:?}");
        assert!(error.to_string().contains(&target.address.to_string()), "{error}");
    }
    assert_eq!(target.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn t15_plain_http_to_another_machine_has_to_be_allowed() {
    for bad in [
        "http://relay.example",
        "http://10.0.0.1:80",
        "http://127.0.0.1.example",
        "ftp://127.0.0.1",
        "relay",
        "",
        "https://u:p@h",
    ] {
        let error = Client::new(bad, "k").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
        assert!(error.is_safe_to_retry() && !error.to_string().is_empty());
    }
    for good in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:8080/", "https://relay.example"] {
        Client::new(good, "k").unwrap();
    }
    Client::builder("http://relay.example", "k").allow_plaintext().build().unwrap();
    assert_eq!(Client::new("http://localhost", "a\nb").unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn t44_a_key_is_shown_by_nothing() {
    let server = Server::answering("").await;
    let client = server.client();
    let error = client.get("d", "a").await.unwrap_err();
    let mut chain = format!("{client:?} {error:?} {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        chain += &format!(" {error} {error:?}");
        source = error.source();
    }
    assert!(!chain.contains("the-key"), "{chain}");
}

#[tokio::test]
async fn b4_an_answer_larger_than_what_is_taken_is_not_read_to_its_end() {
    let fields = "relay-outcome: answered\r\n";
    let server = Server::answering(reply("200 OK", fields, &"x".repeat(101))).await;
    let small = Client::builder(&format!("http://{}", server.address), "k").max_answer(100).build().unwrap();
    let error = small.get("d", "a").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Some(Outcome::Answered)));
    let announced = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 99999999999\r\n\r\n");
    assert_eq!(Server::answering(announced).await.ask().await.kind(), ErrorKind::TooLarge);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\n{fields}transfer-encoding: chunked\r\n\r\n65\r\n{}\r\n0\r\n\r\n",
        "x".repeat(0x65)
    );
    let server = Server::answering(chunked).await;
    let small = Client::builder(&format!("http://{}", server.address), "k").max_answer(100).build().unwrap();
    assert_eq!(small.get("d", "a").await.unwrap_err().kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn what_is_asked_stands_in_the_request_and_nothing_wrong_is_sent() {
    let mut server = Server::answering(reply("200 OK", "relay-outcome: answered\r\n", "7")).await;
    let relay = server.client().with_wait(Duration::from_millis(2500));
    relay.get("Dev.1", "1.3.6/a_b").await.unwrap();
    let asked = server.asked.recv().await.unwrap().to_ascii_lowercase();
    assert!(asked.starts_with("get /v1/devices/dev.1/objects/1.3.6/a_b http/1.1\r\n"), "{asked}");
    assert!(asked.contains("\r\nauthorization: bearer the-key\r\n"), "{asked}");
    assert!(asked.contains("\r\nprefer: wait=3\r\n"), "{asked}");
    for (device, object) in [("a/b", "a"), ("..", "a"), ("d", ""), ("d", "a b"), ("d", "%2e"), ("", "a")] {
        let error = relay.get(device, object).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.is_safe_to_retry());
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nothing_that_listens_is_unreachable_and_what_listens_and_is_no_relay_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let error = Client::new(&format!("http://{nobody}"), "k").unwrap().get("d", "a").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome(), error.status()), (ErrorKind::Unreachable, None, None));
    assert!(error.is_safe_to_retry());

    let server =
        Server::answering(reply("200 OK", "content-type: application/json\r\n", r#"{"hello":1}"#)).await;
    let error = server.client().devices(DeviceFilter::all()).next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotTheRelay);
    assert!(error.is_safe_to_retry(), "no device was asked");
}

#[tokio::test]
async fn a_silent_peer_ends_with_the_callers_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Client::new(&format!("http://{}", listener.local_addr().unwrap()), "k").unwrap();
    let start = tokio::time::Instant::now();
    let error = relay.with_wait(Duration::ZERO).get("d", "a").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Interrupted, None), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(15));
}
