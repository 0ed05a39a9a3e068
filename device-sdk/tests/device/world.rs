//! A relay and what a device says to it, in this process.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use device_sdk::{
    AccountId, BookReport, BookVerdict, Builder, Device, DeviceId, Event, Events, HttpError, HttpErrorKind,
    JobPart, ObjectId, Registration, RelayHttp, Request, RequestId, Response, Router, SessionState, Verdict,
};
use relay_core::{
    Call, Relay,
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier, Secret},
    book::BookDocument,
    error::{ErrorKind, TransportError},
    ids::{BookId, SessionId},
    memory::{self, MemoryConnector},
    outcome::RequestError,
    relay::{Answer, State},
    request_ids::MacRequestIds,
    transport::{ChannelOptions, ConnectOptions, Connector, DeviceChannel, Session, TransportInfo},
};

use crate::links::Links;

pub(crate) const PIN: &str = "12345678";
pub(crate) const TOKEN: &str = "token";

pub(crate) fn device_id() -> DeviceId {
    DeviceId::new("printer-1").unwrap()
}

/// Lets in whoever shows the token.
#[derive(Debug)]
struct Door;

#[async_trait]
impl Authenticator for Door {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        match credentials {
            Credentials::Device { device, token } if token.expose() == TOKEN => {
                Ok(Principal::Device(device.clone()))
            }
            _ => Err(AuthError::Rejected),
        }
    }

    async fn verifier(&self, _: &DeviceId, _: ScramHash) -> Result<ScramVerifier, AuthError> {
        Err(AuthError::Unavailable)
    }
}

/// A relay that can be stopped and started anew, and what the device said to it.
#[derive(Debug, Clone)]
pub(crate) struct World(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    relay: Mutex<(Relay, MemoryConnector)>,
    calls: Mutex<Vec<String>>,
    pin: Mutex<Option<String>>,
    /// Nothing reaches the relay.
    pub(crate) down: AtomicBool,
    /// So many answers by HTTP are lost before one arrives.
    pub(crate) lose: AtomicUsize,
    /// The links that carry jobs' data.
    pub(crate) links: Links,
    /// What was registered last.
    pub(crate) registered: Mutex<Option<Registration>>,
    /// What is said of the next changes of address books; then nothing is.
    pub(crate) verdicts: Mutex<VecDeque<BookVerdict>>,
    pub(crate) reports: Mutex<Vec<BookReport>>,
    /// The address book that there is.
    pub(crate) book: Mutex<Option<BookDocument>>,
}

fn start_relay() -> (Relay, MemoryConnector) {
    let (connector, listener) = memory::transport(Arc::new(Door));
    // A relay that is started anew knows the IDs that it gave before.
    let relay = Relay::builder().request_ids(Arc::new(MacRequestIds::new(&[7; 32]))).build();
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(Box::new(listener)).await });
    (relay, connector)
}

impl World {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            relay: Mutex::new(start_relay()),
            calls: Mutex::default(),
            pin: Mutex::new(Some(PIN.to_owned())),
            down: AtomicBool::new(false),
            lose: AtomicUsize::new(0),
            links: Links::default(),
            registered: Mutex::default(),
            verdicts: Mutex::default(),
            reports: Mutex::default(),
            book: Mutex::default(),
        }))
    }

    pub(crate) fn relay(&self) -> Relay {
        self.0.relay.lock().unwrap().0.clone()
    }

    fn connector(&self) -> MemoryConnector {
        self.0.relay.lock().unwrap().1.clone()
    }

    /// The relay dies without a word, and another with nothing in its memory takes its place.
    pub(crate) fn restart_relay(&self) {
        let before = std::mem::replace(&mut *self.0.relay.lock().unwrap(), start_relay());
        before.1.cut(&device_id());
        self.0.links.cut();
    }

    /// The device's program dies without a word.
    pub(crate) async fn kill(&self, device: Device) {
        self.connector().cut(&device_id());
        let mut state = device.watch();
        drop(device);
        let _ = state.wait_for(|state| *state == SessionState::Stopped).await;
    }

    fn log(&self, call: impl Into<String>) -> Result<(), HttpError> {
        if self.0.down.load(Ordering::SeqCst) {
            return Err(HttpError::new(HttpErrorKind::Unreachable, "down"));
        }
        self.calls().push(call.into());
        Ok(())
    }

    pub(crate) fn calls(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.calls.lock().unwrap()
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|made| made.starts_with(call)).count()
    }

    pub(crate) fn device(&self, router: Router) -> Builder {
        Device::builder("https://relay.test", "printer-1")
            .token(TOKEN)
            .router(router)
            .connector(Arc::new(self.clone()))
            .relay_http(Arc::new(self.clone()))
    }

    pub(crate) async fn ask(&self, request: Request) -> Result<Answer, RequestError> {
        self.relay().request(Call::new(request)).await.map_err(|error| error.error)
    }

    pub(crate) async fn get(&self, object: &str) -> Result<String, RequestError> {
        let answer = self.ask(Request::get(device_id(), ObjectId::new(object).unwrap())).await?;
        Ok(words(&answer.response))
    }

    pub(crate) fn state(&self) -> Option<State> {
        self.relay().presence(&device_id()).map(|presence| presence.state)
    }
}

pub(crate) fn words(response: &Response) -> String {
    let body = response.body.as_ref().map_or("", |body| std::str::from_utf8(&body.bytes).unwrap());
    format!("{} {body}", response.status.as_str())
}

#[async_trait]
impl Connector for World {
    fn info(&self) -> TransportInfo {
        self.connector().info()
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        let resuming = if options.resume.is_some() { "connect resuming" } else { "connect" };
        self.log(resuming).map_err(|_| TransportError::new("memory", ErrorKind::Unreachable, "down"))?;
        let connector = self.connector();
        connector.connect(options).await
    }

    async fn channel(&self, options: ChannelOptions) -> Result<DeviceChannel, TransportError> {
        self.log("channel").map_err(|_| TransportError::new("memory", ErrorKind::Unreachable, "down"))?;
        let connector = self.connector();
        Ok(self.0.links.channel(connector.channel(options).await?))
    }
}

#[async_trait]
impl RelayHttp for World {
    async fn enroll(&self, device: &DeviceId, pin: &Secret) -> Result<Secret, HttpError> {
        self.log("enroll")?;
        let mut good = self.0.pin.lock().unwrap();
        if good.as_deref() != Some(pin.expose()) {
            return Err(HttpError::new(HttpErrorKind::Unauthenticated, "not accepted"));
        }
        *good = None;
        self.relay().know(device);
        Ok(Secret::new(TOKEN))
    }

    async fn register(
        &self,
        device: &DeviceId,
        token: &Secret,
        registration: &Registration,
    ) -> Result<(), HttpError> {
        self.log(format!("register {}", registration.name.as_deref().unwrap_or("")))?;
        if token.expose() != TOKEN {
            return Err(HttpError::new(HttpErrorKind::Unauthenticated, "not accepted"));
        }
        self.relay().registered(device, registration.keepalive);
        *self.0.registered.lock().unwrap() = Some(registration.clone());
        Ok(())
    }

    async fn alive(&self, device: &DeviceId, _: &Secret, session: &SessionId) -> Result<bool, HttpError> {
        self.log("alive")?;
        if !self.relay().knows(device) {
            return Err(HttpError::new(HttpErrorKind::UnknownDevice, "unknown device"));
        }
        Ok(self.relay().alive(device, session))
    }

    async fn respond(&self, _: &Secret, id: &RequestId, response: &Response) -> Result<Verdict, HttpError> {
        self.log("respond")?;
        let lost =
            self.0.lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if lost {
            return Err(HttpError::new(HttpErrorKind::Unreachable, "lost"));
        }
        Ok(self.relay().respond(&device_id(), id, response.clone()).into())
    }

    async fn job_data(&self, _: &Secret, id: &RequestId, from: u64) -> Result<Option<JobPart>, HttpError> {
        self.log("job_data")?;
        Ok(self.relay().job_data(&device_id(), id).map(|data| self.0.links.part(data, from)))
    }

    async fn report_book(&self, token: &Secret, report: &BookReport) -> Result<BookVerdict, HttpError> {
        self.log("report_book")?;
        if token.expose() != TOKEN {
            return Err(HttpError::new(HttpErrorKind::Unauthenticated, "not accepted"));
        }
        self.0.reports.lock().unwrap().push(report.clone());
        let verdict = self.0.verdicts.lock().unwrap().pop_front();
        verdict.ok_or_else(|| HttpError::new(HttpErrorKind::Overloaded, "later"))
    }

    async fn book(
        &self,
        _: &Secret,
        _: Option<&AccountId>,
        _: &BookId,
    ) -> Result<Option<BookDocument>, HttpError> {
        self.log("book")?;
        Ok(self.0.book.lock().unwrap().clone())
    }
}

pub(crate) fn toner() -> Router {
    Router::new().get("toner", || async { Ok(83) })
}

pub(crate) async fn until(events: &mut Events, wanted: impl Fn(&Event) -> bool + Send + Sync) -> Event {
    tokio::time::timeout(Duration::from_secs(7200), async {
        loop {
            let event = events.next().await.expect("the device is there");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
    .expect("it comes")
}

pub(crate) fn is_online(event: &Event) -> bool {
    matches!(event, Event::Online { .. })
}
