//! SIGKILL while address books are changed: an ETag that was given out stays good.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod cli_support;
mod http_support;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use cli_support::Process;
use http_support::eventually;
use server_sdk::{
    AddressBook, ErrorKind,
    book::{Book, Version},
};

/// What was sent and acknowledged of one book: versions, and the number in each.
#[derive(Debug, Default)]
struct Told {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    version: AtomicU64,
}

fn numbered(number: u64) -> Book {
    let mut book = Book::new();
    book.set("email", "number", &number.to_string()).unwrap();
    book
}

/// Changes a book again and again, until the relay is gone.
async fn change(book: AddressBook, told: Arc<Told>) {
    let mut current = book.read().await.ok().map(|read| read.version);
    loop {
        let number = told.sent.fetch_add(1, SeqCst) + 1;
        let content = numbered(number);
        let put = match current {
            Some(version) => book.replace(version, &content).await,
            None => book.create(&content).await,
        };
        match put {
            Ok(version) => {
                told.version.store(version.number(), SeqCst);
                told.acknowledged.store(number, SeqCst);
                current = Some(version);
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Unreachable), "{error:?}");
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_a5_an_etag_that_was_given_out_survives_sigkill_in_mid_commit() {
    const BOOKS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let all: Vec<Arc<Told>> = (0..BOOKS).map(|_| Arc::default()).collect();
    for _ in 0..4 {
        let relay = Process::start(&data);
        let client = relay.client();
        let book = |n: usize| client.address_book("acme", format!("book-{n}")).unwrap();
        for (n, told) in all.iter().enumerate().filter(|(_, told)| told.acknowledged.load(SeqCst) > 0) {
            let now = book(n).read().await.unwrap();
            let number: u64 = now.content.get("email", "number").unwrap().parse().unwrap();
            let acknowledged = told.acknowledged.load(SeqCst);
            assert!((acknowledged..=told.sent.load(SeqCst)).contains(&number), "{n}: {number} of {told:?}");
            let version = Version::new(told.version.load(SeqCst)).unwrap();
            assert!(now.version >= version, "{n}: {} after {version}", now.version);
            assert_eq!(now.version == version, number == acknowledged, "{n}: one version, one content");
        }
        let before: u64 = all.iter().map(|told| told.acknowledged.load(SeqCst)).sum();
        let changing: Vec<_> =
            all.iter().enumerate().map(|(n, told)| tokio::spawn(change(book(n), told.clone()))).collect();
        let done = || all.iter().map(|told| told.acknowledged.load(SeqCst)).sum::<u64>();
        eventually(|| done() >= before + 100 && all.iter().all(|told| told.acknowledged.load(SeqCst) > 0))
            .await;
        relay.kill();
        for one in changing {
            one.await.unwrap();
        }
    }
}
