//! XMPP over BOSH, both ends, on protocol machines that do no I/O.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod client;
pub mod config;
pub mod error;
pub mod exchange;
#[cfg(feature = "reqwest")]
pub mod http;
pub mod proto;
pub mod server;
pub mod wire;

/// The transport's name in logs, metrics and inquiries.
pub(crate) const NAME: &str = "bosh";

pub use crate::{
    config::BoshServerConfig,
    server::{BoshListener, ConnectionManager, Post, Reply},
};
