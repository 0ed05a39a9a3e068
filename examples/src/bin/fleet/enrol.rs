//! Makes the relay know the fleet: import, a PIN for each device, and the device's own enrolment with it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::http::Connection;

/// Two at once is what the relay hashes at once.
const ENROLLING: usize = 4;

/// What a device shows to be let in.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) id: String,
    pub(crate) token: String,
}

/// The administrator's key, which a relay leaves in its data folder.
pub(crate) fn administrator(data: &Path) -> Result<String, String> {
    let file = data.join("administrator.key");
    let key = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(key.trim().to_owned())
}

/// Enrols `count` devices on the relay at `to`.
pub(crate) async fn enrol(to: SocketAddr, key: &str, count: usize) -> Result<Vec<Credential>, String> {
    let ids: Vec<String> = (0..count).map(|n| format!("device-{n}")).collect();
    for ids in ids.chunks(500) {
        let lines: String = ids.iter().map(|id| format!("{}\n", json!({"device_id": id}))).collect();
        let mut administrator = open(to, [127, 0, 0, 1].into()).await?;
        let head = format!(
            "POST /v1/devices/import HTTP/1.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/x-ndjson"
        );
        expect(administrator.ask(&head, &lines).await?, "import")?;
    }
    stream::iter(ids.into_iter().enumerate())
        .map(|(n, id)| async move {
            // An address for each device: wrong PINs are counted by address, and so may right ones be.
            let from = IpAddr::from([127, 1, (n / 250) as u8, (n % 250) as u8 + 2]);
            let mut connection = open(to, from).await?;
            let head = format!("POST /v1/devices/{id}/pin HTTP/1.1\r\nAuthorization: Bearer {key}");
            let pin = expect(connection.ask(&head, "").await?, "pin")?;
            let body = json!({"device_id": id, "pin": pin["pin"]}).to_string();
            let head = "POST /v1/enroll HTTP/1.1\r\nContent-Type: application/json";
            let credential = expect(connection.ask(head, &body).await?, "enroll")?;
            let token = credential["token"].as_str().ok_or("no token")?;
            Ok(Credential { id, token: token.into() })
        })
        .buffered(ENROLLING)
        .try_collect()
        .await
}

async fn open(to: SocketAddr, from: IpAddr) -> Result<Connection, String> {
    Connection::open(from, to).await.map_err(|error| error.to_string())
}

fn expect((status, body): (u16, String), what: &str) -> Result<Value, String> {
    if !(200..300).contains(&status) {
        return Err(format!("{what}: {status} {body}"));
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&body).map_err(|error| format!("{what}: {error} in {body}"))
}
