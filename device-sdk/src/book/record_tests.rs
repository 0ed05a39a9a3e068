use std::collections::BTreeMap as Map;

use proptest::prelude::*;

use super::*;

const KIND: &str = "email";

fn book(entries: &[(&str, &str)]) -> Book {
    let mut book = Book::new();
    for (name, value) in entries {
        book.set(KIND, name, value).unwrap();
    }
    book
}

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

fn stand(number: u64, entries: &[(&str, &str)]) -> Stand {
    Stand { version: version(number), content: Arc::new(book(entries)) }
}

fn record() -> Record {
    Record::new(BookId::new("staff").unwrap())
}

/// One that has version 1 of the relay's, with these entries.
fn with(entries: &[(&str, &str)]) -> Record {
    let mut record = record();
    assert_eq!(record.deliver(version(1), Arc::new(book(entries))), Delivered::New);
    record
}

fn edit(record: &mut Record, name: &str, value: &str) -> Slot {
    let before = record.copy().map(|copy| copy.content).unwrap_or_default();
    let mut edited = before.clone();
    edited.set(KIND, name, value).unwrap();
    record.edit(&before, &edited, 1).unwrap()
}

fn sent(record: &mut Record) -> (Option<u64>, Book) {
    let (Sending { base, content }, _) = record.send().unwrap();
    (base.map(Version::number), Book::clone(&content))
}

fn seen(record: &Record) -> Book {
    record.copy().unwrap().content
}

#[test]
fn a5_a_version_that_is_not_newer_changes_nothing() {
    let mut record = with(&[("a", "1")]);
    for (number, delivered) in [(1, Delivered::Known), (3, Delivered::New), (2, Delivered::Known)] {
        assert_eq!(record.deliver(version(number), Arc::new(book(&[("a", "x")]))), delivered, "{number}");
    }
    let copy = record.copy().unwrap();
    assert_eq!((copy.version, copy.content, copy.reported), (Some(version(3)), book(&[("a", "x")]), true));
}

#[test]
fn f33_edits_before_the_first_is_sent_are_one_edit_of_what_they_began_with() {
    let mut record = with(&[("a", "1")]);
    assert_eq!(edit(&mut record, "b", "2"), Slot::Now);
    record.deliver(version(2), Arc::new(book(&[("a", "2")])));
    assert_eq!(edit(&mut record, "c", "3"), Slot::Now);
    assert_eq!(edit(&mut record, "c", "3"), Slot::Nowhere);
    assert_eq!(sent(&mut record), (Some(1), book(&[("a", "1"), ("b", "2"), ("c", "3")])));
}

#[test]
fn f33_what_was_sent_stays_as_it_was_sent_and_what_is_edited_meanwhile_follows_what_came_of_it() {
    let mut record = with(&[("a", "1")]);
    edit(&mut record, "b", "2");
    let first = sent(&mut record);
    assert_eq!(edit(&mut record, "b", "3"), Slot::Next);
    assert_eq!(sent(&mut record), first);
    let answered = record.answered(BookVerdict::Taken(version(5)), None);
    assert_eq!(answered.edit, Settled::Reported { version: version(5), merged: false });
    assert_eq!(sent(&mut record), (Some(5), book(&[("a", "1"), ("b", "3")])));

    // The same, and the relay has merged the first.
    edit(&mut record, "c", "4");
    let merged = book(&[("a", "9"), ("b", "3")]);
    let answered = record.answered(BookVerdict::Merged { version: version(7), content: merged }, None);
    assert_eq!(answered.edit, Settled::Reported { version: version(7), merged: true });
    assert_eq!(sent(&mut record), (Some(7), book(&[("a", "9"), ("b", "3"), ("c", "4")])));

    // And it cannot be had together with what came of the first.
    edit(&mut record, "a", "mine");
    let merged = book(&[("a", "theirs"), ("b", "3"), ("c", "4")]);
    let answered =
        record.answered(BookVerdict::Merged { version: version(9), content: merged.clone() }, None);
    let rejection = answered.next.unwrap();
    assert_eq!(rejection.edited.get(KIND, "a"), Some("mine"));
    assert!(matches!(rejection.why, Why::Conflict(_)));
    assert_eq!((seen(&record), record.waits()), (merged, None));
}

#[test]
fn f33_an_edit_in_conflict_is_given_back_and_the_book_is_as_it_stands() {
    let mut record = with(&[("a", "1")]);
    edit(&mut record, "a", "mine");
    sent(&mut record);
    let stands = stand(2, &[("a", "theirs")]);
    let conflict = BookVerdict::Conflict { entries: vec![(KIND.into(), "a".into())] };
    let answered = record.answered(conflict.clone(), Some(stands.clone()));
    let Settled::Rejected(rejection) = &answered.edit else { panic!("{answered:?}") };
    assert_eq!(rejection.edited.get(KIND, "a"), Some("mine"));
    assert!(answered.news);
    assert_eq!((seen(&record), record.waits()), (book(&[("a", "theirs")]), None));

    // Somebody at the panel gave way meanwhile: that is reported, as it is made from the same version.
    let mut record = with(&[("a", "1")]);
    edit(&mut record, "a", "mine");
    sent(&mut record);
    edit(&mut record, "a", "theirs");
    assert_eq!(record.answered(conflict, Some(stands)).edit, Settled::Carried);
    assert_eq!(sent(&mut record), (Some(1), book(&[("a", "theirs")])));
}

#[test]
fn f33_an_edit_of_a_version_that_the_relay_forgot_is_made_anew_from_what_stands() {
    let stands = || Some(stand(9, &[("a", "9"), ("z", "1")]));
    let mut record = with(&[("a", "1")]);
    edit(&mut record, "b", "2");
    sent(&mut record);
    assert_eq!(record.answered(BookVerdict::Stale, stands()).edit, Settled::Again);
    assert_eq!(sent(&mut record), (Some(9), book(&[("a", "9"), ("b", "2"), ("z", "1")])));

    // There was no such book when it was made.
    let mut record = record_of_new();
    assert_eq!(record.answered(BookVerdict::Stale, stands()).edit, Settled::Again);
    assert_eq!(sent(&mut record), (Some(9), book(&[("a", "9"), ("b", "2"), ("z", "1")])));

    // What it was to do is done.
    let mut record = with(&[("a", "1")]);
    edit(&mut record, "a", "9");
    sent(&mut record);
    let answered = record.answered(BookVerdict::Stale, stands());
    assert_eq!(answered.edit, Settled::Reported { version: version(9), merged: true });
    assert_eq!(record.waits(), None);

    let mut record = with(&[("a", "1")]);
    edit(&mut record, "a", "mine");
    sent(&mut record);
    let answered = record.answered(BookVerdict::Stale, stands());
    assert!(matches!(answered.edit, Settled::Rejected(_)), "{answered:?}");
    assert_eq!(seen(&record), *stands().unwrap().content);

    // What stands could not be had: nothing is lost by that.
    let mut record = with(&[("a", "1")]);
    edit(&mut record, "b", "2");
    let first = sent(&mut record);
    assert_eq!(record.answered(BookVerdict::Stale, None).edit, Settled::Again);
    assert_eq!(sent(&mut record), first);
}

fn record_of_new() -> Record {
    let mut record = record();
    edit(&mut record, "b", "2");
    assert_eq!(sent(&mut record), (None, book(&[("b", "2")])));
    record
}

#[test]
fn f33_what_nobody_heard_of_is_set_aside_change_by_change() {
    let mut record = with(&[("a", "1"), ("gone", "1"), ("same", "1")]);
    for value in ["2", "3"] {
        edit(&mut record, "a", value);
        sent(&mut record);
        let refused = BookVerdict::Refused { code: "unknown-book".into(), words: "no such book".into() };
        let Settled::Rejected(rejection) = record.answered(refused, None).edit else { panic!() };
        record.set_aside(&rejection);
    }
    let before = seen(&record);
    let mut edited = before.clone();
    edited.remove(KIND, "gone");
    record.edit(&before, &edited, 9).unwrap();
    sent(&mut record);
    let conflict = BookVerdict::Conflict { entries: vec![(KIND.into(), "gone".into())] };
    let Settled::Rejected(rejection) = record.answered(conflict, None).edit else { panic!() };
    record.set_aside(&rejection);
    let rejected = record.rejected.clone().unwrap();
    assert_eq!(&*rejected.why, "changed on both sides: email/gone");
    let changes: Vec<_> =
        rejected.changes.iter().map(|change| (&*change.name, change.value.as_deref())).collect();
    assert_eq!(changes, [("a", Some("3")), ("gone", None)]);
    assert_eq!(Record::decode(&record.encode().unwrap()), Some(record));
}

#[test]
fn f33_an_edit_made_from_an_older_copy_keeps_what_came_since() {
    let mut record = with(&[("a", "1")]);
    let before = seen(&record);
    let mut edited = before.clone();
    edited.set(KIND, "b", "2").unwrap();
    record.deliver(version(2), Arc::new(book(&[("a", "2")])));
    assert_eq!(record.edit(&before, &edited, 1), Ok(Slot::Now));
    assert_eq!(sent(&mut record), (Some(2), book(&[("a", "2"), ("b", "2")])));
    // Of the same entry, it is a conflict at once.
    edited.set(KIND, "a", "3").unwrap();
    assert!(record.edit(&before, &edited, 1).is_err());
}

#[test]
fn f31_a_record_is_read_as_it_was_written_or_not_at_all() {
    let mut record = with(&[("a", "<&>'\"]]>\n")]);
    edit(&mut record, "b", "2");
    sent(&mut record);
    edit(&mut record, "b", "3");
    record.in_doubt = true;
    let bytes = record.encode().unwrap();
    assert_eq!(Record::decode(&bytes), Some(record));
    assert_eq!(Record::decode(b""), None);
    assert_eq!(Record::decode(b"{}"), None);
    let text = String::from_utf8(bytes).unwrap();
    for (from, to) in [("staff", "../x"), ("\"version\":1", "\"version\":0"), ("</email>", "</e>")] {
        assert_eq!(Record::decode(text.replacen(from, to, 1).as_bytes()), None, "{from}");
    }
}

/// The relay's rules in a few lines, with a memory of some versions.
#[derive(Debug, Default)]
struct Relay {
    versions: Vec<Book>,
    forgotten: usize,
}

impl Relay {
    fn current(&self) -> Option<Stand> {
        let content = Arc::new(self.versions.last()?.clone());
        Some(Stand { version: version(self.versions.len() as u64), content })
    }

    fn put(&mut self, sending: &Sending) -> BookVerdict {
        let Some(current) = self.current() else {
            self.versions.push(Book::clone(&sending.content));
            return BookVerdict::Taken(version(1));
        };
        let base = match sending.base {
            Some(base) if base == current.version => current.content.clone(),
            Some(base) if base.number() as usize > self.forgotten => {
                Arc::new(self.versions[base.number() as usize - 1].clone())
            }
            _ => return BookVerdict::Stale,
        };
        match merge(&base, &current.content, &sending.content) {
            Ok(merged) => {
                if merged.book != *current.content {
                    self.versions.push(merged.book.clone());
                }
                let version = version(self.versions.len() as u64);
                match merged.differs {
                    true => BookVerdict::Merged { version, content: merged.book },
                    false => BookVerdict::Taken(version),
                }
            }
            Err(Conflict::Entries { entries, .. }) => BookVerdict::Conflict { entries },
            Err(_) => unreachable!("small books have no bounds"),
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// An entry is written, or removed, at a device.
    Edit(usize, u8, bool),
    /// A device reports; what it says, or what it is told, may be lost on the way.
    Report(usize, Lost),
    Deliver(usize),
    Restart(usize),
    Forget,
}

#[derive(Debug, Clone, Copy)]
enum Lost {
    Nothing,
    Question,
    Answer,
}

fn event() -> impl Strategy<Value = Event> {
    let device = 0..3usize;
    let lost = prop::sample::select(vec![Lost::Nothing, Lost::Nothing, Lost::Question, Lost::Answer]);
    prop_oneof![
        4 => (device.clone(), 0..4u8, any::<bool>()).prop_map(|(device, entry, removed)| Event::Edit(device, entry, removed)),
        4 => (device.clone(), lost).prop_map(|(device, lost)| Event::Report(device, lost)),
        3 => device.clone().prop_map(Event::Deliver),
        1 => device.prop_map(Event::Restart),
        1 => Just(Event::Forget),
    ]
}

/// Every value that somebody wrote is written once, so that it can be found again.
#[derive(Default)]
struct Written {
    /// By device and entry: the last value, of which nothing else has come yet.
    last: Map<(usize, String), String>,
    /// What has to be found.
    all: Vec<String>,
    given_back: Vec<Arc<Book>>,
}

fn report(device: &mut Record, relay: &mut Relay, lost: Lost, given_back: &mut Vec<Arc<Book>>) {
    let Some((sending, _)) = device.send() else { return };
    if matches!(lost, Lost::Question) {
        return;
    }
    let verdict = relay.put(&sending);
    if matches!(lost, Lost::Answer) {
        return;
    }
    let stands =
        matches!(verdict, BookVerdict::Conflict { .. } | BookVerdict::Stale).then(|| relay.current());
    let answered = device.answered(verdict, stands.flatten());
    if let Settled::Rejected(rejection) = &answered.edit {
        given_back.push(rejection.edited.clone());
    }
    given_back.extend(answered.next.map(|rejection| rejection.edited));
}

proptest! {
    #[test]
    fn f33_whatever_is_lost_on_the_way_no_edit_is_and_all_devices_end_alike(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut relay = Relay::default();
        let mut devices = [record(), record(), record()];
        let mut written = Written::default();
        for (number, event) in events.into_iter().enumerate() {
            match event {
                Event::Edit(at, entry, removed) => {
                    let device = &mut devices[at];
                    let before = device.copy().map(|copy| copy.content).unwrap_or_default();
                    let (name, value) = (format!("e{entry}"), format!("v{number}"));
                    let mut edited = before.clone();
                    // What the same person writes over is gone by their own hand.
                    let over = written.last.remove(&(at, name.clone()));
                    if over.as_deref() == before.get(KIND, &name) {
                        written.all.retain(|value| Some(value) != over.as_ref());
                    }
                    if removed {
                        edited.remove(KIND, &name);
                    } else {
                        edited.set(KIND, &name, &value).unwrap();
                        written.last.insert((at, name), value.clone());
                        written.all.push(value);
                    }
                    device.edit(&before, &edited, number as u64).unwrap();
                }
                Event::Report(at, lost) => report(&mut devices[at], &mut relay, lost, &mut written.given_back),
                Event::Deliver(at) => {
                    if let Some(stands) = relay.current() {
                        devices[at].deliver(stands.version, stands.content);
                    }
                }
                Event::Restart(at) => {
                    let again = Record::decode(&devices[at].encode().unwrap());
                    prop_assert_eq!(again.as_ref(), Some(&devices[at]));
                }
                Event::Forget => relay.forgotten = relay.versions.len(),
            }
        }
        for device in &mut devices {
            let mut times = 0;
            while device.waits().is_some() {
                report(device, &mut relay, Lost::Nothing, &mut written.given_back);
                times += 1;
                prop_assert!(times < 10, "it reports without end");
            }
        }
        if let Some(stands) = relay.current() {
            for device in &mut devices {
                device.deliver(stands.version, stands.content.clone());
                prop_assert_eq!(&seen(device), &*stands.content);
            }
        }
        let somewhere = |value: &String| {
            let books = relay.versions.iter().chain(written.given_back.iter().map(|book| &**book));
            books.into_iter().any(|book| book.entries().any(|(_, _, there)| there == value))
        };
        for value in &written.all {
            prop_assert!(somewhere(value), "{} is lost", value);
        }
    }
}
