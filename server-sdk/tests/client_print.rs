//! Printing with the client and with the program, against a relay on loopback.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod cli_support;
mod http_support;
mod job_support;

use std::{io::Cursor, time::Duration};

use cli_support::{program, text, with_input};
use http_support::Rig;
use job_support::{cancelled, document, done, error, offered, part, printer, progress, read_all, read_on};
use relay_core::{app::print::PrintTicket, ids::DocumentId};
use server_sdk::{Client, ErrorKind, JobState, Outcome, PrintJob};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

fn client(rig: &Rig, key: &str) -> Client {
    Client::new(&format!("http://{}", rig.address), key).unwrap()
}

#[tokio::test]
async fn k1_a_file_is_printed_and_its_progress_told() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", r#""application/pdf""#).await;
    let relay = client(&rig, &rig.key(&[]).await);
    let bytes = document(500_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let job = PrintJob::new().user("Ann").job_name("Minutes & more").content_type("application/pdf");
    let job = job.attribute("copies", "2");
    let printing = async {
        let mut printing = relay.print("d", job).unwrap().file(file.path()).await.unwrap();
        let mut seen = Vec::new();
        while let Some(update) = printing.next().await.unwrap() {
            seen.push(update);
        }
        seen
    };
    let serving = async {
        let (id, offer) = offered(&mut device).await;
        let ticket = PrintTicket::from_header(offer.header.as_deref().unwrap()).unwrap();
        assert_eq!(ticket.job_name.as_deref(), Some("Minutes & more"));
        assert_eq!(ticket.attribute("copies"), Some("2"));
        assert!(read_all(&rig, &device.token, &id).await == bytes);
        progress(&mut device, &id, 7, "page 1").await;
        done(&mut device, &id).await;
    };
    let (seen, ()) = tokio::join!(printing, serving);
    assert!(seen.first().unwrap().state < JobState::Completed);
    let last = seen.last().unwrap();
    assert_eq!((last.state, last.bytes), (JobState::Completed, 500_000));
    assert_eq!(last.note.as_deref(), Some("page 1"));
}

#[tokio::test]
async fn a3_a_jam_is_an_error_with_the_devices_words_before_and_after_the_device_opened() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", r#""application/pdf""#).await;
    let relay = client(&rig, &rig.key(&[]).await);
    let print = |kind: &str| relay.print("d", PrintJob::new().content_type(kind)).unwrap();
    let (printing, ()) = tokio::join!(print("application/pdf").bytes(document(1000)), async {
        let (id, _) = offered(&mut device).await;
        error(&mut device, &id, "device-error", "paper jam").await;
    });
    let jam = printing.unwrap_err();
    assert_eq!((jam.kind(), jam.outcome()), (ErrorKind::DeviceError, Some(Outcome::Refused)));
    assert!(jam.is_safe_to_retry() && jam.to_string() == "paper jam" && jam.request_id().is_some());
    for (code, kind) in [("device-error", ErrorKind::DeviceError), ("no-gear", ErrorKind::DeviceFailed)] {
        let job = async {
            let mut printing = print("application/pdf").bytes(document(1000)).await.unwrap();
            printing.finished().await.unwrap_err()
        };
        let (failed, ()) = tokio::join!(job, async {
            let (id, _) = offered(&mut device).await;
            read_all(&rig, &device.token, &id).await;
            error(&mut device, &id, code, "gear 7 \u{1b}[2J").await;
        });
        assert_eq!((failed.kind(), failed.outcome()), (kind, Some(Outcome::Answered)));
        assert!(!failed.is_safe_to_retry() && !failed.to_string().contains('\u{1b}'));
    }
    let refused = print("text/plain").bytes("x").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(refused.code(), Some("unsupported-media-type"));
    assert!(refused.is_safe_to_retry());
    let missing = print("application/pdf").file("/nowhere/at/all").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn q8_a_job_is_cancelled_by_its_stream() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let relay = client(&rig, &rig.key(&[]).await);
    let job = async {
        let mut printing = relay.print("d", PrintJob::new()).unwrap().bytes(document(10)).await.unwrap();
        printing.cancel().await.unwrap();
        assert_eq!(printing.finished().await.unwrap().state, JobState::Cancelled);
        assert_eq!(printing.cancel().await.unwrap_err().kind(), ErrorKind::Conflict);
    };
    tokio::join!(job, async {
        let (id, _) = offered(&mut device).await;
        // It may be cancelled by then.
        let _ = part(&rig, &device.token, &id, "bytes=0-").await;
        cancelled(&mut device, &id).await;
    });
}

/// Passes connections on to `relay`, and cuts each after as many bytes of it as it is told.
async fn cutting_proxy(relay: std::net::SocketAddr, cuts: Vec<usize>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, left) = watch::channel(cuts);
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut to = TcpStream::connect(relay).await.unwrap();
            let (cut, left) = (cut.clone(), left.clone());
            tokio::spawn(async move {
                let mut head = vec![0; 16];
                let Ok(read) = from.read(&mut head).await else { return };
                let uploads = head.starts_with(b"POST /v1/dev") || head.starts_with(b"PATCH");
                let bytes = if uploads { left.borrow().last().copied() } else { None };
                to.write_all(&head[..read]).await.unwrap();
                let Some(bytes) = bytes else {
                    drop(copy_bidirectional(&mut from, &mut to).await);
                    return;
                };
                cut.send_modify(|cuts| {
                    cuts.pop();
                });
                let (mut read, mut write) = from.split();
                let (mut answers, mut calls) = to.split();
                let mut up = (&mut read).take(bytes as u64);
                tokio::select! {
                    _ = tokio::io::copy(&mut up, &mut calls) => {}
                    _ = tokio::io::copy(&mut answers, &mut write) => {}
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn f32_an_upload_that_is_cut_again_and_again_is_gone_on_with_by_itself() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let proxy = cutting_proxy(rig.address, vec![400_000, 300_000, 100_001]).await;
    let relay = Client::new(&format!("http://{proxy}"), &key).unwrap();
    let bytes = document(2_000_000);
    let job = async {
        let mut printing = relay.print("d", PrintJob::new()).unwrap().bytes(bytes.clone()).await.unwrap();
        printing.finished().await.unwrap()
    };
    let serving = async {
        let (id, _) = offered(&mut device).await;
        let read = read_on(&rig, &device.token, &id, Vec::new()).await;
        done(&mut device, &id).await;
        read
    };
    let (last, read) = tokio::join!(job, serving);
    assert!(read == bytes, "{} bytes", read.len());
    assert_eq!((last.state, last.bytes), (JobState::Completed, 2_000_000));
}

#[tokio::test]
async fn f32_what_can_be_read_once_is_gone_on_with_only_if_it_was_sent() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let proxy = cutting_proxy(rig.address, vec![100_000]).await;
    let relay = Client::new(&format!("http://{proxy}"), &key).unwrap();
    let stream = || Cursor::new(document(1_000_000));
    let job = async {
        let mut printing = relay.print("d", PrintJob::new()).unwrap().stream(stream()).await.unwrap();
        printing.finished().await.unwrap_err()
    };
    let (failed, id) = tokio::join!(job, async {
        let (id, _) = offered(&mut device).await;
        part(&rig, &device.token, &id, "bytes=0-").await;
        id
    });
    assert_eq!(failed.kind(), ErrorKind::Invalid);
    assert!(failed.to_string().contains("a second time"), "{failed}");
    rig.call("DELETE", &format!("/v1/requests/{id}"), &key, &[], b"").await;
    cancelled(&mut device, &id).await;
    let whole = async {
        let mut printing = relay.print("d", PrintJob::new()).unwrap().stream(stream()).await.unwrap();
        printing.finished().await.unwrap()
    };
    let (last, ()) = tokio::join!(whole, async {
        let (id, _) = offered(&mut device).await;
        assert!(read_all(&rig, &device.token, &id).await == document(1_000_000));
        done(&mut device, &id).await;
    });
    assert_eq!(last.state, JobState::Completed);
}

#[tokio::test]
async fn a6_a_kept_document_is_printed_by_its_name() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", "").await;
    let key = rig.key(&[]).await;
    let relay = client(&rig, &key);
    rig.call("PUT", "/v1/documents/doc", &key, &[], b"kept").await;
    let job = async {
        let name = DocumentId::new("doc").unwrap();
        relay.print("d", PrintJob::new()).unwrap().kept(&name).await.unwrap().finished().await.unwrap()
    };
    let (last, ()) = tokio::join!(job, async {
        let (id, _) = offered(&mut device).await;
        assert_eq!(read_all(&rig, &device.token, &id).await, b"kept");
        done(&mut device, &id).await;
    });
    assert_eq!((last.state, last.bytes), (JobState::Completed, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_the_program_prints_and_says_how_it_went() {
    let rig = Rig::start().await;
    let mut device = printer(&rig, "d", r#""application/pdf","text/plain""#).await;
    let key = rig.key(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("minutes.pdf");
    std::fs::write(&file, document(100_000)).unwrap();
    let url = format!("http://{}", rig.address);
    let run = |arguments: &[&str], input: &'static [u8]| {
        let mut command = program();
        command.env("RELAY_URL", &url).env("RELAY_KEY", &key).arg("print").args(arguments);
        tokio::task::spawn_blocking(move || with_input(command, input))
    };
    let path = file.to_str().unwrap();
    let printing = run(&["d", path, "--user", "Ann", "--set", "copies=2", "--json"], b"");
    let (id, offer) = offered(&mut device).await;
    let ticket = PrintTicket::from_header(offer.header.as_deref().unwrap()).unwrap();
    assert_eq!(ticket.job_name.as_deref(), Some("minutes.pdf"));
    assert_eq!(ticket.content_type.as_deref(), Some("application/pdf"));
    assert_eq!((ticket.user.as_deref(), ticket.attribute("copies")), (Some("Ann"), Some("2")));
    assert!(read_all(&rig, &device.token, &id).await == document(100_000));
    done(&mut device, &id).await;
    let output = printing.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let out = text(&output.stdout);
    let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((&last["state"], &last["bytes"]), (&"completed".into(), &100_000.into()));
    assert_eq!(last["id"], id.as_str());

    let printing = run(&["d", "-", "--type", "text/plain"], b"from a pipe");
    let (id, _) = offered(&mut device).await;
    assert_eq!(read_all(&rig, &device.token, &id).await, b"from a pipe");
    done(&mut device, &id).await;
    let output = printing.await.unwrap();
    assert!(text(&output.stdout).contains("printed on d: 11 bytes"), "{output:?}");

    let printing = run(&["d", path], b"");
    let (id, _) = offered(&mut device).await;
    error(&mut device, &id, "device-error", "paper jam\u{1b}[2J in tray 2").await;
    let output = printing.await.unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("paper jam") && err.contains("has not acted") && !err.contains('\u{1b}'), "{err}");

    let output = run(&["d", "-", "--type", "image/png"], b"x").await.unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("image/png"), "{output:?}");
    let output = run(&["d", "/nowhere/at/all"], b"").await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = run(&["d"], b"").await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    tokio::time::sleep(Duration::ZERO).await;
}
