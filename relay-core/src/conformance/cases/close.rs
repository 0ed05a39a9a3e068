//! Every end is told, in bounded time.

use std::collections::VecDeque;

use super::{super::Harness, pair, request, response};
use crate::{
    error::ErrorKind,
    transport::{CloseReason, EndReason},
};

/// The device's goodbye reaches the relay as one.
pub async fn by_the_device<H: Harness>(harness: &H) {
    let (mut device, relay, _running) = pair(harness).await;
    device.send([response(0, None)]).await.expect("the device may push");
    relay.receive(1).await;
    device.close(CloseReason::Shutdown).await;
    assert_eq!(relay.ended().await, EndReason::Goodbye);
}

/// The relay's leave-taking reaches the device, with when to come back if the transport can say so.
pub async fn by_the_relay<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    relay.attached().await;
    relay.send([request(&device.device, 0, None)]).await.expect("the relay may push");
    device.receive(1).await;
    relay.close(CloseReason::Drain { retry_after: std::time::Duration::from_secs(3), to: None }).await;
    let reason = device.ended().await;
    assert!(matches!(reason, EndReason::Drain { .. }), "{reason:?}");
}

/// An owner that drops its session ends it.
pub async fn dropped_without_close<H: Harness>(harness: &H) {
    let (device, relay, _running) = pair(harness).await;
    relay.attached().await;
    drop(device);
    relay.ended().await;
    let (device, relay, _running) = pair(harness).await;
    relay.attached().await;
    drop(relay);
    device.ended().await;
}

/// What is over takes nothing more.
pub async fn nothing_can_be_pushed_afterwards<H: Harness>(harness: &H) {
    let (mut device, mut relay, _running) = pair(harness).await;
    relay.attached().await;
    device.close(CloseReason::Shutdown).await;
    relay.ended().await;
    let mut waiting = VecDeque::from([request(&device.device, 0, None)]);
    let error = tokio::time::timeout(super::super::PATIENCE, relay.push(&mut waiting))
        .await
        .expect("a push on a session that is over returns")
        .expect_err("and says so");
    assert!(
        matches!(error.kind, ErrorKind::Closed | ErrorKind::Expired | ErrorKind::Interrupted),
        "{error:?}"
    );
    assert_eq!(waiting.len(), 1, "nothing was taken");
}

/// A device whose session was taken over is told that, and not to come straight back.
pub async fn a_replaced_session_is_told<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    relay.attached().await;
    relay.close(CloseReason::Replaced).await;
    assert_eq!(device.ended().await, EndReason::Replaced);
}
