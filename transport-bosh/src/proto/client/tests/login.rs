//! Log-in, against the examples of the specifications and against servers that lie.

use relay_core::{
    auth::Secret,
    ids::SessionId,
    xml::{Element, Limits},
};

use super::super::login::{Account, LoggedIn, Login, LoginError, Step};
use crate::wire::ns;

const NONCE: &str = "q8Zt1mCwR0vJ7xYb";

fn login(confidential: bool) -> Login {
    Login::new(Account::new("dev1", Secret::new("s3cret-1")), confidential, NONCE.into(), None)
}

fn xml(document: &str) -> Element {
    Element::parse(document.as_bytes(), &Limits::default()).unwrap()
}

fn features(inside: &str) -> Element {
    xml(&format!("<stream:features xmlns:stream='{}'>{inside}</stream:features>", ns::STREAMS))
}

fn mechanisms(names: &[&str]) -> Element {
    let names: String = names.iter().map(|name| format!("<mechanism>{name}</mechanism>")).collect();
    features(&format!("<mechanisms xmlns='{}'>{names}</mechanisms>", ns::SASL))
}

fn sasl(name: &str, text: &str) -> Element {
    Element::new(ns::SASL, name.to_owned()).with_text(text)
}

fn sent(step: Result<Step, LoginError>) -> Element {
    match step {
        Ok(Step::Send(element)) => element,
        other => panic!("{other:?}"),
    }
}

const CHALLENGE: &str =
    "cj1xOFp0MW1Dd1Iwdko3eFliUzRrUGQyTGhVbzllTmZUZyxzPU1ERXlNelExTmpjNE9UbzdQRDArUHc9PSxpPTQwOTY=";
const SUCCESS: &str = "dj1ZQm5RU1pWV2Z5MG1ScGJsd0Y3WUh3RXdEdlE2VmJVQjdlTnQ4WEFpcnYwPQ==";

/// Up to the success of SCRAM-SHA-256 (the exchange of bosh example X-2b).
fn authenticated() -> Login {
    let mut login = login(false);
    let auth = sent(login.handle(&mechanisms(&["SCRAM-SHA-256"])));
    assert_eq!(
        auth.to_document(),
        "<auth mechanism='SCRAM-SHA-256' xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
         biwsbj1kZXYxLHI9cThadDFtQ3dSMHZKN3hZYg==</auth>"
    );
    let response = sent(login.handle(&sasl("challenge", CHALLENGE)));
    assert_eq!(
        response.text(),
        "Yz1iaXdzLHI9cThadDFtQ3dSMHZKN3hZYlM0a1BkMkxoVW85ZU5mVGcscD1ha0w3Q1BDOTZqTHlWL2RmeEFxSG9xazVnQ1h4b0x2WWtk\
         ZWtBbFA0cWtNPQ=="
    );
    assert_eq!(login.handle(&sasl("success", SUCCESS)), Ok(Step::Restart));
    login
}

fn bound(jid: &str) -> Element {
    xml(&format!(
        "<iq xmlns='jabber:client' id='bind-1' type='result'><bind xmlns='{}'><jid>{jid}</jid></bind></iq>",
        ns::BIND
    ))
}

fn bindable(login: &mut Login) -> Element {
    sent(login.handle(&features(&format!("<bind xmlns='{}'/>", ns::BIND))))
}

#[test]
fn x6_scram_sha_256_then_restart_then_bind() {
    let mut login = authenticated();
    assert_eq!(
        bindable(&mut login).to_document(),
        "<iq id='bind-1' type='set' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>"
    );
    let done = LoggedIn { jid: "dev1@example.net/r1".into(), resumed: None };
    assert_eq!(login.handle(&bound("dev1@example.net/r1")), Ok(Step::Done(done)));
}

#[test]
fn x12_the_jid_is_the_servers() {
    let account = Account::new("dev1", Secret::new("s3cret-1")).with_resource("mine");
    let mut login = Login::new(account, true, NONCE.into(), None);
    sent(login.handle(&mechanisms(&["PLAIN"])));
    assert_eq!(login.handle(&sasl("success", "")), Ok(Step::Restart));
    let bind = bindable(&mut login);
    assert!(bind.to_document().contains("<resource>mine</resource>"));
    // An answer to something else, and a request, are neither.
    let other = "<iq xmlns='jabber:client' id='x' type='result'/>";
    assert_eq!(login.handle(&xml(other)), Ok(Step::Wait));
    assert_eq!(login.handle(&xml("<iq xmlns='jabber:client' id='bind-1' type='get'/>")), Ok(Step::Wait));
    let Ok(Step::Done(done)) = login.handle(&bound("dev1@example.net/theirs")) else { panic!() };
    assert_eq!(&*done.jid, "dev1@example.net/theirs");
}

#[test]
fn x12_a_session_is_asked_for_only_where_it_must_be() {
    let bind = format!("<bind xmlns='{}'/>", ns::BIND);
    let session = |inside: &str| format!("{bind}<session xmlns='{}'>{inside}</session>", ns::SESSION);
    let mut login = authenticated();
    sent(login.handle(&features(&session("<optional/>"))));
    assert!(matches!(login.handle(&bound("a@b/c")), Ok(Step::Done(_))));

    let mut login = authenticated();
    sent(login.handle(&features(&session(""))));
    let asked = sent(login.handle(&bound("a@b/c")));
    assert!(asked.child(ns::SESSION, "session").is_some());
    let granted = xml("<iq xmlns='jabber:client' id='session-1' type='result'/>");
    assert!(matches!(login.handle(&granted), Ok(Step::Done(_))));
}

#[test]
fn resume_is_asked_for_after_bind_and_either_answer_is_a_log_in() {
    for (answer, resumed) in [("result", true), ("error", false)] {
        let session = SessionId::new("old-1").unwrap();
        let account = Account::new("dev1", Secret::new("s3cret-1"));
        let mut login = Login::new(account, true, NONCE.into(), Some(session));
        sent(login.handle(&mechanisms(&["PLAIN"])));
        login.handle(&sasl("success", "")).unwrap();
        bindable(&mut login);
        let asked = sent(login.handle(&bound("a@b/c")));
        assert_eq!(asked.child(ns::RELAY, "resume").unwrap().attr("session"), Some("old-1"));
        let answer = xml(&format!("<iq xmlns='jabber:client' id='resume-1' type='{answer}'/>"));
        let Ok(Step::Done(done)) = login.handle(&answer) else { panic!() };
        assert_eq!(done.resumed, Some(resumed));
    }
}

#[test]
fn t14_the_strongest_mechanism_is_taken() {
    for (offered, taken) in [
        (&["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256"][..], "SCRAM-SHA-256"),
        (&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", "DIGEST-MD5", "PLAIN"], "SCRAM-SHA-1"),
        (&["EXTERNAL", "PLAIN"], "PLAIN"),
    ] {
        let auth = sent(login(true).handle(&mechanisms(offered)));
        assert_eq!(auth.attr("mechanism"), Some(taken), "{offered:?}");
    }
}

#[test]
fn t14_no_password_in_clear_without_tls() {
    assert_eq!(login(false).handle(&mechanisms(&["PLAIN", "ANONYMOUS"])), Err(LoginError::NoMechanism));
    assert_eq!(login(true).handle(&mechanisms(&[])), Err(LoginError::NoMechanism));
    let plain = sent(login(true).handle(&mechanisms(&["PLAIN"])));
    assert_eq!(plain.text(), "AGRldjEAczNjcmV0LTE=");
}

#[test]
fn t14_after_scram_failed_nothing_weaker_is_tried() {
    for failure in ["<not-authorized/>", "<malformed-request/>", "<invalid-mechanism/>", ""] {
        let mut login = login(true);
        sent(login.handle(&mechanisms(&["SCRAM-SHA-256", "PLAIN"])));
        let failure = xml(&format!("<failure xmlns='{}'>{failure}</failure>", ns::SASL));
        assert!(matches!(login.handle(&failure), Err(LoginError::Rejected(_))));
        assert_eq!(login.handle(&mechanisms(&["PLAIN"])), Ok(Step::Wait), "it started over");
        assert_eq!(login.handle(&sasl("success", SUCCESS)), Ok(Step::Wait));
    }
}

#[test]
fn x6_a_server_that_does_not_prove_itself_is_left() {
    for proof in ["", "=", "dj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE9", "*", "/w=="] {
        let mut login = login(true);
        sent(login.handle(&mechanisms(&["SCRAM-SHA-256"])));
        sent(login.handle(&sasl("challenge", CHALLENGE)));
        assert!(matches!(login.handle(&sasl("success", proof)), Err(LoginError::Server(_))), "{proof}");
    }
    // Success before any proof was even possible.
    let mut login = login(true);
    sent(login.handle(&mechanisms(&["SCRAM-SHA-256"])));
    assert!(matches!(login.handle(&sasl("success", SUCCESS)), Err(LoginError::Server(_))));
}

#[test]
fn x6_the_servers_proof_may_come_as_a_challenge() {
    let mut login = login(true);
    sent(login.handle(&mechanisms(&["SCRAM-SHA-256"])));
    sent(login.handle(&sasl("challenge", CHALLENGE)));
    let empty = sent(login.handle(&sasl("challenge", SUCCESS)));
    assert_eq!((empty.name(), &*empty.text()), ("response", ""));
    assert_eq!(login.handle(&sasl("success", "")), Ok(Step::Restart));
}

#[test]
fn x5_base64_may_be_wrapped() {
    let mut login = login(true);
    sent(login.handle(&mechanisms(&["SCRAM-SHA-256"])));
    let (left, right) = CHALLENGE.split_at(40);
    sent(login.handle(&sasl("challenge", &format!("\n  {left}\r\n\t{right}\n"))));
    assert_eq!(login.handle(&sasl("success", SUCCESS)), Ok(Step::Restart));
}

#[test]
fn x10_what_is_not_expected_changes_nothing() {
    let mut login = login(true);
    for early in [sasl("success", SUCCESS), sasl("challenge", CHALLENGE), bound("a@b/c"), xml("<x/>")] {
        assert_eq!(login.handle(&early), Ok(Step::Wait));
    }
    sent(login.handle(&mechanisms(&["SCRAM-SHA-256"])));
    assert_eq!(login.handle(&mechanisms(&["PLAIN"])), Ok(Step::Wait), "features come once");
    sent(login.handle(&sasl("challenge", CHALLENGE)));
    assert_eq!(login.handle(&sasl("success", SUCCESS)), Ok(Step::Restart));
    assert_eq!(login.handle(&xml("<message xmlns='jabber:client'/>")), Ok(Step::Wait));
    bindable(&mut login);
}

#[test]
fn a_server_that_cannot_check_now_is_no_refusal() {
    let mut login = login(true);
    sent(login.handle(&mechanisms(&["SCRAM-SHA-256"])));
    let failure = xml(&format!("<failure xmlns='{}'><temporary-auth-failure/></failure>", ns::SASL));
    let error = login.handle(&failure).unwrap_err();
    assert_eq!(error, LoginError::Temporary);
    assert!(error.error().kind.is_retryable());
}

#[test]
fn binding_can_fail() {
    let mut login = authenticated();
    assert!(matches!(login.handle(&features("")), Err(LoginError::Bind(_))));
    for answer in [
        "<iq xmlns='jabber:client' id='bind-1' type='error'><error type='cancel'><conflict xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>",
        "<iq xmlns='jabber:client' id='bind-1' type='result'/>",
        "<iq xmlns='jabber:client' id='bind-1' type='result'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid> </jid></bind></iq>",
    ] {
        let mut login = authenticated();
        bindable(&mut login);
        assert!(matches!(login.handle(&xml(answer)), Err(LoginError::Bind(_))), "{answer}");
    }
}

#[test]
fn t44_names_that_no_server_could_take_are_refused_and_secrets_are_not_shown() {
    let account = Account::new("dev\u{0}1", Secret::new("x"));
    let mut login = Login::new(account, true, NONCE.into(), None);
    assert_eq!(login.handle(&mechanisms(&["PLAIN"])), Err(LoginError::Preparation));
    let mut plain = self::login(true);
    let step = plain.handle(&mechanisms(&["PLAIN"]));
    let shown = format!("{:?} {plain:?} {step:?}", authenticated());
    assert!(!shown.contains("s3cret-1") && !shown.contains("AGRldjEA"), "{shown}");
}

#[test]
fn x3_starttls_and_compression_are_passed_over() {
    let offered = features(&format!(
        "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
         <compression xmlns='http://jabber.org/features/compress'><method>zlib</method></compression>\
         <mechanisms xmlns='{}'><mechanism>SCRAM-SHA-256-PLUS</mechanism><mechanism>SCRAM-SHA-256</mechanism></mechanisms>",
        ns::SASL
    ));
    let auth = sent(login(false).handle(&offered));
    assert_eq!(auth.attr("mechanism"), Some("SCRAM-SHA-256"));
}
