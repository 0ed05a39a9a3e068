use std::collections::BTreeMap as Map;

use super::*;

/// Entries by kind and name.
fn flat(book: &Book) -> Map<(String, String), String> {
    book.entries().map(|(kind, name, value)| ((kind.into(), name.into()), value.into())).collect()
}

fn touched(base: &Book, edit: &Book) -> Map<(String, String), Option<String>> {
    let (base, edit) = (flat(base), flat(edit));
    let keys: std::collections::BTreeSet<_> = base.keys().chain(edit.keys()).cloned().collect();
    keys.into_iter()
        .filter(|key| base.get(key) != edit.get(key))
        .map(|key| (key.clone(), edit.get(&key).cloned()))
        .collect()
}

#[test]
fn a5_edits_of_different_entries_are_both_kept() {
    let base = book(&[("email", "a", "1"), ("email", "b", "1"), ("fax", "c", "1")]);
    let current = book(&[("email", "a", "2"), ("email", "b", "1"), ("fax", "c", "1"), ("email", "new", "x")]);
    let edit = book(&[("email", "a", "1"), ("email", "b", "3"), ("smb", "d", "1")]);
    let merged = merge(&base, &current, &edit).unwrap();
    assert!(merged.differs);
    let expected =
        book(&[("email", "a", "2"), ("email", "b", "3"), ("email", "new", "x"), ("smb", "d", "1")]);
    assert_eq!(merged.book, expected);
}

#[test]
fn f33_the_same_entry_changed_differently_on_both_sides_is_a_conflict_and_named() {
    let base = book(&[("email", "a", "1"), ("email", "b", "1")]);
    let current = book(&[("email", "a", "2"), ("email", "b", "1")]);
    for edit in [
        book(&[("email", "a", "3"), ("email", "b", "1")]),
        // Removed here, changed there.
        book(&[("email", "b", "1")]),
        book(&[("email", "a", "3"), ("email", "b", "9")]),
    ] {
        let conflict = merge(&base, &current, &edit).unwrap_err();
        assert_eq!(conflict.to_string(), "changed on both sides: email/a");
        // Whichever came first.
        assert!(merge(&base, &edit, &current).is_err());
    }
    let many = |value: &str| {
        let mut book = Book::new();
        (0..500).for_each(|n| drop(book.set("email", &format!("u{n:03}"), value).unwrap()));
        book
    };
    let Err(Conflict::Entries { entries, count }) = merge(&many("1"), &many("2"), &many("3")) else {
        panic!("taken")
    };
    assert_eq!((entries.len(), count), (MAX_NAMED, 500));
}

#[test]
fn b14_what_is_too_much_only_together_is_refused() {
    let half = |from: usize, to: usize| {
        let mut book = Book::new();
        (from..to).for_each(|n| drop(book.set("email", &format!("u{n}"), "").unwrap()));
        book
    };
    let refused = merge(&Book::new(), &half(0, 6_000), &half(5_000, 11_000)).unwrap_err();
    assert!(matches!(refused, Conflict::Bounds(InvalidBook::Entries)), "{refused}");
    assert!(merge(&Book::new(), &half(0, 6_000), &half(4_000, 10_000)).is_ok());
}

proptest! {
    #[test]
    fn f33_a_merge_has_all_that_either_side_did_and_nothing_else(
        base in any_book(), current in any_book(), edit in any_book(),
    ) {
        let (theirs, ours) = (touched(&base, &current), touched(&base, &edit));
        let clash = ours.iter().any(|(key, value)| theirs.get(key).is_some_and(|other| other != value));
        match merge(&base, &current, &edit) {
            Err(_) => prop_assert!(clash),
            Ok(merged) => {
                prop_assert!(!clash);
                let mut expected = flat(&base);
                for (key, value) in theirs.into_iter().chain(ours) {
                    match value {
                        Some(value) => expected.insert(key, value),
                        None => expected.remove(&key),
                    };
                }
                prop_assert_eq!(flat(&merged.book), expected);
                prop_assert_eq!(merged.differs, merged.book != edit);
            }
        }
    }

    #[test]
    fn f33_two_edits_give_the_same_whichever_comes_first(
        base in any_book(), one in any_book(), other in any_book(),
    ) {
        let first = merge(&base, &one, &other).map(|merged| merged.book);
        let second = merge(&base, &other, &one).map(|merged| merged.book);
        prop_assert_eq!(first.is_ok(), second.is_ok());
        if let (Ok(first), Ok(second)) = (first, second) {
            prop_assert_eq!(first, second);
        }
    }

    #[test]
    fn f33_however_edits_and_deliveries_cross_none_is_lost_and_all_end_alike(
        mut steps in prop::collection::vec((0..4_usize, 0..3_usize, any_entry()), 1..60),
    ) {
        let mut relay = vec![Book::new()];
        let mut devices = vec![Device { base: 0, book: Book::new(), edited: false }; 4];
        // At last all report what they have not, and then all are delivered to.
        let nothing = ("email", "a", None);
        steps.extend([1, 2].into_iter().flat_map(|action| (0..4).map(move |device| (device, action, nothing))));
        for (device, action, (kind, name, value)) in steps {
            let device = &mut devices[device];
            match action {
                0 => {
                    match value {
                        Some(value) => drop(device.book.set(kind, name, value).unwrap()),
                        None => drop(device.book.remove(kind, name)),
                    }
                    device.edited = true;
                }
                1 if device.edited => device.report(&mut relay)?,
                2 if !device.edited && device.base + 1 != relay.len() => device.get(&relay),
                _ => {}
            }
            if !device.edited && device.base + 1 == relay.len() {
                prop_assert_eq!(Some(&device.book), relay.last(), "it is not delivered to, and has another book");
            }
        }
        for device in &devices {
            prop_assert_eq!(Some(&device.book), relay.last());
        }
    }
}

/// A device, as the relay needs one to behave.
#[derive(Clone)]
struct Device {
    /// The version that its book was made from.
    base: usize,
    book: Book,
    /// Whether it has a change that the relay has given no verdict on.
    edited: bool,
}

impl Device {
    fn report(&mut self, relay: &mut Vec<Book>) -> Result<(), TestCaseError> {
        let current = relay.last().unwrap().clone();
        let wanted = touched(&relay[self.base], &self.book);
        let theirs = touched(&relay[self.base], &current);
        self.edited = false;
        match merge(&relay[self.base], &current, &self.book) {
            Ok(merged) => {
                let got = flat(&merged.book);
                for (key, value) in theirs.iter().chain(&wanted) {
                    prop_assert_eq!(got.get(key), value.as_ref(), "an edit was lost");
                }
                if merged.book != current {
                    relay.push(merged.book);
                }
                if !merged.differs {
                    self.base = relay.len() - 1;
                }
            }
            // The loser is told and reads again.
            Err(Conflict::Entries { entries, .. }) => {
                for (kind, name) in entries {
                    let key = (kind.into(), name.into());
                    prop_assert!(wanted.contains_key(&key) && theirs.contains_key(&key));
                }
                self.get(relay);
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
        Ok(())
    }

    fn get(&mut self, relay: &[Book]) {
        (self.base, self.book) = (relay.len() - 1, relay.last().unwrap().clone());
    }
}

fn any_entry() -> impl Strategy<Value = (&'static str, &'static str, Option<&'static str>)> {
    (
        prop::sample::select(vec!["email", "fax"]),
        prop::sample::select(vec!["a", "b", "c"]),
        prop::option::of(prop::sample::select(vec!["1", "2", "3"])),
    )
}
