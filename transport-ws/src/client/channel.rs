//! The channel of a job: a connection of its own, beside the session's.

use relay_core::{
    error::{ErrorKind, TransportError},
    ids::RequestId,
    store::App,
    transport::{ChannelOptions, DeviceChannel},
};
use tokio::runtime::Handle;

use super::{
    answer::NoWebSocket,
    connector::{Opening, WsConnector, fresh_mask, host_field},
    dial::Target,
};
use crate::{
    NAME, channel,
    proto::{channel::Machine, control::End},
    session::now,
    wire::{
        channel::DeviceEnd,
        handshake::{check_answer, is_token},
    },
};

impl WsConnector {
    pub(super) async fn open_channel(
        &self,
        options: ChannelOptions,
    ) -> Result<DeviceChannel, TransportError> {
        let ChannelOptions { token, job, app, .. } = options;
        let path = path(&self.path, &app, &job)?;
        let port = app.port.unwrap_or(self.target.port);
        let target = Target::new(&self.target.host, port, self.target.secure);
        let opening = Opening {
            host: &host_field(&target),
            target: &target,
            path: &path,
            protocol: &app.protocol,
            token: &token,
            session: None,
        };
        let (stream, answer, key) = {
            let _turn = self.turn.lock().await;
            self.open(&opening).await?
        };
        check_answer(&answer.head, &key, &app.protocol).map_err(NoWebSocket::from)?;
        let config = self.channel.clone();
        let machine = Machine::<DeviceEnd>::new(End::Device(fresh_mask), job, app.name, config, now());
        Ok(channel::run(machine, stream, &answer.rest, (), &Handle::current()))
    }
}

/// Path and query for the channel of `job`: the app's path after that of the control session, whose query stays.
fn path(control: &str, app: &App, job: &RequestId) -> Result<String, TransportError> {
    let unsupported = |words: &str| Err(TransportError::new(NAME, ErrorKind::Unsupported, words));
    // What could end the request's first line would be another request.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._~-".contains(&b);
    if !app.path.starts_with('/') || !app.path.bytes().all(plain) {
        return unsupported("the app's path is none");
    }
    if !is_token(&app.protocol) {
        return unsupported("the app's protocol is none that can be offered");
    }
    let (base, query) = control.split_once('?').unwrap_or((control, ""));
    let (base, and) = (base.trim_end_matches('/'), if query.is_empty() { "" } else { "&" });
    Ok(format!("{base}{}?{query}{and}id={job}", app.path))
}

#[cfg(test)]
mod tests {
    use relay_core::ids::AppName;

    use super::*;

    fn of(control: &str, app: &str) -> Result<String, TransportError> {
        let name = AppName::new("print").unwrap();
        let app = App { name, path: app.into(), port: None, protocol: "print".into() };
        path(control, &app, &RequestId::new("r-1").unwrap())
    }

    #[test]
    fn a2_the_apps_path_comes_after_the_control_sessions() {
        assert_eq!(of("/ws", "/print").unwrap(), "/ws/print?id=r-1");
        assert_eq!(of("/base/ws/", "/a/b").unwrap(), "/base/ws/a/b?id=r-1");
        assert_eq!(of("/ws?tenant=7", "/print").unwrap(), "/ws/print?tenant=7&id=r-1");
    }

    #[test]
    fn a_path_or_protocol_that_would_be_another_request_is_refused() {
        for bad in ["print", "/a b", "/a\r\nHost: x", "/a?x", "/a#x", ""] {
            assert_eq!(of("/ws", bad).unwrap_err().kind, ErrorKind::Unsupported, "{bad:?}");
        }
    }
}
