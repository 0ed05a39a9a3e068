use std::collections::HashSet;

use relay_core::store::{MemoryStore, Registration};

use super::*;

async fn fresh() -> (Arc<MemoryStore>, Auth) {
    let store = Arc::new(MemoryStore::new());
    let auth = Auth::load(store.clone(), 10, |_, _| {}).await.unwrap();
    (store, auth)
}

fn device(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

fn source(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

#[tokio::test]
async fn x1_a_pin_gives_a_token_once_and_the_token_is_the_device() {
    let (store, auth) = fresh().await;
    let issued = auth.issue_pin(&device("Dev"), &[AccountId::new("acme").unwrap()]).await.unwrap();
    assert!(issued.pin.expose().len() >= 8 && issued.pin.expose().bytes().all(|b| b.is_ascii_digit()));
    let token = auth.enrol(&device("dev"), &issued.pin, source(1)).await.unwrap();
    assert_eq!(auth.principal(&token), Some(Principal::Device(device("dev"))));
    let again = auth.enrol(&device("dev"), &issued.pin, source(1)).await;
    assert!(matches!(again, Err(EnrolError::Refused)));
    assert_eq!(store.device(&device("dev")).await.unwrap().unwrap().accounts.len(), 1);

    let own = Credentials::Device { device: device("dev"), token: token.clone() };
    assert_eq!(auth.authenticate(&own).await, Ok(Principal::Device(device("dev"))));
    let foreign = Credentials::Device { device: device("other"), token: token.clone() };
    assert_eq!(auth.authenticate(&foreign).await, Err(AuthError::Rejected), "T8");

    let mut known = Vec::new();
    let restarted = Auth::load(store, 10, |id, _| known.push(id.clone())).await.unwrap();
    assert_eq!(restarted.principal(&token), Some(Principal::Device(device("dev"))));
    assert_eq!(known, [device("dev")]);
}

#[tokio::test]
async fn x1_a_second_enrolment_ends_the_first_token() {
    let (_, auth) = fresh().await;
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let issued = auth.issue_pin(&device("d"), &[]).await.unwrap();
        tokens.push(auth.enrol(&device("d"), &issued.pin, source(1)).await.unwrap());
    }
    assert_eq!(auth.principal(&tokens[0]), None);
    assert!(auth.principal(&tokens[1]).is_some());
    assert_eq!(auth.inner.read().holders.len(), 1);
}

#[tokio::test]
async fn t10_unknown_devices_look_like_known_ones_with_a_wrong_pin() {
    let (_, auth) = fresh().await;
    auth.issue_pin(&device("known"), &[]).await.unwrap();
    let wrong = Secret::new("no digits");
    let known = auth.enrol(&device("known"), &wrong, source(1)).await.unwrap_err();
    let unknown = auth.enrol(&device("unknown"), &wrong, source(1)).await.unwrap_err();
    assert_eq!(format!("{known:?}"), format!("{unknown:?}"));

    let issued = auth.issue_pin(&device("known"), &[]).await.unwrap();
    auth.enrol(&device("known"), &issued.pin, source(1)).await.unwrap();
    for hash in [ScramHash::Sha256, ScramHash::Sha1] {
        let known = auth.verifier(&device("known"), hash).await.unwrap();
        let dummy = auth.verifier(&device("unknown"), hash).await.unwrap();
        assert_eq!(
            auth.verifier(&device("UNKNOWN"), hash).await.unwrap(),
            dummy,
            "the same each time, in any case"
        );
        assert_ne!(auth.verifier(&device("unknown2"), hash).await.unwrap().salt, dummy.salt);
        assert_eq!(
            (known.iterations, known.salt.len(), known.stored_key.len(), known.server_key.len()),
            (dummy.iterations, dummy.salt.len(), dummy.stored_key.len(), dummy.server_key.len())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn b11_the_eleventh_failure_of_a_source_in_a_minute_is_turned_away_before_any_work() {
    let (_, auth) = fresh().await;
    let issued = auth.issue_pin(&device("d"), &[]).await.unwrap();
    for n in 0..10 {
        let id = device(&format!("x{n}"));
        assert!(matches!(auth.enrol(&id, &Secret::new("1"), source(1)).await, Err(EnrolError::Refused)));
    }
    let Err(EnrolError::TooMany { retry_after }) = auth.enrol(&device("d"), &issued.pin, source(1)).await
    else {
        panic!("an eleventh try was looked at");
    };
    assert!(!retry_after.is_zero() && retry_after <= Duration::from_secs(60));
    auth.enrol(&device("d"), &issued.pin, source(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn t11_parallel_tries_void_the_pin_and_find_nothing() {
    let store = Arc::new(MemoryStore::new());
    let auth = Auth::load(store.clone(), 1_000_000, |_, _| {}).await.unwrap();
    let issued = auth.issue_pin(&device("d"), &[]).await.unwrap();
    let tries: Vec<_> = (0..100)
        .map(|n| {
            let auth = auth.clone();
            tokio::spawn(async move {
                match auth.enrol(&device("d"), &Secret::new(format!("{n:09}")), source(1)).await {
                    Err(EnrolError::Refused) => 1,
                    Err(EnrolError::Busy { .. }) => 0,
                    other => panic!("{other:?}"),
                }
            })
        })
        .collect();
    let mut refused = 0;
    for one in tries {
        refused += one.await.unwrap();
    }
    assert!(refused >= 5, "{refused}");
    let right = auth.enrol(&device("d"), &issued.pin, source(2)).await;
    assert!(matches!(right, Err(EnrolError::Refused)));
    // A new start does not give new tries.
    let restarted = Auth::load(store, 10, |_, _| {}).await.unwrap();
    let right = restarted.enrol(&device("d"), &issued.pin, source(2)).await;
    assert!(matches!(right, Err(EnrolError::Refused)));
}

#[tokio::test]
async fn x2_outside_a_scope_a_device_does_not_exist_and_within_it_methods_count() {
    let (store, auth) = fresh().await;
    let registration = Registration::from_json(br#"{"accounts":["acme"]}"#).unwrap();
    store.register(&device("d"), &registration, SystemTime::now()).await.unwrap();
    let (by_account, _) = auth.new_key(vec!["account:acme:GET".into()]).await.unwrap();
    let (by_device, _) = auth.new_key(vec!["device:d*:GET,list".into()]).await.unwrap();
    let (all, _) = auth.new_key(Vec::new()).await.unwrap();
    let (admin, secret) = auth.new_key(vec!["admin".into()]).await.unwrap();
    let [by_account, by_device, all] = [by_account, by_device, all].map(Principal::Service);
    assert_eq!(auth.principal(&secret), Some(Principal::Administrator(admin.clone())));
    let admin = Principal::Administrator(admin);
    let (get, set) = (Method::get(), Method::set());

    let judge = async |principal: &Principal, id: &str, method: &Method| match auth
        .authorize(principal, &device(id), Action::Method(method))
        .await
    {
        Ok(()) => 200,
        Err(Denied::Forbidden) => 403,
        Err(Denied::UnknownDevice) => 404,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(judge(&by_account, "d", &get).await, 404, "a claim alone is no membership");
    let acme = AccountId::new("acme").unwrap();
    assert!(store.agree(&device("d"), &acme, Membership::Account).await.unwrap());
    assert_eq!(judge(&by_account, "d", &get).await, 200);
    assert_eq!(judge(&by_account, "d", &set).await, 403);
    assert_eq!(judge(&by_account, "nobody", &get).await, 404);
    assert_eq!(judge(&by_device, "D", &get).await, 200);
    assert_eq!(judge(&by_device, "d", &set).await, 403);
    assert_eq!(judge(&by_device, "e", &get).await, 404);
    assert_eq!(judge(&all, "e", &set).await, 200);
    assert_eq!(judge(&admin, "e", &set).await, 200);
    assert_eq!(judge(&Principal::Device(device("d")), "d", &get).await, 403, "T8");

    let record = store.device(&device("d")).await.unwrap().unwrap();
    assert!(auth.allows(&by_device, &record, Action::List));
    assert!(!auth.allows(&by_account, &record, Action::List));
    assert!(!auth.allows(&Principal::Device(device("d")), &record, Action::List));
    assert_eq!(auth.speaks_for(&by_account, &acme), None);
    assert_eq!(auth.speaks_for(&all, &acme), Some(Membership::Account));
    assert_eq!(auth.speaks_for(&admin, &acme), Some(Membership::Administrator));
    assert_eq!(auth.speaks_for(&Principal::Device(device("d")), &acme), None);
}

#[tokio::test]
async fn x2_a_revoked_or_expired_key_is_nobody() {
    let (store, auth) = fresh().await;
    let (id, key) = auth.new_key(vec!["device:*".into()]).await.unwrap();
    assert_eq!(auth.principal(&key), Some(Principal::Service(id.clone())));
    assert!(auth.revoke_key(&id).await.unwrap());
    assert!(!auth.revoke_key(&id).await.unwrap());
    assert_eq!(auth.principal(&key), None);
    let gone = auth.authorize(&Principal::Service(id), &device("d"), Action::List).await;
    assert!(matches!(gone, Err(Denied::Forbidden)));
    let (admin, _) = auth.new_key(vec!["admin".into()]).await.unwrap();
    assert!(auth.revoke_key(&admin).await.unwrap());
    let gone = auth.authorize(&Principal::Administrator(admin), &device("d"), Action::List).await;
    assert!(matches!(gone, Err(Denied::Forbidden)));

    let secret = Secret::random();
    let expired =
        ServiceKey::new(KeyId::new("old").unwrap(), sha256(&secret), Vec::new(), SystemTime::UNIX_EPOCH)
            .with_expiry(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    store.put_key(&expired).await.unwrap();
    let auth = Auth::load(store, 10, |_, _| {}).await.unwrap();
    assert_eq!(auth.principal(&secret), None);
    assert_eq!(auth.keys().len(), 1);
    assert!(matches!(auth.new_key(vec!["everything".into()]).await, Err(NewKeyError::Scope(_))));
}

#[tokio::test]
async fn x2_a_stored_scope_that_cannot_be_read_stops_the_start() {
    let (store, _) = fresh().await;
    let odd =
        ServiceKey::new(KeyId::new("k").unwrap(), [1; 32], vec!["queue:*".into()], SystemTime::UNIX_EPOCH);
    store.put_key(&odd).await.unwrap();
    assert!(matches!(Auth::load(store, 10, |_, _| {}).await, Err(StoreError::Damaged { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn t13_at_most_two_hash_at_once_and_the_rest_is_bounded() {
    let (_, auth) = fresh().await;
    let running = Arc::new(std::sync::Mutex::new((0usize, 0usize)));
    let works = (0..400).map(|_| {
        let (auth, running) = (auth.clone(), running.clone());
        tokio::spawn(async move {
            let work = move || {
                let mut count = running.lock().unwrap();
                count.0 += 1;
                count.1 = count.1.max(count.0);
                drop(count);
                std::thread::yield_now();
                running.lock().unwrap().0 -= 1;
            };
            auth.inner.enrolment.hash(work).await.is_ok()
        })
    });
    let works: Vec<_> = works.collect();
    let mut outcomes = HashSet::new();
    for work in works {
        outcomes.insert(work.await.unwrap());
    }
    let most = running.lock().unwrap().1;
    assert!((1..=2).contains(&most), "{most} at once");
    assert!(outcomes.contains(&true));
}
