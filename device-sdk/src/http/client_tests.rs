use relay_core::request::Body;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;

#[test]
fn t15_plaintext_to_another_machine_is_refused_unless_allowed() {
    for loopback in ["http://127.0.0.1:8080", "http://[::1]:1/", "http://localhost", "https://relay.example"]
    {
        assert!(RelayUrl::parse(loopback, false).is_ok(), "{loopback}");
    }
    for other in
        ["http://relay.example", "http://10.0.0.1:80", "http://127.0.0.1.example", "http://localhost.example"]
    {
        assert!(matches!(RelayUrl::parse(other, false), Err(StartError::Plaintext)), "{other}");
        assert!(RelayUrl::parse(other, true).is_ok(), "{other}");
    }
}

#[test]
fn urls_that_no_relay_has_are_refused_with_words() {
    for bad in
        ["", "relay", "ftp://relay", "https://user@relay", "https://relay?a", "https://relay#a", "ws://relay"]
    {
        assert!(matches!(RelayUrl::parse(bad, true), Err(StartError::RelayUrl(_))), "{bad}");
    }
}

#[test]
fn a_relay_may_live_under_a_path() {
    let url = RelayUrl::parse("https://example.com/relay", false).unwrap();
    assert_eq!(url.join("v1/enroll").as_str(), "https://example.com/relay/v1/enroll");
}

/// One HTTP exchange as it was on the wire.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned)
                })
                .map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                return Some(text);
            }
        }
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&part[..read]),
        }
    }
}

/// A peer that answers each request with what it was told to, and hands on what it was asked.
pub(super) async fn peer(answer: &'static str) -> (HttpRelay, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, requests) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                while let Some(request) = read_request(&mut stream).await {
                    let _ = asked.send(request).await;
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let url = RelayUrl::parse(&url, false).unwrap();
    (HttpRelay::new(url, &Proxy::Direct, &Trust::default()).unwrap(), requests)
}

fn device() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

fn token() -> Secret {
    Secret::new("secret-token")
}

async fn respond(relay: &HttpRelay) -> Result<Verdict, HttpError> {
    let response = Response::with_body(Body::text("83"));
    relay.respond(&token(), &RequestId::new("r1").unwrap(), &response).await
}

#[tokio::test]
async fn x1_enrolling_shows_the_pin_and_takes_the_token() {
    let (relay, mut requests) =
        peer("HTTP/1.1 201 Created\r\nContent-Length: 15\r\n\r\n{\"token\":\"abc\"}").await;
    assert_eq!(relay.enroll(&device(), &Secret::new("12345678")).await.unwrap().expose(), "abc");
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("POST /v1/enroll HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("{\"device_id\":\"printer-1\",\"pin\":\"12345678\"}"), "{request}");
    assert!(!request.to_ascii_lowercase().contains("authorization"), "{request}");
}

#[tokio::test]
async fn p1_registering_says_what_the_device_is() {
    let (relay, mut requests) = peer("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    let mut registration = Registration::new().name("Copy room").capability("color", true);
    registration.keepalive = Some(Duration::from_secs(60));
    relay.register(&device(), &token(), &registration).await.unwrap();
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("PUT /v1/devices/printer-1 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Bearer secret-token"), "{request}");
    assert!(
        request.ends_with("{\"name\":\"Copy room\",\"keepalive\":60,\"capabilities\":{\"color\":true}}"),
        "{request}"
    );
}

#[tokio::test]
async fn s3_the_survival_notification_tells_known_from_unknown_and_from_nonsense() {
    let session = SessionId::new("abcdef").unwrap();
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"session\":\"known\"}", Ok(true)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{\"session\":\"unknown\"}", Ok(false)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n<html/>\n\n\n\n\n", Err(HttpErrorKind::Unexpected)),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Err(HttpErrorKind::Unexpected)),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: 41\r\n\r\n\
             {\"type\":\"urn:relay:error:unknown-device\"}",
            Err(HttpErrorKind::UnknownDevice),
        ),
    ] {
        let (relay, _requests) = peer(answer).await;
        let result = relay.alive(&device(), &token(), &session).await.map_err(|error| error.kind);
        assert_eq!(result, expected, "{answer}");
    }
}

#[tokio::test]
async fn s6_only_the_relay_s_own_words_are_final() {
    let problem = |status: &str| {
        let body = "{\"type\":\"urn:relay:error:x\",\"title\":\"x\"}";
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/problem+json\r\n");
        &*format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).leak()
    };
    let portal = |status: &str| &*format!("HTTP/1.1 {status} X\r\nContent-Length: 7\r\n\r\n<html/>").leak();
    for (answer, verdict) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", Some(Verdict::Accepted)),
        (problem("403"), Some(Verdict::Forbidden)),
        (problem("404"), Some(Verdict::Unknown)),
        (problem("409"), Some(Verdict::AlreadyAnswered)),
        (problem("410"), Some(Verdict::TooLate)),
        (problem("413"), Some(Verdict::TooLarge)),
        (problem("401"), None),
        (problem("429"), None),
        (problem("503"), None),
        (portal("200"), None),
        (portal("403"), None),
        (portal("404"), None),
        (portal("410"), None),
        (portal("511"), None),
    ] {
        let (relay, mut requests) = peer(answer).await;
        assert_eq!(respond(&relay).await.ok(), verdict, "{answer}");
        let request = requests.recv().await.unwrap();
        assert!(request.starts_with("POST /v1/requests/r1/response HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("relay-status: ok\r\n") && request.ends_with("\r\n\r\n83"), "{request}");
    }
}

#[tokio::test]
async fn s10_retry_after_is_heard_in_both_its_forms() {
    for fields in [
        "Retry-After: 17",
        "Date: Fri, 20 Nov 2026 10:00:00 GMT\r\nRetry-After: Fri, 20 Nov 2026 10:00:17 GMT",
    ] {
        let answer = format!("HTTP/1.1 503 Busy\r\n{fields}\r\nContent-Length: 0\r\n\r\n");
        let (relay, _requests) = peer(answer.leak()).await;
        let error = respond(&relay).await.unwrap_err();
        assert_eq!(
            (error.kind, error.retry_after),
            (HttpErrorKind::Overloaded, Some(Duration::from_secs(17)))
        );
    }
}

#[tokio::test]
async fn t15_a_token_never_follows_a_redirect() {
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let location = elsewhere.local_addr().unwrap();
    for status in [301, 302, 303, 307, 308] {
        let answer =
            format!("HTTP/1.1 {status} X\r\nLocation: http://{location}/\r\nContent-Length: 0\r\n\r\n");
        let (relay, _requests) = peer(answer.leak()).await;
        assert_eq!(respond(&relay).await.unwrap_err().kind, HttpErrorKind::Unexpected);
    }
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody came");
}

#[tokio::test]
async fn t52_an_endless_answer_is_not_read_to_its_end() {
    let body = "x".repeat(MAX_ANSWER + 1);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n{body}");
    let (relay, _requests) = peer(answer.leak()).await;
    assert_eq!(respond(&relay).await.unwrap_err().kind, HttpErrorKind::Unexpected);
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = RelayUrl::parse(&format!("http://{}", listener.local_addr().unwrap()), false).unwrap();
    drop(listener);
    let relay = HttpRelay::new(url, &Proxy::Direct, &Trust::default()).unwrap();
    let error = respond(&relay).await.unwrap_err();
    assert_eq!(error.kind, HttpErrorKind::Unreachable);
    assert!(!format!("{error:?}").contains("secret-token"), "T44");
}

#[test]
fn tls_can_be_set_up_on_ring_alone() {
    let url = RelayUrl::parse("https://relay.example", false).unwrap();
    // A machine without any root certificates says so; anything else has a client.
    if let Err(error) = HttpRelay::new(url, &Proxy::Direct, &Trust::default()) {
        assert!(matches!(error, StartError::Tls(_)), "{error:?}");
    }
}

#[tokio::test]
async fn s3_a_survival_notification_goes_over_a_connection_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = RelayUrl::parse(&format!("http://{}", listener.local_addr().unwrap()), false).unwrap();
    let relay = HttpRelay::new(url, &Proxy::Direct, &Trust::default()).unwrap();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"session\":\"known\"}";
    let server = tokio::spawn(async move {
        // Each connection is kept open, and answers once: a second call on it would hang.
        let mut connections = Vec::new();
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            connections.push(stream);
        }
    });
    let session = SessionId::new("abcdef").unwrap();
    for _ in 0..3 {
        assert!(relay.alive(&device(), &token(), &session).await.unwrap());
    }
    server.await.unwrap();
}
