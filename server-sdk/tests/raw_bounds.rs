//! Bounds of the HTTP side, byte by byte: sizes (B1, B2, B4), times (B8, B9), numbers (B8, B10), and what happens at
//! each.
#![cfg(feature = "relay")]

mod http_support;

use std::time::Duration;

use http_support::{PATIENCE, Rig, Wire, eventually, head};
use relay_core::{Body, Response};
use tokio::{
    net::TcpSocket,
    time::{Instant, sleep, timeout},
};

const SHORT: Duration = Duration::from_millis(300);

/// A head of exactly `size` bytes with `fields` fields beside Host.
fn head_of(size: usize, fields: usize) -> Vec<u8> {
    let mut head = b"GET /healthz HTTP/1.1\r\nhost: relay\r\n".to_vec();
    for n in 1..fields {
        head.extend_from_slice(format!("x-{n}: y\r\n").as_bytes());
    }
    let frame = b"x-last: \r\n\r\n".len();
    let rest = size.saturating_sub(head.len() + frame);
    head.extend_from_slice(b"x-last: ");
    head.extend(std::iter::repeat_n(b'y', rest.max(1)));
    head.extend_from_slice(b"\r\n\r\n");
    head
}

async fn status_of(rig: &Rig, bytes: &[u8]) -> (u16, Wire) {
    let mut wire = rig.wire().await;
    wire.send(bytes).await;
    let got = wire.read().await.expect("an answer");
    (got.status, wire)
}

#[tokio::test]
async fn b1_a_head_has_16_kib_and_100_fields() {
    let rig = Rig::start().await;
    let exact = head_of(16 * 1024, 10);
    assert_eq!(exact.len(), 16 * 1024);
    assert_eq!(status_of(&rig, &exact).await.0, 200);
    let (status, mut wire) = status_of(&rig, &head_of(16 * 1024 + 1, 10)).await;
    assert_eq!(status, 431);
    wire.closed().await;
    assert_eq!(status_of(&rig, &head_of(0, 99)).await.0, 200);
    let (status, mut wire) = status_of(&rig, &head_of(0, 100)).await;
    assert_eq!(status, 431);
    wire.closed().await;
    // T32: megabytes, told as soon as the bound is passed.
    assert_eq!(status_of(&rig, &head_of(4 << 20, 10)).await.0, 431);
}

#[tokio::test]
async fn b1_a_target_has_8_kib() {
    let rig = Rig::start().await;
    let target = |length: usize| format!("/v1/{}", "x".repeat(length - 4));
    rig.get(&target(8192), "").await.expect(404, "not-found");
    let mut wire = rig.wire().await;
    wire.send(&head("GET", &target(8193), "", &[], None)).await;
    wire.read().await.unwrap().expect(414, "uri-too-long");
    wire.closed().await;
    assert_eq!(status_of(&rig, &head("GET", &target(20_000), "", &[], None)).await.0, 431);
}

fn chunked(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for chunk in bytes.chunks(10_000) {
        all.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        all.extend_from_slice(chunk);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"0\r\n\r\n");
    all
}

#[tokio::test]
async fn t23_each_body_has_its_bound_to_the_byte_whether_its_length_is_told_or_not() {
    let rig = Rig::start().await;
    let device = rig.enrol("d").await;
    let admin = rig.admin.clone();
    let (mib, kib) = (1024 * 1024, 1024);
    for (method, path, token, kind, bound) in [
        ("POST", "/http-bind", "", "text/xml", 256 * kib),
        ("POST", "/v1/requests/x/response", &device, "text/plain", mib),
        ("PUT", "/v1/devices/d/objects/x", &admin, "text/plain", mib),
        ("POST", "/v1/devices/d/requests?method=X", &admin, "text/plain", mib),
        ("PUT", "/v1/devices/d", &device, "application/json", 64 * kib),
        ("POST", "/v1/devices/d/alive", &device, "application/json", 64 * kib),
        ("POST", "/v1/enroll", "", "application/json", 64 * kib),
        ("POST", "/v1/keys", &admin, "application/json", 64 * kib),
        ("POST", "/v1/devices/import", &admin, "text/csv", 8 * mib),
    ] {
        let body = vec![b' '; bound + 1];
        let kind = ("content-type", kind);
        let within = rig.call(method, path, token, &[kind], &body[..bound]).await;
        assert_ne!(within.status, 413, "{path}");
        // Told at once, without a byte of the body.
        let mut wire = rig.wire().await;
        wire.send(&head(method, path, token, &[kind], Some(bound + 1))).await;
        wire.read().await.unwrap().expect(413, "too-large");
        wire.closed().await;
        // Not told: at the byte. The answer is not lost, although nobody reads the rest.
        let field = ("transfer-encoding", "chunked");
        let mut wire = rig.wire().await;
        wire.send(&head(method, path, token, &[kind, field], None)).await;
        wire.send(&chunked(&body[..bound])).await;
        assert_ne!(wire.read().await.unwrap().status, 413, "{path}");
        let mut wire = rig.wire().await;
        wire.send(&head(method, path, token, &[kind, field], None)).await;
        wire.send(&chunked(&body)).await;
        wire.read().await.unwrap().expect(413, "too-large");
        wire.closed().await;
    }
}

#[tokio::test]
async fn t23_a_length_that_lies_is_found_out() {
    let rig = Rig::start().await;
    // More than told: what follows is no request.
    let mut wire = rig.wire().await;
    wire.send(&head("POST", "/v1/enroll", "", &[("content-type", "application/json")], Some(2))).await;
    wire.send(b"{}{}\r\n\r\n").await;
    wire.read().await.unwrap().expect(400, "bad-request");
    assert_eq!(wire.read().await.unwrap().status, 400);
    wire.closed().await;
    // Fewer: the peer is gone, and nobody waits for the rest.
    let mut wire = rig.wire().await;
    wire.send(&head("POST", "/v1/enroll", "", &[], Some(100))).await;
    wire.send(b"{").await;
    drop(wire);
    connections(&rig, 1).await;
}

/// Waits until so many connections are there, this question's own included.
async fn connections(rig: &Rig, expected: usize) {
    timeout(PATIENCE, async {
        loop {
            let text = String::from_utf8(rig.get("/metrics", &rig.admin).await.body).unwrap();
            let line = text.lines().find(|line| line.starts_with("http_connections ")).unwrap();
            if line.ends_with(&format!(" {expected}")) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("so many connections");
}

#[tokio::test]
async fn b8_a_head_that_does_not_come_ends_its_connection() {
    let rig = Rig::with(|config| config.http.head_timeout = SHORT).await;
    // Not a byte, and the HTTP/2 preface's first: nothing can be said.
    let mut silent = rig.wire().await;
    silent.closed().await;
    // A byte at a time.
    let mut slow = rig.wire().await;
    let start = Instant::now();
    let mut dribble = async || {
        for byte in head("GET", "/healthz", "", &[("x", &"y".repeat(1000))], None) {
            slow.send(&[byte]).await;
            if !slow.is_open_after(Duration::from_millis(20)).await {
                break;
            }
        }
        slow.read().await
    };
    let got = dribble().await.expect("it is told");
    got.expect(408, "too-slow");
    assert!(start.elapsed() >= SHORT && start.elapsed() < SHORT * 10, "{:?}", start.elapsed());
}

#[tokio::test]
async fn b8_half_a_second_head_is_no_rest_between_requests() {
    let rig = Rig::with(|config| {
        config.http.head_timeout = SHORT;
        config.http.idle_timeout = Duration::from_secs(60);
    })
    .await;
    let mut wire = rig.wire().await;
    wire.send(&head("GET", "/v1/devices", &rig.admin, &[], None)).await;
    assert_eq!(wire.read().await.unwrap().status, 200);
    // At rest, longer than a head may take.
    assert!(wire.is_open_after(SHORT * 2).await);
    wire.send(b"GET /hea").await;
    wire.read().await.unwrap().expect(408, "too-slow");
    wire.closed().await;
}

#[tokio::test]
async fn b8_who_showed_a_credential_may_rest_longer_than_a_stranger() {
    let rig = Rig::with(|config| {
        config.http.head_timeout = SHORT;
        config.http.idle_timeout = Duration::from_millis(1500);
    })
    .await;
    let start = Instant::now();
    let (mut stranger, mut friend) = (rig.wire().await, rig.wire().await);
    stranger.send(&head("GET", "/healthz", "", &[], None)).await;
    assert_eq!(stranger.read().await.unwrap().status, 200);
    friend.send(&head("GET", "/v1/devices", &rig.admin, &[], None)).await;
    assert_eq!(friend.read().await.unwrap().status, 200);
    stranger.closed().await;
    assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    friend.closed().await;
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn b8_strangers_have_a_bound_and_room_is_made_by_the_slow() {
    let rig = Rig::with(|config| {
        config.http.head_timeout = Duration::from_secs(2);
        config.http.max_strangers = 3;
    })
    .await;
    let mut friend = rig.wire().await;
    friend.send(&head("GET", "/v1/devices", &rig.admin, &[], None)).await;
    assert_eq!(friend.read().await.unwrap().status, 200);
    let mut crowd = Vec::new();
    for _ in 0..3 {
        let mut wire = rig.wire().await;
        wire.send(b"GET ").await;
        crowd.push(wire);
    }
    // Nobody is late yet: the newcomer is told to come again.
    let mut fourth = rig.wire().await;
    let got = fourth.read().await.expect("it is told");
    got.expect(503, "overloaded");
    assert!(got.field("retry-after").is_some());
    fourth.closed().await;
    // Later, one who is past half its time goes.
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(rig.get("/healthz", "").await.status, 200);
    let mut sent_away = 0;
    for wire in &mut crowd {
        match wire.read().await {
            Some(got) if got.status == 503 => sent_away += 1,
            Some(got) => drop(got.expect(408, "too-slow")),
            None => {}
        }
    }
    assert_eq!(sent_away, 1);
    // Who showed a credential takes no place and loses none.
    friend.send(&head("GET", "/v1/devices", &rig.admin, &[], None)).await;
    assert_eq!(friend.read().await.unwrap().status, 200);
}

#[tokio::test]
async fn b9_t25_a_body_that_pauses_dribbles_or_drags_on_is_cut() {
    for (set, pause, bytes) in [
        // (idle, rate, total), then how it comes.
        ((300, 1, 60_000), 10_000, 1),
        ((600, 2_000, 60_000), 20, 10),
        ((1_000, 1, 700), 100, 10),
    ] {
        let (idle, rate, total) = set;
        let rig = Rig::with(|config| {
            config.http.body_idle_timeout = Duration::from_millis(idle);
            config.http.body_min_rate = rate;
            config.http.body_timeout = Duration::from_millis(total);
        })
        .await;
        let device = rig.enrol("d").await;
        for (path, token) in [
            ("/http-bind", ""),
            ("/v1/requests/x/response", &*device),
            ("/v1/devices/d/requests?method=X", &rig.admin),
        ] {
            let start = Instant::now();
            let mut wire = rig.wire().await;
            wire.send(&head("POST", path, token, &[], Some(100_000))).await;
            while start.elapsed() < PATIENCE {
                wire.send(&vec![b'x'; bytes]).await;
                if !wire.is_open_after(Duration::from_millis(pause)).await {
                    break;
                }
            }
            wire.read().await.unwrap().expect(408, "too-slow");
            wire.closed().await;
            let took = start.elapsed();
            assert!(took < Duration::from_secs(5), "{path} with {set:?}: {took:?}");
            assert!(took >= Duration::from_millis(idle.min(total)), "{path} with {set:?}: {took:?}");
        }
    }
}

#[tokio::test]
async fn b9_a_body_that_comes_steadily_is_taken() {
    let rig = Rig::with(|config| {
        config.http.body_idle_timeout = SHORT;
        config.http.body_min_rate = 1_000;
    })
    .await;
    let mut wire = rig.wire().await;
    wire.send(&head("POST", "/v1/devices/d/requests?method=X", &rig.admin, &[], Some(6_000))).await;
    for _ in 0..6 {
        wire.send(&[b'x'; 1_000]).await;
        sleep(SHORT / 2).await;
    }
    wire.read().await.unwrap().expect(404, "unknown-device");
}

#[tokio::test]
async fn b10_beyond_the_bound_connections_wait_and_are_not_refused() {
    let rig = Rig::with(|config| config.http.max_connections = Some(2)).await;
    let mut held = vec![rig.wire().await, rig.wire().await];
    for wire in &mut held {
        wire.send(&head("GET", "/healthz", "", &[], None)).await;
        assert_eq!(wire.read().await.unwrap().status, 200);
    }
    let mut third = rig.wire().await;
    third.send(&head("GET", "/healthz", "", &[], None)).await;
    assert!(third.is_open_after(SHORT).await, "it is not served yet");
    held.pop();
    assert_eq!(third.read().await.unwrap().status, 200);
}

#[tokio::test]
async fn t26_a_peer_that_does_not_read_is_cut() {
    let rig = Rig::with(|config| config.http.write_timeout = Duration::from_millis(500)).await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(rig.address).await.unwrap();
    // As many answers as no buffer of the system holds.
    let asked = head("GET", "/v1/devices/d/objects/x", &key, &[], None).repeat(40);
    tokio::io::AsyncWriteExt::write_all(&mut stream, &asked).await.unwrap();
    let big = Body::new("a/b", vec![b'x'; 120 * 1024]);
    let mut answered = 0;
    while let Ok((id, _)) = timeout(Duration::from_millis(400), device.request()).await {
        device.answer(id, Response::with_body(big.clone())).await;
        answered += 1;
    }
    assert!((1..40).contains(&answered), "answered {answered}: the window closes on the way");
    connections(&rig, 1).await;
    // Nobody else noticed.
    let answer = async {
        let (id, _) = device.request().await;
        device.answer(id, Response::ok()).await;
    };
    assert_eq!(tokio::join!(rig.get("/v1/devices/d/objects/x", &key), answer).0.status, 200);
    drop(stream);
}

#[tokio::test]
async fn t26_a_peer_that_reads_slowly_gets_all_of_its_answer() {
    let rig = Rig::with(|config| config.http.write_timeout = Duration::from_millis(500)).await;
    let mut device = rig.device("d").await;
    let key = rig.key(&[]).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(rig.address).await.unwrap();
    let fields = [("connection", "close")];
    let asked = head("GET", "/v1/devices/d/objects/x", &key, &fields, None);
    tokio::io::AsyncWriteExt::write_all(&mut stream, &asked).await.unwrap();
    let (id, _) = device.request().await;
    let path = format!("/v1/requests/{id}/response");
    assert_eq!(rig.call("POST", &path, &device.token, &[], &vec![b'x'; 1024 * 1024]).await.status, 204);
    let mut all = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // Half a minute in all would be too long for a test; longer than the write time-out is what counts.
        sleep(Duration::from_millis(8)).await;
        match tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await.unwrap() {
            0 => break,
            read => all += read,
        }
    }
    assert!(all > 1024 * 1024, "{all}");
}

#[tokio::test]
async fn dropping_a_server_that_runs_closes_its_connections() {
    let mut rig = Rig::start().await;
    let mut wire = rig.wire().await;
    wire.send(&head("GET", "/healthz", "", &[], None)).await;
    assert_eq!(wire.read().await.unwrap().status, 200);
    let run = rig.run.take().unwrap();
    run.abort();
    wire.closed().await;
    eventually(|| std::net::TcpStream::connect(rig.address).is_err()).await;
}

#[tokio::test]
async fn b4_bodies_that_are_being_read_have_a_bound_together() {
    let rig = Rig::with(|config| config.http.max_reading = 100_000).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut wire = rig.wire().await;
        wire.send(&head("POST", "/http-bind", "", &[], Some(100_000))).await;
        wire.send(&[b' '; 40_000]).await;
        slow.push(wire);
    }
    let mut refused = 0;
    for wire in &mut slow {
        if !wire.is_open_after(SHORT).await {
            let got = wire.read().await.unwrap();
            got.expect(503, "overloaded");
            assert!(got.field("retry-after").is_some());
            refused += 1;
        }
    }
    assert_eq!(refused, 2);
    // What is there already is taken, and room is given back.
    drop(slow);
    connections(&rig, 1).await;
    let got = rig.call("POST", "/http-bind", "", &[], &[b' '; 90_000]).await;
    assert_ne!(got.status, 503, "{got:?}");
}

#[tokio::test]
async fn t23_an_answer_is_not_overtaken_by_a_reset_while_the_peer_still_sends() {
    let rig = Rig::start().await;
    let socket = TcpSocket::new_v4().unwrap();
    // Little of it fits into this side's buffers.
    socket.set_send_buffer_size(16 * 1024).unwrap();
    let mut wire = Wire { stream: socket.connect(rig.address).await.unwrap(), read: Vec::new() };
    wire.send(&head("POST", "/v1/enroll", "", &[], Some(3 << 20))).await;
    // What nobody wants is taken all the same, for a while: many clients send all before they read.
    let sent = tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &vec![b' '; 3 << 20]).await;
    assert!(sent.is_ok(), "{sent:?}");
    wire.read().await.unwrap().expect(413, "too-large");
    wire.closed().await;
    // But not for ever.
    let mut wire = rig.wire().await;
    wire.send(&head("POST", "/v1/enroll", "", &[], Some(1 << 30))).await;
    let start = Instant::now();
    let endless = async {
        let chunk = vec![b' '; 64 * 1024];
        while tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &chunk).await.is_ok() {}
    };
    timeout(PATIENCE, endless).await.expect("it is cut");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn b6_a_call_is_in_flight_until_its_answer_is_on_its_way() {
    let rig = Rig::with(|config| config.http.service_in_flight = 1).await;
    let mut device = rig.device("d").await;
    let (key, other) = (rig.key(&[]).await, rig.key(&[]).await);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(rig.address).await.unwrap();
    let mut greedy = Wire { stream, read: Vec::new() };
    let count = 40;
    greedy.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None).repeat(count)).await;
    let big = Body::new("a/b", vec![b'x'; 120 * 1024]);
    let mut answered = 0;
    while let Ok((id, _)) = timeout(SHORT, device.request()).await {
        device.answer(id, Response::with_body(big.clone())).await;
        answered += 1;
    }
    assert!(answered < count, "the window closes on the way");
    // The answer that nobody reads takes the key's only place; another key has its own.
    rig.get("/v1/devices/d/objects/x", &key).await.expect(429, "too-many-requests");
    rig.get("/v1/devices/none/objects/x", &other).await.expect(404, "unknown-device");
    let read = async {
        for _ in 0..count {
            assert_eq!(greedy.read().await.unwrap().body.len(), 120 * 1024);
        }
    };
    let rest = async {
        for _ in answered..count {
            let (id, _) = device.request().await;
            device.answer(id, Response::with_body(big.clone())).await;
        }
    };
    tokio::join!(read, rest);
    let answer = async {
        let (id, _) = device.request().await;
        device.answer(id, Response::ok()).await;
    };
    assert_eq!(tokio::join!(rig.get("/v1/devices/d/objects/x", &key), answer).0.status, 200);
}
