//! What a relay costs with a fleet on it: memory per device, CPU per request and per connect, beside a bare forwarder
//! under the same load, on this machine and in this run. Ends with an error if it is over budget.
//!
//! ```text
//! cargo build --release -p server-sdk --features server-sdk/jemalloc --bin relay -p examples --bin fleet --bin bare-forwarder
//! target/release/fleet
//! ```
//!
//! Over BOSH, every device logs in with SCRAM and holds a request; over WebSocket, it has one control session. Each answer
//! is checked to be that device's, to that call. The servers are processes of their own; the load, which is this process, keeps to one thread so that they
//! have the other core. docs/performance.md says what the numbers mean.
#![expect(clippy::future_not_send, reason = "the load keeps to one thread")]

mod bosh;
mod enrol;
mod http;
mod load;
mod report;
mod server;
mod ws;
mod xml;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use tokio::{task::LocalSet, time::Instant};

use crate::{
    enrol::Credential,
    load::{Fleet, Shape, Target},
    report::{Calls, Report, Run, Second, Setting, Slack},
    server::Server,
};

/// How the devices are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Bosh,
    Ws,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bosh => "bosh",
            Self::Ws => "ws",
        })
    }
}

/// Measures a relay with a fleet of devices on it.
#[derive(Debug, Parser)]
struct Options {
    /// How the devices are connected: one way, or one after the other.
    #[arg(long, value_delimiter = ',', default_value = "bosh,ws")]
    transport: Vec<Transport>,
    /// How many devices.
    #[arg(long, default_value_t = 5000)]
    devices: usize,
    /// How many calls, for each way of answering.
    #[arg(long, default_value_t = 30_000)]
    requests: usize,
    /// How many calls at once.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// How many runs to take medians of.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The relay's program; the one beside this one if left out.
    #[arg(long)]
    relay: Option<PathBuf>,
    /// How many threads the relay works with: one, as the forwarder does. 0 leaves it its own default, which is one a
    /// core; what is then measured is also how two threads wake each other.
    #[arg(long, default_value_t = 1)]
    workers: u16,
    /// How many times its budget the CPU per request may be before this ends with an error. 1 is the budget; more is
    /// for a gate that keeps what was reached while the budget is not.
    #[arg(long, default_value_t = 1.0)]
    cpu_slack: f64,
    /// The same for memory.
    #[arg(long, default_value_t = 1.0)]
    memory_slack: f64,
    /// Where to put the numbers as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Setting {
    const fn of(options: &Options) -> Self {
        Self {
            devices: options.devices,
            requests: options.requests,
            workers: options.workers,
            runs: options.runs,
        }
    }
}

/// The whole of it is over by then, or has failed.
const WHOLE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let options = Options::parse();
    match measure(&options) {
        Ok(report) => {
            print!("{report}");
            if report.within(Slack { memory: options.memory_slack, cpu: options.cpu_slack }) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("fleet: {error}");
            ExitCode::from(2)
        }
    }
}

fn measure(options: &Options) -> Result<Report, String> {
    raise_descriptors(2 * options.devices + 500)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|it| it.to_string())?;
    let local = LocalSet::new();
    let report =
        local.block_on(&runtime, async { tokio::time::timeout(WHOLE, all_runs(options, &local)).await });
    let report = report.map_err(|_| format!("not over after {WHOLE:?}"))??;
    if let Some(file) = &options.json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(report)
}

async fn all_runs(options: &Options, local: &LocalSet) -> Result<Report, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = here.parent().unwrap_or_else(|| Path::new("."));
    let relay = options.relay.clone().unwrap_or_else(|| folder.join("relay"));
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");

    let start = Instant::now();
    std::fs::create_dir_all(&data).map_err(|error| error.to_string())?;
    let server = Server::relay(&relay, &data, options.workers).await?;
    let key = enrol::administrator(&data)?;
    let enrolled = enrol::enrol(server.address, &key, options.devices).await?;
    drop(server);
    eprintln!("enrolled {} devices in {:.0?}", enrolled.len(), start.elapsed());

    let mut report = Report::new(Setting::of(options));
    for &transport in &options.transport {
        let mut devices = Devices::new(transport, &enrolled);
        let mut anonymous = Devices::new(transport, &enrolled);
        let (mut of_relay, mut of_bare) = (Vec::new(), Vec::new());
        for number in 1..=options.runs {
            // A fresh process each time, so that what enrolment left on the heap is not counted, or reused.
            let server = Server::relay(&relay, &data, options.workers).await?;
            let target = Target::Relay { key: key.clone() };
            let run = one_run(options, &server, target, &mut devices, local).await?;
            eprintln!("run {number} over {transport}, relay: {run:.1?}");
            of_relay.push(run);
            drop(server);

            let server = Server::bare(&folder.join("bare-forwarder"))?;
            let run = one_run(options, &server, Target::Bare, &mut anonymous, local).await?;
            eprintln!("run {number} over {transport}, bare forwarder: {run:.1?}");
            of_bare.push(run);
        }
        report.add(transport, &of_relay, &of_bare);
    }
    Ok(report)
}

/// The fleet while it is not connected.
#[derive(Debug)]
enum Devices {
    Bosh(Vec<bosh::wire::Device>),
    Ws(Vec<Credential>),
}

impl Devices {
    fn new(transport: Transport, enrolled: &[Credential]) -> Self {
        match transport {
            Transport::Bosh => {
                Self::Bosh(enrolled.iter().map(|it| bosh::wire::Device::new(it, "localhost")).collect())
            }
            Transport::Ws => Self::Ws(enrolled.to_vec()),
        }
    }

    async fn connect(&mut self, server: &Server, target: Target, local: &LocalSet) -> Result<Fleet, String> {
        match self {
            Self::Bosh(devices) => bosh::connect(devices, server.address, target, local).await,
            Self::Ws(devices) => ws::connect(devices, server.address, server.sockets, target, local).await,
        }
    }
}

async fn one_run(
    options: &Options,
    server: &Server,
    target: Target,
    devices: &mut Devices,
    local: &LocalSet,
) -> Result<Run, String> {
    let count = options.devices as f64;
    let (empty, cpu) = (server.resident()?, server.cpu()?);
    let mut fleet = devices.connect(server, target, local).await?;
    let connect = (server.cpu()? - cpu) / count;
    let idle = (server.resident()? - empty) / count;
    let in_session = calls(options, server, &mut fleet).await?;
    let used = (server.resident()? - empty) / count;
    let run = Run { connect, idle, used, in_session, second: None };
    if matches!(devices, Devices::Ws(_)) {
        return Ok(run);
    }
    fleet.answer(Shape::ByHttp);
    // Every device opens its second connection.
    fleet.call(options.devices, options.in_flight).await?;
    let both = (server.resident()? - empty) / count;
    let by_http = calls(options, server, &mut fleet).await?;
    Ok(Run { second: Some(Second { both, by_http }), ..run })
}

async fn calls(options: &Options, server: &Server, fleet: &mut Fleet) -> Result<Calls, String> {
    fleet.call(options.requests / 10, options.in_flight).await?;
    let (cpu, start) = (server.cpu()?, Instant::now());
    let took = fleet.call(options.requests, options.in_flight).await?;
    let (cpu, elapsed) = (server.cpu()? - cpu, start.elapsed());
    let at =
        |part: usize| took.get(took.len() * part / 100).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3);
    let requests = options.requests as f64;
    Ok(Calls { cpu: cpu / requests, median: at(50), p99: at(99), rate: requests / elapsed.as_secs_f64() })
}

/// Each device has up to two descriptors, here and in the server, which inherits the limit.
fn raise_descriptors(wanted: usize) -> Result<(), String> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < wanted as u64) {
        return Err(format!("{wanted} descriptors are needed, the hard limit is {:?}", limit.maximum));
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).map_err(|error| format!("raising the limit of descriptors: {error}"))
}

/// A folder for the relay, gone afterwards.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("relay-fleet-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_transports_are_measured_unless_one_is_named() {
        let transports = |arguments: &[&str]| {
            let line = ["fleet"].iter().chain(arguments);
            Options::try_parse_from(line).map(|options| options.transport)
        };
        assert_eq!(transports(&[]).unwrap(), [Transport::Bosh, Transport::Ws]);
        assert_eq!(transports(&["--transport", "ws"]).unwrap(), [Transport::Ws]);
        assert!(transports(&["--transport", "tcp"]).is_err());
    }
}
