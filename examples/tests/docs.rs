//! The tables that say where a promise is proved name every promise, and tests that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_owned()
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace can be read").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !matches!(name.as_str(), "target" | "node_modules" | ".git" | "corpus") {
            sources(&path, into);
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
}

/// Every function that a test runner would run: `#[test]`, `#[tokio::test]`, in `proptest!`, or a case of the kit.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file can be read");
        let path = file.to_string_lossy();
        let kit = path.contains("conformance/cases") || path.contains("store/suite");
        let mut attributed = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                attributed = true;
            } else if let Some(rest) = line.split("fn ").nth(1)
                && (attributed || kit && line.starts_with("pub async fn "))
            {
                names.extend(rest.split(['(', '<']).next().map(str::to_owned));
                attributed = false;
            }
        }
    }
    names
}

/// The rows of the tables in a document: the ID in the first column, all the rest.
fn rows(document: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join(document)).expect("the document is there");
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let (id, rest) = line[2..].split_once(" |").expect("a row has columns");
        let id = id.trim_matches([' ', '`', '*']);
        let shaped =
            id.starts_with(|c: char| c.is_ascii_uppercase()) && id.ends_with(|c: char| c.is_ascii_digit());
        if shaped {
            assert!(rows.insert(id.to_owned(), rest.to_owned()).is_none(), "{document}: two rows {id}");
        }
    }
    rows
}

fn check(document: &str, ids: impl Iterator<Item = String>) {
    let (rows, tests) = (rows(document), tests());
    let mut wrong = Vec::new();
    for id in ids {
        let Some(row) = rows.get(&id) else {
            wrong.push(format!("{id} has no row"));
            continue;
        };
        let named: Vec<_> = row.split('`').skip(1).step_by(2).filter(|word| is_test_name(word)).collect();
        wrong.extend(
            named.iter().filter(|name| !tests.contains(**name)).map(|name| format!("{id}: no test {name}")),
        );
        if named.is_empty() && !row.contains("Not yet") && !row.contains("Not ours") {
            wrong.push(format!("{id} has neither a test nor a reason"));
        }
    }
    assert!(wrong.is_empty(), "{document}:\n{}", wrong.join("\n"));
}

/// Test names have several words; nothing else in these documents is written so.
fn is_test_name(word: &str) -> bool {
    word.matches('_').count() >= 2
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn range(prefix: &str, last: usize) -> impl Iterator<Item = String> + use<'_> {
    (1..=last).map(move |n| format!("{prefix}{n}"))
}

#[test]
fn every_row_of_the_behaviour_is_proved_or_says_why_not() {
    let groups = [("S", 10), ("P", 7), ("Q", 12), ("A", 7), ("G", 4), ("W", 3), ("D", 1), ("N", 1), ("X", 5)];
    let more = [("L", 3), ("C", 1), ("K", 6)];
    check("docs/behaviour.md", groups.into_iter().chain(more).flat_map(|(prefix, last)| range(prefix, last)));
}

#[test]
fn every_threat_bound_and_fault_is_proved_or_says_why_not() {
    let faults = [3, 8, 9, 10, 13, 32, 33].map(|fault| format!("F{fault}"));
    check("docs/threats.md", range("T", 56).chain(range("B", 15)).chain(faults));
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents =
        vec![root().join("README.md"), root().join("ARCHITECTURE.md"), root().join("examples/README.md")];
    documents.extend(fs::read_dir(root().join("docs")).expect("docs").flatten().map(|entry| entry.path()));
    let mut wrong = Vec::new();
    for document in
        documents.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md"))
    {
        let text = fs::read_to_string(document).expect("the document is there");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or(link);
            if !file.is_empty()
                && !link.contains("://")
                && !document.parent().expect("a folder").join(file).exists()
            {
                wrong.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where ARCHITECTURE.md says to look, there is something.
#[test]
fn architecture_points_at_what_is_there() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the document is there");
    let mut wrong = Vec::new();
    for word in
        text.split('`').skip(1).step_by(2).filter(|word| word.contains("/src/") && !word.contains(' '))
    {
        let place = root().join(word.trim_end_matches('*'));
        let begins =
            |entry: fs::DirEntry| entry.path().to_string_lossy().starts_with(&*place.to_string_lossy());
        let there = place.exists()
            || place.with_extension("rs").exists()
            || place
                .parent()
                .and_then(|folder| fs::read_dir(folder).ok())
                .is_some_and(|all| all.flatten().any(begins));
        if !there {
            wrong.push(word);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
