//! Channels of jobs on a whole relay: who is let in below `/ws`, a document over real TCP, and what ends them.
#![cfg(feature = "relay")]

mod http_support;

use std::{sync::Arc, time::Duration};

use http_support::{PATIENCE, Rig, device_id, eventually, head};
use relay_core::{
    Response,
    app::{Digest, MemorySource, ToDevice, ToRelay},
    auth::Secret,
    error::ErrorKind,
    ids::{AppName, RequestId},
    relay::{Job, JobCall},
    store::App,
    transport::{ChannelOptions, Connector, DeviceChannel},
};
use tokio::time::timeout;
use transport_ws::WsConnector;

const SIZE: usize = 300_000;

fn app() -> App {
    App { name: AppName::new("print").unwrap(), path: "/print".into(), port: None, protocol: "print".into() }
}

fn document() -> bytes::Bytes {
    (0..SIZE).map(|n| (n * 31 % 251) as u8).collect()
}

/// A job for the device `d`, which is there.
fn job(rig: &Rig) -> Job {
    let mut call = JobCall::new(device_id("d"), app(), Arc::new(MemorySource::new(document())));
    call.header = Some("<PrintJobRequest/>".into());
    rig.relay.job(call).unwrap()
}

fn options(token: &str, id: &RequestId) -> ChannelOptions {
    let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
    ChannelOptions::new(device_id("d"), Secret::new(token), id.clone(), app(), deadline)
}

fn connector(rig: &Rig) -> WsConnector {
    WsConnector::new(&format!("ws://{}/ws", rig.address)).unwrap()
}

async fn hear(channel: &mut DeviceChannel) -> ToDevice {
    let heard = timeout(PATIENCE, channel.receiver.receive()).await.expect("something in time");
    heard.expect("the channel holds").expect("the channel is open")
}

async fn credit(channel: &mut DeviceChannel, bytes: u64) {
    channel.sender.send(ToRelay::Credit { from: Some(0), bytes }).await.unwrap();
}

#[tokio::test]
async fn a3_a_document_goes_to_the_device_over_a_channel_below_ws() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let _device = rig.connect("d", &token).await;
    let mut job = job(&rig);
    let mut channel = connector(&rig).channel(options(&token, job.id())).await.unwrap();
    credit(&mut channel, u64::MAX).await;
    let mut got = Vec::new();
    let end = loop {
        match hear(&mut channel).await {
            ToDevice::Header(header) => assert_eq!(&*header, "<PrintJobRequest/>"),
            ToDevice::Data(data) => got.extend_from_slice(&data),
            ToDevice::End(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((end, got.len()), (Digest::of(&document()), SIZE));
    assert_eq!(Digest::of(&got), end);
    channel.sender.send(ToRelay::Done { version: None }).await.unwrap();
    assert_eq!(timeout(PATIENCE, job.finished()).await.unwrap(), Ok(Response::ok()));
    assert_eq!(hear(&mut channel).await, ToDevice::Close);
    timeout(PATIENCE, channel.sender.close()).await.expect("bounded in time");
}

#[tokio::test]
async fn a3_what_is_no_job_of_the_device_is_a_problem_and_the_connection_goes_on() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let _device = rig.connect("d", &token).await;
    let other = rig.enrol("e").await;
    let job = job(&rig);
    let path = format!("/ws/print?id={}", job.id());
    let wrong_app = format!("/ws/address?id={}", job.id());
    let mut wire = rig.wire().await;
    let mut ask = async |path: &str, token: &str, protocol: Option<&str>| {
        let mut fields = vec![
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        fields.extend(protocol.map(|protocol| ("sec-websocket-protocol", protocol)));
        wire.send(&head("GET", path, token, &fields, None)).await;
        wire.read().await.expect("an answer")
    };
    ask("/ws/print?id=none", &token, Some("print")).await.expect(404, "unknown-request");
    ask("/ws/print?id=", &token, Some("print")).await.expect(404, "unknown-request");
    ask(&wrong_app, &token, Some("print")).await.expect(404, "unknown-request");
    ask(&path, &token, Some("control")).await.expect(404, "unknown-request");
    ask(&path, &other, Some("print")).await.expect(404, "unknown-request");
    ask(&path, &token, None).await.expect(400, "bad-request");
    ask("/ws/print", &token, Some("print")).await.expect(400, "bad-request");
    ask(&path, "wrong", Some("print")).await.expect(401, "unauthenticated");
    let opened = ask(&path, &token, Some("x, print")).await;
    assert_eq!((opened.status, opened.field("sec-websocket-protocol")), (101, Some("print")));
    assert_eq!(opened.field("relay-session"), None);
}

#[tokio::test]
async fn t17_a_device_whose_credential_is_revoked_gets_no_more_of_its_documents() {
    let rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let _device = rig.connect("d", &token).await;
    let job = job(&rig);
    let mut channel = connector(&rig).channel(options(&token, job.id())).await.unwrap();
    credit(&mut channel, 10).await;
    assert!(matches!(hear(&mut channel).await, ToDevice::Header(_)));
    assert!(matches!(hear(&mut channel).await, ToDevice::Data(_)));
    rig.relay.revoke(&device_id("d"));
    let told = timeout(Duration::from_secs(5), channel.receiver.receive()).await.expect("told in 5 s");
    // What close code 4003 means to a device.
    assert_eq!(told.unwrap_err().kind, ErrorKind::Unauthenticated);
    timeout(PATIENCE, channel.sender.close()).await.expect("bounded in time");
    // The job is not its credential's: with the next one it is gone on with.
    let token = rig.enrol("d").await;
    let mut again = connector(&rig).channel(options(&token, job.id())).await.unwrap();
    again.sender.send(ToRelay::Credit { from: Some(10), bytes: 10 }).await.unwrap();
    assert!(matches!(hear(&mut again).await, ToDevice::Header(_)));
    assert_eq!(hear(&mut again).await, ToDevice::Data(document().slice(10..20)));
}

#[tokio::test]
async fn l2_whoever_asks_for_a_channel_while_the_relay_stops_is_told_so_and_when_to_come_back() {
    let mut rig = Rig::start().await;
    let token = rig.enrol("d").await;
    let _device = rig.connect("d", &token).await;
    let job = job(&rig);
    let path = format!("/ws/print?id={}", job.id());
    // A job under way keeps the relay, and a connection that is there stays.
    let mut wire = rig.wire().await;
    rig.stop();
    eventually(|| rig.relay.is_draining()).await;
    for path in [&*path, "/ws/print?id=none"] {
        let fields = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "print"),
        ];
        wire.send(&head("GET", path, &token, &fields, None)).await;
        let got = wire.read().await.expect("an answer");
        assert!(got.field("retry-after").is_some(), "{path}");
        got.expect(503, "draining");
        wire = if got.field("connection").is_some_and(|field| field == "close") {
            rig.wire().await
        } else {
            wire
        };
    }
    drop(job);
    rig.stopped().await;
}

#[tokio::test]
async fn l2_a_relay_that_stops_ends_its_channels() {
    let mut rig = Rig::with(|config| config.drain_grace = Duration::from_millis(200)).await;
    let token = rig.enrol("d").await;
    let _device = rig.connect("d", &token).await;
    let mut job = job(&rig);
    let mut channel = connector(&rig).channel(options(&token, job.id())).await.unwrap();
    credit(&mut channel, 10).await;
    assert!(matches!(hear(&mut channel).await, ToDevice::Header(_)));
    rig.stop();
    let (finished, ()) = tokio::join!(timeout(PATIENCE, job.finished()), async {
        let end = loop {
            match timeout(PATIENCE, channel.receiver.receive()).await.expect("an end in time") {
                Ok(Some(ToDevice::Data(_))) => {}
                end => break end,
            }
        };
        match end {
            Ok(Some(ToDevice::Close)) | Ok(None) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert_eq!(error.kind, ErrorKind::Interrupted),
        }
        timeout(PATIENCE, channel.sender.close()).await.expect("bounded in time");
    });
    assert!(finished.expect("in time").is_err(), "the job did not get done");
    rig.stopped().await;
}

#[tokio::test]
async fn t31_compression_is_agreed_on_nowhere_and_a_compressed_body_is_415() {
    let rig = Rig::start().await;
    let (token, key) = (rig.enrol("d").await, rig.key(&[]).await);
    let registration = r#"{"apps":[{"name":"print","path":"/print","protocol":"print"}],"accounts":["a"]}"#;
    assert_eq!(rig.put_json("/v1/devices/d", &token, registration).await.status, 201);
    let _device = rig.connect("d", &token).await;
    let job = job(&rig);
    for (path, protocol) in [("/ws", "control"), (&*format!("/ws/print?id={}", job.id()), "print")] {
        let mut wire = rig.wire().await;
        let fields = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocol),
            ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
            ("accept-encoding", "gzip, deflate, br"),
        ];
        wire.send(&head("GET", path, &token, &fields, None)).await;
        let got = wire.read().await.expect("an answer");
        assert_eq!((got.status, got.field("sec-websocket-extensions")), (101, None), "{path}");
    }
    for encoding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
        for (method, path, who) in [
            ("POST", "/v1/enroll", ""),
            ("PUT", "/v1/devices/d", &*token),
            ("POST", "/v1/devices/d/alive", &token),
            ("POST", "/v1/requests/r/response", &token),
            ("PUT", "/v1/devices/d/objects/o", &key),
            ("POST", "/v1/devices/d/requests?method=M", &key),
            ("POST", "/v1/devices/d/apps/print", &key),
            ("PUT", "/v1/documents/doc", &key),
            ("POST", "/v1/keys", &rig.admin),
            ("POST", "/v1/devices/import", &rig.admin),
            ("POST", "/http-bind", ""),
        ] {
            // A bomb of 1 KiB: nothing of it is read beyond its head.
            let got = rig.call(method, path, who, &[("content-encoding", encoding)], &[0; 1024]).await;
            assert_eq!(got.status, 415, "{method} {path} {encoding}");
        }
        let fields = [("accept-encoding", encoding)];
        let got = rig.call("GET", "/v1/devices", &key, &fields, b"").await;
        assert_eq!((got.status, got.field("content-encoding")), (200, None), "answers are as they are");
    }
}
