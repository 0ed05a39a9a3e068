//! The WebSocket transport: one control session per device and, beside it, a channel per piece of app work.
//!
//! This crate is the transport's place in the house. It exports nothing yet; [the BOSH transport] is the one
//! that works today, and both stand on the seam in `relay_core::transport`.
//!
//! [the BOSH transport]: https://xmpp.org/extensions/xep-0124.html
