//! Devices behind proxies by other hands: tinyproxy with credentials as the only way out of a network (S9), nginx in front
//! of the relay, as it comes and with short patience (F9, F10).

#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;
#[path = "support/relay.rs"]
mod relay;
#[path = "support/nat.rs"]
mod rig;

use std::{
    fs::File,
    io::{ErrorKind, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use device_sdk::{Device, Event, Events, Router, Transport};
use host::Host;
use http::Connection;
use relay::{Relay, free_address, word};
use rig::{Nat, OUTSIDE, Side};
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_secs(30);
/// Long enough for a packet that is let through to arrive.
const WHILE: Duration = Duration::from_millis(700);
const TONER: &str = "1.3.6.1.2.1.43.11.1.1.9.1.1";

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}

// --- tinyproxy -----------------------------------------------------------------------------------------------------

const PROXY: u16 = 8888;

struct Office<'n> {
    nat: &'n Nat,
    relay: SocketAddr,
    key: String,
}

impl Office<'_> {
    fn printer(&self, id: &str, pin: &str, transport: &str, change: impl FnOnce(&mut Command)) -> Running {
        let mut command = self.nat.command(Side::Device, env!("CARGO_BIN_EXE_virtual-printer"));
        command
            .args(["--relay", &format!("http://{}", self.relay), "--id", id, "--pin", pin])
            .args(["--transport", transport, "--allow-plaintext"])
            .stdin(Stdio::piped());
        change(&mut command);
        Running(command.spawn().unwrap())
    }

    fn get(&self, device: &str) -> (u16, String) {
        let line = format!("GET /v1/devices/{device}/objects/{TONER}");
        let fields = [format!("Authorization: Bearer {}", self.key), "Prefer: wait=5".to_owned()];
        let fields: Vec<_> = fields.iter().map(String::as_str).collect();
        let answer = self.nat.at(Side::Outside, || http::ask(self.relay, &line, &fields, b"").unwrap());
        (answer.status, answer.text())
    }

    fn until_answered(&self, device: &str) -> Duration {
        let start = Instant::now();
        loop {
            match self.get(device) {
                (200, text) if text == "83" => return start.elapsed(),
                other => assert!(start.elapsed() < SOON, "{device}: still {other:?}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn transport_of(&self, device: &str) -> String {
        let line = format!("GET /v1/devices/{device}");
        let bearer = format!("Authorization: Bearer {}", self.key);
        let answer = self.nat.at(Side::Outside, || http::ask(self.relay, &line, &[&bearer], b"").unwrap());
        answer.json()["transport"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn s9_a_proxy_with_credentials_is_the_only_way_out_and_devices_of_either_transport_take_it() {
    let folder = tempfile::tempdir().unwrap();
    let nat = Nat::new();
    let mut program = nat.command(Side::Outside, relay::program());
    program.env("RELAY_ALLOW_PLAINTEXT", "true");
    let relay =
        Relay::start_as(program, SocketAddr::from((OUTSIDE, 8080)), &folder.path().join("data"), |address| {
            nat.at(Side::Outside, || http::ask(address, "GET /readyz", &[], b""))
        });
    let tell = |arguments: &[&str]| relay.tell_by(nat.command(Side::Outside, relay::program()), arguments);
    let office = Office { nat: &nat, relay: relay.address, key: word(&tell(&["key", "new"]), "key") };
    let pin = |device: &str| word(&tell(&["enroll", device]), "pin");

    let config =
        format!("Port {PROXY}\nListen {OUTSIDE}\nBasicAuth clerk s3cret\nMaxClients 50\nLogLevel Info\n");
    let config = write(folder.path(), "tinyproxy.conf", &config);
    let _proxy = Running(
        nat.command(Side::Outside, "tinyproxy")
            .arg("-d")
            .arg("-c")
            .arg(config)
            .stdout(File::create(folder.path().join("proxy.log")).unwrap())
            .spawn()
            .unwrap(),
    );
    nat.let_out_only_to(PROXY);
    let direct = nat.at(Side::Device, || TcpStream::connect_timeout(&relay.address, WHILE));
    let silence = direct.unwrap_err().kind();
    assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "nothing gets out: {silence}");
    let start = Instant::now();
    let proxy = SocketAddr::from((OUTSIDE, PROXY));
    while nat.at(Side::Device, || TcpStream::connect_timeout(&proxy, WHILE)).is_err() {
        assert!(start.elapsed() < SOON, "the proxy is not there");
    }

    let with = format!("http://clerk:s3cret@{proxy}");
    let _by_option = office.printer("by-ws", &pin("by-ws"), "ws", |command| {
        command.args(["--proxy", &with]);
    });
    let _by_environment = office.printer("by-bosh", &pin("by-bosh"), "bosh", |command| {
        command.env("http_proxy", &with);
    });
    let _auto = office.printer("by-auto", &pin("by-auto"), "auto", |command| {
        command.env("ALL_PROXY", &with);
    });
    for (device, transport) in [("by-ws", "ws"), ("by-bosh", "bosh"), ("by-auto", "ws")] {
        let took = office.until_answered(device);
        assert_eq!(office.transport_of(device), transport);
        println!("{device}: reached through tinyproxy over {transport} after {took:.1?}");
    }

    // Without the right credentials, or by no proxy, there is no way.
    let _wrong = office.printer("wrong", &pin("wrong"), "auto", |command| {
        command.args(["--proxy", &format!("http://clerk:wrong@{proxy}")]);
    });
    let _none = office.printer("none", &pin("none"), "auto", |command| {
        command.env("http_proxy", &with).env("no_proxy", OUTSIDE.to_string());
    });
    thread::sleep(WHILE * 3);
    for device in ["wrong", "none"] {
        assert_eq!(office.get(device).0, 503, "{device}");
    }
    let log = std::fs::read_to_string(folder.path().join("proxy.log")).unwrap();
    assert!(log.contains(&format!("CONNECT {}", relay.address)), "{log}");
}

// --- nginx ---------------------------------------------------------------------------------------------------------

struct Nginx {
    address: SocketAddr,
    _running: Running,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// In front of `upstream`, with `extra` said about how to pass things on.
    async fn before(upstream: SocketAddr, extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (at, address) = (folder.path().display(), free_address());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .collect();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
            events {{ worker_connections 128; }}
            http {{
                access_log {at}/access.log;
                {temporary}
                server {{
                    listen {address};
                    location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; {extra} }}
                }}
            }}"
        );
        let config = write(folder.path(), "nginx.conf", &config);
        let mut command = Command::new("nginx");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin")).arg("-p").arg(folder.path()).arg("-c").arg(config);
        let running = Running(command.stderr(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while Connection::open(address).await.is_err() {
            assert!(start.elapsed() < SOON, "nginx is not there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { address, _running: running, _folder: folder }
    }
}

const UPGRADES: &str = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_set_header Host $http_host;";

async fn device(
    host: &Host,
    nginx: &Nginx,
    id: &str,
    transport: Transport,
    keepalive: Duration,
) -> (Device, Events) {
    let device = Device::builder(format!("http://{}", nginx.address), id)
        .token(host.enrol(id).await)
        .router(Router::new().get("toner", || async { Ok(83) }))
        .transport(transport)
        .no_proxy()
        .keepalive(keepalive)
        .shortest_keepalive(Duration::from_secs(1))
        .start()
        .await
        .unwrap();
    let events = device.events();
    timeout(SOON, device.online()).await.unwrap().unwrap();
    (device, events)
}

async fn toner(host: &Host, key: &str, id: &str) -> String {
    let mut connection = Connection::open(host.address).await.unwrap();
    let bearer = format!("Authorization: Bearer {key}");
    let line = format!("GET /v1/devices/{id}/objects/toner");
    timeout(SOON, connection.ask(&line, &[&bearer], b"")).await.unwrap().unwrap().text()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_nginx_as_it_comes_passes_no_upgrade_and_the_device_takes_bosh() {
    let host = Host::start().await;
    let key = host.key().await;
    let nginx = Nginx::before(host.address, "").await;
    let (device, mut events) =
        device(&host, &nginx, "printer-1", Transport::Auto, Duration::from_secs(60)).await;
    while events.next().await != Some(Event::Transport { name: "bosh" }) {}
    assert_eq!(toner(&host, &key, "printer-1").await, "83");
    device.shutdown(Duration::from_secs(5)).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_s4_an_nginx_that_waits_5_s_is_learned_and_then_cuts_nothing() {
    let host = Host::start().await;
    let key = host.key().await;
    let nginx = Nginx::before(host.address, &format!("{UPGRADES} proxy_read_timeout 5s;")).await;
    let (device, mut events) =
        device(&host, &nginx, "printer-1", Transport::Ws, Duration::from_secs(30)).await;
    let (mut cuts, mut learned) = (0, Duration::from_secs(25));
    let calm = Duration::from_secs(12);
    while let Ok(event) = timeout(calm, events.next()).await {
        match event.expect("the device is there") {
            Event::Offline { .. } => cuts += 1,
            Event::KeepAlive { every } => learned = every,
            _ => {}
        }
    }
    println!("nginx cuts after 5 s; learned {learned:.1?} in {cuts} cuts");
    assert!((1..=5).contains(&cuts), "{cuts} cuts");
    assert!((Duration::from_millis(3_700)..Duration::from_secs(5)).contains(&learned), "{learned:?}");
    assert_eq!(toner(&host, &key, "printer-1").await, "83");
    device.shutdown(Duration::from_secs(5)).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f9_the_default_keep_alive_stays_under_nginx_s_default_patience() {
    let host = Host::start().await;
    let key = host.key().await;
    let nginx = Nginx::before(host.address, UPGRADES).await;
    let minute = Duration::from_secs(60);
    let (over_ws, mut events) = device(&host, &nginx, "printer-1", Transport::Ws, minute).await;
    let (over_bosh, _) = device(&host, &nginx, "printer-2", Transport::Bosh, minute).await;
    // Past the minute after which nginx would have cut what nothing came on.
    let lost = timeout(Duration::from_secs(65), async {
        while !matches!(events.next().await, Some(Event::Offline { .. }) | None) {}
    });
    assert!(lost.await.is_err(), "it was cut");
    for id in ["printer-1", "printer-2"] {
        assert_eq!(toner(&host, &key, id).await, "83");
    }
    for device in [over_ws, over_bosh] {
        device.shutdown(Duration::from_secs(5)).await;
    }
    host.stop().await;
}
