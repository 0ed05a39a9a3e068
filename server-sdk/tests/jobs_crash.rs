//! Jobs and a relay in a process of its own: killed in mid-upload, and watched for what it takes.
#![cfg(feature = "relay")]

mod cli_support;
mod http_support;
mod job_support;

use std::{net::SocketAddr, time::Duration};

use cli_support::Process;
use http_support::{Device, Got, PATIENCE, Wire, eventually, head};
use job_support::{Caller, document, done, offered, part, read_on};
use relay_core::{Response, app::Digest};
use serde_json::Value;
use tokio::time::timeout;
use transport_bosh::client::BoshConnector;

async fn call(relay: &SocketAddr, method: &str, path: &str, token: &str, json: &str) -> Got {
    let mut wire = Wire::connect(*relay).await;
    let fields = [("content-type", "application/json")];
    wire.send(&head(method, path, token, &fields, Some(json.len()))).await;
    wire.send(json.as_bytes()).await;
    wire.read().await.expect("an answer")
}

fn address(process: &Process) -> SocketAddr {
    process.url.strip_prefix("http://").unwrap().trim_end_matches('/').parse().unwrap()
}

/// Enrols a printer, and gives its token.
async fn enrol(relay: &SocketAddr, admin: &str) -> String {
    let pin = call(relay, "POST", "/v1/devices/d/pin", admin, "").await.json();
    let enrol = format!(r#"{{"device_id":"d","pin":{}}}"#, pin["pin"]);
    let token =
        call(relay, "POST", "/v1/enroll", "", &enrol).await.json()["token"].as_str().unwrap().to_owned();
    let apps = r#"{"apps":[{"name":"print","path":"/print","protocol":"print"}]}"#;
    assert_eq!(call(relay, "PUT", "/v1/devices/d", &token, apps).await.status, 201);
    token
}

async fn connect(process: &Process, token: &str) -> Device {
    let connector = BoshConnector::new(&format!("{}/http-bind", process.url.trim_end_matches('/'))).unwrap();
    Device::connect(&connector, "d", token).await
}

async fn online(relay: &SocketAddr, admin: &str) {
    timeout(PATIENCE, async {
        while call(relay, "GET", "/v1/devices/d", admin, "").await.json()["state"] != "online" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the device is online");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f32_a_relay_that_is_killed_in_mid_upload_goes_on_with_the_same_job() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let process = Process::start(&data);
    let (relay, admin) = (address(&process), process.admin());
    let token = enrol(&relay, &admin).await;
    let mut device = connect(&process, &token).await;
    online(&relay, &admin).await;
    let document = document(300_000);
    let mut caller = Caller::print(&relay, "d", "user=Ann", &admin, document.len()).await;
    let (id, offer) = offered(&mut device).await;
    let sending = async {
        caller.go_on().await;
        assert_eq!(caller.accepted().await, id.as_str());
        caller.wire.send(&document[..100_000]).await;
    };
    let reading = async {
        let mut read = Vec::new();
        while read.len() < 100_000 {
            let got = part(&relay, &token, &id, &format!("bytes={}-", read.len())).await;
            assert_eq!(got.status, 206);
            read.extend(got.body);
        }
        read
    };
    let ((), read) = tokio::join!(sending, reading);
    process.kill();
    drop((caller, device));

    let process = Process::start(&data);
    let relay = address(&process);
    let about = call(&relay, "GET", &format!("/v1/requests/{id}"), &admin, "").await;
    assert_eq!((about.status, &about.json()["offset"]), (202, &Value::from(100_000)), "{about:?}");
    // The caller is back before the device is.
    let mut caller = Caller::resume(&relay, id.as_str(), &admin, 100_000, 200_000).await;
    let mut device = connect(&process, &token).await;
    let (again, offer_again) = offered(&mut device).await;
    assert_eq!((&again, &offer_again), (&id, &offer));
    let sending = async {
        assert_eq!(caller.accepted().await, id.as_str());
        caller.wire.send(&document[100_000..]).await;
    };
    let (read, ()) = tokio::join!(read_on(&relay, &token, &id, read), sending);
    assert_eq!(Digest::of(&read), Digest::of(&document));
    done(&mut device, &id).await;
    assert_eq!(caller.last().await["state"], "completed");
    eventually(|| std::fs::read_dir(data.join("spool")).unwrap().count() == 0).await;

    // Killed once more, with all of the document there: the job comes to its end without anybody asking for it.
    let mut caller = Caller::print(&relay, "d", "", &admin, 1000).await;
    let (id, _) = offered(&mut device).await;
    let sending = async {
        caller.go_on().await;
        caller.accepted().await;
        caller.wire.send(&document[..1000]).await;
        caller.until("processing").await;
    };
    let (read, ()) = tokio::join!(read_on(&relay, &token, &id, Vec::new()), sending);
    assert_eq!(read, document[..1000]);
    process.kill();
    drop((caller, device));
    let process = Process::start(&data);
    let relay = address(&process);
    let mut device = connect(&process, &token).await;
    let (again, _) = offered(&mut device).await;
    assert_eq!(again, id);
    device.answer(id.clone(), Response::ok()).await;
    timeout(PATIENCE, async {
        while call(&relay, "GET", &format!("/v1/requests/{id}"), &admin, "").await.status != 200 {}
    })
    .await
    .expect("it ends");
    let about = call(&relay, "GET", &format!("/v1/requests/{id}"), &admin, "").await.json();
    assert_eq!(about["state"], "completed");
}

/// Resident memory of a process, in KiB.
fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_a_large_document_takes_no_memory_of_the_relay() {
    const SIZE: usize = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(&folder.path().join("data"));
    let (relay, admin) = (address(&process), process.admin());
    let token = enrol(&relay, &admin).await;
    let mut device = connect(&process, &token).await;
    online(&relay, &admin).await;
    let document = document(SIZE);
    let before = resident(&process);
    let mut caller = Caller::print(&relay, "d", "", &admin, SIZE).await;
    let (id, _) = offered(&mut device).await;
    // All of it comes in while the device reads nothing …
    let mut reading = Wire::connect(relay).await;
    let path = format!("/v1/requests/{id}/body");
    reading.send(&head("GET", &path, &token, &[], None)).await;
    caller.go_on().await;
    caller.accepted().await;
    let mut most = 0;
    for piece in document.chunks(1 << 20) {
        caller.wire.send(piece).await;
        most = most.max(resident(&process));
    }
    timeout(PATIENCE, async {
        while call(&relay, "GET", &format!("/v1/requests/{id}"), &admin, "").await.json()["offset"] != SIZE {}
    })
    .await
    .expect("it is there");
    most = most.max(resident(&process));
    drop(reading);
    // … and then goes out.
    let read = read_on(&relay, &token, &id, Vec::new()).await;
    most = most.max(resident(&process));
    assert_eq!(Digest::of(&read), Digest::of(&document));
    done(&mut device, &id).await;
    assert_eq!(caller.last().await["state"], "completed");
    assert!(most < before + 16 * 1024, "from {before} KiB to {most} KiB for {SIZE} bytes");
}
