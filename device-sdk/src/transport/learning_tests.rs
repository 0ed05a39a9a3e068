//! The learner over BOSH: both ends of the transport, and between them a network that cuts what is idle, in paused time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proptest::prelude::*;
use relay_core::{
    Relay,
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    envelope::Envelope,
    ids::DeviceId,
    transport::{EndReason, Full, Inbound, Started},
};
use tokio::sync::broadcast;
use transport_bosh::{
    BoshServerConfig, ConnectionManager,
    client::BoshConnector,
    exchange::{Exchange, ExchangeError, ExchangeErrorKind, Post, Reply},
};

use super::*;
use crate::transport::Proxy;

const TOKEN: &str = "token";

#[derive(Debug)]
struct Door;

#[async_trait]
impl Authenticator for Door {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        match credentials {
            Credentials::Device { device, .. } => Ok(Principal::Device(device.clone())),
            _ => Err(AuthError::Rejected),
        }
    }

    async fn verifier(&self, _: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
        Ok(ScramVerifier::derive(hash, &Secret::new(TOKEN), b"salt and pepper", 4_096))
    }
}

/// Cuts what was idle for `limit`: seen by both ends, or by neither.
#[derive(Debug)]
struct Network {
    manager: ConnectionManager,
    limit: Mutex<Duration>,
    silent: bool,
    cuts: AtomicU32,
    down: AtomicBool,
}

#[async_trait]
impl Exchange for Network {
    async fn post(&self, post: Post) -> Result<Reply, ExchangeError> {
        let limit = *self.limit.lock().unwrap();
        if self.down.load(Ordering::Relaxed) {
            return Err(ExchangeError::new(ExchangeErrorKind::Unreachable, "down"));
        }
        let peer = std::net::Ipv4Addr::LOCALHOST.into();
        let reply = self.manager.exchange(transport_bosh::Post::new(post.body, peer, true));
        let mut reply = std::pin::pin!(reply);
        let timed_out = tokio::time::sleep(post.timeout);
        tokio::select! {
            biased;
            reply = &mut reply => return Ok(Reply::new(reply.status, reply.body)),
            () = tokio::time::sleep(limit) => {}
        }
        self.cuts.fetch_add(1, Ordering::Relaxed);
        if !self.silent {
            return Err(ExchangeError::new(ExchangeErrorKind::Interrupted, "cut"));
        }
        // What the other end says from now on arrives nowhere.
        tokio::join!(timed_out, reply);
        Err(ExchangeError::new(ExchangeErrorKind::TimedOut, "silence"))
    }

    fn is_confidential(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Deaf;

impl Inbound for Deaf {
    fn envelope(&self, _: Envelope) -> Result<(), Full> {
        Ok(())
    }
    fn ended(&self, reason: EndReason) {
        assert_eq!(reason, EndReason::Closed, "the network ends no session");
    }
}

struct Rig {
    network: Arc<Network>,
    state: State,
    learning: Learning<BoshConnector>,
    session: Session,
    events: broadcast::Receiver<Event>,
    _telling: broadcast::Sender<Event>,
}

fn device() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

impl Rig {
    async fn start(limit: Duration, silent: bool) -> Self {
        let (manager, listener) = ConnectionManager::new(BoshServerConfig::default(), Arc::new(Door));
        let relay = Relay::builder().build();
        tokio::spawn(async move { relay.serve(Box::new(listener)).await });
        let (cuts, down) = (AtomicU32::new(0), AtomicBool::new(false));
        let network = Arc::new(Network { manager, limit: Mutex::new(limit), silent, cuts, down });
        Self::device(network, State::in_memory(&device())).await
    }

    /// A device that is switched on.
    async fn device(network: Arc<Network>, state: State) -> Self {
        let (telling, events) = broadcast::channel(1_024);
        let [first, longest] = [Duration::from_secs(50); 2];
        let bounds = Bounds { shortest: Duration::from_secs(10), longest, first };
        let url = "https://127.0.0.1/".parse().unwrap();
        let lookout = Lookout::new("bosh", &url, &Proxy::Direct);
        let keeper = Arc::new(Keeper::new(bounds, lookout, telling.downgrade(), state.clone()));
        let connector = BoshConnector::over(network.clone()).with_idle_watch(keeper.clone());
        let learning = Learning::new(connector, keeper);
        let deadline = crate::now() + Duration::from_secs(30);
        let options = ConnectOptions::new(device(), Secret::new(TOKEN), deadline);
        let mut session = learning.connect(options).await.unwrap();
        session.push.start(Started::new(session.id.clone(), false, Arc::new(Deaf)));
        Self { network, state, learning, session, events, _telling: telling }
    }

    fn interval(&self) -> Duration {
        self.learning.keeper.lock().learner.interval()
    }

    fn cuts(&self) -> u32 {
        self.network.cuts.load(Ordering::Relaxed)
    }

    fn set_limit(&self, limit: Duration) {
        *self.network.limit.lock().unwrap() = limit;
    }

    /// How many cuts it takes from here on until it knows the limit.
    async fn learn(&mut self, limit: Duration) -> u32 {
        self.set_limit(limit);
        let before = self.cuts();
        hours(2).await;
        let took = self.cuts() - before;
        hours(2).await;
        assert_eq!(self.cuts() - before, took, "what was learned holds");
        let (every, limit) = (self.interval(), limit.min(Duration::from_secs(50)));
        assert!(every <= limit && every > limit.mul_f64(0.8), "{every:?} for {limit:?} after {took} cuts");
        took
    }
}

async fn hours(hours: u64) {
    tokio::time::sleep(Duration::from_secs(hours * 3_600)).await;
}

fn paused<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn f9_s4_over_bosh_a_hidden_cut_off_is_learned_in_five_cuts_and_again_when_it_changes(
        first in 15_000u64..60_000, second in 12_000u64..60_000, silent in any::<bool>(),
    ) {
        paused(async {
            let [first, second] = [first, second].map(Duration::from_millis);
            let mut rig = Rig::start(first, silent).await;
            let took = rig.learn(first).await;
            assert!(took <= 5, "{took} cuts for {first:?}");
            // What became shorter shows by itself, what became longer is looked for after a day.
            if second > first {
                hours(24).await;
            }
            let before = rig.cuts();
            rig.set_limit(second);
            hours(26).await;
            let took = rig.learn(second).await + rig.cuts() - before;
            assert!(took <= 10, "{took} cuts for {second:?}, and again a day later");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn s4_over_bosh_a_network_that_cuts_nothing_sees_one_request_a_wait() {
    let mut rig = Rig::start(Duration::from_secs(100_000), false).await;
    assert_eq!(rig.learn(Duration::from_secs(100_000)).await, 0);
    assert_eq!(rig.interval(), Duration::from_secs(50));
    assert!(rig.events.try_recv().is_err(), "nothing changed, and nothing was told");
}

#[tokio::test(start_paused = true)]
async fn s4_a_device_that_is_switched_on_again_where_it_was_begins_with_what_it_knew() {
    let limit = Duration::from_secs(31);
    let mut rig = Rig::start(limit, true).await;
    assert!((1..=5).contains(&rig.learn(limit).await));
    let (learned, cuts) = (rig.interval(), rig.cuts());
    rig.session.push.close(relay_core::transport::CloseReason::Shutdown).await;
    let mut again = Rig::device(rig.network.clone(), rig.state.clone()).await;
    assert_eq!(again.interval(), learned);
    assert_eq!(again.events.try_recv(), Ok(Event::KeepAlive { every: learned }));
    hours(3).await;
    assert_eq!(again.cuts(), cuts, "and no connection is cut any more");
    // In another network it begins anew, and knows this one when it comes back.
    again.learning.keeper.goes_by(Some("another".into()));
    assert_eq!(again.interval(), Duration::from_secs(50));
    again.learning.keeper.goes_by(rig.learning.keeper.lookout.glance());
    assert_eq!(again.interval(), learned);
    // Where nothing is cut any more, that is forgotten.
    again.set_limit(Duration::from_secs(100_000));
    hours(48).await;
    assert_eq!(again.interval(), Duration::from_secs(50));
    assert_eq!(again.state.read().lesson(&again.learning.keeper.lookout.glance().unwrap()), None);
}

#[tokio::test(start_paused = true)]
async fn s4_a_relay_that_goes_for_a_while_teaches_nothing() {
    let rig = Rig::start(Duration::from_secs(100_000), false).await;
    for _ in 0..5 {
        // Whatever waits is cut, and what comes after it arrives nowhere.
        tokio::time::sleep(Duration::from_secs(75)).await;
        rig.network.down.store(true, Ordering::Relaxed);
        rig.learning.inner.set_keepalive(Some(Duration::from_secs(1)));
        tokio::time::sleep(Duration::from_secs(20)).await;
        rig.network.down.store(false, Ordering::Relaxed);
        rig.learning.inner.set_keepalive(Some(rig.interval()));
    }
    assert_eq!(rig.interval(), Duration::from_secs(50));
}
