//! docs/bosh.md and docs/websocket.md say of every item of their protocol what proves it, and what they name is there.

use std::{collections::BTreeMap, fs, path::Path};

/// Items of a kind are numbered from 1: how many there are.
const BOSH: [(&str, u32); 16] = [
    ("H", 17),
    ("W", 10),
    ("C", 8),
    ("I", 14),
    ("S", 9),
    ("K", 10),
    ("T", 10),
    ("A", 5),
    ("Y", 6),
    ("M", 4),
    ("E", 9),
    ("X", 16),
    ("Q", 9),
    ("P", 5),
    ("V", 9),
    ("F", 34),
];
const BOSH_EXAMPLES: [&str; 18] = [
    "X-1", "X-2a", "X-2b", "X-2c", "X-3", "X-4", "X-5", "X-6", "X-7", "X-8", "X-9", "X-10", "X-11", "X-12",
    "X-13", "X-14", "X-15", "X-16",
];
const WEBSOCKET: [(&str, u32); 9] =
    [("O", 15), ("P", 6), ("F", 9), ("D", 3), ("L", 9), ("B", 9), ("C", 6), ("T", 6), ("R", 8)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// The rows of a document's table by their item: what is said of one end, and of the other.
fn rows(document: &str) -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join(document)).expect("the document is there");
    let table = page.split_once("## Every item").expect("the table is there").1;
    let mut rows = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| item |")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "a row has four cells: {line}");
        let said = format!("{}  {}", cells[2], cells[3]);
        assert!(rows.insert(cells[0].to_owned(), said).is_none(), "{} is there twice", cells[0]);
    }
    rows
}

/// Every item has a row, and no row is of no item.
fn has_rows_of(document: &str, kinds: &[(&str, u32)], others: &[&str]) {
    let mut rows = rows(document);
    let items =
        kinds.iter().flat_map(|(kind, count)| (1..=*count).map(move |number| format!("{kind}{number}")));
    let items = items.chain(others.iter().map(|item| (*item).to_owned()));
    let missing: Vec<_> = items.filter(|item| rows.remove(item).is_none()).collect();
    assert!(missing.is_empty(), "{document} says nothing of {missing:?}");
    assert!(rows.is_empty(), "{document} has rows of nothing: {:?}", rows.keys());
}

/// Every row names a test that is there, or says why not.
fn names_tests(document: &str) {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (item, said) in rows(document) {
        let mut file: Option<&str> = None;
        let mut tests = 0;
        for word in said.split_whitespace() {
            let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            if bare.ends_with(".rs") {
                let source = sources
                    .entry(bare.to_owned())
                    .or_insert_with(|| fs::read_to_string(root().join(bare)).unwrap_or_default());
                if source.is_empty() {
                    wrong.push(format!("{item}: there is no {bare}"));
                }
                file = Some(bare);
            } else if let Some(test) = test_name(word) {
                let source = file.and_then(|file| sources.get(file));
                // The conformance kit's cases are functions that take a harness.
                let named = |form: &str| source.is_some_and(|source| source.contains(form));
                if !named(&format!("fn {test}(")) && !named(&format!("fn {test}<")) {
                    wrong.push(format!("{item}: {test} is not in {}", file.unwrap_or("any file")));
                }
                tests += 1;
            }
        }
        let words = said.split_whitespace().filter(|word| *word != "–").count();
        if tests == 0 && words < 5 {
            wrong.push(format!("{item}: neither a test nor a reason"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The name in backquotes, if only a test can have it.
fn test_name(word: &str) -> Option<&str> {
    let name = word.split('`').nth(1)?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    // The one module that a row names.
    (name.contains('_') && name != "server_session" && name.bytes().all(plain)).then_some(name)
}

#[test]
fn every_item_of_bosh_has_a_row_and_no_row_is_of_no_item() {
    has_rows_of("docs/bosh.md", &BOSH, &BOSH_EXAMPLES);
}

#[test]
fn every_item_of_bosh_is_proved_or_says_why_not() {
    names_tests("docs/bosh.md");
}

#[test]
fn every_item_of_websocket_has_a_row_and_no_row_is_of_no_item() {
    has_rows_of("docs/websocket.md", &WEBSOCKET, &[]);
}

#[test]
fn every_item_of_websocket_is_proved_or_says_why_not() {
    names_tests("docs/websocket.md");
}
