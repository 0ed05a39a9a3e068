//! F13: a device wrote its answer, and the connection was cut before anybody read it. The call gets it all the same, and
//! the handler has run once.

#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use device_sdk::{Device, Event, Router, Transport};
use host::Host;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(30);
/// More than all else that the device says meanwhile: what is lost is the answer.
const ANSWER: usize = 8 * 1024;

/// A link that can lose what the device sends, and break.
struct Link {
    address: SocketAddr,
    /// Whether what the device sends is lost.
    losing: watch::Sender<bool>,
    lost: Arc<AtomicU64>,
    cut: Arc<Notify>,
}

impl Link {
    async fn to(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (losing, loses) = watch::channel(false);
        let (lost, cut) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
        let (counted, broken) = (lost.clone(), cut.clone());
        tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                tokio::spawn(hand_on(device, relay, loses.clone(), counted.clone(), broken.clone()));
            }
        });
        Self { address, losing, lost, cut }
    }
}

async fn hand_on(
    mut device: TcpStream,
    relay: SocketAddr,
    loses: watch::Receiver<bool>,
    lost: Arc<AtomicU64>,
    cut: Arc<Notify>,
) {
    let Ok(mut relay) = TcpStream::connect(relay).await else { return };
    let (mut said, mut told) = ([0; 16 * 1024], [0; 16 * 1024]);
    let broken = cut.notified();
    tokio::pin!(broken);
    loop {
        tokio::select! {
            read = device.read(&mut said) => match read {
                Ok(read @ 1..) if *loses.borrow() => {
                    lost.fetch_add(read as u64, SeqCst);
                }
                Ok(read @ 1..) => {
                    if relay.write_all(&said[..read]).await.is_err() { return }
                }
                _ => return,
            },
            read = relay.read(&mut told) => match read {
                Ok(read @ 1..) => {
                    if device.write_all(&told[..read]).await.is_err() { return }
                }
                _ => return,
            },
            () = &mut broken => {
                let _ = (device.set_zero_linger(), relay.set_zero_linger());
                return;
            }
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool + Send) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, waited).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
}

async fn an_answer_that_was_lost_comes(transport: Transport) {
    let host = Host::start().await;
    let link = Link::to(host.address).await;
    let (runs, asked, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (runs, asked, go) = (runs.clone(), asked.clone(), go.clone());
        move || {
            let (runs, asked, go) = (runs.clone(), asked.clone(), go.clone());
            async move {
                runs.fetch_add(1, SeqCst);
                asked.notify_one();
                go.notified().await;
                Ok("7".repeat(ANSWER))
            }
        }
    };
    let device = Device::builder(format!("http://{}", link.address), "printer-1")
        .token(host.enrol("printer-1").await)
        .router(Router::new().get("toner", handler))
        .transport(transport)
        .start()
        .await
        .unwrap();
    let mut events = device.events();
    let online =
        async { while !matches!(events.next().await.expect("the device is there"), Event::Online { .. }) {} };
    timeout(SOON, online).await.expect("it comes online");

    let bearer = format!("Authorization: Bearer {}", host.key().await);
    let mut connection = http::Connection::open(host.address).await.unwrap();
    let call = tokio::spawn(async move {
        connection.ask("GET /v1/devices/printer-1/objects/toner", &[&bearer], b"").await.unwrap()
    });
    timeout(SOON, asked.notified()).await.expect("the request arrives");
    link.losing.send_replace(true);
    go.notify_one();
    until("the answer is written", || link.lost.load(SeqCst) >= ANSWER as u64).await;
    link.losing.send_replace(false);
    link.cut.notify_waiters();

    let answer = timeout(SOON, call).await.expect("the call is answered").unwrap();
    assert_eq!(answer.status, 200, "{transport:?}: {}", answer.text());
    assert!(answer.text() == "7".repeat(ANSWER), "{transport:?}: not byte for byte");
    assert_eq!(runs.load(SeqCst), 1, "{transport:?}: the handler runs once");
}

#[tokio::test]
async fn f13_an_answer_that_was_written_and_lost_comes_over_the_next_websocket() {
    an_answer_that_was_lost_comes(Transport::Ws).await;
}

#[tokio::test]
async fn f13_an_answer_that_was_written_and_lost_comes_over_the_next_bosh_connection() {
    an_answer_that_was_lost_comes(Transport::Bosh).await;
}
