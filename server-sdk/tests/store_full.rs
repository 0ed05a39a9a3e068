//! A full disk: the relay runs in a mount namespace of its own, with its data on a file system of 2 MiB.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod cli_support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use cli_support::Process;
use server_sdk::{Error, ErrorKind};

/// `relay serve` on a small file system that it alone sees; the test gets there by the process's root.
fn small(data: &Path) -> Command {
    let inner = Process::command(data);
    let mut words = vec![inner.get_program().to_owned()];
    words.extend(inner.get_args().map(ToOwned::to_owned));
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--map-root-user", "sh", "-c"])
        .arg(r#"mount -t tmpfs -o size=2m,mode=700 tmpfs "$0" && exec "$@""#)
        .arg(data)
        .args(words)
        .env("RELAY_LOG", "off")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_on_a_full_disk_durable_writes_are_refused_calls_go_on_and_it_heals_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut relay = Process::of(small(&data), &data);
    let inside = Path::new("/proc")
        .join(relay.child.id().to_string())
        .join("root")
        .join(data.strip_prefix("/").unwrap());
    relay.data = inside.clone();
    let client = relay.client();
    client.administration().issue_pin("before", &[]).await.unwrap();

    // Not a byte is left.
    let filler = inside.join("filler");
    let filled = fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    // The log may have some room within pages that are written already; not for long.
    let mut made = Vec::new();
    let refused = loop {
        let name = format!("d{}", made.len());
        match client.administration().issue_pin(&name, &[]).await {
            Ok(_) => made.push(name),
            Err(error) => break error,
        }
        assert!(made.len() < 1000, "the disk does not get full");
    };
    let unavailable = |error: &Error| (error.kind(), error.code().map(str::to_owned));
    assert_eq!(
        unavailable(&refused),
        (ErrorKind::Unavailable, Some("store-unavailable".to_owned())),
        "{refused:?}"
    );
    // What needs no write goes on.
    let call = client.get("before", "a").await.unwrap_err();
    assert_eq!(call.kind(), ErrorKind::DeviceOffline, "{call:?}");
    assert_eq!(client.device("before").await.unwrap().id.as_str(), "before");

    fs::remove_file(&filler).unwrap();
    let healed = async {
        while let Err(error) = client.administration().issue_pin("after", &[]).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), healed).await.expect("it heals within 5 s");
    for name in made.iter().map(String::as_str).chain(["before", "after"]) {
        assert_eq!(client.device(name).await.unwrap().id.as_str(), name, "what was acknowledged is there");
    }
}
