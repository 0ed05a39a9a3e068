//! The relay's page as people use it: a Chromium, printers made with the SDK, and what comes out of them.

#[path = "page/person.rs"]
mod person;
#[path = "page/printer.rs"]
mod printer;
mod programs;
#[path = "page/way.rs"]
mod way;

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use person::Person;
use printer::Printer;
use serde_json::json;
use server_sdk::{
    Client,
    client::TableFormat,
    relay::{Server, ServerConfig},
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use way::Way;

/// How long anything may take before the test has failed.
const BOUND: Duration = Duration::from_secs(30);

/// A relay, an office around it, and somebody with a browser.
struct Office {
    folder: TempDir,
    address: SocketAddr,
    administrator: Client,
    key: String,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Office {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::default();
        config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        config.data = folder.path().join("data");
        config.drain_grace = Duration::from_millis(100);
        // Whoever waits for a printer that is gone waits for these.
        config.relay.resume_window = Duration::from_secs(1);
        config.relay.job_silence = Duration::from_secs(10);
        let server = Server::bind(config).await.unwrap();
        let address = server.addresses()[0];
        let key = fs::read_to_string(server.administrator_key_file().unwrap()).unwrap();
        let administrator = Client::new(&format!("http://{address}"), key.trim()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async { drop(stopped.await) }));
        let key = administrator.administration().new_key(&[]).await.unwrap().key.expose().to_owned();
        Self { folder, address, administrator, key, stop, running }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A virtual printer that is online, with a name, model and place that the administrator gave it.
    async fn printer(&self, id: &str, about: [&str; 3], speed: Option<u32>) -> Printer {
        let [name, model, location] = about;
        let line = json!({"device_id": id, "name": name, "model": model, "location": location}).to_string();
        let administration = self.administrator.administration();
        administration.import(line, TableFormat::Ndjson).await.unwrap();
        let pin = administration.issue_pin(id, &[]).await.unwrap().pin;
        let (url, device, out) = (format!("http://{}", self.address), id.to_owned(), self.path(id));
        let printer = story(move || Printer::start(&url, &device, pin.expose(), &out, speed)).await;
        self.until(id, "online").await;
        printer
    }

    /// Waits until the relay has `device` in that state.
    async fn until(&self, device: &str, state: &str) {
        let end = Instant::now() + BOUND;
        loop {
            let seen = self
                .administrator
                .device(device)
                .await
                .map(|device| device.presence.state.as_str().to_owned());
            if seen.as_deref().is_ok_and(|seen| seen == state) {
                return;
            }
            assert!(Instant::now() < end, "{device} is {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A document of so many bytes that looks like a PDF.
    fn document(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, pdf(bytes)).unwrap();
        path
    }

    async fn close(self) {
        drop(self.stop);
        self.running.await.unwrap();
    }
}

/// A PDF with one page, made long by a stream that nobody draws.
fn pdf(bytes: usize) -> Vec<u8> {
    let mut pdf = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n".to_vec();
    let mut places = Vec::new();
    let filler: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let objects: [&[u8]; 4] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] >>",
        &[format!("<< /Length {bytes} >>\nstream\n").as_bytes(), &filler, b"\nendstream"].concat(),
    ];
    for (number, object) in objects.iter().enumerate() {
        places.push(pdf.len());
        pdf.extend_from_slice(format!("{} 0 obj\n", number + 1).as_bytes());
        pdf.extend_from_slice(object);
        pdf.extend_from_slice(b"\nendobj\n");
    }
    let table = pdf.len();
    pdf.extend_from_slice(format!("xref\n0 {}\n0000000000 65535 f \n", places.len() + 1).as_bytes());
    for place in &places {
        pdf.extend_from_slice(format!("{place:010} 00000 n \n").as_bytes());
    }
    let end = format!("trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n", places.len() + 1);
    pdf.extend_from_slice(end.as_bytes());
    pdf
}

/// Runs a story beside the runtime that the relay lives on.
async fn story<T: Send + 'static>(told: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(told).await.unwrap()
}

fn sign_in(person: &mut Person, key: &str) {
    person.types(key);
    person.press("Enter");
    person.sees("#live", "Live");
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_a_whole_print_is_done_by_keyboard_alone() {
    let office = Office::open().await;
    let copies = office.printer("p-1", ["Copy room", "MX-3071", "2nd floor"], None).await;
    let away = office.printer("p-2", ["Reception", "LW-450", "Ground floor"], None).await;
    story(|| away.leave()).await;
    office.until("p-2", "offline").await;
    let document = office.document("Quarterly report.pdf", 300_000);
    let (address, key) = (office.address, office.key.clone());
    story({
        let document = document.clone();
        move || {
            let mut person = Person::new(address);
            person.open(1280, "light");
            // A wrong key first. The page has put the focus where it is to be typed.
            assert_eq!(person.focus().unwrap().id, "key");
            person.types("not-the-key");
            person.press("Enter");
            person.sees("#key-error", "does not hold");
            person.finds_it_accessible();
            assert_eq!(person.focus().unwrap().id, "key");
            person.press("ControlOrMeta+a");
            sign_in(&mut person, &key);
            person.sees("#printers-count", "1 of 2 online");

            let stops = person.tabs_to(|focus| focus.name.starts_with("Copy room"));
            assert!(stops.iter().all(|stop| !stop.name.contains("Reception")), "{stops:#?}");
            person.press("Space");
            let stops = person.tabs_to(|focus| focus.id == "file");
            assert!(
                stops.iter().all(|stop| stop.kind != "checkbox"),
                "an offline printer has a stop: {stops:#?}"
            );
            person.chooses(&document);
            person.sees("#file-hint", "300 kB");
            person.tabs_to(|focus| focus.id == "user");
            person.types("Ada");
            person.tabs_to(|focus| focus.id == "print");
            assert_eq!(person.focus().unwrap().name, "Print on Copy room");
            person.press("Enter");
            person.sees(".job[data-state=completed]", "Printed, 300 kB");
            assert_eq!(person.texts(".job-where"), ["Copy room"]);
            let log = person.evaluate("document.getElementById('announcer').textContent");
            assert!(log.as_str().unwrap().contains("Quarterly report.pdf on Copy room: Printed"), "{log}");
            // Nothing is where it could be read or sent by others.
            assert_eq!(
                person.evaluate("document.cookie + localStorage.length + location.href"),
                format!("0http://{address}/")
            );
            assert_eq!(person.complaints(), Vec::<String>::new());
        }
    })
    .await;
    assert!(copies.printed() == [fs::read(&document).unwrap()], "the bytes on its disk are others");
    office.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_printers_are_shown_as_they_come_and_go_and_only_those_online_are_chosen() {
    let office = Office::open().await;
    let copies = office.printer("p-1", ["Copy room", "MX-3071", "2nd floor"], None).await;
    let (address, key) = (office.address, office.key.clone());
    let mut person = story(move || {
        let mut person = Person::new(address);
        person.open(1280, "dark");
        sign_in(&mut person, &key);
        person.sees(".printer", "Copy room");
        assert_eq!(person.texts(".about"), ["MX-3071 · 2nd floor"]);
        person.clicks(".printer", "Copy room");
        person.sees("#print", "Print on Copy room");
        person
    })
    .await;
    // It leaves, and is shown so at once; a new one comes, which nobody had to reload the page for.
    story(|| copies.leave()).await;
    let _new = office.printer("p-3", ["Archive", "MX-1", "Cellar"], None).await;
    person = story(move || {
        person.sees(".printer[data-state=offline]", "Copy room");
        person.sees(".printer[data-state=online]", "Archive");
        person.waits_until("document.getElementById('print').textContent === 'Print'");
        assert_eq!(
            person.evaluate("document.querySelector('.printer[data-state=offline] input').disabled"),
            true
        );
        person.clicks(".switch", "Hide offline");
        assert_eq!(person.texts(".name"), ["Archive"]);
        person.clicks(".switch", "Hide offline");
        person.evaluate("document.getElementById('find').focus()");
        person.types("copy");
        assert_eq!(person.texts(".name"), ["Copy room"]);
        person
    })
    .await;
    // A key that is revoked ends it, in words; what the tab knew of it is gone.
    let keys = office.administrator.administration().keys().await.unwrap();
    let key = keys.iter().find(|key| key.scopes.is_empty()).unwrap();
    office.administrator.administration().revoke_key(&key.id).await.unwrap();
    story(move || {
        person.sees("#key-error", "no longer does");
        assert_eq!(person.evaluate("sessionStorage.getItem('relay.key')"), serde_json::Value::Null);
        assert_eq!(person.evaluate("document.querySelectorAll('.printer').length"), 0);
        assert_eq!(person.complaints(), Vec::<String>::new());
    })
    .await;
    office.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_what_goes_wrong_is_told_in_words_a_jam_before_and_a_loss_on_the_way() {
    let office = Office::open().await;
    let mut jams = office.printer("p-1", ["Copy room", "MX-3071", "2nd floor"], None).await;
    let goes = office.printer("p-2", ["Reception", "LW-450", "Ground floor"], Some(500_000)).await;
    let document = office.document("Plan.pdf", 5_000_000);
    let picture = office.path("photo.png");
    fs::write(&picture, b"\x89PNG").unwrap();
    let (address, key) = (office.address, office.key.clone());
    jams.jam();
    let mut person = story({
        let document = document.clone();
        move || {
            let mut person = Person::new(address);
            person.open(1280, "light");
            sign_in(&mut person, &key);
            // Nothing chosen, no file: it says what is missing.
            person.clicks("#print", "Print");
            person.sees("#printers-error", "Choose a printer");
            person.sees("#document-error", "Choose a file");
            person.finds_it_accessible();
            person.clicks(".printer", "Copy room");
            person.clicks(".printer", "Reception");
            person.puts_file("#file", &picture);
            person.clicks("#print", "Print on 2 printers");
            person.sees(".job[data-state=failed]", "does not take this kind of file");
            person.waits_until("document.querySelectorAll('.job[data-over]').length === 2");
            person.clicks("#clear", "Clear finished");
            person.puts_file("#file", &document);
            person.clicks("#print", "Print on 2 printers");
            let told = person.sees(".job[data-state=failed]", "The printer says");
            assert!(told.contains("paper jam: open cover A"), "{told}");
            assert!(told.contains("Copy room"), "{told}");
            person.sees(".job[data-state=sending]", "Sending");
            person
        }
    })
    .await;
    let end = Instant::now() + BOUND;
    while goes.at_work() < 1_000_000 {
        assert!(Instant::now() < end, "half-way is never reached");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    story(|| goes.vanish()).await;
    person = story(move || {
        let told = person.sees(".job[data-state=failed]", "look before you print again");
        assert!(told.contains("Reception"), "{told}");
        person.finds_it_accessible();
        assert_eq!(person.complaints(), Vec::<String>::new());
        person
    })
    .await;
    // The paper is out: the same again, and it prints.
    jams.clear();
    story(move || {
        person.clicks("#clear", "Clear finished");
        person.clicks("#print", "Print on");
        person.sees(".job[data-state=completed]", "Printed");
    })
    .await;
    assert!(jams.printed() == [fs::read(&document).unwrap()], "the bytes on its disk are others");
    office.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_a_document_kept_on_the_server_is_printed_without_being_sent_again() {
    let office = Office::open().await;
    let printer = office.printer("p-1", ["Copy room", "MX-3071", "2nd floor"], None).await;
    let (address, key) = (office.address, office.key.clone());
    story(move || {
        let mut person = Person::new(address);
        person.open(375, "light");
        sign_in(&mut person, &key);
        let kept = "fetch('/v1/documents/Form', {method: 'PUT', body: '%PDF-1.4 kept', headers: \
                    {Authorization: `Bearer ${sessionStorage.getItem('relay.key')}`, 'Content-Type': 'application/pdf'}}).\
                    then((answer) => answer.status)";
        assert_eq!(person.evaluate(kept), 201);
        person.reload();
        person.clicks(".sources label", "On the server");
        person.finds_it_accessible();
        person.keeps_picture("kept-375-light");
        person.clicks(".printer", "Copy room");
        person.clicks("#print", "Print on Copy room");
        person.sees("#document-error", "Choose a document");
        person.types("Form");
        person.clicks("#print", "Print on Copy room");
        person.sees(".job[data-state=completed]", "Printed");
    })
    .await;
    assert!(printer.printed() == [b"%PDF-1.4 kept"]);
    office.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_a_job_is_cancelled_from_the_page() {
    let office = Office::open().await;
    let printer = office.printer("p-1", ["Copy room", "MX-3071", "2nd floor"], Some(20_000)).await;
    let document = office.document("Leaflet.pdf", 2_000_000);
    let (address, key) = (office.address, office.key.clone());
    story(move || {
        let mut person = Person::new(address);
        person.open(1280, "light");
        sign_in(&mut person, &key);
        person.clicks(".printer", "Copy room");
        person.puts_file("#file", &document);
        person.clicks("#print", "Print on Copy room");
        person.sees(".job[data-state=sending]", "Sending");
        person.clicks(".job button", "Cancel");
        person.sees(".job[data-state=cancelled]", "Cancelled");
        person.waits_until("document.querySelectorAll('.job button').length === 0");
    })
    .await;
    assert!(printer.printed().is_empty());
    office.close().await;
}

/// The share of the document that the page shows as sent is more than this.
fn sent_more_than(share: f64) -> String {
    format!("(document.querySelector('.job[data-state=sending] progress')?.value ?? 0) > {share}")
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a6_an_upload_that_breaks_goes_on_where_it_was_and_is_printed_once() {
    let office = Office::open().await;
    let printer = office.printer("p-1", ["Copy room", "MX-3071", "2nd floor"], Some(2_500_000)).await;
    let document = office.document("Catalogue.pdf", 12_000_000);
    let bytes = fs::read(&document).unwrap();
    let (way, key) = (Way::to(office.address, 3_000_000).await, office.key.clone());
    let printer = story(move || {
        let mut person = Person::new(way.address);
        person.open(375, "light");
        sign_in(&mut person, &key);
        person.clicks(".printer", "Copy room");
        person.puts_file("#file", &document);
        person.clicks("#print", "Print on Copy room");
        person.waits_until(&sent_more_than(0.15));
        person.keeps_picture("uploading-375-light");
        way.block();
        person.sees(".job[data-state=broken]", "The connection broke. Trying again");
        person.finds_it_accessible();
        person.keeps_picture("upload-broken-375-light");
        person.look(1280, "dark");
        person.finds_it_accessible();
        person.keeps_picture("upload-broken-1280-dark");
        way.unblock();
        person.waits_until(&sent_more_than(0.6));
        assert!(printer.at_work() > 0, "it prints while the document comes");
        way.cut();
        // All of it is at the relay, and the printer is at it.
        while printer.at_work() < 10_500_000 {
            std::thread::sleep(Duration::from_millis(20));
        }
        way.cut();
        person.sees(".job[data-state=completed]", "Printed, 12 MB");
        person.finds_it_accessible();
        person.keeps_picture("uploaded-1280-dark");
        assert_eq!(person.complaints(), [""; 0]);
        printer
    })
    .await;
    assert!(printer.printed() == [bytes], "once, and whole");
    office.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_a_large_upload_is_cancelled_by_keyboard_at_once_and_the_printer_is_free() {
    let office = Office::open().await;
    let printer = office.printer("p-1", ["Copy room", "MX-3071", "2nd floor"], None).await;
    let large = office.document("Catalogue.pdf", 30_000_000);
    let small = office.document("Leaflet.pdf", 20_000);
    let leaflet = fs::read(&small).unwrap();
    let (way, key) = (Way::to(office.address, 1_000_000).await, office.key.clone());
    let printer = story(move || {
        let mut person = Person::new(way.address);
        person.open(1280, "light");
        sign_in(&mut person, &key);
        person.clicks(".printer", "Copy room");
        person.puts_file("#file", &large);
        person.clicks("#print", "Print on Copy room");
        person.waits_until(&sent_more_than(0.05));
        person.finds_it_accessible();
        person.keeps_picture("uploading-1280-light");
        person.tabs_to(|focus| focus.name.starts_with("Cancel Catalogue.pdf"));
        let pressed = Instant::now();
        person.press("Enter");
        person.sees(".job[data-state=cancelled]", "Cancelled");
        assert!(pressed.elapsed() < Duration::from_secs(5), "without waiting for the rest");
        assert_eq!(person.focus().unwrap().id, "jobs-title", "the focus is not lost with the button");
        person.puts_file("#file", &small);
        person.clicks("#print", "Print on Copy room");
        person.sees(".job[data-state=completed]", "Printed, 20 kB");
        printer
    })
    .await;
    assert!(printer.printed() == [leaflet], "nothing of what was cancelled");
    office.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t43_t50_hostile_names_and_words_are_text_and_nothing_else() {
    let office = Office::open().await;
    let script = "<img src=x onerror=\"globalThis.owned=1\"><script>globalThis.owned=1</script>";
    let name = format!("{script}\u{202e}gnp.\u{2066}");
    let location = "javascript:globalThis.owned=1//{{7*7}}".to_owned() + &"\u{200b}W".repeat(100);
    let about = [&*name, "'\"><svg onload=globalThis.owned=1>", &location];
    let mut printer = office.printer("__proto__", about, None).await;
    let document = office.document("<b>x.pdf", 10_000);
    let (address, key) = (office.address, office.key.clone());
    printer.jam();
    story(move || {
        let mut person = Person::new(address);
        person.open(375, "light");
        sign_in(&mut person, &key);
        let shown = person.evaluate("document.querySelector('.name').textContent");
        let shown = shown.as_str().unwrap();
        assert!(shown.starts_with(script), "{shown}");
        assert!(
            shown.ends_with("\u{fffd}gnp.\u{fffd}"),
            "what turns the direction of text is made visible: {shown}"
        );
        assert_eq!(
            person
                .evaluate("document.querySelectorAll('.printer img, .printer script, .printer svg').length"),
            0
        );
        person.clicks(".printer", "");
        person.puts_file("#file", &document);
        person.clicks("#print", "Print");
        person.sees(".job[data-state=failed]", "paper jam");
        assert_eq!(person.evaluate("String(globalThis.owned)"), "undefined");
        assert_eq!(person.evaluate("({}).title === undefined"), true, "a name is no prototype");
        // Were there markup all the same, it would not run.
        let refused = "try { document.body.innerHTML = '<p>'; 'written' } catch (error) { error.name }";
        assert_eq!(person.evaluate(refused), "TypeError");
        person.finds_it_accessible();
        person.keeps_picture("hostile-375-light");
    })
    .await;
    office.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_the_page_is_accessible_and_fits_wide_and_narrow_light_and_dark() {
    let office = Office::open().await;
    let mut printers = Vec::new();
    for (id, name, model, location) in [
        ("p-1", "Copy room", "MX-3071", "2nd floor, west"),
        ("p-2", "Reception", "LaserWriter 450", "Ground floor"),
        ("p-3", "Design studio A3", "Plotmaster 9000 Pro", "Annex, room 12"),
        ("p-4", "Warehouse labels", "ZT-230", "Hall 3"),
    ] {
        let speed = (id == "p-4").then_some(50_000);
        printers.push(office.printer(id, [name, model, location], speed).await);
    }
    let away = printers.remove(2);
    story(|| away.leave()).await;
    let document = office.document("Quarterly report 2026.pdf", 3_400_000);
    printers[1].jam();
    let (address, key) = (office.address, office.key.clone());
    story(move || {
        let mut person = Person::new(address);
        let on_every_screen = |person: &mut Person, scene: &str| {
            for width in [375, 1280] {
                for scheme in ["light", "dark"] {
                    person.look(width, scheme);
                    person.finds_it_accessible();
                    person.keeps_picture(&format!("{scene}-{width}-{scheme}"));
                }
            }
        };
        person.open(1280, "light");
        on_every_screen(&mut person, "1-sign-in");
        person.types("wrong");
        person.press("Enter");
        person.sees("#key-error", "does not hold");
        on_every_screen(&mut person, "2-wrong-key");
        person.press("ControlOrMeta+a");
        sign_in(&mut person, &key);
        person.sees("#printers-count", "3 of 4 online");
        on_every_screen(&mut person, "3-printers");
        for name in ["Copy room", "Reception", "Warehouse labels"] {
            person.clicks(".printer", name);
        }
        person.puts_file("#file", &document);
        person.clicks("#print", "Print on 3 printers");
        person.sees(".job[data-state=completed]", "Printed");
        person.sees(".job[data-state=failed]", "paper jam");
        person.sees(".job[data-state=sending]", "Warehouse labels");
        on_every_screen(&mut person, "4-jobs");
        // A reload asks for no key again.
        person.clicks(".job button", "Cancel");
        person.waits_until("document.querySelectorAll('.job button').length === 0");
        person.reload();
        person.sees("#live", "Live");
    })
    .await;
    office.close().await;
}
