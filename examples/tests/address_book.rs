//! `address-book` as a process, against a relay.

mod programs;

use programs::{Program, Relay};

const SERVICE: &str = env!("CARGO_BIN_EXE_address-book");

#[tokio::test(flavor = "multi_thread")]
async fn a5_a_service_reads_edits_and_watches_a_book() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(data.path()).await;
    let key = relay.key().await;
    let common = ["--relay", &relay.url, "--key", &key, "--account", "acme", "--book", "staff"];
    let run = |arguments: &[&str]| Program::start(SERVICE, &[&common[..], arguments].concat());
    let done = |arguments: &[&str]| {
        let (status, said) = run(arguments).end();
        assert!(status.success(), "{said:?}");
        said
    };

    let (status, said) = run(&["show"]).end();
    assert!(!status.success() && said.iter().any(|line| line.contains("no such address book")), "{said:?}");
    let file = data.path().join("staff.xml");
    std::fs::write(&file, "<AddressBook><email><Ann>ann@acme.example</Ann></email></AddressBook>").unwrap();
    assert!(done(&["put", file.to_str().unwrap()])[0].ends_with("with 1 entries"));

    let mut watch = run(&["watch", "--every", "1"]);
    watch.line("with 1 entries");
    assert!(done(&["set", "email", "Bob", "bob@acme.example"])[0].ends_with("with 2 entries"));
    watch.line("+ email Bob bob@acme.example");
    done(&["set", "email", "Ann", "ann@new.example"]);
    watch.line("~ email Ann ann@new.example");
    done(&["remove", "email", "Bob"]);
    watch.line("- email Bob");

    let said = done(&["show"]);
    assert!(said[0].starts_with("version "), "{said:?}");
    assert_eq!(said[1..], ["email Ann ann@new.example"]);
    let (status, said) = run(&["set", "e mail", "x", "y"]).end();
    assert!(!status.success() && said.iter().any(|line| line.contains("no name")), "{said:?}");
    relay.stop().await;
}
