mod content;
mod distribution;
mod merge;

use proptest::prelude::*;

use super::*;

fn book(entries: &[(&str, &str, &str)]) -> Book {
    let mut book = Book::new();
    for (kind, name, value) in entries {
        book.set(kind, name, value).unwrap();
    }
    book
}

/// Few names, so that they meet.
fn any_book() -> impl Strategy<Value = Book> {
    let kind = prop::sample::select(vec!["email", "fax", "smb"]);
    let name = prop::sample::select(vec!["User1", "User2", "user1", "田中"]);
    let value = prop::sample::select(vec!["", "a@a.example", "b@b.example", " <&>'\" ", "ü\r\n\t]]>"]);
    prop::collection::vec((kind, name, value), 0..8).prop_map(|entries| book(&entries))
}
