use relay_core::auth::Secret;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// A proxy that answers `answer`; what it was asked comes back, and then the tunnel's first words from each side.
async fn through(
    credentials: &str,
    target: &Target,
    answer: &'static [u8],
) -> (String, Result<Vec<u8>, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{credentials}{}", listener.local_addr().unwrap());
    let proxy = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
        }
        // In pieces, as networks have it.
        for piece in answer.chunks(7) {
            stream.write_all(piece).await.unwrap();
            stream.flush().await.unwrap();
        }
        let mut word = [0; 5];
        if stream.read_exact(&mut word).await.is_ok() {
            stream.write_all(&word).await.unwrap();
        }
        String::from_utf8(asked).unwrap()
    });
    let dialled = ThroughProxy::new(&Proxy::Url(Secret::new(url))).dial(target).await;
    let heard = match dialled {
        Ok(mut stream) => {
            stream.write_all(b"hello").await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            Ok(heard)
        }
        Err(error) => Err(error.to_string()),
    };
    (proxy.await.unwrap(), heard)
}

fn relay() -> Target {
    // No resolver knows it: only the proxy does.
    Target::new("relay.invalid", 443, true)
}

#[tokio::test]
async fn s9_a_tunnel_is_asked_for_by_name_with_credentials_and_loses_no_byte() {
    let answer = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\nfirst words, ";
    let (asked, heard) = through("us%20er:pass%3Aword@", &relay(), answer).await;
    assert_eq!(
        asked,
        "CONNECT relay.invalid:443 HTTP/1.1\r\nHost: relay.invalid:443\r\n\
         Proxy-Authorization: Basic dXMgZXI6cGFzczp3b3Jk\r\n\r\n"
    );
    assert_eq!(heard.unwrap(), b"first words, hello");
}

#[tokio::test]
async fn s9_without_credentials_none_are_shown_and_plain_targets_are_tunnelled_too() {
    let target = Target::new("2001:db8::1", 8080, false);
    let (asked, heard) = through("", &target, b"HTTP/1.0 200 OK\r\n\r\n").await;
    assert_eq!(asked, "CONNECT [2001:db8::1]:8080 HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n");
    assert_eq!(heard.unwrap(), b"hello");
}

#[tokio::test]
async fn s9_an_interim_answer_is_not_the_answer() {
    let answer = b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(through("", &relay(), answer).await.1.unwrap(), b"hello");
}

#[tokio::test]
async fn s9_a_proxy_that_refuses_is_understood_and_its_words_are_no_answer_of_the_relay() {
    for (answer, words) in [
        (&b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"[..], "407"),
        (b"HTTP/1.1 403 Filtered\r\nContent-Type: application/problem+json\r\n\r\n{}", "answered 403"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answered 502"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "no HTTP proxy"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "no HTTP proxy"),
    ] {
        let error = through("user:secret@", &relay(), answer).await.1.unwrap_err();
        assert!(error.contains(words) && !error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn b3_the_head_of_a_proxys_answer_is_bounded() {
    let endless: &'static [u8] = Box::leak(
        [b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(MAX_HEAD)].concat().into_boxed_slice(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // The other side has had enough before all is said.
        let _ = stream.write_all(endless).await;
    });
    let dialled = ThroughProxy::new(&Proxy::Url(Secret::new(url))).dial(&relay()).await;
    assert!(dialled.is_err_and(|error| error.to_string().contains("no end")));
}

#[test]
fn s9_a_proxy_that_cannot_be_is_refused_without_showing_its_password() {
    for bad in
        ["https://user:secret@proxy:1", "socks5://secret@proxy", "http://", "http://proxy/secret", "::"]
    {
        let error = Proxy::Url(Secret::new(bad)).check().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
    for good in ["http://proxy:3128", "http://user:secret@proxy", "http://[::1]:8888/"] {
        Proxy::Url(Secret::new(good)).check().unwrap();
    }
    assert!(!format!("{:?}", Proxy::Url(Secret::new("http://user:secret@proxy"))).contains("secret"));
}
