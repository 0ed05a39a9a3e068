//! Bytes and types: close codes, the vocabulary in frames, the opening handshake.

pub mod channel;
pub mod close;
pub mod control;
pub mod handshake;
