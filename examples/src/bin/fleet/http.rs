//! One HTTP/1.1 connection of a device or a service.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

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
        let request = request(head, body);
        self.stream.write_all(request.as_bytes()).await.map_err(|error| format!("sending {head}: {error}"))
    }

    pub(crate) async fn receive(&mut self) -> Result<(u16, String), String> {
        let answer = self.whole().await?;
        let body = String::from_utf8_lossy(&self.buffer[answer.head..answer.whole]).into_owned();
        self.buffer.drain(..answer.whole);
        Ok((answer.status, body))
    }

    /// Waits until an answer is whole in the buffer.
    async fn whole(&mut self) -> Result<Answer, String> {
        loop {
            if let Some(answer) = answer(&self.buffer)? {
                return Ok(answer);
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

    /// Sends an upgrade request. The head of the 101, and the connection with what came behind it.
    pub(crate) async fn upgrade(mut self, request: &str) -> Result<(String, TcpStream, Vec<u8>), String> {
        self.stream.write_all(request.as_bytes()).await.map_err(|error| format!("upgrading: {error}"))?;
        let answer = self.whole().await?;
        let rest = self.buffer.split_off(answer.whole);
        let answered = String::from_utf8_lossy(&self.buffer).into_owned();
        if answer.status != 101 {
            return Err(format!("the upgrade met with {answered}"));
        }
        Ok((answered, self.stream, rest))
    }
}

/// An HTTP/1.1 request with a length.
fn request(head: &str, body: &str) -> String {
    format!("{head}\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// An answer that is whole in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    status: u16,
    head: usize,
    whole: usize,
}

/// The answer at the beginning of `buffer`; `None` if more bytes are needed.
fn answer(buffer: &[u8]) -> Result<Option<Answer>, String> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..end]).map_err(|error| error.to_string())?;
    let status = head
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| format!("not HTTP/1.1: {head}"))?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, length)| length.trim().parse::<usize>())
        .map_err(|error| format!("{error}: {head}"))?;
    let whole = end + 4 + length;
    Ok((buffer.len() >= whole).then_some(Answer { status, head: end + 4, whole }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_when_it_is_whole() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP";
        assert_eq!(answer(&bytes[..20]), Ok(None));
        assert_eq!(answer(&bytes[..40]), Ok(None));
        assert_eq!(answer(bytes), Ok(Some(Answer { status: 200, head: 38, whole: 41 })));
        assert_eq!(
            answer(b"HTTP/1.1 204 No Content\r\n\r\n"),
            Ok(Some(Answer { status: 204, head: 27, whole: 27 }))
        );
    }
}
