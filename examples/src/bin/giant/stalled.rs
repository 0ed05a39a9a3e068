//! A device that stops reading while 64 MiB are asked of it: what the relay keeps in memory, what its callers are told,
//! and whether the others notice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use server_sdk::{Body, Client, JobStream, Outcome, PrintJob};
use tokio::{
    runtime::Runtime,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    device::{Socket, job_id, request_id},
    document::Document,
    report::{Row, Times, median},
    site::{Programs, Site, words},
};

/// What is asked of a device that does not read.
const ASKED: u64 = 64 << 20;
/// The same in requests with the largest body that a request to a device may have.
const BODY: usize = 128 << 10;
const REQUESTS: usize = (ASKED / BODY as u64) as usize;
/// What the stalled device's kernel keeps for it.
const WINDOW: u32 = 64 << 10;
/// How long the relay's callers wait for an answer.
const WAIT: Duration = Duration::from_secs(1);
/// The others, and who calls them.
const OTHERS: usize = 16;
const CALLERS: usize = 4;
/// Between two calls of a caller: the relay is busy, and not at its end, where every call would wait for every other.
const PAUSE: Duration = Duration::from_millis(1);
/// After a round: what it left is over before the next begins.
const REST: Duration = Duration::from_millis(300);
/// Longer than nothing comes on a connection that has something.
const QUIET: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// No stalled device.
    Calm,
    /// Requests to a device that reads nothing.
    Requests,
    /// A document for a device that opened the app, allowed all of it, and reads nothing.
    Document,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Calm, Self::Requests, Self::Document];
}

/// One round.
#[derive(Debug)]
struct Round {
    kind: Kind,
    others: Times,
    /// Of the relay's memory, in MiB.
    growth: f64,
    told: Told,
}

/// What callers were told: how it is called, and after how long.
type Told = BTreeMap<String, Vec<Duration>>;

pub(crate) async fn noticed(programs: &Programs, rounds: usize, time: Duration) -> Result<Vec<Row>, String> {
    let site = Arc::new(Site::new(programs, "stalled").await?);
    let aside = Aside::new()?;
    let mut others = JoinSet::new();
    for n in 0..OTHERS {
        let id = format!("device-{n}");
        let token = site.enrol(&id).await?;
        others.spawn(Socket::open(site.address, "/ws", "control", &token, None).await?.answer());
    }
    call_others(&site.service, time).await?;
    let mut all = Vec::new();
    for number in 0..rounds {
        // Each kind comes first in turn: what the machine does over time falls on all of them.
        for n in 0..Kind::ALL.len() {
            let kind = Kind::ALL[(n + number) % Kind::ALL.len()];
            let round = round(&site, &aside, kind, number, time).await?;
            eprintln!(
                "stalled, round {}: {kind:?}: others p50 {:.2} ms, p99 {:.2} ms of {}; relay +{:.1} MiB",
                number + 1,
                round.others.at(0.5),
                round.others.at(0.99),
                round.others.count(),
                round.growth,
            );
            all.push(round);
            sleep(REST).await;
        }
    }
    if let Some(ended) = others.try_join_next() {
        return Err(format!("one of the others is gone: {ended:?}"));
    }
    Ok(rows(&all))
}

fn rows(rounds: &[Round]) -> Vec<Row> {
    let of = |kind| rounds.iter().filter(move |round| round.kind == kind);
    let p99 = |kind| median(of(kind).map(|round| round.others.at(0.99)));
    // Round by round: what the machine does meanwhile falls on both alike.
    let ratio = |kind| {
        let pairs = of(kind).zip(of(Kind::Calm));
        median(pairs.map(|(with, without)| with.others.at(0.99) / without.others.at(0.99)))
    };
    let most = |kind| of(kind).map(|round| round.growth).fold(0.0, f64::max);
    let row = |name: &str, unit| Row::new(format!("stalled: {name}"), unit);
    let mut rows = vec![
        row("others, p99, without it", "ms").value(p99(Kind::Calm)),
        row("others, p99, while it is sent requests", "ms").value(p99(Kind::Requests)),
        row("others, p99, while it is sent a document", "ms").value(p99(Kind::Document)),
        row("others, p99, with requests / without it", "×").value(ratio(Kind::Requests)).at_most(1.2),
        row("others, p99, with a document / without it", "×").value(ratio(Kind::Document)).at_most(1.2),
        row("relay's memory, growth without it", "MiB").value(most(Kind::Calm)),
        row("relay's memory, growth by requests", "MiB").value(most(Kind::Requests)).at_most(MAX_BY_REQUESTS),
        row("relay's memory, growth by a document", "MiB")
            .value(most(Kind::Document))
            .at_most(MAX_BY_DOCUMENT),
    ];
    let mut told = BTreeMap::<(Kind, &str), Vec<Duration>>::new();
    for round in rounds {
        for (what, times) in &round.told {
            told.entry((round.kind, what)).or_default().extend(times);
        }
    }
    for ((_, what), times) in told {
        let times = Times::new(times);
        rows.push(row(&format!("told {what}"), "").value(times.count() as f64));
        rows.push(row(&format!("told {what}, after at most"), "ms").value(times.at(1.0)));
    }
    rows
}

/// 64 requests to one device may be in flight (B6): 8 MiB of bodies. The allocator keeps for a while what they grew in.
const MAX_BY_REQUESTS: f64 = 32.0;
/// Of a document 64 KiB are in memory at either end of its file (B4), and a few pieces on their way.
const MAX_BY_DOCUMENT: f64 = 8.0;

async fn round(
    site: &Arc<Site>,
    aside: &Aside,
    kind: Kind,
    number: usize,
    time: Duration,
) -> Result<Round, String> {
    let before = site.relay.resident()?;
    site.relay.forget_peak()?;
    let device = format!("stalled-{kind:?}-{number}");
    let asking = match kind {
        Kind::Calm => None,
        Kind::Requests => Some(aside.run(ask_requests(Arc::clone(site), device, time))),
        Kind::Document => Some(aside.run(ask_document(Arc::clone(site), device, time))),
    };
    let others = call_others(&site.service, time).await?;
    let told = match asking {
        Some(asking) => asking.await.map_err(|error| error.to_string())??,
        None => Told::new(),
    };
    let growth = site.relay.peak()? - before;
    Ok(Round { kind, others, growth, told })
}

/// A thread for whoever asks the stalled device: they are not to keep those who are timed from their turn.
struct Aside(Option<Runtime>);

impl Aside {
    fn new() -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self(Some(runtime.map_err(|error| error.to_string())?)))
    }

    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        match &self.0 {
            Some(runtime) => runtime.spawn(work),
            None => tokio::spawn(work),
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn ask_requests(site: Arc<Site>, device: String, time: Duration) -> Result<Told, String> {
    let token = site.enrol(&device).await?;
    let mut socket = Socket::open(site.address, "/ws", "control", &token, Some(WINDOW)).await?;
    let answers = requests(&site.service, &device, time).await?;
    is_true(answers, &socket.catch_up(QUIET).await)
}

async fn ask_document(site: Arc<Site>, device: String, time: Duration) -> Result<Told, String> {
    let mut asked = document(&site, &device, time).await?;
    sleep_until(asked.since + time).await;
    asked.still_waits().await
}

/// Calls the others for a while.
async fn call_others(service: &Client, time: Duration) -> Result<Times, String> {
    let until = Instant::now() + time;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let service = service.clone();
        callers.spawn(async move {
            let (mut times, mut n) = (Vec::new(), caller);
            while Instant::now() < until {
                let start = Instant::now();
                service.get(format!("device-{}", n % OTHERS), "level").await.map_err(words)?;
                times.push(start.elapsed());
                n += CALLERS + 1;
                sleep(PAUSE).await;
            }
            Ok::<_, String>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(caller) = callers.join_next().await {
        times.extend(caller.map_err(|error| error.to_string())??);
    }
    Ok(Times::new(times))
}

/// What one caller was told.
#[derive(Debug)]
struct Answer {
    words: String,
    outcome: Outcome,
    id: Option<String>,
    took: Duration,
}

/// Asks `device` for [`ASKED`] bytes in [`REQUESTS`] requests, evenly over a while.
async fn requests(service: &Client, device: &str, time: Duration) -> Result<Vec<Answer>, String> {
    let (service, body, start) =
        (service.with_wait(WAIT), Body::new("application/octet-stream", vec![7; BODY]), Instant::now());
    let device: Arc<str> = device.into();
    let mut asking = JoinSet::new();
    for n in 0..REQUESTS {
        let (service, body, device) = (service.clone(), body.clone(), device.clone());
        asking.spawn(async move {
            sleep_until(start + time.mul_f64(n as f64 / REQUESTS as f64)).await;
            let start = Instant::now();
            let Err(error) = service.set(&*device, "level", body).await else {
                return Err("a device that reads nothing answered".to_owned());
            };
            let (Some(outcome), Some(status), Some(code)) = (error.outcome(), error.status(), error.code())
            else {
                return Err(words(error));
            };
            let words = format!("{status} {code}, {}", outcome.as_str());
            let id = error.request_id().map(ToString::to_string);
            Ok(Answer { words, outcome, id, took: start.elapsed() })
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = asking.join_next().await {
        answers.push(answer.map_err(|error| error.to_string())??);
    }
    Ok(answers)
}

/// What the device finds when it reads on is what callers were told it may have, and nothing else.
fn is_true(answers: Vec<Answer>, found: &[String]) -> Result<Told, String> {
    let found: BTreeSet<_> = found.iter().filter_map(|message| request_id(message)).collect();
    let sent = |answer: &&Answer| !answer.outcome.device_has_not_acted();
    let may_have: BTreeSet<_> =
        answers.iter().filter(sent).filter_map(|answer| answer.id.as_deref()).collect();
    if found.is_empty() || !found.is_subset(&may_have) {
        let others: Vec<_> = found.difference(&may_have).collect();
        return Err(format!("the device has {} requests, and {others:?} were called unsent", found.len()));
    }
    let mut told = Told::new();
    for answer in answers {
        told.entry(answer.words).or_default().push(answer.took);
    }
    Ok(told)
}

/// A document on its way to a device that does not read.
struct Asked {
    job: JobStream,
    since: Instant,
    _control: Socket,
    _channel: Socket,
}

/// Asks `device` to print [`ASKED`] bytes: it opens the app, allows all of it, and reads nothing.
async fn document(site: &Site, device: &str, over: Duration) -> Result<Asked, String> {
    let token = site.enrol(device).await?;
    site.register(device, &token).await?;
    let mut control = Socket::open(site.address, "/ws", "control", &token, Some(WINDOW)).await?;
    let data = Document::new(ASKED, over).data;
    let since = Instant::now();
    let printing = site.service.print(device, PrintJob::new().job_name("Atlas")).map_err(words)?;
    let opened = async {
        loop {
            let message = control.receive().await.map_err(|error| error.to_string())?;
            let Some(job) = job_id(&message) else { continue };
            let path = format!("/ws/print?id={job}");
            let mut channel = Socket::open(site.address, &path, "print", &token, Some(WINDOW)).await?;
            let credit = format!("<credit xmlns='urn:relay:1' from='0' bytes='{ASKED}'/>");
            channel.send(&credit).await.map_err(|error| error.to_string())?;
            return Ok(channel);
        }
    };
    let (job, channel) = tokio::try_join!(async { printing.stream(data).await.map_err(words) }, opened)?;
    Ok(Asked { job, since, _control: control, _channel: channel })
}

impl Asked {
    /// After a round its caller still waits; then it does not want it any more.
    async fn still_waits(&mut self) -> Result<Told, String> {
        while let Ok(next) = timeout(QUIET, self.job.next()).await {
            let update = next.map_err(words)?.ok_or("the job of a device that does not read is over")?;
            if update.state.is_final() {
                return Err(format!("the job of a device that does not read is over: {update:?}"));
            }
        }
        let told = Told::from([("200, document taken, waits".to_owned(), vec![self.since.elapsed()])]);
        self.job.cancel().await.map_err(words)?;
        Ok(told)
    }
}

/// How a document for a device that does not read ends when nobody cancels it.
pub(crate) async fn end(programs: &Programs) -> Result<Vec<Row>, String> {
    let site = Site::new(programs, "end").await?;
    let mut asked = document(&site, "device", Duration::ZERO).await?;
    let error = match asked.job.finished().await {
        Ok(update) => return Err(format!("the job of a device that does not read ended as {update:?}")),
        Err(error) => error,
    };
    let (Some(code), Some(outcome)) = (error.code(), error.outcome()) else { return Err(words(error)) };
    let name = format!("stalled: job ends as {code}, {}, after", outcome.as_str());
    Ok(vec![Row::new(name, "s").value(asked.since.elapsed().as_secs_f64())])
}
