//! Each end against a WebSocket implementation that is not ours, and over TLS.

mod support;

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use relay_core::{
    auth::Secret,
    conformance::Owner,
    envelope::Envelope,
    error::ErrorKind,
    ids::{DeviceId, RequestId},
    transport::{CloseReason, ConnectOptions, Connector, EndReason},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use support::{PATIENCE, Rig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    accept_hdr_async, client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        handshake::server::{Request, Response},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use transport_ws::{
    WsConnector, WsSettings,
    client::{Trust, relay_said},
};

fn options() -> ConnectOptions {
    let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
    ConnectOptions::new(DeviceId::new("printer-1").unwrap(), Secret::new("printer-1"), deadline)
}

const PONG: &str = "<pong xmlns='urn:relay:1'/>";
const PING: &str = "<ping xmlns='urn:relay:1'/>";

#[tokio::test]
async fn another_client_is_a_device() {
    let mut rig = Rig::start().await;
    let address = rig.host.address;
    let connecting = async {
        let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
        request.headers_mut().insert("authorization", "Bearer printer-1".parse().unwrap());
        request.headers_mut().insert("sec-websocket-protocol", "control".parse().unwrap());
        client_async(request, TcpStream::connect(address).await.unwrap()).await.unwrap()
    };
    let ((mut socket, answer), mut owner) =
        tokio::join!(connecting, async { Owner::start(rig.knock().await, None) });
    assert_eq!(answer.headers()["relay-session"], owner.id.as_str());
    socket.send(Message::text(PING)).await.unwrap();
    socket.send(Message::Ping("?".into())).await.unwrap();
    assert_eq!(owner.receive(1).await, [Envelope::Ping]);
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("?".into()));
    owner.send([Envelope::Pong]).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(PONG));
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    socket.close(Some(goodbye)).await.unwrap();
    assert_eq!(owner.ended().await, EndReason::Goodbye);
    assert!(
        matches!(socket.next().await, Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Normal)
    );
    assert!(socket.next().await.is_none(), "closed in order");
}

#[tokio::test]
async fn another_client_hears_the_relays_close() {
    let mut rig = Rig::start().await;
    let address = rig.host.address;
    let connecting = async {
        let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
        request.headers_mut().insert("authorization", "Bearer printer-1".parse().unwrap());
        request.headers_mut().insert("sec-websocket-protocol", "control".parse().unwrap());
        client_async(request, TcpStream::connect(address).await.unwrap()).await.unwrap().0
    };
    let (mut socket, mut owner) = tokio::join!(connecting, async { Owner::start(rig.knock().await, None) });
    owner.attached().await;
    let (_, frame) = tokio::join!(owner.close(CloseReason::Replaced), async {
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("a close frame") };
        assert!(socket.next().await.is_none());
        frame
    });
    assert_eq!(frame.code, CloseCode::Library(4001));
    assert!(!frame.reason.is_empty());
}

#[tokio::test]
async fn another_server_is_a_relay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = WsConnector::new(&format!("ws://{}/ws", listener.local_addr().unwrap())).unwrap();
    let relay = async {
        let (stream, _) = listener.accept().await.unwrap();
        #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
        let answer = |request: &Request, mut response: Response| {
            assert_eq!(request.headers()["authorization"], "Bearer printer-1");
            response.headers_mut().insert("sec-websocket-protocol", "control".parse().unwrap());
            response.headers_mut().insert("relay-session", "session-1".parse().unwrap());
            Ok(response)
        };
        accept_hdr_async(stream, answer).await.unwrap()
    };
    let (session, mut socket) = tokio::join!(connector.connect(options()), relay);
    let mut owner = Owner::start(session.unwrap(), None);
    let id = RequestId::new("r").unwrap();
    owner.send([Envelope::Received { id }]).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::text("<received id='r' xmlns='urn:relay:1'/>")
    );
    // A message of many frames of theirs, and a ping.
    socket.send(Message::Ping("?".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("?".into()));
    socket.send(Message::text(PING)).await.unwrap();
    assert_eq!(owner.receive(1).await, [Envelope::Ping]);
    let (_, closed) = tokio::join!(owner.close(CloseReason::Shutdown), async {
        let closed = socket.next().await;
        assert!(socket.next().await.is_none());
        closed
    });
    assert!(matches!(closed, Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Normal));
    assert_eq!(owner.ended().await, EndReason::Closed);
}

/// A relay with a certificate for `localhost`; the ALPN protocol that the client settled on.
#[expect(clippy::future_not_send, reason = "an owner is driven on one thread")]
async fn secure(
    settings: WsSettings,
    listener: &TcpListener,
) -> (Result<(), relay_core::error::TransportError>, Option<Vec<u8>>) {
    let certificate =
        CertificateDer::from(include_bytes!("../../transport-bosh/tests/tls/server.der").to_vec());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
        include_bytes!("../../transport-bosh/tests/tls/server.key.der").to_vec(),
    ));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let relay = async {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.ok()?;
        let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(stream.get_ref().1.server_name(), Some("localhost"));
        #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
        let answer = |_: &Request, mut response: Response| {
            response.headers_mut().insert("sec-websocket-protocol", "control".parse().unwrap());
            response.headers_mut().insert("relay-session", "session-1".parse().unwrap());
            Ok(response)
        };
        let mut socket = accept_hdr_async(stream, answer).await.ok()?;
        socket.send(Message::text(PING)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(PONG));
        alpn
    };
    let connector = WsConnector::with_settings(settings).unwrap();
    let device = async {
        let mut owner = Owner::start(connector.connect(options()).await?, None);
        assert_eq!(owner.receive(1).await, [Envelope::Ping]);
        owner.send([Envelope::Pong]).await
    };
    tokio::join!(device, relay)
}

#[tokio::test]
async fn o14_over_tls_http_1_1_is_asked_for_and_the_relays_name_checked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ca = CertificateDer::from(include_bytes!("../../transport-bosh/tests/tls/ca.der").to_vec());
    let mut settings = WsSettings::new(format!("wss://localhost:{port}/ws"));
    settings.trust = Trust::Only(vec![ca]);
    let (result, alpn) = secure(settings, &listener).await;
    result.unwrap();
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn t15_a_certificate_that_is_not_trusted_gets_no_token() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = CertificateDer::from(include_bytes!("../../transport-bosh/tests/tls/server.der").to_vec());
    let mut settings = WsSettings::new(format!("wss://localhost:{port}/ws"));
    settings.trust = Trust::Only(vec![other]);
    settings.handshake = Duration::from_secs(10);
    let (result, alpn) = secure(settings, &listener).await;
    let error = result.unwrap_err();
    assert_eq!((error.kind, alpn), (ErrorKind::Unreachable, None));
    assert!(relay_said(&error).is_none());
}
