//! What a held request costs: the shape of everything in the HTTP side rests on it. Alone in its process: memory is
//! measured.
#![cfg(feature = "relay")]

mod http_support;

use http_support::{Rig, Wire, head};
use tokio::net::TcpStream;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn m2_a_held_call_costs_little_more_than_its_connection() {
    const HELD: usize = 400;
    let rig = Rig::with(|config| {
        config.relay.device_in_flight = 2 * HELD;
        config.relay.outbox_envelopes = 2 * HELD;
    })
    .await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let asked =
        head("GET", "/v1/devices/d/objects/x", &key, &[("user-agent", "a service of some length/1.0")], None);
    let mut ids = Vec::new();
    let mut wires = Vec::new();
    let mut measured = Vec::new();
    for round in 0..2 {
        // The first round warms up what is there once.
        let before = resident();
        for _ in 0..HELD {
            let mut wire = Wire { stream: TcpStream::connect(rig.address).await.unwrap(), read: Vec::new() };
            wire.send(&asked).await;
            ids.push(device.request().await.0);
            wires.push(wire);
        }
        let each = resident().saturating_sub(before) / HELD;
        println!("round {round}: {each} bytes of memory for each of {HELD} held calls, both ends together");
        measured.push(each);
    }
    assert!(measured[1] <= 20 * 1024, "{} bytes each", measured[1]);
    for (id, mut wire) in ids.into_iter().zip(wires) {
        device.answer(id, relay_core::Response::ok()).await;
        assert_eq!(wire.read().await.unwrap().status, 200);
    }
}
