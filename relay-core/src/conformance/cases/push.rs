//! Either side may push at any time.

use std::{collections::VecDeque, time::Duration};

use super::{
    super::{Harness, PATIENCE},
    contents, pair, request, response,
};
use crate::request::Body;

/// The relay's first word needs none of the device's.
pub async fn the_relay_may_speak_first<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    relay.send([request(&device.device, 0, None)]).await.expect("the relay may push");
    assert_eq!(device.receive(1).await.len(), 1);
}

/// A session on which nothing happened for a while still takes a push, at once.
pub async fn while_idle<H: Harness>(harness: &H) {
    let (mut device, mut relay, _running) = pair(harness).await;
    relay.attached().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    relay.send([request(&device.device, 0, None)]).await.expect("the relay may push");
    device.receive(1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    device.send([response(0, None)]).await.expect("the device may push");
    relay.receive(1).await;
}

/// Traffic one way does not hold up the other.
pub async fn both_ways_at_once<H: Harness>(harness: &H) {
    let (mut device, mut relay, _running) = pair(harness).await;
    let name = device.device.clone();
    let down: Vec<_> = (0..200).map(|n| request(&name, n, Some(Body::text("down")))).collect();
    let up: Vec<_> = (0..200).map(|n| response(n, Some(Body::text("up")))).collect();
    let (sent_down, sent_up) = tokio::join!(relay.send(down.clone()), device.send(up.clone()));
    sent_down.expect("the relay may push");
    sent_up.expect("the device may push");
    assert_eq!(contents(device.receive(200).await), contents(down));
    assert_eq!(contents(relay.receive(200).await), contents(up));
}

/// More than fits into one message of the transport arrives whole, with bodies and without.
pub async fn a_burst_arrives_whole<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    let body =
        |n: usize| n.is_multiple_of(3).then(|| Body::new("application/octet-stream", super::bytes(n * 400)));
    let burst: Vec<_> = (0..300).map(|n| request(&device.device, n, body(n))).collect();
    relay.send(burst.clone()).await.expect("the relay may push");
    assert_eq!(contents(device.receive(300).await), contents(burst));
}

/// A push of nothing returns.
pub async fn an_empty_queue_is_no_work<H: Harness>(harness: &H) {
    let (mut device, mut relay, _running) = pair(harness).await;
    let mut nothing = VecDeque::new();
    for owner in [&mut device, &mut relay] {
        let pushed = tokio::time::timeout(PATIENCE, owner.push(&mut nothing)).await;
        pushed.expect("a push of nothing returns").expect("and is no error");
    }
}
