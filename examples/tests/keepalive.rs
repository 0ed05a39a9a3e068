//! A device behind a network that cuts idle connections after a time that it says to nobody (S4): the device finds that
//! time out, finds it out again when it changes, and still knows it after it was switched off.

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

/// From half a second to six: the time scale of a test.
const SHORTEST: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(6);
/// Nothing is cut for so long: there is nothing more to be learned.
const CALM: Duration = Duration::from_secs(9);

/// A network that cuts idle connections, in front of a relay, and a device behind it.
struct Site {
    host: Host,
    proxy: FaultProxy,
    transport: Transport,
    keepalive: Duration,
    token: String,
    state: tempfile::TempDir,
}

impl Site {
    async fn new(transport: Transport, cut: &'static [Cut], after: u64) -> Self {
        let host = Host::start().await;
        let token = host.enrol("printer-1").await;
        let proxy = FaultProxy::cutting(host.address, after, after..after + 1, cut).await;
        // A survival notification begins the idle time of a held request anew: over BOSH it is left out of the way.
        let keepalive = if transport == Transport::Bosh { KEEPALIVE * 10 } else { KEEPALIVE };
        Self { host, proxy, transport, keepalive, token, state: tempfile::tempdir().unwrap() }
    }

    async fn device(&self) -> Device {
        let device = Device::builder(format!("http://{}", self.proxy.address), "printer-1")
            .token(&*self.token)
            .state_folder(self.state.path())
            .router(Router::new().get("toner", || async { Ok(83) }))
            .transport(self.transport)
            .keepalive(self.keepalive)
            .shortest_keepalive(SHORTEST)
            .start()
            .await
            .unwrap();
        device.online().await.unwrap();
        device
    }

    /// How often the device's session was cut. Connections are also idle while nobody needs them.
    fn cuts(&self) -> u64 {
        Counts::of(&self.proxy.counts.sessions)
    }
}

/// What the device says last before it is calm.
async fn learned(events: &mut Events, site: &Site, before: Duration) -> Duration {
    let (mut every, mut seen, mut calm_at) = (before, site.cuts(), Instant::now() + CALM);
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
            Err(_) if site.cuts() != seen => (seen, calm_at) = (site.cuts(), Instant::now() + CALM),
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

async fn learns(transport: Transport, cut: &'static [Cut], [least, most]: [u64; 2]) {
    let truth = drawn((least + most) / 2..most);
    let site = Site::new(transport, cut, truth).await;
    let device = site.device().await;
    let mut events = device.events();
    let (mut before, mut every) = (0, site.keepalive);
    for truth in [truth, drawn(least..truth - 500)] {
        site.proxy.cut_after(truth..truth + 1);
        every = learned(&mut events, &site, every).await;
        let took = site.cuts() - before;
        before += took;
        let learned = every.as_millis();
        println!("{transport:?}: cut after {truth} ms, by {cut:?}; learned {learned} ms in {took} cuts");
        assert!(took <= 5, "{took} cuts");
        assert!(every < Duration::from_millis(truth));
        assert!(every > Duration::from_millis(truth) * 3 / 4);
    }
    device.shutdown(Duration::from_secs(5)).await;
    let before = site.cuts();
    let device = site.device().await;
    let again = learned(&mut device.events(), &site, Duration::ZERO).await;
    println!("{transport:?}: switched on again, {} ms, {} cuts", again.as_millis(), site.cuts() - before);
    assert_eq!(again, every, "it begins with what it knew");
    assert_eq!(site.cuts(), before, "and nothing is cut any more");
    device.shutdown(Duration::from_secs(5)).await;
    site.host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_s4_what_a_network_leaves_alone_is_learned_in_five_cuts_by_fin_and_again_when_it_changes() {
    learns(Transport::Ws, &[Cut::Fin], [1_000, 4_000]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_s4_what_a_network_leaves_alone_is_learned_in_five_cuts_by_rst_and_again_when_it_changes() {
    learns(Transport::Ws, &[Cut::Rst], [1_000, 4_000]).await;
}

/// No request of BOSH comes sooner after the one before than the 2 s that the relay names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_s4_over_bosh_too_it_is_learned_in_five_cuts_by_fin_and_again_when_it_changes() {
    learns(Transport::Bosh, &[Cut::Fin], [2_600, 5_000]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_s4_over_bosh_too_it_is_learned_in_five_cuts_by_rst_and_again_when_it_changes() {
    learns(Transport::Bosh, &[Cut::Rst], [2_600, 5_000]).await;
}
