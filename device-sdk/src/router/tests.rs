use std::sync::atomic::{AtomicUsize, Ordering};

use relay_core::ids::{DeviceId, RequestId};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::handler::{Json, Set};

fn context() -> Context {
    let id = RequestId::new("r1").unwrap();
    Context::new(id, crate::now(), CancellationToken::new(), Some("00-trace".into()))
}

fn request(method: &str, objects: &[&str], body: Option<Body>) -> Request {
    let mut request = Request::new(DeviceId::new("printer-1").unwrap(), Method::new(method).unwrap());
    request.objects = objects.iter().map(|object| ObjectId::new(object).unwrap()).collect();
    request.body = body;
    request
}

async fn ask(router: &Router, method: &str, objects: &[&str], body: Option<Body>) -> (String, String) {
    let response = router.answer(&request(method, objects, body), &context()).await;
    let body = response.body.map(|body| String::from_utf8(body.bytes.to_vec()).unwrap());
    (response.status.as_str().to_owned(), body.unwrap_or_default())
}

fn ok(body: &str) -> (String, String) {
    ("ok".to_owned(), body.to_owned())
}

#[tokio::test]
async fn s5_the_most_exact_handler_answers() {
    let router = Router::new()
        .get("1.2.3", || async { Ok("exact") })
        .get("1.2.*", |object: ObjectId| async move { Ok(format!("under 1.2: {object}")) })
        .get("1.*", || async { Ok("under 1") })
        .get("*", || async { Ok("any") });
    router.check().unwrap();
    assert_eq!(ask(&router, "GET", &["1.2.3"], None).await, ok("exact"));
    assert_eq!(ask(&router, "GET", &["1.2.3.4"], None).await, ok("under 1.2: 1.2.3.4"));
    assert_eq!(ask(&router, "GET", &["1.9"], None).await, ok("under 1"));
    assert_eq!(ask(&router, "GET", &["status/paper"], None).await, ok("any"));
    assert_eq!(ask(&router, "GET", &[], None).await, ok("any"));
}

#[tokio::test]
async fn s5_what_no_handler_serves_is_told_apart() {
    let router = Router::new().get("1.2", || async { Ok(1) }).method("REBOOT", || async { Ok(()) });
    assert_eq!(ask(&router, "GET", &["1.3"], None).await.0, "unknown-object");
    assert_eq!(ask(&router, "SET", &["1.2"], None).await.0, "read-only");
    assert_eq!(ask(&router, "SET", &["1.3"], None).await.0, "unknown-object");
    assert_eq!(ask(&router, "PURGE", &[], None).await.0, "unknown-method");
    assert_eq!(ask(&router, "REBOOT", &["part/1"], None).await, ok(""));
}

#[tokio::test]
async fn s5_arguments_are_typed_and_a_wrong_value_never_reaches_the_handler() {
    #[derive(serde::Deserialize)]
    struct Job {
        copies: u8,
    }
    let router = Router::new()
        .set("level", |Set(level): Set<i64>| async move { Ok(level + 1) })
        .set("name", |Set(name): Set<String>, context: Context| async move {
            Ok(format!("{name} {} {:?}", context.request_id(), context.traceparent()))
        })
        .method("PRINT", |Json(job): Json<Job>| async move { Ok(Json(json!({ "copies": job.copies }))) })
        .method("MAYBE", |value: Option<Set<u8>>| async move { Ok(value.is_some()) });
    assert_eq!(ask(&router, "SET", &["level"], Some(Body::text("41"))).await, ok("42"));
    assert_eq!(ask(&router, "SET", &["level"], Some(Body::text("many"))).await.0, "bad-value");
    assert_eq!(ask(&router, "SET", &["level"], Some(Body::new("x/y", vec![0xff]))).await.0, "bad-value");
    assert_eq!(ask(&router, "SET", &["name"], Some(Body::text("A"))).await, ok("A r1 Some(\"00-trace\")"));
    assert_eq!(ask(&router, "PRINT", &[], Some(Body::text("{\"copies\":2}"))).await, ok("{\"copies\":2}"));
    assert_eq!(ask(&router, "PRINT", &[], Some(Body::text("{}"))).await.0, "bad-value");
    assert_eq!(ask(&router, "MAYBE", &[], None).await, ok("false"));
    assert_eq!(ask(&router, "MAYBE", &[], Some(Body::text("7"))).await, ok("true"));
}

#[tokio::test]
async fn q7_a_set_is_answered_with_the_value_now_in_force() {
    static VALUE: AtomicUsize = AtomicUsize::new(0);
    let router = Router::new().get("level", || async { Ok(VALUE.load(Ordering::SeqCst)) }).set(
        "level",
        |Set(level): Set<usize>| async move {
            VALUE.store(level.min(100), Ordering::SeqCst);
            Ok(())
        },
    );
    assert_eq!(ask(&router, "SET", &["level"], Some(Body::text("900"))).await, ok("100"));
}

#[tokio::test]
async fn q7_several_objects_are_a_json_object_each_with_its_value_or_its_error() {
    let router = Router::new()
        .get("level", || async { Ok(83) })
        .get("page", || async { Ok(Json(json!({ "width": 210 }))) })
        .get("icon", || async { Ok(vec![0u8, 255]) })
        .get("jam", || async { Err::<(), _>(HandlerError::device_error("paper jam")) })
        .set("name", |Set(name): Set<String>| async move { Ok(name) })
        .set("page", |Json(page): Json<Value>| async move { Ok(Json(page)) });
    let (status, body) = ask(&router, "GET", &["level", "page", "icon", "jam", "nothing"], None).await;
    assert_eq!(status, "ok");
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({
            "level": { "value": "83" },
            "page": { "value": { "width": 210 } },
            "icon": { "value_base64": "AP8=", "content_type": "application/octet-stream" },
            "jam": { "error": "device-error", "detail": "paper jam" },
            "nothing": { "error": "unknown-object", "detail": "the device has no such object" },
        })
    );
    let values = Body::json(&json!({ "name": "Copy room", "page": { "width": 297 } }));
    let (_, body) = ask(&router, "SET", &["name", "page", "level"], Some(values)).await;
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({
            "name": { "value": "Copy room" },
            "page": { "value": { "width": 297 } },
            "level": { "error": "bad-value", "detail": "the body has no value for this object" },
        })
    );
    assert_eq!(ask(&router, "SET", &["name", "page"], Some(Body::text("[]"))).await.0, "bad-value");
}

#[test]
fn a_route_that_cannot_be_is_an_error_at_the_start() {
    let handler = || async { Ok(1) };
    for wrong in [
        Router::new().get("a b", handler),
        Router::new().get("1.2", handler).get("1.2", handler),
        Router::new().get("1.*", handler).get("1.*", handler),
        Router::new().get("*", handler).get("*", handler),
        Router::new().method("RE BOOT", handler),
        Router::new().get("", handler),
    ] {
        assert!(matches!(wrong.check(), Err(StartError::Route { .. })), "{wrong:?}");
    }
}
