//! The machines: no I/O, no clock, no randomness.

pub mod channel;
pub mod control;
pub mod frame;
mod link;
mod outgoing;
mod rate;
