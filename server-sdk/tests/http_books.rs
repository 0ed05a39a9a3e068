//! Address books over HTTP: reading, changing, who may, and every way in which it says no.
#![cfg(feature = "relay")]

mod http_support;

use http_support::{Got, PATIENCE, Rig, head};
use relay_core::{
    Body, Response,
    book::{BookDocument, MAX_BOOKS, MAX_SIZE, Parcel},
    request::Status,
};
use tokio::time::timeout;

const BOOK: &str =
    "<AddressBook><email><User1>xxx@xxx.co.jp</User1><User2>yyy@yyy.co.jp</User2></email></AddressBook>";
const PATH: &str = "/v1/address-books/staff?account=acme";

fn book(entries: &str) -> String {
    format!("<AddressBook><email>{entries}</email></AddressBook>")
}

async fn put(rig: &Rig, path: &str, token: &str, precondition: (&str, &str), document: &str) -> Got {
    let fields = [("content-type", "application/xml"), precondition];
    rig.call("PUT", path, token, &fields, document.as_bytes()).await
}

const NEW: (&str, &str) = ("if-none-match", "*");

fn etag(got: &Got) -> String {
    got.field("etag").unwrap_or_else(|| panic!("no ETag in {got:?}")).to_owned()
}

fn opened(got: &Got) -> BookDocument {
    BookDocument::parse(&got.body).unwrap()
}

/// Makes a device that shares the books of `accounts`.
async fn sharing(rig: &Rig, id: &str, accounts: &[&str]) -> String {
    let token = rig.enrol(id).await;
    let registration = serde_json::json!({
        "apps": [{"name": "address", "path": "/address", "protocol": "address"}], "accounts": accounts,
    });
    let registered = rig.put_json(&format!("/v1/devices/{id}"), &token, &registration.to_string()).await;
    assert_eq!(registered.status, 201, "{registered:?}");
    for account in accounts {
        let path = format!("/v1/accounts/{account}/devices/{id}");
        assert_eq!(rig.call("PUT", &path, &rig.admin, &[], b"").await.status, 204);
    }
    token
}

#[tokio::test]
async fn a5_a_book_is_made_read_and_changed_by_its_etag() {
    let rig = Rig::start().await;
    let key = rig.key(&[]).await;
    rig.get(PATH, &key).await.expect(404, "unknown-book");
    let made = put(&rig, PATH, &key, NEW, BOOK).await;
    assert_eq!((made.status, made.body.len()), (201, 0), "{made:?}");

    let read = rig.get("/v1/address-books/STAFF?account=Acme", &key).await;
    assert_eq!((read.status, read.field("content-type")), (200, Some("application/xml")), "{read:?}");
    assert_eq!(etag(&read), etag(&made));
    let document = opened(&read);
    assert_eq!(document.book.unwrap().as_str(), "staff");
    assert_eq!(format!("\"{}\"", document.version.unwrap()), etag(&read));
    assert_eq!(document.content, BookDocument::parse(BOOK.as_bytes()).unwrap().content);

    let weak = format!("\"7\", W/{}", etag(&read));
    for known in [&*etag(&read), &*weak, "*"] {
        let same = rig.call("GET", PATH, &key, &[("if-none-match", known)], b"").await;
        assert_eq!((same.status, same.field("etag")), (304, read.field("etag")), "{known}: {same:?}");
    }
    let changed = put(&rig, PATH, &key, ("if-match", &etag(&read)), &book("<User3>z</User3>")).await;
    assert_eq!(changed.status, 204, "{changed:?}");
    assert_ne!(etag(&changed), etag(&read));
    let read = rig.call("GET", PATH, &key, &[("if-none-match", &etag(&read))], b"").await;
    assert_eq!((read.status, opened(&read).content.len()), (200, 1));
    // The same once more is the same.
    let again = put(&rig, PATH, &key, ("if-match", &etag(&changed)), &book("<User3>z</User3>")).await;
    assert_eq!((again.status, etag(&again)), (204, etag(&changed)));
    let head = {
        let mut wire = rig.wire().await;
        wire.send(&head("HEAD", PATH, &key, &[("connection", "close")], None)).await;
        String::from_utf8(wire.rest().await).unwrap()
    };
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn f33_a_service_that_is_late_or_does_not_say_what_it_edited_changes_nothing() {
    let rig = Rig::start().await;
    let key = rig.key(&["account:acme"]).await;
    let first = etag(&put(&rig, PATH, &key, NEW, &book("<a>1</a>")).await);
    let second = etag(&put(&rig, PATH, &key, ("if-match", &first), &book("<a>2</a>")).await);
    let late = book("<a>1</a><b>1</b>");
    let weak = format!("W/{second}");
    for (precondition, status, code) in [
        (("if-match", &*first), 412, "precondition-failed"),
        (NEW, 412, "precondition-failed"),
        (("if-match", "\"1\""), 412, "precondition-failed"),
        (("if-match", "\"x\""), 412, "precondition-failed"),
        (("if-match", &*weak), 412, "precondition-failed"),
        (("x-nothing", ""), 428, "precondition-required"),
        (("if-match", "*"), 428, "precondition-required"),
        (("if-none-match", &*first), 428, "precondition-required"),
        (("if-match", "7"), 400, "bad-request"),
        (("if-match", "\"7\", \"8\""), 400, "bad-request"),
    ] {
        put(&rig, PATH, &key, precondition, &late).await.expect(status, code);
    }
    let both = [("if-match", &*second), NEW];
    rig.call("PUT", PATH, &key, &both, late.as_bytes()).await.expect(400, "bad-request");
    // An old copy under the new tag.
    let version = first.trim_matches('"');
    let copy = late.replace("<AddressBook>", &format!("<AddressBook version='{version}'>"));
    put(&rig, PATH, &key, ("if-match", &second), &copy).await.expect(400, "bad-request");
    let other = late.replace("<AddressBook>", "<AddressBook book='other'>");
    put(&rig, PATH, &key, ("if-match", &second), &other).await.expect(400, "bad-request");
    put(&rig, "/v1/address-books/none?account=acme", &key, ("if-match", &second), &late)
        .await
        .expect(404, "unknown-book");
    assert_eq!(etag(&rig.get(PATH, &key).await), second);
}

#[tokio::test]
async fn x2_a_book_is_for_keys_of_its_account_and_for_others_not_there() {
    let rig = Rig::start().await;
    let admin = rig.admin.clone();
    put(&rig, PATH, &admin, NEW, BOOK).await;
    for scopes in [&[][..], &["account:ACME"], &["account:acme:GET", "account:acme:app/address"]] {
        let key = rig.key(scopes).await;
        assert_eq!(rig.get(PATH, &key).await.status, 200, "{scopes:?}");
    }
    let of_one = rig.key(&["account:acme:app/address"]).await;
    assert_eq!(rig.get("/v1/address-books/staff", &of_one).await.status, 200, "it has one account");
    let none = rig.get("/v1/address-books/none?account=acme", &of_one).await;
    for scopes in [&["account:other"][..], &["device:*"]] {
        let key = rig.key(scopes).await;
        let foreign = rig.get(PATH, &key).await;
        assert_eq!((foreign.status, &foreign.body), (none.status, &none.body), "{scopes:?}");
        put(&rig, PATH, &key, NEW, BOOK).await.expect(404, "unknown-book");
    }
    let without = rig.key(&["account:acme:GET,SET,app/print"]).await;
    rig.get(PATH, &without).await.expect(403, "forbidden");
    put(&rig, PATH, &without, NEW, BOOK).await.expect(403, "forbidden");
    rig.get("/v1/address-books/staff", &admin).await.expect(409, "ambiguous-account");
    let two = rig.key(&["account:acme", "account:other"]).await;
    rig.get("/v1/address-books/staff", &two).await.expect(409, "ambiguous-account");
    rig.get(PATH, "").await.expect(401, "unauthenticated");
    rig.get("/v1/address-books/staff?account=a%2Fb", &admin).await.expect(400, "bad-request");
    rig.get("/v1/address-books/staff?acount=acme", &admin).await.expect(400, "bad-request");
}

#[tokio::test]
async fn a5_a_device_reports_to_the_book_of_its_own_account() {
    let rig = Rig::start().await;
    let one = sharing(&rig, "one", &["acme"]).await;
    let two = sharing(&rig, "two", &["acme", "other"]).await;
    let bare = "/v1/address-books/staff";
    rig.get(bare, &one).await.expect(404, "unknown-book");
    let made = put(&rig, bare, &one, NEW, BOOK).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(etag(&rig.get(PATH, &rig.admin).await), etag(&made));
    // It has two accounts.
    rig.get(bare, &two).await.expect(409, "ambiguous-account");
    put(&rig, bare, &two, NEW, BOOK).await.expect(409, "ambiguous-account");
    assert_eq!(rig.get(PATH, &two).await.status, 200);
    rig.get("/v1/address-books/staff?account=foreign", &two).await.expect(404, "unknown-book");
    put(&rig, "/v1/address-books/staff?account=other", &one, NEW, BOOK).await.expect(404, "unknown-book");

    // No app, or an account that nobody agreed to.
    let token = rig.enrol("plain").await;
    rig.get(PATH, &token).await.expect(403, "forbidden");
    let claims = r#"{"apps":[{"name":"address","path":"/a","protocol":"a"}],"accounts":["acme"]}"#;
    assert_eq!(rig.put_json("/v1/devices/plain", &token, claims).await.status, 201);
    rig.get(PATH, &token).await.expect(404, "unknown-book");
    put(&rig, bare, &token, NEW, BOOK).await.expect(404, "unknown-book");
}

#[tokio::test]
async fn f33_a_device_that_is_late_is_merged_or_told_which_entries_are_in_conflict() {
    let rig = Rig::start().await;
    let token = sharing(&rig, "d", &["acme"]).await;
    let bare = "/v1/address-books/staff";
    let first = etag(&put(&rig, PATH, &rig.admin, NEW, &book("<a>1</a><b>1</b>")).await);
    let second = etag(&put(&rig, PATH, &rig.admin, ("if-match", &first), &book("<a>2</a><b>1</b>")).await);

    let merged = put(&rig, bare, &token, ("if-match", &first), &book("<a>1</a><b>1</b><c>3</c>")).await;
    assert_eq!(
        (merged.status, merged.field("etag")),
        (200, None),
        "what stands is not what was sent: {merged:?}"
    );
    assert_eq!(merged.field("content-location"), Some(bare));
    let expected = BookDocument::parse(book("<a>2</a><b>1</b><c>3</c>").as_bytes()).unwrap();
    assert_eq!(opened(&merged).content, expected.content);
    let read = rig.get(PATH, &rig.admin).await;
    assert_eq!(read.body, merged.body);
    assert_ne!(etag(&read), second);

    let conflict = put(&rig, bare, &token, ("if-match", &first), &book("<a>9</a>")).await;
    conflict.expect(412, "precondition-failed");
    assert_eq!(conflict.json()["errors"], serde_json::json!([{"entry": "email/a"}]));
    assert_eq!(etag(&rig.get(PATH, &rig.admin).await), etag(&read));
    let never = put(&rig, bare, &token, ("if-match", "\"12345\""), &book("<a>9</a>")).await;
    never.expect(412, "precondition-failed");
    // What it wants is there already, though its version is old.
    let same = put(&rig, bare, &token, ("if-match", &first), &book("<a>2</a><b>1</b><c>3</c>")).await;
    assert_eq!((same.status, etag(&same)), (204, etag(&read)));
}

#[tokio::test]
async fn b14_what_is_no_book_or_too_much_of_one_is_refused_in_words() {
    let rig = Rig::start().await;
    let key = rig.key(&["account:acme"]).await;
    for (document, words) in [
        ("", "ends before"),
        ("<AddressBook>", "ends before"),
        ("{}", "cannot be read"),
        ("<Book/>", "is not an AddressBook"),
        ("<AddressBook><email><a/><a/></email></AddressBook>", "email/a: is there twice"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><AddressBook/>", "document types"),
    ] {
        let got = put(&rig, PATH, &key, NEW, document).await;
        got.expect(400, "bad-request");
        assert!(got.json()["detail"].as_str().unwrap().contains(words), "{document}: {got:?}");
    }
    let fields = [("content-type", "application/json"), NEW];
    rig.call("PUT", PATH, &key, &fields, b"{}").await.expect(415, "unsupported-media-type");
    let fields = [("content-encoding", "gzip"), NEW];
    rig.call("PUT", PATH, &key, &fields, b"{}").await.expect(415, "unsupported-media-type");
    // ±1 byte round the bound.
    let sized = |size: usize| format!("<AddressBook>{}</AddressBook>", " ".repeat(size - 27));
    assert_eq!(put(&rig, PATH, &key, NEW, &sized(MAX_SIZE)).await.status, 201);
    let other = "/v1/address-books/other?account=acme";
    put(&rig, other, &key, NEW, &sized(MAX_SIZE + 1)).await.expect(413, "too-large");
    rig.call("DELETE", PATH, &key, &[], b"").await.expect(405, "method-not-allowed");

    for n in 1..MAX_BOOKS {
        let made = put(&rig, &format!("/v1/address-books/b{n}?account=acme"), &key, NEW, BOOK).await;
        assert_eq!(made.status, 201);
    }
    put(&rig, other, &key, NEW, BOOK).await.expect(409, "conflict");
}

#[tokio::test]
async fn t45_the_name_of_a_book_is_a_name_and_no_path() {
    let rig = Rig::start().await;
    let key = rig.key(&[]).await;
    for name in ["%2e", "%2e%2e", "a%2fb", "a%5cb", "%00", "%ff", "%c0%ae", &"x".repeat(65), "\u{2024}"] {
        let path = format!("/v1/address-books/{name}?account=acme");
        rig.get(&path, &key).await.expect(400, "bad-request");
        put(&rig, &path, &key, NEW, BOOK).await.expect(400, "bad-request");
    }
}

#[tokio::test]
async fn a5_a_change_goes_to_every_other_device_and_to_those_away_when_they_come() {
    let rig = Rig::start().await;
    let mut devices = Vec::new();
    for id in ["reporter", "here", "away"] {
        devices.push((id, sharing(&rig, id, &["acme"]).await));
    }
    let reporter = rig.connect("reporter", &devices[0].1).await;
    let mut here = rig.connect("here", &devices[1].1).await;
    let made = put(&rig, "/v1/address-books/staff", &reporter.token, NEW, BOOK).await;

    let take = async |device: &mut http_support::Device| {
        let (id, request) = device.request().await;
        let offer = request.offer.as_ref().expect("a job");
        assert_eq!(offer.app.as_str(), "address");
        let document = Parcel::open(offer.header.as_deref().unwrap(), b"").unwrap();
        let version = document.version.unwrap().to_string();
        assert_eq!(format!("\"{version}\""), etag(&made));
        device.answer(id, Response::new(Status::Ok, Some(Body::text(version)))).await;
        document.content
    };
    let expected = BookDocument::parse(BOOK.as_bytes()).unwrap().content;
    assert_eq!(take(&mut here).await, expected);
    let mut away = rig.connect("away", &devices[2].1).await;
    assert_eq!(take(&mut away).await, expected);

    // The next thing that each hears is the next version: the reporter heard nothing before it.
    let next = put(&rig, PATH, &rig.admin, ("if-match", &etag(&made)), &book("<a>1</a>")).await;
    for mut device in [reporter, here, away] {
        let (_, request) = device.request().await;
        let header = request.offer.as_ref().unwrap().header.clone().unwrap();
        let document = Parcel::open(&header, b"").unwrap();
        assert_eq!(format!("\"{}\"", document.version.unwrap()), etag(&next), "{}", device.id);
    }
}

#[tokio::test]
async fn t47_a_device_that_no_longer_counts_for_the_account_gets_nothing_more() {
    let rig = Rig::start().await;
    let token = sharing(&rig, "d", &["acme"]).await;
    let mut device = rig.connect("d", &token).await;
    let withdrawn = rig.call("DELETE", "/v1/accounts/acme/devices/d", &rig.admin, &[], b"").await;
    assert_eq!(withdrawn.status, 204);
    put(&rig, PATH, &rig.admin, NEW, BOOK).await;
    rig.get(PATH, &token).await.expect(404, "unknown-book");
    // Once it counts again, it gets it, and has got nothing before.
    assert!(timeout(std::time::Duration::from_millis(300), device.request()).await.is_err());
    assert_eq!(rig.call("PUT", "/v1/accounts/acme/devices/d", &rig.admin, &[], b"").await.status, 204);
    let (_, request) = timeout(PATIENCE, device.request()).await.unwrap();
    assert!(request.offer.is_some());
}
