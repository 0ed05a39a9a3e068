//! A document of a gibibyte through the relay, its device's link cut on the way, and GETs to the same device meanwhile.

use std::{
    fs,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use examples::printer::mib;
use server_sdk::{JobState, PrintJob};
use sha2::{Digest, Sha256};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    document::Document,
    link::{Link, Seen},
    process::Process,
    report::{Row, Times},
    site::{Programs, Site, words},
};

const PRINTER: &str = "printer-1";
/// Between two GETs. They come one after the other: what is measured is what each waits for, not how many go.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the device may take to come online.
const ONLINE: Duration = Duration::from_secs(20);
/// How many GETs show what the same costs while nothing flows.
const CALM: usize = 500;

/// One GET: from when to when.
type Asked = (Instant, Instant);

/// A document of so many bytes, over one transport.
pub(crate) async fn printed(
    programs: &Programs,
    transport: &str,
    bytes: u64,
    cuts: u64,
) -> Result<Vec<Row>, String> {
    let site = Site::new(programs, transport).await?;
    let link = Link::new(site.address, (1..=cuts).map(|n| bytes / (cuts + 1) * n)).await?;
    let (url, pin) = (format!("http://{}", link.address), site.pin(PRINTER).await?);
    let out = site.folder().join("out");
    let arguments = ["--relay", &url, "--id", PRINTER, "--pin", &pin, "--transport", transport, "--out"];
    let arguments = [&arguments[..], &[out.to_str().ok_or("a folder whose name is not UTF-8")?]].concat();
    let mut printer = Process::start(&programs.printer, &arguments, &[], site.folder().join("printer.log"))?;
    timeout(ONLINE, printer.says("online")).await.map_err(|_| "the printer does not come online")??;

    let mut calm = Vec::with_capacity(CALM);
    for _ in 0..CALM {
        calm.push(get(&site).await?);
        sleep(PAUSE).await;
    }

    let (stop, stopped) = watch::channel(());
    let (printing, asking) =
        tokio::join!(async { print(&site, bytes).await.inspect(|_| drop(stop)) }, ask(&site, stopped));
    let (Printed { sha256, took }, asked) =
        (printing.map_err(|error| format!("{error}; {}", printer.said()))?, asking?);
    let seen = link.seen();
    check(&out, sha256, bytes)?;
    if seen.outages.len() as u64 != cuts {
        return Err(format!("{} cuts of {cuts}: {seen:?}", seen.outages.len()));
    }
    rows(transport, bytes, &seen, &calm, &asked, [site.relay.peak()?, printer.peak()?], took)
}

struct Printed {
    sha256: [u8; 32],
    took: Duration,
}

async fn print(site: &Site, bytes: u64) -> Result<Printed, String> {
    let start = Instant::now();
    let document = Document::new(bytes, Duration::ZERO);
    let job = PrintJob::new().user("ann").job_name("Atlas").content_type("application/pdf");
    let printing = site.service.print(PRINTER, job).map_err(words)?;
    let mut job = printing.stream(document.data).await.map_err(words)?;
    let end = job.finished().await.map_err(words)?;
    if end.state != JobState::Completed {
        return Err(format!("the job ended as {end:?}"));
    }
    let sha256 = document.sha256.await.ok().flatten().ok_or("the document was not read to its end")?;
    Ok(Printed { sha256, took: start.elapsed() })
}

async fn get(site: &Site) -> Result<Asked, String> {
    let start = Instant::now();
    site.service.get(PRINTER, mib::SYS_NAME).await.map_err(words)?;
    Ok((start, Instant::now()))
}

/// GETs, one after the other, until `stopped` has no sender.
async fn ask(site: &Site, stopped: watch::Receiver<()>) -> Result<Vec<Asked>, String> {
    let mut asked = Vec::new();
    while stopped.has_changed().is_ok() {
        asked.push(get(site).await?);
        sleep(PAUSE).await;
    }
    Ok(asked)
}

/// What lies in the printer's folder is the document, once.
fn check(out: &Path, sha256: [u8; 32], bytes: u64) -> Result<(), String> {
    let entries = fs::read_dir(out).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| format!("{}: {error}", out.display()))?;
    let [copy] = &entries[..] else { return Err(format!("not one copy: {entries:?}")) };
    let (copied, printed) =
        hash(&copy.path()).map_err(|error| format!("{}: {error}", copy.path().display()))?;
    if (copied, printed) != (bytes, sha256) {
        return Err(format!("what was printed, {copied} bytes, is not what was sent"));
    }
    Ok(())
}

/// Length and SHA-256 of a file.
fn hash(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let (mut file, mut hash, mut length) = (fs::File::open(path)?, Sha256::new(), 0);
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((length, hash.finalize().into())),
            read => {
                hash.update(&piece[..read]);
                length += read as u64;
            }
        }
    }
}

fn rows(
    transport: &str,
    bytes: u64,
    seen: &Seen,
    calm: &[Asked],
    asked: &[Asked],
    [relay, printer]: [f64; 2],
    took: Duration,
) -> Result<Vec<Row>, String> {
    let (Some(from), Some(to)) = (seen.from, seen.to) else { return Err("nothing flowed".into()) };
    let met = |(start, end): &Asked| seen.outages.iter().any(|(since, until)| start < until && end > since);
    let (mut while_it_flowed, mut cut_off) = (Vec::new(), Vec::new());
    for asked in asked.iter().filter(|(start, end)| *start < to && *end > from) {
        if met(asked) { &mut cut_off } else { &mut while_it_flowed }.push(*asked);
    }
    let all = [&while_it_flowed[..], &cut_off].concat();
    let times = |asked: &[Asked]| Times::new(asked.iter().map(|(start, end)| *end - *start));
    let (calm, flowing, cut_off) = (times(calm), times(&while_it_flowed), times(&cut_off));
    let out: Duration = seen.outages.iter().map(|(since, until)| *until - *since).sum();
    let flowed = (to - from).saturating_sub(out);
    let mib = bytes as f64 / f64::from(1 << 20);
    let row = |name: &str, unit| Row::new(format!("{transport}: {name}"), unit);
    Ok(vec![
        row("relay, most that was resident", "MiB").value(relay).at_most(64.0),
        row("printer, most that was resident", "MiB").value(printer).at_most(64.0),
        row("sent over the link, of the document", "×").value(seen.bytes as f64 / bytes as f64).at_most(1.05),
        row("GETs while it flows", "").value(flowing.count() as f64),
        row("GETs while it flows, p50", "ms").value(flowing.at(0.5)),
        row("GETs while it flows, p99", "ms").value(flowing.at(0.99)).at_most(50.0),
        row("GETs while it flows, longest", "ms").value(flowing.at(1.0)),
        row("those and the ones that met a cut, p99", "ms").value(times(&all).at(0.99)),
        row("GETs before it, p50", "ms").value(calm.at(0.5)),
        row("GETs before it, p99", "ms").value(calm.at(0.99)),
        row("cuts", "").value(seen.outages.len() as f64),
        row("GETs that met a cut", "").value(cut_off.count() as f64),
        row("GETs that met a cut, longest", "ms").value(cut_off.at(1.0)),
        row("connections that were cut", "").value(seen.cut as f64),
        row("longest outage", "s").value(
            seen.outages.iter().map(|(since, until)| (*until - *since).as_secs_f64()).fold(0.0, f64::max),
        ),
        row("document, while it flowed", "MiB/s").value(mib / flowed.as_secs_f64()),
        row("whole job, to the printer's word", "s").value(took.as_secs_f64()),
    ])
}
