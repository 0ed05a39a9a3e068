//! `maintenance-service` as a process, against printers as processes.

mod programs;

use programs::{Program, Relay};

const SERVICE: &str = env!("CARGO_BIN_EXE_maintenance-service");
const PRINTER: &str = env!("CARGO_BIN_EXE_virtual-printer");

#[tokio::test(flavor = "multi_thread")]
async fn p3_it_reads_the_toner_of_all_printers_of_an_account_and_of_no_other() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let key = relay.key().await;
    let mut printers = Vec::new();
    for (id, account) in [("printer-1", "acme"), ("printer-2", "acme"), ("printer-3", "other")] {
        let pin = relay.pin(id, &[account]).await;
        let mut printer = Program::start(PRINTER, &["--relay", &relay.url, "--id", id, "--pin", &pin]);
        printer.line("online");
        printers.push(printer);
    }
    relay.pin("printer-4", &["acme"]).await;

    let arguments = ["--relay", &relay.url, "--key", &key, "--account", "acme", "--once"];
    let (status, said) = Program::start(SERVICE, &arguments).end();
    assert!(status.success(), "{said:?}");
    assert_eq!(said.len(), 3, "{said:?}");
    for (line, id) in said.iter().zip(["printer-1", "printer-2"]) {
        assert!(line.starts_with(id), "{said:?}");
        assert!(
            line.contains("Black Toner 83 %  Cyan Toner 61 %  Magenta Toner 57 %  Yellow Toner 72 %"),
            "{said:?}"
        );
    }
    assert!(said[2].starts_with("printer-4") && said[2].contains("no session"), "{said:?}");

    let mut again = Program::start(SERVICE, &["--relay", &relay.url, "--key", &key, "--every", "1"]);
    for _ in 0..2 {
        again.line("printer-3");
        again.line("printer-4");
    }
    relay.stop().await;
}

#[test]
fn a_relay_that_is_not_there_is_an_error_of_the_one_round() {
    let (status, said) =
        Program::start(SERVICE, &["--relay", "http://127.0.0.1:1", "--key", "none", "--once"]).end();
    assert!(!status.success(), "{said:?}");
}
