//! (being laid)
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

#[cfg(feature = "relay")]
pub mod relay;
