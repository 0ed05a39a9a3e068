//! Two transports to one relay: the better one where the network lets it through, else the other.
//!
//! A session is gone on with over whichever gets through: its ID, what is in flight and the device's being online are the
//! relay's to keep, and it is asked for them on either.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use relay_core::{
    error::{ErrorKind, TransportError},
    transport::{
        ChannelOptions, ConnectOptions, Connector, DeviceChannel, EndReason, Session, TransportInfo,
    },
};

use super::{
    Better,
    chooser::{Chooser, Which},
    observed::{Observer, observed},
};
use crate::{backoff::Jitter, state::State};

/// How long the first of the two may take: a network that swallows one kind leaves time for the other.
const FIRST_WITHIN: Duration = Duration::from_secs(10);

/// Whether an error of the better transport means what it says, so that the other would be told the same.
pub(crate) type IsFinal = fn(&TransportError) -> bool;

/// Two transports, of which one carries the session.
pub(crate) struct Auto {
    better: Arc<dyn Connector>,
    other: Arc<dyn Connector>,
    is_final: IsFinal,
    chooser: Arc<Mutex<Chooser>>,
    state: State,
}

impl fmt::Debug for Auto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auto")
            .field("better", &self.better)
            .field("other", &self.other)
            .finish_non_exhaustive()
    }
}

fn lock(chooser: &Mutex<Chooser>) -> MutexGuard<'_, Chooser> {
    chooser.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Auto {
    /// `better` if it gets through, else `other`; what worked is kept in `state`.
    pub(crate) fn new(
        better: Arc<dyn Connector>,
        other: Arc<dyn Connector>,
        is_final: IsFinal,
        state: State,
        seed: u64,
    ) -> Self {
        let worked = state.read().transport;
        let remembered = (worked.as_deref() == Some(other.info().name)).then_some(Which::Other);
        let chooser = Chooser::new(remembered, Jitter::new(seed), crate::now());
        Self { better, other, is_final, chooser: Arc::new(Mutex::new(chooser)), state }
    }

    fn connector(&self, which: Which) -> &Arc<dyn Connector> {
        match which {
            Which::Better => &self.better,
            Which::Other => &self.other,
        }
    }

    /// Whether the network may be to blame.
    fn may_be_the_network(&self, which: Which, error: &TransportError) -> bool {
        match error.kind {
            ErrorKind::Unauthenticated | ErrorKind::Overloaded | ErrorKind::Replaced | ErrorKind::Expired => {
                false
            }
            _ => which == Which::Other || !(self.is_final)(error),
        }
    }

    async fn opened(&self, which: Which, tried: bool, session: Session) -> Session {
        let first = {
            let mut chooser = lock(&self.chooser);
            chooser.opened(which, tried, crate::now());
            chooser.first()
        };
        let name = self.connector(first).info().name;
        if self.state.read().transport.as_deref() != Some(name) {
            let stored = self.state.store(move |stored| stored.transport = Some(name.to_owned())).await;
            if let Err(error) = stored {
                tracing::warn!(%error, "the transport that works could not be stored");
            }
        }
        let watched = Watched { chooser: self.chooser.clone(), which, spoke: AtomicBool::new(false) };
        observed(session, Arc::new(watched))
    }
}

#[async_trait]
impl Connector for Auto {
    /// What the better one is and can do; what holds for a session is in the session.
    fn info(&self) -> TransportInfo {
        self.better.info()
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let now = crate::now();
        let [first, second] = lock(&self.chooser).order(now);
        let half = options.deadline.saturating_duration_since(now) / 2;
        let mut hurried = options.clone();
        hurried.deadline = now + half.min(FIRST_WITHIN);
        let connecting = self.connector(first).connect(hurried);
        let error = match within(now + half.min(FIRST_WITHIN), connecting).await {
            Ok(session) => return Ok(self.opened(first, false, session).await),
            Err(error) => error,
        };
        if !self.may_be_the_network(first, &error) {
            return Err(error);
        }
        let device = &options.device;
        tracing::debug!(%device, %error, next = self.connector(second).info().name, "no way through");
        let session = self.connector(second).connect(options).await?;
        Ok(self.opened(second, true, session).await)
    }

    async fn channel(&self, options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        self.better.channel(options).await
    }
}

#[async_trait]
impl Better for Auto {
    fn again_at(&self) -> Option<Instant> {
        lock(&self.chooser).again_at()
    }

    fn try_now(&self) {
        lock(&self.chooser).try_now(crate::now());
    }

    async fn connect_better(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        // However this ends, it is not tried again at once.
        lock(&self.chooser).vain(crate::now());
        let session = within(options.deadline, self.better.connect(options)).await?;
        Ok(self.opened(Which::Better, false, session).await)
    }
}

/// Bounds also a connector that does not look at its deadline.
async fn within(
    deadline: Instant,
    connecting: impl Future<Output = Result<Session, TransportError>>,
) -> Result<Session, TransportError> {
    tokio::time::timeout_at(deadline.into(), connecting).await.unwrap_or_else(|_| {
        Err(TransportError::new("auto", ErrorKind::TimedOut, "no session before the deadline"))
    })
}

/// Tells the chooser how a session does.
#[derive(Debug)]
struct Watched {
    chooser: Arc<Mutex<Chooser>>,
    which: Which,
    spoke: AtomicBool,
}

impl Observer for Watched {
    fn came(&self, _: Instant) {
        if !self.spoke.swap(true, Ordering::Relaxed) {
            lock(&self.chooser).spoke(self.which);
        }
    }

    fn ended(&self, reason: EndReason, now: Instant) {
        // Frames that are none are what a proxy between makes of them.
        if matches!(reason, EndReason::Lost | EndReason::Misbehaved) {
            lock(&self.chooser).lost(self.which, self.spoke.load(Ordering::Relaxed), now);
        }
    }
}

#[cfg(test)]
#[path = "auto_tests.rs"]
mod tests;
