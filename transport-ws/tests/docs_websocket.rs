//! docs/websocket.md says of every item what proves it, and what it names is there.

use std::{collections::BTreeMap, fs, path::Path};

/// How many items there are of each kind.
const ITEMS: [(&str, u32); 9] =
    [("O", 15), ("P", 6), ("F", 9), ("D", 3), ("L", 9), ("B", 9), ("C", 6), ("T", 6), ("R", 8)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// The table's rows by their item: what is said of the relay, and of the device.
fn rows() -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join("docs/websocket.md")).expect("docs/websocket.md is there");
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
    let missing: Vec<_> = items.filter(|item| rows.remove(item).is_none()).collect();
    assert!(missing.is_empty(), "docs/websocket.md says nothing of {missing:?}");
    assert!(rows.is_empty(), "docs/websocket.md has rows of nothing: {:?}", rows.keys());
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
    (name.contains('_') && name.bytes().all(plain)).then_some(name)
}
