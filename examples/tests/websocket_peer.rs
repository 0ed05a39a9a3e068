//! A WebSocket device by other hands: Python's `websockets`, told what docs/ say and no more, enrols, answers, prints with
//! credit, goes on where its connections broke, and comes back when it is told to.

#[path = "support/http.rs"]
mod http;
mod programs;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use programs::{BOUND, Program, Relay};
use relay_core::{Body, app::JobState, relay::State};
use serde_json::Value;
use server_sdk::{Client, JobStream, PrintJob};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};

const DEVICE: &str = "printer-1";
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const MIB: usize = 1024 * 1024;
const WINDOW: u64 = 256 * 1024;

/// What the device needs, as `./test websockets` installs it.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers/websockets/bin/python");
    assert!(
        python.exists(),
        "the peer is missing: run ./test websockets, which installs {}",
        python.display()
    );
    python
}

/// The only way from the device to the relay: a network that cuts what it is told to.
#[derive(Debug)]
struct Link {
    address: SocketAddr,
    upstream: watch::Sender<SocketAddr>,
    /// Counts up when control sessions are to be cut.
    cuts: watch::Sender<u32>,
    /// After how many bytes to the device the next channel is cut.
    cut_channel: Arc<Mutex<Option<u64>>>,
    times: Arc<Mutex<Times>>,
    accepting: JoinHandle<()>,
}

/// When connections of the device's began, and when the first control session ended.
#[derive(Debug, Default)]
struct Times {
    began: Vec<Instant>,
    ended: Option<Instant>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Link {
    async fn before(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (upstream, cuts) = (watch::Sender::new(relay), watch::Sender::new(0));
        let cut_channel = Arc::<Mutex<Option<u64>>>::default();
        let times = Arc::<Mutex<Times>>::default();
        let (relay, cut, channel) = (upstream.clone(), cuts.clone(), cut_channel.clone());
        let noting = times.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((device, _)) = listener.accept().await {
                noting.lock().unwrap().began.push(Instant::now());
                let carrying = carry(device, *relay.borrow(), cut.subscribe(), channel.clone());
                let times = noting.clone();
                connections.spawn(async move {
                    if carrying.await == Carried::Control {
                        times.lock().unwrap().ended.get_or_insert_with(Instant::now);
                    }
                });
            }
        });
        Self { address, upstream, cuts, cut_channel, times, accepting }
    }

    fn leads_to(&self, relay: SocketAddr) {
        self.upstream.send_replace(relay);
    }

    fn cut_control(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn cut_channel_after(&self, bytes: u64) {
        *self.cut_channel.lock().unwrap() = Some(bytes);
    }

    /// How long the device asked for nothing after its first control session.
    fn away(&self) -> Duration {
        let times = self.times.lock().unwrap();
        let ended = times.ended.expect("a session ended");
        let back = times.began.iter().find(|began| **began > ended).expect("the device came back");
        *back - ended
    }
}

/// What a connection was for.
#[derive(Debug, PartialEq, Eq)]
enum Carried {
    Control,
    Other,
}

async fn carry(
    mut device: TcpStream,
    relay: SocketAddr,
    mut cut: watch::Receiver<u32>,
    cut_channel: Arc<Mutex<Option<u64>>>,
) -> Carried {
    let Ok(mut relay) = TcpStream::connect(relay).await else { return Carried::Other };
    let (mut asked, mut said) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let first = device.read(&mut asked).await.unwrap_or_default();
    let carried = if asked.starts_with(b"GET /ws ") { Carried::Control } else { Carried::Other };
    let left = if asked.starts_with(b"GET /ws/") { cut_channel.lock().unwrap().take() } else { None };
    let mut left = left.unwrap_or(u64::MAX);
    if relay.write_all(&asked[..first]).await.is_err() {
        return carried;
    }
    loop {
        let passed = tokio::select! {
            read = device.read(&mut asked) => match read {
                Ok(read @ 1..) => relay.write_all(&asked[..read]).await,
                _ => return carried,
            },
            read = relay.read(&mut said) => match read {
                Ok(read @ 1..) if read as u64 <= left => {
                    left -= read as u64;
                    device.write_all(&said[..read]).await
                }
                Ok(1..) => break,
                _ => return carried,
            },
            Ok(()) = cut.changed(), if carried == Carried::Control => break,
        };
        if passed.is_err() {
            return carried;
        }
    }
    for end in [&device, &relay] {
        end.set_zero_linger().unwrap();
    }
    carried
}

/// A relay, the link before it, and the device behind that.
struct Site {
    relay: Relay,
    link: Link,
    device: Program,
    folder: tempfile::TempDir,
}

impl Site {
    async fn new(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let relay = start(folder.path()).await;
        let link = Link::before(relay.address).await;
        let pin = relay.pin(DEVICE, &[]).await;
        let mut device = device(link.address, folder.path(), &pin, options);
        device.line(r#""event": "online""#);
        Self { relay, link, device, folder }
    }

    /// The next that the device tells of this.
    fn heard(&mut self, event: &str) -> Value {
        let line = self.device.line(&format!(r#""event": "{event}""#));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn printed(&self, job: &JobStream) -> Vec<u8> {
        std::fs::read(self.folder.path().join("out").join(format!("{}.done", job.id()))).unwrap()
    }

    /// Goodbye on both sides.
    async fn end(mut self) {
        self.device.press("stop");
        let (status, said) = self.device.end();
        assert!(status.success() && !said.iter().any(|line| line.starts_with("stderr")), "{said:#?}");
        let until = Instant::now() + BOUND;
        while self.relay.client.presence(DEVICE).await.unwrap().state != State::Offline {
            assert!(Instant::now() < until, "a goodbye is offline at once");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.relay.stop().await;
    }
}

async fn print(client: &Client, document: &[u8]) -> JobStream {
    let job = PrintJob::new().user("Ann").job_name("<Minutes> & more").content_type("application/pdf");
    let printing = client.print(DEVICE, job.attribute("copies", "2")).unwrap();
    printing.bytes(document.to_vec()).await.unwrap()
}

async fn start(folder: &Path) -> Relay {
    Relay::start_with(&folder.join("relay"), ANY, |config| {
        config.ws.control.ping_every = Some(Duration::from_millis(200));
        config.ws.control.answer_within = Duration::from_secs(5);
        config.ws.channel.ping_every = Some(Duration::from_millis(200));
    })
    .await
}

fn device(relay: SocketAddr, folder: &Path, pin: &str, options: &[&str]) -> Program {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/websockets/device.py");
    let mut command = Command::new(python());
    command.arg(program).args(["--relay", &format!("http://{relay}"), "--id", DEVICE, "--pin", pin]);
    command.arg("--state").arg(folder.join("state")).arg("--out").arg(folder.join("out"));
    Program::start_with(command.args(["--window", &WINDOW.to_string()]).args(options))
}

fn document(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 % 251) as u8 ^ (n >> 8) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s2_x1_it_enrols_registers_and_answers_byte_for_byte() {
    let site = Site::new(&[]).await;
    let about = site.relay.client.device(DEVICE).await.unwrap();
    assert_eq!((about.presence.state, about.presence.transport.as_deref()), (State::Online, Some("ws")));
    assert_eq!((about.formats, about.apps.len()), (vec!["application/pdf".to_owned()], 1));

    let toner = site.relay.client.get(DEVICE, "toner").await.unwrap();
    assert_eq!((&*toner.bytes, toner.content_type.as_deref()), (&b"73"[..], Some("text/plain")));

    let all: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
    for (value, media_type) in [
        (&b"2nd floor, <left> & \"right\"\n"[..], "text/plain"),
        ("Gr\u{fc}n \u{1f5a8} \u{feff}]]>".as_bytes(), "text/plain; charset=utf-8"),
        (b"a\r\nb\0", "text/plain"),
        (b"", "text/plain"),
        (&all, "application/x-example"),
    ] {
        let set = site.relay.client.set(DEVICE, "location", Body::new(media_type, value.to_vec())).await;
        let read = site.relay.client.get(DEVICE, "location").await;
        for answer in [set.unwrap(), read.unwrap()] {
            assert_eq!((&*answer.bytes, answer.content_type.as_deref()), (value, Some(media_type)));
        }
    }

    let unknown = site.relay.client.get(DEVICE, "paper").await.unwrap_err();
    assert_eq!((unknown.status(), unknown.code()), (Some(404), Some("unknown-object")), "{unknown}");
    let refused = site.relay.client.set(DEVICE, "toner", Body::text("100")).await.unwrap_err();
    assert_eq!((refused.status(), refused.device_status()), (Some(502), Some("read-only")), "{refused}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x1_a_pin_that_is_wrong_makes_no_device() {
    let folder = tempfile::tempdir().unwrap();
    let relay = start(folder.path()).await;
    relay.pin(DEVICE, &[]).await;
    let (status, said) = device(relay.address, folder.path(), "00000000", &[]).end();
    assert!(!status.success(), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("Refused: 401")), "{said:#?}");
    assert_eq!(relay.client.presence(DEVICE).await.unwrap().state, State::Offline);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_p2_it_answers_pings_and_its_own_are_answered() {
    let mut site = Site::new(&["--keep-alive", "0.2"]).await;
    for _ in 0..5 {
        site.heard("pinged");
        site.heard("pong");
    }
    let presence = site.relay.client.presence(DEVICE).await.unwrap();
    assert_eq!((presence.state, presence.epoch), (State::Online, 1), "it is the first session still");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_b4_5_mib_are_printed_within_the_credit_and_a_device_that_gives_none_gets_none() {
    let hold_at = MIB as u64;
    let mut site = Site::new(&["--hold-at", &hold_at.to_string()]).await;
    let document = document(5 * MIB);
    let mut job = print(&site.relay.client, &document).await;
    let opened = site.heard("channel-opened");
    assert_eq!(opened["from"], 0);
    let header = site.heard("header");
    assert_eq!(header["name"], "PrintJobRequest");
    let ticket = serde_json::json!(
        {"User": "Ann", "JobName": "<Minutes> & more", "Type": "application/pdf", "copies": "2"}
    );
    assert_eq!(header["ticket"], ticket);
    let held = site.heard("held");
    let granted = held["granted"].as_u64().unwrap();
    assert!(granted <= hold_at + WINDOW, "{held}");

    // All that it granted goes to it, no more does, and the rest of it is as it was.
    let until = Instant::now() + BOUND;
    loop {
        let update = timeout(BOUND, job.next()).await.expect("a line").unwrap().expect("the job goes on");
        assert!(update.bytes <= granted, "{update:?} of {granted} granted");
        if update.bytes == granted {
            break;
        }
        assert!(Instant::now() < until, "{update:?} of {granted} granted");
    }
    for _ in 0..10 {
        assert_eq!(site.relay.client.get(DEVICE, "toner").await.unwrap().text().unwrap(), "73");
        site.heard("pinged");
    }
    let about = site.relay.client.presence(DEVICE).await.unwrap();
    assert_eq!((about.state, about.epoch), (State::Online, 1));

    site.device.press("go");
    let end = timeout(BOUND, job.finished()).await.expect("an end").unwrap();
    assert_eq!((end.state, end.bytes), (JobState::Completed, document.len() as u64), "{end:?}");
    let closed = site.heard("channel-closed");
    assert_eq!((&closed["code"], &closed["bytes"]), (&1000.into(), &document.len().into()), "{closed}");
    assert_eq!(site.heard("job-over")["outcome"], "done");
    assert!(site.printed(&job) == document, "what came is what was sent");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a_channel_that_is_cut_in_the_middle_is_gone_on_with_and_no_byte_goes_twice() {
    let mut site = Site::new(&[]).await;
    let document = document(5 * MIB);
    site.link.cut_channel_after(2 * MIB as u64);
    let mut job = print(&site.relay.client, &document).await;
    assert_eq!(site.heard("channel-opened")["from"], 0);
    let cut = site.heard("channel-closed");
    assert_eq!(cut["code"], Value::Null, "{cut}");
    let first = cut["bytes"].as_u64().unwrap();
    assert!((1..2 * MIB as u64).contains(&first), "{cut}");
    let again = site.heard("channel-opened");
    assert_eq!(again["from"], first, "it goes on where it was");
    assert_eq!(site.heard("header")["name"], "PrintJobRequest", "which comes on each channel");
    let end = timeout(BOUND, job.finished()).await.expect("an end").unwrap();
    assert_eq!((end.state, end.bytes), (JobState::Completed, document.len() as u64), "{end:?}");
    let closed = site.heard("channel-closed");
    assert_eq!((&closed["code"], closed["bytes"].as_u64()), (&1000.into(), Some(5 * MIB as u64 - first)));
    assert!(site.printed(&job) == document, "what came is what was sent");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_session_that_is_cut_is_gone_on_with_and_calls_meanwhile_are_answered() {
    let mut site = Site::new(&[]).await;
    for _ in 0..3 {
        site.link.cut_control();
        assert_eq!(site.heard("offline")["code"], Value::Null);
        // It comes back within the resume window, and the call waits for it.
        assert_eq!(site.relay.client.get(DEVICE, "toner").await.unwrap().text().unwrap(), "73");
        assert_eq!(site.heard("online")["resumed"], true);
    }
    assert_eq!(site.relay.client.presence(DEVICE).await.unwrap().state, State::Online);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t17_a_revoked_credential_ends_its_session_and_its_channel_with_4003() {
    let mut site = Site::new(&["--hold-at", &MIB.to_string()]).await;
    let _job = print(&site.relay.client, &document(5 * MIB)).await;
    site.heard("held");
    // Another machine enrols as this device: from now on the credential is its own.
    let pin = site.relay.pin(DEVICE, &[]).await;
    let body = serde_json::json!({"device_id": DEVICE, "pin": pin}).to_string();
    let fields = ["Content-Type: application/json"];
    let enrolled = http::ask(site.relay.address, "POST /v1/enroll", &fields, body.as_bytes()).unwrap();
    assert_eq!(enrolled.status, 201, "{}", enrolled.text());
    assert_eq!(site.heard("offline")["code"], 4003);
    site.device.press("go");
    let (_, said) = site.device.end();
    let closed = said.iter().find(|line| line.contains(r#""event": "channel-closed""#));
    assert!(closed.is_some_and(|line| line.contains(r#""code": 4003"#)), "{said:#?}");
    site.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l2_told_to_go_it_comes_back_when_it_was_told_to() {
    let Site { relay, link, device, folder } = Site::new(&[]).await;
    relay.stop().await;
    let relay = start(folder.path()).await;
    link.leads_to(relay.address);
    let mut site = Site { relay, link, device, folder };
    assert_eq!(site.heard("drain")["retry_after"], 1.0);
    assert_eq!(site.heard("offline")["code"], 1012);
    site.heard("online");
    let away = site.link.away();
    assert!(away >= Duration::from_secs(1), "it was back after {away:?}");
    assert_eq!(site.relay.client.get(DEVICE, "toner").await.unwrap().text().unwrap(), "73");
    site.end().await;
}
