//! A device behind a real NAT: network namespaces, a masquerading router that lets nothing in.

#[path = "support/credential.rs"]
mod enrol;
#[path = "support/http.rs"]
mod http;
#[path = "support/raw_device.rs"]
mod raw_device;
#[path = "support/relay.rs"]
mod relay;
#[path = "support/nat.rs"]
mod rig;
#[path = "../src/bin/fleet/bosh/wire.rs"]
#[allow(dead_code, reason = "the part that a device by hand needs")]
mod wire;
#[path = "../src/bin/fleet/xml.rs"]
mod xml;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{TryRecvError, channel},
    thread,
    time::Duration,
};

use http::Answer;
use raw_device::RawDevice;
use relay::{Relay, word};
use rig::{DEVICE, Nat, OUTSIDE, ROUTER, Side};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a packet that is let through to arrive.
const WHILE: Duration = Duration::from_millis(700);

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[test]
fn the_router_lets_out_what_begins_inside_and_nothing_in() {
    let nat = Nat::new();
    let inside = nat.at(Side::Device, || TcpListener::bind((DEVICE, 0)).unwrap());
    let port = inside.local_addr().unwrap().port();
    for address in [DEVICE, ROUTER] {
        let call =
            nat.at(Side::Outside, || TcpStream::connect_timeout(&SocketAddr::from((address, port)), WHILE));
        assert!(is_silence(&call.unwrap_err()), "{address} is out of reach, in silence");
    }
    assert!(nat.dropped_inbound() >= 2);

    let outside = nat.at(Side::Outside, || TcpListener::bind((OUTSIDE, 0)).unwrap());
    let address = outside.local_addr().unwrap();
    let mut device = nat.at(Side::Device, || TcpStream::connect_timeout(&address, SOON).unwrap());
    let (mut server, peer) = outside.accept().unwrap();
    assert_eq!(peer.ip(), ROUTER, "masqueraded");
    device.write_all(b"hello").unwrap();
    let mut word = [0; 5];
    server.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
}

#[test]
fn what_the_router_forgot_is_dead_in_both_directions_without_a_sign() {
    let nat = Nat::new();
    let outside = nat.at(Side::Outside, || TcpListener::bind((OUTSIDE, 0)).unwrap());
    let address = outside.local_addr().unwrap();
    let connect = || {
        let device = nat.at(Side::Device, || TcpStream::connect_timeout(&address, SOON).unwrap());
        let (server, _) = outside.accept().unwrap();
        for end in [&device, &server] {
            end.set_read_timeout(Some(WHILE)).unwrap();
        }
        (device, server)
    };
    let (mut pushed, mut pushing) = connect();
    let (mut asking, mut asked) = connect();

    assert_eq!(nat.forget_flows(), 2);
    let mut byte = [0];
    pushing.write_all(b"x").unwrap();
    assert!(is_silence(&pushed.read(&mut byte).unwrap_err()), "a push is lost");
    asking.write_all(b"x").unwrap();
    assert!(is_silence(&asked.read(&mut byte).unwrap_err()), "and so is a question");
    assert!(nat.dropped_forgotten() > 0);

    let (mut device, mut server) = connect();
    server.write_all(b"x").unwrap();
    device.read_exact(&mut byte).unwrap();
}

/// Black toner of a printer, by the Printer MIB.
const TONER: &str = "1.3.6.1.2.1.43.11.1.1.9.1.1";

/// Killed when dropped.
struct Printer(Child);

impl Drop for Printer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A service outside, the relay beside it, and a printer behind the NAT.
struct Internet {
    nat: Nat,
    address: SocketAddr,
    key: String,
}

impl Internet {
    fn relay(nat: &Nat, data: &Path) -> Relay {
        let mut program = nat.command(Side::Outside, relay::program());
        program.env("RELAY_ALLOW_PLAINTEXT", "true");
        Relay::start_as(program, SocketAddr::from((OUTSIDE, 8080)), data, |address| {
            nat.at(Side::Outside, || http::ask(address, "GET /readyz", &[], b""))
        })
    }

    fn get(&self, device: &str, object: &str, wait: u32) -> Answer {
        let line = format!("GET /v1/devices/{device}/objects/{object}");
        let fields = [format!("Authorization: Bearer {}", self.key), format!("Prefer: wait={wait}")];
        let fields: Vec<_> = fields.iter().map(String::as_str).collect();
        self.nat.at(Side::Outside, || http::ask(self.address, &line, &fields, b"").unwrap())
    }

    /// Calls until a push gets through; how long that took.
    fn until_answered(&self, bound: Duration) -> Duration {
        let start = Instant::now();
        loop {
            let answer = self.get("printer-1", TONER, 1);
            if answer.status == 200 {
                assert!(answer.text().parse::<u32>().is_ok_and(|level| level <= 100), "{}", answer.text());
                return start.elapsed();
            }
            assert!(start.elapsed() < bound, "after {bound:?} still {} {}", answer.status, answer.text());
            // An offline device is answered at once.
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn f8_what_was_pushed_into_a_flow_that_the_nat_forgot_is_answered_over_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let nat = Nat::new();
    let relay = Internet::relay(&nat, &folder.path().join("data"));
    let tell = |arguments: &[&str]| relay.tell_by(nat.command(Side::Outside, relay::program()), arguments);
    let key = word(&tell(&["key", "new"]), "key");
    let pin = word(&tell(&["enroll", "printer-1"]), "pin");
    let internet = Internet { nat, address: relay.address, key };
    let _printer = Printer(
        internet
            .nat
            .command(Side::Device, env!("CARGO_BIN_EXE_virtual-printer"))
            .args(["--relay", &format!("http://{}", relay.address), "--id", "printer-1", "--pin", &pin])
            .args(["--transport", "ws", "--keepalive", "2", "--allow-plaintext"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    internet.until_answered(Duration::from_secs(20));
    assert!(internet.nat.forget_flows() >= 1, "the WebSocket was a known flow");
    let start = Instant::now();
    let answer = internet.get("printer-1", TONER, 30);
    assert_eq!((answer.status, &*answer.text()), (200, "83"), "the same call");
    assert!(internet.nat.dropped_forgotten() > 0, "what was forgotten was dropped");
    println!(
        "pushed into a flow that was forgotten, answered over the next one after {:.1?}",
        start.elapsed()
    );
}

#[test]
fn a_service_reaches_a_printer_behind_the_nat_also_after_what_keeps_others_hanging() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let nat = Nat::new();
    let relay = Internet::relay(&nat, &data);
    let tell = |arguments: &[&str]| relay.tell_by(nat.command(Side::Outside, relay::program()), arguments);
    let key = word(&tell(&["key", "new"]), "key");
    let (pin, control_pin) =
        (word(&tell(&["enroll", "printer-1"]), "pin"), word(&tell(&["enroll", "control"]), "pin"));
    let internet = Internet { nat, address: relay.address, key };
    let nat = &internet.nat;

    // The printer's own web page is there, and out of reach.
    let page = nat.at(Side::Device, || TcpListener::bind((DEVICE, 80)).unwrap());
    let direct = nat.at(Side::Outside, || TcpStream::connect_timeout(&SocketAddr::from((DEVICE, 80)), WHILE));
    assert!(is_silence(&direct.unwrap_err()), "a direct call fails");
    nat.at(Side::Device, || TcpStream::connect_timeout(&SocketAddr::from((DEVICE, 80)), SOON).unwrap());
    drop(page);

    let _printer = Printer(
        nat.command(Side::Device, env!("CARGO_BIN_EXE_virtual-printer"))
            .args(["--relay", &format!("http://{}", relay.address), "--id", "printer-1", "--pin", &pin])
            .args(["--transport", "bosh", "--keepalive", "2", "--allow-plaintext", "--state"])
            .arg(folder.path().join("printer"))
            .arg("--out")
            .arg(folder.path().join("out"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let first = internet.until_answered(Duration::from_secs(20));

    // A client without recovery, in the same place: it works as long as nothing happens.
    let token = nat.at(Side::Device, || relay::enrol(relay.address, "control", &control_pin));
    let mut control = nat.at(Side::Device, || RawDevice::log_in(relay.address, "control", &token));
    let control_lines = control.connections();
    let (sender, control_heard) = channel();
    let listening = thread::spawn(move || {
        while let Ok(pushed) = control.pushed() {
            let answer = format!("<iq type='result' id='{}' xmlns='jabber:client'/>", pushed.request);
            control.send(&answer);
            if sender.send(pushed.object).is_err() {
                return;
            }
        }
    });
    assert_eq!(internet.get("control", "one", 5).status, 200);
    assert_eq!(control_heard.recv_timeout(SOON).unwrap(), "one");

    // The NAT forgets all flows.
    assert!(nat.forget_flows() >= 2, "the held requests were known flows");
    let control_call = internet.get("control", "two", 1);
    assert_eq!((control_call.status, control_call.field("relay-outcome")), (504, Some("sent")));
    let after_flush = internet.until_answered(Duration::from_secs(20));
    assert!(nat.dropped_forgotten() > 0, "what was forgotten was dropped");
    assert_eq!(control_heard.try_recv(), Err(TryRecvError::Empty), "the control hangs");

    // The relay dies and comes back on the same data.
    relay.kill();
    let relay = Internet::relay(nat, &data);
    let after_kill = internet.until_answered(Duration::from_secs(60));
    assert_eq!(internet.get("control", "three", 1).field("relay-outcome"), Some("offline"));
    assert_eq!(control_heard.try_recv(), Err(TryRecvError::Empty), "the control hangs still");

    println!(
        "pushes got through after {first:.1?}, after the NAT forgot its flows {after_flush:.1?}, after the relay was \
         killed {after_kill:.1?}; the control hung both times"
    );
    control_lines.iter().for_each(|line| line.shutdown(std::net::Shutdown::Both).unwrap());
    listening.join().unwrap();
    drop(relay);
}
