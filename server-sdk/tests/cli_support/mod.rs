//! The program `relay` as a process, and its subcommands as others run them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use server_sdk::Client;

/// A relay in a process of its own.
pub struct Process {
    pub child: Child,
    pub url: String,
    pub data: PathBuf,
    pub said: serde_json::Value,
    _out: BufReader<ChildStdout>,
}

impl Process {
    /// Starts one on a free port of loopback, and waits until it listens.
    pub fn start(data: &Path) -> Self {
        Self::of(Self::command(data), data)
    }

    /// The same by a command of the test's own.
    pub fn of(mut command: Command, data: &Path) -> Self {
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).expect("a relay says where it listens");
        let url = said["listening"][0].as_str().unwrap().to_owned();
        Self { child, url, data: data.to_owned(), said, _out: out }
    }

    pub fn command(data: &Path) -> Command {
        let mut command = program();
        command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        command.env("RELAY_LOG", "warn").stdout(Stdio::piped()).stdin(Stdio::null());
        command
    }

    pub fn admin(&self) -> String {
        std::fs::read_to_string(self.data.join("administrator.key")).unwrap().trim().to_owned()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.url, &self.admin()).unwrap()
    }

    /// A subcommand that talks to it, with the key of its data folder.
    pub fn run(&self, arguments: &[&str]) -> Output {
        program().env("RELAY_URL", &self.url).env("RELAY_DATA", &self.data).args(arguments).output().unwrap()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, without any setting of whoever runs the tests.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RELAY_") {
            command.env_remove(name);
        }
    }
    command
}

pub fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not read it all is no error here.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
