//! The protocol's machines: no I/O, no clock, no randomness.

pub mod client;
mod keys;
pub mod manager;
pub mod rid;
pub(crate) mod room;
pub mod stream;
