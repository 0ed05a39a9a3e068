//! The SQLite store beyond what every store does: restarts, damage, one relay at a time.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use relay_core::{
    auth::{Principal, Secret},
    ids::{AccountId, DeviceId},
    store::{DeviceQuery, Membership, Registration, Store, StoreError},
};
use server_sdk::relay::{
    auth::Auth,
    store::{ADMINISTRATOR_KEY, DataFolder, FolderError, SqliteStore},
};

fn device(n: usize) -> DeviceId {
    DeviceId::new(&format!("dev-{n:04}")).unwrap()
}

fn registration(name: &str) -> Registration {
    let json = serde_json::json!({"name": name, "accounts": ["acme"], "capabilities": {"paper": ["A4"]}});
    Registration::from_json(json.to_string().as_bytes()).unwrap()
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(&DataFolder::open(path).unwrap()).await.unwrap()
}

#[tokio::test]
async fn p1_everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    let acme = AccountId::new("acme").unwrap();
    let (secret, token, key_file, record);
    {
        let data = DataFolder::open(&path).unwrap();
        let store = std::sync::Arc::new(SqliteStore::open(&data).await.unwrap());
        secret = store.secret("sids").await.unwrap();
        let auth = Auth::load(store.clone(), 10, |_, _| {}).await.unwrap();
        key_file = data.administrator_key(&auth).await.unwrap();
        let pin = auth.issue_pin(&device(1), &[]).await.unwrap();
        token = auth.enrol(&device(1), &pin.pin, [127, 0, 0, 1].into()).await.unwrap();
        auth.issue_pin(&device(2), &[]).await.unwrap();
        store.register(&device(1), &registration("Hall"), SystemTime::UNIX_EPOCH).await.unwrap();
        assert!(store.agree(&device(1), &acme, Membership::Account).await.unwrap());
        record = store.device(&device(1)).await.unwrap().unwrap();
    }
    let data = DataFolder::open(&path).unwrap();
    let store = std::sync::Arc::new(SqliteStore::open(&data).await.unwrap());
    assert_eq!(store.secret("sids").await.unwrap(), secret);
    assert_eq!(store.device(&device(1)).await.unwrap().unwrap(), record);
    let mut known = Vec::new();
    let auth = Auth::load(store, 10, |id, keepalive| known.push((id.clone(), keepalive))).await.unwrap();
    assert_eq!(known, [(device(1), None), (device(2), None)]);
    assert_eq!(auth.principal(&token), Some(Principal::Device(device(1))));
    let key = Secret::new(fs::read_to_string(&key_file).unwrap().trim());
    assert!(matches!(auth.principal(&key), Some(Principal::Administrator(_))));
    assert_eq!(data.administrator_key(&auth).await.unwrap(), key_file);
    assert_eq!(Secret::new(fs::read_to_string(&key_file).unwrap().trim()), key, "a key that works stays");
}

#[tokio::test]
async fn t44_the_folder_is_the_relays_alone_and_holds_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let data = DataFolder::open(&path).unwrap();
    let store = std::sync::Arc::new(SqliteStore::open(&data).await.unwrap());
    let auth = Auth::load(store.clone(), 10, |_, _| {}).await.unwrap();
    let key_file = data.administrator_key(&auth).await.unwrap();
    let pin = auth.issue_pin(&device(1), &[]).await.unwrap();
    let token = auth.enrol(&device(1), &pin.pin, [127, 0, 0, 1].into()).await.unwrap();
    let unspent = auth.issue_pin(&device(2), &[]).await.unwrap();
    let (_, key) = auth.new_key(Vec::new()).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let administrators = fs::read_to_string(&key_file).unwrap().trim().to_owned();
    for file in fs::read_dir(&path).unwrap().map(Result::unwrap) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        let bytes = fs::read(file.path()).unwrap();
        let holds = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        for secret in [token.expose(), key.expose(), pin.pin.expose(), unspent.pin.expose()] {
            assert!(!holds(secret), "{:?} has a secret", file.path());
        }
        assert_eq!(holds(&administrators), file.file_name() == ADMINISTRATOR_KEY);
    }
}

#[tokio::test]
async fn x1_an_administrators_key_that_was_lost_is_replaced_and_stops_working() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataFolder::open(folder.path()).unwrap();
    let store = std::sync::Arc::new(SqliteStore::open(&data).await.unwrap());
    let auth = Auth::load(store.clone(), 10, |_, _| {}).await.unwrap();
    let file = data.administrator_key(&auth).await.unwrap();
    let first = Secret::new(fs::read_to_string(&file).unwrap().trim());
    fs::remove_file(&file).unwrap();
    data.administrator_key(&auth).await.unwrap();
    let second = Secret::new(fs::read_to_string(&file).unwrap().trim());
    assert_eq!(auth.principal(&first), None);
    assert!(auth.principal(&second).is_some());
    assert_eq!(store.keys().await.unwrap().len(), 1);
}

#[tokio::test]
async fn f17_a_second_relay_on_one_folder_is_refused_until_the_first_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    let refused = DataFolder::open(folder.path()).unwrap_err();
    assert!(matches!(refused, FolderError::InUse { .. }));
    assert!(refused.to_string().contains("another relay"), "{refused}");
    // Another process, too.
    let second = Command::new(env!("CARGO_BIN_EXE_relay"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another relay"));
    drop(first);
    open(folder.path()).await;
}

#[tokio::test]
async fn f16_a_database_that_is_gone_while_its_folder_was_used_is_not_replaced_by_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    {
        let data = DataFolder::open(folder.path()).unwrap();
        let store = std::sync::Arc::new(SqliteStore::open(&data).await.unwrap());
        let auth = Auth::load(store, 10, |_, _| {}).await.unwrap();
        data.administrator_key(&auth).await.unwrap();
    }
    fs::remove_file(folder.path().join("relay.sqlite")).unwrap();
    let data = DataFolder::open(folder.path()).unwrap();
    let error = SqliteStore::open(&data).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("is gone"), "{error}");
    assert!(!folder.path().join("relay.sqlite").exists());
}

#[tokio::test]
async fn f16_after_random_damage_it_refuses_or_nothing_was_lost_or_changed() {
    const DEVICES: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let (whole, records) = {
        let store = open(folder.path()).await;
        let acme = AccountId::new("acme").unwrap();
        for n in 0..DEVICES {
            store
                .register(&device(n), &registration(&"x".repeat(200)), SystemTime::UNIX_EPOCH)
                .await
                .unwrap();
            assert!(store.agree(&device(n), &acme, Membership::Account).await.unwrap());
        }
        let records = store.devices(&DeviceQuery::new(), None, 1000).await.unwrap();
        drop(store);
        assert!(!folder.path().join("relay.sqlite-wal").exists(), "closed in order, the log is worked in");
        (fs::read(folder.path().join("relay.sqlite")).unwrap(), records)
    };
    // A fixed sequence (xorshift), so that a failure can be made again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let (mut refused, mut harmless) = (0, 0);
    for round in 0..400 {
        let mut damaged = whole.clone();
        match round % 4 {
            0 => damaged.truncate(random(whole.len())),
            1 | 2 => damaged[random(whole.len())] ^= 1 << random(8),
            _ => {
                let at = random(whole.len() - 64);
                damaged[at..at + 64].fill(0x5a);
            }
        }
        let path = folder.path().join(format!("round-{round}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("relay.sqlite"), &damaged).unwrap();
        let data = DataFolder::open(&path).unwrap();
        match SqliteStore::open(&data).await {
            Err(StoreError::Damaged { words, .. }) => {
                assert!(!words.is_empty());
                refused += 1;
            }
            Err(StoreError::Version { .. }) => refused += 1,
            Err(other) => panic!("round {round}: {other}"),
            Ok(store) => {
                let read = store.devices(&DeviceQuery::new(), None, 1000).await.unwrap();
                assert!(read == records, "round {round}: something changed, and nobody says so");
                harmless += 1;
            }
        }
        fs::remove_dir_all(&path).unwrap();
    }
    println!("400 damages: {refused} refused, {harmless} in what is not used");
    assert!(refused >= 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_changes_asked_for_at_once_are_all_made_and_reads_do_not_wait_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(folder.path()).await);
    let writing: Vec<_> = (0..500)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let registered =
                    store.register(&device(n), &registration("x"), SystemTime::now()).await.unwrap();
                // What was acknowledged is there for whoever asks next.
                assert!(store.device(&device(n)).await.unwrap().is_some());
                registered.first
            })
        })
        .collect();
    for one in writing {
        assert!(one.await.unwrap());
    }
    // A writer that cannot get on holds up nobody who reads.
    let blocker = rusqlite::Connection::open(folder.path().join("relay.sqlite")).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let late = {
        let store = store.clone();
        tokio::spawn(
            async move { store.register(&device(1), &registration("late"), SystemTime::now()).await },
        )
    };
    let read = tokio::time::timeout(Duration::from_secs(2), store.device(&device(1))).await.unwrap();
    assert_eq!(read.unwrap().unwrap().settings.name.as_deref(), Some("x"));
    assert!(!late.is_finished());
    blocker.execute_batch("ROLLBACK").unwrap();
    late.await.unwrap().unwrap();
    assert_eq!(store.device(&device(1)).await.unwrap().unwrap().settings.name.as_deref(), Some("late"));
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_a_change_that_cannot_be_written_is_an_error_and_the_next_one_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store.register(&device(1), &registration("before"), SystemTime::now()).await.unwrap();
    // Longer than the writer waits for the lock.
    let blocker = rusqlite::Connection::open(folder.path().join("relay.sqlite")).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.register(&device(1), &registration("lost"), SystemTime::now()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    blocker.execute_batch("ROLLBACK").unwrap();
    assert_eq!(store.device(&device(1)).await.unwrap().unwrap().settings.name.as_deref(), Some("before"));
    store.register(&device(1), &registration("after"), SystemTime::now()).await.unwrap();
    assert_eq!(store.device(&device(1)).await.unwrap().unwrap().settings.name.as_deref(), Some("after"));
}
