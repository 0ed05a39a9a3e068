//! Apps: named functions of a device (print, address), and the work that is sent to them.
//!
//! A piece of work for an app is a **job**. A job is a request with an [`Offer`] in it: it has a request's ID, outcome
//! and end, and survives what a request survives. What a request has not is data of any size and progress:
//!
//! ```text
//!  service ── Relay::job ─▶ offer on the session ─▶ device: is the app in its table, is it in order?
//!                                                     │ no: the job is answered, before any byte moved
//!                                                     ▼ yes: the app opens
//!  Source ── header, data, digest ─▶ channel ─▶ app      (a channel of the transport's, or plain HTTP with Range)
//!         ◀─ credit, progress, done ── channel ◀── app
//! ```
//!
//! - **Back-pressure is credit.** The device says from which offset on it wants the data and how much it can take; no
//!   byte goes beyond that ([`Sending`]).
//! - **A channel that breaks is opened anew**, from the offset that the device then names: the [`Source`] is read
//!   again from there. The job ends only by the device's answer, its silence, or a cancellation.
//! - **An app does not know what carries it.** A transport that has channels ([`TransportInfo::channels`]) brings a
//!   [`Channel`]; with all others the device reads the data by HTTP and says the rest in the session.
//!
//! [`TransportInfo::channels`]: crate::transport::TransportInfo::channels

mod channel;
pub mod print;
mod sending;
mod source;

pub use self::{
    channel::{Channel, ChannelReceiver, ChannelSender, ToDevice, ToRelay},
    sending::{CreditError, Sending, Step},
    source::{Digest, MemorySource, Source, SourceError},
};
use crate::ids::AppName;

/// Work for one of the device's apps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offer {
    /// The app.
    pub app: AppName,
    /// What the app is told before its data: one XML element. On the device, over a transport that has channels, it
    /// comes on the channel.
    pub header: Option<Box<str>>,
}

impl Offer {
    /// The longest header, in bytes.
    pub const MAX_HEADER: usize = 64 * 1024;

    /// Work for `app`, introduced by `header`.
    pub const fn new(app: AppName, header: Option<Box<str>>) -> Self {
        Self { app, header }
    }
}

/// How far the device is with a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the data that the app has done with.
    pub bytes: u64,
    /// Words for people: which page, which tray.
    pub note: Option<Box<str>>,
}

impl Progress {
    /// The longest note, in bytes; a longer one is cut.
    pub const MAX_NOTE: usize = 256;

    /// `bytes` are done.
    pub const fn new(bytes: u64) -> Self {
        Self { bytes, note: None }
    }

    /// With words for people.
    #[must_use]
    pub fn with_note(mut self, note: &str) -> Self {
        let end = note.floor_char_boundary(Self::MAX_NOTE);
        self.note = Some(note[..end].into());
        self
    }
}

/// What a job is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum JobState {
    /// The device was told, and has not opened the app yet.
    #[default]
    Offered,
    /// The device opened the app.
    Accepted,
    /// Data is on its way.
    Sending,
    /// The device has all of the data.
    Processing,
    /// Done.
    Completed,
    /// Not done; the device, or the relay in its stead, said why.
    Failed,
    /// Nobody wanted it any more.
    Cancelled,
}

impl JobState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Accepted => "accepted",
            Self::Sending => "sending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing follows.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A job as its caller sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobUpdate {
    /// What it is at.
    pub state: JobState,
    /// Bytes that went to the device, or that the app said it has done with, whichever is more.
    pub bytes: u64,
    /// The app's last words for people.
    pub note: Option<Box<str>>,
}
