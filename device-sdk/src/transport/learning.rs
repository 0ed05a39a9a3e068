//! Connections whose keep-alive is learned from how they fare (S4).
//!
//! What is learned is of one way: a transport, a relay, a network of the device's. It is told as [`Event::KeepAlive`], and
//! kept in the state folder, so that a device that is switched on again where it was begins with it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use relay_core::{
    error::TransportError,
    transport::{ChannelOptions, ConnectOptions, Connector, DeviceChannel, Session, TransportInfo},
};
use tokio::sync::broadcast::WeakSender;

use super::{
    network::Lookout,
    observed::{Observer, observed},
};
use crate::{
    event::Event,
    keepalive::{Learner, Lesson},
    state::State,
};

/// A connector whose keep-alive can be set.
pub(crate) trait KeepsAlive: Connector + Clone {
    /// From now on no connection is idle for longer.
    fn keep_alive(&self, every: Duration);

    /// Looks at a session for its keeper, over transports that do not tell it by themselves.
    fn watched(&self, session: Session, keeper: &Arc<Keeper>) -> Session;
}

/// Connects, and learns.
#[derive(Clone)]
pub(crate) struct Learning<C> {
    inner: C,
    keeper: Arc<Keeper>,
}

impl<C: KeepsAlive> Learning<C> {
    /// `inner`, kept alive as `keeper` says.
    pub(crate) fn new(inner: C, keeper: Arc<Keeper>) -> Self {
        let applied = inner.clone();
        keeper.applied_by(Box::new(move |every| applied.keep_alive(every)));
        Self { inner, keeper }
    }
}

impl<C: KeepsAlive> fmt::Debug for Learning<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<C: KeepsAlive> Connector for Learning<C> {
    fn info(&self) -> TransportInfo {
        self.inner.info()
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let (session, way) = tokio::join!(self.inner.connect(options), self.keeper.lookout.look());
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                // It was the relay that went, or all of the network.
                self.keeper.acquit();
                return Err(error);
            }
        };
        self.keeper.goes_by(way);
        self.keeper.convict();
        let session = observed(session, Arc::new(Refreshed(self.keeper.clone())));
        Ok(self.inner.watched(session, &self.keeper))
    }

    async fn channel(&self, options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        self.inner.channel(options).await
    }
}

/// A fresh connection may go another way.
#[derive(Debug)]
struct Refreshed(Arc<Keeper>);

impl Observer for Refreshed {
    fn refreshed(&self) {
        self.0.goes_by(self.0.lookout.glance());
    }
}

type Apply = Box<dyn Fn(Duration) + Send + Sync>;

/// What is learned about one transport's connections to one relay.
pub(crate) struct Keeper {
    bounds: Bounds,
    lookout: Lookout,
    learned: Mutex<Learned>,
    apply: Mutex<Option<Apply>>,
    events: WeakSender<Event>,
    state: State,
}

/// Between what it is sought, and with what it is begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) shortest: Duration,
    pub(crate) longest: Duration,
    pub(crate) first: Duration,
}

impl Bounds {
    fn learner(self) -> Learner {
        Learner::new(self.shortest, self.longest, self.first)
    }
}

#[derive(Debug)]
struct Learned {
    learner: Learner,
    /// The way that it is of.
    way: Option<Box<str>>,
    /// What is remembered of that.
    remembered: Option<Lesson>,
    /// A connection was gone after it was idle for so long. Whether the network did it shows when the relay is there.
    suspected: Option<(Duration, bool)>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("learned", &*self.lock()).finish_non_exhaustive()
    }
}

impl Keeper {
    pub(crate) fn new(bounds: Bounds, lookout: Lookout, events: WeakSender<Event>, state: State) -> Self {
        let learner = bounds.learner();
        let learned = Mutex::new(Learned { learner, way: None, remembered: None, suspected: None });
        Self { bounds, lookout, learned, apply: Mutex::default(), events, state }
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied_by(&self, apply: Apply) {
        apply(self.lock().learner.interval());
        *self.apply.lock().unwrap_or_else(PoisonError::into_inner) = Some(apply);
    }

    /// Connections go by `way` from now on; `None`: that does not show, and they go as before.
    fn goes_by(&self, way: Option<Box<str>>) {
        let Some(way) = way else { return };
        let before = {
            let mut learned = self.lock();
            if learned.way.as_ref() == Some(&way) {
                return;
            }
            let before = learned.learner.interval();
            learned.remembered = self.state.read().lesson(&way);
            // What was learned so far, on no way that showed, holds here as well as anywhere.
            if learned.way.replace(way).is_some() || learned.remembered.is_some() {
                learned.learner = self.bounds.learner();
                learned.suspected = None;
            }
            if let Some(lesson) = learned.remembered {
                learned.learner.recall(lesson, crate::now());
            }
            before
        };
        self.tell(before);
    }

    fn learn(&self, change: impl FnOnce(&mut Learner, Instant)) {
        let (before, lesson) = {
            let mut learned = self.lock();
            let before = learned.learner.interval();
            change(&mut learned.learner, crate::now());
            (before, learned.lesson_learned())
        };
        self.tell(before);
        if let Some((way, lesson)) = lesson {
            let state = self.state.clone();
            tokio::spawn(async move {
                let stored = state.store(move |stored| stored.set_lesson(&way, lesson)).await;
                if let Err(error) = stored {
                    tracing::warn!(%error, "what was learned of the network could not be stored");
                }
            });
        }
    }

    /// Has what is learned now applied, if it was `before`.
    fn tell(&self, before: Duration) {
        let every = self.lock().learner.interval();
        if every == before {
            return;
        }
        if let Some(apply) = &*self.apply.lock().unwrap_or_else(PoisonError::into_inner) {
            apply(every);
        }
        if let Some(events) = self.events.upgrade() {
            // Nobody listening is no error.
            let _ = events.send(Event::KeepAlive { every });
        }
    }

    /// A connection on which nothing passed for so long is good.
    pub(super) fn survived(&self, idle: Duration) {
        self.learn(|learner, now| learner.survived(idle.min(learner.interval()), now));
    }

    /// A connection was gone after it was idle for so long, while the relay is there.
    pub(super) fn was_cut(&self, idle: Duration, seen: bool) {
        self.learn(|learner, now| learner.was_cut(idle, seen, now));
    }

    fn acquit(&self) {
        self.lock().suspected = None;
    }

    fn convict(&self) {
        let suspected = self.lock().suspected.take();
        if let Some((idle, seen)) = suspected {
            self.was_cut(idle, seen);
        }
    }
}

impl Learned {
    /// What is to be remembered of which way, if that changed.
    fn lesson_learned(&mut self) -> Option<(Box<str>, Option<Lesson>)> {
        let lesson = self.learner.lesson();
        // While it is learned anew, what was learned before is the best there is.
        if lesson == self.remembered || !self.learner.is_settled() {
            return None;
        }
        self.remembered = lesson;
        Some((self.way.clone()?, lesson))
    }
}

#[cfg(feature = "ws")]
mod ws {
    use relay_core::transport::EndReason;
    use transport_ws::WsConnector;

    use super::*;

    impl KeepsAlive for WsConnector {
        fn keep_alive(&self, every: Duration) {
            self.set_keepalive(Some(every));
        }

        fn watched(&self, session: Session, keeper: &Arc<Keeper>) -> Session {
            let watched = Watched { keeper: keeper.clone(), traffic_at: Mutex::new(crate::now()) };
            observed(session, Arc::new(watched))
        }
    }

    impl Keeper {
        /// A connection was gone after it was idle for so long. Whether it was cut for that shows when the next one is made.
        fn suspect(&self, idle: Duration) {
            let mut learned = self.lock();
            let interval = learned.learner.interval();
            learned.suspected = Some((idle.min(interval), idle < interval));
        }
    }

    /// A session that is one connection: what passes on it shows how that fares.
    #[derive(Debug)]
    struct Watched {
        keeper: Arc<Keeper>,
        /// When something last came or went.
        traffic_at: Mutex<Instant>,
    }

    impl Watched {
        fn idle(&self, now: Instant) -> Duration {
            let mut traffic_at = self.traffic_at.lock().unwrap_or_else(PoisonError::into_inner);
            now.saturating_duration_since(std::mem::replace(&mut *traffic_at, now))
        }
    }

    impl Observer for Watched {
        fn came(&self, now: Instant) {
            self.keeper.survived(self.idle(now));
        }

        fn went(&self, now: Instant) {
            self.idle(now);
        }

        fn ended(&self, reason: EndReason, now: Instant) {
            if reason == EndReason::Lost {
                self.keeper.suspect(self.idle(now));
            }
        }
    }
}

#[cfg(feature = "bosh")]
mod bosh {
    use transport_bosh::client::{BoshConnector, IdleWatch};

    use super::*;

    impl KeepsAlive for BoshConnector {
        fn keep_alive(&self, every: Duration) {
            self.set_keepalive(Some(every));
        }

        fn watched(&self, session: Session, _: &Arc<Keeper>) -> Session {
            // A session is many connections; each tells of itself.
            session
        }
    }

    impl IdleWatch for Keeper {
        fn survived(&self, idle: Duration) {
            self.survived(idle);
        }

        fn cut(&self, idle: Duration, seen: bool) {
            self.was_cut(idle, seen);
        }
    }
}

#[cfg(all(test, feature = "bosh"))]
#[path = "learning_tests.rs"]
mod tests;
