//! docs/bosh.md says of every item what proves it, and what it names is there.

use std::{collections::BTreeMap, fs, path::Path};

/// How many items there are of each kind, and the examples.
const ITEMS: [(&str, u32); 16] = [
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
const EXAMPLES: [&str; 18] = [
    "X-1", "X-2a", "X-2b", "X-2c", "X-3", "X-4", "X-5", "X-6", "X-7", "X-8", "X-9", "X-10", "X-11", "X-12",
    "X-13", "X-14", "X-15", "X-16",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// The table's rows by their item: what is said of the connection manager, and of the client.
fn rows() -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join("docs/bosh.md")).expect("docs/bosh.md is there");
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

#[test]
fn every_item_has_a_row_and_no_row_is_of_no_item() {
    let mut rows = rows();
    let items =
        ITEMS.iter().flat_map(|(kind, count)| (1..=*count).map(move |number| format!("{kind}{number}")));
    let missing: Vec<_> =
        items.chain(EXAMPLES.map(str::to_owned)).filter(|item| rows.remove(item).is_none()).collect();
    assert!(missing.is_empty(), "docs/bosh.md says nothing of {missing:?}");
    assert!(rows.is_empty(), "docs/bosh.md has rows of nothing: {:?}", rows.keys());
}

#[test]
fn every_row_names_a_test_that_is_there_or_says_why_not() {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (item, said) in rows() {
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
            } else if is_test_name(word) {
                let test = word.split('`').nth(1).unwrap_or_default();
                let source = file.and_then(|file| sources.get(file));
                if !source.is_some_and(|source| source.contains(&format!("fn {test}("))) {
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

/// Whether `word` is a name in backquotes that only a test can have.
fn is_test_name(word: &str) -> bool {
    let Some(name) = word.split('`').nth(1) else { return false };
    name.contains('_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && name != "server_session"
}
