//! The program `relay`: runs a relay, and talks to one that runs.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod arguments;
mod commands;
mod failure;
mod output;
mod print;
mod serve;
mod watch;

use std::{io, process::ExitCode};

use clap::Parser;
use tokio::runtime::{Builder, Runtime};

use arguments::{Arguments, Command};

// A request is some dozens of small allocations, which another thread may free.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let workers = match &arguments.command {
        Command::Serve(serve) => serve.workers.map(usize::from),
        // One call needs one thread.
        _ => Some(1),
    };
    let done = match runtime(workers) {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(failure::Failure::own("the program cannot start").because(error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

/// A runtime of so many threads; one a core if nothing is said.
fn runtime(workers: Option<usize>) -> io::Result<Runtime> {
    let mut builder = match workers {
        // Nothing is handed over then: no thread has to wake another.
        Some(1) => Builder::new_current_thread(),
        Some(workers) => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(workers);
            builder
        }
        None => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

async fn run(arguments: Arguments) -> Result<(), failure::Failure> {
    let Arguments { command, reach, json } = arguments;
    match command {
        Command::Serve(serve) => serve::serve(serve, reach, json).await,
        command => commands::run(command, &reach, json).await,
    }
}
