//! Sessions are apart from one another.

use std::{collections::HashSet, sync::Arc};

use super::{
    super::{Harness, Let, connected},
    contents, pair, request, response,
};
use crate::{request::Body, transport::CloseReason};

/// Every session has an ID of its own, at least 128 bits long.
pub async fn ids_are_unique<H: Harness>(harness: &H) {
    let mut running = harness.start(Arc::new(Let)).await;
    let mut seen = HashSet::new();
    for n in 0..8 {
        let (mut device, relay) = connected(&mut running, &format!("printer-{n}")).await;
        assert!(seen.insert(relay.id.clone()), "two sessions with one ID");
        assert!(relay.id.as_str().len() >= 22, "too short to be unguessable");
        device.close(CloseReason::Shutdown).await;
        relay.ended().await;
    }
}

/// What is said on one session is heard on no other, and the end of one is not the end of another.
pub async fn sessions_do_not_leak<H: Harness>(harness: &H) {
    let mut running = harness.start(Arc::new(Let)).await;
    let (mut device_1, mut relay_1) = connected(&mut running, "printer-1").await;
    let (mut device_2, mut relay_2) = connected(&mut running, "printer-2").await;
    assert_eq!((relay_1.device.as_str(), relay_2.device.as_str()), ("printer-1", "printer-2"));
    let say = |text: &str| Some(Body::text(text));
    relay_1.send([request(&device_1.device, 1, say("one"))]).await.expect("the relay may push");
    relay_2.send([request(&device_2.device, 2, say("two"))]).await.expect("the relay may push");
    assert_eq!(contents(device_1.receive(1).await), contents(vec![request(&device_1.device, 1, say("one"))]));
    assert_eq!(contents(device_2.receive(1).await), contents(vec![request(&device_2.device, 2, say("two"))]));
    device_1.close(CloseReason::Shutdown).await;
    relay_1.ended().await;
    device_2.send([response(2, say("two"))]).await.expect("the other session lives on");
    assert_eq!(contents(relay_2.receive(1).await), contents(vec![response(2, say("two"))]));
    assert_eq!((device_1.unread(), relay_1.unread()), (0, 0));
}

/// What is confirmed was taken; in the end everything taken is confirmed.
pub async fn confirmations_do_not_outrun<H: Harness>(harness: &H) {
    let (mut device, mut relay, _running) = pair(harness).await;
    for n in 0..20 {
        relay.send([request(&device.device, n, None)]).await.expect("the relay may push");
        device.receive(1).await;
        assert!(relay.confirmed() <= relay.taken(), "confirmed what was not taken");
        device.send([response(n, None)]).await.expect("the device may push");
        relay.receive(1).await;
    }
    if !harness.info().confirms {
        assert_eq!(relay.confirmed(), 0, "a transport that does not confirm said it had");
        return;
    }
    let all = relay.taken();
    if relay.confirmed() < all {
        relay.next(|event| (event == super::super::Event::Confirmed(all)).then_some(())).await;
    }
}
