//! `virtual-printer` as a process: what it answers, its panel, and that it comes back.

mod programs;

use examples::printer::mib;
use programs::{Program, Relay};
use server_sdk::{
    Body, ErrorKind, Request,
    ids::{DeviceId, Method},
};

const PRINTER: &str = env!("CARGO_BIN_EXE_virtual-printer");

fn test_page() -> Request {
    Request::new(DeviceId::new("printer-1").unwrap(), Method::new("TEST-PAGE").unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn k1_it_answers_for_the_common_objects_of_the_printer_mib() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let pin = relay.pin("printer-1", &[]).await;
    let mut printer = Program::start(PRINTER, &["--relay", &relay.url, "--id", "printer-1", "--pin", &pin]);
    printer.line("online");
    for (object, value) in [
        (mib::SYS_NAME, "printer-1"),
        (mib::PRT_GENERAL_SERIAL_NUMBER, "printer-1"),
        (mib::BLACK_TONER, "83"),
        ("1.3.6.1.2.1.43.11.1.1.9.1.4", "72"),
        ("1.3.6.1.2.1.43.11.1.1.8.1.4", "100"),
        ("1.3.6.1.2.1.43.11.1.1.6.1.2", "Cyan Toner"),
        (mib::PRT_INPUT_CURRENT_LEVEL, "320"),
        (mib::PRT_MARKER_LIFE_COUNT, "1024"),
        (mib::HR_DEVICE_STATUS, "2"),
        (mib::HR_PRINTER_STATUS, "3"),
        ("1.3.6.1.2.1.4.20.1.1.127.0.0.1", "127.0.0.1"),
    ] {
        let answer = relay.client.get("printer-1", object).await.unwrap();
        assert_eq!(answer.text().unwrap(), value, "{object}");
    }
    let mac = relay.client.get("printer-1", mib::IF_PHYS_ADDRESS).await.unwrap();
    assert_eq!(relay.client.device("printer-1").await.unwrap().mac.as_deref(), Some(mac.text().unwrap()));
    for object in ["1.3.6.1.2.1.43.11.1.1.9.1.5", "1.3", "nothing"] {
        assert_eq!(relay.client.get("printer-1", object).await.unwrap_err().kind(), ErrorKind::UnknownObject);
    }

    let set =
        async |object: &str, value: &str| relay.client.set("printer-1", object, Body::text(value)).await;
    assert_eq!(set(mib::SYS_LOCATION, "Küche").await.unwrap().text().unwrap(), "Küche");
    assert_eq!(set(mib::PRT_INPUT_CURRENT_LEVEL, "500").await.unwrap().text().unwrap(), "500");
    assert_eq!(
        set(mib::PRT_INPUT_CURRENT_LEVEL, "501").await.unwrap_err().device_status(),
        Some("bad-value")
    );
    assert_eq!(set(mib::PRT_MARKER_LIFE_COUNT, "0").await.unwrap_err().device_status(), Some("read-only"));
    assert_eq!(set("nothing", "0").await.unwrap_err().kind(), ErrorKind::UnknownObject);
    printer.signal("-TERM");
    assert!(printer.end().0.success());
    relay
        .until("printer-1", mib::SYS_NAME, |answer| {
            answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::DeviceOffline)
        })
        .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_its_panel_switches_session_maintenance_and_jams_it() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let pin = relay.pin("printer-1", &[]).await;
    let out = data.path().join("out");
    let mut printer = Program::start(
        PRINTER,
        &["--relay", &relay.url, "--id", "printer-1", "--pin", &pin, "--out", out.to_str().unwrap(), "--jam"],
    );
    printer.line("online");
    let jammed = relay.client.request(&test_page()).await.unwrap_err();
    assert_eq!(jammed.kind(), ErrorKind::DeviceError);
    assert_eq!(
        relay.client.get("printer-1", mib::HR_PRINTER_DETECTED_ERROR_STATE).await.unwrap().text().unwrap(),
        "04"
    );
    printer.press("clear");
    printer.line("ready");
    assert_eq!(relay.client.request(&test_page()).await.unwrap().text().unwrap(), "1025");
    assert!(out.join("test-page-1025.txt").exists());
    printer.press("jam");
    printer.line("paper jam");
    assert_eq!(relay.client.request(&test_page()).await.unwrap_err().kind(), ErrorKind::DeviceError);

    printer.press("off");
    printer.line("session maintenance off");
    relay
        .until("printer-1", mib::SYS_NAME, |answer| {
            answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::DeviceOffline)
        })
        .await;
    printer.press("on");
    printer.line("online");
    assert_eq!(relay.client.get("printer-1", mib::BLACK_TONER).await.unwrap().text().unwrap(), "83");
    printer.press("activate");
    printer.line("registered");
    printer.press("dance");
    printer.line("there are on, off, activate, jam, clear");

    // Without a panel it goes on.
    printer.hang_up();
    assert_eq!(relay.client.get("printer-1", mib::BLACK_TONER).await.unwrap().text().unwrap(), "83");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_killed_and_started_again_it_needs_no_pin_and_knows_what_its_panel_said() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let pin = relay.pin("printer-1", &[]).await;
    let state = data.path().join("printer");
    let first = ["--relay", &relay.url, "--id", "printer-1", "--state", state.to_str().unwrap()];
    let mut printer = Program::start(PRINTER, &[&first[..], &["--pin", &pin]].concat());
    printer.line("online");
    printer.kill();
    let mut printer = Program::start(PRINTER, &first);
    printer.line("online");
    assert_eq!(relay.client.get("printer-1", mib::BLACK_TONER).await.unwrap().text().unwrap(), "83");
    printer.press("off");
    printer.line("session maintenance off");
    printer.kill();
    let mut printer = Program::start(PRINTER, &first);
    printer.press("on");
    printer.line("session maintenance on");
    printer.line("online");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_it_comes_back_to_a_relay_that_was_stopped_and_started_anew() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let (address, pin) = (relay.address, relay.pin("printer-1", &[]).await);
    let mut printer = Program::start(PRINTER, &["--relay", &relay.url, "--id", "printer-1", "--pin", &pin]);
    printer.line("online");
    relay.stop().await;
    printer.line("offline");
    let relay = Relay::start_at(data.path(), address).await;
    printer.line("online");
    assert_eq!(relay.client.get("printer-1", mib::BLACK_TONER).await.unwrap().text().unwrap(), "83");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_said() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    relay.pin("printer-1", &[]).await;
    let mut wrong = Program::start(PRINTER, &["--relay", &relay.url, "--id", "printer-1", "--pin", "wrong"]);
    wrong.line("a new PIN is needed");
    for (arguments, words) in [
        (
            &["--relay", "http://relay.example", "--id", "printer-1", "--pin", "1"][..],
            "use https://, or allow plaintext",
        ),
        (&["--relay", "http://127.0.0.1:1", "--id", "printer-1"][..], "there is no credential"),
        (
            &["--relay", "http://127.0.0.1:1", "--id", "printer 1", "--pin", "1"][..],
            "a device ID has ' ' at position 7",
        ),
    ] {
        let (status, said) = Program::start(PRINTER, arguments).end();
        assert!(!status.success() && said.join("\n").contains(words), "{said:?}");
    }
    relay.stop().await;
}
