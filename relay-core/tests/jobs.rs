//! Jobs over the in-memory transport: offers, channels with credit, breaks and resumption, ends.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use relay_core::{
    Relay, Response,
    app::{Digest, JobState, MemorySource, Progress, ToDevice, ToRelay},
    conformance::{Let, token},
    envelope::Envelope,
    error::ErrorKind,
    ids::{AppName, DeviceId, RequestId},
    memory::{self, MemoryConnector},
    outcome::{Outcome, RequestError},
    relay::{Job, JobCall},
    request::Status,
    store::App,
    transport::{
        ChannelOptions, ConnectOptions, Connector, DeviceChannel, EndReason, Full, Inbound, Push, Started,
    },
};
use tokio::sync::mpsc;

const DOCUMENT: usize = 100_000;

fn document() -> Bytes {
    (0..DOCUMENT).map(|n| (n * 31 % 251) as u8).collect()
}

fn device() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

fn app() -> App {
    App { name: AppName::new("print").unwrap(), path: "/print".into(), port: None, protocol: "print".into() }
}

fn call() -> JobCall {
    let mut call = JobCall::new(device(), app(), Arc::new(MemorySource::new(document())));
    call.header = Some("<PrintJobRequest/>".into());
    call
}

#[derive(Debug)]
struct Ears(mpsc::Sender<Envelope>);

impl Inbound for Ears {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        self.0.try_send(envelope).map_err(|error| Full(error.into_inner()))
    }
    fn ended(&self, _: EndReason) {}
}

struct Printer {
    connector: MemoryConnector,
    got: mpsc::Receiver<Envelope>,
    push: Box<dyn Push>,
}

fn soon() -> std::time::Instant {
    (tokio::time::Instant::now() + Duration::from_secs(10)).into_std()
}

impl Printer {
    async fn connect(connector: &MemoryConnector) -> Self {
        let session = connector.connect(ConnectOptions::new(device(), token(), soon())).await.unwrap();
        let (ears, got) = mpsc::channel(100);
        let mut push = session.push;
        push.start(Started::new(session.id, session.resumed, Arc::new(Ears(ears))));
        Self { connector: connector.clone(), got, push }
    }

    async fn offered(&mut self) -> RequestId {
        match self.got.recv().await.unwrap() {
            Envelope::Request { id, request, .. } => {
                assert_eq!(request.offer.as_ref().unwrap().app, app().name);
                id
            }
            other => panic!("{other:?}"),
        }
    }

    async fn say(&mut self, envelope: Envelope) {
        self.push.push(&mut VecDeque::from([envelope])).await.unwrap();
    }

    async fn open(&mut self, id: &RequestId) -> DeviceChannel {
        self.connector
            .channel(ChannelOptions::new(device(), token(), id.clone(), app(), soon()))
            .await
            .unwrap()
    }
}

async fn start() -> (Relay, Printer) {
    let (connector, listener) = memory::transport(Arc::new(Let));
    let relay = Relay::default();
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(Box::new(listener)).await });
    let printer = Printer::connect(&connector).await;
    while relay.presence(&device()).is_none_or(|presence| presence.state.as_str() != "online") {
        tokio::task::yield_now().await;
    }
    (relay, printer)
}

async fn hear(channel: &mut DeviceChannel) -> ToDevice {
    let heard = tokio::time::timeout(Duration::from_secs(10), channel.receiver.receive()).await;
    heard.expect("the relay says something").unwrap().expect("the channel is open")
}

async fn credit(channel: &mut DeviceChannel, from: Option<u64>, bytes: u64) {
    channel.sender.send(ToRelay::Credit { from, bytes }).await.unwrap();
}

/// Takes exactly `bytes` of data.
async fn take(channel: &mut DeviceChannel, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < bytes {
        match hear(channel).await {
            ToDevice::Data(data) => all.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all.len(), bytes, "no byte beyond the credit");
    all
}

async fn state(job: &Job, wanted: JobState) {
    let mut updates = job.updates();
    let reached =
        tokio::time::timeout(Duration::from_secs(10), updates.wait_for(|update| update.state >= wanted));
    assert_eq!(reached.await.expect("it gets there").unwrap().state, wanted);
}

#[tokio::test(start_paused = true)]
async fn a3_a_job_is_offered_opened_sent_and_done() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    assert_eq!(id, *job.id());
    let mut channel = printer.open(&id).await;
    assert!(job.opened().await.is_none());
    credit(&mut channel, Some(0), 30_000).await;
    assert_eq!(hear(&mut channel).await, ToDevice::Header("<PrintJobRequest/>".into()));
    let mut got = take(&mut channel, 30_000).await;
    credit(&mut channel, None, 1_000_000).await;
    got.extend(take(&mut channel, DOCUMENT - 30_000).await);
    assert_eq!(got, document());
    assert_eq!(hear(&mut channel).await, ToDevice::End(Digest::of(&document())));
    state(&job, JobState::Processing).await;
    let progress = Progress::new(5).with_note("page 1");
    channel.sender.send(ToRelay::Progress(progress)).await.unwrap();
    channel.sender.send(ToRelay::Done { version: None }).await.unwrap();
    assert_eq!(job.finished().await, Ok(Response::ok()));
    assert_eq!(hear(&mut channel).await, ToDevice::Close);
    let update = job.updates().borrow().clone();
    assert_eq!(
        (update.state, update.bytes, update.note.as_deref()),
        (JobState::Completed, DOCUMENT as u64, Some("page 1"))
    );
}

#[tokio::test(start_paused = true)]
async fn a3_a_device_in_its_error_state_says_so_instead_of_opening() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let response = Response::error(Status::DeviceError, "paper jam");
    printer.say(Envelope::Response { id, response: response.clone(), acknowledge: false }).await;
    assert_eq!(job.opened().await, Some(Ok(response)));
    assert_eq!(job.updates().borrow().state, JobState::Failed);
}

#[tokio::test(start_paused = true)]
async fn a4_a_channel_that_breaks_is_gone_on_with_from_where_the_device_says() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let mut got = Vec::new();
    for _ in 0..3 {
        let mut channel = printer.open(&id).await;
        credit(&mut channel, Some(got.len() as u64), 20_000).await;
        assert!(matches!(hear(&mut channel).await, ToDevice::Header(_)));
        got.extend(take(&mut channel, 20_000).await);
    }
    let mut channel = printer.open(&id).await;
    credit(&mut channel, Some(got.len() as u64), u64::MAX).await;
    assert!(matches!(hear(&mut channel).await, ToDevice::Header(_)));
    got.extend(take(&mut channel, DOCUMENT - 60_000).await);
    assert_eq!(got, document());
    channel.sender.send(ToRelay::Done { version: None }).await.unwrap();
    assert_eq!(job.finished().await, Ok(Response::ok()));
}

#[tokio::test(start_paused = true)]
async fn f32_a_device_that_comes_back_without_memory_is_offered_the_job_again() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    credit(&mut channel, Some(0), 10).await;
    state(&job, JobState::Sending).await;
    let connector = printer.connector.clone();
    connector.cut(&device());
    drop((printer, channel));
    let mut printer = Printer::connect(&connector).await;
    assert_eq!(printer.offered().await, id);
    let mut channel = printer.open(&id).await;
    credit(&mut channel, Some(DOCUMENT as u64), 0).await;
    assert!(matches!(hear(&mut channel).await, ToDevice::Header(_)));
    assert_eq!(hear(&mut channel).await, ToDevice::End(Digest::of(&document())), "it has all of it already");
    channel.sender.send(ToRelay::Done { version: None }).await.unwrap();
    assert_eq!(job.finished().await, Ok(Response::ok()));
}

#[tokio::test(start_paused = true)]
async fn a3_a_device_that_says_nothing_of_its_job_fails_it_and_one_that_does_keeps_it() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        channel.sender.send(ToRelay::Progress(Progress::new(0))).await.unwrap();
    }
    assert!(!job.updates().borrow().state.is_final());
    let end = job.finished().await;
    assert_eq!(end, Err(RequestError::DeviceTimeout { received: true }));
    assert_eq!(hear(&mut channel).await, ToDevice::Close);
}

#[tokio::test(start_paused = true)]
async fn a4_a_device_is_not_blamed_for_data_that_is_late() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        job.awaits_data();
    }
    channel.sender.send(ToRelay::Done { version: None }).await.unwrap();
    assert_eq!(job.finished().await, Ok(Response::ok()));
}

#[tokio::test(start_paused = true)]
async fn f32_an_id_is_one_job_and_a_second_one_leaves_the_first_alone() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let mut again = call();
    again.id = Some(id.clone());
    assert_eq!(relay.job(again).unwrap_err().error.outcome(), Outcome::Refused);
    assert_eq!(relay.in_flight(), 1);
    let mut channel = printer.open(&id).await;
    channel.sender.send(ToRelay::Done { version: None }).await.unwrap();
    assert_eq!(job.finished().await, Ok(Response::ok()));
}

#[tokio::test(start_paused = true)]
async fn a4_a_job_that_is_dropped_is_cancelled_and_the_device_is_told() {
    let (relay, mut printer) = start().await;
    let job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    state(&job, JobState::Accepted).await;
    drop(job);
    assert_eq!(hear(&mut channel).await, ToDevice::Close);
    assert_eq!(printer.got.recv().await, Some(Envelope::Cancel { id: id.clone() }));
    let options = ChannelOptions::new(device(), token(), id, app(), soon());
    let again = printer.connector.channel(options).await.unwrap_err();
    assert_eq!(again.kind, ErrorKind::Expired);
    assert_eq!(relay.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn t4_a_channel_is_for_the_jobs_device_and_app_alone() {
    let (relay, mut printer) = start().await;
    let job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let other = DeviceId::new("printer-2").unwrap();
    let wrong_path = App { path: "/address".into(), ..app() };
    let wrong_protocol = App { protocol: "address".into(), ..app() };
    for (device, app) in [(other.clone(), app()), (device(), wrong_path), (device(), wrong_protocol)] {
        let options = ChannelOptions::new(device, token(), id.clone(), app, soon());
        assert_eq!(printer.connector.channel(options).await.unwrap_err().kind, ErrorKind::Expired);
    }
    assert!(relay.job_data(&other, &id).is_none());
    assert_eq!(job.updates().borrow().state, JobState::Offered);
}

#[tokio::test(start_paused = true)]
async fn t17_a_device_whose_credential_is_revoked_gets_no_more_of_its_jobs() {
    let (relay, mut printer) = start().await;
    let job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    credit(&mut channel, Some(0), 10).await;
    state(&job, JobState::Sending).await;
    relay.revoke(&DeviceId::new("printer-2").unwrap());
    credit(&mut channel, None, 10).await;
    assert!(matches!(hear(&mut channel).await, ToDevice::Header(_)));
    take(&mut channel, 20).await;
    relay.revoke(&device());
    // Not that the job is over: the channel is.
    assert_eq!(channel.receiver.receive().await.unwrap(), None);
    let mut again = printer.open(&id).await;
    credit(&mut again, Some(20), 10).await;
    assert!(matches!(hear(&mut again).await, ToDevice::Header(_)));
}

#[tokio::test(start_paused = true)]
async fn a3_a_device_may_say_its_last_word_and_go_while_data_is_on_its_way() {
    let (relay, mut printer) = start().await;
    let mut long = call();
    long.source = Arc::new(MemorySource::new(Bytes::from(vec![0; 1024 * 1024])));
    let mut job = relay.job(long).unwrap();
    let id = printer.offered().await;
    let mut channel = printer.open(&id).await;
    credit(&mut channel, Some(0), u64::MAX).await;
    // As much as fits is under way, and the relay waits to say more.
    state(&job, JobState::Sending).await;
    channel.sender.send(ToRelay::Done { version: None }).await.unwrap();
    channel.sender.close().await;
    drop(channel);
    assert_eq!(job.finished().await, Ok(Response::ok()));
}

#[tokio::test(start_paused = true)]
async fn a3_credit_beyond_the_end_or_without_an_offset_ends_the_job() {
    for (from, code) in [(Some(DOCUMENT as u64 + 1), "bad-channel"), (None, "bad-channel")] {
        let (relay, mut printer) = start().await;
        let mut job = relay.job(call()).unwrap();
        let id = printer.offered().await;
        let mut channel = printer.open(&id).await;
        credit(&mut channel, from, 10).await;
        let response = job.finished().await.unwrap();
        assert_eq!(response.status.as_str(), code);
    }
}

#[tokio::test(start_paused = true)]
async fn a7_a_device_without_channels_reads_the_data_beside_its_session() {
    let (relay, mut printer) = start().await;
    let mut job = relay.job(call()).unwrap();
    let id = printer.offered().await;
    let data = relay.job_data(&device(), &id).unwrap();
    assert!(job.opened().await.is_none());
    let mut got = Vec::new();
    while got.len() < DOCUMENT {
        got.extend_from_slice(&data.read(got.len() as u64, 16_384).await.unwrap());
    }
    assert_eq!(got, document());
    assert_eq!(data.digest(), Some(Digest::of(&document())));
    state(&job, JobState::Processing).await;
    printer.say(Envelope::Progress { id: id.clone(), progress: Progress::new(7).with_note("tray 2") }).await;
    printer.say(Envelope::Response { id, response: Response::ok(), acknowledge: true }).await;
    assert_eq!(job.finished().await, Ok(Response::ok()));
    assert_eq!(job.updates().borrow().note.as_deref(), Some("tray 2"));
}

#[tokio::test(start_paused = true)]
async fn q2_a_job_for_a_device_that_is_not_there_is_an_error_at_once() {
    let relay = Relay::default();
    let unknown = relay.job(call()).unwrap_err();
    assert_eq!(unknown.error.outcome(), Outcome::Unknown);
    relay.know(&device());
    assert_eq!(relay.job(call()).unwrap_err().error.outcome(), Outcome::Offline);
    assert_eq!(relay.in_flight(), 0);
}
