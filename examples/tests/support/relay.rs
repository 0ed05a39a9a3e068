//! The program `relay` as a process, used as its documentation says.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use crate::http;

/// The program, as built from this very tree.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // Cargo builds this package's own programs for its tests, and `relay` is another's.
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "server-sdk", "--features", "relay", "--bin", "relay"])
            .status()
            .expect("cargo runs");
        assert!(status.success(), "cargo build --bin relay: {status}");
        Path::new(env!("CARGO_BIN_EXE_bare-forwarder")).with_file_name("relay")
    })
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
}

/// A relay on a data folder; killed when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    child: Child,
    pub(crate) address: SocketAddr,
    data: PathBuf,
}

impl Relay {
    /// Starts a relay on this machine's loopback.
    pub(crate) fn start(data: &Path) -> Self {
        Self::start_as(Command::new(program()), free_address(), data, |address| {
            http::ask(address, "GET /readyz", &[], b"")
        })
    }

    /// Starts `command`, which is the relay's program somewhere else, and waits until `ready` says 200.
    pub(crate) fn start_as(
        mut command: Command,
        address: SocketAddr,
        data: &Path,
        ready: impl Fn(SocketAddr) -> io::Result<http::Answer>,
    ) -> Self {
        let log = data.with_extension("log");
        let file = File::options().create(true).append(true).open(&log).expect("the log can be written");
        let child = command
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor is left"))
            .stderr(file)
            .spawn()
            .expect("the relay starts");
        let mut relay = Self { child, address, data: data.into() };
        let start = Instant::now();
        while !ready(address).is_ok_and(|answer| answer.status == 200) {
            let words = || std::fs::read_to_string(&log).unwrap_or_default();
            if let Ok(Some(status)) = relay.child.try_wait() {
                panic!("the relay ended with {status}: {}", words());
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the relay is not ready: {}", words());
            thread::sleep(Duration::from_millis(20));
        }
        relay
    }

    /// What `relay ARGUMENTS --json` says, run by `command`.
    pub(crate) fn tell_by(&self, mut command: Command, arguments: &[&str]) -> Value {
        let output = command
            .args(arguments)
            .arg("--json")
            .env("RELAY_DATA", &self.data)
            .env("RELAY_KEY", std::fs::read_to_string(self.data.join("administrator.key")).unwrap().trim())
            .env("RELAY_ALLOW_PLAINTEXT", "true")
            .env("RELAY_URL", format!("http://{}", self.address))
            .output()
            .expect("the relay's program runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "relay {arguments:?}: {} {errors}", output.status);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("relay {arguments:?}: {error} in {}", String::from_utf8_lossy(&output.stdout))
        })
    }

    /// A service's key.
    pub(crate) fn key(&self) -> String {
        word(&self.tell_by(Command::new(program()), &["key", "new"]), "key")
    }

    /// Makes `device` known and enrols it; its token.
    pub(crate) fn enrol(&self, device: &str) -> String {
        let pin = word(&self.tell_by(Command::new(program()), &["enroll", device]), "pin");
        enrol(self.address, device, &pin)
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The device's own enrolment.
pub(crate) fn enrol(relay: SocketAddr, device: &str, pin: &str) -> String {
    let body = serde_json::json!({"device_id": device, "pin": pin}).to_string();
    let answer =
        http::ask(relay, "POST /v1/enroll", &["Content-Type: application/json"], body.as_bytes()).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    word(&answer.json(), "token")
}

/// A text in an answer.
pub(crate) fn word(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}
