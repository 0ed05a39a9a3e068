//! Documents on disk: written as they come, and read again from any place while they still do.
//!
//! ```text
//! Spool::begin ─▶ Writer ──64 KiB──▶ file ──64 KiB──▶ Spooled: a Source, for as many readers as want it
//!                   │ counts, hashes                     ▲ wakes them
//!                   └───────── length, end ──────────────┘
//! ```
//!
//! A relay with a data folder keeps them there, each with a note beside it (JSON) that says what it is; one in memory
//! keeps them in files without a name, gone with the process. No path is ever made from a name that came from outside.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use relay_core::{
    app::{Digest, Source, SourceError},
    random,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch, task::spawn_blocking};

use super::config::SpoolLimits;

/// What goes to or comes from a file at once: all that a document takes of memory, at either end.
const WINDOW: usize = 64 * 1024;
/// How much may be written between two looks at the room that the disk has left.
const LOOK_EVERY: u64 = 16 * 1024 * 1024;
/// The longest note, in bytes.
const MAX_NOTE: u64 = 256 * 1024;

/// What a document is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For one job, and no longer than that takes.
    Job,
    /// Kept until it is deleted.
    Kept,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Job, Self::Kept];

    const fn folder(self) -> &'static str {
        match self {
            Self::Job => "spool",
            Self::Kept => "documents",
        }
    }
}

/// Why a document is not taken, or not taken further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// It is larger than any may be.
    #[error("the document has more than {max} bytes")]
    TooLarge { max: u64 },
    /// All documents together, or the disk, leave no room for it.
    #[error("the relay has no room for the document: {0}")]
    Full(&'static str),
    /// The disk failed.
    #[error("the relay cannot keep the document")]
    Io(#[from] io::Error),
}

impl SpoolError {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full("its disk is full"),
            _ => Self::Io(error),
        }
    }
}

/// Where documents are. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    data: Option<PathBuf>,
    limits: SpoolLimits,
    used: AtomicU64,
}

impl Shared {
    fn take(&self, bytes: u64) -> Result<(), SpoolError> {
        let room = self.used.fetch_update(Relaxed, Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= self.limits.max_spool)
        });
        room.map(|_| ())
            .map_err(|_| SpoolError::Full("all documents together have as many bytes as they may"))
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

impl Spool {
    /// Documents below `data`, or in memory's stead in files without a name. Blocks.
    ///
    /// # Errors
    /// If the folders cannot be made.
    pub(crate) fn open(data: Option<&Path>, limits: SpoolLimits) -> Result<Self, (PathBuf, io::Error)> {
        if let Some(data) = data {
            for folder in Kind::ALL.map(|kind| data.join(kind.folder())) {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
                made.map_err(|error| (folder, error))?;
            }
        }
        Ok(Self(Arc::new(Shared { data: data.map(Into::into), limits, used: AtomicU64::new(0) })))
    }

    /// Its bounds.
    pub(crate) fn limits(&self) -> &SpoolLimits {
        &self.0.limits
    }

    /// Bytes that documents take.
    pub(crate) fn used(&self) -> u64 {
        self.0.used.load(Relaxed)
    }

    /// Begins a document, of which `expected` bytes were announced: room for those is there from then on.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub(crate) async fn begin(&self, kind: Kind, expected: Option<u64>) -> Result<Writer, SpoolError> {
        let max = self.0.limits.max_document;
        let expected = expected.unwrap_or(0);
        if expected > max {
            return Err(SpoolError::TooLarge { max });
        }
        self.0.take(expected)?;
        let held = Held { shared: self.0.clone(), bytes: AtomicU64::new(expected) };
        let name: Box<str> = random::base32::<16>().into();
        let path = self.path(kind, &name, "data");
        let spooled = blocking(move || {
            let unnamed = path.is_none();
            let path = path
                .unwrap_or_else(|| std::env::temp_dir().join(format!("relay-{}", random::base32::<16>())));
            let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
            if unnamed {
                fs::remove_file(&path)?;
            }
            let spooled = Spooled::new(name, (!unnamed).then_some(path), file, held, 0);
            let shared = &spooled.held.shared;
            enough(&spooled.file, shared.limits.spool_reserve.saturating_add(expected))?;
            Ok(spooled)
        });
        Ok(Writer::new(spooled.await?, Sha256::new()))
    }

    /// Goes on with a document of `kind` that was begun as `name`. Before anything else, [`Writer::read_again`] is to
    /// be called.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub(crate) async fn reopen(&self, kind: Kind, name: &str) -> Result<Writer, SpoolError> {
        let gone = || SpoolError::Io(io::ErrorKind::NotFound.into());
        let path = self.path(kind, name, "data").ok_or_else(gone)?;
        let (file, length) = blocking(move || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        })
        .await?;
        Ok(Writer::new(Spooled::new(name.into(), None, file, self.hold(length), length), Sha256::new()))
    }

    /// A whole document of `kind`, to read; a job's goes with it. What it takes is counted by whoever keeps it.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; also if its length is another.
    pub(crate) async fn whole(
        &self,
        kind: Kind,
        name: &str,
        digest: Digest,
    ) -> Result<Arc<Spooled>, SpoolError> {
        let gone = || SpoolError::Io(io::ErrorKind::NotFound.into());
        let path = self.path(kind, name, "data").ok_or_else(gone)?;
        let file = blocking(move || {
            let file = File::open(&path)?;
            match file.metadata()?.len() {
                length if length == digest.bytes => Ok(file),
                _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            }
        });
        let file = file.await?;
        let path = (kind == Kind::Job).then(|| self.path(kind, name, "data")).flatten();
        let spooled = Spooled::new(name.into(), path, file, self.hold(0), digest.bytes);
        spooled.at.send_modify(|at| at.end = End::Whole(digest.sha256));
        Ok(Arc::new(spooled))
    }

    /// Counts `bytes` that are there already, whether that is too much or not.
    pub(crate) fn hold(&self, bytes: u64) -> Held {
        self.0.used.fetch_add(bytes, Relaxed);
        Held { shared: self.0.clone(), bytes: AtomicU64::new(bytes) }
    }

    /// Whether documents have names, and outlive the process.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.0.data.is_some()
    }

    /// Gives the kept document `name` a second name, as a job's: deleting it then leaves the job alone. `None`: it
    /// cannot be done here.
    pub(crate) async fn link(&self, name: &str) -> Option<Box<str>> {
        let from = self.path(Kind::Kept, name, "data")?;
        let name: Box<str> = random::base32::<16>().into();
        let to = self.path(Kind::Job, &name, "data")?;
        blocking(move || Ok(fs::hard_link(from, to)?)).await.ok().map(|()| name)
    }

    fn path(&self, kind: Kind, name: &str, ending: &str) -> Option<PathBuf> {
        let data = self.0.data.as_ref()?;
        Some(data.join(kind.folder()).join(format!("{name}.{ending}")))
    }

    /// Writes down what the document `name` is, so that a relay that starts anew knows. All of it, or nothing.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub(crate) async fn note(
        &self,
        kind: Kind,
        name: &str,
        note: &Value,
        sync: bool,
    ) -> Result<(), SpoolError> {
        let (Some(path), Some(new)) = (self.path(kind, name, "json"), self.path(kind, name, "new")) else {
            return Ok(());
        };
        let text = note.to_string();
        blocking(move || {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            if sync {
                file.sync_all()?;
            }
            fs::rename(&new, &path)?;
            if sync && let Some(folder) = path.parent() {
                File::open(folder)?.sync_all()?;
            }
            Ok(())
        })
        .await
    }

    /// Removes the document `name` and its note.
    pub(crate) async fn remove(&self, kind: Kind, name: &str) {
        let paths = ["json", "data"].map(|ending| self.path(kind, name, ending));
        let removed = blocking(move || {
            // The note first: a document without one is known for a leftover.
            for path in paths.into_iter().flatten() {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "a document's file cannot be removed");
        }
    }

    /// The documents that a relay before this one noted down. What has no note is a leftover, and goes.
    ///
    /// # Errors
    /// If their folder cannot be read.
    pub(crate) async fn notes(&self, kind: Kind) -> io::Result<Vec<(Box<str>, Value)>> {
        let Some(folder) = self.0.data.as_ref().map(|data| data.join(kind.folder())) else {
            return Ok(Vec::new());
        };
        let read = move || {
            let mut notes = Vec::new();
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
                let ending = path.extension().and_then(|ending| ending.to_str());
                let leftover = match ending {
                    Some("json") => match read_note(&path) {
                        Some(note) if path.with_extension("data").exists() => {
                            notes.push((name.into(), note));
                            false
                        }
                        _ => true,
                    },
                    Some("data") => !path.with_extension("json").exists(),
                    Some("new") => true,
                    // Not one of ours.
                    _ => false,
                };
                if leftover {
                    fs::remove_file(&path)?;
                }
            }
            Ok(notes)
        };
        spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

fn read_note(path: &Path) -> Option<Value> {
    if fs::metadata(path).ok()?.len() > MAX_NOTE {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whether the disk of `file` has more than `wanted` bytes left.
fn enough(file: &File, wanted: u64) -> Result<(), SpoolError> {
    // Where it cannot be asked, the write itself will tell.
    match rustix::fs::fstatvfs(file) {
        Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < wanted => {
            Err(SpoolError::Full("its disk has too little room left"))
        }
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    match spawn_blocking(work).await {
        Ok(Err(SpoolError::Io(error))) => Err(SpoolError::of(error)),
        Ok(done) => done,
        Err(stopped) => Err(SpoolError::Io(io::Error::other(stopped))),
    }
}

/// What a document counts for, given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    shared: Arc<Shared>,
    bytes: AtomicU64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.give_back(self.bytes.load(Relaxed));
    }
}

/// How far a document has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct At {
    bytes: u64,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Coming,
    Whole([u8; 32]),
    BrokeOff,
}

/// A document, all of it or what has come so far.
pub(crate) struct Spooled {
    name: Box<str>,
    /// Its file, if that goes with it.
    path: Mutex<Option<PathBuf>>,
    file: Arc<File>,
    at: watch::Sender<At>,
    /// The last piece that was read, from which the next reading is most likely served, too.
    window: Mutex<Option<(u64, Bytes)>>,
    held: Held,
}

impl fmt::Debug for Spooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spooled").field("at", &*self.at.borrow()).finish_non_exhaustive()
    }
}

impl Spooled {
    fn new(name: Box<str>, path: Option<PathBuf>, file: File, held: Held, bytes: u64) -> Self {
        let at = watch::Sender::new(At { bytes, end: End::Coming });
        Self { name, path: Mutex::new(path), file: Arc::new(file), at, window: Mutex::default(), held }
    }

    /// Its file stays from now on, until it is removed by its name.
    pub(crate) fn stays(&self) {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The name that the relay gave its file.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that are there.
    pub(crate) fn available(&self) -> u64 {
        self.at.borrow().bytes
    }

    /// Whether all of it is there.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.at.borrow().end, End::Whole(_))
    }

    /// Makes sure that it survives a power failure.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub(crate) async fn sync(&self) -> Result<(), SpoolError> {
        let file = self.file.clone();
        blocking(move || Ok(file.sync_all()?)).await
    }

    fn windowed(&self, offset: u64, max: usize) -> Option<Bytes> {
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, bytes) = window.as_ref()?;
        let start = usize::try_from(offset.checked_sub(*from)?).ok().filter(|start| *start < bytes.len())?;
        Some(bytes.slice(start..bytes.len().min(start.saturating_add(max))))
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        let Some(path) = self.path.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let remove = move || {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(%error, "a document's file cannot be removed");
            }
        };
        // A large one takes its time.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

#[async_trait]
impl Source for Spooled {
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes, SourceError> {
        let mut at = self.at.subscribe();
        let there = loop {
            let now = *at.borrow_and_update();
            if offset < now.bytes {
                break now.bytes - offset;
            }
            match now.end {
                End::Whole(_) => return Ok(Bytes::new()),
                End::BrokeOff => return Err(SourceError::BrokeOff { at: now.bytes }),
                End::Coming if max == 0 => return Ok(Bytes::new()),
                // The sender is in `self`.
                End::Coming => drop(at.changed().await),
            }
        };
        if max == 0 {
            return Ok(Bytes::new());
        }
        if let Some(bytes) = self.windowed(offset, max) {
            return Ok(bytes);
        }
        let file = self.file.clone();
        let length = usize::try_from(there).unwrap_or(WINDOW).min(WINDOW);
        let read = spawn_blocking(move || {
            let mut bytes = BytesMut::zeroed(length);
            file.read_exact_at(&mut bytes, offset).map(|()| bytes.freeze())
        });
        let unreadable = |error: String| SourceError::Unreadable(error.into());
        let bytes = read
            .await
            .map_err(|error| unreadable(error.to_string()))?
            .map_err(|error| unreadable(error.to_string()))?;
        let piece = bytes.slice(..max.min(bytes.len()));
        let rest = (piece.len() < bytes.len()).then_some((offset, bytes));
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        Ok(piece)
    }

    fn digest(&self) -> Option<Digest> {
        let at = *self.at.borrow();
        match at.end {
            End::Whole(sha256) => Some(Digest { bytes: at.bytes, sha256 }),
            _ => None,
        }
    }
}

/// The writing end of a document. Dropped before it is whole, it breaks the document off.
#[derive(Debug)]
pub(crate) struct Writer {
    spooled: Arc<Spooled>,
    hash: Sha256,
    pending: BytesMut,
    looked_at: u64,
}

impl Writer {
    fn new(spooled: Spooled, hash: Sha256) -> Self {
        let looked_at = spooled.available();
        Self { spooled: Arc::new(spooled), hash, pending: BytesMut::new(), looked_at }
    }

    /// The document, for readers.
    pub(crate) const fn spooled(&self) -> &Arc<Spooled> {
        &self.spooled
    }

    /// Reads what a relay before this one wrote, all of it: its hash is wanted.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub(crate) async fn read_again(&mut self) -> Result<(), SpoolError> {
        let (file, length) = (self.spooled.file.clone(), self.spooled.available());
        self.hash = blocking(move || {
            let (mut hash, mut at, mut window) = (Sha256::new(), 0, vec![0; WINDOW]);
            while at < length {
                let wanted = usize::try_from(length - at).unwrap_or(WINDOW).min(WINDOW);
                file.read_exact_at(&mut window[..wanted], at)?;
                hash.update(&window[..wanted]);
                at += wanted as u64;
            }
            Ok(hash)
        })
        .await?;
        Ok(())
    }

    /// Takes more of it. Readers see it from [`flush`](Self::flush) on, or when there is enough to be worth a write.
    ///
    /// # Errors
    /// [`SpoolError`]. What was there stays.
    ///
    /// # Cancel safety
    /// Not: dropped half-way, the document cannot be gone on with.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<(), SpoolError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(WINDOW - self.pending.len()));
            self.pending.extend_from_slice(&piece);
            if self.pending.len() == WINDOW {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Lets readers see all that was written.
    ///
    /// # Errors
    /// As [`Writer::write`].
    ///
    /// # Cancel safety
    /// Not.
    pub(crate) async fn flush(&mut self) -> Result<(), SpoolError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let from = self.spooled.available();
        let to = from + self.pending.len() as u64;
        self.make_room(to)?;
        let (file, bytes, mut hash) = (self.spooled.file.clone(), self.pending.split(), self.hash.clone());
        let look =
            (to >= self.looked_at + LOOK_EVERY).then_some(self.spooled.held.shared.limits.spool_reserve);
        let (mut bytes, hash) = blocking(move || {
            if let Some(reserve) = look {
                enough(&file, reserve)?;
            }
            file.write_all_at(&bytes, from)?;
            hash.update(&bytes);
            Ok((bytes, hash))
        })
        .await?;
        // The same memory again: it is all that this document takes.
        bytes.clear();
        (self.pending, self.hash) = (bytes, hash);
        if look.is_some() {
            self.looked_at = to;
        }
        self.spooled.at.send_modify(|at| at.bytes = to);
        Ok(())
    }

    fn make_room(&self, to: u64) -> Result<(), SpoolError> {
        let held = &self.spooled.held;
        let max = held.shared.limits.max_document;
        if to > max {
            return Err(SpoolError::TooLarge { max });
        }
        let has = held.bytes.load(Relaxed);
        if to > has {
            held.shared.take(to - has)?;
            held.bytes.store(to, Relaxed);
        }
        Ok(())
    }

    /// That was all of it.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub(crate) async fn finish(&mut self) -> Result<Digest, SpoolError> {
        self.flush().await?;
        let sha256 = self.hash.clone().finalize().into();
        self.spooled.at.send_modify(|at| at.end = End::Whole(sha256));
        self.pending = BytesMut::new();
        Ok(Digest { bytes: self.spooled.available(), sha256 })
    }

    /// Gives back what rests in memory, between two parts of an upload.
    pub(crate) fn rest(&mut self) {
        if self.pending.is_empty() {
            self.pending = BytesMut::new();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.spooled.at.send_if_modified(|at| {
            let coming = at.end == End::Coming;
            if coming {
                at.end = End::BrokeOff;
            }
            coming
        });
    }
}
