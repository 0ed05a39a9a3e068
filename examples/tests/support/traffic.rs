//! Devices made with the SDK, services that speak plain HTTP, and what both write down.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use device_sdk::{Device, HandlerError, ObjectId, RespondBy, Router, Transport};

use crate::{
    crossing::{Asked, Call, Handled, Seen, Way},
    host::Host,
    http::Connection,
};

/// What all devices write down.
pub(crate) type Log = Arc<Mutex<Vec<Handled>>>;

/// The name of a device.
pub(crate) fn name(device: u32) -> String {
    format!("device-{device}")
}

/// Device `number`, online by way of `via`, which is the relay or something before it.
pub(crate) async fn device(
    host: &Host,
    via: SocketAddr,
    number: u32,
    keepalive: Duration,
    log: &Log,
) -> Device {
    let log = log.clone();
    let answer = move |object: ObjectId, got: Bytes| {
        let log = log.clone();
        async move {
            let call = Call::parse(object.as_str()).ok_or_else(HandlerError::unknown_object)?;
            let answer = call.body(Way::Answering);
            let line = Handled { device: number, call, got: Seen::of(&got), gave: Seen::of(&answer) };
            log.lock().unwrap().push(line);
            Ok(answer)
        }
    };
    // Half of the devices answer in the session, half by HTTP.
    let way = if number.is_multiple_of(2) { RespondBy::Session } else { RespondBy::Http };
    let device = Device::builder(format!("http://{via}"), name(number))
        .token(host.enrol(&name(number)).await)
        .router(Router::new().set("*", answer))
        .respond_by(way)
        .transport(Transport::Bosh)
        .keepalive(keepalive)
        .concurrency(64)
        .start()
        .await
        .unwrap();
    tokio::time::timeout(Duration::from_secs(30), device.online()).await.expect("online soon").unwrap();
    device
}

/// Makes `calls`, one after the other, with `pause` before each.
pub(crate) async fn service(relay: SocketAddr, key: String, calls: Vec<(Duration, Call)>) -> Vec<Asked> {
    let mut connection = Connection::open(relay).await.unwrap();
    let mut log = Vec::with_capacity(calls.len());
    let bearer = format!("Authorization: Bearer {key}");
    for (pause, call) in calls {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let body = call.body(Way::Asking);
        let line = format!("PUT /v1/devices/{}/objects/{}", name(call.device), call.object());
        let fields = [bearer.as_str(), "Content-Type: application/octet-stream", "Prefer: wait=60"];
        let answer =
            connection.ask(&line, &fields, &body).await.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        log.push(Asked {
            call,
            sent: Seen::of(&body),
            status: answer.status,
            outcome: answer.field("relay-outcome").unwrap_or("none").to_owned(),
            got: Seen::of(&answer.body),
        });
    }
    log
}
