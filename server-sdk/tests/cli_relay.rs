//! The program `relay` as people and scripts use it.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod cli_support;
mod http_support;

use std::process::{Command, Output};

use cli_support::{Process, program, text, with_input};
use http_support::{Rig, device_id, eventually};
use relay_core::{Body, Response, request::Status};
use serde_json::Value;

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The code it ended with, and what it said of why.
fn failed(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), text(&output.stderr))
}

#[test]
fn x1_enroll_and_key_new_print_what_the_contract_says() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(&folder.path().join("data"));
    assert!(relay.said["administrator_key_file"].as_str().unwrap().ends_with("administrator.key"));
    let pin = json(&relay.run(&["enroll", "printer-1", "--account", "acme", "--account", "b", "--json"]));
    assert_eq!(pin["device_id"], "printer-1");
    let digits = pin["pin"].as_str().unwrap();
    assert!(digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit()));
    assert!(text(&relay.run(&["enroll", "printer-1"]).stdout).contains("can enrol once with PIN"));

    let key = json(&relay.run(&["key", "new", "--scope", "device:printer-*:GET,list", "--json"]));
    let (id, secret) = (key["id"].as_str().unwrap(), key["key"].as_str().unwrap());
    assert_eq!(key.as_object().unwrap().len(), 2);
    let listed = text(&relay.run(&["key", "list", "--json"]).stdout);
    assert!(listed.lines().any(|line| serde_json::from_str::<Value>(line).unwrap()["id"] == id), "{listed}");
    assert!(!listed.contains(secret));

    let as_service = |arguments: &[&str]| {
        program().env("RELAY_URL", &relay.url).env("RELAY_KEY", secret).args(arguments).output().unwrap()
    };
    let devices = text(&as_service(&["devices", "--json"]).stdout);
    let device: Value = serde_json::from_str(devices.trim()).unwrap();
    assert_eq!((&device["id"], &device["state"]), (&"printer-1".into(), &"offline".into()));
    assert_eq!(device["accounts"], serde_json::json!(["acme", "b"]));
    let (code, words) = failed(&as_service(&["enroll", "printer-2"]));
    assert!(code == 1 && words.contains("administrator"), "{words}");

    assert!(relay.run(&["key", "revoke", id]).status.success());
    let (code, words) = failed(&as_service(&["devices"]));
    assert_eq!(code, 1);
    assert!(words.contains("RELAY_KEY") && words.contains(&relay.url), "{words}");
    assert!(!words.contains(secret), "T44");
}

#[test]
fn p5_a_table_is_imported_from_a_file_or_the_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(&folder.path().join("data"));
    let file = folder.path().join("devices.csv");
    std::fs::write(&file, "device_id,name,location,accounts\nd1,\"Copy, room\",Hall,a;b\nd2,\u{1b}[2J%,,\n")
        .unwrap();
    assert_eq!(json(&relay.run(&["import", file.to_str().unwrap(), "--json"]))["imported"], 2);
    let mut command = program();
    command.env("RELAY_URL", &relay.url).env("RELAY_DATA", &relay.data).args(["import", "-"]);
    let output = with_input(command, b"{\"device_id\":\"d3\",\"name\":\"third\"}\n");
    assert_eq!(text(&output.stdout), "1 device imported\n");
    let table = text(&relay.run(&["devices"]).stdout);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("Copy, room") && table.contains("a b") && table.contains("third"));
    assert!(!table.contains('\u{1b}'), "T43: {table:?}");
    let one =
        text(&relay.run(&["devices", "--name", "COPY, ROOM", "--state", "offline", "--account", "A"]).stdout);
    assert_eq!(one.lines().count(), 2, "{one}");

    let wrong = folder.path().join("wrong.csv");
    std::fs::write(&wrong, "device_id,name\nok,x\na b,y\n").unwrap();
    let (code, words) = failed(&relay.run(&["import", wrong.to_str().unwrap()]));
    assert!(code == 2 && words.contains("line 3"), "{words}");
    assert!(!text(&relay.run(&["devices"]).stdout).contains("ok"), "nothing of it was imported");
    let (code, words) = failed(&relay.run(&["import", "/nowhere.csv"]));
    assert!(code == 2 && words.contains("/nowhere.csv"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn k1_get_and_set_reach_a_device_and_print_its_bytes() {
    let rig = Rig::start().await;
    let mut device = rig.device("d").await;
    let serving = tokio::spawn(async move {
        loop {
            let (id, request) = device.request().await;
            let objects: Vec<&str> = request.objects.iter().map(|object| object.as_str()).collect();
            let response = match (&request.body, &*objects) {
                (_, ["jam"]) => Response::error(Status::DeviceError, "paper jam"),
                (_, ["bytes"]) => {
                    Response::with_body(Body::new("application/octet-stream", vec![0, 255, 10]))
                }
                (_, ["steer"]) => Response::with_body(Body::text("a\u{1b}[2Jb")),
                (Some(body), _) => Response::with_body(body.clone()),
                (None, objects) => {
                    Response::with_body(Body::text(format!("values of {}", objects.join("+"))))
                }
            };
            device.answer(id, response).await;
        }
    });
    let (url, admin) = (format!("http://{}", rig.address), rig.admin.clone());
    rig.enrol("away").await;
    tokio::task::spawn_blocking(move || {
        let command = |arguments: &[&str]| -> Command {
            let mut command = program();
            command.env("RELAY_URL", &url).env("RELAY_KEY", &admin).args(arguments);
            command
        };
        let run = |arguments: &[&str]| command(arguments).output().unwrap();
        assert_eq!(text(&run(&["get", "d", "toner/black"]).stdout), "values of toner/black\n");
        assert_eq!(text(&run(&["get", "d", "a", "b"]).stdout), "values of a+b\n");
        assert_eq!(run(&["get", "d", "bytes"]).stdout, [0, 255, 10]);
        let told = json(&run(&["get", "d", "bytes", "--json"]));
        assert_eq!(
            (&told["body_base64"], &told["content_type"]),
            (&"AP8K".into(), &"application/octet-stream".into())
        );
        assert!(told["id"].is_string());
        assert_eq!(text(&run(&["set", "d", "name", "Büro 7"]).stdout), "Büro 7\n");
        assert_eq!(with_input(command(&["set", "d", "name"]), b"from in\n").stdout, b"from in\n");
        // A pipe gets the bytes as they are; only a terminal is spared.
        assert_eq!(text(&run(&["get", "d", "steer"]).stdout), "a\u{1b}[2Jb\n");

        let (code, words) = failed(&run(&["get", "d", "jam"]));
        assert!(code == 1 && words.contains("paper jam") && words.contains("may have acted"), "{words}");
        let (code, words) = failed(&run(&["get", "away", "a"]));
        assert!(code == 4 && words.contains("offline") && words.contains("has not acted"), "{words}");
        let (code, words) = failed(&run(&["get", "nobody", "a", "--json"]));
        let error: Value = serde_json::from_str(&words).unwrap();
        assert_eq!(
            (code, &error["error"]["code"], &error["error"]["outcome"]),
            (1, &"unknown-device".into(), &"unknown".into())
        );
        assert_eq!(error["error"]["safe_to_retry"], true);
    })
    .await
    .unwrap();
    serving.abort();
}

#[test]
fn errors_say_which_relay_what_happened_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| program().current_dir(folder.path()).args(arguments).output().unwrap();
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let (code, words) = failed(&run(&["devices", "--relay", &nobody, "--key", "k"]));
    assert!(code == 3 && words.contains(&nobody) && words.contains("relay serve"), "{words}");
    let (code, words) = failed(&run(&["devices", "--relay", &nobody]));
    assert!(code == 2 && words.contains("administrator.key") && words.contains("--data"), "{words}");
    // T15: the key of this machine's relay is not for another machine, and none goes there in clear.
    std::fs::create_dir(folder.path().join("relay-data")).unwrap();
    std::fs::write(folder.path().join("relay-data/administrator.key"), "secret").unwrap();
    let (code, words) = failed(&run(&["devices", "--relay", "https://relay.example"]));
    assert!(code == 2 && words.contains("RELAY_KEY"), "{words}");
    let (code, words) = failed(&run(&["devices", "--relay", "http://192.0.2.1", "--key", "k"]));
    assert!(code == 2 && words.contains("plain HTTP"), "{words}");
    for wrong in [
        &["get", "d"][..],
        &["get", "a b", "c"],
        &["enroll", ".."],
        &["devices", "--state", "on"],
        &["key"],
        &["sing"],
    ] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
    let help = text(&run(&["--help"]).stdout);
    assert!(help.contains("Exit codes") && !help.contains("secret"), "{help}");
}

#[test]
fn serve_refuses_what_it_cannot_do_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let serve = |arguments: &[&str]| {
        program()
            .arg("serve")
            .args(arguments)
            .arg("--data")
            .arg(&data)
            .env("RELAY_LOG", "off")
            .output()
            .unwrap()
    };
    let (code, words) = failed(&serve(&["--listen", "0.0.0.0:0"]));
    assert!(code != 0 && words.contains("loopback"), "T15: {words}");
    let (code, words) = failed(&serve(&["--config", "/nowhere.toml"]));
    assert!(code == 2 && words.contains("/nowhere.toml"), "{words}");
    let config = folder.path().join("relay.toml");
    std::fs::write(&config, "max_haed = 1\n").unwrap();
    let (_, words) = failed(&serve(&["--config", config.to_str().unwrap()]));
    assert!(words.contains("max_haed"), "{words}");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("relay.sqlite"), "not a database").unwrap();
    let (code, words) = failed(&serve(&["--listen", "127.0.0.1:0"]));
    assert!(code != 0 && words.contains("relay.sqlite"), "F16: {words}");
    assert_eq!(std::fs::read(data.join("relay.sqlite")).unwrap(), b"not a database");
}

#[tokio::test(flavor = "multi_thread")]
async fn l2_a_relay_told_to_stop_drains_and_leaves_a_closed_database() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut relay = Process::start(&data);
    let client = relay.client();
    client.administration().issue_pin("d", &[]).await.unwrap();
    let stop = Command::new("kill").arg(relay.child.id().to_string()).status().unwrap();
    assert!(stop.success());
    let mut status = None;
    eventually(|| {
        status = relay.child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success(), "{status:?}");
    assert!(!data.join("relay.sqlite-wal").exists());
    drop(relay);
    let relay = Process::start(&data);
    assert_eq!(relay.client().device("d").await.unwrap().id, device_id("d"));
}
