//! Any header and data as an address book on its way: no panic, and what is opened can be packed and opened again. A NUL
//! divides the two.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::book::Parcel;

fuzz_target!(|input: &[u8]| {
    let split = input.iter().position(|&byte| byte == 0).unwrap_or(input.len());
    let (header, data) = (&input[..split], input.get(split + 1..).unwrap_or_default());
    let Ok(header) = std::str::from_utf8(header) else { return };
    let Ok(opened) = Parcel::open(header, data) else { return };
    let (Some(book), Some(version)) = (&opened.book, opened.version) else { return };
    let content = opened.content.content();
    let parcel = Parcel::new(book, version, &content);
    assert_eq!(Parcel::open(&parcel.header, &parcel.data).as_ref(), Ok(&opened));
    // The same as data, however small it is: bound to its header, which speaks of no other.
    let document = opened.content.to_document(Some(book), Some(version));
    let header_of = |version: &str| {
        format!("<AddressBook book='{book}' version='{version}' length='{}'/>", document.len())
    };
    let header = header_of(&version.to_string());
    assert_eq!(Parcel::open(&header, document.as_bytes()).as_ref(), Ok(&opened));
    assert!(Parcel::open(&header, &document.as_bytes()[1..]).is_err());
    if version.number() != 1 {
        assert!(Parcel::open(&header_of("1"), document.as_bytes()).is_err());
    }
});
