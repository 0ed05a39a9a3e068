//! XMPP over BOSH ([XEP-0124], [XEP-0206]), both ends: how a relay and its devices keep a session over plain HTTP.
//!
//! ```text
//! device                          relay's HTTP server
//! BoshConnector ── POST ─────────▶ ConnectionManager::exchange
//!   Exchange (one POST)              one request of each session is held …
//!   Push, Inbound   ◀── answer ──    … and leaves with the next push      ── BoshListener ─▶ Relay::serve
//! ```
//!
//! A relay hosts a [`ConnectionManager`] on whatever HTTP server it has, and gives its [`BoshListener`] to
//! [`Relay::serve`](relay_core::Relay::serve); see [`server`]. A device dials with a
//! [`BoshConnector`](client::BoshConnector). Any XMPP client that speaks BOSH can be a device, and the client end logs
//! into any XMPP server: [`XmppClient`](client::XmppClient).
//!
//! ```
//! use transport_bosh::{Reply, wire::TerminalCondition};
//!
//! // What every host needs beside POST: answers to probes and to browsers that ask first.
//! assert_eq!(Reply::greeting().status, 200);
//! assert!(Reply::preflight().headers().any(|(name, _)| name == "access-control-allow-methods"));
//! assert_eq!(TerminalCondition::parse("item-not-found"), TerminalCondition::ItemNotFound);
//! ```
//!
//! - [`server`] and [`client`]: the two ends, in thin async shells;
//! - [`proto`]: the machines inside, without I/O, clock or randomness. They are public so that they can be tested, fuzzed
//!   and built upon, and may change with any release;
//! - [`wire`]: `<body/>`, stanzas, conditions;
//! - `docs/bosh.md` in the repository: terms, bounds, ends, and the proof of every item of the specifications.
//!
//! | feature | brings |
//! |---|---|
//! | `reqwest` (default) | the client end's HTTP; without it, an [`Exchange`](exchange::Exchange) of your own |
//!
//! It is no XMPP server: nothing is routed from one client to another, there are no rosters and no presence
//! subscriptions.
//!
//! [XEP-0124]: https://xmpp.org/extensions/xep-0124.html
//! [XEP-0206]: https://xmpp.org/extensions/xep-0206.html
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod client;
pub mod config;
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
