//! Changes of address books, at relays that are one and at what is none.

use relay_core::{
    auth::Secret,
    book::Version,
    ids::{AccountId, BookId},
};

use super::super::tests::peer;
use crate::http::{BookReport, BookVerdict, HttpErrorKind, RelayHttp as _};

const CONFLICT: &str = "{\"type\":\"urn:relay:error:precondition-failed\",\"errors\":[{\"entry\":\"email/User1\"},{\"entry\":\"nonsense\"},{}]}";

fn problem(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn xml(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

fn report(base: Option<u64>) -> BookReport {
    let staff = BookId::new("staff").unwrap();
    BookReport::new(None, staff, base.map(version), "<AddressBook book='staff'/>".to_owned())
}

#[tokio::test]
async fn a5_a_change_says_what_was_edited_and_whose_it_is() {
    let (relay, mut requests) = peer("HTTP/1.1 204 No Content\r\nETag: \"7\"\r\n\r\n").await;
    let mut change = report(Some(5));
    change.account = Some(AccountId::new("acme").unwrap());
    let verdict = relay.report_book(&Secret::new("secret-token"), &change).await.unwrap();
    assert_eq!(verdict, BookVerdict::Taken(version(7)));
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("PUT /v1/address-books/staff?account=acme HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("if-match: \"5\"\r\n") && !request.contains("if-none-match"), "{request}");
    assert!(request.contains("authorization: Bearer secret-token"), "{request}");
    assert!(request.contains("content-type: application/xml"), "{request}");
    assert!(request.ends_with("<AddressBook book='staff'/>"), "{request}");
    relay.report_book(&Secret::new("secret-token"), &report(None)).await.unwrap();
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("PUT /v1/address-books/staff HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("if-none-match: *\r\n") && !request.contains("if-match: "), "{request}");
}

#[tokio::test]
async fn t52_only_what_a_relay_says_is_a_verdict_on_a_change() {
    let merged = "<AddressBook book='staff' version='9'><email><a>1</a></email></AddressBook>";
    let stale = "{\"type\":\"urn:relay:error:precondition-failed\"}";
    let unknown = "{\"type\":\"urn:relay:error:unknown-book\",\"title\":\"No such address book\"}";
    let conflict = || BookVerdict::Conflict { entries: vec![("email".into(), "User1".into())] };
    let refused =
        || BookVerdict::Refused { code: "unknown-book".into(), words: "No such address book".into() };
    for (answer, expected) in [
        (problem("412 Precondition Failed", CONFLICT), Ok(conflict())),
        (problem("412 Precondition Failed", stale), Ok(BookVerdict::Stale)),
        (problem("404 Not Found", unknown), Ok(refused())),
        (
            "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n".into(),
            Err(HttpErrorKind::Unexpected),
        ),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(), Err(HttpErrorKind::Unexpected)),
        ("HTTP/1.1 204 No Content\r\n\r\n".into(), Err(HttpErrorKind::Unexpected)),
        ("HTTP/1.1 204 No Content\r\nETag: W/\"7\"\r\n\r\n".into(), Err(HttpErrorKind::Unexpected)),
        ("HTTP/1.1 204 No Content\r\nETag: \"07\"\r\n\r\n".into(), Err(HttpErrorKind::Unexpected)),
        (xml("<html/>"), Err(HttpErrorKind::Unexpected)),
        (xml(&merged.replace("staff", "other")), Err(HttpErrorKind::Unexpected)),
        (xml(&merged.replace(" version='9'", "")), Err(HttpErrorKind::Unexpected)),
        (
            problem("401 Unauthorized", "{\"type\":\"urn:relay:error:unauthenticated\"}"),
            Err(HttpErrorKind::Unauthenticated),
        ),
        (
            problem("503 Service Unavailable", "{\"type\":\"urn:relay:error:draining\"}"),
            Err(HttpErrorKind::Overloaded),
        ),
    ] {
        let (relay, _requests) = peer(answer.clone().leak()).await;
        let verdict = relay.report_book(&Secret::new("t"), &report(Some(5))).await;
        assert_eq!(verdict.map_err(|error| error.kind), expected, "{answer}");
    }
    let (relay, _requests) = peer(xml(merged).leak()).await;
    let verdict = relay.report_book(&Secret::new("t"), &report(Some(5))).await.unwrap();
    let BookVerdict::Merged { version: nine, content } = verdict else { panic!("{verdict:?}") };
    assert_eq!((nine, content.get("email", "a")), (version(9), Some("1")));
}

#[tokio::test]
async fn a5_a_book_is_read_or_is_not_there() {
    let staff = BookId::new("staff").unwrap();
    let whole = "<AddressBook book='Staff' version='9'/>";
    let (relay, mut requests) = peer(xml(whole).leak()).await;
    let read = relay.book(&Secret::new("t"), None, &staff).await.unwrap().unwrap();
    assert_eq!((read.book, read.version), (Some(staff.clone()), Some(version(9))));
    assert!(requests.recv().await.unwrap().starts_with("GET /v1/address-books/staff HTTP/1.1\r\n"));
    let unknown = problem("404 Not Found", "{\"type\":\"urn:relay:error:unknown-book\"}");
    let (relay, _requests) = peer(unknown.leak()).await;
    assert_eq!(relay.book(&Secret::new("t"), None, &staff).await.unwrap(), None);
    // A portal's page.
    let (relay, _requests) = peer("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    let kind = relay.book(&Secret::new("t"), None, &staff).await.unwrap_err().kind;
    assert_eq!(kind, HttpErrorKind::Unexpected);
}
