//! What happens to a device, for the vendor's user interface.

use std::time::Duration;

use relay_core::{
    app::Progress,
    ids::{AppName, Method, ObjectId, RequestId},
    request::Status,
    transport::EndReason,
};
use tokio::sync::broadcast;

use crate::http::Verdict;

/// How the device stands with its relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// Session maintenance is off: the device calls nobody.
    Off,
    /// It is enrolling, registering or connecting.
    Starting,
    /// A push can reach it.
    Online,
    /// It failed or lost its session, and tries again by itself later.
    Waiting,
    /// The relay did not take its credential. With a token it tries again, slowly; with a PIN it waits for
    /// [`Device::enroll`](crate::Device::enroll).
    Refused,
    /// It was shut down.
    Stopped,
}

/// What the device was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Trading its PIN for a credential.
    Enroll,
    /// Telling the relay what it is.
    Register,
    /// Opening a session.
    Connect,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The device got its own credential.
    Enrolled,
    /// The relay knows what the device is.
    Registered,
    /// The relay does not take this registration; a person has to mend it. The device goes on without.
    RegistrationRefused {
        /// The relay's words.
        words: Box<str>,
    },
    /// The relay did not take the device's credential; a person has to mend it.
    CredentialRefused {
        /// What was being done.
        step: Step,
        /// The relay's words.
        words: Box<str>,
        /// When it is shown again; `None`: not before [`Device::enroll`](crate::Device::enroll).
        retry_in: Option<Duration>,
    },
    /// A step failed; the device tries again by itself.
    Failed {
        /// What was being done.
        step: Step,
        /// Why it failed.
        words: Box<str>,
        /// When it tries again.
        retry_in: Duration,
    },
    /// A push can reach the device.
    Online {
        /// Whether the relay went on with the session that the device had before.
        resumed: bool,
    },
    /// The session is over; the device opens another by itself.
    Offline {
        /// Why.
        reason: EndReason,
        /// When it tries again.
        retry_in: Duration,
    },
    /// The session goes over this transport from now on: at first, and whenever that changes.
    Transport {
        /// The transport's name: `ws`, `bosh`, or that of a connector of one's own.
        name: &'static str,
    },
    /// From now on the session's connection is idle for no longer than this before something is sent on it: what the
    /// network in between was found to leave alone.
    KeepAlive {
        /// How long.
        every: Duration,
    },
    /// The relay goes, and says where the device is to come back.
    SentAway {
        /// Where to.
        to: Box<str>,
        /// Whether the device goes there; if not, it comes back to where it is. See
        /// [`allow_relays`](crate::Builder::allow_relays).
        followed: bool,
    },
    /// Nothing was pushed for a while, and the relay was asked whether it still knows the session.
    Survival {
        /// Whether it does; `None` if it did not say in time.
        known: Option<bool>,
    },
    /// Session maintenance was switched.
    Maintenance {
        /// To on.
        on: bool,
    },
    /// What the state folder held was torn or gone.
    StateDamaged {
        /// Whether the previous state was still there and is used.
        recovered: bool,
    },
    /// A request came in.
    Requested {
        /// Its ID.
        id: RequestId,
        /// Its method.
        method: Method,
        /// Its objects.
        objects: Vec<ObjectId>,
    },
    /// A request came in and was turned away, as the device has too much to do.
    TurnedAway {
        /// Its ID.
        id: RequestId,
    },
    /// A request's answer is settled: the relay said what became of it.
    Settled {
        /// The request's ID.
        id: RequestId,
        /// What became of it.
        verdict: Verdict,
    },
    /// An app began a job.
    JobStarted {
        /// The job's ID.
        id: RequestId,
        /// The app.
        app: AppName,
    },
    /// How far an app is with a job.
    JobProgress {
        /// The job's ID.
        id: RequestId,
        /// How far.
        progress: Progress,
    },
    /// A job is over, or was refused.
    JobEnded {
        /// The job's ID.
        id: RequestId,
        /// The app.
        app: AppName,
        /// How it ended.
        end: JobEnd,
    },
    /// The device was shut down.
    Stopped,
    /// The reader was too slow: this many events are gone for it.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// How a job ended at the device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobEnd {
    /// It is done.
    Done,
    /// It is not done; this is what the service is told.
    Failed {
        /// The code.
        status: Status,
        /// The words.
        words: Box<str>,
    },
    /// Nobody wants it any more, or the relay does not have it any more. Offered again, it is gone on with.
    Cancelled,
}

/// A reader of [`Event`]s. Holds the latest 256; a slower reader sees [`Event::Lagged`], never silence.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

/// How many events a reader can be behind.
pub(crate) const BACKLOG: usize = 256;

impl Events {
    pub(crate) const fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self(receiver)
    }

    /// The next event; `None` once the device is gone.
    ///
    /// # Cancel safety
    /// Dropped before it resolved, no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Lagged { missed }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
