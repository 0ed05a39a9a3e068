//! Sessions through [`ConnectionManager::exchange`]: who is told what, when, and over what.

mod server_support;

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use relay_core::{
    conformance::{Event, Owner, PATIENCE},
    envelope::Envelope,
    error::ErrorKind,
    ids::{DeviceId, Method, RequestId},
    outcome::Disposition,
    request::{Body, Request},
    transport::{CloseReason, EndReason, Full, Inbound, Incoming, Knock, Listener, Push, Session, Started},
};
use server_support::*;
use transport_bosh::Reply;

fn ack(id: &str) -> Envelope {
    Envelope::Ack { id: RequestId::new(id).unwrap(), disposition: Disposition::Accepted }
}

fn acked(id: &str) -> String {
    format!(
        "<message from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'><ack id='{id}' outcome='accepted' xmlns='urn:relay:1'/></message>"
    )
}

fn received(id: &str) -> String {
    format!(
        "<message to='example.net' xmlns='jabber:client'><received id='{id}' xmlns='urn:relay:1'/></message>"
    )
}

async fn knock(bench: &mut Bench) -> Knock {
    match bench.listener.accept().await {
        Some(Incoming::Session(knock)) => knock,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn h4_answers_have_the_content_type_that_the_session_asked_for() {
    let bench = Bench::new();
    let content_of = |wish: &str| {
        let reply = now(&mut bench.post(creation(&format!("{TERMS} content='{wish}'")))).unwrap();
        reply.content_type.into_owned()
    };
    assert_eq!(content_of("application/xml"), "application/xml");
    assert_eq!(content_of("text/html; charset=utf-8"), "text/html; charset=utf-8");
    for unfit in [
        "",
        "text",
        "/",
        "text/xml&#13;&#10;Set-Cookie: a=b",
        "text/xml&#10;",
        "te xt/xml",
        "tëxt/xml",
        &"a/b".repeat(50),
    ] {
        assert_eq!(content_of(unfit), "text/xml; charset=utf-8", "{unfit:?}");
    }
}

#[test]
fn h13_h14_the_other_methods_have_answers_for_browsers_and_probes() {
    let has =
        |reply: &Reply, header: &str, value: &str| reply.headers().any(|(n, v)| n == header && v == value);
    let preflight = Reply::preflight();
    assert_eq!(preflight.status, 204);
    for (header, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "POST, OPTIONS"),
        ("access-control-allow-headers", "Content-Type"),
        ("access-control-max-age", "7200"),
    ] {
        assert!(has(&preflight, header, value), "{header}");
    }
    assert!(!preflight.headers().any(|(name, _)| name.contains("credentials")));
    let greeting = Reply::greeting();
    assert!(
        greeting.status == 200 && has(&greeting, "cache-control", "no-store") && greeting.body.len() < 200
    );
    let other = Reply::method_not_allowed();
    assert!(other.status == 405 && other.headers().any(|(name, _)| name == "allow"));
}

#[tokio::test(start_paused = true)]
async fn h11_h12_only_a_client_without_ver_sees_a_status() {
    let bench = Bench::new();
    let refused = |attributes: &str, to: &str| {
        let message = creation(attributes).replace("to='example.net'", to);
        let reply = now(&mut bench.post(message)).unwrap();
        (reply.status, String::from_utf8(reply.body.to_vec()).unwrap())
    };
    assert_eq!(refused("ver='1.11'", ""), (200, terminated("improper-addressing")));
    assert_eq!(refused("ver='1.11'", "to='other.example'"), (200, terminated("host-unknown")));
    assert_eq!(refused("pause='5'", "to='example.net'"), (400, terminated("bad-request")));
    let mut client = bench.create("wait='50' hold='1'").await;
    client.rid += 10;
    assert_eq!(now(&mut bench.post(client.next(""))).unwrap().status, 404);
}

#[tokio::test(start_paused = true)]
async fn c2_a_creation_sent_twice_makes_two_sessions_and_both_end_soon() {
    let bench = Bench::new();
    let (one, two) = (bench.create(TERMS).await, bench.create(TERMS).await);
    assert_ne!(one.sid, two.sid);
    assert_eq!(bench.manager.sessions(), 2);
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(bench.manager.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn b8_whoever_does_not_log_in_in_time_is_let_go() {
    let mut bench = Bench::new();
    let mut client = bench.create(TERMS).await;
    let start = tokio::time::Instant::now();
    let answer = bench.say(client.next("")).await;
    assert!(
        answer.contains("condition='remote-stream-error'") && answer.contains("<connection-timeout "),
        "{answer}"
    );
    assert_eq!(start.elapsed().as_secs(), 15);
    // Bound in time, nothing of the kind happens.
    let (mut client, _owner) = bench.bind("dev1", TERMS).await;
    assert_eq!(bench.say(client.next("")).await, EMPTY);
}

#[tokio::test(start_paused = true)]
async fn f25_a_dropped_exchange_detaches_and_a_repeat_attaches_again() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    let poll = client.next("");
    let held = bench.post(poll.clone());
    owner.attached().await;
    drop(held);
    owner.next(|event| (event == Event::Detached).then_some(())).await;
    // Nothing can be pushed now, and nothing is taken.
    let mut waiting = VecDeque::from([ack("a")]);
    assert!(tokio::time::timeout(Duration::from_secs(3), owner.push(&mut waiting)).await.is_err());
    assert_eq!(waiting.len(), 1);
    let mut again = bench.post(poll);
    owner.attached().await;
    owner.push(&mut waiting).await.unwrap();
    assert_eq!(at_once(&mut again), wrapped(&acked("a")));
}

#[tokio::test(start_paused = true)]
async fn a_push_that_waits_goes_with_the_next_request_and_takes_all_that_fits() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    let sending = tokio::spawn(async move {
        owner.send([ack("a"), ack("b"), ack("c")]).await.unwrap();
        owner
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!sending.is_finished());
    let answer = bench.say(client.next("")).await;
    assert_eq!(answer, wrapped(&[acked("a"), acked("b"), acked("c")].concat()));
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn s8_what_does_not_fit_in_one_answer_waits_for_the_next() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    let body = Body::new("application/octet-stream", vec![0xff; 128 * 1024]);
    let request = Request::new(DeviceId::new("dev1").unwrap(), Method::set()).with_body(body);
    let big = |id: &str| Envelope::Request {
        id: RequestId::new(id).unwrap(),
        request: Arc::new(request.clone()),
        deadline: (tokio::time::Instant::now() + Duration::from_secs(30)).into_std(),
    };
    let all = [big("one"), big("two"), ack("three")];
    let sending = tokio::spawn(async move { owner.send(all).await.map(|()| owner) });
    let first = bench.say(client.next("")).await;
    assert!(first.len() <= 256 * 1024 && first.contains("id='one'") && !first.contains("id='two'"));
    let second = bench.say(client.next("")).await;
    assert!(second.contains("id='two'") && second.contains("id='three'"));
    sending.await.unwrap().unwrap();
}

/// Answers each envelope on the spot, by pushing from within the call.
struct Echo(Mutex<Option<Box<dyn Push>>>);

impl std::fmt::Debug for Echo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Echo")
    }
}

impl Inbound for Echo {
    fn envelope(&self, envelope: Envelope) -> Result<(), Full> {
        let Envelope::Received { id } = envelope else { panic!("{envelope:?}") };
        let mut push = self.0.lock().unwrap().take().expect("nobody else pushes");
        {
            let mut queue = VecDeque::from([Envelope::Ack { id, disposition: Disposition::Accepted }]);
            let mut pushing = push.push(&mut queue);
            let mut context = Context::from_waker(Waker::noop());
            assert!(pushing.as_mut().poll(&mut context).is_ready(), "there is room: a request is there");
        }
        *self.0.lock().unwrap() = Some(push);
        Ok(())
    }
    fn ended(&self, _: EndReason) {}
}

#[tokio::test(start_paused = true)]
async fn s3_answers_given_from_within_the_call_ride_together_on_the_oldest_request() {
    let mut bench = Bench::new();
    let mut client = bench.authenticate("dev1", TERMS).await;
    let binding = bench.post(client.next(BIND));
    let Session { id, mut push, .. } = bench.accept().await;
    let echo = Arc::new(Echo(Mutex::new(None)));
    push.start(Started::new(id, false, Arc::clone(&echo) as Arc<dyn Inbound>));
    *echo.0.lock().unwrap() = Some(push);
    text(binding.await);
    let mut older = bench.post(client.next(""));
    let mut newer = bench.post(client.next(&[received("a"), received("b")].concat()));
    assert_eq!(at_once(&mut older), wrapped(&[acked("a"), acked("b")].concat()));
    assert_held(&mut newer);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_full_holds_up_the_client_and_loses_nothing() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    owner.set_full(true);
    let mut a = bench.post(client.next(&received("a")));
    let mut b = bench.post(client.next(&[received("b"), received("c")].concat()));
    // The client's window is full: it can send nothing more until the owner takes something.
    assert_held(&mut a);
    assert_held(&mut b);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(owner.unread(), 0);
    owner.set_full(false);
    let ids: Vec<_> = owner.receive(3).await.into_iter().map(|envelope| format!("{envelope:?}")).collect();
    assert!(ids.iter().zip(["(a)", "(b)", "(c)"]).all(|(got, wanted)| got.contains(wanted)), "{ids:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(at_once(&mut a), EMPTY);
    assert_held(&mut b);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_stays_full_loses_the_session_and_hears_of_it() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    owner.set_full(true);
    let answer = bench.say(client.next(&received("a"))).await;
    assert_eq!(answer, terminated("internal-server-error"));
    assert_eq!(owner.ended().await, EndReason::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_to_an_owner_that_is_full_arrives_after_what_was_said_before_it() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    owner.set_full(true);
    let mut a = bench.post(client.next(&received("a")));
    assert_held(&mut a);
    let _b = bench.post(client.next_with("type='terminate'", &received("b")));
    assert!(at_once(&mut a).contains("type='terminate'"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    owner.set_full(false);
    assert_eq!(owner.receive(2).await.len(), 2);
    assert_eq!(owner.ended().await, EndReason::Goodbye);
    // And one that never takes anything hears of the end all the same.
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    owner.set_full(true);
    drop(bench.post(client.next_with("type='terminate'", &received("c"))));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(owner.ended().await, EndReason::Goodbye);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.manager.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_listens_for_is_a_resource_constraint() {
    let mut bench = Bench::with(|config| config.knocks = 1);
    let mut one = bench.authenticate("dev1", TERMS).await;
    let mut two = bench.authenticate("dev2", TERMS).await;
    let mut waits = bench.post(one.next(BIND));
    assert_held(&mut waits);
    let refused = at_once(&mut bench.post(two.next(BIND)));
    assert!(
        refused.contains("type='error'") && refused.contains("<error type='wait'><resource-constraint "),
        "{refused}"
    );
    // One who knocked and is sent away is told the same, and may try again.
    drop(knock(&mut bench).await);
    assert!(text(waits.await).contains("<resource-constraint "));
    let again = bench.post(two.next(BIND));
    let owner = Owner::start(bench.accept().await, None);
    assert!(text(again.await).contains("<jid>dev2@example.net/r1</jid>"));
    assert_eq!(owner.device.as_str(), "dev2");
}

#[tokio::test(start_paused = true)]
async fn b12_an_owner_may_turn_a_session_away_and_say_when_to_come_back() {
    let mut bench = Bench::new();
    let mut client = bench.authenticate("dev1", TERMS).await;
    let binding = bench.post(client.next(BIND));
    let mut session = bench.accept().await;
    session.push.close(CloseReason::Overloaded { retry_after: Duration::from_secs(7) }).await;
    let reply = binding.await;
    assert_eq!(reply.retry_after, Some(7));
    let answer = text(reply);
    assert!(answer.contains("condition='policy-violation'"), "{answer}");
    assert!(answer.contains("<drain retry-after='7' xmlns='urn:relay:1'/>"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ended_at_the_door_is_no_session() {
    let mut bench = Bench::new();
    let mut client = bench.authenticate("dev1", TERMS).await;
    let _binding = bench.post(client.next(BIND));
    let knock = knock(&mut bench).await;
    let _gone = bench.post(client.next_with("type='terminate'", ""));
    let error = knock.handshake.await.expect_err("it is over");
    assert_eq!(error.kind, ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn e4_each_reason_of_the_owner_reaches_the_client_held_or_next() {
    for (reason, condition, detail) in [
        (CloseReason::Shutdown, "system-shutdown", ""),
        (
            CloseReason::Drain { retry_after: Duration::from_millis(2_500), to: None },
            "system-shutdown",
            "<drain retry-after='3' ",
        ),
        (CloseReason::Replaced, "remote-stream-error", "<stream:error><conflict "),
        (CloseReason::Revoked, "remote-stream-error", "<stream:error><not-authorized "),
        (
            CloseReason::Overloaded { retry_after: Duration::from_secs(4) },
            "policy-violation",
            "<drain retry-after='4' ",
        ),
        (CloseReason::Misbehaved, "policy-violation", ""),
    ] {
        for held in [true, false] {
            let mut bench = Bench::new();
            let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
            let exchange = held.then(|| bench.post(client.next("")));
            owner.close(reason.clone()).await;
            let answer = match exchange {
                Some(exchange) => text(exchange.await),
                None => bench.say(client.next("")).await,
            };
            assert!(
                answer.contains("type='terminate'") && answer.contains(&format!("condition='{condition}'")),
                "{answer}"
            );
            assert!(answer.contains(detail), "{reason:?}: {answer}");
            assert_eq!(owner.ended().await, EndReason::Closed);
            // E5: a repeat gets it again, for a while; then the session is as unknown as any.
            let again = bench.say(client.message(client.rid, "", "")).await;
            assert!(again.contains(condition), "{again}");
            tokio::time::sleep(Duration::from_secs(61)).await;
            assert_eq!(bench.say(client.next("")).await, terminated("item-not-found"));
            assert_eq!(bench.manager.sessions(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_half_that_is_dropped_ends_the_session() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let held = bench.post(client.next(""));
    drop(owner);
    assert_eq!(text(held.await), terminated("system-shutdown"));
}

#[tokio::test(start_paused = true)]
async fn after_the_end_nothing_can_be_pushed() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", TERMS).await;
    drop(bench.post(client.next_with("type='terminate'", "")));
    assert_eq!(owner.ended().await, EndReason::Goodbye);
    let mut waiting = VecDeque::from([ack("a")]);
    assert_eq!(owner.push(&mut waiting).await.unwrap_err().kind, ErrorKind::Closed);
    let (_client, mut owner) = bench.bind("dev1", TERMS).await;
    let mut waiting = VecDeque::from([ack("a")]);
    let error = tokio::time::timeout(Duration::from_secs(100), owner.push(&mut waiting)).await.unwrap();
    assert_eq!(error.unwrap_err().kind, ErrorKind::Expired, "a push that waits hears of the end");
    assert_eq!(waiting.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_device_resumes_an_earlier_session_within_the_new_one() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let resume =
        "<iq id='s' type='set' xmlns='jabber:client'><resume session='earlier' xmlns='urn:relay:1'/></iq>";
    let answer = bench.say(client.next(resume)).await;
    assert_eq!(
        answer,
        wrapped(
            "<iq id='s' type='result' from='example.net' to='dev1@example.net/r1' xmlns='jabber:client'/>"
        )
    );
    let asked =
        owner.next(|event| if let Event::Resume(session) = event { Some(session) } else { None }).await;
    assert_eq!(asked.as_str(), "earlier");
}

#[tokio::test(start_paused = true)]
async fn p2_a_silent_device_is_asked_whether_it_is_there() {
    let mut bench = Bench::with(|config| config.ping_after = Some(Duration::from_secs(20)));
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let start = tokio::time::Instant::now();
    let answer = bench.say(client.next("")).await;
    assert!(answer.contains("<ping xmlns='urn:xmpp:ping'/>"), "{answer}");
    assert_eq!(start.elapsed().as_secs(), 20);
    // A live client comes back at once; a dead one is noticed by its not doing so.
    owner.next(|event| (event == Event::Detached).then_some(())).await;
    let pong = "<iq id='ping-1' type='result' xmlns='jabber:client'/>";
    let mut back = bench.post(client.next(pong));
    assert_held(&mut back);
    owner.attached().await;
    assert_eq!(owner.unread(), 0, "no answer to anything that the owner asked");
}

#[tokio::test(start_paused = true)]
async fn p1_the_empty_answer_after_the_wait_is_the_keep_alive() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", "wait='10' hold='1' ver='1.11'").await;
    for _ in 0..20 {
        assert_eq!(bench.say(client.next("")).await, EMPTY);
    }
    assert_eq!(owner.unread(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_manager_ends_every_session() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let held = bench.post(client.next(""));
    let Bench { manager, mut listener } = bench;
    drop(manager);
    assert_eq!(text(held.await), terminated("system-shutdown"));
    assert_eq!(owner.ended().await, EndReason::Closed);
    assert!(listener.accept().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn t9_a_client_without_wait_is_answered_at_once_and_still_pushed_to() {
    let mut bench = Bench::new();
    let (mut client, mut owner) = bench.bind("dev1", "wait='0' hold='0' ver='1.11'").await;
    assert_eq!(at_once(&mut bench.post(client.next(""))), EMPTY);
    owner.send([ack("a")]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(at_once(&mut bench.post(client.next(""))), wrapped(&acked("a")));
}

#[tokio::test(start_paused = true)]
async fn h15_neither_the_host_header_nor_order_of_requests_chooses_a_session() {
    // The manager is never shown a header; two sessions are told apart by SID alone.
    let mut bench = Bench::new();
    let (mut one, mut owner_one) = bench.bind("dev1", TERMS).await;
    let (mut two, _owner_two) = bench.bind("dev2", TERMS).await;
    let (mut a, mut b) = (bench.post(one.next("")), bench.post(two.next("")));
    owner_one.send([ack("a")]).await.unwrap();
    assert_eq!(at_once(&mut a), wrapped(&acked("a")));
    assert_held(&mut b);
}

#[tokio::test(start_paused = true)]
async fn c8_to_and_route_in_a_later_request_are_ignored() {
    let mut bench = Bench::new();
    let (mut client, _owner) = bench.bind("dev1", TERMS).await;
    let mut held =
        bench.post(client.next_with("to='other.example' route='xmpp:other.example:5222' stream='x'", ""));
    assert_held(&mut held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_threads_on_one_session_keep_its_order() {
    let mut bench = Bench::new();
    let (mut client, owner) = bench.bind("dev1", TERMS).await;
    let bench = Arc::new(bench);
    const ROUNDS: usize = 500;
    for _ in 0..ROUNDS / 2 {
        // Two requests of one session, and a copy of the first, at the same instant on threads of their own.
        let first = client.next(&received(&format!("r{}", client.rid)));
        let second = client.next(&received(&format!("r{}", client.rid)));
        let posts = [first.clone(), second, first].map(|message| {
            let bench = Arc::clone(&bench);
            std::thread::spawn(move || bench.post(message))
        });
        let exchanges = posts.map(|post| post.join().unwrap());
        drop(exchanges);
    }
    let envelopes = owner.receive(ROUNDS).await;
    let rids: Vec<u64> = envelopes
        .iter()
        .map(|envelope| match envelope {
            Envelope::Received { id } => id.as_str()[1..].parse().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(rids.is_sorted() && rids.len() == ROUNDS, "{rids:?}");
    assert_eq!(owner.unread(), 0, "each once");
}

#[test]
fn what_a_host_holds_for_a_held_request_is_small_and_may_go_anywhere() {
    fn goes_anywhere<T: Send + 'static>() -> usize {
        size_of::<T>()
    }
    assert!(goes_anywhere::<transport_bosh::server::Exchange>() <= 32);
}

/// An owner that holds its own push half, as owners do, and never lets go of it.
#[derive(Debug)]
struct Keeper {
    push: Mutex<Option<Box<dyn Push>>>,
    _alive: Arc<()>,
}

impl Inbound for Keeper {
    fn envelope(&self, _: Envelope) -> Result<(), Full> {
        Ok(())
    }
    fn ended(&self, _: EndReason) {}
}

#[tokio::test(start_paused = true)]
async fn t36_a_session_that_is_over_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let mut client = bench.authenticate("dev1", TERMS).await;
    let binding = bench.post(client.next(BIND));
    let Session { id, mut push, .. } = bench.accept().await;
    let alive = Arc::new(());
    let keeper = Arc::new(Keeper { push: Mutex::new(None), _alive: Arc::clone(&alive) });
    push.start(Started::new(id, false, Arc::clone(&keeper) as Arc<dyn Inbound>));
    *keeper.push.lock().unwrap() = Some(push);
    drop(keeper);
    text(binding.await);
    assert_eq!(Arc::strong_count(&alive), 2, "the session keeps its owner");
    drop(bench.post(client.next_with("type='terminate'", "")));
    assert_eq!(Arc::strong_count(&alive), 1, "owner and session held each other");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(bench.manager.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_may_go_while_a_session_is_at_work() {
    for round in 0..100 {
        let mut bench = Bench::new();
        // One whose pushes need no request that is held.
        let (_client, mut owner) = bench.bind("dev1", "wait='0' hold='0' ver='1.11'").await;
        let (ended, end) = std::sync::mpsc::channel();
        let pushed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&pushed);
        std::thread::spawn(move || {
            let mut context = Context::from_waker(Waker::noop());
            loop {
                let mut envelopes = VecDeque::from([ack("r1")]);
                match pin!(owner.push(&mut envelopes)).poll(&mut context) {
                    Poll::Ready(Ok(())) => drop(count.fetch_add(1, Ordering::SeqCst)),
                    Poll::Ready(Err(_)) => break,
                    Poll::Pending => std::thread::yield_now(),
                }
            }
            let _ = ended.send(());
        });
        while pushed.load(Ordering::SeqCst) <= round {
            std::hint::spin_loop();
        }
        drop(bench);
        end.recv_timeout(PATIENCE).expect("the session is not locked for ever, and ends");
    }
}
