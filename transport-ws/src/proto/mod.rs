//! The machines: no I/O, no clock, no randomness.

pub mod control;
pub mod frame;
mod outgoing;
mod rate;
