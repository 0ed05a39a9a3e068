//! SIGKILL in the middle of commits: what was acknowledged is there afterwards.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod cli_support;
mod http_support;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use cli_support::Process;
use http_support::{Wire, eventually, head};

/// What one device was told, in the order of telling.
#[derive(Debug, Clone, Default)]
struct Told {
    pin: String,
    token: Option<String>,
    /// The last registration that was acknowledged, and the last that was sent.
    acknowledged: u64,
    sent: u64,
}

type Log = Arc<Mutex<HashMap<String, Told>>>;

/// One call; `None` if the relay was gone before its answer was whole.
async fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    json: &str,
) -> Option<(u16, Vec<u8>)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let fields = [("content-type", "application/json"), ("connection", "close")];
    stream.write_all(&head(method, path, token, &fields, Some(json.len()))).await.ok()?;
    stream.write_all(json.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok())?;
    (body.len() == length).then(|| (status, body.as_bytes().to_vec()))
}

fn field(json: &[u8], name: &str) -> String {
    serde_json::from_slice::<serde_json::Value>(json).unwrap()[name].as_str().unwrap().to_owned()
}

/// Enrols a device and registers it over and over, writing down what was acknowledged, until the relay is gone.
async fn live(address: SocketAddr, admin: String, id: String, log: Log) {
    let change = |change: &dyn Fn(&mut Told)| change(log.lock().unwrap().entry(id.clone()).or_default());
    let told = log.lock().unwrap().get(&id).cloned().unwrap_or_default();
    let token = match told.token {
        Some(token) => token,
        None => {
            let Some((201, body)) =
                call(address, "POST", &format!("/v1/devices/{id}/pin"), &admin, "{}").await
            else {
                return;
            };
            let pin = field(&body, "pin");
            change(&|told| told.pin = pin.clone());
            let enrol = format!(r#"{{"device_id":"{id}","pin":"{pin}"}}"#);
            let Some((status, body)) = call(address, "POST", "/v1/enroll", "", &enrol).await else { return };
            assert_eq!(status, 201);
            let token = field(&body, "token");
            change(&|told| told.token = Some(token.clone()));
            token
        }
    };
    for n in told.sent + 1.. {
        change(&|told| told.sent = n);
        let registration = format!(r#"{{"name":"{n}"}}"#);
        match call(address, "PUT", &format!("/v1/devices/{id}"), &token, &registration).await {
            Some((200 | 201, _)) => change(&|told| told.acknowledged = n),
            Some(other) => panic!("{id}: {other:?}"),
            None => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_p1_what_was_acknowledged_survives_sigkill_in_mid_commit() {
    const DEVICES: usize = 16;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let log = Log::default();
    let mut total = 0;
    for round in 0..4 {
        let relay = Process::start(&data);
        let address: SocketAddr = relay.url.strip_prefix("http://").unwrap().parse().unwrap();
        let admin = relay.admin();

        // What was acknowledged before the kill is there, and nothing that was never asked for.
        let before = log.lock().unwrap().clone();
        for (id, told) in &before {
            let device = relay.client().device(id).await.unwrap();
            let name: u64 = device.name.as_deref().unwrap_or("0").parse().unwrap();
            assert!((told.acknowledged..=told.sent).contains(&name), "{id}: {name} of {told:?}");
            if told.token.is_some() {
                // The PIN was spent for good.
                let mut wire = Wire::connect(address).await;
                let again = format!(r#"{{"device_id":"{id}","pin":"{}"}}"#, told.pin);
                wire.send(&head(
                    "POST",
                    "/v1/enroll",
                    "",
                    &[("content-type", "application/json")],
                    Some(again.len()),
                ))
                .await;
                wire.send(again.as_bytes()).await;
                let status = wire.read().await.unwrap().status;
                assert!(matches!(status, 401 | 429), "{id}: a spent PIN got {status}");
            }
        }
        assert_eq!(before.len(), if round == 0 { 0 } else { DEVICES });

        let living: Vec<_> = (0..DEVICES)
            .map(|n| tokio::spawn(live(address, admin.clone(), format!("d{n}"), log.clone())))
            .collect();
        let acknowledged = || log.lock().unwrap().values().map(|told| told.acknowledged).sum::<u64>();
        let enrolled = || log.lock().unwrap().values().filter(|told| told.token.is_some()).count() == DEVICES;
        let enough = total + 100;
        eventually(|| acknowledged() >= enough && enrolled()).await;
        // All of them are asking at this moment.
        relay.kill();
        for one in living {
            one.await.unwrap();
        }
        total = acknowledged();
    }
    println!("{total} registrations acknowledged over 4 lives of the relay");
}
