//! A bare forwarder: what `fleet` compares the relay with.
//!
//! It has the relay's shape and does nothing but look up and forward: a service's `POST /call/DEVICE` is answered with
//! what that device answers. The device holds a `POST /poll/DEVICE` (`poll`), or has a WebSocket (`socket`). No log-in, no
//! limit, no time-out: the floor of what this job costs with hyper and tokio-tungstenite on one thread.
//!
//! ```text
//! bare-forwarder [ADDRESS]        127.0.0.1:0 if left out
//! ```
//!
//! It prints two lines: where it listens for HTTP, and, on a port beside that, for WebSockets.
#![expect(clippy::future_not_send, reason = "one thread, nothing is shared")]

mod poll;
mod socket;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    rc::Rc,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    task::{LocalSet, spawn_local},
};

use crate::{poll::Polls, socket::Sockets};

#[derive(Default)]
struct Forwarder {
    polls: Polls,
    sockets: Sockets,
    pending: RefCell<HashMap<u64, oneshot::Sender<Bytes>>>,
    last: Cell<u64>,
}

impl Forwarder {
    async fn handle(self: Rc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return Ok(status(StatusCode::BAD_REQUEST)) };
        let body = body.to_bytes();
        // Head and body are gone before the answer is held: 4 KiB less for each device that waits.
        let answer = match head.uri.path().get(1..).and_then(|path| path.split_once('/')) {
            Some(("call", device)) => self.call(device, &body),
            Some(("poll", device)) => self.poll(device, &body),
            Some(("answer", number)) => {
                let Ok(number) = number.parse() else { return Ok(status(StatusCode::BAD_REQUEST)) };
                self.answer(number, body);
                return Ok(status(StatusCode::NO_CONTENT));
            }
            _ => return Ok(status(StatusCode::NOT_FOUND)),
        };
        drop((head, body));
        Ok(match answer.await {
            Ok(bytes) => Response::new(Full::new(bytes)),
            Err(_) => status(StatusCode::SERVICE_UNAVAILABLE),
        })
    }

    /// The request goes under a number, by the way that the device has.
    fn call(&self, device: &str, body: &[u8]) -> oneshot::Receiver<Bytes> {
        let number = self.last.get() + 1;
        self.last.set(number);
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(number, sender);
        match self.sockets.get(device) {
            Some(socket) => socket.push(number, body),
            None => self.polls.push(device, number, body),
        }
        receiver
    }

    /// A poll, which may bring an answer.
    fn poll(&self, device: &str, body: &Bytes) -> oneshot::Receiver<Bytes> {
        self.answer_of(body);
        self.polls.hold(device)
    }

    /// An answer with its number before it, if it is one.
    fn answer_of(&self, bytes: &Bytes) {
        if let Some(end) = bytes.iter().position(|&byte| byte == b'\n')
            && let Some(number) =
                std::str::from_utf8(&bytes[..end]).ok().and_then(|number| number.parse().ok())
        {
            self.answer(number, bytes.slice(end + 1..));
        }
    }

    fn answer(&self, number: u64, body: Bytes) {
        if let Some(caller) = self.pending.borrow_mut().remove(&number) {
            // A caller that hung up gets nothing.
            let _ = caller.send(body);
        }
    }
}

/// What a device is sent.
fn frame(number: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(24 + body.len());
    frame.extend_from_slice(number.to_string().as_bytes());
    frame.push(b'\n');
    frame.extend_from_slice(body);
    frame
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn listen(address: SocketAddr) -> Result<TcpListener, Box<dyn Error>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    Ok(socket.listen(4096)?)
}

async fn serve(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let http = listen(address)?;
    let sockets = listen(SocketAddr::new(address.ip(), 0))?;
    println!("listening on {}", http.local_addr()?);
    println!("sockets on {}", sockets.local_addr()?);
    let forwarder = Rc::new(Forwarder::default());
    loop {
        tokio::select! {
            http = http.accept() => drop(spawn_local(serve_http(forwarder.clone(), http?.0))),
            socket = sockets.accept() => drop(spawn_local(socket::serve(forwarder.clone(), socket?.0))),
        }
    }
}

async fn serve_http(forwarder: Rc<Forwarder>, stream: TcpStream) {
    let service = service_fn(move |request| forwarder.clone().handle(request));
    // A peer that breaks its connection is no business of the others.
    let _ = http1::Builder::new()
        .auto_date_header(false)
        .max_buf_size(8 * 1024)
        .writev(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn main() -> Result<(), Box<dyn Error>> {
    let address =
        std::env::args().nth(1).map_or_else(|| Ok(SocketAddr::from(([127, 0, 0, 1], 0))), |it| it.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, serve(address))
}
