//! S5: how the vendor's handlers are found and run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use device_sdk::{Body, Context, HandlerError, Method, ObjectId, Request, Router, Set};
use relay_core::Call;

use crate::world::{World, device_id, toner, words};

#[tokio::test(start_paused = true)]
async fn s5_a_slow_handler_blocks_no_other_push_and_no_keep_alive() {
    let world = World::new();
    let router = toner().get("slow", || async {
        tokio::time::sleep(Duration::from_secs(500)).await;
        Ok("at last")
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let slow = Call::new(Request::get(device_id(), ObjectId::new("slow").unwrap()))
        .with_wait(Duration::from_secs(600));
    let relay = world.relay();
    let slow = tokio::spawn(async move { relay.request(slow).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(world.count("alive") >= 3, "{:?}", world.calls());
    assert_eq!(words(&slow.await.unwrap().unwrap().response), "ok at last");
}

#[tokio::test(start_paused = true)]
async fn s5_no_more_handlers_run_at_once_than_allowed() {
    let world = World::new();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, peak) = (running.clone(), most.clone());
    let router = Router::new().get("*", move || {
        let (inside, peak) = (inside.clone(), peak.clone());
        async move {
            peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let device = world.device(router).concurrency(4).start().await.unwrap();
    device.online().await.unwrap();
    let asking: Vec<_> = (0..40)
        .map(|n| {
            let world = world.clone();
            tokio::spawn(async move { world.get(&format!("o{n}")).await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap().unwrap(), "ok ");
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn f29_a_handler_that_panics_costs_its_own_call_alone() {
    let world = World::new();
    let router = toner()
        .get("bug", || async { if true { panic!("a vendor's bug") } else { Ok(()) } })
        .get("early", || -> std::future::Ready<Result<(), HandlerError>> {
            panic!("before the first await")
        });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    for object in ["bug", "early"] {
        assert_eq!(world.get(object).await.unwrap(), "handler-panicked the device's handler panicked");
    }
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
}

#[tokio::test(start_paused = true)]
async fn f5_when_the_service_hangs_up_the_handler_is_told() {
    let world = World::new();
    let told = Arc::new(tokio::sync::Notify::new());
    let telling = told.clone();
    let router = Router::new().get("long", move |context: Context| {
        let telling = telling.clone();
        async move {
            assert!(context.remaining() > Duration::from_secs(20));
            context.cancelled().await;
            telling.notify_one();
            Ok(())
        }
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let hung_up = tokio::time::timeout(Duration::from_secs(2), world.get("long")).await;
    assert!(hung_up.is_err());
    tokio::time::timeout(Duration::from_secs(1), told.notified()).await.expect("within a second");
}

#[tokio::test(start_paused = true)]
async fn q7_a_set_reaches_a_typed_handler_and_answers_the_value_now_in_force() {
    let world = World::new();
    let router = Router::new().set("level", |Set(level): Set<u8>| async move { Ok(level.min(100)) });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let set = |value: &str| Request::set(device_id(), ObjectId::new("level").unwrap(), Body::text(value));
    assert_eq!(words(&world.ask(set("200")).await.unwrap().response), "ok 100");
    assert!(words(&world.ask(set("full")).await.unwrap().response).starts_with("bad-value"));
}

#[tokio::test(start_paused = true)]
async fn s5_a_vendor_s_own_method_reaches_its_handler() {
    let world = World::new();
    let router = Router::new().method("REBOOT", |request: Request| async move { Ok(request.objects.len()) });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let answer = world.ask(Request::new(device_id(), Method::new("REBOOT").unwrap())).await.unwrap();
    assert_eq!(words(&answer.response), "ok 0");
}
