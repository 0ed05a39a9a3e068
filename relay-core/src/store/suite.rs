//! The behaviour of a [`Store`] as tests, for whoever writes one. Not API-stable.
//!
//! `relay_core::store_suite!(async { (Arc::new(MyStore::new()), guard) });` makes a test of each case; what the block
//! gives is a fresh, empty store and whatever must live as long as it.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests, whose names are what they say")]

mod books;

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

pub use self::books::*;
use super::*;
use crate::auth::ScramVerifier;

/// One `#[tokio::test]` for each case of the suite, on a fresh store each.
#[macro_export]
macro_rules! store_suite {
    ($fresh:expr) => {
        $crate::store_suite!(@each $fresh;
            t1_secrets_are_made_once_and_differ,
            p1_a_registration_is_stored_whole_and_a_second_replaces_it,
            p1_a_claimed_account_counts_once_its_side_agreed,
            p1_an_agreement_ends_with_the_claim_or_when_it_is_withdrawn,
            p5_what_an_administrator_set_wins,
            p3_devices_are_found_by_each_field,
            b15_long_lists_come_in_pages,
            t41_wildcards_quotes_and_control_characters_are_plain_characters,
            x1_a_pin_is_spent_on_use,
            x1_a_second_enrolment_replaces_the_credential,
            b11_the_fifth_wrong_pin_voids_it_for_good,
            b11_a_pin_expires,
            t11_parallel_tries_share_one_counter,
            x2_keys_are_kept_replaced_and_removed,
            ids_are_equal_whatever_their_case_and_keep_their_first_spelling,
            a5_a_book_is_stored_version_after_version,
            f33_of_several_changes_of_one_version_one_is_stored,
            f33_old_versions_are_remembered_up_to_a_bound,
            b14_an_account_has_so_many_books_and_no_more,
            a5_devices_of_the_account_with_the_app_lack_a_book_until_they_have_it,
            a5_what_a_device_may_have_lost_it_gets_again,
        );
    };
    (@each $fresh:expr; $($case:ident),* $(,)?) => { $(
        #[tokio::test]
        async fn $case() {
            let (store, _guard) = $fresh.await;
            $crate::store::suite::$case(&*store).await;
        }
    )* };
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn device(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

fn account(id: &str) -> AccountId {
    AccountId::new(id).unwrap()
}

fn registration(value: Value) -> Registration {
    Registration::from_json(value.to_string().as_bytes()).unwrap()
}

fn credential(seed: u8) -> Credential {
    let verifier = |length: usize| ScramVerifier {
        iterations: 4096,
        salt: vec![seed; 16].into(),
        stored_key: vec![seed; length].into(),
        server_key: vec![seed.wrapping_add(1); length].into(),
    };
    Credential { token_hash: [seed; 32], sha256: verifier(32), sha1: verifier(20) }
}

fn pin(id: &str, hash: u8) -> Pin {
    let parameters = PinParameters { salt: [9; 16], iterations: 4096 };
    Pin { device: device(id), parameters, hash: [hash; 32], expires: at(86_400) }
}

fn attempt(id: &str, hash: u8) -> PinAttempt {
    PinAttempt { device: device(id), salt: [9; 16], hash: [hash; 32] }
}

async fn found(store: &dyn Store, query: &DeviceQuery) -> Vec<String> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let page = store.devices(query, after.as_ref(), MAX_PAGE).await.unwrap();
        ids.extend(page.items.into_iter().map(|record| record.id.as_str().to_owned()));
        after = page.next;
        if after.is_none() {
            return ids;
        }
    }
}

pub async fn t1_secrets_are_made_once_and_differ(store: &dyn Store) {
    let one = store.secret("one").await.unwrap();
    assert_eq!(store.secret("one").await.unwrap(), one);
    assert_ne!(store.secret("two").await.unwrap(), one);
    assert_ne!(one.expose(), &[0; 32]);
}

pub async fn p1_a_registration_is_stored_whole_and_a_second_replaces_it(store: &dyn Store) {
    let id = device("printer-1");
    assert_eq!(store.device(&id).await.unwrap(), None);
    let full = registration(json!({
        "name": "Copy room", "model": "MX-1", "mac": "02:00:5e:10:00:01", "location": "2nd floor", "keepalive": 1.5,
        "capabilities": {"color": true, "paper": ["A4"], "deep": {"er": [1, 2.5, null, "ü\u{0}"]}},
        "formats": ["application/pdf", "image/urf"],
        "apps": [{"name": "print", "path": "/print", "port": 8443, "protocol": "print"}],
        "accounts": ["acme"], "site": "hq",
    }));
    let registered = store.register(&id, &full, at(1)).await.unwrap();
    assert!(registered.first);
    let record = store.device(&id).await.unwrap().unwrap();
    assert_eq!(record, registered.record);
    assert_eq!(record.settings.name.as_deref(), Some("Copy room"));
    assert_eq!(record.settings.model.as_deref(), Some("MX-1"));
    assert_eq!(record.settings.mac.as_deref(), Some("02:00:5e:10:00:01"));
    assert_eq!(record.settings.location.as_deref(), Some("2nd floor"));
    assert_eq!(record.keepalive, Some(Duration::from_millis(1500)));
    assert_eq!(record.capabilities, full.capabilities);
    assert_eq!(record.formats, full.formats);
    assert_eq!(record.apps, full.apps);
    assert_eq!(record.site, full.site);
    assert_eq!(record.unconfirmed_accounts, full.accounts);
    assert_eq!((record.known_since, record.registered_at), (at(1), Some(at(1))));

    let again = store.register(&id, &registration(json!({"name": "Hall"})), at(2)).await.unwrap();
    assert!(!again.first);
    assert_eq!(
        again.record.settings,
        DeviceSettings { name: Some("Hall".into()), ..DeviceSettings::default() }
    );
    assert!(again.record.apps.is_empty() && again.record.capabilities.is_empty());
    assert_eq!((again.record.known_since, again.record.registered_at), (at(1), Some(at(2))));
    let known = store.known(None, 10).await.unwrap();
    assert_eq!(known.items, [KnownDevice::new(id, None, None)]);
}

pub async fn p1_a_claimed_account_counts_once_its_side_agreed(store: &dyn Store) {
    let (id, acme, other) = (device("d"), account("acme"), account("other"));
    assert!(!store.agree(&id, &acme, Membership::Account).await.unwrap(), "an unknown device was taken");
    assert!(!store.agree(&id, &acme, Membership::Administrator).await.unwrap());
    let record =
        store.register(&id, &registration(json!({"accounts": ["Acme"]})), at(1)).await.unwrap().record;
    assert_eq!((record.accounts, record.unconfirmed_accounts), (vec![], vec![acme.clone()]));
    let by_acme = DeviceQuery { account: Some(acme.clone()), ..DeviceQuery::new() };
    assert!(found(store, &by_acme).await.is_empty());

    // T47: an account accepts who claims it; it takes nobody else.
    assert!(!store.agree(&id, &other, Membership::Account).await.unwrap());
    assert!(store.agree(&id, &acme, Membership::Account).await.unwrap());
    let record = store.device(&id).await.unwrap().unwrap();
    assert_eq!((record.accounts, record.unconfirmed_accounts), (vec![acme], vec![]));
    assert_eq!(found(store, &by_acme).await, ["d"]);

    assert!(store.agree(&id, &other, Membership::Administrator).await.unwrap());
    assert!(store.device(&id).await.unwrap().unwrap().accounts.contains(&other));
}

pub async fn p1_an_agreement_ends_with_the_claim_or_when_it_is_withdrawn(store: &dyn Store) {
    let (id, one, two) = (device("d"), account("one"), account("two"));
    let claims = registration(json!({"accounts": ["one", "two"]}));
    store.register(&id, &claims, at(1)).await.unwrap();
    assert!(store.agree(&id, &one, Membership::Account).await.unwrap());
    assert!(store.agree(&id, &two, Membership::Administrator).await.unwrap());
    assert!(store.agree(&id, &two, Membership::Account).await.unwrap());
    let gone = store.register(&id, &registration(json!({})), at(2)).await.unwrap().record;
    assert_eq!(gone.accounts, std::slice::from_ref(&two), "the administrator's word does not need a claim");
    let back = store.register(&id, &claims, at(3)).await.unwrap().record;
    assert_eq!((back.accounts, back.unconfirmed_accounts), (vec![two.clone()], vec![one.clone()]));

    assert!(store.withdraw(&id, &two).await.unwrap());
    assert!(!store.withdraw(&id, &two).await.unwrap());
    assert!(!store.withdraw(&device("nobody"), &two).await.unwrap());
    let record = store.device(&id).await.unwrap().unwrap();
    assert_eq!((record.accounts, record.unconfirmed_accounts), (vec![], vec![one, two]));
}

pub async fn p5_what_an_administrator_set_wins(store: &dyn Store) {
    let id = device("d");
    let set = DeviceSettings {
        name: Some("Reception".into()),
        location: Some("Hall".into()),
        ..DeviceSettings::default()
    };
    let prepared = Prepared::new(id.clone()).with_settings(set.clone()).with_account(account("acme"));
    store.prepare(&[prepared, Prepared::new(device("e"))], at(1)).await.unwrap();
    let before = store.device(&id).await.unwrap().unwrap();
    assert_eq!((before.settings, before.registered_at, before.known_since), (set.clone(), None, at(1)));
    assert_eq!(before.accounts, [account("acme")]);

    let own = registration(json!({"name": "Mine", "model": "MX-1", "location": "Cellar", "mac": "m"}));
    let registered = store.register(&id, &own, at(2)).await.unwrap();
    assert!(registered.first, "being prepared is not having registered");
    let DeviceSettings { name, model, mac, location } = registered.record.settings;
    assert_eq!((name.as_deref(), location.as_deref()), (Some("Reception"), Some("Hall")));
    assert_eq!((model.as_deref(), mac.as_deref()), (Some("MX-1"), Some("m")));
    assert_eq!(registered.record.set_by_administrator, set);

    let later = DeviceSettings { model: Some("MX-2".into()), ..DeviceSettings::default() };
    store.prepare(&[Prepared::new(id.clone()).with_settings(later)], at(3)).await.unwrap();
    let after = store.device(&id).await.unwrap().unwrap();
    assert_eq!(after.settings.model.as_deref(), Some("MX-2"));
    assert_eq!(after.settings.name.as_deref(), Some("Reception"), "what is not said again stays");
    assert_eq!(after.accounts, [account("acme")]);
    let by_name = |name: &str| DeviceQuery { name: Some(name.into()), ..DeviceQuery::new() };
    assert_eq!(found(store, &by_name("reception")).await, ["d"]);
    assert!(found(store, &by_name("Mine")).await.is_empty());
}

pub async fn p3_devices_are_found_by_each_field(store: &dyn Store) {
    for (id, name, model, location, color) in [
        ("a", "Büro", "MX-1", "Hall", true),
        ("b", "BÜRO", "MX-2", "hall", false),
        ("c", "Desk", "mx-1", "Hall 2", true),
    ] {
        let value = json!({"name": name, "model": model, "location": location, "accounts": [id],
            "capabilities": {"color": color, "paper": ["A4", id]}});
        store.register(&device(id), &registration(value), at(1)).await.unwrap();
        assert!(store.agree(&device(id), &account(id), Membership::Account).await.unwrap());
    }
    let all = DeviceQuery::new();
    assert_eq!(found(store, &all).await, ["a", "b", "c"]);
    let name = DeviceQuery { name: Some("büro".into()), ..all.clone() };
    assert_eq!(found(store, &name).await, ["a", "b"]);
    let model = DeviceQuery { model: Some("mx-1".into()), ..all.clone() };
    assert_eq!(found(store, &model).await, ["a", "c"]);
    let location = DeviceQuery { location: Some("hall".into()), ..all.clone() };
    assert_eq!(found(store, &location).await, ["a", "b"]);
    let color = DeviceQuery { capability: Some("color".into()), ..all.clone() };
    assert_eq!(found(store, &color).await, ["a", "c"]);
    let paper = DeviceQuery { capability: Some("paper:B".into()), ..all.clone() };
    assert_eq!(found(store, &paper).await, ["b"]);
    let account = DeviceQuery { account: Some(account("C")), ..all.clone() };
    assert_eq!(found(store, &account).await, ["c"]);
    let together = DeviceQuery { location: Some("HALL".into()), ..color };
    assert_eq!(found(store, &together).await, ["a"]);
    let nothing = DeviceQuery { name: Some(String::new()), ..all };
    assert!(found(store, &nothing).await.is_empty());
}

pub async fn b15_long_lists_come_in_pages(store: &dyn Store) {
    let prepared: Vec<Prepared> = (0..1234).map(|n| Prepared::new(device(&format!("Dev-{n:04}")))).collect();
    store.prepare(&prepared, at(1)).await.unwrap();
    let first = store.devices(&DeviceQuery::new(), None, usize::MAX).await.unwrap();
    assert!(first.items.len() <= MAX_PAGE);
    assert_eq!(store.devices(&DeviceQuery::new(), None, 0).await.unwrap().items.len(), 1);
    let all = found(store, &DeviceQuery::new()).await;
    assert_eq!(all.len(), 1234);
    assert!(all.is_sorted());
    let rest = store.devices(&DeviceQuery::new(), Some(&device("dev-1231")), 10).await.unwrap();
    assert_eq!(rest.items.len(), 2);
    assert_eq!(rest.next, None);
    let beyond = store.devices(&DeviceQuery::new(), Some(&device("zzz")), 10).await.unwrap();
    assert_eq!(beyond, Page::new(Vec::new(), None));

    let (mut known, mut after) = (HashSet::new(), None);
    loop {
        let page = store.known(after.as_ref(), 100).await.unwrap();
        assert!(page.items.len() <= 100);
        known.extend(page.items.into_iter().map(|known| known.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(known.len(), 1234);
}

pub async fn t41_wildcards_quotes_and_control_characters_are_plain_characters(store: &dyn Store) {
    let hostile = [
        "%",
        "_",
        "*",
        "?",
        "[a-z]",
        "'",
        "\"",
        "' OR 1=1 --",
        "a\u{0}b",
        "a",
        "\\",
        "\n\u{1b}[2J",
        "\u{202e}x",
        ";",
    ];
    for (n, text) in hostile.iter().enumerate() {
        let value = json!({"name": text, "location": text, "model": text, "capabilities": {*text: text}});
        store.register(&device(&format!("d{n:02}")), &registration(value), at(1)).await.unwrap();
    }
    for (n, text) in hostile.iter().enumerate() {
        let expected = [format!("d{n:02}")];
        let text = Some((*text).to_owned());
        for query in [
            DeviceQuery { name: text.clone(), ..DeviceQuery::new() },
            DeviceQuery { model: text.clone(), ..DeviceQuery::new() },
            DeviceQuery { location: text.clone(), ..DeviceQuery::new() },
            DeviceQuery { capability: text.clone(), ..DeviceQuery::new() },
        ] {
            assert_eq!(found(store, &query).await, expected, "{query:?}");
        }
    }
    let stored = store.device(&device("d08")).await.unwrap().unwrap();
    assert_eq!(stored.settings.name.as_deref(), Some("a\u{0}b"));
}

pub async fn x1_a_pin_is_spent_on_use(store: &dyn Store) {
    store.put_pin(&pin("Dev", 1), at(0)).await.unwrap();
    assert!(store.device(&device("dev")).await.unwrap().is_some(), "an administrator named it");
    assert_eq!(store.pin_parameters(&device("dev")).await.unwrap().unwrap().salt, [9; 16]);
    assert_eq!(store.pin_parameters(&device("nobody")).await.unwrap(), None);
    assert_eq!(store.credential(&device("dev")).await.unwrap(), None);

    let refused = |outcome: Enrolment| assert_eq!(outcome, Enrolment::Refused);
    refused(store.enrol(&attempt("nobody", 1), &credential(1), at(1)).await.unwrap());
    refused(store.enrol(&attempt("dev", 2), &credential(1), at(1)).await.unwrap());
    assert_eq!(store.credential(&device("dev")).await.unwrap(), None);
    assert_eq!(store.device(&device("nobody")).await.unwrap(), None, "a try made a device known");
    let outcome = store.enrol(&attempt("dev", 1), &credential(1), at(1)).await.unwrap();
    assert_eq!(outcome, Enrolment::Enrolled);
    assert_eq!(store.credential(&device("DEV")).await.unwrap(), Some(credential(1)));
    refused(store.enrol(&attempt("dev", 1), &credential(2), at(1)).await.unwrap());
    assert_eq!(store.pin_parameters(&device("dev")).await.unwrap(), None);
    let known = store.known(None, 10).await.unwrap().items;
    assert_eq!(known, [KnownDevice::new(device("dev"), None, Some([1; 32]))]);
}

pub async fn x1_a_second_enrolment_replaces_the_credential(store: &dyn Store) {
    for seed in [1, 2] {
        store.put_pin(&pin("d", seed), at(0)).await.unwrap();
        let before = store.credential(&device("d")).await.unwrap();
        store.enrol(&attempt("d", 77), &credential(77), at(1)).await.unwrap();
        assert_eq!(
            store.credential(&device("d")).await.unwrap(),
            before,
            "a wrong PIN touched the credential"
        );
        assert_eq!(
            store.enrol(&attempt("d", seed), &credential(seed), at(1)).await.unwrap(),
            Enrolment::Enrolled
        );
        assert_eq!(store.credential(&device("d")).await.unwrap(), Some(credential(seed)));
    }
}

pub async fn b11_the_fifth_wrong_pin_voids_it_for_good(store: &dyn Store) {
    for (wrong, outcome) in [(4, Enrolment::Enrolled), (5, Enrolment::Refused)] {
        store.put_pin(&pin("d", 1), at(0)).await.unwrap();
        let another_salt = PinAttempt { salt: [8; 16], ..attempt("d", 1) };
        assert_eq!(store.enrol(&another_salt, &credential(1), at(1)).await.unwrap(), Enrolment::Refused);
        for _ in 0..wrong {
            assert_eq!(
                store.enrol(&attempt("d", 2), &credential(1), at(1)).await.unwrap(),
                Enrolment::Refused
            );
        }
        for _ in 0..2 {
            let after = store.enrol(&attempt("d", 1), &credential(1), at(1)).await.unwrap();
            assert_eq!(after, outcome, "after {wrong} wrong ones");
            if outcome == Enrolment::Enrolled {
                break;
            }
        }
    }
    assert_eq!(
        store.credential(&device("d")).await.unwrap(),
        Some(credential(1)),
        "voiding hits the PIN alone"
    );
    store.put_pin(&pin("d", 3), at(0)).await.unwrap();
    assert_eq!(store.enrol(&attempt("d", 3), &credential(3), at(1)).await.unwrap(), Enrolment::Enrolled);
}

pub async fn b11_a_pin_expires(store: &dyn Store) {
    store.put_pin(&pin("d", 1), at(0)).await.unwrap();
    assert_eq!(store.enrol(&attempt("d", 1), &credential(1), at(86_400)).await.unwrap(), Enrolment::Refused);
    assert_eq!(store.enrol(&attempt("d", 1), &credential(1), at(86_399)).await.unwrap(), Enrolment::Enrolled);
}

pub async fn t11_parallel_tries_share_one_counter(store: &dyn Store) {
    store.put_pin(&pin("d", 200), at(0)).await.unwrap();
    let tries: Vec<PinAttempt> = (0..100).map(|hash| attempt("d", hash)).collect();
    let made = credential(1);
    let mut running: Vec<_> = tries.iter().map(|one| store.enrol(one, &made, at(1))).collect();
    // Polled in turn, so that all are under way at once.
    let mut done = 0;
    std::future::poll_fn(|context| {
        running.retain_mut(|one| match one.as_mut().poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(outcome) => {
                assert_eq!(outcome.unwrap(), Enrolment::Refused);
                done += 1;
                false
            }
        });
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(done, 100);
    assert_eq!(store.enrol(&attempt("d", 200), &made, at(1)).await.unwrap(), Enrolment::Refused);
}

pub async fn x2_keys_are_kept_replaced_and_removed(store: &dyn Store) {
    let key = |id: &str, hash: u8, scopes: &[&str]| {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        ServiceKey::new(KeyId::new(id).unwrap(), [hash; 32], scopes, at(1))
    };
    assert!(store.keys().await.unwrap().is_empty());
    let (one, two) = (key("b", 1, &[]), key("a", 2, &["device:*", "admin"]).with_expiry(at(9)));
    store.put_key(&one).await.unwrap();
    store.put_key(&two).await.unwrap();
    assert_eq!(store.keys().await.unwrap(), [two.clone(), one]);
    let again = key("B", 3, &["account:acme:GET"]);
    store.put_key(&again).await.unwrap();
    assert_eq!(store.keys().await.unwrap(), [two.clone(), again]);
    assert!(store.remove_key(&KeyId::new("b").unwrap()).await.unwrap());
    assert!(!store.remove_key(&KeyId::new("b").unwrap()).await.unwrap());
    assert_eq!(store.keys().await.unwrap(), [two]);
}

pub async fn ids_are_equal_whatever_their_case_and_keep_their_first_spelling(store: &dyn Store) {
    store.prepare(&[Prepared::new(device("PRN-1"))], at(1)).await.unwrap();
    store
        .register(&device("prn-1"), &registration(json!({"accounts": ["Acme", "ACME"]})), at(2))
        .await
        .unwrap();
    assert!(store.agree(&device("Prn-1"), &account("acme"), Membership::Account).await.unwrap());
    let record = store.device(&device("pRN-1")).await.unwrap().unwrap();
    assert_eq!(record.id.as_str(), "PRN-1");
    assert_eq!(record.accounts, [account("ACME")]);
    let page = store
        .devices(&DeviceQuery { account: Some(account("aCmE")), ..DeviceQuery::new() }, None, 9)
        .await
        .unwrap();
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].id.as_str(), "PRN-1");
}
