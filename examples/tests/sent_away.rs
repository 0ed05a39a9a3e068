//! L2 over real connections: a relay that goes names another address, and the device comes back there, if its vendor
//! allowed that. One relay stands behind both addresses, so that the one credential holds at both.

#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use device_sdk::{Device, Event, Events, Router, Transport};
use host::Host;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The relay's first address: hands everything on, until it goes.
struct Leaving {
    address: SocketAddr,
    /// Where devices are to go, once it goes.
    to: watch::Sender<Option<String>>,
    connections: Arc<AtomicU64>,
}

impl Leaving {
    async fn before(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, going) = watch::channel(None);
        let connections = Arc::new(AtomicU64::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(hand_on(device, relay, going.clone()));
            }
        });
        Self { address, to, connections }
    }

    fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Ends with either side. When the relay goes, a request that is held is answered with a drain in its name.
async fn hand_on(mut device: TcpStream, relay: SocketAddr, mut going: watch::Receiver<Option<String>>) {
    let Ok(mut relay) = TcpStream::connect(relay).await else { return };
    going.mark_unchanged();
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    let mut held = false;
    loop {
        tokio::select! {
            read = device.read(&mut asked) => match read {
                Ok(read @ 1..) => {
                    held |= asked.starts_with(b"POST /http-bind");
                    if relay.write_all(&asked[..read]).await.is_err() { return }
                }
                _ => return,
            },
            read = relay.read(&mut answered) => match read {
                Ok(read @ 1..) => {
                    held = false;
                    if device.write_all(&answered[..read]).await.is_err() { return }
                }
                _ => return,
            },
            Ok(()) = going.changed() => {
                let to = going.borrow_and_update().clone();
                if let (true, Some(to)) = (held, to) {
                    let body = format!(
                        "<body xmlns='http://jabber.org/protocol/httpbind'><message xmlns='jabber:client' from='localhost'>\
                         <drain xmlns='urn:relay:1' retry-after='0' to='{to}'/></message></body>"
                    );
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = device.write_all(answer.as_bytes()).await;
                    return;
                }
            }
        }
    }
}

async fn until(events: &mut Events, wanted: impl Fn(&Event) -> bool + Send + Sync) -> Event {
    let found = async {
        loop {
            let event = events.next().await.expect("the device is there");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.expect("it comes")
}

/// What a device does that is sent from one address of `host` to `to`.
async fn sent(host: &Host, allowed: &[&str], to: &str) -> (Device, Leaving, bool) {
    let leaving = Leaving::before(host.address).await;
    let device = Device::builder(format!("http://{}", leaving.address), "printer-1")
        .token(host.enrol("printer-1").await)
        .router(Router::new().get("toner", || async { Ok(83) }))
        .allow_relays(allowed.iter().copied())
        .transport(Transport::Bosh)
        .start()
        .await
        .unwrap();
    let mut events = device.events();
    until(&mut events, |event| matches!(event, Event::Online { .. })).await;
    // Until a request is there that is held, there is nothing to answer.
    let telling = async {
        loop {
            leaving.to.send_replace(Some(to.to_owned()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let sent = tokio::select! {
        sent = until(&mut events, |event| matches!(event, Event::SentAway { .. })) => sent,
        () = telling => unreachable!(),
    };
    let Event::SentAway { to: told, followed } = sent else { unreachable!() };
    assert_eq!(&*told, to);
    until(&mut events, |event| matches!(event, Event::Online { .. })).await;
    (device, leaving, followed)
}

async fn toner(host: &Host) -> (u16, String) {
    let bearer = format!("Authorization: Bearer {}", host.key().await);
    let mut connection = http::Connection::open(host.address).await.unwrap();
    let answer = connection.ask("GET /v1/devices/printer-1/objects/toner", &[&bearer], b"").await.unwrap();
    (answer.status, answer.text())
}

#[tokio::test]
async fn l2_a_device_goes_where_its_relay_says_over_real_connections() {
    let host = Host::start().await;
    let there = format!("http://{}/", host.address);
    let (_device, leaving, followed) = sent(&host, &[&there], &there).await;
    assert!(followed);
    let before = leaving.connections();
    assert_eq!(toner(&host).await, (200, "83".to_owned()));
    assert_eq!(leaving.connections(), before, "it answers from where it is now");
}

#[tokio::test]
async fn t15_a_device_that_was_allowed_nothing_comes_back_to_its_own_relay_over_real_connections() {
    let host = Host::start().await;
    let there = format!("http://{}/", host.address);
    let (_device, leaving, followed) = sent(&host, &[], &there).await;
    assert!(!followed);
    assert_eq!(toner(&host).await, (200, "83".to_owned()));
    assert!(leaving.connections() >= 2);
}

#[tokio::test]
async fn l2_a_relay_that_stops_sends_its_devices_where_it_was_told_over_either_transport() {
    for transport in [Transport::Ws, Transport::Bosh] {
        let next = Host::start().await;
        let next_door = Leaving::before(next.address).await;
        let to = format!("http://{}/", next_door.address);
        let relay = Host::with(|config| {
            config.drain_to = Some(to.as_str().into());
            config.drain_retry_after = Duration::ZERO;
        })
        .await;
        let device = Device::builder(format!("http://{}", relay.address), "printer-1")
            .token(relay.enrol("printer-1").await)
            .router(Router::new())
            .allow_relays([to.as_str()])
            .transport(transport)
            .start()
            .await
            .unwrap();
        let mut events = device.events();
        until(&mut events, |event| matches!(event, Event::Online { .. })).await;
        let (sent, ()) =
            tokio::join!(until(&mut events, |event| matches!(event, Event::SentAway { .. })), relay.stop());
        let Event::SentAway { to: told, followed } = sent else { unreachable!() };
        assert_eq!((&*told, followed), (&*to, true), "{transport:?}");
        // It knocks there, with the token that it has.
        tokio::time::timeout(Duration::from_secs(30), async {
            while next_door.connections() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("it comes");
    }
}
