//! A channel's words: one element of the vocabulary a text message, the data in binary ones.

use std::fmt;

use bytes::Bytes;
use relay_core::{
    app::{ToDevice, ToRelay},
    ids::{AppName, RequestId},
    xml::{
        Element,
        vocabulary::{
            VocabularyError,
            channel::{decode_to_device, decode_to_relay, write_to_device, write_to_relay},
        },
    },
};

/// A message as it goes into frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Data.
    Binary(Bytes),
}

/// What one end says and hears.
pub trait Words: fmt::Debug + Send + 'static {
    /// What it says.
    type Out: fmt::Debug + Send + 'static;
    /// What it hears.
    type In: fmt::Debug + Send + 'static;

    /// `message` on the channel of `job`, which is one of `app`.
    fn encode(message: Self::Out, job: &RequestId, app: &AppName) -> Message;

    /// Reads a text message; `first`: nothing came before it. `None`: this version does not know it.
    ///
    /// # Errors
    /// [`VocabularyError`]: the channel cannot go on.
    fn text(element: &Element, first: bool) -> Result<Option<Self::In>, VocabularyError>;

    /// Reads a binary message; `None` if this end takes none.
    fn binary(bytes: Vec<u8>) -> Option<Self::In>;

    /// How many bytes of payload are in `message`.
    fn len(message: &Self::In) -> usize;
}

/// The relay's end.
#[derive(Debug)]
pub enum RelayEnd {}

impl Words for RelayEnd {
    type Out = ToDevice;
    type In = ToRelay;

    fn encode(message: ToDevice, job: &RequestId, app: &AppName) -> Message {
        let mut text = String::new();
        match message {
            ToDevice::Data(bytes) => Message::Binary(bytes),
            message => {
                write_to_device(&message, job, app, &mut text);
                Message::Text(text)
            }
        }
    }

    fn text(element: &Element, _: bool) -> Result<Option<ToRelay>, VocabularyError> {
        decode_to_relay(element)
    }

    fn binary(_: Vec<u8>) -> Option<ToRelay> {
        None
    }

    fn len(message: &ToRelay) -> usize {
        match message {
            ToRelay::Progress(progress) => progress.note.as_deref().map_or(0, str::len),
            ToRelay::Error { words, .. } => words.len(),
            _ => 0,
        }
    }
}

/// The device's end.
#[derive(Debug)]
pub enum DeviceEnd {}

impl Words for DeviceEnd {
    type Out = ToRelay;
    type In = ToDevice;

    fn encode(message: ToRelay, job: &RequestId, app: &AppName) -> Message {
        let mut text = String::new();
        write_to_relay(&message, job, app, &mut text);
        Message::Text(text)
    }

    fn text(element: &Element, first: bool) -> Result<Option<ToDevice>, VocabularyError> {
        decode_to_device(element, first)
    }

    fn binary(bytes: Vec<u8>) -> Option<ToDevice> {
        Some(ToDevice::Data(bytes.into()))
    }

    fn len(message: &ToDevice) -> usize {
        match message {
            ToDevice::Header(header) => header.len(),
            ToDevice::Data(bytes) => bytes.len(),
            _ => 0,
        }
    }
}
