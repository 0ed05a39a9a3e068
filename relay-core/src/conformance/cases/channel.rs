//! Channels: of transports that claim them. The others say so.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    super::{Harness, Owner, PATIENCE, Running, token},
    bytes, id, pair,
};
use crate::{
    app::{Digest, Progress, Sending, ToDevice, ToRelay},
    auth::Secret,
    error::ErrorKind,
    ids::{AppName, DeviceId},
    request::Status,
    store::App,
    transport::{ChannelKnock, ChannelOptions, DeviceChannel, Incoming, RelayChannel},
};

/// How much a transport may take towards a device that takes nothing.
const BOUND: usize = 4 * 1024 * 1024;

struct Rig<G> {
    device: Owner,
    _relay: Owner,
    running: Running<G>,
}

fn app(name: &str) -> App {
    let name = AppName::new(name).expect("the kit's app names are valid");
    App { path: format!("/apps/{}", name.as_str()), protocol: name.as_str().into(), name, port: None }
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(done) = tokio::time::timeout(PATIENCE, future).await else { panic!("not in time: {what}") };
    done
}

impl<G> Rig<G> {
    /// A connected device; `None` if the transport claims no channels, which it then has to say.
    async fn start<H: Harness<Guard = G>>(harness: &H) -> Option<Self> {
        let (device, relay, running) = pair(harness).await;
        relay.attached().await;
        let rig = Self { device, _relay: relay, running };
        if harness.info().channels {
            return Some(rig);
        }
        let refused = rig.running.connector.channel(rig.options(1, "print")).await;
        assert_eq!(refused.expect_err("no channels are claimed").kind, ErrorKind::Unsupported);
        None
    }

    fn name(&self) -> DeviceId {
        self.device.device.clone()
    }

    fn options(&self, job: usize, app_name: &str) -> ChannelOptions {
        let deadline = (tokio::time::Instant::now() + PATIENCE).into_std();
        ChannelOptions::new(self.name(), token(), id(job), app(app_name), deadline)
    }

    async fn knock(&mut self) -> ChannelKnock {
        let knock = async {
            loop {
                match self.running.listener.accept().await {
                    Some(Incoming::Channel(knock)) => return knock,
                    Some(_) => {}
                    None => panic!("the listener closed"),
                }
            }
        };
        in_time("somebody knocks", knock).await
    }

    async fn open(&mut self, job: usize, app_name: &str) -> (DeviceChannel, RelayChannel) {
        let connector = Arc::clone(&self.running.connector);
        let dialled = connector.channel(self.options(job, app_name));
        let heard = async {
            let knock = self.knock().await;
            (knock.handshake)(Some(app(app_name))).await
        };
        let (device, relay) = in_time("the channel opens", async { tokio::join!(dialled, heard) }).await;
        (device.expect("the device gets its channel"), relay.expect("the relay gets its channel"))
    }
}

async fn tell(device: &mut DeviceChannel, message: ToRelay) {
    in_time("the relay takes it", device.sender.send(message)).await.expect("the device may speak");
}

async fn say(relay: &mut RelayChannel, message: ToDevice) {
    in_time("the device takes it", relay.sender.send(message)).await.expect("the relay may speak");
}

async fn heard_by_device(device: &mut DeviceChannel) -> ToDevice {
    let heard = in_time("the device hears something", device.receiver.receive()).await;
    heard.expect("the channel holds").expect("the channel is open")
}

async fn heard_by_relay(relay: &mut RelayChannel) -> ToRelay {
    let heard = in_time("the relay hears something", relay.receiver.receive()).await;
    heard.expect("the channel holds").expect("the channel is open")
}

/// A channel is opened for a job that the owner expects, of the app that it is for, and for no other: the device learns
/// that there is no such job.
pub async fn only_for_a_job_that_is_expected<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let connector = Arc::clone(&rig.running.connector);
    let options = rig.options(1, "print");
    let refused = async {
        let knock = rig.knock().await;
        assert_eq!((knock.device, knock.job, &*knock.path), (rig.name(), id(1), "/apps/print"));
        assert_eq!(knock.protocols, ["print".into()]);
        (knock.handshake)(None).await.expect_err("no channel is opened");
    };
    let (dialled, ()) =
        in_time("an answer", async { tokio::join!(connector.channel(options), refused) }).await;
    let error = dialled.expect_err("there is no such job");
    assert_eq!(error.kind, ErrorKind::Expired, "{error}");
    let (mut device, mut relay) = rig.open(2, "address").await;
    say(&mut relay, ToDevice::Header("<Job/>".into())).await;
    assert_eq!(heard_by_device(&mut device).await, ToDevice::Header("<Job/>".into()));
}

/// An owner that has no room drops the knock: the device does not take it for the job's end, and may come back.
pub async fn no_room_is_not_the_end_of_a_job<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let connector = Arc::clone(&rig.running.connector);
    let options = rig.options(1, "print");
    let dropped = async { drop(rig.knock().await) };
    let (dialled, ()) =
        in_time("an answer", async { tokio::join!(connector.channel(options), dropped) }).await;
    let error = dialled.expect_err("there was no room");
    assert!(matches!(error.kind, ErrorKind::Overloaded | ErrorKind::Unreachable), "{error:?}");
    let (mut device, mut relay) = rig.open(1, "print").await;
    say(&mut relay, ToDevice::Header("<Job/>".into())).await;
    assert_eq!(heard_by_device(&mut device).await, ToDevice::Header("<Job/>".into()));
}

/// The device learns that its credential is not accepted, and nobody knocks.
pub async fn a_wrong_token_opens_none<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let mut options = rig.options(1, "print");
    options.token = Secret::new("something else");
    let connector = Arc::clone(&rig.running.connector);
    let error = tokio::select! {
        dialled = in_time("an answer", connector.channel(options)) => dialled.expect_err("a wrong token was let in"),
        _ = rig.knock() => panic!("a wrong token knocked"),
    };
    assert_eq!(error.kind, ErrorKind::Unauthenticated, "{error}");
}

/// Everything that either side can say arrives, whole and in order.
pub async fn in_order_both_ways<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let (device, relay) = rig.open(1, "print").await;
    let header = format!("<Job><Name>{}</Name></Job>", "x".repeat(60_000));
    let mut down = vec![ToDevice::Header(header.into())];
    down.extend((1..200).map(|n| ToDevice::Data(bytes(n * 331 % Sending::PIECE + 1))));
    down.push(ToDevice::Data(bytes(Sending::PIECE)));
    down.push(ToDevice::End(Digest::of(b"all of it")));
    down.push(ToDevice::Close);
    let mut up = vec![ToRelay::Credit { from: Some(7), bytes: u64::MAX }];
    up.extend((0..150).map(|n| ToRelay::Credit { from: None, bytes: n }));
    up.extend((0..50).map(|n| ToRelay::Progress(Progress::new(n).with_note("page <1> & 'two'"))));
    up.push(ToRelay::Error { status: Status::DeviceError, words: "paper jam".into() });
    up.push(ToRelay::Done { version: Some("7".into()) });
    up.push(ToRelay::Close);
    let DeviceChannel { sender: mut device_says, receiver: mut device_hears } = device;
    let RelayChannel { sender: mut relay_says, receiver: mut relay_hears } = relay;
    let all = async {
        tokio::join!(
            async {
                for message in down.clone() {
                    relay_says.send(message).await.expect("the relay may speak");
                }
            },
            async {
                for message in up.clone() {
                    device_says.send(message).await.expect("the device may speak");
                }
            },
            async {
                for message in &down {
                    assert_eq!(
                        device_hears.receive().await.expect("the channel holds").as_ref(),
                        Some(message)
                    );
                }
            },
            async {
                for message in &up {
                    assert_eq!(
                        relay_hears.receive().await.expect("the channel holds").as_ref(),
                        Some(message)
                    );
                }
            },
        );
    };
    in_time("everything", all).await;
}

/// A device that takes nothing holds the relay up, within a bound, and gets everything once it does.
pub async fn a_slow_device_blocks_the_relay_within_a_bound<H: Harness>(harness: &H) {
    const PIECES: usize = 1_000;
    let Some(mut rig) = Rig::start(harness).await else { return };
    let (mut device, mut relay) = rig.open(1, "print").await;
    say(&mut relay, ToDevice::Header("<Job/>".into())).await;
    assert_eq!(heard_by_device(&mut device).await, ToDevice::Header("<Job/>".into()));
    let piece = bytes(Sending::PIECE);
    let taken = AtomicUsize::new(0);
    let mut sending = pin!(async {
        for _ in 0..PIECES {
            relay.sender.send(ToDevice::Data(piece.clone())).await.expect("the relay may speak");
            taken.fetch_add(1, Ordering::Relaxed);
        }
    });
    loop {
        let before = taken.load(Ordering::Relaxed);
        tokio::select! {
            () = &mut sending => panic!("{PIECES} pieces were taken towards a device that takes nothing"),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        let now = taken.load(Ordering::Relaxed);
        assert!(now * Sending::PIECE <= BOUND, "{now} pieces were taken towards a device that takes nothing");
        if now == before {
            break;
        }
    }
    let receiving = async {
        for _ in 0..PIECES {
            assert_eq!(heard_by_device(&mut device).await, ToDevice::Data(piece.clone()));
        }
    };
    in_time("everything", async { tokio::join!(sending, receiving) }).await;
}

/// A cut is an error at both ends, and not an end.
pub async fn a_cut_is_an_error_at_both_ends<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let (mut device, mut relay) = rig.open(1, "print").await;
    say(&mut relay, ToDevice::Header("<Job/>".into())).await;
    heard_by_device(&mut device).await;
    harness.cut(&rig.running.guard, &rig.name()).await;
    let error =
        in_time("the device learns it", device.receiver.receive()).await.expect_err("no end in order");
    assert_eq!(error.kind, ErrorKind::Interrupted, "{error}");
    let error = in_time("the relay learns it", relay.receiver.receive()).await.expect_err("no end in order");
    assert_eq!(error.kind, ErrorKind::Interrupted, "{error}");
}

/// The device's close is seen as one, after everything that it said.
pub async fn closed_by_the_device<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let (mut device, mut relay) = rig.open(1, "print").await;
    tell(&mut device, ToRelay::Done { version: None }).await;
    let closing = in_time("closing is bounded in time", device.sender.close());
    let hearing = async {
        assert_eq!(heard_by_relay(&mut relay).await, ToRelay::Done { version: None });
        let end = in_time("the relay hears the end", relay.receiver.receive()).await;
        assert_eq!(end.expect("the end is in order"), None);
    };
    tokio::join!(closing, hearing);
}

/// The relay's close is seen as one, after everything that it said.
pub async fn closed_by_the_relay<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let (mut device, mut relay) = rig.open(1, "print").await;
    say(&mut relay, ToDevice::Header("<Job/>".into())).await;
    let closing = in_time("closing is bounded in time", relay.sender.close());
    let hearing = async {
        assert_eq!(heard_by_device(&mut device).await, ToDevice::Header("<Job/>".into()));
        let end = in_time("the device hears the end", device.receiver.receive()).await;
        assert_eq!(end.expect("the end is in order"), None);
    };
    tokio::join!(closing, hearing);
}

/// What is closed takes nothing more, at either end.
pub async fn nothing_can_be_sent_afterwards<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let (mut device, mut relay) = rig.open(1, "print").await;
    let hearing = in_time("the relay hears the end", relay.receiver.receive());
    let ((), end) = tokio::join!(in_time("closing is bounded in time", device.sender.close()), hearing);
    assert_eq!(end.expect("the end is in order"), None);
    drop(relay.receiver);
    let sent = in_time("an answer", device.sender.send(ToRelay::Done { version: None })).await;
    assert_eq!(sent.expect_err("this end closed it").kind, ErrorKind::Closed);
    drop(device);
    let sent = in_time("an answer", relay.sender.send(ToDevice::Close)).await;
    assert_eq!(sent.expect_err("the other end closed it").kind, ErrorKind::Closed);
}

/// An end that is dropped without a close is seen as a break.
pub async fn dropped_without_close<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let (device, mut relay) = rig.open(1, "print").await;
    drop(device);
    in_time("the relay learns it", relay.receiver.receive()).await.expect_err("no end in order");
    let (mut device, relay) = rig.open(2, "print").await;
    drop(relay);
    in_time("the device learns it", device.receiver.receive()).await.expect_err("no end in order");
}

/// A device that gives up on opening leaves no channel behind: the relay's end breaks.
pub async fn a_dropped_open_leaves_no_channel<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let connector = Arc::clone(&rig.running.connector);
    let options = rig.options(1, "print");
    let knock = tokio::select! {
        _ = connector.channel(options) => panic!("nobody let it in"),
        knock = rig.knock() => knock,
    };
    let opened = in_time("the relay learns it", async {
        let mut channel = (knock.handshake)(Some(app("print"))).await?;
        channel.receiver.receive().await
    });
    opened.await.expect_err("there is nobody at the other end");
}

/// Nobody lets the device in: it gives up at its deadline.
pub async fn the_deadline_holds<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let mut options = rig.options(1, "print");
    options.deadline = (tokio::time::Instant::now() + Duration::from_millis(700)).into_std();
    let connector = Arc::clone(&rig.running.connector);
    let unanswered = async {
        let knock = rig.knock().await;
        tokio::time::sleep(PATIENCE).await;
        drop(knock);
    };
    let error = tokio::select! {
        dialled = tokio::time::timeout(Duration::from_secs(10), connector.channel(options)) => {
            dialled.expect("it ends at its deadline").expect_err("nobody let it in")
        }
        () = unanswered => panic!("it does not end at its deadline"),
    };
    assert!(matches!(error.kind, ErrorKind::TimedOut | ErrorKind::Unreachable), "{error:?}");
}

/// Several channels of one device, at once: each hears what was said on it.
pub async fn several_do_not_mix<H: Harness>(harness: &H) {
    let Some(mut rig) = Rig::start(harness).await else { return };
    let mut channels = Vec::new();
    for (job, name) in ["print", "print", "address", "scan"].into_iter().enumerate() {
        channels.push(rig.open(job, name).await);
    }
    for round in 0..20 {
        let header = |job| ToDevice::Header(format!("<Job>{job}</Job>").into());
        let data = |job| ToDevice::Data(vec![job as u8; round * 100].into());
        let credit = |job| ToRelay::Credit { from: None, bytes: (round * 10 + job) as u64 };
        for (job, (device, relay)) in channels.iter_mut().enumerate() {
            say(relay, if round == 0 { header(job) } else { data(job) }).await;
            tell(device, credit(job)).await;
        }
        for (job, (device, relay)) in channels.iter_mut().enumerate().rev() {
            assert_eq!(heard_by_device(device).await, if round == 0 { header(job) } else { data(job) });
            assert_eq!(heard_by_relay(relay).await, credit(job));
        }
    }
}
