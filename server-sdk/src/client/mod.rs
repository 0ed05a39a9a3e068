//! The client of a relay: asks devices, finds devices.

mod administration;
mod books;
mod devices;
mod error;
mod events;
mod http;
mod print;
mod upload;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use relay_core::{
    Body, Request,
    auth::Secret,
    ids::{AccountId, BookId, DeviceId, ObjectId, RequestId},
    request::Call,
    tls::Trust,
};
use reqwest::{Method, header::CONTENT_TYPE};
use serde::de::DeserializeOwned;

use self::http::{Http, Settings};
pub use self::{
    administration::{Administration, IssuedPin, KeyInfo, NewKey, TableFormat},
    books::{AddressBook, BookVersion, BookWatch},
    devices::{Device, DeviceFilter, Devices, DevicesPage, Presence},
    error::{Error, ErrorKind},
    events::{Event, EventFilter, EventKind, Events, JobEvent, PresenceEvent, RequestEvent},
    print::{JobStream, PrintJob, Printing},
};

/// Calls devices through a relay. Cheap to clone; clones share their connections.
///
/// Every call waits at most [`ClientBuilder::wait`] for the device, and never repeats anything on its own: what it
/// knows after a failure is in the [`Error`], and whether to ask again is the caller's to say.
#[derive(Clone)]
pub struct Client {
    http: Arc<Http>,
    wait: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relay = self.http.base().origin().ascii_serialization();
        f.debug_struct("Client").field("relay", &relay).field("wait", &self.wait).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the relay at `url`, with a service's key. Connects to nobody yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if `url` is none, or plain HTTP to another machine.
    pub fn new(url: &str, key: &str) -> Result<Self, Error> {
        Self::builder(url, key).build()
    }

    /// The same with settings of one's own.
    pub fn builder(url: &str, key: &str) -> ClientBuilder {
        ClientBuilder {
            settings: Settings {
                url: url.to_owned(),
                key: Secret::new(key),
                allow_plaintext: false,
                trust: Trust::System,
                connect_timeout: Duration::from_secs(10),
                max_answer: 8 * 1024 * 1024,
            },
            wait: Call::DEFAULT_WAIT,
        }
    }

    /// This client, with calls that wait `wait` for the device: at most ten minutes.
    #[must_use]
    pub fn with_wait(&self, wait: Duration) -> Self {
        Self { http: self.http.clone(), wait: wait.min(Call::MAX_WAIT) }
    }

    /// Reads an object of a device.
    ///
    /// # Errors
    /// [`Error`], whose [`kind`](Error::kind) says what to do, and whose [`outcome`](Error::outcome) how far it came.
    ///
    /// # Cancel safety
    /// Dropped, the call is cancelled and the device is told; whether it had acted is not known.
    pub async fn get(&self, device: impl AsRef<str>, object: impl AsRef<str>) -> Result<Answer, Error> {
        self.request(&Request::get(DeviceId::new(device.as_ref())?, ObjectId::new(object.as_ref())?)).await
    }

    /// Writes an object of a device. The answer is the value now in force.
    ///
    /// # Errors
    /// [`Error`], whose [`is_safe_to_retry`](Error::is_safe_to_retry) says whether the device has certainly not acted.
    ///
    /// # Cancel safety
    /// As [`Client::get`].
    pub async fn set(
        &self,
        device: impl AsRef<str>,
        object: impl AsRef<str>,
        value: Body,
    ) -> Result<Answer, Error> {
        self.request(&Request::set(DeviceId::new(device.as_ref())?, ObjectId::new(object.as_ref())?, value))
            .await
    }

    /// Asks a device for anything: any method, none or many objects, any body.
    ///
    /// # Errors
    /// As [`Client::set`].
    ///
    /// # Cancel safety
    /// As [`Client::get`].
    pub async fn request(&self, request: &Request) -> Result<Answer, Error> {
        let device = request.device.as_str();
        let mut call = match &*request.objects {
            [object] if fits_path(request, object) => {
                let method = if request.method.is_get() { Method::GET } else { Method::PUT };
                let mut segments = vec!["devices", device, "objects"];
                segments.extend(object.as_str().split('/'));
                self.http.call(method, &segments)
            }
            objects => {
                let mut query = vec![("method", request.method.as_str())];
                query.extend(objects.iter().map(|object| ("object", object.as_str())));
                self.http.call_with_query(Method::POST, &["devices", device, "requests"], &query)
            }
        };
        if let Some(body) = &request.body {
            call = call.header(CONTENT_TYPE, body.content_type()).body(body.bytes.clone());
        }
        if let Some(traceparent) = &request.traceparent {
            call = call.header("traceparent", &**traceparent);
        }
        let reply = self.http.ask(call, self.wait).await?;
        Ok(Answer { id: reply.request_id, content_type: reply.content_type, bytes: reply.body })
    }

    /// Prints on a device, or has another of its apps work: say what, then send the document.
    ///
    /// ```no_run
    /// # async fn run(relay: server_sdk::Client) -> Result<(), server_sdk::Error> {
    /// use server_sdk::client::PrintJob;
    ///
    /// let job = PrintJob::new().user("Ann").job_name("Minutes").content_type("application/pdf");
    /// let mut printing = relay.print("printer-1", job)?.file("minutes.pdf").await?;
    /// while let Some(update) = printing.next().await? {
    ///     println!("{}: {} bytes", update.state.as_str(), update.bytes);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if `device` is no ID.
    pub fn print(&self, device: impl AsRef<str>, job: PrintJob) -> Result<Printing, Error> {
        Ok(Printing::new(self.clone(), DeviceId::new(device.as_ref())?, job))
    }

    /// One device: what is known of it, and whether it can be reached.
    ///
    /// # Errors
    /// [`Error`]. No device is asked: it is always safe to try again.
    ///
    /// # Cancel safety
    /// Nothing is changed by it, so it may be dropped at any time.
    pub async fn device(&self, device: impl AsRef<str>) -> Result<Device, Error> {
        let device = DeviceId::new(device.as_ref())?;
        self.http.inquire_json(self.http.call(Method::GET, &["devices", device.as_str()])).await
    }

    /// Whether a device can be reached, and by what evidence.
    ///
    /// # Errors
    /// As [`Client::device`].
    ///
    /// # Cancel safety
    /// As [`Client::device`].
    pub async fn presence(&self, device: impl AsRef<str>) -> Result<Presence, Error> {
        Ok(self.device(device).await?.presence)
    }

    /// The devices that meet `filter`, one after the other; pages are fetched as they are needed.
    pub fn devices(&self, filter: DeviceFilter) -> Devices {
        Devices::new(self.clone(), filter)
    }

    /// One page of the devices that meet `filter`: the first, or the one that `cursor` leads to. A page may have fewer
    /// devices than asked for, even none, and still be followed by others.
    ///
    /// # Errors
    /// As [`Client::device`].
    ///
    /// # Cancel safety
    /// As [`Client::device`].
    pub async fn devices_page(
        &self,
        filter: &DeviceFilter,
        cursor: Option<&str>,
    ) -> Result<DevicesPage, Error> {
        let query = filter.query(cursor);
        self.http.inquire_json(self.http.call_with_query(Method::GET, &["devices"], &query)).await
    }

    /// Watches devices come and go, and what becomes of the requests and jobs that this client's key makes; an
    /// administrator's key sees those of all. Resolves once nothing that happens from now on is missed.
    ///
    /// # Errors
    /// As [`Client::device`].
    ///
    /// # Cancel safety
    /// As [`Client::device`].
    pub async fn events(&self, filter: EventFilter) -> Result<Events, Error> {
        Events::open(self.clone(), filter).await
    }

    /// The address book `book` of `account`. Nothing is asked yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if one of the names is none.
    pub fn address_book(
        &self,
        account: impl AsRef<str>,
        book: impl AsRef<str>,
    ) -> Result<AddressBook, Error> {
        Ok(AddressBook::new(self.clone(), AccountId::new(account.as_ref())?, BookId::new(book.as_ref())?))
    }

    /// What an administrator does, and an account's side for itself.
    pub fn administration(&self) -> Administration<'_> {
        Administration::new(&self.http)
    }
}

/// Whether a request may go as GET or PUT of an object's own address: an address has no `.` and `..`, and what has a
/// body beside a GET, or none beside a SET, is not what these say.
fn fits_path(request: &Request, object: &ObjectId) -> bool {
    let plain = object.as_str().split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    let body = request.body.is_some();
    plain && ((request.method.is_get() && !body) || (request.method.is_set() && body))
}

/// Settings of a [`Client`].
#[must_use]
pub struct ClientBuilder {
    settings: Settings,
    wait: Duration,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("wait", &self.wait).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// How long a call waits for the device (30 s, at most 10 min). The relay ends it then, and says how far it came.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait.min(Call::MAX_WAIT);
        self
    }

    /// How long a connection to the relay may take to be made (10 s).
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// The largest answer that is taken, in bytes (8 MiB).
    pub const fn max_answer(mut self, bytes: usize) -> Self {
        self.settings.max_answer = bytes;
        self
    }

    /// Allows plain HTTP to another machine. The key and all data can then be read on the way.
    pub const fn allow_plaintext(mut self) -> Self {
        self.settings.allow_plaintext = true;
        self
    }

    /// Trusts this certificate authority, too, given in DER: for a relay with a certificate of one's own making.
    pub fn trust(mut self, authority: impl Into<Vec<u8>>) -> Self {
        self.settings.trust = std::mem::take(&mut self.settings.trust).and(authority);
        self
    }

    /// The client. Connects to nobody yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the address is none, or plain HTTP to another machine that was not allowed.
    pub fn build(self) -> Result<Client, Error> {
        Ok(Client { http: Arc::new(Http::new(self.settings)?), wait: self.wait })
    }
}

/// What a device answered.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The request's ID, for logs.
    pub id: Option<RequestId>,
    /// The media type that the device gave it, if it has a body.
    pub content_type: Option<String>,
    /// The bytes, as the device sent them.
    pub bytes: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("id", &self.id)
            .field("content_type", &self.content_type)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

impl Answer {
    /// The answer as text.
    ///
    /// # Errors
    /// If it is not UTF-8. The device has answered: its outcome is [`Answered`](relay_core::outcome::Outcome::Answered).
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.bytes).map_err(|error| self.unreadable("the answer is not text", error))
    }

    /// The answer as JSON.
    ///
    /// # Errors
    /// If it is none, or another value than was asked for. As [`Answer::text`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes)
            .map_err(|error| self.unreadable("the answer is not such JSON", error))
    }

    fn unreadable(&self, words: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(ErrorKind::DeviceFailed, words)
            .with_source(error)
            .with_outcome(Some(relay_core::outcome::Outcome::Answered))
            .with_request_id(self.id.clone())
    }
}
