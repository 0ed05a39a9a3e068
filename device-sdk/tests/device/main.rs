//! The whole device against the real engine, over the in-memory transport, in paused time.

mod answers;
mod books;
mod control;
mod handlers;
mod jobs;
mod links;
mod session;
mod wire;
mod world;
