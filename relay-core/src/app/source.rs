//! Where a job's data comes from.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// A document's length and hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

impl Digest {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: Sha256::digest(bytes).into() }
    }

    /// The hash in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.sha256)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({} bytes, {})", self.bytes, self.hex())
    }
}

/// Why a source has nothing to give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Whoever was sending it went away and did not come back.
    #[error("the document broke off after {at} bytes")]
    BrokeOff {
        /// Where.
        at: u64,
    },
    /// It cannot be read.
    #[error("the document cannot be read: {0}")]
    Unreadable(Box<str>),
}

/// Data that may still be coming in, and can be read again from any place: what broke is gone on with from where the
/// reader says. Nobody holds all of it in memory.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Up to `max` bytes from `offset` on. Waits until there are some; empty means that the data ends at or before
    /// `offset`. With `max` 0 it says, without waiting, whether the data ends at `offset`: empty, and
    /// [`Source::digest`] tells.
    ///
    /// # Errors
    /// [`SourceError`]: there will be no more.
    ///
    /// # Cancel safety
    /// Dropped, nothing changes.
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes, SourceError>;

    /// Length and hash, once all is there.
    fn digest(&self) -> Option<Digest>;
}

/// A document in memory.
#[derive(Clone)]
pub struct MemorySource {
    bytes: Bytes,
    digest: Digest,
}

impl MemorySource {
    /// `bytes`, all there.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::of(&bytes), bytes }
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySource({} bytes)", self.bytes.len())
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes, SourceError> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        Ok(self.bytes.slice(from..from.saturating_add(max).min(self.bytes.len())))
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.digest)
    }
}
