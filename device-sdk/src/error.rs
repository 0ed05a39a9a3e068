//! What can go wrong for whoever starts or steers a device. What goes wrong on the way to the relay is an
//! [`Event`](crate::Event): the device deals with it by itself.

use std::{io, path::PathBuf};

use relay_core::ids::InvalidId;

/// Why a device did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The device ID is none.
    #[error("the device ID cannot be used")]
    DeviceId(#[from] InvalidId),
    /// The relay's URL is none, or has parts that it must not have.
    #[error("the relay's URL cannot be used: {0}")]
    RelayUrl(Box<str>),
    /// `http://` to another machine, and [`allow_plaintext`](crate::Builder::allow_plaintext) was not said.
    #[error(
        "the relay's URL is http:// to another machine, where anybody in between could read the credential; use https://, or allow plaintext"
    )]
    Plaintext,
    /// The proxy's URL is none.
    #[error("the proxy's URL cannot be used: {0}")]
    Proxy(Box<str>),
    /// A setting is outside its bounds.
    #[error("{setting} must be {bounds}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        bounds: &'static str,
    },
    /// A route cannot be.
    #[error("the route for {pattern:?} cannot be used: {why}")]
    Route {
        /// What it was to match.
        pattern: Box<str>,
        /// Why not.
        why: Box<str>,
    },
    /// An app cannot be.
    #[error("the app {name:?} cannot be used: {why}")]
    App {
        /// Its name.
        name: Box<str>,
        /// Why not.
        why: Box<str>,
    },
    /// Neither a PIN, nor a token, nor a state folder that holds one.
    #[error(
        "there is no credential: give a PIN or a token, or the state folder of a device that was enrolled"
    )]
    NoCredential,
    /// There is nothing to connect with: the features `ws` and `bosh` are off and no connector was given.
    #[error("there is no connector: give one, or build with the feature `ws` or `bosh`")]
    NoConnector,
    /// The state folder cannot be used.
    #[error("the state folder cannot be used")]
    State(#[from] StateError),
    /// TLS could not be set up.
    #[error("TLS could not be set up")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Called outside a tokio runtime.
    #[error("a device runs on a tokio runtime, and there is none here")]
    NoRuntime,
}

/// Why the state folder could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another process has it.
    #[error("{0} is in use by another device")]
    InUse(PathBuf),
    /// It belongs to a device of another ID.
    #[error("{folder} is the state of {found}, not of this device")]
    OtherDevice {
        /// Which folder.
        folder: PathBuf,
        /// Whose it is.
        found: String,
    },
    /// It was written by a later version of this SDK.
    #[error("{0} was written by a later version")]
    Later(PathBuf),
    /// The system said no.
    #[error("{path}: cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a device did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// It was shut down.
    #[error("the device was shut down")]
    Stopped,
    /// The setting could not be stored, and is unchanged.
    #[error("the setting could not be stored")]
    State(#[from] StateError),
}

/// Why waiting for a session came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OnlineError {
    /// Session maintenance is off.
    #[error("session maintenance is off")]
    Off,
    /// The relay did not take the credential.
    #[error("the relay did not take the device's credential")]
    Refused,
    /// The device was shut down.
    #[error("the device was shut down")]
    Stopped,
}
