//! A proxy in the test's process that does to connections what networks do, and counts it.
//!
//! [`FaultProxy::cutting`] passes bytes and cuts whatever was idle for a drawn time: by FIN, by RST, or by silence, in
//! which both ends keep their connection and nothing ever arrives again. [`FaultProxy::meddling`] passes HTTP requests
//! and repeats some POSTs (as an intermediary does that lost an answer and asks again) and holds others back until a
//! later one has overtaken them. Everything is drawn from one seed.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// How an idle connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Fin,
    Rst,
    Silence,
}

/// What the proxy did.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicU64,
    pub(crate) fin: AtomicU64,
    pub(crate) rst: AtomicU64,
    pub(crate) silence: AtomicU64,
    /// Of those that were cut, how many carried a session: a WebSocket, or a request without an answer.
    pub(crate) sessions: AtomicU64,
    pub(crate) posts: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) reordered: AtomicU64,
}

impl Counts {
    pub(crate) fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Stops with all its connections when dropped.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    idle: Idle,
    accepting: JoinHandle<()>,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// SplitMix64: enough to draw faults with, and the same everywhere.
#[derive(Debug)]
struct Draw(Mutex<u64>);

impl Draw {
    fn below(&self, bound: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

/// Of a hundred POSTs, how many are repeated and how many held back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meddling {
    pub(crate) repeat: u64,
    pub(crate) reorder: u64,
}

/// How long a POST waits to be overtaken.
const OVERTAKING: Duration = Duration::from_millis(60);
/// How long the first copy of a POST has until the second one goes out.
const LOST_AFTER: Duration = Duration::from_millis(30);

/// From what the time is drawn, in milliseconds, after which an idle connection is cut.
type Idle = watch::Sender<std::ops::Range<u64>>;

impl FaultProxy {
    /// In front of `upstream`; a connection idle for a time drawn from `idle` (milliseconds) is cut, by one of `cuts`.
    pub(crate) async fn cutting(
        upstream: SocketAddr,
        seed: u64,
        idle: std::ops::Range<u64>,
        cuts: &'static [Cut],
    ) -> Self {
        let draw = Arc::new(Draw(Mutex::new(seed)));
        let idle = watch::Sender::new(idle);
        Self::start(idle.clone(), move |client, counts| {
            let cut = cuts[draw.below(cuts.len() as u64) as usize];
            let (draw, mut idle) = (draw.clone(), idle.subscribe());
            async move {
                let Ok(mut server) = TcpStream::connect(upstream).await else { return };
                let (mut client, mut carried) = (client, Carried::default());
                loop {
                    let range = idle.borrow_and_update().clone();
                    let time = Duration::from_millis(range.start + draw.below(range.end - range.start));
                    tokio::select! {
                        () = pass_until_idle(&mut client, &mut server, &mut carried, time, cut, &counts) => return,
                        Ok(()) = idle.changed() => {}
                    }
                }
            }
        })
        .await
    }

    /// From now on connections are cut when they were idle for a time drawn from `idle`, those too that there are.
    pub(crate) fn cut_after(&self, idle: std::ops::Range<u64>) {
        self.idle.send_replace(idle);
    }

    /// In front of the HTTP server `upstream`.
    pub(crate) async fn meddling(upstream: SocketAddr, seed: u64, meddling: Meddling) -> Self {
        let shared =
            Arc::new(Post { upstream, draw: Draw(Mutex::new(seed)), meddling, passed: watch::channel(0).0 });
        Self::start(watch::Sender::new(0..0), move |client, counts| {
            let shared = shared.clone();
            async move {
                // Either end closing is how a connection ends.
                let _ = shared.serve(client, &counts).await;
            }
        })
        .await
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        idle: Idle,
        serve: impl Fn(TcpStream, Arc<Counts>) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Counts>::default();
        let counting = counts.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { continue };
                        Counts::add(&counting.connections);
                        connections.spawn(serve(client, counting.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self { address, counts, idle, accepting }
    }
}

/// What is on a connection.
#[derive(Debug, Default)]
struct Carried {
    websocket: bool,
    /// A request without an answer.
    asked: bool,
}

async fn pass_until_idle(
    client: &mut TcpStream,
    server: &mut TcpStream,
    carried: &mut Carried,
    idle: Duration,
    cut: Cut,
    counts: &Counts,
) {
    let (mut up, mut down) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        let passed = tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(read @ 1..) => {
                    carried.asked = true;
                    let upgrade = b"upgrade: websocket";
                    carried.websocket |=
                        up[..read].windows(upgrade.len()).any(|bytes| bytes.eq_ignore_ascii_case(upgrade));
                    server.write_all(&up[..read]).await
                }
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(read @ 1..) => {
                    carried.asked = false;
                    client.write_all(&down[..read]).await
                }
                _ => return,
            },
            () = sleep(idle) => break,
        };
        if passed.is_err() {
            return;
        }
    }
    if carried.asked || carried.websocket {
        Counts::add(&counts.sessions);
    }
    match cut {
        Cut::Fin => {
            Counts::add(&counts.fin);
            for end in [&mut *client, &mut *server] {
                // The other side may have gone in this very moment.
                let _ = end.shutdown().await;
            }
        }
        Cut::Rst => {
            Counts::add(&counts.rst);
            for end in [&*client, &*server] {
                end.set_zero_linger().unwrap();
            }
        }
        Cut::Silence => {
            Counts::add(&counts.silence);
            std::future::pending::<()>().await;
        }
    }
}

/// A proxy that reads HTTP.
#[derive(Debug)]
struct Post {
    upstream: SocketAddr,
    draw: Draw,
    meddling: Meddling,
    /// How many POSTs have gone out.
    passed: watch::Sender<u64>,
}

impl Post {
    async fn serve(&self, mut client: TcpStream, counts: &Counts) -> std::io::Result<()> {
        let mut server = TcpStream::connect(self.upstream).await?;
        let mut buffer = Vec::new();
        while let Some(request) = message(&mut client, &mut buffer).await? {
            let (mut repeat, mut hold) = (false, false);
            if request.starts_with(b"POST ") {
                Counts::add(&counts.posts);
                repeat = self.draw.below(100) < self.meddling.repeat;
                hold = self.draw.below(100) < self.meddling.reorder;
            }
            if hold {
                let mut passed = self.passed.subscribe();
                if timeout(OVERTAKING, passed.changed()).await.is_ok() {
                    Counts::add(&counts.reordered);
                }
            }
            if repeat {
                // The first copy arrives; its answer, if there is one by then, is lost.
                Counts::add(&counts.repeated);
                let mut first = TcpStream::connect(self.upstream).await?;
                first.write_all(&request).await?;
                let _ = timeout(LOST_AFTER, first.readable()).await;
            }
            server.write_all(&request).await?;
            self.passed.send_modify(|passed| *passed += 1);
            let mut answers = Vec::new();
            let answer = tokio::select! {
                answer = message(&mut server, &mut answers) => answer?,
                // A client that has given up takes its request back.
                _ = client.readable() => match client.read_buf(&mut buffer).await? {
                    0 => return Ok(()),
                    _ => message(&mut server, &mut answers).await?,
                },
            };
            let Some(answer) = answer else { return Ok(()) };
            client.write_all(&answer).await?;
        }
        Ok(())
    }
}

/// The next HTTP message, head and body, as it came; `None` at the end of the connection.
async fn message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
            assert!(!head.contains("transfer-encoding:"), "this proxy reads bodies by their length: {head}");
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .map_or(0, |length| length.trim().parse().unwrap());
            let whole = end + 4 + length;
            if buffer.len() >= whole {
                return Ok(Some(buffer.drain(..whole).collect()));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
