//! Devices that poll. A poll is held, and answered with a number and the request; the answer comes under that number
//! either with the next poll, or apart in a `POST /answer/NUMBER`.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::frame;

#[derive(Default)]
pub(crate) struct Polls {
    devices: RefCell<HashMap<Box<str>, Device>>,
}

#[derive(Default)]
struct Device {
    held: Option<oneshot::Sender<Bytes>>,
    waiting: VecDeque<Bytes>,
}

impl Polls {
    pub(crate) fn push(&self, device: &str, number: u64, body: &[u8]) {
        let frame = Bytes::from(frame(number, body));
        let mut devices = self.devices.borrow_mut();
        let device = devices.entry(device.into()).or_default();
        let frame = match device.held.take() {
            Some(held) => held.send(frame).err(),
            None => Some(frame),
        };
        device.waiting.extend(frame);
    }

    pub(crate) fn hold(&self, device: &str) -> oneshot::Receiver<Bytes> {
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
}
