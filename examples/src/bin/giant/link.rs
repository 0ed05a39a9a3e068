//! The device's link: everything between it and the relay passes here, and is cut where it is told to.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

const PIECE: usize = 64 * 1024;
/// What comes at once and is smaller is no part of a document: instructions, pings, heads.
const BULK: usize = 4 * 1024;
/// A document flows again once so much of it came.
const FLOWS: u64 = 256 * 1024;

/// What passed, and when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Bytes of documents that went to the device.
    pub(crate) bytes: u64,
    /// The first and the last of them.
    pub(crate) from: Option<Instant>,
    pub(crate) to: Option<Instant>,
    /// From each cut until the document flowed again.
    pub(crate) outages: Vec<(Instant, Instant)>,
    /// Connections that were cut.
    pub(crate) cut: usize,
}

#[derive(Debug, Default)]
struct Flow {
    seen: Seen,
    /// After how many bytes the link is still to be cut.
    cuts: VecDeque<u64>,
    /// Since when the link is cut, and what came since then.
    outage: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct Shared {
    relay: SocketAddr,
    flow: Mutex<Flow>,
    cut: watch::Sender<usize>,
}

/// Stops with all its connections when dropped.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Link {
    /// To `relay`, cut whenever so many bytes of documents have passed.
    pub(crate) async fn new(relay: SocketAddr, cuts: impl IntoIterator<Item = u64>) -> Result<Self, String> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let flow = Flow { cuts: cuts.into_iter().collect(), ..Flow::default() };
        let shared = Arc::new(Shared { relay, flow: Mutex::new(flow), cut: watch::Sender::default() });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((device, _)) = accepted {
                        connections.spawn(Arc::clone(&serving).serve(device));
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, shared, accepting })
    }

    pub(crate) fn seen(&self) -> Seen {
        self.shared.flow().seen.clone()
    }
}

impl Shared {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, mut device: TcpStream) {
        let mut cut = self.cut.subscribe();
        let Ok(mut relay) = TcpStream::connect(self.relay).await else { return };
        for end in [&device, &relay] {
            if end.set_nodelay(true).is_err() {
                return;
            }
        }
        let cut = {
            let (mut from_device, mut to_device) = device.split();
            let (mut from_relay, mut to_relay) = relay.split();
            tokio::select! {
                biased;
                _ = cut.changed() => true,
                // Either end closing is how a connection ends.
                () = pass(&mut from_relay, &mut to_device, |bytes| self.passed(bytes)) => false,
                () = pass(&mut from_device, &mut to_relay, |_| {}) => false,
            }
        };
        if cut {
            self.flow().seen.cut += 1;
            // By RST: what is under way is lost.
            for end in [&device, &relay] {
                let _ = end.set_zero_linger();
            }
        }
    }

    fn passed(&self, bytes: usize) {
        if bytes < BULK {
            return;
        }
        let now = Instant::now();
        let mut flow = self.flow();
        flow.seen.bytes += bytes as u64;
        flow.seen.from.get_or_insert(now);
        flow.seen.to = Some(now);
        if let Some((since, came)) = &mut flow.outage {
            *came += bytes as u64;
            if *came >= FLOWS {
                let over = (*since, now);
                flow.outage = None;
                flow.seen.outages.push(over);
            }
        }
        if flow.cuts.front().is_some_and(|at| flow.seen.bytes >= *at) {
            flow.cuts.pop_front();
            flow.outage = Some((now, 0));
            self.cut.send_modify(|cuts| *cuts += 1);
        }
    }
}

async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), seen: impl Fn(usize)) {
    let mut piece = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        seen(read);
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}
