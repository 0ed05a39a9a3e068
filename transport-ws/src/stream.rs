//! What carries a session's bytes.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes, both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> ByteStream for S {}

/// One of any kind.
pub type BoxStream = Pin<Box<dyn ByteStream>>;
