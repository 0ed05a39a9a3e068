//! T24: many connections that say little, and what each of them costs. Alone in its process: memory is measured.
#![cfg(feature = "relay")]

mod http_support;

use std::time::Duration;

use http_support::{Rig, Wire, head};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Both ends of each connection are of this process.
fn raise_descriptors(wanted: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).expect("the hard limit allows it");
    }
}

#[tokio::test]
async fn t24_5000_slow_heads_cost_little_and_are_all_gone_in_time() {
    const SLOW: usize = 5_000;
    const WITHIN: Duration = Duration::from_secs(5);
    raise_descriptors(2 * SLOW as u64 + 200);
    let rig = Rig::with(|config| config.http.head_timeout = WITHIN).await;
    for _ in 0..50 {
        assert_eq!(rig.get("/healthz", "").await.status, 200);
    }
    let before = resident();
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let mut wire = Wire { stream: TcpStream::connect(rig.address).await.unwrap(), read: Vec::new() };
        // Nothing, half a request line, half a head.
        wire.send([&b""[..], b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nhost: "][n % 3]).await;
        slow.push(wire);
    }
    let last = Instant::now();
    // They are all inside.
    let metrics = String::from_utf8(rig.get("/metrics", &rig.admin).await.body).unwrap();
    let line = format!("http_connections {}", SLOW + 1);
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
    let each = resident().saturating_sub(before) / SLOW;
    println!("{each} bytes of memory for each of {SLOW} slow connections, both ends together");
    // T24, with what this side of each connection costs the test.
    assert!(each <= 20 * 1024, "{each} bytes each");
    // Meanwhile the relay serves.
    let served = timeout(Duration::from_secs(1), rig.get("/v1/devices", &rig.admin)).await;
    assert_eq!(served.expect("at once").status, 200);
    for wire in &mut slow {
        if let Some(got) = wire.read().await {
            got.expect(408, "too-slow");
        }
        wire.closed().await;
    }
    let took = last.elapsed();
    assert!(took < WITHIN + Duration::from_secs(5), "{took:?}");
    let mut wire = rig.wire().await;
    wire.send(&head("GET", "/healthz", "", &[], None)).await;
    assert_eq!(wire.read().await.unwrap().status, 200);
}
