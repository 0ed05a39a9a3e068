//! For device vendors: a device that a service on the Internet can reach at any moment, through any NAT.
//!
//! The device keeps one outbound session to a relay. A service asks the relay for the device by name; the relay pushes
//! the request down the session; the device's handler answers; the answer is what the service's own call returns.
//!
//! ```text
//! service ── HTTP ──▶ relay ── session ──▶ Device ──▶ Router ──▶ your handler
//! service ◀── HTTP ── relay ◀── answer ────────────────────────────┘
//! ```
//!
//! # A whole device
//!
//! ```no_run
//! use device_sdk::{Device, HandlerError, Registration, Router, Set};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let router = Router::new()
//!         .get("1.3.6.1.2.1.43.11.1.1.9.1.1", || async { Ok(83) })
//!         .set("1.3.6.1.2.1.1.6.0", |Set(location): Set<String>| async move {
//!             if location.len() > 255 { Err(HandlerError::bad_value("too long")) } else { Ok(location) }
//!         });
//!     let device = Device::builder("https://relay.example", "printer-1")
//!         .pin("12345678")
//!         .state_folder("/var/lib/printer-1")
//!         .registration(Registration::new().model("Example 7000"))
//!         .router(router)
//!         .start()
//!         .await?;
//!     device.online().await?;
//!     device.closed().await;
//!     Ok(())
//! }
//! ```
//!
//! # What it does by itself
//!
//! It enrolls once (a PIN for a credential of its own), registers, opens its session, in this order; asks the relay
//! whether it still knows the session when nothing was pushed for a while; comes back, with back-off and jitter, for as
//! long as it takes; runs handlers beside one another, within bounds; never runs a request twice; delivers each answer
//! until the relay says what became of it. [`Device::events`] tells a user interface.
//!
//! # Where to go on
//!
//! Services send work to an [`App`]: a document to print, say. One handler does it, whatever carries the data. One app is
//! there already: [`AddressBooks`], which the device shares with the others of its account.
//!
//! The [`guide`] goes through all of it. [`Router`] and [`Handler`] for what the device does, [`Builder`] for its settings, [`Device`] for what can be said to
//! it while it runs. A transport of another kind is a [`relay_core::transport::Connector`], given to
//! [`Builder::connector`].
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `ws` | yes | WebSocket |
//! | `bosh` | yes | XMPP over BOSH |
//!
//! With both, the device takes whichever the network lets through ([`Transport::Auto`]).
//!
//! # What it is not
//!
//! It listens on no port, and calls nobody but its relay, and whom its user has it call ([`Device::pull`]).
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

#[doc = include_str!("../../docs/device.md")]
pub mod guide {}

mod agent;
mod app;
mod backoff;
pub mod book;
mod builder;
mod device;
mod error;
mod event;
mod handler;
mod http;
#[cfg_attr(
    not(any(feature = "ws", feature = "bosh")),
    allow(dead_code, reason = "a connector of one's own learns by itself")
)]
mod keepalive;
mod ledger;
mod pull;
mod reach;
mod registration;
mod relays;
mod router;
mod session;
mod shell;
mod state;
mod transport;
mod whole_file;

pub use relay_core::{
    app::{Progress, print::PrintTicket},
    ids::{AccountId, AppName, DeviceId, Method, ObjectId, RequestId, SiteId},
    request::{Body, Request, Response},
    tls::Trust,
};

pub use crate::{
    agent::OnQuiet,
    app::{App, IntoVersion, Job},
    backoff::ReconnectConfig,
    book::AddressBooks,
    builder::Builder,
    device::Device,
    error::{ControlError, OnlineError, StartError, StateError},
    event::{Event, Events, JobEnd, SessionState, Step},
    handler::{Context, FromRequest, Handler, HandlerError, IntoBody, Json, Set},
    http::{BookReport, BookVerdict, HttpError, HttpErrorKind, JobPart, JobStream, RelayHttp, Verdict},
    ledger::RespondBy,
    pull::{Download, Pull, PullError, Push},
    registration::{AppEntry, Registration},
    router::Router,
    transport::Transport,
};

/// The time that tokio's clock, which a test can hold, shows.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
