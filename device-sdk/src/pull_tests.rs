use std::sync::{Arc, Mutex};

use relay_core::ids::DeviceId;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::Device;

/// A server that answers each request in turn by these bytes, then hangs up; what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                loop {
                    let mut piece = [0; 4096];
                    let read = stream.read(&mut piece).await.unwrap();
                    request.extend_from_slice(&piece[..read]);
                    let text = String::from_utf8_lossy(&request);
                    // Streamed bodies end in an empty chunk.
                    let chunked = text.contains("transfer-encoding: chunked");
                    if read == 0 || text.ends_with("\r\n0\r\n\r\n") || (!chunked && text.contains("\r\n\r\n"))
                    {
                        break;
                    }
                }
                noted.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                stream.write_all(&answer).await.unwrap();
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {}\r\nconnection: close\r\n\r\n", head.replace('\n', "\r\n")).into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// A device whose relay is at `relay`; it calls nobody by itself.
async fn device(relay: &str) -> Device {
    let builder = Device::builder(relay, "printer-1").token("device-token").maintenance(false);
    let device = builder.start().await.unwrap();
    assert_eq!(*device.id(), DeviceId::new("printer-1").unwrap());
    device
}

async fn all(mut download: Download) -> Result<Vec<u8>, PullError> {
    let mut all = Vec::new();
    while let Some(bytes) = download.next().await? {
        all.extend_from_slice(&bytes);
    }
    assert_eq!(download.position(), all.len() as u64);
    Ok(all)
}

#[tokio::test]
async fn s7_a_document_is_fetched_from_any_server_also_without_a_session() {
    let head = "200 OK\ncontent-type: application/pdf\ncontent-length: 8\netag: \"v1\"";
    let server = Server::start(vec![answer(head, b"document")]).await;
    let device = device("https://relay.example").await;
    let download = device.pull(format!("{}/manual.pdf?page=1", server.url)).start().await.unwrap();
    assert_eq!(download.content_type(), Some("application/pdf"));
    assert_eq!((download.total(), download.etag()), (Some(8), Some("\"v1\"")));
    assert_eq!(all(download).await.unwrap(), b"document");
    let asked = server.asked();
    assert!(asked[0].starts_with("GET /manual.pdf?page=1 HTTP/1.1\r\n"), "{asked:?}");
    assert!(!asked[0].contains("device-token"), "no other server gets the credential");
}

#[tokio::test]
async fn s7_what_breaks_off_is_gone_on_with_where_it_was() {
    let server = Server::start(vec![
        answer("200 OK\ncontent-length: 12\netag: \"v1\"", b"the "),
        answer(
            "206 Partial Content\ncontent-length: 8\ncontent-range: bytes 4-11/12\netag: \"v1\"",
            b"whole ",
        ),
        answer("503 Busy\ncontent-length: 0", b""),
        answer("206 Partial Content\ncontent-length: 2\ncontent-range: bytes 10-11/12", b"it"),
    ])
    .await;
    let device = device("https://relay.example").await;
    let download = device.pull(&server.url).start().await.unwrap();
    assert_eq!(all(download).await.unwrap(), b"the whole it");
    let asked = server.asked();
    assert!(!asked[0].contains("range"), "{}", asked[0]);
    for (asked, range) in [(&asked[1], "range: bytes=4-\r\n"), (&asked[3], "range: bytes=10-\r\n")] {
        assert!(asked.contains(range) && asked.contains("if-range: \"v1\"\r\n"), "{asked}");
    }
}

#[tokio::test]
async fn s7_a_later_run_goes_on_and_what_changed_is_never_patched_together() {
    let device = device("https://relay.example").await;
    let server = Server::start(vec![
        answer("206 Partial Content\ncontent-length: 4\ncontent-range: bytes 4-7/8", b"ment"),
        answer("416 Range\ncontent-range: bytes */8\ncontent-length: 0", b""),
        answer("200 OK\ncontent-length: 8\netag: \"v2\"", b"othering"),
        answer("206 Partial Content\ncontent-length: 4\ncontent-range: bytes 4-7/8\netag: \"v2\"", b"ring"),
    ])
    .await;
    let pull = |offset| device.pull(&server.url).resume_from(offset, "\"v1\"");
    let mut download = pull(4).start().await.unwrap();
    assert_eq!(download.next().await.unwrap().unwrap(), "ment");
    assert_eq!((download.next().await.unwrap(), download.total()), (None, Some(8)));
    assert_eq!(pull(8).start().await.unwrap().next().await.unwrap(), None, "it was whole already");
    for _ in 0..2 {
        assert!(matches!(pull(4).start().await, Err(PullError::Changed)));
    }
    // Nothing to tell by whether it is the same.
    let server = Server::start(vec![answer("200 OK\ncontent-length: 8\netag: W/\"v1\"", b"docu")]).await;
    let download = device.pull(&server.url).start().await.unwrap();
    assert!(matches!(all(download).await, Err(PullError::Changed)));
    let weak = device.pull(&server.url).resume_from(4, "W/\"v1\"").start().await;
    assert!(matches!(weak, Err(PullError::Changed)));
}

#[tokio::test]
async fn t15_the_credential_goes_to_the_relay_and_no_redirect_takes_it_elsewhere() {
    let other = Server::start(vec![answer("200 OK\ncontent-length: 2", b"it")]).await;
    let to_other = format!("307 Go\nlocation: {}/it\ncontent-length: 0", other.url);
    let relay = Server::start(vec![
        answer("302 Found\nlocation: /relay/there\ncontent-length: 0", b""),
        answer(&to_other, b""),
        answer("200 OK\ncontent-length: 4", b"free"),
    ])
    .await;
    let device = device(&format!("{}/relay", relay.url)).await;
    let download = device.pull(format!("{}/relay/here", relay.url)).start().await.unwrap();
    assert_eq!(download.url(), format!("{}/it", other.url));
    assert_eq!(all(download).await.unwrap(), b"it");
    let beside = device.pull(format!("{}/beside", relay.url)).start().await.unwrap();
    assert_eq!(all(beside).await.unwrap(), b"free");
    let with_token = |asked: &String| asked.contains("authorization: Bearer device-token\r\n");
    assert_eq!(relay.asked().iter().map(with_token).collect::<Vec<_>>(), [true, true, false]);
    assert!(!other.asked()[0].contains("device-token"));
}

#[tokio::test]
async fn t15_where_it_does_not_go() {
    let device = device("https://relay.example").await;
    for (url, plaintext) in [
        ("http://files.example/a", true),
        ("ftp://127.0.0.1/a", false),
        ("file:///etc/passwd", false),
        ("https://user:secret@files.example/", false),
        ("manual.pdf", false),
    ] {
        let refused = device.pull(url).start().await.unwrap_err();
        let as_expected = match &refused {
            PullError::Plaintext => plaintext,
            PullError::Url(_) => !plaintext,
            _ => false,
        };
        assert!(as_expected && !refused.to_string().contains("secret"), "{url}: {refused:?}");
    }
    let out = "302 Found\nlocation: http://files.example/\ncontent-length: 0";
    let circle = vec![answer("302 Found\nlocation: /\ncontent-length: 0", b""); REDIRECTS + 1];
    let server = Server::start([vec![answer(out, b"")], circle].concat()).await;
    assert!(matches!(device.pull(&server.url).start().await, Err(PullError::Plaintext)));
    assert!(matches!(device.pull(&server.url).start().await, Err(PullError::TooManyRedirects)));
}

#[tokio::test]
async fn s7_the_servers_no_is_said_in_its_words() {
    let problem = br#"{"type":"urn:relay:error:unknown-document","title":"No such document\u001b[2J"}"#;
    let head =
        format!("404 Not Found\ncontent-type: application/problem+json\ncontent-length: {}", problem.len());
    let encoded = answer("200 OK\ncontent-encoding: gzip\ncontent-length: 1", b"x");
    let server = Server::start(vec![answer(&head, problem), answer("410 Gone", b"<p>"), encoded]).await;
    let device = device("https://relay.example").await;
    let refusals = [": No such document[2J", ""];
    for refusal in refusals {
        match device.pull(&server.url).start().await {
            Err(PullError::Refused { words, .. }) => assert_eq!(&*words, refusal),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(device.pull(&server.url).start().await, Err(PullError::Unexpected(_))), "T31");
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let unreachable = device.pull(format!("http://{nobody}/")).start().await;
    assert!(matches!(unreachable, Err(PullError::Unreachable(Some(_)))));
}

#[tokio::test]
async fn s7_something_is_handed_in_as_a_stream() {
    let server = Server::start(vec![
        answer("201 Created\ncontent-length: 0", b""),
        answer("507 Full\ncontent-length: 0", b""),
    ])
    .await;
    let device = device("https://relay.example").await;
    let pieces = || {
        let pieces = ["a ", "scan"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        futures_util::stream::iter(pieces)
    };
    device.push(format!("{}/scans/1", server.url), "image/jpeg").send(pieces()).await.unwrap();
    let full = device.push(format!("{}/scans", server.url), "image/jpeg").post().send(pieces()).await;
    assert!(matches!(full, Err(PullError::Refused { status: 507, .. })));
    let asked = server.asked();
    assert!(asked[0].starts_with("PUT /scans/1 HTTP/1.1\r\n") && asked[1].starts_with("POST /scans "));
    assert!(asked[0].contains("content-type: image/jpeg\r\n"), "{}", asked[0]);
    let body = asked[0].split_once("\r\n\r\n").unwrap().1;
    assert!(body.contains("a ") && body.contains("scan"), "{body}");
}
