use super::*;

/// Figure 16D of the document that the wire's form is from, but for the spaces between its lines.
const FIGURE: &str = "<AddressBook>\n<email>\n<User1>xxx@xxx.co.jp</User1>\n<User2>yyy@yyy.co.jp</User2>\n</email>\n</AddressBook>";

fn refused(document: &str) -> String {
    BookDocument::parse(document.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a5_a_book_reads_as_in_the_figure_and_is_written_with_its_name_and_version() {
    let read = BookDocument::parse(FIGURE.as_bytes()).unwrap();
    assert_eq!((read.book, read.version), (None, None));
    let expected = book(&[("email", "User1", "xxx@xxx.co.jp"), ("email", "User2", "yyy@yyy.co.jp")]);
    assert_eq!(read.content, expected);
    let (name, version) = (BookId::new("staff").unwrap(), Version::new(7).unwrap());
    let written = expected.to_document(Some(&name), Some(version));
    assert_eq!(
        written,
        "<AddressBook book='staff' version='7'><email><User1>xxx@xxx.co.jp</User1><User2>yyy@yyy.co.jp</User2></email></AddressBook>"
    );
    let again = BookDocument::parse(written.as_bytes()).unwrap();
    assert_eq!((again.book, again.version, again.content), (Some(name), Some(version), expected));
}

#[test]
fn a5_an_order_and_a_kind_without_entries_mean_nothing() {
    let one = BookDocument::parse(b"<AddressBook><b><x>1</x><y/></b><a/></AddressBook>").unwrap().content;
    let other = BookDocument::parse(b"<AddressBook><b><y></y><x>1</x></b></AddressBook>").unwrap().content;
    assert_eq!(one, other);
    assert_eq!(one.content(), other.content());
    assert_eq!(one.len(), 2);
    let empty = BookDocument::parse(b"<AddressBook/>").unwrap().content;
    assert!(empty.is_empty() && empty.content().is_empty());
}

#[test]
fn a5_what_is_no_part_of_a_book_is_refused_with_its_place_not_lost() {
    for (document, words) in [
        ("<Book/>", "Book: is not an AddressBook"),
        ("<AddressBook xmlns='urn:x'/>", "AddressBook: is in a namespace"),
        ("<AddressBook colour='red'/>", "AddressBook: has an attribute"),
        ("<AddressBook book='a b'/>", "AddressBook: book: an address book's name"),
        ("<AddressBook version='01'/>", "AddressBook: version"),
        ("<AddressBook>hello</AddressBook>", "AddressBook: has text"),
        ("<AddressBook><email>x</email></AddressBook>", "email: has text"),
        ("<AddressBook><email a=''/></AddressBook>", "email: has an attribute"),
        ("<AddressBook><e:email xmlns:e='urn:e'/></AddressBook>", "email: is in a namespace"),
        ("<AddressBook><email/><email><a/></email></AddressBook>", ""),
        ("<AddressBook><email><a/></email><email/></AddressBook>", "email: is there twice"),
        ("<AddressBook><email><a/><a/></email></AddressBook>", "email/a: is there twice"),
        ("<AddressBook><email><a b=''/></email></AddressBook>", "email/a: has an attribute"),
        ("<AddressBook><email><a><b/></a></email></AddressBook>", "email/a: has elements in it"),
        ("<AddressBook>", "ends before"),
        ("<!DOCTYPE x><AddressBook/>", "document types"),
        ("", "ends before"),
    ] {
        match (BookDocument::parse(document.as_bytes()), words) {
            // A kind that is empty is none, so it is not there twice.
            (Ok(_), "") => {}
            (Err(error), words) if !words.is_empty() => {
                assert!(error.to_string().contains(words), "{document}: {error}");
            }
            (outcome, _) => panic!("{document}: {outcome:?}"),
        }
    }
}

#[test]
fn b14_a_book_has_bounds_and_says_which_was_passed() {
    let of = |entries: usize, kinds: usize| {
        let mut document = String::from("<AddressBook>");
        for kind in 0..kinds {
            document += &format!("<k{kind}>");
            (0..entries).for_each(|entry| document += &format!("<e{entry}/>"));
            document += &format!("</k{kind}>");
        }
        document + "</AddressBook>"
    };
    assert_eq!(BookDocument::parse(of(MAX_ENTRIES, 1).as_bytes()).unwrap().content.len(), MAX_ENTRIES);
    assert!(refused(&of(MAX_ENTRIES + 1, 1)).contains("more than 10000 entries"));
    assert!(BookDocument::parse(of(1, MAX_KINDS).as_bytes()).is_ok());
    assert!(refused(&of(1, MAX_KINDS + 1)).contains("more than 64 kinds"));

    let value = |length: usize| format!("<AddressBook><k><e>{}</e></k></AddressBook>", "ü".repeat(length));
    assert!(BookDocument::parse(value(MAX_VALUE).as_bytes()).is_ok());
    assert!(refused(&value(MAX_VALUE + 1)).contains("k/e: has 1025 characters, 1024 are allowed"));
    let name = |length: usize| format!("<AddressBook><k><{0}/></k></AddressBook>", "ü".repeat(length));
    assert!(BookDocument::parse(name(MAX_NAME).as_bytes()).is_ok());
    let error = refused(&name(MAX_NAME + 1000));
    assert!(error.contains("is a name of more than 64 characters") && error.len() < 1000, "{error}");

    let padded = |size: usize| format!("<AddressBook>{}</AddressBook>", " ".repeat(size - 27));
    assert!(BookDocument::parse(padded(MAX_SIZE).as_bytes()).is_ok());
    assert!(refused(&padded(MAX_SIZE + 1)).contains("1048577 bytes, 1048576 are allowed"));
}

#[test]
fn b14_a_book_that_grows_when_it_is_written_is_measured_as_written() {
    let mut document = String::from("<AddressBook><k>");
    for entry in 0..250 {
        document += &format!("<e{entry}><![CDATA[{}]]></e{entry}>", "&".repeat(MAX_VALUE));
    }
    document += "</k></AddressBook>";
    assert!(document.len() < MAX_SIZE / 2);
    assert!(refused(&document).contains("bytes, 1048576 are allowed"));
}

#[test]
fn b14_an_entry_that_is_set_is_checked_like_one_that_is_read() {
    let mut book = book(&[("email", "a", "1")]);
    for (kind, name, value) in [
        ("", "a", ""),
        ("e mail", "a", ""),
        ("email", "1a", ""),
        ("email", "a:b", ""),
        ("email", "<", ""),
        ("email", "a", "\u{0}"),
        ("email", "a", "\u{ffff}"),
    ] {
        assert!(book.set(kind, name, value).is_err(), "{kind:?} {name:?} {value:?}");
    }
    assert!(book.set("email", "a", &"x".repeat(MAX_VALUE + 1)).is_err());
    assert_eq!(book.get("email", "a"), Some("1"));
    assert_eq!(book.set("email", "a", "2").unwrap().as_deref(), Some("1"));
    assert_eq!(book.remove("email", "b"), None);
    assert_eq!(book.remove("email", "a").as_deref(), Some("2"));
    assert!(book.is_empty());
}

#[test]
fn t44_a_book_does_not_show_its_addresses() {
    let shown = format!("{:?}", book(&[("email", "Ann", "ann@a.example")]));
    assert_eq!(shown, "Book(1 entries)");
}

#[test]
fn a5_a_small_book_is_delivered_as_a_header_and_a_large_one_as_data() {
    let (name, version) = (BookId::new("staff").unwrap(), Version::new(7).unwrap());
    let mut content = book(&[("email", "a", "1")]);
    let parcel = Parcel::new(&name, version, &content.content());
    assert_eq!(&*parcel.header, content.to_document(Some(&name), Some(version)));
    assert!(parcel.data.is_empty());
    let opened = Parcel::open(&parcel.header, &parcel.data).unwrap();
    assert_eq!(
        (opened.book.as_ref(), opened.version, &opened.content),
        (Some(&name), Some(version), &content)
    );

    (0..2000)
        .for_each(|n| drop(content.set("email", &format!("u{n}"), "somebody@somewhere.example").unwrap()));
    let parcel = Parcel::new(&name, version, &content.content());
    assert!(parcel.header.starts_with("<AddressBook book='staff' version='7' length='"), "{}", parcel.header);
    let opened = Parcel::open(&parcel.header, &parcel.data).unwrap();
    assert_eq!((opened.book, opened.version, opened.content), (Some(name), Some(version), content.clone()));

    // Cut, of another version, of another book, or nothing at all.
    let other = Parcel::new(&BookId::new("other").unwrap(), version, &content.content());
    let later = Parcel::new(&BookId::new("staff").unwrap(), Version::new(8).unwrap(), &content.content());
    for data in [&parcel.data[..1000], &other.data, &later.data, b""] {
        assert!(Parcel::open(&parcel.header, data).is_err());
    }
    // A header that is none, or is the document itself.
    let length = parcel.data.len();
    for header in [
        format!("<Book book='staff' version='7' length='{length}'/>"),
        format!("<AddressBook xmlns='urn:x' book='staff' version='7' length='{length}'/>"),
        format!("<AddressBook book='staff' version='7' length='{length}'><email/></AddressBook>"),
        format!("<AddressBook book='staff' version='7' length='{length}'>x</AddressBook>"),
        "<AddressBook book='staff' version='7'/>".to_owned(),
    ] {
        assert!(Parcel::open(&header, &parcel.data).is_err(), "{header}");
    }
}

#[test]
fn versions_grow_and_follow_the_clock_where_it_lets_them() {
    let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let first = Version::after(None, at(10));
    assert_eq!(first.number(), 10_000);
    assert_eq!(Version::after(Some(first), at(11)).number(), 11_000);
    // F21: the clock stands still, or goes back.
    assert_eq!(Version::after(Some(first), at(10)).number(), 10_001);
    assert_eq!(Version::after(Some(first), at(0)).number(), 10_001);
    assert_eq!(Version::after(None, SystemTime::UNIX_EPOCH).number(), 1);
    for bad in
        ["", "0", "01", "+1", "-1", " 1", "1 ", "1.0", "x", "9223372036854775808", "99999999999999999999"]
    {
        assert!(bad.parse::<Version>().is_err(), "{bad:?}");
    }
    assert_eq!("9223372036854775807".parse::<Version>().unwrap().to_string(), "9223372036854775807");
}

#[test]
fn old_versions_are_kept_up_to_a_number_and_a_size() {
    assert_eq!(kept([]), 0);
    assert_eq!(kept(std::iter::repeat(1)), MAX_OLD);
    assert_eq!(kept(std::iter::repeat(MAX_OLD_SIZE / 3)), 3);
    assert_eq!(kept([MAX_OLD_SIZE + 1]), 0);
}

proptest! {
    #[test]
    fn a5_what_is_written_is_read_as_it_was(book in any_book()) {
        let read = BookDocument::parse(book.to_document(None, None).as_bytes()).unwrap();
        prop_assert_eq!(&read.content, &book);
        prop_assert_eq!(Book::from_content(&book.content()).unwrap(), book);
    }

    #[test]
    fn t22_no_document_is_too_odd(document in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = BookDocument::parse(&document);
        let inside = [&b"<AddressBook>"[..], &document, b"</AddressBook>"].concat();
        let _ = BookDocument::parse(&inside);
    }
}
