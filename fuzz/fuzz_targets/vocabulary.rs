//! Any element as a word of the relay's vocabulary: no panic, and what is read can be written and read again.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use relay_core::{
    ids::DeviceId,
    xml::{
        Element, Limits,
        vocabulary::{Decoded, decode, decode_resume, encode},
    },
};

static NOW: LazyLock<std::time::Instant> = LazyLock::new(|| tokio::time::Instant::now().into_std());

fuzz_target!(|document: &[u8]| {
    let Ok(element) = Element::parse(document, &Limits::default()) else { return };
    let Ok(device) = DeviceId::new("printer-1") else { return };
    let _ = decode_resume(&element);
    let Ok(Decoded::Envelope(envelope)) = decode(&element, &device, *NOW) else { return };
    let write =
        |envelope| encode(envelope, &device, *NOW).expect("what was read has a size that can be written");
    // Times are rounded when they are written, so it is the second writing that has to be like the first.
    let written = write(&envelope);
    match decode(&written, &device, *NOW) {
        Ok(Decoded::Envelope(again)) => assert_eq!(write(&again).to_document(), written.to_document()),
        other => panic!("{envelope:?} came back as {other:?}"),
    }
});
