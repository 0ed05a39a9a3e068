//! Watching through the client: what is told, and that a connection that breaks loses nothing.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod http_support;

use std::{net::SocketAddr, time::Duration};

use http_support::{PATIENCE, Rig, device_id};
use relay_core::{Body, Response};
use server_sdk::{
    Client, ErrorKind, JobState, Outcome, State,
    client::{Event, EventFilter, EventKind, Events},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};

async fn watching(address: SocketAddr, key: &str, filter: EventFilter) -> Events {
    Client::new(&format!("http://{address}"), key).unwrap().events(filter).await.unwrap()
}

async fn next(events: &mut Events) -> Event {
    timeout(PATIENCE, events.next()).await.expect("an event in time").unwrap()
}

async fn presence(events: &mut Events) -> (String, State, u64) {
    match next(events).await {
        Event::Presence(change) => (change.device.as_str().to_owned(), change.state, change.epoch),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn p4_devices_and_requests_are_told_as_what_they_are() {
    let rig = Rig::start().await;
    let key = rig.key(&[]).await;
    let token = rig.enrol("d").await;
    let mut events = watching(rig.address, &key, EventFilter::all()).await;
    let filter = EventFilter::all().kind(EventKind::Request).device(device_id("d"));
    let mut requests = watching(rig.address, &key, filter).await;
    let mut device = rig.connect("d", &token).await;
    assert_eq!(presence(&mut events).await, ("d".into(), State::Online, 1));
    let client = Client::new(&format!("http://{}", rig.address), &key).unwrap();
    let answer = async {
        let (id, _) = device.request().await;
        device.answer(id, Response::with_body(Body::text("83"))).await;
    };
    let (got, ()) = tokio::join!(client.get("d", "toner"), answer);
    let id = got.unwrap().id;
    device.close().await;
    for watch in [&mut requests, &mut events] {
        let Event::Request(request) = next(watch).await else { panic!("no request") };
        assert_eq!((request.device.as_str(), request.method.as_str()), ("d", "GET"));
        assert_eq!((request.epoch, &request.id, &request.code), (1, &id, &None));
        assert_eq!((request.state, request.outcome), (JobState::Completed, Some(Outcome::Answered)));
        assert!(request.key.is_some() && request.time.is_some(), "{request:?}");
    }
    assert_eq!(presence(&mut events).await, ("d".into(), State::Offline, 1));
    assert_eq!(client.get("d", "toner").await.unwrap_err().kind(), ErrorKind::DeviceOffline);
    let Event::Request(request) = next(&mut requests).await else { panic!("no request") };
    assert_eq!((request.state, request.outcome), (JobState::Failed, Some(Outcome::Offline)));
    assert_eq!(request.code.as_deref(), Some("device-offline"));

    let unknown = client.events(EventFilter::all().device(device_id("none"))).await.unwrap_err();
    assert_eq!((unknown.kind(), unknown.is_safe_to_retry()), (ErrorKind::UnknownDevice, true));
}

/// A way to `to` that is cut whenever the number changes.
async fn way(to: SocketAddr) -> (SocketAddr, watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cuts, cut) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut cut = cut.clone();
            cut.mark_unchanged();
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut from, &mut to) => {}
                    _ = cut.changed() => {}
                }
            });
        }
    });
    (address, cuts)
}

#[tokio::test]
async fn p4_a_connection_that_breaks_is_made_anew_and_nothing_is_missed() {
    let rig = Rig::start().await;
    let (key, token) = (rig.key(&[]).await, rig.enrol("d").await);
    let (address, cuts) = way(rig.address).await;
    let mut events = watching(address, &key, EventFilter::all()).await;
    for epoch in 1..=3 {
        rig.connect("d", &token).await.close().await;
        assert_eq!(presence(&mut events).await, ("d".into(), State::Online, epoch));
        cuts.send_modify(|cuts| *cuts += 1);
        match next(&mut events).await {
            // The one before the cut may have come through.
            Event::Presence(change) => {
                assert_eq!((change.state, change.epoch), (State::Offline, epoch));
                assert!(matches!(next(&mut events).await, Event::Interrupted(_)));
                assert!(matches!(next(&mut events).await, Event::Resumed));
            }
            Event::Interrupted(error) => {
                assert_eq!((error.kind(), error.is_safe_to_retry()), (ErrorKind::Interrupted, true));
                assert!(matches!(next(&mut events).await, Event::Resumed));
                assert_eq!(presence(&mut events).await, ("d".into(), State::Offline, epoch));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn p4_what_is_not_remembered_is_said() {
    let rig = Rig::with(|config| config.relay.presence_log = 1).await;
    let (key, token) = (rig.key(&[]).await, rig.enrol("d").await);
    let (address, cuts) = way(rig.address).await;
    let mut events = watching(address, &key, EventFilter::all().kind(EventKind::Presence)).await;
    let device = rig.connect("d", &token).await;
    presence(&mut events).await;
    cuts.send_modify(|cuts| *cuts += 1);
    assert!(matches!(next(&mut events).await, Event::Interrupted(_)));
    device.close().await;
    rig.connect("d", &token).await.close().await;
    assert!(matches!(next(&mut events).await, Event::Resumed));
    assert!(matches!(next(&mut events).await, Event::Reset));
    let _device = rig.connect("d", &token).await;
    assert_eq!(presence(&mut events).await, ("d".into(), State::Online, 3));
}

#[tokio::test]
async fn t17_a_key_that_no_longer_holds_is_an_end_and_not_waited_for() {
    let rig = Rig::start().await;
    let made = rig.post_json("/v1/keys", &rig.admin, r#"{"scopes":[]}"#).await.json();
    let mut events = watching(rig.address, made["key"].as_str().unwrap(), EventFilter::all()).await;
    let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
    assert_eq!(rig.call("DELETE", &path, &rig.admin, &[], b"").await.status, 204);
    assert!(matches!(next(&mut events).await, Event::Interrupted(_)));
    let end = timeout(PATIENCE, events.next()).await.expect("an end in time").unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Unauthenticated);
}

/// Answers every connection with these bytes, and leaves it open.
async fn server(reply: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(reply.as_bytes()).await;
                let _ = stream.read(&mut asked).await;
            });
        }
    });
    address
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";

#[tokio::test]
async fn what_is_no_stream_of_a_relay_is_an_error_and_what_is_new_in_it_is_passed_over() {
    let page = server("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi").await;
    let client = |address| Client::new(&format!("http://{address}"), "k").unwrap();
    let error = client(page).events(EventFilter::all()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotTheRelay);

    const NEW: &str = "retry: 100\r\n\r\nevent: weather\r\ndata: {}\r\n\r\nretry: soon\nevent: presence\n\
         data: {\"device\":\"d\",\n: a comment\ndata:\"epoch\":2,\"state\":\"asleep\",\"since\":1}\n\n\
         event: presence\ndata: {}\n\n";
    let told: &'static str = Box::leak(format!("{STREAM}{NEW}").into_boxed_str());
    let mut events = client(server(told).await).events(EventFilter::all()).await.unwrap();
    assert_eq!(presence(&mut events).await, ("d".into(), State::Asleep, 2));
    let Event::Interrupted(error) = next(&mut events).await else { panic!("that was no event") };
    assert_eq!(error.kind(), ErrorKind::NotTheRelay);
    // It comes back after a tenth of a second at most, as it was told.
    let back = tokio::time::Instant::now();
    assert!(matches!(next(&mut events).await, Event::Resumed));
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());

    let endless: &'static str = Box::leak(format!("{STREAM}data: {}", "x".repeat(200_000)).into_boxed_str());
    let mut events = client(server(endless).await).events(EventFilter::all()).await.unwrap();
    assert!(
        matches!(next(&mut events).await, Event::Interrupted(error) if error.kind() == ErrorKind::NotTheRelay)
    );
}
