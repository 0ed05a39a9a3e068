//! Jobs end to end: a relay, a device, and TCP in between that breaks.

mod support;

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use relay_core::{
    Relay, Response,
    app::{Digest, JobState, MemorySource, Progress, Source, SourceError, ToDevice, ToRelay},
    auth::Secret,
    envelope::Envelope,
    error::ErrorKind,
    ids::{AppName, DeviceId, Method, ObjectId, RequestId},
    relay::{Job, JobCall},
    request::{Call, Request, Status},
    store::App,
    transport::{
        ChannelOptions, ConnectOptions, Connector, DeviceChannel, EndReason, Full, Inbound, Push, Started,
    },
};
use support::{
    ByName, Host, PATIENCE,
    channel::{device_hears, device_says},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use transport_ws::{
    WsConnector, WsManager, WsServerConfig, WsSettings,
    client::{Dial, Direct, Target},
    stream::BoxStream,
};

const WINDOW: u64 = 256 * 1024;

fn device() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

fn app() -> App {
    App { name: AppName::new("print").unwrap(), path: "/print".into(), port: None, protocol: "print".into() }
}

fn soon() -> std::time::Instant {
    (tokio::time::Instant::now() + PATIENCE).into_std()
}

fn document(bytes: usize) -> Bytes {
    let mut state = 0x2545_f491_u32;
    let word = |state: &mut u32| {
        *state ^= *state << 13;
        *state ^= *state >> 17;
        *state ^= *state << 5;
        *state
    };
    (0..bytes.div_ceil(4)).flat_map(|_| word(&mut state).to_le_bytes()).take(bytes).collect()
}

#[derive(Debug)]
struct Ears(mpsc::Sender<Envelope>);

impl Inbound for Ears {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        self.0.try_send(envelope).map_err(|error| Full(error.into_inner()))
    }
    fn ended(&self, _: EndReason) {}
}

/// A relay on loopback.
struct House {
    relay: Relay,
    manager: WsManager,
    host: Host,
}

impl House {
    async fn start(change: impl FnOnce(&mut WsServerConfig)) -> Self {
        let mut config = WsServerConfig::default();
        change(&mut config);
        let (manager, listener) = WsManager::new(config, Arc::new(ByName));
        let host = Host::start(manager.clone()).await;
        let relay = Relay::default();
        let serving = relay.clone();
        tokio::spawn(async move { serving.serve(Box::new(listener)).await });
        Self { relay, manager, host }
    }

    fn settings(&self) -> WsSettings {
        WsSettings::new(format!("ws://{}/ws", self.host.address))
    }

    /// A printer whose channels go over what `dial` makes.
    async fn printer(&self, dial: Arc<dyn Dial>) -> Printer {
        let control = WsConnector::with_settings(self.settings()).unwrap();
        let session = control.connect(ConnectOptions::new(device(), token(), soon())).await.unwrap();
        let (ears, got) = mpsc::channel(100);
        let mut push = session.push;
        push.start(Started::new(session.id, session.resumed, Arc::new(Ears(ears))));
        self.until("online", || self.relay.presence(&device()).is_some_and(|p| p.state.as_str() == "online"))
            .await;
        let mut settings = self.settings();
        settings.dial = dial;
        Printer { connector: WsConnector::with_settings(settings).unwrap(), got, push }
    }

    async fn until(&self, what: &str, reached: impl Fn() -> bool + Send + Sync) {
        let waiting = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not {what} in time"));
    }
}

fn token() -> Secret {
    Secret::new("printer-1")
}

struct Printer {
    connector: WsConnector,
    got: mpsc::Receiver<Envelope>,
    push: Box<dyn Push>,
}

impl Printer {
    async fn offered(&mut self) -> RequestId {
        match tokio::time::timeout(PATIENCE, self.got.recv()).await.expect("an offer in time").unwrap() {
            Envelope::Request { id, request, .. } => {
                assert_eq!(request.offer.as_ref().expect("a job").app, app().name);
                id
            }
            other => panic!("{other:?}"),
        }
    }

    fn options(id: &RequestId) -> ChannelOptions {
        ChannelOptions::new(device(), token(), id.clone(), app(), soon())
    }

    async fn open(&mut self, id: &RequestId) -> DeviceChannel {
        self.connector.channel(Self::options(id)).await.unwrap()
    }
}

/// What an app makes of a document, over as many channels as it takes.
#[derive(Default)]
struct Print {
    got: Vec<u8>,
    end: Option<Digest>,
    channels: usize,
}

impl Print {
    /// Goes on with the job over one channel, until that breaks; whether the job is done.
    async fn go_on(&mut self, channel: &mut DeviceChannel) -> bool {
        self.channels += 1;
        let from = self.got.len() as u64;
        let mut limit = from + WINDOW;
        if device_says(channel, ToRelay::Credit { from: Some(from), bytes: WINDOW }).await.is_err() {
            return false;
        }
        loop {
            match device_hears(channel).await {
                Ok(Some(ToDevice::Header(header))) => assert_eq!(&*header, "<PrintJobRequest/>"),
                Ok(Some(ToDevice::Data(data))) => {
                    self.got.extend_from_slice(&data);
                    let at = self.got.len() as u64;
                    assert!(at <= limit, "{at} is beyond the credit, which ends at {limit}");
                    if limit - at < WINDOW / 2 {
                        let bytes = at + WINDOW - limit;
                        limit += bytes;
                        if device_says(channel, ToRelay::Credit { from: None, bytes }).await.is_err() {
                            return false;
                        }
                    }
                }
                Ok(Some(ToDevice::End(end))) => {
                    self.end = Some(end);
                    if device_says(channel, ToRelay::Done { version: None }).await.is_err() {
                        return false;
                    }
                }
                Ok(Some(ToDevice::Close)) => {
                    channel.sender.close().await;
                    return true;
                }
                Ok(Some(other)) => panic!("{other:?}"),
                Ok(None) => return self.end.is_some(),
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Interrupted, "{error}");
                    return false;
                }
            }
        }
    }
}

fn call(source: impl Source) -> JobCall {
    let mut call = JobCall::new(device(), app(), Arc::new(source));
    call.header = Some("<PrintJobRequest/>".into());
    call
}

async fn finished(job: &mut Job) -> Result<Response, relay_core::outcome::RequestError> {
    tokio::time::timeout(PATIENCE * 2, job.finished()).await.expect("the job ends in time")
}

/// Cuts each connection after so many bytes of the relay's.
#[derive(Debug)]
struct CutAfter(std::sync::Mutex<VecDeque<u64>>);

#[async_trait]
impl Dial for CutAfter {
    async fn dial(&self, target: &Target) -> io::Result<BoxStream> {
        let stream = Direct.dial(target).await?;
        let left = self.0.lock().unwrap().pop_front();
        Ok(Box::pin(Cutting { stream, left: left.unwrap_or(u64::MAX) }))
    }
}

struct Cutting {
    stream: BoxStream,
    left: u64,
}

impl AsyncRead for Cutting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let max = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.remaining());
        let mut some = buffer.take(max);
        std::task::ready!(self.stream.as_mut().poll_read(cx, &mut some))?;
        let read = some.filled().len();
        // What the part was filled with is initialised in the whole.
        let filled = some.filled().to_vec();
        buffer.put_slice(&filled);
        self.left -= read as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Cutting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        self.stream.as_mut().poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

#[tokio::test]
async fn f3_f32_8_mib_arrive_whole_and_once_however_often_the_channel_is_cut() {
    const SIZE: usize = 8 * 1024 * 1024;
    let document = document(SIZE);
    // The answer's head has some 160 bytes: the first cuts are in it, in the header, and in a frame.
    let mut cuts: VecDeque<u64> = VecDeque::from([1, 50, 170, 200, 250, 16_500]);
    let mut seed = u64::from(std::process::id());
    println!("seed {seed}");
    for _ in 0..30 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        cuts.push_back(300 + (seed >> 33) % 600_000);
    }
    let expected = cuts.len();
    let house = House::start(|_| ()).await;
    let mut printer = house.printer(Arc::new(CutAfter(cuts.into()))).await;
    let mut job = house.relay.job(call(MemorySource::new(document.clone()))).unwrap();
    let id = printer.offered().await;
    let mut print = Print::default();
    let printing = async {
        let mut tries = 0;
        loop {
            tries += 1;
            match printer.connector.channel(Printer::options(&id)).await {
                Ok(mut channel) => {
                    if print.go_on(&mut channel).await {
                        break;
                    }
                }
                // Cut before there was a channel.
                Err(error) => assert_eq!(error.kind, ErrorKind::Unreachable, "{error}"),
            }
        }
        assert!(tries > expected / 2, "{tries} connections only");
    };
    tokio::time::timeout(PATIENCE * 3, printing).await.expect("it gets through");
    assert_eq!(finished(&mut job).await, Ok(Response::ok()));
    assert_eq!(print.end, Some(Digest::of(&document)));
    assert_eq!(Digest::of(&print.got), Digest::of(&document));
    assert_eq!(job.updates().borrow().state, JobState::Completed);
    house.until("closed", || house.manager.channels() == 0).await;
}

/// Data that is made as it is read, so that whoever keeps it is seen to.
#[derive(Debug)]
struct Endless {
    size: u64,
    read: Arc<AtomicU64>,
}

#[async_trait]
impl Source for Endless {
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes, SourceError> {
        let some = usize::try_from(self.size - offset.min(self.size)).unwrap_or(usize::MAX).min(max);
        self.read.fetch_max(offset + some as u64, Ordering::Relaxed);
        Ok(vec![7; some].into())
    }

    fn digest(&self) -> Option<Digest> {
        Some(Digest { bytes: self.size, sha256: [0; 32] })
    }
}

#[tokio::test]
async fn b5_a_device_that_stops_reading_costs_the_relay_no_more_than_a_window() {
    const SIZE: u64 = 64 * 1024 * 1024;
    let house = House::start(|config| config.channel.write_within = Duration::from_secs(1)).await;
    let mut printer = house.printer(Arc::new(Direct)).await;
    let read = Arc::new(AtomicU64::new(0));
    let job = house.relay.job(call(Endless { size: SIZE, read: read.clone() })).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    device_says(&mut channel, ToRelay::Credit { from: Some(0), bytes: SIZE }).await.unwrap();
    // It gives credit for all of it, and then takes nothing: the relay gives it up.
    house.until("under way", || read.load(Ordering::Relaxed) > 1024 * 1024).await;
    house.until("given up", || house.manager.channels() == 0).await;
    let taken = read.load(Ordering::Relaxed);
    assert!(
        taken < 12 * 1024 * 1024,
        "{taken} bytes were taken from the document for a device that takes nothing"
    );
    assert!(!job.updates().borrow().state.is_final(), "the job waits for the device to go on");
    // What had come is there, and then the break; the device goes on from there.
    let mut got = 0;
    let error = loop {
        match device_hears(&mut channel).await {
            Ok(Some(ToDevice::Data(data))) => got += data.len() as u64,
            Ok(Some(_)) => {}
            Ok(None) => panic!("no end in order"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::Interrupted);
    assert!(got <= taken);
    let mut channel = printer.open(&id).await;
    device_says(&mut channel, ToRelay::Credit { from: Some(got), bytes: SIZE }).await.unwrap();
    while got < SIZE {
        if let Some(ToDevice::Data(data)) = device_hears(&mut channel).await.unwrap() {
            got += data.len() as u64;
        }
    }
    assert!(matches!(device_hears(&mut channel).await, Ok(Some(ToDevice::End(end))) if end.bytes == SIZE));
}

#[tokio::test]
async fn b5_requests_on_the_session_stay_quick_while_a_document_flows() {
    const SIZE: u64 = 256 * 1024 * 1024;
    let house = House::start(|_| ()).await;
    let mut printer = house.printer(Arc::new(Direct)).await;
    let read = Arc::new(AtomicU64::new(0));
    let mut job = house.relay.job(call(Endless { size: SIZE, read: read.clone() })).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    let Printer { mut got, mut push, .. } = printer;
    tokio::spawn(async move {
        let mut at = 0;
        device_says(&mut channel, ToRelay::Credit { from: Some(0), bytes: WINDOW }).await?;
        while let Some(heard) = device_hears(&mut channel).await? {
            if let ToDevice::Data(data) = heard {
                at += data.len() as u64;
                let bytes = data.len() as u64;
                device_says(&mut channel, ToRelay::Credit { from: None, bytes }).await?;
                device_says(&mut channel, ToRelay::Progress(Progress::new(at))).await?;
            }
        }
        Ok::<_, relay_core::error::TransportError>(())
    });
    tokio::spawn(async move {
        while let Some(envelope) = got.recv().await {
            if let Envelope::Request { id, .. } = envelope {
                let answer = Envelope::Response { id, response: Response::ok(), acknowledge: true };
                let _ = push.push(&mut VecDeque::from([answer])).await;
            }
        }
    });
    house.until("under way", || read.load(Ordering::Relaxed) > 1024 * 1024).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let request = Request::new(device(), Method::get()).with_object(ObjectId::new("toner").unwrap());
        let start = tokio::time::Instant::now();
        house.relay.request(Call::new(request)).await.expect("the device answers");
        slowest = slowest.max(start.elapsed());
    }
    println!("slowest {slowest:?}, {} bytes meanwhile", read.load(Ordering::Relaxed));
    assert!(job.updates().borrow().state < JobState::Processing, "the document flowed all the while");
    // Generous: it is to tell quick from behind the document.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let updates = job.updates();
    assert!(updates.borrow().bytes > 0);
    drop(updates);
    let cancelled = tokio::time::timeout(Duration::from_millis(1), job.finished()).await;
    assert!(cancelled.is_err());
    drop(job);
    house.until("closed", || house.manager.channels() == 0).await;
}

#[tokio::test]
async fn t4_a_channel_is_for_the_jobs_device_and_app_alone() {
    let house = House::start(|_| ()).await;
    let mut printer = house.printer(Arc::new(Direct)).await;
    let job = house.relay.job(call(MemorySource::new(document(100)))).unwrap();
    let id = printer.offered().await;
    let mut foreign = Printer::options(&id);
    foreign.token = Secret::new("printer-2");
    let mut other_path = Printer::options(&id);
    other_path.app.path = "/address".into();
    let mut other_protocol = Printer::options(&id);
    other_protocol.app.protocol = "address".into();
    let mut forged = Printer::options(&id);
    forged.job = RequestId::new("forged").unwrap();
    let mut words = Vec::new();
    for options in [foreign, other_path, other_protocol, forged] {
        let error = printer.connector.channel(options).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Expired);
        words.push(transport_ws::client::relay_said(&error).cloned());
    }
    words.dedup();
    assert_eq!(words.len(), 1, "they cannot be told apart: {words:?}");
    assert_eq!(job.updates().borrow().state, JobState::Offered);
    assert_eq!(house.manager.channels(), 0);
}

#[tokio::test]
async fn a3_a_job_that_is_cancelled_closes_its_channel() {
    let house = House::start(|_| ()).await;
    let mut printer = house.printer(Arc::new(Direct)).await;
    let read = Arc::new(AtomicU64::new(0));
    let mut job = house.relay.job(call(Endless { size: 1 << 30, read })).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    assert!(job.opened().await.is_none());
    device_says(&mut channel, ToRelay::Credit { from: Some(0), bytes: WINDOW }).await.unwrap();
    assert!(matches!(device_hears(&mut channel).await, Ok(Some(ToDevice::Header(_)))));
    drop(job);
    while !matches!(device_hears(&mut channel).await, Ok(Some(ToDevice::Close))) {}
    channel.sender.close().await;
    house.until("closed", || house.manager.channels() == 0).await;
    let again = printer.connector.channel(Printer::options(&id)).await.unwrap_err();
    assert_eq!(again.kind, ErrorKind::Expired);
}

#[tokio::test]
async fn a3_an_error_that_arises_on_the_open_channel_is_the_answer() {
    let house = House::start(|_| ()).await;
    let mut printer = house.printer(Arc::new(Direct)).await;
    let mut job = house.relay.job(call(MemorySource::new(document(100_000)))).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    device_says(&mut channel, ToRelay::Credit { from: Some(0), bytes: 10 }).await.unwrap();
    let jam = ToRelay::Error { status: Status::DeviceError, words: "paper jam".into() };
    device_says(&mut channel, jam).await.unwrap();
    assert_eq!(finished(&mut job).await, Ok(Response::error(Status::DeviceError, "paper jam")));
    while !matches!(device_hears(&mut channel).await, Ok(Some(ToDevice::Close))) {}
    channel.sender.close().await;
    assert_eq!(device_hears(&mut channel).await.unwrap(), None);
}

#[tokio::test]
async fn a_device_may_say_done_and_close_in_one_breath() {
    let house = House::start(|_| ()).await;
    let mut printer = house.printer(Arc::new(Direct)).await;
    for _ in 0..20 {
        let read = Arc::new(AtomicU64::new(0));
        let mut job = house.relay.job(call(Endless { size: 1 << 30, read })).unwrap();
        let id = printer.offered().await;
        let mut channel = printer.open(&id).await;
        // While data is still on its way, so that the relay is about to say more.
        device_says(&mut channel, ToRelay::Credit { from: Some(0), bytes: 1 << 30 }).await.unwrap();
        for _ in 0..5 {
            device_hears(&mut channel).await.unwrap();
        }
        device_says(&mut channel, ToRelay::Done { version: None }).await.unwrap();
        channel.sender.close().await;
        assert_eq!(finished(&mut job).await, Ok(Response::ok()));
    }
}
