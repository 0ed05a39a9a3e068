//! The client against a relay on loopback, with devices on the in-memory transport.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod http_support;

use std::time::Duration;

use http_support::{Device, Rig, device_id, eventually};
use relay_core::{
    Response,
    ids::{AccountId, Method, ObjectId},
    request::Status,
};
use server_sdk::{Body, Client, DeviceFilter, ErrorKind, Outcome, Request, State, client::TableFormat};

fn client(rig: &Rig, key: &str) -> Client {
    Client::new(&format!("http://{}", rig.address), key).unwrap()
}

/// Answers each request with what was asked.
fn echo(mut device: Device) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (id, request) = device.request().await;
            let objects: Vec<&str> = request.objects.iter().map(ObjectId::as_str).collect();
            let response = match request.method.as_str() {
                "JAM" => Response::error(Status::DeviceError, "paper jam in tray 2"),
                "LACK" => Response::error(Status::UnknownObject, ""),
                "FAIL" => Response::error(Status::parse("vendor-77").unwrap(), "no such gear\u{1b}[2J"),
                "SILENT" => continue,
                "ECHO" => Response::new(Status::Ok, request.body.clone()),
                method => {
                    let body = request.body.as_ref().map(|body| body.content_type().to_owned());
                    Response::with_body(Body::text(format!("{method} {} {body:?}", objects.join(" "))))
                }
            };
            device.answer(id, response).await;
        }
    })
}

#[tokio::test]
async fn k1_get_set_and_any_request_reach_the_device_as_asked() {
    let rig = Rig::start().await;
    let relay = client(&rig, &rig.key(&[]).await);
    let serving = echo(rig.device("Printer-1").await);
    let toner = "1.3.6.1.2.1.43.11.1.1.9.1.1";
    let answer = relay.get("printer-1", toner).await.unwrap();
    assert_eq!(answer.text().unwrap(), format!("GET {toner} None"));
    assert_eq!(answer.content_type.as_deref(), Some("text/plain; charset=utf-8"));
    assert!(answer.id.is_some());
    let answer = relay.set("PRINTER-1", "a/b_c", Body::new("application/x-odd", "7")).await.unwrap();
    assert_eq!(answer.text().unwrap(), "SET a/b_c Some(\"application/x-odd\")");

    // Names that an address would lose or bend arrive as they are.
    for object in ["a/../b", "./a", "/a", "a//b", "a/", ".../x"] {
        let answer = relay.get("printer-1", object).await.unwrap();
        assert_eq!(answer.text().unwrap(), format!("GET {object} None"));
    }
    let several = Request::new(device_id("printer-1"), Method::get())
        .with_object(ObjectId::new("a").unwrap())
        .with_object(ObjectId::new("b/c").unwrap());
    assert_eq!(relay.request(&several).await.unwrap().text().unwrap(), "GET a b/c None");

    for size in [0, 1, 4096, 128 * 1024] {
        let bytes: Vec<u8> = (0..size).map(|n| u8::try_from(n % 256).unwrap()).collect();
        let request = Request::new(device_id("printer-1"), Method::new("ECHO").unwrap())
            .with_body(Body::new("application/octet-stream", bytes.clone()));
        let answer = relay.request(&request).await.unwrap();
        assert_eq!(answer.bytes, bytes, "{size} bytes");
    }
    serving.abort();
}

#[tokio::test]
async fn l1_an_error_says_how_far_the_request_came() {
    let rig = Rig::start().await;
    let relay = client(&rig, &rig.key(&["device:*:GET,JAM,LACK,FAIL,SILENT"]).await);
    let serving = echo(rig.device("d").await);
    rig.enrol("away").await;
    let ask = async |device: &str, method: &str, wait: u64| {
        let request = Request::new(device_id(device), Method::new(method).unwrap());
        relay.with_wait(Duration::from_secs(wait)).request(&request).await.unwrap_err()
    };
    for (device, method, kind, outcome, code, safe) in [
        ("nobody", "GET", ErrorKind::UnknownDevice, Outcome::Unknown, "unknown-device", true),
        ("away", "GET", ErrorKind::DeviceOffline, Outcome::Offline, "device-offline", true),
        ("d", "ECHO", ErrorKind::Forbidden, Outcome::Refused, "forbidden", true),
        ("d", "JAM", ErrorKind::DeviceError, Outcome::Answered, "device-error", false),
        ("d", "LACK", ErrorKind::UnknownObject, Outcome::Answered, "unknown-object", false),
        ("d", "FAIL", ErrorKind::DeviceFailed, Outcome::Answered, "device-failed", false),
        ("d", "SILENT", ErrorKind::DeviceTimeout, Outcome::Sent, "device-timeout", false),
    ] {
        let error = ask(device, method, 1).await;
        assert_eq!(
            (error.kind(), error.outcome(), error.code()),
            (kind, Some(outcome), Some(code)),
            "{error:?}"
        );
        assert_eq!(error.is_safe_to_retry(), safe, "{error:?}");
        assert_eq!(error.request_id().is_some(), outcome >= Outcome::Queued, "{error:?}");
    }
    let failed = ask("d", "FAIL", 5).await;
    assert_eq!(failed.device_status(), Some("vendor-77"));
    assert!(!failed.to_string().contains('\u{1b}'), "T43: {failed}");
    assert!(ask("d", "JAM", 5).await.to_string().contains("paper jam in tray 2"));
    let stranger = client(&rig, "no key").get("d", "a").await.unwrap_err();
    assert_eq!((stranger.kind(), stranger.status()), (ErrorKind::Unauthenticated, Some(401)));
    serving.abort();
}

#[tokio::test]
async fn q8_a_dropped_call_is_cancelled_at_the_device() {
    let rig = Rig::start().await;
    let relay = client(&rig, &rig.key(&[]).await);
    let mut device = rig.device("d").await;
    let call = tokio::spawn(async move { relay.get("d", "a").await.map(drop) });
    let (asked, _) = device.request().await;
    call.abort();
    match device.envelope().await {
        relay_core::envelope::Envelope::Cancel { id } => assert_eq!(id, asked),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn p3_devices_come_one_after_the_other_and_by_filter() {
    let rig = Rig::start().await;
    let relay = client(&rig, &rig.admin);
    let lines: String = (0..25)
        .map(|n| {
            format!("{{\"device_id\":\"dev-{n:02}\",\"name\":\"N{n}\",\"accounts\":[\"a{}\"]}}\n", n % 2)
        })
        .collect();
    assert_eq!(relay.administration().import(lines, TableFormat::Ndjson).await.unwrap(), 25);
    let ids = async |filter: DeviceFilter| {
        let devices = relay.devices(filter).collect().await.unwrap();
        devices.into_iter().map(|device| device.id.as_str().to_owned()).collect::<Vec<_>>()
    };
    let all: Vec<String> = (0..25).map(|n| format!("dev-{n:02}")).collect();
    assert_eq!(ids(DeviceFilter::all().page(4)).await, all);
    assert_eq!(ids(DeviceFilter::all().name("n7")).await, ["dev-07"]);
    assert_eq!(ids(DeviceFilter::all().account(AccountId::new("a1").unwrap()).page(3)).await.len(), 12);
    assert!(ids(DeviceFilter::all().name("100% & ?#")).await.is_empty());

    let presence = relay.presence("dev-03").await.unwrap();
    assert!(!presence.is_online() && presence.last_heard.is_none());
    let _device = rig.device("dev-03").await;
    let presence = relay.presence("dev-03").await.unwrap();
    assert_eq!((presence.state, presence.transport.as_deref()), (State::Online, Some("memory")));
    assert!(presence.last_heard.is_some() && presence.detects_loss_within.is_some() && presence.epoch > 0);
    assert_eq!(ids(DeviceFilter::all().state(State::Online)).await, ["dev-03"]);
    let page = relay.devices_page(&DeviceFilter::all().page(2), None).await.unwrap();
    let wrong =
        relay.devices_page(&DeviceFilter::all().page(2).name("x"), page.next.as_deref()).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Invalid, "T7: {wrong:?}");
    assert!(wrong.is_safe_to_retry(), "no device was asked");
    assert_eq!(relay.device("nobody").await.unwrap_err().kind(), ErrorKind::UnknownDevice);
}

#[tokio::test]
async fn x2_an_administrator_makes_lists_and_revokes_keys_and_a_service_may_not() {
    let rig = Rig::start().await;
    let admin = client(&rig, &rig.admin);
    let made = admin.administration().new_key(&["account:acme".to_owned()]).await.unwrap();
    assert!(!format!("{made:?}").contains(made.key.expose()), "T44");
    let service = client(&rig, made.key.expose());
    assert_eq!(service.administration().keys().await.unwrap_err().kind(), ErrorKind::Forbidden);
    let keys = admin.administration().keys().await.unwrap();
    let listed = keys.iter().find(|key| key.id == made.id).unwrap();
    assert_eq!(listed.scopes, ["account:acme"]);
    assert!(listed.created.is_some() && listed.expires.is_none());

    // P1: the account's side agrees to a device once that claims it.
    let (acme, device) = (AccountId::new("acme").unwrap(), device_id("d"));
    let token = rig.enrol("d").await;
    let early = service.administration().agree(&acme, &device).await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::UnknownDevice);
    rig.put_json("/v1/devices/d", &token, r#"{"accounts":["acme"]}"#).await;
    assert_eq!(service.device("d").await.unwrap_err().kind(), ErrorKind::UnknownDevice);
    service.administration().agree(&acme, &device).await.unwrap();
    assert_eq!(service.device("d").await.unwrap().accounts, std::slice::from_ref(&acme));
    service.administration().withdraw(&acme, &device).await.unwrap();
    assert_eq!(service.device("d").await.unwrap_err().kind(), ErrorKind::UnknownDevice);

    admin.administration().revoke_key(&made.id).await.unwrap();
    assert_eq!(service.device("d").await.unwrap_err().kind(), ErrorKind::Unauthenticated);
    assert_eq!(admin.administration().revoke_key(&made.id).await.unwrap_err().kind(), ErrorKind::Unknown);
    let scope = admin.administration().new_key(&["everything".to_owned()]).await.unwrap_err();
    assert_eq!(scope.kind(), ErrorKind::Invalid);
    assert!(scope.to_string().contains("everything"), "{scope}");
    let pin = admin.administration().issue_pin("e", std::slice::from_ref(&acme)).await.unwrap();
    assert!(pin.expires.is_some() && pin.pin.expose().len() >= 8);
}

#[tokio::test]
async fn f1_a_call_whose_relay_dies_is_interrupted_and_not_known() {
    let mut rig = Rig::start().await;
    let relay = client(&rig, &rig.key(&[]).await);
    let mut device = rig.device("d").await;
    let call = tokio::spawn(async move { relay.get("d", "a").await.map(drop) });
    let _asked = device.request().await;
    // Not told to stop: gone.
    let run = rig.run.take().unwrap();
    run.abort();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Interrupted, None), "{error:?}");
    assert!(!error.is_safe_to_retry());
    eventually(|| run.is_finished()).await;
}
