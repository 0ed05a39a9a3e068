//! The relay, to host in a program of your own or to run as the program `relay` (feature `relay`).
//!
//! [`Server`] is all of it: the HTTP API, the BOSH connection manager at `/http-bind`, the engine behind both and the
//! store beneath. It owns its sockets, limits and time-outs, installs no signal handler and keeps no global state, so
//! that several may live in one process.
//!
//! ```text
//! socket ─▶ http (bounds, tokens, JSON) ─▶ relay_core::Relay ─▶ transport_bosh ─▶ device
//!                     └─▶ store (devices, keys)
//! ```

pub mod auth;
mod books;
pub mod config;
mod convert;
mod directory;
mod documents;
mod http;
mod jobs;
mod serve;
mod spool;
pub mod store;

pub use self::{
    config::{ConfigError, HttpLimits, ServerConfig, SpoolLimits},
    convert::{Convert, ConvertError, Converted},
    serve::{ServeError, Server},
};
