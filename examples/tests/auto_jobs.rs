//! S8 and F32: the transport changes under a job that is being done. The job goes on at its offset over whatever carries the
//! session then, and is done once.

#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;
#[path = "support/wall.rs"]
mod wall;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use device_sdk::{App, Device, Event, Events, Job, JobEnd, Router, Transport};
use host::Host;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use wall::{Upgrades, Wall};

const SOON: Duration = Duration::from_secs(40);
const MIB: usize = 1024 * 1024;

/// A printer that stops at every page until it is told to go on, and remembers what it was given.
#[derive(Debug, Clone)]
struct Paper(Arc<Sheet>);

#[derive(Debug)]
struct Sheet {
    printed: Mutex<Vec<u8>>,
    begun: AtomicU32,
    /// How far it may print, and how far it has.
    allowed: watch::Sender<usize>,
    reached: watch::Sender<usize>,
}

impl Paper {
    fn new() -> Self {
        let (allowed, reached) = (watch::Sender::new(0), watch::Sender::new(0));
        Self(Arc::new(Sheet { printed: Mutex::default(), begun: AtomicU32::new(0), allowed, reached }))
    }

    fn app(&self) -> App {
        let paper = self.0.clone();
        App::new("print", move |mut job: Job| {
            let paper = paper.clone();
            async move {
                paper.begun.fetch_add(1, Ordering::Relaxed);
                while let Some(bytes) = job.next().await? {
                    let printed = {
                        let mut printed = paper.printed.lock().unwrap();
                        printed.extend_from_slice(&bytes);
                        printed.len()
                    };
                    paper.reached.send_replace(printed);
                    job.progress(printed as u64, "printing");
                    // The handler stands still, whatever becomes of what carries the data.
                    let _ = paper.allowed.subscribe().wait_for(|allowed| *allowed > printed).await;
                }
                Ok(())
            }
        })
    }

    /// Lets it print on to `place`, and waits until it is there.
    async fn print_to(&self, place: usize) {
        self.0.allowed.send_replace(place);
        let mut reached = self.0.reached.subscribe();
        timeout(SOON, reached.wait_for(|printed| *printed >= place)).await.expect("data flows").unwrap();
    }

    fn go_on_to_the_end(&self) {
        self.0.allowed.send_replace(usize::MAX);
    }
}

async fn next_transport(events: &mut Events) -> &'static str {
    let found = async {
        loop {
            match events.next().await.expect("the device is there") {
                Event::Transport { name } => return name,
                Event::JobEnded { end, .. } => panic!("the job is over: {end:?}"),
                _ => {}
            }
        }
    };
    timeout(SOON, found).await.expect("it comes soon")
}

/// Sends `document` to be printed; what came back, to its end.
async fn print(to: SocketAddr, key: String, document: Arc<Vec<u8>>) -> String {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut from, mut into) = stream.into_split();
    let head = format!(
        "POST /v1/devices/printer-1/apps/print HTTP/1.1\r\nHost: {to}\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        document.len()
    );
    let sending = tokio::spawn(async move {
        into.write_all(head.as_bytes()).await.unwrap();
        into.write_all(&document).await.unwrap();
        into
    });
    let mut answer = Vec::new();
    from.read_to_end(&mut answer).await.unwrap();
    drop(sending.await.unwrap());
    String::from_utf8(answer).unwrap()
}

/// Prints a document while the network lets through, in turn, what `stages` say: with each, the transport that the session
/// is to go over.
async fn prints_once_over(stages: &[(Upgrades, &str)]) {
    let document: Arc<Vec<u8>> =
        Arc::new((0..12 * MIB).map(|n| (n * 31 % 251) as u8 ^ (n >> 8) as u8).collect());
    let host = Host::start().await;
    let (token, key) = (host.enrol("printer-1").await, host.key().await);
    let wall = Wall::before(host.address, stages[0].0).await;
    let paper = Paper::new();
    let device = Device::builder(format!("http://{}", wall.address), "printer-1")
        .token(token)
        .router(Router::new().get("toner", || async { Ok(83) }))
        .app(paper.app())
        .transport(Transport::Auto)
        .start()
        .await
        .unwrap();
    let (mut events, mut all) = (device.events(), device.events());
    assert_eq!(next_transport(&mut events).await, stages[0].1);
    device.online().await.unwrap();
    let printing = tokio::spawn(print(host.address, key, document.clone()));
    let part = document.len() / (stages.len() + 1);
    paper.print_to(part).await;
    for (number, (upgrades, transport)) in stages.iter().enumerate().skip(1) {
        wall.upgrades(*upgrades);
        match upgrades {
            // A firewall that drops them drops those that there are.
            Upgrades::Close => wall.cut(),
            // As a vendor's network manager would say it.
            _ => device.activate().await.unwrap(),
        }
        assert_eq!(next_transport(&mut events).await, *transport);
        paper.print_to(part * (number + 1)).await;
    }
    paper.go_on_to_the_end();
    let answer = timeout(SOON, printing).await.unwrap().unwrap();
    let last = answer.lines().rfind(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{answer}"));
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["state"], &last["outcome"]), (&"completed".into(), &"answered".into()), "{answer}");
    assert_eq!(last["bytes"], document.len(), "{answer}");
    assert_eq!(paper.0.begun.load(Ordering::Relaxed), 1, "the handler did not begin anew");
    assert!(*paper.0.printed.lock().unwrap() == *document, "each byte once, in order");
    device.shutdown(Duration::from_secs(5)).await;
    let (mut ended, mut sessions) = (0, 0);
    while let Some(event) = all.next().await {
        match event {
            Event::JobEnded { end, .. } => {
                assert_eq!(end, JobEnd::Done);
                ended += 1;
            }
            Event::Online { resumed: false } => sessions += 1,
            _ => {}
        }
    }
    assert_eq!((ended, sessions), (1, 1), "one job, and one session all along");
    host.stop().await;
}

const WS: (Upgrades, &str) = (Upgrades::Pass, "ws");
const BOSH: (Upgrades, &str) = (Upgrades::Close, "bosh");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_f32_a_job_whose_websocket_is_dropped_goes_on_by_plain_http_at_its_offset() {
    prints_once_over(&[WS, BOSH]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_f32_a_job_that_began_by_plain_http_goes_on_when_websockets_get_through() {
    prints_once_over(&[BOSH, WS]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_f32_a_job_goes_there_and_back_and_there_again() {
    prints_once_over(&[WS, BOSH, WS, BOSH]).await;
}
