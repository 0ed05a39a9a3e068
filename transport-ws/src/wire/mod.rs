//! Bytes and types: close codes, the vocabulary in text frames, the opening handshake.

pub mod close;
pub mod control;
pub mod handshake;
