//! A WebSocket whose keep-alive is learned from how its connections fare (S4).

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use relay_core::{
    error::TransportError,
    transport::{
        ChannelOptions, ConnectOptions, Connector, DeviceChannel, EndReason, Session, TransportInfo,
    },
};
use tokio::sync::broadcast::WeakSender;
use transport_ws::WsConnector;

use super::observed::{Observer, observed};
use crate::{event::Event, keepalive::Learner};

/// Connects by WebSocket, and learns.
#[derive(Clone)]
pub(crate) struct Learning {
    inner: WsConnector,
    learned: Arc<Mutex<Learned>>,
    events: WeakSender<Event>,
}

#[derive(Debug)]
struct Learned {
    learner: Learner,
    /// A connection was gone after it was idle for so long. Whether the network did it shows when the relay is there.
    suspected: Option<(Duration, bool)>,
}

impl fmt::Debug for Learning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Learning {
    pub(crate) fn new(inner: WsConnector, learner: Learner, events: WeakSender<Event>) -> Self {
        inner.set_keepalive(Some(learner.interval()));
        Self { inner, learned: Arc::new(Mutex::new(Learned { learner, suspected: None })), events }
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, change: impl FnOnce(&mut Learner)) {
        let (before, after) = {
            let mut learned = self.lock();
            let before = learned.learner.interval();
            change(&mut learned.learner);
            (before, learned.learner.interval())
        };
        if before != after {
            self.inner.set_keepalive(Some(after));
            if let Some(events) = self.events.upgrade() {
                // Nobody listening is no error.
                let _ = events.send(Event::KeepAlive { every: after });
            }
        }
    }
}

#[async_trait]
impl Connector for Learning {
    fn info(&self) -> TransportInfo {
        self.inner.info()
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let session = match self.inner.connect(options).await {
            Ok(session) => session,
            Err(error) => {
                // It was the relay that went, or all of the network.
                self.lock().suspected = None;
                return Err(error);
            }
        };
        let suspected = self.lock().suspected.take();
        if let Some((idle, seen)) = suspected {
            self.learn(|learner| learner.was_cut(idle, seen, crate::now()));
        }
        let watched = Watched { learning: self.clone(), traffic_at: Mutex::new(crate::now()) };
        Ok(observed(session, Arc::new(watched)))
    }

    async fn channel(&self, options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        self.inner.channel(options).await
    }
}

#[derive(Debug)]
struct Watched {
    learning: Learning,
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
        let idle = self.idle(now);
        self.learning.learn(|learner| learner.survived(idle.min(learner.interval()), now));
    }

    fn went(&self, now: Instant) {
        self.idle(now);
    }

    fn ended(&self, reason: EndReason, now: Instant) {
        if reason == EndReason::Lost {
            let idle = self.idle(now);
            let mut learned = self.learning.lock();
            let interval = learned.learner.interval();
            learned.suspected = Some((idle.min(interval), idle < interval));
        }
    }
}
