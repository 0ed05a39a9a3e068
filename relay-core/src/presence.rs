//! Whether a device can be reached, and how we know.

use std::time::Duration;

/// Whether a device can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// A push can go to it.
    Online,
    /// It cannot be reached.
    Offline,
    /// It sleeps and can be woken.
    Asleep,
}

impl State {
    /// The word in inquiries and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Asleep => "asleep",
        }
    }
}

/// What is known of a device's being reachable, with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Presence {
    /// Whether it can be reached.
    pub state: State,
    /// Grows with each new session of the device; 0 if it never had one.
    pub epoch: u64,
    /// How long ago it was last heard; `None` if never since the relay started.
    pub last_heard: Option<Duration>,
    /// Within how long its loss would be noticed.
    pub detects_loss_within: Duration,
    /// Which transport carries its session.
    pub transport: Option<&'static str>,
}
