//! One HTTP/1.1 connection of a device or a service.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::wire;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_nodelay(true)?;
        socket.bind(SocketAddr::new(from, 0))?;
        Ok(Self { stream: socket.connect(to).await?, buffer: Vec::new() })
    }

    /// `head` is the request line and the fields that are this request's own.
    pub(crate) async fn send(&mut self, head: &str, body: &str) -> Result<(), String> {
        let request = wire::request(head, body);
        self.stream.write_all(request.as_bytes()).await.map_err(|error| format!("sending {head}: {error}"))
    }

    pub(crate) async fn receive(&mut self) -> Result<(u16, String), String> {
        loop {
            if let Some(answer) = wire::answer(&self.buffer)? {
                let body = String::from_utf8_lossy(&self.buffer[answer.head..answer.whole]).into_owned();
                self.buffer.drain(..answer.whole);
                return Ok((answer.status, body));
            }
            let read = self
                .stream
                .read_buf(&mut self.buffer)
                .await
                .map_err(|error| format!("receiving: {error}"))?;
            if read == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }

    pub(crate) async fn ask(&mut self, head: &str, body: &str) -> Result<(u16, String), String> {
        self.send(head, body).await?;
        self.receive().await
    }
}
