//! Documents kept on the relay, and documents that a hook converts.
#![cfg(feature = "relay")]

mod http_support;
mod job_support;

use std::sync::Arc;

use async_trait::async_trait;
use data_encoding::BASE64;
use http_support::Rig;
use job_support::{Caller, document, done, error, offered, part, printer, read_all};
use relay_core::{
    app::{Digest, Source, print::PrintTicket},
    store::MemoryStore,
};
use server_sdk::relay::{Convert, ConvertError, Converted, Server, ServerConfig};

async fn put(rig: &Rig, name: &str, key: &str, kind: &str, bytes: &[u8]) -> http_support::Got {
    rig.call("PUT", &format!("/v1/documents/{name}"), key, &[("content-type", kind)], bytes).await
}

#[tokio::test]
async fn a6_a_document_is_kept_listed_fetched_replaced_and_deleted() {
    let rig = Rig::start().await;
    let key = rig.key(&[]).await;
    assert_eq!(rig.get("/v1/documents", &key).await.json()["documents"], serde_json::json!([]));
    let bytes = document(200_000);
    let got = put(&rig, "Handbook", &key, "application/pdf", &bytes).await;
    assert_eq!(got.status, 201, "{got:?}");
    let about = got.json();
    assert_eq!((&about["name"], &about["bytes"]), (&"Handbook".into(), &200_000.into()));
    assert_eq!(about["sha256"], Digest::of(&bytes).hex());
    let got = rig.get("/v1/documents/HANDBOOK", &key).await;
    assert!(got.status == 200 && got.body == bytes);
    assert_eq!(got.field("content-type"), Some("application/pdf"));
    assert_eq!(got.field("x-content-type-options"), Some("nosniff"));
    let digest = format!("sha-256=:{}:", BASE64.encode(&Digest::of(&bytes).sha256));
    assert_eq!(got.field("repr-digest"), Some(&*digest));
    let again = put(&rig, "handbook", &key, "text/html", b"<script>").await;
    assert_eq!(again.status, 200);
    let got = rig.get("/v1/documents/handbook", &key).await;
    assert_eq!(&*got.body, b"<script>");
    assert!(got.field("content-security-policy").unwrap().contains("sandbox"), "T51");
    assert_eq!(rig.get("/v1/documents", &key).await.json()["documents"].as_array().unwrap().len(), 1);
    let gone = rig.call("DELETE", "/v1/documents/handbook", &key, &[], b"").await;
    assert_eq!(gone.status, 204);
    rig.get("/v1/documents/handbook", &key).await.expect(404, "unknown-document");
    rig.call("DELETE", "/v1/documents/handbook", &key, &[], b"").await.expect(404, "unknown-document");
}

#[tokio::test]
async fn x2_a_document_is_there_for_its_own_key_alone() {
    let rig = Rig::start().await;
    let key = rig.key(&[]).await;
    put(&rig, "a", &key, "text/plain", b"mine").await;
    let other = rig.key(&[]).await;
    for token in [&other, &rig.admin] {
        let theirs = rig.get("/v1/documents/a", token).await;
        let none = rig.get("/v1/documents/b", token).await;
        theirs.expect(404, "unknown-document");
        assert_eq!((theirs.status, &theirs.body), (none.status, &none.body));
        rig.call("DELETE", "/v1/documents/a", token, &[], b"").await.expect(404, "unknown-document");
        assert_eq!(rig.get("/v1/documents", token).await.json()["documents"], serde_json::json!([]));
    }
    assert_eq!(put(&rig, "a", &other, "text/plain", b"theirs").await.status, 201);
    assert_eq!(&*rig.get("/v1/documents/a", &key).await.body, b"mine");
}

#[tokio::test]
async fn a6_a_kept_document_is_printed_as_often_as_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ServerConfig::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.data = folder.path().to_owned();
    for server in [Server::bind(config.clone()).await.unwrap(), Server::in_memory(config).await.unwrap()] {
        let rig = Rig::of(server);
        let mut device = printer(&rig, "d", r#""application/pdf""#).await;
        let key = rig.key(&[]).await;
        let bytes = document(100_000);
        put(&rig, "doc", &key, "application/pdf", &bytes).await;
        put(&rig, "page", &key, "text/html", b"<p>").await;
        let path = "/v1/devices/d/apps/print?document=DOC&user=Ann";
        for _ in 0..2 {
            let mut caller = Caller::start(&rig, "POST", path, &key, &[], Some(0)).await;
            let (id, offer) = offered(&mut device).await;
            let ticket = PrintTicket::from_header(offer.header.as_deref().unwrap()).unwrap();
            assert_eq!(ticket.content_type.as_deref(), Some("application/pdf"));
            assert!(read_all(&rig, &device.token, &id).await == bytes);
            done(&mut device, &id).await;
            caller.accepted().await;
            assert_eq!(caller.last().await["state"], "completed");
        }
        let refuse = async |query: &str, body: &[u8], token: &str| {
            rig.call("POST", &format!("/v1/devices/d/apps/print?document={query}"), token, &[], body).await
        };
        refuse("page", b"", &key).await.expect(415, "unsupported-media-type");
        refuse("none", b"", &key).await.expect(404, "unknown-document");
        refuse("doc", b"body", &key).await.expect(400, "bad-request");
        let other = rig.key(&[]).await;
        refuse("doc", b"", &other).await.expect(404, "unknown-document");
        // A jam is said as for any other document.
        let mut caller = Caller::start(&rig, "POST", path, &key, &[], Some(0)).await;
        let (id, _) = offered(&mut device).await;
        error(&mut device, &id, "device-error", "paper jam").await;
        caller.status().await.expect(409, "device-error");
        // Deleted while it is being printed, it is printed all the same.
        let mut caller = Caller::start(&rig, "POST", path, &key, &[], Some(0)).await;
        let (id, _) = offered(&mut device).await;
        let first = part(&rig, &device.token, &id, "bytes=0-9").await;
        assert_eq!(first.body, bytes[..10]);
        assert_eq!(rig.call("DELETE", "/v1/documents/doc", &key, &[], b"").await.status, 204);
        assert!(read_all(&rig, &device.token, &id).await == bytes);
        done(&mut device, &id).await;
        caller.accepted().await;
        assert_eq!(caller.last().await["state"], "completed");
    }
    http_support::eventually(|| std::fs::read_dir(folder.path().join("spool")).unwrap().count() == 0).await;
    assert_eq!(
        std::fs::read_dir(folder.path().join("documents")).unwrap().count(),
        2,
        "the page, and its note"
    );
}

#[tokio::test]
async fn l1_a_kept_document_survives_the_relay_and_goes_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let start = async || {
        let mut config = ServerConfig::default();
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.data = folder.path().to_owned();
        Rig::of(Server::bind(config).await.unwrap())
    };
    let mut rig = start().await;
    let (own, other) = (rig.key(&[]).await, rig.key(&[]).await);
    let bytes = document(100_000);
    put(&rig, "doc", &own, "application/pdf", &bytes).await;
    put(&rig, "doc", &other, "application/pdf", b"x").await;
    rig.stop();
    rig.stopped().await;
    let mut rig = {
        drop(rig);
        start().await
    };
    assert!(rig.get("/v1/documents/doc", &own).await.body == bytes);
    let about = rig.get("/v1/documents", &own).await.json();
    assert_eq!(about["documents"][0]["sha256"], Digest::of(&bytes).hex());
    let metrics = String::from_utf8(rig.get("/metrics", &own).await.body).unwrap();
    assert!(metrics.contains("relay_spool_bytes 100001"));
    let keys = rig.get("/v1/keys", &rig.admin).await.json();
    let id = keys["keys"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap());
    for id in id.filter(|id| *id != "administrator") {
        rig.call("DELETE", &format!("/v1/keys/{id}"), &rig.admin, &[], b"").await;
    }
    rig.stop();
    rig.stopped().await;
    drop(rig);
    let rig = start().await;
    assert_eq!(std::fs::read_dir(folder.path().join("documents")).unwrap().count(), 0);
    drop(rig);
}

#[tokio::test]
async fn t45_a_documents_name_is_no_path() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), b"secret").unwrap();
    let mut config = ServerConfig::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.data = folder.path().join("data");
    let rig = Rig::of(Server::bind(config).await.unwrap());
    let key = rig.key(&[]).await;
    for name in ["..%2f..%2fsecret", "%2e%2e", "..", "a%2fb", "a%5cb", "%00", "%2fetc%2fpasswd", "%EF%BC%8E"]
    {
        for method in ["GET", "PUT", "DELETE"] {
            let got = rig.call(method, &format!("/v1/documents/{name}"), &key, &[], b"").await;
            assert!(got.status == 400 || got.status == 404, "{method} {name}: {got:?}");
        }
    }
    assert_eq!(put(&rig, "..secret", &key, "text/plain", b"x").await.status, 201, "odd, but a name");
    let outside: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(outside.len(), 2);
    assert_eq!(std::fs::read(folder.path().join("secret")).unwrap(), b"secret");
    for entry in std::fs::read_dir(folder.path().join("data/documents")).unwrap() {
        assert!(!entry.unwrap().file_name().to_string_lossy().contains("secret"));
    }
}

#[tokio::test]
async fn t23_kept_documents_have_their_bounds() {
    let rig = Rig::with(|config| {
        config.spool.max_documents = 2;
        config.spool.max_document = 100;
        config.spool.max_spool = 150;
    })
    .await;
    let key = rig.key(&[]).await;
    assert_eq!(put(&rig, "a", &key, "a/b", &[0; 100]).await.status, 201);
    put(&rig, "b", &key, "a/b", &[0; 101]).await.expect(413, "too-large");
    put(&rig, "b", &key, "a/b", &[0; 51]).await.expect(503, "store-unavailable");
    assert_eq!(put(&rig, "b", &key, "a/b", &[0; 50]).await.status, 201);
    let got = put(&rig, "c", &key, "a/b", b"").await;
    got.expect(429, "too-many-requests");
    assert!(got.field("retry-after").is_some());
    put(&rig, "a", &key, "a/b", &[0; 10]).await.expect(503, "store-unavailable");
    rig.call("DELETE", "/v1/documents/b", &key, &[], b"").await;
    assert_eq!(put(&rig, "a", &key, "a/b", &[0; 10]).await.status, 200);
    let broken = rig.call("PUT", "/v1/documents/z", &key, &[("content-encoding", "gzip")], b"x").await;
    broken.expect(415, "unsupported-media-type");
}

/// Turns text into capitals, and knows nothing else.
#[derive(Debug)]
struct Capitals;

#[async_trait]
impl Convert for Capitals {
    fn converts(&self, from: &str, formats: &[String]) -> Option<String> {
        let wanted = formats.iter().find(|format| *format == "text/capitals")?;
        from.starts_with("text/plain").then(|| wanted.clone())
    }

    async fn convert(
        &self,
        document: Arc<dyn Source>,
        to: &str,
        output: &mut Converted<'_>,
    ) -> Result<(), ConvertError> {
        assert_eq!(to, "text/capitals");
        let mut at = 0;
        loop {
            let piece = document.read(at, 10_000).await?;
            if piece.is_empty() {
                return Ok(());
            }
            if piece.contains(&0) {
                return Err(ConvertError::new("this is no text"));
            }
            at += piece.len() as u64;
            output.write(piece.to_ascii_uppercase()).await?;
        }
    }
}

#[tokio::test]
async fn q6_a_hook_converts_what_the_device_does_not_take() {
    let mut config = ServerConfig::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = Server::hosted(config, Arc::new(MemoryStore::new()), None).await.unwrap();
    let rig = Rig::of(server.with_convert(Arc::new(Capitals)));
    let mut device = printer(&rig, "d", r#""text/capitals""#).await;
    let key = rig.key(&[]).await;
    let path = "/v1/devices/d/apps/print";
    let start = async |kind: &str, length| {
        Caller::start(&rig, "POST", path, &key, &[("content-type", kind)], Some(length)).await
    };
    start("image/png", 10).await.status().await.expect(415, "unsupported-media-type");
    let text = b"abc ".repeat(50_000);
    let mut caller = start("text/plain", text.len()).await;
    let (id, offer) = offered(&mut device).await;
    let ticket = PrintTicket::from_header(offer.header.as_deref().unwrap()).unwrap();
    assert_eq!(ticket.content_type.as_deref(), Some("text/capitals"));
    let sending = async {
        caller.accepted().await;
        caller.wire.send(&text).await;
    };
    let (read, ()) = tokio::join!(read_all(&rig, &device.token, &id), sending);
    assert!(read == b"ABC ".repeat(50_000));
    done(&mut device, &id).await;
    assert_eq!(caller.last().await["state"], "completed");
    // What cannot be converted fails the job, in the hook's words.
    let mut caller = start("text/plain", 100).await;
    let (id, _) = offered(&mut device).await;
    let (_, ()) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        caller.accepted().await;
        caller.wire.send(&[b'a'; 50]).await;
        caller.wire.send(&[0; 50]).await;
    });
    let last = caller.last().await;
    assert_eq!((&last["code"], &last["detail"]), (&"not-converted".into(), &"this is no text".into()));
    // What the device takes as it is goes as it is.
    let mut caller = start("text/capitals", 3).await;
    let (id, _) = offered(&mut device).await;
    let sending = async {
        caller.accepted().await;
        caller.wire.send(b"abc").await;
    };
    let (read, ()) = tokio::join!(read_all(&rig, &device.token, &id), sending);
    assert_eq!(read, b"abc");
}
