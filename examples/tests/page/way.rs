//! The way from a browser to the relay: as fast as it is told to be, and it breaks when it is told to.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

const PIECE: usize = 16 * 1024;

/// Ends with all its connections when dropped.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    cuts: u32,
    blocked: bool,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Way {
    /// To `relay`, up to which no connection takes more than `speed` bytes a second.
    pub(crate) async fn to(relay: SocketAddr, speed: u32) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = watch::Sender::new(State { cuts: 0, blocked: false });
        let watched = state.subscribe();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((browser, _)) = listener.accept().await {
                let mut watched = watched.clone();
                if !watched.borrow_and_update().blocked {
                    connections.spawn(async move {
                        tokio::select! {
                            // Either end closing is how a connection ends.
                            _ = pass(browser, relay, speed) => {}
                            _ = watched.changed() => {}
                        }
                    });
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, state, accepting }
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Cuts every connection, and lets no new one through.
    pub(crate) fn block(&self) {
        self.state.send_modify(|state| state.blocked = true);
    }

    pub(crate) fn unblock(&self) {
        self.state.send_modify(|state| state.blocked = false);
    }
}

async fn pass(browser: TcpStream, relay: SocketAddr, speed: u32) -> io::Result<()> {
    let (mut from_browser, mut to_browser) = browser.into_split();
    let (mut from_relay, mut to_relay) = TcpStream::connect(relay).await?.into_split();
    let up = async {
        let mut bytes = [0; PIECE];
        loop {
            match from_browser.read(&mut bytes).await? {
                0 => return to_relay.shutdown().await,
                read => {
                    to_relay.write_all(&bytes[..read]).await?;
                    tokio::time::sleep(Duration::from_secs_f64(read as f64 / f64::from(speed))).await;
                }
            }
        }
    };
    let down = async {
        tokio::io::copy(&mut from_relay, &mut to_browser).await?;
        to_browser.shutdown().await
    };
    tokio::try_join!(up, down).map(|_| ())
}
