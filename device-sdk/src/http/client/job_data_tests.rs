//! Parts of jobs' data from relays that are one, and from what is none.

use futures_util::StreamExt as _;
use relay_core::{auth::Secret, ids::RequestId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::super::{HttpRelay, RelayUrl};
use crate::http::{HttpError, HttpErrorKind, JobPart, RelayHttp as _};

/// What a peer that answers so makes of `job_data(4)`, and what it was asked.
async fn ask(answer: &str) -> (Result<Option<JobPart>, HttpError>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/relay", listener.local_addr().unwrap());
    let answer = answer.replace('\n', "\r\n");
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).await.unwrap();
        stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let relay = HttpRelay::new(
        RelayUrl::parse(&url, false).unwrap(),
        &crate::transport::Proxy::Direct,
        &relay_core::tls::Trust::default(),
    )
    .unwrap();
    let part = relay.job_data(&Secret::new("secret-token"), &RequestId::new("r1").unwrap(), 4).await;
    (part, peer.await.unwrap())
}

async fn bytes(part: JobPart) -> Result<Vec<u8>, HttpError> {
    let pieces: Vec<_> = part.data.collect().await;
    pieces.into_iter().try_fold(Vec::new(), |mut all, piece| {
        all.extend_from_slice(&piece?);
        Ok(all)
    })
}

#[tokio::test]
async fn a7_a_part_of_a_jobs_data_is_asked_for_by_range_and_read() {
    let hash = "sha-256=:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=:";
    let (part, asked) = ask(&format!(
        "206 Partial Content\ncontent-range: bytes 4-7/8\ncontent-length: 4\nrepr-digest: {hash}\n\nment"
    ))
    .await;
    let part = part.unwrap().unwrap();
    assert_eq!((part.total, part.sha256), (Some(8), Some([7; 32])));
    assert_eq!(bytes(part).await.unwrap(), b"ment");
    assert!(asked.starts_with("GET /relay/v1/requests/r1/body HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("range: bytes=4-\r\n") && asked.contains("Bearer secret-token"), "{asked}");
    // Still being sent.
    let (part, _) = ask("206 Partial Content\ncontent-range: bytes 4-5/*\ncontent-length: 2\n\nme").await;
    assert_eq!(part.unwrap().unwrap().total, None);
    // All there.
    let (part, _) = ask("416 Range\ncontent-range: bytes */4\ncontent-length: 0\n\n").await;
    let part = part.unwrap().unwrap();
    assert_eq!((part.total, bytes(part).await.unwrap().len()), (Some(4), 0));
    // Nothing more yet.
    let problem = r#"{"type":"urn:relay:error:no-data-yet","title":"There is no more data yet"}"#;
    let head = "503 Wait\ncontent-type: application/problem+json";
    let (part, _) = ask(&format!("{head}\ncontent-length: {}\n\n{problem}", problem.len())).await;
    let part = part.unwrap().unwrap();
    assert_eq!((part.total, bytes(part).await.unwrap().len()), (None, 0));
}

#[tokio::test]
async fn f3_a_part_that_is_cut_is_an_error_and_no_end() {
    let (part, _) = ask("206 Partial Content\ncontent-range: bytes 4-7/8\ncontent-length: 4\n\nme").await;
    let error = bytes(part.unwrap().unwrap()).await.unwrap_err();
    assert_eq!(error.kind, HttpErrorKind::Unreachable);
}

#[tokio::test]
async fn s6_only_the_relays_own_words_end_a_job() {
    let problem = r#"{"type":"urn:relay:error:unknown-request","title":"Unknown request"}"#;
    for (status, gone) in [(404, true), (410, true), (403, true), (500, false)] {
        let kind = "content-type: application/problem+json";
        let (part, _) =
            ask(&format!("{status} No\n{kind}\ncontent-length: {}\n\n{problem}", problem.len())).await;
        assert_eq!(part.is_ok_and(|part| part.is_none()), gone, "{status}");
    }
    for portal in [
        "404 Not Found\ncontent-length: 0\n\n",
        "200 OK\ncontent-length: 4\n\nhtml",
        "206 Partial Content\ncontent-range: bytes 0-3/8\ncontent-length: 4\n\ndocu",
        "206 Partial Content\ncontent-length: 4\n\ndocu",
        "416 Range\ncontent-length: 0\n\n",
        "302 Found\nlocation: http://portal.example/\ncontent-length: 0\n\n",
    ] {
        let (part, _) = ask(portal).await;
        assert_eq!(part.unwrap_err().kind, HttpErrorKind::Unexpected, "{portal}");
    }
}
