//! How a byte stream to the relay comes about.

use std::{fmt, io, time::Duration};

use async_trait::async_trait;
use tokio::net::{TcpStream, lookup_host};

use crate::stream::BoxStream;

/// How long one address of several may take: one that swallows everything is not to use up the time of the others.
const ONE_ADDRESS: Duration = Duration::from_secs(4);

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Target {
    /// A name or an address, without brackets.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    /// Whether TLS follows. A dialler may choose its way by it; the TLS is not its to do.
    pub secure: bool,
}

impl Target {
    /// `host` at `port`.
    pub fn new(host: &str, port: u16, secure: bool) -> Self {
        Self { host: host.into(), port, secure }
    }
}

impl fmt::Display for Target {
    /// `host:port`, as in a request's target or Host field (RFC 9110 §7.2).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Makes a stream of bytes to a target: directly, or through a tunnel of some proxy's.
///
/// # Implementing
/// Resolve names anew each time. The caller bounds the time, by dropping the future.
#[async_trait]
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// Connects to `target`.
    ///
    /// # Errors
    /// Why there is no connection, in words that hold no secret.
    async fn dial(&self, target: &Target) -> io::Result<BoxStream>;
}

/// Dials the target itself, by TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direct;

#[async_trait]
impl Dial for Direct {
    async fn dial(&self, target: &Target) -> io::Result<BoxStream> {
        let mut last = None;
        for address in lookup_host((&*target.host, target.port)).await? {
            match tokio::time::timeout(ONE_ADDRESS, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Small frames, each of which somebody waits for.
                    stream.set_nodelay(true)?;
                    return Ok(Box::pin(stream));
                }
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
    }
}
