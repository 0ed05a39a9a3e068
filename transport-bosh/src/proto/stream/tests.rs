use base64::{Engine as _, engine::general_purpose::STANDARD};
use relay_core::{
    auth::{AuthError, Principal, ScramVerifier},
    ids::{Method, ObjectId, RequestId},
    request::{Body, Request},
    xml::{Document, Limits},
};

use super::*;

const SASL: &str = "xmlns='urn:ietf:params:xml:ns:xmpp-sasl'";

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn document(xml: &str) -> Document {
    Document::parse(xml.as_bytes(), &Limits::default()).unwrap()
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn stream(secure: bool) -> XmppStream {
    XmppStream::new("example.net".into(), secure, 3)
}

/// What came out, in short.
fn outputs(stream: &mut XmppStream) -> Vec<String> {
    std::iter::from_fn(|| stream.poll_output())
        .map(|output| match output {
            StreamOutput::Send(piece) => piece.xml,
            StreamOutput::Verifier { device, hash, .. } => format!("verifier of {device} {hash:?}"),
            StreamOutput::Authenticate { device, .. } => format!("authenticate {device}"),
            StreamOutput::Bind { device, .. } => format!("bind {device}"),
            StreamOutput::Deliver(envelope) => format!("{envelope:?}"),
            StreamOutput::Resume { id, session } => format!("resume {} {id:?}", session.as_str()),
            StreamOutput::Fail(error) => format!("fail {}", error.as_str()),
        })
        .collect()
}

fn say(stream: &mut XmppStream, xml: &str) -> Vec<String> {
    stream.element(document(xml).root(), now());
    outputs(stream)
}

fn auth(mechanism: &str, data: &str) -> String {
    format!("<auth {SASL} mechanism='{mechanism}'>{}</auth>", STANDARD.encode(data))
}

fn failure(name: &str) -> String {
    format!("<failure {SASL}><{name}/></failure>")
}

fn verifier() -> ScramVerifier {
    let salt: Vec<u8> = (0x30..=0x3f).collect();
    ScramVerifier::derive(ScramHash::Sha256, &Secret::new("s3cret-1"), &salt, 4096)
}

/// A stream whose device `dev1` is logged in, restarted and bound as `dev1@example.net/r1`.
fn bound() -> XmppStream {
    let mut stream = unbound();
    let bind = "<iq id='b1' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r1</resource></bind></iq>";
    assert_eq!(say(&mut stream, bind), ["bind dev1"]);
    stream.bound(true);
    outputs(&mut stream);
    stream
}

fn unbound() -> XmppStream {
    let mut stream = succeeded();
    stream.restart();
    outputs(&mut stream);
    stream
}

fn succeeded() -> XmppStream {
    let mut stream = stream(true);
    assert_eq!(say(&mut stream, &auth("PLAIN", "\0dev1\0s3cret-1")), ["authenticate dev1"]);
    stream.authenticated(1, Ok(Principal::Device(device("dev1"))));
    assert_eq!(outputs(&mut stream), [format!("<success {SASL}/>")]);
    stream
}

#[test]
fn x3_x4_t14_plain_is_offered_over_tls_alone_and_never_starttls_or_channel_binding() {
    let clear = stream(false).features().xml;
    assert!(clear.contains("SCRAM-SHA-256<") && clear.contains("SCRAM-SHA-1<"), "{clear}");
    assert!(!clear.contains("PLAIN"), "{clear}");
    let secure = stream(true).features().xml;
    assert!(secure.contains("PLAIN"));
    for never in ["starttls", "compression", "PLUS", "ANONYMOUS", "EXTERNAL", "urn:xmpp:sm"] {
        assert!(!secure.contains(never), "{never}");
    }
    assert_eq!(say(&mut stream(false), &auth("PLAIN", "\0dev1\0s3cret-1")), [failure("encryption-required")]);
}

#[test]
fn x2b_x6_scram_is_the_example_byte_for_byte() {
    let mut stream = stream(false);
    let first = say(
        &mut stream,
        &format!("<auth {SASL} mechanism='SCRAM-SHA-256'>biwsbj1kZXYxLHI9cThadDFtQ3dSMHZKN3hZYg==</auth>"),
    );
    assert_eq!(first, ["verifier of dev1 Sha256"]);
    stream.verified(1, Ok(verifier()), "S4kPd2LhUo9eNfTg");
    let challenge = format!(
        "<challenge {SASL}>cj1xOFp0MW1Dd1Iwdko3eFliUzRrUGQyTGhVbzllTmZUZyxzPU1ERXlNelExTmpjNE9UbzdQRDArUHc9PSxpPTQwOTY=</challenge>"
    );
    assert_eq!(outputs(&mut stream), [challenge]);
    let last = "<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>Yz1iaXdzLHI9cThadDFtQ3dSMHZKN3hZYlM0a1BkMkxoVW85ZU5mVGcscD1ha0w3Q1BDOTZqTHlWL2RmeEFxSG9xazVnQ1h4b0x2WWtkZWtBbFA0cWtNPQ==</response>";
    let success =
        format!("<success {SASL}>dj1ZQm5RU1pWV2Z5MG1ScGJsd0Y3WUh3RXdEdlE2VmJVQjdlTnQ4WEFpcnYwPQ==</success>");
    assert_eq!(say(&mut stream, last), [success]);
}

#[test]
fn a_wrong_proof_is_a_failure_and_never_a_success() {
    let mut stream = stream(false);
    say(&mut stream, &auth("SCRAM-SHA-256", "n,,n=dev1,r=q8Zt1mCwR0vJ7xYb"));
    stream.verified(1, Ok(verifier()), "S4kPd2LhUo9eNfTg");
    outputs(&mut stream);
    let proof = STANDARD.encode([0; 32]);
    let last = STANDARD.encode(format!("c=biws,r=q8Zt1mCwR0vJ7xYbS4kPd2LhUo9eNfTg,p={proof}"));
    assert_eq!(say(&mut stream, &format!("<response {SASL}>{last}</response>")), [failure("not-authorized")]);
    // The session lives, and the client may try again.
    assert_eq!(say(&mut stream, &auth("PLAIN", "\0dev1\0x")), [failure("encryption-required")]);
}

#[test]
fn x5_base64_may_be_wrapped_and_an_absent_initial_response_is_asked_for() {
    let mut stream = stream(true);
    let wrapped = STANDARD.encode("\0dev1\0s3cret-1");
    let (a, b) = wrapped.split_at(7);
    let absent = format!("<auth {SASL} mechanism='PLAIN'/>");
    assert_eq!(say(&mut stream, &absent), [format!("<challenge {SASL}/>")]);
    assert_eq!(say(&mut stream, &format!("<response {SASL}>{a}\n {b}</response>")), ["authenticate dev1"]);
    let mut stream = self::stream(true);
    assert_eq!(
        say(&mut stream, &format!("<auth {SASL} mechanism='PLAIN'>!</auth>")),
        [failure("incorrect-encoding")]
    );
}

#[test]
fn t8_a_device_can_act_as_itself_alone() {
    for authzid in ["dev1", "dev1@example.net", "DEV1@EXAMPLE.NET"] {
        let mut stream = stream(true);
        let expected = ["authenticate dev1"];
        assert_eq!(
            say(&mut stream, &auth("PLAIN", &format!("{authzid}\0dev1\0s3cret-1"))),
            expected,
            "{authzid}"
        );
    }
    for authzid in ["dev2", "dev1@example.org", "dev2@example.net", "@", "admin"] {
        let mut plain = stream(true);
        let message = format!("{authzid}\0dev1\0s3cret-1");
        assert_eq!(say(&mut plain, &auth("PLAIN", &message)), [failure("invalid-authzid")], "{authzid}");
        let mut scram = stream(true);
        let message = format!("n,a={authzid},n=dev1,r=x");
        assert_eq!(
            say(&mut scram, &auth("SCRAM-SHA-1", &message)),
            [failure("invalid-authzid")],
            "{authzid}"
        );
    }
    // A token that proves somebody else.
    let mut stream = stream(true);
    say(&mut stream, &auth("PLAIN", "\0dev1\0other"));
    stream.authenticated(1, Ok(Principal::Device(device("dev2"))));
    assert_eq!(outputs(&mut stream), [failure("not-authorized")]);
}

#[test]
fn e9_q6_after_three_failures_the_stream_ends() {
    let mut stream = stream(true);
    for serial in 1..=2 {
        say(&mut stream, &auth("PLAIN", "\0dev1\0wrong"));
        stream.authenticated(serial, Err(AuthError::Rejected));
        assert_eq!(outputs(&mut stream), [failure("not-authorized")]);
    }
    assert_eq!(
        say(&mut stream, &auth("X-UNKNOWN", "")),
        [failure("invalid-mechanism"), "fail policy-violation".into()]
    );
    assert!(
        say(&mut stream, &auth("PLAIN", "\0dev1\0s3cret-1")).is_empty(),
        "nothing is heard after the end"
    );
}

#[test]
fn t8_x1_a_restart_while_a_credential_is_looked_up_ends_the_stream() {
    for (mechanism, data) in [("SCRAM-SHA-256", "n,,n=mallory,r=x"), ("PLAIN", "\0mallory\0token")] {
        let mut stream = stream(true);
        say(&mut stream, &auth(mechanism, data));
        stream.restart();
        assert_eq!(outputs(&mut stream), ["fail policy-violation"], "{mechanism}");
        assert!(say(&mut stream, &auth(mechanism, "n,,n=victim,r=x")).is_empty());
        stream.verified(1, Ok(verifier()), "nonce");
        stream.authenticated(1, Ok(Principal::Device(device("mallory"))));
        assert!(outputs(&mut stream).is_empty(), "nothing is answered after the end");
    }
}

#[test]
fn t8_x1_an_answer_about_a_credential_serves_the_question_that_it_answers_alone() {
    let mut scram = stream(true);
    say(&mut scram, &auth("SCRAM-SHA-256", "n,,n=mallory,r=x"));
    scram.verified(1, Err(AuthError::Unavailable), "nonce");
    assert_eq!(outputs(&mut scram), [failure("temporary-auth-failure")]);
    assert_eq!(say(&mut scram, &auth("SCRAM-SHA-256", "n,,n=victim,r=x")), ["verifier of victim Sha256"]);
    for stale in [0, 1, 3] {
        scram.verified(stale, Ok(verifier()), "nonce");
        assert!(outputs(&mut scram).is_empty(), "the verifier of question {stale} was taken for another's");
    }
    scram.verified(2, Ok(verifier()), "nonce");
    assert_eq!(outputs(&mut scram).len(), 1, "the open question can still be answered");

    let mut plain = stream(true);
    say(&mut plain, &auth("PLAIN", "\0dev1\0wrong"));
    plain.authenticated(1, Err(AuthError::Rejected));
    outputs(&mut plain);
    say(&mut plain, &auth("PLAIN", "\0dev1\0wrong"));
    plain.authenticated(1, Ok(Principal::Device(device("dev1"))));
    assert!(outputs(&mut plain).is_empty(), "an answer to an earlier question let somebody in");
    plain.authenticated(2, Err(AuthError::Rejected));
    assert_eq!(outputs(&mut plain), [failure("not-authorized")]);
}

#[test]
fn credentials_that_cannot_be_checked_are_no_wrong_ones() {
    let mut stream = stream(true);
    say(&mut stream, &auth("PLAIN", "\0dev1\0s3cret-1"));
    stream.authenticated(1, Err(AuthError::Unavailable));
    assert_eq!(outputs(&mut stream), [failure("temporary-auth-failure")]);
}

#[test]
fn steps_alternate_and_malformed_ones_fail() {
    for bad in ["", "\0", "dev1", "a\0b\0c\0d", "\0dev 1\0x"] {
        let answer = say(&mut stream(true), &auth("PLAIN", bad));
        assert!(answer[0].starts_with("<failure") || bad.is_empty(), "{bad:?}: {answer:?}");
    }
    let mut stream = stream(true);
    assert_eq!(say(&mut stream, &format!("<response {SASL}/>")), [failure("malformed-request")]);
    assert_eq!(say(&mut stream, &format!("<abort {SASL}/>")), [failure("aborted")]);
    say(&mut stream, &auth("PLAIN", "\0dev1\0s3cret-1"));
    assert_eq!(say(&mut stream, &auth("PLAIN", "\0dev1\0s3cret-1")), ["fail policy-violation"]);
}

#[test]
fn f10_x11_x12_stanzas_before_their_time_end_the_stream() {
    let message = "<message xmlns='jabber:client'><ping xmlns='urn:relay:1'/></message>";
    for mut early in [stream(true), succeeded(), unbound()] {
        assert_eq!(say(&mut early, message), ["fail not-authorized"]);
    }
    let bind =
        "<iq id='b' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
    assert_eq!(say(&mut succeeded(), bind), ["fail not-authorized"], "the restart comes first");
}

#[test]
fn x9_a_restart_forgets_what_was_begun_and_gives_fresh_features() {
    let mut stream = stream(true);
    say(&mut stream, &auth("SCRAM-SHA-256", "n,,n=dev1,r=x"));
    stream.verified(1, Ok(verifier()), "nonce");
    outputs(&mut stream);
    stream.restart();
    assert!(outputs(&mut stream)[0].contains("<mechanisms"));
    let proof = STANDARD.encode("c=biws,r=xnonce,p=AAAA");
    let last = format!("<response {SASL}>{proof}</response>");
    assert_eq!(say(&mut stream, &last), [failure("malformed-request")], "there is no challenge any more");
    let mut stream = succeeded();
    stream.restart();
    let bind = "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>";
    assert_eq!(outputs(&mut stream), [bind]);
    let mut stream = bound();
    stream.restart();
    assert_eq!(outputs(&mut stream), ["fail policy-violation"]);
}

#[test]
fn x12_binding_takes_the_clients_resource_or_gives_one() {
    for (wanted, got) in [
        ("<resource>a b&amp;c</resource>", "a b&amp;c"),
        ("", "device"),
        ("<resource/>", "device"),
        (&format!("<resource>{}</resource>", "x".repeat(129)), "device"),
    ] {
        let mut stream = unbound();
        let bind = format!(
            "<iq id='b' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>{wanted}</bind></iq>"
        );
        assert_eq!(say(&mut stream, &bind), ["bind dev1"]);
        stream.bound(true);
        assert!(outputs(&mut stream)[0].contains(&format!("<jid>dev1@example.net/{got}</jid>")));
    }
}

#[test]
fn a_session_that_nobody_takes_is_a_resource_constraint_and_may_be_tried_again() {
    let mut stream = unbound();
    let bind =
        "<iq id='b' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
    say(&mut stream, bind);
    stream.bound(false);
    assert_eq!(
        outputs(&mut stream),
        [
            "<iq id='b' type='error' xmlns='jabber:client'><error type='wait'><resource-constraint xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
        ]
    );
    assert_eq!(say(&mut stream, bind), ["bind dev1"]);
}

#[test]
fn x13_t8_stanzas_from_somebody_else_end_the_stream() {
    let ping = |from: &str| {
        format!(
            "<iq id='q' type='get' from='{from}' xmlns='jabber:client'><ping xmlns='urn:xmpp:ping'/></iq>"
        )
    };
    for own in ["dev1@example.net", "DEV1@EXAMPLE.NET", "dev1@example.net/r1"] {
        assert_eq!(say(&mut bound(), &ping(own)).len(), 1, "{own}");
    }
    for foreign in [
        "dev2@example.net",
        "dev1@example.net/R1",
        "dev1@example.net/",
        "dev1",
        "example.net",
        "",
        "dev1@example.net.evil",
    ] {
        assert_eq!(say(&mut bound(), &ping(foreign)), ["fail invalid-from"], "{foreign}");
    }
}

#[test]
fn p3_pings_are_answered_both_ways() {
    let mut stream = bound();
    let pong =
        "<iq id='q1' type='result' from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'/>";
    assert_eq!(
        say(
            &mut stream,
            "<iq id='q1' type='get' to='example.net' xmlns='jabber:client'><ping xmlns='urn:xmpp:ping'/></iq>"
        ),
        [pong]
    );
    stream.ping();
    stream.ping();
    assert_eq!(
        outputs(&mut stream),
        [
            "<iq id='ping-1' type='get' from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'><ping xmlns='urn:xmpp:ping'/></iq>"
        ]
    );
    // Either answer proves that it lives, and neither is an answer to a request.
    assert!(
        say(&mut stream, "<iq id='ping-1' type='error' xmlns='jabber:client'><error type='cancel'/></iq>")
            .is_empty()
    );
    stream.ping();
    assert!(outputs(&mut stream)[0].contains("ping-2"));
}

#[test]
fn x14_x16_every_iq_is_answered_once_and_errors_are_payloads() {
    let mut stream = bound();
    let answer = |stream: &mut XmppStream, iq: &str| {
        let answers = say(stream, iq);
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.into_iter().next().unwrap()
    };
    for (iq, condition) in [
        (
            "<iq id='1' type='get' xmlns='jabber:client'><q xmlns='jabber:iq:roster'/></iq>",
            "service-unavailable",
        ),
        (
            "<iq id='1' type='set' xmlns='jabber:client'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>",
            "service-unavailable",
        ),
        (
            "<iq id='1' type='get' to='dev2@example.net' xmlns='jabber:client'><ping xmlns='urn:xmpp:ping'/></iq>",
            "service-unavailable",
        ),
        ("<iq id='1' type='set' xmlns='jabber:client'/>", "bad-request"),
        ("<iq id='1' xmlns='jabber:client'><a xmlns='x'/></iq>", "bad-request"),
        ("<iq id='1' type='get' xmlns='jabber:client'><a xmlns='x'/><b xmlns='x'/></iq>", "bad-request"),
        ("<iq id='1' type='set' xmlns='jabber:client'><unheard-of xmlns='urn:relay:1'/></iq>", "bad-request"),
        ("<iq id='1' type='set' xmlns='jabber:client'><resume xmlns='urn:relay:1'/></iq>", "bad-request"),
        (
            "<iq id='1' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
            "not-allowed",
        ),
        (
            "<message id='1' to='dev2@example.net' xmlns='jabber:client'><body>hi</body></message>",
            "service-unavailable",
        ),
    ] {
        let answer = answer(&mut stream, iq);
        assert!(
            answer.contains("id='1' type='error'") && answer.contains(&format!("<{condition} ")),
            "{iq}: {answer}"
        );
    }
    for silent in [
        "<presence xmlns='jabber:client'/>",
        "<message type='error' xmlns='jabber:client'/>",
        "<message to='example.net' xmlns='jabber:client'><body>hi</body></message>",
        "<message xmlns='jabber:client'><unheard-of xmlns='urn:relay:1'/><ack id='1' outcome='accepted' xmlns='urn:relay:1'/></message>",
        "<iq id='not asked/' type='result' xmlns='jabber:client'/>",
    ] {
        assert!(say(&mut stream, silent).is_empty(), "{silent}");
    }
    assert_eq!(say(&mut stream, "<presence xmlns='urn:other'/>"), ["fail unsupported-stanza-type"]);
}

/// The one envelope that `xml` is.
fn delivered(xml: &str) -> Option<Envelope> {
    let mut stream = bound();
    stream.element(document(xml).root(), now());
    match (stream.poll_output(), stream.poll_output()) {
        (Some(StreamOutput::Deliver(envelope)), None) => Some(envelope),
        (None, None) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_iq_result_is_an_answer_in_any_of_three_forms() {
    let answer = |payload: &str| {
        let iq = format!("<iq id='r1' type='result' to='example.net' xmlns='jabber:client'>{payload}</iq>");
        match delivered(&iq) {
            Some(Envelope::Response { id, response, acknowledge }) => {
                assert_eq!(id.as_str(), "r1");
                let body = response.body.map(|body| (body.content_type().to_owned(), body.bytes));
                (response.status.as_str().to_owned(), body, acknowledge)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(answer(""), ("ok".into(), None, false));
    let body = "<response id='r1' xmlns='urn:relay:1'><body type='text/plain'>42</body></response>";
    assert_eq!(answer(body), ("ok".into(), Some(("text/plain".into(), "42".into())), true));
    let without_id = "<response status='device-error' xmlns='urn:relay:1'/>";
    assert_eq!(answer(without_id), ("device-error".into(), None, true));
    let foreign = "<level unit='%' xmlns='urn:vendor'>42<a/></level>";
    let bytes = "<level unit='%' xmlns='urn:vendor'>42<a/></level>";
    assert_eq!(answer(foreign), ("ok".into(), Some(("application/xml".into(), bytes.into())), false));
}

#[test]
fn an_iq_error_is_an_answer_that_says_why() {
    let answer = |error: &str| {
        let iq = format!("<iq id='r1' type='error' to='example.net' xmlns='jabber:client'>{error}</iq>");
        match delivered(&iq) {
            Some(Envelope::Response { response, acknowledge: false, .. }) => {
                (response.status.as_str().to_owned(), response.body.map(|body| body.bytes))
            }
            other => panic!("{other:?}"),
        }
    };
    let stanzas = "xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'";
    assert_eq!(
        answer(&format!("<error type='cancel'><item-not-found {stanzas}/></error>")),
        ("unknown-object".into(), None)
    );
    let refused = format!(
        "<error type='auth'><forbidden {stanzas}/><text {stanzas}>not today</text><x xmlns='y'/></error>"
    );
    assert_eq!(answer(&refused), ("forbidden".into(), Some("not today".into())));
    for odd in [
        String::new(),
        "<error/>".into(),
        format!("<error><ok {stanzas}/></error>"),
        format!("<error><text {stanzas}>?</text></error>"),
    ] {
        assert_eq!(answer(&odd).0, "undefined-condition", "{odd}");
    }
}

#[test]
fn t5_an_id_in_the_wrong_stanza_is_no_answer() {
    let response = "<response id='r1' xmlns='urn:relay:1'/>";
    for wrong in [
        format!("<iq id='r1' type='get' xmlns='jabber:client'>{response}</iq>"),
        format!("<iq id='r1' type='set' xmlns='jabber:client'>{response}</iq>"),
        format!("<iq id='r1' xmlns='jabber:client'>{response}</iq>"),
        format!("<iq id='r1' type='result' to='dev2@example.net' xmlns='jabber:client'>{response}</iq>"),
        "<iq id='r1' type='result' to='evil.example' xmlns='jabber:client'/>".into(),
        "<iq id='r1' type='result' xmlns='jabber:client'><response id='r2' xmlns='urn:relay:1'/></iq>".into(),
        "<iq type='result' xmlns='jabber:client'/>".into(),
        "<message id='r1' type='result' xmlns='jabber:client'/>".into(),
        "<presence id='r1' type='result' xmlns='jabber:client'/>".into(),
        format!("<message id='r1' to='dev2@example.net' xmlns='jabber:client'>{response}</message>"),
        format!("<message id='r1' xmlns='jabber:client'><x xmlns='urn:other'>{response}</x></message>"),
        "<iq id='r1' type='result' xmlns='jabber:client'><response id='r1' xmlns='urn:relay:1'><body encoding='base64'>?</body></response></iq>".into(),
    ] {
        let mut stream = bound();
        stream.element(document(&wrong).root(), now());
        while let Some(output) = stream.poll_output() {
            assert!(!matches!(output, StreamOutput::Deliver(_)), "{wrong} was taken");
        }
    }
}

#[test]
fn messages_carry_the_vocabulary() {
    let message = |payload: &str| delivered(&format!("<message xmlns='jabber:client'>{payload}</message>"));
    let id = RequestId::new("r1").unwrap();
    assert_eq!(message("<received id='r1' xmlns='urn:relay:1'/>"), Some(Envelope::Received { id }));
    assert_eq!(message("<ping xmlns='urn:relay:1'/>"), Some(Envelope::Ping));
    assert!(matches!(
        message("<response id='r1' xmlns='urn:relay:1'/>"),
        Some(Envelope::Response { acknowledge: true, .. })
    ));
    assert_eq!(
        message("<request id='r1' method='GET' xmlns='urn:relay:1'/>"),
        None,
        "devices ask nothing this way"
    );
}

#[test]
fn resuming_is_asked_for_by_iq_and_answered() {
    let mut stream = bound();
    let resume =
        "<iq id='s1' type='set' xmlns='jabber:client'><resume session='abc' xmlns='urn:relay:1'/></iq>";
    assert_eq!(say(&mut stream, resume), ["resume abc Some(\"s1\")"]);
    stream.resumed(Some("s1"), true);
    assert_eq!(
        outputs(&mut stream),
        ["<iq id='s1' type='result' from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'/>"]
    );
    stream.resumed(Some("s1"), false);
    assert!(outputs(&mut stream)[0].contains("<item-not-found "));
}

#[test]
fn requests_are_iqs_and_everything_else_travels_in_messages() {
    let stream = bound();
    let encode = |envelope| stream.encode(&envelope, now()).unwrap().xml;
    let ask = |method: Method| {
        let request = Request::new(device("dev1"), method).with_object(ObjectId::new("1.3.6").unwrap());
        Envelope::Request { id: RequestId::new("r1").unwrap(), request: request.into(), deadline: now() }
    };
    let get = encode(ask(Method::get()));
    assert!(get.starts_with("<iq id='r1' type='get' from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'><request id='r1' "), "{get}");
    assert!(encode(ask(Method::set())).starts_with("<iq id='r1' type='set' "));
    assert!(encode(ask(Method::new("REBOOT").unwrap())).starts_with("<iq id='r1' type='set' "));
    let pong = "<message from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'><pong xmlns='urn:relay:1'/></message>";
    assert_eq!(&*encode(Envelope::Pong), pong);
    let too_large =
        Request::new(device("dev1"), Method::set()).with_body(Body::new("a/b", vec![0; 128 * 1024 + 1]));
    let too_large =
        Envelope::Request { id: RequestId::new("r1").unwrap(), request: too_large.into(), deadline: now() };
    assert!(stream.encode(&too_large, now()).is_none());
}

#[test]
fn an_id_that_is_sent_back_is_bounded() {
    let ping = |id: &str| {
        format!("<iq id=\"{id}\" type='get' xmlns='jabber:client'><ping xmlns='urn:xmpp:ping'/></iq>")
    };
    let answer = say(&mut bound(), &ping(&"'".repeat(1_024))).remove(0);
    assert_eq!(document(&answer).root().attr("id").map(str::len), Some(1_024));
    assert_eq!(say(&mut bound(), &ping(&"'".repeat(1_025))), ["fail policy-violation"]);
}
