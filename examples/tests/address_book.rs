//! `address-book` as a process, against a relay; and devices made with the SDK, which get what it changes.

mod programs;

use std::sync::{Arc, Mutex};

use device_sdk::{App, Device, HandlerError, Job};
use programs::{BOUND, Program, Relay};
use server_sdk::book::{Book, Parcel, Version};
use tokio::time::Instant;
use transport_ws::WsConnector;

const SERVICE: &str = env!("CARGO_BIN_EXE_address-book");

#[tokio::test(flavor = "multi_thread")]
async fn a5_a_service_reads_edits_and_watches_a_book() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let key = relay.key().await;
    let common = ["--relay", &relay.url, "--key", &key, "--account", "acme", "--book", "staff"];
    let run = |arguments: &[&str]| Program::start(SERVICE, &[&common[..], arguments].concat());
    let done = |arguments: &[&str]| {
        let (status, said) = run(arguments).end();
        assert!(status.success(), "{said:?}");
        said
    };

    let (status, said) = run(&["show"]).end();
    assert!(!status.success() && said.iter().any(|line| line.contains("no such address book")), "{said:?}");
    let file = data.path().join("staff.xml");
    std::fs::write(&file, "<AddressBook><email><Ann>ann@acme.example</Ann></email></AddressBook>").unwrap();
    assert!(done(&["put", file.to_str().unwrap()])[0].ends_with("with 1 entries"));

    let mut watch = run(&["watch", "--every", "1"]);
    watch.line("with 1 entries");
    assert!(done(&["set", "email", "Bob", "bob@acme.example"])[0].ends_with("with 2 entries"));
    watch.line("+ email Bob bob@acme.example");
    done(&["set", "email", "Ann", "ann@new.example"]);
    watch.line("~ email Ann ann@new.example");
    done(&["remove", "email", "Bob"]);
    watch.line("- email Bob");

    let said = done(&["show"]);
    assert!(said[0].starts_with("version "), "{said:?}");
    assert_eq!(said[1..], ["email Ann ann@new.example"]);
    let (status, said) = run(&["set", "e mail", "x", "y"]).end();
    assert!(!status.success() && said.iter().any(|line| line.contains("no name")), "{said:?}");
    relay.stop().await;
}

/// The versions that a device has got, and what was in each.
type Got = Arc<Mutex<Vec<(Version, Book)>>>;

/// A device whose app keeps address books.
async fn device(relay: &Relay, transport: &str, id: &str) -> (Device, Got) {
    let pin = relay.pin(id, &["acme"]).await;
    let got = Got::default();
    let keep = got.clone();
    let app = App::new("address", move |mut job: Job| {
        let keep = keep.clone();
        async move {
            let header = job.header().await?;
            let mut data = Vec::new();
            job.copy_to(&mut data).await?;
            let opened = Parcel::open(&header, &data)
                .map_err(|error| HandlerError::other("bad-book", error.to_string()))?;
            let version = opened.version.ok_or_else(|| HandlerError::other("bad-book", "no version"))?;
            keep.lock().unwrap().push((version, opened.content));
            Ok(version.to_string())
        }
    });
    let mut device = Device::builder(&relay.url, id).pin(pin).app(app);
    if transport == "ws" {
        device = device.connector(Arc::new(WsConnector::new(&format!("ws://{}/ws", relay.address)).unwrap()));
    }
    let device = device.start().await.unwrap();
    device.online().await.unwrap();
    (device, got)
}

async fn until(holds: impl Fn() -> bool) {
    let until = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < until, "it does not come to hold");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_devices_get_each_version_once_over_bosh() {
    each_version_once("bosh").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_devices_get_each_version_once_over_websocket() {
    each_version_once("ws").await;
}

/// Small and large, at once and when they come.
async fn each_version_once(transport: &str) {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let book = relay.client.address_book("acme", "staff").unwrap();
    let (first, first_got) = device(&relay, transport, "mfp-1").await;
    let mut content = Book::new();
    content.set("email", "Ann", "<ann&bob@acme.example>").unwrap();
    let mut expected = vec![(book.create(&content).await.unwrap(), content.clone())];
    until(|| *first_got.lock().unwrap() == expected).await;

    // One that comes later; then a version that does not fit into a header.
    let (_second, second_got) = device(&relay, transport, "mfp-2").await;
    until(|| *second_got.lock().unwrap() == expected).await;
    for n in 0..3_000 {
        content.set("email", &format!("user-{n}"), "somebody@somewhere.example").unwrap();
    }
    let large = book.replace(expected[0].0, &content).await.unwrap();
    expected.push((large, content.clone()));
    until(|| *first_got.lock().unwrap() == expected && *second_got.lock().unwrap() == expected).await;

    // While one is away, there are two; it gets the last.
    first.shutdown(BOUND).await;
    content.set("fax", "Ann", "1").unwrap();
    let between = book.replace(large, &content).await.unwrap();
    until(|| second_got.lock().unwrap().len() == 3).await;
    content.set("fax", "Ann", "2").unwrap();
    let last = book.replace(between, &content).await.unwrap();
    until(|| second_got.lock().unwrap().last() == Some(&(last, content.clone()))).await;
    let (_first, again) = device(&relay, transport, "mfp-1").await;
    until(|| *again.lock().unwrap() == [(last, content.clone())]).await;
    assert_eq!((first_got.lock().unwrap().len(), second_got.lock().unwrap().len()), (2, 4));
    relay.stop().await;
}
