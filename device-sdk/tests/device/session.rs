//! S2, S3, S10: how a device comes to its session, keeps it and comes back.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use device_sdk::{Device, Event, OnlineError, Registration, SessionState, StartError};

use crate::world::{PIN, World, is_online, toner, until};

#[tokio::test(start_paused = true)]
async fn s2_it_registers_then_opens_its_session_and_answers() {
    let world = World::new();
    let device =
        world.device(toner()).registration(Registration::new().name("Copy room")).start().await.unwrap();
    device.online().await.unwrap();
    assert_eq!(*world.calls(), ["register Copy room", "connect"]);
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    assert_eq!(world.get("ink").await.unwrap(), "unknown-object the device has no such object");
}

#[tokio::test(start_paused = true)]
async fn s3_a_quiet_device_asks_whether_its_session_is_known() {
    let world = World::new();
    let device = world.device(toner()).keepalive(Duration::from_secs(60)).start().await.unwrap();
    let mut events = device.events();
    device.online().await.unwrap();
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    let survived = until(&mut events, |event| matches!(event, Event::Survival { .. })).await;
    assert_eq!(survived, Event::Survival { known: Some(true) });
    assert!(device.is_online());
    assert_eq!(world.count("connect"), 1);
}

#[tokio::test(start_paused = true)]
async fn s10_after_the_relay_died_and_came_back_pushes_work_untouched() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    let mut events = device.events();
    until(&mut events, is_online).await;
    for _ in 0..5 {
        world.restart_relay();
        until(&mut events, |event| matches!(event, Event::Offline { .. })).await;
        until(&mut events, is_online).await;
        assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    }
}

#[tokio::test(start_paused = true)]
async fn s10_it_never_gives_up() {
    let world = World::new();
    world.0.down.store(true, Ordering::SeqCst);
    let device = world.device(toner()).start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(7 * 24 * 3600)).await;
    assert_ne!(device.session_state(), SessionState::Online);
    world.0.down.store(false, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(30), device.online()).await.expect("soon").unwrap();
}

#[tokio::test(start_paused = true)]
async fn x1_it_enrolls_once_and_has_its_credential_after_a_restart() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let build = || {
        Device::builder("https://relay.test", "printer-1")
            .state_folder(folder.path())
            .connector(Arc::new(world.clone()))
            .relay_http(Arc::new(world.clone()))
    };
    assert!(matches!(build().start().await, Err(StartError::NoCredential)));
    let device = build().pin(PIN).start().await.unwrap();
    device.online().await.unwrap();
    assert_eq!(*world.calls(), ["enroll", "register ", "connect"]);
    device.shutdown(Duration::ZERO).await;
    let device = build().pin(PIN).start().await.unwrap();
    device.online().await.unwrap();
    assert_eq!(world.calls()[3..], ["register ", "connect resuming"]);
}

#[tokio::test(start_paused = true)]
async fn t11_a_wrong_pin_is_tried_once_and_a_new_one_mends_it() {
    let world = World::new();
    let device = Device::builder("https://relay.test", "printer-1")
        .pin("00000000")
        .connector(Arc::new(world.clone()))
        .relay_http(Arc::new(world.clone()))
        .start()
        .await
        .unwrap();
    assert_eq!(device.online().await, Err(OnlineError::Refused));
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(world.count("enroll"), 1);
    device.enroll(PIN).await.unwrap();
    device.watch().wait_for(|state| *state == SessionState::Online).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn p6_a_replaced_device_is_told_and_stays_away() {
    let world = World::new();
    let first = world.device(toner()).start().await.unwrap();
    let mut events = first.events();
    first.online().await.unwrap();
    let second = world.device(toner()).start().await.unwrap();
    second.online().await.unwrap();
    let event = until(&mut events, |event| matches!(event, Event::Offline { .. })).await;
    let Event::Offline { reason, retry_in } = event else { unreachable!() };
    assert_eq!(reason, relay_core::transport::EndReason::Replaced);
    assert!(retry_in >= Duration::from_secs(30), "{retry_in:?}");
    assert!(second.is_online());
}
