//! S6: the way back of an answer.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use device_sdk::{Event, ObjectId, Request, RespondBy, Router, Verdict};

use crate::world::{World, device_id, toner, until};

#[tokio::test(start_paused = true)]
async fn s6_answers_go_by_http_or_in_the_session_as_the_vendor_chose() {
    for (way, by_http) in [(Some(RespondBy::Http), 1), (Some(RespondBy::Session), 0), (None, 0)] {
        let world = World::new();
        let mut builder = world.device(toner());
        if let Some(way) = way {
            builder = builder.respond_by(way);
        }
        let device = builder.start().await.unwrap();
        let mut events = device.events();
        device.online().await.unwrap();
        assert_eq!(world.get("toner").await.unwrap(), "ok 83");
        let settled = until(&mut events, |event| matches!(event, Event::Settled { .. })).await;
        assert!(matches!(settled, Event::Settled { verdict: Verdict::Accepted, .. }), "{settled:?}");
        assert_eq!(world.count("respond"), by_http, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s6_an_answer_that_was_lost_is_sent_again_until_it_arrives() {
    let world = World::new();
    let device = world.device(toner()).respond_by(RespondBy::Http).start().await.unwrap();
    device.online().await.unwrap();
    world.0.lose.store(4, Ordering::SeqCst);
    assert_eq!(world.get("toner").await.unwrap(), "ok 83");
    assert_eq!(world.count("respond"), 5);
}

#[tokio::test(start_paused = true)]
async fn s6_an_answer_too_large_for_the_session_goes_by_http() {
    let world = World::new();
    let router = Router::new().get("page", || async { Ok(vec![7u8; 128 * 1024 + 1]) });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let answer = world.ask(Request::get(device_id(), ObjectId::new("page").unwrap())).await.unwrap();
    assert_eq!(answer.response.body.unwrap().bytes.len(), 128 * 1024 + 1);
    assert_eq!(world.count("respond"), 1);
}

#[tokio::test(start_paused = true)]
async fn q1_many_requests_at_once_each_get_their_own_answer() {
    let world = World::new();
    let router = Router::new().get("*", |object: ObjectId| async move {
        tokio::time::sleep(Duration::from_millis(object.as_str().len() as u64)).await;
        Ok(format!("value of {object}"))
    });
    let device = world.device(router).start().await.unwrap();
    device.online().await.unwrap();
    let mut answers = HashMap::new();
    for round in 0..20 {
        let asking: Vec<_> = (0..50)
            .map(|n| {
                let (world, object) = (world.clone(), format!("{round}/{n}"));
                tokio::spawn(async move { (object.clone(), world.get(&object).await.unwrap()) })
            })
            .collect();
        for asked in asking {
            let (object, answer) = asked.await.unwrap();
            answers.insert(object, answer);
        }
    }
    assert_eq!(answers.len(), 1000);
    for (object, answer) in answers {
        assert_eq!(answer, format!("ok value of {object}"));
    }
}
