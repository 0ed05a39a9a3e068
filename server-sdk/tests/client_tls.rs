//! The client over TLS, against a server of the test's own on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{net::SocketAddr, sync::Arc};

use server_sdk::{Client, ErrorKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Good for `localhost` and 127.0.0.1, for a hundred years.
const AUTHORITY: &[u8] = include_bytes!("client_tls/ca.der");
const CERTIFICATE: &[u8] = include_bytes!("client_tls/server.der");
const KEY: &[u8] = include_bytes!("client_tls/server.key.der");

async fn server(version: &'static rustls::SupportedProtocolVersion, host: &str) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(KEY.to_vec());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CERTIFICATE.to_vec().into()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                assert!(String::from_utf8_lossy(&head[..read]).contains("HTTP/1.1\r\n"));
                let answer = b"HTTP/1.1 200 OK\r\nrelay-outcome: answered\r\ncontent-length: 1\r\n\r\n7";
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    address
}

#[tokio::test]
async fn t15_a_relay_is_believed_by_its_certificate_alone() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let port = server(version, "127.0.0.1").await.port();
        let ours = Client::builder(&format!("https://localhost:{port}"), "k");
        let trusting = ours.trust(AUTHORITY).build().unwrap();
        assert_eq!(trusting.get("d", "a").await.unwrap().text().unwrap(), "7");
        // Signed by nobody that the system trusts; and of another name.
        let unknown = Client::builder(&format!("https://localhost:{port}"), "k");
        let elsewhere = server(version, "127.0.0.2").await;
        let misnamed = Client::builder(&format!("https://{elsewhere}"), "k").trust(AUTHORITY);
        for builder in [unknown, misnamed] {
            let error = builder.build().unwrap().get("d", "a").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
            assert!(error.is_safe_to_retry(), "nothing was said to a server that is not believed");
        }
    }
    // A library installs no default for the whole process.
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
}
