//! A relay in the test's own process, with a database of its own.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::SocketAddr;

use serde_json::json;
use server_sdk::relay::{Server, ServerConfig};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::http::Connection;

/// Ends with its relay when dropped.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    administrator: String,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(set: impl FnOnce(&mut ServerConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::default();
        config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        config.data = folder.path().join("data");
        // All devices of a test enrol from one address.
        config.http.enrolments_per_minute = 10_000;
        set(&mut config);
        let server = Server::bind(config).await.unwrap();
        let address = server.addresses()[0];
        let administrator = std::fs::read_to_string(server.administrator_key_file().unwrap()).unwrap();
        let administrator = administrator.trim().to_owned();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async {
            // Dropped is as good as sent.
            let _ = stopped.await;
        }));
        Self { address, administrator, stop: Some(stop), running, _folder: folder }
    }

    /// A service's key for every device.
    pub(crate) async fn key(&self) -> String {
        self.administer("POST /v1/keys", "{}", "key").await
    }

    /// Makes `device` known and enrols it; its token.
    pub(crate) async fn enrol(&self, device: &str) -> String {
        let pin = self.pin(device).await;
        self.enrol_with(device, &pin).await
    }

    /// Enrols `device`; its token.
    pub(crate) async fn enrol_with(&self, device: &str, pin: &str) -> String {
        let body = json!({"device_id": device, "pin": pin}).to_string();
        self.post("POST /v1/enroll", &[], &body, "token").await
    }

    /// Makes `device` known; the PIN that it enrols with.
    pub(crate) async fn pin(&self, device: &str) -> String {
        self.administer(&format!("POST /v1/devices/{device}/pin"), "{}", "pin").await
    }

    async fn administer(&self, line: &str, body: &str, word: &str) -> String {
        let bearer = format!("Authorization: Bearer {}", self.administrator);
        self.post(line, &[&bearer], body, word).await
    }

    async fn post(&self, line: &str, fields: &[&str], body: &str, word: &str) -> String {
        let mut connection = Connection::open(self.address).await.unwrap();
        let fields = [fields, &["Content-Type: application/json"]].concat();
        let answer = connection.ask(line, &fields, body.as_bytes()).await.unwrap();
        assert!((200..300).contains(&answer.status), "{line}: {} {}", answer.status, answer.text());
        answer.json()[word].as_str().unwrap_or_else(|| panic!("{line}: no {word}")).to_owned()
    }

    /// Drains and ends; all of it is over when this returns.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.running).await.unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.running.abort();
    }
}
