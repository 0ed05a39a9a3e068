//! What the agent is told, and what it says is to be done.

use std::time::{Duration, Instant};

use relay_core::{ids::SessionId, transport::EndReason};

use crate::{
    backoff::ReconnectConfig,
    event::{Event, SessionState},
};

/// What the device does when nothing was pushed for its `keepalive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnQuiet {
    /// Asks the relay, outside the session, whether it still knows the session: known, and a fresh connection is
    /// opened on it; unknown or no answer, and a new session is. The only choice that tells a dead connection from a
    /// quiet one at the price of one small call.
    #[default]
    Ask,
    /// Opens a fresh connection on the session without asking. Cheapest; a session that the relay forgot is noticed
    /// by what it answers there.
    Reopen,
    /// Opens a new session without asking.
    NewSession,
    /// Does nothing: only what the transport itself notices is noticed.
    Off,
}

#[derive(Debug, Clone)]
pub(crate) struct AgentConfig {
    pub(crate) keepalive: Option<Duration>,
    pub(crate) on_quiet: OnQuiet,
    /// How long a survival notification may take.
    pub(crate) answer_within: Duration,
    /// How long each other step may take.
    pub(crate) step_within: Duration,
    pub(crate) reconnect: ReconnectConfig,
}

/// Numbers operations and the sessions that come of them.
pub(crate) type Attempt = u64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Enroll,
    Register,
    Connect {
        resume: Option<SessionId>,
        deadline: Instant,
    },
    /// Goes on with the session in force over a better transport.
    Better {
        session: SessionId,
        deadline: Instant,
    },
    AskAlive {
        session: SessionId,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The credential was not accepted.
    Refused,
    /// The relay has no such device.
    UnknownDevice,
    /// The relay understood and will not have it so.
    Rejected,
    /// Another machine with this ID took over.
    Replaced,
    /// Anything that trying again can help.
    Passing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) words: Box<str>,
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn passing(words: &str) -> Self {
        Self { kind: FailureKind::Passing, words: words.into(), retry_after: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// Enrolled; the token is on disk.
    Enrolled,
    Registered,
    Connected {
        session: SessionId,
        resumed: bool,
    },
    Alive {
        known: bool,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Input {
    Maintenance(bool),
    /// Run the start-up order again, as if the device had just been switched on.
    Activate,
    /// What the device is has changed.
    Register,
    /// There is a PIN that was not tried yet.
    Pin,
    Done(Attempt, Result<Done, Failure>),
    /// The relay pushed something on the session that this attempt opened.
    Pushed(Attempt),
    /// The relay on whose session this comes is to be followed by another one.
    SentAway(Attempt),
    Ended(Attempt, EndReason),
    /// There may be a better transport than the one that carries the session that this attempt opened.
    Better(Attempt),
    /// Time has passed.
    Woken,
    Shutdown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the relay that the device is configured for.
    Home,
    /// Where a relay sent it.
    Away,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    Run(Attempt, Op),
    Abort(Attempt),
    /// What follows is for the relay there.
    Move(Place),
    /// Go on over a fresh connection on the session in force.
    Refresh,
    /// Say goodbye on the session in force.
    CloseSession,
    State(SessionState),
    Event(Event),
}

/// What the agent knows when it is made.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) has_token: bool,
    pub(crate) has_pin: bool,
    /// The session of the device's last run.
    pub(crate) resume: Option<SessionId>,
    pub(crate) seed: u64,
}
