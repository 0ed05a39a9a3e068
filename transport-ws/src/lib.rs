//! The WebSocket transport ([RFC 6455]), both ends: one control session per device, in text frames of one element each,
//! and beside it a channel for each job of one of its apps, with the job's data in binary frames.
//!
//! ```text
//! device                          relay's HTTP server
//! WsConnector ── GET /ws ────────▶ WsManager::upgrade ── WsListener ─▶ Relay::serve
//!   ◀── 101, Relay-Session ──────  Accepted::attach(connection)
//!   Push, Inbound ◀── frames ──▶   Push, Inbound
//!
//! WsConnector ── GET /ws/print?id= ▶ WsManager::upgrade ── WsListener ─▶ Relay::serve: is there such a job?
//!   ◀── 101 ─────────────────────  Accepted::attach(connection)
//!   Channel ◀──── frames ──────▶   Channel
//! ```
//!
//! A relay hosts a [`WsManager`] on whatever HTTP server it has, and gives its [`WsListener`] to
//! [`Relay::serve`](relay_core::Relay::serve); see [`server`]. A device dials with a [`WsConnector`]; see [`client`].
//!
//! ```
//! use transport_ws::{WsConnector, wire::close};
//!
//! let connector = WsConnector::new("wss://relay.example/ws")?;
//! // In clear to another machine: only expressly.
//! assert!(WsConnector::new("ws://relay.example/ws").is_err());
//! assert!(close::may_travel(close::REPLACED));
//! # Ok::<(), relay_core::error::TransportError>(())
//! ```
//!
//! - [`server`] and [`client`]: the two ends, in thin async shells;
//! - [`proto`]: the machines inside, without I/O, clock or randomness. They are public so that they can be tested, fuzzed
//!   and built upon, and may change with any release;
//! - [`wire`]: close codes, the vocabulary in frames, the opening handshake;
//! - `docs/websocket.md` in the repository: terms, bounds, ends, and the proof of every item of the specification.
//!
//! It is no general WebSocket library: it speaks the relay's vocabulary, and no extension.
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod channel;
pub mod client;
pub mod config;
mod counters;
pub mod proto;
mod pump;
pub mod server;
mod session;
pub mod stream;
pub mod wire;

/// The transport's name in logs, metrics and inquiries.
pub(crate) const NAME: &str = "ws";

pub use crate::{
    client::{WsConnector, WsSettings},
    config::{ChannelConfig, ControlConfig, WsServerConfig},
    counters::Counters,
    server::{Accepted, Refusal, WsListener, WsManager},
};
