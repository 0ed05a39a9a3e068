//! A document on its way to the relay, which may have to go again from some place on.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use reqwest::Body;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::timeout,
};

/// What is read at once.
const PIECE: usize = 64 * 1024;
/// How long nothing is sent while the relay has not said that the device takes the job. Whatever is on the way may
/// want the body before it passes the call on, so that this has an end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a document comes from.
pub(super) enum Content {
    /// Memory.
    Bytes(Bytes),
    /// A file.
    File(PathBuf, u64),
    /// Something that can be read once.
    Stream(Mutex<Option<Pin<Box<dyn AsyncRead + Send>>>>),
}

impl Content {
    /// How long it is, if that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::File(_, length) => Some(*length),
            Self::Stream(_) => None,
        }
    }

    /// It from `offset` on, as the body of a call; `None` if it cannot be had again.
    pub(super) fn rest(&mut self, offset: u64) -> Option<Sending> {
        let moved = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicU64::new(u64::MAX));
        let (gate, opened) = watch::channel(false);
        let (sender, pieces) = mpsc::channel(2);
        let mut source = match self {
            Self::Bytes(bytes) => {
                let from = usize::try_from(offset).ok().filter(|from| *from <= bytes.len())?;
                Source::Bytes(bytes.slice(from..))
            }
            Self::File(path, _) => Source::Path(path.clone(), offset),
            Self::Stream(stream) => Source::Stream(stream.get_mut().ok()?.take()?),
        };
        let (counted, end) = (moved.clone(), ended.clone());
        tokio::spawn(async move {
            let mut opened = opened;
            let _ = timeout(PATIENCE, opened.wait_for(|opened| *opened)).await;
            loop {
                let piece = source.next().await;
                let last = matches!(&piece, Ok(piece) if piece.is_empty());
                if last {
                    end.store(counted.load(Relaxed), Relaxed);
                    return;
                }
                let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() || failed {
                    return;
                }
                counted.fetch_add(length, Relaxed);
            }
        });
        let length = self.length().map(|length| length.saturating_sub(offset));
        let pieces = stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
        Some(Sending { body: Some(Body::wrap_stream(pieces)), length, moved, ended, gate })
    }
}

enum Source {
    Bytes(Bytes),
    Path(PathBuf, u64),
    File(File),
    Stream(Pin<Box<dyn AsyncRead + Send>>),
}

impl Source {
    /// The next piece; empty at the end.
    async fn next(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.split_to(bytes.len().min(PIECE))),
            Self::Path(path, offset) => {
                let (path, offset) = (std::mem::take(path), *offset);
                let opened = spawn_blocking(move || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(offset))?;
                    read(file)
                });
                let (file, piece) = opened.await.map_err(io::Error::other)??;
                *self = Self::File(file);
                Ok(piece)
            }
            Self::File(file) => {
                let file = file.try_clone()?;
                let (_, piece) = spawn_blocking(move || read(file)).await.map_err(io::Error::other)??;
                Ok(piece)
            }
            Self::Stream(stream) => {
                let mut piece = vec![0; PIECE];
                let read = std::future::poll_fn(|cx| {
                    let mut buffer = ReadBuf::new(&mut piece);
                    stream.as_mut().poll_read(cx, &mut buffer).map_ok(|()| buffer.filled().len())
                });
                let read = read.await?;
                piece.truncate(read);
                Ok(piece.into())
            }
        }
    }
}

fn read(mut file: File) -> io::Result<(File, Bytes)> {
    let mut piece = BytesMut::zeroed(PIECE);
    let mut filled = 0;
    while filled < PIECE {
        match file.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    piece.truncate(filled);
    Ok((file, piece.freeze()))
}

/// A document, or the rest of one, as the body of a call.
pub(super) struct Sending {
    body: Option<Body>,
    length: Option<u64>,
    moved: Arc<AtomicU64>,
    /// Its length, once all of it was read.
    ended: Arc<AtomicU64>,
    gate: watch::Sender<bool>,
}

impl Sending {
    /// The body, once, and its length if that is known.
    pub(super) fn take(&mut self) -> (Body, Option<u64>) {
        (self.body.take().unwrap_or_default(), self.length)
    }

    /// How much of it went out.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// Its length, if all of it went out.
    pub(super) fn whole(&self) -> Option<u64> {
        Some(self.ended.load(Relaxed)).filter(|ended| *ended != u64::MAX)
    }

    /// The device takes it: what is held back may go.
    pub(super) fn open(&self) {
        self.gate.send_replace(true);
    }
}
