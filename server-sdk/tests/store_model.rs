//! The SQLite store against the one in memory: any sequence of calls gives the same answers, and so does a restart.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use proptest::{collection::vec, option, prelude::*, sample::select};
use relay_core::{
    auth::ScramVerifier,
    book::{BookKey, Version},
    ids::{AccountId, AppName, BookId, DeviceId, KeyId},
    store::{
        App, BookPut, Credential, Description, DeviceQuery, DeviceSettings, Membership, MemoryStore, Pin,
        PinAttempt, PinParameters, Prepared, Registration, ServiceKey, Store,
    },
};
use server_sdk::relay::store::{DataFolder, SqliteStore};

#[derive(Debug, Clone)]
enum Step {
    Prepare(Vec<(DeviceId, DeviceSettings, Vec<AccountId>)>),
    Register(DeviceId, Description),
    Agree(DeviceId, AccountId, Membership),
    Withdraw(DeviceId, AccountId),
    PutPin(DeviceId, u8, u64),
    Enrol(DeviceId, u8, u8),
    PutKey(KeyId, Vec<String>, Option<u64>),
    RemoveKey(KeyId),
    Find(DeviceQuery, Option<DeviceId>, usize),
    /// Of the book's current version, or of one that is not.
    PutBook(BookKey, bool, Option<DeviceId>),
    /// The current version, or one before it.
    HoldBook(BookKey, DeviceId, bool),
    Lacking(BookKey, DeviceId, usize),
    Restart,
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn id() -> impl Strategy<Value = DeviceId> {
    select(vec!["a", "A", "b", "B-1", "b-1", "b.1", "b_1", "c"]).prop_map(|id| DeviceId::new(id).unwrap())
}

fn account() -> impl Strategy<Value = AccountId> {
    select(vec!["x", "X", "y", "z"]).prop_map(|id| AccountId::new(id).unwrap())
}

fn key() -> impl Strategy<Value = KeyId> {
    select(vec!["k", "K", "l"]).prop_map(|id| KeyId::new(id).unwrap())
}

fn book() -> impl Strategy<Value = BookKey> {
    (account(), select(vec!["p", "P", "q"]))
        .prop_map(|(account, book)| BookKey::new(account, BookId::new(book).unwrap()))
}

/// Few texts, so that they meet; some of them odd, so that they would not if one were taken for a pattern.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(vec!["a", "A", "ä", "Ä", "%", "_", "a%", "'", "\"", "a\0", "\0", "ß", "ẞ", "İ", "*", "\u{1b}[2J", "--", "K"])
            .prop_map(str::to_owned),
        1 => any::<String>().prop_map(|text| text.chars().take(20).collect()).prop_filter("not empty", |text: &String| !text.is_empty()),
    ]
}

fn settings() -> impl Strategy<Value = DeviceSettings> {
    (option::of(words()), option::of(words()), option::of(words()), option::of(words()))
        .prop_map(|(name, model, mac, location)| DeviceSettings { name, model, mac, location })
}

fn description() -> impl Strategy<Value = Description> {
    let capabilities = proptest::collection::btree_map(words(), option::of(words()), 0..4);
    let apps = vec(select(vec!["address", "Address", "print"]), 0..2);
    let app =
        |name| App { name: AppName::new(name).unwrap(), path: "/a".into(), port: None, protocol: "a".into() };
    (settings(), option::of(1..3600_u64), capabilities, vec(words(), 0..3), apps, vec(account(), 0..4))
        .prop_map(move |(settings, keepalive, capabilities, formats, apps, accounts)| Description {
            name: settings.name,
            model: settings.model,
            mac: settings.mac,
            location: settings.location,
            keepalive: keepalive.map(Duration::from_secs),
            capabilities: capabilities.into_iter().map(|(name, value)| (name, value.into())).collect(),
            formats,
            apps: apps.into_iter().map(app).collect(),
            accounts,
            site: None,
        })
}

fn query() -> impl Strategy<Value = DeviceQuery> {
    (
        option::weighted(0.3, account()),
        option::weighted(0.3, words()),
        option::weighted(0.2, words()),
        option::weighted(0.2, words()),
        option::weighted(0.2, words()),
    )
        .prop_map(|(account, name, model, location, capability)| {
            let mut query = DeviceQuery::new();
            query.account = account;
            query.name = name;
            query.model = model;
            query.location = location;
            query.capability = capability;
            query
        })
}

fn step() -> impl Strategy<Value = Step> {
    let membership = select(vec![Membership::Account, Membership::Administrator]);
    prop_oneof![
        2 => vec((id(), settings(), vec(account(), 0..3)), 1..4).prop_map(Step::Prepare),
        4 => (id(), description()).prop_map(|(id, own)| Step::Register(id, own)),
        3 => (id(), account(), membership).prop_map(|(id, account, by)| Step::Agree(id, account, by)),
        1 => (id(), account()).prop_map(|(id, account)| Step::Withdraw(id, account)),
        2 => (id(), 0..2_u8, 0..100_u64).prop_map(|(id, pin, expires)| Step::PutPin(id, pin, expires)),
        6 => (id(), 0..2_u8, 0..2_u8).prop_map(|(id, pin, salt)| Step::Enrol(id, pin, salt)),
        1 => (key(), vec(words(), 0..3), option::of(0..9_u64)).prop_map(|(id, scopes, expires)| Step::PutKey(id, scopes, expires)),
        1 => key().prop_map(Step::RemoveKey),
        4 => (query(), option::of(id()), 0..5_usize).prop_map(|(query, after, limit)| Step::Find(query, after, limit)),
        4 => (book(), any::<bool>(), option::of(id())).prop_map(|(book, current, by)| Step::PutBook(book, current, by)),
        4 => (book(), id(), any::<bool>()).prop_map(|(book, id, current)| Step::HoldBook(book, id, current)),
        4 => (book(), id(), 0..4_usize).prop_map(|(book, id, limit)| Step::Lacking(book, id, limit)),
        1 => Just(Step::Restart),
    ]
}

/// What a store answers, as text that two stores can be compared by.
async fn take(store: &dyn Store, step: &Step, now: u64) -> String {
    let salt = |salt: u8| [salt; 16];
    match step {
        Step::Prepare(devices) => {
            let prepared: Vec<Prepared> = devices
                .iter()
                .map(|(id, settings, accounts)| {
                    let prepared = Prepared::new(id.clone()).with_settings(settings.clone());
                    accounts.iter().cloned().fold(prepared, Prepared::with_account)
                })
                .collect();
            store.prepare(&prepared, at(now)).await.unwrap();
            String::new()
        }
        Step::Register(id, own) => {
            let registration = Registration::new(own.clone()).unwrap();
            format!("{:?}", store.register(id, &registration, at(now)).await.unwrap())
        }
        Step::Agree(id, account, by) => store.agree(id, account, *by).await.unwrap().to_string(),
        Step::Withdraw(id, account) => store.withdraw(id, account).await.unwrap().to_string(),
        Step::PutPin(id, pin, expires) => {
            let parameters = PinParameters { salt: salt(0), iterations: 7 };
            let pin = Pin { device: id.clone(), parameters, hash: [*pin; 32], expires: at(now + expires) };
            store.put_pin(&pin, at(now)).await.unwrap();
            format!("{:?}", store.pin_parameters(id).await.unwrap())
        }
        Step::Enrol(id, pin, with) => {
            // Mostly the salt that PINs have.
            let attempt = PinAttempt {
                device: id.clone(),
                salt: salt(with * u8::from(now.is_multiple_of(5))),
                hash: [*pin; 32],
            };
            let verifier = ScramVerifier {
                iterations: 7,
                salt: [1].into(),
                stored_key: now.to_le_bytes().into(),
                server_key: [].into(),
            };
            let mut token_hash = [0; 32];
            token_hash[..8].copy_from_slice(&now.to_le_bytes());
            let credential = Credential { token_hash, sha256: verifier.clone(), sha1: verifier };
            let outcome = store.enrol(&attempt, &credential, at(now)).await.unwrap();
            let kept =
                store.credential(id).await.unwrap().map(|kept| (kept.token_hash, kept.sha1.stored_key));
            format!("{outcome:?} {kept:?} {:?}", store.pin_parameters(id).await.unwrap())
        }
        Step::PutKey(id, scopes, expires) => {
            let key =
                ServiceKey::new(id.clone(), [u8::try_from(now % 256).unwrap(); 32], scopes.clone(), at(now));
            let key = expires.map_or(key.clone(), |expires| key.with_expiry(at(expires)));
            store.put_key(&key).await.unwrap();
            String::new()
        }
        Step::RemoveKey(id) => store.remove_key(id).await.unwrap().to_string(),
        // Pages may be cut differently; joined, they are the same list.
        Step::Find(query, after, limit) => {
            let (mut found, mut after) = (Vec::new(), after.clone());
            loop {
                let page = store.devices(query, after.as_ref(), *limit).await.unwrap();
                assert!(page.items.len() <= (*limit).max(1));
                found.extend(page.items);
                after = page.next;
                if after.is_none() {
                    return format!("{found:?}");
                }
            }
        }
        Step::PutBook(key, current, by) => {
            let before = store.book(key).await.unwrap();
            let follows = before.as_ref().map(|book| book.version).filter(|_| *current);
            let mut put = BookPut::new(key.clone(), follows, format!("<n>{now}</n>").into());
            put.holder.clone_from(by);
            let stored = store.put_book(&put, at(now)).await.unwrap();
            let old = match follows {
                Some(version) => store.book_content(key, version).await.unwrap(),
                None => None,
            };
            format!("{before:?} {stored:?} {old:?} {:?}", store.book(key).await.unwrap())
        }
        Step::HoldBook(key, id, current) => {
            let Some(book) = store.book(key).await.unwrap() else { return String::new() };
            let number = if *current { book.version.number() } else { 1 };
            let held = store.hold_book(key, id, Version::new(number).unwrap()).await;
            held.unwrap().to_string()
        }
        Step::Lacking(key, id, limit) => {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = store.lacking_devices(key, after.as_ref(), *limit).await.unwrap();
                assert!(page.items.len() <= (*limit).max(1));
                found.extend(page.items);
                after = page.next;
                if after.is_none() {
                    return format!(
                        "{found:?} {:?}",
                        store.lacking_books(std::slice::from_ref(id)).await.unwrap()
                    );
                }
            }
        }
        Step::Restart => String::new(),
    }
}

async fn whole(store: &dyn Store) -> String {
    let devices = store.devices(&DeviceQuery::new(), None, 1000).await.unwrap();
    let known = store.known(None, 1000).await.unwrap();
    let keys = store.keys().await.unwrap();
    let hashes: Vec<_> = keys.iter().map(|key| key.hash).collect();
    format!("{devices:#?} {known:#?} {keys:#?} {hashes:?}")
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(&DataFolder::open(path).unwrap()).await.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn t41_p5_a5_the_store_on_disk_answers_as_the_one_in_memory_does(steps in vec(step(), 1..90)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let compared: Result<(), TestCaseError> = runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let model = MemoryStore::new();
            let mut store = open(folder.path()).await;
            for (now, step) in (1_000_000..).zip(&steps) {
                if matches!(step, Step::Restart) {
                    drop(store);
                    store = open(folder.path()).await;
                }
                prop_assert_eq!(take(&store, step, now).await, take(&model, step, now).await, "{:?}", step);
            }
            prop_assert_eq!(whole(&store).await, whole(&model).await);
            Ok(())
        });
        compared?;
    }
}
