//! Running the programs as their users do: as processes, against a relay on a free port.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use server_sdk::{
    Client,
    ids::AccountId,
    relay::{Server, ServerConfig},
};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

/// How long anything may take before the test has failed.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A program that runs, and what it says.
pub(crate) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Program {
    pub(crate) fn start(path: &str, arguments: &[&str]) -> Self {
        Self::start_with(Command::new(path).args(arguments))
    }

    pub(crate) fn start_with(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let errors = sender.clone();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        thread::spawn(move || {
            BufReader::new(stderr)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|l| errors.send(format!("stderr: {l}")))
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines, said: Vec::new() }
    }

    /// Waits for a line that has `words` in it.
    pub(crate) fn line(&mut self, words: &str) -> String {
        let until = Instant::now() + BOUND;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.contains(words) {
                        return line;
                    }
                }
                Err(end) => panic!("no line with {words:?} ({end:?}); it said:\n{}", self.said.join("\n")),
            }
        }
    }

    /// Types a line.
    pub(crate) fn press(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Closes its standard input.
    pub(crate) fn hang_up(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end; all that it said.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        let until = Instant::now() + BOUND;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it does not end; it said:\n{}", self.said.join("\n"));
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        };
        self.said.extend(self.lines.iter());
        (status, std::mem::take(&mut self.said))
    }

    /// Ends it by SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A relay in this process.
pub(crate) struct Relay {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_at(data, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn start_at(data: &Path, listen: SocketAddr) -> Self {
        Self::start_with(data, listen, |_| ()).await
    }

    pub(crate) async fn start_with(
        data: &Path,
        listen: SocketAddr,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        let mut config = ServerConfig::default();
        config.listen = vec![listen];
        config.data = PathBuf::from(data);
        config.drain_grace = Duration::from_millis(100);
        config.drain_retry_after = Duration::from_secs(1);
        change(&mut config);
        let server = Server::bind(config).await.unwrap();
        let address = server.addresses()[0];
        let url = format!("http://{address}");
        let key = std::fs::read_to_string(server.administrator_key_file().unwrap()).unwrap();
        let client = Client::new(&url, key.trim()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self { url, address, client, stop, running }
    }

    pub(crate) async fn pin(&self, device: &str, accounts: &[&str]) -> String {
        let accounts: Vec<_> = accounts.iter().map(|account| AccountId::new(account).unwrap()).collect();
        self.client.administration().issue_pin(device, &accounts).await.unwrap().pin.expose().to_owned()
    }

    pub(crate) async fn key(&self) -> String {
        self.client.administration().new_key(&[]).await.unwrap().key.expose().to_owned()
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.running.await.unwrap();
    }

    /// Asks until the answer is `wanted`.
    pub(crate) async fn until(
        &self,
        device: &str,
        object: &str,
        wanted: impl Fn(&Result<String, server_sdk::Error>) -> bool,
    ) {
        let until = Instant::now() + BOUND;
        loop {
            let answer =
                self.client.get(device, object).await.map(|answer| answer.text().unwrap().to_owned());
            if wanted(&answer) {
                return;
            }
            assert!(Instant::now() < until, "the last answer was {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
