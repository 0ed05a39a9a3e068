//! The relay's protocol-neutral core.
//!
//! A service asks the relay for a device by name; the relay pushes the request down the session that the device keeps
//! open; the device's answer comes back as the result of that same call. This crate has everything about that which is
//! the same whatever carries the session: names ([`ids`]), what is asked and answered ([`request`], [`outcome`]), what
//! travels ([`envelope`]), the seam to transports ([`transport`]), the engine behind it ([`Relay`]), an in-memory
//! transport ([`memory`]), and the kit that proves a transport (feature `conformance`).
//!
//! ```text
//! service ─▶ Relay::request ─▶ Push::push ─▶ transport ─▶ device
//!               pending[RequestId] = who waits               │
//! service ◀─ the same call ◀─ Relay::respond ◀───────────────┘
//! ```
//!
//! It knows no HTTP type, no XMPP word and no WebSocket frame; its XML vocabulary ([`xml`]) and [`retry_after`] are
//! codecs that a transport may use.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod app;
pub mod auth;
pub mod book;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod engine;
pub mod envelope;
pub mod error;
pub mod ids;
pub mod memory;
pub mod outcome;
mod presence;
pub mod random;
pub mod relay;
pub mod request;
pub mod request_ids;
pub mod retry_after;
pub mod store;
#[cfg(feature = "tls")]
pub mod tls;
pub mod transport;
pub mod xml;

pub use crate::{
    relay::Relay,
    request::{Body, Call, Request, Response},
};
