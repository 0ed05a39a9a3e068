//! The device's end: dials a relay.
//!
//! A [`WsConnector`] gets a byte stream to the relay's address from a [`Dial`], puts TLS on it, and opens the WebSocket.
//! The dial step is the one place where a proxy comes in, which gives a tunnel to the same address: TLS is with the relay
//! in any case.
//!
//! If the relay is not reached as a relay, [`relay_said`] tells its own refusals, which mean what they say, from whatever
//! else answered: a network that lets no WebSocket through. A device that has another transport takes that for the
//! latter alone.

mod answer;
mod channel;
mod connector;
mod dial;

pub use self::{
    answer::{NoWebSocket, RelayProblem, relay_said},
    connector::{WsConnector, WsSettings},
    dial::{Dial, Direct, Target},
};
pub use relay_core::tls::Trust;
