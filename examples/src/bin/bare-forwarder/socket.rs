//! Devices on a WebSocket, by tokio-tungstenite as it comes but for its buffers: a device opens `/DEVICE`, gets a number
//! and the request as a text message, and answers under that number in another.
//!
//! A call writes on the spot, and the socket has one task, which reads: no channel, no lock, no second task, so that
//! nothing is woken that need not be.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use futures_util::{Sink, Stream};
use tokio::{net::TcpStream, task::spawn_local};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        Error, Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::WebSocketConfig,
    },
};

use crate::{Forwarder, frame};

/// What is read at once, and kept for each socket; tungstenite would keep 128 KiB.
const READ: usize = 4 * 1024;

#[derive(Default)]
pub(crate) struct Sockets {
    devices: RefCell<HashMap<Box<str>, Rc<Socket>>>,
}

impl Sockets {
    pub(crate) fn get(&self, device: &str) -> Option<Rc<Socket>> {
        self.devices.borrow().get(device).cloned()
    }
}

pub(crate) struct Socket {
    stream: RefCell<WebSocketStream<TcpStream>>,
    /// Something waits to be written, which the reading task sees to.
    behind: Cell<bool>,
}

impl Socket {
    pub(crate) fn push(&self, number: u64, body: &[u8]) {
        let Ok(text) = String::from_utf8(frame(number, body)) else { return };
        let mut stream = self.stream.borrow_mut();
        // What breaks here breaks for the reader, too.
        if Pin::new(&mut *stream).start_send(Message::text(text)).is_ok() {
            let flushed = Pin::new(&mut *stream).poll_flush(&mut Context::from_waker(Waker::noop()));
            self.behind.set(flushed.is_pending());
        }
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        let mut stream = self.stream.borrow_mut();
        if self.behind.get() {
            let flushed = Pin::new(&mut *stream).poll_flush(cx)?;
            self.behind.set(flushed.is_pending());
        }
        let message = ready!(Pin::new(&mut *stream).poll_next(cx));
        Poll::Ready(message)
    }
}

/// Lets a device in.
pub(crate) async fn serve(forwarder: Rc<Forwarder>, stream: TcpStream) {
    let mut device: Box<str> = Box::default();
    // The type of a refusal is tungstenite's.
    #[expect(clippy::result_large_err)]
    let name = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        device = request.uri().path().trim_start_matches('/').into();
        Ok(response)
    };
    let config = WebSocketConfig::default().read_buffer_size(READ).write_buffer_size(0);
    // A peer that breaks its connection is no business of the others.
    let Ok(stream) = accept_hdr_async_with_config(stream, name, Some(config)).await else { return };
    let socket = Rc::new(Socket { stream: RefCell::new(stream), behind: Cell::new(false) });
    forwarder.sockets.devices.borrow_mut().insert(device.clone(), Rc::clone(&socket));
    // A task of its own, since this one has the size of the handshake.
    spawn_local(read(forwarder, device, socket));
}

async fn read(forwarder: Rc<Forwarder>, device: Box<str>, socket: Rc<Socket>) {
    while let Some(Ok(message)) = poll_fn(|cx| socket.poll_next(cx)).await {
        if message.is_text() {
            forwarder.answer_of(&message.into_data());
        }
    }
    let mut devices = forwarder.sockets.devices.borrow_mut();
    // The device may have opened another one since.
    if devices.get(&device).is_some_and(|newest| Rc::ptr_eq(newest, &socket)) {
        devices.remove(&device);
    }
}
