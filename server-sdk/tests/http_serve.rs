//! A relay as a whole: what it starts on, what it refuses to start on, what outlives it, and being hosted.
#![cfg(feature = "relay")]

mod http_support;

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use async_trait::async_trait;
use http_support::Rig;
use relay_core::{Body, Request, Response, outcome::RequestError, relay::Translate, store::MemoryStore};
use server_sdk::relay::{ServeError, Server, ServerConfig};

fn config(data: &Path) -> ServerConfig {
    let mut config = ServerConfig::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.data = data.to_owned();
    config
}

#[tokio::test]
async fn p1_devices_keys_and_agreements_outlive_the_relay() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = Server::bind(config(&data)).await.unwrap();
    let file = server.administrator_key_file().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    let mut rig = Rig::of(server);
    let token = rig.enrol("d").await;
    let key = rig.key(&["device:d"]).await;
    rig.put_json("/v1/devices/d", &token, r#"{"name":"N","accounts":["acme"]}"#).await;
    let agreed = rig.call("PUT", "/v1/accounts/acme/devices/d", &rig.admin, &[], b"").await;
    assert_eq!(agreed.status, 204);
    let admin = rig.admin.clone();
    rig.stop();
    rig.stopped().await;
    drop(rig);

    let rig = Rig::of(Server::bind(config(&data)).await.unwrap());
    assert_eq!(rig.admin, admin);
    rig.get("/v1/accounts/acme/objects/x", &key).await.expect(503, "device-offline");
    let seen = rig.get("/v1/devices/d", &key).await.json();
    assert_eq!((&seen["name"], &seen["accounts"][0]), (&"N".into(), &"acme".into()));
    assert_eq!(rig.put_json("/v1/devices/d", &token, "{}").await.status, 200);
    // Its spent PIN is still spent.
    rig.connect("d", &token).await.close().await;
}

#[tokio::test]
async fn t15_plain_http_on_an_address_that_others_reach_is_refused() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let mut config = ServerConfig::default();
        config.listen = vec!["127.0.0.1:0".parse().unwrap(), address.parse().unwrap()];
        let error = Server::in_memory(config).await.unwrap_err();
        assert!(matches!(error, ServeError::Plaintext { .. }), "{error}");
    }
    let mut config = ServerConfig::default();
    config.listen = vec!["0.0.0.0:0".parse().unwrap()];
    config.allow_plaintext = true;
    assert!(Server::in_memory(config).await.is_ok());
}

#[tokio::test]
async fn f17_a_second_relay_on_one_folder_or_address_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let first = Server::bind(config(folder.path())).await.unwrap();
    let error = Server::bind(config(folder.path())).await.unwrap_err();
    assert!(matches!(error, ServeError::Folder(_)), "{error}");
    let mut taken = ServerConfig::default();
    taken.listen = first.addresses().to_vec();
    let error = Server::in_memory(taken).await.unwrap_err();
    assert!(matches!(error, ServeError::Listen { .. }), "{error}");
    drop(first);
    Server::bind(config(folder.path())).await.unwrap();
}

#[tokio::test]
async fn it_listens_on_several_addresses() {
    let mut config = ServerConfig::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()];
    let server = Server::in_memory(config).await.unwrap();
    let addresses = server.addresses().to_vec();
    let mut rig = Rig::of(server);
    for address in addresses {
        rig.address = address;
        assert_eq!(rig.get("/healthz", "").await.status, 200, "{address}");
    }
}

/// Speaks to a model that calls its objects by other names; trips over one of them.
#[derive(Debug)]
struct OldModel;

#[async_trait]
impl Translate for OldModel {
    async fn request(&self, mut request: Request) -> Result<Request, RequestError> {
        match request.objects[0].as_str() {
            "bug" => panic!("a bug in the host's hook"),
            "none" => return Err(RequestError::Refused("this model has no such thing".into())),
            _ => {}
        }
        request.objects = vec!["old/level".parse().unwrap()];
        Ok(request)
    }

    async fn response(&self, _: &Request, response: Response) -> Response {
        let body = response.body.unwrap();
        Response::new(
            response.status,
            Some(Body::text(format!("{} %", String::from_utf8_lossy(&body.bytes)))),
        )
    }
}

#[tokio::test]
async fn q6_f29_a_hook_translates_refuses_and_may_fail_alone() {
    let mut config = ServerConfig::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server =
        Server::hosted(config, Arc::new(MemoryStore::new()), Some(Arc::new(OldModel))).await.unwrap();
    let rig = Rig::of(server);
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let failed = rig.get("/v1/devices/d/objects/bug", &key).await;
    failed.expect(500, "internal");
    let refused = rig.get("/v1/devices/d/objects/none", &key).await;
    refused.expect(403, "forbidden");
    assert_eq!(
        (refused.outcome(), &refused.json()["detail"]),
        ("refused", &"this model has no such thing".into())
    );
    let answer = async {
        let (id, request) = device.request().await;
        assert_eq!(request.objects[0].as_str(), "old/level");
        device.answer(id, Response::with_body(Body::text("42"))).await;
    };
    let (got, ()) = tokio::join!(rig.get("/v1/devices/d/objects/level", &key), answer);
    assert_eq!((got.status, &*got.body), (200, &b"42 %"[..]));
    assert_eq!(rig.relay.in_flight(), 0);
}
