//! Any bytes as a client's message: no panic, and what is taken keeps its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::xml::{Element, Limits, Names};
use transport_bosh::wire::body::RequestBody;

fuzz_target!(|message: &[u8]| {
    let limits = Limits::default();
    let Ok(body) = RequestBody::parse(message, &limits) else { return };
    assert!(body.payloads.len() <= limits.elements);
    for payload in &body.payloads {
        // What was read can be written, and reads back as the same.
        let payload = payload.element();
        let tree = payload.to_element(&Names::RELAY);
        let document = tree.to_document();
        let roomy = Limits::default().with_bytes(usize::MAX);
        if let Ok(again) = Element::parse(document.as_bytes(), &roomy) {
            assert_eq!(again, tree);
        }
        // What stands by itself means the same alone.
        if let Some(source) = payload.source() {
            assert_eq!(Element::parse(source.as_bytes(), &limits), Ok(tree));
        }
    }
});
