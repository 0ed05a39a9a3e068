use super::*;

fn parse(message: &str) -> Result<RequestBody, BodyError> {
    RequestBody::parse(message.as_bytes(), &Limits::default())
}

fn wrap(attributes: &str, payloads: &str) -> String {
    format!("<body {attributes} xmlns='http://jabber.org/protocol/httpbind'>{payloads}</body>")
}

#[test]
fn w1_the_wrapper_is_known_by_namespace_and_not_by_prefix() {
    let prefixed = "<b:body rid='1' sid='s' xmlns:b='http://jabber.org/protocol/httpbind'/>";
    assert_eq!(parse(prefixed).unwrap().sid.as_deref(), Some("s"));
    assert_eq!(parse("<body rid='1' sid='s' xmlns='jabber:client'/>"), Err(BodyError::Root));
    assert_eq!(parse("<message rid='1' xmlns='http://jabber.org/protocol/httpbind'/>"), Err(BodyError::Root));
    let two = format!("{0}{0}", wrap("rid='1'", ""));
    assert!(matches!(parse(&two), Err(BodyError::Xml(_))));
}

#[test]
fn w2_t18_t19_what_xmpp_forbids_is_refused() {
    for bad in [
        "<!DOCTYPE body [<!ENTITY a 'b'>]><body rid='1' xmlns='http://jabber.org/protocol/httpbind'/>"
            .to_owned(),
        wrap("rid='1'", "<a xmlns='x'>&lol;</a>"),
        wrap("rid='1'", "<!-- c -->"),
        wrap("rid='1'", "<?php ?>"),
        wrap("rid='1'", "<a xmlns='x'>"),
        "<body rid='1' xmlns='http://jabber.org/protocol/httpbind'>".to_owned(),
    ] {
        assert!(matches!(parse(&bad), Err(BodyError::Xml(_))), "{bad} was taken");
    }
    assert!(parse(&wrap("rid='1'", "<a xmlns='x'>&amp;&#x41;<![CDATA[<]]></a>")).is_ok());
}

#[test]
fn w3_blanks_between_payloads_and_a_declaration_in_front_are_taken_and_text_is_not() {
    let spaced =
        format!("<?xml version='1.0' encoding='UTF-8'?>\n{}", wrap("rid='1'", " \n<a xmlns='x'/>\t"));
    assert_eq!(parse(&spaced).unwrap().payloads.len(), 1);
    assert_eq!(parse(&wrap("rid='1'", "hello")), Err(BodyError::Text));
    assert_eq!(parse(&wrap("rid='1'", "<a xmlns='x'/>hello")), Err(BodyError::Text));
}

#[test]
fn w4_payloads_of_any_namespace_keep_their_order() {
    let body = parse(&wrap("rid='1'", "<a xmlns='x'/><b xmlns='y'/><a xmlns='z'/>")).unwrap();
    let names: Vec<_> = body.payloads.iter().map(|payload| payload.element().namespace()).collect();
    assert_eq!(names, ["x", "y", "z"]);
}

#[test]
fn w5_a_request_without_rid_is_none() {
    assert_eq!(parse(&wrap("sid='s'", "")), Err(BodyError::Attribute("rid")));
}

#[test]
fn w6_unknown_attributes_order_and_quotes_carry_no_meaning() {
    let body = parse(
        "<body xmlns=\"http://jabber.org/protocol/httpbind\" foo='1' window='5' secure=\"true\" sid=\"s\" rid=\"7\"/>",
    );
    assert_eq!(body.unwrap().rid.get(), 7);
}

#[test]
fn w7_numbers_are_digits_and_clamp() {
    for bad in [
        "rid='-1'",
        "rid=''",
        "rid=' 1'",
        "rid='9007199254740992'",
        "rid='1.5'",
        "rid='1' wait='-1'",
        "rid='1' ack='x'",
        "rid='1' pause='1s'",
        "rid='1' ver='one'",
        "rid='1' hold='0x1'",
    ] {
        assert!(matches!(parse(&wrap(bad, "")), Err(BodyError::Attribute(_))), "{bad} was taken");
    }
    let huge = parse(&wrap("rid='1' wait='4294967296' hold='300' pause='70000'", "")).unwrap();
    assert_eq!((huge.wait, huge.hold, huge.pause), (Some(u16::MAX), Some(u8::MAX), Some(u16::MAX)));
}

#[test]
fn versions_compare_as_two_integers() {
    assert!(
        parse(&wrap("rid='1' ver='1.11'", "")).unwrap().ver
            > parse(&wrap("rid='1' ver='1.6'", "")).unwrap().ver
    );
}

#[test]
fn w9_w10_stanzas_that_inherit_the_wrappers_namespace_become_the_clients() {
    let body = parse(&wrap("rid='1'", "<message><body>hi</body><x xmlns='y'><z/></x></message>")).unwrap();
    let message = body.payloads[0].element();
    assert!(message.is(ns::CLIENT, "message"));
    assert!(message.child(ns::CLIENT, "body").is_some());
    assert!(message.child("y", "x").unwrap().child("y", "z").is_some());
}

#[test]
fn x9_restart_is_known_by_namespace_and_by_both_spellings_of_true() {
    for good in ["xmlns:xmpp='urn:xmpp:xbosh' xmpp:restart='true'", "xmlns:q='urn:xmpp:xbosh' q:restart='1'"]
    {
        assert!(parse(&wrap(&format!("rid='1' sid='s' {good}"), "")).unwrap().restart, "{good}");
    }
    for other in ["restart='true'", "xmlns:xmpp='urn:other' xmpp:restart='true'"] {
        assert!(!parse(&wrap(&format!("rid='1' sid='s' {other}"), "")).unwrap().restart, "{other}");
    }
}

#[test]
fn f34_terminal_is_terminate() {
    assert!(parse(&wrap("rid='1' sid='s' type='terminal'", "")).unwrap().terminate);
    assert!(parse(&wrap("rid='1' sid='s' type='terminate'", "")).unwrap().terminate);
    assert!(!parse(&wrap("rid='1' sid='s' type='error'", "")).unwrap().terminate);
}

#[test]
fn the_addressee_of_a_broken_message_is_read_from_its_start_tag() {
    let limits = Limits::default();
    let of = |message: &str| {
        addressee(message.as_bytes(), &limits).map(|(sid, rid)| (sid.into_string(), rid.get()))
    };
    let expected = Some(("s".to_owned(), 9));
    assert_eq!(of(&wrap("rid='9' sid='s'", "<a>")), expected);
    assert_eq!(of(&format!("<?xml version='1.0'?>{}", wrap("rid='9' sid='s'", "&lol;"))), expected);
    assert_eq!(of("<body rid='9' sid='s' xmlns='http://jabber.org/protocol/httpbind'"), None);
    assert_eq!(of("<!DOCTYPE a><body rid='9' sid='s' xmlns='http://jabber.org/protocol/httpbind'/>"), None);
    assert_eq!(of(""), None);
    assert_eq!(of("<?"), None);
}

#[test]
fn answers_are_the_examples_bytes() {
    let normal = |pieces: &[Piece]| answer(&AnswerTag::default(), pieces);
    let kind = |kind, pieces: &[Piece]| answer(&AnswerTag { kind, ..AnswerTag::default() }, pieces);
    let terminate = |condition| AnswerKind::Terminate(condition);
    let report = Rid::new(1031).map(|rid| (rid, 852));
    let cases = [
        (51, normal(&[]), "<body xmlns='http://jabber.org/protocol/httpbind'/>"),
        (
            64,
            kind(AnswerKind::Error, &[]),
            "<body xmlns='http://jabber.org/protocol/httpbind' type='error'/>",
        ),
        (
            68,
            kind(terminate(None), &[]),
            "<body xmlns='http://jabber.org/protocol/httpbind' type='terminate'/>",
        ),
        (
            95,
            super::terminate(TerminalCondition::ItemNotFound),
            "<body xmlns='http://jabber.org/protocol/httpbind' type='terminate' condition='item-not-found'/>",
        ),
        (
            96,
            super::terminate(TerminalCondition::SystemShutdown),
            "<body xmlns='http://jabber.org/protocol/httpbind' type='terminate' condition='system-shutdown'/>",
        ),
        (
            76,
            answer(&AnswerTag { report, ..AnswerTag::default() }, &[]),
            "<body xmlns='http://jabber.org/protocol/httpbind' report='1031' time='852'/>",
        ),
        (
            238,
            kind(
                terminate(Some(TerminalCondition::RemoteStreamError)),
                &[Piece::with_stream_prefix(
                    "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
                )],
            ),
            "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:stream='http://etherx.jabber.org/streams' type='terminate' condition='remote-stream-error'><stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></body>",
        ),
    ];
    for (length, bytes, expected) in cases {
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
        assert_eq!(bytes.len(), length, "{expected}");
    }
}

#[test]
fn w8_only_a_body_with_features_or_a_stream_error_declares_the_prefix() {
    let plain = answer(&AnswerTag::default(), &[Piece::new("<a xmlns='x'/>")]);
    assert!(!plain.windows(12).any(|w| w == b"xmlns:stream"));
    let features = answer(&AnswerTag::default(), &[Piece::with_stream_prefix("<stream:features/>")]);
    let features = Document::parse(&features, &Limits::default()).unwrap();
    assert!(features.root().child(ns::STREAMS, "features").is_some());
}
