//! Many services and many devices at once: no answer goes to the wrong caller, none is lost, none doubled, none changed.

#[path = "support/crossing.rs"]
mod crossing;
#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;
#[path = "support/traffic.rs"]
mod traffic;

use std::time::Duration;

use crossing::{Call, check};
use futures_util::{StreamExt, stream};
use host::Host;
use tokio::{task::JoinSet, time::Instant};
use traffic::{Log, device, service};

const SERVICES: u32 = 50;
const DEVICES: u32 = 20;
const ROUNDS: u32 = 20;

/// The largest body that rides on a session.
const LARGEST: usize = 128 * 1024;

/// Sizes there and back, so that all four meet all four; few are the largest.
fn sizes(nonce: u32) -> (usize, usize) {
    let size = |draw: u32| match draw {
        0..=34 => 0,
        35..=59 => 1,
        60..=97 => 4096,
        _ => LARGEST,
    };
    let mixed = nonce.wrapping_mul(2_654_435_761);
    (size(mixed % 100), size((mixed >> 16) % 100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q1_fifty_services_and_twenty_devices_get_each_answer_at_its_own_caller() {
    let host = Host::start().await;
    let log = Log::default();
    let devices: Vec<_> = stream::iter(0..DEVICES)
        .map(|number| device(&host, host.address, number, Duration::from_secs(60), &log))
        .buffered(4)
        .collect()
        .await;

    let start = Instant::now();
    let mut services = JoinSet::new();
    for caller in 0..SERVICES {
        let key = host.key().await;
        for device in 0..DEVICES {
            let calls = (0..ROUNDS)
                .map(|round| {
                    let nonce = (caller * DEVICES + device) * ROUNDS + round;
                    let (asking, answering) = sizes(nonce);
                    (Duration::ZERO, Call { caller, device, nonce, asking, answering })
                })
                .collect();
            services.spawn(service(host.address, key.clone(), calls));
        }
    }
    let asked = services.join_all().await.concat();
    let took = start.elapsed();

    let handled = log.lock().unwrap().clone();
    let wrong = check(&asked, &handled);
    assert!(
        wrong.is_empty(),
        "{} things are wrong, among them: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(10)]
    );
    assert_eq!((asked.len(), handled.len()), (20_000, 20_000));
    let bytes: usize = asked.iter().map(|line| line.call.asking + line.call.answering).sum();
    println!("{} calls with {} MiB in {took:.1?}, all joined", asked.len(), bytes >> 20);

    for device in devices {
        device.shutdown(Duration::from_secs(5)).await;
    }
    host.stop().await;
}
