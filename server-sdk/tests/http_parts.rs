//! Uploads in parts: a job is made before its document comes, so that it has its ID and can be gone on with and cancelled from
//! the first byte on.
#![cfg(feature = "relay")]

mod http_support;
mod job_support;

use std::time::Duration;

use http_support::Rig;
use job_support::{Caller, cancelled, document, done, offered, part, printer, read_all};

const PRINT: &str = "/v1/devices/d/apps/print";

/// Announces a document of which `length` bytes come at once.
async fn announce(rig: &Rig, key: &str, length: usize, whole: &str) -> Caller {
    let fields = [("upload-complete", "?0"), ("upload-length", whole), ("content-type", "application/pdf")];
    Caller::start(rig, "POST", PRINT, key, &fields, Some(length)).await
}

async fn send(rig: &Rig, id: &str, key: &str, offset: usize, bytes: &[u8], complete: &str) -> Caller {
    let offset = offset.to_string();
    let fields = [
        ("upload-offset", &*offset),
        ("upload-complete", complete),
        ("content-type", "application/partial-upload"),
    ];
    let path = format!("/v1/requests/{id}");
    let mut caller = Caller::start(rig, "PATCH", &path, key, &fields, Some(bytes.len())).await;
    caller.wire.send(bytes).await;
    caller
}

#[tokio::test]
async fn f32_a_job_has_its_id_before_its_document_comes_which_comes_in_parts() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let document = document(300_000);
    let mut caller = announce(&rig, &key, 0, "300000").await;
    let (id, offer) = offered(&mut device).await;
    assert!(offer.header.unwrap().contains("application/pdf"), "the ticket has the document's type");
    let token = device.token.clone();
    let (read, id) = tokio::join!(read_all(&rig, &token, &id), async {
        let got = caller.status().await;
        assert_eq!((got.status, got.field("upload-complete")), (200, Some("?0")), "{got:?}");
        let id = got.field("relay-request-id").unwrap().to_owned();
        while let Some(line) = caller.line().await {
            assert_eq!(line["code"], serde_json::Value::Null, "the answer ends in order: {line}");
        }
        let about = rig.get(&format!("/v1/requests/{id}"), &key).await;
        assert_eq!((about.status, about.field("upload-offset")), (202, Some("0")));
        let mut first = send(&rig, &id, &key, 0, &document[..100_000], "?0").await;
        assert_eq!(first.status().await.field("upload-complete"), Some("?0"));
        while first.line().await.is_some() {}
        let about = rig.get(&format!("/v1/requests/{id}"), &key).await;
        assert_eq!(about.field("upload-offset"), Some("100000"));
        let mut last = send(&rig, &id, &key, 100_000, &document[100_000..], "?1").await;
        let got = last.status().await;
        assert_eq!((got.status, got.field("upload-complete")), (200, None));
        last.until("processing").await;
        id
    });
    assert!(read == document);
    done(&mut device, &id.parse().unwrap()).await;
    let mut watcher = Caller::resume(&rig, &id, &key, document.len(), 0).await;
    watcher.accepted().await;
    assert_eq!(watcher.last().await["state"], "completed");
}

#[tokio::test]
async fn q8_a_job_is_cancelled_before_its_document_came() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = announce(&rig, &key, 0, "5000").await;
    let (id, _) = offered(&mut device).await;
    let path = format!("/v1/requests/{id}");
    let token = device.token.clone();
    let (_, ()) = tokio::join!(part(&rig, &token, &id, "bytes=0-"), async {
        caller.accepted().await;
        while caller.line().await.is_some() {}
        assert_eq!(rig.call("DELETE", &path, &key, &[], b"").await.status, 204);
    });
    cancelled(&mut device, &id).await;
    let mut late = send(&rig, id.as_str(), &key, 0, b"x", "?1").await;
    late.status().await.expect(409, "already-answered");
}

#[tokio::test]
async fn a4_a_document_that_was_announced_and_does_not_come_ends_the_job() {
    let rig = Rig::with(|config| config.spool.upload_resume = Duration::from_millis(300)).await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = announce(&rig, &key, 0, "5000").await;
    let (id, _) = offered(&mut device).await;
    let token = device.token.clone();
    let (_, ()) = tokio::join!(part(&rig, &token, &id, "bytes=0-"), async {
        caller.accepted().await;
        while caller.line().await.is_some() {}
    });
    cancelled(&mut device, &id).await;
    let over = rig.get(&format!("/v1/requests/{id}"), &key).await.json();
    assert_eq!((&over["state"], &over["code"]), (&"failed".into(), &"broke-off".into()));
}

#[tokio::test]
async fn a4_what_cannot_be_announced_is_refused_before_any_byte() {
    let rig = Rig::with(|config| config.spool.max_document = 10_000).await;
    let _device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let too_large = [("upload-complete", "?0"), ("upload-length", "10001")];
    rig.call("POST", PRINT, &key, &too_large, b"").await.expect(413, "too-large");
    for fields in [
        &[("upload-complete", "0")][..],
        &[("upload-complete", "")],
        &[("upload-complete", "?0"), ("upload-length", "-1")],
        &[("upload-complete", "?0"), ("upload-length", "99999999999999999999")],
    ] {
        rig.call("POST", PRINT, &key, fields, b"").await.expect(400, "bad-request");
    }
    let kept = format!("{PRINT}?document=minutes");
    let created = rig.call("PUT", "/v1/documents/minutes", &key, &[], b"text").await;
    assert_eq!(created.status, 201);
    rig.call("POST", &kept, &key, &[("upload-complete", "?0")], b"").await.expect(400, "bad-request");
}
