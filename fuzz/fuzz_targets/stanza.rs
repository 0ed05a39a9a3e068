//! Any elements in an XMPP stream, before and after log-in: no panic, one answer at most to each, none before its time.
#![no_main]

use std::{sync::LazyLock, time::Instant};

use libfuzzer_sys::fuzz_target;
use relay_core::{
    auth::{AuthError, Principal, ScramHash, ScramVerifier, Secret},
    ids::DeviceId,
    xml::{Document, Element, Limits},
};
use transport_bosh::{
    proto::stream::{StreamOutput, XmppStream},
    wire::body::RequestBody,
};

static NOW: LazyLock<Instant> = LazyLock::new(|| tokio::time::Instant::now().into_std());
static VERIFIER: LazyLock<ScramVerifier> =
    LazyLock::new(|| ScramVerifier::derive(ScramHash::Sha256, &Secret::new("token"), b"salt", 1));

/// Answers what the stream asks for; how many other things came out.
fn serve(stream: &mut XmppStream, authenticated: &mut bool) -> usize {
    let mut others = 0;
    while let Some(output) = stream.poll_output() {
        match output {
            StreamOutput::Verifier { serial, .. } => stream.verified(serial, Ok(VERIFIER.clone()), "nonce"),
            StreamOutput::Authenticate { serial, device, token } if token.expose() == "token" => {
                *authenticated = true;
                stream.authenticated(serial, Ok(Principal::Device(device)));
            }
            StreamOutput::Authenticate { serial, .. } => {
                stream.authenticated(serial, Err(AuthError::Rejected));
            }
            StreamOutput::Bind { .. } => stream.bound(true),
            StreamOutput::Resume { id, .. } => stream.resumed(id.as_deref(), false),
            StreamOutput::Deliver(_) => {
                assert!(stream.device().is_some(), "an envelope from nobody");
                others += 1;
            }
            StreamOutput::Send(piece) => {
                let text = piece.xml.replace("stream:", "");
                assert!(Element::parse(text.as_bytes(), &Limits::default()).is_ok(), "{text}");
                others += 1;
            }
            StreamOutput::Fail(_) => others += 1,
        }
    }
    others
}

fuzz_target!(|input: (bool, bool, &[u8])| {
    let (secure, bound, message) = input;
    let Ok(body) = RequestBody::parse(message, &Limits::default()) else { return };
    let mut stream = XmppStream::new("localhost".into(), secure || bound, 3);
    let mut authenticated = false;
    if bound {
        let Ok(device) = DeviceId::new("printer-1") else { return };
        let hear = |stream: &mut XmppStream, xml: &str| {
            if let Ok(document) = Document::parse(xml.as_bytes(), &Limits::default()) {
                stream.element(document.root(), *NOW);
            }
        };
        hear(&mut stream, "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AHByaW50ZXItMQB0b2tlbg==</auth>");
        serve(&mut stream, &mut authenticated);
        assert!(authenticated);
        stream.restart();
        hear(
            &mut stream,
            "<iq xmlns='jabber:client' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
        );
        serve(&mut stream, &mut authenticated);
        assert_eq!(stream.device(), Some(&device));
    }
    for payload in &body.payloads {
        let payload = payload.element();
        stream.element(payload, *NOW);
        let children = payload.children().count();
        let others = serve(&mut stream, &mut authenticated);
        // A message may carry several words; a failed log-in comes with the end of the stream at most.
        assert!(others <= 2.max(children), "{others} answers to {payload:?}");
    }
    assert!(authenticated || stream.device().is_none());
});
