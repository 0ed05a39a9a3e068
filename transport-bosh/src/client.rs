//! The client end: logs in to any XMPP server over BOSH, and carries a device's session with a relay.
//!
//! - [`BoshConnector`] is the [`Connector`](relay_core::transport::Connector) of a device.
//! - [`XmppClient`] is what it stands on, useful by itself: log in, send and receive stanzas, log out.
//!
//! ```text
//! BoshConnector ─┐                        ┌─▶ Exchange::post (reqwest, or yours)
//!                ├─▶ one task per session ┤
//! XmppClient ────┘     (driver)           └─▶ ClientMachine, Login: what to say, without I/O
//! ```
//!
//! ```no_run
//! # #[cfg(feature = "reqwest")]
//! # async fn example() -> Result<(), relay_core::error::TransportError> {
//! use std::time::Duration;
//! use relay_core::{auth::Secret, xml::Element};
//! use transport_bosh::{client::{Account, XmppClient}, wire::ns};
//!
//! let client = XmppClient::connecting_to("https://xmpp.example/http-bind", "xmpp.example")?;
//! let account = Account::new("romeo", Secret::new("a password"));
//! let mut session = client.log_in(account, Duration::from_secs(30)).await?;
//! session.send(Element::new(ns::CLIENT, "presence")).await?;
//! while let Some(stanza) = session.receive().await {
//!     println!("{}", stanza.to_document());
//! }
//! # Ok(())
//! # }
//! ```

mod connector;
mod driver;
mod session;

pub use self::{
    connector::{BoshConnector, IdleWatch},
    session::{XmppClient, XmppSession},
};
pub use crate::proto::client::{ClientSettings, ClientStats, End, Granted, login::Account};
