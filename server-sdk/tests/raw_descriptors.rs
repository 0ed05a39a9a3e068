//! F24: all descriptors taken. Alone in its process: the limit is the process's.
#![cfg(feature = "relay")]

mod http_support;

use std::time::Duration;

use http_support::{Rig, head};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

#[tokio::test]
async fn f24_sessions_work_on_without_descriptors_and_accepting_comes_back() {
    // B10 would keep it from happening: it is told of more than there are.
    let rig = Rig::with(|config| config.http.max_connections = Some(100_000)).await;
    let mut device = rig.device("d").await;
    let mut service = rig.wire().await;
    let key = rig.key(&[]).await;
    service.send(&head("GET", "/v1/devices", &key, &[], None)).await;
    assert_eq!(service.read().await.unwrap().status, 200);

    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(open + 40);
    setrlimit(Resource::Nofile, limit).unwrap();
    // Both ends are of this process: sockets to connect with run out, with some not accepted.
    let mut crowd = Vec::new();
    loop {
        match timeout(Duration::from_secs(5), TcpStream::connect(rig.address)).await.expect("in time") {
            Ok(stream) => crowd.push(stream),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(24), "out of descriptors: {error}");
                break;
            }
        }
    }
    // The last one connected, but there was no descriptor to accept it with.
    for _ in 0..3 {
        service.send(&head("GET", "/v1/devices/d/objects/x", &key, &[], None)).await;
        let (id, _) = device.request().await;
        device.answer(id, relay_core::Response::ok()).await;
        assert_eq!(service.read().await.unwrap().status, 200);
    }
    let freed = Instant::now();
    crowd.truncate(crowd.len() / 4);
    let got = timeout(Duration::from_secs(10), rig.get("/healthz", "")).await.expect("accepted again");
    assert_eq!(got.status, 200);
    assert!(freed.elapsed() < Duration::from_secs(2), "{:?}", freed.elapsed());
    let metrics = String::from_utf8(rig.get("/metrics", &rig.admin).await.body).unwrap();
    let errors = metrics.lines().find(|line| line.starts_with("http_accept_errors_total ")).unwrap();
    assert_ne!(errors, "http_accept_errors_total 0", "the test was to exhaust descriptors");
}
