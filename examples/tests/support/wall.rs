//! A firewall in the test's process that knows HTTP: it lets WebSockets through or not, and says how not.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What becomes of an upgrade request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrades {
    Pass,
    /// The connection is closed without an answer.
    Close,
    /// `Upgrade` and `Connection` are taken out, as proxies do with what is from hop to hop.
    Strip,
    /// A page, with status 200.
    Page,
    /// To a page to log in at.
    Redirect,
    /// No answer at all.
    Swallow,
    /// The 101 comes through, and no frame ever does.
    Mute,
}

#[derive(Debug)]
struct Inner {
    upstream: SocketAddr,
    upgrades: Mutex<Upgrades>,
    /// Takes out of what devices say that they want to go on with a session.
    forgetful: bool,
    /// The sessions that were opened by WebSocket, as the relay named them.
    sessions: Mutex<Vec<String>>,
    /// Counts up when all WebSockets are to be cut.
    cut: watch::Sender<u32>,
}

/// Ends with all its connections when dropped.
#[derive(Debug)]
pub(crate) struct Wall {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
    accepting: JoinHandle<()>,
}

impl Drop for Wall {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Wall {
    pub(crate) async fn before(upstream: SocketAddr, upgrades: Upgrades) -> Self {
        Self::start(upstream, upgrades, false).await
    }

    /// One that carries no session over to another connection.
    pub(crate) async fn forgetful(upstream: SocketAddr) -> Self {
        Self::start(upstream, Upgrades::Pass, true).await
    }

    async fn start(upstream: SocketAddr, upgrades: Upgrades, forgetful: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (upgrades, sessions, cut) = (Mutex::new(upgrades), Mutex::default(), watch::channel(0).0);
        let inner = Arc::new(Inner { upstream, upgrades, forgetful, sessions, cut });
        let serving = inner.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let inner = serving.clone();
                // Either end closing is how a connection ends.
                connections.spawn(async move { drop(inner.serve(client).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, inner, accepting }
    }

    pub(crate) fn upgrades(&self, upgrades: Upgrades) {
        *self.inner.upgrades.lock().unwrap() = upgrades;
    }

    /// Cuts all WebSockets; both ends see their connection end.
    pub(crate) fn cut(&self) {
        self.inner.cut.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn sessions(&self) -> Vec<String> {
        self.inner.sessions.lock().unwrap().clone()
    }
}

impl Inner {
    async fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let mut cut = self.cut.subscribe();
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if client.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        if !head.contains("upgrade: websocket") {
            let mut server = TcpStream::connect(self.upstream).await?;
            server.write_all(&self.forget(&bytes)).await?;
            return self.pass(client, server, false).await;
        }
        let upgrades = *self.upgrades.lock().unwrap();
        let mut hold = std::future::pending::<()>();
        match upgrades {
            Upgrades::Close => return Ok(()),
            Upgrades::Swallow => {
                (&mut hold).await;
                return Ok(());
            }
            Upgrades::Page => {
                let page = "<html>Welcome to our network</html>";
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}",
                    page.len()
                );
                client.write_all(answer.as_bytes()).await?;
                return client.shutdown().await;
            }
            Upgrades::Redirect => {
                let to =
                    b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n";
                client.write_all(to).await?;
                return client.shutdown().await;
            }
            Upgrades::Strip => {
                let hop = |line: &&str| {
                    let line = line.to_ascii_lowercase();
                    !line.starts_with("upgrade:") && !line.starts_with("connection:")
                };
                let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
                let kept: Vec<_> = head.split("\r\n").filter(hop).collect();
                bytes = [kept.join("\r\n").as_bytes(), &bytes[end..]].concat();
            }
            Upgrades::Pass | Upgrades::Mute => {}
        }
        let mut server = TcpStream::connect(self.upstream).await?;
        server.write_all(&self.forget(&bytes)).await?;
        if upgrades == Upgrades::Strip {
            return self.pass(client, server, false).await;
        }
        let mut answer = Vec::new();
        while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
            if server.read_buf(&mut answer).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&answer).into_owned();
        let session = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("relay-session").then(|| value.trim().to_owned())
        });
        self.sessions.lock().unwrap().extend(session);
        client.write_all(&answer).await?;
        if upgrades == Upgrades::Mute {
            hold.await;
        }
        tokio::select! {
            passed = self.pass(client, server, true) => passed,
            _ = cut.changed() => Ok(()),
        }
    }

    async fn pass(&self, client: TcpStream, server: TcpStream, frames: bool) -> io::Result<()> {
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let change = |bytes: &[u8]| if frames { bytes.to_vec() } else { self.forget(bytes) };
        tokio::try_join!(copy(from_client, to_server, change), copy(from_server, to_client, <[u8]>::to_vec))?;
        Ok(())
    }

    /// What asks to go on with a session asks for something that there is not; as long as before.
    fn forget(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if self.forgetful {
            for (what, by) in [("relay-session:", "relay-sessi0n:"), ("<resume ", "<rexume ")] {
                let found =
                    bytes.windows(what.len()).position(|window| window.eq_ignore_ascii_case(what.as_bytes()));
                if let Some(at) = found {
                    bytes[at..at + by.len()].copy_from_slice(by.as_bytes());
                }
            }
        }
        bytes
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    change: impl Fn(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            read => to.write_all(&change(&buffer[..read])).await?,
        }
    }
}
