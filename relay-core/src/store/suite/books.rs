//! Address books.

use super::*;
use crate::{
    book::{MAX_BOOKS, kept},
    ids::BookId,
};

fn key(account_id: &str, book: &str) -> BookKey {
    BookKey::new(account(account_id), BookId::new(book).unwrap())
}

/// Registers `id` for `accounts`, which agree.
async fn shares(store: &dyn Store, id: &str, accounts: &[&str], app: &str) {
    let apps = json!([{"name": "print", "path": "/print", "protocol": "print"},
        {"name": app, "path": "/address", "protocol": "address"}]);
    let own = registration(json!({"accounts": accounts, "apps": apps}));
    store.register(&device(id), &own, at(0)).await.unwrap();
    for of in accounts {
        assert!(store.agree(&device(id), &account(of), Membership::Account).await.unwrap());
    }
}

async fn put(store: &dyn Store, key: &BookKey, follows: Option<Version>, content: &str) -> Version {
    match store.put_book(&BookPut::new(key.clone(), follows, content.into()), at(1)).await.unwrap() {
        BookStored::Stored(version) => version,
        other => panic!("{other:?}"),
    }
}

async fn lacking(store: &dyn Store, key: &BookKey) -> Vec<String> {
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = store.lacking_devices(key, after.as_ref(), 2).await.unwrap();
        assert!(page.items.len() <= 2);
        ids.extend(page.items.into_iter().map(|id| id.as_str().to_owned()));
        after = page.next;
        if after.is_none() {
            return ids;
        }
    }
}

pub async fn a5_a_book_is_stored_version_after_version(store: &dyn Store) {
    let staff = key("Acme", "Staff");
    assert_eq!(store.book(&staff).await.unwrap(), None);
    let first = put(store, &staff, None, "<a/>").await;
    assert_eq!(first, Version::after(None, at(1)));
    let second = put(store, &staff, Some(first), "<b/>").await;
    assert!(second > first);
    let record = store.book(&key("ACME", "staff")).await.unwrap().unwrap();
    assert_eq!((record.version, &*record.content), (second, "<b/>"));
    assert_eq!((record.key.account.as_str(), record.key.book.as_str()), ("Acme", "Staff"));
    assert_eq!(store.book_content(&staff, first).await.unwrap().as_deref(), Some("<a/>"));
    assert_eq!(store.book_content(&staff, second).await.unwrap().as_deref(), Some("<b/>"));
    let never = Version::new(second.number() + 1).unwrap();
    assert_eq!(store.book_content(&staff, never).await.unwrap(), None);
    assert_eq!(store.book(&key("acme", "other")).await.unwrap(), None);
    assert_eq!(store.book(&key("other", "staff")).await.unwrap(), None);
}

pub async fn f33_of_several_changes_of_one_version_one_is_stored(store: &dyn Store) {
    let staff = key("acme", "staff");
    let stale = async |follows| {
        let change = BookPut::new(staff.clone(), follows, "<x/>".into()).held_by(device("d"));
        assert_eq!(store.put_book(&change, at(9)).await.unwrap(), BookStored::Stale);
    };
    stale(Some(Version::new(1).unwrap())).await;
    let first = put(store, &staff, None, "<a/>").await;
    stale(None).await;
    let second = put(store, &staff, Some(first), "<b/>").await;
    stale(Some(first)).await;
    stale(None).await;
    assert_eq!(store.book(&staff).await.unwrap().unwrap().version, second);

    let changes: Vec<BookPut> =
        (0..20).map(|n| BookPut::new(staff.clone(), Some(second), format!("<n{n}/>").into())).collect();
    let mut running: Vec<_> = changes.iter().map(|change| store.put_book(change, at(2))).collect();
    let mut stored = 0;
    // Polled in turn, so that all are under way at once.
    std::future::poll_fn(|context| {
        running.retain_mut(|one| match one.as_mut().poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(outcome) => {
                stored += usize::from(matches!(outcome.unwrap(), BookStored::Stored(_)));
                false
            }
        });
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(stored, 1);
}

pub async fn f33_old_versions_are_remembered_up_to_a_bound(store: &dyn Store) {
    let staff = key("acme", "staff");
    let content = format!("<a><b>{}</b></a>", "ü".repeat(100_000));
    for (content, count) in [("<a/>", 40), (&*content, 30)] {
        let mut follows = store.book(&staff).await.unwrap().map(|book| book.version);
        let mut versions = Vec::new();
        for _ in 0..count {
            follows = Some(put(store, &staff, follows, content).await);
            versions.extend(follows);
        }
        let kept = 1 + kept(std::iter::repeat(content.len()));
        assert!(kept < count);
        for (age, version) in versions.into_iter().rev().enumerate() {
            let remembered = store.book_content(&staff, version).await.unwrap();
            assert_eq!(remembered.as_deref(), (age < kept).then_some(content), "{age} ago");
        }
    }
}

pub async fn b14_an_account_has_so_many_books_and_no_more(store: &dyn Store) {
    for n in 0..MAX_BOOKS {
        put(store, &key("acme", &format!("b{n}")), None, "").await;
    }
    let another = BookPut::new(key("ACME", "another"), None, "".into());
    assert_eq!(store.put_book(&another, at(1)).await.unwrap(), BookStored::Full);
    assert_eq!(store.book(&another.key).await.unwrap(), None);
    put(store, &key("other", "another"), None, "").await;
    let version = store.book(&key("acme", "b0")).await.unwrap().unwrap().version;
    put(store, &key("acme", "b0"), Some(version), "<a/>").await;
}

pub async fn a5_devices_of_the_account_with_the_app_lack_a_book_until_they_have_it(store: &dyn Store) {
    for id in ["A", "b", "c", "d", "e"] {
        shares(store, id, &["acme"], "Address").await;
    }
    shares(store, "no-app", &["acme"], "addresses").await;
    shares(store, "elsewhere", &["other"], "address").await;
    let claims = registration(
        json!({"accounts": ["acme"], "apps": [{"name": "address", "path": "/a", "protocol": "a"}]}),
    );
    store.register(&device("unconfirmed"), &claims, at(0)).await.unwrap();
    let staff = key("ACME", "staff");
    assert!(lacking(store, &staff).await.is_empty(), "there is no such book");
    assert!(store.lacking_books(&[device("a")]).await.unwrap().is_empty(), "there is no book at all");

    // The reporter has it at once.
    let change = BookPut::new(staff.clone(), None, "<a/>".into()).held_by(device("B"));
    let BookStored::Stored(first) = store.put_book(&change, at(1)).await.unwrap() else {
        panic!("not stored")
    };
    assert_eq!(lacking(store, &staff).await, ["A", "c", "d", "e"]);
    let ids = ["b", "no-app", "a", "elsewhere", "unconfirmed", "nobody"].map(device);
    assert_eq!(store.lacking_books(&ids).await.unwrap(), [(device("a"), staff.clone(), first)]);
    assert!(store.lacking_books(&[]).await.unwrap().is_empty());

    assert!(store.hold_book(&key("acme", "STAFF"), &device("c"), first).await.unwrap());
    assert!(!store.hold_book(&staff, &device("elsewhere"), first).await.unwrap());
    assert!(!store.hold_book(&staff, &device("nobody"), first).await.unwrap());
    assert_eq!(lacking(store, &staff).await, ["A", "d", "e"]);

    let second = put(store, &staff, Some(first), "<b/>").await;
    assert_eq!(lacking(store, &staff).await, ["A", "b", "c", "d", "e"]);
    assert!(store.hold_book(&staff, &device("c"), second).await.unwrap());
    // Word of an older one that came late.
    assert!(store.hold_book(&staff, &device("c"), first).await.unwrap());
    assert_eq!(lacking(store, &staff).await, ["A", "b", "d", "e"]);
    let fax = key("acme", "fax");
    let version = put(store, &fax, None, "").await;
    let (a, c) = (device("a"), device("c"));
    let both = [(a.clone(), fax.clone(), version), (a.clone(), staff, second), (c.clone(), fax, version)];
    assert_eq!(store.lacking_books(&[a, c]).await.unwrap(), both);
}

pub async fn a5_what_a_device_may_have_lost_it_gets_again(store: &dyn Store) {
    let staff = key("acme", "staff");
    let version = put(store, &staff, None, "<a/>").await;
    let id = device("d");
    let holds = async || {
        shares(store, "d", &["acme"], "address").await;
        assert!(store.hold_book(&staff, &id, version).await.unwrap());
        assert!(lacking(store, &staff).await.is_empty());
    };
    holds().await;
    shares(store, "d", &["acme"], "address").await;
    assert!(lacking(store, &staff).await.is_empty(), "registering again changes nothing");

    shares(store, "d", &["acme"], "print-only").await;
    assert!(lacking(store, &staff).await.is_empty(), "it shares no book");
    shares(store, "d", &["acme"], "address").await;
    assert_eq!(lacking(store, &staff).await, ["d"]);

    holds().await;
    store.register(&id, &registration(json!({})), at(3)).await.unwrap();
    shares(store, "d", &["acme"], "address").await;
    assert_eq!(lacking(store, &staff).await, ["d"]);

    holds().await;
    assert!(store.withdraw(&id, &account("acme")).await.unwrap());
    assert!(lacking(store, &staff).await.is_empty());
    shares(store, "d", &["acme"], "address").await;
    assert_eq!(lacking(store, &staff).await, ["d"]);

    holds().await;
    store.put_pin(&pin("d", 1), at(0)).await.unwrap();
    assert_eq!(store.enrol(&attempt("d", 2), &credential(1), at(1)).await.unwrap(), Enrolment::Refused);
    assert!(lacking(store, &staff).await.is_empty());
    assert_eq!(store.enrol(&attempt("d", 1), &credential(1), at(1)).await.unwrap(), Enrolment::Enrolled);
    assert_eq!(lacking(store, &staff).await, ["d"]);
}
