//! The device SDK behind a network that cuts its idle connections, and behind one that repeats and reorders its POSTs:
//! every call is answered, once, by its own device.

#[path = "support/crossing.rs"]
mod crossing;
#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/traffic.rs"]
mod traffic;

use std::{sync::atomic::AtomicU64, time::Duration};

use crossing::{Asked, Call, check};
use futures_util::{StreamExt, stream};
use host::Host;
use proxy::{Counts, Cut, FaultProxy, Meddling};
use tokio::task::JoinSet;
use traffic::{Log, device, service};

const DEVICES: u32 = 10;

/// Calls to all devices by way of `proxy`; each device gets `rounds`, with up to `pause` ms before each.
async fn calls_through(
    host: &Host,
    proxy: &FaultProxy,
    rounds: u32,
    pause: u64,
) -> (Vec<Asked>, Vec<crossing::Handled>) {
    let log = Log::default();
    let devices: Vec<_> = stream::iter(0..DEVICES)
        .map(|number| device(host, proxy.address, number, Duration::from_secs(1), &log))
        .buffered(4)
        .collect()
        .await;
    let key = host.key().await;
    let mut services = JoinSet::new();
    for device in 0..DEVICES {
        let calls = (0..rounds)
            .map(|round| {
                let nonce = device * rounds + round;
                let pause = u64::from(nonce.wrapping_mul(2_654_435_761) >> 8) % (pause + 1);
                let sizes = [0, 1, 300, 4096];
                let size = |n: u32| sizes[n as usize % sizes.len()];
                let call = Call { caller: 0, device, nonce, asking: size(nonce), answering: size(nonce / 4) };
                (Duration::from_millis(pause), call)
            })
            .collect();
        services.spawn(service(host.address, key.clone(), calls));
    }
    let asked = services.join_all().await.concat();
    for device in devices {
        device.shutdown(Duration::from_secs(5)).await;
    }
    let handled = log.lock().unwrap().clone();
    (asked, handled)
}

fn at_least(what: &str, counter: &AtomicU64, least: u64) {
    let count = Counts::of(counter);
    println!("{what}: {count}");
    assert!(count >= least, "{count} {what}, {least} are wanted");
}

async fn cut_by(cut: &'static [Cut], idle: std::ops::Range<u64>, rounds: u32, pause: u64) -> FaultProxy {
    let host = Host::start().await;
    let proxy = FaultProxy::cutting(host.address, 20, idle, cut).await;
    let (asked, handled) = calls_through(&host, &proxy, rounds, pause).await;
    assert_eq!(check(&asked, &handled), [""; 0]);
    assert_eq!(asked.len() as u32, DEVICES * rounds);
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_idle_connections_cut_by_fin_lose_no_call() {
    let proxy = cut_by(&[Cut::Fin], 50..600, 40, 400).await;
    at_least("cuts by FIN", &proxy.counts.fin, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_idle_connections_cut_by_rst_lose_no_call() {
    let proxy = cut_by(&[Cut::Rst], 50..600, 40, 400).await;
    at_least("cuts by RST", &proxy.counts.rst, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_idle_connections_that_fall_silent_lose_no_call() {
    let proxy = cut_by(&[Cut::Silence], 300..1500, 3, 2000).await;
    at_least("connections gone silent", &proxy.counts.silence, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_f12_repeated_and_reordered_posts_double_and_lose_nothing() {
    let host = Host::start().await;
    let proxy = FaultProxy::meddling(host.address, 11, Meddling { repeat: 15, reorder: 30 }).await;
    let (asked, handled) = calls_through(&host, &proxy, 100, 20).await;
    assert_eq!(check(&asked, &handled), [""; 0]);
    at_least("POSTs", &proxy.counts.posts, 1000);
    at_least("POSTs repeated", &proxy.counts.repeated, 100);
    at_least("POSTs overtaken", &proxy.counts.reordered, 100);
}
