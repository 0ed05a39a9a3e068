//! T15 for a device: it believes a relay by its certificate alone, in all that it says to it: enrolment, registration,
//! survival notifications, and a session over either transport.

#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use device_sdk::{Device, Event, Router, Step, Transport, Trust};
use host::Host;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// Good for `localhost` and 127.0.0.1, for a hundred years.
const AUTHORITY: &[u8] = include_bytes!("../../server-sdk/tests/client_tls/ca.der");
const CERTIFICATE: &[u8] = include_bytes!("../../server-sdk/tests/client_tls/server.der");
const KEY: &[u8] = include_bytes!("../../server-sdk/tests/client_tls/server.key.der");

/// What stands in front of a relay and speaks TLS for it.
async fn front(relay: SocketAddr) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CERTIFICATE.to_vec().into()], PrivatePkcs8KeyDer::from(KEY.to_vec()).into())
        .unwrap();
    // One that would rather speak HTTP/2, as many do.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((device, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let (Ok(mut device), Ok(mut relay)) =
                    (acceptor.accept(device).await, TcpStream::connect(relay).await)
                else {
                    return;
                };
                let _ = copy_bidirectional(&mut device, &mut relay).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn t15_a_device_believes_whom_it_is_told_to_over_either_transport() {
    let host = Host::start().await;
    let address = front(host.address).await;
    let key = host.key().await;
    let transports =
        [("ws", Transport::Ws, "ws"), ("bosh", Transport::Bosh, "bosh"), ("auto", Transport::Auto, "ws")];
    for (name, transport, wanted) in transports {
        let device = Device::builder(format!("https://localhost:{}", address.port()), name)
            .pin(host.pin(name).await)
            .router(Router::new().get("toner", || async { Ok(83) }))
            .transport(transport)
            .trust(Trust::nobody().and(AUTHORITY))
            .start()
            .await
            .unwrap();
        let mut events = device.events();
        let (mut seen, mut over) = (Vec::new(), None);
        let online = async {
            loop {
                match events.next().await.expect("the device is there") {
                    Event::Online { .. } => return,
                    Event::Transport { name } => over = Some(name),
                    other => seen.push(other),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), online).await.expect("it comes online");
        assert_eq!(over, Some(wanted));
        assert!(seen.iter().any(|event| matches!(event, Event::Enrolled)), "{seen:?}");
        let bearer = format!("Authorization: Bearer {key}");
        let mut connection = http::Connection::open(host.address).await.unwrap();
        let line = format!("GET /v1/devices/{name}/objects/toner");
        let answer = connection.ask(&line, &[&bearer], b"").await.unwrap();
        assert_eq!((answer.status, &*answer.text()), (200, "83"));
    }
}

#[tokio::test]
async fn t15_a_device_says_nothing_to_a_relay_that_it_does_not_believe() {
    let host = Host::start().await;
    let address = front(host.address).await;
    let told = [
        // Signed by nobody that the system trusts.
        (format!("https://localhost:{}", address.port()), Trust::System),
        // Of another name.
        (
            format!("https://127.0.0.2:{}", front_on_2(host.address).await.port()),
            Trust::System.and(AUTHORITY),
        ),
    ];
    for (url, trust) in told {
        let pin = host.pin("printer-1").await;
        let device = Device::builder(url, "printer-1")
            .pin(pin.clone())
            .router(Router::new())
            .trust(trust)
            .start()
            .await
            .unwrap();
        let mut events = device.events();
        let failed = async {
            loop {
                if let Event::Failed { step, words, .. } = events.next().await.expect("the device is there") {
                    return (step, words);
                }
            }
        };
        let (step, words) = tokio::time::timeout(Duration::from_secs(30), failed).await.expect("it fails");
        assert_eq!(step, Step::Enroll, "{words}");
        assert!(words.contains("certificate"), "a vendor learns why: {words}");
        drop(device);
        // The PIN was not spent.
        host.enrol_with("printer-1", &pin).await;
    }
}

async fn front_on_2(relay: SocketAddr) -> SocketAddr {
    // The same certificate, at an address that it does not name.
    let behind = front(relay).await;
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut device, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut behind) = TcpStream::connect(behind).await else { return };
                let _ = copy_bidirectional(&mut device, &mut behind).await;
            });
        }
    });
    address
}
