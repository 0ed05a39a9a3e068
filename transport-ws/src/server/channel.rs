//! The channel of a job, from the upgrade request to its two halves.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
};

use relay_core::{
    auth::Credentials,
    error::{ErrorKind, TransportError},
    ids::{DeviceId, RequestId},
    store::App,
    transport::{BoxFuture, ChannelKnock, Incoming, PeerInfo, RelayChannel},
};
use tokio::sync::oneshot;

use super::{Accepted, COME_BACK, INFO, Inner, Opened, Refusal, jittered};
use crate::{
    channel,
    proto::{channel::Machine, control::End},
    session::now,
    stream::BoxStream,
    wire::{channel::RelayEnd, handshake::ChannelHead},
};

/// What stands below `base` in `path`, as an app's path: with its slash, and more than that alone.
pub(super) fn path<'p>(base: &str, path: &'p str) -> Option<&'p str> {
    path.strip_prefix(base).filter(|rest| rest.starts_with('/') && rest.len() > 1)
}

/// One of the channels that a device may have.
struct Place {
    inner: Arc<Inner>,
    device: DeviceId,
}

impl Place {
    fn take(inner: &Arc<Inner>, device: &DeviceId) -> Result<Self, Refusal> {
        let mut channels = inner.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let count = channels.entry(device.clone()).or_default();
        if *count >= inner.config.channels_per_device.max(1) {
            return Err(Refusal::TooMany { retry_after: COME_BACK });
        }
        *count += 1;
        Ok(Self { inner: Arc::clone(inner), device: device.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut channels = self.inner.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = channels.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                channels.remove(&self.device);
            }
        }
    }
}

/// The listener's owner takes the channel, as one of this protocol; the connection comes later.
type Verdict = Result<(Box<str>, oneshot::Sender<(BoxStream, Vec<u8>)>), Refusal>;

impl Inner {
    /// Asks the listener's owner whether there is such a job.
    pub(super) async fn open(
        self: &Arc<Self>,
        path: Box<str>,
        head: ChannelHead,
        peer: IpAddr,
    ) -> Result<Accepted, Refusal> {
        let ChannelHead { accept, token, job, protocols } = head;
        let credentials = Credentials::Bearer(token);
        let device = self.device(&credentials).await?;
        let job = job.ok_or(Refusal::UnknownJob)?;
        let place = Place::take(self, &device)?;
        let (verdict, verdict_comes) = oneshot::channel::<Verdict>();
        let inner = Arc::clone(self);
        let id = job.clone();
        let holder = device.clone();
        let handshake =
            Box::new(move |app: Option<App>| -> BoxFuture<Result<RelayChannel, TransportError>> {
                Box::pin(async move {
                    let refused = match (app, inner.device(&credentials).await) {
                        (Some(app), Ok(now)) if now == holder => {
                            return inner.opened(id, app, verdict, place).await;
                        }
                        (Some(_), Ok(_)) => Refusal::Unauthenticated,
                        (None, Ok(_)) => Refusal::UnknownJob,
                        // T17: the credential may have been revoked while the owner was busy elsewhere.
                        (_, Err(refused)) => refused,
                    };
                    let error =
                        TransportError::new(INFO.name, ErrorKind::Closed, "the device was not let in");
                    let _ = verdict.send(Err(refused.clone()));
                    Err(error.with_source(refused))
                })
            });
        let knock = ChannelKnock { peer: PeerInfo::at(peer), device, job, path, protocols, handshake };
        self.knock(Incoming::Channel(knock))?;
        let (protocol, connection) = verdict_comes.await.unwrap_or_else(|_| Err(self.turned_away()))?;
        Ok(Accepted { accept, protocol, session: None, taken: Opened::Channel(connection) })
    }

    /// The owner takes the channel: waits until its connection is there.
    async fn opened(
        self: Arc<Self>,
        job: RequestId,
        app: App,
        verdict: oneshot::Sender<Verdict>,
        place: Place,
    ) -> Result<RelayChannel, TransportError> {
        let gone = |words| TransportError::new(INFO.name, ErrorKind::Interrupted, words);
        let (connection, comes) = oneshot::channel();
        verdict
            .send(Ok((app.protocol.into(), connection)))
            .map_err(|_| gone("the device went away before its channel was open"))?;
        let (stream, early) = tokio::time::timeout(self.config.handshake, comes)
            .await
            .map_err(|_| {
                TransportError::new(INFO.name, ErrorKind::TimedOut, "the channel was not open in time")
            })?
            .map_err(|_| gone("the device went away before its channel was open"))?;
        let mut config = self.config.channel.clone();
        config.ping_every = config.ping_every.map(jittered);
        let mut machine = Machine::<RelayEnd>::new(End::Relay, job, app.name, config, now());
        if !early.is_empty() {
            machine.too_early(now());
        }
        Ok(channel::run(machine, stream, b"", place, &self.runtime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a2_an_apps_path_is_what_stands_below_the_control_sessions() {
        assert_eq!(path("/ws", "/ws/print"), Some("/print"));
        assert_eq!(path("/ws", "/ws/a/b"), Some("/a/b"));
        for none in ["/ws", "/ws/", "/wsx/print", "/print", "/x/ws/print"] {
            assert_eq!(path("/ws", none), None, "{none}");
        }
    }
}
