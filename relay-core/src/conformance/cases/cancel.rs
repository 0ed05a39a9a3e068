//! Futures may be dropped.

use std::{collections::VecDeque, future::Future, sync::Arc, task::Context, time::Duration};

use super::{
    super::{Harness, Let, PATIENCE, connected, harness::options},
    contents, pair, request,
};
use crate::{request::Body, transport::Incoming};

/// A push dropped while it waits has taken nothing; what was taken before arrives whole, and what is pushed later too.
pub async fn a_dropped_push_takes_nothing<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    device.set_full(true);
    let body = Body::new("application/octet-stream", super::bytes(8 * 1024));
    let all: Vec<_> = (0..2000).map(|n| request(&device.device, n, Some(body.clone()))).collect();
    let mut waiting: VecDeque<_> = all.iter().cloned().collect();
    let mut dropped = 0;
    while dropped < 3 {
        let before = waiting.len();
        assert!(before > 0, "a device that takes nothing never held up the relay");
        if let Ok(pushed) = tokio::time::timeout(Duration::from_millis(100), relay.push(&mut waiting)).await {
            pushed.expect("the relay may push");
        } else {
            assert_eq!(waiting.len(), before, "a dropped push had taken something");
            dropped += 1;
        }
    }
    let taken = all.len() - waiting.len();
    device.set_full(false);
    assert_eq!(contents(device.receive(taken).await), contents(all[..taken].to_vec()));
    relay.send([request(&device.device, 9999, None)]).await.expect("the relay may still push");
    assert_eq!(contents(device.receive(1).await), contents(vec![request(&device.device, 9999, None)]));
}

/// Whoever gives up while connecting leaves nothing that lasts, and can connect again.
pub async fn a_dropped_connect_leaves_no_session<H: Harness>(harness: &H) {
    let mut running = harness.start(Arc::new(Let)).await;
    let connector = Arc::clone(&running.connector);
    for patience in [0, 1, 3, 10, 30] {
        let mut connecting = Box::pin(connector.connect(options("printer-1")));
        let _ = connecting.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        let _ = tokio::time::timeout(Duration::from_millis(patience), &mut connecting).await;
        drop(connecting);
    }
    // Whatever still knocks either fails its handshake or is over soon: its peer is gone.
    while let Ok(Some(Incoming::Session(knock))) =
        tokio::time::timeout(Duration::from_millis(300), running.listener.accept()).await
    {
        if let Ok(Ok(session)) = tokio::time::timeout(PATIENCE, knock.handshake).await {
            drop(session);
        }
    }
    let (device, mut relay) = connected(&mut running, "printer-1").await;
    relay.send([request(&device.device, 0, None)]).await.expect("the relay may push");
    device.receive(1).await;
}
