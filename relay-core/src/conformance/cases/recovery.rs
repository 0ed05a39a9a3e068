//! A connection breaks.

use std::time::Duration;

use super::{
    super::{Harness, PATIENCE},
    contents, pair, request, response,
};
use crate::{request::Body, transport::EndReason};

/// While nothing is under way. A resumable session goes on; another ends, and both ends are told.
pub async fn a_cut_while_idle<H: Harness>(harness: &H) {
    let (mut device, mut relay, running) = pair(harness).await;
    relay.attached().await;
    harness.cut(&running.guard, &device.device).await;
    if !harness.info().resumable {
        assert_eq!(relay.ended().await, EndReason::Lost);
        assert_eq!(device.ended().await, EndReason::Lost);
        return;
    }
    device.push_half().refresh();
    relay.send([request(&device.device, 0, None)]).await.expect("the relay may push");
    device.receive(1).await;
    device.send([response(0, None)]).await.expect("the device may push");
    relay.receive(1).await;
}

/// While both sides push. In a resumable session nothing is lost, doubled or out of order.
pub async fn a_cut_under_way<H: Harness>(harness: &H) {
    let (mut device, mut relay, running) = pair(harness).await;
    relay.attached().await;
    let name = device.device.clone();
    let body = Body::new("application/octet-stream", super::bytes(2000));
    let down: Vec<_> = (0..120).map(|n| request(&name, n, Some(body.clone()))).collect();
    let up: Vec<_> = (0..120).map(|n| response(n, Some(body.clone()))).collect();
    if !harness.info().resumable {
        harness.cut(&running.guard, &name).await;
        let _ = relay.send(down.iter().take(1).cloned()).await;
        assert_eq!(relay.ended().await, EndReason::Lost);
        assert_eq!(device.ended().await, EndReason::Lost);
        return;
    }
    let cuts = async {
        for pause in [1, 5, 20, 60] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            harness.cut(&running.guard, &name).await;
        }
    };
    let pushing_down = async {
        for some in down.chunks(7) {
            relay.send(some.to_vec()).await.expect("the relay may push");
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    };
    let pushing_up = async {
        for some in up.chunks(7) {
            device.send(some.to_vec()).await.expect("the device may push");
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(pushing_down, pushing_up, cuts) })
        .await
        .expect("pushes go on after the cuts");
    assert_eq!(contents(device.receive(120).await), contents(down));
    assert_eq!(contents(relay.receive(120).await), contents(up));
    assert_eq!((device.unread(), relay.unread()), (0, 0), "something arrived twice");
}
