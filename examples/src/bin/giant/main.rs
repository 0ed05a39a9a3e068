//! What large documents cost, and whom: a gibibyte through the relay to `virtual-printer`, over either transport, its
//! link cut on the way; and 64 MiB for a device that stops reading. Ends with an error if anything is over budget.
//!
//! ```text
//! cargo build --release -p server-sdk --features server-sdk/jemalloc --bin relay -p examples --bin virtual-printer --bin giant
//! target/release/giant
//! ```
//!
//! Relay and printer are processes of their own, and the same program whichever the transport is; this process is the
//! service, the network between the two, and the devices beside. docs/performance.md says what the numbers mean.

mod device;
mod document;
mod large;
mod link;
mod process;
mod report;
mod site;
mod stalled;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;

use crate::{report::Report, site::Programs};

/// Measures what large documents cost a relay and its devices.
#[derive(Debug, Parser)]
struct Options {
    /// How large the document is, in MiB; 0 for none.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// How often its link is cut on the way.
    #[arg(long, default_value_t = 3)]
    cuts: u64,
    /// The transports that it goes over.
    #[arg(long, value_delimiter = ',', default_value = "ws,bosh")]
    transports: Vec<String>,
    /// How many rounds with and without a device that stops reading; 0 for none.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How many seconds a round takes, over which all of it is asked.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The relay's program; the one beside this one if left out.
    #[arg(long)]
    relay: Option<PathBuf>,
    /// The virtual printer's program; the one beside this one if left out.
    #[arg(long)]
    printer: Option<PathBuf>,
    /// Where to put the numbers as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The whole of it is over by then, or has failed.
const WHOLE: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let measured = tokio::select! {
        measured = tokio::time::timeout(WHOLE, measure(&options)) => {
            measured.unwrap_or_else(|_| Err(format!("not over after {WHOLE:?}")))
        }
        // So that processes and folders are cleared away.
        _ = examples::asked_to_stop() => Err("told to stop".into()),
    };
    match measured {
        Ok(report) => {
            print!("{report}");
            if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("giant: {error}");
            ExitCode::from(2)
        }
    }
}

async fn measure(options: &Options) -> Result<Report, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = here.parent().unwrap_or_else(|| Path::new("."));
    let beside = |given: &Option<PathBuf>, name| given.clone().unwrap_or_else(|| folder.join(name));
    let programs = Programs {
        relay: beside(&options.relay, "relay"),
        printer: beside(&options.printer, "virtual-printer"),
    };
    // It waits for a minute and does nothing else: the others do not wait for it.
    let end = (options.rounds > 0).then(|| {
        let programs = programs.clone();
        tokio::spawn(async move { stalled::end(&programs).await })
    });
    let mut report = Report::default();
    for transport in options.transports.iter().filter(|_| options.mib > 0) {
        report.0.extend(large::printed(&programs, transport, options.mib << 20, options.cuts).await?);
        eprintln!("{transport}: printed");
    }
    if let Some(end) = end {
        let round = Duration::from_secs(options.seconds);
        report.0.extend(stalled::noticed(&programs, options.rounds, round).await?);
        report.0.extend(end.await.map_err(|error| error.to_string())??);
    }
    if let Some(file) = &options.json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(report)
}
