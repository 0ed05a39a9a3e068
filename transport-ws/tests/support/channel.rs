//! Channels by hand-made bytes, and their halves.

use std::net::SocketAddr;

use bytes::Bytes;
use relay_core::{
    app::{Sending, ToDevice, ToRelay},
    error::TransportError,
    ids::{AppName, RequestId},
    store::App,
    transport::{ChannelKnock, DeviceChannel, Incoming, Listener, RelayChannel},
};
use tokio::time::timeout;

use super::{
    PATIENCE, Rig,
    raw::{Got, Raw, head},
};

/// The path of the job's channel.
pub const PATH: &str = "/ws/print?id=job-1";

pub fn app() -> App {
    App {
        name: AppName::new("printer").unwrap(),
        path: "/print".into(),
        port: None,
        protocol: "print".into(),
    }
}

pub fn job() -> RequestId {
    RequestId::new("job-1").unwrap()
}

pub fn piece() -> Bytes {
    (0..Sending::PIECE).map(|n| (n % 251) as u8).collect()
}

/// The head of a good request for the channel at `path`, with changes as in [`head`].
pub fn channel_head(path: &str, changes: &[(&str, Option<&str>)]) -> String {
    let mut all = vec![("sec-websocket-protocol", Some("print"))];
    for change in changes {
        all.retain(|(name, _)| *name != change.0);
        all.push(*change);
    }
    head(&all).replacen("GET /ws ", &format!("GET {path} "), 1)
}

impl Raw {
    /// Asks for a channel.
    pub async fn ask(address: SocketAddr, path: &str, changes: &[(&str, Option<&str>)]) -> (Self, Got) {
        let mut raw = Self::connect(address).await;
        raw.send(channel_head(path, changes).as_bytes()).await;
        let got = raw.head().await;
        (raw, got)
    }
}

impl Rig {
    pub async fn channel_knock(&mut self) -> ChannelKnock {
        let knock = async {
            match self.listener.accept().await {
                Some(Incoming::Channel(knock)) => knock,
                other => panic!("no channel: {other:?}"),
            }
        };
        timeout(PATIENCE, knock).await.expect("somebody knocks in time")
    }

    /// A raw device's channel, and the relay's end.
    pub async fn channel(&mut self) -> (Raw, RelayChannel) {
        self.channel_with(&[]).await
    }

    pub async fn channel_with(&mut self, changes: &[(&str, Option<&str>)]) -> (Raw, RelayChannel) {
        let address = self.host.address;
        let ((raw, got), channel) = tokio::join!(Raw::ask(address, PATH, changes), async {
            let knock = self.channel_knock().await;
            (knock.handshake)(Some(app())).await
        });
        assert_eq!(got.status, 101, "{got:?}");
        (raw, channel.expect("the channel is opened"))
    }
}

/// What the relay hears next.
pub async fn relay_hears(channel: &mut RelayChannel) -> Result<Option<ToRelay>, TransportError> {
    timeout(PATIENCE, channel.receiver.receive()).await.expect("something in time")
}

/// What the device hears next.
pub async fn device_hears(channel: &mut DeviceChannel) -> Result<Option<ToDevice>, TransportError> {
    timeout(PATIENCE, channel.receiver.receive()).await.expect("something in time")
}

pub async fn relay_says(channel: &mut RelayChannel, message: ToDevice) -> Result<(), TransportError> {
    timeout(PATIENCE, channel.sender.send(message)).await.expect("taken in time")
}

pub async fn device_says(channel: &mut DeviceChannel, message: ToRelay) -> Result<(), TransportError> {
    timeout(PATIENCE, channel.sender.send(message)).await.expect("taken in time")
}
