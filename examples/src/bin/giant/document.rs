//! A document of any size that nobody holds: made as it is read, the same each time.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWriteExt},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

const PIECE: usize = 64 * 1024;
/// What waits to be read.
const AHEAD: usize = 4 * PIECE;

/// A document on its way: to be read, and its SHA-256 once that was done.
pub(crate) struct Document {
    pub(crate) data: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) sha256: JoinHandle<Option<[u8; 32]>>,
}

impl Document {
    /// Of so many bytes, as fast as they are read, or evenly over a time.
    pub(crate) fn new(bytes: u64, over: Duration) -> Self {
        let (data, mut sink) = tokio::io::simplex(AHEAD);
        let sha256 = tokio::spawn(async move {
            let (start, mut hash, mut at) = (Instant::now(), Sha256::new(), 0);
            let mut piece = vec![0; PIECE];
            while at < bytes {
                if !over.is_zero() {
                    sleep_until(start + over.mul_f64(at as f64 / bytes as f64)).await;
                }
                let length = usize::try_from(bytes - at).unwrap_or(PIECE).min(PIECE);
                fill(&mut piece[..length], at);
                hash.update(&piece[..length]);
                sink.write_all(&piece[..length]).await.ok()?;
                at += length as u64;
            }
            sink.shutdown().await.ok()?;
            Some(hash.finalize().into())
        });
        Self { data: Box::new(data), sha256 }
    }
}

/// No two places in a document are alike (SplitMix64 of the offset): bytes from a wrong one would be noticed.
fn fill(piece: &mut [u8], from: u64) {
    for (n, word) in piece.chunks_mut(8).enumerate() {
        let mut z = (from / 8 + n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..word.len()]);
    }
}
