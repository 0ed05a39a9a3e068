//! Address books through the client, against a relay on loopback.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod http_support;

use std::time::Duration;

use http_support::Rig;
use server_sdk::{
    AddressBook, Client, ErrorKind,
    book::{Book, InvalidBook, MAX_VALUE},
};

fn client(rig: &Rig, key: &str) -> Client {
    Client::new(&format!("http://{}", rig.address), key).unwrap()
}

async fn add(book: &AddressBook, name: &str) {
    book.edit(|content| content.set("email", name, "x@acme.example").map(drop)).await.unwrap();
}

#[tokio::test]
async fn a5_a_book_is_made_read_and_replaced_by_its_version() {
    let rig = Rig::start().await;
    let book = client(&rig, &rig.key(&["account:acme"]).await).address_book("acme", "staff").unwrap();
    let missing = book.read().await.unwrap_err();
    assert_eq!((missing.kind(), missing.code()), (ErrorKind::Unknown, Some("unknown-book")));
    assert!(missing.is_safe_to_retry());

    let mut content = Book::new();
    content.set("email", "Ann", "ann@acme.example").unwrap();
    let first = book.create(&content).await.unwrap();
    assert_eq!(book.create(&content).await.unwrap_err().kind(), ErrorKind::Stale);
    let read = book.read().await.unwrap();
    assert_eq!((read.version, &read.content), (first, &content));
    assert_eq!(book.read_unless(first).await.unwrap(), None);

    content.set("email", "Bob", "").unwrap();
    let second = book.replace(first, &content).await.unwrap();
    assert_eq!(book.read_unless(first).await.unwrap().unwrap().version, second);
    let late = book.replace(first, &Book::new()).await.unwrap_err();
    assert_eq!((late.kind(), late.status()), (ErrorKind::Stale, Some(412)));
    assert_eq!(book.read().await.unwrap().content, content);

    assert_eq!(client(&rig, "none").address_book("a b", "c").unwrap_err().kind(), ErrorKind::Invalid);
    let other = client(&rig, &rig.key(&["account:other"]).await).address_book("acme", "staff").unwrap();
    assert_eq!(other.read().await.unwrap_err().kind(), ErrorKind::Unknown);
}

#[tokio::test]
async fn f33_edits_made_at_the_same_time_are_all_kept() {
    let rig = Rig::start().await;
    let book = client(&rig, &rig.key(&[]).await).address_book("acme", "staff").unwrap();
    let edits = (0..8).map(|n| {
        let book = book.clone();
        tokio::spawn(async move { add(&book, &format!("user-{n}")).await })
    });
    for edit in edits.collect::<Vec<_>>() {
        edit.await.unwrap();
    }
    assert_eq!(book.read().await.unwrap().content.len(), 8);
}

#[tokio::test]
async fn a5_an_edit_that_cannot_be_made_sends_nothing() {
    let rig = Rig::start().await;
    let book = client(&rig, &rig.key(&[]).await).address_book("acme", "staff").unwrap();
    add(&book, "Ann").await;
    let before = book.read().await.unwrap();
    let error = book
        .edit(|content| content.set("email", "Bob", &"x".repeat(MAX_VALUE + 1)).map(drop))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(std::error::Error::source(&error).unwrap().is::<InvalidBook>());
    // Nothing changed is nothing sent.
    let same = book.edit(|_| Ok::<_, InvalidBook>(())).await.unwrap();
    assert_eq!(same, before);
    let mut large = Book::new();
    for n in 0..1100 {
        large.set("email", &format!("u{n}"), &"x".repeat(1000)).unwrap();
    }
    assert_eq!(book.replace(before.version, &large).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(book.read().await.unwrap(), before);
}

#[tokio::test]
async fn a5_who_watches_a_book_sees_each_version_that_stays() {
    let rig = Rig::start().await;
    let book = client(&rig, &rig.key(&[]).await).address_book("acme", "staff").unwrap();
    let mut watch = book.clone().watch(Duration::from_millis(10));
    assert_eq!(watch.next().await.unwrap_err().kind(), ErrorKind::Unknown);
    for count in 1..4 {
        add(&book, &format!("u{count}")).await;
        assert_eq!(watch.next().await.unwrap().content.len(), count);
    }
}
