//! The process that is measured, and what the kernel knows of it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A server process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where services call it, and devices poll.
    pub(crate) address: SocketAddr,
    /// Where devices open WebSockets.
    pub(crate) sockets: SocketAddr,
}

impl Server {
    /// Starts the bare forwarder.
    pub(crate) fn bare(program: &Path) -> Result<Self, String> {
        let mut child = Command::new(program)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{program:?}: {error}"))?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output to read")?);
        let mut said = |what: &str| {
            let mut line = String::new();
            output.read_line(&mut line).map_err(|error| error.to_string())?;
            let address = line.trim().strip_prefix(what).and_then(|address| address.parse().ok());
            address.ok_or_else(|| format!("the forwarder said {line:?}"))
        };
        let (address, sockets) = (said("listening on ")?, said("sockets on ")?);
        Ok(Self { child, address, sockets })
    }

    /// Starts a relay of so many threads on `data`, and waits until it is ready.
    pub(crate) async fn relay(program: &Path, data: &Path, workers: u16) -> Result<Self, String> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| error.to_string())?;
        let log = fs::File::create(data.with_extension("log")).map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(data)
            .args((workers > 0).then(|| format!("--workers={workers}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{program:?}: {error}"))?;
        let mut server = Self { child, address, sockets: address };
        for _ in 0..200 {
            if let Ok(mut connection) = crate::http::Connection::open([127, 0, 0, 1].into(), address).await
                && let Ok((200, _)) = connection.ask("GET /readyz HTTP/1.1", "").await
            {
                return Ok(server);
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("the relay ended with {status}; see {:?}", data.with_extension("log")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("the relay was not ready in 10 s".into())
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> Result<f64, String> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc")?;
        line.trim().trim_end_matches("kB").trim().parse().map_err(|error| format!("VmRSS: {error}"))
    }

    /// CPU time in µs, user and kernel, of all its threads.
    pub(crate) fn cpu(&self) -> Result<f64, String> {
        // Clock ticks are hundredths of a second: too coarse, where the scheduler's nanoseconds are to be had.
        let tasks =
            fs::read_dir(format!("/proc/{}/task", self.child.id())).map_err(|error| error.to_string())?;
        let nanoseconds: Option<f64> = tasks
            .map(|task| {
                let schedule = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
                schedule.split_whitespace().next()?.parse::<f64>().ok()
            })
            .sum();
        if let Some(nanoseconds) = nanoseconds.filter(|&nanoseconds| nanoseconds > 0.0) {
            return Ok(nanoseconds / 1e3);
        }
        let stat = self.proc("stat")?;
        let fields = stat.rsplit_once(')').ok_or("no name in /proc stat")?.1;
        let ticks: f64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        Ok(ticks * 1e4)
    }

    fn proc(&self, file: &str) -> Result<String, String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).map_err(|error| error.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
