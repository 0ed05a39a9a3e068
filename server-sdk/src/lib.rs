//! For service authors: call devices behind firewalls and NATs through a relay.
//!
//! A service makes one HTTP call that names the device; the relay pushes it down the session that the device keeps
//! open; the device's answer is the answer of that very call. This crate is the client of such a relay and, with the
//! feature `relay`, the relay itself, to host in a program of one's own or to run as the program `relay`.
//!
//! ```text
//! service ── Client::get ──▶ relay ──▶ the session that the device opened ──▶ device
//! service ◀── Answer ─────── relay ◀──────────── its answer ◀──────────────── device
//! ```
//!
//! # Reading a toner level
//! ```no_run
//! #[tokio::main]
//! async fn main() -> Result<(), server_sdk::Error> {
//!     let relay = server_sdk::Client::new("https://relay.example", "the service's key")?;
//!     let level = relay.get("printer-1", "1.3.6.1.2.1.43.11.1.1.9.1.1").await?;
//!     println!("toner: {}", level.text()?);
//!     Ok(())
//! }
//! ```
//!
//! # When it does not work
//! An [`Error`] says what to do next ([`Error::kind`]), how far the request came ([`Error::outcome`]), and whether the
//! device has certainly not acted ([`Error::is_safe_to_retry`]). The client repeats nothing on its own.
//! ```no_run
//! # async fn run(relay: server_sdk::Client) -> Result<(), server_sdk::Error> {
//! use server_sdk::{Body, ErrorKind};
//!
//! match relay.set("printer-1", "location", Body::text("2nd floor")).await {
//!     Ok(now) => println!("now in force: {}", now.text()?),
//!     Err(error) if error.kind() == ErrorKind::DeviceOffline => println!("later, then"),
//!     Err(error) if error.is_safe_to_retry() => println!("not done, ask again: {error}"),
//!     Err(error) => println!("it may have been done ({:?}): {error}", error.outcome()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Where to go next
//! [`Client`] has all calls; [`Client::devices`] finds devices; [`Client::events`] watches; [`Client::address_book`] reads and changes what an
//! account's devices share; [`Client::administration`] enrols devices and makes keys.
//! With the feature `relay`, the module `relay` hosts one.
//!
//! # Features
//! | feature | brings |
//! |---|---|
//! | – | the client: reqwest and rustls (on ring; no process-wide default is installed or needed) |
//! | `relay` | the relay: HTTP API, BOSH, SQLite store, the program `relay` |
//!
//! # What it is not
//! Not a device's side: that is `device-sdk`. Not a queue: a device that is offline is an error at once.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod client;
#[cfg(feature = "relay")]
pub mod relay;

pub use client::{
    AddressBook, Answer, Client, ClientBuilder, Device, DeviceFilter, Error, ErrorKind, JobStream, PrintJob,
};
pub use relay_core::{
    Body, Request,
    app::{JobState, JobUpdate},
    book, ids,
    outcome::Outcome,
    relay::State,
};
