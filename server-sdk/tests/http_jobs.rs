//! Jobs over the HTTP API: nothing moves before the device says so, and everything is told to its end.
#![cfg(feature = "relay")]

mod http_support;
mod job_support;

use std::time::Duration;

use data_encoding::BASE64;
use http_support::{Rig, device_id, head};
use job_support::{Caller, cancelled, document, done, error, offered, part, printer, progress, read_all};
use relay_core::{Body, Response, app::Digest, app::print::PrintTicket};

const PDF: &str = r#""application/pdf""#;

#[tokio::test]
async fn a4_a_document_goes_to_the_device_and_its_progress_comes_back() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "printer-1", PDF).await;
    let key = rig.key(&[]).await;
    let document = document(300_000);
    let mut caller =
        Caller::print(&rig, "PRINTER-1", "user=Ann&job_name=Minutes&copies=2", &key, document.len()).await;
    let (id, offer) = offered(&mut device).await;
    assert_eq!(offer.app.as_str(), "Print");
    let ticket = PrintTicket::from_header(offer.header.as_deref().unwrap()).unwrap();
    assert_eq!((ticket.user.as_deref(), ticket.job_name.as_deref()), (Some("Ann"), Some("Minutes")));
    assert_eq!(ticket.content_type.as_deref(), Some("application/pdf"));
    assert_eq!(ticket.attribute("copies"), Some("2"));
    assert!(caller.is_silent().await, "no byte was asked for before the device opened the app");
    let reading = read_all(&rig, &device.token, &id);
    let sending = async {
        caller.go_on().await;
        let got = caller.status().await;
        assert_eq!((got.status, got.outcome()), (200, "received"));
        assert_eq!(got.field("relay-request-id"), Some(id.as_str()));
        assert_eq!(caller.line().await.unwrap()["state"], "accepted");
        for piece in document.chunks(70_000) {
            caller.wire.send(piece).await;
        }
    };
    let (read, ()) = tokio::join!(reading, sending);
    assert!(read == document, "{} bytes", read.len());
    let got = part(&rig, &device.token, &id, "bytes=299990-").await;
    let digest = format!("sha-256=:{}:", BASE64.encode(&Digest::of(&document).sha256));
    assert_eq!(got.field("repr-digest"), Some(&*digest));
    assert_eq!(got.field("content-range"), Some("bytes 299990-299999/300000"));
    caller.until("processing").await;
    progress(&mut device, &id, 100, "page 1").await;
    loop {
        if caller.line().await.unwrap()["note"] == "page 1" {
            break;
        }
    }
    let running = rig.get(&format!("/v1/requests/{id}"), &key).await;
    assert_eq!((running.status, running.json()["state"].as_str()), (202, Some("processing")));
    done(&mut device, &id).await;
    let last = caller.last().await;
    assert_eq!((&last["state"], &last["bytes"]), (&"completed".into(), &300_000.into()));
    assert_eq!(last["outcome"], "answered");
    let over = rig.get(&format!("/v1/requests/{id}"), &key).await;
    assert_eq!(over.status, 200);
    let over = over.json();
    assert_eq!((&over["state"], &over["outcome"]), (&"completed".into(), &"answered".into()));
    assert_eq!((&over["device"], &over["status"]), (&"PRINTER-1".into(), &"ok".into()));
    part(&rig, &device.token, &id, "bytes=0-").await.expect(404, "unknown-request");
    let counted = ["relay_requests_total{outcome=\"answered\"} 1", "relay_spool_bytes 0"];
    tokio::time::timeout(http_support::PATIENCE, async {
        loop {
            let metrics = String::from_utf8(rig.get("/metrics", &key).await.body).unwrap();
            if counted.iter().all(|line| metrics.contains(line)) {
                break;
            }
        }
    })
    .await
    .expect("it is counted, and its document gone");
}

#[tokio::test]
async fn a3_what_the_device_says_instead_of_opening_is_the_answer_before_any_byte_moved() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", PDF).await;
    let key = rig.key(&[]).await;
    for (status, words, http, code, outcome) in [
        ("device-error", "paper jam", 409, "device-error", "refused"),
        ("unknown-app", "", 404, "unknown-app", "refused"),
        ("no-toner", "black is out", 502, "device-failed", "answered"),
    ] {
        let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
        let (id, _) = offered(&mut device).await;
        error(&mut device, &id, status, words).await;
        let got = caller.status().await;
        got.expect(http, code);
        assert_eq!(got.outcome(), outcome);
        assert_eq!(got.field("relay-request-id"), Some(id.as_str()));
        if !words.is_empty() {
            assert_eq!(got.json()["detail"], words);
        }
        caller.wire.closed().await;
        let over = rig.get(&format!("/v1/requests/{id}"), &key).await.json();
        assert_eq!((&over["state"], &over["outcome"]), (&"failed".into(), &outcome.into()));
    }
}

#[tokio::test]
async fn a3_a_jam_that_arises_on_the_way_ends_the_job() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", PDF).await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 100_000).await;
    let (id, _) = offered(&mut device).await;
    let reading = part(&rig, &device.token, &id, "bytes=0-");
    let sending = async {
        caller.go_on().await;
        caller.accepted().await;
        caller.wire.send(&document(50_000)).await;
    };
    let (read, ()) = tokio::join!(reading, sending);
    assert_eq!(read.status, 206);
    error(&mut device, &id, "device-error", "paper jam in tray 2").await;
    let last = caller.last().await;
    assert_eq!((&last["state"], &last["code"]), (&"failed".into(), &"device-error".into()));
    assert_eq!((&last["detail"], &last["outcome"]), (&"paper jam in tray 2".into(), &"answered".into()));
}

#[tokio::test]
async fn a4_what_the_relay_itself_refuses_it_refuses_at_once() {
    let rig = Rig::start().await;
    let device = printer(&rig, "d", r#""application/pdf","image/*""#).await;
    let key = rig.key(&[]).await;
    let print = async |path: &str, key: &str, kind: &str| {
        let fields = [("expect", "100-continue"), ("content-type", kind)];
        let mut caller = Caller::start(&rig, "POST", path, key, &fields, Some(1000)).await;
        let got = caller.status().await;
        caller.wire.closed().await;
        got
    };
    let path = "/v1/devices/d/apps/print";
    let got = print(path, &key, "application/postscript").await;
    got.expect(415, "unsupported-media-type");
    assert_eq!(got.outcome(), "refused");
    assert!(got.json()["detail"].as_str().unwrap().contains("application/pdf"));
    let got = print("/v1/devices/d/apps/fax", &key, "application/pdf").await;
    got.expect(404, "unknown-app");
    assert_eq!(got.outcome(), "refused");
    for query in ["?a%20b=1", "?user=%1b%5b2J", "?document=..", "?deliver=queue", "?token=x"] {
        print(&format!("{path}{query}"), &key, "application/pdf").await.expect(400, "bad-request");
    }
    let reader = rig.key(&["device:d:GET,app/scan"]).await;
    print(path, &reader, "application/pdf").await.expect(403, "forbidden");
    let stranger = rig.key(&["device:other"]).await;
    let hidden = print(path, &stranger, "application/pdf").await;
    hidden.expect(404, "unknown-device");
    let none = print("/v1/devices/none/apps/print", &key, "application/pdf").await;
    assert_eq!((none.status, &none.body), (hidden.status, &hidden.body));
    print(path, &device.token, "application/pdf").await.expect(403, "forbidden");
    device.close().await;
    http_support::eventually(|| {
        rig.relay.presence(&device_id("d")).is_some_and(|p| p.state == relay_core::relay::State::Offline)
    })
    .await;
    let got = print(path, &key, "application/pdf").await;
    got.expect(503, "device-offline");
    assert_eq!(got.outcome(), "offline");
}

#[tokio::test]
async fn q3_a_device_that_does_not_open_in_time_is_said_so() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let fields = [("prefer", "wait=1"), ("expect", "100-continue")];
    let mut caller = Caller::start(&rig, "POST", "/v1/devices/d/apps/print", &key, &fields, Some(10)).await;
    let (id, _) = offered(&mut device).await;
    let got = caller.status().await;
    got.expect(504, "device-timeout");
    assert_eq!(got.outcome(), "sent");
    cancelled(&mut device, &id).await;
}

#[tokio::test]
async fn q5_a_job_can_be_addressed_by_account_and_any_app_gets_its_header() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    rig.call("PUT", "/v1/accounts/acme/devices/d", &rig.admin, &[], b"").await;
    let key = rig.key(&["account:acme:app/scan"]).await;
    let mut caller =
        Caller::start(&rig, "POST", "/v1/accounts/acme/apps/SCAN?dpi=300&user=A%3CB", &key, &[], Some(0))
            .await;
    let (id, offer) = offered(&mut device).await;
    assert_eq!(offer.header.as_deref(), Some("<Job><User>A&lt;B</User><dpi>300</dpi></Job>"));
    let data = read_all(&rig, &device.token, &id).await;
    assert!(data.is_empty());
    device.answer(id.clone(), Response::with_body(Body::new("image/png", &b"picture"[..]))).await;
    let job = caller.accepted().await;
    let last = caller.last().await;
    assert_eq!(last["state"], "completed");
    assert_eq!(last["result"], format!("/v1/requests/{job}/result"));
    let result = rig.get(last["result"].as_str().unwrap(), &key).await;
    assert_eq!((result.status, &*result.body), (200, &b"picture"[..]));
    assert_eq!(result.field("content-type"), Some("image/png"));
    let other = rig.key(&[]).await;
    rig.get(last["result"].as_str().unwrap(), &other).await.expect(404, "unknown-request");
}

#[tokio::test]
async fn f32_an_upload_that_breaks_three_times_is_gone_on_with_and_comes_out_whole() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let document = document(400_000);
    let mut caller = Caller::print(&rig, "d", "", &key, document.len()).await;
    let (id, _) = offered(&mut device).await;
    let token = device.token.clone();
    let reading = read_all(&rig, &token, &id);
    let sending = async {
        caller.go_on().await;
        let job = caller.accepted().await;
        let mut at = 0;
        for _ in 0..3 {
            caller.wire.send(&document[at..at + 100_001]).await;
            drop(caller);
            let about = rig.get(&format!("/v1/requests/{job}"), &key).await;
            assert_eq!(about.status, 202);
            at = usize::try_from(about.json()["offset"].as_u64().unwrap()).unwrap();
            assert_eq!(about.field("upload-offset"), Some(&*at.to_string()));
            let wrong = Caller::resume(&rig, &job, &key, at + 1, 10).await.status().await;
            wrong.expect(409, "conflict");
            at = usize::try_from(wrong.json()["offset"].as_u64().unwrap()).unwrap();
            caller = Caller::resume(&rig, &job, &key, at, document.len() - at).await;
            assert_eq!(caller.accepted().await, job);
        }
        caller.wire.send(&document[at..]).await;
        caller.until("processing").await;
        caller
    };
    let (read, mut caller) = tokio::join!(reading, sending);
    assert!(read == document, "{} bytes", read.len());
    done(&mut device, &id).await;
    assert_eq!(caller.last().await["state"], "completed");
    // Whoever lost the last line may still ask for it.
    let mut again = Caller::resume(&rig, id.as_str(), &key, document.len(), 0).await;
    again.accepted().await;
    assert_eq!(again.last().await["state"], "completed");
    let more = Caller::resume(&rig, id.as_str(), &key, 0, 10).await.status().await;
    more.expect(409, "already-answered");
}

#[tokio::test]
async fn f32_an_upload_that_goes_on_elsewhere_is_taken_from_a_connection_that_hangs() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let document = document(50_000);
    let mut caller = Caller::print(&rig, "d", "", &key, document.len()).await;
    let (id, _) = offered(&mut device).await;
    let token = device.token.clone();
    let reading = read_all(&rig, &token, &id);
    let sending = async {
        caller.go_on().await;
        let job = caller.accepted().await;
        caller.wire.send(&document[..20_000]).await;
        let offset = loop {
            let about = rig.get(&format!("/v1/requests/{job}"), &key).await.json();
            if about["offset"] == 20_000 {
                break 20_000;
            }
        };
        let mut second = Caller::resume(&rig, &job, &key, offset, document.len() - offset).await;
        second.accepted().await;
        let cut = caller.last().await;
        assert_eq!(cut["code"], "conflict");
        second.wire.send(&document[offset..]).await;
        second
    };
    let (read, mut second) = tokio::join!(reading, sending);
    assert!(read == document);
    done(&mut device, &id).await;
    assert_eq!(second.last().await["state"], "completed");
}

#[tokio::test]
async fn f32_an_upload_can_be_taken_over_before_the_device_opened() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut first = Caller::print(&rig, "d", "", &key, 10).await;
    let (id, _) = offered(&mut device).await;
    let mut second = Caller::resume(&rig, id.as_str(), &key, 0, 10).await;
    first.status().await.expect(409, "conflict");
    let (_, ()) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        second.accepted().await;
        second.wire.send(&document(10)).await;
    });
    done(&mut device, &id).await;
    assert_eq!(second.last().await["state"], "completed");
}

#[tokio::test]
async fn a4_an_upload_that_nobody_goes_on_with_ends_the_job_and_the_device_is_told() {
    let rig = Rig::with(|config| config.spool.upload_resume = Duration::from_millis(300)).await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let (_, ()) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        caller.go_on().await;
        caller.accepted().await;
        caller.wire.send(&document(500)).await;
    });
    drop(caller);
    cancelled(&mut device, &id).await;
    let over = rig.get(&format!("/v1/requests/{id}"), &key).await;
    assert_eq!(over.status, 200);
    let over = over.json();
    assert_eq!((&over["state"], &over["code"]), (&"failed".into(), &"broke-off".into()));
    assert!(over["detail"].as_str().unwrap().contains("500 bytes"), "{over}");
    let late = Caller::resume(&rig, id.as_str(), &key, 500, 500).await.status().await;
    late.expect(409, "already-answered");
}

#[tokio::test]
async fn q8_a_job_is_cancelled_once_and_the_device_is_told() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let (_, ()) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        caller.go_on().await;
        caller.accepted().await;
        caller.wire.send(b"x").await;
    });
    let path = format!("/v1/requests/{id}");
    let gone = rig.call("DELETE", &path, &key, &[], b"").await;
    assert_eq!(gone.status, 204);
    cancelled(&mut device, &id).await;
    assert_eq!(caller.last().await["state"], "cancelled");
    rig.call("DELETE", &path, &key, &[], b"").await.expect(409, "already-answered");
    assert_eq!(rig.get(&path, &key).await.json()["state"], "cancelled");
    let late = rig.call("POST", &format!("{path}/response"), &device.token, &[], b"").await;
    late.expect(410, "too-late");
}

#[tokio::test]
async fn q8_a_caller_that_cancels_before_the_device_opened_gets_its_answer() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let gone = rig.call("DELETE", &format!("/v1/requests/{id}"), &key, &[], b"").await;
    assert_eq!(gone.status, 204);
    let got = caller.status().await;
    got.expect(409, "conflict");
    cancelled(&mut device, &id).await;
}

#[tokio::test]
async fn a4_a_caller_that_goes_away_after_the_upload_leaves_the_job_to_end_by_itself() {
    let rig = Rig::with(|config| config.spool.upload_resume = Duration::from_millis(100)).await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let (read, ()) = tokio::join!(read_all(&rig, &device.token, &id), async {
        caller.go_on().await;
        caller.accepted().await;
        caller.wire.send(&document(1000)).await;
        caller.until("processing").await;
    });
    assert_eq!(read.len(), 1000);
    drop(caller);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.get(&format!("/v1/requests/{id}"), &key).await.json()["state"], "processing");
    done(&mut device, &id).await;
    let mut watcher = Caller::resume(&rig, id.as_str(), &key, 1000, 0).await;
    watcher.accepted().await;
    assert_eq!(watcher.last().await["state"], "completed");
}

#[tokio::test]
async fn t6_a_job_is_there_for_its_own_key_alone() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let other = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let (_, ()) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        caller.go_on().await;
        caller.accepted().await;
        caller.wire.send(b"x").await;
    });
    let fields = [("upload-offset", "1"), ("content-type", "application/partial-upload")];
    let none = "a".repeat(52);
    for (method, rest, fields) in
        [("GET", "", &[][..]), ("DELETE", "", &[]), ("PATCH", "", &fields), ("GET", "/result", &[])]
    {
        for token in [&other, &rig.admin] {
            let theirs = rig.call(method, &format!("/v1/requests/{id}{rest}"), token, fields, b"").await;
            let nobodys = rig.call(method, &format!("/v1/requests/{none}{rest}"), token, fields, b"").await;
            theirs.expect(404, "unknown-request");
            assert_eq!((theirs.status, &theirs.body), (nobodys.status, &nobodys.body), "{method}");
            assert_eq!(theirs.fields.len(), nobodys.fields.len());
        }
    }
    assert_eq!(rig.get(&format!("/v1/requests/{id}"), &key).await.status, 202);
}

#[tokio::test]
async fn t4_a_jobs_data_is_for_its_device_alone() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let other = printer(&rig, "e", "").await;
    let key = rig.key(&[]).await;
    let _caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    part(&rig, &other.token, &id, "bytes=0-").await.expect(404, "unknown-request");
    part(&rig, &key, &id, "bytes=0-").await.expect(403, "forbidden");
    part(&rig, "", &id, "bytes=0-").await.expect(401, "unauthenticated");
    let state = rig.get(&format!("/v1/requests/{id}"), &key).await.json();
    assert_eq!(state["state"], "offered", "nobody opened it");
}

#[tokio::test]
async fn a7_a_device_reads_on_from_any_place_and_only_its_newest_reading_is_served() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let document = document(6_000_000);
    let mut caller = Caller::print(&rig, "d", "", &key, document.len()).await;
    let (id, _) = offered(&mut device).await;
    let path = format!("/v1/requests/{id}/body");
    // Without a range: all of it as it comes, of no announced length yet.
    let mut first = rig.wire().await;
    first.send(&head("GET", &path, &device.token, &[], None)).await;
    caller.go_on().await;
    caller.accepted().await;
    caller.wire.send(&document[..10]).await;
    let line = [b"A\r\n", &document[..10], b"\r\n"].concat();
    while !first.read.ends_with(&line) {
        assert!(first.more().await);
    }
    let text = String::from_utf8_lossy(&first.read).into_owned();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("transfer-encoding: chunked"), "{text}");
    // It waits for what is not there yet; a newer reading ends it.
    let waiting = part(&rig, &device.token, &id, "bytes=10-");
    let sending = async {
        let rest = first.rest().await;
        assert!(!String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n"), "it is not whole");
        caller.wire.send(&document[10..]).await;
        caller.until("processing").await;
    };
    let reading = async {
        let got = waiting.await;
        assert_eq!(got.status, 206);
        assert!(got.body == document[10..10 + got.body.len()]);
        assert_eq!(read_all(&rig, &device.token, &id).await.len(), document.len());
    };
    tokio::join!(sending, reading);
    let got = part(&rig, &device.token, &id, "bytes=1000000-").await;
    assert_eq!(got.body.len(), 4 * 1024 * 1024, "a part has its bound");
    assert!(got.body == document[1_000_000..1_000_000 + 4 * 1024 * 1024]);
    let got = part(&rig, &device.token, &id, "bytes=5-14").await;
    assert_eq!((got.status, &*got.body), (206, &document[5..15]));
    let got = part(&rig, &device.token, &id, "bytes=7000000-").await;
    got.expect(416, "range-not-satisfiable");
    assert_eq!(got.field("content-range"), Some("bytes */6000000"));
    let whole = part(&rig, &device.token, &id, "none").await;
    assert_eq!((whole.status, whole.field("content-length")), (200, Some("6000000")));
    assert!(whole.body == document);
    done(&mut device, &id).await;
    assert_eq!(caller.last().await["state"], "completed");
}

#[tokio::test]
async fn t25_a_slow_upload_is_cut_and_may_be_gone_on_with() {
    let rig = Rig::with(|config| config.http.body_idle_timeout = Duration::from_millis(300)).await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let (_, job) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        caller.go_on().await;
        let job = caller.accepted().await;
        caller.wire.send(&document(10)).await;
        job
    });
    let last = caller.last().await;
    assert_eq!((&last["code"], &last["state"]), (&"too-slow".into(), &"sending".into()));
    let mut caller = Caller::resume(&rig, &job, &key, 10, 990).await;
    caller.accepted().await;
    caller.wire.send(&document(1000)[10..]).await;
    assert!(read_all(&rig, &device.token, &id).await == document(1000));
    done(&mut device, &id).await;
    assert_eq!(caller.last().await["state"], "completed");
}

#[tokio::test]
async fn t23_a_document_beyond_the_bound_is_refused_at_once_or_at_the_byte() {
    let rig = Rig::with(|config| {
        config.spool.max_document = 1000;
        config.spool.max_spool = 1500;
    })
    .await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    Caller::print(&rig, "d", "", &key, 1001).await.status().await.expect(413, "too-large");
    let chunked = [("transfer-encoding", "chunked")];
    let mut caller = Caller::start(&rig, "POST", "/v1/devices/d/apps/print", &key, &chunked, None).await;
    let (id, _) = offered(&mut device).await;
    let (_, ()) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        caller.accepted().await;
        caller.wire.send(b"3e8\r\n").await;
        caller.wire.send(&document(1000)).await;
        caller.wire.send(b"\r\n").await;
    });
    let mut other = Caller::print(&rig, "d", "", &key, 501).await;
    let got = other.status().await;
    got.expect(503, "store-unavailable");
    assert_eq!((got.outcome(), got.field("retry-after")), ("refused", Some("30")));
    caller.wire.send(b"1\r\nx\r\n0\r\n\r\n").await;
    let last = caller.last().await;
    assert_eq!((&last["state"], &last["code"]), (&"failed".into(), &"too-large".into()));
    cancelled(&mut device, &id).await;
    // What it took is free again.
    let caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (again, _) = offered(&mut device).await;
    assert_ne!(again, id);
    drop(caller);
}

#[tokio::test]
async fn t43_t45_hostile_names_stay_names() {
    let rig = Rig::start().await;
    let device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    for (path, status) in [
        ("/v1/devices/d/apps/..%2f..%2fprint", 400),
        ("/v1/devices/d/apps/%2e%2e", 400),
        ("/v1/devices/d/apps/print%00", 400),
        ("/v1/devices/d/apps/a%5cb", 400),
        ("/v1/devices/d/apps/%EF%BC%8E%EF%BC%8E", 400),
        ("/v1/devices/d/apps/print/x", 400),
        ("/v1/devices/d/apps/", 400),
        ("/v1/devices/d/apps", 404),
        ("/v1/devices/d/apps/nothing", 404),
        ("/v1/devices/d/apps/print?%3Cscript%3E=1", 400),
        ("/v1/devices/d/apps/print?user=%0d%0aset-cookie:a", 400),
        ("/v1/devices/d/apps/print?document=%2fetc%2fpasswd", 400),
        ("/v1/devices/d/apps/print?document=passwd", 404),
    ] {
        let got = rig.call("POST", path, &key, &[], b"").await;
        assert_eq!(got.status, status, "{path}: {got:?}");
        got.code();
    }
    for range in ["bytes=-1", "bytes=99999999999999999999-", "x", "bytes=5-1"] {
        let got = part(&rig, &device.token, &"a".repeat(52).parse().unwrap(), range).await;
        got.expect(404, "unknown-request");
    }
    let none = "a".repeat(52);
    for (offset, kind, status) in [("1", "text/plain", 404), ("-1", "application/partial-upload", 404)] {
        let fields = [("upload-offset", offset), ("content-type", kind)];
        let got = rig.call("PATCH", &format!("/v1/requests/{none}"), &key, &fields, b"").await;
        assert_eq!(got.status, status);
    }
}

#[tokio::test]
async fn a4_what_goes_on_with_an_upload_says_so_properly() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let _caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let path = format!("/v1/requests/{id}");
    for (fields, status, code) in [
        (&[("upload-offset", "0"), ("content-type", "text/plain")][..], 415, "unsupported-media-type"),
        (&[("upload-offset", "0")], 415, "unsupported-media-type"),
        (&[("content-type", "application/partial-upload")], 400, "bad-request"),
        (&[("upload-offset", "+1"), ("content-type", "application/partial-upload")], 400, "bad-request"),
        (&[("upload-offset", "1e3"), ("content-type", "application/partial-upload")], 400, "bad-request"),
    ] {
        rig.call("PATCH", &path, &key, fields, b"").await.expect(status, code);
    }
    rig.call("POST", &path, &key, &[], b"").await.expect(405, "method-not-allowed");
}

#[tokio::test]
async fn b6_jobs_count_as_calls_in_flight_until_they_end() {
    let rig = Rig::with(|config| config.http.service_in_flight = 1).await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 10).await;
    let (id, _) = offered(&mut device).await;
    let got = Caller::print(&rig, "d", "", &key, 10).await.status().await;
    got.expect(429, "too-many-requests");
    error(&mut device, &id, "device-error", "jam").await;
    caller.status().await.expect(409, "device-error");
    let next = Caller::print(&rig, "d", "", &key, 10).await;
    offered(&mut device).await;
    drop(next);
}

#[tokio::test]
async fn l2_a_relay_that_stops_ends_jobs_in_words() {
    let mut rig = Rig::with(|config| config.drain_grace = Duration::from_millis(100)).await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let mut caller = Caller::print(&rig, "d", "", &key, 1000).await;
    let (id, _) = offered(&mut device).await;
    let (_, ()) = tokio::join!(part(&rig, &device.token, &id, "bytes=0-"), async {
        caller.go_on().await;
        caller.accepted().await;
        caller.wire.send(b"x").await;
    });
    rig.stop();
    let last = caller.last().await;
    assert_eq!((&last["state"], &last["outcome"]), (&"failed".into(), &"received".into()));
    assert_eq!(last["code"], "device-timeout");
    rig.stopped().await;
}
