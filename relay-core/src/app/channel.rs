//! A channel: the connection opened for one job, as apps and the relay see it.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Digest, Progress};
use crate::{error::TransportError, request::Status, transport::CloseReason};

/// What the relay says on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToDevice {
    /// What the app is told before its data: one XML element.
    Header(Box<str>),
    /// The next bytes, within the credit. Pieces have at most [`Sending::PIECE`](super::Sending::PIECE) bytes.
    Data(Bytes),
    /// That was all: its length, and what it must hash to.
    End(Digest),
    /// The job is over: the device closes the channel.
    Close,
}

/// What the device says on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToRelay {
    /// The device can take `bytes` more. The first one on a channel says from where, and none after it.
    Credit {
        /// The offset of the first byte wanted.
        from: Option<u64>,
        /// How many bytes.
        bytes: u64,
    },
    /// How far the app is.
    Progress(Progress),
    /// The job is done.
    Done {
        /// Which version the device now has, for apps whose data has versions.
        version: Option<Box<str>>,
    },
    /// The job failed.
    Error {
        /// The code.
        status: Status,
        /// In words.
        words: Box<str>,
    },
    /// The device wants to close the channel.
    Close,
}

/// One end of a channel. The relay's sends [`ToDevice`] and receives [`ToRelay`], the device's the other way round.
#[derive(Debug)]
pub struct Channel<Out, In> {
    /// Sends.
    pub sender: Box<dyn ChannelSender<Out>>,
    /// Receives.
    pub receiver: Box<dyn ChannelReceiver<In>>,
}

impl<Out, In> Channel<Out, In> {
    /// Of two halves.
    pub fn new(sender: impl ChannelSender<Out>, receiver: impl ChannelReceiver<In>) -> Self {
        Self { sender: Box::new(sender), receiver: Box::new(receiver) }
    }
}

/// Sends on a channel. Dropping both halves ends the channel without a closing handshake.
#[async_trait]
pub trait ChannelSender<Out>: fmt::Debug + Send + 'static {
    /// Sends `message` once the peer takes it: this is the transport's own back-pressure.
    ///
    /// # Errors
    /// [`TransportError`] once the channel is broken or closed.
    ///
    /// # Cancel safety
    /// Dropped half-way, the message goes whole or not at all, and the channel can go on.
    async fn send(&mut self, message: Out) -> Result<(), TransportError>;

    /// Closes in order, as far as the peer still takes part. Bounded in time.
    async fn close(&mut self);

    /// The same, and the peer is told why, by a transport that can say it.
    async fn close_for(&mut self, reason: CloseReason) {
        let _ = reason;
        self.close().await;
    }
}

/// Receives on a channel.
#[async_trait]
pub trait ChannelReceiver<In>: fmt::Debug + Send + 'static {
    /// The next message; `None` once the peer closed in order.
    ///
    /// # Errors
    /// [`TransportError`] if the channel broke, or the peer broke a rule.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost.
    async fn receive(&mut self) -> Result<Option<In>, TransportError>;
}
