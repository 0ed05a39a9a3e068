//! S1, K2: what the vendor's own code and the device's user do with a device.

use std::{sync::Arc, time::Duration};

use device_sdk::{
    Device, Event, HandlerError, OnlineError, ReconnectConfig, Registration, RespondBy, Router, SessionState,
    StartError,
};
use relay_core::{outcome::RequestError, relay::State};

use crate::world::{World, is_online, toner, until};

#[tokio::test(start_paused = true)]
async fn s1_maintenance_can_be_switched_at_run_time_and_survives_a_restart() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let device = world.device(toner()).state_folder(folder.path()).start().await.unwrap();
    device.online().await.unwrap();
    device.set_maintenance(false).await.unwrap();
    device.watch().wait_for(|state| *state == SessionState::Off).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), async {
        while world.state() != Some(State::Offline) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("a clean goodbye is offline at once");
    assert_eq!(world.get("toner").await, Err(RequestError::DeviceOffline));
    device.shutdown(Duration::ZERO).await;

    let calls = world.calls().len();
    let device = world.device(toner()).state_folder(folder.path()).start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(device.online().await, Err(OnlineError::Off));
    assert!(!device.maintenance());
    assert_eq!(world.calls().len(), calls, "off, it calls nobody");
    device.set_maintenance(true).await.unwrap();
    device.watch().wait_for(|state| *state == SessionState::Online).await.unwrap();
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
}

#[tokio::test(start_paused = true)]
async fn k2_dropping_the_last_handle_ends_the_device() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    device.online().await.unwrap();
    let other = device.clone();
    drop(device);
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    let mut watch = other.watch();
    drop(other);
    watch.wait_for(|state| *state == SessionState::Stopped).await.unwrap();
    assert_eq!(world.get("toner").await, Err(RequestError::DeviceOffline));
}

#[tokio::test(start_paused = true)]
async fn k2_shutting_down_lets_what_is_at_work_finish() {
    for way in [RespondBy::Http, RespondBy::Session] {
        let world = World::new();
        let begun = Arc::new(tokio::sync::Notify::new());
        let telling = begun.clone();
        let router = Router::new().get("slow", move || {
            telling.notify_one();
            async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok("done")
            }
        });
        let device = world.device(router).respond_by(way).start().await.unwrap();
        device.online().await.unwrap();
        let asking = tokio::spawn({
            let world = world.clone();
            async move { world.get("slow").await }
        });
        begun.notified().await;
        device.shutdown(Duration::MAX).await;
        assert_eq!(asking.await.unwrap().unwrap(), "ok done");
        assert_eq!(device.session_state(), SessionState::Stopped);
        assert!(device.set_maintenance(true).await.is_err());
        assert_eq!(device.online().await, Err(OnlineError::Stopped));
        device.shutdown(Duration::MAX).await;
    }
}

#[tokio::test(start_paused = true)]
async fn k2_a_handler_without_end_does_not_hold_up_the_shutdown_beyond_its_grace() {
    let world = World::new();
    let begun = Arc::new(tokio::sync::Notify::new());
    let telling = begun.clone();
    let router = Router::new().get("never", move || {
        telling.notify_one();
        std::future::pending::<Result<(), HandlerError>>()
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let asking = tokio::spawn({
        let world = world.clone();
        async move { world.get("never").await }
    });
    begun.notified().await;
    let before = tokio::time::Instant::now();
    device.shutdown(Duration::from_secs(3)).await;
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    assert!(asking.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn events_that_a_slow_reader_missed_are_counted_not_hidden() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    device.online().await.unwrap();
    let mut events = device.events();
    for _ in 0..200 {
        world.get("toner").await.unwrap();
    }
    assert!(matches!(events.next().await, Some(Event::Lagged { missed }) if missed > 0));
}

#[tokio::test(start_paused = true)]
async fn p1_registering_again_tells_the_relay_what_changed() {
    let world = World::new();
    let device = world.device(toner()).start().await.unwrap();
    let mut events = device.events();
    until(&mut events, is_online).await;
    device.register(Registration::new().name("Lobby")).await.unwrap();
    until(&mut events, |event| *event == Event::Registered).await;
    assert_eq!(world.calls().last().unwrap(), "register Lobby");
    assert!(device.is_online());
}

#[tokio::test]
async fn what_cannot_be_is_said_at_the_start() {
    let world = World::new();
    let build = || world.device(Router::new());
    assert!(matches!(
        Device::builder("https://relay.test", "no id!").token("t").start().await,
        Err(StartError::DeviceId(_))
    ));
    assert!(matches!(
        Device::builder("http://relay.test", "printer-1").token("t").start().await,
        Err(StartError::Plaintext)
    ));
    assert!(matches!(
        build().keepalive(Duration::from_millis(999)).start().await,
        Err(StartError::Setting { setting: "keepalive", .. })
    ));
    let mut reconnect = ReconnectConfig::default();
    reconnect.longest = Duration::MAX;
    assert!(matches!(
        build().reconnect(reconnect).start().await,
        Err(StartError::Setting { setting: "reconnect", .. })
    ));
    assert!(matches!(build().concurrency(0).start().await, Err(StartError::Setting { .. })));
    let twice = Router::new().get("a", || async { Ok(1) }).get("a", || async { Ok(2) });
    assert!(matches!(build().router(twice).start().await, Err(StartError::Route { .. })));
}
