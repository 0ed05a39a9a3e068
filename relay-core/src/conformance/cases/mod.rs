//! The cases, by the part of the promise that they prove.

pub mod backpressure;
pub mod cancel;
pub mod channel;
pub mod close;
pub mod delivery;
pub mod handshake;
pub mod push;
pub mod recovery;
pub mod session;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Harness, Let, Owner, Running, connected};
use crate::{
    envelope::Envelope,
    ids::{DeviceId, Method, ObjectId, RequestId},
    request::{Body, Request, Response},
};

async fn pair<H: Harness>(harness: &H) -> (Owner, Owner, Running<H::Guard>) {
    let mut running = harness.start(Arc::new(Let)).await;
    let (device, relay) = connected(&mut running, "printer-1").await;
    (device, relay, running)
}

fn id(number: usize) -> RequestId {
    RequestId::new(&format!("request-{number}")).expect("the kit's request IDs are valid")
}

/// A request as the relay sends it, told apart by `number`.
fn request(device: &DeviceId, number: usize, body: Option<Body>) -> Envelope {
    let object = ObjectId::new(&format!("object/{number}")).expect("the kit's object IDs are valid");
    let mut request = Request::new(device.clone(), Method::set()).with_object(object);
    request.body = body;
    let deadline = (tokio::time::Instant::now() + Duration::from_secs(60)).into_std();
    Envelope::Request { id: id(number), request: Arc::new(request), deadline }
}

/// A response as the device sends it.
fn response(number: usize, body: Option<Body>) -> Envelope {
    let response = Response { body, ..Response::ok() };
    Envelope::Response { id: id(number), response, acknowledge: true }
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ i as u8).collect()
}

#[derive(Debug, PartialEq)]
enum Content {
    Request(RequestId, Arc<Request>),
    Response(RequestId, Response),
}

/// What an envelope says, but for its deadline, which loses the odd moment on the way.
fn content(envelope: Envelope) -> Content {
    match envelope {
        Envelope::Request { id, request, .. } => Content::Request(id, request),
        Envelope::Response { id, response, .. } => Content::Response(id, response),
        other => panic!("neither request nor response: {other:?}"),
    }
}

fn contents(envelopes: Vec<Envelope>) -> Vec<Content> {
    envelopes.into_iter().map(content).collect()
}
