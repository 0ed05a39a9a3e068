use std::collections::{HashMap, VecDeque};

use futures_util::FutureExt as _;
use relay_core::{
    Body, Response,
    app::{ToDevice, ToRelay},
    book::{APP, Book},
    conformance::{Let, token},
    envelope::Envelope,
    ids::{AccountId, BookId},
    memory::{self, MemoryConnector},
    store::{App, Description, Membership, MemoryStore, Registration},
    transport::{ChannelOptions, CloseReason, ConnectOptions, Connector, EndReason, Full, Inbound, Started},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn id(n: usize) -> DeviceId {
    DeviceId::new(&format!("d{n:04}")).unwrap()
}

fn staff() -> BookKey {
    BookKey::new(AccountId::new("acme").unwrap(), BookId::new("staff").unwrap())
}

fn app() -> App {
    let json = serde_json::json!({"apps": [{"name": APP, "path": "/address", "protocol": "address"}]});
    let registration = Registration::from_json(json.to_string().as_bytes()).unwrap();
    registration.apps[0].clone()
}

fn entry(name: &str, value: &str) -> Book {
    let mut book = Book::new();
    book.set("email", name, value).unwrap();
    book
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("the condition comes to hold");
}

/// What all devices were given: device, version, content.
type Given = Arc<Mutex<Vec<(DeviceId, Version, Book)>>>;

struct Rig {
    relay: Relay,
    store: Arc<MemoryStore>,
    books: Books,
    connector: MemoryConnector,
    given: Given,
    /// How many deliveries a device says no to.
    unwilling: Arc<Mutex<HashMap<DeviceId, (usize, Response)>>>,
}

impl Rig {
    async fn start(devices: usize) -> Self {
        let store = Arc::new(MemoryStore::new());
        let relay = Relay::default();
        let (connector, listener) = memory::transport(Arc::new(Let));
        let serving = relay.clone();
        tokio::spawn(async move { serving.serve(Box::new(listener)).await });
        let books = Books::new(relay.clone(), store.clone());
        let rig = Self { relay, store, books, connector, given: Arc::default(), unwilling: Arc::default() };
        for n in 0..devices {
            rig.register(&id(n)).await;
        }
        tokio::spawn(rig.books.clone().run());
        rig
    }

    async fn register(&self, device: &DeviceId) {
        let acme = AccountId::new("acme").unwrap();
        let mut own = Description::new();
        own.apps.push(app());
        own.accounts.push(acme.clone());
        let now = SystemTime::now();
        self.store.register(device, &Registration::new(own).unwrap(), now).await.unwrap();
        assert!(self.store.agree(device, &acme, Membership::Account).await.unwrap());
        self.relay.know(device);
    }

    /// Connects a device, until what is given back is dropped.
    async fn connect(&self, device: &DeviceId) -> oneshot::Sender<()> {
        let deadline = (Instant::now() + PATIENCE).into_std();
        let options = ConnectOptions::new(device.clone(), token(), deadline);
        let mut session = self.connector.connect(options).await.unwrap();
        let (ears, mut heard) = mpsc::channel(64);
        let inbound = Arc::new(Ears(Mutex::new(Some(ears))));
        session.push.start(Started::new(session.id.clone(), session.resumed, inbound));
        let (stay, gone) = oneshot::channel();
        let (connector, given, unwilling) =
            (self.connector.clone(), self.given.clone(), self.unwilling.clone());
        let own = device.clone();
        let push = Arc::new(tokio::sync::Mutex::new(session.push));
        let pushing = push.clone();
        let listening = tokio::spawn(async move {
            while let Some(envelope) = heard.recv().await {
                let Envelope::Request { id, .. } = envelope else { continue };
                let refusal = unwilling.lock().unwrap().get_mut(&own).and_then(|(left, response)| {
                    *left = left.checked_sub(1)?;
                    Some(response.clone())
                });
                match refusal {
                    Some(response) => {
                        let answer = Envelope::Response { id, response, acknowledge: false };
                        pushing.lock().await.push(&mut VecDeque::from([answer])).await.unwrap();
                    }
                    None => take(&connector, &own, id, &given).await,
                }
            }
        });
        tokio::spawn(async move {
            let _ = gone.await;
            listening.abort();
            push.lock().await.close(CloseReason::Shutdown).await;
        });
        eventually(|| self.is_online(device)).await;
        stay
    }

    fn is_online(&self, device: &DeviceId) -> bool {
        self.books.inner.is_online(device)
    }

    async fn change(&self, base: Option<Version>, content: Book, by: Option<&DeviceId>) -> Changed {
        let edit = Edit { base, content, by: by.cloned() };
        self.books.change(&staff(), edit).await.unwrap()
    }

    /// Waits until nothing is left to do.
    async fn quiet(&self) {
        let inner = &self.books.inner;
        eventually(|| {
            let desk = inner.desk();
            let asked = inner.looks.available_permits() == LOOKS;
            asked && desk.books.is_empty() && desk.devices.is_empty() && desk.machine.is_idle()
        })
        .await;
    }

    fn given(&self, device: &DeviceId) -> Vec<Version> {
        let given = self.given.lock().unwrap();
        given.iter().filter(|(to, ..)| to == device).map(|(_, version, _)| *version).collect()
    }
}

/// Takes a book as a device does.
async fn take(
    connector: &MemoryConnector,
    device: &DeviceId,
    job: relay_core::ids::RequestId,
    given: &Given,
) {
    let deadline = (Instant::now() + PATIENCE).into_std();
    let options = ChannelOptions::new(device.clone(), token(), job, app(), deadline);
    let mut channel = connector.channel(options).await.unwrap();
    channel.sender.send(ToRelay::Credit { from: Some(0), bytes: 1 << 20 }).await.unwrap();
    let (mut header, mut data) = (None, Vec::new());
    let digest = loop {
        match channel.receiver.receive().await.unwrap().unwrap() {
            ToDevice::Header(element) => header = Some(element),
            ToDevice::Data(bytes) => data.extend_from_slice(&bytes),
            ToDevice::End(digest) => break digest,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(relay_core::app::Digest::of(&data), digest);
    let opened = Parcel::open(&header.unwrap(), &data).unwrap();
    assert_eq!(opened.book, Some(staff().book));
    let version = opened.version.unwrap();
    given.lock().unwrap().push((device.clone(), version, opened.content));
    let version = Some(version.to_string().into());
    channel.sender.send(ToRelay::Done { version }).await.unwrap();
    while let Ok(Some(_)) = channel.receiver.receive().await {}
}

#[derive(Debug)]
struct Ears(Mutex<Option<mpsc::Sender<Envelope>>>);

impl Inbound for Ears {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        match self.0.lock().unwrap().as_ref().map(|ears| ears.try_send(envelope)) {
            Some(Err(mpsc::error::TrySendError::Full(envelope))) => Err(Full(envelope)),
            _ => Ok(()),
        }
    }
    fn ended(&self, _: EndReason) {
        self.0.lock().unwrap().take();
    }
}

#[tokio::test]
async fn a5_a_thousand_devices_get_a_new_book_once_each_those_away_when_they_come_the_reporter_not_at_all() {
    const DEVICES: usize = 1_000;
    let rig = Rig::start(DEVICES).await;
    let mut here = Vec::new();
    for n in (0..DEVICES).filter(|n| n % 5 != 0) {
        here.push(rig.connect(&id(n)).await);
    }
    let reporter = id(1);
    let book = entry("Ann", "ann@acme.example");
    let changed = rig.change(None, book.clone(), Some(&reporter)).await;
    assert!(changed.created && !changed.merged);
    let version = changed.record.version;
    eventually(|| rig.given.lock().unwrap().len() >= 799).await;
    rig.quiet().await;
    let gets = |n: usize| usize::from(id(n) != reporter);
    for n in 0..DEVICES {
        assert_eq!(rig.given(&id(n)).len(), if n % 5 == 0 { 0 } else { gets(n) }, "device {n}");
    }

    for n in (0..DEVICES).filter(|n| n % 5 == 0) {
        here.push(rig.connect(&id(n)).await);
    }
    eventually(|| rig.given.lock().unwrap().len() >= 999).await;
    rig.quiet().await;
    for n in 0..DEVICES {
        assert_eq!(rig.given(&id(n)), vec![version; gets(n)], "device {n}");
    }
    assert!(rig.given.lock().unwrap().iter().all(|(_, _, content)| *content == book));
    assert!(rig.store.lacking_devices(&staff(), None, 10).await.unwrap().items.is_empty());

    // Going and coming brings it to nobody again: the next that they get is the next version.
    let returning: Vec<usize> = (0..DEVICES).filter(|n| n % 5 != 0).take(20).collect();
    here.drain(..20).for_each(drop);
    eventually(|| returning.iter().all(|n| !rig.is_online(&id(*n)))).await;
    for n in returning {
        here.push(rig.connect(&id(n)).await);
    }
    let next = rig.change(Some(version), entry("Bob", "bob@acme.example"), None).await.record.version;
    eventually(|| rig.given.lock().unwrap().len() >= 1_999).await;
    rig.quiet().await;
    for n in 0..DEVICES {
        let mut versions = vec![version; gets(n)];
        versions.push(next);
        assert_eq!(rig.given(&id(n)), versions, "device {n}");
    }
}

#[tokio::test]
async fn a5_a_reporter_whose_edit_was_merged_gets_what_came_of_it() {
    let rig = Rig::start(2).await;
    let _here = [rig.connect(&id(0)).await, rig.connect(&id(1)).await];
    let first = rig.change(None, entry("a", "1"), None).await.record.version;
    eventually(|| rig.given.lock().unwrap().len() == 2).await;
    rig.quiet().await;
    let mut one = entry("a", "1");
    one.set("email", "b", "2").unwrap();
    let second = rig.change(Some(first), one, Some(&id(0))).await;
    assert!(!second.merged);
    let mut other = entry("a", "1");
    other.set("email", "c", "3").unwrap();
    let third = rig.change(Some(first), other, Some(&id(1))).await;
    assert!(third.merged);
    rig.quiet().await;
    eventually(|| [0, 1].iter().all(|n| rig.given(&id(*n)).last() == Some(&third.record.version))).await;
    let given = rig.given.lock().unwrap();
    let (_, _, last) = given.last().unwrap();
    for (name, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        assert_eq!(last.get("email", name), Some(value));
    }
    assert!(!given.iter().any(|(to, version, _)| *to == id(0) && *version == second.record.version));
}

#[tokio::test]
async fn f33_what_many_devices_report_at_once_is_all_kept() {
    let rig = Rig::start(50).await;
    let first = rig.change(None, entry("all", "0"), None).await.record.version;
    let edits = (0..50).map(|n| {
        let mut content = entry("all", "0");
        content.set("email", &format!("of-{n}"), "x").unwrap();
        let (books, by) = (rig.books.clone(), Some(id(n)));
        tokio::spawn(async move { books.change(&staff(), Edit { base: Some(first), content, by }).await })
    });
    let edits: Vec<_> = edits.collect();
    let mut merged = 0;
    for edit in edits {
        // The version that they all were made from is 50 versions old for the last.
        match edit.await.unwrap() {
            Ok(changed) => merged += usize::from(changed.merged),
            Err(error) => assert!(matches!(error, ChangeError::Forgotten), "{error}"),
        }
    }
    let record = rig.books.read(&staff()).await.unwrap().unwrap();
    let content = Book::from_content(&record.content).unwrap();
    assert_eq!(content.len(), 1 + 1 + merged, "the first, the one that needed no merge, and the merged");
    assert!(merged >= 31);
}

#[tokio::test]
async fn f33_a_conflict_changes_nothing_and_a_service_that_is_late_is_told_so() {
    let rig = Rig::start(1).await;
    let first = rig.change(None, entry("a", "1"), None).await.record.version;
    let second = rig.change(Some(first), entry("a", "2"), None).await.record.version;
    let try_change = async |base, content, by: Option<DeviceId>| {
        rig.books.change(&staff(), Edit { base, content, by }).await.unwrap_err()
    };
    let conflict = try_change(Some(first), entry("a", "3"), Some(id(0))).await;
    assert!(matches!(conflict, ChangeError::Conflict(Conflict::Entries { count: 1, .. })), "{conflict}");
    let late = try_change(Some(first), entry("b", "1"), None).await;
    assert!(matches!(late, ChangeError::Stale), "{late}");
    let never = Version::new(5).unwrap();
    let unknown = try_change(Some(never), entry("b", "1"), Some(id(0))).await;
    assert!(matches!(unknown, ChangeError::Forgotten), "{unknown}");
    assert!(matches!(try_change(None, Book::new(), None).await, ChangeError::Exists));
    assert_eq!(rig.books.read(&staff()).await.unwrap().unwrap().version, second);
    // What changes nothing is no new version.
    assert_eq!(rig.change(Some(second), entry("a", "2"), None).await.record.version, second);
}

#[tokio::test]
async fn a5_a_large_book_comes_as_data() {
    let rig = Rig::start(1).await;
    let mut large = Book::new();
    for n in 0..5_000 {
        large.set("email", &format!("user-{n}"), "somebody.with.a.long.name@somewhere.example").unwrap();
    }
    let version = rig.change(None, large.clone(), None).await.record.version;
    let _here = rig.connect(&id(0)).await;
    eventually(|| rig.given(&id(0)) == [version]).await;
    assert_eq!(rig.given.lock().unwrap()[0].2, large);
    rig.quiet().await;
    assert!(rig.books.inner.desk().parcels.is_empty(), "kept beyond its use");
}

#[tokio::test(start_paused = true)]
async fn a5_a_device_that_does_not_say_it_has_it_is_asked_again_later() {
    let rig = Rig::start(1).await;
    let words = |words: &str| Response::new(Status::Ok, Some(Body::text(words.to_owned())));
    let jam = Response::error(Status::DeviceError, "no room on the disk");
    for (times, response) in [(1, Response::new(Status::Ok, None)), (2, words("7")), (3, jam)] {
        rig.unwilling.lock().unwrap().insert(id(0), (times, response));
        let before = rig.given(&id(0)).len();
        let base = rig.books.read(&staff()).await.unwrap().map(|record| record.version);
        let version = rig.change(base, entry("a", &times.to_string()), None).await.record.version;
        let start = Instant::now();
        let here = rig.connect(&id(0)).await;
        eventually(|| rig.given(&id(0)).len() > before).await;
        assert_eq!(rig.given(&id(0)).last(), Some(&version));
        // 5 s, then 10, then 20.
        let least = Duration::from_secs(5 * ((1 << times) - 1));
        assert!(start.elapsed() >= least, "{times}: {:?}", start.elapsed());
        rig.quiet().await;
        drop(here);
        eventually(|| !rig.is_online(&id(0))).await;
    }
}

#[tokio::test]
async fn a5_a_device_that_shares_a_book_from_now_on_gets_it_at_once() {
    let rig = Rig::start(0).await;
    let version = rig.change(None, entry("a", "1"), None).await.record.version;
    rig.relay.know(&id(0));
    let _here = rig.connect(&id(0)).await;
    rig.quiet().await;
    assert!(rig.given(&id(0)).is_empty());
    rig.register(&id(0)).await;
    rig.books.look(&id(0));
    eventually(|| rig.given(&id(0)) == [version]).await;
    rig.quiet().await;
}

#[tokio::test]
async fn a5_a_change_whose_caller_goes_is_handed_out_all_the_same() {
    let rig = Rig::start(1).await;
    let _here = rig.connect(&id(0)).await;
    let edit = Edit { base: None, content: entry("a", "1"), by: None };
    // Begun, and then dropped.
    let gone = rig.books.change(&staff(), edit).now_or_never();
    assert!(gone.is_none(), "it was done at once");
    eventually(|| rig.given(&id(0)).len() == 1).await;
}
