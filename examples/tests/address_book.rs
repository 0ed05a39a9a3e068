//! Address books from end to end: `address-book` and `virtual-printer` as processes, and devices made with the SDK, at a
//! relay.

mod programs;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use device_sdk::{
    AddressBooks, Device, Transport,
    book::{Book, BookCopy, BookError, BookEvent, BookId, InvalidBook, Reported, Version},
};
use programs::{BOUND, Program, Relay};
use server_sdk::AddressBook;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep},
};

const SERVICE: &str = env!("CARGO_BIN_EXE_address-book");
const PRINTER: &str = env!("CARGO_BIN_EXE_virtual-printer");
const TRANSPORTS: [Transport; 2] = [Transport::Bosh, Transport::Ws];

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

/// A device that shares its accounts' address books, and what it heard of them.
struct Sharing {
    id: &'static str,
    folder: PathBuf,
    transport: Transport,
    device: Device,
    books: AddressBooks,
    heard: Arc<Mutex<Vec<BookEvent>>>,
    hearing: JoinHandle<()>,
}

impl Sharing {
    async fn enrol(relay: &Relay, data: &Path, transport: Transport, id: &'static str) -> Self {
        let pin = relay.pin(id, &["acme"]).await;
        let (folder, books) = (data.join(id), AddressBooks::new());
        Self::start(&relay.url, folder, transport, id, books, Some(pin)).await
    }

    async fn start(
        url: &str,
        folder: PathBuf,
        transport: Transport,
        id: &'static str,
        books: AddressBooks,
        pin: Option<String>,
    ) -> Self {
        let heard = Arc::<Mutex<Vec<BookEvent>>>::default();
        let (mut events, hears) = (books.events(), heard.clone());
        let hearing = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                hears.lock().unwrap().push(event);
            }
        });
        let mut builder =
            Device::builder(url, id).state_folder(&folder).transport(transport).address_books(&books);
        if let Some(pin) = pin {
            builder = builder.pin(pin);
        }
        let device = builder.start().await.unwrap();
        device.set_maintenance(true).await.unwrap();
        until(|| device.is_online()).await;
        Self { id, folder, transport, device, books, heard, hearing }
    }

    /// Switches it off and on.
    async fn restart(self, relay: &Relay) -> Self {
        self.device.shutdown(BOUND).await;
        self.hearing.abort();
        Self::start(&relay.url, self.folder, self.transport, self.id, AddressBooks::new(), None).await
    }

    async fn copy(&self) -> BookCopy {
        self.books.read(&staff()).await.unwrap().unwrap_or_else(|| BookCopy::empty(staff()))
    }

    async fn set(&self, name: &str, value: &str) -> Result<Reported, BookError> {
        self.books.edit(&staff(), |book| book.set("email", name, value).map(drop)).await
    }

    fn heard(&self) -> Vec<BookEvent> {
        self.heard.lock().unwrap().clone()
    }

    async fn hears(&self, wanted: impl Fn(&BookEvent) -> bool + Send + Sync) {
        until(|| self.heard().iter().any(&wanted)).await;
    }

    /// The versions that came, in the order in which they did.
    fn received(&self) -> Vec<Version> {
        let version = |event| match event {
            BookEvent::Received { version, .. } => Some(version),
            _ => None,
        };
        self.heard().into_iter().filter_map(version).collect()
    }

    async fn offline(&self) {
        self.device.set_maintenance(false).await.unwrap();
        until(|| !self.device.is_online()).await;
    }

    async fn online(&self) {
        self.device.set_maintenance(true).await.unwrap();
    }

    /// Waits until it has what the relay has.
    async fn has(&self, book: &AddressBook) {
        let until = Instant::now() + BOUND;
        loop {
            let stands = book.read().await.unwrap();
            let copy = self.copy().await;
            if copy.reported && copy.version == Some(stands.version) {
                assert_eq!(copy.content, stands.content, "{}", self.id);
                return;
            }
            assert!(Instant::now() < until, "{}: {copy:?}, and {:?} stands", self.id, stands.version);
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn staff() -> BookId {
    BookId::new("staff").unwrap()
}

fn set(name: &'static str, value: &'static str) -> impl FnMut(&mut Book) -> Result<(), InvalidBook> {
    move |book| book.set("email", name, value).map(drop)
}

async fn until(holds: impl Fn() -> bool) {
    let until = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < until, "it does not come to hold");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_devices_get_each_version_once_over_bosh() {
    each_version_once(Transport::Bosh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_devices_get_each_version_once_over_websocket() {
    each_version_once(Transport::Ws).await;
}

/// Small and large, at once and when they come.
async fn each_version_once(transport: Transport) {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(&data.path().join("relay")).await;
    let book = relay.client.address_book("acme", "staff").unwrap();
    let first = Sharing::enrol(&relay, data.path(), transport, "mfp-1").await;
    let mut content = Book::new();
    content.set("email", "Ann", "<ann&bob@acme.example>").unwrap();
    let mut versions = vec![book.create(&content).await.unwrap()];
    until(|| first.received() == versions).await;
    assert_eq!(first.copy().await.content, content);

    // One that comes later; then a version that does not fit into a header.
    let second = Sharing::enrol(&relay, data.path(), transport, "mfp-2").await;
    until(|| second.received() == versions).await;
    for n in 0..3_000 {
        content.set("email", &format!("user-{n}"), "somebody@somewhere.example").unwrap();
    }
    versions.push(book.replace(versions[0], &content).await.unwrap());
    until(|| first.received() == versions && second.received() == versions).await;
    assert_eq!((first.copy().await.content, second.copy().await.content), (content.clone(), content.clone()));

    // While one is away, there are two; it gets the last.
    first.device.shutdown(BOUND).await;
    content.set("fax", "Ann", "1").unwrap();
    let between = book.replace(versions[1], &content).await.unwrap();
    until(|| second.received().last() == Some(&between)).await;
    content.set("fax", "Ann", "2").unwrap();
    let last = book.replace(between, &content).await.unwrap();
    until(|| second.received().last() == Some(&last)).await;
    let Sharing { folder, transport, id, heard, .. } = first;
    let first = Sharing::start(&relay.url, folder, transport, id, AddressBooks::new(), None).await;
    until(|| first.received() == [last]).await;
    assert_eq!((heard.lock().unwrap().len(), second.received().len()), (2, 4));
    first.has(&book).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_what_one_device_changes_the_others_get_and_it_does_not() {
    for transport in TRANSPORTS {
        let data = tempfile::tempdir().unwrap();
        let relay = Relay::start(&data.path().join("relay")).await;
        let book = relay.client.address_book("acme", "staff").unwrap();
        let one = Sharing::enrol(&relay, data.path(), transport, "mfp-1").await;
        let other = Sharing::enrol(&relay, data.path(), transport, "mfp-2").await;
        let mut versions = Vec::new();
        for value in ["1", "2"] {
            let Reported::Accepted { version } = one.set("Ann", value).await.unwrap() else { panic!() };
            versions.push(version);
            until(|| other.received().last() == Some(&version)).await;
        }
        other.has(&book).await;
        one.has(&book).await;
        // It hears of the next one first.
        let third = book.edit(set("Bob", "1")).await.unwrap().version;
        until(|| one.received() == [third]).await;
        relay.stop().await;
    }
}

/// Two devices that share a book with one entry.
async fn two_that_have_ann(data: &Path, transport: Transport) -> (Relay, AddressBook, [Sharing; 2]) {
    let relay = Relay::start(&data.join("relay")).await;
    let book = relay.client.address_book("acme", "staff").unwrap();
    book.edit(set("Ann", "1")).await.unwrap();
    let one = Sharing::enrol(&relay, data, transport, "mfp-1").await;
    let other = Sharing::enrol(&relay, data, transport, "mfp-2").await;
    one.has(&book).await;
    other.has(&book).await;
    (relay, book, [one, other])
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_two_devices_that_edit_at_once_both_keep_what_they_changed() {
    for transport in TRANSPORTS {
        let data = tempfile::tempdir().unwrap();
        let (relay, book, [one, other]) = two_that_have_ann(data.path(), transport).await;

        one.offline().await;
        assert_eq!(one.set("Bob", "by one").await.unwrap(), Reported::Kept);
        assert!(matches!(other.set("Ann", "by other").await, Ok(Reported::Accepted { .. })));
        // It survives being switched off; at its return it is put together with the other's.
        let one = one.restart(&relay).await;
        one.hears(|event| matches!(event, BookEvent::Reported { merged: true, .. })).await;
        one.has(&book).await;
        other.has(&book).await;
        let stands = book.read().await.unwrap().content;
        assert_eq!(
            (stands.get("email", "Ann"), stands.get("email", "Bob")),
            (Some("by other"), Some("by one"))
        );
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_of_two_changes_of_one_entry_one_stands_and_the_other_is_set_aside() {
    for transport in TRANSPORTS {
        let data = tempfile::tempdir().unwrap();
        let (relay, book, [one, other]) = two_that_have_ann(data.path(), transport).await;
        one.offline().await;
        let before = one.copy().await;
        assert_eq!(one.set("Ann", "by one").await.unwrap(), Reported::Kept);
        assert!(matches!(other.set("Ann", "by other").await, Ok(Reported::Accepted { .. })));
        one.online().await;
        one.hears(|event| matches!(event, BookEvent::Rejected { .. })).await;
        one.has(&book).await;
        let one = one.restart(&relay).await;
        let rejected = one.books.rejected(&staff()).await.unwrap().unwrap();
        assert_eq!(&*rejected.why, "changed on both sides: email/Ann");
        assert_eq!(rejected.changes[0].value.as_deref(), Some("by one"));
        assert_eq!(one.copy().await.content.get("email", "Ann"), Some("by other"));

        // From the old copy it is a conflict still; whoever insists says so from what stands.
        let mut mine = before.content.clone();
        mine.set("email", "Ann", "by one").unwrap();
        let again = one.books.report(&before, mine).await.unwrap_err();
        let BookError::Conflict(conflict) = again else { panic!("{again}") };
        let mut chosen = conflict.stands.content.clone();
        chosen.set("email", "Ann", "by one").unwrap();
        let reported = one.books.report(&conflict.stands, chosen).await.unwrap();
        assert!(matches!(reported, Reported::Accepted { .. }));
        one.books.discard_rejected(&staff()).await.unwrap();
        other.has(&book).await;
        assert_eq!(other.copy().await.content.get("email", "Ann"), Some("by one"));
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_what_many_edit_at_once_also_while_the_relay_is_away_is_all_kept() {
    const EDITS: usize = 6;
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(&data.path().join("relay")).await;
    let address = relay.address;
    let mut devices = Vec::new();
    for (id, transport) in [("a", Transport::Bosh), ("b", Transport::Ws), ("c", Transport::Bosh)] {
        devices.push(Arc::new(Sharing::enrol(&relay, data.path(), transport, id).await));
    }
    let edits: Vec<_> = devices
        .iter()
        .map(|device| {
            let device = device.clone();
            tokio::spawn(async move {
                for n in 0..EDITS {
                    device.set(&format!("{}{n}", device.id), "x").await.unwrap();
                }
            })
        })
        .collect();
    until(|| edits.iter().any(JoinHandle::is_finished)).await;
    relay.stop().await;
    for edit in edits {
        edit.await.unwrap();
    }
    for device in &devices {
        device.set(&format!("{}-away", device.id), "x").await.unwrap();
    }
    let relay = Relay::start_at(&data.path().join("relay"), address).await;
    let book = relay.client.address_book("acme", "staff").unwrap();
    let all = devices.len() * (EDITS + 1);
    let end = Instant::now() + BOUND;
    while book.read().await.map_or(0, |read| read.content.len()) < all {
        assert!(Instant::now() < end, "not all of {all} edits arrive: {:?}", book.read().await);
        sleep(Duration::from_millis(20)).await;
    }
    for device in &devices {
        device.has(&book).await;
        let rejected = device.heard().into_iter().find(|event| matches!(event, BookEvent::Rejected { .. }));
        assert_eq!(rejected, None);
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_whose_book_it_is_has_to_be_said_where_it_is_not_clear() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(&data.path().join("relay")).await;
    let start = async |id: &'static str, accounts: &[&str], books: AddressBooks| {
        let pin = relay.pin(id, accounts).await;
        Sharing::start(&relay.url, data.path().join(id), Transport::Ws, id, books, Some(pin)).await
    };
    let refused = |answer: Result<Reported, BookError>| match answer {
        Err(BookError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    };
    let of_two = start("two", &["acme", "other"], AddressBooks::new()).await;
    assert_eq!(&*refused(of_two.set("Ann", "1").await), "ambiguous-account");
    let named = AddressBooks::new().account("other".parse().unwrap());
    let named = start("named", &["acme", "other"], named).await;
    assert!(matches!(named.set("Ann", "1").await, Ok(Reported::Accepted { .. })));
    let book = relay.client.address_book("other", "staff").unwrap();
    assert_eq!(book.read().await.unwrap().content.get("email", "Ann"), Some("1"));
    let of_none = start("none", &[], AddressBooks::new()).await;
    assert_eq!(&*refused(of_none.set("Ann", "1").await), "unknown-book");
    relay.stop().await;
}

/// Arguments of a virtual printer, and a file for its panel.
struct Panel {
    arguments: Vec<String>,
    file: PathBuf,
}

impl Panel {
    async fn of(relay: &Relay, at: SocketAddr, data: &Path, id: &str) -> Self {
        let pin = relay.pin(id, &["acme"]).await;
        let state = data.join(id);
        let url = format!("http://{at}");
        let arguments = [
            "--relay",
            &url,
            "--id",
            id,
            "--pin",
            &pin,
            "--transport",
            "bosh",
            "--state",
            state.to_str().unwrap(),
        ];
        Self { arguments: arguments.map(str::to_owned).to_vec(), file: data.join(format!("{id}.xml")) }
    }

    fn start(&self) -> Program {
        Program::start(PRINTER, &self.arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Has the panel replace a book by this.
    fn replace(&self, printer: &mut Program, document: &str) {
        std::fs::write(&self.file, document).unwrap();
        printer.press(&format!("book {}", self.file.display()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_a_virtual_printer_replaces_a_book_by_a_file_and_tells_what_comes() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(&data.path().join("relay")).await;
    let one = Panel::of(&relay, relay.address, data.path(), "printer-1").await;
    let other = Panel::of(&relay, relay.address, data.path(), "printer-2").await;
    let (mut printer, mut second) = (one.start(), other.start());
    printer.line("online");
    second.line("online");
    let document = "<AddressBook book='staff'><email><Ann>1</Ann><Bob>1</Bob></email></AddressBook>";
    one.replace(&mut printer, document);
    printer.line("book staff: changed, version ");
    second.line(", with 2 entries");
    one.replace(&mut printer, document);
    printer.line("book staff: nothing changed");
    // A file without a name is the book of that service; one of an old version would undo what came since.
    one.replace(&mut printer, "<AddressBook><email><Ann>1</Ann></email></AddressBook>");
    printer.line("book addresses: changed");
    let old = "<AddressBook book='staff' version='7'><email><Ann>1</Ann></email></AddressBook>";
    one.replace(&mut printer, old);
    printer.line("book staff: the file is another version");
    one.replace(&mut printer, "<AddressBook>");
    printer.line("book: the address book cannot be read");
    printer.press("book /nowhere/at/all.xml");
    printer.line("book: No such file");

    // Changed while it is off, it is reported when it is on again, also after a power cut.
    printer.press("off");
    printer.line("session maintenance off");
    one.replace(&mut printer, "<AddressBook book='staff'><email><Ann>1</Ann></email></AddressBook>");
    printer.line("book staff: kept");
    printer.kill();
    let mut printer = one.start();
    printer.press("on");
    printer.line("book staff: reported as version ");
    second.line("book staff: version ");
    let book = relay.client.address_book("acme", "staff").unwrap();
    assert_eq!(book.read().await.unwrap().content.len(), 1);
    relay.stop().await;
}

/// Passes bytes on to the relay and back, and can keep from it what devices answer by HTTP.
struct Gag {
    address: SocketAddr,
    on: Arc<AtomicBool>,
    passing: JoinHandle<()>,
}

impl Drop for Gag {
    fn drop(&mut self) {
        self.passing.abort();
    }
}

impl Gag {
    async fn before(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, on) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let gagged = on.clone();
        let passing = tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                let gagged = gagged.clone();
                tokio::spawn(async move {
                    let relay = TcpStream::connect(relay).await?;
                    let (mut from_device, mut to_device) = device.into_split();
                    let (mut from_relay, mut to_relay) = relay.into_split();
                    let down =
                        tokio::spawn(async move { tokio::io::copy(&mut from_relay, &mut to_device).await });
                    let (mut bytes, mut lost) = (vec![0; 16 * 1024], false);
                    loop {
                        let read = from_device.read(&mut bytes).await.unwrap_or(0);
                        if read == 0 {
                            break;
                        }
                        // What was once kept back leaves a hole: nothing after it makes sense.
                        let answers = bytes[..read].starts_with(b"POST /v1/requests/");
                        lost |= answers && gagged.load(Ordering::SeqCst);
                        if !lost {
                            to_relay.write_all(&bytes[..read]).await?;
                        }
                    }
                    down.abort();
                    std::io::Result::Ok(())
                });
            }
        });
        Self { address, on, passing }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f4_a5_killed_between_a_version_and_its_answer_a_device_gets_it_again_and_takes_it_once() {
    let data = tempfile::tempdir().unwrap();
    let relay = Relay::start(&data.path().join("relay")).await;
    let gag = Gag::before(relay.address).await;
    let panel = Panel::of(&relay, gag.address, data.path(), "printer-1").await;
    let book = relay.client.address_book("acme", "staff").unwrap();
    let mut printer = panel.start();
    printer.line("online");
    let first = book.edit(set("Ann", "1")).await.unwrap().version;
    // In either order.
    let mut missing = vec![format!("book staff: version {first}"), "answered ".to_owned()];
    while !missing.is_empty() {
        let line = printer.line("");
        missing.retain(|words| !line.contains(words));
    }

    // It is on disk, and the relay never hears so.
    gag.on.store(true, Ordering::SeqCst);
    let second = book.edit(set("Bob", "1")).await.unwrap().version;
    printer.line(&format!("book staff: version {second}, with 2 entries"));
    printer.kill();
    gag.on.store(false, Ordering::SeqCst);
    let mut printer = panel.start();
    assert!(printer.line(": done").starts_with("address "));
    printer.line("answered ");
    let third = book.edit(set("Cem", "1")).await.unwrap().version;
    printer.line(&format!("book staff: version {third}, with 3 entries"));
    printer.signal("-TERM");
    let (_, said) = printer.end();
    let told: Vec<_> = said.iter().filter(|line| line.starts_with("book ")).collect();
    assert_eq!(told.len(), 1, "{said:?}");
    relay.stop().await;
}
