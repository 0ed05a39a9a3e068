//! The handle of a running device.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use relay_core::{auth::Secret, ids::DeviceId};
use tokio::sync::{Mutex, broadcast, mpsc, watch};

use crate::{
    builder::Builder,
    error::{ControlError, OnlineError},
    event::{Event, Events, SessionState},
    pull::{Pull, Puller, Push},
    registration::Registration,
    shell::Command,
    state::State,
};

const MAX_GRACE: Duration = Duration::from_secs(3600);

/// A device that is running. Cheap to clone; all clones are one. Dropping the last one ends it.
#[derive(Debug, Clone)]
pub struct Device(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) id: DeviceId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) events: broadcast::WeakSender<Event>,
    /// Listens from before the start on, for whoever asks first.
    pub(crate) first_events: std::sync::Mutex<Option<broadcast::Receiver<Event>>>,
    pub(crate) session_state: watch::Receiver<SessionState>,
    pub(crate) state: State,
    pub(crate) maintenance_by_default: bool,
    /// Keeps the order of switches the same on disk and in force.
    pub(crate) switching: Mutex<()>,
    pub(crate) puller: Puller,
}

impl Device {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// A device named `device_id` (a serial number, say) of the relay at `relay_url`.
    pub fn builder(relay_url: impl Into<String>, device_id: impl Into<String>) -> Builder {
        Builder::new(relay_url.into(), device_id.into())
    }

    /// Its ID.
    pub fn id(&self) -> &DeviceId {
        &self.0.id
    }

    /// How it stands with its relay.
    pub fn session_state(&self) -> SessionState {
        *self.0.session_state.borrow()
    }

    /// Whether a push can reach it.
    pub fn is_online(&self) -> bool {
        self.session_state() == SessionState::Online
    }

    /// Waits until a push can reach it.
    ///
    /// # Errors
    /// [`OnlineError`] once it is clear that this will not come by itself.
    ///
    /// # Cancel safety
    /// Dropped, nothing changes.
    pub async fn online(&self) -> Result<(), OnlineError> {
        let mut session_state = self.0.session_state.clone();
        loop {
            match *session_state.borrow_and_update() {
                SessionState::Online => return Ok(()),
                SessionState::Off => return Err(OnlineError::Off),
                SessionState::Refused => return Err(OnlineError::Refused),
                SessionState::Stopped => return Err(OnlineError::Stopped),
                SessionState::Starting | SessionState::Waiting => {}
            }
            if session_state.changed().await.is_err() {
                return Err(OnlineError::Stopped);
            }
        }
    }

    /// A watch on [`session_state`](Self::session_state), for a display: it has the latest, and misses what was in
    /// between.
    pub fn watch(&self) -> watch::Receiver<SessionState> {
        self.0.session_state.clone()
    }

    /// What happens: to the first who asks, from the start on; to others, from now on.
    pub fn events(&self) -> Events {
        let first = self.0.first_events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let subscribe = || self.0.events.upgrade().map(|events| events.subscribe());
        // Of a device that is gone there is nothing to hear.
        Events::new(first.or_else(subscribe).unwrap_or_else(|| broadcast::channel(1).1))
    }

    /// Whether session maintenance is on.
    pub fn maintenance(&self) -> bool {
        self.0.state.read().maintenance.unwrap_or(self.0.maintenance_by_default)
    }

    /// Switches session maintenance: on starts the session, off ends it cleanly. Stored first, so that it survives a
    /// restart.
    ///
    /// # Errors
    /// [`ControlError::State`] if it could not be stored; nothing changed then.
    ///
    /// # Cancel safety
    /// Dropped half-way, it may be stored and come into force only at the next start.
    pub async fn set_maintenance(&self, on: bool) -> Result<(), ControlError> {
        let _turn = self.0.switching.lock().await;
        if self.0.commands.is_closed() {
            return Err(ControlError::Stopped);
        }
        self.0.state.store(move |stored| stored.maintenance = Some(on)).await?;
        self.send(Command::Maintenance(on)).await
    }

    /// Tells the relay anew what the device is. An [`Event::Registered`] says when it knows.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    ///
    /// # Cancel safety
    /// Dropped before it resolved, nothing was sent.
    pub async fn register(&self, registration: Registration) -> Result<(), ControlError> {
        self.send(Command::Register(Box::new(registration))).await
    }

    /// Runs the start-up order again now, as when the device is switched on: registers, and opens a session or, if
    /// there is one, a fresh connection on it. What a person at the device presses who does not want to wait, and what
    /// firmware calls when the network is another one (an address, a default route, a link that came up): whatever hangs
    /// on the old one is left, the better transport is tried at once, and what was learned of this network before is used.
    /// Called once too often it costs a registration and a connection.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    ///
    /// # Cancel safety
    /// Dropped before it resolved, nothing was sent.
    pub async fn activate(&self) -> Result<(), ControlError> {
        self.send(Command::Activate).await
    }

    /// Gives the device a new PIN, for when [`SessionState::Refused`] says that its credential is none any more.
    ///
    /// # Errors
    /// [`ControlError::Stopped`].
    ///
    /// # Cancel safety
    /// Dropped before it resolved, nothing was sent.
    pub async fn enroll(&self, pin: impl Into<String>) -> Result<(), ControlError> {
        self.send(Command::Enroll(Secret::new(pin))).await
    }

    /// Has the device fetch what is at `url`, from any server, by its own HTTP stack and proxies, whether it has a session
    /// or not. For what the device's user asks for: a document to print, a firmware. The device's credential goes along
    /// to its relay alone.
    ///
    /// The device stands where its user's other machines stand. A URL that came from elsewhere (a QR code, a service's
    /// request) may point at those, or at the device itself: look at it before it is fetched.
    ///
    /// ```no_run
    /// # async fn fetch(device: device_sdk::Device) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut download = device.pull("https://example.com/manual.pdf").start().await?;
    /// while let Some(bytes) = download.next().await? {
    ///     println!("{} of {:?}", download.position(), download.total());
    ///     # let _ = bytes;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn pull(&self, url: impl Into<String>) -> Pull {
        Pull::new(self.0.puller.clone(), url.into())
    }

    /// Has the device hand something in at `url` (a scan, a log), at any server; as [`pull`](Self::pull) in all else.
    pub fn push(&self, url: impl Into<String>, content_type: impl Into<String>) -> Push {
        Push::new(self.0.puller.clone(), url.into(), content_type.into())
    }

    /// Takes no new requests, gives handlers at work and answers on their way up to `grace` (an hour at most), says
    /// goodbye to the relay and resolves when all of that is over.
    ///
    /// # Cancel safety
    /// Dropped, the device shuts down all the same.
    pub async fn shutdown(&self, grace: Duration) {
        let grace = grace.min(MAX_GRACE);
        let _ = self.send(Command::Shutdown { grace }).await;
        self.closed().await;
    }

    /// Waits until the device has been shut down.
    ///
    /// # Cancel safety
    /// Dropped, nothing changes.
    pub async fn closed(&self) {
        let mut session_state = self.0.session_state.clone();
        let _ = session_state.wait_for(|state| *state == SessionState::Stopped).await;
    }

    async fn send(&self, command: Command) -> Result<(), ControlError> {
        self.0.commands.send(command).await.map_err(|_| ControlError::Stopped)
    }
}
