//! A device behind a network that cuts idle connections after a time that it says to nobody (S4): the device finds that
//! time out, and finds it out again when it changes.

#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;
#[path = "support/proxy.rs"]
mod proxy;

use std::time::Duration;

use device_sdk::{Device, Event, Events, Router, Transport};
use host::Host;
use proxy::{Counts, Cut, FaultProxy};
use tokio::time::{Instant, timeout_at};

/// From half a second to five: the time scale of a test.
const SHORTEST: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(6);
/// Nothing is cut for so long: there is nothing more to be learned.
const CALM: Duration = Duration::from_secs(9);

fn cuts(proxy: &FaultProxy) -> u64 {
    [&proxy.counts.fin, &proxy.counts.rst].map(Counts::of).iter().sum()
}

/// What the device says last before it is calm.
async fn learned(events: &mut Events, proxy: &FaultProxy, before: Duration) -> Duration {
    let (mut every, mut seen, mut calm_at) = (before, cuts(proxy), Instant::now() + CALM);
    let give_up = Instant::now() + Duration::from_secs(120);
    loop {
        assert!(Instant::now() < give_up, "it learns and learns");
        match timeout_at(calm_at, events.next()).await {
            Ok(Some(Event::KeepAlive { every: now })) => {
                every = now;
                calm_at = Instant::now() + CALM;
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("the device is there"),
            Err(_) if cuts(proxy) != seen => (seen, calm_at) = (cuts(proxy), Instant::now() + CALM),
            Err(_) => return every,
        }
    }
}

/// Each run draws its own.
fn drawn(range: std::ops::Range<u64>) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    range.start + u64::from_le_bytes(bytes) % (range.end - range.start)
}

async fn learns(cut: &'static [Cut]) {
    let host = Host::start().await;
    let token = host.enrol("printer-1").await;
    let truth = drawn(2_000..4_000);
    let proxy = FaultProxy::cutting(host.address, truth, truth..truth + 1, cut).await;
    let device = Device::builder(format!("http://{}", proxy.address), "printer-1")
        .token(token)
        .router(Router::new().get("toner", || async { Ok(83) }))
        .transport(Transport::Ws)
        .keepalive(KEEPALIVE)
        .shortest_keepalive(SHORTEST)
        .start()
        .await
        .unwrap();
    let mut events = device.events();
    device.online().await.unwrap();
    let (mut before, mut every) = (0, KEEPALIVE * 5 / 6);
    for truth in [truth, drawn(1_000..truth - 500)] {
        proxy.cut_after(truth..truth + 1);
        every = learned(&mut events, &proxy, every).await;
        let took = cuts(&proxy) - before;
        before += took;
        println!("cut after {truth} ms, by {cut:?}; learned {} ms in {took} cuts", every.as_millis());
        assert!(took <= 5, "{took} cuts");
        assert!(every < Duration::from_millis(truth));
        assert!(every > Duration::from_millis(truth) * 3 / 4);
    }
    device.shutdown(Duration::from_secs(5)).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_s4_what_a_network_leaves_alone_is_learned_in_five_cuts_by_fin_and_again_when_it_changes() {
    learns(&[Cut::Fin]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_s4_what_a_network_leaves_alone_is_learned_in_five_cuts_by_rst_and_again_when_it_changes() {
    learns(&[Cut::Rst]).await;
}
