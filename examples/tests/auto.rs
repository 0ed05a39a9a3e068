//! `Transport::Auto` in networks that have something against WebSockets (S8): the device is reached all the same, and its
//! session goes on over whatever gets through.

#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;
#[path = "support/wall.rs"]
mod wall;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use device_sdk::{Device, Event, Events, Router, Transport};
use host::Host;
use http::{Answer, Connection};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};
use wall::{Upgrades, Wall};

const SOON: Duration = Duration::from_secs(40);
/// How long the handler takes whose answer must come another way.
const WORK: Duration = Duration::from_secs(5);

async fn device(via: SocketAddr, token: &str) -> Device {
    let router = Router::new().get("toner", || async { Ok(83) }).get("slow", || async {
        tokio::time::sleep(WORK).await;
        Ok(83)
    });
    Device::builder(format!("http://{via}"), "printer-1")
        .token(token)
        .router(router)
        .transport(Transport::Auto)
        .start()
        .await
        .unwrap()
}

async fn until(events: &mut Events, wanted: impl Fn(&Event) -> bool + Sync) -> Event {
    let found = async {
        loop {
            let event = events.next().await.expect("the device is there");
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(SOON, found).await.expect("it comes soon")
}

/// The transport that the device takes next.
async fn next_transport(events: &mut Events) -> &'static str {
    match until(events, |event| matches!(event, Event::Transport { .. })).await {
        Event::Transport { name } => name,
        _ => unreachable!(),
    }
}

async fn get(to: SocketAddr, key: &str, object: &str) -> Answer {
    let mut connection = Connection::open(to).await.unwrap();
    let bearer = format!("Authorization: Bearer {key}");
    let line = format!("GET /v1/devices/printer-1/objects/{object}");
    timeout(SOON, connection.ask(&line, &[&bearer, "Prefer: wait=30"], b"")).await.unwrap().unwrap()
}

/// What `GET /v1/events` says of the device.
struct Presence {
    heard: Arc<Mutex<Vec<u8>>>,
    listening: JoinHandle<()>,
}

impl Presence {
    async fn watch(to: SocketAddr, key: &str) -> Self {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let request = format!(
            "GET /v1/events?device=printer-1&type=presence HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let hearing = heard.clone();
        let (begun, beginning) = tokio::sync::oneshot::channel();
        let listening = tokio::spawn(async move {
            let mut begun = Some(begun);
            let mut bytes = vec![0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                hearing.lock().unwrap().extend_from_slice(&bytes[..read]);
                begun.take().map(|begun| begun.send(()));
            }
        });
        timeout(SOON, beginning).await.unwrap().unwrap();
        Self { heard, listening }
    }

    fn says(&self, word: &str) -> bool {
        let heard = self.heard.lock().unwrap();
        assert!(heard.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&heard));
        String::from_utf8_lossy(&heard).contains(word)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Whether the session named `session` is in force, as the relay says.
async fn is_in_force(host: &Host, token: &str, session: &str) -> bool {
    let mut connection = Connection::open(host.address).await.unwrap();
    let fields = [&*format!("Authorization: Bearer {token}"), "Content-Type: application/json"];
    let body = json!({ "session": session }).to_string();
    let answer = connection.ask("POST /v1/devices/printer-1/alive", &fields, body.as_bytes()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["session"] == "known"
}

/// A handler works; its WebSocket is cut meanwhile, and none gets through any more.
async fn answer_by_another_way(carry_over: bool) -> Result<(), &'static str> {
    let host = Host::start().await;
    let (token, key) = (host.enrol("printer-1").await, host.key().await);
    let wall = match carry_over {
        true => Wall::before(host.address, Upgrades::Pass).await,
        false => Wall::forgetful(host.address).await,
    };
    let device = device(wall.address, &token).await;
    let mut events = device.events();
    assert_eq!(next_transport(&mut events).await, "ws");
    device.online().await.unwrap();
    let presence = Presence::watch(host.address, &key).await;
    let session = wall.sessions().pop().expect("the relay named the session");
    assert!(is_in_force(&host, &token, &session).await);

    let start = Instant::now();
    let (relay, caller) = (host.address, key.clone());
    let call = tokio::spawn(async move { get(relay, &caller, "slow").await });
    until(&mut events, |event| matches!(event, Event::Requested { .. })).await;
    wall.upgrades(Upgrades::Close);
    wall.cut();
    assert_eq!(next_transport(&mut events).await, "bosh");
    let moved = start.elapsed();
    assert!(moved < WORK, "the handler still works");
    let answer = call.await.unwrap();
    assert_eq!((answer.status, &*answer.text()), (200, "83"), "the same call gets the answer");
    assert!(start.elapsed() >= WORK);
    assert_eq!(get(host.address, &key, "toner").await.text(), "83", "and it is reached over BOSH");
    println!("over BOSH after {moved:.1?}, answered after {:.1?}", start.elapsed());

    let kept = is_in_force(&host, &token, &session).await;
    let offline = presence.says("offline");
    device.shutdown(Duration::from_secs(5)).await;
    host.stop().await;
    match (kept, offline) {
        (true, false) => Ok(()),
        (false, _) => Err("another session"),
        (_, true) => Err("offline in between"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_an_answer_comes_by_bosh_when_its_websocket_was_cut_meanwhile_and_the_session_stays() {
    assert_eq!(answer_by_another_way(true).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_without_carry_over_it_is_another_session() {
    assert_eq!(answer_by_another_way(false).await, Err("another session"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_the_device_goes_back_to_the_better_transport_while_it_works_and_stays_online() {
    let host = Host::start().await;
    let (token, key) = (host.enrol("printer-1").await, host.key().await);
    let wall = Wall::before(host.address, Upgrades::Close).await;
    let device = device(wall.address, &token).await;
    let mut events = device.events();
    assert_eq!(next_transport(&mut events).await, "bosh");
    device.online().await.unwrap();
    let presence = Presence::watch(host.address, &key).await;

    let (relay, caller) = (host.address, key.clone());
    let call = tokio::spawn(async move { get(relay, &caller, "slow").await });
    until(&mut events, |event| matches!(event, Event::Requested { .. })).await;
    wall.upgrades(Upgrades::Pass);
    // As a vendor's network manager would say it.
    device.activate().await.unwrap();
    let moved =
        until(&mut events, |event| matches!(event, Event::Transport { .. } | Event::Offline { .. })).await;
    assert_eq!(moved, Event::Transport { name: "ws" });
    let answer = call.await.unwrap();
    assert_eq!((answer.status, &*answer.text()), (200, "83"));
    assert_eq!(get(host.address, &key, "toner").await.text(), "83");
    let session = wall.sessions().pop().expect("the relay named the session");
    assert!(is_in_force(&host, &token, &session).await);
    assert!(!presence.says("offline"));
    device.shutdown(Duration::from_secs(5)).await;
    // Whatever happened to it is told by now.
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::Offline { .. }), "{event:?}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_whatever_a_network_makes_of_an_upgrade_the_device_is_reached() {
    let host = Host::start().await;
    let (token, key) = (host.enrol("printer-1").await, host.key().await);
    for upgrades in [Upgrades::Close, Upgrades::Strip, Upgrades::Page, Upgrades::Redirect, Upgrades::Swallow]
    {
        let wall = Wall::before(host.address, upgrades).await;
        let start = Instant::now();
        let device = device(wall.address, &token).await;
        let mut events = device.events();
        assert_eq!(next_transport(&mut events).await, "bosh", "{upgrades:?}");
        timeout(SOON, device.online()).await.unwrap().unwrap();
        assert_eq!(get(host.address, &key, "toner").await.text(), "83", "{upgrades:?}");
        println!("{upgrades:?}: reached over BOSH after {:.1?}", start.elapsed());
        device.shutdown(Duration::from_secs(5)).await;
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_a_network_that_lets_the_upgrade_through_and_no_frame_is_found_out() {
    let host = Host::start().await;
    let (token, key) = (host.enrol("printer-1").await, host.key().await);
    let wall = Wall::before(host.address, Upgrades::Mute).await;
    let device = device(wall.address, &token).await;
    let mut events = device.events();
    assert_eq!(next_transport(&mut events).await, "ws");
    assert_eq!(next_transport(&mut events).await, "bosh");
    timeout(SOON, device.online()).await.unwrap().unwrap();
    assert_eq!(get(host.address, &key, "toner").await.text(), "83");
    device.shutdown(Duration::from_secs(5)).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_what_the_relay_itself_refuses_is_not_tried_another_way() {
    let host = Host::start().await;
    let wall = Wall::before(host.address, Upgrades::Pass).await;
    host.enrol("printer-1").await;
    let device = device(wall.address, "not its token").await;
    let mut events = device.events();
    until(&mut events, |event| matches!(event, Event::CredentialRefused { .. })).await;
    device.shutdown(Duration::from_secs(1)).await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::Transport { .. }), "{event:?}");
    }
    host.stop().await;
}
