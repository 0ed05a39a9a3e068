//! Apps and their jobs: one app, over a transport with channels and over one without.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use device_sdk::{
    App, AppName, Builder, Device, Event, HandlerError, Job, JobEnd, Registration, RequestId, Response,
    Router, StartError,
};
use relay_core::{
    app::{self, Digest, JobState, MemorySource, SourceError, print::PrintTicket},
    relay::{Job as Offered, JobCall, State},
    request::Status,
    store,
};
use tokio::sync::{Semaphore, watch};

use crate::{
    links::{NoChannels, eventually},
    world::{World, device_id, toner, until},
};

const MIB: usize = 1024 * 1024;

fn document(bytes: usize) -> Bytes {
    (0..bytes).map(|n| (n * 31 % 251) as u8).collect()
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Channels,
    Http,
}

const WAYS: [Way; 2] = [Way::Channels, Way::Http];

impl Way {
    fn device(self, world: &World, app: App) -> Builder {
        let device = world.device(toner()).app(app);
        match self {
            Self::Channels => device,
            Self::Http => device.connector(Arc::new(NoChannels(world.clone()))),
        }
    }

    async fn start(self, world: &World, app: App) -> Device {
        let device = self.device(world, app).start().await.unwrap();
        device.online().await.unwrap();
        device
    }
}

/// A printer's spool folder, which outlives the printer's program, and what it printed.
#[derive(Debug, Clone, Default)]
struct Spool(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    parts: Mutex<HashMap<RequestId, Vec<u8>>>,
    printed: Mutex<Vec<(PrintTicket, Vec<u8>)>>,
    jammed: AtomicBool,
    /// How often the handler began.
    begun: AtomicUsize,
    /// How often it took something from the middle on.
    resumed: AtomicUsize,
    cancelled: AtomicUsize,
}

impl Spool {
    fn app(&self) -> App {
        let (spool, ready) = (self.clone(), self.clone());
        App::new("print", move |job| spool.clone().print(job)).ready(move || {
            match ready.0.jammed.load(Ordering::SeqCst) {
                true => Err(HandlerError::device_error("paper jam")),
                false => Ok(()),
            }
        })
    }

    async fn print(self, mut job: Job) -> Result<(), HandlerError> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        let had = self.0.parts.lock().unwrap().get(job.id()).cloned().unwrap_or_default();
        if job.resume_with(&mut &had[..]).await? > 0 {
            self.0.resumed.fetch_add(1, Ordering::SeqCst);
        }
        let ticket = job.ticket().await?;
        loop {
            match job.next().await {
                Ok(Some(bytes)) => {
                    let mut parts = self.0.parts.lock().unwrap();
                    let part = parts.entry(job.id().clone()).or_default();
                    part.extend_from_slice(&bytes);
                    job.progress(part.len() as u64, "printing");
                }
                Ok(None) => break,
                Err(error) => {
                    self.0.cancelled.fetch_add(1, Ordering::SeqCst);
                    return Err(error);
                }
            }
        }
        let whole = self.0.parts.lock().unwrap().remove(job.id()).unwrap_or_default();
        self.0.printed.lock().unwrap().push((ticket, whole));
        Ok(())
    }

    fn printed(&self) -> Vec<Vec<u8>> {
        self.0.printed.lock().unwrap().iter().map(|(_, bytes)| bytes.clone()).collect()
    }

    fn spooled(&self) -> usize {
        self.0.parts.lock().unwrap().values().map(Vec::len).sum()
    }
}

fn ticket() -> PrintTicket {
    let mut ticket = PrintTicket::new();
    (ticket.user, ticket.job_name) = (Some("ann".into()), Some("Minutes".into()));
    ticket
}

fn call(app: &str, document: Bytes) -> JobCall {
    let entry = store::App {
        name: AppName::new(app).unwrap(),
        path: format!("/{app}"),
        port: None,
        protocol: app.into(),
    };
    let mut call = JobCall::new(device_id(), entry, Arc::new(MemorySource::new(document)));
    call.header = Some(ticket().to_header());
    call
}

fn offer(world: &World, document: Bytes) -> Offered {
    world.relay().job(call("print", document)).unwrap()
}

async fn reach(job: &Offered, state: JobState) {
    let mut updates = job.updates();
    let reached = updates.wait_for(|update| update.state >= state);
    let reached = tokio::time::timeout(Duration::from_secs(3600), reached).await.expect("it gets there");
    assert_eq!(reached.unwrap().state, state);
}

/// A document that is still being sent.
#[derive(Debug, Clone)]
struct Source(Arc<(MemorySource, watch::Sender<usize>)>);

impl Source {
    /// `document`, of which so much is there.
    fn new(document: Bytes, there: usize) -> Self {
        Self(Arc::new((MemorySource::new(document), watch::Sender::new(there))))
    }

    fn let_go(&self, there: usize) {
        self.0.1.send_replace(there);
    }

    fn offer(&self, world: &World, id: Option<RequestId>) -> Offered {
        let mut call = call("print", Bytes::new());
        (call.source, call.id) = (Arc::new(self.clone()), id);
        world.relay().job(call).unwrap()
    }
}

#[async_trait]
impl app::Source for Source {
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes, SourceError> {
        let (source, there) = &*self.0;
        let total = source.digest().unwrap().bytes;
        let mut there = there.subscribe();
        let more = |there: &usize| max == 0 || *there as u64 > offset.min(total - 1);
        let there = *there.wait_for(more).await.unwrap();
        source.read(offset, max.min(there.saturating_sub(usize::try_from(offset).unwrap()))).await
    }

    fn digest(&self) -> Option<Digest> {
        let digest = self.0.0.digest()?;
        (*self.0.1.borrow() as u64 >= digest.bytes).then_some(digest)
    }
}

fn ended(event: &Event) -> bool {
    matches!(event, Event::JobEnded { .. })
}

#[tokio::test(start_paused = true)]
async fn a7_one_app_prints_the_same_over_channels_and_over_plain_http() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let device = way.start(&world, spool.app()).await;
        let mut events = device.events();
        for size in [0, 1, 300_000] {
            let mut job = offer(&world, document(size));
            assert_eq!(job.finished().await, Ok(Response::ok()), "{way:?} {size}");
            assert_eq!(job.updates().borrow().bytes, size as u64);
            assert_eq!(spool.printed().pop().unwrap(), document(size));
            let started = until(&mut events, |event| matches!(event, Event::JobStarted { .. })).await;
            let app = AppName::new("print").unwrap();
            assert_eq!(started, Event::JobStarted { id: job.id().clone(), app: app.clone() });
            let end = until(&mut events, ended).await;
            assert_eq!(end, Event::JobEnded { id: job.id().clone(), app, end: JobEnd::Done });
        }
        assert!(spool.0.printed.lock().unwrap().iter().all(|(known, _)| *known == ticket()));
        assert_eq!(spool.0.begun.load(Ordering::SeqCst), 3);
        let channels = world.count("channel");
        assert_eq!(channels > 0, matches!(way, Way::Channels), "{channels}");
        assert_eq!(world.count("job_data") > 0, matches!(way, Way::Http));
    }
}

#[tokio::test(start_paused = true)]
async fn a1_ten_apps_cost_one_session_and_no_channel_outlives_its_job() {
    let (world, spool) = (World::new(), Spool::default());
    let mut builder = Way::Channels.device(&world, spool.app());
    for n in 1..10 {
        builder = builder.app(App::new(format!("app-{n}"), |_| async { Ok(()) }));
    }
    let device = builder.start().await.unwrap();
    device.online().await.unwrap();
    assert_eq!((world.count("connect"), world.0.links.made()), (1, 0));
    let mut job = offer(&world, document(1000));
    job.finished().await.unwrap();
    eventually(|| world.0.links.open() == 0).await;
    assert_eq!(world.0.links.made(), 1);
    assert_eq!(world.count("connect"), 1);
}

#[tokio::test(start_paused = true)]
async fn a2_the_app_table_is_registered_by_itself_and_again() {
    let (world, spool) = (World::new(), Spool::default());
    let scan = App::new("Scan", |_| async { Ok(()) }).path("/s/can").port(8443).protocol("scan.v2");
    let device = Way::Channels.device(&world, spool.app()).app(scan).start().await.unwrap();
    device.online().await.unwrap();
    let table = || {
        let registered = world.0.registered.lock().unwrap();
        let apps = registered.as_ref().map(|registration| registration.apps.clone()).unwrap_or_default();
        let line =
            |app: &store::App| (app.name.to_string(), app.path.clone(), app.port, app.protocol.clone());
        apps.iter().map(line).collect::<Vec<_>>()
    };
    let wanted = [
        ("Scan".to_owned(), "/s/can".to_owned(), Some(8443), "scan.v2".to_owned()),
        ("print".to_owned(), "/print".to_owned(), None, "print".to_owned()),
    ];
    assert_eq!(table(), wanted);
    device.register(Registration::new().name("renamed")).await.unwrap();
    eventually(|| world.count("register renamed") == 1).await;
    assert_eq!(table(), wanted);
}

#[tokio::test(start_paused = true)]
async fn a2_an_app_that_cannot_be_is_refused_at_the_start() {
    let world = World::new();
    let app = || App::new("print", |_| async { Ok(()) });
    let wrong = [
        App::new("no name", |_| async { Ok(()) }),
        app().path("print"),
        app().path("/../print"),
        app().protocol("a b"),
        app().concurrency(0),
    ];
    for app in wrong {
        let words = format!("{app:?}");
        let refused = world.device(Router::new()).app(app).start().await;
        assert!(matches!(refused, Err(StartError::App { .. })), "{words}");
    }
    let twice =
        world.device(Router::new()).app(app()).app(App::new("PRINT", |_| async { Ok(()) })).start().await;
    assert!(matches!(twice, Err(StartError::App { .. })));
}

#[tokio::test(start_paused = true)]
async fn a3_a_jam_is_said_instead_of_opening() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let device = way.start(&world, spool.app()).await;
        let mut events = device.events();
        spool.0.jammed.store(true, Ordering::SeqCst);
        let mut job = offer(&world, document(1000));
        let jammed = Response::error(Status::DeviceError, "paper jam");
        assert_eq!(job.opened().await, Some(Ok(jammed)), "{way:?}");
        assert_eq!(world.count("channel") + world.count("job_data"), 0, "no byte moved");
        let Event::JobEnded { end: JobEnd::Failed { words, .. }, .. } = until(&mut events, ended).await
        else {
            panic!()
        };
        assert_eq!(&*words, "paper jam");
        spool.0.jammed.store(false, Ordering::SeqCst);
        assert_eq!(offer(&world, document(1000)).finished().await, Ok(Response::ok()));
    }
}

#[tokio::test(start_paused = true)]
async fn a3_an_app_that_is_not_in_the_table_is_refused() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let _device = way.start(&world, spool.app()).await;
        let mut job = world.relay().job(call("fax", document(10))).unwrap();
        let response = job.finished().await.unwrap();
        assert_eq!(response.status.as_str(), "unknown-app", "{way:?}");
        assert_eq!(world.count("channel") + world.count("job_data"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a3_an_error_in_the_middle_is_the_jobs_end_and_no_channel_stays() {
    for way in WAYS {
        let world = World::new();
        let app = App::new("print", |mut job: Job| async move {
            job.next().await?;
            Err::<(), _>(HandlerError::device_error("paper jam on page 2"))
        });
        let _device = way.start(&world, app).await;
        let mut job = offer(&world, document(MIB));
        let response = Response::error(Status::DeviceError, "paper jam on page 2");
        assert_eq!(job.finished().await, Ok(response), "{way:?}");
        eventually(|| world.0.links.open() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a3_a_handler_that_panics_costs_its_own_job_alone() {
    for way in WAYS {
        let world = World::new();
        let app = App::new("print", |mut job: Job| async move {
            let bytes = job.next().await?.unwrap_or_default();
            assert!(bytes.len() > 5, "too short");
            Ok("7")
        });
        let _device = way.start(&world, app).await;
        let panicked = offer(&world, document(1)).finished().await.unwrap();
        assert_eq!(panicked.status.as_str(), "handler-panicked");
        let done = offer(&world, document(10)).finished().await.unwrap();
        assert_eq!(done.body.unwrap().bytes, "7", "the version that the app ends with");
    }
}

#[tokio::test(start_paused = true)]
async fn a4_a_cancelled_job_is_told_to_its_handler_and_its_channel_closed() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let device = way.start(&world, spool.app()).await;
        let mut events = device.events();
        let slow = Source::new(document(MIB), 1000);
        let job = slow.offer(&world, None);
        reach(&job, JobState::Sending).await;
        drop(job);
        let Event::JobEnded { end, .. } = until(&mut events, ended).await else { panic!() };
        assert_eq!(end, JobEnd::Cancelled, "{way:?}");
        assert_eq!(spool.0.cancelled.load(Ordering::SeqCst), 1);
        eventually(|| world.0.links.open() == 0).await;
        assert!(spool.printed().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn f32_a_link_that_breaks_at_many_places_makes_one_whole_copy() {
    for way in WAYS {
        for break_after in [16_384, 40_000, 70_001, 333_333] {
            let (world, spool) = (World::new(), Spool::default());
            let _device = way.start(&world, spool.app()).await;
            world.0.links.break_after(Some(break_after));
            let mut job = offer(&world, document(MIB));
            assert_eq!(job.finished().await, Ok(Response::ok()), "{way:?} {break_after}");
            assert_eq!(spool.printed(), [document(MIB)], "{way:?} {break_after}");
            assert_eq!(world.0.links.bytes(), MIB, "nothing came twice");
            assert!(world.0.links.made() > MIB / break_after.max(100_000), "{}", world.0.links.made());
            assert_eq!(spool.0.begun.load(Ordering::SeqCst), 1, "the handler sees nothing of it");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f32_a_device_that_is_killed_goes_on_where_it_was_and_prints_once() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let source = Source::new(document(MIB), 100_000);
        let mut device = way.start(&world, spool.app()).await;
        let mut job = source.offer(&world, None);
        for kill_at in [100_000, 400_000, 900_000] {
            source.let_go(kill_at);
            eventually(|| spool.spooled() == kill_at).await;
            world.kill(device).await;
            device = way.start(&world, spool.app()).await;
        }
        source.let_go(MIB);
        assert_eq!(job.finished().await, Ok(Response::ok()), "{way:?}");
        assert_eq!(spool.printed(), [document(MIB)]);
        assert_eq!(spool.0.resumed.load(Ordering::SeqCst), 3);
        drop(device);
    }
}

#[tokio::test(start_paused = true)]
async fn f32_a_relay_that_is_killed_may_offer_the_job_again_under_its_id() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let source = Source::new(document(MIB), 300_000);
        let device = way.start(&world, spool.app()).await;
        let mut events = device.events();
        let job = source.offer(&world, None);
        eventually(|| spool.spooled() == 300_000).await;
        let id = job.id().clone();
        world.restart_relay();
        eventually(|| world.state().is_some_and(|state| state == State::Online)).await;
        // The new relay knows of no such job: the device gives it up, and does not hold that against it.
        let Event::JobEnded { end, .. } = until(&mut events, ended).await else { panic!() };
        assert_eq!(end, JobEnd::Cancelled, "{way:?}");
        source.let_go(MIB);
        let mut again = source.offer(&world, Some(id));
        assert_eq!(again.finished().await, Ok(Response::ok()));
        assert_eq!(spool.printed(), [document(MIB)]);
        assert_eq!(spool.0.resumed.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn f32_what_is_printed_already_is_done_at_once_and_not_printed_again() {
    for way in WAYS {
        let world = World::new();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        // On its disk from before it was started anew.
        let app = App::new("print", move |_: Job| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        });
        let _device = way.start(&world, app).await;
        let mut job = offer(&world, document(MIB));
        assert_eq!(job.finished().await, Ok(Response::ok()), "{way:?}");
        assert_eq!((asked.load(Ordering::SeqCst), world.0.links.bytes()), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn b4_a_handler_that_does_not_read_is_waited_for_and_little_is_fetched_for_it() {
    for way in WAYS {
        let world = World::new();
        let gate = Arc::new(Semaphore::new(0));
        let (spool, waits) = (Spool::default(), gate.clone());
        let held = spool.clone();
        let app = App::new("print", move |mut job: Job| {
            let (spool, gate) = (held.clone(), waits.clone());
            async move {
                let first = job.next().await?.unwrap_or_default();
                let _go = gate.acquire().await;
                let mut bytes = first.to_vec();
                job.copy_to(&mut bytes).await?;
                spool.0.printed.lock().unwrap().push((PrintTicket::new(), bytes));
                Ok(())
            }
        });
        let _device = way.start(&world, app).await;
        let mut job = offer(&world, document(4 * MIB));
        // Ten times what the relay waits for a word.
        tokio::time::sleep(Duration::from_secs(600)).await;
        let update = job.updates().borrow().clone();
        assert!(!update.state.is_final(), "{way:?}: it was called alive");
        assert!(world.0.links.bytes() <= 256 * 1024 + 32 * 1024, "{way:?}: {}", world.0.links.bytes());
        assert!(update.bytes <= 512 * 1024, "{way:?}: {}", update.bytes);
        gate.add_permits(1);
        assert_eq!(job.finished().await, Ok(Response::ok()));
        assert_eq!(spool.printed(), [document(4 * MIB)]);
    }
}

#[tokio::test(start_paused = true)]
async fn s5_a_job_at_work_takes_no_requests_place_and_the_next_one_waits_alive() {
    for way in WAYS {
        let world = World::new();
        let (gate, order) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (waits, notes) = (gate.clone(), order.clone());
        let app = App::new("print", move |job: Job| {
            let (gate, order) = (waits.clone(), notes.clone());
            async move {
                order.lock().unwrap().push(job.id().clone());
                gate.acquire().await.unwrap().forget();
                Ok(())
            }
        });
        let device = way.device(&world, app).concurrency(1).start().await.unwrap();
        device.online().await.unwrap();
        let mut jobs: Vec<_> = (0..17).map(|_| offer(&world, document(1000))).collect();
        reach(&jobs[16], JobState::Accepted).await;
        assert_eq!(world.get("toner").await.unwrap(), "ok 83");
        let turned_away = offer(&world, document(1000)).finished().await.unwrap();
        assert_eq!(turned_away.status.as_str(), "busy");
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(order.lock().unwrap().len(), 1, "a printer prints one at a time");
        let waiting = jobs[1].updates().borrow().note.clone();
        assert_eq!(waiting.as_deref(), Some("waiting for the jobs before it"));
        gate.add_permits(17);
        for job in &mut jobs {
            assert_eq!(job.finished().await, Ok(Response::ok()), "{way:?}");
        }
        let ids: Vec<_> = jobs.iter().map(|job| job.id().clone()).collect();
        assert_eq!(*order.lock().unwrap(), ids, "in the order in which they came");
    }
}

#[tokio::test(start_paused = true)]
async fn a3_a_job_that_jams_while_it_waits_is_refused_when_its_turn_comes() {
    let (world, spool) = (World::new(), Spool::default());
    let _device = Way::Channels.start(&world, spool.app()).await;
    let source = Source::new(document(1000), 10);
    let mut first = source.offer(&world, None);
    reach(&first, JobState::Sending).await;
    let mut second = offer(&world, document(10));
    reach(&second, JobState::Accepted).await;
    spool.0.jammed.store(true, Ordering::SeqCst);
    source.let_go(1000);
    assert_eq!(first.finished().await, Ok(Response::ok()));
    assert_eq!(second.finished().await, Ok(Response::error(Status::DeviceError, "paper jam")));
    assert_eq!(world.0.links.made(), 1);
}

#[tokio::test(start_paused = true)]
async fn a4_progress_is_passed_on_in_words_and_not_too_often() {
    for way in WAYS {
        let world = World::new();
        let app = App::new("print", |mut job: Job| async move {
            job.copy_to(&mut tokio::io::sink()).await?;
            for page in 1..=1000 {
                job.progress(page, &format!("page {page}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        });
        let device = way.start(&world, app).await;
        let mut events = device.events();
        let mut job = offer(&world, document(10_000));
        let mut said = 0;
        loop {
            match events.next().await.unwrap() {
                Event::JobProgress { progress, .. } => {
                    said += 1;
                    assert!(progress.note.unwrap().starts_with("page "));
                }
                Event::JobEnded { .. } => break,
                _ => {}
            }
        }
        assert!((90..=102).contains(&said), "{way:?}: {said}");
        assert_eq!(job.finished().await, Ok(Response::ok()));
        assert_eq!(job.updates().borrow().note.as_deref(), Some("page 1000"), "the last one in any case");
    }
}

#[tokio::test(start_paused = true)]
async fn k2_a_device_that_is_shut_down_leaves_its_jobs_to_be_gone_on_with() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let device = way.start(&world, spool.app()).await;
        let source = Source::new(document(MIB), 300_000);
        let mut job = source.offer(&world, None);
        eventually(|| spool.spooled() == 300_000).await;
        device.shutdown(Duration::from_secs(5)).await;
        assert_eq!(world.0.links.open(), 0);
        assert!(!job.updates().borrow().state.is_final(), "{way:?}");
        source.let_go(MIB);
        let _device = way.start(&world, spool.app()).await;
        assert_eq!(job.finished().await, Ok(Response::ok()));
        assert_eq!(spool.printed(), [document(MIB)]);
    }
}

#[tokio::test(start_paused = true)]
async fn k2_a_job_lets_a_shutdown_wait_for_it() {
    let (world, spool) = (World::new(), Spool::default());
    let device = Way::Channels.start(&world, spool.app()).await;
    let source = Source::new(document(MIB), 300_000);
    let mut job = source.offer(&world, None);
    eventually(|| spool.spooled() == 300_000).await;
    let leaving = tokio::spawn(async move { device.shutdown(Duration::from_secs(60)).await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    source.let_go(MIB);
    assert_eq!(job.finished().await, Ok(Response::ok()));
    leaving.await.unwrap();
    assert_eq!(spool.printed(), [document(MIB)]);
}

#[tokio::test(start_paused = true)]
async fn a4_a_job_whose_data_cannot_be_had_is_given_up_in_the_end() {
    for way in WAYS {
        let (world, spool) = (World::new(), Spool::default());
        let device = way.start(&world, spool.app()).await;
        let mut events = device.events();
        world.0.links.break_after(Some(0));
        let mut job = offer(&world, document(1000));
        let Event::JobEnded { end, .. } = until(&mut events, ended).await else { panic!() };
        assert_eq!(end, JobEnd::Cancelled, "{way:?}");
        assert!(job.finished().await.is_err());
        assert!(world.0.links.made() < 500, "{}", world.0.links.made());
    }
}
