//! A job's data by plain HTTP: parts of it, each from the offset that was asked for.

use std::{fmt, pin::Pin};

use bytes::Bytes;
use futures_util::Stream;

use super::HttpError;

/// Bytes as they come.
pub type JobStream = Pin<Box<dyn Stream<Item = Result<Bytes, HttpError>> + Send>>;

/// A part of a job's data, from the offset that was asked for on. Where it ends the next one begins; the relay chooses how
/// much it gives at once.
#[non_exhaustive]
pub struct JobPart {
    /// The bytes.
    pub data: JobStream,
    /// The length of the whole, if the relay knows it: the job's own sender may still be sending.
    pub total: Option<u64>,
    /// The SHA-256 of the whole, if the relay knows it.
    pub sha256: Option<[u8; 32]>,
}

impl JobPart {
    /// `data`, of a whole of which this is known.
    pub fn new(data: JobStream, total: Option<u64>, sha256: Option<[u8; 32]>) -> Self {
        Self { data, total, sha256 }
    }
}

impl fmt::Debug for JobPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobPart").field("total", &self.total).finish_non_exhaustive()
    }
}
