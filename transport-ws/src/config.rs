//! Bounds and times, and their defaults.

use std::time::Duration;

use relay_core::xml::Limits;

use crate::proto::frame::FrameLimits;

/// Bounds and times of a control session, at either end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ControlConfig {
    /// What the peer may send in one piece (64 KiB a frame, 256 KiB a message, 64 fragments).
    pub frames: FrameLimits,
    /// The bounds of one element (those of the vocabulary).
    pub xml: Limits,
    /// Messages that the peer may send in a second, answers to what it was asked apart; `None` for any number (at the
    /// relay 100, with bursts of 500; at the device any number).
    pub messages: Option<(u32, u32)>,
    /// Control frames that the peer may send in a second, and at once (10, 10). Pongs that were asked for do not count.
    pub controls: (u32, u32),
    /// How often this end sends a ping (at the relay every 30 s, at the device never).
    pub ping_every: Option<Duration>,
    /// After how long without a message from the peer this end sends `<ping/>`, a data frame (at the relay never; at the
    /// device 50 s). Some proxies do not count ping and pong frames as traffic; longer than such a one waits, and it cuts
    /// the connection.
    pub keepalive: Option<Duration>,
    /// How long after either nothing at all may come before the connection counts as lost (10 s).
    pub answer_within: Duration,
    /// How long the peer may take none of what is written before the connection counts as lost (30 s).
    pub write_within: Duration,
    /// How long the closing handshake may take (3 s).
    pub close_within: Duration,
    /// How many bytes wait to be written before nothing more is taken from the owner (64 KiB). One message more than that
    /// is the most that is kept.
    pub write_ahead: usize,
}

impl ControlConfig {
    /// The relay's end.
    pub fn relay() -> Self {
        Self {
            frames: FrameLimits::default(),
            xml: Limits::default(),
            messages: Some((100, 500)),
            controls: (10, 10),
            ping_every: Some(Duration::from_secs(30)),
            keepalive: None,
            answer_within: Duration::from_secs(10),
            write_within: Duration::from_secs(30),
            close_within: Duration::from_secs(3),
            write_ahead: 64 * 1024,
        }
    }

    /// The device's end.
    pub fn device() -> Self {
        Self { messages: None, ping_every: None, keepalive: Some(Duration::from_secs(50)), ..Self::relay() }
    }
}

/// Bounds and times of a job's channel, at either end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelConfig {
    /// What the peer may send in one piece (64 KiB a frame, 256 KiB a message, 64 fragments; binary to the device alone).
    pub frames: FrameLimits,
    /// The bounds of one element (those of the vocabulary; at the device 20,000 elements, since a header may be a whole
    /// address book).
    pub xml: Limits,
    /// Messages that the peer may send in a second, two for each piece of data that it gets apart; `None` for any number
    /// (at the relay 100, with bursts of 500; at the device any number).
    pub messages: Option<(u32, u32)>,
    /// Control frames that the peer may send in a second, and at once (10, 10). Pongs that were asked for do not count.
    pub controls: (u32, u32),
    /// How often this end sends a ping (30 s): a channel may be silent for as long as its app works.
    pub ping_every: Option<Duration>,
    /// How long nothing at all may come after that, and nothing be written, before the channel counts as broken (20 s:
    /// the ping stands behind the data that is on its way).
    pub answer_within: Duration,
    /// How long the peer may take none of what is written before the channel counts as broken (30 s).
    pub write_within: Duration,
    /// How long the closing handshake may take (3 s).
    pub close_within: Duration,
    /// How many bytes wait to be written before nothing more is taken from the owner (32 KiB: two pieces of data).
    pub write_ahead: usize,
    /// How many bytes wait for the owner before nothing more is read from the peer (64 KiB).
    pub read_ahead: usize,
}

impl ChannelConfig {
    /// The relay's end.
    pub fn relay() -> Self {
        Self {
            frames: FrameLimits::default(),
            xml: Limits::default(),
            messages: Some((100, 500)),
            controls: (10, 10),
            ping_every: Some(Duration::from_secs(30)),
            answer_within: Duration::from_secs(20),
            write_within: Duration::from_secs(30),
            close_within: Duration::from_secs(3),
            write_ahead: 32 * 1024,
            read_ahead: 64 * 1024,
        }
    }

    /// The device's end.
    pub fn device() -> Self {
        let mut config = Self { messages: None, ..Self::relay() };
        config.frames.binary = true;
        config.xml.elements = 20_000;
        config
    }
}

/// Settings of the server end. The defaults are what the relay runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WsServerConfig {
    /// Bounds and times of each control session.
    pub control: ControlConfig,
    /// Bounds and times of each channel.
    pub channel: ChannelConfig,
    /// Channels that one device may have open at once (128: twice the jobs that it may have, since one that broke stays
    /// for a moment beside the one that goes on).
    pub channels_per_device: usize,
    /// Where the control session is asked for (`/ws`); an app's channel is, at its path below that.
    pub path: Box<str>,
    /// How long an upgrade may take: from the head that was read to the owner's verdict (15 s).
    pub handshake: Duration,
    /// Sessions that the listener's owner has not taken yet (1,024).
    pub knocks: usize,
}

impl Default for WsServerConfig {
    fn default() -> Self {
        Self {
            control: ControlConfig::relay(),
            channel: ChannelConfig::relay(),
            channels_per_device: 128,
            path: "/ws".into(),
            handshake: Duration::from_secs(15),
            knocks: 1_024,
        }
    }
}
