//! `virtual-printer` prints: over either transport, by the same app, each job once.

#[path = "support/http.rs"]
mod http;
mod programs;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use http::ask;
use programs::{Program, Relay};

const PRINTER: &str = env!("CARGO_BIN_EXE_virtual-printer");
const TRANSPORTS: [&str; 2] = ["bosh", "ws"];
const MIB: usize = 1024 * 1024;

fn document(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 % 251) as u8 ^ (n >> 8) as u8).collect()
}

/// A relay with a printer enrolled at it, and the folders of both.
struct Site {
    relay: Relay,
    key: String,
    arguments: Vec<String>,
    out: PathBuf,
    _data: tempfile::TempDir,
}

impl Site {
    async fn new(transport: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let relay = Relay::start(&data.path().join("relay")).await;
        let (pin, key) = (relay.pin("printer-1", &[]).await, relay.key().await);
        let (state, out) = (data.path().join("state"), data.path().join("out"));
        let arguments = [
            "--relay",
            &relay.url,
            "--id",
            "printer-1",
            "--pin",
            &pin,
            "--transport",
            transport,
            "--state",
            state.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
        ];
        let arguments = arguments.map(str::to_owned).to_vec();
        Self { relay, key, arguments, out, _data: data }
    }

    fn printer(&self, more: &[&str]) -> Program {
        let arguments: Vec<_> =
            self.arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut printer = Program::start(PRINTER, &arguments);
        printer.line("online");
        printer
    }

    /// Prints in a thread of its own.
    fn print(&self, document: Vec<u8>) -> thread::JoinHandle<Printed> {
        let (to, key) = (self.relay.address, self.key.clone());
        thread::spawn(move || print(to, &key, &document))
    }

    /// What is in the printer's folder.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let entries = fs::read_dir(&self.out).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (name(&path), fs::read(&path).unwrap()))
            .collect()
    }
}

/// What came back for a document.
#[derive(Debug)]
struct Printed {
    status: u16,
    text: String,
}

impl Printed {
    fn id(&self) -> String {
        let field = self
            .text
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("relay-request-id: ").map(str::to_owned));
        field.unwrap_or_else(|| panic!("{}", self.text))
    }

    /// The last line of its progress.
    fn end(&self) -> serde_json::Value {
        let mut lines = self.text.lines().filter(|line| line.starts_with('{'));
        serde_json::from_str(lines.next_back().unwrap_or_else(|| panic!("{}", self.text))).unwrap()
    }
}

fn print(to: SocketAddr, key: &str, document: &[u8]) -> Printed {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!(
        "POST /v1/devices/printer-1/apps/print?user=ann&job_name=Minutes HTTP/1.1\r\nHost: {to}\r\n\
         Authorization: Bearer {key}\r\nContent-Type: application/pdf\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        document.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut sending = stream.try_clone().unwrap();
    let document = document.to_vec();
    // Refused, the relay reads no more of it.
    let sent = thread::spawn(move || sending.write_all(&document));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let _ = sent.join().unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    Printed { status: status.unwrap_or_else(|| panic!("{text:?}")), text }
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_a7_a_document_comes_out_unchanged_over_either_transport() {
    for transport in TRANSPORTS {
        let site = Site::new(transport).await;
        let mut printer = site.printer(&[]);
        for size in [0, 1, 5 * MIB + 7] {
            let printed = site.print(document(size)).join().unwrap();
            assert_eq!((printed.status, &printed.end()["state"]), (200, &"completed".into()), "{printed:?}");
            printer.line(": done");
            let file = site.out.join(format!("{}.pdf", printed.id()));
            assert!(fs::read(file).unwrap() == document(size), "{transport}: {size} bytes");
        }
        assert_eq!(site.files().len(), 3);
        site.relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a_printer_that_is_killed_twice_in_mid_print_goes_on_and_prints_one_copy() {
    for transport in TRANSPORTS {
        let site = Site::new(transport).await;
        // Three seconds of printing.
        let speed = ["--speed", "2000000"];
        let mut printer = site.printer(&speed);
        let printing = site.print(document(6_000_000));
        for _ in 0..2 {
            printer.line("bytes, printing");
            printer.kill();
            printer = site.printer(&speed);
            printer.line(": begun");
        }
        printer.line(": done");
        let printed = printing.join().unwrap();
        assert_eq!(printed.end()["state"], "completed", "{printed:?}");
        let files = site.files();
        assert_eq!(files.len(), 1, "one copy, and no part of one");
        assert!(files[0].0 == format!("{}.pdf", printed.id()) && files[0].1 == document(6_000_000));
        site.relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_a_jam_is_said_before_any_byte_moves_and_one_in_mid_print_is_the_jobs_end() {
    for transport in TRANSPORTS {
        let site = Site::new(transport).await;
        let mut printer = site.printer(&["--jam", "--speed", "1000000"]);
        let jammed = site.print(document(1000)).join().unwrap();
        assert_eq!(jammed.status, 409, "{jammed:?}");
        assert!(jammed.text.contains("urn:relay:error:device-error") && jammed.text.contains("paper jam"));
        assert!(jammed.text.to_ascii_lowercase().contains("relay-outcome: refused"), "{jammed:?}");
        printer.press("clear");
        printer.line("ready");
        let printing = site.print(document(5_000_000));
        printer.line("bytes, printing");
        let status = site.relay.client.get("printer-1", examples::printer::mib::HR_PRINTER_STATUS);
        assert_eq!(status.await.unwrap().text().unwrap(), "4", "it prints");
        printer.press("jam");
        printer.line("not done, device-error");
        let end = printing.join().unwrap().end();
        assert_eq!((&end["state"], &end["code"]), (&"failed".into(), &"device-error".into()), "{end}");
        assert!(site.files().is_empty(), "nothing of it is kept");
        site.relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_a_job_that_is_cancelled_stops_printing() {
    for transport in TRANSPORTS {
        let site = Site::new(transport).await;
        let mut printer = site.printer(&["--speed", "500000"]);
        let printing = site.print(document(5_000_000));
        let line = printer.line("bytes, printing");
        let id = line.split([' ', ':']).nth(1).unwrap();
        let authorization = format!("Authorization: Bearer {}", site.key);
        let path = format!("DELETE /v1/requests/{id}");
        let to = site.relay.address;
        let cancelled = tokio::task::spawn_blocking(move || ask(to, &path, &[&authorization], b"")).await;
        assert_eq!(cancelled.unwrap().unwrap().status, 204);
        printer.line(": cancelled");
        assert_eq!(printing.join().unwrap().end()["state"], "cancelled");
        site.relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s7_what_its_user_pulls_is_printed_and_the_credential_stays_at_home() {
    let site = Site::new("bosh").await;
    let mut printer = site.printer(&[]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/manual.pdf", server.local_addr().unwrap());
    let serving = thread::spawn(move || {
        let mut asked = Vec::new();
        // Broken off in the middle, and gone on with.
        for (head, body) in [
            ("200 OK\r\nContent-Length: 10", "the "),
            ("206 Partial Content\r\nContent-Range: bytes 4-9/10\r\nContent-Length: 6", "manual"),
        ] {
            let (mut stream, _) = server.accept().unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap();
            asked.push(String::from_utf8_lossy(&request[..read]).into_owned());
            let head = format!("HTTP/1.1 {head}\r\nETag: \"1\"\r\nConnection: close\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).unwrap();
        }
        asked
    });
    printer.press(&format!("pull {url}"));
    let line = printer.line("pulled");
    assert!(line.contains("pulled 10 bytes"), "{line}");
    assert_eq!(site.files(), [("pulled-1".to_owned(), b"the manual".to_vec())]);
    let asked = serving.join().unwrap();
    assert!(asked.iter().all(|asked| !asked.to_ascii_lowercase().contains("authorization")), "{asked:?}");
    printer.press("pull http://files.example/x");
    printer.line("http:// to another machine");
    site.relay.stop().await;
}
