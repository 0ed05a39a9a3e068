//! Whoever takes nothing holds up its peer, within a bound, and loses nothing.

use std::{collections::VecDeque, time::Duration};

use super::{
    super::{Harness, Owner},
    contents, pair, request, response,
};
use crate::{envelope::Envelope, request::Body};

/// How much a transport may take towards a peer that takes nothing.
const BOUND: usize = 4 * 1024 * 1024;

async fn blocks_and_unblocks(sender: &mut Owner, receiver: &Owner, all: Vec<Envelope>) {
    receiver.set_full(true);
    let mut waiting: VecDeque<_> = all.iter().cloned().collect();
    while let Ok(pushed) = tokio::time::timeout(Duration::from_millis(500), sender.push(&mut waiting)).await {
        pushed.expect("the sender may push");
        let taken: usize = all[..all.len() - waiting.len()].iter().map(Envelope::cost).sum();
        assert!(taken <= BOUND, "{taken} bytes were taken towards a peer that takes nothing");
    }
    let taken = all.len() - waiting.len();
    assert_eq!(receiver.unread(), 0);
    receiver.set_full(false);
    let rest = sender.send(waiting);
    let (rest, received) = tokio::join!(rest, receiver.receive(all.len()));
    rest.expect("the sender may push again");
    assert_eq!(contents(received), contents(all), "after {taken} were taken");
}

/// Towards a device.
pub async fn a_full_device_blocks_the_relay_within_a_bound<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    let body = Body::new("application/octet-stream", super::bytes(16 * 1024));
    let all = (0..400).map(|n| request(&device.device, n, Some(body.clone()))).collect();
    blocks_and_unblocks(&mut relay, &device, all).await;
}

/// Towards the relay.
pub async fn a_full_relay_blocks_the_device_within_a_bound<H: Harness>(harness: &H) {
    let (mut device, relay, _running) = pair(harness).await;
    let body = Body::new("application/octet-stream", super::bytes(16 * 1024));
    let all = (0..400).map(|n| response(n, Some(body.clone()))).collect();
    blocks_and_unblocks(&mut device, &relay, all).await;
}
