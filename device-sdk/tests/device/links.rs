//! What carries jobs' data, with its weaknesses: links that break after so many bytes, and a transport without channels.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use device_sdk::{HttpError, HttpErrorKind, JobPart};
use relay_core::{
    app::{Channel, ChannelReceiver, ChannelSender, ToDevice, ToRelay},
    error::{ErrorKind, TransportError},
    relay::JobData,
    transport::{ConnectOptions, Connector, DeviceChannel, Session, TransportInfo},
};
use tokio::sync::watch;

use crate::world::World;

/// The most that one answer by HTTP has.
const PART: usize = 100_000;
const PIECE: usize = 10_000;

/// All links that were made, and how they are to break.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Each link breaks after so many bytes of data.
    break_after: Mutex<Option<usize>>,
    /// Bytes that came over all of them.
    bytes: AtomicUsize,
    made: AtomicUsize,
    open: AtomicUsize,
    /// Counts cuts of all that there is.
    cuts: watch::Sender<u32>,
}

impl Links {
    pub(crate) fn break_after(&self, bytes: Option<usize>) {
        *self.0.break_after.lock().unwrap() = bytes;
    }

    /// Breaks what is read beside the session now.
    pub(crate) fn cut(&self) {
        self.0.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn made(&self) -> usize {
        self.0.made.load(Ordering::SeqCst)
    }

    /// Channels that are open now.
    pub(crate) fn open(&self) -> usize {
        self.0.open.load(Ordering::SeqCst)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::SeqCst)
    }

    fn link(&self) -> Weak {
        self.0.made.fetch_add(1, Ordering::SeqCst);
        Weak { links: self.clone(), left: *self.0.break_after.lock().unwrap() }
    }

    pub(crate) fn channel(&self, channel: DeviceChannel) -> DeviceChannel {
        self.0.open.fetch_add(1, Ordering::SeqCst);
        let receiver = WeakReceiver { receiver: channel.receiver, weak: self.link() };
        Channel::new(WeakSender { sender: channel.sender, links: self.clone() }, receiver)
    }

    pub(crate) fn part(&self, data: JobData, from: u64) -> JobPart {
        let (digest, weak) = (data.digest(), self.link());
        let state = Some((data, weak, self.0.cuts.subscribe(), from));
        let bytes = futures_util::stream::unfold(state, move |state| async move {
            let (data, mut weak, mut cuts, at) = state?;
            let left = PART.saturating_sub(usize::try_from(at - from).unwrap());
            let read = tokio::select! {
                read = data.read(at, left.min(PIECE)) => read.ok()?,
                _ = cuts.changed() => return Some((Err(broken()), None)),
            };
            if read.is_empty() {
                return None;
            }
            match weak.carry(read.len()) {
                true => {
                    let next = at + read.len() as u64;
                    Some((Ok(read), Some((data, weak, cuts, next))))
                }
                false => Some((Err(broken()), None)),
            }
        });
        JobPart::new(Box::pin(bytes), digest.map(|d| d.bytes), digest.map(|d| d.sha256))
    }
}

fn broken() -> HttpError {
    HttpError::new(HttpErrorKind::Unreachable, "broken")
}

/// A link that carries so much and no more.
#[derive(Debug)]
struct Weak {
    links: Links,
    left: Option<usize>,
}

impl Weak {
    fn carry(&mut self, bytes: usize) -> bool {
        let carries = match &mut self.left {
            None => true,
            Some(left) if *left < bytes => false,
            Some(left) => {
                *left -= bytes;
                true
            }
        };
        if carries {
            self.links.0.bytes.fetch_add(bytes, Ordering::SeqCst);
        }
        carries
    }
}

#[derive(Debug)]
struct WeakReceiver {
    receiver: Box<dyn ChannelReceiver<ToDevice>>,
    weak: Weak,
}

#[async_trait]
impl ChannelReceiver<ToDevice> for WeakReceiver {
    async fn receive(&mut self) -> Result<Option<ToDevice>, TransportError> {
        let message = self.receiver.receive().await?;
        match &message {
            Some(ToDevice::Data(bytes)) if !self.weak.carry(bytes.len()) => {
                Err(TransportError::new("memory", ErrorKind::Interrupted, "broken"))
            }
            _ => Ok(message),
        }
    }
}

#[derive(Debug)]
struct WeakSender {
    sender: Box<dyn ChannelSender<ToRelay>>,
    links: Links,
}

#[async_trait]
impl ChannelSender<ToRelay> for WeakSender {
    async fn send(&mut self, message: ToRelay) -> Result<(), TransportError> {
        self.sender.send(message).await
    }

    async fn close(&mut self) {
        self.sender.close().await;
    }
}

impl Drop for WeakSender {
    fn drop(&mut self) {
        self.links.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The same transport without channels: jobs' data is read beside it.
#[derive(Debug)]
pub(crate) struct NoChannels(pub(crate) World);

#[async_trait]
impl Connector for NoChannels {
    fn info(&self) -> TransportInfo {
        TransportInfo::new("memory-without-channels")
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let mut session = self.0.connect(options).await?;
        session.info = self.info();
        Ok(session)
    }
}

/// Waits until `holds`, for an hour at most.
pub(crate) async fn eventually(holds: impl Fn() -> bool + Send + Sync) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3600), held).await.expect("it comes");
}
