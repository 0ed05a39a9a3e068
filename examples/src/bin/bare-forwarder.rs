//! A bare long-poll forwarder: what `fleet` compares the relay with.
//!
//! It has the relay's shape and does nothing but look up and forward: a service's `POST /call/DEVICE` is answered with
//! what that device answers. The device holds a `POST /poll/DEVICE`, which is answered with a number and the request;
//! it gives its answer under that number either in its next poll, or apart in a `POST /answer/NUMBER`. No log-in, no
//! limit, no time-out: the floor of what this job costs with hyper on one thread.
//!
//! ```text
//! bare-forwarder [ADDRESS]        127.0.0.1:0 if left out; prints where it listens
//! ```
#![expect(clippy::future_not_send, reason = "one thread, nothing is shared")]

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpSocket, sync::oneshot, task::LocalSet};

#[derive(Default)]
struct Device {
    held: Option<oneshot::Sender<Bytes>>,
    waiting: VecDeque<Bytes>,
}

#[derive(Default)]
struct Forwarder {
    devices: RefCell<HashMap<Box<str>, Device>>,
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
            Some(("poll", device)) => self.poll(device, body),
            Some(("answer", number)) => {
                let Ok(number) = number.parse() else { return Ok(status(StatusCode::BAD_REQUEST)) };
                self.answer(number, body);
                return Ok(status(StatusCode::NO_CONTENT));
            }
            _ => return Ok(status(StatusCode::NOT_FOUND)),
        };
        drop(head);
        Ok(match answer.await {
            Ok(bytes) => Response::new(Full::new(bytes)),
            Err(_) => status(StatusCode::SERVICE_UNAVAILABLE),
        })
    }

    fn call(&self, device: &str, body: &Bytes) -> oneshot::Receiver<Bytes> {
        let number = self.last.get() + 1;
        self.last.set(number);
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(number, sender);
        let mut frame = BytesMut::with_capacity(24 + body.len());
        frame.extend_from_slice(number.to_string().as_bytes());
        frame.extend_from_slice(b"\n");
        frame.extend_from_slice(body);
        let mut devices = self.devices.borrow_mut();
        let device = devices.entry(device.into()).or_default();
        let frame = match device.held.take() {
            Some(held) => held.send(frame.freeze()).err(),
            None => Some(frame.freeze()),
        };
        device.waiting.extend(frame);
        receiver
    }

    fn poll(&self, device: &str, body: Bytes) -> oneshot::Receiver<Bytes> {
        if let Some(end) = body.iter().position(|&byte| byte == b'\n')
            && let Some(number) =
                std::str::from_utf8(&body[..end]).ok().and_then(|number| number.parse().ok())
        {
            self.answer(number, body.slice(end + 1..));
        }
        let (sender, receiver) = oneshot::channel();
        let mut devices = self.devices.borrow_mut();
        let device = devices.entry(device.into()).or_default();
        match device.waiting.pop_front() {
            // The receiver is in this very function: the send cannot fail.
            Some(frame) => drop(sender.send(frame)),
            None => device.held = Some(sender),
        }
        receiver
    }

    fn answer(&self, number: u64, body: Bytes) {
        if let Some(caller) = self.pending.borrow_mut().remove(&number) {
            // A caller that hung up gets nothing.
            let _ = caller.send(body);
        }
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

async fn serve(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    let listener = socket.listen(4096)?;
    println!("listening on {}", listener.local_addr()?);
    let forwarder = Rc::new(Forwarder::default());
    loop {
        let (stream, _) = listener.accept().await?;
        let forwarder = forwarder.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| forwarder.clone().handle(request));
            // A peer that breaks its connection is no business of the others.
            let _ = http1::Builder::new()
                .auto_date_header(false)
                .max_buf_size(8 * 1024)
                .writev(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address =
        std::env::args().nth(1).map_or_else(|| Ok(SocketAddr::from(([127, 0, 0, 1], 0))), |it| it.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, serve(address))
}
