//! Devices on a WebSocket: the control session of the relay, or the bare forwarder's socket.

mod frame;

use std::net::SocketAddr;

use data_encoding::BASE64;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use self::frame::Frame;
use crate::{
    enrol::Credential,
    http::Connection,
    load::{self, Fleet, Target, source},
    xml,
};

/// Brings all devices online on `sockets`, for services that call `to`.
pub(crate) async fn connect(
    devices: &[Credential],
    to: SocketAddr,
    sockets: SocketAddr,
    target: Target,
    local: &LocalSet,
) -> Result<Fleet, String> {
    let relay = matches!(target, Target::Relay { .. });
    let members = devices.iter().enumerate().map(|(n, device)| Member::connect(device, n, sockets, relay));
    let members = load::log_in(members).await?;
    let mut fleet = Fleet::new(devices.iter().map(|device| device.id.clone()).collect(), to, target);
    for member in members {
        fleet.add(member.serve(), local);
    }
    Ok(fleet)
}

/// One device and its connection.
#[derive(Debug)]
struct Member {
    id: String,
    relay: bool,
    stream: TcpStream,
    /// What came, and is not a whole frame yet.
    buffer: Vec<u8>,
    /// One for all frames of the connection: nobody stands between who could be misled by a mask that is known (RFC 6455
    /// §10.3).
    mask: [u8; 4],
}

impl Member {
    async fn connect(
        Credential { id, token }: &Credential,
        n: usize,
        to: SocketAddr,
        relay: bool,
    ) -> Result<Self, String> {
        let mut random = [0; 20];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let (key, mask) = random.split_at(16);
        let key = BASE64.encode(key);
        let request = if relay {
            upgrade(
                "/ws",
                &key,
                &format!("Sec-WebSocket-Protocol: control\r\nAuthorization: Bearer {token}\r\n"),
            )
        } else {
            upgrade(&format!("/{id}"), &key, "")
        };
        let connection = Connection::open(source(n), to).await;
        let connection = connection.map_err(|error| format!("{id} connecting: {error}"))?;
        let (head, stream, buffer) =
            connection.upgrade(&request).await.map_err(|error| format!("{id}: {error}"))?;
        if !head.contains(&derive_accept_key(key.as_bytes())) {
            return Err(format!("{id}: an upgrade to something else: {head}"));
        }
        let mask = mask.try_into().map_err(|_| "four bytes are a mask")?;
        Ok(Self { id: id.clone(), relay, stream, buffer, mask })
    }

    /// Answers what is pushed, for ever.
    async fn serve(mut self) -> Result<(), String> {
        let mut out = Vec::new();
        loop {
            let mut read = 0;
            while let Some((frame, size)) = frame::read(&self.buffer[read..])? {
                match frame {
                    Frame::Text(text) => {
                        let answer =
                            if self.relay { self.to_relay(text)? } else { Some(self.to_forwarder(text)?) };
                        if let Some(answer) = answer {
                            frame::text(&mut out, self.mask, &answer)?;
                        }
                    }
                    Frame::Ping(payload) => frame::pong(&mut out, self.mask, payload)?,
                    Frame::Pong => {}
                    Frame::Close(code) => return Err(format!("{}: closed with {code:?}", self.id)),
                }
                read += size;
            }
            self.buffer.drain(..read);
            if !out.is_empty() {
                self.stream
                    .write_all(&out)
                    .await
                    .map_err(|error| format!("{} answering: {error}", self.id))?;
                out.clear();
            }
            let read = self.stream.read_buf(&mut self.buffer).await;
            if read.map_err(|error| format!("{} receiving: {error}", self.id))? == 0 {
                return Err(format!("{}: the server closed the connection", self.id));
            }
        }
    }

    /// The answer to a request of the relay's; none to its acknowledgement of an answer.
    fn to_relay(&self, pushed: &str) -> Result<Option<String>, String> {
        if pushed.starts_with("<ack") && xml::attribute(pushed, "outcome") == Some("accepted") {
            return Ok(None);
        }
        let request = pushed.starts_with("<request").then(|| xml::attribute(pushed, "id")).flatten();
        let (Some(request), Some(object)) = (request, xml::text(pushed, "object")) else {
            return Err(format!("{}: pushed: {pushed}", self.id));
        };
        Ok(Some(format!(
            "<response xmlns='urn:relay:1' id='{request}'><body>{}:{object}</body></response>",
            self.id
        )))
    }

    fn to_forwarder(&self, pushed: &str) -> Result<String, String> {
        let (number, object) = pushed.split_once('\n').ok_or_else(|| format!("pushed: {pushed}"))?;
        Ok(format!("{number}\n{}:{object}", self.id))
    }
}

fn upgrade(path: &str, key: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{fields}\r\n"
    )
}
