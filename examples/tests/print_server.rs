//! `print-server`: what is put into a printer's folder comes out of that printer, once.

mod programs;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use programs::{BOUND, Program};
use server_sdk::{Client, ErrorKind, JobState, PrintJob};
use tokio::time::Instant;

const SERVER: &str = env!("CARGO_BIN_EXE_print-server");
const PRINTER: &str = env!("CARGO_BIN_EXE_virtual-printer");

fn document(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 % 251) as u8 ^ (n >> 8) as u8).collect()
}

/// The folders that a print server works in, and where it is.
struct Shop {
    folder: tempfile::TempDir,
    url: String,
    client: Client,
}

impl Shop {
    fn open() -> (Self, Program) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("jobs")).unwrap();
        let (server, url) = serve(folder.path(), "127.0.0.1:0");
        let key = fs::read_to_string(folder.path().join("data/administrator.key")).unwrap();
        let client = Client::new(&url, key.trim()).unwrap();
        (Self { folder, url, client }, server)
    }

    /// Makes a printer's folder, and starts the printer.
    async fn printer(&self, id: &str, more: &[&str]) -> Program {
        fs::create_dir(self.jobs(id)).unwrap();
        let pin = self.client.administration().issue_pin(id, &[]).await.unwrap();
        let (state, out) = (self.folder.path().join(format!("{id}-state")), self.out(id));
        let mut arguments = vec!["--relay", &self.url, "--id", id, "--pin", pin.pin.expose()];
        arguments.extend(["--state", state.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        arguments.extend(more);
        let mut printer = Program::start(PRINTER, &arguments);
        printer.line("online");
        printer
    }

    fn jobs(&self, id: &str) -> PathBuf {
        self.folder.path().join("jobs").join(id)
    }

    fn out(&self, id: &str) -> PathBuf {
        self.folder.path().join(format!("{id}-out"))
    }

    /// Hands a document in, whole from the beginning.
    fn hand_in(&self, id: &str, name: &str, bytes: &[u8]) {
        let being_written = self.jobs(id).join(format!(".{name}"));
        fs::write(&being_written, bytes).unwrap();
        fs::rename(being_written, self.jobs(id).join(name)).unwrap();
    }

    /// What came out of a printer.
    fn paper(&self, id: &str) -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(self.out(id)).into_iter().flatten().map(|file| file.unwrap().path());
        files
            .map(|file| (file.file_name().unwrap().to_str().unwrap().into(), fs::read(file).unwrap()))
            .collect()
    }
}

fn serve(folder: &Path, listen: &str) -> (Program, String) {
    let (data, jobs) = (folder.join("data"), folder.join("jobs"));
    let arguments = ["--listen", listen, "--data", data.to_str().unwrap(), "--jobs", jobs.to_str().unwrap()];
    let mut server = Program::start(SERVER, &arguments);
    let line = server.line("listening on ");
    let url = line.split("listening on ").nth(1).unwrap().to_owned();
    (server, url)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_what_is_put_into_a_printers_folder_comes_out_of_it_unchanged() {
    let (shop, mut server) = Shop::open();
    let _printer = shop.printer("printer-1", &[]).await;
    let _other = shop.printer("printer-2", &[]).await;
    for (name, bytes) in [("minutes.pdf", document(300_007)), ("empty.txt", Vec::new())] {
        shop.hand_in("printer-1", name, &bytes);
        server.line(&format!("{name}: printed"));
        assert_eq!(fs::read(shop.jobs("printer-1").join("done").join(name)).unwrap(), bytes);
        assert!(!shop.jobs("printer-1").join(name).exists());
        let ending = name.split_once('.').unwrap().1;
        let paper = shop.paper("printer-1");
        let paper: Vec<_> = paper.iter().filter(|(name, _)| name.ends_with(ending)).collect();
        assert!(matches!(*paper, [(_, printed)] if *printed == bytes), "{name}");
    }
    assert_eq!(shop.paper("printer-2"), []);
    let left: Vec<_> =
        fs::read_dir(shop.jobs("printer-1")).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left, ["done"], "no note is left behind");

    // The relay inside is one like any other: services call it, too.
    let ticket = PrintJob::new().user("ann").content_type("application/pdf");
    let mut printing = shop.client.print("printer-2", ticket).unwrap().bytes(document(70_000)).await.unwrap();
    assert_eq!(printing.finished().await.unwrap().state, JobState::Completed);
    assert!(matches!(&*shop.paper("printer-2"), [(_, printed)] if *printed == document(70_000)));
    let ticket = PrintJob::new().content_type("image/x-unheard-of");
    let refused = shop.client.print("printer-2", ticket).unwrap().bytes(document(1)).await.unwrap_err();
    assert_eq!((refused.kind(), refused.status()), (ErrorKind::Invalid, Some(415)));
    server.signal("-TERM");
    assert!(server.end().0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_what_cannot_be_printed_is_told_truly() {
    let (shop, mut server) = Shop::open();
    let mut printer = shop.printer("printer-1", &["--jam"]).await;
    shop.hand_in("printer-1", "a.pdf", &document(1000));
    server.line("a.pdf: device-error: paper jam");
    let failed = shop.jobs("printer-1").join("failed");
    assert_eq!(fs::read(failed.join("a.pdf")).unwrap(), document(1000));
    assert!(fs::read_to_string(failed.join("a.pdf.txt")).unwrap().contains("paper jam"));

    // Nobody's folder, and what is in none.
    fs::create_dir(shop.jobs("no device")).unwrap();
    fs::write(shop.jobs("stray.pdf"), "x").unwrap();
    let said = [server.line("has a device's ID for its name"), server.line("has a device's ID for its name")];
    for name in ["no device", "stray.pdf"] {
        assert!(said.iter().any(|line| line.contains(name)), "{said:?}");
    }
    fs::create_dir(shop.jobs("unknown")).unwrap();
    shop.hand_in("unknown", "b.pdf", b"x");
    server.line("b.pdf: no such device; it waits");

    // A printer that is away is waited for.
    printer.press("clear");
    printer.signal("-TERM");
    printer.end();
    let client = shop.client.clone();
    let until = Instant::now() + BOUND;
    while client.presence("printer-1").await.unwrap().is_online() {
        assert!(Instant::now() < until, "it is not offline");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shop.hand_in("printer-1", "c.pdf", &document(2000));
    server.line("c.pdf: the device is offline; it waits");
    let (state, out) = (shop.folder.path().join("printer-1-state"), shop.out("printer-1"));
    let again = ["--relay", &shop.url, "--id", "printer-1", "--state", state.to_str().unwrap()];
    let again = [&again[..], &["--out", out.to_str().unwrap()]].concat();
    let _printer = Program::start(PRINTER, &again);
    server.line("c.pdf: printed");
    assert!(matches!(&*shop.paper("printer-1"), [(_, printed)] if *printed == document(2000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a_print_server_that_is_killed_goes_on_and_prints_once() {
    let (shop, mut server) = Shop::open();
    let _printer = shop.printer("printer-1", &["--speed", "400000"]).await;
    let minutes = document(1_200_000);
    shop.hand_in("printer-1", "minutes.pdf", &minutes);
    server.line("minutes.pdf: job ");
    let begun = || shop.paper("printer-1").iter().any(|(_, part)| part.len() > 100_000);
    eventually("it prints", begun).await;
    server.kill();
    let Shop { folder, url, .. } = shop;
    let paper = folder.path().join("printer-1-out");
    let (mut server, _) = serve(folder.path(), url.strip_prefix("http://").unwrap());
    server.line("minutes.pdf: printed");
    let printed: Vec<_> = fs::read_dir(&paper).unwrap().map(|file| file.unwrap().path()).collect();
    let [printed] = &*printed else { panic!("{printed:?}") };
    assert!(fs::read(printed).unwrap() == minutes);
    assert!(folder.path().join("jobs/printer-1/done/minutes.pdf").exists());
}

#[test]
fn a_folder_that_is_not_there_is_an_error_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (data, jobs) = (folder.path().join("data"), folder.path().join("none"));
    let arguments =
        ["--listen", "127.0.0.1:0", "--data", data.to_str().unwrap(), "--jobs", jobs.to_str().unwrap()];
    let (status, said) = Program::start(SERVER, &arguments).end();
    assert!(!status.success());
    assert!(said.iter().any(|line| line.contains("no folder to take documents from")), "{said:?}");
}
