//! Attacks on sessions, each through [`ConnectionManager::exchange`](transport_bosh::ConnectionManager::exchange).

mod server_support;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier},
    conformance::{Event, Owner},
    ids::DeviceId,
    transport::{EndReason, Incoming, Listener},
};
use server_support::*;
use transport_bosh::BoshServerConfig;

fn raw(bench: &Bench, message: &[u8]) -> (u16, Vec<u8>) {
    let post = transport_bosh::Post::new(bytes::Bytes::copy_from_slice(message), PEER, true);
    let reply = now(&mut bench.manager.exchange(post)).expect("an answer at once");
    (reply.status, reply.body.to_vec())
}

/// What a message that is no `<body/>` gets.
fn assert_bad_request(bench: &Bench, what: &str, message: &[u8]) {
    let (status, body) = raw(bench, message);
    assert_eq!((status, String::from_utf8(body).unwrap()), (200, terminated("bad-request")), "{what}");
}

fn body(inside: &str) -> Vec<u8> {
    format!("<body rid='1' to='example.net' ver='1.11' xmlns='http://jabber.org/protocol/httpbind'>{inside}</body>").into()
}

#[tokio::test(start_paused = true)]
async fn t1_ten_thousand_guesses_find_nothing_and_all_answers_are_the_same() {
    let mut bench = Bench::new();
    let (_client, _owner) = bench.bind("dev1", TERMS).await;
    for guess in 0..10_000_u32 {
        // From many addresses, or the limit would answer.
        let peer = IpAddr::from((0xcb00_7100 + guess).to_be_bytes());
        let sid = relay_core::random::base32::<28>();
        let client = Client { sid, rid: u64::from(guess) };
        let answer = at_once(&mut bench.post_from(peer, true, client.message(client.rid, "", "")));
        assert_eq!(answer, terminated("item-not-found"));
    }
}

#[tokio::test(start_paused = true)]
async fn t1_q3_forged_sids_are_counted_by_source_and_ended_ones_are_not() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    drop(bench.post(client.next_with("type='terminate'", "")));
    owner.ended().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    for _ in 0..100 {
        assert_eq!(at_once(&mut bench.post(client.next(""))), terminated("item-not-found"), "ours, ended");
    }
    let forged = Client { sid: "b".repeat(45), rid: 1 };
    let message = || forged.message(1, "", "");
    for _ in 0..20 {
        assert_eq!(at_once(&mut bench.post(message())), terminated("item-not-found"));
    }
    let reply = now(&mut bench.post(message())).unwrap();
    assert_eq!(reply.status, 429);
    assert!(reply.retry_after.is_some_and(|seconds| (1..=60).contains(&seconds)));
    // Others, and this source's true sessions, are served.
    let other = IpAddr::from([192, 0, 2, 99]);
    assert_eq!(at_once(&mut bench.post_from(other, true, message())), terminated("item-not-found"));
    let (mut client, _owner) = bench.bind("dev1", TERMS).await;
    assert_held(&mut bench.post(client.next("")));
}

#[tokio::test(start_paused = true)]
async fn t1_sids_of_before_a_restart_are_ended_ones_if_the_key_was_kept() {
    let before = Bench::with(|config| config.sid_key = Some([9; 32]));
    let mut client = before.create(TERMS).await;
    let after = Bench::with(|config| config.sid_key = Some([9; 32]));
    for _ in 0..50 {
        assert_eq!(at_once(&mut after.post(client.next(""))), terminated("item-not-found"));
    }
}

#[tokio::test(start_paused = true)]
async fn t2_a_rid_too_high_or_too_low_is_not_found() {
    for rid in [0, 1, FIRST - 1, FIRST, FIRST + 100, 9_007_199_254_740_991] {
        let mut bench = Bench::new();
        let (client, owner) = bench.bind("dev1", TERMS).await;
        assert_eq!(
            at_once(&mut bench.post(client.message(rid, "", ""))),
            terminated("item-not-found"),
            "{rid}"
        );
        assert_eq!(owner.ended().await, EndReason::Misbehaved);
    }
}

#[tokio::test(start_paused = true)]
async fn t2_q2_a_tls_session_used_in_clear_costs_the_connection_and_not_the_session() {
    let mut bench = Bench::new();
    let (mut client, _owner) = bench.bind("dev1", TERMS).await;
    let next = client.next("");
    let reply = now(&mut bench.post_from(PEER, false, next.clone())).unwrap();
    assert!(reply.close && reply.status == 403 && reply.body.len() < 100, "{reply:?}");
    // Also a broken one, which would end the session if it came over TLS.
    let broken = next.replace("/>", "><unclosed>");
    assert!(now(&mut bench.post_from(PEER, false, broken)).unwrap().close);
    assert_held(&mut bench.post(next));
}

#[tokio::test(start_paused = true)]
async fn t3_a_repeated_rid_gets_its_answer_and_a_changed_body_is_never_processed() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let say = |id: &str| {
        format!("<message xmlns='jabber:client'><received id='{id}' xmlns='urn:relay:1'/></message>")
    };
    let message = client.next(&say("true"));
    let rid = client.rid;
    let mut first = bench.post(message.clone());
    let _holder = bench.post(client.next(""));
    assert_eq!(at_once(&mut first), EMPTY);
    for _ in 0..5 {
        assert_eq!(at_once(&mut bench.post(message.clone())), EMPTY);
        assert_eq!(at_once(&mut bench.post(client.message(rid, "", &say("changed")))), EMPTY);
    }
    assert_eq!(owner.receive(1).await.len(), 1);
    assert_eq!(owner.unread(), 0);
    // Ten repeats are enough.
    assert_eq!(at_once(&mut bench.post(message)), terminated("policy-violation"));
}

#[tokio::test(start_paused = true)]
async fn t5_an_answer_in_the_wrong_stanza_does_not_reach_the_owner() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let response = "<response id='r1' xmlns='urn:relay:1'/>";
    for wrong in [
        format!("<iq id='r1' type='get' xmlns='jabber:client'>{response}</iq>"),
        format!("<iq id='r1' type='set' xmlns='jabber:client'>{response}</iq>"),
        format!("<iq id='r1' type='result' to='dev2@example.net' xmlns='jabber:client'>{response}</iq>"),
        format!("<iq id='r2' type='result' xmlns='jabber:client'>{response}</iq>"),
        "<message id='r1' xmlns='jabber:client'/>".to_owned(),
    ] {
        drop(bench.post(client.next(&wrong)));
    }
    assert_eq!(owner.unread(), 0);
    drop(bench.post(client.next("<iq id='r1' type='result' to='example.net' xmlns='jabber:client'/>")));
    assert_eq!(owner.receive(1).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn t8_nobody_speaks_for_another_device() {
    let mut bench = Bench::new();
    let mut client = bench.create(TERMS).await;
    let plain = data_encoding::BASE64.encode(format!("dev2\0dev1\0{TOKEN}").as_bytes());
    let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>");
    assert!(bench.say(client.next(&auth)).await.contains("<invalid-authzid/>"));
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let forged = "<iq id='r1' type='result' from='dev2@example.net/r1' xmlns='jabber:client'/>";
    let answer = at_once(&mut bench.post(client.next(forged)));
    assert!(
        answer.contains("condition='remote-stream-error'") && answer.contains("<invalid-from "),
        "{answer}"
    );
    assert_eq!(owner.ended().await, EndReason::Misbehaved);
    assert_eq!(owner.unread(), 0);
}

/// What log-in of `name` with a wrong proof looks like, but for what is random by nature.
async fn failed_log_in(bench: &Bench, mechanism: &str, name: &str) -> Vec<String> {
    let mut client = bench.create(TERMS).await;
    let encode = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
    let first = encode(&format!("n,,n={name},r=clientnonce"));
    let auth =
        format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{mechanism}'>{first}</auth>");
    let challenge = bench.say(client.next(&auth)).await;
    let data = challenge.split(['<', '>']).find(|part| part.starts_with("cj1")).expect("a challenge");
    let message = String::from_utf8(data_encoding::BASE64.decode(data.as_bytes()).unwrap()).unwrap();
    let nonce = message.split(',').next().unwrap();
    let proof = data_encoding::BASE64.encode(&[7; 20][..]);
    let proof = if mechanism.ends_with("256") { data_encoding::BASE64.encode(&[7; 32][..]) } else { proof };
    let last = encode(&format!("c=biws,{nonce},p={proof}"));
    let answer = bench
        .say(client.next(&format!("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{last}</response>")))
        .await;
    vec![challenge.replace(data, ""), message.replace(nonce, ""), answer]
}

#[tokio::test(start_paused = true)]
async fn t10_q8_an_unknown_device_looks_like_a_known_one_with_a_wrong_token() {
    let bench = Bench::new();
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-1"] {
        let known = failed_log_in(&bench, mechanism, "dev1").await;
        assert_eq!(known, failed_log_in(&bench, mechanism, "stranger").await);
        assert!(known[2].contains("<not-authorized/>"));
    }
    let mut answers = Vec::new();
    for name in ["dev1", "stranger"] {
        let mut client = bench.create(TERMS).await;
        let plain = data_encoding::BASE64.encode(format!("\0{name}\0wrong").as_bytes());
        let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>");
        answers.push(bench.say(client.next(&auth)).await);
    }
    assert_eq!(answers[0], answers[1]);
}

/// [`Devices`], until something happens to their credentials.
#[derive(Debug, Default)]
struct Changing(Arc<Mutex<Option<AuthError>>>);

#[async_trait]
impl Authenticator for Changing {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError> {
        let now = self.0.lock().unwrap().clone();
        now.map_or(Ok(()), Err)?;
        Devices.authenticate(credentials).await
    }

    async fn verifier(&self, device: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError> {
        Devices.verifier(device, hash).await
    }
}

#[tokio::test(start_paused = true)]
async fn t17_what_was_shown_must_still_hold_when_the_session_is_taken() {
    for (now, said, again) in [
        (None, "<jid>", false),
        (Some(AuthError::Rejected), "<not-authorized ", false),
        // Nobody knows: the device is to try again.
        (Some(AuthError::Unavailable), "<resource-constraint ", true),
    ] {
        let changing = Changing::default();
        let credential = changing.0.clone();
        let mut bench = Bench::guarded_by(Arc::new(changing), BoshServerConfig::new("example.net"));
        let mut client = bench.authenticate("dev1", TERMS).await;
        let binding = bench.post(client.next(BIND));
        *credential.lock().unwrap() = now;
        let Some(Incoming::Session(knock)) = bench.listener.accept().await else { panic!("a knock") };
        let _owner = knock.handshake.await.ok().map(|session| Owner::start(session, None));
        let mut answer = text(binding.await);
        if answer == EMPTY {
            answer = bench.say(client.next("")).await;
        }
        assert!(answer.contains(said), "{answer}");
        if again {
            *credential.lock().unwrap() = None;
            let binding = bench.post(client.next(BIND));
            let _owner = Owner::start(bench.accept().await, None);
            assert!(text(binding.await).contains("<jid>"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn t18_document_types_and_entities_are_refused_at_sight() {
    let bench = Bench::new();
    for (what, prolog, inside) in [
        ("a document type", "<!DOCTYPE body>", ""),
        ("an internal entity", "<!DOCTYPE body [<!ENTITY a 'b'>]>", "<x xmlns='x'>&a;</x>"),
        (
            "an external entity",
            "<!DOCTYPE body [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>",
            "<x xmlns='x'>&a;</x>",
        ),
        (
            "a billion laughs",
            "<!DOCTYPE body [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>",
            "<x xmlns='x'>&b;</x>",
        ),
        ("an unknown reference", "", "<x xmlns='x'>&nbsp;</x>"),
        ("a reference in an attribute", "", "<x xmlns='x' y='&nbsp;'/>"),
        ("a parameter entity", "<!DOCTYPE body [<!ENTITY % p SYSTEM 'http://192.0.2.1/'> %p;]>", ""),
    ] {
        assert_bad_request(&bench, what, &[prolog.as_bytes(), &body(inside)].concat());
    }
    assert_eq!(bench.manager.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn t18_the_same_after_log_in_ends_the_session() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let answer = at_once(&mut bench.post(client.next("<message xmlns='jabber:client'>&lol;</message>")));
    assert_eq!(answer, terminated("bad-request"));
    assert_eq!(owner.ended().await, EndReason::Misbehaved);
}

#[tokio::test(start_paused = true)]
async fn t19_what_is_no_body_is_refused_and_what_is_unusual_is_not() {
    let bench = Bench::new();
    for (what, message) in [
        ("a processing instruction", body("<?php x?>")),
        ("a comment", body("<!-- x -->")),
        ("a second root", [body(""), body("")].concat()),
        ("text in the wrapper", body("text")),
        ("text after the root", [body(""), b"text".to_vec()].concat()),
        ("CDATA in the wrapper", body("<![CDATA[text]]>")),
        ("another namespace", b"<body rid='1' to='example.net' xmlns='jabber:client'/>".to_vec()),
        ("no namespace", b"<body rid='1' to='example.net'/>".to_vec()),
        ("another element", b"<stream rid='1' xmlns='http://jabber.org/protocol/httpbind'/>".to_vec()),
        ("no RID", b"<body to='example.net' xmlns='http://jabber.org/protocol/httpbind'/>".to_vec()),
        (
            "an unclosed element",
            b"<body rid='1' to='example.net' xmlns='http://jabber.org/protocol/httpbind'>".to_vec(),
        ),
        ("nothing", Vec::new()),
        ("a greeting", b"GET / HTTP/1.1".to_vec()),
    ] {
        assert_bad_request(&bench, what, &message);
    }
    let declared = [b"<?xml version='1.0' encoding='utf-8'?>\n".to_vec(), body(" \n")].concat();
    let (status, answer) = raw(&bench, &declared);
    assert!(status == 200 && answer.starts_with(b"<body sid="), "an XML declaration and blanks are legal");
}

#[tokio::test(start_paused = true)]
async fn t20_depth_is_refused_at_the_thirty_third_level_without_recursion() {
    let bench = Bench::new();
    let nested = |depth: usize| body(&format!("{}{}", "<a xmlns='x'>".repeat(depth), "</a>".repeat(depth)));
    assert_bad_request(&bench, "33 with the wrapper", &nested(32));
    assert_bad_request(&bench, "10,000 levels", &nested(10_000));
    let namespaces: String = (0..10_000).map(|i| format!("<a xmlns:n{i}='u'>")).collect();
    assert_bad_request(&bench, "depth and namespaces", &body(&namespaces));
    // 32 levels are no offence; payloads in a creation are, and that is what is said.
    assert_bad_request(&bench, "32 with the wrapper, but at creation", &nested(31));
    let mut client = bench.create(TERMS).await;
    let deep = format!("{}{}", "<a xmlns='x'>".repeat(31), "</a>".repeat(31));
    assert!(at_once(&mut bench.post(client.next(&deep))).contains("<not-authorized "), "parsed, and no SASL");
}

#[tokio::test(start_paused = true)]
async fn t21_many_attributes_and_namespaces_are_refused_in_no_time() {
    let bench = Bench::new();
    let attributes: String = (0..20_000).map(|i| format!(" a{i}='1'")).collect();
    let namespaces: String = (0..12_000).map(|i| format!(" xmlns:n{i}='u'")).collect();
    let long = format!(" a='{}'", "x".repeat(200_000));
    let elements = "<a/>".repeat(1_001);
    let start = std::time::SystemTime::now();
    for (what, inside) in [
        ("20,000 attributes", format!("<x xmlns='x'{attributes}/>")),
        ("12,000 namespaces", format!("<x xmlns='x'{namespaces}/>")),
        ("a long attribute", format!("<x xmlns='x'{long}/>")),
        ("1,001 elements", format!("<x xmlns='x'>{elements}</x>")),
    ] {
        assert_bad_request(&bench, what, &body(&inside));
    }
    assert!(start.elapsed().unwrap() < Duration::from_secs(20), "no quadratic work");
    // The slowest that is taken: as many elements, attributes and bytes as there may be.
    let many: String = (0..60).map(|i| format!(" attribute{i}='1'")).collect();
    let elements = format!("<x xmlns='x'{many}>{}</x>", format!("<a{many}/>").repeat(180));
    let mut client = bench.create(TERMS).await;
    let message = client.next(&elements);
    assert!(message.len() < 256 * 1024, "{}", message.len());
    let read = || {
        let start = std::time::SystemTime::now();
        let limits = relay_core::xml::Limits::default();
        assert!(transport_bosh::wire::body::RequestBody::parse(message.as_bytes(), &limits).is_ok());
        start.elapsed().unwrap()
    };
    // The best of some, since others want the processor too.
    let best = (0..20).map(|_| read()).min().unwrap();
    assert!(best < Duration::from_millis(100), "{best:?}");
    let answer = at_once(&mut bench.post(message));
    assert!(answer.contains("<not-authorized "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn t22_encodings_other_than_utf_8_are_refused() {
    let bench = Bench::new();
    let text = String::from_utf8(body("")).unwrap();
    let utf_16: Vec<u8> =
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect();
    for (what, message) in [
        ("UTF-16", utf_16),
        ("a declared UTF-16", format!("<?xml version='1.0' encoding='UTF-16'?>{text}").into_bytes()),
        ("Latin-1", [b"<body rid='1' a='\xe4'".as_slice(), &text.as_bytes()[5..]].concat()),
        ("a surrogate", [b"<body rid='1' a='\xed\xa0\x80'".as_slice(), &text.as_bytes()[5..]].concat()),
        ("half a character", body("<a xmlns='x'>\u{e4}</a>").into_iter().filter(|b| *b != 0xa4).collect()),
        ("NUL", body("<a xmlns='x'>\0</a>")),
        ("a reference to NUL", body("<a xmlns='x'>&#0;</a>")),
        ("a reference to a surrogate", body("<a xmlns='x'>&#xD800;</a>")),
        ("U+FFFE", body("<a xmlns='x'>\u{fffe}</a>")),
    ] {
        assert_bad_request(&bench, what, &message);
    }
}

#[tokio::test(start_paused = true)]
async fn b2_q5_t23_a_message_over_the_bound_is_413_to_the_byte_and_the_session_lives() {
    let mut bench = Bench::new();
    let (mut client, _owner) = bench.bind("dev1", TERMS).await;
    let next = client.next("");
    let pad = |length: usize| {
        let spaces = " ".repeat(length - next.len());
        next.replace("/>", &format!("{spaces}/>"))
    };
    let reply = now(&mut bench.post(pad(256 * 1024 + 1))).unwrap();
    assert!(reply.status == 413 && reply.close);
    assert_held(&mut bench.post(pad(256 * 1024)));
}

#[tokio::test(start_paused = true)]
async fn t36_b8_half_open_sessions_are_bounded_shared_and_given_back() {
    let bench = Bench::with(|config| config.pending = 100);
    let crowd = IpAddr::from([192, 0, 2, 1]);
    for _ in 0..100 {
        at_once(&mut bench.post_from(crowd, true, creation(TERMS)));
    }
    let reply = now(&mut bench.post_from(crowd, true, creation(TERMS))).unwrap();
    assert_eq!((reply.status, reply.retry_after), (503, Some(15)));
    // Those of a source that holds more than its share make room for others at once.
    bench.create(TERMS).await;
    // Past half their time, they do for its own.
    tokio::time::sleep(Duration::from_secs(8)).await;
    at_once(&mut bench.post_from(crowd, true, creation(TERMS)));
    let mut client = bench.create(TERMS).await;
    assert_eq!(bench.manager.sessions(), 100);
    assert_held(&mut bench.post(client.next("")));
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(bench.manager.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn t36_a_bound_session_takes_no_place_at_the_door() {
    let mut bench = Bench::with(|config| config.pending = 1);
    let (_one, _owner_one) = bench.bind("dev1", TERMS).await;
    let (_two, _owner_two) = bench.bind("dev2", TERMS).await;
}

#[tokio::test(start_paused = true)]
async fn t38_a_client_that_hammers_is_let_go() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(bench.post(client.next("")));
    }
    let texts: Vec<_> = answers.iter_mut().map(at_once).collect();
    assert!(texts.contains(&terminated("policy-violation")), "{texts:?}");
    owner.next(|event| matches!(event, Event::Ended(EndReason::Misbehaved)).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn f28_t44_neither_sid_nor_token_shows_in_debug_output() {
    let mut bench = Bench::new();
    let (client, owner) = bench.bind("dev1", TERMS).await;
    let shown = format!(
        "{:?} {:?} {owner:?} {:?}",
        bench.manager,
        bench.listener,
        bench.post(client.message(client.rid, "", ""))
    );
    assert!(!shown.contains(&client.sid) && !shown.contains(TOKEN), "{shown}");
}
