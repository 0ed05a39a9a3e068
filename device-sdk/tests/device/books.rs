//! Address books: what comes is kept before it is answered, what is changed here is kept before it is sent.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use device_sdk::{
    AddressBooks, AppName, BookVerdict, Builder, Device, Response, Router, StartError,
    book::{
        Book, BookDocument, BookError, BookEvent, BookEvents, BookId, BookStore, InvalidBook, Loaded,
        MAX_KEPT, MAX_VALUE, Reported, Version,
    },
};
use relay_core::{
    app::MemorySource,
    book::Parcel,
    relay::JobCall,
    request::{Body, Status},
    store,
};

use crate::{
    links::eventually,
    world::{World, device_id, words},
};

fn id(name: &str) -> BookId {
    BookId::new(name).unwrap()
}

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

fn book(entries: &[(&str, &str)]) -> Book {
    let mut book = Book::new();
    for (name, value) in entries {
        book.set("email", name, value).unwrap();
    }
    book
}

fn document(name: &str, number: u64, content: &Book) -> BookDocument {
    BookDocument::parse(content.to_document(Some(&id(name)), Some(version(number))).as_bytes()).unwrap()
}

fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut Book) -> Result<(), InvalidBook> {
    move |book| book.set("email", name, value).map(drop)
}

fn builder(world: &World, books: &AddressBooks, folder: Option<&Path>) -> Builder {
    let builder = world.device(Router::new()).address_books(books);
    match folder {
        Some(folder) => builder.state_folder(folder),
        None => builder,
    }
}

async fn start(world: &World, books: &AddressBooks, folder: Option<&Path>) -> Device {
    builder(world, books, folder).start().await.unwrap()
}

async fn online(world: &World, books: &AddressBooks, folder: Option<&Path>) -> Device {
    let device = start(world, books, folder).await;
    device.online().await.unwrap();
    device
}

async fn stop(device: Device) {
    device.shutdown(Duration::from_secs(5)).await;
}

/// What the device says to a version that is offered to it.
async fn offer(world: &World, name: &str, number: u64, content: &Book) -> Response {
    let Parcel { header, data, .. } = Parcel::new(&id(name), version(number), &content.content());
    let app = store::App {
        name: AppName::new("address").unwrap(),
        path: "/address".into(),
        port: None,
        protocol: "address".into(),
    };
    let mut call = JobCall::new(device_id(), app, Arc::new(MemorySource::new(data)));
    call.header = Some(header);
    world.relay().job(call).unwrap().finished().await.unwrap()
}

fn has(number: u64) -> Response {
    Response::new(Status::Ok, Some(Body::text(number.to_string())))
}

async fn next(events: &mut BookEvents) -> BookEvent {
    tokio::time::timeout(Duration::from_secs(7200), events.next()).await.expect("it comes").unwrap()
}

/// What the relay says to the next changes.
fn verdicts(world: &World, verdicts: impl IntoIterator<Item = BookVerdict>) {
    world.0.verdicts.lock().unwrap().extend(verdicts);
}

fn taken(number: u64) -> BookVerdict {
    BookVerdict::Taken(version(number))
}

fn conflict() -> BookVerdict {
    conflict_of("a")
}

fn conflict_of(name: &str) -> BookVerdict {
    BookVerdict::Conflict { entries: vec![("email".into(), name.into())] }
}

/// What was reported: book, base, content.
fn reports(world: &World) -> Vec<(String, Option<u64>, Book)> {
    let reports = world.0.reports.lock().unwrap();
    let read = |report: &device_sdk::BookReport| {
        let content = BookDocument::parse(report.document.as_bytes()).unwrap().content;
        (report.book.to_string(), report.base.map(Version::number), content)
    };
    reports.iter().map(read).collect()
}

async fn content(books: &AddressBooks, name: &str) -> Book {
    books.read(&id(name)).await.unwrap().unwrap().content
}

#[tokio::test(start_paused = true)]
async fn a5_a_version_is_kept_told_once_and_answered_and_an_older_one_changes_nothing() {
    let (world, folder, books) = (World::new(), tempfile::tempdir().unwrap(), AddressBooks::new());
    let mut events = books.events();
    let device = online(&world, &books, Some(folder.path())).await;
    assert_eq!(books.read(&id("staff")).await.unwrap(), None);
    let mut large = book(&[("a", "3")]);
    for n in 0..3_000 {
        large.set("email", &format!("u{n}"), "somebody@somewhere.example").unwrap();
    }
    for (number, content) in [(1, book(&[("a", "1")])), (3, large.clone())] {
        assert_eq!(offer(&world, "staff", number, &content).await, has(number));
        let received = BookEvent::Received { book: id("staff"), version: version(number) };
        assert_eq!(next(&mut events).await, received);
    }
    // The same again, since its answer was lost; and one that was overtaken.
    for number in [3, 2] {
        assert_eq!(offer(&world, "STAFF", number, &book(&[("a", "2")])).await, has(number));
    }
    let kept = books.read(&id("Staff")).await.unwrap().unwrap();
    assert_eq!((kept.version, &kept.content, kept.reported), (Some(version(3)), &large, true));
    assert_eq!(offer(&world, "other", 9, &Book::new()).await, has(9));
    assert_eq!(next(&mut events).await, BookEvent::Received { book: id("other"), version: version(9) });
    stop(device).await;

    let books = AddressBooks::new();
    let mut events = books.events();
    let _device = online(&world, &books, Some(folder.path())).await;
    assert_eq!(books.list().await.unwrap(), [id("other"), id("staff")]);
    assert_eq!(offer(&world, "staff", 3, &kept.content).await, has(3));
    assert_eq!(books.read(&id("staff")).await.unwrap(), Some(kept));
    assert_eq!(offer(&world, "staff", 4, &Book::new()).await, has(4));
    assert_eq!(next(&mut events).await, BookEvent::Received { book: id("staff"), version: version(4) });
}

#[tokio::test(start_paused = true)]
async fn a5_what_is_no_book_is_refused_and_changes_nothing() {
    let (world, books) = (World::new(), AddressBooks::new());
    let _device = online(&world, &books, None).await;
    let app = store::App {
        name: AppName::new("address").unwrap(),
        path: "/address".into(),
        port: None,
        protocol: "address".into(),
    };
    for (header, data, code) in [
        ("<AddressBook book='staff' version='1'><email><a/><a/></email></AddressBook>", &b""[..], "bad-book"),
        ("<AddressBook book='staff'/>", b"", "bad-book"),
        ("<AddressBook version='1'/>", b"", "bad-book"),
        ("<AddressBook book='staff' version='1' length='14'/>", b"<AddressBook/>", "bad-book"),
        ("<AddressBook book='staff' version='1' length='9'/>", &[b' '; 2 << 20], "too-large"),
    ] {
        let source = Arc::new(MemorySource::new(bytes::Bytes::copy_from_slice(data)));
        let mut call = JobCall::new(device_id(), app.clone(), source);
        call.header = Some(header.into());
        let response = world.relay().job(call).unwrap().finished().await.unwrap();
        assert_eq!(response.status.as_str(), code, "{header}: {}", words(&response));
    }
    assert_eq!(books.list().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn b14_a_device_keeps_so_many_books_and_no_more() {
    let (world, books) = (World::new(), AddressBooks::new());
    let _device = online(&world, &books, None).await;
    for n in 0..MAX_KEPT {
        assert_eq!(offer(&world, &format!("b{n}"), 1, &Book::new()).await, has(1));
    }
    assert_eq!(offer(&world, "one-more", 1, &Book::new()).await.status.as_str(), "full");
    assert!(matches!(books.edit(&id("one-more"), set("a", "1")).await, Err(BookError::Full)));
    // Those that are here go on.
    assert_eq!(offer(&world, "b7", 2, &Book::new()).await, has(2));
}

#[tokio::test(start_paused = true)]
async fn a5_a_change_is_reported_with_the_version_that_it_was_made_from() {
    let (world, books) = (World::new(), AddressBooks::new());
    let mut events = books.events();
    let _device = online(&world, &books, None).await;
    let staff = id("staff");
    verdicts(&world, [taken(5), taken(6)]);
    assert_eq!(books.edit(&staff, set("a", "1")).await.unwrap(), Reported::Accepted { version: version(5) });
    assert_eq!(books.edit(&staff, set("a", "1")).await.unwrap(), Reported::Unchanged);
    assert_eq!(books.edit(&staff, set("b", "2")).await.unwrap(), Reported::Accepted { version: version(6) });
    let (first, second) = (book(&[("a", "1")]), book(&[("a", "1"), ("b", "2")]));
    let expected = [("staff".to_owned(), None, first), ("staff".to_owned(), Some(5), second.clone())];
    assert_eq!(reports(&world), expected);
    let copy = books.read(&staff).await.unwrap().unwrap();
    assert_eq!((copy.version, &copy.content, copy.reported), (Some(version(6)), &second, true));
    for number in [5, 6] {
        let reported = BookEvent::Reported { book: staff.clone(), version: version(number), merged: false };
        assert_eq!(next(&mut events).await, reported);
    }

    // Put together with what others did, it is what came of both.
    let both = book(&[("a", "9"), ("b", "3")]);
    verdicts(&world, [BookVerdict::Merged { version: version(8), content: both.clone() }]);
    assert_eq!(books.edit(&staff, set("b", "3")).await.unwrap(), Reported::Merged { version: version(8) });
    assert_eq!(content(&books, "staff").await, both);
    let reported = BookEvent::Reported { book: staff.clone(), version: version(8), merged: true };
    assert_eq!(next(&mut events).await, reported);
    // It comes as a delivery, too, and is no news then.
    assert_eq!(offer(&world, "staff", 8, &both).await, has(8));

    let long = "x".repeat(MAX_VALUE + 1);
    let invalid = books.edit(&staff, |book| book.set("email", "a", &long).map(drop)).await;
    assert!(matches!(invalid, Err(BookError::Invalid(_))), "{invalid:?}");
}

#[tokio::test(start_paused = true)]
async fn f33_a_conflict_has_both_sides_and_the_book_is_as_it_stands() {
    let (world, books) = (World::new(), AddressBooks::new());
    let _device = online(&world, &books, None).await;
    let staff = id("staff");
    offer(&world, "staff", 1, &book(&[("a", "1")])).await;
    let theirs = book(&[("a", "theirs"), ("b", "2")]);
    *world.0.book.lock().unwrap() = Some(document("staff", 2, &theirs));
    verdicts(&world, [conflict()]);
    let Err(BookError::Conflict(conflict)) = books.edit(&staff, set("a", "mine")).await else { panic!() };
    assert_eq!(conflict.to_string(), "changed on both sides: email/a");
    assert_eq!((conflict.stands.version, &conflict.stands.content), (Some(version(2)), &theirs));
    assert_eq!(conflict.edited, book(&[("a", "mine")]));
    assert_eq!(content(&books, "staff").await, theirs);
    // It is in its caller's hands, so it does not stay set aside.
    while books.rejected(&staff).await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }

    // Somebody chooses.
    verdicts(&world, [taken(3)]);
    let mut chosen = conflict.stands.content.clone();
    chosen.set("email", "a", "mine").unwrap();
    books.report(&conflict.stands, chosen.clone()).await.unwrap();
    assert_eq!(reports(&world).pop().unwrap(), ("staff".into(), Some(2), chosen));

    let refused = BookVerdict::Refused { code: "unknown-book".into(), words: "no such address book".into() };
    verdicts(&world, [refused]);
    let Err(BookError::Refused { code, .. }) = books.edit(&staff, set("a", "x")).await else { panic!() };
    assert_eq!(&*code, "unknown-book");
    assert_eq!(content(&books, "staff").await.get("email", "a"), Some("mine"));
}

#[tokio::test(start_paused = true)]
async fn f33_a_copy_that_was_overtaken_is_edited_without_undoing_what_came() {
    let (world, books) = (World::new(), AddressBooks::new());
    let _device = online(&world, &books, None).await;
    offer(&world, "staff", 1, &book(&[("a", "1")])).await;
    let before = books.read(&id("staff")).await.unwrap().unwrap();
    offer(&world, "staff", 2, &book(&[("a", "1"), ("b", "2")])).await;
    verdicts(&world, [taken(3)]);
    books.report(&before, book(&[("a", "9")])).await.unwrap();
    let both = book(&[("a", "9"), ("b", "2")]);
    assert_eq!(reports(&world), [("staff".to_owned(), Some(2), both.clone())]);
    // Of the same entry it is a conflict, and nothing is sent.
    let error = books.report(&before, book(&[("a", "8")])).await.unwrap_err();
    let BookError::Conflict(conflict) = error else { panic!("{error}") };
    assert_eq!((conflict.stands.content, conflict.edited), (both, book(&[("a", "8")])));
    assert_eq!(reports(&world).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn f33_what_is_changed_offline_is_reported_at_the_next_connection_in_order_also_after_a_restart() {
    let (world, folder) = (World::new(), tempfile::tempdir().unwrap());
    let books = AddressBooks::new();
    let device = online(&world, &books, Some(folder.path())).await;
    offer(&world, "staff", 1, &book(&[("a", "1")])).await;
    device.set_maintenance(false).await.unwrap();
    eventually(|| !device.is_online()).await;
    for (name, entry, value) in
        [("staff", "b", "1"), ("fax", "x", "1"), ("staff", "b", "2"), ("clubs", "y", "1")]
    {
        assert_eq!(books.edit(&id(name), set(entry, value)).await.unwrap(), Reported::Kept);
    }
    let copy = books.read(&id("staff")).await.unwrap().unwrap();
    assert_eq!((copy.content, copy.reported), (book(&[("a", "1"), ("b", "2")]), false));
    world.kill(device).await;
    assert!(matches!(books.edit(&id("fax"), set("x", "2")).await, Err(BookError::Stopped)));

    let books = AddressBooks::new();
    let mut events = books.events();
    let device = start(&world, &books, Some(folder.path())).await;
    assert!(!device.maintenance() && reports(&world).is_empty());
    verdicts(&world, [taken(7), taken(8), taken(9)]);
    device.set_maintenance(true).await.unwrap();
    for (name, number) in [("staff", 7), ("fax", 8), ("clubs", 9)] {
        let reported = BookEvent::Reported { book: id(name), version: version(number), merged: false };
        assert_eq!(next(&mut events).await, reported);
    }
    let staff = book(&[("a", "1"), ("b", "2")]);
    let expected = [
        ("staff".to_owned(), Some(1), staff),
        ("fax".to_owned(), None, book(&[("x", "1")])),
        ("clubs".to_owned(), None, book(&[("y", "1")])),
    ];
    assert_eq!(reports(&world), expected);
}

#[tokio::test(start_paused = true)]
async fn f33_a_version_that_comes_before_a_change_is_reported_loses_neither() {
    let (world, folder, books) = (World::new(), tempfile::tempdir().unwrap(), AddressBooks::new());
    let mut events = books.events();
    let device = online(&world, &books, Some(folder.path())).await;
    offer(&world, "staff", 1, &book(&[("a", "1")])).await;
    // Nobody answers the report.
    assert_eq!(books.edit(&id("staff"), set("b", "2")).await.unwrap(), Reported::Kept);
    offer(&world, "staff", 2, &book(&[("a", "2")])).await;
    // At the panel stands what was changed there, until the relay has said what is.
    assert_eq!(content(&books, "staff").await, book(&[("a", "1"), ("b", "2")]));
    world.kill(device).await;

    let both = book(&[("a", "2"), ("b", "2")]);
    verdicts(&world, [BookVerdict::Merged { version: version(3), content: both.clone() }]);
    let books = AddressBooks::new();
    let mut again = books.events();
    let _device = online(&world, &books, Some(folder.path())).await;
    let merged = BookEvent::Reported { book: id("staff"), version: version(3), merged: true };
    assert_eq!(next(&mut again).await, merged);
    assert_eq!(content(&books, "staff").await, both);
    let (_, base, reported) = reports(&world).pop().unwrap();
    assert_eq!((base, reported), (Some(1), book(&[("a", "1"), ("b", "2")])));
    for number in [1, 2] {
        let received = BookEvent::Received { book: id("staff"), version: version(number) };
        assert_eq!(next(&mut events).await, received);
    }
}

#[tokio::test(start_paused = true)]
async fn f33_a_change_that_the_relay_does_not_answer_is_kept_and_tried_until_it_does() {
    let (world, books) = (World::new(), AddressBooks::new());
    let mut events = books.events();
    let _device = online(&world, &books, None).await;
    assert_eq!(books.edit(&id("staff"), set("a", "1")).await.unwrap(), Reported::Kept);
    eventually(|| reports(&world).len() >= 3).await;
    // What is changed meanwhile does not become part of what may be at the relay already.
    assert_eq!(books.edit(&id("staff"), set("a", "2")).await.unwrap(), Reported::Kept);
    verdicts(&world, [taken(5), taken(6)]);
    for number in [5, 6] {
        let reported = BookEvent::Reported { book: id("staff"), version: version(number), merged: false };
        assert_eq!(next(&mut events).await, reported);
    }
    let reports = reports(&world);
    let (last, before) = reports.split_last().unwrap();
    assert!(before.iter().all(|report| *report == ("staff".to_owned(), None, book(&[("a", "1")]))));
    assert_eq!(*last, ("staff".to_owned(), Some(5), book(&[("a", "2")])));
}

#[tokio::test(start_paused = true)]
async fn f33_what_is_not_taken_and_nobody_hears_is_set_aside_until_somebody_looks() {
    let (world, folder, books) = (World::new(), tempfile::tempdir().unwrap(), AddressBooks::new());
    let device = online(&world, &books, Some(folder.path())).await;
    offer(&world, "staff", 1, &book(&[("a", "1")])).await;
    device.set_maintenance(false).await.unwrap();
    eventually(|| !device.is_online()).await;
    books.edit(&id("staff"), set("a", "mine")).await.unwrap();
    *world.0.book.lock().unwrap() = Some(document("staff", 2, &book(&[("a", "theirs")])));
    verdicts(&world, [conflict()]);
    let mut events = books.events();
    device.set_maintenance(true).await.unwrap();
    assert_eq!(next(&mut events).await, BookEvent::Received { book: id("staff"), version: version(2) });
    let words = "changed on both sides: email/a".into();
    assert_eq!(next(&mut events).await, BookEvent::Rejected { book: id("staff"), words });
    stop(device).await;

    let books = AddressBooks::new();
    let device = online(&world, &books, Some(folder.path())).await;
    assert_eq!(content(&books, "staff").await, book(&[("a", "theirs")]));
    let rejected = books.rejected(&id("staff")).await.unwrap().unwrap();
    let change = &rejected.changes[0];
    assert_eq!((&*change.kind, &*change.name, change.value.as_deref()), ("email", "a", Some("mine")));
    books.discard_rejected(&id("staff")).await.unwrap();
    assert_eq!(books.rejected(&id("staff")).await.unwrap(), None);

    // So is what nobody waits for any more.
    let mut events = books.events();
    verdicts(&world, [conflict_of("b")]);
    let before = books.read(&id("staff")).await.unwrap().unwrap();
    let report = books.report(&before, book(&[("a", "theirs"), ("b", "mine")]));
    assert!(futures_util::FutureExt::now_or_never(report).is_none());
    let words = "changed on both sides: email/b".into();
    assert_eq!(next(&mut events).await, BookEvent::Rejected { book: id("staff"), words });
    assert_eq!(books.rejected(&id("staff")).await.unwrap().unwrap().changes.len(), 1);
    stop(device).await;
}

/// Overwrites a file's last bytes.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let end = bytes.len();
    bytes[end - 9..].fill(b'#');
    fs::write(path, bytes).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder.join("books")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(start_paused = true)]
async fn f31_a_damaged_book_is_said_not_used_and_had_again_from_the_relay() {
    for recovered in [true, false] {
        let (world, folder, books) = (World::new(), tempfile::tempdir().unwrap(), AddressBooks::new());
        let device = online(&world, &books, Some(folder.path())).await;
        offer(&world, "staff", 1, &book(&[("a", "1")])).await;
        offer(&world, "staff", 2, &book(&[("a", "2")])).await;
        device.set_maintenance(false).await.unwrap();
        eventually(|| !device.is_online()).await;
        stop(device).await;
        let [current, old] = files(folder.path()).try_into().unwrap();
        damage(&current);
        if !recovered {
            damage(&old);
        }

        let books = AddressBooks::new();
        let mut events = books.events();
        let device = start(&world, &books, Some(folder.path())).await;
        assert_eq!(next(&mut events).await, BookEvent::Damaged { book: id("staff"), recovered });
        match (books.read(&id("staff")).await, recovered) {
            (Ok(Some(copy)), true) => assert_eq!(copy.content, book(&[("a", "1")])),
            (Err(BookError::Damaged), false) => {}
            (other, _) => panic!("{other:?}"),
        }
        if !recovered {
            let refused = books.edit(&id("staff"), set("b", "1")).await;
            assert!(matches!(refused, Err(BookError::Damaged)), "{refused:?}");
        }
        *world.0.book.lock().unwrap() = Some(document("staff", 2, &book(&[("a", "2")])));
        device.set_maintenance(true).await.unwrap();
        assert_eq!(next(&mut events).await, BookEvent::Received { book: id("staff"), version: version(2) });
        assert_eq!(content(&books, "staff").await, book(&[("a", "2")]));
        assert_eq!(world.count("book"), 1);
        stop(device).await;
        let books = AddressBooks::new();
        let mut events = books.events();
        let _device = online(&world, &books, Some(folder.path())).await;
        assert_eq!(offer(&world, "x", 1, &Book::new()).await, has(1));
        assert_eq!(next(&mut events).await, BookEvent::Received { book: id("x"), version: version(1) });
    }
}

#[tokio::test(start_paused = true)]
async fn f31_a_book_of_a_later_sdk_is_left_alone() {
    let (world, folder, books) = (World::new(), tempfile::tempdir().unwrap(), AddressBooks::new());
    let device = online(&world, &books, Some(folder.path())).await;
    offer(&world, "staff", 1, &Book::new()).await;
    stop(device).await;
    let file = files(folder.path()).remove(0);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("relay-device-book 1 ", "relay-device-book 2 ", 1)).unwrap();
    let refused = builder(&world, &AddressBooks::new(), Some(folder.path())).start().await;
    let Err(StartError::State(error)) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("later version"), "{error}");
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn t44_t45_only_its_owner_can_read_a_book_and_its_name_is_no_path() {
    use std::os::unix::fs::PermissionsExt as _;
    let (world, folder, books) = (World::new(), tempfile::tempdir().unwrap(), AddressBooks::new());
    let _device = online(&world, &books, Some(folder.path())).await;
    for name in ["..a", "con", "Staff.book.old", &"x".repeat(64)] {
        assert_eq!(offer(&world, name, 1, &Book::new()).await, has(1));
        assert_eq!(offer(&world, &name.to_uppercase(), 2, &Book::new()).await, has(2));
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("books")), 0o700);
    let files = files(folder.path());
    assert_eq!(files.len(), 8);
    for file in files {
        assert_eq!(mode(&file), 0o600);
        let name = file.file_name().unwrap().to_str().unwrap();
        let digits = name.trim_end_matches(".old").strip_suffix(".book").unwrap();
        assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
}

/// A vendor's own place, whose disk can be full.
#[derive(Debug, Default)]
struct Flash {
    records: Mutex<HashMap<BookId, Vec<u8>>>,
    full: AtomicBool,
}

#[async_trait]
impl BookStore for Flash {
    async fn books(&self) -> io::Result<Vec<BookId>> {
        Ok(self.records.lock().unwrap().keys().cloned().collect())
    }

    async fn load(&self, book: &BookId) -> io::Result<Loaded> {
        let record = self.records.lock().unwrap().get(book).cloned();
        Ok(record.map_or(Loaded::Nothing, Loaded::Record))
    }

    async fn save(&self, book: &BookId, record: Vec<u8>) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.records.lock().unwrap().insert(book.clone(), record);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn f7_what_cannot_be_kept_is_not_said_to_be() {
    let (world, flash) = (World::new(), Arc::new(Flash::default()));
    let books = AddressBooks::kept_in(flash.clone());
    let mut events = books.events();
    let device = online(&world, &books, None).await;
    assert_eq!(offer(&world, "staff", 1, &book(&[("a", "1")])).await, has(1));
    flash.full.store(true, Ordering::SeqCst);
    assert_eq!(offer(&world, "staff", 2, &book(&[("a", "2")])).await.status.as_str(), "failed");
    assert!(matches!(books.edit(&id("staff"), set("b", "1")).await, Err(BookError::Store(_))));
    assert_eq!((content(&books, "staff").await, reports(&world).len()), (book(&[("a", "1")]), 0));
    flash.full.store(false, Ordering::SeqCst);
    assert_eq!(offer(&world, "staff", 2, &book(&[("a", "2")])).await, has(2));
    for number in [1, 2] {
        let received = BookEvent::Received { book: id("staff"), version: version(number) };
        assert_eq!(next(&mut events).await, received);
    }
    stop(device).await;

    // It is all there for the next device, and what is not a record of it is damage.
    flash.records.lock().unwrap().insert(id("torn"), b"{}".to_vec());
    let books = AddressBooks::kept_in(flash.clone());
    let mut events = books.events();
    let _device = online(&world, &books, None).await;
    assert_eq!(content(&books, "staff").await, book(&[("a", "2")]));
    assert_eq!(next(&mut events).await, BookEvent::Damaged { book: id("torn"), recovered: false });
    // The relay has none of that name.
    eventually(|| world.count("book") == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a5_books_are_one_devices_and_of_no_use_before_it_starts() {
    let (world, books) = (World::new(), AddressBooks::new());
    assert!(matches!(books.read(&id("staff")).await, Err(BookError::NotStarted)));
    assert!(matches!(books.edit(&id("staff"), set("a", "1")).await, Err(BookError::NotStarted)));
    let _device = online(&world, &books, None).await;
    let apps = world.0.registered.lock().unwrap().as_ref().unwrap().apps.clone();
    assert_eq!(apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), ["address"]);
    let twice = builder(&World::new(), &books, None).start().await;
    assert!(matches!(twice, Err(StartError::App { .. })), "{twice:?}");
    let own = device_sdk::App::new("ADDRESS", |_| async { Ok(()) });
    let both = builder(&World::new(), &AddressBooks::new(), None).app(own).start().await;
    assert!(matches!(both, Err(StartError::App { .. })), "{both:?}");
}
