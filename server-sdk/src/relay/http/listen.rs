//! The accept loop: as many connections as there are descriptors for, each in a task of its own (B10).

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::{App, Edge, connection, peer, problem};

/// How many connections the system may hold that were not accepted yet. tokio's own listeners have 1,024, which a
/// fleet that comes back at once overruns.
const BACKLOG: u32 = 4096;
/// Descriptors left for the database, log files and whatever the host opens.
const RESERVED: usize = 256;

/// Opens a listening socket.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it, at no cost of their own.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How many connections a process with these many descriptors may have.
pub(crate) fn room(descriptors: Option<u64>) -> usize {
    let descriptors = descriptors.and_then(|n| usize::try_from(n).ok()).unwrap_or(1 << 20).min(1 << 20);
    // Where there are few at all, at least half go to connections.
    descriptors.saturating_sub(RESERVED).max(descriptors / 2).max(1)
}

/// Accepts until dropped.
pub(crate) async fn accept(listener: TcpListener, app: Arc<App>, room: Arc<Semaphore>) {
    let mut pause = Duration::from_millis(10);
    loop {
        // Not accepted rather than refused: whoever waits in the backlog gets its turn.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => {
                pause = Duration::from_millis(10);
                accepted
            }
            Err(error) if is_of_the_connection(&error) => continue,
            Err(error) => {
                // Out of descriptors or memory, most likely: they come back when others close.
                app.metrics.accept_errors.fetch_add(1, Relaxed);
                tracing::error!(%error, "cannot accept connections");
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
                continue;
            }
        };
        let now = Instant::now().into_std();
        let Some(mut place) = app.door.enter(peer.ip(), now) else {
            app.metrics.refused.fetch_add(1, Relaxed);
            tracing::debug!(peer = %peer.ip(), "connection refused: too many without a credential");
            let problem = problem::Problem::new(
                problem::Code::Overloaded,
                "too many connections without a credential; try again later",
            );
            let _ = stream.try_write(&problem.retry_after(Duration::from_secs(5)).raw());
            continue;
        };
        app.metrics.accepted.fetch_add(1, Relaxed);
        if peer::is_proxy(&app.trusted_proxies, peer.ip()) {
            // It speaks for many, and bounds those itself.
            place.trust();
        }
        // It goes with the connection, which may outlive its HTTP.
        place.permit = Some(permit);
        let place = Arc::new(place);
        let edge = Edge { app: app.clone(), place: place.clone() };
        tokio::spawn(connection::serve(stream, place, edge));
    }
}

/// Errors that are about the one connection, which was gone before it was accepted.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b10_some_descriptors_are_left_for_all_else() {
        assert_eq!(room(Some(20_000)), 19_744);
        assert_eq!(room(Some(256)), 128);
        assert_eq!(room(Some(u64::MAX)), (1 << 20) - 256);
        assert_eq!(room(None), (1 << 20) - 256);
    }
}
