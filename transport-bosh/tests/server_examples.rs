//! The example exchanges of the two specifications, byte for byte where their text is fixed.

mod server_support;

use relay_core::{
    conformance::Event,
    envelope::Envelope,
    ids::{DeviceId, Method, ObjectId, RequestId},
    outcome::Disposition,
    request::Request,
    transport::{CloseReason, EndReason},
};
use server_support::*;

const PING: &str =
    "<iq id='q1' type='get' to='example.net' xmlns='jabber:client'><ping xmlns='urn:xmpp:ping'/></iq>";
const PONG: &str =
    "<iq id='q1' type='result' from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'/>";

fn request(id: &str) -> Envelope {
    let request =
        Request::new(DeviceId::new("dev1").unwrap(), Method::set()).with_object(ObjectId::new("x").unwrap());
    let deadline = (tokio::time::Instant::now() + std::time::Duration::from_secs(30)).into_std();
    Envelope::Request { id: RequestId::new(id).unwrap(), request: request.into(), deadline }
}

/// What [`request`] looks like on the wire.
fn pushed(id: &str) -> String {
    format!(
        "<iq id='{id}' type='set' from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'>\
         <request id='{id}' method='SET' wait='30' xmlns='urn:relay:1'><object>x</object></request></iq>"
    )
}

#[tokio::test(start_paused = true)]
async fn x_1_creation_is_answered_at_once_with_terms_and_features() {
    let bench = Bench::with(|config| {
        config.inactivity = std::time::Duration::from_secs(45);
        config.polling = std::time::Duration::from_secs(3);
    });
    let message = "<body rid='2907460218394021' to='example.net' xml:lang='en' wait='50' hold='1' ver='1.11' xmpp:version='1.0' xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh'/>";
    assert_eq!(message.len(), 182);
    let reply = now(&mut bench.post(message)).expect("an answer at once");
    assert_eq!((reply.status, &*reply.content_type), (200, "text/xml; charset=utf-8"));
    assert!(reply.headers().any(|(name, value)| (name, &*value) == ("cache-control", "no-store")));
    let answer = text(reply);
    let sid = answer.split('\'').nth(1).unwrap();
    let expected = format!(
        "<body sid='{sid}' wait='50' hold='1' requests='2' inactivity='45' polling='3' maxpause='120' ver='1.11' from='example.net' xmpp:version='1.0' xmpp:restartlogic='true' xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh' xmlns:stream='http://etherx.jabber.org/streams'><stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>SCRAM-SHA-256</mechanism><mechanism>SCRAM-SHA-1</mechanism><mechanism>PLAIN</mechanism></mechanisms></stream:features></body>"
    );
    assert_eq!(answer, expected);
}

#[tokio::test(start_paused = true)]
async fn x_2a_x_2c_plain_succeeds_and_a_failure_leaves_the_session() {
    let bench = Bench::new();
    let mut client = bench.create(TERMS).await;
    let auth = |data: &str| {
        format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{data}</auth>")
    };
    let wrong = bench.say(client.next(&auth("AGRldjEAd3Jvbmc="))).await;
    assert_eq!(
        wrong,
        wrapped("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>")
    );
    assert_eq!(wrong.len(), 134);
    let right = bench.say(client.next(&auth("AGRldjEAczNjcmV0LTE="))).await;
    assert_eq!(right, wrapped("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>"));
    assert_eq!(right.len(), 108);
}

#[tokio::test(start_paused = true)]
async fn x_2c_anonymous_is_not_offered() {
    let bench = Bench::new();
    let mut client = bench.create(TERMS).await;
    let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='ANONYMOUS'/>";
    let answer = bench.say(client.next(auth)).await;
    assert_eq!(
        answer,
        wrapped("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><invalid-mechanism/></failure>")
    );
}

#[tokio::test(start_paused = true)]
async fn x_3_restart_and_bind() {
    let mut bench = Bench::new();
    let mut client = bench.create(TERMS).await;
    let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGRldjEAczNjcmV0LTE=</auth>";
    bench.say(client.next(auth)).await;
    let features = at_once(&mut bench.post(client.next_with(RESTART, "")));
    assert_eq!(
        features,
        "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:stream='http://etherx.jabber.org/streams'><stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features></body>"
    );
    assert_eq!(features.len(), 188);
    let binding = bench.post(client.next(BIND));
    let owner = relay_core::conformance::Owner::start(bench.accept().await, None);
    assert_eq!((owner.device.as_str(), owner.id.as_str()), ("dev1", &*client.sid));
    let bound = text(binding.await);
    assert_eq!(
        bound,
        wrapped(
            "<iq id='b1' type='result' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>dev1@example.net/r1</jid></bind></iq>"
        )
    );
    assert_eq!(bound.len(), 194);
}

#[tokio::test(start_paused = true)]
async fn x_4_an_empty_poll_is_held_for_the_wait() {
    let mut bench = Bench::new();
    let (mut client, _owner) = bench.bind("dev1", TERMS).await;
    let start = tokio::time::Instant::now();
    let poll = client.next("");
    assert_eq!(poll.len(), 103 + client.sid.len() - 22);
    let answer = bench.say(poll).await;
    assert_eq!((&*answer, answer.len()), (EMPTY, 51));
    assert_eq!(start.elapsed().as_secs(), 50);
    assert_held(&mut bench.post(client.next("")));
}

#[tokio::test(start_paused = true)]
async fn x_5_a_push_answers_the_held_request_and_the_answer_becomes_the_holder() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    let mut held = bench.post(client.next(""));
    owner.send([request("p7")]).await.unwrap();
    assert_eq!(at_once(&mut held), wrapped(&pushed("p7")));
    let result = "<iq id='p7' type='result' to='example.net' xmlns='jabber:client'/>";
    let mut holder = bench.post(client.next(result));
    assert_held(&mut holder);
    let Envelope::Response { id, response, acknowledge } = owner.receive(1).await.remove(0) else { panic!() };
    assert_eq!(
        (id.as_str(), response.status.as_str(), response.body, acknowledge),
        ("p7", "ok", None, false)
    );
}

#[tokio::test(start_paused = true)]
async fn x_6_the_reply_rides_on_the_oldest_held_request() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    let mut a = bench.post(client.next(""));
    let mut b = bench.post(client.next(PING));
    let answer = at_once(&mut a);
    assert_eq!((&*answer, answer.len()), (&*wrapped(PONG), 150));
    assert_held(&mut b);
    // With nothing to say yet, the older one is freed at once and what comes later comes on the newer.
    let mut c =
        bench.post(client.next("<message to='example.net' xmlns='jabber:client'><body>hi</body></message>"));
    assert_eq!(at_once(&mut b), EMPTY);
    owner.send([request("p8")]).await.unwrap();
    assert_eq!(at_once(&mut c), wrapped(&pushed("p8")));
}

#[tokio::test(start_paused = true)]
async fn x_7_a_lost_answer_comes_back_and_nothing_is_done_twice() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    let message = client.next(
        "<message to='example.net' xmlns='jabber:client'><received id='p1' xmlns='urn:relay:1'/></message>",
    );
    let mut lost = bench.post(message.clone());
    owner.send([request("p2")]).await.unwrap();
    assert_eq!(at_once(&mut lost), wrapped(&pushed("p2")));
    assert_eq!(at_once(&mut bench.post(message)), wrapped(&pushed("p2")));
    let changed = client.message(client.rid, "", PING);
    assert_eq!(at_once(&mut bench.post(changed)), wrapped(&pushed("p2")));
    owner.receive(1).await;
    assert_eq!(owner.unread(), 0, "processed once");
}

#[tokio::test(start_paused = true)]
async fn x_8_a_repeat_of_a_held_rid_takes_over() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    let message = client.next("");
    let mut a = bench.post(message.clone());
    assert_held(&mut a);
    let mut c = bench.post(message);
    let error = at_once(&mut a);
    assert_eq!(
        (&*error, error.len()),
        ("<body xmlns='http://jabber.org/protocol/httpbind' type='error'/>", 64)
    );
    let ack = Envelope::Ack { id: RequestId::new("p1").unwrap(), disposition: Disposition::TooLate };
    owner.send([ack]).await.unwrap();
    assert_eq!(
        at_once(&mut c),
        wrapped(
            "<message from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'><ack id='p1' outcome='too-late' xmlns='urn:relay:1'/></message>"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn x_9_a_request_that_overtakes_waits_for_the_one_before_it() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let say = |id: &str| {
        format!(
            "<message to='example.net' xmlns='jabber:client'><received id='{id}' xmlns='urn:relay:1'/></message>"
        )
    };
    let (one, two) = (client.next(&say("one")), client.next(&say("two")));
    let mut b = bench.post(two);
    assert_held(&mut b);
    assert_eq!(owner.unread(), 0);
    let mut a = bench.post(one);
    assert_eq!(at_once(&mut a), EMPTY);
    assert_held(&mut b);
    let received = owner.receive(2).await;
    let ids: Vec<_> = received.iter().map(|envelope| format!("{envelope:?}")).collect();
    assert!(ids[0].contains("one") && ids[1].contains("two"), "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn x_10_a_rid_beyond_the_window_ends_the_session() {
    let mut bench = Bench::new();
    let (client, owner) = bench.bind("dev1", TERMS).await;
    let answer = at_once(&mut bench.post(client.message(client.rid + 54, "", "")));
    assert_eq!((&*answer, answer.len()), (&*terminated("item-not-found"), 95));
    assert_eq!(owner.ended().await, EndReason::Misbehaved);
    let next = at_once(&mut bench.post(client.message(client.rid + 1, "", "")));
    assert_eq!(next, terminated("item-not-found"));
}

#[tokio::test(start_paused = true)]
async fn x_11_the_client_says_goodbye() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let mut a = bench.post(client.next(""));
    let mut b = bench
        .post(client.next_with("type='terminate'", "<presence type='unavailable' xmlns='jabber:client'/>"));
    let goodbye = at_once(&mut a);
    assert_eq!(
        (&*goodbye, goodbye.len()),
        ("<body xmlns='http://jabber.org/protocol/httpbind' type='terminate'/>", 68)
    );
    assert_eq!(at_once(&mut b), EMPTY);
    assert_eq!(owner.ended().await, EndReason::Goodbye);
}

#[tokio::test(start_paused = true)]
async fn x_12_the_server_says_goodbye_on_the_held_request() {
    for (reason, length, expected) in [
        (CloseReason::Shutdown, 96, terminated("system-shutdown")),
        (CloseReason::Replaced, 238, "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:stream='http://etherx.jabber.org/streams' type='terminate' condition='remote-stream-error'><stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></body>".to_owned()),
    ] {
        let mut bench = Bench::new();
        let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
        let mut held = bench.post(client.next(""));
        owner.close(reason).await;
        let answer = at_once(&mut held);
        assert_eq!((&*answer, answer.len()), (&*expected, length));
        assert_eq!(owner.ended().await, EndReason::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn x_13_after_expiry_with_a_wrong_sid_and_an_old_rid_the_answer_is_the_same() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let wrong = Client { sid: "a".repeat(45), rid: client.rid };
    assert_eq!(at_once(&mut bench.post(wrong.message(wrong.rid + 1, "", ""))), terminated("item-not-found"));
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    assert_eq!(owner.ended().await, EndReason::Lost);
    assert_eq!(at_once(&mut bench.post(client.next(""))), terminated("item-not-found"));
    let (client, _owner) = bench.bind("dev2", TERMS).await;
    assert_eq!(at_once(&mut bench.post(client.message(FIRST, "", ""))), terminated("item-not-found"));
}

#[tokio::test(start_paused = true)]
async fn x_14_a_pause_frees_everything_and_stretches_the_silence() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let mut a = bench.post(client.next(""));
    let mut b = bench.post(client.next_with("pause='90'", ""));
    assert_eq!((at_once(&mut a), at_once(&mut b)), (EMPTY.to_owned(), EMPTY.to_owned()));
    tokio::time::sleep(std::time::Duration::from_secs(89)).await;
    let mut back = bench.post(client.next(""));
    assert_held(&mut back);
    drop(back);
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    assert_eq!(owner.ended().await, EndReason::Lost);
}

#[tokio::test(start_paused = true)]
async fn x_15_keys_are_checked_when_the_client_uses_them() {
    let bench = Bench::new();
    let keyed = format!("{TERMS} newkey='6757b18b27134d15bc709c7f22689a73acb3f00c'");
    let mut client = bench.create(&keyed).await;
    for key in ["7b797403693795befaa10e0117384927c22dccf3", "03dce970eb5c1f231aa3f7bf84c4ee5ec8cda71c"] {
        drop(bench.post(client.next_with(&format!("key='{key}'"), "")));
    }
    let switch =
        "key='88efbc7d9d36334d1bb767c5b8efc7bd7012612c' newkey='6757b18b27134d15bc709c7f22689a73acb3f00c'";
    assert_held(&mut bench.post(client.next_with(switch, "")));
    assert_held(&mut bench.post(client.next_with("key='7b797403693795befaa10e0117384927c22dccf3'", "")));
    let bare = at_once(&mut bench.post(client.next("")));
    assert_eq!(bare, terminated("item-not-found"));
}

#[tokio::test(start_paused = true)]
async fn x_16_a_client_that_missed_an_answer_is_told_which() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", &format!("{TERMS} ack='1'")).await;
    let a = client.next("");
    let received = client.rid;
    drop(bench.post(a));
    let mut lost = bench.post(client.next(""));
    owner.send([request("p1")]).await.unwrap();
    assert!(at_once(&mut lost).contains("p1"));
    tokio::time::sleep(std::time::Duration::from_millis(852)).await;
    let answer = at_once(&mut bench.post(client.next_with(&format!("ack='{received}'"), "")));
    assert_eq!(
        answer,
        format!("<body xmlns='http://jabber.org/protocol/httpbind' report='{}' time='852'/>", received + 1)
    );
    assert_eq!(owner.confirmed(), 0, "what was missed is not confirmed");
    let all = bench.post(client.next(""));
    owner.next(|event| (event == Event::Confirmed(1)).then_some(())).await;
    drop(all);
}
